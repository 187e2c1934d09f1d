"""Batches: a graph, and the nodes of it that a step uses."""

# N nodes of the graph, B of them in the batch, F features

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.data import Data

from moeapps.graph.edges import Edges

__all__ = ["NodeBatch"]


@dataclass
class NodeBatch:
    """The whole graph with its masks, or some nodes of it.

    Parameters
    ----------
    graph : Data
        Features ``x`` ``(N, F)``, labels ``y`` ``(N,)``, masks ``(N,)``.
    edges : Edges
        Its edges.
    nodes : Tensor of shape (B,), optional
        Node numbers; None for the whole graph.
    num_neighbors : tuple of int, optional
        In a mini-batch, number of neighbours that training draws at each hop; 10 each when None.
    """

    graph: Data
    edges: Edges
    nodes: Tensor | None = None
    num_neighbors: tuple[int, ...] | None = None

    def chosen(self, mask: str) -> Tensor:
        """Node numbers that the step uses: the batch's, or those of the graph's mask."""
        if self.nodes is not None:
            return self.nodes
        name = f"{mask}_nodes"
        if name not in self.graph:  # once per graph: ``nonzero`` synchronises with the device
            self.graph[name] = self.graph[mask].nonzero().flatten()
        nodes: Tensor = self.graph[name]
        return nodes

    @property
    def batch_size(self) -> int | None:
        """Number of nodes; None for the whole graph."""
        return None if self.nodes is None else self.nodes.numel()

    def to(self, device: torch.device) -> "NodeBatch":
        """The same batch on a device; its graph is moved with it."""
        nodes = None if self.nodes is None else self.nodes.to(device)
        graph = copy.copy(self.graph).to(device)  # PyG moves in place: the caller's graph stays where it is
        return NodeBatch(graph, self.edges.to(device), nodes, self.num_neighbors)
