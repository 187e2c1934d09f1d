"""Hoeffding trees in flat arrays: descend, predict, learn, split, in compiled code.

All trees of a pool share one arena. A node is a row of the node arrays; a leaf that learns has a *slot*, a row of the
statistics arrays, which take most of the memory. Both are taken from stacks of free rows, so a tree that is removed
makes room for another and the memory never exceeds the caps.

The algorithm is VFDT (Domingos and Hulten 2000) as in MOA and river: information gain, Hoeffding bound with tie
threshold, Gaussian observers for numbers (10 candidate splits between the smallest and the largest value), counts for
categories (binary splits "equal to this value"), leaves that predict by majority, naive Bayes, or whichever of the two
has been right more often. A missing value (NaN) follows the branch with the larger weight.

:func:`learn` grows a tree by one instance (x, y, weight):

1. Descend to the leaf, adding the weight to every node on the way.
2. Add the weight to what the leaf's majority and its naive Bayes got right, from their predictions before this update.
3. Add the instance to the class counts and, if the leaf is active, to the observer of each observed feature. An
   inactive leaf becomes active again once it is more promising than the least promising active leaf.
4. After each ``grace_period`` of weight, unless the leaf is pure or nearly so: compute the best information gain of
   each observed feature over its candidate splits.
5. Split on the best feature if its gain exceeds the second best by the Hoeffding bound
   sqrt(R^2 ln(1 / delta) / (2 n)), R = log2(number of classes), or if the bound is below the tie threshold. The
   children start with the class weights that the observers estimate for each side.
"""

# N nodes, S slots, T trees, F features, Q categorical features, V categories, C classes
# t Trees, x (F,) instance

import numpy as np

from moeapps.stream.compiled.arena import (
    ADAPTIVE,
    FREE,
    FREE_NODES_LEFT,
    FREE_SLOTS_LEFT,
    LEAF,
    MAJORITY,
    N_CLASSES,
    N_FEATURES,
    Trees,
    TreeSettings,
)
from moeapps.stream.compiled.jit import fill, kernel, uniform
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
    "argmax",
    "close_split",
    "count_values",
    "leaf_of",
    "learn",
    "new_child",
    "new_tree",
    "predict",
    "remove_tree",
]


@kernel
def leaf_of(t, tree, x):  # type: ignore[no-untyped-def]
    """Leaf that an instance falls into."""
    node = t.root[tree]
    while t.feature[node] >= 0:
        node = _child(t, node, x)
    return node


@kernel
def count_values(t, x):  # type: ignore[no-untyped-def]
    """Count the categories of an instance that is learned: codes are given in order of appearance."""
    for feature in range(t.sizes[N_FEATURES]):
        place = t.kind[feature]
        if place >= 0 and x[feature] >= t.values[place]:
            t.values[place] = int(x[feature]) + 1


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
    t.sizes[FREE_NODES_LEFT] -= 1
    node = t.free_nodes[t.sizes[FREE_NODES_LEFT]]
    t.feature[node] = LEAF
    t.depth[node] = depth
    t.owner[node] = tree
    t.weight[node] = 0.0
    t.attempted[node] = 0.0
    t.right[node, 0] = 0.0
    t.right[node, 1] = 0.0
    fill(t.counts[node], t.counts.shape[1], 0.0)
    t.slot[node] = -1
    t.nodes[tree] += 1
    if t.sizes[FREE_SLOTS_LEFT] > 0:
        t.sizes[FREE_SLOTS_LEFT] -= 1
        _give_slot(t, node, t.free_slots[t.sizes[FREE_SLOTS_LEFT]], rng)
    return node


@kernel
def _give_slot(t, node, slot, rng):  # type: ignore[no-untyped-def]
    """Make a leaf active: it observes all features, or a random subset drawn by a partial Fisher-Yates shuffle."""
    known = t.sizes[N_FEATURES]
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
    _clear(t.numeric[slot])
    _clear(t.nominal[slot])
    t.leaf[slot] = node
    t.slot[node] = slot


@kernel
def _clear(observers):  # type: ignore[no-untyped-def]
    for i in range(observers.shape[0]):
        for j in range(observers.shape[1]):
            fill(observers[i, j], observers.shape[2], 0.0)


@kernel
def _free(t, node):  # type: ignore[no-untyped-def]
    slot = t.slot[node]
    if slot >= 0:
        t.free_slots[t.sizes[FREE_SLOTS_LEFT]] = slot
        t.sizes[FREE_SLOTS_LEFT] += 1
        t.leaf[slot] = -1
        t.slot[node] = -1
    t.nodes[t.owner[node]] -= 1
    t.feature[node] = FREE
    t.owner[node] = -1
    t.free_nodes[t.sizes[FREE_NODES_LEFT]] = node
    t.sizes[FREE_NODES_LEFT] += 1


@kernel
def remove_tree(t, tree):  # type: ignore[no-untyped-def]
    """Free all nodes and slots of a tree."""
    for node in range(t.feature.shape[0]):
        if t.owner[node] == tree:
            _free(t, node)
    t.root[tree] = -1


@kernel
def _total_weight(t, node):  # type: ignore[no-untyped-def]
    """Weight of all classes of a node."""
    total = 0.0
    for c in range(t.sizes[N_CLASSES]):
        total += t.counts[node, c]
    return total


@kernel
def _majority(t, node, out):  # type: ignore[no-untyped-def]
    """Class shares of a node."""
    total = _total_weight(t, node)
    for c in range(t.sizes[N_CLASSES]):
        out[c] = t.counts[node, c] / total if total > 0.0 else 0.0


@kernel
def _naive_bayes(t, node, x, out):  # type: ignore[no-untyped-def]
    """Class probabilities from Gaussian densities and Laplace-smoothed category counts, features independent."""
    slot = t.slot[node]
    classes = t.sizes[N_CLASSES]
    total = _total_weight(t, node)
    if total <= 0.0:
        fill(out, classes, 0.0)
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
        elif 0.0 <= value < t.values[place]:
            seen = t.nominal[slot, place]
            last, values = seen.shape[0] - 1, t.values[place]
            for c in range(classes):
                if seen[last, c] > 0.0:
                    out[c] += np.log((seen[int(value), c] + 1.0) / (seen[last, c] + values))
    best = -np.inf  # subtracted before the exponential, which would underflow for all classes far from the data
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
    """Fill ``out`` with the class probabilities of a leaf, all zero where it has seen nothing.

    Returns the class that the leaf's naive Bayes predicts, -1 where there is none: :func:`learn` needs it to compare
    naive Bayes with the majority, and it is too costly to be computed twice.
    """
    if t.slot[node] < 0 or settings.leaf_prediction == MAJORITY:
        _majority(t, node, out)
        return -1
    _naive_bayes(t, node, x, out)
    best = argmax(out, t.sizes[N_CLASSES])
    naive_bayes = best if out[best] > 0.0 else -1
    if settings.leaf_prediction == ADAPTIVE and t.right[node, 1] < t.right[node, 0]:
        _majority(t, node, out)
    return naive_bayes


@kernel
def learn(t, settings, tree, x, y, weight, naive_bayes, scratch, rng):  # type: ignore[no-untyped-def]
    """Learn one instance of class ``y``; ``scratch`` has shape (3, C). Returns whether the tree has split.

    ``naive_bayes`` is what :func:`predict` returned for the same instance and the same state.
    """
    node = t.root[tree]
    while t.feature[node] >= 0:
        t.weight[node] += weight
        node = _child(t, node, x)
    t.weight[node] += weight
    slot = t.slot[node]
    if slot >= 0 and settings.leaf_prediction == ADAPTIVE:
        if argmax(t.counts[node], t.sizes[N_CLASSES]) == y or _total_weight(t, node) == 0.0:
            t.right[node, 0] += weight
        if naive_bayes == y:
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
    total = _total_weight(t, node)
    if total - t.attempted[node] < t.grace[tree]:
        return False
    t.attempted[node] = total
    return _attempt_split(t, settings, tree, node, total, scratch, rng)


@kernel
def _attempt_split(t, settings, tree, node, total, scratch, rng):  # type: ignore[no-untyped-def]
    """Steps 4 and 5 of the module's list. Returns whether the leaf was split."""
    slot = t.slot[node]
    n = t.sizes[N_CLASSES]
    if t.depth[node] >= settings.max_depth or t.nodes[tree] + 2 > settings.max_nodes or t.sizes[FREE_NODES_LEFT] < 2:
        return False
    classes = 0
    largest = 0.0
    for c in range(n):
        if t.counts[node, c] > 0.0:
            classes += 1
            largest = max(largest, t.counts[node, c])
    if classes < 2:
        return False
    if largest / total > settings.max_share:  # an almost pure leaf drops what it has observed
        _clear(t.numeric[slot])
        _clear(t.nominal[slot])
        return False
    before, _ = entropy(t.counts[node], n)
    left, right = scratch[1], scratch[2]
    best, second = 0.0, -np.inf  # as in river: a leaf with a single candidate splits on it, whatever the bound
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
    if t.sizes[FREE_SLOTS_LEFT] == 0 and not _take_slot(t, node):
        return False
    if t.kind[feature] < 0:
        part_numeric(t.numeric[slot, feature], threshold, n, left, right)
    else:
        part_nominal(t.nominal[slot, t.kind[feature]], int(threshold), n, left, right)
    for side in range(2):
        child = new_child(t, tree, node, side, rng)
        for c in range(n):
            t.counts[child, c] = scratch[1 + side, c]
        t.weight[child] = _total_weight(t, child)
        t.attempted[child] = t.weight[child]
    close_split(t, tree, node, feature, threshold)
    return True


@kernel
def new_child(t, tree, node, side, rng):  # type: ignore[no-untyped-def]
    """Give a leaf that is being split a child without any statistics."""
    child = _new_leaf(t, tree, t.depth[node] + 1, rng)
    t.children[node, side] = child
    if side == 0:  # the second child takes over the slot of the parent
        t.free_slots[t.sizes[FREE_SLOTS_LEFT]] = t.slot[node]
        t.sizes[FREE_SLOTS_LEFT] += 1
        t.slot[node] = -1
    return child


@kernel
def close_split(t, tree, node, feature, threshold):  # type: ignore[no-untyped-def]
    """Make a leaf with two children an inner node."""
    t.feature[node] = feature
    t.threshold[node] = threshold
    t.splits[tree] += 1


@kernel
def _best_value(t, settings, slot, feature, before, total, left, right):  # type: ignore[no-untyped-def]
    """Best gain over the candidate splits of a feature, and its split value."""
    n, place, fraction = t.sizes[N_CLASSES], t.kind[feature], settings.min_branch_fraction
    if place >= 0:
        return best_nominal(t.nominal[slot, place], n, before, total, fraction, left, right)
    return best_numeric(t.numeric[slot, feature], n, before, total, fraction, settings.num_splits, left, right)


@kernel
def _promise(t, node):  # type: ignore[no-untyped-def]
    """Promise of a leaf: the weight that its majority gets wrong, at most what a split gains (Kirkby 2007)."""
    total, largest = 0.0, 0.0
    for c in range(t.sizes[N_CLASSES]):
        total += t.counts[node, c]
        largest = max(largest, t.counts[node, c])
    return total - largest


@kernel
def _take_slot(t, node):  # type: ignore[no-untyped-def]
    """Deactivate the least promising active leaf, if it is less promising than this one."""
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
    t.free_slots[t.sizes[FREE_SLOTS_LEFT]] = slot
    t.sizes[FREE_SLOTS_LEFT] += 1
    return True


@kernel
def _reactivate(t, settings, node, rng):  # type: ignore[no-untyped-def]
    """Make an inactive leaf active again once it is more promising than the least promising active one."""
    total = _total_weight(t, node)
    if total - t.attempted[node] >= t.grace[t.owner[node]]:
        t.attempted[node] = total
        if t.sizes[FREE_SLOTS_LEFT] > 0 or _take_slot(t, node):
            t.sizes[FREE_SLOTS_LEFT] -= 1
            _give_slot(t, node, t.free_slots[t.sizes[FREE_SLOTS_LEFT]], rng)
    return False
