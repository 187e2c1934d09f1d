"""The mixture of DriftMoE: weight experts, predict, score, train the router, detect drift. One instance per call.

These functions do not depend on what an expert is. They read the experts' predictions (``votes``) and fill in with
which weight each expert is to learn and whether it is to be replaced. The engine carries that out: compiled, with the
trees of a :class:`~moeapps.stream.compiled.pool.HoeffdingPool`, or in Python with experts of any kind.

For every instance (x, y), in this order (algorithm 1 of "DriftMoE", 2025; steps 5 and 6 are additions):

1. The engine fills ``votes`` with every expert's prediction for x.
2. :func:`decide_class` or :func:`decide_number`: the router's logits, the experts' weights, the prediction.
3. :func:`score_experts` or :func:`score_experts_numeric`: which experts were right. The multi-hot mask of these is the
   router's target; if none was right, it marks the expert that was nearest.
4. The router makes an Adam step on the binary cross-entropy of its logits and the masks, once per ``router_period``
   instances.
5. ADWIN receives every expert's error: a rise beyond the warning level starts a background tree, a rise beyond the
   drift level replaces the expert.
6. The weight of the instance for each expert: 0 or 1 for the ``top_k`` with the largest weights, times a Poisson number
   (online bagging).
7. The engine lets each expert learn (x, y) with its weight, and starts or replaces trees.
"""

# E experts, C classes, F features, R inputs of the router, B instances per step of the router
# m Mixture, s MixtureSettings, x (F,) instance, work Work

import numpy as np

from moeapps.stream.compiled.adwin import COUNT, SUM, reset_window, update_window
from moeapps.stream.compiled.jit import copy_row, fill, kernel, poisson
from moeapps.stream.compiled.mixture_state import (
    DATA,
    ENRICHED,
    EVENTS,
    FIXED,
    INSTANCES,
    KEEP,
    MAX_EVENTS,
    NEWCOMER,
    RAW,
    RENEW,
    REPLACE,
    ROUTER,
    TASK,
    TOP,
    TOP_K,
    WAITING,
    WARN,
    Mixture,
    MixtureSettings,
    Work,
)
from moeapps.stream.compiled.network import forward, train_batch, train_one
from moeapps.stream.compiled.trees import argmax

__all__ = [
    "Mixture",
    "MixtureSettings",
    "Work",
    "decide_class",
    "decide_number",
    "score_experts",
    "score_experts_numeric",
    "watch",
]


LARGEST_INPUT = 1e17
"""Raw features are cut off here: the router computes in float32, and Adam squares its gradients."""


@kernel
def _compute_logits(m, s, x, work):  # type: ignore[no-untyped-def]
    """Logits of an instance; a missing feature counts as the mean (enriched) or as 0 (raw)."""
    first = 0
    if s.router_inputs == ENRICHED and s.variant == DATA:
        first = s.n_experts
        for e in range(s.n_experts):
            work.inputs[e] = 2.0 * m.recent[e] - 1.0
    for f in range(m.moments.shape[0]):
        value = x[f]
        if np.isnan(value):
            value = 0.0
        elif s.router_inputs == RAW:
            value = min(max(value, -LARGEST_INPUT), LARGEST_INPUT)
        else:
            n, squares = m.moments[f, 0], m.moments[f, 2]
            value = min(max((value - m.moments[f, 1]) / np.sqrt(squares / n), -5.0), 5.0) if squares > 0.0 else 0.0
        work.inputs[first + f] = value
    forward(m.network, work.inputs, work.room, work.logits)


@kernel
def _softmax_weights(m, s, work):  # type: ignore[no-untyped-def]
    """softmax(logits / temperature) over the experts, as in the paper."""
    best = -np.inf
    for e in range(s.n_experts):
        best = max(best, work.logits[e])
    total = 0.0
    for e in range(s.n_experts):
        work.weights[e] = np.exp((work.logits[e] - best) / s.temperature)
        total += work.weights[e]
    for e in range(s.n_experts):
        work.weights[e] /= total


@kernel
def _log_odds_weights(m, s, choices, work):  # type: ignore[no-untyped-def]
    """Weights log(a (C - 1) / (1 - a)) for a probability a of being right: optimal for independent voters."""
    total = 0.0
    for e in range(s.n_experts):
        a = 1.0 / (1.0 + np.exp(-work.logits[e])) if s.use_router else m.recent[e]
        a = min(max(a, 1e-3), 1.0 - 1e-3)
        work.weights[e] = max(np.log(a * (choices - 1.0) / (1.0 - a)), 1e-3)
        total += work.weights[e]
    for e in range(s.n_experts):
        work.weights[e] /= total


@kernel
def decide_class(m, s, x, classes, work):  # type: ignore[no-untyped-def]
    """Predict from ``work.votes``: fills weights and class probabilities, returns the class."""
    _compute_logits(m, s, x, work)
    if s.variant == TASK:
        return _decide_task(m, s, classes, work)
    if s.predict_with == TOP:
        _softmax_weights(m, s, work)
        chosen = argmax(work.weights, s.n_experts)
        copy_row(work.votes[chosen], work.mixed, classes)
        return argmax(work.mixed, classes)
    _log_odds_weights(m, s, max(classes, 2), work)
    fill(work.mixed, classes, 0.0)
    total = 0.0
    for e in range(s.n_experts):
        share = 0.0
        for c in range(classes):
            share += work.votes[e, c]
        if share > 0.0:
            total += work.weights[e]
            for c in range(classes):
                work.mixed[c] += work.weights[e] * work.votes[e, c] / share
    if total > 0.0:
        for c in range(classes):
            work.mixed[c] /= total
    work.predictions[0] = argmax(work.mixed, classes)
    if s.blend > 0.0:
        _softmax(work.logits, s.n_experts, classes, work.own)
        work.predictions[1] = argmax(work.own, classes)
        _blend(m, s, classes, work)
    return argmax(work.mixed, classes)


@kernel
def _softmax(logits, first, n, out):  # type: ignore[no-untyped-def]
    best = -np.inf
    for c in range(n):
        best = max(best, logits[first + c])
    total = 0.0
    for c in range(n):
        out[c] = np.exp(logits[first + c] - best)
        total += out[c]
    for c in range(n):
        out[c] /= total


@kernel
def _blend(m, s, classes, work):  # type: ignore[no-untyped-def]
    """Average the class probabilities of pool and router, by a sigmoid of the gap of their recent accuracies."""
    share = 1.0 / (1.0 + np.exp(-s.blend * (m.pool_and_router_accuracy[1] - m.pool_and_router_accuracy[0])))
    for c in range(classes):
        work.mixed[c] = (1.0 - share) * work.mixed[c] + share * work.own[c]


@kernel
def _decide_task(m, s, classes, work):  # type: ignore[no-untyped-def]
    """One binary expert per class: the router's logits are those of the classes."""
    _softmax(work.logits, 0, classes, work.own)
    copy_row(work.own, work.weights, classes)
    work.predictions[1] = argmax(work.own, classes)
    total = 0.0
    for c in range(classes):
        pair = work.votes[c, 0] + work.votes[c, 1]
        work.mixed[c] = work.votes[c, 1] / pair if pair > 0.0 else 0.0
        total += work.mixed[c]
    for c in range(classes):
        work.mixed[c] = work.mixed[c] / total if total > 0.0 else work.own[c]
    work.predictions[0] = argmax(work.mixed, classes)
    if s.predict_with == ROUTER:
        copy_row(work.own, work.mixed, classes)
    elif s.blend > 0.0:
        _blend(m, s, classes, work)
    return argmax(work.mixed, classes)


@kernel
def score_experts(m, s, x, y, classes, work):  # type: ignore[no-untyped-def]
    """Compare the votes with the label, after :func:`decide_class` of the same instance; fill ``learn``, ``action``.

    In the task variant expert e is right if it predicts whether y is e, but only the expert of class y is marked in the
    router's target.
    """
    row = m.counters[WAITING]
    target = m.batch_y[row]
    fill(target, target.shape[0], 0.0)
    none_right = True
    for e in range(s.n_experts):
        votes = work.votes[e]
        if s.variant == TASK:
            positive = votes[1] > votes[0]
            work.right[e] = 1.0 if positive == (y == e) and votes[0] + votes[1] > 0.0 else 0.0
            hit = positive and y == e
        else:
            best = argmax(votes, classes)
            hit = best == y and votes[best] > 0.0
            work.right[e] = 1.0 if hit else 0.0
        work.error[e] = 1.0 - work.right[e]
        if hit:
            target[e] = 1.0
            none_right = False
    if none_right:
        target[y if s.variant == TASK else _likeliest(work.votes, s.n_experts, y)] = 1.0
    if s.blend > 0.0 and s.variant == DATA:
        target[s.n_experts + y] = 1.0
    rate = 1.0 / s.blend_window
    for side in range(2):
        hit = 1.0 if work.predictions[side] == y else 0.0
        m.pool_and_router_accuracy[side] += rate * (hit - m.pool_and_router_accuracy[side])
    _advance(m, s, x, work)


@kernel
def _likeliest(votes, experts, y):  # type: ignore[no-untyped-def]
    """Expert that gives class y the highest probability."""
    best = 0
    for e in range(1, experts):
        if votes[e, y] > votes[best, y]:
            best = e
    return best


@kernel
def decide_number(m, s, x, work):  # type: ignore[no-untyped-def]
    """Predict a number from ``work.votes`` ``(E, 1)``; experts that have learned nothing vote NaN."""
    _compute_logits(m, s, x, work)
    if s.predict_with == TOP:
        _softmax_weights(m, s, work)
        work.mixed[0] = work.votes[argmax(work.weights, s.n_experts), 0]
        return work.mixed[0]
    _log_odds_weights(m, s, 2, work)
    total, found = 0.0, 0.0
    for e in range(s.n_experts):
        if not np.isnan(work.votes[e, 0]):
            total += work.weights[e]
            found += work.weights[e] * work.votes[e, 0]
    work.mixed[0] = found / total if total > 0.0 else np.nan
    return work.mixed[0]


@kernel
def score_experts_numeric(m, s, x, y, work):  # type: ignore[no-untyped-def]
    """Compare the votes with a number: an expert is right if its error is at most the running median of all errors.

    The median is tracked by stochastic approximation (Robbins and Monro 1951): steps of at most 5 % of its value.
    """
    target = m.batch_y[m.counters[WAITING]]
    fill(target, target.shape[0], 0.0)
    spread = 3.0 * np.sqrt(m.scale[2] / m.scale[0]) if m.scale[2] > 0.0 else np.inf
    best, least = 0, np.inf
    none_right = True
    for e in range(s.n_experts):
        prediction = work.votes[e, 0]
        error = np.inf if np.isnan(prediction) else abs(prediction - y)
        if error < least:
            best, least = e, error
        if error < np.inf and m.error[0] == 0.0:
            m.error[0] = error
        work.right[e] = 1.0 if error <= m.error[0] else 0.0
        work.error[e] = min(error / spread, 1.0) if error < np.inf else 1.0
        if work.right[e] > 0.0:
            target[e] = 1.0
            none_right = False
    if none_right:
        target[best] = 1.0
    inside = work.right.mean()
    m.error[0] *= np.exp(0.1 * (0.5 - inside))
    m.scale[0] += 1.0
    gap = y - m.scale[1]
    m.scale[1] += gap / m.scale[0]
    m.scale[2] += gap * (y - m.scale[1])
    _advance(m, s, x, work)


@kernel
def _advance(m, s, x, work):  # type: ignore[no-untyped-def]
    """Steps 4 to 6 of the module's list, once ``right`` and the router's target are known."""
    _train_router(m, s, work)
    for f in range(m.moments.shape[0]):
        if not np.isnan(x[f]):
            m.moments[f, 0] += 1.0
            gap = x[f] - m.moments[f, 1]
            m.moments[f, 1] += gap / m.moments[f, 0]
            m.moments[f, 2] += gap * (x[f] - m.moments[f, 1])
    m.counters[INSTANCES] += 1
    for e in range(s.n_experts):
        m.activation[e] += work.weights[e]
        work.learn[e] = 0.0 if s.learn_with == TOP_K else 1.0
    if s.learn_with == TOP_K:
        for _ in range(min(s.top_k, s.n_experts)):
            best = -1
            for e in range(s.n_experts):
                if work.learn[e] == 0.0 and (best < 0 or work.weights[e] > work.weights[best]):
                    best = e
            work.learn[best] = 1.0
    for e in range(s.n_experts):
        if s.bagging > 0.0 and work.learn[e] > 0.0:
            work.learn[e] = float(poisson(m.rng, s.bagging))
        m.age[e] += 1.0
        m.recent[e] += max(1.0 / s.window, 1.0 / m.age[e]) * (work.right[e] - m.recent[e])
        work.action[e] = watch(m, s, e, work.error[e]) if s.drift != FIXED else KEEP


@kernel
def _train_router(m, s, work):  # type: ignore[no-untyped-def]
    row = m.counters[WAITING]
    if s.router_period == 1:
        train_one(m.network, work.inputs, m.batch_y[0], s.router_dropout, s.router_lr, work.room, m.rng)
        return
    copy_row(work.inputs, m.batch_x[row], work.inputs.shape[0])
    m.counters[WAITING] += 1
    if m.counters[WAITING] == s.router_period:
        train_batch(m.network, m.batch_x, m.batch_y, s.router_dropout, s.router_lr, m.rng)
        m.counters[WAITING] = 0


@kernel
def watch(m, s, e, error):  # type: ignore[no-untyped-def]
    """Add an expert's error to its ADWIN windows; an alarm counts only if the error has risen."""
    action = KEEP
    if s.drift == REPLACE and _risen(m.windows, s.n_experts + e, error, s.warning_delta):
        action = WARN
        reset_window(m.windows, s.n_experts + e)
    if _risen(m.windows, e, error, s.drift_delta):
        action = RENEW
        reset_window(m.windows, e)
        reset_window(m.windows, s.n_experts + e)
        total = 0.0
        for k in range(m.recent.shape[0]):
            total += m.recent[k]
        m.recent[e] = total / m.recent.shape[0]
        m.age[e] = NEWCOMER
    if action != KEEP:
        event = m.events[m.counters[EVENTS] % MAX_EVENTS]
        event[0], event[1], event[2] = m.counters[INSTANCES], e, action
        m.counters[EVENTS] += 1
    return action


@kernel
def _risen(w, d, error, delta):  # type: ignore[no-untyped-def]
    before = w.whole[d, SUM] / max(w.whole[d, COUNT], 1.0)
    changed = update_window(w, d, error, delta)
    return changed and w.whole[d, SUM] / w.whole[d, COUNT] > before
