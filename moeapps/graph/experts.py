"""Any network as an expert: its number of hops, its cost, and its logits for some nodes.

A graph network's output at a node depends on the node's neighbourhood alone, so it can be computed on a piece of the
graph that was cut out around the nodes (:meth:`~moeapps.graph.edges.Edges.neighborhood`), with the same result.
Cutting has a cost of its own: where the piece would be large, the whole graph is computed instead.
"""

# N nodes of the graph, B of them predicted, M nodes of a piece of the graph, S seeds of it, F features, K classes,
# L layers

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch_geometric.nn import MLP, MessagePassing

from moeapps.core.errors import ConfigError, DataError
from moeapps.graph.edges import EdgeForm, Edges, Neighborhood
from moeapps.graph.layerwise import ROWS, layerwise, works_by_layers
from moeapps.graph.networks import GraphNetwork
from moeapps.graph.pieces import on_piece
from moeapps.graph.sampling import check_num_neighbors, sample_neighborhood

__all__ = ["FeatureExpert", "GraphExpert", "NodeExpert", "Work", "node_expert"]


@dataclass
class Work:
    """Work of one expert.

    Parameters
    ----------
    nodes : int
        Nodes that were predicted.
    edges : int
        Edges that were used, summed over layers.
    multiply_adds : int
        Estimate of the multiply-adds of all layers.
    """

    nodes: int = 0
    edges: int = 0
    multiply_adds: int = 0


class NodeExpert:
    """A network with ``forward(x, edge_index)``, or ``forward(x, edge_index, edge_weight)``; base of the other kinds.

    Parameters
    ----------
    network : torch.nn.Module
        The network. This object holds no state of its own: it can be made anew for every call.

    Attributes
    ----------
    edge_form : {"plain", "looped", "normalized"}
        Form of the edges that the network computes on.
    cut_share : float
        Share of the edges (over all layers) up to which cutting out a piece is cheaper than computing the whole graph.
    """

    edge_form: EdgeForm = "plain"
    cut_share = 0.5  # for networks that write one row per edge; measured by benchmarks/graph_speed.py

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    @property
    def hops(self) -> int | None:
        """Largest distance from a node at which its prediction can depend on other nodes; None if it is unknown.

        The number of PyG convolutions and one more, because a convolution may normalise by a neighbour's degree.
        """
        layers = sum(isinstance(module, MessagePassing) for module in self.network.modules())
        return layers + 1 if layers else None

    @property
    def layers(self) -> int:
        """Number of layers L that use edges."""
        return 1 if self.hops is None else self.hops - 1

    def known_hops(self) -> int:
        """As :attr:`hops`.

        Raises
        ------
        ConfigError
            If it is unknown.
        """
        if (hops := self.hops) is None:
            raise ConfigError(
                f"{type(self.network).__name__} has no torch_geometric.nn.MessagePassing layer: how many hops it sees "
                "is unknown, so it cannot be run on a part of the graph"
            )
        return hops

    def run(self, x: Tensor, edges: Edges | Neighborhood) -> Tensor:
        """Logits in the network's present mode (training or evaluation).

        Parameters
        ----------
        x : Tensor of shape (N, F), or (M, F) for a piece of the graph
            Features.
        edges : Edges or Neighborhood
            Edges of the graph, or the piece.

        Returns
        -------
        Tensor of shape (N, K), or (S, K) for the seeds of a piece

        Raises
        ------
        DataError
            If there are edge weights and the network does not use them.
        """
        weight = self._edge_weight(edges)
        index = edges.edge_index if isinstance(edges, Neighborhood) else edges.index
        out = self.network(x, index) if weight is None else self.network(x, index, weight)
        return out[: edges.nodes_per_hop[0]] if isinstance(edges, Neighborhood) else out

    def on_nodes(
        self,
        x: Tensor,
        edges: Edges,
        nodes: Tensor | None,
        *,
        batch_size: int | None = None,
        work: Work | None = None,
    ) -> Tensor:
        """Logits of some nodes, from all the neighbours that the network can see.

        1. Without ``batch_size``: run on the whole graph if all nodes are wanted or the number of hops is unknown.
        2. With a ``batch_size`` below the number of nodes: one of moeapps' networks runs layer by layer on the nodes
           that each layer needs
           (:func:`~moeapps.graph.layerwise.layerwise`), so that no row is computed twice.
        3. Cut out the piece around the nodes, or one piece per ``batch_size`` of them. Without ``batch_size``, a piece
           with more than ``cut_share`` of the edges is given up, and the network runs on the whole graph.
        4. Run the network on each piece.

        Parameters
        ----------
        x : Tensor of shape (N, F)
            Features of the whole graph.
        edges : Edges
            Its edges.
        nodes : Tensor of shape (B,), or None
            Node numbers; all nodes when None.
        batch_size : int, optional
            Number of nodes around which one piece is cut out, which bounds the memory.
        work : Work, optional
            Counter to which edges and multiply-adds are added.

        Returns
        -------
        Tensor of shape (B, K)

        Raises
        ------
        ConfigError
            If ``batch_size`` is given and the number of hops is unknown.
        """
        work = Work() if work is None else work
        if batch_size is None and (nodes is None or not self.hops):
            return self._on_whole_graph(x, edges, nodes, work)
        hops = self.known_hops()
        if self._by_layers(edges, x.shape[0] if nodes is None else nodes.numel(), batch_size):
            return self._on_layers(x, edges, nodes, work)
        nodes = torch.arange(x.shape[0], device=self._device(x)) if nodes is None else nodes
        distinct, place = nodes.unique(return_inverse=True)
        if len(distinct) < len(nodes):  # a piece has each of its seeds once
            return self.on_nodes(x, edges, distinct, batch_size=batch_size, work=work)[place]
        most = int(self.cut_share * hops * edges.count(self.edge_form)) if batch_size is None else None
        logits = []
        for part in [nodes] if batch_size is None else list(nodes.split(batch_size)) or [nodes]:
            piece = edges.neighborhood(part.to(edges.device), [-1] * hops, self.edge_form, max_edges=most)
            if piece is None:
                return self._on_whole_graph(x, edges, nodes, work)
            logits.append(self.run(*self._rows(x, piece, part.device)))
            # the first layer reads all M nodes of the piece, the last one only the seeds and their neighbours
            rows = [sum(piece.nodes_per_hop[: hop + 2]) for hop in range(hops)][::-1]
            used = [sum(piece.edges_per_hop[: hop + 1]) for hop in range(hops)][::-1]
            self._count(work, rows, used)
        return torch.cat(logits)

    def on_drawn(self, x: Tensor, edges: Edges, nodes: Tensor, num_neighbors: Sequence[int] | None) -> Tensor:
        """Logits ``(B, K)`` of some nodes, from randomly drawn neighbours.

        Parameters
        ----------
        x, edges, nodes
            As in :meth:`on_nodes`.
        num_neighbors : sequence of int or None
            Neighbours to draw at each hop, -1 for all; 10 each when None.

        Raises
        ------
        ConfigError
            If there is not one number per hop.
        """
        limits = check_num_neighbors(num_neighbors, self.known_hops())
        drawn = sample_neighborhood(edges, nodes.to(edges.device), limits, self.edge_form)
        return self.run(*self._rows(x, drawn, nodes.device))

    def _rows(self, x: Tensor, piece: Neighborhood, device: torch.device) -> tuple[Tensor, Neighborhood]:
        """Features of a piece, and the piece, on the device of the nodes that it was cut out around."""
        return x[piece.nodes].to(device), piece.to(device)

    def work_on_whole_graph(self, edges: Edges) -> Work:
        """Work of one pass over the whole graph."""
        work = Work(nodes=edges.num_nodes)
        self._count(work, [edges.num_nodes] * max(self.layers, 1), [edges.count(self.edge_form)] * self.layers)
        return work

    def multiply_adds(self, rows: Sequence[int], edges: Sequence[int]) -> int:
        """Estimate of the multiply-adds of one pass.

        Parameters
        ----------
        rows : sequence of int
            Rows that each layer reads, first layer first.
        edges : sequence of int
            Edges that each layer uses, first layer first.
        """
        return max(rows, default=0) * _weights(self.network)

    def _on_whole_graph(self, x: Tensor, edges: Edges, nodes: Tensor | None, work: Work) -> Tensor:
        whole = self.work_on_whole_graph(edges)
        work.edges += whole.edges
        work.multiply_adds += whole.multiply_adds
        out = self.run(x, edges)
        return out if nodes is None else out[nodes]

    def _by_layers(self, edges: Edges, nodes: int, batch_size: int | None) -> bool:
        """Whether memory is to be bounded and the pieces of several batches would overlap."""
        return batch_size is not None and nodes > batch_size and works_by_layers(self.network)

    def _on_layers(self, x: Tensor, edges: Edges, nodes: Tensor | None, work: Work) -> Tensor:
        self._edge_weight(edges)
        wanted, place = None, None
        if nodes is not None:
            wanted, place = nodes.to(edges.device).unique(return_inverse=True)
        done = layerwise(self.network, x, edges, wanted)  # type: ignore[arg-type]
        self._count(work, done.rows, done.edges)
        return (done.logits if place is None else done.logits[place]).to(self._device(x))

    def _device(self, x: Tensor) -> torch.device:
        """Where the network computes."""
        weight = next(self.network.parameters(), None)
        return x.device if weight is None else weight.device

    def _count(self, work: Work, rows: Sequence[int], edges: Sequence[int]) -> None:
        work.edges += sum(edges)
        work.multiply_adds += self.multiply_adds(rows, edges)

    def _edge_weight(self, edges: Edges | Neighborhood) -> Tensor | None:
        weight = edges.edge_weight if isinstance(edges, Neighborhood) else edges.weight
        if weight is not None and not self._takes_weights():
            raise DataError(
                f"edge_weight was given (or edge_attr, or values in the adjacency matrix), but "
                f"{type(self.network).__name__} does not use edge weights: leave them out, or use a network that does "
                "(gcn, sage, gat, gatv2, or a module with forward(x, edge_index, edge_weight))"
            )
        return weight

    def _takes_weights(self) -> bool:
        """Whether the network's ``forward`` has a third argument that it uses."""
        if isinstance(self.network, GraphNetwork):
            return self.network.uses_weights
        if not getattr(self.network, "supports_edge_weight", True):
            return False
        parameters = inspect.signature(self.network.forward).parameters.values()
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        return len(positional) >= 3 or any(p.kind is p.VAR_POSITIONAL for p in parameters)


class GraphExpert(NodeExpert):
    """One of moeapps' graph networks, which takes prepared edges and computes at each layer what the next one needs."""

    network: GraphNetwork

    def __init__(self, network: GraphNetwork) -> None:
        super().__init__(network)
        self.edge_form, self.cut_share = network.edge_form, network.cut_share

    @property
    def hops(self) -> int:
        """Number of layers."""
        return self.network.num_layers

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self.network.num_layers

    def run(self, x: Tensor, edges: Edges | Neighborhood) -> Tensor:
        """See :meth:`NodeExpert.run`."""
        self._edge_weight(edges)
        if isinstance(edges, Neighborhood) and type(self.network).forward is GraphNetwork.forward:
            return on_piece(self.network, x, edges)
        return self.network(x, edges)

    def multiply_adds(self, rows: Sequence[int], edges: Sequence[int]) -> int:
        """Weight matrices times rows, and one per edge and hidden channel; see :meth:`NodeExpert.multiply_adds`."""
        layers = zip(self.network.convs, rows, edges, strict=True)
        in_convs = sum(_weights(conv) for conv in self.network.convs)
        sums = sum(count * _weights(conv) + used * self.network.hidden_channels for conv, count, used in layers)
        return sums + rows[-1] * (_weights(self.network) - in_convs)


class FeatureExpert(NodeExpert):
    """A network with ``forward(x)``: it sees a node's own features and no edges."""

    @property
    def hops(self) -> int:
        """No hop: the node itself."""
        return 0

    @property
    def layers(self) -> int:
        """No layer uses edges."""
        return 0

    def run(self, x: Tensor, edges: Edges | Neighborhood) -> Tensor:
        """See :meth:`NodeExpert.run`."""
        logits: Tensor = self.network(x[: edges.nodes_per_hop[0]] if isinstance(edges, Neighborhood) else x)
        return logits

    def on_nodes(
        self,
        x: Tensor,
        edges: Edges,
        nodes: Tensor | None,
        *,
        batch_size: int | None = None,
        work: Work | None = None,
    ) -> Tensor:
        """Logits of some nodes, ``batch_size`` rows at a time; see :meth:`NodeExpert.on_nodes`."""
        count = x.shape[0] if nodes is None else nodes.numel()
        if work is not None:
            self._count(work, [count], [])
        size = batch_size or max(count, 1)
        if edges.on_disk:  # a part of the rows at a time is read
            size = min(size, ROWS)
        starts = range(0, max(count, 1), size)
        if nodes is None:
            return torch.cat([self.network(x[start : start + size].to(self._device(x))) for start in starts])
        parts = (nodes[start : start + size] for start in starts)
        return torch.cat([self.network(x[part.to(x.device)].to(part.device)) for part in parts])

    def on_drawn(self, x: Tensor, edges: Edges, nodes: Tensor, num_neighbors: Sequence[int] | None) -> Tensor:
        """Logits of some nodes; no neighbours are drawn."""
        return self.run(x[nodes.to(x.device)].to(nodes.device), edges)


def node_expert(network: nn.Module) -> NodeExpert:
    """The network as an expert of its kind: one of moeapps' graph networks, PyG's MLP, or a module of the user."""
    if isinstance(network, GraphNetwork):
        return GraphExpert(network)
    return FeatureExpert(network) if isinstance(network, MLP) else NodeExpert(network)


def _weights(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.ndim == 2)
