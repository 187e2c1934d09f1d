"""The gate over experts of different kinds: four ways to mix them, and the choice among the four.

No way of mixing wins on every stream, so all four are kept up to date:

- mean: all experts with the same weight;
- accuracy: weights log(a (C - 1) / (1 - a)) by the recent accuracy a of each expert, optimal for independent voters;
- stack: softmax over classes of sum_e w_e log p_e, with one weight w_e >= 0 per expert, learned by steps of RMSprop on
  the log loss (a logarithmic opinion pool);
- context: sum_e g_e p_e with g = softmax(V u + 2 log a), u the inputs of the instance and the largest probability of
  each expert, learned by AdaGrad on the likelihood of the mixture (Jacobs et al. 1991).

The answer is that of one of them. All are scored on each instance before they learn its label. Another one takes over
once its log loss over about the last 500 instances is lower by two standard errors of the difference.
"""

# E experts, R rows of inputs, C classes

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeapps.stream.compiled.inputs import Layout, move_rows
from moeapps.stream.compiled.jit import fill, kernel
from moeapps.stream.compiled.linear import START, descend, softmax
from moeapps.stream.compiled.references import referable

__all__ = [
    "ACCURACY",
    "AUTO",
    "CONTEXT",
    "MEAN",
    "STACK",
    "WAYS",
    "Gate",
    "GateWork",
    "add_context",
    "compare_ways",
    "decide",
    "grow_gate",
    "learn_gate",
    "new_gate",
    "new_gate_work",
    "step_context",
]

MEAN, ACCURACY, STACK, CONTEXT = range(4)
"""The ways of mixing."""

AUTO = -1
"""Keep all four, and choose."""

WAYS = ("mean", "accuracy", "stack", "context")
"""Their names, in this order."""

MEMORY = 500.0
"""Instances over which the ways are compared."""

NOISE = 2.0
"""Standard errors by which another way has to be better."""

LEAST = 30
"""Instances before which no way is called better."""

FLOOR = 0.01
"""Share of a uniform distribution in the probabilities that are scored, so that no loss is infinite."""

_STACK_RATE, _STACK_MEMORY, _CONTEXT_RATE = 0.003, 0.001, 0.05


@referable
class Gate(NamedTuple):
    """What the gate has learned."""

    stack: NDArray[np.float64]  # (E,)
    stack_squares: NDArray[np.float64]  # (E,)
    context: NDArray[np.float64]  # (R, E)
    context_squares: NDArray[np.float64]  # (R, E)
    sure: NDArray[np.float64]  # (E, E) part of V for the largest probability of each expert
    sure_squares: NDArray[np.float64]  # (E, E)
    loss: NDArray[np.float64]  # (4,) recent log loss of each way
    gap: NDArray[np.float64]  # (4, 4) recent mean of loss of the row minus loss of the column
    gap_squares: NDArray[np.float64]  # (4, 4) the same of its square
    answered: NDArray[np.int64]  # (4,) learned instances for which it was this way that answered
    state: NDArray[np.int64]  # (2,) which way answers, instances learned


@referable
class GateWork(NamedTuple):
    """Room for one instance."""

    logs: NDArray[np.float64]  # (E, C) log probabilities of the experts
    mixed: NDArray[np.float64]  # (4, C) class probabilities by each way
    weights: NDArray[np.float64]  # (4, E) weights of the experts in each way
    top: NDArray[np.float64]  # (E,) largest probability of each expert
    gap: NDArray[np.float64]  # (E,) gradient by the logits of the context gate
    gradient: NDArray[np.float64]  # (E,)
    losses: NDArray[np.float64]  # (4,)


def new_gate(experts: int, layout: Layout, way: int) -> Gate:
    """A gate that has learned nothing; it begins with the recent accuracies, or with the one way that it is to have."""
    grid, pairs, ways = (layout.rows, experts), (experts, experts), len(WAYS)
    return Gate(
        np.full(experts, 1.0 / max(experts, 1)), np.full(experts, START), np.zeros(grid), np.full(grid, START),
        np.zeros(pairs), np.full(pairs, START), np.zeros(ways), np.zeros((ways, ways)), np.zeros((ways, ways)),
        np.zeros(ways, dtype=np.int64), np.array([ACCURACY if way == AUTO else way, 0], dtype=np.int64),
    )  # fmt: skip


def grow_gate(old: Gate, before: Layout, layout: Layout, way: int) -> Gate:
    """The same for more inputs."""
    new = new_gate(len(old.sure), layout, way)
    move_rows(old.context, new.context, before, layout)
    move_rows(old.context_squares, new.context_squares, before, layout)
    return old._replace(context=new.context, context_squares=new.context_squares)


def new_gate_work(experts: int, classes: int) -> GateWork:
    """Room for one instance."""
    ways = len(WAYS)
    return GateWork(
        np.zeros((experts, classes)), np.zeros((ways, classes)), np.zeros((ways, experts)), np.zeros(experts),
        np.zeros(experts), np.zeros(experts), np.zeros(ways),
    )  # fmt: skip


@kernel
def _average(weights, votes, experts, classes, out):  # type: ignore[no-untyped-def]
    """Bring weights to the sum 1, and average the experts' class probabilities by them."""
    total = 0.0
    for e in range(experts):
        total += weights[e]
    fill(out, classes, 0.0)
    for e in range(experts):
        weights[e] /= total
        for c in range(classes):
            out[c] += weights[e] * votes[e, c]


@kernel
def _mix_by_accuracy(recent, votes, experts, classes, w):  # type: ignore[no-untyped-def]
    choices = max(classes, 2)
    for e in range(experts):
        a = min(max(recent[e], 1e-3), 1.0 - 1e-3)
        w.weights[ACCURACY, e] = max(np.log(a * (choices - 1.0) / (1.0 - a)), 1e-3)
    _average(w.weights[ACCURACY], votes, experts, classes, w.mixed[ACCURACY])


@kernel
def _stack(g, votes, experts, classes, w):  # type: ignore[no-untyped-def]
    out, total = w.mixed[STACK], 0.0
    fill(out, classes, 0.0)
    for e in range(experts):
        total += g.stack[e]
        for c in range(classes):
            w.logs[e, c] = np.log(votes[e, c] * (1.0 - FLOOR) + FLOOR / classes)
            out[c] += g.stack[e] * w.logs[e, c]
    softmax(out, classes)
    for e in range(experts):
        w.weights[STACK, e] = g.stack[e] / total if total > 0.0 else 1.0 / experts


@kernel
def _mix_by_context(g, recent, votes, rows, numbers, n, experts, classes, w):  # type: ignore[no-untyped-def]
    logits = w.weights[CONTEXT]
    for e in range(experts):
        logits[e] = 2.0 * np.log(max(recent[e], 1e-3))
        w.top[e] = 0.0
        for c in range(classes):
            w.top[e] = max(w.top[e], votes[e, c])
    add_context(g, logits, rows, numbers, n, experts, w)
    _average(logits, votes, experts, classes, w.mixed[CONTEXT])


@kernel
def add_context(g, logits, rows, numbers, n, experts, w):  # type: ignore[no-untyped-def]
    """Add V u to the logits of the context gate, and make weights of them."""
    for i in range(n):
        row = g.context[rows[i]]
        for e in range(experts):
            logits[e] += numbers[i] * row[e]
    for k in range(experts):
        row = g.sure[k]
        for e in range(experts):
            logits[e] += w.top[k] * row[e]
    softmax(logits, experts)


@kernel
def decide(g, way, recent, votes, rows, numbers, n, experts, classes, w):  # type: ignore[no-untyped-def]
    """Fill ``mixed`` and ``weights`` of each way (of one, where ``way`` names it); returns the way that answers."""
    if way in (AUTO, MEAN):
        fill(w.weights[MEAN], experts, 1.0)
        _average(w.weights[MEAN], votes, experts, classes, w.mixed[MEAN])
    if way in (AUTO, ACCURACY):
        _mix_by_accuracy(recent, votes, experts, classes, w)
    if way in (AUTO, STACK):
        _stack(g, votes, experts, classes, w)
    if way in (AUTO, CONTEXT):
        _mix_by_context(g, recent, votes, rows, numbers, n, experts, classes, w)
    return g.state[0]


@kernel
def _score(g, w, y, classes, auto):  # type: ignore[no-untyped-def]
    for a in range(4):
        if auto or a == g.state[0]:
            w.losses[a] = -np.log(w.mixed[a, y] * (1.0 - FLOOR) + FLOOR / classes)


@kernel
def compare_ways(g, w, auto):  # type: ignore[no-untyped-def]
    """Average each way's ``losses`` on a label that it has not learned, and change to a better one beyond noise."""
    g.answered[g.state[0]] += 1
    g.state[1] += 1
    rate = max(1.0 / g.state[1], 1.0 / MEMORY)
    for a in range(4):
        if auto or a == g.state[0]:
            g.loss[a] += rate * (w.losses[a] - g.loss[a])
    if not auto:
        return
    for a in range(4):
        for b in range(4):
            gap = w.losses[a] - w.losses[b]
            g.gap[a, b] += rate * (gap - g.gap[a, b])
            g.gap_squares[a, b] += rate * (gap * gap - g.gap_squares[a, b])
    now = g.state[0]
    best = now
    for a in range(4):
        if g.loss[a] < g.loss[best]:
            best = a
    gap = g.gap[now, best]
    variance = max(g.gap_squares[now, best] - gap * gap, 0.0)
    if g.state[1] >= LEAST and best != now and gap > NOISE * np.sqrt(variance * rate / (2.0 - rate)):
        g.state[0] = best


@kernel
def _learn_stack(g, y, experts, classes, w):  # type: ignore[no-untyped-def]
    for e in range(experts):
        w.gradient[e] = -w.logs[e, y]
        for c in range(classes):
            w.gradient[e] += w.mixed[STACK, c] * w.logs[e, c]
    descend(g.stack, g.stack_squares, w.gradient, _STACK_RATE, _STACK_MEMORY, experts)
    for e in range(experts):
        g.stack[e] = max(g.stack[e], 0.0)


@kernel
def _learn_context(g, votes, rows, numbers, n, y, experts, classes, w):  # type: ignore[no-untyped-def]
    total = 0.0
    for e in range(experts):
        w.gap[e] = w.weights[CONTEXT, e] * (votes[e, y] * (1.0 - FLOOR) + FLOOR / classes)
        total += w.gap[e]
    step_context(g, total, rows, numbers, n, experts, w)


@kernel
def step_context(g, total, rows, numbers, n, experts, w):  # type: ignore[no-untyped-def]
    """A step of the context gate; ``gap`` holds weight times likelihood of each expert, and ``total`` is their sum."""
    for e in range(experts):
        w.gap[e] = w.weights[CONTEXT, e] - w.gap[e] / total
    for i in range(n):
        for e in range(experts):
            w.gradient[e] = numbers[i] * w.gap[e]
        descend(g.context[rows[i]], g.context_squares[rows[i]], w.gradient, _CONTEXT_RATE, 0.0, experts)
    for k in range(experts):
        for e in range(experts):
            w.gradient[e] = w.top[k] * w.gap[e]
        descend(g.sure[k], g.sure_squares[k], w.gradient, _CONTEXT_RATE, 0.0, experts)


@kernel
def learn_gate(g, way, votes, rows, numbers, n, y, experts, classes, w):  # type: ignore[no-untyped-def]
    """Score and learn, after :func:`decide` of the same instance."""
    _score(g, w, y, classes, way == AUTO)
    compare_ways(g, w, way == AUTO)
    if way in (AUTO, STACK):
        _learn_stack(g, y, experts, classes, w)
    if way in (AUTO, CONTEXT):
        _learn_context(g, votes, rows, numbers, n, y, experts, classes, w)
