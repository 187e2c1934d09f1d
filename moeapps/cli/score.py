"""``moeapps score``: predict the rows of a file with a saved model."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import moeapps
from moeapps.cli.arguments import Parser, add_trust, trust
from moeapps.core.warnings import silence_warnings

__all__ = ["SUMMARY", "add_arguments", "run", "run_as_predict"]

SUMMARY = "predict the rows of a file of any size, or the images of a folder, with a saved model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = (
        "Predict the rows of a table of any size with a saved model. A classifier writes the columns prediction and "
        "probability_<class>, a regressor prediction, a ranker probability_<target> of binary targets, and "
        "<target> of others, a model of links the probability of each pair. A classifier of images predicts "
        "a folder of image files, and writes the column file too."
    )
    parser.add_argument("model", metavar="MODEL", help="file that model.save wrote")
    parser.add_argument(
        "--input",
        metavar="FILE",
        help=".csv, .tsv, .ndjson (also .gz, .zst) or .parquet file with the columns that the model knows, a folder "
        "of such files or a pattern ('parts/*.csv'), or a URL of these (s3://bucket/*.parquet) for whose protocol a "
        "package of fsspec is installed; a folder of images for a classifier of images",
    )
    parser.add_argument(
        "--edges",
        metavar="FILE",
        help="for a model of graphs that was fitted on two tables: the table of edges; --input is that of the nodes, "
        "and the output has a row per node, with its id",
    )
    parser.add_argument(
        "--nodes",
        metavar="FILE",
        help="for a model of links, beside --edges: the table of nodes; --input has a pair of ids in each row, in "
        "columns called as those of the edges, and the output the probability that they are linked",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help=".csv or .parquet file to write, or with a slash at its end (scores/) a folder "
        "for Parquet files; either may be a URL",
    )
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="COLUMNS",
        help="columns to copy next to the predictions, separated by commas; may be given several times",
    )
    parser.add_argument(
        "--weights",
        action="store_true",
        help="write the weight of each expert of a mixture too (weight_<expert>), and in a cascade whether it was "
        "asked (asked_<expert>)",
    )
    parser.add_argument(
        "--recommend",
        type=int,
        metavar="K",
        help="write the K best items for each user instead, by a ranker that learned from implicit feedback. The input "
        "has one row per event (user, item and time, of which histories are made), or one row per user with the "
        "column <item>_history",
    )
    parser.add_argument(
        "--time",
        metavar="COLUMN",
        default="timestamp",
        help="with --recommend: the events' time; '' where the rows are in order of time",
    )
    parser.add_argument("--users", metavar="FILE", help="with --recommend: the features of the users of the events")
    parser.add_argument("--keep-seen", action="store_true", help="with --recommend: also items that a user has had")
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="where tables are predicted (default: local)"
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="with --engine ray: workers of one core each (default: 2)"
    )
    add_trust(parser)
    parser.add_argument(
        "--explain-columns",
        action="store_true",
        help="print what each column of the model is (number, category, id, time) and why; predict only if there is an "
        "--input",
    )


def run(options: argparse.Namespace) -> int:
    """Predict batch by batch."""
    silence_warnings()
    from moeapps.core.errors import ConfigError
    from moeapps.core.tabledata.scoring import predict_file

    trust(options)
    model = moeapps.load(options.model)
    if options.explain_columns:
        columns = getattr(model, "columns_", None)
        if getattr(model, "node_table_", None) is not None:
            columns = model.node_columns_
        if columns is None:
            raise ConfigError(f"{options.model} holds a {type(model).__name__}, which reads no columns")
        print(columns.to_string())
        if options.input is None:
            return 0
    for option in ("input", "output"):
        if getattr(options, option) is None:
            raise ConfigError(f"--{option} is missing: the file to {'predict' if option == 'input' else 'write'}")
    if hasattr(model, "read_graph"):
        return _score_links(model, options)
    if options.nodes is not None:
        raise ConfigError(f"--nodes is for models of links, and {options.model} holds a {type(model).__name__}")
    if options.edges is not None or hasattr(model, "predict_frame"):
        return _score_nodes(model, options)
    if options.recommend is not None:
        return _recommend(model, options)
    if options.users is not None or options.keep_seen:
        raise ConfigError(f"--{'keep-seen' if options.keep_seen else 'users'} is for --recommend K")
    if hasattr(model, "predict_files"):
        return _images(model, options)
    _refuse_events(model, options)
    score: Callable[..., int] = partial(predict_file, model)
    if options.engine == "ray":
        from moeapps.scale import score as score_with_ray

        score = partial(score_with_ray, options.model, workers=options.workers)
    with _progress() as progress:
        rows = score(options.input, options.output, keep=_kept(options), weights=options.weights, progress=progress)
    print(f"predictions: {options.output} ({rows} rows)")
    return 0


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """A line of progress on a terminal; it takes the number of rows that are done."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.completed:,} rows, {task.fields[speed]:,.0f}/s"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, speed=0.0)
        start = time.monotonic()
        yield lambda rows: bar.update(task, completed=rows, speed=rows / max(time.monotonic() - start, 1e-3))


def _score_nodes(model: Any, options: argparse.Namespace) -> int:
    """Predict the nodes of a graph in two tables, all at once: their neighbours are among them."""
    from moeapps.core.errors import ConfigError
    from moeapps.core.tabledata.scoring import instead
    from moeapps.graph.node_scoring import predict_nodes_file

    if not hasattr(model, "predict_frame"):
        raise ConfigError(
            f"--edges: {options.model} holds a {type(model).__name__}, which is no model of a graph's nodes"
            f"{instead(model)}"
        )
    if options.edges is None:
        raise ConfigError(f"--edges is missing: {options.model} predicts the nodes of a graph, --input are its nodes")
    for name in ("weights", "recommend"):
        if getattr(options, name):
            raise ConfigError(f"--{name} is not for a {type(model).__name__}")
    rows = predict_nodes_file(model, options.input, options.edges, options.output, _kept(options))
    print(f"predictions: {options.output} ({rows} rows)")
    return 0


def _score_links(model: Any, options: argparse.Namespace) -> int:
    """Predict pairs of nodes of a graph in two tables."""
    from moeapps.core.errors import ConfigError
    from moeapps.graph.link_scoring import predict_links_file

    if model.node_table_ is None:
        raise ConfigError(
            f"{options.model} holds a {type(model).__name__} of a graph without tables, whose nodes have no ids: use "
            "it in Python, moeapps.load(path).predict_table(pairs, graph)"
        )
    for name in ("nodes", "edges"):
        if getattr(options, name) is None:
            raise ConfigError(f"--{name} is missing: {options.model} predicts links of a graph, --input are the pairs")
    if options.recommend is not None or options.engine == "ray":
        option = "recommend" if options.recommend is not None else "engine ray"
        raise ConfigError(f"--{option} is not for a {type(model).__name__}")
    with _progress() as progress:
        tables = (options.input, options.nodes, options.edges)
        rows = predict_links_file(model, *tables, options.output, _kept(options), options.weights, progress)
    print(f"predictions: {options.output} ({rows} pairs)")
    return 0


def _images(model: Any, options: argparse.Namespace) -> int:
    from moeapps.core.errors import ConfigError
    from moeapps.vision.image_files import write_predictions

    if options.keep or options.weights or options.engine == "ray":
        option = "keep" if options.keep else "weights" if options.weights else "engine ray"
        raise ConfigError(f"--{option} is for tables; {options.model} holds a {type(model).__name__}")
    rows = write_predictions(model, options.input, options.output)
    print(f"predictions: {options.output} ({rows} images)")
    return 0


def _recommend(model: Any, options: argparse.Namespace) -> int:
    from moeapps.core.errors import ConfigError

    if not hasattr(model, "recommend_file"):
        raise ConfigError(f"--recommend: {options.model} holds a {type(model).__name__}, which recommends nothing")
    if options.keep or options.weights or options.engine == "ray":
        option = "keep" if options.keep else "weights" if options.weights else "engine ray"
        raise ConfigError(f"--{option} is not for --recommend, which writes the items of each user")
    rows = model.recommend_file(
        options.input,
        options.output,
        options.recommend,
        time=options.time or None,
        users=options.users,
        exclude_seen=not options.keep_seen,
    )
    print(f"recommendations: {options.output} ({rows} rows)")
    return 0


def _refuse_events(model: Any, options: argparse.Namespace) -> None:
    """Say how events without histories are used, which a ranker cannot predict as they are."""
    from moeapps.core.errors import ConfigError
    from moeapps.core.tabledata.source import TableSource

    history = getattr(getattr(model, "catalogue_", None), "history", None)
    if history is not None and history not in TableSource(options.input).columns:
        raise ConfigError(
            f"{options.input} has no column {history!r}; of events (who took what, and when) --recommend K makes the "
            "histories and writes the K best items for each user"
        )


def _kept(options: argparse.Namespace) -> list[str]:
    """Names of the columns to keep; a name may contain a comma, if the file has such a column."""
    from moeapps.core.tabledata.files import TableFile

    names: list[str] = []
    columns = TableFile(options.input).columns if any("," in entry for entry in options.keep) else []
    for entry in options.keep:
        names += [entry] if entry in columns else [name for name in entry.split(",") if name]
    return names


def run_as_predict(arguments: list[str]) -> int:
    """Run under the name that the command had in 0.1: ``moeapps predict MODEL --input FILE --output FILE``."""
    parser = Parser(prog="moeapps predict")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    print("note: moeapps predict MODEL is now moeapps score MODEL", file=sys.stderr)
    return run(options)
