"""``moeapps fit``, ``validate``, ``test`` and ``predict``: the part that needs no Lightning."""

import shlex
import signal
import sys

from moeapps.cli import score
from moeapps.core.warnings import silence_warnings

__all__ = ["IMPORT_HELP", "SUMMARIES", "run", "subcommand", "take_option"]

IMPORT_HELP = "module of yours to import first, where routers, models or data are registered; may be repeated"

SUMMARIES = {
    "fit": "train a model from a YAML file",
    "validate": "score a checkpoint on the validation data",
    "test": "score a checkpoint on the test data",
    "predict": "write predictions of a checkpoint to a file (of a saved model: see score)",
}
"""The subcommands. Their options are the arguments of classes, so that jsonargparse reads them (:mod:`.trainer`)."""


def subcommand(arguments: list[str]) -> str | None:
    """Which of the subcommands a command line asks for; None for another command."""
    return arguments[0] if arguments and arguments[0] in SUMMARIES else None


def run(arguments: list[str]) -> int:
    """Run one of the subcommands.

    Parameters
    ----------
    arguments : list of str
        The command line from the subcommand on.

    Returns
    -------
    int
        Exit status: 0, or 128 plus the number of the signal that stopped the training after it was saved.
    """
    if arguments[0] == "predict" and len(arguments) > 1 and not arguments[1].startswith("-"):
        return score.run_as_predict(arguments[1:])
    arguments = list(arguments)
    output = take_option(arguments, "--output") if arguments[0] == "predict" else None
    silence_warnings()
    from moeapps.cli.trainer import run as run_trainer
    from moeapps.core.callbacks import Interrupted

    try:
        run_trainer(arguments, output)
    except Interrupted as stop:
        take_option(arguments, "--ckpt_path")
        command = shlex.join([*arguments, "--ckpt_path", str(stop.checkpoint)])
        name = signal.Signals(stop.signum).name
        print(f"stopped by {name}; continue with: moeapps {command}", file=sys.stderr, flush=True)
        return 128 + stop.signum
    return 0


def take_option(arguments: list[str], name: str) -> str | None:
    """Remove an option, written as ``--name value`` or ``--name=value``, and return its value; None if it is absent."""
    for position, argument in enumerate(arguments):
        if argument.startswith(f"{name}="):
            return arguments.pop(position).partition("=")[2]
        if argument == name and position + 1 < len(arguments):
            del arguments[position]
            return arguments.pop(position)
    return None
