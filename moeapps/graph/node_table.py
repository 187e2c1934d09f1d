"""A graph in two tables: nodes with an id and columns of any kind, and edges that name the nodes at both ends.

1. The columns of the nodes are told apart as those of any table (numbers, categories, times) and become numbers:
   standardised, with a flag where one is missing, and one per category. The model keeps this reading.
2. Ids are compared as exact text: 7 in one table is 7 in the other, whether a file or a frame holds it; 007 is not.
3. A node without a label is one to predict: its features and edges take part, its label in nothing.
"""

# N nodes, E edges, F features

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from torch_geometric.data import Data

from moeapps.core.checks import check_one_of
from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.core.saved_arguments import fits
from moeapps.core.tabledata.cells import missing_texts
from moeapps.core.tabledata.columns import FIRST, ColumnEncoder
from moeapps.core.tabledata.kinds import Column, ColumnKind
from moeapps.core.tabledata.onehot import frequent_categories, one_hot, one_hot_columns, one_hot_names
from moeapps.core.tabledata.profile import ColumnProfile
from moeapps.core.tabledata.source import Table, TableSource, listed
from moeapps.core.tabledata.vocabulary import distinct_cells
from moeapps.graph.edge_table import EdgeTable, read_edge_table
from moeapps.graph.graph_tables import GraphTables, check_column, open_table
from moeapps.graph.node_cells import id_keys, like_id, read_labels, read_split
from moeapps.graph.node_names import node_names

__all__ = ["DEGREES", "NodeTable", "TableGraph", "degrees_of"]

MAX_CATEGORIES = 64
"""Most frequent categories per column that are told apart."""

DEGREES = "(edges per node)"
"""What a check calls the number of edges that end at a node."""

IDS = ("id", "node", "node_id", "nodeid")
"""Names of a column of ids that need not be said."""


@dataclass(frozen=True, eq=False)
class TableGraph:
    """A graph that was read from two tables.

    Parameters
    ----------
    graph : Data
        Features, edges, and the labels and masks that were there.
    ids : Series of length N
        Ids as they stand in the table, called as their column is.
    keys : Index of length N
        The same as text.
    edges : EdgeTable, optional
        The rows of the table of edges, where they are divided into parts.
    edge_columns : list of (str or None)
        The columns of these rows, as :class:`~moeapps.graph.edge_table.EdgeTable` has them.
    """

    graph: Data
    ids: pd.Series
    keys: pd.Index
    edges: EdgeTable | None = None
    edge_columns: list[str | None] = field(default_factory=list)

    def positions(self, ids: Any, what: str) -> np.ndarray:
        """Rows of the nodes with these ids.

        Parameters
        ----------
        ids : array or Series
            Ids.
        what : str
            Where they stand, for errors.

        Raises
        ------
        DataError
            Naming an id that is not there.
        """
        wanted = id_keys(pd.Series(ids), what)
        found: np.ndarray = self.keys.get_indexer(wanted)
        if (found < 0).any():
            row = int((found < 0).argmax())
            raise DataError(
                f"{what} has the node {wanted[row]!r} in row {row}, which the table of nodes lacks"
                f"{like_id(wanted[row], self.keys)}"
            )
        return found


@dataclass
class NodeTable:
    """How tables of nodes and edges are read, as it was learned in training.

    Parameters
    ----------
    tables : GraphTables
        What the columns mean; of the training's tables.
    encoder : ColumnEncoder
        The columns that are features.
    kept : list of list of int
        For each category column the codes that are told apart.
    degrees : ColumnProfile, optional
        How many edges the nodes of the training had; None where a file of an older version does not say.
    predicted : list of int
        Nodes of the training by predicted class; empty where they were not predicted.
    edge_columns : list of (str or None), optional
        Columns of the ids at both ends of an edge and of its weight (None: no weights) in the training; None where a
        file of an older version does not say.
    """

    tables: GraphTables
    encoder: ColumnEncoder
    kept: list[list[int]] = field(default_factory=list)
    degrees: ColumnProfile | None = None
    predicted: list[int] = field(default_factory=list)
    edge_columns: list[str | None] | None = None

    @classmethod
    def learn(
        cls, nodes: Table, edges: Table, tables: GraphTables, edge_split: str | None = None
    ) -> tuple[Self, TableGraph]:
        """Read the tables of a training.

        Parameters
        ----------
        nodes, edges : DataFrame or path
            A frame, or a ``.csv``, ``.tsv``, ``.ndjson`` or ``.parquet`` file.
        tables : GraphTables
            What their columns mean.
        edge_split : str, optional
            Column of ``edges`` that says ``train``, ``val`` or ``test``.

        Raises
        ------
        ConfigError
            Naming an argument that is impossible, or a column that is not there.
        DataError
            Naming table, row and cell, if a cell cannot be read; or an id that comes twice, or an edge to a node that
            is not there.
        """
        check_one_of("missing_nodes", tables.missing_nodes, ("error", "ignore"))
        missing = missing_texts(tables.missing_values)
        source = open_table(nodes, "nodes", missing)
        tables = _named(tables, source)
        names = _features(source, tables)
        columns = source.named(lambda: source.infer(names, tables.column_types))
        encoder = _fitted(source, columns, tables)
        found = cls(tables, encoder)
        frame = found._frame(source)
        numbers, codes = source.named(lambda: encoder.transform(frame))
        _leave_marks(encoder, numbers)
        found.kept = frequent_categories(encoder, codes, np.ones(len(frame)), MAX_CATEGORIES)
        read = found._graph(source, frame, edges, labelled=True, edge_split=edge_split)
        found.edge_columns = read.edge_columns
        found.degrees = ColumnProfile.of_numbers(DEGREES, "number", degrees_of(read.graph))
        return found, read

    def read(self, nodes: Table, edges: Table | None) -> TableGraph:
        """Read the tables of a prediction; labels are read if they are there.

        Parameters and errors are those of :meth:`learn`.
        """
        source = open_table(nodes, "nodes", frozenset(self.encoder.missing_values), self.encoder.column_kinds())
        wanted = [*self.encoder.names, *([self.tables.id] if self.tables.id is not None else [])]
        for name in wanted:
            check_column(source, name, "which the model was trained with")
        frame = self._frame(source)
        return self._graph(source, frame, edges, labelled=self.tables.target in source.columns)

    def _frame(self, source: TableSource) -> pd.DataFrame:
        source.with_kinds(self.encoder.column_kinds())
        wanted = [name for name in (self.tables.id, self.tables.target, self.tables.split) if name in source.columns]
        names = list(dict.fromkeys([*self.encoder.names, *map(str, wanted)]))
        frame: pd.DataFrame = source.named(lambda: pd.concat(list(source.batches(names))))
        if len(frame) == 0:
            raise DataError(f"{source.name} has no row: there is no node")
        return frame

    def _graph(
        self, source: TableSource, frame: pd.DataFrame, edges: Table | None, labelled: bool,
        edge_split: str | None = None,
    ) -> TableGraph:  # fmt: skip
        ids = frame[self.tables.id] if self.tables.id is not None else _index_ids(frame)
        what = f"{source.name}, column {self.tables.id!r}," if self.tables.id is not None else "the index of nodes"
        keys = id_keys(ids, what)
        if not keys.is_unique:
            twice = keys[keys.duplicated()][0]
            rows = np.flatnonzero(keys == twice)[:2].tolist()
            raise DataError(f"{what} has the id {twice!r} in rows {rows[0]} and {rows[1]}: each node has one row")
        values = source.named(lambda: self.encoder.transform(frame[self.encoder.names]))
        graph = Data(x=torch.from_numpy(one_hot(self.encoder, self.kept, *values, clipped=True)).float())
        missing = frozenset(self.encoder.missing_values)
        links = read_edge_table(edges, self.tables, keys, source.name, missing, edge_split, self.edge_columns)
        graph.edge_index, graph.edge_weight = links.connections(self.tables.undirected, keys)
        if labelled and self.tables.target is not None:
            graph.y = read_labels(frame[self.tables.target], self.tables.target, source)
        if self.tables.split is not None and self.tables.split in frame:
            for name, mask in read_split(frame[self.tables.split], self.tables.split, source).items():
                graph[name] = torch.from_numpy(mask)
        ids = ids.reset_index(drop=True).rename(str(self.tables.id or ids.name or "node"))
        return TableGraph(graph, ids, keys, links if edge_split is not None else None, links.columns)

    def column_kinds(self) -> dict[str, ColumnKind]:
        """Columns of nodes that are features, and what they are."""
        return self.encoder.column_kinds()

    def feature_names(self) -> list[str]:
        """Names of the F features."""
        return one_hot_names(self.encoder, self.kept)

    def features_of_columns(self) -> dict[str, list[int]]:
        """Positions of the features that are made of each column."""
        positions: dict[str, list[int]] = {}
        for feature, column in enumerate(one_hot_columns(self.encoder, self.kept)):
            positions.setdefault(column, []).append(feature)
        return positions

    def summary(self) -> pd.DataFrame:
        """What each column is, and why."""
        return self.encoder.summary()

    def state(self) -> dict[str, Any]:
        """JSON values; no row of the tables is among them, but the categories of the columns are."""
        known = vars(self.tables)
        names = ("id", "target", "split", "edge_source", "edge_target", "edge_weight", "undirected", "missing_nodes")
        return {
            **{name: known[name] for name in names},
            "encoder": self.encoder.state(),
            "kept": self.kept,
            "degrees": None if self.degrees is None else self.degrees.to_json(),
            "predicted": self.predicted,
            "edge_columns": self.edge_columns,
        }

    @classmethod
    def from_state(cls, state: Any) -> Self:
        """Undo :meth:`state`.

        Raises
        ------
        FileFormatError
            If it contradicts itself.
        """
        try:
            known = dict(state)
            encoder, kept = ColumnEncoder.from_state(known.pop("encoder")), known.pop("kept")
            degrees, predicted = known.pop("degrees", None), known.pop("predicted", [])
            edge_columns = known.pop("edge_columns", None)
            tables = GraphTables(**known)
            texts = ("id", "target", "split", "edge_source", "edge_target", "edge_weight")
            good = (
                all(isinstance(known[name], str | None) for name in texts)
                and isinstance(tables.undirected, bool)
                and tables.missing_nodes in ("error", "ignore")
                and fits(kept, list[list[int]])
                and isinstance(degrees, dict | None)
                and fits(predicted, list[int])
                and min(predicted, default=0) >= 0
                and fits(edge_columns, list[str | None] | None)
                and len(edge_columns or [None] * 3) == 3
                and None not in (edge_columns or [])[:2]
                and len(kept) == len(encoder.categories)
                and all(
                    0 <= code < len(values) + FIRST
                    for codes, values in zip(kept, encoder.categories, strict=True)
                    for code in codes
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"its table of nodes is malformed: {error}") from None
        if not good:
            raise FileFormatError("its table of nodes is malformed")
        profile = None if degrees is None else ColumnProfile.from_json(degrees)
        return cls(tables, encoder, kept, profile, predicted, edge_columns)


def degrees_of(graph: Data) -> np.ndarray:
    """How many edges end at each node, shape (N,)."""
    assert graph.edge_index is not None
    return np.bincount(graph.edge_index[1].numpy(), minlength=int(graph.num_nodes or 0)).astype(np.float64)


def _named(tables: GraphTables, source: TableSource) -> GraphTables:
    """With the column of ids, which may go without saying."""
    ignored = [tables.ignore_columns] if isinstance(tables.ignore_columns, str) else list(tables.ignore_columns)
    given = {"id": tables.id, "target": tables.target, "split": tables.split}
    for argument, name in [*given.items(), *(("ignore_columns", name) for name in ignored)]:
        if name is not None:
            check_column(source, name, f"which {argument} names")
    twice = [name for name in given.values() if name is not None]
    if len(set(twice)) < len(twice):
        raise ConfigError(f"id, target and split must be different columns, got {', '.join(map(repr, twice))}")
    chosen = tables.id
    if chosen is None:
        found = [name for name in source.columns if str(name).lower() in IDS and name not in (*twice, *ignored)]
        frame = next(source.batches([])) if not source.is_file else None
        has_names = frame is not None and node_names(frame) is not None
        if len(found) != 1 and not has_names:
            raise ConfigError(
                f"id is missing: the column of {source.name} whose values name the nodes; it has "
                f"{listed(source.columns)}"
            )
        chosen = str(found[0]) if len(found) == 1 and not has_names else None
    return GraphTables(**{**vars(tables), "id": chosen, "ignore_columns": tuple(ignored)})


def _features(source: TableSource, tables: GraphTables) -> list[str]:
    left_out = {tables.id, tables.target, tables.split, *tables.ignore_columns}
    names = [name for name in source.columns if name not in left_out]
    if not names:
        raise DataError(
            f"{source.name} has no column besides {listed(name for name in left_out if name)}: nodes need at least one "
            "feature (a column of ones, if there is nothing to say of them)"
        )
    return names


def _fitted(source: TableSource, columns: Mapping[str, Column], tables: GraphTables) -> ColumnEncoder:
    """The encoder of the columns; one in which nearly every row has its own value is no feature."""
    kinds = {name: column.kind for name, column in columns.items()}
    source.with_kinds(kinds)
    frame: pd.DataFrame = source.named(lambda: pd.concat(list(source.batches(list(columns)))))

    def fit(names: list[str]) -> ColumnEncoder:
        own = {name: kinds[name] for name in names if not source.untyped or kinds[name] != "number"}
        return source.named(
            lambda: ColumnEncoder().fit(
                frame[names], np.ones(len(frame)), column_types=own, missing_values=tables.missing_values
            )
        )

    chosen = dict(tables.column_types or {})
    names = list(columns)
    alike = {
        name for name in names
        if kinds[name] in ("category", "id") and name not in chosen and len(frame) >= 20
        and len(distinct_cells(frame[name], name)[1]) >= 0.95 * len(frame)
    }  # fmt: skip
    if alike:
        warnings.warn(
            f"{source.name}: nearly every row has its own value in {listed(sorted(alike))}, which then says nothing of "
            "other nodes: left out. column_types={name: 'category'} uses such a column all the same",
            UserWarning,
            stacklevel=4,
        )
        names = [name for name in names if name not in alike]
    if not names:
        raise DataError(f"{source.name} has no column left that could be a feature")
    encoder = fit(names)
    encoder.columns = [replace(column, why=columns[column.name].why) for column in encoder.columns]
    return encoder


def _leave_marks(encoder: ColumnEncoder, numbers: np.ndarray) -> None:
    """Leave numbers that are 0 or 1 as they are: marks, such as words of a document."""
    for position in range(len(encoder.numeric)):
        known = numbers[:, position][~np.isnan(numbers[:, position])]
        if np.isin(known, (0.0, 1.0)).all():
            encoder.mean[position], encoder.scale[position] = 0.0, 1.0


def _index_ids(frame: pd.DataFrame) -> pd.Series:
    names = node_names(frame)
    if names is None:
        raise DataError("nodes are named by the index of the frame, as in training: set_index(...)")
    return pd.Series(frame.index, name=frame.index.name)
