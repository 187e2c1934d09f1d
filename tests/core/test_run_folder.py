"""Runs that begin at the same moment, and estimators with a log_dir, never share a folder."""

from concurrent.futures import ThreadPoolExecutor

import lightning as L
import pytest
from sklearn.datasets import load_wine

from moeapps import MoEClassifier
from moeapps.core.callbacks import LastCheckpoint
from moeapps.core.checkpoint import AtomicCheckpointIO
from moeapps.core.errors import ConfigError
from moeapps.core.run_folder import new_run_folder
from tests.toy import ToyData, ToyModule


def test_runs_that_begin_at_the_same_moment_get_a_folder_each(tmp_path):
    (tmp_path / "version_7").mkdir()
    (tmp_path / "version_x").mkdir()
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(new_run_folder, [tmp_path] * 32))
    assert sorted(int(folder.name.removeprefix("version_")) for folder in folders) == list(range(8, 40))
    assert all(folder.is_dir() for folder in folders)


def test_estimators_that_are_fitted_with_one_log_dir_keep_their_files_apart(tmp_path):
    model = MoEClassifier(num_experts=2, dim=8, max_epochs=1, log_dir=str(tmp_path))
    for seed in (0, 1):
        model.set_params(random_state=seed).fit(*load_wine(return_X_y=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["version_0", "version_1"]
    first, second = ((tmp_path / f"version_{run}/metrics.csv").read_text() for run in (0, 1))
    assert first != second
    for run in (0, 1):
        assert AtomicCheckpointIO().load_checkpoint(tmp_path / f"version_{run}/checkpoints/last.ckpt")["epoch"] == 0


def trainer(folder, epochs=1, **settings):
    return L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        **settings,
        plugins=[AtomicCheckpointIO()], callbacks=[LastCheckpoint(str(folder))],
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:Checkpoint directory", "ignore:The number of training batches")
def test_last_ckpt_of_another_run_is_never_overwritten(tmp_path):
    trainer(tmp_path).fit(ToyModule(), datamodule=ToyData())
    path = tmp_path / "last.ckpt"
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="last.ckpt is there already, of another run"):
        trainer(tmp_path).fit(ToyModule(), datamodule=ToyData())
    assert path.read_bytes() == before
    trainer(tmp_path, epochs=2).fit(ToyModule(), datamodule=ToyData(), ckpt_path=path)
    assert AtomicCheckpointIO().load_checkpoint(path)["epoch"] == 1


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_last_ckpt_is_the_last_epoch_where_only_every_third_one_is_validated(tmp_path):
    run = trainer(tmp_path, epochs=4, check_val_every_n_epoch=3)
    run.fit(ToyModule(), datamodule=ToyData())
    saved = AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
    assert (saved["epoch"], saved["global_step"]) == (3, run.global_step)
