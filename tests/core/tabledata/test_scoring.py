"""Scoring a file with a saved model, from Python and from the command line."""

import numpy as np
import pandas as pd
import pytest

from moeapps import MoEClassifier, MoERegressor, MowstClassifier, MowstLinkPredictor
from moeapps.cli.main import main
from moeapps.core import predict_file
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.tabledata.writer import TableWriter
from moeapps.vision import SwitchDiTGenerator


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"city": rng.choice(["Ulm", "NA"], 300), "zip": rng.choice([1, 2, 30], 300)})
    frame["age"] = np.where(rng.random(300) < 0.1, np.nan, rng.normal(size=300))
    return frame


@pytest.fixture(scope="module")
def classifier(frame) -> MoEClassifier:
    y = np.where((frame["city"] == "Ulm") & (frame["zip"] > 1), "yes", "no")
    return MoEClassifier(max_epochs=5, random_state=0, categorical_features=["city", "zip"]).fit(frame, y)


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_file_is_predicted_as_a_frame_is(ending, classifier, frame, tmp_path, monkeypatch):
    source, output = tmp_path / f"in{ending}", tmp_path / f"out{ending}"
    shuffled = frame.assign(row=np.arange(300))[["row", "age", "zip", "city"]]
    shuffled.to_csv(source, index=False) if ending == ".csv" else shuffled.to_parquet(source)
    assert predict_file(classifier, source, output, keep=["row"], batch_rows=64) == 300
    found = pd.read_csv(output) if ending == ".csv" else pd.read_parquet(output)
    assert found.columns.tolist() == ["row", "prediction", "probability_no", "probability_yes"]
    assert (found["prediction"] == classifier.predict(frame)).all()
    np.testing.assert_allclose(found["probability_yes"], classifier.predict_proba(frame)[:, 1], atol=1e-12)


@pytest.mark.parametrize(("name", "note"), [("score", ""), ("predict", "note: moeapps predict MODEL is now")])
def test_the_command_does_the_same_under_both_names(name, note, classifier, frame, tmp_path, capsys):
    classifier.save(tmp_path / "m.safetensors")
    frame.to_csv(tmp_path / "in.csv", index=False)
    command = [name, str(tmp_path / "m.safetensors"), "--input", str(tmp_path / "in.csv"), "--keep", "zip,age"]
    assert main([*command, "--output", str(tmp_path / "out.csv")]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"predictions: {tmp_path / 'out.csv'} (300 rows)\n"
    assert captured.err.startswith(note) if note else captured.err == ""
    assert pd.read_csv(tmp_path / "out.csv")["zip"].tolist() == frame["zip"].tolist()
    assert main([*command, "--output", str(tmp_path / "in.csv")]) == 2
    assert "is the file to be predicted" in capsys.readouterr().err
    frame.drop(columns="city").to_csv(tmp_path / "in.csv", index=False)
    assert main([*command, "--output", str(tmp_path / "out.csv")]) == 1
    assert "lacks the column 'city'" in capsys.readouterr().err


def test_a_regressor_gives_one_column(frame, tmp_path):
    model = MoERegressor(max_epochs=2, random_state=0).fit(frame[["zip", "age"]], frame["zip"])
    frame.to_parquet(tmp_path / "in.parquet")
    predict_file(model, tmp_path / "in.parquet", tmp_path / "out.csv")
    assert pd.read_csv(tmp_path / "out.csv").columns.tolist() == ["prediction"]


def test_models_that_cannot_are_named(frame, tmp_path):
    frame.to_csv(tmp_path / "in.csv", index=False)
    with pytest.raises(ConfigError, match="MowstClassifier does not predict the rows of a table"):
        predict_file(MowstClassifier(), tmp_path / "in.csv", tmp_path / "out.csv")
    with pytest.raises(ConfigError, match=r"MowstLinkPredictor .* use it in Python, .*predict_table"):
        predict_file(MowstLinkPredictor(), tmp_path / "in.csv", tmp_path / "out.csv")
    with pytest.raises(ConfigError, match="SwitchDiTGenerator .*: moeapps serve MODEL generates images"):
        predict_file(SwitchDiTGenerator(), tmp_path / "in.csv", tmp_path / "out.csv")
    model = MoERegressor(max_epochs=1).fit(np.ones((20, 2)), np.arange(20.0))
    with pytest.raises(DataError, match="fitted on an array"):
        predict_file(model, tmp_path / "in.csv", tmp_path / "out.csv")


@pytest.mark.parametrize(("late", "kept"), [("late", "late"), (1.5, "1.5"), ([1, "a"], '[1, "a"]')])
def test_a_column_missing_in_the_first_group_of_a_parquet_file_keeps_what_comes_later(late, kept, tmp_path):
    """Kept cells of NDJSON ended in Arrow's own error once a group had been written with nothing but nulls."""
    pieces = [pd.DataFrame({"note": pd.Series([cell] * 70_000, dtype=object)}) for cell in (None, late)]
    with TableWriter(tmp_path / "out.parquet") as writer:
        for piece in pieces:
            writer.write(piece)
    found = pd.read_parquet(tmp_path / "out.parquet")["note"]
    assert found[:70_000].isna().all()
    assert found[70_000:].eq(kept).all()


def test_a_parquet_column_that_changes_its_type_is_named(tmp_path):
    def write():
        with TableWriter(tmp_path / "out.parquet") as writer:
            for cell in (1, "t"):
                writer.write(pd.DataFrame({"z": pd.Series([cell] * 70_000, dtype=object)}))

    with pytest.raises(DataError, match=r"column 'z' holds int64 in the first .* such as 't', later: write a .csv"):
        write()
    assert not list(tmp_path.iterdir())


def test_a_misspelled_column_to_keep_is_named_with_the_one_that_it_may_mean(classifier, frame, tmp_path):
    frame.to_csv(tmp_path / "in.csv", index=False)
    with pytest.raises(DataError, match=r"lacks the column 'agge', which keep names; did you mean 'age'\?"):
        predict_file(classifier, tmp_path / "in.csv", tmp_path / "out.csv", keep=["agge"])
