"""Tables in `moeapps fit`: from a CSV file to a model that is served, with the estimator's defaults."""

import warnings

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_diabetes

import moeapps
from moeapps import MoEClassifier, MoERegressor
from moeapps.cli.main import main
from moeapps.core.callbacks import BestWeights, LastCheckpoint
from moeapps.core.checkpoint import AtomicCheckpointIO
from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.serve.services import open_service
from moeapps.tables import TableData, TableModule

SMALL = {"dim": 8, "hidden_dim": 8, "num_blocks": 1, "num_experts": 2, "num_members": 1}


def customers(n=240):
    """Customers of whom those with a low balance leave."""
    rng = np.random.default_rng(0)
    balance = rng.normal(size=n)
    return pd.DataFrame(
        {
            "balance": np.where(rng.random(n) < 0.1, np.nan, balance),
            "country": rng.choice(["de", "fr", "us"], n),
            "joined": pd.date_range("2020-01-01", periods=n, freq="D").strftime("%Y-%m-%d").to_numpy()[::-1],
            "churned": np.where(balance + rng.normal(size=n) / 3 < 0, "yes", "no"),
        }
    )


def train(module, data, folder, epochs=4, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            callbacks=[LastCheckpoint(str(folder))], plugins=[AtomicCheckpointIO()], num_sanity_val_steps=0,
            default_root_dir=str(folder),
        )  # fmt: skip
        trainer.fit(module, datamodule=data, **options)
    return folder / "last.ckpt"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "customers.csv"
    customers().to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def run(file, tmp_path_factory):
    """A trained module, and its checkpoint."""
    torch.manual_seed(0)
    module = TableModule(**SMALL)
    return module, train(module, TableData(path=file, target="churned"), tmp_path_factory.mktemp("run"))


def test_from_a_csv_file_to_predictions_by_the_command_line(file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = [part for name, value in SMALL.items() for part in (f"--model.{name}", str(value))]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    task = ["--model", "TableModule", *small, "--data", "TableData", "--data.path", str(file)]
    task += ["--data.target", "churned", *quiet]
    assert main(["fit", *task, "--trainer.max_epochs", "2"]) == 0
    checkpoint = "moeapps-runs/version_0/checkpoints/last.ckpt"
    assert main(["export", "moeapps-runs/version_0", "churn.safetensors"]) == 0
    for model, output in (("churn.safetensors", "a.csv"), (checkpoint, "b.csv")):
        assert main(["score", model, "--input", str(file), "--output", output]) == 0
    assert pd.read_csv("a.csv").columns.tolist() == ["prediction", "probability_no", "probability_yes"]
    predict = ["--data.predict", str(file), "--ckpt_path", checkpoint, "--output", "c.csv"]
    assert main(["predict", *task, *predict]) == 0
    pd.testing.assert_frame_equal(pd.read_csv("a.csv"), pd.read_csv("b.csv"))
    pd.testing.assert_frame_equal(pd.read_csv("a.csv"), pd.read_csv("c.csv"))
    capsys.readouterr()
    assert main(["test", *task, "--data.test", str(file), "--ckpt_path", checkpoint]) == 0
    assert "test/accuracy" in capsys.readouterr().out


def test_it_learns_what_the_estimator_learns(run, file):
    _, path = run
    frame = customers()
    loaded = moeapps.load(path)
    assert isinstance(loaded, MoEClassifier)
    assert loaded.classes_.tolist() == ["no", "yes"]
    own = MoEClassifier(**SMALL, max_epochs=4, random_state=0).fit(frame.drop(columns="churned"), frame.churned)
    assert loaded.column_kinds() == own.column_kinds()
    right = [(model.predict(frame.drop(columns="churned")) == frame.churned).mean() for model in (loaded, own)]
    assert abs(right[0] - right[1]) < 0.1


def test_a_checkpoint_holds_the_best_epoch(run):
    module, path = run
    callbacks = AtomicCheckpointIO().load_checkpoint(path)["callbacks"]
    (best,) = [state for name, state in callbacks.items() if name.startswith(BestWeights.__name__)]
    kept = TableModule.load_from_checkpoint(path, weights_only=True)
    for name, tensor in kept.state_dict().items():
        torch.testing.assert_close(tensor, best["weights"][name])
        torch.testing.assert_close(tensor, module.state_dict()[name], check_dtype=False)


def test_a_checkpoint_is_served(run):
    _, path = run
    service = open_service(path)
    assert service.kind == "table"
    assert service.describe()["columns"] == {"balance": "number", "country": "category", "joined": "time"}


def test_a_training_that_was_stopped_goes_on_exactly(file, tmp_path):
    def made():
        torch.manual_seed(1)
        return TableModule(**SMALL, dropout=0.0), TableData(file, "churned", seed=1)

    whole = train(*made(), tmp_path / "whole")
    before = made()
    stopped = Stop()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        L.Trainer(
            max_epochs=4, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            callbacks=[LastCheckpoint(str(tmp_path / "part")), stopped], plugins=[AtomicCheckpointIO()],
            num_sanity_val_steps=0, default_root_dir=str(tmp_path),
        ).fit(*before)  # fmt: skip
    part = tmp_path / "part" / "last.ckpt"
    again = train(*made(), tmp_path / "part", ckpt_path=part, weights_only=True)
    frame = customers().drop(columns="churned")
    np.testing.assert_allclose(
        moeapps.load(again).predict_proba(frame), moeapps.load(whole).predict_proba(frame), atol=1e-6
    )


class Stop(L.Callback):
    """Ends a training after two epochs, as a signal does."""

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch == 1


def test_numbers_are_a_regression(tmp_path):
    frame = load_diabetes(as_frame=True).frame
    data = TableData(frame, "target")
    path = train(TableModule(**SMALL), data, tmp_path)
    loaded = moeapps.load(path)
    assert isinstance(loaded, MoERegressor)
    predicted = loaded.predict(frame.drop(columns="target"))
    assert predicted.shape == (442,)
    assert np.corrcoef(predicted, frame.target)[0, 1] > 0.3


def test_scores_of_several_batches_are_those_of_all_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("moeapps.tables.table_data.EVALUATION_ROWS", 16)
    frame = load_diabetes(as_frame=True).frame
    frame["times"] = np.arange(len(frame)) % 3 + 1.0
    data = TableData(frame, "target", weight="times", batch_size=16)
    module = TableModule(**SMALL)
    train(module, data, tmp_path, epochs=1)
    part = data.part("val")
    off = module.to_estimator().predict(part.frame) - part.target
    logged = module.trainer.callback_metrics
    assert len(module.trainer.val_dataloaders) > 1
    assert float(logged["val/rmse"]) == pytest.approx(np.sqrt(np.average(off**2, weights=part.weight)), rel=1e-4)


def test_epochs_and_batches_are_those_of_the_estimator(file, tmp_path):
    module, data = TableModule(**SMALL, patience=1), TableData(file, "churned")
    trainer = L.Trainer(max_epochs=1000, logger=False, accelerator="cpu", enable_checkpointing=False)
    trainer.datamodule = data
    data.trainer = trainer
    trainer.strategy._lightning_module = module
    module._trainer = trainer
    data.setup("fit")
    module.configure_model()
    module.on_fit_start()
    assert trainer.max_epochs == 100
    assert data.train_dataloader().batch_size == 32


def test_impossible_settings_are_refused(file):
    for wrong in ({"patience": 0}, {"ema_decay": 1.0}, {"dropout": "some"}, {"num_members": 0}, {"lr": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            TableModule(**wrong)
    with pytest.raises(ConfigError, match="file and path are both given"):
        TableData(file, "churned", path=file)
    with pytest.raises(ConfigError, match="no network yet"):
        TableModule().to_estimator()


def test_a_checkpoint_of_another_table_is_refused(run, tmp_path):
    _, path = run
    other = TableData(customers().drop(columns="country"), "churned")
    with pytest.raises(FileFormatError, match="the data is not what the checkpoint was trained on"):
        train(TableModule(**SMALL), other, tmp_path, ckpt_path=path, weights_only=True)


def test_a_row_without_a_label_is_named_with_its_file_also_far_down(tmp_path):
    rows = ["a,y"] + [f"{i % 9},{'u' if i % 2 else 'v'}" for i in range(70_000)]
    rows[69_001] = "1,"
    (tmp_path / "table.csv").write_text("\n".join(rows))
    with pytest.raises(DataError, match=r"table\.csv: 'y' is missing in row 69000 \(1 row in all\): leave such"):
        TableData(tmp_path / "table.csv", "y").setup("fit")


@pytest.mark.parametrize(("values", "task"), [([0, 1], "classification"), ([0.25, 1.5], "regression")])
def test_the_target_of_a_parquet_file_is_that_of_a_csv_file(values, task, tmp_path):
    frame = pd.DataFrame({"age": np.arange(60) * 1.5, "y": np.resize(values, 60)})
    frame.to_parquet(tmp_path / "rows.parquet")
    frame.to_csv(tmp_path / "rows.csv", index=False)
    parquet, csv = (TableData(path=str(tmp_path / f"rows.{ending}"), target="y") for ending in ("parquet", "csv"))
    for data in (parquet, csv):
        data.setup("fit")
        assert data.task == task
    np.testing.assert_array_equal(parquet.part("train").target, csv.part("train").target)
    np.testing.assert_array_equal(parquet.part("val").target, csv.part("val").target)


@pytest.mark.parametrize("argument", [{"ignore_columns": ["aa"]}, {"weight": "aa"}])
def test_a_column_that_is_not_there_is_named_with_its_argument(argument):
    frame = pd.DataFrame({"a": range(6), "b": [1.5, 2] * 3, "y": list("uvuvuv")})
    (name,) = argument
    with pytest.raises(DataError, match=f"lacks the column 'aa', which {name} names"):
        TableData(frame, "y", **argument).setup("fit")


def test_an_exported_model_takes_rows_with_and_without_columns_that_it_does_not_use(tmp_path):
    frame = customers()
    frame.insert(0, "customer_id", [f"C{i:05}" for i in range(len(frame))])
    frame.insert(3, "note", "new")
    frame.to_csv(tmp_path / "customers.csv", index=False)
    data = TableData(path=tmp_path / "customers.csv", target="churned", ignore_columns=["note"])
    module = TableModule(**SMALL)
    checkpoint = train(module, data, tmp_path, epochs=1)
    model = moeapps.load(checkpoint)
    rows = frame.drop(columns="churned")
    assert model.unused_columns() == ["customer_id", "note"]
    assert model.columns_["kind"].to_dict() == {
        "customer_id": "id", "balance": "number", "country": "category", "note": "ignored", "joined": "time",
    }  # fmt: skip
    assert "a different value in nearly every row" in model.columns_.loc["customer_id", "why"]
    expected = model.predict_proba(rows)
    for columns in (["customer_id"], ["note"], ["note", "customer_id"]):
        np.testing.assert_array_equal(model.predict_proba(rows.drop(columns=columns)), expected)
    model.save(tmp_path / "model.safetensors")
    assert open_service(str(tmp_path / "model.safetensors")).describe()["unused"] == ["customer_id", "note"]


def test_empty_cells_of_a_text_column_count_as_missing(tmp_path):
    frame = customers().assign(plan=["", "S", "M", "NA"] * 60)
    frame.to_csv(tmp_path / "customers.csv", index=False)
    data = TableData(path=tmp_path / "customers.csv", target="churned", validation_fraction=0)
    module = TableModule(**SMALL)
    train(module, data, tmp_path, epochs=1)
    plan = module.to_estimator().columns_.loc["plan"]
    assert (plan["kind"], plan["missing"], plan["categories"]) == ("category", 120, 2)
