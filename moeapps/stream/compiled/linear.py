"""Linear (multinomial logistic) models that learn online, by steps of AdaGrad or RMSprop on the log loss.

Experts of this kind differ in how quickly they learn and forget: with AdaGrad (Duchi et al. 2011) steps become smaller
the longer the stream is, with RMSprop (Tieleman and Hinton 2012) they do not.
"""

# L experts, R rows of inputs, C classes

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeapps.stream.compiled.inputs import Layout, move_rows
from moeapps.stream.compiled.jit import fill, kernel
from moeapps.stream.compiled.references import referable

__all__ = ["LINEAR", "Linear", "grow_linear", "learn_linear", "new_linear", "vote_linear"]

LINEAR = ((0.3, 0.0), (0.01, 0.001), (0.1, 0.001))
"""Learning rate of the first expert of this kind, the second, and so on, and the rate at which squared gradients are
averaged (RMSprop); 0 sums them (AdaGrad)."""

START = 1e-2
"""Squared gradient that every weight begins with."""


@referable
class Linear(NamedTuple):
    """Weights of all experts of this kind."""

    weights: NDArray[np.float64]  # (R, L, C)
    squares: NDArray[np.float64]  # (R, L, C)
    rate: NDArray[np.float64]  # (L, 2) learning rate, rate of the average


def new_linear(number: int, layout: Layout, classes: int) -> Linear:
    """The first ``number`` experts of :data:`LINEAR`."""
    shape = (layout.rows, number, classes)
    return Linear(np.zeros(shape), np.full(shape, START), np.array(LINEAR[:number]).reshape(number, 2))


def grow_linear(old: Linear, before: Layout, layout: Layout, classes: int) -> Linear:
    """The same for more inputs and classes."""
    new = new_linear(len(old.rate), layout, classes)
    move_rows(old.weights, new.weights, before, layout)
    move_rows(old.squares, new.squares, before, layout)
    return new


@kernel
def softmax(scores, n):  # type: ignore[no-untyped-def]
    """Turn n scores into probabilities, in place."""
    best = -np.inf
    for c in range(n):
        best = max(best, scores[c])
    total = 0.0
    for c in range(n):
        scores[c] = np.exp(scores[c] - best)
        total += scores[c]
    for c in range(n):
        scores[c] /= total


@kernel
def descend(weights, squares, gradient, rate, memory, n):  # type: ignore[no-untyped-def]
    """A step against n gradients, each divided by the root of its squares."""
    for i in range(n):
        square = gradient[i] * gradient[i]
        squares[i] += memory * (square - squares[i]) if memory > 0.0 else square
        weights[i] -= rate * gradient[i] / np.sqrt(squares[i])


@kernel
def vote_linear(m, rows, numbers, n, classes, votes):  # type: ignore[no-untyped-def]
    """Fill the class probabilities ``(L, C)``."""
    for e in range(m.rate.shape[0]):
        fill(votes[e], classes, 0.0)
        for i in range(n):
            weights = m.weights[rows[i], e]
            for c in range(classes):
                votes[e, c] += numbers[i] * weights[c]
        softmax(votes[e], classes)


@kernel
def learn_linear(m, rows, numbers, n, y, classes, votes, gradient):  # type: ignore[no-untyped-def]
    """A step of each expert; ``votes`` are what :func:`vote_linear` gave for the same instance."""
    for e in range(m.rate.shape[0]):
        for i in range(n):
            for c in range(classes):
                gradient[c] = (votes[e, c] - (1.0 if c == y else 0.0)) * numbers[i]
            descend(m.weights[rows[i], e], m.squares[rows[i], e], gradient, m.rate[e, 0], m.rate[e, 1], classes)
