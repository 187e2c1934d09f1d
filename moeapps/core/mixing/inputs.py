"""What a mixture is fitted on: checked arrays of features, predictions and targets.

Shapes: n rows, E experts, K classes or targets, F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from moeapps.core.errors import DataError

__all__ = ["LOWEST", "Floats", "MixingData", "Task", "check_predictions", "uncertainty", "uncertainty_width"]

Task = Literal["classification", "regression"]
Floats = NDArray[np.float64]

LOWEST = float(np.log(1e-15))
"""No log-probability counts as less: an expert that gave a class 0 would cost an infinite loss."""


@dataclass(frozen=True)
class MixingData:
    """Rows to fit a mixture or a cascade on.

    Parameters
    ----------
    features : float64 array of shape (n, F)
        The gate's features; F may be 0.
    predictions : float64 array of shape (n, E, K)
        Log-probabilities from :data:`LOWEST` to 0, or predicted targets, of experts that have not seen these rows.
    target : array of shape (n,) int64, or (n, K) float64
        Class codes, or targets.
    weight : float64 array of shape (n,)
        Weight of each row, above 0, with mean 1.
    scale : float, default=1.0
        Mean of the weights as they were given.
    """

    features: Floats
    predictions: Floats
    target: NDArray[Any]
    weight: Floats
    scale: float = 1.0

    def __len__(self) -> int:
        return len(self.features)

    @property
    def amount(self) -> float:
        """Sum of the weights as they were given: a row of weight 2 counts as two rows."""
        return self.scale * len(self)

    @property
    def num_experts(self) -> int:
        """Number of experts E."""
        return int(self.predictions.shape[1])

    @property
    def task(self) -> Task:
        """Which kind of target this is."""
        return "classification" if self.target.ndim == 1 else "regression"

    def rows(self, chosen: NDArray[np.int64]) -> "MixingData":
        """Some of the rows; the weights keep their mean of 1."""
        weight = self.weight[chosen]
        mean = float(weight.mean())
        return MixingData(
            self.features[chosen], self.predictions[chosen], self.target[chosen], weight / mean, self.scale * mean
        )

    def experts(self, chosen: Sequence[int]) -> "MixingData":
        """Some of the experts, in this order."""
        return replace(self, predictions=self.predictions[:, list(chosen)])

    @classmethod
    def checked(
        cls, features: Any, predictions: Any, target: Any, weight: Any, task: Task, names: Sequence[str]
    ) -> "MixingData":
        """Check arrays and leave out rows of weight 0.

        Raises
        ------
        DataError
            If shapes do not fit, a value is NaN or infinite (the message names the expert), a class code is not one
            of the predicted classes, a weight is negative, or no row is left.
        """
        predictions = check_predictions(predictions, task, names)
        n, _, num_outputs = predictions.shape
        features = np.asarray(features, dtype=np.float64)
        if features.ndim != 2 or len(features) != n:
            raise DataError(f"features must have shape ({n}, F) as the predictions have {n} rows, got {features.shape}")
        if not np.isfinite(features).all():
            column = int(np.argmin(np.isfinite(features).all(axis=0)))
            raise DataError(f"the gate's feature {column} has values that are not finite: impute them before")
        target = np.asarray(target)
        if task == "classification":
            if target.shape != (n,) or not np.issubdtype(target.dtype, np.integer):
                raise DataError(f"target must be {n} whole class codes, got {target.dtype} of shape {target.shape}")
            if n and not 0 <= target.min() <= target.max() < num_outputs:
                raise DataError(f"target has class codes {target.min()} to {target.max()}, but {num_outputs} classes")
            target = target.astype(np.int64)
        else:
            target = target.astype(np.float64)
            target = target[:, None] if target.ndim == 1 else target
            if target.shape != (n, num_outputs):
                raise DataError(f"target must have shape ({n}, {num_outputs}), got {target.shape}")
            if not np.isfinite(target).all():
                raise DataError("target has values that are not finite")
        weight = np.ones(n) if weight is None else np.asarray(weight, dtype=np.float64)
        if weight.shape != (n,) or not np.isfinite(weight).all() or (weight < 0).any():
            raise DataError(f"weight must be {n} finite numbers of at least 0")
        kept = np.flatnonzero(weight > 0)
        if not len(kept):
            raise DataError("no row has a weight above 0: there is nothing to fit the mixture on")
        return cls(features, predictions, target, weight).rows(kept)


def check_predictions(predictions: Any, task: Task, names: Sequence[str]) -> Floats:
    """Predictions ``(n, E, K)`` as float64, log-probabilities not below :data:`LOWEST`.

    Raises
    ------
    DataError
        If the shape is another, or a value is NaN or infinite; a log-probability of minus infinity is raised.
    """
    predictions = np.asarray(predictions, dtype=np.float64)
    if predictions.ndim != 3 or predictions.shape[1] != len(names):
        raise DataError(f"predictions must have shape (n, {len(names)}, K), got {predictions.shape}")
    bad = np.isnan(predictions) | (predictions == np.inf)
    if task == "regression":
        bad |= np.isinf(predictions)
    if bad.any():
        row, expert = (int(place[0]) for place in np.nonzero(bad)[:2])
        raise DataError(
            f"expert {names[expert]!r} predicts {predictions[row, expert][bad[row, expert]][0]} in row {row}"
        )
    return np.maximum(predictions, LOWEST) if task == "classification" else predictions


def uncertainty_width(task: Task, num_experts: int, num_outputs: int) -> int:
    """Number of columns that :func:`uncertainty` makes."""
    return 3 * num_experts if task == "classification" else num_experts * num_outputs


def uncertainty(predictions: Floats, task: Task) -> Floats:
    """How sure each expert is, as the gate sees it.

    Parameters
    ----------
    predictions : float64 array of shape (n, E, K)
        Calibrated log-probabilities, or predicted targets.
    task : {"classification", "regression"}
        Which of the two.

    Returns
    -------
    float64 array of shape (n, 3 E) or (n, E K)
        Classification: per expert the highest probability, the entropy in nats, and the margin between the two most
        probable classes. Regression: per expert the distance of each prediction from the mean of all experts.
    """
    n, num_experts, num_classes = predictions.shape
    if task == "regression":
        return np.abs(predictions - predictions.mean(axis=1, keepdims=True)).reshape(n, num_experts * num_classes)
    p = np.exp(predictions)
    first = p.max(axis=2)
    second = np.partition(p, -2, axis=2)[:, :, -2] if num_classes > 1 else np.zeros((n, num_experts))
    return np.stack([first, entr(p).sum(axis=2), first - second], axis=2).reshape(n, 3 * num_experts)
