"""The service of graph models: a graph per request, as numbers or as tables of nodes and edges."""

import inspect
import warnings
from typing import Any

import numpy as np
import pandas as pd

from moeapps.core.errors import DataError
from moeapps.core.tabledata.scoring import label_columns
from moeapps.serve.service import Request, Service, object_array, records

__all__ = ["GraphService"]


class GraphService(Service):
    """Classifiers of nodes; a request is a graph: of numbers, or as two tables where the model was fitted on tables."""

    kind = "graph"
    held = False
    """Whether all requests are about one graph, which the model holds."""

    @classmethod
    def serves(cls, model: Any) -> bool:
        """Whether ``predict_proba`` takes edges and nodes; a subclass may hide them, so its bases count, too."""
        methods = [vars(base)["predict_proba"] for base in type(model).__mro__ if "predict_proba" in vars(base)]
        return any(
            {"edge_index", "nodes"} <= set(inspect.signature(method).parameters)
            for method in methods
            if inspect.isfunction(method)
        )

    def hold_tables(self, nodes: str, edges: str) -> None:
        """Read the graph that all requests are about."""
        self.model.hold_tables(nodes, edges)
        self.held = True

    def describe(self) -> dict[str, Any]:
        """With the number of features of a node; or the columns of the nodes, and that of their ids.

        ``held`` says whether requests come without a graph, ``nodes`` how many nodes the one has that is served.
        """
        about = {**super().describe(), "width": int(self.model.n_features_in_), "held": self.held}
        table = getattr(self.model, "node_table_", None)
        if table is None:
            return {**about, "weighted": bool(getattr(self.model, "weighted_", False))}
        about = {**about, "id": table.tables.id or "node", "columns": dict(table.column_kinds())}
        return {**about, "nodes": len(self.model.graph_.table.ids)} if self.held else about

    def answer(self, request: Request) -> list[dict[str, Any]]:
        """For each requested node its class, and the probability of every class."""
        if "predict" in request:
            return self._of_tables(request)
        x = np.array(request["x"], dtype=np.float32)
        edges, weights = self.numbered_edges(request["edges"])
        nodes = request.get("nodes")
        if nodes is not None:  # each once: what is all 0 and 1, with repetitions, would be read as a mask
            nodes, place = np.unique(nodes, return_inverse=True)
        probabilities = self.model.predict_proba(x, edges, nodes=nodes, **weights)
        probabilities = probabilities if nodes is None else probabilities[place]
        return records(label_columns(self.model.classes_, probabilities))

    def _of_tables(self, request: Request) -> list[dict[str, Any]]:
        """The same with the nodes' ids."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return records(self.model.predict_frame(*self.tables(request), nodes=request["predict"]))

    def tables(self, request: Request) -> tuple[pd.DataFrame | None, pd.DataFrame | None]:
        """The nodes and the edges of a request; neither where the model holds its graph."""
        if self.held:
            return None, None
        about = self.describe()
        columns: dict[str, Any] = {about["id"]: object_array([row[about["id"]] for row in request["nodes"]])}
        for name, kind in about["columns"].items():
            values = [row[name] for row in request["nodes"]]
            columns[name] = np.array(values, dtype=np.float64) if kind == "number" else object_array(values)
        nodes = pd.DataFrame(columns)
        if self.model.node_table_.tables.id is None:
            nodes = nodes.set_index(about["id"])
        return nodes, self._edges(request["edges"])

    def numbered_edges(self, rows: list[list[Any]]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Edges ``(2, E)`` as node numbers, and ``edge_weight`` ``(E,)`` where those of the training had weights."""
        if not self.describe()["weighted"]:
            return np.array(rows, dtype=np.int64).reshape(-1, 2).T, {}
        ends = [end for row in rows for end in row[:2]]
        if broken := [end for end in ends if end != int(end)]:
            raise DataError(f"edges: {broken[0]} is not the number of a node")
        weight = np.array([row[2] for row in rows], dtype=np.float64)
        return np.array(ends, dtype=np.int64).reshape(-1, 2).T, {"edge_weight": weight}

    def columns_of_edges(self) -> list[str]:
        """Names of both ends and the weight of an edge, as in training."""
        tables = self.model.node_table_.tables
        return [tables.edge_source or "source", tables.edge_target or "target", tables.edge_weight or "weight"]

    def _edges(self, pairs: list[list[Any]]) -> pd.DataFrame:
        """A table of edges."""
        names = self.columns_of_edges()
        width = max(map(len, pairs), default=2)
        if any(len(pair) != width for pair in pairs):
            raise DataError("edges: some have a weight and some have none, expected one for all or for none")
        trained = self.model.node_table_.edge_columns
        if trained is not None and trained[2] is None and width == 3:  # reading them would warn and leave the weights
            raise DataError("edges: some have a weight, and those that the model was fitted on had none")
        columns = zip(*pairs, strict=True) if pairs else [[], []]
        return pd.DataFrame({name: object_array(list(values)) for name, values in zip(names, columns, strict=False)})
