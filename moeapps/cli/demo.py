"""``moeapps demo``: train and compare on real data."""

import argparse

from moeapps.core.warnings import silence_warnings
from moeapps.demo import PARTS
from moeapps.demo import run as run_demo

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "train and compare on real data, without network, in about five minutes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("part", nargs="?", choices=PARTS, help="only this part")
    parser.add_argument("--output", default="moeapps-demo", help="folder for the report, results.json and pictures")
    parser.add_argument("--seeds", type=int, default=2, help="number of trainings per model")


def run(options: argparse.Namespace) -> int:
    """Run one part, or all."""
    silence_warnings()
    run_demo(options.output, options.seeds, options.part)
    return 0
