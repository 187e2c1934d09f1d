"""Predictions of the nodes of a graph in two tables, written to a file."""

import os
from collections.abc import Sequence
from typing import Any

import pandas as pd

from moeapps.core.tabledata.scoring import check_output
from moeapps.core.tabledata.source import TableSource
from moeapps.core.tabledata.writer import TableWriter

__all__ = ["predict_nodes_file"]


def predict_nodes_file(
    model: Any,
    nodes: str | os.PathLike[str],
    edges: str | os.PathLike[str],
    output: str | os.PathLike[str],
    keep: Sequence[str] = (),
) -> int:
    """Predict every node of a table: its id, the predicted label, and a probability per class.

    Parameters
    ----------
    model : NodeClassifier
        Fitted on two tables.
    nodes, edges : path-like
        The tables, files of any kind that ``fit`` takes.
    output : path-like
        ``.csv`` or ``.parquet`` file; it replaces an older one only when it is complete.
    keep : sequence of str, default=()
        Columns of ``nodes`` to copy next to the predictions.

    Returns
    -------
    int
        Number of nodes.

    Raises
    ------
    ConfigError
        If the output has another ending, or is one of the tables.
    DataError
        As ``predict``, or if ``nodes`` lacks a column to keep.
    """
    for table in (nodes, edges):
        check_output(table, output)
    writer = TableWriter(output)
    predictions = model.predict_frame(nodes, edges)
    source = TableSource(nodes)
    wanted = [name for name in dict.fromkeys(keep) if name not in predictions]
    source.require(wanted, "keep")
    if wanted:
        kept = pd.concat(list(source.batches(wanted)), ignore_index=True)
        predictions = pd.concat([predictions.iloc[:, :1], kept, predictions.iloc[:, 1:]], axis=1)
    with writer:
        writer.write(predictions)
    return len(predictions)
