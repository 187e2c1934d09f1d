"""A graph in two tables for ``moeapps fit``."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas as pd
from torch_geometric.data import Data

from moeapps.core.config import config_from
from moeapps.core.errors import ConfigError
from moeapps.core.tabledata.kinds import ColumnKind
from moeapps.graph.data import GraphDataModule
from moeapps.graph.graph_tables import GraphTables
from moeapps.graph.node_table import NodeTable

__all__ = ["GraphTableData"]


class GraphTableData(GraphDataModule):
    """A graph of your own in two tables: nodes with an id, features and labels, and edges.

    The columns of the nodes are told apart as those of any table: numbers, categories, times; cells may be missing. A
    checkpoint keeps how they were read. Nodes without a label are predicted, and nothing else. See
    :class:`~moeapps.graph.GraphDataModule` for masks and mini-batches.

    Parameters
    ----------
    nodes : DataFrame or path
        One row per node: a frame, or a ``.csv``, ``.tsv``, ``.ndjson`` or ``.parquet`` file.
    edges : DataFrame or path
        One row per edge.
    target : str
        Column of ``nodes`` with the labels; empty where the label is to be predicted.
    id : str, optional
        Column of ``nodes`` with a different id in each row; one called ``id``, ``node`` or ``node_id`` when None.
    split : str, optional
        Column of ``nodes`` that says ``train``, ``val`` or ``test``. When None, all labeled nodes are trained on but a
        fifth, which validates.
    edge_source, edge_target : str, optional
        Columns of ``edges`` with the ids at both ends; ``source`` and ``target``, or the first two, when None.
    edge_weight : str, optional
        Column of ``edges`` with weights; one called ``weight`` when None.
    undirected : bool, default=True
        Whether every edge goes both ways.
    missing_nodes : {"error", "ignore"}, default="error"
        What to do with an edge that names a node which ``nodes`` does not have.
    ignore_columns : list of str, default=()
        Columns of ``nodes`` that are not used.
    column_types : dict, optional
        What columns are, where it shall not be inferred: ``{zip: category}``.
    missing_values : "auto" or list of str, default="auto"
        Texts that mean a missing value; "auto" takes those of ``pandas.read_csv``.
    batch_size : int, optional
        Training nodes in a mini-batch; the whole graph when None.
    num_neighbors : list of int, optional
        Neighbours to draw at each hop, for mini-batches.
    seed : int, default=0
        Seed of the validation split and of the order of mini-batches.

    Attributes
    ----------
    node_table : NodeTable
        How the tables were read, after ``setup``.
    node_ids : Series
        Ids of the nodes, in the order of the table.

    Raises
    ------
    ConfigError, DataError
        In ``setup``, naming the table, the column and the row.
    """

    node_table: NodeTable
    node_ids: pd.Series

    def __init__(
        self,
        nodes: Any,
        edges: Any,
        target: str,
        id: str | None = None,
        split: str | None = None,
        edge_source: str | None = None,
        edge_target: str | None = None,
        edge_weight: str | None = None,
        undirected: bool = True,
        missing_nodes: Literal["error", "ignore"] = "error",
        ignore_columns: Sequence[str] = (),
        column_types: dict[str, ColumnKind] | None = None,
        missing_values: Literal["auto"] | list[str] = "auto",
        batch_size: int | None = None,
        num_neighbors: list[int] | None = None,
        seed: int = 0,
    ) -> None:
        given: Mapping[str, Any] = locals()
        super().__init__("", batch_size=batch_size, num_neighbors=num_neighbors, seed=seed)
        if target is None:
            raise ConfigError("target is missing: the column of nodes with the labels")
        self.nodes, self.table_of_edges = nodes, edges
        self.tables = config_from(GraphTables, given)

    def load(self) -> Data:
        """Read the tables."""
        self.node_table, read = NodeTable.learn(self.nodes, self.table_of_edges, self.tables)
        self.node_ids = read.ids
        return read.graph

    @property
    def labels_name(self) -> str:
        """The table of nodes, and its column."""
        table = self.nodes if isinstance(self.nodes, str | os.PathLike) else "nodes"
        return f"{table}, column {self.tables.target!r},"
