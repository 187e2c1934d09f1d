"""Experts of different kinds under the online gate: one compiled loop over instances.

For every instance (x, y), in this order:

1. The trees predict class probabilities for x; one that has seen nothing predicts all classes equally. Where the label
   is late, votes of when the instance came take the place of what the experts predict now in steps 2, 4 and 5.
2. ADWIN receives every tree's error, and each tree gets a Poisson weight, as in
   :mod:`~moeapps.stream.compiled.mixture`. The trees learn (x, y) with their weights and are replaced, or archived,
   where an alarm asks for it.
3. The other experts predict class probabilities for x.
4. The gate mixes all votes in four ways and answers with one (:mod:`~moeapps.stream.compiled.online_gate`). The ways
   are scored on y, then stack and context gate learn it.
5. Recent accuracies are updated, the other experts learn (x, y), and so do the moments of the features.

Steps 1 and 2 depend on nothing of the others, so one thread can do them for a block of instances while another thread
does steps 3 to 5 for the block before: with the same results to the last bit, since both run the same code on the same
numbers. What the second thread needs of the first is kept per instance of a block.
"""

# T trees, E experts, F features, Q categorical features, C classes, B instances that votes are kept of

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeapps.stream.compiled import trees
from moeapps.stream.compiled.adwin import Windows
from moeapps.stream.compiled.archive import compare, retire
from moeapps.stream.compiled.arena import TreeSettings
from moeapps.stream.compiled.bayes import learn_bayes, vote_bayes
from moeapps.stream.compiled.engine import learn_tree
from moeapps.stream.compiled.inputs import encode, update_moments
from moeapps.stream.compiled.jit import copy_row, fill, kernel, nogil_entry, poisson
from moeapps.stream.compiled.kinds import KindMixture, KindSettings, KindWork
from moeapps.stream.compiled.linear import learn_linear, vote_linear
from moeapps.stream.compiled.mixture import watch
from moeapps.stream.compiled.mixture_state import FIXED, INSTANCES, KEEP, RENEW
from moeapps.stream.compiled.neighbours import learn_neighbours, vote_neighbours
from moeapps.stream.compiled.online_gate import decide, learn_gate
from moeapps.stream.compiled.perceptron import learn_perceptrons, vote_perceptrons
from moeapps.stream.compiled.pool import PoolState, needs_room
from moeapps.stream.compiled.references import as_reference, referable

__all__ = ["ALL_STEPS", "OTHERS_ONLY", "PREDICT", "TREES_ONLY", "KindState", "is_voted_on", "reference_to", "run"]

ALL_STEPS, TREES_ONLY, OTHERS_ONLY, PREDICT = range(4)
"""Which steps :func:`run` does: all, 1 and 2, 3 to 5, or those that predict."""


@referable
class Watched(NamedTuple):
    """What is known of the trees, of the mixture."""

    windows: Windows
    recent: NDArray[np.float64]  # (E,) NaN, but for a tree that has just come back from the archive
    age: NDArray[np.float64]
    counters: NDArray[np.int64]
    events: NDArray[np.int64]
    rng: NDArray[np.uint64]


@referable
class KindState(NamedTuple):
    """Everything that the compiled loop works on."""

    pool: PoolState
    tree_settings: TreeSettings
    mixture: KindMixture
    watched: Watched
    settings: KindSettings
    work: KindWork  # room that calls share: the engine lets one call run at once


def reference_to(pool: PoolState, tree_settings: TreeSettings, m: Any, settings: Any, work: Any, old: Any) -> Any:
    """Reference to a state; ``old`` is the one before, where only the pool has changed since."""
    if old is None:
        watched: Any = Watched(m.windows, work.returned, m.age, m.counters, m.events, m.rng)
        mixture: Any = m
        room: Any = work
    else:
        _, _, mixture, watched, _, room = old.content
    return as_reference(KindState(pool, tree_settings, mixture, watched, settings, room))


@kernel
def _vote_trees(state, x, votes, classes):  # type: ignore[no-untyped-def]
    """Step 1."""
    p, s, w = state.pool, state.settings, state.work
    for e in range(s.n_experts):
        leaf = trees.leaf_of(p.trees, p.place[e], x)
        w.naive_bayes[e] = trees.predict(p.trees, state.tree_settings, leaf, x, votes[e])
        total = 0.0
        for c in range(classes):
            total += votes[e, c]
        for c in range(classes):
            votes[e, c] = votes[e, c] / total if total > 0.0 else 1.0 / classes


@kernel
def _learn_trees(state, archive, x, y, b, judged, classes):  # type: ignore[no-untyped-def]
    """Step 2; keeps in place ``b`` what :func:`_learn_others` needs of it."""
    p, ts, m, s, w = state.pool, state.tree_settings, state.watched, state.settings, state.work
    m.counters[INSTANCES] += 1
    for e in range(s.n_experts):
        right = 1.0 if trees.argmax(judged[e], classes) == y else 0.0
        m.age[e] += 1.0
        w.age[b, e] = m.age[e]
        w.learn[e] = float(poisson(m.rng, s.bagging)) if s.bagging > 0.0 else 1.0
        w.action[e] = watch(m, s, e, 1.0 - right) if s.drift != FIXED else KEEP
        w.renewed[b, e] = w.action[e] == RENEW
    trees.count_values(p.trees, x)
    for e in range(s.n_experts):
        archived = archive is not None and w.action[e] == RENEW
        if archived:
            w.action[e] = KEEP
        learn_tree(p, ts, s, e, x, y, w)
        if archive is not None and archived:
            retire(archive, p, m, s, e, classes)
    fill(m.recent, s.n_experts, np.nan)
    if archive is not None:
        compare(archive, p, ts, m, s, x, y, judged, w.scratch, classes)
    copy_row(m.recent, w.came_back[b], s.n_experts)


@kernel
def _vote_others(state, x, votes, classes):  # type: ignore[no-untyped-def]
    """Step 3; returns how many inputs there are."""
    t, m, s, w = state.pool.trees, state.mixture, state.settings, state.work
    n = encode(t.kind, m.moments, x, t.nominal.shape[2] - 1, w.rows, w.numbers)
    first = s.n_experts
    vote_bayes(m.bayes, t.kind, w.known, x, classes, votes[first:])
    first += s.bayes
    vote_neighbours(m.neighbours, t.kind, m.moments, x, w.distance, w.near, w.who, classes, votes[first:])
    first += s.neighbours
    vote_linear(m.linear, w.rows, w.numbers, n, classes, votes[first:])
    first += s.linear
    vote_perceptrons(m.networks, w.rows, w.numbers, n, classes, votes[first:], w.hidden)
    return n


@kernel
def _update_accuracies(state, y, b, judged, way, classes):  # type: ignore[no-untyped-def]
    """Recent accuracies; that of a tree which has been renewed is the mean of all, and one that is back brings its."""
    m, s, w = state.mixture, state.settings, state.work
    experts = m.recent.shape[0]
    for e in range(experts):
        right = 1.0 if trees.argmax(judged[e], classes) == y else 0.0
        m.activation[e] += w.gate.weights[way, e]
        if e >= s.n_experts:
            m.age[e] += 1.0
        age = w.age[b, e] if e < s.n_experts else m.age[e]
        m.recent[e] += max(1.0 / s.window, 1.0 / age) * (right - m.recent[e])
        if e < s.n_experts and w.renewed[b, e]:
            total = 0.0
            for k in range(experts):
                total += m.recent[k]
            m.recent[e] = total / experts
    for e in range(s.n_experts):
        if not np.isnan(w.came_back[b, e]):
            m.recent[e] = w.came_back[b, e]


@kernel
def _learn_others(state, n, x, y, votes, classes):  # type: ignore[no-untyped-def]
    """The experts that are no trees learn an instance after :func:`_vote_others`."""
    t, m, s, w = state.pool.trees, state.mixture, state.settings, state.work
    for f in range(m.moments.shape[0]):  # as trees.count_values, which may be a block ahead
        place = t.kind[f]
        if place >= 0 and x[f] >= w.known[place]:
            w.known[place] = int(x[f]) + 1
    learn_bayes(m.bayes, t.kind, m.moments, w.known, x, y, classes)
    learn_neighbours(m.neighbours, t.kind, x, y)
    first = s.n_experts + s.bayes + s.neighbours
    learn_linear(m.linear, w.rows, w.numbers, n, y, classes, votes[first:], w.gradient[0])
    first += s.linear
    learn_perceptrons(m.networks, w.rows, w.numbers, n, y, classes, votes[first:], w.hidden, w.gradient)
    update_moments(m.moments, x)


@kernel
def is_voted_on(x, w):  # type: ignore[no-untyped-def]
    """Whether these features were predicted last, and nothing has been learned since: then nobody votes again."""
    same = w.voted[0] == 1
    for f in range(w.seen.shape[0]):
        same &= x[f] == w.seen[f] or (np.isnan(x[f]) and np.isnan(w.seen[f]))
    return same


@nogil_entry
def run(state, archive, may_grow, steps, X, y, late, classes, start, shift, predictions, out, weights, all_votes):  # type: ignore[no-untyped-def]
    """Do ``steps`` for the rows from ``start`` on; returns the first row that is left to do, for want of room.

    Votes of row i are kept in place ``i + shift`` where another call does the rest. Learning fills ``predictions``;
    :data:`PREDICT` fills ``out`` and ``weights``, and ``all_votes`` where that has rows.
    """
    m, s, w = state.mixture, state.settings, state.work
    experts = m.recent.shape[0]
    for i in range(start, X.shape[0]):
        x = X[i]
        b = i + shift if TREES_ONLY <= steps <= OTHERS_ONLY else 0
        votes = w.votes[b]
        judged = late[i] if late.shape[0] > 0 else votes
        voted = steps in (ALL_STEPS, PREDICT) and late.shape[0] == 0 and is_voted_on(x, w)
        if steps != OTHERS_ONLY:
            if steps != PREDICT and needs_room(state.pool.trees, may_grow):
                return i
            w.voted[0] = 0
            if not voted:
                _vote_trees(state, x, votes, classes)
            if steps != PREDICT:
                _learn_trees(state, archive, x, y[i], b, judged, classes)
        if steps == TREES_ONLY:
            continue
        n, way = w.voted[1], w.voted[2]
        if not voted:
            n = _vote_others(state, x, votes, classes)
            way = decide(m.gate, s.gate, m.recent, judged, w.rows, w.numbers, n, experts, classes, w.gate)
        if steps == PREDICT:
            copy_row(x, w.seen, w.seen.shape[0])
            w.voted[0], w.voted[1], w.voted[2] = 1, n, way
            copy_row(w.gate.mixed[way], out[i], classes)
            copy_row(w.gate.weights[way], weights[i], experts)
            if all_votes.shape[0] > 0:
                for e in range(experts):
                    copy_row(votes[e], all_votes[i, e], classes)
            continue
        predictions[i] = trees.argmax(w.gate.mixed[way], classes)
        learn_gate(m.gate, s.gate, judged, w.rows, w.numbers, n, y[i], experts, classes, w.gate)
        _update_accuracies(state, y[i], b, judged, way, classes)
        _learn_others(state, n, x, y[i], votes, classes)
    return X.shape[0]
