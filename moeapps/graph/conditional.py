"""Prediction that runs each expert only on the nodes that ask for it, and says how much work that was.

A graph network's output at a node depends on the node's neighbourhood alone, so it can be computed on a piece of the
graph that was cut out around the nodes (:meth:`~moeapps.graph.edges.Edges.neighborhood`), with the same result.
Cutting has a cost of its own: where the piece would be large, the whole graph is computed instead.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch_geometric.nn import MLP

from moeapps.core.errors import ConfigError
from moeapps.graph.edges import Edges
from moeapps.graph.mowst import Inference, Mowst, MowstOutput
from moeapps.graph.networks import GAT, GraphNetwork, count_multiply_adds, edge_form, num_hops, run_network

__all__ = ["Activation", "predict_nodes", "run_on_nodes"]

CUT_SHARE = {"product": 0.1, "messages": 0.5}
"""Share of the edges (over all layers) up to which cutting out a piece is cheaper than computing the whole graph: for
networks that are sparse products, and for those that write one row per edge (``benchmarks/graph_speed.py``)."""


@dataclass
class _Work:
    """What one expert did."""

    nodes: int = 0
    edges: int = 0
    multiply_adds: int = 0

    def add(self, network: nn.Module, nodes: list[int], edges: list[int]) -> None:
        self.edges += sum(edges)
        self.multiply_adds += count_multiply_adds(network, nodes, edges)


@dataclass(frozen=True)
class Activation:
    """How much work a prediction was.

    Attributes:
        nodes: Nodes that were predicted.
        asked: By expert, the fraction of them that it was asked about.
        edges: Edges that were used, over all layers and experts.
        edges_alone: Edges that the strong expert alone uses for the whole graph.
        multiply_adds: Estimate of the multiply-adds of all experts and layers.
        multiply_adds_alone: The same for the strong expert alone, on the whole graph.
    """

    nodes: int
    asked: dict[str, float] = field(default_factory=dict)
    edges: int = 0
    edges_alone: int = 0
    multiply_adds: int = 0
    multiply_adds_alone: int = 0

    @property
    def strong(self) -> float:
        """Fraction of the nodes that needed the strong expert."""
        return self.asked["strong"]


@torch.no_grad()
def predict_nodes(
    model: Mowst,
    x: Tensor,
    edges: Edges,
    nodes: Tensor | None = None,
    *,
    mode: Inference = "mix",
    threshold: float = 0.5,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
) -> tuple[MowstOutput, Activation]:
    """Predict nodes with :meth:`Mowst.cascade`, each expert running only where it is asked.

    The result is that of ``model(x, edges, mode=...)`` at these nodes, up to rounding.

    Args:
        model: In evaluation mode.
        x: ``(N, F)`` features of the whole graph.
        edges: Its edges.
        nodes: ``(B,)`` distinct node numbers; all when None.
        mode: As in :meth:`Mowst.cascade`.
        threshold: As there.
        generator: As there; drawn for the nodes in their order.
        batch_size: Most nodes around which a piece is cut out at a time, which bounds the memory; None decides by the
            size of the piece.
    """
    work = {name: _Work() for name in model.names}
    by_threshold = mode in ("cascade", "threshold")
    # with a threshold that all or none reach, even an expert whose weight was fixed at 0 can have the last word
    decides = (by_threshold and threshold <= 0) or (mode == "threshold" and threshold > 1)
    ignored = {name: model.is_ignored(name) and not decides for name in model.names}

    def run(name: str, rows: Tensor | None) -> Tensor:
        asked = nodes if rows is None else rows if nodes is None else nodes[rows]
        count = x.shape[0] if asked is None else asked.numel()
        if ignored[name]:  # whatever it says would get the weight 0
            return x.new_zeros(count, model.out_channels)
        work[name].nodes = count
        network = model.experts[name]
        if name == "weak" and not isinstance(network, MLP):  # a module of the user's that takes x alone
            work[name].add(network, [count], [])
            rows_of_x = x if asked is None else x[asked]
            return torch.cat([network(part) for part in rows_of_x.split(batch_size or max(count, 1))])
        return run_on_nodes(network, x, edges, asked, batch_size=batch_size, work=work[name])

    seen = x if nodes is None else x[nodes]
    output = model.cascade(run, seen, mode=mode, threshold=threshold, generator=generator)
    strong = model.experts["strong"]
    alone = _Work()
    layers = _layers(strong)
    alone.add(strong, [x.shape[0]] * layers, [edges.count(edge_form(strong))] * layers)
    total = max(len(seen), 1)
    return output, Activation(
        nodes=len(seen),
        asked={name: done.nodes / total for name, done in work.items()},
        edges=sum(done.edges for done in work.values()),
        edges_alone=alone.edges,
        multiply_adds=sum(done.multiply_adds for done in work.values()),
        multiply_adds_alone=alone.multiply_adds,
    )


def run_on_nodes(
    network: nn.Module,
    x: Tensor,
    edges: Edges,
    nodes: Tensor | None,
    *,
    batch_size: int | None = None,
    work: _Work | None = None,
) -> Tensor:
    """Logits of a graph network for some nodes, from all the neighbours that it can see.

    Args:
        network: In evaluation mode.
        x: ``(N, F)`` features of the whole graph.
        edges: Its edges.
        nodes: ``(B,)`` distinct node numbers; all when None.
        batch_size: Most nodes around which a piece is cut out at a time; None decides by the size of the piece.
        work: Where to note what was done.

    Returns:
        ``(B, K)``.

    Raises:
        ConfigError: If ``batch_size`` is given and how far the network sees is unknown.
    """
    work = _Work() if work is None else work
    if isinstance(network, MLP):
        rows = x if nodes is None else x[nodes]
        work.add(network, [len(rows)], [])
        return torch.cat([network(part) for part in rows.split(batch_size or max(len(rows), 1))])
    if batch_size is None and (nodes is None or not _can_be_cut(network)):
        return _whole(network, x, edges, nodes, work)
    hops, form = num_hops(network), edge_form(network)
    nodes = torch.arange(x.shape[0], device=x.device) if nodes is None else nodes
    if batch_size is None:
        share = CUT_SHARE[
            "product" if isinstance(network, GraphNetwork) and not isinstance(network, GAT) else "messages"
        ]
        limit = int(share * hops * edges.count(form))
        parts = [nodes]
    else:
        limit = None
        parts = list(nodes.split(batch_size)) or [nodes]
    found = []
    for part in parts:
        piece = edges.neighborhood(part, [-1] * hops, form, max_edges=limit)
        if piece is None:
            return _whole(network, x, edges, nodes, work)
        found.append(run_network(network, x[piece.nodes], piece))
        ends = [sum(piece.nodes_per_hop[: hop + 1]) for hop in range(hops + 1)]
        counts = [sum(piece.edges_per_hop[: hop + 1]) for hop in range(hops)]
        work.add(network, ends[:0:-1], counts[::-1])
    return torch.cat(found)


def _whole(network: nn.Module, x: Tensor, edges: Edges, nodes: Tensor | None, work: _Work) -> Tensor:
    layers = _layers(network)
    work.add(network, [x.shape[0]] * layers, [edges.count(edge_form(network))] * layers)
    out = run_network(network, x, edges)
    return out if nodes is None else out[nodes]


def _can_be_cut(network: nn.Module) -> bool:
    try:
        return num_hops(network) > 0
    except ConfigError:
        return False


def _layers(network: nn.Module) -> int:
    if isinstance(network, GraphNetwork):
        return network.num_layers
    return max(num_hops(network) - 1, 0) if _can_be_cut(network) else 1
