"""Find the subcommand, run it, and turn an error into one line and an exit status."""

import argparse
import atexit
import gc
import os
import select
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import moeapps
from moeapps import plugins
from moeapps.cli import card, compare, data_check, demo, export, listing, report, score, search, serve, stream, training
from moeapps.cli.arguments import IMPORT_HELP, Parser, subcommand, take_option
from moeapps.core.errors import ConfigError, MoEAppsError

__all__ = ["COMMANDS", "Command", "main", "make_parser"]


class Command(Protocol):
    """What the module of a subcommand offers."""

    SUMMARY: str
    """One line for ``moeapps --help``."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options."""

    def run(self, options: argparse.Namespace) -> int:
        """Run the command and return its exit status."""


COMMANDS: dict[str, Command] = {
    "list": listing,
    "demo": demo,
    "compare": compare,
    "export": export,
    "search": search,
    "score": score,
    "check": data_check.CHECK,
    "compare-data": data_check.COMPARE_DATA,
    "report": report,
    "card": card,
    "serve": serve,
    "stream": stream,
}
"""Subcommands by name, besides those of :data:`moeapps.cli.arguments.SUMMARIES`, whose options jsonargparse reads."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    args : sequence of str, optional
        Arguments after ``moeapps``; those of the process when None, the default.

    Returns
    -------
    int
        Exit status: 0 success, 1 something failed (data, files, training), 2 wrong usage or configuration, 3 a check of
        data found what ``--fail-on`` names, 143 or 130 stopped by SIGTERM or SIGINT after saving, 141 the output has no
        reader any more.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in arguments or bool(os.environ.get("MOEAPPS_DEBUG"))
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        with plugins.command_folder(), _imported(arguments):
            if subcommand(arguments) is not None:
                return training.run(arguments)
            options = make_parser().parse_args(arguments)
            # at the very end Python looks through millions of objects for cycles; frozen, it takes a fifth of the time
            atexit.register(gc.freeze)
            status = COMMANDS[options.command].run(options)
            sys.stdout.flush()
            return status
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            return 141
        if debug:
            raise
        return _report(error)


def _reader_is_gone() -> bool:
    """Whether nobody reads the standard output any more, as after ``| head``; from then on it goes nowhere."""
    try:
        output = select.poll()
        output.register(sys.stdout, 0)  # POLLERR needs no asking for
    except (AttributeError, OSError, ValueError):  # no such call on Windows, no file behind the output of a notebook
        return False
    gone = any(event & select.POLLERR for _, event in output.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def make_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands but fit, validate, test and predict, of which it knows the names."""
    parser = Parser(
        prog="moeapps",
        description="Mixture-of-experts models for tables, graphs, streams, recommendation and images.",
        epilog="An error is one line; --debug (or MOEAPPS_DEBUG=1) shows where it came from.",
    )
    parser.add_argument("--version", action="version", version=f"moeapps {moeapps.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in training.SUMMARIES.items():
        commands.add_parser(name, help=summary, add_help=False)
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(name, help=command.SUMMARY)
        command.add_arguments(subparser)
        subparser.add_argument("--import", metavar="MODULE", dest="import_", help=IMPORT_HELP)  # main() takes it out
    return parser


@contextmanager
def _imported(arguments: list[str]) -> Iterator[None]:
    """Take ``--import`` out of the arguments, and import its modules: here, and in processes that the command starts.

    Those (of a server, of a distributed training) inherit the environment variable.
    """
    before = os.environ.get(plugins.VARIABLE, "")
    names = [before] if before else []
    while (name := take_option(arguments, "--import")) is not None:
        names.append(name)
    if "--import" in arguments:
        raise ConfigError("--import needs the name of a module")
    plugins.import_modules(names)
    os.environ[plugins.VARIABLE] = ",".join(names)
    try:
        yield
    finally:
        os.environ[plugins.VARIABLE] = before
        if not before:
            del os.environ[plugins.VARIABLE]


def _report(error: Exception) -> int:
    text = " ".join(str(error).split())
    if isinstance(error, MoEAppsError | OSError):
        print(f"error: {text}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    print(f"error: {type(error).__name__}: {text} (--debug shows where)", file=sys.stderr)
    return 1
