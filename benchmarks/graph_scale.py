"""A made graph of the size of ogbn-products: training, prediction and conditional inference, with time and memory.

    python benchmarks/graph_scale.py --folder scratch
    python benchmarks/graph_scale.py --folder scratch --small

makes in the folder, unless it is there, a graph of 2.4 million nodes and 62 million directed edges in memory-mapped
files. Seven of ten nodes carry their class in their 100 features and have edges to nodes of any class; the others
carry little of it and have four fifths of their edges to nodes of their own class. One edge in fifty joins the two
kinds of nodes: conditional inference saves only where nodes that need neighbours have such neighbours. As in
ogbn-products, 8 % of the nodes are trained on and 2 % validate.

Printed are seconds of an epoch, of a prediction of all nodes in one pass, resident memory (its peak, and the part
that is not memory-mapped files), and the cost curve of the mixture beside the strong expert alone on the whole graph.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from moeapps.graph import write_edges

CLASSES, FEATURES = 47, 100
SIZES = {"full": (2_400_000, 31_000_000), "small": (4_000, 50_000)}
BY_FEATURES, MIXED, SAME_CLASS = 0.7, 0.02, 0.8
PIECE = 1_000_000


def make_graph(folder: Path, nodes: int, pairs: int, seed: int = 0) -> Path:
    """Write the graph, if it is not there."""
    if (folder / "done").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    shares = (np.arange(CLASSES) + 1.0) ** -0.8
    y = random.choice(CLASSES, nodes, p=shares / shares.sum())
    by_features = random.random(nodes) < BY_FEATURES
    popularity = np.clip(random.pareto(2.0, nodes) + 0.5, 0, 200)
    centers = random.standard_normal((CLASSES, FEATURES)).astype(np.float32)
    strength = np.where(by_features, 0.42, 0.1).astype(np.float32)
    x = np.lib.format.open_memmap(folder / "node_features.npy", "w+", np.float32, (nodes, FEATURES))
    for start in range(0, nodes, 100_000):
        rows = slice(start, start + 100_000)
        noise = random.standard_normal(x[rows].shape, dtype=np.float32)
        x[rows] = strength[rows, None] * centers[y[rows]] + noise
    x.flush()
    np.save(folder / "node_labels.npy", y.astype(np.int64))
    part = random.random(nodes)
    for name, mask in (("train", part < 0.08), ("val", (part >= 0.08) & (part < 0.1)), ("test", part >= 0.1)):
        np.save(folder / f"{name}_mask.npy", mask)
    write_edges(folder, lambda: pieces(y, by_features, popularity, pairs, seed + 1), nodes, undirected=True)
    (folder / "done").touch()
    return folder


def pieces(
    y: np.ndarray, by_features: np.ndarray, popularity: np.ndarray, pairs: int, seed: int
) -> Iterator[np.ndarray]:
    """Pairs of nodes, ends drawn by popularity: of the same kind (and class) or not, as the page says."""
    random = np.random.default_rng(seed)
    # in the order of kind and class every choice of an end is a draw from one range of the running sum
    order = np.lexsort((y, by_features))
    until = np.concatenate([[0.0], np.cumsum(popularity[order])])
    group = (by_features * CLASSES + y)[order]
    bounds = until[np.searchsorted(group, np.arange(2 * CLASSES + 1))]
    kinds = bounds[[0, CLASSES, 2 * CLASSES]]
    while pairs:
        number = min(pairs, PIECE)
        source = _draw(random, order, until, np.zeros(number), np.full(number, until[-1]))
        kind = by_features[source].astype(int)
        other = random.random(number) < MIXED
        there = np.where(other, 1 - kind, kind)
        low, high = kinds[there], kinds[there + 1]
        same = (kind == 0) & ~other & (random.random(number) < SAME_CLASS)
        cell = y[source]
        target = _draw(random, order, until, np.where(same, bounds[cell], low), np.where(same, bounds[cell + 1], high))
        target = np.where(target == source, (target + 1) % len(y), target)
        yield np.stack([source, target])
        pairs -= number


def _draw(random: Any, order: np.ndarray, until: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    place = low + (high - low) * random.random(len(low))
    found: np.ndarray = order[np.clip(np.searchsorted(until, place, side="right") - 1, 0, len(order) - 1)]
    return found
