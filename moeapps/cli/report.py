"""``moeapps report``: runs, or a saved model on rows it has not seen, on one HTML page; scores of runs in a table."""

import argparse
from pathlib import Path

from moeapps.cli.arguments import add_trust, trust
from moeapps.core.errors import ConfigError
from moeapps.core.warnings import silence_warnings

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "show a saved model on new rows, or runs, on one HTML page: scores, mistakes, curves, what the experts did"

MODELS = (".safetensors", ".ckpt")
"""Endings of files with a model."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN or MODEL",
        help="folder of a run (of fit, stream run, demo), or of runs; or one file that model.save wrote",
    )
    parser.add_argument("--output", default="moeapps-report.html", help="file to write (default: %(default)s)")
    parser.add_argument("--title", default="", help="headline (default: the name of the run or model)")
    runs = parser.add_argument_group("for runs")
    runs.add_argument(
        "--table",
        metavar="FILE",
        action="append",
        default=[],
        help="write the scores to a .csv, .md or .tex file instead of a page: a row per configuration, mean and sd "
        "over its seeds; may be repeated",
    )
    runs.add_argument("--baseline", metavar="NAME", help="configuration of the table to test the others against")
    runs.add_argument(
        "--metric",
        metavar="NAME",
        action="append",
        help="metric of the table, such as test/accuracy; may be repeated (default: those of the test data)",
    )
    model = parser.add_argument_group("for a model")
    model.add_argument(
        "--data",
        metavar="FILE",
        help="rows that the model has not seen: a .csv, .tsv, .ndjson or .parquet file; a folder with one folder of "
        "images per class; a graph. Without, the page shows settings and training only",
    )
    model.add_argument("--edges", metavar="FILE", help="of a model of two tables: the edges; --data has the nodes")
    model.add_argument("--nodes", metavar="FILE", help="of a model of links: the nodes; --data has pairs with --target")
    model.add_argument("--target", default="", metavar="COLUMN", help="column with the true values")
    model.add_argument("--row", type=int, metavar="N", help="row to explain, from 0 (default: the most certain error)")
    model.add_argument(
        "--seconds",
        type=float,
        default=20.0,
        help="what the importance of the columns may take (default: %(default)g)",
    )
    model.add_argument("--seed", type=int, default=0, help="of resamples and shuffles (default: %(default)s)")
    add_trust(parser)


def run(options: argparse.Namespace) -> int:
    """Write the page, or the table."""
    silence_warnings()
    models = [path for path in options.runs if path.endswith(MODELS) and not Path(path).is_dir()]
    if models:
        return _model(options)
    if options.table:
        return _write_tables(options)
    if options.baseline or options.metric:
        raise ConfigError("--baseline and --metric are of the table: name its file with --table FILE")
    from moeapps.report import write_report

    for name in ("data", "target", "row", "edges", "nodes"):
        if getattr(options, name) not in (None, ""):
            raise ConfigError(f"--{name} belongs to a model (a file that ends in {' or '.join(MODELS)}), not to runs")
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


def _model(options: argparse.Namespace) -> int:
    import moeapps
    from moeapps.report import model_report
    from moeapps.report.row_files import read_rows

    if len(options.runs) > 1:
        raise ConfigError(f"a page shows one model, or runs: got {', '.join(options.runs)}")
    if options.data is None and (options.target or options.row is not None):
        raise ConfigError(f"--{'target' if options.target else 'row'} needs rows: --data FILE")
    trust(options)
    model = moeapps.load(options.runs[0])
    model = getattr(model, "model", model) if not hasattr(model, "get_params") else model  # a stream's checkpoint
    X, y = (
        (None, None)
        if options.data is None
        else read_rows(model, options.data, options.target, options.seed, options.edges, options.nodes)
    )
    path = model_report(
        model,
        X,
        y,
        options.output,
        title=options.title or f"{type(model).__name__}: {Path(options.runs[0]).name}",
        target=options.target,
        row=options.row,
        seconds=options.seconds,
        seed=options.seed,
    )
    print(f"report: {path}")
    return 0
