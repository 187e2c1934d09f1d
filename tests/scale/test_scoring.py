"""Scoring with the workers of a Ray cluster: the same file as without, also when a worker is killed."""

import pandas as pd
import pytest

from moeapps.cli.main import main
from moeapps.core.errors import ConfigError, DataError
from moeapps.scale import score
from tests.scale.helpers import kill_one

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def cluster():
    """A cluster of this machine, for all tests."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.mark.slow
def test_a_file_is_scored_as_in_one_process_though_a_worker_is_killed(cluster, scored):
    kills, seen = [], []

    def kill_once(rows: int) -> None:
        seen.append(rows)
        if not any(kills):
            kills.append(kill_one("Scorer"))

    rows = score(
        scored / "model.safetensors", scored / "rows.csv", scored / "scores.csv", keep=["id"], workers=2,
        batch_rows=300, progress=kill_once,
    )  # fmt: skip
    assert any(kills)
    assert (rows, seen) == (3000, list(range(300, 3001, 300)))
    assert (scored / "scores.csv").read_bytes() == (scored / "expected.csv").read_bytes()


def test_a_cell_that_cannot_be_read_is_named_and_nothing_is_written(cluster, scored):
    (scored / "wrong.csv").write_text("a,city\n1.5,Ulm\nhigh,Ulm\n")
    with pytest.raises(DataError, match=r"wrong\.csv.*'a'.*high"):
        score(scored / "model.safetensors", scored / "wrong.csv", scored / "none.csv")
    assert not (scored / "none.csv").exists()


def test_more_workers_than_cores_are_refused(cluster, scored):
    with pytest.raises(ConfigError, match="workers=3, but the cluster has 2 cores"):
        score(scored / "model.safetensors", scored / "rows.csv", scored / "none.csv", workers=3)


@pytest.mark.slow
def test_the_command_scores_with_workers(cluster, scored, tmp_path):
    command = ["score", str(scored / "model.safetensors"), "--input", str(scored / "rows.csv"), "--engine", "ray"]
    assert main([*command, "--output", str(tmp_path / "scores.csv"), "--keep", "id"]) == 0
    written, expected = pd.read_csv(tmp_path / "scores.csv"), pd.read_csv(scored / "expected.csv")
    pd.testing.assert_frame_equal(written, expected, rtol=1e-5)
