"""``moeapps export``: from a checkpoint of ``moeapps fit`` to a model file for score, serve and ``moeapps.load``."""

import argparse
import os
import warnings
from pathlib import Path

import moeapps
from moeapps.cli.arguments import add_trust, trust
from moeapps.cli.following import arguments_of_data, using
from moeapps.core.errors import ConfigError
from moeapps.core.warnings import silence_warnings

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "turn a checkpoint of a training into a model file for score, serve and moeapps.load"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = (
        "Turn a checkpoint of moeapps fit into one .safetensors file with the model alone: without optimiser, without "
        "anything that is needed only to go on with the training. moeapps.load, score and serve take both kinds of "
        "file; this one is smaller, and is what to share."
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="file that moeapps fit wrote, or the folder of a run")
    parser.add_argument("model", metavar="MODEL", help=".safetensors file to write; an older one is replaced")
    add_trust(parser)


def run(options: argparse.Namespace) -> int:
    """Load, and save."""
    silence_warnings()
    from moeapps.core.files import existing_file, is_checkpoint

    trust(options)
    target = Path(options.model)
    if target.suffix != ".safetensors":
        raise ConfigError(f"{target} must end in .safetensors: it is the model file to write")
    source = checkpoint_in(Path(options.checkpoint))
    if source.is_dir():
        runs = sorted(path for path in source.parent.glob("*") if path != source and checkpoint_in(path) != path)
        raise ConfigError(
            f"{source} holds no checkpoints/last.ckpt: its training ended before the first one, or it is no run"
            + (f"; the latest run beside it is {max(runs, key=_written)}" if runs else "")
        )
    if not is_checkpoint(existing_file(source, "a checkpoint of moeapps fit")):
        raise ConfigError(f"{source} is not a checkpoint of moeapps fit (if it is a saved model, it needs no export)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = moeapps.load(source)
        model.save(target)
    print(f"model: {target} ({type(model).__name__} of {source})")
    run = source.parent.parent if source.parent.name == "checkpoints" else source.parent
    print("next: " + "\n      ".join(using(model, str(target), arguments_of_data(run))))
    return 0


def _written(run: Path) -> float:
    return checkpoint_in(run).stat().st_mtime


def checkpoint_in(path: Path) -> Path:
    """The last checkpoint of a run whose folder this is; another path as it is."""
    for name in ("checkpoints/last.ckpt", "last.ckpt"):
        if (path / name).is_file():
            return path / name
    runs = sorted((run for run in path.glob("*/") if (run / "checkpoints/last.ckpt").is_file()), key=os.path.getmtime)
    if runs:
        raise ConfigError(f"{path} holds several runs: name one, such as {runs[-1]}, the newest")
    return path
