"""What several commands do with their arguments before a parser sees them."""

import argparse
import os
import re
import sys
from typing import Any, NoReturn

from moeapps.plugins import TRUST
from moeapps.registry import did_you_mean, nearest

__all__ = [
    "IMPORT_HELP",
    "SUMMARIES",
    "Parser",
    "add_trust",
    "subcommand",
    "subcommand_position",
    "take_option",
    "trust",
]

IMPORT_HELP = "module to import first, where your routers, models or data are registered; may be repeated"

SUMMARIES = {
    "fit": "train a model from a YAML file",
    "validate": "score a checkpoint on the validation data",
    "test": "score a checkpoint on the test data",
    "predict": "write predictions of a checkpoint to a file (of a saved model: see score)",
}
"""The subcommands. Their options are the arguments of classes, so that jsonargparse reads them (:mod:`.trainer`)."""


class _HelpWithDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults stand in the help, but for options that are off or absent, or whose help tells the default."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = "default" in (action.help or "")
        if told or action.default in (None, False) or action.default == [] or not action.option_strings:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser, and one of its subcommands: ``--help`` shows defaults, and an error is one line with a guess."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**{"formatter_class": _HelpWithDefaults, "allow_abbrev": False, **arguments})
        self._given: list[str] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and refuse here what is unknown: the parser above a subcommand does not know its options."""
        self._given = list(sys.argv[1:] if args is None else args)
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unexpected argument {unknown[0]!r}")
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        """End with one line and status 2.

        A misspelled option is the cause of whatever argparse says, such as that a required one is absent.
        """
        options = [name for name in self._option_string_actions if name.startswith("--")]
        for argument in self._given:
            name = argument.partition("=")[0]
            if argument == "--" or (self._subparsers is not None and not argument.startswith("-")):
                break  # what follows the name of a subcommand is for the parser of that
            if name.startswith("--") and name not in options:
                near = nearest(name[2:], [option[2:] for option in options])
                message = f"unexpected argument {name!r}" + (f"; did you mean '--{near}'?" if near else "")
                break
        if match := re.search(r"argument (.+): invalid choice: (.+?) \(choose from (.+)\)", message):
            argument, value, choices = match[1], match[2].strip("'"), match[3].replace("'", "").split(", ")
            hint = did_you_mean(value, choices)
            message = f"{argument} must be one of {', '.join(choices)}, got {value!r}{hint}"
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def subcommand_position(arguments: list[str]) -> int | None:
    """Where the name of the subcommand stands; ``--config FILE`` may stand before it. None for another command."""
    position = 0
    while position < len(arguments) and arguments[position].startswith("-"):
        position += 2 if arguments[position] in ("-c", "--config") else 1
    return position if position < len(arguments) and arguments[position] in SUMMARIES else None


def subcommand(arguments: list[str]) -> str | None:
    """Which of the subcommands a command line asks for; None for another command."""
    position = subcommand_position(arguments)
    return None if position is None else arguments[position]


def take_option(arguments: list[str], name: str) -> str | None:
    """Remove an option, written as ``--name value`` or ``--name=value``, and return its value; None if it is absent."""
    for position, argument in enumerate(arguments):
        if argument.startswith(f"{name}="):
            return arguments.pop(position).partition("=")[2]
        if argument == name and position + 1 < len(arguments):
            del arguments[position]
            return arguments.pop(position)
    return None


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Declare ``--trust``, of the commands that load a model."""
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="TYPES",
        help="types of other packages that the model's file may hold, separated by commas; name them only if you know "
        "who wrote it",
    )


def trust(options: argparse.Namespace) -> None:
    """Let this process, and those that it starts, load the types of ``--trust``."""
    if options.trust:
        os.environ[TRUST] = ",".join([*options.trust, *filter(None, [os.environ.get(TRUST)])])
