"""Experts of different kinds under the online gate: one compiled loop over instances.

For every instance (x, y), in this order:

1. Every expert predicts class probabilities for x (:func:`_vote`); a tree that has seen nothing predicts all classes
   equally. Where the label is late, votes of when the instance came take their place in steps 2 to 4.
2. The gate mixes them in four ways and answers with one (:mod:`~moeapps.stream.compiled.online_gate`).
3. The ways are scored on y, then stack and context gate learn it.
4. Recent accuracies are updated. ADWIN receives every tree's error, and each tree gets a Poisson weight, as in
   :mod:`~moeapps.stream.compiled.mixture`.
5. The trees learn (x, y) with their weights and are replaced where an alarm asks for it; then the other experts learn
   it once, and the moments of the features are updated.
"""

# T trees, E experts, F features, C classes

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moeapps.stream.compiled import trees
from moeapps.stream.compiled.archive import ArchiveRef, compare, grow_archive, new_archive, retire
from moeapps.stream.compiled.arena import TreeSettings
from moeapps.stream.compiled.bayes import learn_bayes, vote_bayes
from moeapps.stream.compiled.engine import TreeEngine, learn_tree, remove_trees, vote_trees
from moeapps.stream.compiled.inputs import Layout, encode, update_moments
from moeapps.stream.compiled.jit import copy_row, entry, kernel, poisson, structref_class
from moeapps.stream.compiled.kinds import (
    KINDS,
    KindMixture,
    KindSettings,
    KindWork,
    first_of_each_kind,
    grow_kinds,
    kinds_as_structref,
    new_kinds,
    new_work,
    work_as_structref,
)
from moeapps.stream.compiled.linear import learn_linear, vote_linear
from moeapps.stream.compiled.mixture import watch
from moeapps.stream.compiled.mixture_state import FIXED, INSTANCES, KEEP, RENEW
from moeapps.stream.compiled.neighbours import learn_neighbours, vote_neighbours
from moeapps.stream.compiled.online_gate import AUTO, WAYS, decide, learn_gate
from moeapps.stream.compiled.perceptron import learn_perceptrons, vote_perceptrons
from moeapps.stream.compiled.pool import PoolState, TreeConfig, needs_room, pool_as_structref

__all__ = ["KindEngine"]


class KindState(NamedTuple):
    """Everything that the compiled loops work on."""

    pool: PoolState
    tree_settings: TreeSettings
    mixture: KindMixture
    settings: KindSettings
    work: KindWork  # room that calls share: a compiled call holds the interpreter's lock, so no two run at once


KindStateRef = structref_class(KindState)


def _as_structref(state: Any) -> Any:
    return KindStateRef(
        pool_as_structref(state.pool), state.tree_settings, kinds_as_structref(state.mixture), state.settings,
        work_as_structref(state.work),
    )  # fmt: skip


class KindEngine(TreeEngine):
    """A :class:`~moeapps.stream.compiled.pool.HoeffdingPool` and experts of other kinds under the online gate.

    Parameters
    ----------
    settings : KindSettings
        Of the mixture.
    tree_config : TreeConfig
        Of the trees.
    seed : int
        Seed of everything.
    """

    settings: KindSettings  # type: ignore[assignment]
    mixture: KindMixture  # type: ignore[assignment]

    def __init__(self, settings: KindSettings, tree_config: TreeConfig, seed: int) -> None:
        self.settings, self.seed, self.numbers = settings, seed, False
        self.n_features = self.n_classes = 0
        self.layout = Layout(0, 0, 0)
        self.mixture = new_kinds(settings, self.layout, 0, seed)
        self.tree_config = tree_config
        self.archive = new_archive(settings.n_experts, settings.archive, 0) if settings.archive else None
        self.pool = self._new_pool()
        self._packed = self._packed_archive = None

    def _n_archived(self) -> int:
        return self.settings.archive

    def _retire_background(self) -> None:
        """Background trees begin at a warning, and archived ones were experts before."""
        if self.pool.n_trees > self.settings.n_experts:
            remove_trees(pool_as_structref(self.pool.state), self.settings.n_experts, self.pool.n_trees)

    def _grow(self, features: int, classes: int) -> None:
        self.n_features, self.n_classes = features, classes
        layout = self._layout_of_pool()
        self.mixture = grow_kinds(self.mixture, self.settings, self.layout, layout, classes, self.seed)
        self.layout = layout
        if self.archive is not None:
            self.archive = grow_archive(self.archive, classes)

    def _layout_of_pool(self) -> Layout:
        t = self.pool.state.trees
        places = int((t.kind[: self.n_features] >= 0).sum())
        return Layout(self.n_features, places, t.nominal.shape[2] - 1 if places else 0)

    def resize(self, features: int, classes: int) -> None:
        """Make the mixture for a pool that has been restored, with nothing learned yet."""
        self.n_features, self.n_classes = features, classes
        self.layout = self._layout_of_pool()
        self.mixture = new_kinds(self.settings, self.layout, classes, self.seed)

    def add_values(self, number: int) -> None:
        """Make room for category codes below this."""
        super().add_values(number)
        if self._layout_of_pool() != self.layout:
            self._grow(self.n_features, self.n_classes)

    def _reference(self) -> Any:
        """Reference to the present arrays, made anew only where one of them has been replaced."""
        parts = (self.pool.state, self.pool.settings, self.mixture, self.settings)
        if self._packed is None or any(old is not new for old, new in zip(self._packed[0], parts, strict=False)):
            work = new_work(self.mixture, self.settings, self.pool.state.trees.counts.shape[1])
            state: Any = KindState(*parts, work=work)
            self._packed = state, _as_structref(state)
        return self._packed[1]

    def _archive_reference(self) -> Any:
        """Reference to the archive, None where there is none."""
        if self.archive is None:
            return None
        if self._packed_archive is None or self._packed_archive[0] is not self.archive:
            self._packed_archive = self.archive, ArchiveRef(*self.archive)
        return self._packed_archive[1]

    @property
    def n_all_experts(self) -> int:
        """Number E of experts of all kinds."""
        return first_of_each_kind(self.settings)[-1]

    def expert_names(self) -> list[str]:
        """Kind and number of each expert."""
        first = first_of_each_kind(self.settings)
        return [f"{kind} {i}" for kind, a, b in zip(KINDS, first[:-1], first[1:], strict=True) for i in range(b - a)]

    def gate_table(self) -> dict[str, pd.Series]:
        """The ways of mixing by name: recent log loss, share of the answers, whether it is the one that answers."""
        gate = self.mixture.gate
        kept = [self.settings.gate in (AUTO, way) for way in range(len(WAYS))]
        columns = {
            "loss": gate.loss,
            "answered": gate.answered / max(int(gate.state[1]), 1),
            "answers": np.arange(len(WAYS)) == gate.state[0],
        }
        return {name: pd.Series(column, index=WAYS)[kept] for name, column in columns.items()}

    def learn(self, X: NDArray[np.float64], y: NDArray[Any], votes: NDArray[Any] | None = None) -> NDArray[Any]:
        """Predict, then learn, row by row; the predictions.

        ``votes`` ``(n, E, C)``, or fewer classes, are what the experts predicted when the instances came, where their
        labels are late: what experts and gate are judged by, in place of what they would predict now.
        """
        late = np.zeros((0 if votes is None else len(X), self.n_all_experts, self.n_classes))
        if votes is not None:
            late[:, :, : votes.shape[2]] = votes
        predictions = np.empty(len(X), dtype=np.int64)
        start = 0
        while start < len(X):
            self.pool.reserve()
            state, archive = self._reference(), self._archive_reference()
            start = _learn(state, archive, self.pool.may_grow, X, y, late, self.n_classes, start, predictions)
        return predictions

    def predict(self, X: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Class probabilities, and weights of the experts; nothing is changed."""
        out, weights = np.empty((len(X), self.n_classes)), np.empty((len(X), self.n_all_experts))
        _predict(self._reference(), X, self.n_classes, out, weights, np.empty((0, 0, 0)))
        return out, weights

    def votes(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """Class probabilities of every expert ``(n, E, C)``; nothing is changed."""
        out, weights = np.empty((len(X), self.n_classes)), np.empty((len(X), self.n_all_experts))
        votes = np.empty((len(X), self.n_all_experts, self.n_classes))
        _predict(self._reference(), X, self.n_classes, out, weights, votes)
        return votes


@kernel
def _vote(state, x, classes):  # type: ignore[no-untyped-def]
    """Fill the votes and inputs; returns how many inputs there are."""
    p, m, s, w = state.pool, state.mixture, state.settings, state.work
    t, moments, votes = p.trees, m.moments, w.votes
    vote_trees(p, state.tree_settings, s, x, w)
    for e in range(s.n_experts):
        total = 0.0
        for c in range(classes):
            total += votes[e, c]
        for c in range(classes):
            votes[e, c] = votes[e, c] / total if total > 0.0 else 1.0 / classes
    values = t.nominal.shape[2] - 1
    n = encode(t.kind, moments, x, values, w.rows, w.numbers)
    first = s.n_experts
    vote_bayes(m.bayes, t.kind, t.values, x, classes, votes[first:])
    first += s.bayes
    vote_neighbours(m.neighbours, t.kind, moments, x, w.distance, w.near, w.who, classes, votes[first:])
    first += s.neighbours
    vote_linear(m.linear, w.rows, w.numbers, n, classes, votes[first:])
    first += s.linear
    vote_perceptrons(m.networks, w.rows, w.numbers, n, classes, votes[first:], w.hidden)
    return n


@kernel
def _score(state, votes, way, y, classes):  # type: ignore[no-untyped-def]
    """Step 4 of the module's list."""
    m, s, w = state.mixture, state.settings, state.work
    m.counters[INSTANCES] += 1
    for e in range(m.recent.shape[0]):
        right = 1.0 if trees.argmax(votes[e], classes) == y else 0.0
        m.activation[e] += w.gate.weights[way, e]
        m.age[e] += 1.0
        m.recent[e] += max(1.0 / s.window, 1.0 / m.age[e]) * (right - m.recent[e])
        if e < s.n_experts:
            w.learn[e] = float(poisson(m.rng, s.bagging)) if s.bagging > 0.0 else 1.0
            w.action[e] = watch(m, s, e, 1.0 - right) if s.drift != FIXED else KEEP


@kernel
def _learn_others(state, n, x, y, classes):  # type: ignore[no-untyped-def]
    """Let the experts that are no trees learn an instance after :func:`_vote`."""
    m, s, w, t = state.mixture, state.settings, state.work, state.pool.trees
    learn_bayes(m.bayes, t.kind, m.moments, t.values, x, y, classes)
    learn_neighbours(m.neighbours, t.kind, x, y)
    first = s.n_experts + s.bayes + s.neighbours
    learn_linear(m.linear, w.rows, w.numbers, n, y, classes, w.votes[first:], w.gradient[0])
    first += s.linear
    learn_perceptrons(m.networks, w.rows, w.numbers, n, y, classes, w.votes[first:], w.hidden, w.gradient)
    update_moments(m.moments, x)


@entry
def _learn(state, archive, may_grow, X, y, late, classes, start, predictions):  # type: ignore[no-untyped-def]
    p, ts, m, s, w = state.pool, state.tree_settings, state.mixture, state.settings, state.work
    experts = m.recent.shape[0]
    for i in range(start, X.shape[0]):
        if needs_room(p.trees, may_grow):
            return i
        x = X[i]
        n = _vote(state, x, classes)
        votes = late[i] if late.shape[0] > 0 else w.votes
        way = decide(m.gate, s.gate, m.recent, votes, w.rows, w.numbers, n, experts, classes, w.gate)
        predictions[i] = trees.argmax(w.gate.mixed[way], classes)
        learn_gate(m.gate, s.gate, votes, w.rows, w.numbers, n, y[i], experts, classes, w.gate)
        _score(state, votes, way, y[i], classes)
        trees.count_values(p.trees, x)
        for e in range(s.n_experts):
            if archive is not None and w.action[e] == RENEW:
                w.action[e] = KEEP
                learn_tree(p, ts, s, e, x, y[i], w)
                retire(archive, p, m, s, e, classes)
            else:
                learn_tree(p, ts, s, e, x, y[i], w)
        _learn_others(state, n, x, y[i], classes)
        if archive is not None:
            compare(archive, p, ts, m, s, x, y[i], votes, w.scratch, classes)
    return X.shape[0]


@entry
def _predict(state, X, classes, out, weights, votes):  # type: ignore[no-untyped-def]
    m, s, w = state.mixture, state.settings, state.work
    experts = m.recent.shape[0]
    for i in range(X.shape[0]):
        n = _vote(state, X[i], classes)
        way = decide(m.gate, s.gate, m.recent, w.votes, w.rows, w.numbers, n, experts, classes, w.gate)
        copy_row(w.gate.mixed[way], out[i], classes)
        copy_row(w.gate.weights[way], weights[i], experts)
        if votes.shape[0] > 0:
            for e in range(experts):
                copy_row(w.votes[e], votes[i, e], classes)
