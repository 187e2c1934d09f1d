"""Edges ordered by target, as they lie in memory-mapped files: nothing is copied that a step does not use."""

# N nodes, E edges

import tempfile
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from moeapps.core.errors import DataError
from moeapps.graph.drawing import expand
from moeapps.graph.edges import EdgeForm, Edges

__all__ = ["CompressedEdges", "scratch_tensor"]

PIECE = 1 << 22
"""Edges that are handled at a time."""

IN_MEMORY = 1 << 24
"""Bytes up to which scratch space is plain memory."""


class CompressedEdges(Edges):
    """Edges as a pointer per node and one source per edge, in the order of the targets (compressed sparse columns).

    As :class:`~moeapps.graph.edges.Edges`, with the same results for the same edges. Neighbourhoods are read from the
    arrays as they are. The edges with self-loops, for GCN and GAT, are copied once into a temporary file; a GCN's
    weights are computed for the edges that are used. A network of the user's on the whole graph gets all edges in
    memory, as an index ``(2, E)``.

    Parameters
    ----------
    pointer : int64 Tensor of shape (N + 1,)
        Node t's in-edges are the entries ``pointer[t]`` to ``pointer[t + 1]``.
    source : int32 or int64 Tensor of shape (E,)
        Source of each edge.
    weight : float32 Tensor of shape (E,), optional
        Weights.

    Examples
    --------
    >>> edges = CompressedEdges(torch.tensor([0, 0, 1, 3]), torch.tensor([2, 0, 1]))
    >>> edges.index
    tensor([[2, 0, 1],
            [1, 2, 2]])
    """

    on_disk = True

    def __init__(self, pointer: Tensor, source: Tensor, weight: Tensor | None = None) -> None:
        self.pointer, self.source, self.weight = pointer, source, weight
        self.num_nodes = len(pointer) - 1
        self._forms, self._pointers, self.samplers, self._spare = {}, {}, {}, []

    @cached_property
    def index(self) -> Tensor:  # type: ignore[override]
        """``(2, E)`` int64 source and target of each edge: all in memory."""
        target = torch.arange(self.num_nodes).repeat_interleave(self.pointer.diff())
        return torch.stack([self.source.long(), target])

    @property
    def device(self) -> torch.device:
        """Where the edges are: they stay with the files."""
        return self.pointer.device

    @cached_property
    def loops(self) -> int:
        """Number of self-loops."""
        return sum(int((source == target).sum()) for source, target, _ in self._by_nodes())

    def count(self, form: EdgeForm) -> int:
        """Number of edges in a form, without preparing it."""
        return len(self.source) if form == "plain" else len(self.source) - self.loops + self.num_nodes

    def to(self, device: torch.device | str) -> Self:
        """The same: pieces are cut out on the CPU and then moved."""
        return self

    def incoming(self, form: EdgeForm = "plain") -> tuple[Tensor, Tensor]:
        """Where each node's in-edges begin ``(N + 1,)``, and the source of each edge ``(E,)``."""
        return (self.pointer, self.source) if form == "plain" else self._looped[:2]

    def weight_of(self, form: EdgeForm, edge: Tensor | slice, source: Tensor, target: Tensor) -> Tensor | None:
        """Weights ``(e,)`` of some edges, by their places in the order of the form and by their ends."""
        if form == "plain":
            return None if self.weight is None else self.weight[edge]
        own = self._looped[2]
        given = None if own is None else own[edge]
        if form == "looped":
            return given
        scale = self._scale
        return scale[source] * scale[target] if given is None else scale[source] * given * scale[target]

    def is_directed(self) -> bool:
        """Whether some edge has no reverse; by comparing sums of hashes, so that nothing is sorted or stored."""
        difference = 0
        for source, target, _ in self._by_nodes():
            a, b = (_hash(end.numpy().astype(np.uint64)) for end in (source, target))
            there, back = _hash(a + np.uint64(3) * b), _hash(b + np.uint64(3) * a)
            difference += int(there.sum(dtype=np.uint64)) - int(back.sum(dtype=np.uint64))
        return difference % 2**64 != 0

    @cached_property
    def _looped(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Pointer, sources and weights with one self-loop per node, the last of its edges (as PyG adds them)."""
        pointer = torch.arange(self.num_nodes + 1)
        pointer[1:] += torch.cat(
            [torch.bincount(t[s != t] - a, minlength=b - a) for s, t, (a, b) in self._by_nodes()]
        ).cumsum(0)
        source = scratch_tensor((int(pointer[-1]),), self.source.dtype)
        weight = None if self.weight is None else scratch_tensor((int(pointer[-1]),), torch.float32)
        for origin, target, (first, end) in self._by_nodes():
            others = origin != target
            begin, last = pointer[first:end], pointer[first + 1 : end + 1] - 1
            place = expand(begin, last - begin)
            source[place] = origin[others].to(source.dtype)
            source[last] = torch.arange(first, end).to(source.dtype)
            if weight is not None and self.weight is not None:
                given = self.weight[int(self.pointer[first]) : int(self.pointer[end])]
                weight[place] = given[others]
                weight[last] = 1.0
                weight[pointer[target[~others] + 1] - 1] = given[~others]
        return pointer, source, weight

    @cached_property
    def _scale(self) -> Tensor:
        r""":math:`1 / \sqrt{d}` of each node, with the self-loop.

        Raises
        ------
        DataError
            If a weight is below 0, or those of a node have an infinite sum.
        """
        pointer, _, weight = self._looped
        if weight is None:
            return pointer.diff().float().pow(-0.5)
        degree = torch.zeros(self.num_nodes)
        for first, end in self._blocks(pointer):
            part = weight[int(pointer[first]) : int(pointer[end])]
            if bool((part < 0).any()):
                raise DataError("edge_weight is below 0 at some edge: a GCN divides by the root of their sum")
            target = torch.arange(first, end).repeat_interleave(pointer[first : end + 1].diff())
            degree.index_add_(0, target, part)
        if bool(degree.isinf().any()):
            raise DataError(f"the edge weights of node {int(degree.isinf().nonzero()[0])} have an infinite sum")
        return degree.pow(-0.5).masked_fill_(degree == 0, 0.0)

    def _by_nodes(self) -> Iterator[tuple[Tensor, Tensor, tuple[int, int]]]:
        """Sources and targets of the edges to the nodes from one number to another, block by block."""
        for first, end in self._blocks(self.pointer):
            source = self.source[int(self.pointer[first]) : int(self.pointer[end])].long()
            yield source, torch.arange(first, end).repeat_interleave(self.pointer[first : end + 1].diff()), (first, end)

    def _blocks(self, pointer: Tensor) -> Iterator[tuple[int, int]]:
        """Ranges of nodes with at most PIECE edges, or one node each."""
        first = 0
        while first < self.num_nodes:
            end = int(torch.searchsorted(pointer, int(pointer[first]) + PIECE, right=True)) - 1
            end = min(max(end, first + 1), self.num_nodes)
            yield first, end
            first = end


def scratch_tensor(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Room for a tensor; where it is large, on the CPU, in a temporary file without a name, which needs no memory."""
    size = int(np.prod(shape)) * dtype.itemsize
    if size <= IN_MEMORY or torch.device(device).type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    kind: Any = torch.empty(0, dtype=dtype).numpy().dtype
    with tempfile.TemporaryFile() as file:  # the mapping keeps it until the tensor is gone
        return torch.from_numpy(np.memmap(file, dtype=kind, mode="w+", shape=shape))


def _hash(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, of uint64 to uint64 (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
