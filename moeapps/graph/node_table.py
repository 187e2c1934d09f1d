"""A graph in two tables: nodes with an id and columns of any kind, and edges that name the nodes at both ends.

1. The columns of the nodes are told apart as those of any table (numbers, categories, times) and become numbers:
   standardised, with a flag where one is missing, and one per category. The model keeps this reading.
2. Ids are compared as exact text: 7 in one table is 7 in the other, whether a file or a frame holds it; 007 is not.
3. A node without a label is one to predict: its features and edges take part, its label in nothing.
"""

# N nodes, E edges, F features

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from torch_geometric.data import Data

from moeapps.core.checks import check_one_of
from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.core.saved_arguments import fits
from moeapps.core.tabledata.cells import missing_texts
from moeapps.core.tabledata.columns import FIRST, ColumnEncoder
from moeapps.core.tabledata.files import ENDINGS, file_ending
from moeapps.core.tabledata.kinds import Column, ColumnKind
from moeapps.core.tabledata.numbers import to_numbers
from moeapps.core.tabledata.onehot import frequent_categories, one_hot, one_hot_columns, one_hot_names
from moeapps.core.tabledata.profile import ColumnProfile
from moeapps.core.tabledata.source import Table, TableSource, listed
from moeapps.core.tabledata.vocabulary import distinct_cells
from moeapps.graph.connections import SOURCES, TARGETS, WEIGHTS, undirected_edges
from moeapps.graph.node_cells import id_keys, read_labels, read_split
from moeapps.graph.node_names import node_names
from moeapps.registry import did_you_mean

__all__ = ["DEGREES", "GraphTables", "NodeTable", "TableGraph", "degrees_of", "is_table_path"]

MAX_CATEGORIES = 64
"""Most frequent categories per column that are told apart."""

DEGREES = "(edges per node)"
"""What a check calls the number of edges that end at a node."""

IDS = ("id", "node", "node_id", "nodeid")
"""Names of a column of ids that need not be said."""


@dataclass(frozen=True)
class GraphTables:
    """What the columns of two tables mean.

    Parameters
    ----------
    id : str, optional
        Column of ``nodes`` with a different id in each row. When None, a column called ``id``, ``node`` or ``node_id``,
        or else the index of a frame.
    target : str, optional
        Column of ``nodes`` with the labels; empty where the label is to be predicted.
    split : str, optional
        Column of ``nodes`` that says ``train``, ``val`` or ``test``; empty for none of them.
    edge_source, edge_target : str, optional
        Columns of ``edges`` with the ids at both ends. When None, columns called ``source`` and ``target`` (or ``src``
        and ``dst``, ``from`` and ``to``), or else the first two.
    edge_weight : str, optional
        Column of ``edges`` with weights. When None, a column called ``weight``.
    undirected : bool, default=True
        Whether every edge goes both ways.
    missing_nodes : {"error", "ignore"}, default="error"
        What to do with an edge that names a node which ``nodes`` does not have: refuse it, or leave it out with a
        warning.
    ignore_columns : list of str, default=()
        Columns of ``nodes`` that are not used.
    column_types : dict, optional
        What columns are, where it shall not be inferred: ``{"zip": "category"}``; one of "number", "category", "id",
        "time".
    missing_values : "auto" or list of str, default="auto"
        Texts that mean a missing value; "auto" takes those of ``pandas.read_csv``.
    """

    id: str | None = None
    target: str | None = None
    split: str | None = None
    edge_source: str | None = None
    edge_target: str | None = None
    edge_weight: str | None = None
    undirected: bool = True
    missing_nodes: Literal["error", "ignore"] = "error"
    ignore_columns: Sequence[str] = ()
    column_types: Mapping[str, ColumnKind] | None = None
    missing_values: Literal["auto"] | Sequence[str] = "auto"


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
    """

    graph: Data
    ids: pd.Series
    keys: pd.Index

    def positions(self, ids: Any, what: str) -> np.ndarray:
        """Rows of the nodes with these ids.

        Raises
        ------
        DataError
            Naming an id that is not there.
        """
        wanted = id_keys(pd.Series(ids), what)
        found: np.ndarray = self.keys.get_indexer(wanted)
        if (found < 0).any():
            raise DataError(
                f"{what} has the node {wanted[int((found < 0).argmax())]!r}, which the table of nodes lacks"
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
    """

    tables: GraphTables
    encoder: ColumnEncoder
    kept: list[list[int]] = field(default_factory=list)
    degrees: ColumnProfile | None = None
    predicted: list[int] = field(default_factory=list)

    @classmethod
    def learn(cls, nodes: Table, edges: Table, tables: GraphTables) -> tuple[Self, TableGraph]:
        """Read the tables of a training.

        Parameters
        ----------
        nodes, edges : DataFrame or path
            A frame, or a ``.csv``, ``.tsv``, ``.ndjson`` or ``.parquet`` file.
        tables : GraphTables
            What their columns mean.

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
        source = _source(nodes, "nodes", missing)
        tables = _named(tables, source)
        names = _features(source, tables)
        columns = source.named(lambda: source.infer(names, tables.column_types))
        encoder = _fitted(source, columns, tables)
        found = cls(tables, encoder)
        frame = found._frame(source)
        numbers, codes = source.named(lambda: encoder.transform(frame))
        _leave_marks(encoder, numbers)
        found.kept = frequent_categories(encoder, codes, np.ones(len(frame)), MAX_CATEGORIES)
        read = found._graph(source, frame, edges, labelled=True)
        found.degrees = ColumnProfile.of_numbers(DEGREES, "number", degrees_of(read.graph))
        return found, read

    def read(self, nodes: Table, edges: Table | None) -> TableGraph:
        """Read the tables of a prediction; labels are read if they are there.

        Parameters and errors are those of :meth:`learn`.
        """
        source = _source(nodes, "nodes", frozenset(self.encoder.missing_values), self.encoder.column_kinds())
        wanted = [*self.encoder.names, *([self.tables.id] if self.tables.id is not None else [])]
        for name in wanted:
            _check_column(source, name, "which the model was trained with")
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

    def _graph(self, source: TableSource, frame: pd.DataFrame, edges: Table | None, labelled: bool) -> TableGraph:
        ids = frame[self.tables.id] if self.tables.id is not None else _index_ids(frame)
        what = f"{source.name}, column {self.tables.id!r}," if self.tables.id is not None else "the index of nodes"
        keys = id_keys(ids, what)
        if not keys.is_unique:
            twice = keys[keys.duplicated()][0]
            rows = np.flatnonzero(keys == twice)[:2].tolist()
            raise DataError(f"{what} has the id {twice!r} in rows {rows[0]} and {rows[1]}: each node has one row")
        values = source.named(lambda: self.encoder.transform(frame[self.encoder.names]))
        graph = Data(x=torch.from_numpy(one_hot(self.encoder, self.kept, *values, clipped=True)).float())
        graph.edge_index, graph.edge_weight = self._edges(edges, keys, source.name)
        if labelled and self.tables.target is not None:
            graph.y = read_labels(frame[self.tables.target], self.tables.target, source)
        if self.tables.split is not None and self.tables.split in frame:
            for name, mask in read_split(frame[self.tables.split], self.tables.split, source).items():
                graph[name] = torch.from_numpy(mask)
        return TableGraph(graph, ids.reset_index(drop=True).rename(str(self.tables.id or ids.name or "node")), keys)

    def _edges(self, edges: Table | None, keys: pd.Index, nodes: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        if edges is None:
            raise ConfigError("edges is missing: the table with one row per edge, a frame or the path of a file")
        source = _source(edges, "edges", frozenset(self.encoder.missing_values))
        ends = _end_columns(source, self.tables)
        weight = _weight_column(source, self.tables, ends)
        frame: pd.DataFrame = source.named(
            lambda: pd.concat(list(source.batches([*ends, *([weight] if weight is not None else [])])))
        )
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
                f"{first!r} in row {row}"
            )
            if self.tables.missing_nodes == "error":
                raise DataError(f"{told}; missing_nodes='ignore' leaves such edges out")
            warnings.warn(f"{told}: they are left out", UserWarning, stacklevel=2)
        kept = torch.from_numpy(index[:, ~gone].astype(np.int64))
        strength = None
        if weight is not None:
            values = source.named(lambda: to_numbers(frame[weight], source.missing, str(weight)))[~gone]
            if not np.isfinite(values).all():
                row = int(np.flatnonzero(~gone)[int(np.argmin(np.isfinite(values)))])
                raise DataError(f"{source.name}: the weight {weight!r} is missing or infinite in row {row}")
            strength = torch.from_numpy(values.astype(np.float32))
        if self.tables.undirected:
            return undirected_edges(kept, strength, len(keys), source.name)
        return kept, strength

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
        return cls(tables, encoder, kept, None if degrees is None else ColumnProfile.from_json(degrees), predicted)


def degrees_of(graph: Data) -> np.ndarray:
    """How many edges end at each node, shape (N,)."""
    assert graph.edge_index is not None
    return np.bincount(graph.edge_index[1].numpy(), minlength=int(graph.num_nodes or 0)).astype(np.float64)


def is_table_path(given: Any) -> bool:
    """Whether this is the path of a file that holds a table."""
    return isinstance(given, str | os.PathLike) and file_ending(given) in ENDINGS


def _source(
    table: Table, argument: str, missing: frozenset[str], kinds: Mapping[str, ColumnKind] | None = None
) -> TableSource:
    try:
        source = TableSource(table, kinds=kinds, missing=missing)
    except DataError as error:
        raise DataError(str(error).replace("frame must", f"{argument} must", 1)) from None
    if not source.is_file:
        source.name = argument
    return source


def _check_column(source: TableSource, name: str, because: str) -> None:
    if name not in source.columns:
        near = did_you_mean(name, source.columns)
        raise DataError(f"{source.name} has no column {name!r}, {because}; it has {listed(source.columns)}{near}")


def _named(tables: GraphTables, source: TableSource) -> GraphTables:
    """With the column of ids, which may go without saying."""
    ignored = [tables.ignore_columns] if isinstance(tables.ignore_columns, str) else list(tables.ignore_columns)
    given = {"id": tables.id, "target": tables.target, "split": tables.split}
    for argument, name in [*given.items(), *(("ignore_columns", name) for name in ignored)]:
        if name is not None:
            _check_column(source, name, f"which {argument} names")
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
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*an id like this says nothing")
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


def _end_columns(source: TableSource, tables: GraphTables) -> list[str]:
    given = {"edge_source": tables.edge_source, "edge_target": tables.edge_target}
    for argument, name in given.items():
        if name is not None:
            _check_column(source, name, f"which {argument} names")
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
        _check_column(source, name, "which edge_weight names")
        return name
    return _one_of([column for column in source.columns if column not in ends], WEIGHTS)


def _one_of(columns: Iterable[Any], known: Sequence[str]) -> str | None:
    found = [str(name) for name in columns if str(name).lower() in known]
    return found[0] if len(found) == 1 else None
