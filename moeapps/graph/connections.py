"""Edges and their weights: what users have to one ``(2, E)`` index and one number per edge.

There are two conventions for matrices. In an adjacency matrix A, as scipy and networkx have it, A[i, j] is an edge
from i to j. In PyG's transposed ``adj_t``, adj_t[i, j] is an edge from j to i.
"""

# N nodes, E edges

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import to_undirected

from moeapps.core.arrays import as_array, numbers
from moeapps.core.errors import DataError
from moeapps.core.tabledata.frames import frame_if_table
from moeapps.graph.edges import is_sparse, sparse_parts
from moeapps.graph.node_names import exact_ids, node_names, positions

__all__ = ["SOURCES", "TARGETS", "WEIGHTS", "Connections", "of_data", "read_edges", "undirected_edges"]

WAY_OUT = "; take it out, or keep one number per edge as edge_weight"

SOURCES = ("source", "src", "from", "from_node")
TARGETS = ("target", "dst", "dest", "destination", "to", "to_node")
WEIGHTS = ("weight", "weights", "edge_weight")


@dataclass(frozen=True, eq=False)
class Connections:
    """Edges of a graph.

    Parameters
    ----------
    index : int64 Tensor of shape (2, E)
        Source and target of each edge.
    weight : float32 Tensor of shape (E,) or None
        Weight of each edge.
    """

    index: Tensor
    weight: Tensor | None


def read_edges(edge_index: Any, num_nodes: int, x: Any = None, edge_weight: Any = None) -> Connections:
    """Edges in any form that :func:`~moeapps.graph.inputs.as_graph` describes.

    Parameters
    ----------
    edge_index
        The edges.
    num_nodes : int
        Number of nodes N.
    x : optional
        Features. If they are a pandas frame, frames of edges and networkx graphs name nodes as its index does.
    edge_weight : optional
        ``(E,)`` or ``(E, 1)`` weights, if the edges do not bring their own.

    Raises
    ------
    DataError
        If there is an edge to a node that does not exist, or the form is unknown or has two meanings.
    """
    edge_index = frame_if_table(edge_index)
    own: Any = None
    name = ""
    if sparse.issparse(edge_index) or is_sparse(edge_index):
        found = _of_matrix(edge_index, num_nodes)
        edge_index, own, name = found.index, found.weight, "the adjacency matrix"
    elif isinstance(edge_index, pd.DataFrame):
        edge_index, own, name = _of_frame(edge_index, node_names(x))
    elif hasattr(edge_index, "to_undirected") and hasattr(edge_index, "adjacency"):
        edge_index, own = _of_networkx(edge_index, node_names(x), num_nodes)
        name = "the networkx graph"
    index = _index(edge_index, num_nodes)
    given = _weight(edge_weight, index, "edge_weight")
    own_weight = _weight(own, index, f"the weight of {name}")
    if own_weight is not None and given is not None and not torch.equal(own_weight, given):
        raise DataError(f"edge_weight and the weights of {name} differ: give one of the two")
    return Connections(index, own_weight if given is None else given)


def of_data(data: Data, num_nodes: int) -> Connections:
    """Edges of a PyG ``Data``: its ``edge_index`` or ``adj_t``, with ``edge_weight`` or an ``edge_attr`` of one number.

    Raises
    ------
    DataError
        If ``edge_index`` and ``adj_t`` or ``edge_weight`` and ``edge_attr`` are there and differ, or the edges have
        attributes that are not one number each.
    """
    edge_index, adj_t = (getattr(data, name, None) for name in ("edge_index", "adj_t"))
    if edge_index is None and adj_t is None and getattr(data, "adj", None) is not None:
        raise DataError(
            "the graph has a dense matrix adj and no edge_index: "
            "data.edge_index, data.edge_weight = torch_geometric.utils.dense_to_sparse(data.adj) reads it"
        )
    if adj_t is None:
        return _with_weights(data, read_edges(edge_index, num_nodes, frame_if_table(data.x)), "edge_index")
    transposed = _of_adj_t(adj_t, num_nodes)
    if edge_index is None:
        # an edge_weight or edge_attr left beside adj_t is in its order, as ToSparseTensor sorts it
        return _with_weights(data, transposed, "adj_t")
    found = _with_weights(data, read_edges(edge_index, num_nodes, frame_if_table(data.x)), "edge_index")
    if not _same(found, transposed, num_nodes):
        raise DataError(
            "edge_index and adj_t are not the same edges (adj_t[i, j] is the edge from j to i) with the same weights: "
            "delete one of them, as in del data.adj_t"
        )
    return found


def undirected_edges(
    index: Tensor, weight: Tensor | None, num_nodes: int, name: str, ids: pd.Index | None = None
) -> tuple[Tensor, Tensor | None]:
    """Edges and weights with the reverse of each; an edge that is there twice must have one weight.

    Parameters
    ----------
    index : int64 Tensor of shape (2, E)
        Source and target of each edge.
    weight : Tensor of shape (E,) or None
        Weight of each edge.
    num_nodes : int
        Number of nodes N.
    name : str
        Where the edges are from, for the error.
    ids : Index of length N, optional
        What the error calls the nodes; their numbers when None.

    Raises
    ------
    DataError
        If the two directions of an edge have different weights.
    """
    if weight is None:
        return to_undirected(index, num_nodes=num_nodes), None
    lowest, highest = (to_undirected(index, weight, num_nodes=num_nodes, reduce=reduce) for reduce in ("min", "max"))
    different = (lowest[1] != highest[1]).nonzero().flatten()
    if different.numel():
        source, target = lowest[0][:, different[0]].tolist()
        if ids is not None:
            source, target = repr(ids[source]), repr(ids[target])
        raise DataError(
            f"{name} has several weights for the edge between {source} and {target}: with undirected=True an edge has "
            "one weight in both directions; undirected=False keeps them"
        )
    return lowest[0], lowest[1]


def _with_weights(data: Data, edges: Connections, name: str) -> Connections:
    """Edges with their own weights or those of the data's attributes."""
    beside = _weight_of_data(data, edges.index)
    if edges.weight is None:
        return Connections(edges.index, beside)
    if beside is not None and not torch.equal(edges.weight, beside):
        raise DataError(f"the values of {name} and the weights in edge_weight or edge_attr differ: keep one of them")
    return edges


def _weight_of_data(data: Data, index: Tensor) -> Tensor | None:
    weight = _weight(getattr(data, "edge_weight", None), index, "edge_weight")
    attr = getattr(data, "edge_attr", None)
    if attr is None or np.size(attributes := as_array(attr)) == 0:
        return weight
    if attributes.shape not in ((index.shape[1],), (index.shape[1], 1)):
        raise DataError(
            f"edge_attr has shape {attributes.shape}: of edge attributes only one number per edge, its weight, is "
            f"supported{WAY_OUT}"
        )
    found = _weight(attributes, index, "edge_attr")
    if weight is None or found is None:
        return None if found is None or bool((found == 1).all()) else found  # only ones are no weights
    if not torch.equal(weight, found):
        raise DataError(f"edge_weight and edge_attr are there and differ: only one weight per edge is used{WAY_OUT}")
    return found


def _of_adj_t(adj_t: Any, num_nodes: int) -> Connections:
    if sparse.issparse(adj_t):
        coo = adj_t.tocoo()
        row, column, value, shape = coo.row, coo.col, coo.data, adj_t.shape
    elif is_sparse(adj_t):
        row, column, value, shape = sparse_parts(adj_t)
    else:
        raise DataError(
            f"adj_t must be a sparse matrix or tensor, got {type(adj_t).__name__} {tuple(np.shape(adj_t))}; "
            "torch_geometric.transforms.ToSparseTensor makes one of edge_index"
        )
    if tuple(shape[:2]) != (num_nodes, num_nodes):
        raise DataError(f"adj_t must have shape ({num_nodes}, {num_nodes}), got {tuple(shape)}")
    return _entries(column, row, value, num_nodes, "adj_t")


def _of_matrix(matrix: Any, num_nodes: int) -> Connections:
    """Edges of an adjacency matrix."""
    if not sparse.issparse(matrix):
        return _of_tensor(matrix, num_nodes)
    if matrix.shape != (num_nodes, num_nodes):
        raise DataError(f"the adjacency matrix must be ({num_nodes}, {num_nodes}), got {matrix.shape}")
    coo = matrix.tocoo()
    return _entries(coo.row, coo.col, coo.data, num_nodes, "the adjacency matrix")


def _of_tensor(matrix: Any, num_nodes: int) -> Connections:
    """Edges of a sparse tensor whose convention is not said: only a symmetric one has one meaning."""
    row, column, value, shape = sparse_parts(matrix)
    if tuple(shape[:2]) != (num_nodes, num_nodes):
        raise DataError(f"the adjacency matrix must be ({num_nodes}, {num_nodes}), got {tuple(shape)}")
    forward = _entries(row, column, value, num_nodes, "the adjacency matrix")
    if not _same(forward, Connections(forward.index.flip(0), forward.weight), num_nodes):
        raise DataError(
            "edge_index is a sparse tensor A that is not symmetric: if A[i, j] is the edge from j to i (as PyG's "
            "layers read it), give Data(x=x, adj_t=A); if it is the edge from i to j, give Data(x=x, adj_t=A.t())"
        )
    return forward


def _entries(source: Any, target: Any, value: Any, num_nodes: int, name: str) -> Connections:
    """Entries of a matrix as edges; one that is stored as 0 is none, and only ones are no weights."""
    index = _index(np.stack([as_array(source), as_array(target)]), num_nodes)
    weight = _weight(value, index, f"the values of {name}")
    if weight is None:
        return Connections(index, None)
    if bool((weight == 0).any()):
        index, weight = index[:, weight != 0], weight[weight != 0]
    return Connections(index, None if bool((weight == 1).all()) else weight)


def _same(first: Connections, second: Connections, num_nodes: int) -> bool:
    """Whether they are the same edges, each counted once, with the same sum of weights."""
    matrices = []
    for edges in (first, second):
        key, place = (edges.index[0] * num_nodes + edges.index[1]).unique(return_inverse=True)
        total = torch.zeros(len(key), dtype=torch.float64)
        # without weights an edge counts 1, however often it is there
        total = total + 1 if edges.weight is None else total.index_add(0, place, edges.weight.double())
        matrices.append((key, total))
    (key, total), (other_key, other_total) = matrices
    return torch.equal(key, other_key) and torch.allclose(total, other_total, rtol=1e-5, atol=1e-8)


def _index(edge_index: Any, num_nodes: int) -> Tensor:
    if edge_index is None:
        return torch.zeros(2, 0, dtype=torch.int64)
    edges = as_array(edge_index)
    if edges.size == 0 and edges.shape in ((0,), (0, 2), (2, 0)):
        return torch.zeros(2, 0, dtype=torch.int64)
    if edges.ndim != 2 or edges.shape[0] != 2:
        hint = "; transpose it" if edges.ndim == 2 and edges.shape[1] == 2 else ""
        if edges.shape == (num_nodes, num_nodes):
            hint = "; an adjacency matrix is read as scipy.sparse.coo_array(edge_index)"
        raise DataError(f"edge_index must have shape (2, E), got {tuple(edges.shape)}{hint}")
    if edges.dtype.kind not in "iu":
        raise DataError(f"edge_index must hold integers, got {edges.dtype}; convert it with edge_index.long()")
    outside = np.flatnonzero(((edges < 0) | (edges >= num_nodes)).any(axis=0))
    if len(outside):
        first = int(outside[0])
        raise DataError(
            f"edge_index has {len(outside)} edges with a node outside 0..{num_nodes - 1}, the first is edge "
            f"{first}: {edges[0, first]} -> {edges[1, first]}; arrays count the rows of x from 0"
        )
    # what pandas shows of a frame is read-only, which torch does not take
    return torch.from_numpy(np.require(edges, np.int64, ["C", "W"]))


def _weight(edge_weight: Any, index: Tensor, name: str) -> Tensor | None:
    """One finite float32 number per edge."""
    if edge_weight is None:
        return None
    given, num_edges = as_array(edge_weight), index.shape[1]
    if given.shape == (num_edges, 1):
        given = given[:, 0]
    if given.shape != (num_edges,):
        raise DataError(f"{name} must have shape ({num_edges},), one per edge, got {tuple(given.shape)}")
    with np.errstate(over="ignore"):  # beyond float32 is infinite, which the next check says
        weight = torch.from_numpy(numbers(given, name, "edge").astype(np.float32))
    bad = (~weight.isfinite()).nonzero().flatten()
    if bad.numel():
        first = int(bad[0])
        raise DataError(
            f"{name} has NaN or infinite entries in {bad.numel()} of {num_edges} edges, the first is edge {first}: "
            f"{int(index[0, first])} -> {int(index[1, first])}, {given[first]}"
        )
    return weight


def _of_frame(edges: pd.DataFrame, names: pd.Index | None) -> tuple[np.ndarray, np.ndarray | None, str]:
    if edges.shape[1] not in (2, 3):
        raise DataError(
            f"a frame of edges has the columns source, target and perhaps weight, got {list(edges.columns)}"
        )
    for place, others in enumerate((TARGETS + WEIGHTS, SOURCES + WEIGHTS, SOURCES + TARGETS)[: edges.shape[1]]):
        if str(edges.columns[place]).lower() in others:
            raise DataError(
                "the columns of a frame of edges are source, target and perhaps weight, in this order; got "
                f"{list(edges.columns)}: reorder or rename them"
            )
    ends = [
        positions(exact_ids(edges.iloc[:, i], f"column {edges.columns[i]!r} of the frame of edges"), names,
                  "the frame of edges")
        for i in (0, 1)
    ]  # fmt: skip
    if edges.shape[1] == 2:
        return np.stack(ends), None, ""
    column = f"column {edges.columns[2]!r} of the frame of edges"
    try:
        weight = numbers(as_array(edges.iloc[:, 2]), f"the weights in {column}")
    except DataError as error:
        raise DataError(f"{error}: the third column holds weights, leave it out if it is something else") from None
    return np.stack(ends), weight, column


def _of_networkx(graph: Any, names: pd.Index | None, num_nodes: int) -> tuple[np.ndarray, Any]:
    """Edges of a networkx graph, both directions of an undirected one, and its attribute ``weight``."""
    if graph.number_of_nodes() > num_nodes:
        raise DataError(f"the networkx graph has {graph.number_of_nodes()} nodes, x has {num_nodes} rows")
    directed = graph if graph.is_directed() else graph.to_directed()
    listed = list(directed.edges(data="weight"))
    if not listed:
        return np.zeros((2, 0), dtype=np.int64), None
    source, target, weight = (list(column) for column in zip(*listed, strict=True))
    ends = [
        positions(exact_ids(pd.Series(column), "the networkx graph"), names, "the networkx graph")
        for column in (source, target)
    ]
    without = [value is None for value in weight]
    if not all(without) and any(without):
        first = listed[without.index(True)]
        raise DataError(
            f"{sum(without)} of the {len(listed)} edges of the networkx graph have no weight, the first is "
            f"{first[0]!r} -> {first[1]!r}: set it for all or for none"
        )
    return np.stack(ends), None if any(without) else weight
