"""A folder for each run, that no other run has: ``version_0``, ``version_1``, ..."""

import os
import re
import shutil
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only

__all__ = ["discard_unused", "new_run_folder", "run_folder"]


def new_run_folder(root: str | os.PathLike[str]) -> Path:
    """Make the folder ``version_<n>`` in ``root``, with the number after the highest one that is there.

    Of runs that begin at the same moment each gets one: the file system lets only one of them make a folder. Further
    processes of a distributed run, which write nothing, make none.
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    taken = [int(match.group(1)) for path in root.iterdir() if (match := re.fullmatch(r"version_(\d+)", path.name))]
    version = max(taken, default=-1) + 1
    while getattr(rank_zero_only, "rank", 0) == 0:
        try:
            (root / f"version_{version}").mkdir()
            break
        except FileExistsError:  # another run began at the same moment
            version += 1
    return root / f"version_{version}"


def run_folder(folder: Path) -> Path:
    """Make the folder of a run that has a name, if it is not there; further processes of a distributed run do not."""
    if getattr(rank_zero_only, "rank", 0) == 0:
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def discard_unused(folder: Path | None, refused: bool = False) -> None:
    """Remove the folder of a run that ended before it began, as by a misspelled column: only loggers were there.

    Parameters
    ----------
    folder : path or None
        The run's folder, if it has one.
    refused : bool, default=False
        Whether the run ended with an error in what the user gave: then its configuration may be there, too.
    """
    unused = ("events.out.", "config.yaml") if refused else ("events.out.",)
    if folder is not None and folder.is_dir() and all(path.name.startswith(unused) for path in folder.iterdir()):
        shutil.rmtree(folder)
