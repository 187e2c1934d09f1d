"""A mixture of experts of different kinds that predict numbers: what it has learned, and the room for one instance."""

# T trees, E experts, F features, R rows of inputs

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeapps.stream.compiled.adwin import Windows, allocate_windows
from moeapps.stream.compiled.inputs import Layout
from moeapps.stream.compiled.jit import random_seed
from moeapps.stream.compiled.leaf_models import LeafModels, grow_leaf_models, new_leaf_models
from moeapps.stream.compiled.least_squares import LeastSquares, grown, new_least_squares
from moeapps.stream.compiled.mixture_state import MAX_EVENTS
from moeapps.stream.compiled.neighbours import Neighbours, grow_neighbours, new_neighbours
from moeapps.stream.compiled.number_gate import new_number_gate, new_number_gate_work, new_stack
from moeapps.stream.compiled.online_gate import Gate, GateWork, grow_gate
from moeapps.stream.compiled.perceptron import HIDDEN, Perceptrons, grow_perceptrons, new_perceptrons
from moeapps.stream.compiled.references import referable

__all__ = [
    "NUMBER_KINDS",
    "NumberMixture",
    "NumberSettings",
    "NumberWork",
    "first_of_each_number_kind",
    "grow_number_kinds",
    "new_number_kinds",
    "new_number_work",
]

MEANS = (1.0, 0.05, 0.005)
"""Share of a new target in the mean of the first expert of this kind, the second, and so on; 1 is the last target."""

LINEAR = (1e-6, 1e-4, 1e-8)
"""How much the weights of the first linear expert, the second, and so on may change per instance."""

QUADRATIC = (1e-6, 1e-4)
"""The same of linear experts on squares and products of the features."""

NETWORKS = (0.01,)
"""Learning rate of the networks."""

NEIGHBOURS = ((5, 500), (10, 2000))
"""Neighbours and window of the first expert of this kind, and so on."""

NUMBER_KINDS: dict[str, int | None] = {
    "tree": None,
    "mean": len(MEANS),
    "neighbours": len(NEIGHBOURS),
    "linear": len(LINEAR),
    "quadratic": len(QUADRATIC),
    "network": len(NETWORKS),
}
"""Kinds of experts for numbers in their order, and how many there can be of each; any number of trees."""

SQUARED = 16
"""Features, in the order in which they came, of which there are squares and products."""

_START, _CONSTANT = 10.0, 1e4
"""Uncertainty of the weights of linear models at the start, and of their constants."""


class NumberSettings(NamedTuple):
    """The settings of :class:`~moeapps.stream.config.DriftMoEConfig` that the loops need, as numbers."""

    n_experts: int  # T, trees
    means: int
    neighbours: int
    linear: int
    quadratic: int
    networks: int
    variant: int  # DATA
    gate: int  # AUTO, or the one way of mixing
    bagging: float  # rate of the Poisson weights of the trees; 0 gives weight 1
    drift: int  # FIXED, RESET, REPLACE
    drift_delta: float
    warning_delta: float
    window: int  # instances of the experts' recent errors
    archive: int  # 0


@referable
class NumberMixture(NamedTuple):
    """Everything that is learned besides the trees. Experts are in the order of :data:`NUMBER_KINDS`."""

    windows: Windows  # T for drift, then T for warnings
    recent: NDArray[np.float64]  # (E,) recent mean of the absolute error
    age: NDArray[np.float64]  # (E,) instances since the expert began
    moments: NDArray[np.float64]  # (F, 3) number of values, recent mean, recent variance
    scale: NDArray[np.float64]  # (4,) of the target: number, recent mean, recent variance, first value
    activation: NDArray[np.float64]  # (E,) sum of the weights that each expert had in predictions of learned instances
    counters: NDArray[np.int64]  # (3,) as in a Mixture
    events: NDArray[np.int64]  # (MAX_EVENTS, 3) instance, tree, WARN or RENEW
    rng: NDArray[np.uint64]
    leaves: LeafModels
    means: NDArray[np.float64]  # (M, 2) share of a new target, mean
    neighbours: Neighbours
    linear: LeastSquares
    quadratic: LeastSquares
    networks: Perceptrons
    stack: LeastSquares
    gate: Gate


@referable
class NumberWork(NamedTuple):
    """Room for one instance."""

    votes: NDArray[np.float64]  # (1, E, 1) predictions
    seen: NDArray[np.float64]  # (F,) features of what was predicted last
    voted: NDArray[np.int64]  # (4,) whether all of the room is as that left it, inputs, way of mixing, plain inputs
    returned: NDArray[np.float64]  # (E,) written to by the drift detection, and not read
    rows: NDArray[np.int64]  # (F + 1,) inputs that are not zero
    numbers: NDArray[np.float64]  # (F + 1,) their values
    plain_rows: NDArray[np.int64]  # (F + 1,) the same of the constant and the numbers only
    plain: NDArray[np.float64]  # (F + 1,)
    squared: NDArray[np.float64]  # products of each two of these
    opinions: NDArray[np.float64]  # (E + 1,) inputs of the stack
    all_rows: NDArray[np.int64]  # 0, 1, 2, ...
    gain: NDArray[np.float64]  # room of the linear models
    learn: NDArray[np.float64]  # (T,) weight with which a tree shall learn the instance
    action: NDArray[np.int64]  # (T,) KEEP, WARN, RENEW
    distance: NDArray[np.float64]  # (W,)
    near: NDArray[np.float64]  # (most neighbours,)
    who: NDArray[np.float64]  # (most neighbours,)
    hidden: NDArray[np.float64]  # (networks, H)
    gaps: NDArray[np.float64]  # (networks, 1)
    gradient: NDArray[np.float64]  # (2, H)
    gate: GateWork


def first_of_each_number_kind(s: NumberSettings) -> list[int]:
    """Place of the first expert of each kind, and the number E of all."""
    return np.cumsum([0, s.n_experts, s.means, s.neighbours, s.linear, s.quadratic, s.networks]).tolist()


def _products(layout: Layout) -> int:
    """Number of products of the constant and the features that are squared."""
    size = 1 + min(layout.features, SQUARED)
    return size * (size + 1) // 2


def _start(inputs: int) -> NDArray[np.float64]:
    start = np.full(inputs, _START)
    start[0] = _CONSTANT
    return start


def new_number_kinds(s: NumberSettings, layout: Layout, nodes: int, seed: int) -> NumberMixture:
    """A mixture that has learned nothing; ``nodes`` is how many the trees have room for."""
    experts = first_of_each_number_kind(s)[-1]
    means = np.zeros((s.means, 2))
    means[:, 0] = MEANS[: s.means]
    return NumberMixture(
        windows=allocate_windows(2 * s.n_experts),
        recent=np.zeros(experts),
        age=np.zeros(experts),
        moments=np.zeros((layout.features, 3)),
        scale=np.zeros(4),
        activation=np.zeros(experts),
        counters=np.zeros(3, dtype=np.int64),
        events=np.zeros((MAX_EVENTS, 3), dtype=np.int64),
        rng=random_seed(seed),
        leaves=new_leaf_models(nodes if s.n_experts else 0, layout.features),
        means=means,
        neighbours=new_neighbours(s.neighbours, layout.features, NEIGHBOURS, numbers=True),
        linear=new_least_squares(LINEAR[: s.linear], _start(layout.rows)),
        quadratic=new_least_squares(QUADRATIC[: s.quadratic], _start(_products(layout))),
        networks=new_perceptrons(s.networks, layout, 1, seed, NETWORKS),
        stack=new_stack(experts),
        gate=new_number_gate(experts, layout, s.gate),
    )


def grow_number_kinds(
    old: NumberMixture, s: NumberSettings, before: Layout, layout: Layout, nodes: int, seed: int
) -> NumberMixture:
    """The same mixture for more features and categories."""
    moments = np.zeros((layout.features, 3))
    moments[: len(old.moments)] = old.moments
    keys = layout.keys()
    places = np.searchsorted(keys, before.keys())
    gate = grow_gate(old.gate, before, layout, s.gate)
    return old._replace(
        moments=moments,
        leaves=grow_leaf_models(old.leaves, nodes if s.n_experts else 0, layout.features),
        neighbours=grow_neighbours(old.neighbours, layout.features),
        linear=grown(old.linear, _start(layout.rows), places),
        quadratic=grown(old.quadratic, _start(_products(layout)), np.arange(_products(before))),
        networks=grow_perceptrons(old.networks, before, layout, 1, seed),
        gate=gate,
    )


def new_number_work(m: NumberMixture, s: NumberSettings) -> NumberWork:
    """Room for one instance."""
    experts, features = len(m.recent), len(m.moments)
    most = int(m.neighbours.nearest.max(initial=1))
    longest = max(len(m.linear.start), len(m.quadratic.start), experts + 1)
    floats: Any = np.zeros
    return NumberWork(
        votes=floats((1, experts, 1)),
        seen=floats(features),
        voted=np.zeros(4, dtype=np.int64),
        returned=floats(experts),
        rows=np.zeros(features + 1, dtype=np.int64),
        numbers=floats(features + 1),
        plain_rows=np.zeros(features + 1, dtype=np.int64),
        plain=floats(features + 1),
        squared=floats(len(m.quadratic.start)),
        opinions=floats(experts + 1),
        all_rows=np.arange(longest),
        gain=floats(longest),
        learn=floats(s.n_experts),
        action=np.zeros(s.n_experts, dtype=np.int64),
        distance=floats(len(m.neighbours.labels)),
        near=floats(most),
        who=floats(most),
        hidden=floats((s.networks, HIDDEN)),
        gaps=floats((s.networks, 1)),
        gradient=floats((2, HIDDEN)),
        gate=new_number_gate_work(experts),
    )
