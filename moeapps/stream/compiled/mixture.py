"""The mixture of DriftMoE: weigh experts, predict, give credit, train the router, watch for drift. One instance a call.

These functions do not know what an expert is. They get what the experts said (``votes``) and say how much each shall
learn and whether it shall be replaced; :mod:`~moeapps.stream.compiled.engine` does that, in one compiled loop with a
:class:`~moeapps.stream.compiled.pool.HoeffdingPool`, or in Python with experts of any kind.

The order for every instance is: predict, mask, router, train (algorithm 1 of "DriftMoE", 2025).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeapps.stream.compiled.adwin import COUNT, SUM, Windows, WindowsRef, allocate_windows, reset_window, update_window
from moeapps.stream.compiled.jit import kernel, poisson, random_seed, reference
from moeapps.stream.compiled.network import (
    Network,
    NetworkRef,
    forward,
    make_room,
    new_network,
    resize,
    train_batch,
    train_one,
)
from moeapps.stream.compiled.trees import argmax

__all__ = [
    "Mixture",
    "MixtureSettings",
    "Work",
    "credit_class",
    "credit_number",
    "decide_class",
    "decide_number",
    "grow_mixture",
    "make_work",
    "new_mixture",
    "num_inputs",
    "num_outputs",
    "refer_mixture",
    "refer_work",
]

TOP, MIX, ROUTER = range(3)
"""Whose word is the prediction: the expert with the largest weight, all experts by weight, the router's own."""

FIXED, RESET, REPLACE = range(3)
"""What an alarm does: nothing, restart the expert, or put in the background tree that was grown since the warning."""

KEEP, WARN, RENEW = range(3)
"""What shall be done with an expert."""

WAITING, INSTANCES, EVENTS = range(3)
"""Counters: instances that wait for the router's next step, instances learned, events so far."""

NEWCOMER = 10.0
"""A renewed expert is taken for as good as the mean of all, with the weight of so many instances."""

MAX_EVENTS = 1024
"""Events that are remembered; older ones are overwritten."""


class MixtureSettings(NamedTuple):
    """Numbers that do not change while learning."""

    experts: int  # E; in the task variant that is the number of classes
    task: bool  # one binary expert per class
    top_k: int
    temperature: float
    predict: int  # TOP, MIX, ROUTER
    use_router: bool  # whether the router weighs the experts; else their recent accuracy does
    blend: float  # how sharply router and pool are weighed by their recent accuracy; 0 leaves the router out
    train_top_k: bool
    bagging: float  # rate of the Poisson weights; 0 gives weight 1
    drift: int  # FIXED, RESET, REPLACE
    drift_delta: float
    warning_delta: float
    forget: float  # 1 / window of the experts' recent accuracy
    forget_blend: float  # 1 / window of the accuracies of pool and router
    enriched: bool  # standardised features and the experts' recent accuracy as router input; else the raw features
    dropout: float
    lr: float
    period: int  # instances per step of the router


class Mixture(NamedTuple):
    """Everything that is learned besides the experts."""

    network: Network
    windows: Windows  # E for drift, then E for warnings
    recent: NDArray[np.float64]  # (E,) share of recent instances that an expert got right
    age: NDArray[np.float64]  # (E,) instances since the expert began
    rivals: NDArray[np.float64]  # (2,) recent accuracy of the pool and of the router as a classifier
    moments: NDArray[np.float64]  # (F, 3) number, mean and squared deviations of each feature
    scale: NDArray[np.float64]  # (3,) of the target: number, mean, squared deviations; for numbers only
    error: NDArray[np.float64]  # (1,) running median of the experts' absolute errors; for numbers only
    batch_x: NDArray[np.float32]  # (B, R)
    batch_y: NDArray[np.float32]  # (B, outputs)
    activation: NDArray[np.float64]  # (E,) sum of the weights that each expert had in predictions of learned instances
    counters: NDArray[np.int64]
    events: NDArray[np.int64]  # (MAX_EVENTS, 3) instance, expert, WARN or RENEW
    rng: NDArray[np.uint64]


class Work(NamedTuple):
    """Room for one instance."""

    votes: NDArray[np.float64]  # (E, C): class probabilities; (E, 2) in the task variant; (E, 1) for numbers
    inputs: NDArray[np.float32]  # (R,)
    logits: NDArray[np.float32]  # (outputs,)
    weights: NDArray[np.float64]  # (E,) of the experts in the prediction, summing to 1
    mixed: NDArray[np.float64]  # (C,) the prediction: class probabilities, or one number
    own: NDArray[np.float64]  # (C,) the router's own class probabilities
    said: NDArray[np.int64]  # (2,) class of the pool and of the router
    right: NDArray[np.float64]  # (E,) whether the expert was right
    error: NDArray[np.float64]  # (E,) in [0, 1]: what drift is seen by
    learn: NDArray[np.float64]  # (E,) weight with which the expert shall learn the instance
    action: NDArray[np.int64]  # (E,) KEEP, WARN, RENEW
    belief: NDArray[np.int64]  # (E,) class that the naive Bayes of the expert's leaf believes in
    scratch: NDArray[np.float64]  # (3, C) for the trees
    room: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]


MixtureRef = reference(Mixture)
WorkRef = reference(Work)


@kernel
def refer_mixture(m):  # type: ignore[no-untyped-def]
    """Reference to a mixture."""
    return MixtureRef(
        NetworkRef(*m.network), WindowsRef(*m.windows), m.recent, m.age, m.rivals, m.moments, m.scale, m.error,
        m.batch_x, m.batch_y, m.activation, m.counters, m.events, m.rng,
    )  # fmt: skip


@kernel
def refer_work(work):  # type: ignore[no-untyped-def]
    """Reference to a room for one instance."""
    return WorkRef(*work)


def num_inputs(s: MixtureSettings, features: int) -> int:
    """Width R of the router's input."""
    return features + (s.experts if s.enriched and not s.task else 0)


def num_outputs(s: MixtureSettings, classes: int) -> int:
    """Outputs of the router: one per expert, and one per class where its own word counts."""
    return s.experts + (classes if s.blend > 0 and not s.task else 0)


def new_mixture(s: MixtureSettings, features: int, classes: int, hidden: tuple[int, int], seed: int) -> Mixture:
    """A mixture that has learned nothing."""
    inputs, outputs = num_inputs(s, features), num_outputs(s, classes)
    return Mixture(
        network=new_network(inputs, hidden, outputs, np.random.default_rng([seed, features, outputs])),
        windows=allocate_windows(2 * s.experts),
        recent=np.full(s.experts, 0.5),
        age=np.zeros(s.experts),
        rivals=np.zeros(2),
        moments=np.zeros((features, 3)),
        scale=np.zeros(3),
        error=np.zeros(1),
        batch_x=np.zeros((s.period, inputs), dtype=np.float32),
        batch_y=np.zeros((s.period, outputs), dtype=np.float32),
        activation=np.zeros(s.experts),
        counters=np.zeros(3, dtype=np.int64),
        events=np.zeros((MAX_EVENTS, 3), dtype=np.int64),
        rng=random_seed(seed),
    )


def grow_mixture(old: Mixture, s: MixtureSettings, features: int, classes: int, seed: int) -> Mixture:
    """The same mixture for more features and classes (and experts, in the task variant)."""
    hidden = (int(old.network.sizes[1]), int(old.network.sizes[2]))
    inputs, outputs = num_inputs(s, features), num_outputs(s, classes)
    rng = np.random.default_rng([seed, features, outputs])
    fresh = new_mixture(s, features, classes, hidden, seed)
    windows = fresh.windows
    before, now = len(old.recent), s.experts
    for name in Windows._fields:
        source, target = getattr(old.windows, name), getattr(windows, name)
        target[:before] = source[:before]
        target[now : now + before] = source[before:]
    for name in ("recent", "age", "moments", "activation", "batch_x", "batch_y"):
        source, target = getattr(old, name), getattr(fresh, name)
        target[tuple(slice(size) for size in source.shape)] = source
    return old._replace(
        network=resize(old.network, inputs, outputs, rng),
        windows=windows,
        **{name: getattr(fresh, name) for name in ("recent", "age", "moments", "activation", "batch_x", "batch_y")},
    )


@kernel
def make_work(m, s, votes, classes):  # type: ignore[no-untyped-def]
    """Room for an instance with ``votes`` numbers per expert."""
    experts = s.experts
    return Work(
        np.zeros((experts, votes)),
        np.zeros(m.network.sizes[0], dtype=np.float32),
        np.zeros(m.network.sizes[3], dtype=np.float32),
        np.zeros(experts),
        np.zeros(classes),
        np.zeros(classes),
        np.zeros(2, dtype=np.int64),
        np.zeros(experts),
        np.zeros(experts),
        np.zeros(experts),
        np.zeros(experts, dtype=np.int64),
        np.zeros(experts, dtype=np.int64),
        np.zeros((3, votes)),
        make_room(m.network),
    )


@kernel
def _ask_router(m, s, x, work):  # type: ignore[no-untyped-def]
    """Logits of an instance; a missing feature counts as the mean (enriched) or as 0 (raw)."""
    first = 0
    if s.enriched and not s.task:
        first = s.experts
        for e in range(s.experts):
            work.inputs[e] = 2.0 * m.recent[e] - 1.0
    for f in range(m.moments.shape[0]):
        value = x[f]
        if np.isnan(value):
            value = 0.0
        elif s.enriched:
            n, squares = m.moments[f, 0], m.moments[f, 2]
            value = min(max((value - m.moments[f, 1]) / np.sqrt(squares / n), -5.0), 5.0) if squares > 0.0 else 0.0
        work.inputs[first + f] = value
    forward(m.network, work.inputs, work.room, work.logits)


@kernel
def _softmax_weights(m, s, work):  # type: ignore[no-untyped-def]
    """softmax(logits / temperature) over the experts, as in the paper."""
    best = -np.inf
    for e in range(s.experts):
        best = max(best, work.logits[e])
    total = 0.0
    for e in range(s.experts):
        work.weights[e] = np.exp((work.logits[e] - best) / s.temperature)
        total += work.weights[e]
    for e in range(s.experts):
        work.weights[e] /= total


@kernel
def _log_odds_weights(m, s, choices, work):  # type: ignore[no-untyped-def]
    """Weights log(a (C - 1) / (1 - a)) for a chance a of being right: how independent voters should be weighed."""
    total = 0.0
    for e in range(s.experts):
        a = 1.0 / (1.0 + np.exp(-work.logits[e])) if s.use_router else m.recent[e]
        a = min(max(a, 1e-3), 1.0 - 1e-3)
        work.weights[e] = max(np.log(a * (choices - 1.0) / (1.0 - a)), 1e-3)
        total += work.weights[e]
    for e in range(s.experts):
        work.weights[e] /= total


@kernel
def decide_class(m, s, x, classes, work):  # type: ignore[no-untyped-def]
    """Predict from ``work.votes``: fills weights and class probabilities, returns the class."""
    _ask_router(m, s, x, work)
    if s.task:
        return _decide_task(m, s, classes, work)
    if s.predict == TOP:
        _softmax_weights(m, s, work)
        chosen = argmax(work.weights, s.experts)
        work.mixed[:classes] = work.votes[chosen, :classes]
        return argmax(work.mixed, classes)
    _log_odds_weights(m, s, max(classes, 2), work)
    work.mixed[:classes] = 0.0
    total = 0.0
    for e in range(s.experts):
        share = 0.0
        for c in range(classes):
            share += work.votes[e, c]
        if share > 0.0:
            total += work.weights[e]
            for c in range(classes):
                work.mixed[c] += work.weights[e] * work.votes[e, c] / share
    if total > 0.0:
        work.mixed[:classes] /= total
    work.said[0] = argmax(work.mixed, classes)
    if s.blend > 0.0:
        _softmax(work.logits, s.experts, classes, work.own)
        work.said[1] = argmax(work.own, classes)
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
    """Mix the pool's word with the router's own, by which of the two was right more often of late."""
    share = 1.0 / (1.0 + np.exp(-s.blend * (m.rivals[1] - m.rivals[0])))
    for c in range(classes):
        work.mixed[c] = (1.0 - share) * work.mixed[c] + share * work.own[c]


@kernel
def _decide_task(m, s, classes, work):  # type: ignore[no-untyped-def]
    """One binary expert per class: the router's logits are those of the classes."""
    _softmax(work.logits, 0, classes, work.own)
    work.weights[:classes] = work.own[:classes]
    work.said[1] = argmax(work.own, classes)
    total = 0.0
    for c in range(classes):
        pair = work.votes[c, 0] + work.votes[c, 1]
        work.mixed[c] = work.votes[c, 1] / pair if pair > 0.0 else 0.0
        total += work.mixed[c]
    for c in range(classes):
        work.mixed[c] = work.mixed[c] / total if total > 0.0 else work.own[c]
    work.said[0] = argmax(work.mixed, classes)
    if s.predict == ROUTER:
        work.mixed[:classes] = work.own[:classes]
    elif s.blend > 0.0:
        _blend(m, s, classes, work)
    return argmax(work.mixed, classes)


@kernel
def credit_class(m, s, x, y, classes, work):  # type: ignore[no-untyped-def]
    """Give credit for a label after :func:`decide_class` of the same instance: fills ``learn`` and ``action``."""
    row = m.counters[WAITING]
    target = m.batch_y[row]
    target[:] = 0.0
    nobody = True
    for e in range(s.experts):
        said = work.votes[e]
        if s.task:
            believes = said[1] > said[0]
            work.right[e] = 1.0 if believes == (y == e) and said[0] + said[1] > 0.0 else 0.0
            hit = believes and y == e
        else:
            best = argmax(said, classes)
            hit = best == y and said[best] > 0.0
            work.right[e] = 1.0 if hit else 0.0
        work.error[e] = 1.0 - work.right[e]
        if hit:
            target[e] = 1.0
            nobody = False
    if nobody:
        target[y if s.task else _likeliest(work.votes, s.experts, y)] = 1.0
    if s.blend > 0.0 and not s.task:
        target[s.experts + y] = 1.0
    for side in range(2):
        hit = 1.0 if work.said[side] == y else 0.0
        m.rivals[side] += s.forget_blend * (hit - m.rivals[side])
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
    """Predict a number from ``work.votes`` ``(E, 1)``; NaN votes are of experts that know nothing yet."""
    _ask_router(m, s, x, work)
    if s.predict == TOP:
        _softmax_weights(m, s, work)
        work.mixed[0] = work.votes[argmax(work.weights, s.experts), 0]
        return work.mixed[0]
    _log_odds_weights(m, s, 2, work)
    total, found = 0.0, 0.0
    for e in range(s.experts):
        if not np.isnan(work.votes[e, 0]):
            total += work.weights[e]
            found += work.weights[e] * work.votes[e, 0]
    work.mixed[0] = found / total if total > 0.0 else np.nan
    return work.mixed[0]


@kernel
def credit_number(m, s, x, y, work):  # type: ignore[no-untyped-def]
    """Give credit for a number: an expert is right if its error is at most the running median of all errors.

    The median is followed by steps up and down (Robbins and Monro 1951) of 5 % of itself.
    """
    target = m.batch_y[m.counters[WAITING]]
    target[:] = 0.0
    spread = 3.0 * np.sqrt(m.scale[2] / m.scale[0]) if m.scale[2] > 0.0 else np.inf
    best, least = 0, np.inf
    nobody = True
    for e in range(s.experts):
        said = work.votes[e, 0]
        error = np.inf if np.isnan(said) else abs(said - y)
        if error < least:
            best, least = e, error
        if error < np.inf and m.error[0] == 0.0:
            m.error[0] = error
        work.right[e] = 1.0 if error <= m.error[0] else 0.0
        work.error[e] = min(error / spread, 1.0) if error < np.inf else 1.0
        if work.right[e] > 0.0:
            target[e] = 1.0
            nobody = False
    if nobody:
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
    """What follows once ``right`` and the router's target are known."""
    _train_router(m, s, work)
    for f in range(m.moments.shape[0]):
        if not np.isnan(x[f]):
            m.moments[f, 0] += 1.0
            gap = x[f] - m.moments[f, 1]
            m.moments[f, 1] += gap / m.moments[f, 0]
            m.moments[f, 2] += gap * (x[f] - m.moments[f, 1])
    m.counters[INSTANCES] += 1
    for e in range(s.experts):
        m.activation[e] += work.weights[e]
        work.learn[e] = 0.0 if s.train_top_k else 1.0
    if s.train_top_k:
        for _ in range(min(s.top_k, s.experts)):
            best = -1
            for e in range(s.experts):
                if work.learn[e] == 0.0 and (best < 0 or work.weights[e] > work.weights[best]):
                    best = e
            work.learn[best] = 1.0
    for e in range(s.experts):
        if s.bagging > 0.0 and work.learn[e] > 0.0:
            work.learn[e] = float(poisson(m.rng, s.bagging))
        m.age[e] += 1.0
        m.recent[e] += max(s.forget, 1.0 / m.age[e]) * (work.right[e] - m.recent[e])
        work.action[e] = _watch(m, s, e, work.error[e]) if s.drift != FIXED else KEEP


@kernel
def _train_router(m, s, work):  # type: ignore[no-untyped-def]
    row = m.counters[WAITING]
    if s.period == 1:
        train_one(m.network, work.inputs, m.batch_y[0], s.dropout, s.lr, work.room, m.rng)
        return
    m.batch_x[row] = work.inputs
    m.counters[WAITING] += 1
    if m.counters[WAITING] == s.period:
        train_batch(m.network, m.batch_x, m.batch_y, s.dropout, s.lr, m.rng)
        m.counters[WAITING] = 0


@kernel
def _watch(m, s, e, error):  # type: ignore[no-untyped-def]
    """Feed an expert's error to its ADWIN windows; an alarm counts only if the error has risen."""
    action = KEEP
    if s.drift == REPLACE and _risen(m.windows, s.experts + e, error, s.warning_delta):
        action = WARN
        reset_window(m.windows, s.experts + e)
    if _risen(m.windows, e, error, s.drift_delta):
        action = RENEW
        reset_window(m.windows, e)
        reset_window(m.windows, s.experts + e)
        m.recent[e] = m.recent.mean()
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
