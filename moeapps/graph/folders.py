"""Graphs in folders of memory-mapped files: only the rows and edges that a step uses are read.

======================  ==================  ===========================================================================
file                    shape               content
======================  ==================  ===========================================================================
``node_features.npy``   ``(N, F)`` float32  features
``edge_pointer.npy``    ``(N + 1,)`` int64  node t's in-edges are the entries ``pointer[t]`` to ``pointer[t + 1]``
``edge_source.npy``     ``(E,)`` int32/64   source of each edge, ordered by target
``edge_weight.npy``     ``(E,)`` float32    weights in the same order; left out where there are none
``node_labels.npy``     ``(N,)``            labels; below 0 means unlabeled; needed to train
``train_mask.npy``      see below           also ``val_mask``, ``test_mask``: ``(N,)`` bool, node numbers, or
                                            ``(N, splits)``
======================  ==================  ===========================================================================

:func:`write_graph` makes such a folder of arrays, :func:`write_edges` of edges that come in pieces, :func:`open_graph`
opens one.
"""

# N nodes, E edges, F features

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Data

from moeapps.core.arrays import as_array, unreadable
from moeapps.core.errors import ConfigError, DataError
from moeapps.graph.compressed import CompressedEdges
from moeapps.graph.masks import MASKS

__all__ = ["is_folder", "open_graph", "write_edges", "write_graph"]

FEATURES, LABELS = "node_features", "node_labels"
POINTER, SOURCE, WEIGHT = "edge_pointer", "edge_source", "edge_weight"
PIECE = 1 << 22
"""Edges or numbers that are handled at a time."""


def is_folder(source: Any) -> bool:
    """Whether this names a folder, or a path that is not there and has no ending of a file."""
    return isinstance(source, str | os.PathLike) and (Path(source).is_dir() or not Path(source).suffix)


def open_graph(folder: str | os.PathLike[str]) -> Data:
    """Open a graph in a folder of memory-mapped files.

    Features and edges are checked once, block by block, and stay on the disk; labels and masks are read.

    Parameters
    ----------
    folder : path
        See the table in :mod:`moeapps.graph.folders`.

    Returns
    -------
    Data
        ``x`` ``(N, F)`` over the file of features, ``edges``, a :class:`~moeapps.graph.compressed.CompressedEdges`
        over the files of edges, ``y`` and the masks that are there. Estimators and
        :class:`~moeapps.graph.GraphDataModule` take it as any other ``Data``.

    Raises
    ------
    DataError
        Naming the file: it is missing, is no plain array, has another type or shape than in the table, or names a
        node that does not exist, or a feature is NaN or infinite.
    """
    place = Path(folder)
    if not place.is_dir():
        raise DataError(f"{place} is no folder: a graph in memory-mapped files is a folder with {FEATURES}.npy, ...")
    features = _mapped(place, FEATURES, "float32", 2)
    nodes = len(features)
    if 0 in features.shape:
        raise DataError(f"{place / FEATURES}.npy is empty: its shape is {features.shape}")
    for start in range(0, nodes, rows := max(1, PIECE // features.shape[1])):
        fine = np.isfinite(features[start : start + rows]).all(axis=1)
        if not fine.all():
            first = start + int((~fine).argmax())
            raise DataError(f"{place / FEATURES}.npy has a NaN or infinite feature in row {first}: replace it")
    pointer = _mapped(place, POINTER, "int64", 1)
    source = _mapped(place, SOURCE, "int32 or int64", 1)
    weight = _mapped(place, WEIGHT, "float32", 1) if (place / f"{WEIGHT}.npy").exists() else None
    _check_edges(place, pointer, source, weight, nodes)
    graph = Data(x=torch.from_numpy(features), num_nodes=nodes)
    weights = None if weight is None else torch.from_numpy(weight)
    graph.edges = CompressedEdges(torch.from_numpy(np.array(pointer)), torch.from_numpy(source), weights)
    for name in (LABELS, *MASKS):
        if (place / f"{name}.npy").exists():
            array = np.array(_mapped(place, name, None, None))
            if len(array) != nodes and (name == LABELS or array.dtype == bool):
                raise DataError(f"{place / name}.npy has {len(array)} rows, {FEATURES}.npy has {nodes}")
            graph["y" if name == LABELS else name] = array
    return graph


def write_graph(
    folder: str | os.PathLike[str],
    node_features: Any,
    edges: Any,
    node_labels: Any = None,
    *,
    edge_weight: Any = None,
    undirected: bool = False,
    train_mask: Any = None,
    val_mask: Any = None,
    test_mask: Any = None,
) -> Path:
    """Write a graph into a folder that :func:`open_graph` opens, block by block.

    Parameters
    ----------
    folder : path
        Made if it is not there; must hold no graph yet.
    node_features : array of shape (N, F)
        Also memory-mapped ones.
    edges : array of shape (2, E), or callable
        Source and target of each edge, also memory-mapped; or see :func:`write_edges`.
    node_labels : array of shape (N,), optional
        Numbers or text; below 0 means unlabeled.
    edge_weight : array of shape (E,), optional
        Weights.
    undirected : bool, default=False
        Whether to store the reverse of every edge, too. Edges that are there both ways are then stored twice.
    train_mask, val_mask, test_mask : optional
        bool ``(N,)``, node numbers, or a column per split.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ConfigError
        If the folder holds a graph already.
    DataError
        If the arrays do not fit each other.
    """
    place = Path(folder)
    if (place / f"{FEATURES}.npy").exists():
        raise ConfigError(f"{place} holds a graph already: choose another folder")
    shape = tuple(map(int, np.shape(node_features)))
    if len(shape) != 2 or 0 in shape:
        raise DataError(f"node_features must have shape (N, F), got {shape}")
    others = {LABELS: node_labels, "train_mask": train_mask, "val_mask": val_mask, "test_mask": test_mask}
    arrays = {name: np.asarray(as_array(value)) for name, value in others.items() if value is not None}
    for name, array in arrays.items():
        if array.dtype.kind not in "biufU":
            raise DataError(f"{name} must hold numbers, bool or text, got {array.dtype}")
    if LABELS in arrays and arrays[LABELS].shape != shape[:1]:
        raise DataError(f"{LABELS} must have shape ({shape[0]},), one per node, got {arrays[LABELS].shape}")
    place.mkdir(parents=True, exist_ok=True)
    write_edges(place, edges, shape[0], edge_weight=edge_weight, undirected=undirected)
    for name, array in arrays.items():
        np.save(place / f"{name}.npy", array)
    out = np.lib.format.open_memmap(place / f"{FEATURES}.npy", "w+", np.float32, shape)
    for start in range(0, shape[0], rows := max(1, PIECE // shape[1])):
        out[start : start + rows] = node_features[start : start + rows]
    out.flush()
    return place


def write_edges(
    folder: str | os.PathLike[str],
    edges: Any,
    num_nodes: int,
    *,
    edge_weight: Any = None,
    undirected: bool = False,
) -> None:
    """Write edges, in any order, into the files ``edge_*.npy`` of a folder, ordered by target, in two passes.

    Parameters
    ----------
    folder : path
        An existing folder.
    edges : array of shape (2, E), or callable
        Source and target of each edge; or a function that returns an iterator over pieces ``(2, e)`` of them, the same
        ones each time: it is called twice.
    num_nodes : int
        Number of nodes N.
    edge_weight : array of shape (E,), optional
        Weights, in the order of the edges.
    undirected : bool, default=False
        Whether to store the reverse of every edge, too.

    Raises
    ------
    DataError
        If an edge names a node that does not exist, or there is not one weight per edge.
    """
    # 1. Count the in-edges of each node; their running sum is where each node's edges begin.
    # 2. Put the edges there, piece by piece; inside a piece a stable sort by target keeps their order.
    place = Path(folder)
    degree = np.zeros(num_nodes, dtype=np.int64)
    given = 0
    for source, target, _ in _pieces(edges, num_nodes, undirected):
        degree += np.bincount(target, minlength=num_nodes)
        given += len(source)
    pointer = np.concatenate([[0], np.cumsum(degree)])
    weights = None if edge_weight is None else as_array(edge_weight)
    if weights is not None and np.shape(weights) != (given // (2 if undirected else 1),):
        raise DataError(f"edge_weight must have one number per edge, got shape {np.shape(weights)}")
    kind = np.int32 if num_nodes <= np.iinfo(np.int32).max else np.int64
    files = place / f"{SOURCE}.npy", place / f"{WEIGHT}.npy"
    sources = np.lib.format.open_memmap(files[0], "w+", kind, (int(pointer[-1]),))
    stored = None if weights is None else np.lib.format.open_memmap(files[1], "w+", np.float32, (int(pointer[-1]),))
    free = pointer[:-1].copy()
    for source, target, numbers in _pieces(edges, num_nodes, undirected):
        order = np.argsort(target, kind="stable")
        target = target[order]
        first = np.flatnonzero(np.r_[True, target[1:] != target[:-1]])
        length = np.diff(np.r_[first, len(target)])
        spot = free[target] + np.arange(len(target)) - np.repeat(first, length)
        free[target[first]] += length
        sources[spot] = source[order]
        if stored is not None and weights is not None:
            stored[spot] = weights[numbers[order]]
    np.save(place / f"{POINTER}.npy", pointer)
    sources.flush()


def _pieces(edges: Any, num_nodes: int, undirected: bool) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Sources, targets and numbers of the edges, a piece at a time."""
    done = 0
    for piece in edges() if callable(edges) else _split(edges):
        if np.ndim(piece) != 2 or len(piece) != 2:
            raise DataError(f"edges must have shape (2, E), source and target, got {np.shape(piece)}")
        source, target = np.asarray(as_array(piece))
        if source.dtype.kind not in "iu":
            raise DataError(f"edges must be integers, got {source.dtype}")
        for name, end in (("source", source), ("target", target)):
            outside = (end < 0) | (end >= num_nodes)
            if outside.any():
                first = int(outside.argmax())
                raise DataError(
                    f"edge {done + first} has the {name} {end[first]}: node numbers are 0 to {num_nodes - 1}"
                )
        numbers = np.arange(done, done + len(source))
        done += len(source)
        if not len(source):
            continue
        if undirected:
            source, target = np.concatenate([source, target]), np.concatenate([target, source])
            numbers = np.tile(numbers, 2)
        yield source, target, numbers


def _split(edges: Any) -> Iterator[Any]:
    shape = np.shape(edges)
    if len(shape) != 2 or shape[0] != 2:
        raise DataError(f"edges must have shape (2, E), source and target, got {shape}")
    for start in range(0, shape[1], PIECE):
        yield edges[:, start : start + PIECE]


def _mapped(place: Path, name: str, kinds: str | None, axes: int | None) -> np.ndarray:
    """One file as an array that reads from the disk; private, so that nothing is ever written to the file."""
    file = place / f"{name}.npy"
    if not file.exists():
        raise DataError(f"{place} has no {name}.npy; see moeapps.graph.open_graph for the files of a graph")
    try:
        array: np.ndarray = np.load(file, mmap_mode="c", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        empty = _empty(file)
        if empty is None:
            raise DataError(f"{file} {unreadable(error, '.npy file of a plain array')}") from None
        array = empty
    if kinds is not None and array.dtype.name not in kinds.split(" or "):
        raise DataError(f"{file} has the type {array.dtype}, expected {kinds}")
    if axes is not None and array.ndim != axes:
        raise DataError(f"{file} has the shape {array.shape}, expected {axes} axes")
    if axes == 2 and not array.flags.c_contiguous:
        raise DataError(f"{file} is stored column by column: save it in C order, so that a row is read at once")
    return array


def _empty(file: Path) -> np.ndarray | None:
    """The array of a file without any entry, which cannot be mapped."""
    try:
        array: np.ndarray = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError):
        return None
    return array if array.size == 0 else None


def _check_edges(place: Path, pointer: np.ndarray, source: np.ndarray, weight: np.ndarray | None, nodes: int) -> None:
    if len(pointer) != nodes + 1:
        raise DataError(f"{place / POINTER}.npy has {len(pointer)} entries, expected one more than the {nodes} nodes")
    if pointer[0] != 0 or pointer[-1] != len(source) or bool((np.diff(pointer) < 0).any()):
        raise DataError(
            f"{place / POINTER}.npy must rise from 0 to the number of edges, {len(source)}; it goes from {pointer[0]} "
            f"to {pointer[-1]}"
        )
    if weight is not None and len(weight) != len(source):
        raise DataError(f"{place / WEIGHT}.npy has {len(weight)} weights for {len(source)} edges")
    for start in range(0, len(source), PIECE):
        part = source[start : start + PIECE]
        if part.min() < 0 or part.max() >= nodes:
            first = start + int(((part < 0) | (part >= nodes)).argmax())
            raise DataError(
                f"{place / SOURCE}.npy has {source[first]} at edge {first}: node numbers are 0 to {nodes - 1}"
            )
        if weight is not None and not np.isfinite(weight[start : start + PIECE]).all():
            raise DataError(f"{place / WEIGHT}.npy has weights that are NaN or infinite")
