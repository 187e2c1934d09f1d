"""``moeapps check`` and ``moeapps compare-data``: whether rows are like those of training."""

import argparse
from types import SimpleNamespace
from typing import Any

import moeapps
from moeapps.cli.arguments import add_trust, trust
from moeapps.core.warnings import silence_warnings

__all__ = ["CHECK", "COMPARE_DATA"]

FOUND = 3
"""Exit status of ``--fail-on``, unlike that of an error (1) or of wrong usage (2)."""


def _add_outcome(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        action="append",
        default=[],
        metavar="FILE",
        help="write the result: a page (.html), JSON (.json) or a table (.csv); may be given several times",
    )
    parser.add_argument(
        "--fail-on",
        choices=("shift", "drift"),
        help=f"exit with status {FOUND} if a column has this verdict or a worse one (default: exit with 0)",
    )


def _finish(check: Any, options: argparse.Namespace) -> int:
    print(check)
    for path in options.output:
        check.write(path)
        print(f"check: {path}")
    return FOUND if options.fail_on and check.reaches(options.fail_on) else 0


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compare the rows of a file with those that a saved model has learned from, column by column: missing cells, "
        "categories that training had not, numbers outside its range, and the population stability index (0.1: shift, "
        "0.25: drift, if it is beyond chance)."
    )
    parser.add_argument("model", metavar="MODEL", help="file that model.save wrote")
    parser.add_argument("data", metavar="FILE", help="file or folder of rows, as moeapps score takes it")
    parser.add_argument(
        "--edges",
        metavar="FILE",
        help="of a model of graphs, whose rows are nodes: the table of edges; edges per node and predicted classes are "
        "then compared, too",
    )
    _add_outcome(parser)
    add_trust(parser)


def _check(options: argparse.Namespace) -> int:
    silence_warnings()
    from moeapps.core.errors import ConfigError

    trust(options)
    model = moeapps.load(options.model)
    if not hasattr(model, "check"):
        raise ConfigError(f"{options.model} holds a {type(model).__name__}, which does not know the columns of a table")
    if options.edges is None:
        return _finish(model.check(options.data), options)
    if not hasattr(model, "node_table_"):
        raise ConfigError(f"--edges is for models of graphs, and {options.model} holds a {type(model).__name__}")
    return _finish(model.check(options.data, options.edges), options)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compare the rows of two files, column by column, without a model; targets are compared like other columns. "
        "Ids (a different value in nearly every row) are not compared."
    )
    parser.add_argument("training", metavar="TRAIN", help="file or folder of rows, as moeapps score takes it")
    parser.add_argument("data", metavar="NEW", help="file or folder of rows to compare with them")
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="COLUMNS",
        help="columns that are not compared, separated by commas; may be given several times",
    )
    _add_outcome(parser)


def _compare(options: argparse.Namespace) -> int:
    silence_warnings()
    from moeapps.core.tabledata.drift import compare_tables

    ignore = [name for entry in options.ignore for name in entry.split(",") if name]
    return _finish(compare_tables(options.training, options.data, ignore), options)


CHECK = SimpleNamespace(
    SUMMARY="compare new rows with those that a saved model has learned from", add_arguments=_add_check, run=_check
)
COMPARE_DATA = SimpleNamespace(
    SUMMARY="compare the columns of two files: missing cells, new categories, shifted distributions",
    add_arguments=_add_compare,
    run=_compare,
)
