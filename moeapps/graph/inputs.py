"""From what users have (PyG Data, arrays, a sparse adjacency, edge lists, networkx) to one checked PyG ``Data``.

Edges are used as they are given: self-loops and duplicates are kept, nothing is made symmetric (directed edges give a
warning). Nodes with a label below 0 or NaN are unlabeled: they take part in message passing and in
nothing else.
"""

import logging
import warnings
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor
from torch_geometric.data import Data

from moeapps.core.errors import DataError, DataTypeError
from moeapps.core.labels import UNKNOWN, encode

__all__ = ["as_graph", "as_labels", "check_training_masks", "class_names", "encode_labels", "labeled"]

log = logging.getLogger(__name__)

MASKS = ("train_mask", "val_mask", "test_mask")


def as_graph(
    x: Any,
    y: Any = None,
    edge_index: Any = None,
    *,
    edge_weight: Any = None,
    split: int = 0,
    **masks: Any,
) -> Data:
    """Make a checked graph.

    Parameters
    ----------
    x
        A PyG ``Data`` (the other arguments then override its parts), or ``(N, F)`` features.
    y
        ``(N,)`` labels of any kind; None when there are none.
    edge_index
        ``(2, E)`` integers, an ``(N, N)`` scipy sparse adjacency, a pandas frame with one row per edge (source, target
        and, if there is a third column, weight), a networkx graph, or None for no edges. Frames and networkx graphs
        name nodes as the index of ``x`` does when that is a frame, else by their position.
    edge_weight
        ``(E,)`` or None.
    split : int, default 0
        Which column to take of masks that are ``(N, splits)``.
    **masks
        ``train_mask``, ``val_mask``, ``test_mask``: ``(N,)`` bool, node numbers, or ``(N, splits)`` bool.

    Returns
    -------
    Data
        ``Data`` with float32 ``x``, int64 ``edge_index``, ``edge_weight`` or None, the masks that were given as
        ``(N,)`` bool, and the labels as they were in ``y`` (a NumPy array, or None). Going through twice changes
        nothing.

    Raises
    ------
    DataError
        Naming the argument, what it got, and what would work.
    """
    if isinstance(x, Data):
        data = x
        x = data.x
        y = getattr(data, "y", None) if y is None else y
        edge_index = data.edge_index if edge_index is None else edge_index
        edge_weight = getattr(data, "edge_weight", None) if edge_weight is None else edge_weight
        masks = {name: masks.get(name) if masks.get(name) is not None else getattr(data, name, None) for name in MASKS}
    features = _features(x)
    num_nodes = features.shape[0]
    if sparse.issparse(edge_index):
        edge_index, edge_weight = _from_adjacency(edge_index, num_nodes, edge_weight)
    elif isinstance(edge_index, pd.DataFrame):
        edge_index, edge_weight = _from_edge_list(edge_index, _node_names(x), edge_weight)
    elif hasattr(edge_index, "to_undirected") and hasattr(edge_index, "adjacency"):
        edge_index, edge_weight = _from_networkx(edge_index, _node_names(x), num_nodes, edge_weight)
    edges = _edges(edge_index, num_nodes)
    graph = Data(x=features, edge_index=edges)
    graph.edge_weight = _edge_weight(edge_weight, edges.shape[1])
    graph.y = None if y is None else as_labels(y, num_nodes)
    for name, mask in masks.items():
        if mask is not None:
            graph[name] = _mask(name, mask, num_nodes, split)
    return graph


def class_names(labels: np.ndarray) -> np.ndarray:
    """Distinct labels of the labeled nodes, sorted."""
    return np.unique(labels[labeled(labels)])


def labeled(labels: np.ndarray) -> np.ndarray:
    """``(N,)`` bool: which nodes have a label (not NaN, None, or a number below 0)."""
    if labels.dtype.kind == "f":
        return ~np.isnan(labels) & (labels >= 0)
    if labels.dtype.kind == "i":
        return labels >= 0
    if labels.dtype == object:
        return np.array([v is not None and v == v for v in labels], dtype=bool)
    return np.ones(labels.shape, dtype=bool)


def encode_labels(labels: np.ndarray, classes: np.ndarray) -> Tensor:
    """Class numbers ``(N,)`` int64; -1 for unlabeled nodes and for labels that are not in ``classes``."""
    known = labeled(labels)
    codes = np.full(labels.shape, UNKNOWN, dtype=np.int64)
    codes[known] = encode(labels[known], classes)
    return torch.from_numpy(codes)


def check_training_masks(graph: Data) -> None:
    """Check the masks of a graph whose ``y`` is set; unlabeled nodes are taken out of all of them.

    Raises
    ------
    DataError
        If a mask is missing or empty, or two of them overlap.
    """
    for name in MASKS:
        if name in graph:
            graph[name] = graph[name] & (graph.y >= 0)
    for name in ("train_mask", "val_mask"):
        if name not in graph or not bool(graph[name].any()):
            raise DataError(
                f"{name} has no labeled node: there is nothing to {'train on' if 'train' in name else 'validate on'}"
            )
    present = [name for name in MASKS if name in graph]
    for i, first in enumerate(present):
        for second in present[i + 1 :]:
            both = (graph[first] & graph[second]).nonzero().flatten()
            if both.numel():
                raise DataError(
                    f"{first} and {second} overlap in {both.numel()} nodes, the first is node {int(both[0])}: "
                    "a node can be in one of them only"
                )
    missing = set(graph.y[graph.y >= 0].unique().tolist()) - set(graph.y[graph.train_mask].unique().tolist())
    if missing:
        warnings.warn(
            f"{len(missing)} of the classes never occur in train_mask and cannot be learned",
            UserWarning,
            stacklevel=3,
        )
    _describe_edges(graph.edge_index, graph.num_nodes)


def _features(x: Any) -> Tensor:
    if x is None:
        raise DataError("the graph has no node features x, expected an (N, F) matrix")
    if sparse.issparse(x):
        x = x.toarray()
    if isinstance(x, Tensor):
        x = x.to_dense() if x.layout != torch.strided else x
    else:
        try:
            x = torch.from_numpy(np.array(x, dtype=np.float32))
        except (TypeError, ValueError) as error:
            kind = DataTypeError if isinstance(error, TypeError) else DataError
            raise kind(f"x must be a matrix of numbers: {error}") from None
    if x.ndim != 2:
        raise DataError(f"x must have shape (N, F), got {tuple(x.shape)}. Reshape your data")
    for axis, what in enumerate(("sample", "feature")):
        if x.shape[axis] == 0:
            raise DataError(f"x has 0 {what}(s) (shape={tuple(x.shape)}) while a minimum of 1 is required.")
    x = x.detach().to(torch.float32)
    bad = (~x.isfinite().all(dim=1)).nonzero().flatten()
    if bad.numel():
        raise DataError(
            f"x has NaN or infinite features in {bad.numel()} of {x.shape[0]} nodes, the first are "
            f"{bad[:5].tolist()}; replace them, or they would spread to all neighbours"
        )
    return x.contiguous()


def _edges(edge_index: Any, num_nodes: int) -> Tensor:
    if edge_index is None:
        return torch.zeros(2, 0, dtype=torch.int64)
    edges = edge_index if isinstance(edge_index, Tensor) else torch.from_numpy(np.asarray(edge_index))
    if edges.ndim != 2 or edges.shape[0] != 2:
        hint = "; transpose it" if edges.ndim == 2 and edges.shape[1] == 2 else ""
        raise DataError(f"edge_index must have shape (2, E), got {tuple(edges.shape)}{hint}")
    if edges.is_floating_point() or edges.dtype == torch.bool or edges.is_complex():
        raise DataError(f"edge_index must hold integers, got {edges.dtype}; convert it with edge_index.long()")
    edges = edges.detach().to(torch.int64)
    outside = ((edges < 0) | (edges >= num_nodes)).any(dim=0).nonzero().flatten()
    if outside.numel():
        first = int(outside[0])
        raise DataError(
            f"edge_index has {outside.numel()} edges with a node outside 0..{num_nodes - 1}, the first is edge "
            f"{first}: {edges[0, first]} -> {edges[1, first]}"
        )
    return edges.contiguous()


def _from_adjacency(adjacency: Any, num_nodes: int, edge_weight: Any) -> tuple[Tensor, Any]:
    if adjacency.shape != (num_nodes, num_nodes):
        raise DataError(f"the adjacency matrix must be ({num_nodes}, {num_nodes}), got {adjacency.shape}")
    coo = adjacency.tocoo()
    edges = torch.from_numpy(np.stack([coo.row, coo.col]).astype(np.int64))
    if edge_weight is None and not bool((coo.data == 1).all()):
        edge_weight = coo.data
    return edges, edge_weight


def _node_names(x: Any) -> pd.Index | None:
    """Names of the nodes; None when they are their positions."""
    if not isinstance(x, pd.DataFrame) or x.index.equals(pd.RangeIndex(len(x))):
        return None
    if not x.index.is_unique:
        raise DataError(f"the index of x names the nodes, but {x.index[x.index.duplicated()][0]!r} stands there twice")
    return x.index


def _positions(ends: pd.Series | pd.Index, names: pd.Index | None, what: str) -> np.ndarray:
    if names is None:
        if not pd.api.types.is_integer_dtype(ends.dtype):
            raise DataError(
                f"{what} has names like {ends[0]!r}, but the nodes have none: give x as a DataFrame whose index "
                "names them"
            )
        return np.asarray(ends, dtype=np.int64)
    found = names.get_indexer(pd.Index(ends))
    if (found < 0).any():
        raise DataError(f"{what} names the node {ends[int((found < 0).argmax())]!r}, which is not in the index of x")
    return found


def _from_edge_list(edges: pd.DataFrame, names: pd.Index | None, edge_weight: Any) -> tuple[np.ndarray, Any]:
    if edges.shape[1] not in (2, 3):
        raise DataError(
            f"a frame of edges has the columns source, target and perhaps weight, got {list(edges.columns)}"
        )
    ends = [_positions(edges.iloc[:, i].reset_index(drop=True), names, "the frame of edges") for i in (0, 1)]
    if edge_weight is None and edges.shape[1] == 3:
        edge_weight = edges.iloc[:, 2].to_numpy(dtype=np.float32)
    return np.stack(ends), edge_weight


def _from_networkx(graph: Any, names: pd.Index | None, num_nodes: int, edge_weight: Any) -> tuple[np.ndarray, Any]:
    """Edges of a networkx graph, both directions of an undirected one; its attribute ``weight`` where all have it."""
    if graph.number_of_nodes() > num_nodes:
        raise DataError(f"the networkx graph has {graph.number_of_nodes()} nodes, x has {num_nodes} rows")
    directed = graph if graph.is_directed() else graph.to_directed()
    listed = list(directed.edges(data="weight"))
    source, target, weight = (list(column) for column in zip(*listed, strict=True)) if listed else ([], [], [])
    ends: list[Any] = [
        _positions(pd.Index(column), names, "the networkx graph") if column else [] for column in (source, target)
    ]
    if edge_weight is None and weight and all(value is not None for value in weight):
        edge_weight = np.array(weight, dtype=np.float32)
    return np.array(ends, dtype=np.int64).reshape(2, -1), edge_weight


def _edge_weight(edge_weight: Any, num_edges: int) -> Tensor | None:
    if edge_weight is None:
        return None
    weight = torch.as_tensor(edge_weight, dtype=torch.float32).detach()
    if weight.shape != (num_edges,):
        raise DataError(f"edge_weight must have shape ({num_edges},), one per edge, got {tuple(weight.shape)}")
    if not bool(weight.isfinite().all()):
        raise DataError("edge_weight has NaN or infinite entries")
    return weight


def as_labels(y: Any, num_nodes: int) -> np.ndarray:
    """Labels of any kind as an ``(N,)`` array.

    Raises
    ------
    DataError
        If there is not one per node, or they are infinite or not whole numbers.
    """
    labels = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (num_nodes,):
        raise DataError(f"y must have shape ({num_nodes},), one label per node, got {labels.shape}")
    if labels.dtype.kind == "f":
        if np.isinf(labels).any():
            raise DataError(f"y is infinite at node {int(np.isinf(labels).argmax())}; NaN or -1 means unlabeled")
        known = labels[labeled(labels)]
        if not np.array_equal(known, np.floor(known)):
            raise DataError("y is continuous (not whole numbers); class labels are integers, text or bool")
    return labels


def _mask(name: str, mask: Any, num_nodes: int, split: int) -> Tensor:
    given = mask if isinstance(mask, Tensor) else torch.from_numpy(np.asarray(mask))
    if given.ndim == 2:
        if not 0 <= split < given.shape[1]:
            raise DataError(f"split={split} is outside the {given.shape[1]} splits of {name}")
        given = given[:, split]
    if given.dtype in (torch.bool, torch.uint8) and given.ndim == 1:
        if given.shape[0] != num_nodes:
            raise DataError(f"{name} must have one entry per node ({num_nodes}), got {given.shape[0]}")
        return given.bool()
    if given.ndim != 1 or given.is_floating_point():
        raise DataError(
            f"{name} must be bool per node or a list of node numbers, got {given.dtype} {tuple(given.shape)}"
        )
    if given.numel() and (int(given.min()) < 0 or int(given.max()) >= num_nodes):
        raise DataError(f"{name} has node numbers outside 0..{num_nodes - 1}")
    full = torch.zeros(num_nodes, dtype=torch.bool)
    full[given.long()] = True
    return full


def _describe_edges(edge_index: Tensor, num_nodes: int) -> None:
    source, target = edge_index.cpu()
    loops = int((source == target).sum())
    forward, backward = (source * num_nodes + target).unique(), (target * num_nodes + source).unique()
    duplicates = edge_index.shape[1] - forward.numel()
    if loops or duplicates:
        log.info("edge_index has %d self-loops and %d duplicate edges; they are used as given", loops, duplicates)
    if not torch.equal(forward, backward):
        warnings.warn(
            "the graph is directed: messages flow from source to target only. "
            "torch_geometric.utils.to_undirected makes it symmetric",
            UserWarning,
            stacklevel=4,
        )
