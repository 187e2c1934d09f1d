"""Training by two workers of Ray: what DDP with two processes logs, and what is left when a worker is killed."""

import os
import signal
import subprocess
import sys
import threading
import time

import pandas as pd
import psutil
import pytest

from moeapps.cli.main import main
from moeapps.core.errors import ConfigError
from moeapps.scale import fit
from tests.test_docs import ROOT

pytest.importorskip("ray.train")
pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.timeout(600), pytest.mark.slow]
CONFIG = ["--config", str(ROOT / "examples/recsys/home_census.yaml"), "--trainer.enable_progress_bar", "false"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def losses(folder) -> pd.Series:
    """Validation loss by epoch, of all runs in a folder; a later row of an epoch counts."""
    found = pd.concat([pd.read_csv(path) for path in sorted(folder.glob("*/version_*/metrics.csv"))])
    return found.dropna(subset=["val/loss"]).groupby("epoch")["val/loss"].last()


def test_two_workers_learn_what_two_processes_of_ddp_learn(here):
    epochs = ["--trainer.max_epochs", "2"]
    assert main(["fit", *CONFIG, *epochs, "--engine", "ray", "--workers", "2"]) == 0
    ddp = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]
    command = [sys.executable, "-m", "moeapps", "fit", *CONFIG, *epochs, *ddp, "--trainer.default_root_dir", "ddp"]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    pd.testing.assert_series_equal(losses(here), pd.read_csv(next(here.glob("ddp/version_0/metrics.csv")))
                                   .dropna(subset=["val/loss"]).groupby("epoch")["val/loss"].last())  # fmt: skip


def test_a_killed_worker_costs_the_epochs_since_the_last_checkpoint_and_no_more(here):
    killed = []

    def kill_after_the_first_checkpoint() -> None:
        while not list(here.glob("moeapps-runs/version_0/checkpoints/last.ckpt")):
            time.sleep(0.1)
        for process in psutil.Process().children(recursive=True):
            if "RayTrainWorker" in " ".join(process.cmdline()) and not killed:
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process.pid)

    thread = threading.Thread(target=kill_after_the_first_checkpoint, daemon=True)
    thread.start()
    fit([*CONFIG, "--trainer.max_epochs", "6"], workers=2)
    assert killed
    assert losses(here).index.tolist() == list(range(6))


def test_a_wrong_configuration_is_told_once(here):
    with pytest.raises(ConfigError, match="leanring_rate"):
        fit([*CONFIG, "--model.leanring_rate", "3"], workers=1)
