"""`moeapps fit` in two processes, started by Lightning or by torchrun; and what is left when one of them is killed."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
import torch

from moeapps.cli.main import main
from moeapps.core.distributed import check_weights_are_whole, peer_is_gone
from moeapps.core.errors import ConfigError
from tests.cli.test_cli import ROOT, final_weights, moeapps, same, start, toy, wait_for

TWO = {"strategy": "ddp", "devices": 2}
DATA = {"rows": 64, "batch_size": 4}  # eight steps an epoch


@pytest.fixture(scope="module")
def unharmed(tmp_path_factory):
    """Folder of a run of two processes that Lightning has started."""
    folder = tmp_path_factory.mktemp("unharmed")
    done = moeapps("fit", "--config", toy(folder / "two.yaml", None, DATA, max_epochs=4, **TWO), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "moeapps-runs/version_0"


def curves(run) -> pd.DataFrame:
    return (
        pd.read_csv(run / "metrics.csv").filter(regex="^(epoch$|train/)").dropna().drop_duplicates("epoch", keep="last")
    )


@pytest.mark.slow
def test_torchrun_trains_what_lightning_launches(unharmed, tmp_path):
    config = toy(tmp_path / "two.yaml", None, DATA, max_epochs=4, **TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "moeapps", "fit", "--config", str(config)], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "moeapps-runs").iterdir()] == ["version_0"]
    assert same(final_weights(unharmed), final_weights(tmp_path / "moeapps-runs/version_0"))
    assert done.stdout.count("checkpoint: ") == 1  # one process speaks


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_when_a_process_is_killed_the_others_end_and_its_run_can_be_continued(unharmed, tmp_path, rank):
    config = toy(tmp_path / "two.yaml", {"slow": 0.1}, DATA, max_epochs=4, **TWO)
    process = start(config, tmp_path)
    run = tmp_path / "moeapps-runs/version_0"
    wait_for(run / "checkpoints/last.ckpt", process)
    time.sleep(0.25)  # somewhere inside an epoch
    every = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    ranks = [one for one in every if "moeapps" in " ".join(one.cmdline())]
    assert len(ranks) == 2
    ranks[rank].kill()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if rank == 0 else 1), stderr
    psutil.wait_procs(ranks, timeout=30)
    assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in ranks)
    assert "error: another process of this training has ended" in stderr
    done = moeapps("fit", "--config", config, "--ckpt_path", "last", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert same(final_weights(unharmed), final_weights(run))
    pd.testing.assert_frame_equal(curves(unharmed), curves(run))


def test_fsdp_on_cpus_is_refused_and_ddp_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = toy(tmp_path / "two.yaml", None, DATA, strategy="fsdp", devices=2)
    assert main(["fit", "--config", str(config)]) == 2
    assert "error: trainer.strategy=fsdp needs GPUs" in capsys.readouterr().err


def test_experts_whose_best_weights_are_kept_need_ddp(monkeypatch):
    strategy = SimpleNamespace(model=torch.nn.Linear(2, 2))
    check_weights_are_whole(SimpleNamespace(strategy=strategy))  # one process
    monkeypatch.setattr("moeapps.core.distributed.world_size", lambda: 2)
    with pytest.raises(ConfigError, match=r"trainer\.strategy=SimpleNamespace divides the weights.*ddp"):
        check_weights_are_whole(SimpleNamespace(strategy=strategy))


def test_the_end_of_another_process_is_one_line_that_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lost = RuntimeError("[gloo/pair.cc:561] Connection closed by peer [127.0.0.1]:7081")
    monkeypatch.setattr("tests.toy.ToyModule.training_step", lambda *_: (_ for _ in ()).throw(lost))
    assert main(["fit", "--config", str(toy(tmp_path / "one.yaml", None, DATA, logger=False))]) == 1
    assert "error: another process of this training has ended" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:7081", True),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_a_peer_that_is_gone_is_told_from_other_errors(text, gone):
    assert peer_is_gone(RuntimeError(text)) == gone
