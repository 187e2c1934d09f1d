"""Scoring with the workers of a Ray cluster: the same file as without, also when a worker is killed."""

import os
import signal

import numpy as np
import pandas as pd
import psutil
import pytest

from moeapps import MoEClassifier
from moeapps.cli.main import main
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.tabledata.scoring import predict_file
from moeapps.scale import score

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def cluster():
    """A cluster of this machine, for all tests."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A table with identifiers of 19 digits, its model, and what the model predicts in one process."""
    folder = tmp_path_factory.mktemp("scoring")
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"a": rng.normal(size=3000), "city": rng.choice(["Ulm", "Kiel"], 3000)})
    model = MoEClassifier(num_experts=2, max_epochs=1, random_state=0).fit(rows[:200], rows["a"][:200] > 0)
    model.save(folder / "model.safetensors")
    rows.insert(0, "id", [f"00{10**17 + n}" for n in rng.integers(0, 10**17, 3000)])
    rows.to_csv(folder / "rows.csv", index=False)
    predict_file(model, folder / "rows.csv", folder / "expected.csv", ["id"], batch_rows=300)
    return folder


def killed_worker() -> bool:
    """Kill one of the workers; False where there is none."""
    for process in psutil.Process(os.getpid()).children(recursive=True):
        if "Scorer" in " ".join(process.cmdline()):
            os.kill(process.pid, signal.SIGKILL)
            return True
    return False


def test_a_file_is_scored_as_in_one_process_though_a_worker_is_killed(cluster, folder):
    kills, seen = [], []

    def kill_once(rows: int) -> None:
        seen.append(rows)
        if not any(kills):
            kills.append(killed_worker())

    rows = score(
        folder / "model.safetensors", folder / "rows.csv", folder / "scores.csv", keep=["id"], workers=2,
        batch_rows=300, progress=kill_once,
    )  # fmt: skip
    assert any(kills)
    assert (rows, seen) == (3000, list(range(300, 3001, 300)))
    assert (folder / "scores.csv").read_bytes() == (folder / "expected.csv").read_bytes()


def test_a_cell_that_cannot_be_read_is_named_and_nothing_is_written(cluster, folder):
    (folder / "wrong.csv").write_text("a,city\n1.5,Ulm\nhigh,Ulm\n")
    with pytest.raises(DataError, match=r"wrong\.csv.*'a'.*high"):
        score(folder / "model.safetensors", folder / "wrong.csv", folder / "none.csv")
    assert not (folder / "none.csv").exists()


def test_more_workers_than_cores_are_refused(cluster, folder):
    with pytest.raises(ConfigError, match="workers=3, but the cluster has 2 cores"):
        score(folder / "model.safetensors", folder / "rows.csv", folder / "none.csv", workers=3)


@pytest.mark.slow
def test_the_command_scores_with_workers(cluster, folder, tmp_path):
    command = ["score", str(folder / "model.safetensors"), "--input", str(folder / "rows.csv"), "--engine", "ray"]
    assert main([*command, "--output", str(tmp_path / "scores.csv"), "--keep", "id"]) == 0
    written, expected = pd.read_csv(tmp_path / "scores.csv"), pd.read_csv(folder / "expected.csv")
    pd.testing.assert_frame_equal(written, expected, rtol=1e-5)
