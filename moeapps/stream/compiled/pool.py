"""Pools of experts: Hoeffding trees in compiled code."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeapps.core.checks import check_fraction, check_one_of, check_sizes
from moeapps.core.config import Configurable, takes
from moeapps.core.errors import ConfigError, DataError
from moeapps.stream.compiled import regression_trees, trees
from moeapps.stream.compiled.arena import (
    ADAPTIVE,
    FREE_NODES_LEFT,
    FREE_SLOTS_LEFT,
    MAJORITY,
    N_CLASSES,
    N_FEATURES,
    NAIVE_BAYES,
    Trees,
    TreeSettings,
    allocate,
    grow,
    room_for,
    values_of_0_1,
)
from moeapps.stream.compiled.jit import entry, kernel, random_seed
from moeapps.stream.compiled.references import as_reference, referable

__all__ = ["HoeffdingPool", "PoolState", "TreeConfig"]

LEAVES = {"mc": MAJORITY, "nb": NAIVE_BAYES, "nba": ADAPTIVE}
_START_NODES = 64
"""Nodes that an arena begins with, per tree."""


@referable
class PoolState(NamedTuple):
    """What the compiled loops need of a pool."""

    trees: Trees
    place: NDArray[np.int64]  # (T,) which tree of the arena is the i-th of the pool
    rng: NDArray[np.uint64]


@dataclass(frozen=True)
class TreeConfig:
    """Settings of the trees.

    Parameters
    ----------
    grace_period : int, default 50
        Weight that a leaf sees between two attempts to split.
    delta : float in (0, 1], default 1e-7
        Confidence of the Hoeffding bound.
    tie_threshold : float in (0, 1], default 0.05
        A split is made without a clear winner once the bound is below this.
    leaf_prediction : {"mc", "nb", "nba"}, default "nba"
        Leaves predict by majority class, naive Bayes, or whichever of the two was right more often.
    feature_share : float or list of float, default 1.0
        Share of the features that each leaf observes, drawn anew for each leaf; a list is cycled through by the trees.
    max_nodes : int, default 1023
        Largest number of nodes per tree.
    """

    grace_period: int = 50
    delta: float = 1e-7
    tie_threshold: float = 0.05
    leaf_prediction: Literal["mc", "nb", "nba"] = "nba"
    feature_share: float | list[float] = 1.0
    max_nodes: int = 1023


class HoeffdingPool(Configurable):
    """Incremental Hoeffding trees in flat arrays; all of them predict and learn in one compiled call.

    The algorithm is that of MOA's and river's Hoeffding tree (VFDT, Domingos and Hulten 2000): information gain,
    Hoeffding bound, tie threshold, Gaussian observers for numbers, counts for categories with binary splits, leaves
    that predict by majority, naive Bayes or the better of the two. Memory is bounded: a tree has at most ``max_nodes``
    nodes, and at most ``max_active_leaves`` leaves of all trees together keep statistics; the least promising one
    is deactivated where another needs its slot.

    With ``regression=True`` the trees are of the FIMT kind (Ikonomovska et al. 2011): variance reduction over equal
    bins of each feature, and leaves that predict the mean.

    Parameters
    ----------
    n_trees : int, default 12
        Number of trees T.
    grace_period, delta, tie_threshold, leaf_prediction, feature_share, max_nodes
        See :class:`TreeConfig`; defaults 50, 1e-7, 0.05, "nba", 1.0 and 1023.
    max_active_leaves : int, optional
        Largest number of leaves of all trees that learn; all of them when None.
    max_depth : int, default 1000
        Depth at which a leaf is no longer split.
    regression : bool, default False
        Whether the targets are numbers.
    seed : int, default 0
        Seed of the feature subsets.
    n_begin : int, optional
        Number of trees that the arena has room for at first, where others will come later; all of them when None.

    Raises
    ------
    ConfigError
        If an argument is impossible.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(2000, 3))
    >>> pool = HoeffdingPool(n_trees=2)
    >>> pool.add_features(3)
    >>> pool.add_classes(2)
    >>> pool.learn_many(X, (X[:, 1] > 0).astype(int))
    >>> pool.predict_proba_many(X[:5]).shape
    (5, 2, 2)
    """

    @takes(TreeConfig)
    def __init__(
        self,
        n_trees: int = 12,
        *,
        config: TreeConfig,
        max_active_leaves: int | None = None,
        max_depth: int = 1000,
        regression: bool = False,
        seed: int = 0,
        n_begin: int | None = None,
    ) -> None:
        check_sizes(n_trees=n_trees, grace_period=config.grace_period, max_nodes=config.max_nodes, max_depth=max_depth)
        check_fraction(delta=config.delta, tie_threshold=config.tie_threshold)
        check_one_of("leaf_prediction", config.leaf_prediction, LEAVES)
        share = config.feature_share
        shares = [share] if isinstance(share, int | float) else list(share)
        if not shares:
            raise ConfigError("feature_share must be a number or a list of numbers, got an empty list")
        for share in shares:
            check_fraction(feature_share=share)
        if max_active_leaves is not None:
            if regression:
                raise ConfigError("max_active_leaves is for classes; of regression trees all leaves learn")
            check_sizes(max_active_leaves=max_active_leaves)
            if max_active_leaves < n_trees:
                raise ConfigError(
                    f"max_active_leaves must be at least the number of trees, {n_trees} (with background trees twice "
                    f"the number of experts), got {max_active_leaves}"
                )
        self.n_trees, self.regression = n_trees, regression
        self.settings = TreeSettings(
            tie_threshold=config.tie_threshold, leaf_prediction=LEAVES[config.leaf_prediction], num_splits=10,
            min_branch_fraction=0.01, max_share=0.99, max_nodes=config.max_nodes, max_depth=max_depth,
        )  # fmt: skip
        self._node_cap = n_trees * (config.max_nodes + 2)
        self._slot_cap = n_trees * ((config.max_nodes + 1) // 2 + 1) if max_active_leaves is None else max_active_leaves
        start = _START_NODES * (n_trees if n_begin is None else n_begin)
        nodes, slots = min(self._node_cap, max(start, n_trees + 2)), min(self._slot_cap, max(start // 2, n_trees + 2))
        rows, width = (4, regression_trees.BINS) if regression else (7, 1)
        self.state = PoolState(
            allocate(n_trees, nodes, slots, 1, 0, 0, width, rows), np.arange(n_trees), random_seed(seed)
        )
        self.state.trees.grace[:] = config.grace_period
        self.state.trees.delta[:] = config.delta
        self.state.trees.features[:] = np.resize(shares, n_trees)
        if regression:
            self.state.trees.sizes[N_CLASSES] = width

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle; a pickle of 0.1 has not counted the categories."""
        self.__dict__.update(state)
        trees = self.state.trees
        if trees.values is None:
            self.state = self.state._replace(trees=trees._replace(values=values_of_0_1(trees.nominal)))

    @property
    def n_features(self) -> int:
        """Number of features F."""
        return int(self.state.trees.sizes[N_FEATURES])

    @property
    def n_classes(self) -> int:
        """Number of classes C."""
        return int(self.state.trees.sizes[N_CLASSES])

    @property
    def n_nodes(self) -> NDArray[np.int32]:
        """``(T,)`` nodes of each tree."""
        return self.state.trees.nodes[self.state.place]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.state.trees)

    def add_features(self, number: int, *, nominal: bool | Sequence[bool] = False) -> None:
        """Make room for features that come now for the first time; leaves that observe all will observe them too.

        Several at once end in the same state as one after the other.

        Parameters
        ----------
        number : int
            How many.
        nominal : bool or sequence of bool, default False
            Whether they, or each of them, are categories; their values are codes 0, 1, ... (see :meth:`add_values`).
        """
        categorical = np.resize(nominal, number).astype(bool)
        t = self.state.trees
        known = self.n_features
        total = known + number
        first = int(t.kind[:known].max(initial=-1)) + 1
        places = first + int(categorical.sum())
        features, room = room_for(total, t.kind.shape[0]), room_for(places, t.nominal.shape[1])
        if features > t.kind.shape[0] or room > t.nominal.shape[1]:
            values = max(t.nominal.shape[2] - 1, 2 if places else 0)
            t = grow(t, features=features, nominal=room, values=values)
        t.kind[known:total][categorical] = range(first, places)
        self.state = self.state._replace(trees=t)
        if known == 0 and number > 0:  # the first leaves begin with one feature, and so with all
            t.sizes[N_FEATURES] = known = 1
            plant(as_reference(self.state), 0, self.n_trees)
        full = (t.subset_size == known) & (t.leaf >= 0)
        t.subset[full, known:total] = np.arange(known, total)
        t.subset_size[full] = total
        t.sizes[N_FEATURES] = total

    def adopt(self, other: "HoeffdingPool", before: int, now: int) -> None:
        """Take over the trees of a pool with fewer experts: first ``before`` experts, then as many background trees."""
        old, t = other.state.trees, self.state.trees
        t = grow(
            t,
            nodes=max(len(t.feature), len(old.feature)),
            slots=max(len(t.leaf), len(old.leaf)),
            features=len(old.kind),
            nominal=old.nominal.shape[1],
            values=old.nominal.shape[2] - 1,
            classes=old.counts.shape[1],
        )
        moved = grow(old, nodes=len(t.feature), slots=len(t.leaf))
        background_trees = [now + e for e in range(other.n_trees - before)]
        target = np.array([*range(before), *background_trees])
        for name in Trees._fields:
            new, given = getattr(t, name), getattr(moved, name)
            if name in ("root", "nodes", "splits"):
                new[target] = given
            elif name == "owner":
                new[:] = np.where(given >= 0, target[given], -1)
            elif name not in ("grace", "delta", "features"):
                new[...] = given
        place = np.arange(self.n_trees)
        place[target] = target[other.state.place]
        self.state = PoolState(t, place, other.state.rng)
        plant(as_reference(self.state), before, now)

    def add_values(self, number: int) -> None:
        """Make room for category codes below ``number``."""
        t = self.state.trees
        if number > t.nominal.shape[2] - 1:
            # a power of two: the same room, whether the values come one by one or many at once
            self.state = self.state._replace(trees=grow(t, values=1 << (max(number, 2) - 1).bit_length()))

    def add_classes(self, number: int) -> None:
        """Make room for further classes."""
        t = self.state.trees
        total = self.n_classes + number
        if total > t.counts.shape[1]:
            t = grow(t, classes=room_for(total, self.n_classes))
        t.sizes[N_CLASSES] = total
        self.state = self.state._replace(trees=t)

    def reserve(self) -> None:
        """Double the arena where it is nearly full and the caps allow it. An arena does not shrink."""
        t = self.state.trees
        nodes, slots = len(t.feature), len(t.leaf)
        if t.sizes[FREE_NODES_LEFT] < 4 * self.n_trees and nodes < self._node_cap:
            t = grow(t, nodes=min(2 * nodes, self._node_cap))
        if t.sizes[FREE_SLOTS_LEFT] < 2 * self.n_trees and slots < self._slot_cap:
            t = grow(t, slots=min(2 * slots, self._slot_cap))
        if t is not self.state.trees:
            self.state = self.state._replace(trees=t)

    @property
    def may_grow(self) -> tuple[bool, bool]:
        """Whether nodes and slots are below their caps."""
        t = self.state.trees
        return len(t.feature) < self._node_cap, len(t.leaf) < self._slot_cap

    def learn_many(
        self, X: NDArray[np.float64], y: NDArray[np.int64], weight: NDArray[np.float64] | None = None
    ) -> None:
        """Let every tree learn every row.

        Parameters
        ----------
        X : array of shape (n, F)
            Numbers, or codes of categories; NaN where missing.
        y : array of shape (n,)
            Classes 0, ..., C - 1, or numbers.
        weight : array of shape (n, T), optional
            Weights; 0 leaves a row out. All 1 when None.
        """
        X, y = self._checked(X), np.ascontiguousarray(y, dtype=np.float64 if self.regression else np.int64)
        weight = np.ones((len(X), self.n_trees)) if weight is None else np.ascontiguousarray(weight, dtype=np.float64)
        start = 0
        while start < len(X):
            self.reserve()
            run = _learn_numbers if self.regression else _learn_classes
            start = run(as_reference(self.state), self.settings, self.may_grow, X, y, weight, start)

    def predict_proba_many(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """Class probabilities of every tree, ``(n, T, C)``, zero where one has seen nothing; or numbers ``(n, T)``."""
        X = self._checked(X)
        if self.regression:
            return _predict_numbers(as_reference(self.state), X)
        return _predict_classes(as_reference(self.state), self.settings, X)

    def _checked(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        X = np.ascontiguousarray(X, dtype=np.float64)
        if X.ndim != 2 or X.shape[1] != self.n_features:
            raise DataError(f"X must have shape (n, {self.n_features}), got {X.shape}; add_features makes room")
        return X


@kernel
def needs_room(t, may_grow):  # type: ignore[no-untyped-def]
    """Whether the next instance could need more nodes or slots than are free, and there could be more."""
    number = t.root.shape[0]
    return (may_grow[0] and t.sizes[FREE_NODES_LEFT] < 4 * number) or (
        may_grow[1] and t.sizes[FREE_SLOTS_LEFT] < 2 * number
    )


@entry
def plant(p, first, last):  # type: ignore[no-untyped-def]
    """Give every tree of this range a root that has none."""
    for tree in range(first, last):
        if p.trees.root[tree] < 0:
            trees.new_tree(p.trees, tree, p.rng)


@entry
def _learn_classes(p, settings, may_grow, X, y, weight, start):  # type: ignore[no-untyped-def]
    t = p.trees
    scratch = np.empty((3, t.counts.shape[1]))
    for i in range(start, X.shape[0]):
        if needs_room(t, may_grow):
            return i
        trees.count_values(t, X[i])
        for e in range(p.place.shape[0]):
            if weight[i, e] > 0.0:
                leaf = trees.leaf_of(t, p.place[e], X[i])
                naive_bayes = trees.predict(t, settings, leaf, X[i], scratch[0])
                trees.learn(t, settings, p.place[e], X[i], y[i], weight[i, e], naive_bayes, scratch, p.rng)
    return X.shape[0]


@entry
def _predict_classes(p, settings, X):  # type: ignore[no-untyped-def]
    t = p.trees
    out = np.zeros((X.shape[0], p.place.shape[0], t.sizes[N_CLASSES]))
    for i in range(X.shape[0]):
        for e in range(p.place.shape[0]):
            trees.predict(t, settings, trees.leaf_of(t, p.place[e], X[i]), X[i], out[i, e])
    return out


@entry
def _learn_numbers(p, settings, may_grow, X, y, weight, start):  # type: ignore[no-untyped-def]
    t = p.trees
    for i in range(start, X.shape[0]):
        if needs_room(t, may_grow):
            return i
        trees.count_values(t, X[i])
        for e in range(p.place.shape[0]):
            if weight[i, e] > 0.0:
                regression_trees.learn(t, settings, p.place[e], X[i], y[i], weight[i, e], p.rng)
    return X.shape[0]


@entry
def _predict_numbers(p, X):  # type: ignore[no-untyped-def]
    t = p.trees
    out = np.zeros((X.shape[0], p.place.shape[0]))
    for i in range(X.shape[0]):
        for e in range(p.place.shape[0]):
            out[i, e] = regression_trees.predict(t, trees.leaf_of(t, p.place[e], X[i]), X[i])
    return out
