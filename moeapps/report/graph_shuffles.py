"""What the importance of a graph's columns is made of: predictions after a column, or who is connected, is shuffled."""

# N nodes, F features, E edges, P columns, n nodes or pairs that are predicted, K classes

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["CONNECTIONS", "EVERYTHING", "GraphShuffles"]

CONNECTIONS = "connections"
"""Name under which the edges are shuffled: each node gets the neighbours of another one."""

EVERYTHING = "all features"
"""Name of all features together."""

COLUMNS = 50
"""Columns that are shuffled one by one; of more, such as the words of a text, all features are shuffled together."""

CELLS = 20_000_000
"""Numbers of the features above which only the connections are shuffled: every shuffle copies them."""


class GraphShuffles:
    """Predictions for chosen nodes or pairs while values move between all nodes of the graph.

    A network reads the neighbours' columns too, so a column is shuffled over the whole graph and not over the chosen
    nodes only. What is shuffled is written as the number of the node that a value comes from.

    Parameters
    ----------
    ask : callable
        From features ``(N, F)`` and edges ``(2, E)`` to class probabilities ``(n, K)``.
    x : Tensor of shape (N, F)
        Features.
    edge_index : Tensor of shape (2, E) or None
        Edges; None where there are none to shuffle.
    columns : mapping of str to list of int
        For each column the features that are made of it.
    """

    def __init__(
        self,
        ask: Callable[[Tensor, Any], Any],
        x: Tensor,
        edge_index: Any,
        columns: Mapping[str, Sequence[int]],
    ) -> None:
        self.ask, self.x, self.edge_index = ask, x, edge_index
        self.columns: dict[str, list[int]] = {}
        if x.shape[0] * x.shape[1] <= CELLS:
            everything = {EVERYTHING: range(x.shape[1])}
            chosen = columns if len(columns) <= COLUMNS else everything
            self.columns = {name: list(features) for name, features in chosen.items()}
        names = list(self.columns)
        self.connections = CONNECTIONS if CONNECTIONS not in names else f"{CONNECTIONS} between nodes"
        if edge_index is not None:
            names.append(self.connections)
        self.frame = pd.DataFrame(dict.fromkeys(names, np.arange(x.shape[0])))
        """``(N, P)`` the node that each value comes from: its own, until it is shuffled."""

    def predict(self, frame: pd.DataFrame) -> list[NDArray[np.float64]]:
        """``(n, K)`` class probabilities where the values come from the nodes of ``frame``."""
        x, edge_index, own = self.x, self.edge_index, np.arange(len(frame))
        moved = {str(name): frame[name].to_numpy() for name in frame if not np.array_equal(frame[name], own)}
        if any(name in self.columns for name in moved):
            before = x.to_dense() if x.layout != torch.strided else x
            x = before.clone()
            for name in moved.keys() & self.columns.keys():
                features = torch.tensor(self.columns[name])
                x[:, features] = before[torch.tensor(moved[name])][:, features]
        if self.connections in moved:
            edge_index = torch.tensor(moved[self.connections])[edge_index]
        return [np.asarray(self.ask(x, edge_index), dtype=np.float64)]
