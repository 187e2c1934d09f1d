"""What a cascade costs and loses at each threshold, simulated on rows for which every expert was asked.

Shapes: n rows, S stages, K classes or targets.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moeapps.core.errors import ConfigError
from moeapps.core.mixing.calibration import picked
from moeapps.core.mixing.inputs import Floats, MixingData

__all__ = [
    "ASK_ALL",
    "check_limits",
    "choose_cost",
    "last_stage",
    "measure_thresholds",
    "row_losses",
    "thresholds_of",
]

CANDIDATES = 200
ASK_ALL = float(-np.finfo(np.float64).max)
"""A threshold below every criterion: every row goes on to the last expert."""


def check_limits(budget: float | None, tolerance: float | None) -> None:
    """Check the arguments of :func:`choose_cost`.

    Raises
    ------
    ConfigError
        If the budget is not in (0, 1], or the tolerance is negative.
    """
    for name, value, low, high in (("budget", budget, 0, 1), ("tolerance", tolerance, 0, np.inf)):
        if value is None:
            continue
        wrong = isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high
        if wrong or (name == "budget" and value == 0) or value == np.inf:
            allowed = "above 0 and at most 1" if name == "budget" else "of at least 0"
            raise ConfigError(f"{name} must be a number {allowed}, got {value!r}")


def last_stage(scores: Floats, threshold: float) -> NDArray[np.int64]:
    """Last stage ``(n,)`` that each row reaches, from the criterion ``(S - 1, n)``: the first that is not above."""
    stops = np.concatenate([scores <= threshold, np.ones((1, scores.shape[1]), dtype=bool)])
    first: NDArray[np.int64] = stops.argmax(axis=0)
    return first


def thresholds_of(scores: Floats) -> Floats:
    """Thresholds worth trying: at most 200 values of the criterion ``(S - 1, n)``, the highest, and :data:`ASK_ALL`."""
    ordered = np.unique(scores)
    places = np.linspace(0, max(len(ordered) - 1, 0), min(CANDIDATES, len(ordered))).astype(np.int64)
    return np.append(ASK_ALL, ordered[places])


def row_losses(mixed: Floats, data: MixingData) -> Floats:
    """``(S, n)`` loss of each row at each stage, from ``(S, n, K)``."""
    if data.task == "classification":
        return np.stack([-picked(stage, data.target) for stage in mixed])
    errors: Floats = np.square(mixed - data.target).mean(axis=2)
    return errors


def measure_thresholds(
    mixed: Floats, scores: Floats, costs: Floats, thresholds: Floats, data: MixingData
) -> pd.DataFrame:
    """Cost, loss and score at each threshold.

    Parameters
    ----------
    mixed : float64 array of shape (S, n, K)
        Log-probabilities or targets, by each stage.
    scores : float64 array of shape (S - 1, n)
        The criterion.
    costs : float64 array of shape (S,)
        Cost of the experts up to each stage.
    thresholds : float64 array
        Where to measure.
    data : MixingData
        The rows.

    Returns
    -------
    DataFrame
        ``threshold``, ``cost``, ``loss``, and ``accuracy`` or ``r2``.
    """
    losses, rows = row_losses(mixed, data), np.arange(len(data))
    classification = data.task == "classification"
    if classification:
        good = (mixed.argmax(axis=2) == data.target).astype(np.float64)
    else:  # uniform average over the targets, as scikit-learn's r2_score
        spread = np.average(np.square(data.target - np.average(data.target, axis=0, weights=data.weight)), axis=0)
        good = 1 - (np.square(mixed - data.target) / np.where(spread > 0, spread, 1)).mean(axis=2)
    records = []
    for threshold in thresholds:
        last = last_stage(scores, threshold)
        records.append(
            (
                float(threshold),
                np.average(costs[last], weights=data.weight),
                np.average(losses[last, rows], weights=data.weight),
                np.average(good[last, rows], weights=data.weight),
            )
        )
    return pd.DataFrame(records, columns=["threshold", "cost", "loss", "accuracy" if classification else "r2"])


def choose_cost(
    mixed: Floats,
    scores: Floats,
    costs: Floats,
    data: MixingData,
    budget: float | None = None,
    tolerance: float | None = None,
) -> float:
    """Choose how much a cascade may cost on average.

    1. Keep thresholds whose mean cost is at most ``budget``.
    2. With a budget and no tolerance, take the dearest one that is within one standard error (by pairs of rows) of the
       lowest loss: what is paid for is used, where the rows cannot tell it from what does best on them.
    3. Otherwise take the cheapest whose loss is at most ``tolerance`` above that of asking all or, with a budget, above
       the lowest that it allows. Without either the tolerance is 0: what costs no loss on these rows is saved.

    Parameters
    ----------
    mixed, scores, costs, data
        As in :func:`measure_thresholds`, of rows that neither gates nor estimates have seen.
    budget : float, optional
        Largest mean cost per row, as a fraction of the cost of asking all experts.
    tolerance : float, optional
        Loss that may be given up: log loss, or squared error of the (standardised) targets.

    Returns
    -------
    float
        Mean cost per row at that threshold.

    Raises
    ------
    ConfigError
        If the cheapest expert alone costs more than the budget.
    """
    check_limits(budget, tolerance)
    if budget is not None and budget < costs[0]:
        raise ConfigError(
            f"budget={budget} is less than the cheapest expert costs, which is asked for every row: "
            f"{costs[0]:.3g} of the cost of asking all"
        )
    table = measure_thresholds(mixed, scores, costs, thresholds_of(scores), data)
    allowed = table if budget is None else table[table["cost"] <= budget + 1e-12]
    if budget is not None and tolerance is None:
        return _dearest_within_noise(allowed, scores, row_losses(mixed, data), data.weight)
    all_asked = float(table["loss"].to_numpy()[table["threshold"].to_numpy().argmin()])
    limit = (all_asked if budget is None else allowed["loss"].min()) + (tolerance or 0.0)
    return float(allowed["cost"][allowed["loss"] <= limit].min())


def _dearest_within_noise(allowed: pd.DataFrame, scores: Floats, losses: Floats, weight: Floats) -> float:
    """Highest cost among thresholds whose loss is the lowest one's up to the standard error of their difference."""
    rows, best = np.arange(losses.shape[1]), int(allowed["loss"].to_numpy().argmin())
    thresholds, costs = allowed["threshold"].to_numpy(), allowed["cost"].to_numpy()
    lowest = losses[last_stage(scores, thresholds[best]), rows]
    chosen = float(costs[best])
    for threshold, cost in zip(thresholds, costs, strict=True):
        gap = losses[last_stage(scores, threshold), rows] - lowest
        mean = np.average(gap, weights=weight)
        error = np.sqrt(np.square(weight * (gap - mean)).sum()) / weight.sum()
        if cost > chosen and mean <= error:
            chosen = float(cost)
    return chosen


def threshold_for(cost: float, scores: Floats, costs: Floats, data: MixingData) -> float:
    """Lowest threshold with at most this mean cost on these rows.

    A threshold is not carried over from the folds: estimates fitted on fewer rows have another spread.
    """
    fitting = [
        threshold
        for threshold in thresholds_of(scores)
        if np.average(costs[last_stage(scores, threshold)], weights=data.weight) <= cost + 1e-9
    ]
    return float(min(fitting))
