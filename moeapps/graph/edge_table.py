"""The table of edges: a row per edge, with the ids at both ends and perhaps a weight and the part of a split."""

# N nodes, E edges

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from moeapps.core.errors import ConfigError, DataError
from moeapps.core.tabledata.numbers import to_numbers
from moeapps.core.tabledata.source import Table, TableSource, listed
from moeapps.graph.connections import SOURCES, TARGETS, WEIGHTS, undirected_edges
from moeapps.graph.graph_tables import GraphTables, check_column, open_table
from moeapps.graph.node_cells import id_keys, like_id, read_split

__all__ = ["EdgeTable", "end_columns", "read_edge_table"]


@dataclass(frozen=True, eq=False)
class EdgeTable:
    """Edges as they stand in a table, without those that were left out.

    Parameters
    ----------
    name : str
        The table, for errors.
    index : int64 array of shape (2, E)
        Rows of the nodes at both ends.
    weight : float32 array of shape (E,) or None
        Weights.
    rows : int64 array of shape (E,)
        Row of the table that each edge is from.
    parts : dict of str to bool array of shape (E,)
        ``train_mask``, ``val_mask`` and ``test_mask``, as far as a column says so.
    columns : list of (str or None)
        The columns of the ids at both ends and of the weights, None where there are no weights.
    """

    name: str
    index: np.ndarray
    weight: np.ndarray | None
    rows: np.ndarray
    parts: dict[str, np.ndarray]
    columns: list[str | None]

    def connections(self, undirected: bool, ids: pd.Index) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Edges and weights as tensors; with ``undirected`` both directions of each, once."""
        index = torch.from_numpy(self.index)
        weight = None if self.weight is None else torch.from_numpy(self.weight)
        return undirected_edges(index, weight, len(ids), self.name, ids) if undirected else (index, weight)


def read_edge_table(
    edges: Table | None,
    tables: GraphTables,
    keys: pd.Index,
    nodes: str,
    missing: frozenset[str],
    split: str | None = None,
    trained: Sequence[str | None] | None = None,
) -> EdgeTable:
    """Read a table of edges.

    Parameters
    ----------
    edges : DataFrame or path
        The table.
    tables : GraphTables
        What its columns mean.
    keys : Index of length N
        Ids of the nodes as text.
    nodes : str
        Name of the table of nodes, for errors.
    missing : frozenset of str
        Texts that mean a missing value.
    split : str, optional
        Column that says ``train``, ``val`` or ``test``.
    trained : sequence of (str or None), optional
        ``columns`` of the edges of the training.

    Raises
    ------
    ConfigError
        If there is no table, or it does not say which columns hold the ids.
    DataError
        Naming table, row and cell, if a cell cannot be read or an edge names a node that is not there.
    """
    if edges is None:
        raise ConfigError("edges is missing: the table with one row per edge, a frame or the path of a file")
    source = open_table(edges, "edges", missing)
    if trained is None or any(name not in source.columns for name in trained[:2]):
        ends = end_columns(source, tables)
    else:  # whatever the order of the columns is
        ends = [str(name) for name in trained[:2]]
    weight = _weight_column(source, tables, ends)
    lost = None if trained is None or weight is not None else trained[2]
    if trained is not None and trained[2] is None and weight is not None:
        warnings.warn(
            f"{source.name}: the column {weight!r} is not used: the edges that the model was fitted on had no weights",
            UserWarning,
            stacklevel=2,
        )
        weight = None
    if split is not None:
        check_column(source, split, "which edge_split names")
    wanted = [*ends, *(name for name in (weight, split) if name is not None)]
    frame: pd.DataFrame = source.named(lambda: pd.concat(list(source.batches(wanted))))
    if lost is not None and len(frame):
        check_column(source, lost, "the weights of the edges that the model was fitted on")
    found = []
    for name in ends:
        named = id_keys(frame[name], f"{source.name}, column {name!r},")
        found.append((named, keys.get_indexer(named)))
    index = np.stack([place for _, place in found])
    gone = np.any(index < 0, axis=0)
    if gone.any():
        row = int(gone.argmax())
        first = next(named[row] for named, place in found if place[row] < 0)
        told = (
            f"{source.name}: {int(gone.sum())} of {len(gone)} edges name a node that {nodes} lacks, the first is "
            f"{first!r} in row {row}{like_id(first, keys, otherwise=False)}"
        )
        if tables.missing_nodes == "error":
            raise DataError(f"{told}; missing_nodes='ignore' leaves such edges out")
        warnings.warn(f"{told}: they are left out", UserWarning, stacklevel=2)
    strength = None
    if weight is not None:
        values = source.named(lambda: to_numbers(frame[weight], source.missing, str(weight)))[~gone]
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~gone)[int(np.argmin(np.isfinite(values)))])
            raise DataError(f"{source.name}: the weight {weight!r} is missing or infinite in row {row}")
        strength = values.astype(np.float32)
    parts = {} if split is None else read_split(frame[split], split, source)
    return EdgeTable(
        source.name,
        index[:, ~gone].astype(np.int64),
        strength,
        np.flatnonzero(~gone),
        {name: mask[~gone] for name, mask in parts.items()},
        [*ends, weight],
    )


def end_columns(source: TableSource, tables: GraphTables) -> list[str]:
    """Names of the two columns with the ids at both ends.

    Raises
    ------
    ConfigError, DataError
        If they cannot be told, or one that was named is not there.
    """
    given = {"edge_source": tables.edge_source, "edge_target": tables.edge_target}
    for argument, name in given.items():
        if name is not None:
            check_column(source, name, f"which {argument} names")
    found = [
        name if name is not None else _one_of(source.columns, known)
        for name, known in zip(given.values(), (SOURCES, TARGETS), strict=True)
    ]
    if None in found and not any(given.values()) and len(source.columns) in (2, 3):
        found = list(source.columns[:2])
    if None in found or found[0] == found[1]:
        argument = "edge_source" if found[0] is None else "edge_target"
        raise ConfigError(
            f"{argument} is missing: the column of {source.name} with the node at one end of an edge; it has "
            f"{listed(source.columns)}"
        )
    return [str(name) for name in found]


def _weight_column(source: TableSource, tables: GraphTables, ends: list[str]) -> str | None:
    name = tables.edge_weight
    if name is not None:
        check_column(source, name, "which edge_weight names")
        return name
    return _one_of([column for column in source.columns if column not in ends], WEIGHTS)


def _one_of(columns: Iterable[Any], known: Sequence[str]) -> str | None:
    found = [str(name) for name in columns if str(name).lower() in known]
    return found[0] if len(found) == 1 else None
