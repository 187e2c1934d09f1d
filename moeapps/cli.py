"""The ``moeapps`` command. What answers at once is here; what imports torch is imported when it is asked for."""

import argparse
import logging
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Sequence

import moeapps
from moeapps import registry

__all__ = ["main"]

LIGHTNING = {
    "fit": "train a model from a YAML file",
    "validate": "score a checkpoint on the validation data",
    "test": "score a checkpoint on the test data",
    "predict": "write a checkpoint's predictions to a file (--output FILE)",
}
KINDS = {"models": "model", "routers": "router", "data": "data"}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments after ``moeapps``; those of the process when None.

    Returns:
        Exit status: 0 success, 1 something failed (data, files, training), 2 wrong usage or configuration, 143 or 130
        stopped by SIGTERM or SIGINT after saving.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    debug = _take_flag(arguments, "--debug") or bool(os.environ.get("MOEAPPS_DEBUG"))
    try:
        if arguments and arguments[0] in LIGHTNING:
            return _run_lightning(arguments)
        return _run_light(arguments)
    except KeyboardInterrupt:
        return _say("stopped", 130)
    except Exception as error:
        if debug:
            raise
        return _report(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="moeapps",
        description="Mixture-of-experts models for graphs, streams, recommendation and images.",
        epilog="An error is one line; --debug (or MOEAPPS_DEBUG=1) shows where it came from.",
    )
    parser.add_argument("--version", action="version", version=f"moeapps {moeapps.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in LIGHTNING.items():
        commands.add_parser(name, help=summary, add_help=False)
    listing = commands.add_parser("list", help="list models, routers and data sets, one line each")
    listing.add_argument("kind", nargs="?", choices=list(KINDS), help="only this kind")
    demo = commands.add_parser("demo", help="train and compare on real data, without network, in about two minutes")
    demo.add_argument("--output", default="moeapps-demo", help="folder for results.json and pictures")
    demo.add_argument("--seeds", type=int, default=3, help="how often everything is trained")
    return parser


def _run_light(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    if options.command == "list":
        _list(options.kind)
        return 0
    _silence()
    from moeapps.demo import run

    run(options.output, options.seeds)
    return 0


def _run_lightning(arguments: list[str]) -> int:
    output = _take_option(arguments, "--output") if arguments[0] == "predict" else None
    _silence()
    from moeapps.core.callbacks import Interrupted
    from moeapps.training import run

    try:
        run(arguments, output)
    except Interrupted as stop:
        name = signal.Signals(stop.signum).name
        command = [*_without_option(arguments, "--ckpt_path"), "--ckpt_path", str(stop.checkpoint)]
        _say(f"stopped by {name}; continue with: moeapps {shlex.join(command)}", 0)
        return 128 + stop.signum
    return 0


def _list(kind: str | None) -> None:
    width = max(len(entry.alias or entry.path) for entry in registry.entries())
    for title, name in KINDS.items():
        if kind in (None, title):
            print(title)
            for entry in registry.entries(name):
                print(f"  {entry.alias or entry.path:<{width}}  {entry.summary}")


def _report(error: Exception) -> int:
    from moeapps.core.errors import ConfigError, MoEAppsError

    text = " ".join(str(error).split())
    if isinstance(error, MoEAppsError | OSError):
        return _say(f"error: {text}", 2 if isinstance(error, ConfigError) else 1)
    return _say(f"error: {type(error).__name__}: {text} (--debug shows where)", 1)


def _say(text: str, status: int) -> int:
    print(text, file=sys.stderr, flush=True)
    return status


def _take_flag(arguments: list[str], name: str) -> bool:
    found = name in arguments
    arguments[:] = [argument for argument in arguments if argument != name]
    return found


def _take_option(arguments: list[str], name: str) -> str | None:
    for position, argument in enumerate(arguments):
        if argument.startswith(f"{name}="):
            return arguments.pop(position).partition("=")[2]
        if argument == name and position + 1 < len(arguments):
            del arguments[position]
            return arguments.pop(position)
    return None


def _without_option(arguments: list[str], name: str) -> list[str]:
    rest = list(arguments)
    _take_option(rest, name)
    return rest


def _silence() -> None:
    """Quiet the notes of our dependencies that a user can do nothing about."""
    for message in (
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        ".*torch.jit.script.*",
        ".*The number of training batches.*",
        ".*callbacks used to create the checkpoint need to be provided.*",
        ".*The dirpath has changed.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch(\.|$)|lightning(\.|$)")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
