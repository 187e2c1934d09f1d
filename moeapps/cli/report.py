"""``moeapps report``: runs on one HTML page, or their scores in a table."""

import argparse

from moeapps.core.errors import ConfigError
from moeapps.core.warnings import silence_warnings

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "show runs on one HTML page: scores, curves, what the experts did"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run (of fit, stream run, demo), or of runs")
    parser.add_argument("--output", default="moeapps-report.html", help="file to write")
    parser.add_argument("--title", default="", help="headline")
    parser.add_argument(
        "--table",
        metavar="FILE",
        action="append",
        default=[],
        help="write the scores to a .csv, .md or .tex file instead of a page: a row per configuration, mean and sd "
        "over its seeds; may be repeated",
    )
    parser.add_argument("--baseline", metavar="NAME", help="configuration of the table to test the others against")
    parser.add_argument(
        "--metric",
        metavar="NAME",
        action="append",
        help="metric of the table, such as test/accuracy; may be repeated (default: those of the test data)",
    )


def run(options: argparse.Namespace) -> int:
    """Write the page, or the table."""
    silence_warnings()
    if options.table:
        return _write_tables(options)
    if options.baseline or options.metric:
        raise ConfigError("--baseline and --metric are of the table: name its file with --table FILE")
    from moeapps.report import write_report

    print(f"report: {write_report(options.runs, options.output, options.title)}")
    return 0


def _write_tables(options: argparse.Namespace) -> int:
    from moeapps.report.results import ENDINGS, as_markdown, results_table, write_results

    for file in options.table:
        if not file.endswith(ENDINGS):
            raise ConfigError(f"--table must be a {', '.join(ENDINGS)} file, got {file!r}")
    table = results_table(options.runs, options.baseline, options.metric)
    print(as_markdown(table))
    for file in options.table:
        print(f"table: {write_results(table, file)}")
    return 0
