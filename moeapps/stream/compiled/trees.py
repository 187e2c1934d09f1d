"""Hoeffding trees in flat arrays: descend, predict, learn, split, in compiled code.

All trees of a pool live in one arena. A node is a row of the node arrays; a leaf that learns has a *slot*, a row of the
statistics arrays, which are what costs memory. Both are handed out from stacks of free rows, so a tree that is removed
makes room for another and the memory never exceeds the caps.

The algorithm is VFDT (Domingos and Hulten 2000) as in MOA and river: information gain, Hoeffding bound with tie
threshold, Gaussian observers for numbers (10 candidate splits between the smallest and the largest value), counts for
categories (binary splits "equal to this value"), leaves that predict by majority, naive Bayes, or whichever of the two
has been right more often. A missing value (NaN) goes the way that most instances went.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeapps.stream.compiled.jit import kernel, reference, uniform
from moeapps.stream.compiled.observers import (
    MEAN,
    OFFSET,
    PRECISION,
    best_nominal,
    best_numeric,
    entropy,
    observe,
    part_nominal,
    part_numeric,
)

__all__ = [
    "TreeSettings",
    "Trees",
    "TreesRef",
    "allocate",
    "grow",
    "leaf_of",
    "learn",
    "new_tree",
    "predict",
    "remove_tree",
]

Float = NDArray[np.float64]
Int = NDArray[np.int32]

LEAF, FREE = -1, -2
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


class Trees(NamedTuple):
    """The arena: N nodes, S slots, T trees, F features (Q of them categories with up to V values), C classes."""

    # nodes
    feature: Int  # (N,) feature of the split; LEAF; FREE
    threshold: Float  # (N,) numbers: at most this goes left; categories: equal to this goes left
    children: Int  # (N, 2)
    slot: Int  # (N,) where a leaf's statistics are; -1 for inner nodes and inactive leaves
    depth: Int  # (N,)
    owner: Int  # (N,) tree
    weight: Float  # (N,) weight that came by in training
    attempted: Float  # (N,) weight of a leaf when a split was last attempted
    right: Float  # (N, 2) weight that the leaf's majority and its naive Bayes predicted rightly
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
    # stacks of free rows, and [free nodes, free slots, features known, classes known]
    free_nodes: Int
    free_slots: Int
    used: NDArray[np.int64]


TreesRef = reference(Trees)


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
        used=np.array([nodes, slots, 0, 0], dtype=np.int64),
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
        if name not in ("free_nodes", "free_slots", "used", "nominal"):
            target[tuple(slice(size) for size in source.shape)] = source
    s, q, v, c = old.nominal.shape
    new.nominal[:s, :q, : v - 1, :c] = old.nominal[:, :, :-1]
    new.nominal[:s, :q, -1, :c] = old.nominal[:, :, -1]
    for place, (name, total) in enumerate((("free_nodes", sizes[0]), ("free_slots", sizes[1]))):
        before = len(getattr(old, name))
        added = np.arange(total - 1, before - 1, -1, dtype=np.int32)
        stack = np.concatenate([added, getattr(old, name)[: old.used[place]]])
        getattr(new, name)[: len(stack)] = stack
        new.used[place] = len(stack)
    new.used[2:] = old.used[2:]
    return new


@kernel
def leaf_of(t, tree, x):  # type: ignore[no-untyped-def]
    """Leaf that an instance falls into."""
    node = t.root[tree]
    while t.feature[node] >= 0:
        node = _child(t, node, x)
    return node


@kernel
def _child(t, node, x):  # type: ignore[no-untyped-def]
    feature = t.feature[node]
    value = x[feature]
    if np.isnan(value):
        heavier = t.weight[t.children[node, 1]] > t.weight[t.children[node, 0]]
        return t.children[node, 1 if heavier else 0]
    if t.kind[feature] < 0:
        return t.children[node, 0 if value <= t.threshold[node] else 1]
    return t.children[node, 0 if value == t.threshold[node] else 1]


@kernel
def new_tree(t, tree, rng):  # type: ignore[no-untyped-def]
    """Give a tree a root without any statistics."""
    root = _new_leaf(t, tree, 0, rng)
    t.root[tree] = root
    t.splits[tree] = 0


@kernel
def _new_leaf(t, tree, depth, rng):  # type: ignore[no-untyped-def]
    t.used[0] -= 1
    node = t.free_nodes[t.used[0]]
    t.feature[node] = LEAF
    t.depth[node] = depth
    t.owner[node] = tree
    t.weight[node] = 0.0
    t.attempted[node] = 0.0
    t.right[node, :] = 0.0
    t.counts[node, :] = 0.0
    t.slot[node] = -1
    t.nodes[tree] += 1
    if t.used[1] > 0:
        t.used[1] -= 1
        _give_slot(t, node, t.free_slots[t.used[1]], rng)
    return node


@kernel
def _give_slot(t, node, slot, rng):  # type: ignore[no-untyped-def]
    """Let a leaf observe, with a random subset of the features if its tree wants one."""
    known = t.used[2]
    share = t.features[t.owner[node]]
    size = known if share >= 1.0 else min(known, int(np.ceil(share * known)))
    for i in range(known):
        t.subset[slot, i] = i
    if size < known:
        for i in range(size):
            j = i + int(uniform(rng) * (known - i))
            swapped = t.subset[slot, i]
            t.subset[slot, i] = t.subset[slot, j]
            t.subset[slot, j] = swapped
    t.subset_size[slot] = size
    t.numeric[slot] = 0.0
    t.nominal[slot] = 0.0
    t.leaf[slot] = node
    t.slot[node] = slot


@kernel
def _free(t, node):  # type: ignore[no-untyped-def]
    slot = t.slot[node]
    if slot >= 0:
        t.free_slots[t.used[1]] = slot
        t.used[1] += 1
        t.leaf[slot] = -1
        t.slot[node] = -1
    t.nodes[t.owner[node]] -= 1
    t.feature[node] = FREE
    t.owner[node] = -1
    t.free_nodes[t.used[0]] = node
    t.used[0] += 1


@kernel
def remove_tree(t, tree):  # type: ignore[no-untyped-def]
    """Free all nodes and slots of a tree."""
    for node in range(t.feature.shape[0]):
        if t.owner[node] == tree:
            _free(t, node)
    t.root[tree] = -1


@kernel
def _majority(t, node, out):  # type: ignore[no-untyped-def]
    total = 0.0
    for c in range(t.used[3]):
        total += t.counts[node, c]
    for c in range(t.used[3]):
        out[c] = t.counts[node, c] / total if total > 0.0 else 0.0


@kernel
def _naive_bayes(t, node, x, out):  # type: ignore[no-untyped-def]
    slot = t.slot[node]
    classes = t.used[3]
    total = 0.0
    for c in range(classes):
        total += t.counts[node, c]
    if total <= 0.0:
        out[:classes] = 0.0
        return
    for c in range(classes):
        count = t.counts[node, c]
        out[c] = np.log(count / total) if count > 0.0 else -np.inf
    for i in range(t.subset_size[slot]):
        feature = t.subset[slot, i]
        value = x[feature]
        if np.isnan(value):
            continue
        place = t.kind[feature]
        if place < 0:
            seen = t.numeric[slot, feature]
            for c in range(classes):
                gap = value - seen[MEAN, c]
                out[c] += seen[OFFSET, c] - 0.5 * gap * gap * seen[PRECISION, c]
        elif value >= 0.0:
            seen = t.nominal[slot, place]
            last = seen.shape[0] - 1
            for c in range(classes):
                if seen[last, c] > 0.0:
                    out[c] += np.log((seen[int(value), c] + 1.0) / (seen[last, c] + last))
    best = -np.inf
    for c in range(classes):
        best = max(best, out[c])
    total = 0.0
    for c in range(classes):
        out[c] = np.exp(out[c] - best)
        total += out[c]
    for c in range(classes):
        out[c] /= total


@kernel
def argmax(values, n):  # type: ignore[no-untyped-def]
    """Place of the first largest of n values."""
    best = 0
    for i in range(1, n):
        if values[i] > values[best]:
            best = i
    return best


@kernel
def predict(t, settings, node, x, out):  # type: ignore[no-untyped-def]
    """Class probabilities of a leaf, all zero where it has seen nothing, and the class its naive Bayes believes in.

    The belief is -1 where there is none. :func:`learn` wants it, and it must not be computed twice.
    """
    if t.slot[node] < 0 or settings.leaf_prediction == MAJORITY:
        _majority(t, node, out)
        return -1
    _naive_bayes(t, node, x, out)
    best = argmax(out, t.used[3])
    belief = best if out[best] > 0.0 else -1
    if settings.leaf_prediction == ADAPTIVE and t.right[node, 1] < t.right[node, 0]:
        _majority(t, node, out)
    return belief


@kernel
def learn(t, settings, tree, x, y, weight, belief, scratch, rng):  # type: ignore[no-untyped-def]
    """Learn one instance: class ``y`` with this weight. ``scratch`` is ``(3, C)``. True if the tree has split.

    ``belief`` is what :func:`predict` said of the same instance and the same state.
    """
    node = t.root[tree]
    while t.feature[node] >= 0:
        t.weight[node] += weight
        node = _child(t, node, x)
    t.weight[node] += weight
    slot = t.slot[node]
    if slot >= 0 and settings.leaf_prediction == ADAPTIVE:
        if argmax(t.counts[node], t.used[3]) == y or t.counts[node].sum() == 0.0:
            t.right[node, 0] += weight
        if belief == y:
            t.right[node, 1] += weight
    t.counts[node, y] += weight
    if slot < 0:
        return _reactivate(t, settings, node, rng)
    for i in range(t.subset_size[slot]):
        feature = t.subset[slot, i]
        value = x[feature]
        if np.isnan(value):
            continue
        place = t.kind[feature]
        if place < 0:
            observe(t.numeric[slot, feature], y, value, weight)
        elif value >= 0.0:
            t.nominal[slot, place, int(value), y] += weight
            t.nominal[slot, place, t.nominal.shape[2] - 1, y] += weight
    total = 0.0
    for c in range(t.used[3]):
        total += t.counts[node, c]
    if total - t.attempted[node] < t.grace[tree]:
        return False
    t.attempted[node] = total
    return _attempt_split(t, settings, tree, node, total, scratch, rng)


@kernel
def _attempt_split(t, settings, tree, node, total, scratch, rng):  # type: ignore[no-untyped-def]
    slot = t.slot[node]
    n = t.used[3]
    if t.depth[node] >= settings.max_depth or t.nodes[tree] + 2 > settings.max_nodes or t.used[0] < 2:
        return False
    classes = 0
    largest = 0.0
    for c in range(n):
        if t.counts[node, c] > 0.0:
            classes += 1
            largest = max(largest, t.counts[node, c])
    if classes < 2:
        return False
    if largest / total > settings.max_share:  # what is almost pure forgets what it observed, and predicts its majority
        t.numeric[slot] = 0.0
        t.nominal[slot] = 0.0
        return False
    before, _ = entropy(t.counts[node], n)
    left, right = scratch[1], scratch[2]
    best, second = 0.0, -np.inf  # as in river, where a leaf with a single possible split takes it
    feature, threshold = -1, 0.0
    for i in range(t.subset_size[slot]):
        candidate = t.subset[slot, i]
        merit, value = _best_value(t, settings, slot, candidate, before, total, left, right)
        if merit > best:
            if feature >= 0:
                second = best
            best, feature, threshold = merit, candidate, value
        elif merit > second:
            second = merit
    if feature < 0:
        return False
    span = np.log2(max(classes, 2))
    bound = np.sqrt(span * span * np.log(1.0 / t.delta[tree]) / (2.0 * total))
    if best - second <= bound and bound >= settings.tie_threshold:
        return False
    if t.used[1] == 0 and not _take_slot(t, node):
        return False
    if t.kind[feature] < 0:
        part_numeric(t.numeric[slot, feature], threshold, n, left, right)
    else:
        part_nominal(t.nominal[slot, t.kind[feature]], int(threshold), n, left, right)
    for side in range(2):
        child = _new_leaf(t, tree, t.depth[node] + 1, rng)
        given = 0.0
        for c in range(n):
            t.counts[child, c] = scratch[1 + side, c]
            given += scratch[1 + side, c]
        t.weight[child] = given
        t.attempted[child] = given
        t.children[node, side] = child
        if side == 0:  # the second child takes over the slot of the parent
            t.free_slots[t.used[1]] = slot
            t.used[1] += 1
            t.slot[node] = -1
    t.feature[node] = feature
    t.threshold[node] = threshold
    t.splits[tree] += 1
    return True


@kernel
def _best_value(t, settings, slot, feature, before, total, left, right):  # type: ignore[no-untyped-def]
    """Best gain over the candidate splits of a feature, and its split value."""
    n, place, fraction = t.used[3], t.kind[feature], settings.min_branch_fraction
    if place >= 0:
        return best_nominal(t.nominal[slot, place], n, before, total, fraction, left, right)
    return best_numeric(t.numeric[slot, feature], n, before, total, fraction, settings.num_splits, left, right)


@kernel
def _promise(t, node):  # type: ignore[no-untyped-def]
    """Weight that a leaf's majority gets wrong: how much a split could win (Kirkby 2007)."""
    total, largest = 0.0, 0.0
    for c in range(t.used[3]):
        total += t.counts[node, c]
        largest = max(largest, t.counts[node, c])
    return total - largest


@kernel
def _take_slot(t, node):  # type: ignore[no-untyped-def]
    """Deactivate the least promising leaf of all, if it promises less than this one."""
    poorest, least = -1, _promise(t, node)
    for slot in range(t.leaf.shape[0]):
        leaf = t.leaf[slot]
        if leaf >= 0 and leaf != node:
            promise = _promise(t, leaf)
            if promise < least:
                poorest, least = leaf, promise
    if poorest < 0:
        return False
    slot = t.slot[poorest]
    t.slot[poorest] = -1
    t.leaf[slot] = -1
    t.free_slots[t.used[1]] = slot
    t.used[1] += 1
    return True


@kernel
def _reactivate(t, settings, node, rng):  # type: ignore[no-untyped-def]
    """Let an inactive leaf observe again once it promises more than the poorest active one."""
    total = 0.0
    for c in range(t.used[3]):
        total += t.counts[node, c]
    if total - t.attempted[node] >= t.grace[t.owner[node]]:
        t.attempted[node] = total
        if t.used[1] > 0 or _take_slot(t, node):
            t.used[1] -= 1
            _give_slot(t, node, t.free_slots[t.used[1]], rng)
    return False
