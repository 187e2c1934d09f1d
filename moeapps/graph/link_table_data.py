"""Links of a graph in two tables for ``moeapps fit``."""

# N nodes, E edges, B pairs

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch_geometric.data import Data

from moeapps.core.config import config_from
from moeapps.core.errors import DataError
from moeapps.core.labels import plain
from moeapps.core.tabledata.kinds import ColumnKind
from moeapps.graph.edge_table import EdgeTable
from moeapps.graph.graph_tables import GraphTables
from moeapps.graph.link_data import LinkData
from moeapps.graph.links import pair_keys
from moeapps.graph.node_table import NodeTable, TableGraph

__all__ = ["LinkTableData"]

PARTS = {"val": "val_mask", "test": "test_mask"}
"""Parts that are held out, and what a column of splits calls them."""


class LinkTableData(LinkData):
    """Links of a graph of your own in two tables: nodes with an id and features, and edges.

    The columns of the nodes are told apart as those of any table: numbers, categories, times; cells may be missing. A
    checkpoint keeps how they were read. An edge that is there twice, or in both directions of an undirected graph, is
    one link; an edge of a node to itself passes messages, but is no link.

    Parameters
    ----------
    nodes : DataFrame or path
        One row per node: a frame, or a ``.csv``, ``.tsv``, ``.ndjson`` or ``.parquet`` file.
    edges : DataFrame or path
        One row per edge.
    id : str, optional
        Column of ``nodes`` with a different id in each row; one called ``id``, ``node`` or ``node_id`` when None.
    edge_source, edge_target : str, optional
        Columns of ``edges`` with the ids at both ends; ``source`` and ``target``, or the first two, when None.
    edge_weight : str, optional
        Column of ``edges`` with weights; one called ``weight`` when None.
    edge_split : str, optional
        Column of ``edges`` that says ``train``, ``val`` or ``test``; an empty cell means ``train``. It takes the place
        of ``test_fraction``, and of ``val_fraction`` if a row says ``val``.
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
    val_fraction : float, default=0.1
        Part of the links that is held out for validation.
    test_fraction : float, default=0.1
        Part of the links that is held out for the test; 0 for none.
    batch_size : int, optional
        Links in a mini-batch, whose nodes draw neighbours; see :class:`~moeapps.graph.LinkData`.
    num_neighbors : list of int, optional
        Neighbours to draw at each hop, for mini-batches.
    seed : int, default=0
        Seed of the split, of the pairs without a link and of the order of mini-batches.

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
    _read: TableGraph

    def __init__(
        self,
        nodes: Any,
        edges: Any,
        id: str | None = None,
        edge_source: str | None = None,
        edge_target: str | None = None,
        edge_weight: str | None = None,
        edge_split: str | None = None,
        undirected: bool = True,
        missing_nodes: Literal["error", "ignore"] = "error",
        ignore_columns: Sequence[str] = (),
        column_types: dict[str, ColumnKind] | None = None,
        missing_values: Literal["auto"] | list[str] = "auto",
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        batch_size: int | None = None,
        num_neighbors: list[int] | None = None,
        seed: int = 0,
    ) -> None:
        given: Mapping[str, Any] = locals()
        super().__init__(
            "",
            val_fraction=val_fraction,
            test_fraction=test_fraction if edge_split is None else 0.0,
            batch_size=batch_size,
            num_neighbors=num_neighbors,
            seed=seed,
        )
        self.nodes, self.table_of_edges, self.edge_split = nodes, edges, edge_split
        if edge_split is not None:
            self._no_test = f"no row of {edge_split!r} says test: there are no links to test on"
        self.tables = config_from(GraphTables, given)

    def load(self) -> tuple[Data, bool]:
        """Read the tables."""
        self.node_table, self._read = NodeTable.learn(self.nodes, self.table_of_edges, self.tables, self.edge_split)
        self.node_ids = self._read.ids
        return self._read.graph, False

    def chosen_links(self, num_nodes: int) -> dict[str, Tensor]:
        """Links that ``edge_split`` assigns to the validation and the test.

        Raises
        ------
        DataError
            If one link is in two parts: a part would see what the other one is asked.
        """
        edges = self._read.edges
        if edges is None:
            return {}
        index = torch.from_numpy(edges.index)
        keys = pair_keys(index, num_nodes, self.directed).numpy()
        part = np.zeros(len(keys), dtype=np.int64)
        for code, mask in enumerate(PARTS.values(), start=1):
            part[edges.parts.get(mask, np.zeros(len(keys), dtype=bool))] = code
        self._check_parts(edges, keys, part)
        chosen = {}
        for code, name in enumerate(PARTS, start=1):
            own = np.unique(keys[(part == code) & (edges.index[0] != edges.index[1])])
            if len(own):
                chosen[name] = torch.from_numpy(np.stack([own // num_nodes, own % num_nodes]))
        return chosen

    def _check_parts(self, edges: EdgeTable, keys: np.ndarray, part: np.ndarray) -> None:
        """Refuse a link that is in two parts; keys of the links ``(E,)``, codes of their parts ``(E,)``."""
        order = np.argsort(keys, kind="stable")
        same = (keys[order][1:] == keys[order][:-1]) & (part[order][1:] != part[order][:-1])
        if not same.any():
            return
        place = int(same.argmax())
        first, second = order[place], order[place + 1]
        names = ["train", *PARTS]
        source, target = (plain(self.node_ids.iloc[int(end)]) for end in edges.index[:, second])
        raise DataError(
            f"{edges.name}: the link between {source!r} and {target!r} is in two parts, {names[part[first]]} in row "
            f"{edges.rows[first]} and {names[part[second]]} in row {edges.rows[second]}: one would see what the other "
            f"is asked; {self.edge_split!r} has to say the same in both rows"
        )
