"""Estimators that take a graph as two tables: what ``fit`` learns of them, and what a saved file keeps."""

from dataclasses import replace
from typing import Any, Self

import numpy as np
import pandas as pd
from sklearn.utils.validation import check_is_fitted
from torch_geometric.data import Data

from moeapps.core.config import field_names
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.estimator import LightningEstimator
from moeapps.core.tabledata.drift import DataCheck, check_table
from moeapps.core.tabledata.profile import ColumnProfile
from moeapps.core.tabledata.source import TableSource, listed
from moeapps.graph.graph_tables import GraphTables, is_table_path
from moeapps.graph.node_table import DEGREES, NodeTable, TableGraph, degrees_of
from moeapps.registry import did_you_mean

__all__ = ["TableInput", "ids_of_rows", "one_of"]

CLASSES = "(predicted class)"
"""What a check calls the classes that are predicted."""


class TableInput(LightningEstimator):
    """Adds tables of nodes and edges to an estimator of graphs.

    Attributes
    ----------
    node_table_ : NodeTable or None
        How the tables are read, where the model was fitted on tables.
    """

    graph_: Any
    node_table_: NodeTable | None = None
    node_ids_: TableGraph | None = None
    """The nodes of the training, which a saved file does not hold."""

    @staticmethod
    def _means_tables(X: Any, edges: Any, options: dict[str, Any]) -> bool:
        """Whether ``fit`` was given two tables; refuses what goes only with them."""
        known = field_names(GraphTables)
        for name in options:
            if name not in known:
                guess = did_you_mean(name, [*known, "edges", "edge_weight", "train_mask", "val_mask"])
                raise ConfigError(f"fit has no argument {name!r}{guess}")
        if edges is not None:
            return True
        given = [name for name, value in options.items() if value is not None]
        if given or is_table_path(X):
            what = f"{given[0]} says what a column of a table means" if given else f"{X} is a table of nodes"
            raise ConfigError(f"{what}: edges is missing, the table with one row per edge")
        return False

    def _learn_tables(self, nodes: Any, edges: Any, options: dict[str, Any]) -> TableGraph:
        self.node_table_, read = NodeTable.learn(nodes, edges, GraphTables(**options))
        self.node_ids_ = read
        self.__dict__.pop("feature_names_in_", None)
        return read

    def _forget_tables(self) -> None:
        self.__dict__.pop("node_table_", None)
        self.__dict__.pop("node_ids_", None)

    def _read_tables(self, nodes: Any, edges: Any) -> TableGraph | None:
        """The graph of two tables; None where the model was not fitted on tables, or ``nodes`` is something else."""
        if self.node_table_ is None:
            if is_table_path(nodes):
                raise DataError(
                    f"{nodes} is a table, and the model was fitted on a graph whose features are numbers already: "
                    "fit(nodes, edges=..., id=...) makes a model that reads tables"
                )
            return None
        if nodes is None:
            return self.node_ids_
        if isinstance(nodes, Data):
            raise DataError("the model was fitted on two tables: give the table of nodes, and edges")
        return self.node_table_.read(nodes, edges)

    def hold_tables(self, nodes: Any, edges: Any) -> Self:
        """Read a graph, which predictions without one are of from now on: a loaded model holds none.

        Parameters
        ----------
        nodes, edges : DataFrame or path
            The tables of nodes and edges.

        Returns
        -------
        self
            The same model; a saved file will not hold the graph.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the model is not fitted.
        DataError
            If the model was not fitted on tables, or these cannot be read.
        """
        check_is_fitted(self, "model_")
        self._fitted_table()
        self.graph_ = self._graph_of_tables(nodes, edges)
        return self

    def _graph_of_tables(self, nodes: Any, edges: Any) -> Any:
        """The graph of two tables, as predictions take it."""
        raise NotImplementedError

    @property
    def node_columns_(self) -> pd.DataFrame:
        """What each column of the nodes is, and why; of a model that was fitted on tables."""
        return self._fitted_table().summary()

    def _fitted_table(self) -> NodeTable:
        if self.node_table_ is None:
            raise DataError(f"this {type(self).__name__} was not fitted on tables: fit(nodes, edges=..., id=...)")
        return self.node_table_

    def check(self, X: Any, edges: Any = None) -> DataCheck:
        """Compare tables of nodes and edges with those of training.

        Parameters
        ----------
        X : DataFrame or path
            The table of nodes. Labels are not compared.
        edges : DataFrame or path, optional
            The table of edges. When given, the number of edges per node and, of a classifier, the shares of the
            predicted classes are compared, too.

        Returns
        -------
        DataCheck
            A row per column of the nodes, as :meth:`moeapps.MoEClassifier.check` gives it, and ``(edges per node)`` and
            ``(predicted class)``. These are unreadable where the tables make no graph that can be predicted.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the model is not fitted.
        DataError
            If the model was not fitted on tables, or there are no rows.
        """
        check_is_fitted(self, "model_")
        table = self._fitted_table()
        profiles, missing = table.encoder.profile(), frozenset(table.encoder.missing_values)
        source = TableSource(X, kinds={profile.name: profile.kind for profile in profiles}, missing=missing)
        known = [name for name in (table.tables.id, table.tables.target, table.tables.split) if name is not None]
        if not set(source.columns) & {profile.name for profile in profiles}:
            raise DataError(
                f"{source.name} has no column of the nodes ({listed(profile.name for profile in profiles)}): rows are "
                "nodes, and edges come beside them"
            )
        found = check_table(source, profiles, known)
        if edges is None:
            return found
        whole = [table.degrees or ColumnProfile(DEGREES, "number")]
        if table.predicted:
            counts, classes = tuple(table.predicted), tuple(map(str, self.classes_))
            whole.append(ColumnProfile(CLASSES, "category", sum(counts), counts=counts, values=classes))
        try:
            columns: dict[str, Any] = {DEGREES: degrees_of(table.read(X, edges).graph)}
            if table.predicted:
                columns[CLASSES] = self.predict(X, edges=edges).astype(str)
            of_graph = check_table(TableSource(pd.DataFrame(columns)), whole).table
        except DataError as error:
            of_graph = found.table.iloc[:0].reindex([profile.name for profile in whole])
            of_graph = of_graph.assign(kind=[p.kind for p in whole], verdict="unreadable", why=str(error))
        return replace(found, table=pd.concat([found.table, of_graph]).rename_axis(index="column"))

    def _note_predictions(self) -> None:
        """Count the classes that are predicted for the nodes of the training."""
        if self.node_table_ is not None:
            codes = np.searchsorted(self.classes_, self.predict())
            self.node_table_.predicted = np.bincount(codes, minlength=len(self.classes_)).tolist()

    def saved_state(self) -> dict[str, Any]:
        """Fitted attributes, and how tables are read."""
        state = super().saved_state()
        return state if self.node_table_ is None else {**state, "node_table_": self.node_table_.state()}

    def _restore(self, state: dict[str, Any]) -> None:
        if "node_table_" in state:
            self.node_table_ = NodeTable.from_state(state["node_table_"])
        super()._restore(state)


def ids_of_rows(read: TableGraph | None, given: Any, count: int) -> pd.Series:
    """Names of the nodes: ids of a table, the index of a frame, or their positions."""
    if read is not None:
        return read.ids
    if isinstance(given, pd.DataFrame) and not given.index.equals(pd.RangeIndex(len(given))):
        return pd.Series(given.index, name=given.index.name or "node")
    return pd.Series(np.arange(count), name="node")


def one_of(edge_index: Any, edges: Any) -> Any:
    """The edges, which have two names.

    Raises
    ------
    ConfigError
        If they were given by both.
    """
    if edge_index is not None and edges is not None:
        raise ConfigError("edges and edge_index are the same argument: give one of them")
    return edge_index if edges is None else edges
