"""In which folder ``moeapps fit`` runs: a new one, or the one of the run that it continues."""

import re
import sys
from itertools import count, pairwise
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from moeapps.core.checkpoint import AtomicCheckpointIO
from moeapps.core.run_folder import run_folder
from moeapps.core.run_result import RunResult, folder_of_checkpoint
from moeapps.core.yaml_files import flat, read_yaml

__all__ = [
    "RunComplete",
    "begin_again",
    "continued_run",
    "differences",
    "name_of_config",
    "seed_folder",
    "steps_of",
]

SEED = "seed_everything"

_SHOWN = (
    r"ckpt_path|weights_only|import|logger|trainer\.(enable_.*|accelerator|default_root_dir|log_every_n_steps"
    r"|num_sanity_val_steps|detect_anomaly|profiler)(\..*)?"
)
"""Keys that say where a run is made, and what is shown of it."""

_SAME_RUN = rf"{_SHOWN}|trainer\.(max|min)_(epochs|steps|time)(\..*)?"
"""Keys in which two parts of one run may differ: these, and how long it is."""


class RunComplete(Exception):
    """The run that was asked for is there already."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder


def differences(config: dict[str, Any], folder: Path, same: str = _SAME_RUN) -> dict[str, tuple[str, str]]:
    """Keys in which a configuration is another one than that of the run in a folder, with both values.

    Neither a key that matches ``same`` counts, nor one that either of them lacks: moeapps has settings today that it
    had not when the run began.
    """
    now, then = dict(flat(config)), dict(flat(read_yaml(folder / "config.yaml")))
    return {
        key: (now[key], then[key])
        for key in now
        if key in then and now[key] != then[key] and not re.fullmatch(same, key)
    }


def continued_run(checkpoint: str, config: dict[str, Any]) -> Path | None:
    """Folder of the run that a checkpoint continues; None where the settings differ, and it begins another one.

    Raises
    ------
    RunComplete
        If the run is finished, is not to be longer now, and the checkpoint is its last one.
    """
    folder = folder_of_checkpoint(checkpoint)
    if folder is None:
        return None
    folder = _relative(folder)
    if changed := differences(config, folder):
        shown = ", ".join(f"{key} is {now}, was {then}" for key, (now, then) in list(changed.items())[:3])
        more = f", and {len(changed) - 3} more" if len(changed) > 3 else ""
        print(f"note: not a continuation of {folder}: {shown}{more}. This is a new run", file=sys.stderr)
        return None
    if RunResult.load(folder).finished and not differences(config, folder, same=_SHOWN):
        if not Path(checkpoint).name.startswith("last"):
            print(f"note: {folder} is finished: going on from an earlier checkpoint is a new run", file=sys.stderr)
            return None
        print(f"note: {folder} is finished; a larger trainer.max_epochs would train on", file=sys.stderr)
        raise RunComplete(folder)
    return folder


def seed_folder(root: Path, name: str, seed: int, config: dict[str, Any]) -> tuple[Path, Path | None]:
    """Folder of one of several runs that differ in their seed.

    Parameters
    ----------
    root : Path
        Folder of all runs.
    name : str
        What the folder with the runs of this configuration is called; a number is added where another configuration
        has that name.
    seed : int
        The seed.
    config : dict
        The configuration.

    Returns
    -------
    folder : Path
        Its folder.
    checkpoint : Path or None
        Where an earlier, interrupted run of it had come to.

    Raises
    ------
    RunComplete
        If this run is finished.
    """
    for number in count():
        group = root / (f"{name}_{number}" if number else name)
        runs = [path.parent for path in group.glob("*/config.yaml")]
        ours = group.is_dir() and all(re.fullmatch(r"seed_\d+", path.name) for path in group.iterdir())
        if not group.exists() or (ours and not any(differences(config, run, rf"{_SAME_RUN}|{SEED}") for run in runs)):
            break
    folder = run_folder(group / f"seed_{seed}")
    if RunResult.load(folder).finished:
        raise RunComplete(folder)
    files = [path for path in folder.glob("checkpoints/*.ckpt") if path.name in ("last.ckpt", "interrupted.ckpt")]
    return folder, max(files, key=lambda path: path.stat().st_mtime_ns, default=None)


def begin_again(folder: Path) -> None:
    """Note that a run that was finished goes on; one process of a distributed run does."""
    result = RunResult.load(folder)
    if result.finished and getattr(rank_zero_only, "rank", 0) == 0:
        result.finished = False
        result.save(folder)


def name_of_config(args: list[str]) -> str:
    """Name of the last configuration file; that of the folder where it is the ``config.yaml`` of a run."""
    files = [following for option, following in pairwise([*args, ""]) if option in ("-c", "--config")]
    files += [option.partition("=")[2] for option in args if option.startswith(("--config=", "-c="))]
    if not files:
        return ""
    path = Path(files[-1]).absolute()
    return path.parent.name if path.name == "config.yaml" else path.stem


def steps_of(checkpoint: str | Path) -> int:
    """Number of steps that a checkpoint has behind it, as loggers count them."""
    content = AtomicCheckpointIO().load_checkpoint(checkpoint)
    loop = content.get("loops", {}).get("fit_loop", {}).get("epoch_loop.state_dict", {})
    return int(loop.get("_batches_that_stepped", content.get("global_step", 0)))


def _relative(folder: Path) -> Path:
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
