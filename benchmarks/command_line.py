"""Options of the benchmarks' scripts: written out in full, an unknown one is refused with a guess."""

import argparse

from moeapps.cli.arguments import Parser

__all__ = ["script_parser"]


def script_parser(description: str | None) -> Parser:
    """A parser without options; ``--help`` shows the script's documentation as it is written."""
    return Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
