"""The gate over experts that predict numbers: four ways to mix them, and the choice among the four.

As :mod:`~moeapps.stream.compiled.online_gate` for classes, with the same choice and the same gate by context:

- mean: all experts with the same weight;
- accuracy: weights by the recent absolute error of each expert, to the power of -:data:`POWER`;
- stack: the prediction by accuracy, and a linear combination of what each expert differs from it by, learned by
  :mod:`~moeapps.stream.compiled.least_squares`; weights may be negative;
- context: weights softmax(V u - :data:`POWER` log(recent error)), u the inputs of the instance and how far each expert
  is from the prediction by accuracy, learned by AdaGrad on the likelihood of a mixture of Laplace distributions.

The loss of a way is its absolute error in units of the standard deviation of the recent targets.
"""

# E experts, R rows of inputs

import numpy as np
from numpy.typing import NDArray

from moeapps.stream.compiled.inputs import Layout
from moeapps.stream.compiled.jit import fill, kernel
from moeapps.stream.compiled.least_squares import LeastSquares, learn_least_squares, new_least_squares, predict_linear
from moeapps.stream.compiled.online_gate import (
    ACCURACY,
    AUTO,
    CONTEXT,
    MEAN,
    STACK,
    WAYS,
    Gate,
    GateWork,
    add_context,
    compare_ways,
    new_gate,
    step_context,
)

__all__ = ["learn_number_gate", "mix_numbers", "new_number_gate", "new_number_gate_work", "new_stack"]

POWER = 4.0
"""How sharply recent errors decide about weights."""

STACK_RATE = 1e-5
"""How much the weights of the stack may change per instance."""

STACK_START = 0.01
"""The uncertainty that they begin with."""

_FLOOR, _SMALL, _CUT = 1e-3, 1e-12, 5.0


def new_number_gate(experts: int, layout: Layout, way: int) -> Gate:
    """A gate that has learned nothing; its stack is a model of its own."""
    gate = new_gate(experts, layout, way)
    return gate._replace(stack=np.zeros(0), stack_squares=np.zeros(0))


def new_stack(experts: int) -> LeastSquares:
    """The stack: one input per expert, and a constant, none of which counts yet."""
    return new_least_squares((STACK_RATE,), np.full(experts + 1, STACK_START))


def new_number_gate_work(experts: int) -> GateWork:
    """Room for one instance."""
    room: NDArray[np.float64] = np.zeros(experts)
    ways = len(WAYS)
    return GateWork(
        np.zeros((0, 0)), np.zeros((ways, 1)), np.zeros((ways, experts)), room, np.zeros(experts), np.zeros(experts),
        np.zeros(ways),
    )  # fmt: skip


@kernel
def _average(weights, votes, experts):  # type: ignore[no-untyped-def]
    """Bring weights to the sum 1, and average the predictions by them."""
    total, found = 0.0, 0.0
    for e in range(experts):
        total += weights[e]
    for e in range(experts):
        weights[e] /= total
        found += weights[e] * votes[e, 0]
    return found


@kernel
def mix_numbers(g, stack, way, recent, scale, votes, rows, numbers, n, experts, w, all_rows, inputs):  # type: ignore[no-untyped-def]
    """Fill ``mixed`` and ``weights`` of each way; returns the way that answers. ``inputs`` are those of the stack."""
    if way in (AUTO, MEAN):
        fill(w.weights[MEAN], experts, 1.0)
        w.mixed[MEAN, 0] = _average(w.weights[MEAN], votes, experts)
    least = np.inf
    for e in range(experts):
        least = min(least, recent[e])
    least = max(least, _SMALL)
    for e in range(experts):
        w.weights[ACCURACY, e] = (least / max(recent[e], least)) ** POWER
    w.mixed[ACCURACY, 0] = middle = _average(w.weights[ACCURACY], votes, experts)
    inputs[0] = 1.0
    for e in range(experts):
        w.top[e] = min(max((votes[e, 0] - middle) / scale, -_CUT), _CUT)
        inputs[1 + e] = w.top[e]
    if way in (AUTO, STACK):
        w.mixed[STACK, 0] = middle + scale * predict_linear(stack.weights[0], all_rows, inputs, experts + 1)
        total, size = 0.0, 0.0
        for e in range(experts):
            total += stack.weights[0, 1 + e]
        for e in range(experts):
            w.weights[STACK, e] = abs(w.weights[ACCURACY, e] * (1.0 - total) + stack.weights[0, 1 + e])
            size += w.weights[STACK, e]
        for e in range(experts):
            w.weights[STACK, e] = w.weights[STACK, e] / size if size > 0.0 else 1.0 / experts
    if way in (AUTO, CONTEXT):
        logits = w.weights[CONTEXT]
        for e in range(experts):
            logits[e] = POWER * np.log(least / max(recent[e], least))
        add_context(g, logits, rows, numbers, n, experts, w)
        w.mixed[CONTEXT, 0] = _average(logits, votes, experts)
    return g.state[0]


@kernel
def learn_number_gate(g, stack, way, recent, scale, votes, rows, numbers, n, y, experts, w, all_rows, inputs, gain):  # type: ignore[no-untyped-def]
    """Score and learn, after :func:`mix_numbers` of the same instance."""
    for a in range(len(WAYS)):
        w.losses[a] = abs(y - w.mixed[a, 0]) / scale
    compare_ways(g, w, way == AUTO)
    if way in (AUTO, STACK):
        learn_least_squares(stack, 0, all_rows, inputs, experts + 1, (y - w.mixed[STACK, 0]) / scale, gain)
    if way in (AUTO, CONTEXT):
        least, total = np.inf, 0.0
        for e in range(experts):
            least = min(least, recent[e])
        least = max(least, _SMALL * scale)
        for e in range(experts):
            likelihood = np.exp(-min(abs(y - votes[e, 0]) / least, 500.0))
            w.gap[e] = w.weights[CONTEXT, e] * (likelihood + _FLOOR)
            total += w.gap[e]
        step_context(g, total, rows, numbers, n, experts, w)
