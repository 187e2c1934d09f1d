"""Batches: a graph, and the nodes of it that a step uses."""

# N nodes of the graph, B of them in the batch, F features

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.data import Data

from moeapps.graph.edges import Edges
from moeapps.graph.sparse_features import SparseFeatures

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
    piece_size : int, optional
        Number of nodes around which one piece of the graph is cut out in evaluation; that of the batch when None.
    """

    graph: Data
    edges: Edges
    nodes: Tensor | None = None
    num_neighbors: tuple[int, ...] | None = None
    piece_size: int | None = None

    def chosen(self, mask: str) -> Tensor:
        """Node numbers that the step uses: the batch's, or those of the graph's mask."""
        if self.nodes is not None:
            return self.nodes
        name = f"{mask}_nodes"
        if name not in self.graph:  # once per graph: ``nonzero`` synchronises with the device
            self.graph[name] = self.graph[mask].nonzero().flatten()
        nodes: Tensor = self.graph[name]
        return nodes

    def features(self, mask: str) -> Tensor:
        """Features of the nodes of :meth:`chosen`, on their device."""
        nodes = self.chosen(mask)
        if self.nodes is None and isinstance(self.graph.x, SparseFeatures):
            name = f"{mask}_x"  # kept with what a gradient needs of it
            if name not in self.graph:
                self.graph[name] = self.graph.x.rows(nodes)
            kept: Tensor = self.graph[name]
            return kept
        return self.graph.x[nodes.to(self.graph.x.device)].to(nodes.device)

    @property
    def batch_size(self) -> int | None:
        """Number of nodes that bounds the memory of an evaluation; None for the whole graph."""
        return self.nodes.numel() if self.nodes is not None and self.piece_size is None else self.piece_size

    def to(self, device: torch.device) -> "NodeBatch":
        """The same batch on a device; its graph is moved with it."""
        nodes = None if self.nodes is None else self.nodes.to(device)
        graph = copy.copy(self.graph)  # PyG moves in place: the caller's graph stays where it is
        x = graph.x
        if self.edges.on_disk:  # its rows are moved as they are used
            del graph.x
        graph = graph.to(device)
        graph.x = x if self.edges.on_disk else graph.x
        return NodeBatch(graph, self.edges.to(device), nodes, self.num_neighbors, self.piece_size)
