"""Checks of arrays that all mixtures of streams have in common, and those of experts of several kinds."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeapps.core.errors import FileFormatError
from moeapps.stream.compiled.adwin import BUCKETS, COUNT, ROWS, TICK, VARIATION, Windows
from moeapps.stream.compiled.archive import Archive, new_archive
from moeapps.stream.compiled.kind_engine import KindEngine
from moeapps.stream.compiled.kinds import KindMixture
from moeapps.stream.compiled.mixture_state import EVENTS, INSTANCES, MAX_EVENTS, RENEW, WARN
from moeapps.stream.compiled.number_engine import NumberEngine
from moeapps.stream.compiled.number_kinds import NumberMixture
from moeapps.stream.compiled.online_gate import AUTO, WAYS, Gate

__all__ = ["MOST", "check_events", "check_kinds_of_engine", "check_shape", "check_windows", "require", "within"]

Array = NDArray[Any]

MOST = 2**53
"""Largest count: beyond it float64 does not count by ones."""


def require(good: Any, what: str) -> None:
    """Refuse a file unless all of this holds; ``what`` is what is wrong with it.

    Raises
    ------
    FileFormatError
        "its" and what is wrong.
    """
    if not np.all(good):
        raise FileFormatError(f"its {what}")


def check_shape(array: Array, shape: tuple[int, ...], name: str) -> None:
    """Refuse an array of another shape."""
    if array.shape != shape:
        raise FileFormatError(f"its {name} has shape {array.shape}, expected {shape}")


def within(values: Array, low: int, high: int) -> Any:
    """Whether low <= value < high, for each."""
    return (values >= low) & (values < high)


def check_windows(w: Windows, number: int) -> None:
    """Refuse ADWIN windows that no stream makes."""
    filled = w.filled
    check_shape(filled, (number, ROWS), "windows.filled")
    for name in ("sums", "variations"):
        check_shape(getattr(w, name), (number, ROWS, BUCKETS + 1), f"windows.{name}")
    check_shape(w.whole, (number, 4), "windows.whole")
    require(within(filled, 0, BUCKETS + 1), "windows have impossible buckets")
    require(filled[:, ROWS - 1] == 0, "windows are longer than any stream")
    require(w.whole[:, COUNT] == (filled * 2.0 ** np.arange(ROWS)).sum(axis=1), "windows do not hold what they count")
    require((w.whole[:, VARIATION] >= 0) & (w.whole[:, TICK] >= 0), "windows are impossible")
    require(w.whole[:, TICK] < MOST, "windows are impossible")


def check_events(m: Any, experts: int) -> None:
    """Refuse events that are of no expert of these, of no kind, or of the future."""
    events = m.events[: min(int(m.counters[EVENTS]), MAX_EVENTS)]
    require(within(events[:, 1], 0, max(experts, 1)), "events are of experts that are not there")
    require(within(events[:, 2], WARN, RENEW + 1), "events are of no kind")
    require(within(events[:, 0], 0, int(m.counters[INSTANCES]) + 1), "events are of the future")


def check_kinds_of_engine(engine: KindEngine) -> None:
    """Refuse what experts of several kinds and their gate could not have learned; the trees have been checked before.

    Raises
    ------
    FileFormatError
        Saying what is impossible.
    """
    s, m = engine.settings, engine.mixture
    made: Any = m  # a KindMixture, or a NumberMixture
    kind = engine.pool.state.trees.kind[: engine.n_features]
    require(np.array_equal(kind[kind >= 0], np.arange((kind >= 0).sum())), "categorical features are not in order")
    engine.resize(engine.n_features, engine.n_classes)  # an empty mixture of the shapes that the trees ask for
    empty, engine.mixture = engine.mixture, m
    for name, like in empty._asdict().items():
        if isinstance(like, np.ndarray):
            check_shape(getattr(m, name), like.shape, f"mixture.{name}")
        elif name != "windows":
            for field, array in like._asdict().items():
                check_shape(getattr(getattr(m, name), field), array.shape, f"mixture.{name}.{field}")
    check_windows(m.windows, 2 * s.n_experts)
    require((m.age >= 0) & (m.activation >= 0), "ages and activations are negative")
    require((m.moments[:, 0] >= 0) & (m.moments[:, 2] >= 0), "moments of features are negative")
    require(within(m.counters, 0, MOST), "counters are negative")
    check_events(m, s.n_experts)
    require(within(m.neighbours.seen, 0, MOST), "number of neighbours is impossible")
    for name in ("nearest", "window"):
        same = getattr(m.neighbours, name) == getattr(empty.neighbours, name)
        require(same, f"{name} of neighbours is not that of its arguments")
    for part in ("bayes", "linear", "quadratic", "stack", "networks"):
        if part in m._fields:
            same = getattr(m, part).rate == getattr(empty, part).rate
            require(same, f"rates of {part} are not those of its arguments")
    require(within(m.networks.steps, 0, MOST), "number of steps of a network is impossible")
    for weights in (m.networks.first[:, :, 2], m.networks.second[:, :, 2]):
        require(weights >= 0, "moments of a network are negative")
    _check_gate(engine, m.gate)
    if isinstance(engine, NumberEngine):
        _check_numbers(made, empty)
    else:
        _check_classes(made, engine.n_classes)
    if engine.archive is not None:
        _check_archive(engine, engine.archive)


def _check_gate(engine: KindEngine, gate: Gate) -> None:
    """Refuse weights, losses and counts that no gate has."""
    for name in ("stack_squares", "context_squares", "sure_squares"):
        require(getattr(gate, name) > 0, "squared gradients of the gate are not positive")
    require((gate.stack >= 0) & np.isfinite(gate.stack), "weights of the stack are negative")
    # of one class the probabilities may sum up to a little more than 1
    require((gate.loss >= -1e-9) & (gate.gap_squares >= 0), "losses of the gate are negative")
    require(within(gate.answered, 0, MOST), "counts of the gate are impossible")
    way, learned = gate.state.tolist()
    own = engine.settings.gate
    require(0 <= way < len(WAYS) if own == AUTO else way == own, "gate answers in no way of its own")
    instances = engine.mixture.counters[INSTANCES]
    require(learned == gate.answered.sum() == instances, "gate has learned another number of instances")


def _check_classes(m: KindMixture, classes: int) -> None:
    """Refuse what experts that predict classes could not have learned."""
    require((m.recent >= -1e-9) & (m.recent <= 1 + 1e-9), "recent accuracies are not in 0..1")
    for name in ("weight", "seen", "variance", "precision"):
        require(getattr(m.bayes, name) >= 0, f"{name} of naive Bayes is negative")
    require((m.bayes.share >= 0) & (m.bayes.share <= 1 + 1e-9), "frequencies of categories are not in 0..1")
    require(within(m.neighbours.labels, 0, max(classes, 1)), "neighbours have labels that are not there")
    require(m.linear.squares > 0, "squared gradients are not positive")


def _check_numbers(m: NumberMixture, empty: Any) -> None:
    """Refuse what experts that predict numbers could not have learned; ``empty`` have learned nothing."""
    require(m.recent >= 0, "recent errors are negative")
    require(m.scale[[0, 2]] >= 0, "moments of the target are negative")
    require(m.means[:, 0] == empty.means[:, 0], "shares of means are not those of its arguments")
    require((m.leaves.start == empty.leaves.start), "uncertainty of leaves is not that of its arguments")
    for name in ("variances", "error", "compared"):
        require(getattr(m.leaves, name) >= 0, f"{name} of leaves is negative")
    for part in ("linear", "quadratic", "stack"):
        model, like = getattr(m, part), getattr(empty, part)
        require(model.start == like.start, f"uncertainty of {part} is not that of its arguments")
        require(model.error >= 0, f"errors of {part} are negative")
        whole = model.covariance.shape[1] == model.covariance.shape[2]
        variances = np.diagonal(model.covariance, axis1=1, axis2=2) if whole else model.covariance
        require(variances >= 0, f"variances of {part} are negative")


def _check_archive(engine: KindEngine, a: Archive) -> None:
    """Refuse archived trees that are not there, and returns that are impossible."""
    s, now = engine.settings, int(engine.mixture.counters[INSTANCES])
    for name, like in new_archive(s.n_experts, s.archive, engine.n_classes)._asdict().items():
        check_shape(getattr(a, name), like.shape, f"archive.{name}")
    state = engine.pool.state
    rooted = state.trees.root[state.place[len(state.place) - s.archive :]] >= 0
    require(rooted == (a.retired >= 0), "archived trees are not those that its archive names")
    require(within(a.retired, -1, now + 1), "archived trees are of the future")
    require(within(a.origin, 0, s.n_experts), "archived trees were no experts")
    for recent in (a.short, a.now):
        require((recent[:, 0] >= -1e-9) & (recent[:, 0] <= 1 + 1e-9), "recent accuracies of trees are not in 0..1")
        require((recent[:, 1] >= -1) & (recent[:, 1] <= now), "recent accuracies of trees are of the future")
    for name in ("steady", "accuracy", "where"):
        require((getattr(a, name) >= -1e-9) & (getattr(a, name) <= 1 + 1e-9), "accuracies of trees are not in 0..1")
    require(a.share >= 0, "weights of classes are negative")
    require(within(a.counters, 0, MOST), "number of returns is impossible")
