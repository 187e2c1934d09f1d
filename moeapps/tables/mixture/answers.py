"""What experts predict as the gate reads it: log-probabilities of all classes, or standardised targets."""

# n rows, K classes, T targets

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeapps.core.errors import DataError
from moeapps.core.labels import UNKNOWN, encode

__all__ = ["ClassAnswers", "TargetAnswers", "probability_floor"]

_HIGHEST_FLOOR = 1e-3
_SMALLEST = 1e-15
"""Stands for a probability of 0, whose logarithm is no number."""


def probability_floor(rows: float, classes: int) -> float:
    """Probability of a class that an expert has not seen: 1 / (n K), n the sum of weights, or 0.001 if less."""
    return min(1.0 / (max(rows, 1.0) * classes), _HIGHEST_FLOOR)


@dataclass(frozen=True)
class ClassAnswers:
    """Reads the class probabilities of an expert.

    Parameters
    ----------
    classes : array of shape (K,)
        All labels, sorted.
    floor : float
        Probability of a class that an expert has not seen; the others are normalised beside it.
    """

    classes: NDArray[Any]
    floor: float

    @property
    def width(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def unknown(self, rows: int) -> NDArray[np.float64]:
        """What stands for an expert that is not asked: every class alike."""
        return np.full((rows, self.width), -np.log(self.width))

    def constant(self, y: NDArray[Any], rows: int) -> NDArray[np.float64]:
        """Answer of an expert that has seen one class only."""
        return self._completed(np.ones((rows, 1)), encode(y[:1], self.classes))

    def read(self, expert: Any, X: Any) -> NDArray[np.float64]:
        """Log-probabilities ``(n, K)``; a class that the expert does not know has the floor's.

        Raises
        ------
        DataError
            If it predicts something else than probabilities of its classes.
        """
        given = np.asarray(expert.predict_proba(X), dtype=np.float64)
        known = np.asarray(expert.classes_)
        if given.shape != (len(X), len(known)):
            raise DataError(f"predict_proba gave the shape {given.shape} for {len(X)} rows and {len(known)} classes")
        if not np.isfinite(given).all() or (given < -1e-6).any() or (given.sum(axis=1) <= 0).any():
            raise DataError("predict_proba gave what are no probabilities: NaN, infinite or negative numbers, or zeros")
        if self.width == len(known) and np.array_equal(known, self.classes):
            return self._logs(given)
        columns = encode(known, self.classes)
        if (columns == UNKNOWN).any():
            new = known[columns == UNKNOWN].tolist()[0]
            raise DataError(f"it knows the class {new!r}, which is not among {self.classes.tolist()[:5]}")
        return self._completed(given, columns)

    def _completed(self, given: NDArray[np.float64], columns: NDArray[np.int64]) -> NDArray[np.float64]:
        """Log-probabilities of all classes from those of some."""
        unseen = self.width - len(columns)
        probabilities = np.full((len(given), self.width), self.floor)
        probabilities[:, columns] = given / given.sum(axis=1, keepdims=True) * (1.0 - unseen * self.floor)
        return self._logs(probabilities)

    def _logs(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        share = probabilities / probabilities.sum(axis=1, keepdims=True)
        logs: NDArray[np.float64] = np.log(np.maximum(share, _SMALLEST))
        return logs


@dataclass(frozen=True)
class TargetAnswers:
    """Reads the predicted targets of an expert.

    Parameters
    ----------
    mean, scale : array of shape (T,)
        Mean and standard deviation of the targets.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]

    @property
    def width(self) -> int:
        """Number of targets."""
        return len(self.mean)

    def unknown(self, rows: int) -> NDArray[np.float64]:
        """What stands for an expert that is not asked: the mean."""
        return np.zeros((rows, self.width))

    def read(self, expert: Any, X: Any) -> NDArray[np.float64]:
        """Standardised targets ``(n, T)``.

        Raises
        ------
        DataError
            If it predicts another number of targets, or NaN or infinity.
        """
        given = np.asarray(expert.predict(X), dtype=np.float64)
        if given.size != len(X) * self.width:
            raise DataError(f"predict gave the shape {given.shape} for {len(X)} rows and {self.width} targets")
        if not np.isfinite(given).all():
            raise DataError("predict gave NaN or infinity")
        return (given.reshape(len(X), self.width) - self.mean) / self.scale
