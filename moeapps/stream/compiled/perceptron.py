"""Small neural networks as experts: one hidden layer of ReLU units, softmax, a step of Adam per instance.

Adam (Kingma and Ba 2015) is lazy in the first layer: the weights of an input that an instance lacks are left alone.
"""

# M experts, R rows of inputs, H hidden units, C classes

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeapps.stream.compiled.inputs import Layout, move_rows
from moeapps.stream.compiled.jit import fill, kernel
from moeapps.stream.compiled.linear import softmax
from moeapps.stream.compiled.references import referable

__all__ = [
    "NETWORKS",
    "Perceptrons",
    "grow_perceptrons",
    "learn_perceptrons",
    "new_perceptrons",
    "score_perceptrons",
    "step_perceptrons",
    "vote_perceptrons",
]

NETWORKS = (0.003,)
"""Learning rate of the experts of this kind."""

HIDDEN = 64
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8
_LIMIT = 0.3
"""Weights of the first layer begin uniformly between plus and minus this: Glorot's limit for two inputs."""


@referable
class Perceptrons(NamedTuple):
    """Weights of all experts of this kind, with Adam's two moments beside them."""

    first: NDArray[np.float64]  # (R, M, 3, H)
    second: NDArray[np.float64]  # (M, H + 1, 3, C), the last row is the bias
    steps: NDArray[np.int64]  # (M,)
    rate: NDArray[np.float64]  # (M,)


def _drawn(seed: int, keys: NDArray[np.uint64], number: int, width: int) -> NDArray[np.float64]:
    """``(len(keys), number, width)`` numbers in [-1, 1), each from its key and place only: rows may come in any order.

    They are hashes (the mix of SplitMix64), since a generator per row would take seconds where there are many.
    """
    base = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
    places = np.arange(number * width, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = base + keys[:, None] * np.uint64(0x9E3779B97F4A7C15) + places * np.uint64(0xD1B54A32D192ED03)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    z ^= z >> np.uint64(31)
    return ((z >> np.uint64(11)) * (2.0**-52) - 1.0).reshape(len(keys), number, width)


def new_perceptrons(
    number: int, layout: Layout, classes: int, seed: int, rates: tuple[float, ...] = NETWORKS
) -> Perceptrons:
    """The first ``number`` experts of ``rates``; the output layer begins at zero but for its random part."""
    first = np.zeros((layout.rows, number, 3, HIDDEN))
    first[:, :, 0] = _LIMIT * _drawn(seed, layout.keys(), number, HIDDEN)
    first[0, :, 0] = 0.0  # the bias
    second = np.zeros((number, HIDDEN + 1, 3, classes))
    drawn = _drawn(seed, np.arange(classes, dtype=np.uint64) + (np.uint64(1) << np.uint64(63)), number, HIDDEN)
    second[:, :HIDDEN, 0] = _LIMIT * drawn.transpose(1, 2, 0)
    return Perceptrons(first, second, np.zeros(number, dtype=np.int64), np.array(rates[:number]).reshape(number))


def grow_perceptrons(old: Perceptrons, before: Layout, layout: Layout, classes: int, seed: int) -> Perceptrons:
    """The same for more inputs and classes."""
    new = new_perceptrons(len(old.rate), layout, classes, seed, tuple(old.rate.tolist()))
    move_rows(old.first, new.first, before, layout)
    new.second[..., : old.second.shape[-1]] = old.second
    new.steps[:] = old.steps
    return new


@kernel
def vote_perceptrons(p, rows, numbers, n, classes, votes, hidden):  # type: ignore[no-untyped-def]
    """Fill the class probabilities ``(M, C)``, and the hidden units ``(M, H)``."""
    score_perceptrons(p, rows, numbers, n, classes, votes, hidden)
    for e in range(p.rate.shape[0]):
        softmax(votes[e], classes)


@kernel
def score_perceptrons(p, rows, numbers, n, outputs, scores, hidden):  # type: ignore[no-untyped-def]
    """Fill the outputs ``(M, C)`` of the last layer, and the hidden units ``(M, H)``."""
    units = hidden.shape[1]
    for e in range(p.rate.shape[0]):
        on = hidden[e]
        fill(on, units, 0.0)
        for i in range(n):
            weights = p.first[rows[i], e, 0]
            for h in range(units):
                on[h] += numbers[i] * weights[h]
        for c in range(outputs):
            scores[e, c] = p.second[e, units, 0, c]
        for h in range(units):
            on[h] = max(on[h], 0.0)
            if on[h] > 0.0:
                weights = p.second[e, h, 0]
                for c in range(outputs):
                    scores[e, c] += on[h] * weights[c]


@kernel
def _adam(place, gradient, step, spread, n):  # type: ignore[no-untyped-def]
    """Move n weights (row 0 of ``place``) by Adam; ``step`` and ``spread`` have its corrections for the start."""
    for i in range(n):
        place[1, i] += (1.0 - _BETA_1) * (gradient[i] - place[1, i])
        place[2, i] += (1.0 - _BETA_2) * (gradient[i] * gradient[i] - place[2, i])
        place[0, i] -= step * place[1, i] / (np.sqrt(place[2, i]) * spread + _EPSILON)


@kernel
def learn_perceptrons(p, rows, numbers, n, y, classes, votes, hidden, gradient):  # type: ignore[no-untyped-def]
    """A step of each expert after :func:`vote_perceptrons` of the same instance, whose ``votes`` are used up."""
    for e in range(p.rate.shape[0]):
        votes[e, y] -= 1.0  # the gradient of the log loss
    step_perceptrons(p, rows, numbers, n, classes, votes, hidden, gradient)


@kernel
def step_perceptrons(p, rows, numbers, n, outputs, gaps, hidden, gradient):  # type: ignore[no-untyped-def]
    """A step against the gradients ``gaps`` (M, C) of the loss by the outputs; ``gradient`` is ``(2, max(C, H))``."""
    units = hidden.shape[1]
    for e in range(p.rate.shape[0]):
        p.steps[e] += 1
        step = p.rate[e] / (1.0 - _BETA_1 ** p.steps[e])
        spread = 1.0 / np.sqrt(1.0 - _BETA_2 ** p.steps[e])
        on, back, forward = hidden[e], gradient[0], gradient[1]
        for h in range(units + 1):
            unit, total = on[h] if h < units else 1.0, 0.0
            weights = p.second[e, h, 0]
            if unit > 0.0:
                for c in range(outputs):
                    total += weights[c] * gaps[e, c]
                    forward[c] = unit * gaps[e, c]
                _adam(p.second[e, h], forward, step, spread, outputs)
            if h < units:
                back[h] = total
        for i in range(n):
            for h in range(units):
                forward[h] = numbers[i] * back[h]
            _adam(p.first[rows[i], e], forward, step, spread, units)
