"""Scores of a prequential evaluation, updated as labels come, in a fixed amount of memory."""

import math
from collections import deque
from collections.abc import Hashable
from itertools import islice
from typing import Any, ClassVar, Self

from moeapps.core.errors import DataError
from moeapps.core.labels import plain, value_from_json, value_to_json
from moeapps.stream.labels import label_of

__all__ = ["ClassScores", "NumberScores"]


class _Scores:
    """Sums over everything, and the last values in a window.

    Parameters
    ----------
    window : int, default 1000
        Instances in the window.
    """

    SUMS: ClassVar[dict[str, type]]
    """Names of the sums, with the types that they have in a file."""

    COUNTS_HITS: ClassVar[bool] = False
    """Whether the window holds hits; else it holds errors."""

    n: int

    def __init__(self, window: int = 1000) -> None:
        self.window = window
        self._recent: deque[float] = deque(maxlen=window)
        for name, kind in self.SUMS.items():
            setattr(self, name, kind())

    @property
    def windowed(self) -> float:
        """Mean over the window (accuracy, or absolute error); NaN before any instance."""
        return sum(self._recent) / len(self._recent) if self._recent else math.nan

    def last_error(self, n: int) -> float:
        """Mean error of the last ``n`` instances of the window: the error rate, or the mean absolute error."""
        recent = list(islice(reversed(self._recent), n))
        mean = sum(recent) / len(recent) if recent else math.nan
        return 1.0 - mean if self.COUNTS_HITS else mean

    def state(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {**{name: getattr(self, name) for name in self.SUMS}, "recent": list(self._recent)}

    def merge(self, other: Self) -> None:
        """Add the scores of another stream, such as another partition of the same topic.

        What is compared with earlier labels (kappa-M, kappa-T) is compared within each stream. The window holds the
        windows of both; the result is for reading, since the next instance belongs to neither.
        """
        self._recent = deque([*self._recent, *other._recent])
        self.window += other.window

    def restore(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state`."""
        for name, kind in self.SUMS.items():
            setattr(self, name, kind(state[name]))
        self._recent = deque(state["recent"], maxlen=self.window)


class ClassScores(_Scores):
    r"""Accuracy, kappa, kappa-M and kappa-T, of everything and of a window.

    With the accuracy :math:`p_0`: Cohen's :math:`\kappa = (p_0 - p_c) / (1 - p_c)` compares with chance,
    :math:`\kappa_M` with a classifier that predicts the most frequent label so far, :math:`\kappa_T` with one that
    predicts the last label (Bifet et al. 2015, "Efficient online evaluation of big data stream classifiers").

    Parameters
    ----------
    window : int, default 1000
        Instances in the window.
    """

    COUNTS_HITS = True
    SUMS: ClassVar[dict[str, type]] = {"n": int, "hits": int, "majority_hits": int, "repeat_hits": int}

    hits: int
    majority_hits: int
    repeat_hits: int

    def __init__(self, window: int = 1000) -> None:
        super().__init__(window)
        self.seen: dict[Hashable, int] = {}
        self.predicted: dict[Hashable, int] = {}
        self._last: Any = None
        self._majority: Any = None

    def update(self, truth: Any, prediction: Any) -> None:
        """Count one instance; a prediction of None is wrong."""
        truth, prediction = _comparable(truth), _comparable(prediction)
        hit = prediction is not None and bool(prediction == truth)
        self.n += 1
        self.hits += hit
        self.majority_hits += bool(self._majority == truth)
        self.repeat_hits += bool(self._last == truth)
        self.seen[truth] = self.seen.get(truth, 0) + 1
        if prediction is not None:
            self.predicted[prediction] = self.predicted.get(prediction, 0) + 1
        if self._majority is None or self.seen[truth] > self.seen[self._majority]:
            self._majority = truth
        self._last = truth
        self._recent.append(int(hit))

    def merge(self, other: Self) -> None:
        """Add the scores of another stream; counts add up exactly."""
        super().merge(other)
        for name in self.SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for mine, more in ((self.seen, other.seen), (self.predicted, other.predicted)):
            for label, count in more.items():
                mine[label] = mine.get(label, 0) + count

    @property
    def total(self) -> float:
        """Accuracy over everything."""
        return self.hits / self.n if self.n else math.nan

    def as_dict(self) -> dict[str, float]:
        """All scores by name."""
        chance = sum(count * self.predicted.get(label, 0) for label, count in self.seen.items()) / max(self.n, 1) ** 2
        return {
            "accuracy": self.total,
            "kappa": _above(self.total, chance),
            "kappa_m": _above(self.total, self.majority_hits / max(self.n, 1)),
            "kappa_t": _above(self.total, self.repeat_hits / max(self.n, 1)),
        }

    def state(self) -> dict[str, Any]:
        """Everything, as JSON values (labels have to be text, numbers, bools or tuples of these)."""
        return {
            **super().state(),
            "seen": [[_to_json(label), count] for label, count in self.seen.items()],
            "said": [[_to_json(label), count] for label, count in self.predicted.items()],
            "last": _to_json(self._last),
            "majority": _to_json(self._majority),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state`."""
        super().restore(state)
        self.seen = {_from_json(label): int(count) for label, count in state["seen"]}
        self.predicted = {_from_json(label): int(count) for label, count in state["said"]}
        self._last, self._majority = _from_json(state["last"]), _from_json(state["majority"])


class NumberScores(_Scores):
    """Mean absolute and root mean squared error, of everything and of a window, and R2 of everything.

    Parameters
    ----------
    window : int, default 1000
        Instances in the window.
    """

    SUMS: ClassVar[dict[str, type]] = {
        "n": int, "absolute": float, "squared": float, "mean": float, "deviations": float,
    }  # fmt: skip

    absolute: float
    squared: float
    mean: float
    deviations: float

    def update(self, truth: Any, prediction: Any) -> None:
        """Count one instance; one without a prediction is ignored."""
        if prediction is None or math.isnan(prediction):
            return
        truth = float(truth)  # sums of numpy's smaller floats lose digits, and a Decimal cannot be added to a float
        error = abs(truth - float(prediction))
        self.n += 1
        self.absolute += error
        self.squared += error * error
        gap = truth - self.mean
        self.mean += gap / self.n
        self.deviations += gap * (truth - self.mean)
        self._recent.append(error)

    def merge(self, other: Self) -> None:
        """Add the scores of another stream (Chan et al. 1979 for the deviations from the mean)."""
        super().merge(other)
        n = self.n + other.n
        if other.n:
            gap = other.mean - self.mean
            self.deviations += other.deviations + gap * gap * self.n * other.n / n
            self.mean += gap * other.n / n
        self.n, self.absolute, self.squared = n, self.absolute + other.absolute, self.squared + other.squared

    @property
    def total(self) -> float:
        """Mean absolute error over everything."""
        return self.absolute / self.n if self.n else math.nan

    def as_dict(self) -> dict[str, float]:
        """All scores by name."""
        return {
            "mae": self.total,
            "rmse": math.sqrt(self.squared / self.n) if self.n else math.nan,
            "r2": 1.0 - self.squared / self.deviations if self.deviations > 0 else math.nan,
        }


def _comparable(label: Any) -> Any:
    """A label as the models of this package give it back; as it is where they would refuse it."""
    if label is None or type(label) in (str, int, float, bool):
        return label
    try:
        return label_of(label)
    except DataError:
        return label


def _to_json(label: Any) -> Any:
    """A label as 0.1 wrote it, as it is, unless it is a tuple or numpy's."""
    return value_to_json(label) if isinstance(label, tuple) else plain(label)


def _from_json(label: Any) -> Any:
    return value_from_json(label) if isinstance(label, list) else label


def _above(accuracy: float, reference: float) -> float:
    return (accuracy - reference) / (1.0 - reference) if reference < 1.0 else 0.0
