"""Experts of different kinds that predict numbers: one compiled loop over instances.

For every instance (x, y), in this order:

1. The experts predict y: trees with linear models in their leaves, means of the recent targets, nearest neighbours,
   linear models, linear models on squares and products, networks. Where the target is late, predictions of when the
   instance came take the place of what the experts predict now in steps 2 to 4.
2. The gate mixes the predictions in four ways and answers with one (:mod:`~moeapps.stream.compiled.number_gate`). The
   ways are scored on y, then stack and context gate learn it.
3. Recent errors are updated. ADWIN receives every tree's error in units of three standard deviations of the target, cut
   off at 1, and each tree gets a Poisson weight, as in :mod:`~moeapps.stream.compiled.mixture`.
4. The trees learn (x, y) with their weights and are replaced where an alarm asks for it.
5. The other experts learn (x, y), and so do the moments of the features and of the target.
"""

# T trees, E experts, F features

import numpy as np

from moeapps.stream.compiled import trees
from moeapps.stream.compiled.engine import act
from moeapps.stream.compiled.inputs import CUT, MEMORY, encode, update_moments
from moeapps.stream.compiled.jit import copy_row, kernel, nogil_entry, poisson
from moeapps.stream.compiled.kind_loop import is_voted_on
from moeapps.stream.compiled.leaf_models import clear_leaf, learn_tree_of_models, predict_leaf
from moeapps.stream.compiled.least_squares import learn_least_squares, predict_linear
from moeapps.stream.compiled.mixture import watch
from moeapps.stream.compiled.mixture_state import FIXED, INSTANCES, KEEP, RENEW, REPLACE
from moeapps.stream.compiled.neighbours import learn_neighbours, predict_neighbours
from moeapps.stream.compiled.number_gate import learn_number_gate, mix_numbers
from moeapps.stream.compiled.perceptron import score_perceptrons, step_perceptrons
from moeapps.stream.compiled.pool import needs_room

__all__ = ["run_numbers"]

_FAR = 10.0
"""Standard deviations of the recent targets from their mean that models may predict, or that a target counts for."""


@kernel
def _deviation(scale):  # type: ignore[no-untyped-def]
    """Standard deviation of the recent targets; 1 while there is none."""
    return np.sqrt(scale[2]) if scale[2] > 0.0 else 1.0


@kernel
def _near(prediction, scale):  # type: ignore[no-untyped-def]
    """A prediction of a model that extrapolates, kept near the recent targets."""
    most = _FAR * _deviation(scale)
    return min(max(prediction, scale[1] - most), scale[1] + most)


@kernel
def _encode(state, x):  # type: ignore[no-untyped-def]
    """Fill the inputs of all models; returns how many rows there are, with and without categories."""
    t, m, w = state.pool.trees, state.mixture, state.work
    n = encode(t.kind, m.moments, x, t.nominal.shape[2] - 1, w.rows, w.numbers)
    features, plain = m.moments.shape[0], 0
    for i in range(n):
        if w.rows[i] <= features:
            w.plain_rows[plain], w.plain[plain] = w.rows[i], w.numbers[i]
            plain += 1
    if m.quadratic.rate.shape[0] > 0:
        size = int(np.sqrt(2.0 * w.squared.shape[0]))  # of a triangle
        for i in range(w.squared.shape[0]):
            w.squared[i] = 0.0
        for i in range(plain):
            g = w.plain_rows[i]
            for j in range(i + 1):
                if g < size:
                    w.squared[g * (g + 1) // 2 + w.plain_rows[j]] = w.plain[i] * w.plain[j]
    return n, plain


@kernel
def _predict(state, x, n, plain, votes):  # type: ignore[no-untyped-def]
    """Step 1."""
    p, m, s, w = state.pool, state.mixture, state.settings, state.work
    for e in range(s.n_experts):
        leaf = trees.leaf_of(p.trees, p.place[e], x)
        found = predict_leaf(p.trees, m.leaves, leaf, x, w.plain_rows, w.plain, plain)
        votes[e, 0] = m.scale[1] if np.isnan(found) else _near(found, m.scale)
    first = s.n_experts
    for e in range(s.means):
        votes[first + e, 0] = m.means[e, 1]
    first += s.means
    predict_neighbours(
        m.neighbours, p.trees.kind, m.moments, x, w.distance, w.near, w.who, m.scale[1], votes[first:]
    )  # fmt: skip
    first += s.neighbours
    for e in range(s.linear):
        found = m.scale[3] + predict_linear(m.linear.weights[e], w.rows, w.numbers, n)
        votes[first + e, 0] = _near(found, m.scale)
    first += s.linear
    for e in range(s.quadratic):
        found = m.scale[3] + predict_linear(m.quadratic.weights[e], w.all_rows, w.squared, w.squared.shape[0])
        votes[first + e, 0] = _near(found, m.scale)
    first += s.quadratic
    score_perceptrons(m.networks, w.rows, w.numbers, n, 1, votes[first:], w.hidden)
    for e in range(s.networks):
        found = m.scale[1] + _deviation(m.scale) * votes[first + e, 0]
        w.gaps[e, 0], votes[first + e, 0] = votes[first + e, 0], _near(found, m.scale)


@kernel
def _update_errors(state, y, judged, way):  # type: ignore[no-untyped-def]
    """Step 3."""
    m, s, w = state.mixture, state.settings, state.work
    watched = state.watched
    spread, renewed = 3.0 * _deviation(m.scale) if m.scale[2] > 0.0 else np.inf, False
    m.counters[INSTANCES] += 1
    for e in range(m.recent.shape[0]):
        m.activation[e] += w.gate.weights[way, e]
        error = abs(judged[e, 0] - y)
        m.age[e] += 1.0
        m.recent[e] += max(1.0 / s.window, 1.0 / m.age[e]) * (min(error, spread) - m.recent[e])
        if e < s.n_experts:
            w.learn[e] = float(poisson(m.rng, s.bagging)) if s.bagging > 0.0 else 1.0
            w.action[e] = watch(watched, s, e, min(error / spread, 1.0)) if s.drift != FIXED else KEEP
            renewed |= w.action[e] == RENEW
    if renewed:
        total = 0.0
        for e in range(s.n_experts):
            total += m.recent[e]
        for e in range(s.n_experts):
            if w.action[e] == RENEW:
                m.recent[e] = total / s.n_experts


@kernel
def _learn_trees(state, x, y, plain):  # type: ignore[no-untyped-def]
    """Step 4."""
    p, ts, m, s, w = state.pool, state.tree_settings, state.mixture, state.settings, state.work
    t = p.trees
    trees.count_values(t, x)
    for e in range(s.n_experts):
        background, weight = s.n_experts + e, w.learn[e]
        if weight > 0.0:
            learn_tree_of_models(t, ts, m.leaves, p.place[e], x, y, weight, w.plain_rows, w.plain, plain, p.rng)
            if s.drift == REPLACE and t.root[p.place[background]] >= 0:
                learn_tree_of_models(
                    t, ts, m.leaves, p.place[background], x, y, weight, w.plain_rows, w.plain, plain, p.rng
                )  # fmt: skip
        if w.action[e] == KEEP:
            continue
        act(p, s, e, w.action[e])
        for place in (e, background):
            if place < p.place.shape[0]:
                root = t.root[p.place[place]]
                if root >= 0 and t.weight[root] == 0.0:
                    clear_leaf(m.leaves, root)


@kernel
def _learn_others(state, n, x, y, first, votes):  # type: ignore[no-untyped-def]
    """Step 5."""
    t, m, s, w = state.pool.trees, state.mixture, state.settings, state.work
    for e in range(s.means):
        m.means[e, 1] += m.means[e, 0] * (y - m.means[e, 1]) if m.scale[0] > 0.0 else y
    learn_neighbours(m.neighbours, t.kind, x, y)
    if m.scale[0] == 0.0:
        m.scale[1] = m.scale[3] = y
    for e in range(s.linear):
        error = y - m.scale[3] - predict_linear(m.linear.weights[e], w.rows, w.numbers, n)
        learn_least_squares(m.linear, e, w.rows, w.numbers, n, error, w.gain)
    for e in range(s.quadratic):
        size = w.squared.shape[0]
        error = y - m.scale[3] - predict_linear(m.quadratic.weights[e], w.all_rows, w.squared, size)
        learn_least_squares(m.quadratic, e, w.all_rows, w.squared, size, error, w.gain)
    if s.networks > 0:
        target = (y - m.scale[1]) / _deviation(m.scale)
        for e in range(s.networks):
            w.gaps[e, 0] = min(max(w.gaps[e, 0] - target, -CUT), CUT)
        step_perceptrons(m.networks, w.rows, w.numbers, n, 1, w.gaps, w.hidden, w.gradient)
    update_moments(m.moments, x)
    _update_scale(m.scale, y)


@kernel
def _update_scale(scale, y):  # type: ignore[no-untyped-def]
    """Mean and variance of the recent targets; one that is far counts for less."""
    scale[0] += 1.0
    rate = max(1.0 / scale[0], 1.0 / MEMORY)
    gap = y - scale[1]
    if scale[0] > 30.0:
        most = _FAR * _deviation(scale)
        gap = min(max(gap, -most), most)
    scale[1] += rate * gap
    scale[2] += rate * ((1.0 - rate) * gap * gap - scale[2])


@nogil_entry
def run_numbers(state, may_grow, learns, X, y, late, start, predictions, out, weights, all_votes):  # type: ignore[no-untyped-def]
    """Learn the rows from ``start`` on, or predict all; returns the first row that is left to do, for want of room.

    Learning fills ``predictions``; predicting fills ``out`` and ``weights``, and ``all_votes`` where that has rows.
    """
    m, s, w = state.mixture, state.settings, state.work
    experts = m.recent.shape[0]
    for i in range(start, X.shape[0]):
        x, votes = X[i], w.votes[0]
        judged = late[i] if late.shape[0] > 0 else votes
        if learns and needs_room(state.pool.trees, may_grow):
            return i
        n, plain, way = w.voted[1], w.voted[3], w.voted[2]
        if late.shape[0] > 0 or not is_voted_on(x, w):
            n, plain = _encode(state, x)
            _predict(state, x, n, plain, votes)
            way = mix_numbers(
                m.gate, m.stack, s.gate, m.recent, _deviation(m.scale), judged, w.rows, w.numbers, n, experts, w.gate,
                w.all_rows, w.opinions,
            )  # fmt: skip
        w.voted[0] = 0
        if not learns:
            copy_row(x, w.seen, w.seen.shape[0])
            w.voted[0], w.voted[1], w.voted[2], w.voted[3] = 1, n, way, plain
            out[i, 0] = w.gate.mixed[way, 0]
            copy_row(w.gate.weights[way], weights[i], experts)
            if all_votes.shape[0] > 0:
                for e in range(experts):
                    all_votes[i, e, 0] = votes[e, 0]
            continue
        predictions[i] = w.gate.mixed[way, 0]
        learn_number_gate(
            m.gate, m.stack, s.gate, m.recent, _deviation(m.scale), judged, w.rows, w.numbers, n, y[i], experts,
            w.gate, w.all_rows, w.opinions, w.gain,
        )  # fmt: skip
        _update_errors(state, y[i], judged, way)
        _learn_trees(state, x, y[i], plain)
        _learn_others(state, n, x, y[i], experts - s.networks, votes)
    return X.shape[0]
