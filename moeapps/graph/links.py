"""Links: pairs of nodes, which of them are held out, and what the graph around a pair says without a network.

A pair that is held out must not be among the edges that pass messages: an expert would read the answer from the graph.
All copies of it go, in both directions where the graph is undirected. (PyG's RandomLinkSplit leaves a duplicate of a
held-out edge in the graph; what it makes of a graph without duplicates is understood here as it is.)
"""

# N nodes, E edges, B pairs, F features, S columns of structure

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from scipy import sparse
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import negative_sampling

from moeapps.core.arrays import as_array, whole_numbers
from moeapps.core.callbacks import seed_everything
from moeapps.core.errors import DataError
from moeapps.core.labels import plain
from moeapps.core.tabledata.frames import frame_if_table
from moeapps.graph.edges import Edges
from moeapps.graph.node_names import exact_ids, positions

__all__ = [
    "LinkBatch",
    "Structure",
    "draw_negatives",
    "hold_out_links",
    "labeled_pairs",
    "link_labels",
    "link_pairs",
    "pair_keys",
    "read_pairs",
    "warn_of_symmetric",
    "without_links",
]

CELLS = 4_000_000
"""Neighbours that are compared at a time."""


@dataclass
class LinkBatch:
    """Pairs of nodes, and the graph that experts see.

    Parameters
    ----------
    x : Tensor of shape (N, F)
        Features.
    edges : Edges
        Edges that pass messages.
    structure : Structure
        Neighbourhoods of these edges.
    pairs : int64 Tensor of shape (2, B)
        Pairs of nodes.
    y : int64 Tensor of shape (B,)
        Whether they are linked: 1 or 0.
    known : int64 Tensor of shape (2, E)
        All edges, which are never drawn as pairs without a link.
    num_neighbors : tuple of int, optional
        In mini-batches, neighbours that training draws at each hop.
    sampled : bool, default=False
        Whether training draws neighbours; otherwise it uses the whole graph.
    batch_size : int, optional
        Nodes around which evaluation cuts out one piece.
    """

    x: Tensor
    edges: Edges
    structure: "Structure"
    pairs: Tensor
    y: Tensor
    known: Tensor
    num_neighbors: tuple[int, ...] | None = None
    sampled: bool = False
    batch_size: int | None = None

    @property
    def count(self) -> int:
        """Number of pairs B."""
        return int(self.pairs.shape[1])

    def to(self, device: torch.device) -> "LinkBatch":
        """The same batch on a device."""
        moved = copy.copy(self)
        for name in ("x", "pairs", "y", "known"):
            setattr(moved, name, getattr(self, name).to(device))
        moved.edges = self.edges.to(device)
        return moved


class Structure:
    """What the edges around a pair of nodes say, by formulas that are older than graph networks.

    Edges are taken in both directions, once, without self-loops. An edge between the two nodes themselves does not
    count: what is computed for a pair is the same whether the pair is linked or not.

    Parameters
    ----------
    index : int64 Tensor of shape (2, E)
        Edges.
    num_nodes : int
        Number of nodes N.

    Notes
    -----
    Columns: common neighbours; Adamic-Adar, the sum of 1 / log(degree) over them (Adamic and Adar 2003); resource
    allocation, the sum of 1 / degree (Zhou, Lü and Zhang 2009); Jaccard, common by all neighbours; and the smaller and
    the larger degree.
    """

    columns = ("common_neighbors", "adamic_adar", "resource_allocation", "jaccard", "degree_low", "degree_high")

    def __init__(self, index: Tensor, num_nodes: int) -> None:
        source, target = index.cpu().numpy()
        kept = source != target
        ends = np.concatenate([source[kept], target[kept]]), np.concatenate([target[kept], source[kept]])
        matrix = sparse.csr_matrix((np.ones(len(ends[0])), ends), shape=(num_nodes, num_nodes))
        matrix.data[:] = 1.0  # an edge that is there twice counts once
        self.matrix = matrix
        self.degree = np.diff(matrix.indptr).astype(np.float64)

    def __call__(self, pairs: Tensor) -> np.ndarray:
        """``(B, S)`` columns for pairs ``(2, B)``."""
        source, target = pairs.cpu().numpy()
        found = np.zeros((len(source), len(self.columns)))
        size = np.cumsum(self.degree[source] + self.degree[target] + 1)
        start = 0
        while start < len(source):
            before = size[start - 1] if start else 0.0
            stop = max(int(np.searchsorted(size, before + CELLS)), start + 1)
            found[start:stop] = self._rows(source[start:stop], target[start:stop])
            start = stop
        return found

    def features(self, pairs: Tensor) -> np.ndarray:
        """``(B, S)`` as a network or a gate takes them: counts by their logarithm."""
        found = self(pairs)
        counts = [name != "jaccard" for name in self.columns]
        found[:, counts] = np.log1p(found[:, counts])
        return found

    def _rows(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        common = self.matrix[source].multiply(self.matrix[target]).tocsr()
        degree = np.maximum(self.degree, 2.0)  # a common neighbour has two at least
        linked = np.asarray(self.matrix[source, target]).ravel()
        ends = np.stack([self.degree[source], self.degree[target]]) - linked
        count = np.asarray(common.sum(axis=1)).ravel()
        union = np.maximum(ends.sum(axis=0) - count, 1.0)
        weighted = [common @ (1.0 / np.log(degree)), common @ (1.0 / degree)]
        return np.stack([count, *weighted, count / union, ends.min(axis=0), ends.max(axis=0)], axis=1)


def link_pairs(index: Tensor, num_nodes: int, directed: bool) -> Tensor:
    """Distinct pairs ``(2, B)`` that edges link, without self-loops; undirected ones with the smaller number first.

    Raises
    ------
    DataError
        If there are none.
    """
    key = pair_keys(index[:, index[0] != index[1]], num_nodes, directed).unique()
    if not key.numel():
        raise DataError("the graph has no edge between two different nodes: there is no link to learn from")
    return torch.stack([key // num_nodes, key % num_nodes])


def pair_keys(pairs: Tensor, num_nodes: int, directed: bool) -> Tensor:
    """One number per pair ``(B,)``; undirected pairs have the same in both directions."""
    low, high = (pairs[0], pairs[1]) if directed else (pairs.min(dim=0).values, pairs.max(dim=0).values)
    return low * num_nodes + high


def hold_out_links(
    graph: Data, links: float | Tensor, seed: int, directed: bool, known: Tensor, what: str
) -> tuple[Data, Tensor, Tensor]:
    """Take some links out of a graph.

    Parameters
    ----------
    graph : Data
        With ``edge_index`` and perhaps ``edge_weight``.
    links : float or Tensor of shape (2, B)
        Part of the linked pairs, at least one of them; or the pairs.
    seed : int
        Seed of the choice.
    directed : bool
        Whether the direction of an edge matters.
    known : Tensor of shape (2, E)
        All edges, also those that are held out already: none of them is drawn as a pair without a link.
    what : str
        Name of the part, for the error.

    Returns
    -------
    graph : Data
        The rest: no edge of it links a held-out pair.
    pairs : Tensor of shape (2, B)
        The held-out pairs, then about as many that are not linked.
    y : Tensor of shape (B,)
        1 and 0.

    Raises
    ------
    DataError
        If no link would be left.
    """
    num_nodes = graph.x.shape[0]
    linked = link_pairs(graph.edge_index, num_nodes, directed)
    held = links.shape[1] if isinstance(links, Tensor) else max(1, round(links * linked.shape[1]))
    if held >= linked.shape[1]:
        how = f"{held} held out" if isinstance(links, Tensor) else f"{what}={links}"
        raise DataError(f"the graph has {linked.shape[1]} link(s): with {how} none is left to train on")
    with isolate_rng():
        seed_everything(seed)
        chosen = links if isinstance(links, Tensor) else linked[:, torch.randperm(linked.shape[1])[:held]]
        negatives = draw_negatives(known, num_nodes, held)
    left = without_links(Edges(graph.edge_index, graph.edge_weight, num_nodes), chosen, directed)
    rest = graph.clone()
    rest.edge_index, rest.edge_weight = left.index, left.weight
    y = torch.cat([torch.ones(held, dtype=torch.int64), torch.zeros(negatives.shape[1], dtype=torch.int64)])
    return rest, torch.cat([chosen, negatives], dim=1), y


def without_links(edges: Edges, pairs: Tensor, directed: bool) -> Edges:
    """The edges that link none of the pairs ``(2, B)``."""
    keys = [pair_keys(part, edges.num_nodes, directed) for part in (edges.index, pairs)]
    kept = ~torch.isin(*keys)
    return Edges(edges.index[:, kept], None if edges.weight is None else edges.weight[kept], edges.num_nodes)


def draw_negatives(known: Tensor, num_nodes: int, count: int) -> Tensor:
    """Up to ``count`` pairs ``(2, B)`` of different nodes that no edge links, by the global random generators.

    Raises
    ------
    DataError
        If there are none.
    """
    drawn: Tensor = negative_sampling(known, num_nodes, num_neg_samples=max(count, 1))
    if not drawn.numel():
        raise DataError("every pair of nodes is linked: there is nothing to tell links from")
    return drawn


def read_pairs(pairs: Any, num_nodes: int, names: pd.Index | None) -> Tensor:
    """Pairs of nodes as users write them, as ``(2, B)`` node numbers.

    Parameters
    ----------
    pairs
        ``(B, 2)`` node numbers, or a frame whose first two columns name nodes.
    num_nodes : int
        Number of nodes N.
    names : pandas Index or None
        Names of the nodes.

    Raises
    ------
    DataError
        If they have another shape, are no whole numbers, name a node that is not there, or pair a node with itself.
    """
    pairs = frame_if_table(pairs)
    if isinstance(pairs, pd.DataFrame):
        if pairs.shape[1] < 2:
            raise DataError(f"pairs must have two columns, got {list(pairs.columns)}")
        ends = [positions(exact_ids(pairs.iloc[:, i], f"column {pairs.columns[i]!r} of pairs"), names, "pairs")
                for i in range(2)]  # fmt: skip
        found = np.stack(ends, axis=1)
    else:
        found = as_array(pairs)
        if found.ndim != 2 or found.shape[1] != 2:
            turned = found.ndim == 2 and found.shape[0] == 2
            hint = "; pairs.T turns PyG's (2, B) edge_label_index" if turned else ""
            raise DataError(f"pairs must have shape (B, 2), one pair of nodes per row, got {found.shape}{hint}")
        if found.dtype.kind not in "iu":
            numbers = whole_numbers(found.ravel()) if found.dtype.kind == "f" else None
            if numbers is None:
                raise DataError(f"pairs must hold whole node numbers, got {found.dtype}: {found.ravel()[:2].tolist()}")
            found = np.asarray(numbers).reshape(found.shape)
    outside = ((found < 0) | (found >= num_nodes)).any(axis=1)
    if outside.any():
        row = int(outside.argmax())
        raise DataError(f"pair {row} is {found[row].tolist()}, but the graph has the nodes 0 to {num_nodes - 1}")
    same = found[:, 0] == found[:, 1]
    if same.any():
        row = int(same.argmax())
        raise DataError(f"pair {row} is node {int(found[row, 0])} with itself ({int(same.sum())} such pairs in all)")
    return torch.from_numpy(np.ascontiguousarray(found.T.astype(np.int64)))


def labeled_pairs(data: Data, num_nodes: int) -> tuple[Tensor, Tensor] | None:
    """Pairs and labels that PyG's RandomLinkSplit has put into a graph; None where it has not.

    Raises
    ------
    DataError
        If there are pairs without labels, or labels that are not 0 and 1.
    """
    index = getattr(data, "edge_label_index", None)
    if index is None:
        if getattr(data, "pos_edge_label_index", None) is not None:
            raise DataError("the graph has pos_edge_label_index: make it by RandomLinkSplit(split_labels=False)")
        return None
    index = as_array(index)
    if index.ndim != 2 or index.shape[0] != 2:
        raise DataError(f"edge_label_index must have shape (2, B), got {index.shape}")
    loops = index[0] == index[1]
    if loops.any():
        raise DataError(
            f"edge_label_index pairs {int(loops.sum())} nodes with themselves, the first is node "
            f"{index[0, int(loops.argmax())]}: torch_geometric.transforms.RemoveSelfLoops before RandomLinkSplit takes "
            "them out"
        )
    pairs = read_pairs(index.T, num_nodes, None)
    label = getattr(data, "edge_label", None)
    if label is None:
        raise DataError("the graph has edge_label_index, but no edge_label")
    return pairs, link_labels(label, pairs.shape[1], "edge_label")


def link_labels(labels: Any, count: int, what: str) -> Tensor:
    """``(B,)`` int64 of 1 (linked) and 0.

    Raises
    ------
    DataError
        If there is not one per pair, or one is neither 0 nor 1.
    """
    values = as_array(labels)
    if values.shape != (count,):
        raise DataError(f"{what} must have one label per pair, shape ({count},), got {values.shape}")
    # objects: whole numbers beside a missing value
    good = np.isin(values, (0, 1)) if values.dtype.kind in "biufO" else np.zeros(count, dtype=bool)
    if not good.all():
        row = int((~good).argmax())
        raise DataError(f"{what} must be 1 (linked) or 0, got {plain(values[row])!r} for pair {row}")
    return torch.from_numpy(values.astype(np.int64))


def warn_of_symmetric(decoder: str, directed: bool) -> None:
    """Warn where edges have a direction that the decoder cannot tell."""
    if directed and decoder != "mlp":
        warnings.warn(
            f"the graph is directed, and decoder={decoder!r} gives both directions of a pair the same probability: "
            "decoder='mlp' tells them apart, torch_geometric.utils.to_undirected makes the graph symmetric",
            UserWarning,
            stacklevel=3,
        )
