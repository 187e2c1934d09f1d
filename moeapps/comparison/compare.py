"""``moeapps.compare``: find out what the data is, compare, and give the result back."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from moeapps.comparison.kinds import KINDS, find_kind
from moeapps.comparison.result import Comparison, check_ending
from moeapps.comparison.rounds import run_rounds
from moeapps.comparison.task import Task
from moeapps.core.checks import check_one_of, check_seed, check_sizes
from moeapps.core.errors import ConfigError

__all__ = ["compare"]


def compare(
    data: Any,
    target: Any = None,
    *,
    task: Literal["auto", "classification", "regression", "graph", "stream", "images"] = "auto",
    metric: str | Sequence[str] | None = None,
    models: Any = None,
    splits: int | None = None,
    groups: str | None = None,
    time: str | None = None,
    ignore: str | Sequence[str] = (),
    edges: Any = None,
    id: str | None = None,
    edge_source: str | None = None,
    edge_target: str | None = None,
    edge_weight: str | None = None,
    undirected: bool | None = None,
    missing_nodes: Literal["error", "ignore"] | None = None,
    resplit: bool = False,
    root: str | Path | None = None,
    image_size: int | None = None,
    max_rows: int | None = 20_000,
    max_events: int | None = 50_000,
    max_time: float | None = None,
    output: str | Path | None = None,
    progress: bool = True,
    random_state: int = 0,
) -> Comparison:
    """Compare the models of moeapps at their defaults with the models that people use, on your own data.

    All models learn from the same rows and are tested on the same rows. They are measured in turns, split by split, so
    that an early end compares like with like, too. A model that fails costs its own row only.

    Parameters
    ----------
    data : object
        A table: a frame of pandas or polars, a CSV, Parquet or NDJSON file, an array of shape (n, P). A graph: a PyG
        ``Data``, an ``.npz`` file, or a table of nodes with ``edges``. A stream: with ``task="stream"`` a file or a
        frame, or an iterable of (dict, label) pairs. Images: a folder with one folder per class, or an array of shape
        (n, H, W), (n, C, H, W) or (n, H, W, C). Or the name of a public data set: "census-income", "Cora",
        "electricity", "digits", ...
    target : str or array, optional
        The column to be predicted, or the targets. Graphs, folders and public data sets have them.
    task : {"auto", "classification", "regression", "graph", "stream", "images"}, default="auto"
        What ``data`` is, where it shall not be found from the data itself.
    metric : str or sequence of str, optional
        scikit-learn's names of metrics, such as "roc_auc", "f1_macro" or "neg_mean_absolute_error"; the first one
        counts. By default the log loss counts for classes of rows, R2 for numbers, accuracy for nodes, images and
        streams. Streams have accuracy and kappa.
    models : sequence of str or of (str, estimator) pairs, or mapping of str to estimator, optional
        Names of the usual models that take part, and own estimators. Own estimators alone take part beside all the
        usual ones.
    splits : int, optional
        Number of splits: by default 5, each of which tests on another fifth of the rows, and further ones begin anew;
        of a graph 5 seeds or splits; of a stream 10 blocks.
    groups : str, optional
        Column of a table, such as a customer, whose values are never on both sides of a split. Rows without a value are
        one group. Models do not see it.
    time : str, optional
        Column of a table by which rows are ordered: models learn from the past and are tested on what comes next. Rows
        of the time at which a test begins are not learned from.
    ignore : str or sequence of str, default=()
        Columns of a table, or fields of a stream, that models do not see.
    edges : frame or path, optional
        Table of the edges of a graph, whose nodes are the rows of ``data``. Both are read as ``MowstClassifier.fit``
        reads them.
    id : str, optional
        Column of the nodes that ``edges`` names them by; one called ``id``, ``node`` or ``node_id``, or else the order
        of the rows, when None.
    edge_source, edge_target : str, optional
        Columns of the edges with the ids at both ends; ``source`` and ``target``, or the first two, when None.
    edge_weight : str, optional
        Column of the edges with weights; one called ``weight`` when None.
    undirected : bool, optional
        Whether every edge goes both ways; True when None.
    missing_nodes : {"error", "ignore"}, optional
        What to do with an edge to a node that ``data`` does not have: refuse it (also when None), or leave it out.
    resplit : bool, default=False
        Whether to split a graph at random although it has masks of its own.
    root : path, optional
        Folder with the files of a public data set, where they are not part of moeapps.
    image_size : int, optional
        Side to which images are resized; by default those of a folder are, to 64 pixels at most, if they differ.
    max_rows : int or None, default=20,000
        A random sample of so many rows is taken from a larger table, and of so many images.
    max_events : int or None, default=50,000
        So many events of a stream are used, the first ones.
    max_time : float, optional
        Seconds after which the comparison ends; what all models have finished is compared.
    output : path, optional
        File to write: ``.html`` (a page), ``.csv``, ``.md`` or ``.tex``.
    progress : bool, default=True
        Whether to print a line per model and split to standard error.
    random_state : int, default=0
        Seed of splits and models: the same seed gives the same numbers.

    Returns
    -------
    Comparison
        ``print(comparison)``, ``comparison.table``, ``comparison.splits``, ``comparison.best_``,
        ``comparison.save("table.md")``.

    Raises
    ------
    ConfigError
        If an argument is impossible, or does not belong to this kind of data.
    DataError
        If the data cannot be read, or is too small to be split.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> import moeapps
    >>> iris = load_iris(as_frame=True).frame
    >>> found = moeapps.compare(
    ...     iris, "target", models=["logistic regression", "gradient boosting"], splits=2, progress=False
    ... )
    >>> found.best_
    'logistic regression'
    """
    check_one_of("task", task, ("auto", *KINDS))
    check_seed(random_state)
    for name, size in {
        "splits": splits,
        "max_rows": max_rows,
        "max_events": max_events,
        "image_size": image_size,
    }.items():
        if size is not None:
            check_sizes(**{name: size})
    if max_time is not None and not 0 < max_time < float("inf"):
        raise ConfigError(f"max_time must be a number of seconds above 0, got {max_time!r}")
    if output is not None:
        check_ending(output)
    ignored = [ignore] if isinstance(ignore, str) else list(ignore)
    if isinstance(data, tuple) and len(data) == 2 and target is None:
        data, target = data
    kind, data, reason = find_kind(data, task, edges)
    console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=not progress)
    console.print(f"{kind.name}: {reason}", markup=False)
    made = kind.make(
        data, target,
        {"metric": metric, "models": models, "splits": splits, "seed": random_state, "groups": groups, "time": time,
         "ignore": ignored, "edges": edges, "id": id, "edge_source": edge_source, "edge_target": edge_target,
         "edge_weight": edge_weight, "undirected": undirected, "missing_nodes": missing_nodes, "resplit": resplit,
         "root": root, "image_size": image_size},
        {"task": task, "max_rows": max_rows, "max_events": max_events},
    )  # fmt: skip
    _announce(made, console)
    outcome = run_rounds(made, max_time, lambda line: console.print(line, markup=False))
    comparison = Comparison(made, outcome)
    if output is not None:
        comparison.save(output)
    return comparison


def _announce(task: Task, console: Console) -> None:
    for line in task.told:
        console.print(line, markup=False)
    console.print(f"{len(task.candidates)} models: {', '.join(one.name for one in task.candidates)}", markup=False)
    sys.stderr.flush()
