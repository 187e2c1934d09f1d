"""river's metrics by name, over everything and over a window, with a state that can be written to a file.

Names are those of ``river.metrics``. A metric of two classes takes the label that is positive: ``F1=up``.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, Self

from river import metrics
from river.metrics.base import BinaryMetric, ClassificationMetric, RegressionMetric

from moeapps.core.errors import ConfigError
from moeapps.core.labels import value_from_json, value_to_json
from moeapps.core.tabledata.cells import BOOLS, number_key
from moeapps.registry import nearest

__all__ = ["CLASS_METRICS", "NUMBER_METRICS", "NamedMetrics", "is_positive"]

CLASS_METRICS = (
    "Accuracy", "BalancedAccuracy", "CohenKappa", "CrossEntropy", "F1", "GeometricMean", "Jaccard", "LogLoss", "MCC",
    "MacroF1", "MacroJaccard", "MacroPrecision", "MacroRecall", "MicroF1", "MicroJaccard", "MicroPrecision",
    "MicroRecall", "Precision", "ROCAUC", "Recall", "WeightedF1", "WeightedJaccard", "WeightedPrecision",
    "WeightedRecall",
)  # fmt: skip
"""Metrics of classifiers."""

NUMBER_METRICS = ("MAE", "MAPE", "MSE", "R2", "RMSE", "SMAPE")
"""Metrics of regressors. river's RMSLE is left out: it cannot forget what leaves a window."""

_POSITIVE = ("1", "True", "true", "yes")
"""Labels that are positive where none was named."""

_DIGITS = 12
"""Digits that are kept: river sums over sets of labels, whose order differs between processes."""


class NamedMetrics:
    """Several metrics, updated together.

    Parameters
    ----------
    names : sequence of str
        Names, of :data:`CLASS_METRICS` or :data:`NUMBER_METRICS`; those of two classes with ``=label`` for the positive
        one, else the labels 1, true and yes are positive.
    window : int
        Instances in the window.
    numbers : bool, default False
        Whether the model predicts numbers.

    Raises
    ------
    ConfigError
        If there is no such metric, or it is of the other kind, or a name comes twice.

    Examples
    --------
    >>> found = NamedMetrics(["Accuracy", "F1=up"], window=2)
    >>> for truth, prediction in [("up", "down"), ("up", "up"), ("down", "down")]:
    ...     found.update(truth, prediction)
    >>> {name: round(value, 3) for name, value in found.as_dict().items()}
    {'Accuracy': 0.667, 'F1=up': 0.667}
    >>> found.windowed()
    {'Accuracy': 1.0, 'F1=up': 1.0}
    """

    def __init__(self, names: Sequence[str], window: int, numbers: bool = False) -> None:
        if twice := [name for name in names if list(names).count(name) > 1]:
            raise ConfigError(f"--metric {twice[0]} is given twice")
        self._positive = {name: _checked(name, numbers) for name in names}
        self._total = {name: _make(name) for name in names}
        # river's Rolling, of which versions differ in what they take and cannot be stored
        self._recent = {name: _make(name) for name in names}
        self._window: dict[str, deque[tuple[Any, Any]]] = {name: deque() for name in names}
        self._size = window
        self.needs_probabilities = any(_by_probability(metric) for metric in self._total.values())

    def __len__(self) -> int:
        return len(self._total)

    @property
    def positive(self) -> dict[str, tuple[str, ...]]:
        """Labels that are positive, of each metric of two classes."""
        return {name: labels for name, labels in self._positive.items() if labels is not None}

    def update(self, truth: Any, prediction: Any, probabilities: dict[Any, float] | None = None) -> None:
        """Count one instance. One without a prediction, or without probabilities where they are needed, is ignored."""
        if prediction is None or (isinstance(prediction, float) and math.isnan(prediction)):
            return
        for name, metric in self._total.items():
            positive = self._positive[name]
            given: tuple[Any, Any] = (truth, prediction)
            if _by_probability(metric):
                if not probabilities:
                    continue
                given = (truth, probabilities)
                if positive is not None:
                    share = sum(value for label, value in probabilities.items() if is_positive(label, positive))
                    given = (is_positive(truth, positive), float(share))
            elif positive is not None:
                given = (is_positive(truth, positive), is_positive(prediction, positive))
            metric.update(*given)
            self._recent[name].update(*given)
            self._window[name].append(given)
            if len(self._window[name]) > self._size:
                self._recent[name].revert(*self._window[name].popleft())

    def merge(self, other: Self) -> None:
        """Add the metrics of another stream: confusion matrices, sums and means over everything. Windows stay apart."""
        for name, metric in self._total.items():
            _merge(metric, other._total[name])

    def as_dict(self) -> dict[str, float]:
        """Metrics of everything, by name."""
        return {name: _value(metric) for name, metric in self._total.items()}

    def windowed(self) -> dict[str, float]:
        """Metrics of the window, by name."""
        return {name: _value(metric) for name, metric in self._recent.items()}

    def state(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {
            name: {
                "total": _state(self._total[name]),
                "recent": _state(self._recent[name]),
                "window": [
                    [_state(part) if isinstance(part, dict) else value_to_json(part) for part in pair]
                    for pair in self._window[name]
                ],
            }
            for name in self._total
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state`; metrics that it lacks begin anew."""
        for name, saved in state.items():
            if name not in self._total:
                continue
            _restore(self._total[name], saved["total"])
            _restore(self._recent[name], saved["recent"])
            self._window[name] = deque(
                (value_from_json(truth), _mapping(given) if isinstance(given, dict) else value_from_json(given))
                for truth, given in saved["window"]
            )
            while len(self._window[name]) > self._size:  # the window may have been made shorter
                self._recent[name].revert(*self._window[name].popleft())


def is_positive(label: Any, positive: Sequence[str]) -> bool:
    """Whether a label is one of those that were named: 1, 1.0 and "1" are one label, and so are True and "true"."""
    if isinstance(label, str):
        return label in positive
    if isinstance(label, bool):
        return any(BOOLS.get(name) is label for name in positive)
    if isinstance(label, int) and label.bit_length() > 1000:  # of which Python may refuse to write the digits
        return False
    text = str(label)
    if text in positive:
        return True
    key = number_key(text) if isinstance(label, int | float) else None
    return key is not None and any(number_key(name) == key for name in positive)


def _checked(name: str, numbers: bool) -> tuple[str, ...] | None:
    """The positive labels of a metric of two classes, None for another one."""
    known, others = (NUMBER_METRICS, CLASS_METRICS) if numbers else (CLASS_METRICS, NUMBER_METRICS)
    base, equals, positive = name.partition("=")
    if base in others:
        what = "a regressor has" if numbers else "a classifier has"
        raise ConfigError(f"--metric {name}: {what} {', '.join(known)}")
    if base not in known:
        folded = {other.casefold(): other for other in known}
        guess = folded.get(base.casefold()) or nearest(base, list(known))
        hint = f"did you mean {guess!r}?" if guess else f"known are {', '.join(known)}"
        raise ConfigError(f"--metric {name}: unknown; {hint}")
    binary = issubclass(getattr(metrics, base), BinaryMetric)
    if equals and not binary:
        raise ConfigError(f"--metric {name}: {base} has no positive label; leave '={positive}' out")
    if not binary:
        return None
    return (positive,) if equals else _POSITIVE


def _make(name: str) -> ClassificationMetric | RegressionMetric:
    return getattr(metrics, name.partition("=")[0])()


def _by_probability(metric: Any) -> bool:
    return isinstance(metric, ClassificationMetric) and not metric.requires_labels


def _value(metric: Any) -> float:
    try:
        return round(float(metric.get()), _DIGITS)
    except ZeroDivisionError:  # before any instance
        return math.nan


def _merge(target: Any, other: Any) -> None:
    """Add what a metric has counted to another one, in place: some metrics share their confusion matrix with parts."""
    for matrix, more in _matrices(target, other):
        for truth, row in more.data.items():
            for prediction, count in row.items():
                matrix.data[truth][prediction] += count
        for sums in ("sum_row", "sum_col"):
            for label, count in getattr(more, sums).items():
                getattr(matrix, sums)[label] += count
        for total in ("n_samples", "total_weight", "_total_true_positives"):
            setattr(matrix, total, getattr(matrix, total) + getattr(more, total))
    for name in ("_mean", "_y_var", "_total_sum_of_squares", "_residual_sum_of_squares"):  # river's add as they should
        value = getattr(other, name, None)
        if value is None:
            continue
        if getattr(getattr(value, "mean", value), "n", 1):  # river divides by the number
            setattr(target, name, getattr(target, name) + value)


def _matrices(target: Any, other: Any) -> list[tuple[Any, Any]]:
    if hasattr(target, "cms"):
        return list(zip(target.cms, other.cms, strict=True))
    return [(target.cm, other.cm)] if hasattr(target, "cm") else []


def _state(value: Any) -> Any:
    """A metric's attributes as JSON values; pickle would run what is in the file."""
    if isinstance(value, dict):
        return {"pairs": [[value_to_json(key), _state(entry)] for key, entry in value.items()]}
    if isinstance(value, list | tuple | deque):
        return [_state(entry) for entry in value]
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    if isinstance(value, set | frozenset):
        return None  # what the constructor was given
    return {"attributes": {name: _state(entry) for name, entry in vars(value).items()}}


def _restore(target: Any, state: Any) -> None:
    """Set the attributes of a metric that was made anew."""
    for name, saved in state["attributes"].items():
        current = getattr(target, name)
        if isinstance(saved, list):
            for entry, part in zip(current, saved, strict=True):
                if isinstance(part, dict):
                    _restore(entry, part)
        elif not isinstance(saved, dict):
            if saved is not None:
                setattr(target, name, saved)
        elif "pairs" in saved:
            _fill(current, saved)
        else:
            _restore(current, saved)


def _fill(target: dict[Any, Any], state: dict[str, Any]) -> None:
    for key, saved in state["pairs"]:
        label = value_from_json(key)
        if isinstance(saved, dict):
            _fill(target[label], saved)  # a defaultdict makes the row
        else:
            target[label] = saved


def _mapping(state: dict[str, Any]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    _fill(found, state)
    return found
