"""Data modules: files as frames, whatever their size; splits that do not mix; what is said of bad files."""

import gc
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import pyarrow.csv as arrow_csv
import pytest
import torch
import yaml
from sklearn.metrics import log_loss

from moeapps.cli.main import main
from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.recsys import MultiTaskRanker, PublicRankingData, RankingData, RankingModule, Schema, TableEncoder

QUICK = {"max_epochs": 2, "batch_size": 64, "lr": 5e-3, "random_state": 0, "accelerator": "cpu"}
SCHEMA = [
    {"kind": "sparse", "name": "user_id"},
    {"kind": "sparse", "name": "item_id"},
    {"kind": "dense", "name": "age"},
    {"kind": "sparse", "name": "city"},
    {"kind": "sequence", "name": "item_id_history", "shares": "item_id", "max_len": 6},
]


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    n = 600
    frame = pd.DataFrame({"row": np.arange(n), "user_id": rng.integers(0, 9, n), "item_id": rng.integers(0, 20, n)})
    frame["age"] = np.where(rng.random(n) < 0.1, np.nan, rng.normal(40, 9, n).round(3))
    frame["city"] = rng.choice(["Ulm", "NA", None], n)
    frame["item_id_history"] = [rng.integers(0, 20, rng.integers(0, 8)).tolist() for _ in range(n)]
    frame["click"] = (frame["item_id"] % 2).astype(int)
    frame["like"] = np.where(rng.random(n) < 0.2, np.nan, frame["click"])
    return frame


@pytest.fixture(params=["csv", "parquet"])
def file(request, frame, tmp_path) -> Path:
    path = tmp_path / f"train.{request.param}"
    if request.param == "csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    return path


def test_a_file_is_learned_from_as_its_frame_is(file, frame, tmp_path, monkeypatch):
    monkeypatch.setattr("moeapps.recsys.data.EVALUATION_ROWS", 16)  # batches of 128 rows of a file
    features = frame.drop(columns="row")
    models = [MultiTaskRanker("mmoe", **QUICK).fit(source, ["click", "like"], ignored=ignored) for source, ignored in (
        (features, []), (file, ["row"]))]  # fmt: skip
    assert models[0].encoder_.state()["values"] == models[1].encoder_.state()["values"]
    pd.testing.assert_frame_equal(models[0].predict_proba(features), models[1].predict_proba(features), atol=1e-5)


def test_losses_of_several_batches_are_means_over_all_rows_with_a_label(frame, monkeypatch):
    monkeypatch.setattr("moeapps.recsys.data.EVALUATION_ROWS", 64)
    rows = frame.drop(columns="row")
    held = rows[400:].reset_index(drop=True)
    held.loc[:90, "like"] = np.nan  # one batch has none, the next few
    data = RankingData(rows[:400], val=held, targets=["click", "like"], schema=SCHEMA, batch_size=64)
    module = RankingModule("shared_bottom")
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0)  # fmt: skip
    trainer.fit(module, datamodule=data)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    chance = MultiTaskRanker.from_module(module).predict_proba(held)
    for name in ("click", "like"):
        known = held[name].notna()
        expected = log_loss(held.loc[known, name], chance.loc[known, name])
        assert logged[f"val/{name}"] == pytest.approx(expected, rel=1e-4)
    assert logged["val/loss"] == pytest.approx(logged["val/click"] + logged["val/like"], rel=1e-5)


def test_a_text_file_is_parsed_once_and_its_copy_is_removed(frame, tmp_path, monkeypatch):
    frame.to_csv(tmp_path / "train.csv", index=False)
    opened = []
    plain = arrow_csv.open_csv
    monkeypatch.setattr(arrow_csv, "open_csv", lambda *a, **k: (opened.append(k), plain(*a, **k))[1])
    data = RankingData(
        train=str(tmp_path / "train.csv"), targets=["click"], ignored=["row", "like"], cache_dir=str(tmp_path)
    )
    data.setup("fit")
    assert len(opened) == 2  # the header, and the copy
    (folder,) = tmp_path.glob("moeapps-*")
    assert not any(path.is_dir() for path in folder.iterdir())
    assert len(data._train) + len(data._val) == len(frame)


def test_encoders_learn_the_same_from_batches(frame):
    features = frame.drop(columns="row")
    schema = Schema.infer(features, ["click", "like"])
    whole = TableEncoder(schema).fit(features)
    parts = TableEncoder(schema).fit_batches(features[i : i + 7] for i in range(0, 600, 7))
    for name, values in whole.values.items():
        assert set(parts.values[name]) == set(values)
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(parts.scale, whole.scale, rtol=1e-12)


def test_encoded_rows_of_a_file_are_on_disk_and_removed(file, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    data = RankingData(str(file), targets=["click"], schema=SCHEMA, cache_dir=str(cache), batch_size=32)
    data.setup("fit")
    assert len(list(cache.glob("*/train-*"))) == 4
    assert len(list(cache.glob("*/val-*"))) == 4
    rows, labels = next(iter(data.train_dataloader()))
    assert rows.sparse.shape == (32, 3)
    assert rows.sequences[0].shape == (32, 6)
    assert labels.shape == (32, 1)
    data.teardown("fit")
    assert list(cache.iterdir()) == []
    data.setup("fit")  # a training that fails never gets to `teardown`
    assert len(list(cache.iterdir())) == 1
    del data, rows, labels
    gc.collect()
    assert list(cache.iterdir()) == []


def test_no_rows_and_no_training_rows_are_refused(frame, tmp_path):
    (tmp_path / "a.csv").write_text("user_id,click\n")
    data = RankingData(str(tmp_path / "a.csv"), targets=["click"], schema=SCHEMA[:1])
    with pytest.raises(DataError, match=r"a.csv: there is no row to learn from"):
        data.setup("fit")
    data = RankingData(frame[["user_id", "click"]][:1], targets=["click"])
    with pytest.raises(DataError, match="validation_fraction leaves no row of 1"):
        data.setup("fit")


def test_rows_that_are_in_two_parts_are_refused(frame, tmp_path):
    frame[590:].to_parquet(tmp_path / "test.parquet")
    data = RankingData(
        frame[:595], test=str(tmp_path / "test.parquet"), targets=["click", "like"], schema=SCHEMA, row_id="row"
    )
    with pytest.raises(DataError, match="5 values of row_id='row' are both in train and in test"):
        data.setup("fit")
    data.parts["train"] = frame[:590]
    data.schema = Schema(data.schema.features, (), ("row",))
    data.setup("fit")
    with pytest.raises(DataError, match="lacks the column 'id', which row_id names"):
        RankingData(frame, targets=["click"], schema=SCHEMA, row_id="id").setup("fit")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"age": "abc"}, r"train.csv, record 302 .*column 'age': 'abc' is not a number"),
        ({"item_id_history": "7"}, r"train.csv: column 'item_id_history', row 300: '7' is not a list"),
        (
            {"click": "maybe"},
            "train.csv: column 'click' holds 599 numbers and 1 other text, such as 'maybe' at row 300",
        ),
    ],
)
def test_what_a_file_cannot_hold_is_named_with_file_and_place(change, message, frame, tmp_path):
    rows = frame.astype(object).copy()
    for name, value in change.items():
        rows.loc[300, name] = value
    rows.to_csv(tmp_path / "train.csv", index=False)
    data = RankingData(
        str(tmp_path / "train.csv"), targets=["click"], schema=SCHEMA, kinds={"click": "binary"}, validation_fraction=0
    )
    with pytest.raises(DataError, match=message):
        data.setup("fit")


def test_a_missing_column_is_named_with_the_file(frame, tmp_path):
    frame.drop(columns="city").to_csv(tmp_path / "train.csv", index=False)
    with pytest.raises(DataError, match=r"train.csv: the frame lacks the column 'city'"):
        RankingData(str(tmp_path / "train.csv"), targets=["click"], schema=SCHEMA).setup("fit")
    with pytest.raises(DataError, match="lacks the column 'buy'"):
        RankingData(frame, targets=["buy"], schema=SCHEMA).setup("fit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": "click"}, "targets must be a list"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"validation_fraction": 1.5}, "validation_fraction"),
        ({"schema": [{"kind": "sparsely", "name": "a"}]}, "must have a kind, one of sparse, dense, sequence"),
        ({"schema": [{"kind": "sparse", "named": "a"}]}, "unexpected keyword argument 'named'"),
        ({"schema": 3}, "schema must be a Schema, a list of features or None"),
    ],
)
def test_impossible_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        RankingData(**arguments)


def test_stages_without_what_they_need_say_so(frame):
    with pytest.raises(ConfigError, match="train is not set"):
        RankingData(targets=["click"]).setup("fit")
    with pytest.raises(ConfigError, match="targets must be a list"):
        RankingData(frame).setup("fit")
    with pytest.raises(ConfigError, match="name must be one of census-income"):
        PublicRankingData("netflix")
    with pytest.raises(ConfigError, match="ml-1m is not part of the package: give its folder as path"):
        PublicRankingData("ml-1m")


@pytest.fixture
def config(file, frame, tmp_path, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    frame[:100].to_csv("new.csv", index=False)
    init = {"train": str(file), "test": "new.csv", "predict": "new.csv", "targets": ["click", "like"]}
    options = {"model": "home", "groups": {"a": ["click"], "b": ["like"]}, "lr": 0.005, "options": {"dropout": 0.1}}
    document = {
        "model": {"class_path": "moeapps.recsys.RankingModule", "init_args": options},
        "data": {
            "class_path": "moeapps.recsys.RankingData",
            "init_args": {**init, "schema": SCHEMA, "keep": ["row", "click"], "batch_size": 64},
        },
        "trainer": {
            "max_epochs": 4,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "callbacks": {
                "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                "init_args": {"every_n_train_steps": 11, "save_top_k": -1, "filename": "{step}"},
            },
        },
    }
    Path("c.yaml").write_text(yaml.safe_dump(document))
    return ["--config", "c.yaml"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", ["csv"], indirect=True)
def test_the_command_line_trains_resumes_exactly_tests_and_predicts(config, frame, capsys):
    assert main(["fit", *config]) == 0
    assert main(["fit", *config, "--ckpt_path", "moeapps-runs/version_0/checkpoints/step=11.ckpt"]) == 0
    ends = [torch.load(f"moeapps-runs/version_{i}/checkpoints/last.ckpt", weights_only=True) for i in (0, 1)]
    assert ends[0]["global_step"] == ends[1]["global_step"]
    for name, tensor in ends[0]["state_dict"].items():
        assert torch.equal(tensor, ends[1]["state_dict"][name]), name
    last = ["--ckpt_path", "moeapps-runs/version_0/checkpoints/last.ckpt"]
    assert main(["test", *config, *last]) == 0
    assert "test/auc/click" in capsys.readouterr().out
    assert main(["predict", *config, *last, "--output", "scores.csv"]) == 0
    found = pd.read_csv("scores.csv")
    assert found.columns.tolist() == ["row", "click", "probability_click", "probability_like"]
    assert found["row"].tolist() == list(range(100))
    assert found["click"].tolist() == frame["click"][:100].tolist()
    assert ((found["probability_click"] > 0.5) == (frame["click"][:100] == 1)).mean() > 0.9
    metrics = pd.read_csv("moeapps-runs/version_0/metrics.csv")
    assert {"val/auc/click", "diagnosis/task/zeros", "diagnosis/meta/group a/shared: 0"} <= set(metrics.columns)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", ["csv"], indirect=True)
def test_a_prediction_that_fails_leaves_what_was_there(config, frame, capsys):
    assert main(["fit", *config, "--trainer.max_epochs", "1"]) == 0
    last = ["--ckpt_path", "moeapps-runs/version_0/checkpoints/last.ckpt"]
    Path("scores.csv").write_text("old")
    frame[:100].astype(object).assign(age="old").to_csv("new.csv", index=False)
    before = sorted(path.name for path in Path().iterdir())
    assert main(["predict", *config, *last, "--output", "scores.csv"]) == 1
    assert "new.csv, record 2 (the header is record 1), column 'age': 'old' is not a number" in capsys.readouterr().err
    assert Path("scores.csv").read_text() == "old"
    assert sorted(path.name for path in Path().iterdir()) == before


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", ["parquet"], indirect=True)
def test_a_checkpoint_of_other_data_is_refused(config, frame, file, capsys):
    assert main(["fit", *config, "--trainer.max_epochs", "1"]) == 0
    other = frame.assign(city=frame["city"].replace("Ulm", "Bonn"))
    other.to_csv(file, index=False) if file.suffix == ".csv" else other.to_parquet(file)
    last = ["--ckpt_path", "moeapps-runs/version_0/checkpoints/last.ckpt"]
    assert main(["fit", *config, *last]) == 1
    assert "the data is not what the checkpoint was trained on" in capsys.readouterr().err
    assert main(["test", *config]) == 2
    assert "moeapps test needs --ckpt_path FILE" in capsys.readouterr().err
    assert main(["test", *config, "--ckpt_path", "null"]) == 2
    assert "give the checkpoint of a trained model" in capsys.readouterr().err


def test_a_validation_part_with_one_class_has_no_auc_and_stops_nothing(frame):
    part = frame.drop(columns=["row", "like"])
    val = part[part["click"] == 1].head(20)
    with pytest.warns(UserWarning, match="labels of 'click' are of one class in the val rows") as told:
        model = MultiTaskRanker("mmoe", **QUICK).fit(part, ["click"], validation=val)
    assert len(told) == 1
    assert model.history_["val/auc/click"].isna().all()
    assert np.isfinite(model.history_["val/loss"]).all()


def test_the_public_sample_is_split_and_encoded():
    data = PublicRankingData(seed=1)
    data.setup("fit")
    parts = [data.load(name) for name in ("train", "val", "test")]
    assert [len(part) for part in parts] == [6400, 800, 800]
    assert len(set().union(*(part.index for part in parts))) == 8000
    assert data.encoder.schema.targets == ("income", "never_married")
    one = PublicRankingData(targets=["income"])
    one.setup("fit")
    assert one.encoder.schema.targets == ("income",)


def test_a_network_of_another_kind_of_checkpoint_is_refused():
    from moeapps.recsys import RankingModule

    with pytest.raises(FileFormatError, match="not one of a RankingModule"):
        RankingModule().on_load_checkpoint({"state_dict": {}})


def test_the_old_name_of_has_validation():
    with pytest.warns(DeprecationWarning, match="has_validation") as caught:
        assert RankingData().watched is False
    assert caught[0].filename == __file__


def test_a_column_of_times_that_is_not_there_is_named_with_its_argument():
    frame = pd.DataFrame({"user_id": [1, 2, 3], "item_id": [1, 2, 3], "when": [1, 2, 3], "click": [0, 1, 0]})
    with pytest.raises(DataError, match=r"lacks the column 'wen', which time names; did you mean 'when'\?"):
        RankingData(frame, targets=["click"], time="wen").setup("fit")
