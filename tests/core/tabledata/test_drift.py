"""Checks of new rows against those of training."""

import json

import numpy as np
import pandas as pd
import pytest

import moeapps
from moeapps import MoEClassifier
from moeapps.cli.main import main
from moeapps.core import compare_tables
from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.core.tabledata.columns import ColumnEncoder
from moeapps.core.tabledata.drift import population_stability
from moeapps.core.tabledata.profile import ColumnProfile


def frame(n: int = 400, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"age": rng.normal(40, 9, n), "city": rng.choice(["Ulm", "Bonn"], n)})
    return table.assign(
        joined=pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 300, n), unit="D"),
        customer_id=rng.permutation(n) + 1000,
    )


@pytest.fixture(scope="module")
def model() -> MoEClassifier:
    table = frame()
    return MoEClassifier(max_epochs=1, random_state=0, ignore_columns=["customer_id"]).fit(table, table["age"] > 40)


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save(folder / "m.safetensors")
    return folder / "m.safetensors"


def test_rows_like_those_of_training_are_ok(model):
    for seed in range(1, 20):
        for n in (10, 300):
            check = model.check(frame(n, seed))
            assert check.verdict == "ok", str(check)
    assert "nothing has changed" in str(check)


def test_each_change_is_named_with_its_reason(model):
    new = frame(300, 1)
    new["city"] = np.where(new.index % 3 == 0, "Kiel", new["city"])
    new["age"] = (new["age"] + 60).where(new.index % 2 == 0)
    check = model.check(new.drop(columns="joined").assign(more=1))
    assert check.table["verdict"].tolist() == ["drift", "drift", "absent"]
    assert check.table.loc["city", "unseen"] == pytest.approx(1 / 3)
    assert check.table.loc["age", "missing_now"] == pytest.approx(0.5)
    assert check.table.loc["age", "outside"] > 0.9
    assert "more missing cells" in check.table.loc["age", "why"]
    assert (check.verdict, check.extra, check.rows, check.rows_training) == ("absent", ("more",), 300, 400)
    assert check.reaches("shift")


def test_a_time_that_is_later_is_no_drift(model):
    later = frame(300, 1)
    later["joined"] += pd.Timedelta(days=1000)
    check = model.check(later)
    assert check.verdict == "ok"
    assert check.table.loc["joined", "outside"] == 1


def test_a_cell_that_cannot_be_read_is_a_verdict(model):
    check = model.check(frame(50, 1).astype({"age": object}).replace({"age": {frame(50, 1)["age"][7]: "old"}}))
    assert check.table.loc["age", "verdict"] == "unreadable"
    assert "row 7: 'old' is not a number" in check.table.loc["age", "why"]


def test_a_table_without_any_column_of_the_training_is_refused_by_name(model, tmp_path):
    frame(30).rename(columns=lambda name: f" {name}").to_csv(tmp_path / "new.csv", index=False)
    with (
        pytest.warns(UserWarning, match="spaces in the header"),
        pytest.raises(
            DataError, match=r"new.csv has no column of the training \('age', 'city', 'joined'\); it has ' age', "
        ),
    ):
        model.check(tmp_path / "new.csv")


def test_no_rows_are_refused(model):
    with pytest.raises(DataError, match="there is no row to check"):
        model.check(frame().head(0))


def test_a_loaded_model_finds_the_same_in_a_file(model, path, tmp_path):
    frame(300, 1).to_csv(tmp_path / "new.csv", index=False)
    loaded = moeapps.load(path).check(tmp_path / "new.csv")
    pd.testing.assert_frame_equal(loaded.table, model.check(frame(300, 1)).table)


def test_a_file_of_an_older_version_says_what_is_not_known(model):
    state = {key: value for key, value in model.encoder_.state().items() if key not in ("profiles", "unused")}
    state |= {"names": ["age", "city", "joined"], "columns": state["columns"][:3]}
    old = ColumnEncoder.from_state(state)
    assert [profile.counts for profile in old.profile()] == [(), (), ()]
    assert old.profile()[0].high == max(frame()["age"])
    assert old.profile()[1].values == ("Bonn", "Ulm") or old.profile()[1].values == ("Ulm", "Bonn")


@pytest.mark.parametrize("change", [{"counts": [1]}, {"rows": -1}, {"kind": "list"}, {"edges": ["a"]}])
def test_a_damaged_profile_is_refused(model, change):
    saved = model.encoder_.state()["profiles"][0] | change
    with pytest.raises(FileFormatError, match="profile"):
        ColumnProfile.from_json(saved)


def test_the_index_between_samples_of_one_distribution_is_what_chance_makes_of_it():
    rng = np.random.default_rng(0)
    found = [population_stability(*rng.multinomial([500, 300], np.full(10, 0.1))) for _ in range(300)]
    assert np.mean([index for index, _, _ in found]) == pytest.approx(found[0][1], rel=0.1)
    assert sum(index > limit for index, _, limit in found) <= 3


def test_the_index_is_that_of_the_formula_for_many_rows():
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    index, _, _ = population_stability((p * 10**7).astype(int), (q * 10**7).astype(int))
    assert index == pytest.approx(((q - p) * np.log(q / p)).sum(), rel=1e-4)


def test_the_command_line_checks_writes_and_fails_on_drift(path, tmp_path, capsys):
    new = frame(300, 1).assign(city="<Kiel>")
    new.to_csv(tmp_path / "new.csv", index=False)
    outputs = [part for ending in ("html", "json", "csv") for part in ("--output", str(tmp_path / f"c.{ending}"))]
    command = ["check", str(path), str(tmp_path / "new.csv"), *outputs]
    assert main(command) == 0
    assert main([*command, "--fail-on", "drift"]) == 3
    assert "1 of 3 columns have changed: city" in capsys.readouterr().out
    content = json.loads((tmp_path / "c.json").read_text())
    assert content["verdict"] == "drift"
    assert content["columns"][0]["unseen"] is None
    page = (tmp_path / "c.html").read_text()
    assert "100.0% unseen categories" in page
    assert page.index("<td>city</td>") < page.index("<td>age</td>")  # the worst first
    assert main([*command, "--output", str(tmp_path / "c.txt")]) == 2


def test_two_files_are_compared_without_a_model(tmp_path, capsys):
    frame().to_csv(tmp_path / "a.csv", index=False)
    frame(300, 1).assign(age=1.5).to_csv(tmp_path / "b.csv", index=False)
    files = [str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]
    assert main(["compare-data", *files, "--fail-on", "shift"]) == 3
    assert "customer_id" not in capsys.readouterr().out
    assert main(["compare-data", *files, "--fail-on", "shift", "--ignore", "age"]) == 0
    with pytest.raises(ConfigError, match="did you mean 'age'"):
        compare_tables(frame(), frame(), ["ages"])
