"""What the importance of a graph's columns is made of: predictions after a column, or who is connected, is shuffled."""

# N nodes, F features, P columns, K classes

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

__all__ = ["CONNECTIONS", "EVERYTHING", "NodeShuffles"]

CONNECTIONS = "connections"
"""Name under which the edges are shuffled: each node gets the neighbours of another one."""

EVERYTHING = "all features"
"""Name of all features together."""

COLUMNS = 50
"""Columns that are shuffled one by one; of more, such as the words of a text, all features are shuffled together."""

CELLS = 20_000_000
"""Numbers of the features above which only the connections are shuffled: every shuffle copies them."""


class NodeShuffles:
    """Predictions of chosen nodes while values move between all nodes of the graph.

    A network reads the neighbours' columns too, so a column is shuffled over the whole graph and not over the chosen
    nodes only. What is shuffled is written as the number of the node that a value comes from.

    Parameters
    ----------
    model
        A fitted classifier of nodes.
    graph : Data
        N nodes with F features.
    nodes : array of int
        Nodes to predict.
    columns : mapping of str to list of int
        For each column the features that are made of it.
    """

    def __init__(self, model: Any, graph: Any, nodes: NDArray[np.int64], columns: Mapping[str, Sequence[int]]) -> None:
        self.model, self.graph, self.nodes = model, graph, nodes
        self.columns: dict[str, list[int]] = {}
        if graph.num_nodes * graph.num_features <= CELLS:
            everything = {EVERYTHING: range(graph.num_features)}
            chosen = columns if len(columns) <= COLUMNS else everything
            self.columns = {name: list(features) for name, features in chosen.items()}
        names = list(self.columns)
        self.connections = CONNECTIONS if CONNECTIONS not in names else f"{CONNECTIONS} between nodes"
        if getattr(graph, "edge_index", None) is not None:
            names.append(self.connections)
        whole = np.arange(graph.num_nodes)
        self.frame = pd.DataFrame(dict.fromkeys(names, whole))
        """``(N, P)`` the node that each value comes from: its own, until it is shuffled."""

    def predict(self, frame: pd.DataFrame) -> list[NDArray[np.float64]]:
        """``(nodes, K)`` class probabilities where the values come from the nodes of ``frame``."""
        graph, own = copy.copy(self.graph), np.arange(len(frame))
        moved = {str(name): frame[name].to_numpy() for name in frame if not np.array_equal(frame[name], own)}
        if any(name in self.columns for name in moved):
            x = graph.x.to_dense() if graph.x.layout != torch.strided else graph.x
            changed = x.clone()
            for name in moved.keys() & self.columns.keys():
                features = torch.tensor(self.columns[name])
                changed[:, features] = x[torch.tensor(moved[name])][:, features]
            graph.x = changed
        if self.connections in moved:
            graph.edge_index = torch.tensor(moved[self.connections])[graph.edge_index]
        return [np.asarray(self.model.predict_proba(graph, nodes=self.nodes), dtype=np.float64)]
