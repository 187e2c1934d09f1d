"""Checkpoints: written whole or not at all, verified, and read without running code (P1-P4, L3, L4, L6)."""

import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import textwrap
import time

import lightning as L
import pytest
import torch

from moeapps.core.callbacks import LastCheckpoint, StepSeeding
from moeapps.core.checkpoint import AtomicCheckpointIO
from moeapps.core.errors import FileFormatError
from tests.toy import ToyData, ToyModule


class Planted:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def checkpoint(value: float = 1.0) -> dict:
    return {"state_dict": {"w": torch.full((1000,), value)}, "epoch": 3}


def test_a_checkpoint_comes_back_and_plain_torch_reads_it_too(tmp_path):
    path = tmp_path / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint(), path)
    for loaded in (AtomicCheckpointIO().load_checkpoint(path), torch.load(path, weights_only=True)):
        assert torch.equal(loaded["state_dict"]["w"], checkpoint()["state_dict"]["w"])
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize("force", [None, "1"])
def test_planted_code_is_refused_and_does_not_run(tmp_path, monkeypatch, force):
    if force is not None:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", force)
    pwned = tmp_path / "pwned"
    content = {"state_dict": {}, "x": Planted(f"touch {pwned}")}
    signed = tmp_path / "signed.ckpt"
    AtomicCheckpointIO().save_checkpoint(content, signed)
    plain = tmp_path / "plain.pt"
    torch.save(content, plain)
    pickled = tmp_path / "model.pkl"
    pickled.write_bytes(pickle.dumps(content))
    for path in (signed, plain, pickled):
        for reader in (AtomicCheckpointIO(), AtomicCheckpointIO(require_checksum=False)):
            with pytest.raises(FileFormatError, match=path.name):
                reader.load_checkpoint(path)
    with pytest.raises(FileFormatError, match="weights_only=False"):
        AtomicCheckpointIO().load_checkpoint(signed, weights_only=False)
    assert not pwned.exists()


def test_a_file_cut_short_is_refused(tmp_path):
    path = tmp_path / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint(), path)
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(FileFormatError, match=rf"a.ckpt \({length} bytes\).*damaged"):
            AtomicCheckpointIO().load_checkpoint(path)


def test_one_flipped_bit_is_always_noticed(tmp_path):
    path = tmp_path / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint(), path)
    whole = path.read_bytes()
    generator = random.Random(0)
    for _ in range(50):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(FileFormatError, match="damaged"):
            AtomicCheckpointIO().load_checkpoint(path)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint(1.0), path)
    before = path.read_bytes()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"a\.ckpt.*bytes free"):
            AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.zeros(100_000)}}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.slow
def test_kill_9_while_writing_leaves_a_readable_checkpoint_and_no_leftovers(tmp_path):
    path = tmp_path / "a.ckpt"
    script = textwrap.dedent(
        """
        import sys, torch
        from moeapps.core.checkpoint import AtomicCheckpointIO
        print("ready", flush=True)
        for value in range(1, 10_000):
            weights = torch.full((2_000_000,), float(value))
            AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": weights}}, sys.argv[1])
        """
    )
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.zeros(2_000_000)}}, path)
    generator = random.Random(1)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(elsewhere)},
        )
        assert process.stdout.readline() == b"ready\n"
        time.sleep(generator.uniform(0.0, 0.3))
        process.kill()
        process.wait()
        process.stdout.close()
        weights = AtomicCheckpointIO().load_checkpoint(path)["state_dict"]["w"]
        assert weights.unique().numel() == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.ckpt", "elsewhere"]


def test_missing_folder_url_and_foreign_files_are_named(tmp_path):
    reader = AtomicCheckpointIO()
    with pytest.raises(FileNotFoundError, match=r"nope\.ckpt does not exist"):
        reader.load_checkpoint(tmp_path / "nope.ckpt")
    with pytest.raises(FileFormatError, match="is a folder"):
        reader.load_checkpoint(tmp_path)
    with pytest.raises(FileFormatError, match="is a URL"):
        reader.load_checkpoint("https://example.org/a.ckpt")


def trainer(folder, **kwargs) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        plugins=[AtomicCheckpointIO()],
        **kwargs,
    )


class Stop(L.Callback):
    """Save after a number of steps, as a killed run would have left it, and end."""

    def __init__(self, step: int, path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise KeyError("killed")


def fit(folder, *, epochs=4, workers=0, stop=None, resume=None, global_seed=7):
    L.seed_everything(global_seed, verbose=False)
    module = ToyModule()
    callbacks = [StepSeeding(), LastCheckpoint(folder)]
    if stop is not None:
        callbacks.append(Stop(*stop))
    run = trainer(folder, max_epochs=epochs, callbacks=callbacks)
    try:
        run.fit(module, ToyData(num_workers=workers), ckpt_path=resume)
    except KeyError:
        return module, None
    return module, run


def everything(module, run) -> list[torch.Tensor]:
    """All weights and the whole state of the optimizer."""
    moments = [value for state in run.optimizers[0].state.values() for value in state.values()]
    return [*module.state_dict().values(), *moments]


@pytest.mark.parametrize(("step", "workers"), [*((s, 0) for s in (3, 8, 11, 16, 21, 31)), (8, 2), (11, 2)], ids=str)
def test_a_run_resumed_at_any_step_ends_in_the_same_bits(tmp_path, step, workers):
    whole, whole_run = fit(tmp_path / "whole")
    first, _ = fit(tmp_path / "cut", workers=workers, stop=(step, tmp_path / "cut.ckpt"))
    second, second_run = fit(tmp_path / "rest", workers=workers, resume=tmp_path / "cut.ckpt", global_seed=99)
    assert first.seen + second.seen == whole.seen
    assert second_run.global_step == whole_run.global_step == 32
    for ours, reference in zip(everything(second, second_run), everything(whole, whole_run), strict=True):
        assert torch.equal(ours, reference)


def test_a_run_resumed_at_the_end_of_an_epoch_ends_in_the_same_bits(tmp_path):
    whole, whole_run = fit(tmp_path / "whole")
    fit(tmp_path / "cut", stop=(19, tmp_path / "unused.ckpt"))
    second, second_run = fit(tmp_path / "rest", resume=tmp_path / "cut" / "last.ckpt", global_seed=99)
    assert whole.seen[-len(second.seen) :] == second.seen
    for ours, reference in zip(everything(second, second_run), everything(whole, whole_run), strict=True):
        assert torch.equal(ours, reference)


def test_a_nan_loss_stops_before_it_reaches_the_weights(tmp_path):
    module = ToyModule(nan_at_step=11)
    run = trainer(tmp_path, max_epochs=4, callbacks=[LastCheckpoint(tmp_path)])
    with pytest.raises(Exception, match=r"step 11: task = nan.*layer 'moe' got 1 non-finite tokens") as caught:
        run.fit(module, ToyData())
    assert type(caught.value).__name__ == "NonFiniteError"
    saved = AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
    assert saved["global_step"] == 8
    assert all(p.isfinite().all() for p in module.parameters())


def test_a_checkpoint_of_another_size_is_refused(tmp_path):
    fit(tmp_path, epochs=1)
    with pytest.raises(FileFormatError, match=r"moe.router.weight is \(4, 8\) in the file and \(3, 8\) in the model"):
        trainer(tmp_path, max_epochs=2).fit(ToyModule(num_experts=3), ToyData(), ckpt_path=tmp_path / "last.ckpt")
