"""Mixture and trees together: one compiled loop over instances.

:mod:`moeapps.stream.engine` has the same steps in Python, for experts of any kind.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeapps.core.errors import NonFiniteError
from moeapps.stream.compiled import regression_trees, trees
from moeapps.stream.compiled.archive import Archive, succeed
from moeapps.stream.compiled.arena import TreeSettings, values_of_0_1
from moeapps.stream.compiled.jit import copy_row, entry, kernel
from moeapps.stream.compiled.mixture import decide_class, decide_number, score_experts, score_experts_numeric
from moeapps.stream.compiled.mixture_state import (
    INSTANCES,
    KEEP,
    REPLACE,
    TASK,
    WARN,
    Mixture,
    MixtureSettings,
    Work,
    grow_mixture,
    make_work,
    new_mixture,
)
from moeapps.stream.compiled.pool import HoeffdingPool, PoolState, TreeConfig, needs_room
from moeapps.stream.compiled.references import as_reference, referable

__all__ = [
    "GrowingMixture",
    "TreeEngine",
    "act",
    "learn_tree",
    "remove_trees",
    "restore_arrays",
    "tree_arrays",
    "vote_trees",
]

FILE_NAMES = {"pool.trees.sizes": "pool.trees.used", "mixture.pool_and_router_accuracy": "mixture.rivals"}
"""Arrays that have another name in saved files: those of 0.1 load, and 0.1 loads ours."""


@referable
class EngineState(NamedTuple):
    """Everything that the compiled loops of an engine work on."""

    pool: PoolState
    tree_settings: TreeSettings
    mixture: Mixture
    settings: MixtureSettings
    work: Work  # room that calls share: a compiled call holds the interpreter's lock, so no two run at once


class GrowingMixture:
    """The mixture of an engine, and how it grows: the same for every kind of expert."""

    def __init__(self, settings: MixtureSettings, hidden: tuple[int, int], seed: int, numbers: bool) -> None:
        self.settings, self.seed, self.numbers = settings, seed, numbers
        self.n_features, self.n_classes = 0, 1 if numbers else 0
        self.mixture = new_mixture(settings, 0, self.n_classes, hidden, seed)

    def _grow(self, features: int, classes: int) -> None:
        self.n_features, self.n_classes = features, classes
        if self.settings.variant == TASK:
            self.settings = self.settings._replace(n_experts=classes)
        self.mixture = grow_mixture(self.mixture, self.settings, features, classes, self.seed)

    def _refuse_divergence(self) -> None:
        """Raise an error if the router's weights have become NaN or infinite; the last biases are the first to."""
        network = self.mixture.network
        if not np.isfinite(network.parameters[-int(network.sizes[3]) :]).all():
            raise NonFiniteError(
                f"the router has diverged after {int(self.mixture.counters[INSTANCES])} instances: its weights are NaN "
                "or infinite, and the model is of no more use. Lower router_lr, or scale the features"
            )


class TreeEngine(GrowingMixture):
    """The fast one: a :class:`~moeapps.stream.compiled.pool.HoeffdingPool` and the mixture in one compiled loop.

    Parameters
    ----------
    settings : MixtureSettings
        Of the mixture.
    tree_config : TreeConfig
        Of the trees.
    hidden : tuple[int, int]
        Widths of the router's hidden layers.
    seed : int
        Seed of everything.
    numbers : bool, default False
        Whether the targets are numbers.
    """

    archive: Archive | None = None
    """Retired trees that may return; only a :class:`~moeapps.stream.compiled.kind_engine.KindEngine` has them."""

    def __init__(
        self,
        settings: MixtureSettings,
        tree_config: TreeConfig,
        hidden: tuple[int, int],
        seed: int,
        numbers: bool = False,
    ) -> None:
        super().__init__(settings, hidden, seed, numbers)
        self.tree_config = tree_config
        self.pool = self._new_pool()
        self._packed: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        arrays = tree_arrays(self)
        if not all(array.flags.writeable for array in arrays.values()):  # mapped from a file by joblib
            restore_arrays(self, {name: array.copy() for name, array in arrays.items()})

    def _reference(self) -> Any:
        """Reference to the present arrays, made anew only where one of them has been replaced."""
        parts = (self.pool.state, self.pool.settings, self.mixture, self.settings)
        if self._packed is None or any(old is not new for old, new in zip(self._packed[0], parts, strict=False)):
            votes = 1 if self.numbers else self.pool.state.trees.counts.shape[1]
            work = make_work(as_reference(self.mixture), self.settings, votes, self.n_classes)
            state = EngineState(*parts, work=work)
            self._packed = state, as_reference(state)
        return self._packed[1]

    def _n_archived(self) -> int:
        """Trees that the pool has room for beside experts and background trees."""
        return 0

    def _new_pool(self) -> HoeffdingPool:
        number = self.settings.n_experts * (2 if self.settings.drift == REPLACE else 1)
        pool: HoeffdingPool = HoeffdingPool.from_config(
            max(number, 1) + self._n_archived(),
            config=self.tree_config,
            regression=self.numbers,
            seed=self.seed,
            n_begin=max(number, 1),
        )
        if self.settings.drift == REPLACE and number > 0:
            # the expert and its background tree observe the same share of the features
            half = self.settings.n_experts
            pool.state.trees.features[half : 2 * half] = pool.state.trees.features[:half]
        if self.settings.variant == TASK:
            pool.add_classes(2)
        return pool

    def add_features(self, nominal: Sequence[bool]) -> None:
        """Make room for features, of which each is categorical or not."""
        first = self.n_features == 0
        self.pool.add_features(len(nominal), nominal=nominal)
        if first:
            self._retire_background()
        self._grow(self.n_features + len(nominal), self.n_classes)

    def add_values(self, number: int) -> None:
        """Make room for category codes below this."""
        self.pool.add_values(number)

    def add_classes(self, number: int) -> None:
        """Make room for classes; in the task variant each brings an expert."""
        self._grow(self.n_features, self.n_classes + number)
        if self.settings.variant == TASK:
            self._more_experts()
        else:
            self.pool.add_classes(number)

    def _more_experts(self) -> None:
        """A pool with more trees, which takes over those of the old one."""
        old = self.pool
        before = old.n_trees // 2 if self.settings.drift == REPLACE else old.n_trees
        self.pool = self._new_pool()
        if self.n_features == 0:
            return
        self.pool.adopt(old, before, self.settings.n_experts)

    def _retire_background(self) -> None:
        """Background trees begin at a warning, not with the stream."""
        if self.settings.drift == REPLACE:
            remove_trees(as_reference(self.pool.state), self.settings.n_experts, self.pool.n_trees)

    def learn(self, X: NDArray[np.float64], y: NDArray[Any]) -> NDArray[Any]:
        """Predict, then learn, row by row; the predictions."""
        predictions = np.empty(len(X), dtype=np.float64 if self.numbers else np.int64)
        run = _learn_numbers if self.numbers else _learn_classes
        start = 0
        while start < len(X):
            self.pool.reserve()
            start = run(self._reference(), self.pool.may_grow, X, y, self.n_classes, start, predictions)
        self._refuse_divergence()
        return predictions

    def predict(self, X: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Class probabilities or numbers, and weights of the experts; nothing is changed."""
        run = _predict_numbers if self.numbers else _predict_classes
        out, weights = np.empty((len(X), self.n_classes)), np.empty((len(X), self.settings.n_experts))
        run(self._reference(), X, self.n_classes, out, weights)
        return out, weights


@entry
def remove_trees(p, first, last):  # type: ignore[no-untyped-def]
    """Remove the trees of a range of the arena."""
    for tree in range(first, last):
        trees.remove_tree(p.trees, tree)


@kernel
def vote_trees(p, ts, s, x, work):  # type: ignore[no-untyped-def]
    """Fill the votes of the trees, all zero where one has seen nothing."""
    for e in range(s.n_experts):
        leaf = trees.leaf_of(p.trees, p.place[e], x)
        work.naive_bayes[e] = trees.predict(p.trees, ts, leaf, x, work.votes[e])


@entry
def _learn_classes(state, may_grow, X, y, classes, start, predictions):  # type: ignore[no-untyped-def]
    p, ts, m, s, work = state.pool, state.tree_settings, state.mixture, state.settings, state.work
    t = p.trees
    for i in range(start, X.shape[0]):
        if needs_room(t, may_grow):
            return i
        x = X[i]
        vote_trees(p, ts, s, x, work)
        predictions[i] = decide_class(m, s, x, classes, work)
        score_experts(m, s, x, y[i], classes, work)
        trees.count_values(t, x)
        for e in range(s.n_experts):
            label = y[i]
            if s.variant == TASK:
                label = 1 if y[i] == e else 0
            learn_tree(p, ts, s, e, x, label, work)
    return X.shape[0]


@kernel
def learn_tree(p, ts, s, e, x, label, work):  # type: ignore[no-untyped-def]
    """Let a tree and its background tree learn an instance, and start or replace them where that is called for."""
    t, scratch, weight = p.trees, work.scratch, work.learn[e]
    if weight > 0.0:
        trees.learn(t, ts, p.place[e], x, label, weight, work.naive_bayes[e], scratch, p.rng)
        if s.drift == REPLACE and t.root[p.place[s.n_experts + e]] >= 0:
            background_tree = p.place[s.n_experts + e]
            naive_bayes = trees.predict(t, ts, trees.leaf_of(t, background_tree, x), x, scratch[0])
            trees.learn(t, ts, background_tree, x, label, weight, naive_bayes, scratch, p.rng)
    if work.action[e] != KEEP:
        act(p, s, e, work.action[e])


@kernel
def act(p, s, e, action):  # type: ignore[no-untyped-def]
    """Start a background tree, or let it (or an empty tree) take the place of the expert."""
    t = p.trees
    if action == WARN:
        background_tree = p.place[s.n_experts + e]
        if t.root[background_tree] >= 0:
            trees.remove_tree(t, background_tree)
        trees.new_tree(t, background_tree, p.rng)
        return
    trees.remove_tree(t, p.place[e])
    succeed(p, s, e)


@entry
def _predict_classes(state, X, classes, out, weights):  # type: ignore[no-untyped-def]
    p, ts, m, s, work = state.pool, state.tree_settings, state.mixture, state.settings, state.work
    for i in range(X.shape[0]):
        vote_trees(p, ts, s, X[i], work)
        decide_class(m, s, X[i], classes, work)
        copy_row(work.mixed, out[i], classes)
        copy_row(work.weights, weights[i], s.n_experts)


@kernel
def _vote_numbers(p, s, x, work):  # type: ignore[no-untyped-def]
    for e in range(s.n_experts):
        work.votes[e, 0] = regression_trees.predict(p.trees, trees.leaf_of(p.trees, p.place[e], x), x)


@entry
def _learn_numbers(state, may_grow, X, y, classes, start, predictions):  # type: ignore[no-untyped-def]
    p, ts, m, s, work = state.pool, state.tree_settings, state.mixture, state.settings, state.work
    t = p.trees
    for i in range(start, X.shape[0]):
        if needs_room(t, may_grow):
            return i
        x = X[i]
        _vote_numbers(p, s, x, work)
        predictions[i] = decide_number(m, s, x, work)
        score_experts_numeric(m, s, x, y[i], work)
        trees.count_values(t, x)
        for e in range(s.n_experts):
            weight = work.learn[e]
            if weight > 0.0:
                regression_trees.learn(t, ts, p.place[e], x, y[i], weight, p.rng)
                if s.drift == REPLACE and t.root[p.place[s.n_experts + e]] >= 0:
                    regression_trees.learn(t, ts, p.place[s.n_experts + e], x, y[i], weight, p.rng)
            if work.action[e] != KEEP:
                act(p, s, e, work.action[e])
    return X.shape[0]


@entry
def _predict_numbers(state, X, classes, out, weights):  # type: ignore[no-untyped-def]
    p, m, s, work = state.pool, state.mixture, state.settings, state.work
    for i in range(X.shape[0]):
        _vote_numbers(p, s, X[i], work)
        decide_number(m, s, X[i], work)
        copy_row(work.mixed, out[i], classes)
        copy_row(work.weights, weights[i], s.n_experts)


def tree_arrays(engine: TreeEngine) -> dict[str, NDArray[Any]]:
    """Every array of an engine by its name in a saved file."""
    found: dict[str, NDArray[Any]] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, np.ndarray):
            found[FILE_NAMES.get(prefix, prefix)] = value
            return
        for name, part in zip(value._fields, value, strict=True):
            walk(f"{prefix}.{name}", part)

    walk("pool", engine.pool.state)
    walk("mixture", engine.mixture)
    if engine.archive is not None:
        walk("archive", engine.archive)
    return found


def restore_arrays(engine: TreeEngine, arrays: dict[str, NDArray[Any]]) -> None:
    """Put arrays of :func:`tree_arrays` back.

    Raises
    ------
    ValueError
        If one is missing, is none of the engine's, or is of another type.
    """
    expected = set(tree_arrays(engine))
    if wrong := (expected ^ set(arrays)) - ({"pool.trees.values"} - set(arrays)):  # 0.1 did not save it
        name = min(wrong)
        raise ValueError(f"{name} is {'missing' if name in expected else 'no array of this model'}")

    def build(prefix: str, like: Any) -> Any:
        if isinstance(like, np.ndarray):
            name = FILE_NAMES.get(prefix, prefix)
            if name == "pool.trees.values" and name not in arrays:
                return values_of_0_1(arrays["pool.trees.nominal"])
            given = arrays[name]
            if given.dtype != like.dtype or given.ndim != like.ndim:
                raise ValueError(f"{prefix} is {given.dtype} with {given.ndim} dimensions, expected {like.dtype}")
            return np.ascontiguousarray(given)
        return type(like)(*(build(f"{prefix}.{name}", part) for name, part in zip(like._fields, like, strict=True)))

    engine.pool.state = build("pool", engine.pool.state)
    engine.mixture = build("mixture", engine.mixture)
    if engine.archive is not None:
        engine.archive = build("archive", engine.archive)
