"""Which arrays of a saved stream model are possible: checked once, when it is loaded.

The compiled loops follow indices without looking: a child, a slot or a feature outside its array would read or write
foreign memory. While a model learns, the loops themselves keep the indices right. A file can hold any number, so
everything that they rely on is checked here, in numpy, in a time that is linear in the size of the arrays. Comparisons
are written so that NaN fails them.
"""

# N nodes, S slots, T trees, F features, Q categorical features, V categories, C classes, E experts, D windows

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeapps.core.labels import label_kind
from moeapps.core.saved_arguments import fits
from moeapps.stream.compiled.arena import FREE, FREE_NODES_LEFT, FREE_SLOTS_LEFT, LEAF, N_CLASSES, N_FEATURES, Trees
from moeapps.stream.compiled.engine import TreeEngine
from moeapps.stream.compiled.kind_engine import KindEngine
from moeapps.stream.compiled.mixture_state import (
    MAX_EVENTS,
    TASK,
    WAITING,
    Mixture,
    num_inputs,
    num_outputs,
)
from moeapps.stream.compiled.observers import OFFSET
from moeapps.stream.compiled.regression_trees import BINS, FRAME
from moeapps.stream.config import DriftMoEConfig
from moeapps.stream.encoding import FeatureEncoder
from moeapps.stream.labels import LabelEncoder
from moeapps.stream.restoring_kinds import (
    MOST,
    check_events,
    check_kinds_of_engine,
    check_shape,
    check_windows,
    require,
    within,
)
from moeapps.stream.row_encoding import check_column_types

__all__ = ["check_encoder", "check_engine", "check_labels", "check_sizes_of_file"]

Array = NDArray[Any]

_LARGEST = 1e160
"""Values that a histogram may reach; features are below 1e150, and its range is doubled until it holds them."""


def check_sizes_of_file(config: DriftMoEConfig, classes: int, arrays: Mapping[str, Array]) -> None:
    """Compare the arguments that decide how much memory an engine needs with the arrays, before there is an engine.

    Parameters
    ----------
    config : DriftMoEConfig
        Settings of the file.
    classes : int
        Number of its labels.
    arrays : mapping of str to array
        Its arrays.

    Raises
    ------
    FileFormatError
        Naming the argument.
    """
    if config.kinds is not None:
        experts = sum(config.kinds.values())
        require(len(arrays["mixture.recent"]) == experts, f"experts={config.experts!r} are not those of its arrays")
        return
    experts = classes if config.variant == "task" else config.n_experts
    require(len(arrays["mixture.recent"]) == experts, f"n_experts={experts} is not that of its arrays")
    require(len(arrays["mixture.batch_x"]) == config.router_period, "router_period is not that of its arrays")
    sizes = arrays["mixture.network.sizes"].tolist()
    require(len(sizes) == 4 and tuple(sizes[1:3]) == config.hidden, "router_hidden is not that of its arrays")
    parameters = sum((n_in + 1) * n_out for n_in, n_out in pairwise(sizes))
    require(min(sizes) >= 0 and sizes[0] >= num_inputs(config.mixture, 0), "router is impossible")
    require(parameters == arrays["mixture.network.parameters"].size, "router has other sizes than it says")


def check_encoder(encoder: FeatureEncoder, state: Mapping[str, Any]) -> None:
    """Refuse names and categories that occur twice, and counters that count nothing.

    Parameters
    ----------
    encoder : FeatureEncoder
        Restored from the state.
    state : mapping
        What :meth:`FeatureEncoder.state` wrote.

    Raises
    ------
    FileFormatError
        Saying what is impossible.
    """
    names = list(encoder.columns)
    require(len(names) == len(encoder.nominal) == len(state["names"]), "features occur twice")
    for name, values in zip(names, state["codes"], strict=True):
        require(len(values) == len(encoder.codes.get(name, ())), f"categories of {name!r} occur twice")
    counts = (state["ignored"], state["bad"], *state.get("bad_by_column", ()))
    require(fits(state.get("missing_values", []), list[str]), "texts that mean missing are none")
    require(fits(state.get("why", []), list[str]), "reasons are no texts")
    check_column_types(encoder.types)
    require([type(count) is int and count >= 0 for count in counts], "counters of bad values are impossible")


def check_labels(encoder: LabelEncoder, state: Sequence[Any], dtype: Any) -> None:
    """Refuse labels that occur twice or are of several kinds, and a dtype that no label has."""
    require(dtype is None or re.fullmatch(r"object|[<>|=]?[biuf]\d{1,2}", str(dtype)), "dtype of labels is impossible")
    require(len(encoder.codes) == len(state), "labels occur twice")
    require(len({label_kind(label) for label in encoder.codes}) <= 1, "labels are of several kinds")


def check_engine(engine: TreeEngine, nominal: list[bool], codes: list[int]) -> None:
    """Refuse arrays that learning could not have made.

    Parameters
    ----------
    engine : TreeEngine
        With the arrays of a file.
    nominal : list of bool
        For each feature that the encoder knows, whether it is categorical.
    codes : list of int
        For each of them the number of its categories.

    Raises
    ------
    FileFormatError
        Saying what is impossible.
    """
    settings = engine.settings
    features, classes = engine.n_features, engine.n_classes
    require(len(nominal) == features, "names are not those of its features")
    trees = engine.pool.state.trees
    seen = BINS if engine.numbers else 2 if settings.variant == TASK else classes
    _check_tree_shapes(trees, engine.pool.n_trees, FRAME + 1 if engine.numbers else OFFSET + 1)
    require(trees.sizes[N_FEATURES] == features, "number of features is not that of its names")
    require(trees.sizes[N_CLASSES] == seen <= trees.counts.shape[1], "number of classes is not that of its labels")
    _check_trees(trees, features, engine.pool.settings.max_nodes)
    _check_observers(trees, features, nominal, codes, engine.numbers)
    place = engine.pool.state.place
    check_shape(engine.pool.state.rng, (1,), "pool.rng")
    require(np.array_equal(np.sort(place), np.arange(engine.pool.n_trees)), "places of the trees are no permutation")
    if features > 0:
        require(trees.root[place[: settings.n_experts]] >= 0, "experts lack a tree")
    if isinstance(engine, KindEngine):
        check_kinds_of_engine(engine)
    else:
        _check_mixture(engine)


def _check_tree_shapes(t: Trees, trees: int, rows: int) -> None:
    nodes, slots, features = len(t.feature), len(t.leaf), len(t.kind)
    _, classes = t.counts.shape
    _, places, values, _ = t.nominal.shape
    require(values >= 1 and classes >= 1, "observers are impossible")
    shapes = {
        **dict.fromkeys(("feature", "threshold", "slot", "depth", "owner", "weight", "attempted"), (nodes,)),
        "children": (nodes, 2), "right": (nodes, 2), "counts": (nodes, classes), "free_nodes": (nodes,),
        "numeric": (slots, features, rows, classes), "nominal": (slots, places, values, classes),
        "subset": (slots, features), "subset_size": (slots,), "leaf": (slots,), "free_slots": (slots,),
        **dict.fromkeys(("root", "nodes", "splits", "grace", "delta", "features"), (trees,)),
        "kind": (features,), "sizes": (4,), "values": (places,),
    }  # fmt: skip
    for name in Trees._fields:
        check_shape(getattr(t, name), shapes[name], f"trees.{name}")


def _check_trees(t: Trees, features: int, max_nodes: int) -> None:
    """Nodes are a forest, leaves and slots point at each other, and the stacks hold what is free."""
    nodes, slots, trees = len(t.feature), len(t.leaf), len(t.root)
    free, is_leaf, inner = t.feature == FREE, t.feature == LEAF, t.feature >= 0
    require(within(t.feature, FREE, features), "trees split on a feature that is not there")
    for name, place, total, is_free in (
        ("free_nodes", FREE_NODES_LEFT, nodes, free),
        ("free_slots", FREE_SLOTS_LEFT, slots, t.leaf == -1),
    ):
        left = int(t.sizes[place])
        require(0 <= left <= total, f"number of {name} is impossible")
        stack = getattr(t, name)[:left]
        require(within(stack, 0, total), f"{name} are not in their arrays")
        marked = np.zeros(total, dtype=bool)
        marked[stack] = True
        require(marked.sum() == left and np.array_equal(marked, is_free), f"{name} are not what is free")
    require(t.slot[~is_leaf] == -1, "nodes that are no leaves have slots")
    owner = t.owner[~free]
    require(within(owner, 0, trees), "nodes are of no tree")
    require(np.bincount(owner, minlength=trees) == t.nodes, "trees have another number of nodes than they say")
    require(t.nodes <= max_nodes, "trees have more nodes than max_nodes")
    # depth grows by one from parent to child, so there is no circle; each node but the roots is one node's child
    children, parents = t.children[inner], np.flatnonzero(inner)[:, None]
    require(within(children, 0, nodes), "trees have children that are not there")
    require(~free[children], "trees have children that are free")
    require(t.depth[children] == t.depth[parents] + 1, "trees have children at another depth")
    require(t.owner[children] == t.owner[parents], "trees have children of another tree")
    rooted = np.flatnonzero(t.root != -1)
    root = t.root[rooted]
    require(within(root, 0, nodes), "roots are not there")
    require((t.depth[root] == 0) & ~free[root] & (t.owner[root] == rooted), "roots are impossible")
    named = np.zeros(nodes, dtype=np.int64)
    np.add.at(named, children.ravel(), 1)
    named[root] += 1
    require(named[~free] == 1, "nodes have no parent, or more than one")
    leaves = np.flatnonzero(is_leaf & (t.slot != -1))
    require(within(t.slot[leaves], 0, slots), "leaves have slots that are not there")
    active = np.flatnonzero(t.leaf != -1)
    require(within(t.leaf[active], 0, nodes), "slots have leaves that are not there")
    require(t.leaf[t.slot[leaves]] == leaves, "leaves and slots do not match")
    require(is_leaf[t.leaf[active]] & (t.slot[t.leaf[active]] == active), "slots and leaves do not match")
    for name in ("weight", "attempted", "right"):
        require(getattr(t, name) >= 0, f"{name} of nodes is negative")
    require((t.grace > 0) & (t.delta > 0) & (t.delta <= 1), "settings of the trees are impossible")
    require((t.features > 0) & (t.features <= 1) & (t.splits >= 0), "settings of the trees are impossible")


def _check_observers(t: Trees, features: int, nominal: list[bool], codes: list[int], numbers: bool) -> None:
    """Slots observe features that are there, and categories have room."""
    _, places, values, _ = t.nominal.shape
    require(features <= len(t.kind), "trees have no room for its features")
    kind = t.kind[:features]
    require((kind >= 0) == np.array(nominal, dtype=bool), "features are not of the kinds that the trees know")
    chosen = kind[kind >= 0]
    require(within(chosen, 0, places) & (len(np.unique(chosen)) == len(chosen)), "categorical features lack room")
    require(within(t.values, 0, values), "numbers of categories are impossible")
    require(np.array(codes, dtype=np.int64) <= values - 1, "categories lack room")
    require(within(t.subset_size, 0, features + 1), "slots observe more features than there are")
    observed = np.arange(t.subset.shape[1]) < t.subset_size[:, None]
    require(within(t.subset[observed], 0, features), "slots observe a feature that is not there")
    require(t.nominal[..., 0] >= 0 if numbers else t.nominal >= 0, "counts of categories are negative")
    if not numbers:
        require(t.counts >= 0, "counts of classes are negative")
        require(t.numeric[:, :, 0] >= 0, "weights of observers are negative")
        return
    require((t.counts[:, 0] >= 0) & (t.counts[:, 2] >= 0), "statistics of leaves are negative")
    frame = t.numeric[:, :, FRAME]
    low, width, first = frame[..., 0], frame[..., 1], frame[..., 2]
    require((np.abs(low) < _LARGEST) & (np.abs(first) < _LARGEST), "histograms are out of range")
    require((width >= 0) & (width < _LARGEST), "histograms have impossible bins")


def _check_mixture(engine: TreeEngine) -> None:
    """Shapes of everything by number of experts, features and classes; counters; the router; the windows."""
    m, s = engine.mixture, engine.settings
    experts, features = s.n_experts, engine.n_features
    inputs, outputs = num_inputs(s, features), num_outputs(s, engine.n_classes)
    shapes = {
        **dict.fromkeys(("recent", "age", "activation"), (experts,)),
        "pool_and_router_accuracy": (2,), "moments": (features, 3), "scale": (3,), "error": (1,), "rng": (1,),
        "batch_x": (s.router_period, inputs), "batch_y": (s.router_period, outputs),
        "counters": (3,), "events": (MAX_EVENTS, 3),
    }  # fmt: skip
    for name in Mixture._fields:
        if name not in ("network", "windows"):
            check_shape(getattr(m, name), shapes[name], f"mixture.{name}")
    sizes = m.network.sizes.tolist()
    require(sizes[:1] + sizes[3:] == [inputs, outputs], "router has other sizes than its arguments say")
    for name in ("first", "second"):
        check_shape(getattr(m.network, name), m.network.parameters.shape, f"mixture.network.{name}")
    check_shape(m.network.steps, (1,), "mixture.network.steps")
    require(within(m.network.steps, 0, MOST), "router's number of steps is impossible")
    require(m.network.second >= 0, "router's moments are negative")
    check_windows(m.windows, 2 * experts)
    require((m.recent >= -1e-9) & (m.recent <= 1 + 1e-9), "recent accuracies are not in 0..1")
    require((m.age >= 0) & (m.activation >= 0), "ages and activations are negative")
    require((m.moments[:, 0] >= 0) & (m.moments[:, 2] >= 0), "moments of features are negative")
    require((m.scale[[0, 2]] >= 0) & (m.error >= 0), "moments of the target are negative")
    require(within(m.counters, 0, MOST), "counters are negative")
    require(m.counters[WAITING] < s.router_period, "router waits for more instances than its period")
    check_events(m, experts)
