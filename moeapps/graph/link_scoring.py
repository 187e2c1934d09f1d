"""Predictions of the pairs in a file, of a graph in two tables, written to another file."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from moeapps.core.errors import DataError
from moeapps.core.tabledata.scoring import check_output
from moeapps.core.tabledata.source import TableSource, errors_named
from moeapps.core.tabledata.writer import table_writer
from moeapps.graph.link_graph import pair_columns

__all__ = ["predict_links_file"]

BATCH_PAIRS = 1_000_000
"""Pairs that are predicted at a time: each time the networks run on the nodes around all of them."""


def predict_links_file(
    model: Any,
    pairs: str | os.PathLike[str],
    nodes: str | os.PathLike[str],
    edges: str | os.PathLike[str],
    output: str | os.PathLike[str],
    keep: Sequence[str] = (),
    weights: bool = False,
    progress: Callable[[int], None] = lambda rows: None,
) -> int:
    """Predict the pairs of a file: both ids as they stand there, and the probability of a link.

    Parameters
    ----------
    model : MowstLinkPredictor
        Fitted on two tables.
    pairs : path-like
        Table with a pair of ids in each row, in columns that are called as those of the edges in training.
    nodes, edges : path-like
        The graph, files of any kind that ``fit`` takes.
    output : path-like
        ``.csv`` or ``.parquet`` file, which replaces an older one only when it is complete; or a folder for Parquet
        files, whose name ends with a slash.
    keep : sequence of str, default=()
        Columns of ``pairs`` to copy between the ids and the predictions.
    weights : bool, default=False
        Whether to write the weights of the experts too, ``weight_<expert>``, and in a cascade ``asked_<expert>``.
    progress : callable, optional
        Called with the number of pairs written so far, after each batch.

    Returns
    -------
    int
        Number of pairs.

    Raises
    ------
    ConfigError
        If the output has another ending, or is one of the tables.
    DataError
        Naming file, row and column, if a table cannot be read, or a pair has an id that ``nodes`` lacks;
        or there is no pair.
    """
    for table in (pairs, nodes, edges):
        check_output(table, output)
    writer, source = table_writer(output), TableSource(pairs, BATCH_PAIRS)
    ends = pair_columns(source, model.node_table_.tables)
    kept = [name for name in dict.fromkeys(keep) if name not in ends]
    source.require(kept, "keep")
    graph = model.read_graph(nodes, edges)
    with writer:
        for frame in source.batches([*ends, *kept]):
            if not len(frame):
                raise DataError(f"{source.name} has no row: there is no pair")
            place = f"{source.name} after row {writer.rows - 1}" if writer.rows else source.name
            with errors_named(place):
                predictions = model.predict_table(frame[ends], graph).iloc[:, 2:]
            predictions = predictions if weights else predictions[["probability"]]
            predictions.columns = [f"prediction_{name}" if name in kept else name for name in predictions]
            writer.write(pd.concat([frame.reset_index(drop=True), predictions], axis=1))
            progress(writer.rows)
    return writer.rows
