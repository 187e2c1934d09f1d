"""Which file ``--ckpt_path last`` and ``--ckpt_path best`` mean."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moeapps.core.checkpoint import AtomicCheckpointIO
from moeapps.core.errors import ConfigError

__all__ = ["KEYWORDS", "find_checkpoint"]

KEYWORDS = ("last", "best", "hpc", "registry")
"""What Lightning understands in place of a file."""


def find_checkpoint(keyword: str, trainer: Any, root: str, subcommand: str) -> str | None:
    """File that a keyword means.

    Lightning looks for it in the folder of the present run. That one is new, so the runs before are meant here.

    Parameters
    ----------
    keyword : {"last", "best", "hpc", "registry"}
        What the user wrote. ``last`` is the newest checkpoint that a run left to be continued, ``best`` the one that
        its ``ModelCheckpoint`` with a ``monitor`` chose.
    trainer : mapping
        Configuration of the Trainer: folders of runs, of loggers and of checkpoints.
    root : str
        Folder of the runs, unless the Trainer has another one.
    subcommand : str
        ``fit``, ``validate``, ``test`` or ``predict``.

    Returns
    -------
    str or None
        The file; None for ``fit`` from ``last`` where there is no run yet, so that a job that is started again and
        again can always say it.

    Raises
    ------
    ConfigError
        If there is none.
    """
    trainer = trainer or {}
    if keyword == "registry":
        raise ConfigError("--ckpt_path registry is not supported: give a file, last or best")
    folders = list(dict.fromkeys(_folders(trainer, root)))
    patterns = ["hpc_ckpt_*.ckpt"] if keyword == "hpc" else ["last*.ckpt", "interrupted.ckpt"]
    files = [file for folder in folders for pattern in patterns for file in _below(folder, pattern)]
    newest = max(files, key=lambda file: (file.stat().st_mtime_ns, str(file)), default=None)
    if newest is None:
        searched = " and ".join(str(folder) for folder in folders)
        if subcommand == "fit" and keyword == "last":
            print(f"note: there is no run in {searched} yet: this one begins anew", file=sys.stderr)
            return None
        raise ConfigError(f"--ckpt_path {keyword}: there is no checkpoint of a run in {searched}")
    if keyword == "best":
        newest = _best_of(newest)
    print(f"note: --ckpt_path {keyword} is {newest}", file=sys.stderr)
    return str(newest)


def _folders(trainer: Any, root: str) -> Iterator[Path]:
    """Folders in which runs of this configuration leave their checkpoints."""
    for key, argument in (("callbacks", "dirpath"), ("logger", "save_dir")):
        values = trainer.get(key)
        for value in values if isinstance(values, list) else [values]:
            arguments = value.get("init_args") if hasattr(value, "get") else None
            if arguments and arguments.get(argument):
                yield Path(arguments.get(argument))
    yield Path(trainer.get("default_root_dir") or root)


def _below(folder: Path, pattern: str) -> Iterator[Path]:
    """Files of that name in the folder, its runs, and the runs of its loggers."""
    for depth in ("", "checkpoints/", "*/checkpoints/", "*/*/checkpoints/"):
        yield from folder.glob(depth + pattern)


def _best_of(last: Path) -> Path:
    """What the callbacks of a run have noted as its best checkpoint, in its last one."""
    callbacks = AtomicCheckpointIO().load_checkpoint(last).get("callbacks", {})
    for state in callbacks.values():
        if isinstance(state, dict) and state.get("monitor") and state.get("best_model_path"):
            noted = Path(state["best_model_path"])
            found = next((path for path in (noted, last.parent / noted.name) if path.is_file()), None)
            if found is None:
                raise ConfigError(f"--ckpt_path best: {noted}, which {last} names, does not exist any more")
            return found
    raise ConfigError(
        f"--ckpt_path best: the run of {last} chose none. Give fit a "
        "lightning.pytorch.callbacks.ModelCheckpoint with a monitor, under trainer.callbacks"
    )
