"""A graph network on a whole graph, layer by layer: every row is computed once, and memory is bounded.

Around a batch of nodes the piece of the graph that L layers need grows with every hop, and the pieces of several
batches overlap. Layer by layer, each hidden row is computed once and kept in a temporary file: first the set of nodes
that each layer has to compute is found, from the last layer to the first; then each layer computes its nodes, block by
block. The result is that of the whole graph, up to rounding.
"""

# N nodes, E edges, B nodes predicted, d width of a layer, K classes, L layers

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import BatchNorm, LayerNorm

from moeapps.graph.compressed import scratch_tensor
from moeapps.graph.convolutions import Rows, steps_of, tail_of
from moeapps.graph.drawing import expand
from moeapps.graph.edges import EdgeForm, Edges
from moeapps.graph.networks import GraphNetwork, refuse_negative, sorted_edge_index
from moeapps.graph.sparse_features import SparseFeatures

__all__ = ["LayerwiseRun", "edges_needed", "layerwise", "nodes_needed", "works_by_layers"]

EDGES = 1 << 20
"""Edges of a block, at most, unless one node has more."""
ROWS = 1 << 16
"""Rows of a block, at most."""


@dataclass
class LayerwiseRun:
    """Result of :func:`layerwise`.

    Parameters
    ----------
    logits : Tensor of shape (B, K)
        Of the nodes that were asked for, in their order.
    rows : list of int
        Rows that each layer read, first layer first.
    edges : list of int
        Edges that each layer used.
    """

    logits: Tensor
    rows: list[int]
    edges: list[int]


def works_by_layers(network: nn.Module) -> bool:
    """Whether :func:`layerwise` can run it: moeapps' own, in evaluation mode, with norms that look at one row each."""
    if not isinstance(network, GraphNetwork) or type(network).forward is not GraphNetwork.forward or network.training:
        return False
    return all(
        isinstance(norm, nn.Identity | nn.BatchNorm1d | nn.LayerNorm | BatchNorm)
        or (isinstance(norm, LayerNorm) and norm.mode == "node")
        for norm in network.norms
    )


@torch.no_grad()
def layerwise(network: GraphNetwork, x: Tensor, edges: Edges, nodes: Tensor | None) -> LayerwiseRun:
    """Logits of some nodes, from all the nodes that they depend on.

    Parameters
    ----------
    network : GraphNetwork
        See :func:`works_by_layers`.
    x : Tensor of shape (N, F)
        Features, also memory-mapped ones.
    edges : Edges
        Edges of the graph.
    nodes : Tensor of shape (B,) or None
        Distinct node numbers; all nodes when None.
    """
    # 1. From the last layer to the first: the nodes whose rows a layer has to compute, and those that it reads.
    # 2. From the first layer to the last: linear maps that come before the sum over neighbours, for the rows that are
    #    read; then sums, the rest of the layer, norm and activation, in blocks of the nodes to compute.
    # 3. With jumping knowledge the rows of all layers are joined at the end; without, the last layer's are the logits.
    form = network.edge_form
    needed = nodes_needed(edges, form, nodes, len(network.convs))
    pointer, _ = edges.incoming(form)
    used = edges_needed(edges, form, needed[1:])
    hidden, counts = x, []
    kept: list[Tensor] = []
    layers = list(zip(network.convs, network.norms, strict=True))
    for number, (conv, norm) in enumerate(layers):
        inner = number < len(layers) - 1 or network.jk_mode is not None
        read, computed = needed[number], needed[number + 1]
        counts.append(len(x) if read is None else len(read))
        hidden = _layer(network, conv, tail_of(network, norm) if inner else None, hidden, edges, read, computed)
        kept.append(hidden)
    wanted = torch.arange(len(x), device=pointer.device) if nodes is None else nodes
    if network.jk_mode is None:
        return LayerwiseRun(hidden if nodes is None else hidden[wanted], counts, used)
    device = next(network.parameters()).device
    parts = []
    for rows in wanted.split(ROWS):
        found = [layer[rows].to(device) for layer in kept]
        parts.append(network.lin(network.jk(found) if hasattr(network, "jk") else found[-1]))
    return LayerwiseRun(torch.cat(parts), counts, used)


def edges_needed(edges: Edges, form: EdgeForm, computed: list[Tensor | None]) -> list[int]:
    """Number of edges that each layer uses, from the nodes that it computes; None for all."""
    pointer, _ = edges.incoming(form)
    return [
        int(pointer[-1]) if nodes is None else int((pointer[nodes + 1] - pointer[nodes]).sum()) for nodes in computed
    ]


def nodes_needed(edges: Edges, form: EdgeForm, nodes: Tensor | None, layers: int) -> list[Tensor | None]:
    """Nodes that each layer reads, first layer first, and those of the result; None for all."""
    if nodes is None:
        return [None] * (layers + 1)
    pointer, source = edges.incoming(form)
    reached = torch.zeros(edges.num_nodes, dtype=torch.bool, device=pointer.device)
    reached[nodes] = True
    ordered = reached.nonzero().flatten()
    found: list[Tensor | None] = [ordered]
    frontier: Tensor | None = ordered
    for _ in range(layers):
        if frontier is not None:
            before = reached.clone()
            for block in _blocks(frontier, pointer):
                reached[source[expand(pointer[block], pointer[block + 1] - pointer[block])].long()] = True
            frontier = (reached & ~before).nonzero().flatten()
            ordered = reached.nonzero().flatten()
        found.append(ordered)
    every = edges.num_nodes
    return [None if rows is None or len(rows) == every else rows for rows in found[::-1]]


def _layer(
    network: GraphNetwork,
    conv: nn.Module,
    tail: Rows | None,
    hidden: Tensor,
    edges: Edges,
    read: Tensor | None,
    computed: Tensor | None,
) -> Tensor:
    """Rows ``(N, d)`` of one layer; those that were not asked for are undefined."""
    prepare, finish, mean = steps_of(conv)
    form = network.edge_form
    summed, device = hidden, next(conv.parameters()).device
    if prepare is not None:
        summed = _mapped(lambda rows: prepare(rows.to(device)), hidden, read)
    elif isinstance(hidden, SparseFeatures):
        summed = hidden.to_dense()
    pointer, source = edges.incoming(form)
    out: Tensor | None = None
    every = torch.arange(edges.num_nodes, device=pointer.device) if computed is None else computed
    for block in _blocks(every, pointer):
        start = pointer[block]
        degree = pointer[block + 1] - start
        first, end = (int(start[0]), int(pointer[block[-1] + 1])) if len(block) else (0, 0)
        adjacent = computed is None or len(block) == int(block[-1] - block[0]) + 1
        place = slice(first, end) if adjacent else expand(start, degree)
        origin = source[place]
        weight = None
        if edges.weighted(form):
            target = block.repeat_interleave(degree)
            edge = torch.arange(first, end, device=pointer.device) if adjacent else place
            weight = edges.weight_of(form, edge, origin.long(), target)
        if finish is None:
            more = {} if weight is None or not network.uses_weights else {network.weight_name: weight}
            rows = _piece(conv, hidden, block, origin.long(), degree, more)
        else:
            rows = finish(hidden[block].to(device), _sum(summed, origin, degree, weight, mean).to(device))
        rows = rows if tail is None else tail(rows)
        if out is None:
            out = scratch_tensor((edges.num_nodes, rows.shape[1]), rows.dtype, pointer.device)
        out[block] = rows.to(out.device)
    assert out is not None
    return out


def _mapped(function: Rows, hidden: Tensor, rows: Tensor | None) -> Tensor:
    """The function of these rows (of all when None), the others undefined: ``(N, d)``."""
    out: Tensor | None = None
    every = range(0, len(hidden) if rows is None else len(rows), ROWS)
    for start in every:
        part: Any = slice(start, start + ROWS) if rows is None else rows[start : start + ROWS]
        found = function(hidden[part])
        if out is None:
            out = scratch_tensor((len(hidden), found.shape[1]), found.dtype, hidden.device)
        out[part] = found.to(out.device)
    assert out is not None
    return out


def _sum(rows: Tensor, source: Tensor, degree: Tensor, weight: Tensor | None, mean: bool) -> Tensor:
    """``(b, d)`` sums or means over the in-edges of b nodes, whose sources are numbers of the ``(N, d)`` rows."""
    pointer = torch.zeros(len(degree) + 1, dtype=source.dtype, device=source.device)
    torch.cumsum(degree, 0, out=pointer[1:])
    value = rows.new_ones(len(source)) if weight is None else weight.to(rows.dtype)
    matrix = torch.sparse_csr_tensor(pointer, source, value, (len(degree), len(rows)), check_invariants=False)
    total: Tensor = matrix @ rows
    if not mean:
        return total
    if weight is None:
        return total / degree.clamp(min=1)[:, None]
    refuse_negative(weight, "a mean over neighbours (sage)")
    amount = matrix @ torch.ones_like(rows[:, :1])
    return total / amount.clamp(min=torch.finfo(amount.dtype).tiny)


def _piece(
    conv: nn.Module, hidden: Tensor, block: Tensor, source: Tensor, degree: Tensor, more: dict[str, Tensor]
) -> Tensor:
    """One layer on the piece of one hop around a block of nodes."""
    others = source.unique()
    others = others[~torch.isin(others, block)]
    nodes = torch.cat([block, others])
    place = torch.empty(int(nodes.max()) + 1, dtype=torch.int64, device=nodes.device)
    place[nodes] = torch.arange(len(nodes), device=nodes.device)
    target = torch.arange(len(block), device=nodes.device).repeat_interleave(degree)
    index = sorted_edge_index(torch.stack([place[source], target]), len(nodes))
    device = next(conv.parameters()).device
    found: Tensor = conv(hidden[nodes].to(device), index.to(device), **{k: v.to(device) for k, v in more.items()})
    return found[: len(block)]


def _blocks(nodes: Tensor, pointer: Tensor) -> Iterator[Tensor]:
    """The nodes in parts with at most EDGES in-edges and ROWS nodes, or one node each."""
    until = (pointer[nodes + 1] - pointer[nodes]).cumsum(0)
    start, done = 0, 0
    while start < len(nodes):
        end = int(torch.searchsorted(until, done + EDGES, right=True))
        end = min(max(end, start + 1), start + ROWS, len(nodes))
        yield nodes[start:end]
        start, done = end, int(until[end - 1])
