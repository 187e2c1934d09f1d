"""``moeapps compare``: our models beside the usual ones, on the user's data."""

import argparse
import re

from moeapps.core.errors import ConfigError
from moeapps.core.warnings import silence_warnings

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "compare our models with the usual ones on your own table, graph, stream or images"

TASKS = ("auto", "classification", "regression", "graph", "stream", "images")
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("data", metavar="DATA", help="CSV, Parquet, NDJSON or .npz file, folder of images per class, or a public name "
        "such as census-income, Cora, electricity, digits")  # fmt: skip
    add("--target", metavar="COLUMN", help="column to be predicted; public data has one")
    add("--task", choices=TASKS, default="auto", help="what DATA is (default: found from DATA)")
    add("--stream", action="store_true", help="the same as --task stream")
    add("--metric", metavar="NAME", action="append", help="scikit-learn's name of the metric that counts, such as "
        "roc_auc; may be repeated (default: neg_log_loss, r2 or accuracy)")  # fmt: skip
    add("--models", metavar="NAMES", help="only these models, separated by commas (default: all)")
    add("--splits", type=int, help="number of splits (default: 5; blocks of a stream: 10)")
    add(
        "--groups", metavar="COLUMN", help="column, such as a customer, whose values are never on both sides of a split"
    )
    add(
        "--time",
        metavar="COLUMN",
        help="column by which rows are ordered: learn from the past, test on what comes next",
    )
    add("--ignore", metavar="COLUMNS", action="append", default=[], help="columns not to be used, separated by commas")
    add("--edges", metavar="FILE", help="table of the edges of a graph, whose nodes are the rows of DATA")
    add("--id", metavar="COLUMN", help="column by which --edges names the nodes (default: one called id, node or "
        "node_id, else the order of rows)")  # fmt: skip
    add("--edge-source", metavar="COLUMN", help="column of --edges with the id at one end (default: source, or the "
        "first)")  # fmt: skip
    add("--edge-target", metavar="COLUMN", help="column of --edges with the id at the other end (default: target, or "
        "the second)")  # fmt: skip
    add("--edge-weight", metavar="COLUMN", help="column of --edges with weights (default: one called weight)")
    add("--directed", action="store_true", help="edges go one way only (default: both ways)")
    add("--missing-nodes", choices=("error", "ignore"), help="what to do with an edge to a node that DATA does not "
        "have (default: error)")  # fmt: skip
    add("--resplit", action="store_true", help="split a graph at random although it has masks")
    add("--root", metavar="FOLDER", help="folder with the files of a public data set")
    add("--image-size", metavar="PIXELS", type=int, help="side to which images are resized")
    add("--max-rows", type=int, default=20_000, help="rows or images of a random sample (default: %(default)s)")
    add("--max-events", type=int, default=50_000, help="events of a stream (default: %(default)s)")
    add(
        "--max-time",
        metavar="TIME",
        help="end after 90, 90s, 10m or 2h; what is finished is compared (default: no limit)",
    )
    add("--seed", type=int, default=0, help="seed of splits and models (default: %(default)s)")
    add("--output", metavar="FILE", help=".html (a page), .csv, .md or .tex to write as well")
    add("--quiet", action="store_true", help="print the table only")


def run(options: argparse.Namespace) -> int:
    """Compare, and print the table; 1 if no model has a score, 130 after Ctrl-C."""
    silence_warnings()
    from rich.console import Console

    from moeapps.comparison.compare import compare
    from moeapps.comparison.rounds import INTERRUPTED

    if options.stream and options.task not in ("auto", "stream"):
        raise ConfigError(f"--stream and --task {options.task} contradict each other")
    found = compare(
        options.data,
        options.target,
        task="stream" if options.stream else options.task,
        metric=options.metric,
        models=None if options.models is None else [name.strip() for name in options.models.split(",")],
        splits=options.splits,
        groups=options.groups,
        time=options.time,
        ignore=[name for entry in options.ignore for name in entry.split(",") if name],
        edges=options.edges,
        id=options.id,
        edge_source=options.edge_source,
        edge_target=options.edge_target,
        edge_weight=options.edge_weight,
        undirected=False if options.directed else None,
        missing_nodes=options.missing_nodes,
        resplit=options.resplit,
        root=options.root,
        image_size=options.image_size,
        max_rows=options.max_rows,
        max_events=options.max_events,
        max_time=None if options.max_time is None else seconds_of(options.max_time),
        output=options.output,
        progress=not options.quiet,
        random_state=options.seed,
    )
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)  # a pipe or a log has no width of its own
    console.print(found, highlight=False)
    if options.output:
        print(f"written: {options.output}")
    if found.stopped == INTERRUPTED:
        return 130
    return 0 if found.best_ is not None else 1


def seconds_of(text: str) -> float:
    """Seconds that a user writes as ``90``, ``90s``, ``10m`` or ``2h``.

    Raises
    ------
    ConfigError
        If it is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise ConfigError(f"--max-time must be seconds such as 90, or 90s, 10m, 2h; got {text!r}")
    return float(match[1]) * _UNITS[match[2]]
