"""What a mixture has learned besides its experts, its settings, and the buffers for one instance."""

# E experts, C classes, F features, R inputs of the router, B instances per step of the router

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeapps.stream.compiled.adwin import Windows, allocate_windows
from moeapps.stream.compiled.jit import entry, random_seed
from moeapps.stream.compiled.network import (
    Network,
    add_inputs,
    make_room,
    new_network,
    resize,
)
from moeapps.stream.compiled.references import referable

__all__ = [
    "Mixture",
    "MixtureSettings",
    "Work",
    "grow_mixture",
    "make_work",
    "new_mixture",
    "num_inputs",
    "num_outputs",
]

DATA, TASK = range(2)
"""Variants: E experts that know all classes, or one binary expert per class."""

TOP, MIX, ROUTER = range(3)
"""What predicts: the expert with the largest weight, all experts by weight, or the router's own class probabilities."""

ALL, TOP_K = range(2)
"""Which experts learn an instance."""

RAW, ENRICHED = range(2)
"""What the router sees: features as they are, or standardised ones and the experts' recent accuracies."""

FIXED, RESET, REPLACE = range(3)
"""What follows an alarm: nothing, a new expert, or the background tree that was grown since the warning."""

KEEP, WARN, RENEW = range(3)
"""What is to be done with an expert: nothing, start a background tree, replace it."""

WAITING, INSTANCES, EVENTS = range(3)
"""Places in ``Mixture.counters``: instances that wait for the router's next step, instances learned, events so far."""

NEWCOMER = 10.0
"""Prior of a new expert's recent accuracy: the mean of all experts, with the weight of this many instances."""

MAX_EVENTS = 1024
"""Events that are remembered; older ones are overwritten."""


class MixtureSettings(NamedTuple):
    """The settings of :class:`~moeapps.stream.config.DriftMoEConfig` that the loops need, as numbers."""

    n_experts: int  # E; in the task variant that is the number of classes
    variant: int  # DATA, TASK
    top_k: int
    temperature: float
    predict_with: int  # TOP, MIX, ROUTER
    use_router: bool  # whether the router weights the experts; else their recent accuracy does
    blend: float  # how sharply router and pool are weighted by their recent accuracy; 0 leaves the router out
    learn_with: int  # ALL, TOP_K
    bagging: float  # rate of the Poisson weights; 0 gives weight 1
    drift: int  # FIXED, RESET, REPLACE
    drift_delta: float
    warning_delta: float
    window: int  # instances of the experts' recent accuracy
    blend_window: int  # instances of the recent accuracies of pool and router
    router_inputs: int  # ENRICHED, RAW
    router_dropout: float
    router_lr: float
    router_period: int  # instances per step of the router


@referable
class Mixture(NamedTuple):
    """Everything that is learned besides the experts."""

    network: Network
    windows: Windows  # E for drift, then E for warnings
    recent: NDArray[np.float64]  # (E,) share of recent instances that an expert got right
    age: NDArray[np.float64]  # (E,) instances since the expert began
    pool_and_router_accuracy: NDArray[np.float64]  # (2,) recent accuracy of the pool, and of the router as a classifier
    moments: NDArray[np.float64]  # (F, 3) number, mean and squared deviations of each feature
    scale: NDArray[np.float64]  # (3,) of the target: number, mean, squared deviations; for numbers only
    error: NDArray[np.float64]  # (1,) running median of the experts' absolute errors; for numbers only
    batch_x: NDArray[np.float32]  # (B, R)
    batch_y: NDArray[np.float32]  # (B, outputs)
    activation: NDArray[np.float64]  # (E,) sum of the weights that each expert had in predictions of learned instances
    counters: NDArray[np.int64]
    events: NDArray[np.int64]  # (MAX_EVENTS, 3) instance, expert, WARN or RENEW
    rng: NDArray[np.uint64]


@referable
class Work(NamedTuple):
    """Room for one instance."""

    votes: NDArray[np.float64]  # (E, C): class probabilities; (E, 2) in the task variant; (E, 1) for numbers
    inputs: NDArray[np.float32]  # (R,)
    logits: NDArray[np.float32]  # (outputs,)
    weights: NDArray[np.float64]  # (E,) of the experts in the prediction, summing to 1
    mixed: NDArray[np.float64]  # (C,) the prediction: class probabilities, or one number
    own: NDArray[np.float64]  # (C,) the router's own class probabilities
    predictions: NDArray[np.int64]  # (2,) classes that the pool and the router predict
    right: NDArray[np.float64]  # (E,) whether the expert was right
    error: NDArray[np.float64]  # (E,) in [0, 1]: what drift is seen by
    learn: NDArray[np.float64]  # (E,) weight with which the expert shall learn the instance
    action: NDArray[np.int64]  # (E,) KEEP, WARN, RENEW
    naive_bayes: NDArray[np.int64]  # (E,) class that the naive Bayes of the expert's leaf predicts
    scratch: NDArray[np.float64]  # (3, C) for the trees
    room: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]


def num_inputs(s: MixtureSettings, features: int) -> int:
    """Width R of the router's input."""
    return features + (s.n_experts if s.router_inputs == ENRICHED and s.variant == DATA else 0)


def num_outputs(s: MixtureSettings, classes: int) -> int:
    """Outputs of the router: one per expert, and one per class where it predicts classes itself (``blend``)."""
    return s.n_experts + (classes if s.blend > 0 and s.variant == DATA else 0)


def new_mixture(s: MixtureSettings, features: int, classes: int, hidden: tuple[int, int], seed: int) -> Mixture:
    """A mixture that has learned nothing."""
    inputs, outputs = num_inputs(s, features), num_outputs(s, classes)
    network = new_network(inputs, hidden, outputs, np.random.default_rng([seed, features, outputs]))
    return _empty(s, features, network, seed)


def _empty(s: MixtureSettings, features: int, network: Network, seed: int) -> Mixture:
    inputs, outputs = int(network.sizes[0]), int(network.sizes[3])
    return Mixture(
        network=network,
        windows=allocate_windows(2 * s.n_experts),
        recent=np.full(s.n_experts, 0.5),
        age=np.zeros(s.n_experts),
        pool_and_router_accuracy=np.zeros(2),
        moments=np.zeros((features, 3)),
        scale=np.zeros(3),
        error=np.zeros(1),
        batch_x=np.zeros((s.router_period, inputs), dtype=np.float32),
        batch_y=np.zeros((s.router_period, outputs), dtype=np.float32),
        activation=np.zeros(s.n_experts),
        counters=np.zeros(3, dtype=np.int64),
        events=np.zeros((MAX_EVENTS, 3), dtype=np.int64),
        rng=random_seed(seed),
    )


def grow_mixture(old: Mixture, s: MixtureSettings, features: int, classes: int, seed: int) -> Mixture:
    """The same mixture for more features and classes (and experts, in the task variant)."""
    inputs, outputs = num_inputs(s, features), num_outputs(s, classes)
    known = len(old.moments)
    if outputs == old.network.sizes[3]:
        network = add_inputs(
            old.network, features - known, lambda i: np.random.PCG64([seed, known + i, outputs])
        )  # fmt: skip
    else:
        network = resize(old.network, inputs, outputs, np.random.default_rng([seed, features, outputs]))
    fresh = _empty(s, features, network, seed)
    windows = fresh.windows
    before, now = len(old.recent), s.n_experts
    for name in Windows._fields:
        source, target = getattr(old.windows, name), getattr(windows, name)
        target[:before] = source[:before]
        target[now : now + before] = source[before:]
    for name in ("recent", "age", "moments", "activation", "batch_x", "batch_y"):
        source, target = getattr(old, name), getattr(fresh, name)
        target[tuple(slice(size) for size in source.shape)] = source
    return old._replace(
        network=network,
        windows=windows,
        **{name: getattr(fresh, name) for name in ("recent", "age", "moments", "activation", "batch_x", "batch_y")},
    )


@entry
def make_work(m, s, votes, classes):  # type: ignore[no-untyped-def]
    """Room for an instance with ``votes`` numbers per expert."""
    experts = s.n_experts
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
