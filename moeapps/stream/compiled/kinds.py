"""A mixture of experts of different kinds: what it has learned besides its trees, and the room for one instance."""

# T trees, E experts, F features, R rows of inputs, C classes

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeapps.stream.compiled.adwin import Windows, allocate_windows
from moeapps.stream.compiled.bayes import BAYES, Bayes, grow_bayes, new_bayes
from moeapps.stream.compiled.inputs import Layout
from moeapps.stream.compiled.jit import random_seed
from moeapps.stream.compiled.linear import LINEAR, Linear, grow_linear, new_linear
from moeapps.stream.compiled.mixture_state import MAX_EVENTS
from moeapps.stream.compiled.neighbours import (
    NEIGHBOURS,
    Neighbours,
    grow_neighbours,
    new_neighbours,
)
from moeapps.stream.compiled.online_gate import (
    Gate,
    GateWork,
    grow_gate,
    new_gate,
    new_gate_work,
)
from moeapps.stream.compiled.perceptron import (
    HIDDEN,
    NETWORKS,
    Perceptrons,
    grow_perceptrons,
    new_perceptrons,
)
from moeapps.stream.compiled.references import referable

__all__ = [
    "KINDS",
    "KindMixture",
    "KindSettings",
    "KindWork",
    "first_of_each_kind",
    "grow_kinds",
    "new_kinds",
    "new_work",
]

KINDS: dict[str, int | None] = {
    "tree": None,
    "bayes": len(BAYES),
    "neighbours": len(NEIGHBOURS),
    "linear": len(LINEAR),
    "network": len(NETWORKS),
}
"""Kinds of experts in their order, and how many there can be of each; any number of trees."""


class KindSettings(NamedTuple):
    """The settings of :class:`~moeapps.stream.config.DriftMoEConfig` that the loops need, as numbers."""

    n_experts: int  # T, trees
    bayes: int
    neighbours: int
    linear: int
    networks: int
    variant: int  # DATA
    gate: int  # AUTO, or the one way of mixing
    bagging: float  # rate of the Poisson weights of the trees; 0 gives weight 1
    drift: int  # FIXED, RESET, REPLACE
    drift_delta: float
    warning_delta: float
    window: int  # instances of the experts' recent accuracy
    archive: int  # A, retired trees that are kept


@referable
class KindMixture(NamedTuple):
    """Everything that is learned besides the trees. Experts are in the order of :data:`KINDS`."""

    windows: Windows  # T for drift, then T for warnings
    recent: NDArray[np.float64]  # (E,) share of recent instances that an expert got right
    age: NDArray[np.float64]  # (E,) instances since the expert began
    moments: NDArray[np.float64]  # (F, 3) number of values, recent mean, recent variance
    activation: NDArray[np.float64]  # (E,) sum of the weights that each expert had in predictions of learned instances
    counters: NDArray[np.int64]  # (3,) as in a Mixture
    events: NDArray[np.int64]  # (MAX_EVENTS, 3) instance, tree, WARN or RENEW
    rng: NDArray[np.uint64]
    bayes: Bayes
    neighbours: Neighbours
    linear: Linear
    networks: Perceptrons
    gate: Gate


@referable
class KindWork(NamedTuple):
    """Room for one instance, and what is kept of up to B."""

    # instances that trees have learned and the others have not
    votes: NDArray[np.float64]  # (B, E, C) class probabilities
    age: NDArray[np.float64]  # (B, T) of the trees
    renewed: NDArray[np.bool_]  # (B, T) whether a tree was replaced after an alarm
    came_back: NDArray[np.float64]  # (B, T) accuracy of a tree that came back from the archive, else NaN
    known: NDArray[np.int32]  # (Q,) number of categories that the others know; the trees may be ahead
    # one instance
    seen: NDArray[np.float64]  # (F,) features of what was predicted last
    voted: NDArray[np.int64]  # (3,) whether all of the room is still as that left it, number of inputs, way of mixing
    returned: NDArray[np.float64]  # (E,) the same as came_back
    rows: NDArray[np.int64]  # (F + 1,) inputs that are not zero
    numbers: NDArray[np.float64]  # (F + 1,) their values
    learn: NDArray[np.float64]  # (T,) weight with which a tree shall learn the instance
    action: NDArray[np.int64]  # (T,) KEEP, WARN, RENEW
    naive_bayes: NDArray[np.int64]  # (T,) class that the naive Bayes of the tree's leaf predicts
    scratch: NDArray[np.float64]  # (3, C) for the trees
    distance: NDArray[np.float64]  # (W,)
    near: NDArray[np.float64]  # (most neighbours,)
    who: NDArray[np.int64]  # (most neighbours,)
    hidden: NDArray[np.float64]  # (networks, H)
    gradient: NDArray[np.float64]  # (2, max(C, H))
    gate: GateWork


def first_of_each_kind(s: KindSettings) -> list[int]:
    """Place of the first expert of each kind, and the number E of all."""
    return np.cumsum([0, s.n_experts, s.bayes, s.neighbours, s.linear, s.networks]).tolist()


def new_kinds(s: KindSettings, layout: Layout, classes: int, seed: int) -> KindMixture:
    """A mixture that has learned nothing."""
    experts = first_of_each_kind(s)[-1]
    return KindMixture(
        windows=allocate_windows(2 * s.n_experts),
        recent=np.full(experts, 0.5),
        age=np.zeros(experts),
        moments=np.zeros((layout.features, 3)),
        activation=np.zeros(experts),
        counters=np.zeros(3, dtype=np.int64),
        events=np.zeros((MAX_EVENTS, 3), dtype=np.int64),
        rng=random_seed(seed),
        bayes=new_bayes(s.bayes, layout.features, layout.places, layout.values, classes),
        neighbours=new_neighbours(s.neighbours, layout.features),
        linear=new_linear(s.linear, layout, classes),
        networks=new_perceptrons(s.networks, layout, classes, seed),
        gate=new_gate(experts, layout, s.gate),
    )


def grow_kinds(
    old: KindMixture, s: KindSettings, before: Layout, layout: Layout, classes: int, seed: int
) -> KindMixture:
    """The same mixture for more features, categories and classes."""
    moments = np.zeros((layout.features, 3))
    moments[: len(old.moments)] = old.moments
    return old._replace(
        moments=moments,
        bayes=grow_bayes(old.bayes, layout.features, layout.places, layout.values, classes),
        neighbours=grow_neighbours(old.neighbours, layout.features),
        linear=grow_linear(old.linear, before, layout, classes),
        networks=grow_perceptrons(old.networks, before, layout, classes, seed),
        gate=grow_gate(old.gate, before, layout, s.gate),
    )


def new_work(m: KindMixture, s: KindSettings, votes: int, known: NDArray[np.int32], kept: int) -> KindWork:
    """Room for one instance of up to ``votes`` classes, and for what is kept of ``kept`` instances."""
    experts, features = len(m.recent), len(m.moments)
    most = int(m.neighbours.nearest.max(initial=1))
    floats: Any = np.zeros
    return KindWork(
        votes=floats((kept, experts, votes)),
        age=floats((kept, s.n_experts)),
        renewed=np.zeros((kept, s.n_experts), dtype=np.bool_),
        came_back=floats((kept, s.n_experts)),
        known=known.copy(),
        seen=floats(features),
        voted=np.zeros(3, dtype=np.int64),
        returned=floats(experts),
        rows=np.zeros(features + 1, dtype=np.int64),
        numbers=floats(features + 1),
        learn=floats(s.n_experts),
        action=np.zeros(s.n_experts, dtype=np.int64),
        naive_bayes=np.zeros(s.n_experts, dtype=np.int64),
        scratch=floats((3, votes)),
        distance=floats(len(m.neighbours.labels)),
        near=floats(most),
        who=np.zeros(most, dtype=np.int64),
        hidden=floats((s.networks, HIDDEN)),
        gradient=floats((2, max(votes, HIDDEN))),
        gate=new_gate_work(experts, votes),
    )
