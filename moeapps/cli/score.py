"""``moeapps score``: predict the rows of a file with a saved model."""

import argparse
import sys

import moeapps
from moeapps.core.warnings import silence_warnings

__all__ = ["SUMMARY", "add_arguments", "run", "run_as_predict"]

SUMMARY = "predict the rows of a CSV or Parquet file of any size with a saved model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = (
        "Predict the rows of a table of any size with a saved model. A classifier writes the columns prediction and "
        "probability_<class>, a regressor prediction, a ranker one column per target."
    )
    parser.add_argument("model", metavar="MODEL", help="file that model.save wrote")
    parser.add_argument("--input", required=True, help=".csv or .parquet file with the columns that the model knows")
    parser.add_argument("--output", required=True, help=".csv or .parquet file to write")
    parser.add_argument(
        "--keep", default="", metavar="COLUMNS", help="columns to copy next to the predictions, separated by commas"
    )


def run(options: argparse.Namespace) -> int:
    """Predict batch by batch."""
    silence_warnings()
    from moeapps.core.tabledata.scoring import predict_file

    keep = [name for name in options.keep.split(",") if name]
    rows = predict_file(moeapps.load(options.model), options.input, options.output, keep)
    print(f"predictions: {options.output} ({rows} rows)")
    return 0


def run_as_predict(arguments: list[str]) -> int:
    """Run under the name that the command had in 0.1: ``moeapps predict MODEL --input FILE --output FILE``."""
    parser = argparse.ArgumentParser(prog="moeapps predict")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    print("note: moeapps predict MODEL is now moeapps score MODEL", file=sys.stderr)
    return run(options)
