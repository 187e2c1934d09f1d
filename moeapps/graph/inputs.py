"""From what users have (PyG Data, arrays, a sparse adjacency, edge lists, networkx) to one checked PyG ``Data``.

Everything that takes a graph reads it here: estimators, data modules, prediction, scoring and serving.

Edges are used as they are given: self-loops and duplicates are kept, nothing is made symmetric (directed edges give a
warning). Nodes with a label below 0 or missing are unlabeled: they take part in message passing and in
nothing else.
"""

import logging
import os
import warnings
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.data.data import BaseData

from moeapps.core.errors import DataError
from moeapps.core.tabledata.frames import frame_if_table
from moeapps.graph.connections import of_data, read_edges
from moeapps.graph.edges import Edges
from moeapps.graph.features import as_features
from moeapps.graph.folders import open_graph
from moeapps.graph.labels import as_labels, class_names, encode_labels, labeled
from moeapps.graph.masks import MASKS, read_mask
from moeapps.graph.node_names import check_alignment

__all__ = [
    "as_graph",
    "as_labels",
    "bare_graph",
    "check_training_masks",
    "class_names",
    "edges_of",
    "encode_labels",
    "labeled",
    "on_disk",
    "opened",
    "refuse_other_graphs",
]

log = logging.getLogger(__name__)

OTHER_MASKS = {
    "train_mask": ("train_idx", "train_index"),
    "val_mask": ("valid_mask", "validation_mask", "dev_mask", "val_idx", "valid_idx", "val_index"),
    "test_mask": ("test_idx", "test_index"),
}
"""Names that others have for the masks."""


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
        A PyG ``Data`` (the other arguments then override its parts), the path of a folder of memory-mapped files
        (:func:`~moeapps.graph.folders.open_graph`), or ``(N, F)`` features. The edges of a ``Data``
        are its ``edge_index`` or ``adj_t``; their weights its ``edge_weight``, an ``edge_attr`` of one number per edge,
        or the values of ``adj_t``.
    y
        ``(N,)`` labels of any kind; None when there are none.
    edge_index
        ``(2, E)`` integers, an ``(N, N)`` scipy sparse adjacency (A[i, j] is the edge from i to j), a symmetric sparse
        tensor, a frame with one row per edge (source, target and, if there is a third column, weight), a networkx
        graph, or None for no edges. Frames and networkx graphs name nodes as the index of ``x`` does when that is a
        pandas frame, else by their position.
    edge_weight
        ``(E,)`` or None.
    split : int, default=0
        Which column to take of masks that are ``(N, splits)``.
    **masks
        ``train_mask``, ``val_mask``, ``test_mask``: ``(N,)`` bool or 0 and 1, node numbers, or ``(N, splits)``.

    Returns
    -------
    Data
        ``Data`` on the CPU, with float32 ``x``, int64 ``edge_index``, ``edge_weight`` or None, the masks that were
        given as ``(N,)`` bool, and the labels as they were in ``y`` (a NumPy array, or None). Going through twice
        changes nothing.

    Raises
    ------
    DataError
        Naming the argument, what it got, and what would work.
    """
    x = opened(x)
    graph = bare_graph(x, edge_index, edge_weight=edge_weight)
    if isinstance(x, Data):
        y = getattr(x, "y", None) if y is None else y
        _refuse_other_masks(x, masks)
        masks = {name: masks.get(name) if masks.get(name) is not None else getattr(x, name, None) for name in MASKS}
    num_nodes = graph.x.shape[0]
    check_alignment(x.x if isinstance(x, Data) else x, y=y, **masks)
    graph.y = None if y is None else as_labels(y, num_nodes)
    for name, mask in masks.items():
        if mask is not None:
            graph[name] = read_mask(name, mask, num_nodes, split)
    return graph


def bare_graph(x: Any, edge_index: Any = None, *, edge_weight: Any = None) -> Data:
    """Make a checked graph of features and edges alone; parameters and errors as in :func:`as_graph`."""
    x = opened(x)
    refuse_other_graphs(x)
    if on_disk(x):
        return _bare_on_disk(x, edge_index, edge_weight)
    data = x if isinstance(x, Data) else None
    x = frame_if_table(x if data is None else data.x)
    features = as_features(x)
    num_nodes = features.shape[0]
    if data is not None and "num_nodes" in data and data.num_nodes != num_nodes:
        raise DataError(f"the graph has num_nodes={data.num_nodes}, and x has {num_nodes} rows")
    if data is None or edge_index is not None:  # other edges do not have the weights of the data's own
        edges = read_edges(edge_index, num_nodes, x, edge_weight)
    elif edge_weight is not None:
        alone = Data(edge_index=data.edge_index, adj_t=getattr(data, "adj_t", None), edge_weight=edge_weight)
        edges = of_data(alone, num_nodes)
    else:
        edges = of_data(data, num_nodes)
        _warn_of_edge_types(data)
    return Data(x=features, edge_index=edges.index, edge_weight=edges.weight)


def opened(x: Any) -> Any:
    """The graph in a folder of memory-mapped files, if ``x`` names one; else ``x`` as it is."""
    return open_graph(x) if isinstance(x, str | os.PathLike) else x


def on_disk(x: Any) -> bool:
    """Whether ``x`` is a graph of :func:`~moeapps.graph.folders.open_graph`, whose parts have been checked."""
    return isinstance(x, Data) and getattr(getattr(x, "edges", None), "on_disk", False)


def edges_of(graph: Data) -> Edges:
    """Edges of a graph of :func:`bare_graph` for the networks."""
    return graph.edges if on_disk(graph) else Edges(graph.edge_index, graph.edge_weight, graph.num_nodes)


def _bare_on_disk(data: Data, edge_index: Any, edge_weight: Any) -> Data:
    if edge_index is not None or edge_weight is not None:
        raise DataError("a graph in memory-mapped files has its own edges: leave out edge_index and edge_weight")
    x = data.x
    if not isinstance(x, Tensor) or x.dtype != torch.float32 or x.ndim != 2 or len(x) != data.edges.num_nodes:
        raise DataError(
            f"x of a graph in memory-mapped files must stay a float32 matrix of {data.edges.num_nodes} rows, got "
            f"{tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__}"
        )
    graph = Data(x=x, num_nodes=len(x))
    graph.edges = data.edges
    return graph


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
    if on_disk(graph):
        if graph.edges.is_directed():
            _warn_of_direction(4)
    else:
        _describe_edges(graph.edge_index, graph.num_nodes)


def refuse_other_graphs(x: Any) -> None:
    """Refuse graphs of other kinds (hetero, temporal, networkx, several in one), with what to do.

    Raises
    ------
    DataError
        If ``x`` is such a graph.
    """
    kind = type(x).__name__
    if isinstance(x, BaseData) and not isinstance(x, Data):
        raise DataError(
            f"X is a {kind}: graphs with one type of nodes and edges are supported; HeteroData.to_homogeneous() makes "
            "one where all nodes have the same features, or take one node type and its edges into a Data"
        )
    if hasattr(x, "to_undirected") and hasattr(x, "adjacency"):
        raise DataError("X is a networkx graph: give fit(features, y, graph), where graph is the networkx graph")
    items = x if isinstance(x, list | tuple) else x if hasattr(x, "__getitem__") and hasattr(x, "num_classes") else []
    if len(items) and isinstance(items[0], BaseData):
        raise DataError(
            f"X is a {kind} of {len(items)} graphs: give one Data, as in dataset[0]; "
            "torch_geometric.data.Batch.from_data_list joins several into one"
        )


def _refuse_other_masks(data: Data, given: dict[str, Any]) -> None:
    """Refuse masks under names that are not read: their nodes, those of the test too, would be trained on."""
    for name, others in OTHER_MASKS.items():
        if given.get(name) is None and getattr(data, name, None) is None:
            for other in others:
                if getattr(data, other, None) is not None:
                    raise DataError(f"the graph has {other} and no {name}: data.{name} = data.{other} makes it known")


def _warn_of_edge_types(data: Data) -> None:
    found = getattr(data, "edge_type", None)
    if isinstance(found, Tensor) and found.numel() and bool((found != found.flatten()[0]).any()):
        warnings.warn("edge_type is not used: edges of all types are treated alike", UserWarning, stacklevel=4)


def _describe_edges(edge_index: Tensor, num_nodes: int) -> None:
    source, target = edge_index.cpu()
    loops = int((source == target).sum())
    forward, backward = (source * num_nodes + target).unique(), (target * num_nodes + source).unique()
    duplicates = edge_index.shape[1] - forward.numel()
    if loops or duplicates:
        log.info("edge_index has %d self-loops and %d duplicate edges; they are used as given", loops, duplicates)
    if not torch.equal(forward, backward):
        _warn_of_direction(5)


def _warn_of_direction(level: int) -> None:
    warnings.warn(
        "the graph is directed: messages flow from source to target only. "
        "torch_geometric.utils.to_undirected makes it symmetric (write_graph: undirected=True)",
        UserWarning,
        stacklevel=level,
    )
