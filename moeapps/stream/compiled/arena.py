"""The arena of a pool of trees: flat arrays that nodes, leaves and trees are rows of, and how they grow."""

# N nodes, S slots, T trees, F features, Q categorical features, V categories, C classes

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeapps.stream.compiled.references import referable

__all__ = ["TreeSettings", "Trees", "allocate", "grow", "room_for", "values_of_0_1"]

Float = NDArray[np.float64]
Int = NDArray[np.int32]

LEAF, FREE = -1, -2
"""Marks of a node without a split: it is a leaf, or its row is free."""

FREE_NODES_LEFT, FREE_SLOTS_LEFT, N_FEATURES, N_CLASSES = range(4)
"""What ``Trees.sizes`` holds."""

MAJORITY, NAIVE_BAYES, ADAPTIVE = range(3)
"""How leaves predict."""


class TreeSettings(NamedTuple):
    """Numbers that all trees of a pool share."""

    tie_threshold: float
    leaf_prediction: int
    num_splits: int
    min_branch_fraction: float
    max_share: float
    max_nodes: int
    max_depth: int


@referable
class Trees(NamedTuple):
    """The arena."""

    # nodes
    feature: Int  # (N,) feature of the split; LEAF; FREE
    threshold: Float  # (N,) numbers: at most this goes left; categories: equal to this goes left
    children: Int  # (N, 2) left, right
    slot: Int  # (N,) where a leaf's statistics are; -1 for inner nodes and inactive leaves
    depth: Int  # (N,)
    owner: Int  # (N,) tree
    weight: Float  # (N,) weight of the training instances that passed
    attempted: Float  # (N,) weight of a leaf when a split was last attempted
    right: Float  # (N, 2) weight that the leaf's majority and its naive Bayes predicted correctly
    counts: Float  # (N, C) weight per class
    # slots
    numeric: Float  # (S, F, 7, C)
    nominal: Float  # (S, Q, V + 1, C), the last row is the sum over values
    subset: Int  # (S, F) features that are observed, the first `subset_size` of the row
    subset_size: Int  # (S,)
    leaf: Int  # (S,) node of the slot
    # trees
    root: Int  # (T,)
    nodes: Int  # (T,) number of nodes
    splits: Int  # (T,) number of splits made since the tree began
    grace: Float  # (T,) weight between two attempts
    delta: Float  # (T,) confidence of the Hoeffding bound
    features: Float  # (T,) share of the features that each leaf observes
    # features
    kind: Int  # (F,) -1 for numbers, else the place among the categories
    # stacks of free rows
    free_nodes: Int  # (N,) the first FREE_NODES_LEFT of them
    free_slots: Int  # (S,) the first FREE_SLOTS_LEFT of them
    sizes: NDArray[np.int64]  # (4,) FREE_NODES_LEFT, FREE_SLOTS_LEFT, N_FEATURES, N_CLASSES
    # categorical features; last, and with a default, for pickles of 0.1, which lack it
    values: Int = None  # type: ignore[assignment]  # (Q,) number of categories learned so far


def room_for(number: int, room: int) -> int:
    """Room for a number of features, grown by half at a time; it depends on the number only, not on how it came up."""
    while room < number:
        room = max(room + 1, math.ceil(1.5 * room))
    return room


def values_of_0_1(nominal: Float) -> Int:
    """``Trees.values`` of a model of 0.1, whose naive Bayes took the room for values for their number."""
    return np.full(nominal.shape[1], nominal.shape[2] - 1, dtype=np.int32)


def allocate(
    trees: int, nodes: int, slots: int, features: int, nominal: int, values: int, classes: int, rows: int = 7
) -> Trees:
    """An empty arena; no tree has a root yet. ``rows`` is how much a numeric observer keeps."""

    def ints(*shape: int, fill: int = 0) -> Int:
        return np.full(shape, fill, dtype=np.int32)

    return Trees(
        feature=ints(nodes, fill=FREE),
        threshold=np.zeros(nodes),
        children=ints(nodes, 2, fill=-1),
        slot=ints(nodes, fill=-1),
        depth=ints(nodes),
        owner=ints(nodes, fill=-1),
        weight=np.zeros(nodes),
        attempted=np.zeros(nodes),
        right=np.zeros((nodes, 2)),
        counts=np.zeros((nodes, classes)),
        numeric=np.zeros((slots, features, rows, classes)),
        nominal=np.zeros((slots, nominal, values + 1, classes)),
        subset=ints(slots, features),
        subset_size=ints(slots),
        leaf=ints(slots, fill=-1),
        root=ints(trees, fill=-1),
        nodes=ints(trees),
        splits=ints(trees),
        grace=np.full(trees, 200.0),
        delta=np.full(trees, 1e-7),
        features=np.ones(trees),
        kind=ints(features, fill=-1),
        free_nodes=np.arange(nodes - 1, -1, -1, dtype=np.int32),
        free_slots=np.arange(slots - 1, -1, -1, dtype=np.int32),
        sizes=np.array([nodes, slots, 0, 0], dtype=np.int64),
        values=ints(nominal),
    )


def grow(
    old: Trees,
    nodes: int | None = None,
    slots: int | None = None,
    features: int | None = None,
    nominal: int | None = None,
    values: int | None = None,
    classes: int | None = None,
) -> Trees:
    """A larger arena with the same content."""
    sizes = (
        old.feature.shape[0] if nodes is None else nodes,
        old.leaf.shape[0] if slots is None else slots,
        old.kind.shape[0] if features is None else features,
        old.nominal.shape[1] if nominal is None else nominal,
        old.nominal.shape[2] - 1 if values is None else values,
        old.counts.shape[1] if classes is None else classes,
    )
    new = allocate(len(old.root), *sizes, rows=old.numeric.shape[2])
    for name in Trees._fields:
        source, target = getattr(old, name), getattr(new, name)
        if name not in ("free_nodes", "free_slots", "sizes", "nominal"):
            target[tuple(slice(size) for size in source.shape)] = source
    s, q, v, c = old.nominal.shape
    new.nominal[:s, :q, : v - 1, :c] = old.nominal[:, :, :-1]
    new.nominal[:s, :q, -1, :c] = old.nominal[:, :, -1]
    for place, (name, total) in enumerate((("free_nodes", sizes[0]), ("free_slots", sizes[1]))):
        before = len(getattr(old, name))
        added = np.arange(total - 1, before - 1, -1, dtype=np.int32)
        # without new rows also what lies behind the top, so that equal models are equal files
        stack = np.concatenate([added, getattr(old, name)[: old.sizes[place] if len(added) else None]])
        getattr(new, name)[: len(stack)] = stack
        new.sizes[place] = old.sizes[place] + len(added)
    new.sizes[N_FEATURES:] = old.sizes[N_FEATURES:]
    return new
