"""Edges in the forms that graph networks use, each computed once, and the neighbourhoods that a prediction needs.

A graph convolution uses the edges as they are, with a self-loop at every node, or with self-loops and the weights of
Kipf and Welling (2017). They are sorted by target, so that a layer is one sparse product. :class:`Edges`
keeps these forms beside the graph, not inside the network: a network then holds weights only and can be used on any
graph.

:meth:`Edges.neighborhood` cuts out what L layers need for some nodes. The normalisation has been done on the whole
graph before the cut, so that a network computes on the piece exactly what it computes on the whole.
"""

# N nodes, E edges, M nodes and E' edges of a neighbourhood, S seeds, L layers

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import add_remaining_self_loops

from moeapps.core.errors import DataError
from moeapps.graph.drawing import draw, expand

__all__ = ["EdgeForm", "Edges", "Neighborhood", "is_sparse", "sparse_parts"]

EdgeForm = Literal["plain", "looped", "normalized"]


@dataclass(frozen=True, eq=False)
class Neighborhood:
    """The part of a graph that L layers use for some seed nodes, in the layout of PyG's neighbour loader.

    Parameters
    ----------
    nodes : Tensor of shape (M,)
        Numbers of the nodes in the whole graph, by hop, the seeds first.
    edge_index : Tensor of shape (2, E')
        Edges among them by hop, in local numbers.
    edge_weight : Tensor of shape (E',) or None
        Weights of these edges.
    nodes_per_hop : list of int
        Number of nodes first reached at each hop, the seeds first; L + 1 numbers.
    edges_per_hop : list of int
        Number of edges that lead to each hop's nodes; L numbers.
    """

    nodes: Tensor
    edge_index: Tensor
    edge_weight: Tensor | None
    nodes_per_hop: list[int]
    edges_per_hop: list[int]

    def to(self, device: torch.device) -> "Neighborhood":
        """The same piece on a device."""
        if self.nodes.device == device:
            return self
        weight = None if self.edge_weight is None else self.edge_weight.to(device)
        return replace(self, nodes=self.nodes.to(device), edge_index=self.edge_index.to(device), edge_weight=weight)

    @property
    def edges_touched(self) -> int:
        """Edges used, summed over layers: the last layer uses the first hop, the first layer all hops."""
        return sum(sum(self.edges_per_hop[: hop + 1]) for hop in range(len(self.edges_per_hop)))


class Edges:
    """The edges of one graph and what is computed from them.

    Parameters
    ----------
    index : int64 Tensor of shape (2, E)
        Source and target of each edge.
    weight : Tensor of shape (E,) or None
        Weight of each edge.
    num_nodes : int
        Number of nodes N.

    Examples
    --------
    >>> edges = Edges(torch.tensor([[0, 1, 2], [1, 2, 3]]), None, num_nodes=4)
    >>> edges.neighborhood(torch.tensor([3]), [-1, -1]).nodes
    tensor([3, 2, 1])
    """

    on_disk = False
    """Whether the edges stay in files, and the features with them: pieces are cut out on the CPU and then moved."""

    def __init__(self, index: Tensor, weight: Tensor | None, num_nodes: int) -> None:
        self.index, self.weight, self.num_nodes = index, weight, num_nodes
        self._forms: dict[str, tuple[EdgeIndex, Tensor | None]] = {}
        self._pointers: dict[str, tuple[Tensor, Tensor]] = {}
        self.samplers: dict[tuple[str, tuple[int, ...]], Any] = {}
        self._spare: list[Tensor] = []

    @classmethod
    def of(cls, edges: Any, weight: Tensor | None, num_nodes: int) -> Self:
        """Edges as PyG's layers take them: prepared ones, a ``(2, E)`` index, or a sparse ``adj_t`` ``(N, N)``.

        Raises
        ------
        DataError
            If they are neither, or ``weight`` is given beside ``adj_t``, whose values are the weights.
        """
        if isinstance(edges, cls):
            return edges
        if is_sparse(edges):
            if weight is not None:
                raise DataError("edge_weight was given beside adj_t, whose values are the weights of its edges")
            row, column, weight, _ = sparse_parts(edges)
            unweighted = weight is None or bool((weight == 1).all())
            return cls(torch.stack([column, row]), None if unweighted else weight, num_nodes)
        if not isinstance(edges, Tensor) or edges.ndim != 2 or edges.shape[0] != 2:
            shape = tuple(edges.shape) if isinstance(edges, Tensor) else type(edges).__name__
            raise DataError(f"edge_index must be a Tensor of shape (2, E), a sparse adj_t or Edges, got {shape}")
        return cls(edges, weight, num_nodes)

    @property
    def device(self) -> torch.device:
        """Where the edges are."""
        return self.index.device

    def count(self, form: EdgeForm) -> int:
        """Number of edges in a form, without preparing it."""
        if form == "plain":
            return self.index.shape[1]
        return self.index.shape[1] - int((self.index[0] == self.index[1]).sum()) + self.num_nodes

    def to(self, device: torch.device | str) -> Self:
        """The same edges on another device."""
        if torch.device(device) == self.device:
            return self
        weight = None if self.weight is None else self.weight.to(device)
        return type(self)(self.index.to(device), weight, self.num_nodes)

    def form(self, form: EdgeForm) -> tuple[EdgeIndex, Tensor | None]:
        r"""Edges ``(2, E)`` sorted by target and their weights, in one of three forms.

        ``"plain"`` is as given, ``"looped"`` has a self-loop at every node, ``"normalized"`` has also the weights
        :math:`1 / \sqrt{d_u d_v}` of a GCN, with the degrees of the whole graph.

        Raises
        ------
        DataError
            If the form is normalised and a weight is below 0, or those of a node have an infinite sum: the normalised
            weights would be NaN or 0.
        """
        if form not in self._forms:
            index, weight = self.index, self.weight
            if form == "looped":
                index, weight = add_remaining_self_loops(index, weight, num_nodes=self.num_nodes)
            elif form == "normalized":
                _refuse_weights(index, weight, self.num_nodes)
                index, weight = gcn_norm(index, weight, self.num_nodes)
            order = index[1].argsort(stable=True)
            sorted_index = sorted_edge_index(index[:, order], self.num_nodes).fill_cache_()
            self._forms[form] = (sorted_index, None if weight is None else weight[order].contiguous())
        return self._forms[form]

    def incoming(self, form: EdgeForm = "plain") -> tuple[Tensor, Tensor]:
        """Where each node's in-edges begin ``(N + 1,)`` in the form's order, and the source of each edge ``(E,)``."""
        if form not in self._pointers:
            index = self.form(form)[0].as_tensor()
            degree = torch.bincount(index[1], minlength=self.num_nodes)
            pointer = torch.zeros(self.num_nodes + 1, dtype=torch.int64, device=index.device)
            torch.cumsum(degree, 0, out=pointer[1:])
            self._pointers[form] = (pointer, index[0].contiguous())
        return self._pointers[form]

    def neighborhood(
        self, seeds: Tensor, num_neighbors: Sequence[int], form: EdgeForm = "plain", max_edges: int | None = None
    ) -> Neighborhood | None:
        """In-neighbours of the seeds, hop by hop: all of them, or a random choice (Hamilton et al. 2017).

        Where edges have weights and only k of a node's d in-edges are drawn, their weights are multiplied by d / k: the
        weighted sum over neighbours keeps its expectation.

        Parameters
        ----------
        seeds : Tensor of shape (S,)
            Distinct node numbers.
        num_neighbors : sequence of int
            For each hop, the largest number of in-neighbours to take for a node, drawn without replacement from torch's
            global generator; -1 for all.
        form : EdgeForm, default="plain"
            Which edges.
        max_edges : int, optional
            Return None when the layers together would use more edges.

        Returns
        -------
        Neighborhood or None
            The neighbourhood; None if it would use more than ``max_edges``.
        """
        # 1. The seeds are the first frontier.
        # 2. Per hop: take all in-edges of the frontier, or draw some; scale their weights by degree / taken.
        # 3. Their sources that were not reached before are the next frontier, numbered after all nodes so far.
        # 4. Put nodes and edges of all hops together, in local numbers.
        pointer, source = self.incoming(form)
        local = self._numbers()
        local[seeds] = torch.arange(seeds.numel(), device=seeds.device)
        nodes, frontier, total = [seeds], seeds, seeds.numel()
        edges, sources, targets, scales = [], [], [], []
        touched = 0
        for hop, limit in enumerate(num_neighbors):
            start = pointer[frontier]
            degree = pointer[frontier + 1] - start
            taken = degree if limit < 0 else degree.clamp(max=limit)
            if max_edges is not None:
                touched += int(taken.sum()) * (len(num_neighbors) - hop)
                if touched > max_edges:
                    self._give_back(local, nodes)
                    return None
            edge = expand(start, degree) if limit < 0 else draw(start, degree, limit)
            edges.append(edge)
            sources.append(source[edge].long())
            targets.append(frontier.repeat_interleave(taken, output_size=len(edge)))
            if limit >= 0 and self.weighted(form):
                scales.append((degree / taken.clamp(min=1)).repeat_interleave(taken, output_size=len(edge)))
            else:
                scales.append(torch.ones_like(edge, dtype=torch.float32))
            reached = sources[-1]
            frontier = _distinct(reached[local[reached] < 0])
            local[frontier] = torch.arange(total, total + frontier.numel(), device=seeds.device)
            total += frontier.numel()
            nodes.append(frontier)
        ends = [torch.cat([seeds[:0], *end]) for end in (sources, targets)]
        weight = self.weight_of(form, torch.cat([seeds[:0], *edges]), *ends)
        if weight is not None:
            weight = weight * torch.cat([weight[:0], *(scale.to(weight.dtype) for scale in scales)])
        index = torch.stack([local[end] for end in ends])
        self._give_back(local, nodes)
        return Neighborhood(
            nodes=torch.cat(nodes),
            edge_index=index,
            edge_weight=weight,
            nodes_per_hop=[part.numel() for part in nodes],
            edges_per_hop=[part.numel() for part in edges],
        )

    def weighted(self, form: EdgeForm) -> bool:
        """Whether edges have weights in a form."""
        return self.weight is not None or form == "normalized"

    def weight_of(self, form: EdgeForm, edge: Tensor | slice, source: Tensor, target: Tensor) -> Tensor | None:
        """Weights ``(e,)`` of some edges, by their places in the order of the form and by their ends."""
        weight = self.form(form)[1]
        return None if weight is None else weight[edge]

    def _numbers(self) -> Tensor:
        """-1 for each node; kept between calls, since filling it takes longer than drawing a batch of a large graph."""
        try:
            return self._spare.pop()
        except IndexError:  # the first call, or several threads
            return torch.full((self.num_nodes,), -1, dtype=torch.int64, device=self.device)

    def _give_back(self, local: Tensor, nodes: list[Tensor]) -> None:
        for part in nodes:
            local[part] = -1
        self._spare.append(local)


def _distinct(nodes: Tensor) -> Tensor:
    """Distinct node numbers, in ascending order."""
    if nodes.is_cuda:
        return nodes.unique()
    ordered = np.sort(nodes.numpy())  # vectorised where torch's is not
    return torch.from_numpy(ordered[np.r_[True, ordered[1:] != ordered[:-1]]] if len(ordered) else ordered)


def is_sparse(matrix: Any) -> bool:
    """Whether this is a sparse matrix of torch, or of torch_sparse, which is known by its methods and not imported."""
    if isinstance(matrix, Tensor):
        return matrix.layout != torch.strided
    return hasattr(matrix, "coo") and hasattr(matrix, "sparse_sizes")


def sparse_parts(matrix: Any) -> tuple[Tensor, Tensor, Tensor | None, tuple[int, ...]]:
    """Rows and columns ``(E,)`` of the entries of a sparse matrix, their values if it has any, and its shape.

    Entries that are there twice stay two.
    """
    if not isinstance(matrix, Tensor):
        row, column, value = matrix.coo()
        return row, column, value, tuple(matrix.sparse_sizes())
    coo = matrix if matrix.layout == torch.sparse_coo else matrix.to_sparse_coo()
    row, column = coo._indices()
    return row, column, coo._values(), tuple(matrix.shape)


def _refuse_weights(index: Tensor, weight: Tensor | None, num_nodes: int) -> None:
    """Refuse weights by which a GCN cannot normalise."""
    if weight is None:
        return
    below = (weight < 0).nonzero().flatten()
    if below.numel():
        first = int(below[0])
        raise DataError(
            f"edge_weight is below 0 at {below.numel()} edges, the first is edge {first}: {int(index[0, first])} -> "
            f"{int(index[1, first])}, {float(weight[first]):g}; a GCN divides by the root of the summed weights, which "
            "then is not a number: use weights of at least 0, or a module whose layers take signed weights "
            "(torch_geometric.nn.GraphConv)"
        )
    infinite = weight.new_zeros(num_nodes).index_add(0, index[1], weight).isinf().nonzero().flatten()
    if infinite.numel():
        raise DataError(
            f"the edge weights of node {int(infinite[0])} have an infinite sum, by which a GCN divides: "
            "scale edge_weight down"
        )


def sorted_edge_index(index: Tensor, num_nodes: int) -> EdgeIndex:
    """Tell PyG that these edges ``(2, E)`` are sorted by target, which makes a sum over neighbours a sparse product."""
    return EdgeIndex(index, sparse_size=(num_nodes, num_nodes), sort_order="col")


def _use_sparse_products_once() -> None:
    """Use up torch's warnings, given once per process, that sparse matrices are in beta state."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nothing = torch.zeros(2, dtype=torch.int64)
        torch.sparse_csc_tensor(nothing, nothing[:0], torch.zeros(0), (1, 1)).t()


_use_sparse_products_once()
