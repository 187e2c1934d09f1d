"""A graph that links are asked of, and pairs of its nodes as users write them: numbers, names, or ids of a table."""

# N nodes, B pairs, F features

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor
from torch_geometric.data import Data

from moeapps.core.arrays import as_array
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.labels import plain
from moeapps.core.tabledata.frames import frame_if_table
from moeapps.core.tabledata.source import TableSource, listed
from moeapps.graph.edge_table import end_columns
from moeapps.graph.edges import Edges
from moeapps.graph.graph_tables import GraphTables, check_column
from moeapps.graph.links import Structure, read_pairs
from moeapps.graph.node_names import node_names
from moeapps.graph.node_table import TableGraph

__all__ = ["LinkGraph", "pair_columns", "pairs_of_ids"]


@dataclass(frozen=True, eq=False)
class LinkGraph:
    """A graph to predict links of.

    Parameters
    ----------
    x : Tensor of shape (N, F)
        Features.
    edges : Edges
        Edges that pass messages.
    structure : Structure
        Neighbourhoods of these edges.
    names : Index or None
        Names of the nodes, where they are not their numbers.
    table : TableGraph, optional
        The tables, if it was read from two.
    columns : GraphTables, optional
        What the columns of a table of pairs are called: as those of the edges.
    """

    x: Tensor
    edges: Edges
    structure: Structure
    names: pd.Index | None
    table: TableGraph | None = None
    columns: GraphTables | None = None

    @classmethod
    def of(
        cls, graph: Data, given: Any, table: TableGraph | None = None, columns: GraphTables | None = None
    ) -> "LinkGraph":
        """From a checked graph and the features as they were given, whose index may name the nodes."""
        num_nodes = graph.x.shape[0]
        edges = Edges(graph.edge_index, graph.edge_weight, num_nodes)
        names = node_names(given.x if isinstance(given, Data) else given)
        return cls(graph.x, edges, Structure(graph.edge_index, num_nodes), names, table, columns)

    def pairs(self, pairs: Any) -> Tensor:
        """Node numbers ``(2, B)`` of pairs.

        Parameters
        ----------
        pairs : array of shape (B, 2), frame or path
            Numbers, names or ids.

        Raises
        ------
        DataError
            Naming the pair that cannot be asked for.
        """
        if self.table is not None and self.columns is not None:
            pairs = pairs_of_ids(pairs, self.table, self.columns)
        return read_pairs(pairs, self.x.shape[0], self.names)

    def ids(self, nodes: np.ndarray) -> np.ndarray:
        """Ids ``(B,)`` of nodes, or their numbers where they have none."""
        return nodes if self.table is None else self.table.ids.iloc[nodes].to_numpy()


def pairs_of_ids(pairs: Any, table: TableGraph, columns: GraphTables) -> np.ndarray:
    """Node numbers ``(B, 2)`` of pairs of ids.

    Parameters
    ----------
    pairs : array of shape (B, 2), frame or path
        Ids. The columns of a file are found by name, as those of the table of edges. So are those of a frame which has
        them; of another frame they are the first two.
    table : TableGraph
        The nodes.
    columns : GraphTables
        What the columns are called.

    Raises
    ------
    DataError
        If there are no two columns, an id is not there, or a node is paired with itself.
    """
    name = "pairs"
    if isinstance(pairs, str | os.PathLike):
        source = TableSource(pairs)
        ends = pair_columns(source, columns)
        pairs, name = pd.concat(list(source.batches(ends))), source.name
    pairs = frame_if_table(pairs)
    if isinstance(pairs, pd.DataFrame):
        frame = pairs[_ends_of_frame(pairs, columns)] if pairs.shape[1] >= 2 else pairs
        whats = [f"{name}, column {column!r}," for column in frame.columns]
    else:
        frame, whats = pd.DataFrame(as_array(pairs)), [name, name]
    if frame.shape[1] != 2:
        raise DataError(f"{name} must have two columns of ids, got {frame.shape[1]}")
    found = np.stack([table.positions(frame.iloc[:, i], what) for i, what in enumerate(whats)], axis=1)
    same = found[:, 0] == found[:, 1]
    if same.any():
        row = int(same.argmax())
        raise DataError(
            f"{name} has the node {plain(table.ids.iloc[int(found[row, 0])])!r} with itself in row {row} "
            f"({int(same.sum())} such pairs in all)"
        )
    return found


def pair_columns(source: TableSource, columns: GraphTables) -> list[str]:
    """Names of the two columns of a table of pairs with the ids, as those of the edges.

    Raises
    ------
    DataError
        If they are not there.
    """
    for name in (columns.edge_source, columns.edge_target):
        if name is not None:
            check_column(source, name, "which the edges of the training had for the ids")
    try:
        return end_columns(source, columns)
    except ConfigError:
        raise DataError(
            f"{source.name} does not say which columns hold the ids of a pair: call them source and target; it has "
            f"{listed(source.columns)}"
        ) from None


def _ends_of_frame(frame: pd.DataFrame, columns: GraphTables) -> list[Any]:
    """Names of the two columns with ids: those of the edges, where both are there, or else the first two."""
    try:
        ends = pair_columns(TableSource(frame), columns)
    except DataError:
        ends = []
    return ends if ends and set(ends) <= set(frame.columns) else list(frame.columns[:2])
