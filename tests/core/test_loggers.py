"""Loggers of estimators, by name or as Lightning's objects."""

import numpy as np
import pandas as pd
import pytest
from lightning.pytorch.loggers import CSVLogger

import moeapps
from moeapps import MoEClassifier
from moeapps.core.errors import ConfigError
from moeapps.core.loggers import ContinuedCSVLogger

X = np.random.default_rng(0).normal(size=(40, 3))
Y = X[:, 0] > 0


def fitted(**arguments) -> MoEClassifier:
    return MoEClassifier(num_experts=2, max_epochs=1, early_stopping=False, random_state=0, **arguments).fit(X, Y)


def test_a_named_logger_writes_into_the_folder_of_the_run_beside_csv(tmp_path):
    fitted(log_dir=str(tmp_path), logger="tensorboard")
    assert (tmp_path / "version_0/metrics.csv").exists()
    assert list((tmp_path / "version_0").glob("events*"))


def test_a_logger_of_the_users_needs_no_folder_and_is_not_saved(tmp_path):
    model = fitted(logger=CSVLogger(tmp_path, name="own"))
    assert "train/loss" in pd.read_csv(tmp_path / "own/version_0/metrics.csv")
    model.save(tmp_path / "model.safetensors")
    assert moeapps.load(tmp_path / "model.safetensors").logger is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"logger": "csv"}, "logger='csv' needs log_dir"),
        ({"logger": "tensorbord", "log_dir": "runs"}, "did you mean 'tensorboard'?"),
        ({"logger": 3}, "a Logger of Lightning or a list of these, got 3"),
        ({"logger": ["csv"], "log_dir": "runs"}, "or a list of these"),
    ],
)
def test_what_is_no_logger_is_refused_before_anything_is_written(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        fitted(**arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_continued_file_keeps_the_rows_before_the_checkpoint_and_no_line_that_a_kill_cut(tmp_path):
    folder = tmp_path / "version_0"
    folder.mkdir()
    (folder / "metrics.csv").write_text("epoch,step,train/loss\n0,0,1.5\n1,1,1.25\n1,")
    logger = ContinuedCSVLogger(folder, step=1)
    logger.log_metrics({"epoch": 1, "train/loss": 1.0, "val/loss": 2.0}, step=1)
    logger.save()
    rows = pd.read_csv(folder / "metrics.csv")
    assert rows["train/loss"].tolist() == [1.5, 1.0]
    assert rows["step"].tolist() == [0, 1]
