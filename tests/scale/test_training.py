"""Training by two workers of Ray: what DDP with two processes logs, and what is left when a worker is killed."""

import pandas as pd
import pytest

from moeapps.cli.main import main
from moeapps.core.errors import ConfigError
from moeapps.scale import fit
from tests.scale.helpers import kill_one, losses, losses_of_ddp, once_there_is
from tests.test_docs import ROOT

pytest.importorskip("ray.train")
pytestmark = pytest.mark.timeout(600)
CONFIG = ["--config", str(ROOT / "examples/recsys/home_census.yaml"), "--trainer.enable_progress_bar", "false"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_two_workers_learn_what_two_processes_of_ddp_learn(here):
    epochs = ["--trainer.max_epochs", "2"]
    assert main(["fit", *CONFIG, *epochs, "--engine", "ray", "--workers", "2"]) == 0
    pd.testing.assert_series_equal(losses(here), losses_of_ddp([*CONFIG, *epochs], here))


@pytest.mark.slow
def test_a_killed_worker_costs_the_epochs_since_the_last_checkpoint_and_no_more(here):
    checkpoint = "moeapps-runs/version_0/checkpoints/last.ckpt"
    with once_there_is(here, checkpoint, lambda: kill_one("RayTrainWorker")) as killed:
        fit([*CONFIG, "--trainer.max_epochs", "6"], workers=2)
    assert killed == [True]
    assert losses(here).index.tolist() == list(range(6))


@pytest.mark.slow
def test_a_wrong_configuration_is_told_once(here):
    with pytest.raises(ConfigError, match="leanring_rate"):
        fit([*CONFIG, "--model.leanring_rate", "3"], workers=1)


@pytest.mark.parametrize("option", [["--seeds", "2"], ["--test"]])
def test_seeds_and_a_test_with_ray_are_refused_with_what_to_do(option, here, capsys):
    assert main(["fit", *CONFIG, *option, "--engine", "ray"]) == 2
    assert f"{option[0]}: a training by several workers is one run" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--help", "--print_config", "--model.help=moeapps.recsys.RankingModule"])
def test_what_only_prints_starts_no_cluster(option, here, capsys, monkeypatch):
    monkeypatch.setattr("moeapps.scale.fit", lambda *_, **__: pytest.fail("a cluster was started"))
    with pytest.raises(SystemExit) as end:
        main(["fit", *CONFIG, "--engine", "ray", "--workers", "2", option])
    assert end.value.code in (None, 0)
    assert capsys.readouterr().out
    assert not list(here.iterdir())
