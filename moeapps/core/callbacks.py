"""Lightning callbacks that make training exact, interruptible and observable."""

import os
import random
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import BasePredictionWriter, ModelCheckpoint, RichProgressBar, Timer

from moeapps.core.averaging import averaged_module
from moeapps.core.distributed import alone
from moeapps.core.errors import ConfigError
from moeapps.core.tabledata.writer import TableWriter

__all__ = [
    "BestWeights",
    "HistoryRecorder",
    "Interrupted",
    "LastCheckpoint",
    "PredictionWriter",
    "ProgressBar",
    "StepSeeding",
    "StopOnSignal",
    "ViewWriter",
    "seed_everything",
    "time_used",
]


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    _seed_cpu(seed)
    torch.manual_seed(seed)


def _seed_cpu(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - other libraries draw from NumPy's global generator
    torch.default_generator.manual_seed(seed)


class ProgressBar(RichProgressBar):
    """Lightning's bar without ``v_num``, which cuts the names of runs to their last four letters (``v_num: on_0``)."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Return what stands behind the bar."""
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class StepSeeding(L.Callback):
    """Seed all noise of a training step (dropout, router noise) from (seed, step).

    Then a training that was interrupted draws the same noise from its next step on as one that was not. The seed
    travels in the checkpoint, so a resumed run keeps the first run's seed.

    Parameters
    ----------
    seed : int, optional
        The seed; torch's initial seed (what ``seed_everything`` was given) when None.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fix the seed, unless a checkpoint has already."""
        if self.seed is None:
            self.seed = torch.initial_seed() % 2**32

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed the step; each rank has noise of its own."""
        step = trainer.fit_loop.epoch_loop.total_batch_idx
        assert self.seed is not None
        state = np.random.SeedSequence([self.seed, step, trainer.global_rank]).generate_state(1, np.uint64)
        # on the CPU not torch.manual_seed: it keeps a traceback of every call, to seed CUDA when that is first used
        seed = _seed_cpu if pl_module.device.type == "cpu" else seed_everything
        seed(int(state[0] >> np.uint64(1)))

    def state_dict(self) -> dict[str, Any]:
        """The seed."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the seed of the run that is continued."""
        self.seed = state_dict["seed"]


class Interrupted(SystemExit):
    """Training stopped on a signal, after saving. As a process exit it gives the status 128 + signal number.

    Attributes
    ----------
    signum : int
        The signal.
    checkpoint : Path
        What to resume from.
    """

    def __init__(self, signum: int, checkpoint: Path) -> None:
        super().__init__(128 + signum)
        self.signum = signum
        self.checkpoint = checkpoint


class StopOnSignal(L.Callback):
    """On SIGTERM or SIGINT: finish the step, save a checkpoint, and leave with status 143 or 130.

    A second signal ends the process at once (a checkpoint that is being written then keeps its old content). Where the
    step ends an epoch that is validated, the validation is finished too, because only what is saved after it can be
    continued exactly. With several processes, all stop together when one of them got the signal.

    Parameters
    ----------
    filename : str, default="interrupted.ckpt"
        Name of the checkpoint, in the folder of the run's checkpoints.
    """

    signals = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, filename: str = "interrupted.ckpt") -> None:
        self.filename = filename
        self._received: int | None = None
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signals over; Lightning's own handler would end the process with status 0."""
        self._received = None
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may; whoever started this one (Ray) stops it by its own means
        for number in self.signals:
            self._previous[number] = signal.signal(number, self._handle)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop here, unless a validation follows."""
        validates = trainer.is_last_batch and trainer.enable_validation and self._validates_this_epoch(trainer)
        if not validates:
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop after the validation."""
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._stop_if_asked(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._restore()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the signals back."""
        self._restore()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._received is not None:
            os._exit(128 + signum)
        self._received = signum
        sys.stderr.write("\nstopping after this step; a second signal stops at once\n")

    def _stop_if_asked(self, trainer: L.Trainer) -> None:
        asked = self._received is not None
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if not asked:
            return
        # beside last.ckpt, in the run's own folder: a dirpath of the user's may be that of other runs too
        own = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, LastCheckpoint)]
        manager = own[0] if own else trainer.checkpoint_callback
        folder = getattr(manager, "dirpath", None) or os.path.join(trainer.default_root_dir, "checkpoints")
        path = Path(folder) / self.filename
        trainer.save_checkpoint(path)
        raise Interrupted(self._received or signal.SIGTERM, path)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    @staticmethod
    def _validates_this_epoch(trainer: L.Trainer) -> bool:
        every = trainer.check_val_every_n_epoch
        return every is None or (trainer.current_epoch + 1) % every == 0


class BestWeights(L.Callback):
    """Keep the weights of the best epoch in memory and put them back when training ends.

    Where a callback averages the weights, it is the average that was validated, and that is kept.

    Parameters
    ----------
    monitor : str
        Logged metric to watch.
    mode : str, default="min"
        ``"min"`` or ``"max"``.

    Attributes
    ----------
    best_score
        Value of the metric in the best epoch.
    best_epoch
        Its number, from 0.
    """

    def __init__(self, monitor: str, mode: str = "min") -> None:
        self.monitor, self.sign = monitor, {"min": -1.0, "max": 1.0}[mode]
        self.best_score: float | None = None
        self.best_epoch: int | None = None
        self._weights: dict[str, torch.Tensor] | None = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Copy the weights if this epoch is the best so far."""
        if trainer.sanity_checking:
            return
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics))
            raise ConfigError(f"monitor={self.monitor!r} was not logged; logged are {known}")
        score = float(trainer.callback_metrics[self.monitor])
        if self.best_score is None or self.sign * score > self.sign * self.best_score:
            self.best_score, self.best_epoch = score, trainer.current_epoch
            averaged = averaged_module(trainer)
            validated = pl_module if averaged is None else averaged
            self._weights = {name: tensor.detach().clone() for name, tensor in validated.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """What a training that goes on has to know."""
        return {"best_score": self.best_score, "best_epoch": self.best_epoch, "weights": self._weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        self.best_score, self.best_epoch = state_dict["best_score"], state_dict["best_epoch"]
        self._weights = state_dict["weights"]

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the best weights back."""
        if self._weights is not None:
            pl_module.load_state_dict(self._weights)


class HistoryRecorder(L.Callback):
    """Collect the logged metrics of every epoch, for an estimator's ``history_``."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note what this epoch logged (validation has run before this hook)."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.rows[trainer.current_epoch] = {"epoch": trainer.current_epoch, **metrics}

    def frame(self) -> pd.DataFrame:
        """One row per epoch."""
        return pd.DataFrame(list(self.rows.values()))


class LastCheckpoint(ModelCheckpoint):
    """Write ``last.ckpt`` at the end of every epoch, always to the same name.

    (``ModelCheckpoint(save_top_k=0, save_last=True)`` writes only once, when training ends.)
    """

    def __init__(self, dirpath: str | None = None) -> None:
        super().__init__(dirpath, filename="last", enable_version_counter=False)

    def _should_save_on_train_epoch_end(self, trainer: L.Trainer) -> bool:
        # Lightning saves only where it validates: with check_val_every_n_epoch=20 the epochs after the last multiple
        # of 20 would be lost, and a shorter training would leave no checkpoint at all
        return trainer.check_val_every_n_epoch not in (None, 1) or super()._should_save_on_train_epoch_end(trainer)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse to overwrite the checkpoint of another run.

        Raises
        ------
        ConfigError
            If there is one in the folder, and it is not what this run continues from.
        """
        if getattr(trainer, "fast_dev_run", False) or self.dirpath is None:
            return
        path = Path(str(self.dirpath), "last.ckpt")
        start = trainer.ckpt_path
        continued = start is not None and Path(str(start)).resolve().parent == path.parent.resolve()
        if trainer.strategy.broadcast(path.exists() and not continued):
            raise ConfigError(f"{path} is there already, of another run: choose another folder, or continue that run")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add to the file what a module has learned after its last epoch (a mixture of the trained experts)."""
        conclusion: Any = getattr(pl_module, "conclusion", None)
        added = {} if conclusion is None else conclusion()
        path = Path(str(self.last_model_path or self.best_model_path))
        if added and trainer.is_global_zero and path.is_file():
            io = trainer.strategy.checkpoint_io
            io.save_checkpoint({**io.load_checkpoint(path), **added}, path)


class ViewWriter(L.Callback):
    """Leave ``views.json`` in the folder of the run when training ends: the module's maps, curves and warnings."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ask the module and write."""
        views = getattr(pl_module, "views", None)
        folder = trainer.log_dir  # every process has to ask, since it is broadcast
        if views is not None and trainer.is_global_zero and folder is not None and trainer.loggers:
            best = [callback for callback in trainer.callbacks if isinstance(callback, BestWeights)]  # type: ignore[attr-defined]
            kept = best[0].best_epoch if best else None
            with alone():  # the other processes do not look, and would be waited for where something is fitted
                shown = views()
            replace(shown, kept_epoch=kept).save(Path(folder))


class PredictionWriter(BasePredictionWriter):
    """Write what ``predict_step`` returns (a dictionary of columns) to a CSV or Parquet file, batch by batch.

    The file replaces an older one only when it is complete.

    Parameters
    ----------
    path : str
        The file; its ending decides the form (``.csv`` or ``.parquet``).

    Raises
    ------
    ConfigError
        If the ending is neither.
    """

    def __init__(self, path: str) -> None:
        super().__init__("batch")
        self.path = path
        self._writer = TableWriter(path)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin the file.

        Raises
        ------
        ConfigError
            If several processes predict, each of which has a part of the rows.
        """
        if trainer.world_size > 1:
            raise ConfigError(f"predictions are written by one process: set devices to 1, got {trainer.world_size}")
        self._writer = TableWriter(self.path)
        self._writer.__enter__()

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Append a batch."""
        self._writer.write(pd.DataFrame(prediction))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Move the file to its name."""
        self._writer.__exit__(None, None, None)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Keep the old file."""
        if trainer.state.fn == "predict":
            self._writer.__exit__(type(exception), exception, exception.__traceback__)


def time_used(trainer: L.Trainer) -> float:
    """Training time so far as a fraction of the Trainer's ``max_time``, at most 1; 0 without a limit."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Timer) and callback._duration is not None:
            return float(min(1.0, callback.time_elapsed() / max(callback._duration, 1e-9)))
    return 0.0
