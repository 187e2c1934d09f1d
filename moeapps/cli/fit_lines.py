"""What ``moeapps fit`` prints besides the progress: a line when it begins, scores and the next commands at the end."""

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
from lightning.pytorch.callbacks import ModelCheckpoint

from moeapps.cli.following import arguments_of_data, recommending

__all__ = ["StartLine", "print_end", "print_table"]


class StartLine(L.Callback):
    """Print model, data, device and folder in one line when training begins.

    Parameters
    ----------
    data : str, default=""
        Data module and the name of its data.
    folder : Path, optional
        Folder of the run.
    continued : bool, default=False
        Whether the run began earlier.
    """

    def __init__(self, data: str = "", folder: Path | None = None, continued: bool = False) -> None:
        self.data, self.folder, self.continued = data, folder, continued

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print, once the modules that depend on the data have their parameters."""
        folder = self.folder or trainer.log_dir  # every process has to ask, since it is broadcast
        if not trainer.is_global_zero:
            return
        number = sum(parameter.numel() for parameter in pl_module.parameters())
        device = "cpu" if pl_module.device.type == "cpu" else str(pl_module.device)
        if trainer.world_size > 1:
            device = f"{trainer.world_size} x {pl_module.device.type}"
        parts = [f"{type(pl_module).__name__} ({number:,} parameters)", self.data, device]
        parts.append(str(folder or ""))
        print("fit: " + ", ".join(filter(None, parts)) + self._beginning(trainer), flush=True)

    def _beginning(self, trainer: L.Trainer) -> str:
        return f" (continued at epoch {trainer.current_epoch})" if self.continued else ""


def print_end(
    trainer: L.Trainer, folder: Path | None, checkpoints: list[str], commands: bool = True, tested: bool = False
) -> None:
    """Print the scores of a training, its checkpoints, and, unless told not to, the commands to type next.

    Where it is ``tested`` right afterwards, that is none of them.
    """
    last = {name: float(v) for name, v in trainer.callback_metrics.items() if _is_score(name)}
    columns = {"last epoch": last}
    if best := _best_epoch(trainer, folder):
        columns = {f"best epoch ({best[0]})": best[1], **columns}
    print_table("", columns)
    for path in checkpoints:
        print(f"checkpoint: {path}")
    if not commands or folder is None or not checkpoints or not (folder / "config.yaml").is_file():
        return
    config, best_file = shlex.quote(str(folder / "config.yaml")), shlex.quote(checkpoints[0])
    following = [f"moeapps report {shlex.quote(str(folder))}", f"moeapps export {best_file} MODEL.safetensors"]
    data: Any = getattr(trainer, "datamodule", None)
    if hasattr(data, "catalogue"):  # it was trained to recommend, and not to score rows
        following.append(recommending("MODEL.safetensors", arguments_of_data(folder)))
    if not tested and getattr(data, "has_test_data", True):  # data that do not say so have some
        following.insert(0, f"moeapps test --config {config} --ckpt_path {best_file}")
    print("next: " + "\n      ".join(following))


def print_table(corner: str, columns: Mapping[str, Mapping[str, float | str]]) -> None:
    """Print a table of numbers (or texts) by row and column."""
    rows: Iterable[str] = dict.fromkeys(name for column in columns.values() for name in column)
    cells = [[corner, *columns]]
    for name in rows:
        values = [column.get(name, "") for column in columns.values()]
        cells.append([name, *(f"{value:.4f}" if isinstance(value, float) else str(value) for value in values)])
    if len(cells) < 2:
        return
    widths = [max(len(row[n]) for row in cells) for n in range(len(cells[0]))]
    for row in cells:
        first, *others = (
            cell.ljust(w) if not n else cell.rjust(w) for n, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *others]).rstrip())


def _is_score(name: str) -> bool:
    return "/moe/" not in name and (name.startswith(("val/", "test/")) or name == "train/loss")


def _best_epoch(trainer: L.Trainer, folder: Path | None) -> tuple[int, dict[str, float]] | None:
    """Number and scores of the epoch of the best checkpoint, from the metrics of the run; None without one."""
    best = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor]
    if not best or folder is None or not (folder / "metrics.csv").is_file() or best[0].best_model_score is None:
        return None
    rows = pd.read_csv(folder / "metrics.csv").groupby("epoch").last()
    monitor = str(best[0].monitor)
    if monitor not in rows:
        return None
    # the file of an equal score is that of the first epoch that had it
    place = int((rows[monitor] - float(best[0].best_model_score)).abs().argmin())
    scores = {str(name): float(value) for name, value in rows.iloc[place].dropna().items() if _is_score(str(name))}
    return int(rows.index.to_numpy()[place]), scores
