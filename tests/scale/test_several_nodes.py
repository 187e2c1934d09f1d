"""Several nodes of a Ray cluster on this machine: what one machine computes, though workers and nodes go."""

import pandas as pd
import pytest

from moeapps.scale import fit, score
from tests.scale.helpers import kill_one, losses, losses_of_ddp, once_there_is, processes
from tests.test_docs import ROOT

ray = pytest.importorskip("ray")
pytest.importorskip("ray.train")
pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]
QUIET = ["--trainer.enable_progress_bar", "false"]
CENSUS = ["--config", str(ROOT / "examples/recsys/home_census.yaml"), *QUIET]
DIGITS = ["--config", str(ROOT / "examples/vision/widenet_digits.yaml"), *QUIET]


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    """A cluster whose head computes nothing, and its three nodes of one core."""
    from ray.cluster_utils import Cluster

    monkeypatch.chdir(tmp_path)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    added = [cluster.add_node(num_cpus=1) for _ in range(3)]
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster, added
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.parametrize("arguments", [CENSUS, DIGITS], ids=["home-census", "widenet-digits"])
def test_two_nodes_learn_what_two_processes_of_ddp_learn(arguments, nodes, tmp_path):
    arguments = [*arguments, "--trainer.max_epochs", "2"]
    fit(arguments, workers=2)
    pd.testing.assert_series_equal(losses(tmp_path), losses_of_ddp(arguments, tmp_path))


def test_a_training_goes_on_from_its_checkpoint_on_another_node_when_one_is_removed(nodes, tmp_path):
    cluster, added = nodes

    def remove() -> bool:
        busy = {process.ppid() for process in processes("RayTrainWorker")}
        node = next(node for node in added if node.all_processes["raylet"][0].process.pid in busy)
        cluster.remove_node(node, allow_graceful=False)
        return len(busy) == 2

    with once_there_is(tmp_path, "moeapps-runs/version_0/checkpoints/last.ckpt", remove) as removed:
        fit([*CENSUS, "--trainer.max_epochs", "4"], workers=2)
    assert removed == [True]
    assert len(list(tmp_path.glob("moeapps-runs/version_*"))) == 1
    assert losses(tmp_path).index.tolist() == list(range(4))
    assert not list(tmp_path.glob(".ray-train"))


def test_two_nodes_score_what_one_process_scores_though_a_worker_is_killed(nodes, scored, tmp_path):
    killed = []

    def kill_once(rows: int) -> None:
        if not killed:
            killed.append(kill_one("Scorer"))

    score(
        scored / "model.safetensors", scored / "rows.csv", tmp_path / "scores.csv", keep=["id"], workers=2,
        batch_rows=300, progress=kill_once,
    )  # fmt: skip
    assert killed == [True]
    assert (tmp_path / "scores.csv").read_bytes() == (scored / "expected.csv").read_bytes()
