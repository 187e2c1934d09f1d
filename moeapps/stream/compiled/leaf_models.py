"""Linear models in the leaves of regression trees: a leaf predicts its mean, or its model where that was better.

The model of a leaf is one of :mod:`~moeapps.stream.compiled.least_squares` with the diagonal of the covariance, on the
standardised numbers of an instance. Children begin with the weights of their parent (FIMT-DD, Ikonomovska et al. 2011,
section 4.3), but with the uncertainty of the start, so they soon have their own. The errors of mean and model are
compared in each leaf, recent ones with more weight.
"""

# N nodes, F features, R = 1 + F inputs: the constant and the numbers

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeapps.stream.compiled import regression_trees, trees
from moeapps.stream.compiled.jit import copy_row, fill, kernel
from moeapps.stream.compiled.least_squares import limited, predict_linear, step_diagonal
from moeapps.stream.compiled.references import referable
from moeapps.stream.compiled.regression_trees import MEAN, N

__all__ = ["LeafModels", "clear_leaf", "grow_leaf_models", "learn_tree_of_models", "new_leaf_models", "predict_leaf"]

RATE = 1e-4
"""How much the weights may change per instance, see :mod:`~moeapps.stream.compiled.least_squares`."""

_MEMORY = 50.0
"""Weight over which the errors of mean and model are averaged."""


@referable
class LeafModels(NamedTuple):
    """One model per node of the arena; those of inner nodes are not used."""

    weights: NDArray[np.float64]  # (N, R)
    variances: NDArray[np.float64]  # (N, R)
    start: NDArray[np.float64]  # (R,) variances that a root begins with
    error: NDArray[np.float64]  # (N, 2) instances learned, recent mean of the absolute error, of the model
    compared: NDArray[np.float64]  # (N, 2) recent absolute errors of mean and model, by weight


def new_leaf_models(nodes: int, features: int) -> LeafModels:
    """Models that have learned nothing."""
    shape = (nodes, 1 + features)
    return LeafModels(np.zeros(shape), np.ones(shape), np.ones(shape[1]), np.zeros((nodes, 2)), np.zeros((nodes, 2)))


def grow_leaf_models(old: LeafModels, nodes: int, features: int) -> LeafModels:
    """The same for more nodes and features."""
    new = new_leaf_models(nodes, features)
    for name in ("weights", "variances", "error", "compared"):
        source = getattr(old, name)
        getattr(new, name)[: source.shape[0], : source.shape[1]] = source
    return new


@kernel
def clear_leaf(m, node):  # type: ignore[no-untyped-def]
    """Let a new root, or a child, begin anew."""
    fill(m.weights[node], m.start.shape[0], 0.0)
    copy_row(m.start, m.variances[node], m.start.shape[0])
    for i in range(2):
        m.error[node, i] = 0.0
        m.compared[node, i] = 0.0


@kernel
def predict_leaf(t, m, node, x, rows, numbers, n):  # type: ignore[no-untyped-def]
    """Prediction of a leaf, NaN where it has seen nothing."""
    mean = regression_trees.predict(t, node, x)
    if m.compared[node, 1] < m.compared[node, 0]:
        return mean + predict_linear(m.weights[node], rows, numbers, n)
    return mean


@kernel
def learn_tree_of_models(t, settings, m, tree, x, y, weight, rows, numbers, n, rng):  # type: ignore[no-untyped-def]
    """Let a tree and the model of its leaf learn an instance; ``rows`` are the constant and numbers only."""
    node = trees.leaf_of(t, tree, x)
    seen = t.counts[node, N]
    if seen > 0.0:
        gap = y - t.counts[node, MEAN]
        error = gap - predict_linear(m.weights[node], rows, numbers, n)
        rate = max(weight / (seen + weight), 1.0 - (1.0 - 1.0 / _MEMORY) ** weight)
        m.compared[node, 0] += rate * (abs(gap) - m.compared[node, 0])
        m.compared[node, 1] += rate * (abs(error) - m.compared[node, 1])
        error = limited(error, m.error[node])
        step_diagonal(m.weights[node], m.variances[node], m.start, RATE, error, weight, rows, numbers, n)
    before = t.counts[node, MEAN]
    split = regression_trees.learn(t, settings, tree, x, y, weight, rng)
    # the model is of what the mean leaves over, so it makes up for a mean that has moved
    m.weights[node, 0] += before - t.counts[node, MEAN] if seen > 0.0 else 0.0
    if split:
        for side in range(2):
            child = t.children[node, side]
            clear_leaf(m, child)
            copy_row(m.weights[node], m.weights[child], m.start.shape[0])
            m.weights[child, 0] += t.counts[node, MEAN] - t.counts[child, MEAN]
