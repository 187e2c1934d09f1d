"""A mixture trained by Lightning: from a YAML file, resumed, predicted, and made an estimator; tables as data."""

from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.tree import DecisionTreeClassifier

import moeapps
from moeapps.cli.main import main
from moeapps.core.checkpoint import AtomicCheckpointIO
from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.tables import MixtureClassifier, MixtureModule, TableData

rng = np.random.default_rng(0)
PEOPLE = pd.DataFrame(
    {"age": rng.normal(40, 9, 300).round(1), "hours": rng.integers(1, 60, 300), "noise": rng.normal(size=300)}
)
PEOPLE["pay"] = np.where((PEOPLE["age"] > 40) ^ (PEOPLE["hours"] > 30), "high", "low")
PEOPLE["wage"] = PEOPLE["age"] * 2 + (PEOPLE["hours"] > 30) * 30.0
EXPERTS = {"linear": LogisticRegression(max_iter=300), "boosting": HistGradientBoostingClassifier(max_iter=10)}
QUIET = {"accelerator": "cpu", "enable_checkpointing": False, "logger": False,
         "enable_progress_bar": False, "enable_model_summary": False}  # fmt: skip


def trainer(folder, epochs, **options):
    return L.Trainer(max_epochs=epochs, default_root_dir=folder, plugins=[AtomicCheckpointIO()], **QUIET | options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    data = TableData(PEOPLE, "pay", ignore_columns=["wage"], batch_size=64)
    module = MixtureModule(EXPERTS, gate="linear", cv=3, lr=0.05)
    run = trainer(folder, 5)
    run.fit(module, datamodule=data)
    run.save_checkpoint(folder / "last.ckpt")
    return module, data, folder / "last.ckpt", run


def test_the_gate_learns_where_an_expert_is_better(trained):
    *_, run = trained
    metrics = run.callback_metrics
    assert float(metrics["val/accuracy"]) > 0.85
    # the linear model cannot learn an exclusive or: the gate leaves it out
    assert float(metrics["val/moe/gate/load/1"]) > 0.8
    assert float(metrics["train/loss"]) < np.log(2)


def test_a_training_goes_on_as_if_it_had_not_been_stopped(trained, tmp_path):
    module, _, _, _ = trained
    begun = trainer(tmp_path, 5, limit_train_batches=None)
    first = MixtureModule(EXPERTS, gate="linear", cv=3, lr=0.05)
    L.seed_everything(1, verbose=False)
    begun.fit_loop.max_epochs = 5
    stop = StopAfter(2)
    begun.callbacks.append(stop)
    begun.fit(first, datamodule=TableData(PEOPLE, "pay", ignore_columns=["wage"], batch_size=64))
    begun.save_checkpoint(tmp_path / "half.ckpt")
    second = MixtureModule({**EXPERTS}, gate="linear", cv=3, lr=0.05)
    trainer(tmp_path, 5).fit(
        second,
        datamodule=TableData(PEOPLE, "pay", ignore_columns=["wage"], batch_size=64),
        ckpt_path=tmp_path / "half.ckpt",
        weights_only=True,
    )  # fmt: skip
    for name, value in module.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[name]), name


class StopAfter(L.Callback):
    def __init__(self, epochs):
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, module):
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


def test_the_estimator_of_a_checkpoint_predicts_as_the_module_and_is_saved(trained, tmp_path):
    _, data, path, _ = trained
    loaded = MixtureModule.load_from_checkpoint(path, weights_only=True)
    rows = PEOPLE.drop(columns=["pay", "wage"])[:50]
    run = trainer(tmp_path, 1)
    predict = TableData(predict=rows.assign(id=range(50)), keep=["id"])
    (found,) = run.predict(loaded, datamodule=predict)
    estimator = loaded.to_estimator(data)
    np.testing.assert_allclose(found["probability_high"], estimator.predict_proba(rows)[:, 0], atol=1e-12)
    np.testing.assert_allclose(found["weight_boosting"], estimator.weights(rows)["boosting"], atol=1e-12)
    assert (found["prediction"] == estimator.predict(rows)).all()
    assert found["id"].tolist() == list(range(50))
    estimator.save(tmp_path / "m.safetensors")
    again = moeapps.load(tmp_path / "m.safetensors")
    assert np.array_equal(again.predict_proba(rows), estimator.predict_proba(rows))


def test_regression_is_trained_too(tmp_path, monkeypatch):
    monkeypatch.setattr("moeapps.tables.table_data.EVALUATION_ROWS", 8)
    data = TableData(PEOPLE, "wage", ignore_columns=["pay"], batch_size=16)
    module = MixtureModule(
        [Ridge(), HistGradientBoostingRegressor(max_iter=20)], gate="mlp", hidden_dim=4, cv=2, top_k=1
    )
    run = trainer(tmp_path, 2)
    run.fit(module, datamodule=data)
    val = data.part("val")
    estimator = module.to_estimator()
    assert estimator.score(val.frame, val.target) > 0.8
    off = estimator.predict(val.frame) - val.target
    assert float(run.callback_metrics["val/rmse"]) == pytest.approx(np.sqrt((off**2).mean()), rel=1e-4)
    assert (estimator.weights(val.frame) > 0).sum(axis=1).eq(1).all()


def test_a_checkpoint_of_other_data_or_without_experts_is_refused(trained, tmp_path):
    _, _, path, _ = trained
    other = TableData(PEOPLE.rename(columns={"age": "years"}), "pay", ignore_columns=["wage"], batch_size=64)
    with pytest.raises(FileFormatError, match="its columns differ"):
        trainer(tmp_path, 6).fit(
            MixtureModule(EXPERTS, gate="linear", cv=3), datamodule=other, ckpt_path=path, weights_only=True
        )
    fewer = TableData(PEOPLE[:200], "pay", ignore_columns=["wage"], batch_size=64)
    with pytest.raises(FileFormatError, match="differ|270 training rows, but there are 180"):
        trainer(tmp_path, 6).fit(
            MixtureModule(EXPERTS, gate="linear", cv=3), datamodule=fewer, ckpt_path=path, weights_only=True
        )
    with pytest.raises(ConfigError, match="not trained"):
        MixtureModule(EXPERTS).to_estimator()


def test_an_impossible_setting_is_refused():
    with pytest.raises(ConfigError, match="lr must be above 0 and cv at least 2"):
        MixtureModule(cv=1)


YAML = """
seed_everything: 0
model:
  class_path: moeapps.tables.MixtureModule
  init_args:
    gate: linear
    cv: 2
    experts:
      linear:
        class_path: sklearn.pipeline.Pipeline
        init_args:
          steps:
            - [features, {class_path: moeapps.tables.TableFeatures}]
            - [model, {class_path: sklearn.linear_model.LogisticRegression, init_args: {max_iter: 300}}]
      boosting: {class_path: sklearn.ensemble.HistGradientBoostingClassifier, init_args: {max_iter: 5}}
data:
  class_path: moeapps.tables.TableData
  init_args: {file: people.csv, target: pay, ignore_columns: [wage], batch_size: 64}
trainer: {max_epochs: 2, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
"""


@pytest.mark.filterwarnings("ignore")
def test_a_yaml_file_names_the_experts_and_the_run_is_drawn_predicted_and_scored(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    PEOPLE.to_csv("people.csv", index=False)
    Path("mixture.yaml").write_text(YAML)
    assert main(["fit", "--config", "mixture.yaml"]) == 0
    assert main(["report", "moeapps-runs"]) == 0
    page = Path("moeapps-report.html").read_text()
    for seen in ("load of the experts", "mean weight of experts by region", "val/accuracy", "boosting"):
        assert seen in page
    new = ["--data.predict", "people.csv", "--data.keep", "[age]", "--output", "out.csv"]
    assert main(["predict", "--config", "mixture.yaml", "--ckpt_path", "last", *new]) == 0
    out = pd.read_csv("out.csv")
    assert list(out) == ["age", "prediction", "probability_high", "probability_low", "weight_linear", "weight_boosting"]
    assert (out["prediction"] == PEOPLE["pay"]).mean() > 0.8
    assert main(["validate", "--config", "mixture.yaml", "--ckpt_path", "last"]) == 0


# ---------------------------------------------------------------------- tables as data


def test_public_tables_are_known_by_name():
    data = TableData(name="census-income")
    data.setup("fit")
    assert (data.task, data.classes.tolist(), len(data.part("train").frame.columns)) == ("classification", [0, 1], 39)
    assert len(data.part("train").frame) + len(data.part("val").frame) == 8000
    data = TableData(name="diabetes")
    data.setup("fit")
    assert (data.task, data.target) == ("regression", "target")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_file_is_read_as_the_frame(ending, tmp_path):
    path = tmp_path / f"people.{ending}"
    table = PEOPLE.assign(w=np.arange(300) % 3, zip="01234")
    table.to_csv(path, index=False) if ending == "csv" else table.to_parquet(path)
    data = TableData(str(path), "pay", weight="w", test=str(path))
    data.setup("fit")
    frame, val = data.part("train").frame, data.part("val").frame
    assert list(frame) == ["age", "hours", "noise", "wage", "zip"]
    assert frame["zip"].iloc[0] == "01234"
    assert sorted([*frame["age"], *val["age"]]) == sorted(PEOPLE["age"])
    index, target, weight = next(iter(data.test_dataloader()))
    assert index.tolist() == list(range(300))
    assert data.classes[target].tolist() == PEOPLE["pay"].tolist()
    assert weight.tolist() == (np.arange(300) % 3).tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "census"}, "name must be one of"),
        ({"name": "iris", "file": PEOPLE}, "file and name are both given"),
        ({"file": PEOPLE, "target": "pay", "validation_fraction": 1.0}, "validation_fraction"),
        ({"file": PEOPLE}, "target is not set"),
        ({"target": "pay"}, "file is not set"),
        ({"file": PEOPLE, "target": "salary"}, "salary"),
        ({"file": PEOPLE[["pay"]], "target": "pay"}, "no column to learn from besides 'pay'"),
        ({"file": PEOPLE.assign(pay="high"), "target": "pay"}, "has one value, 'high'"),
        ({"file": PEOPLE, "target": "pay", "task": "regression"}, "'pay' is a category, not numbers"),
        ({"file": PEOPLE.assign(pay=[None] + ["a", "b"] * 149 + ["a"]), "target": "pay"}, "'pay' is missing in row 0"),
        ({"file": PEOPLE.assign(w=-1.0), "target": "pay", "weight": "w"}, "'w' must be at least 0, got -1.0 in row 0"),
    ],
)
def test_a_table_that_cannot_be_learned_from_is_refused(arguments, message):
    with pytest.raises((ConfigError, DataError), match=message):
        TableData(**arguments).setup("fit")


def test_a_column_of_lists_is_refused_before_experts_are_fitted(tmp_path):
    data = TableData(PEOPLE.assign(tags=[["a"]] * len(PEOPLE)), "pay", ignore_columns=["wage"])
    with pytest.raises(DataError, match="tags"):
        trainer(tmp_path, 1).fit(MixtureModule(EXPERTS, cv=3), datamodule=data)


def test_a_mixture_without_a_cascade_says_how_to_get_one(tmp_path):
    X, y = load_iris(return_X_y=True, as_frame=True)
    experts = [LogisticRegression(max_iter=500), DecisionTreeClassifier(max_depth=2)]
    model = MixtureClassifier(experts, cv=2, gate="mean", random_state=0).fit(X, y)
    model.cascade_ = None  # as MixtureModule.to_estimator() leaves it without data
    assert model.views(X, y).curves == []
    with pytest.raises(ConfigError, match=r"to_estimator\(data\)"):
        model.cost_curve(X, y)
    with pytest.raises(ConfigError, match="has no cascade"):
        model.set_params(inference="cascade").predict(X)


def test_an_exported_mixture_takes_rows_with_and_without_columns_that_it_does_not_use(trained, tmp_path):
    _, _, checkpoint, _ = trained
    model = moeapps.load(checkpoint)
    assert model.unused_columns() == ["wage"]
    rows = PEOPLE.drop(columns="pay")
    np.testing.assert_array_equal(model.predict_proba(rows), model.predict_proba(rows.drop(columns="wage")))
    model.save(tmp_path / "mixture.safetensors")
    again = moeapps.load(tmp_path / "mixture.safetensors")
    assert again.columns_.loc["wage", "kind"] == "ignored"
    np.testing.assert_array_equal(again.predict_proba(rows), model.predict_proba(rows))
