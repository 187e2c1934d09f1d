"""``moeapps report``: runs on one HTML page."""

import argparse

from moeapps.core.warnings import silence_warnings

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "show runs on one HTML page: scores, curves, what the experts did"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run (of fit, stream run, demo), or of runs")
    parser.add_argument("--output", default="moeapps-report.html", help="file to write")
    parser.add_argument("--title", default="", help="headline")


def run(options: argparse.Namespace) -> int:
    """Write the page."""
    silence_warnings()
    from moeapps.report import write_report

    print(f"report: {write_report(options.runs, options.output, options.title)}")
    return 0
