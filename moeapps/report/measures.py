"""Scores of a target with bootstrap intervals, next to those of the best constant prediction.

The rows are resampled as counts: a resample is a vector of how often each row occurs, and every score is computed from
such counts for a hundred resamples at once. (``scipy.stats.bootstrap`` calls the score once per resample, which takes
minutes for an AUC of 20,000 rows.)
"""

# n rows, K classes, B resamples

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeapps.report.judged import Target

__all__ = ["Measure", "auc", "measure"]

RESAMPLES = 1000
"""Bootstrap resamples."""

LEVEL = 95
"""Percent of the resamples between the two ends of an interval."""

AUC_CLASSES = 20
"""Largest number of classes for which an AUC is computed."""

Floats = NDArray[np.float64]
Score = Callable[[Floats], Floats]
"""From counts ``(B, n)`` of the rows to the score of each resample ``(B,)``."""


@dataclass(frozen=True)
class Measure:
    """A score, its interval, and that of the baseline.

    Parameters
    ----------
    name : str
        "log loss", "accuracy", ...
    value, low, high : float
        The score, and the ends of its 95 % interval.
    baseline : float
        What the best constant prediction for these rows gets.
    smaller : bool
        Whether lower is better.
    """

    name: str
    value: float
    low: float
    high: float
    baseline: float
    smaller: bool

    @property
    def beats_baseline(self) -> bool:
        """Whether the whole interval is better than the baseline."""
        return self.high < self.baseline if self.smaller else self.low > self.baseline


def measure(target: Target, seed: int = 0) -> list[Measure]:
    """Score a target.

    Parameters
    ----------
    target : Target
        n rows, at least one.
    seed : int, default 0
        Of the resamples.

    Returns
    -------
    list of Measure
        Log loss, accuracy, Brier score and, with up to 20 classes, ROC AUC (of several classes the mean of one against
        the rest); of numbers R2, mean absolute error and root of the mean squared error. The first one counts most.
    """
    kinds = list(_class_scores(target) if target.classification else _number_scores(target))
    n = len(target.truth)
    whole = np.ones((1, n))
    rng = np.random.default_rng(seed)
    resampled: list[list[Floats]] = [[] for _ in kinds]
    part = max(1, min(100, 2_000_000 // n))
    with np.errstate(invalid="ignore", divide="ignore"):
        for start in range(0, RESAMPLES, part):
            counts = rng.multinomial(n, np.full(n, 1 / n), size=min(part, RESAMPLES - start)).astype(np.float64)
            for values, (_, score, _, _) in zip(resampled, kinds, strict=True):
                values.append(score(counts))
        measures = []
        for values, (name, score, baseline, smaller) in zip(resampled, kinds, strict=True):
            found = np.concatenate(values)
            found = found[np.isfinite(found)]
            ends = np.percentile(found, [(100 - LEVEL) / 2, (100 + LEVEL) / 2]) if len(found) else (np.nan, np.nan)
            measures.append(Measure(name, float(score(whole)[0]), float(ends[0]), float(ends[1]), baseline, smaller))
    return [one for one in measures if np.isfinite(one.value)]


def _mean(values: Floats) -> Score:
    return lambda counts: counts @ values / counts.sum(axis=1)


def _class_scores(target: Target) -> Iterator[tuple[str, Score, float, bool]]:
    truth, classes = target.truth, len(target.classes)
    shares = np.bincount(truth, minlength=classes) / len(truth)
    known = shares[shares > 0]
    hits = (target.best == truth).astype(np.float64)
    onehot = np.eye(classes)[truth] if classes <= 1000 else None
    yield "log loss", _mean(target.losses), float(-(known * np.log(known)).sum()), True
    yield "accuracy", _mean(hits), float(shares.max()), False
    present = np.flatnonzero((shares > 0) & (shares < 1))
    if len(present) and classes <= AUC_CLASSES:
        which = [1] if classes == 2 else present.tolist()
        scores = [auc(target.predicted[:, k], truth == k) for k in which]
        yield "ROC AUC", lambda counts: np.mean([score(counts) for score in scores], axis=0), 0.5, False
    if onehot is not None:
        # of two classes the error of one probability, which is half the sum over both
        factor = 0.5 if classes == 2 else 1.0
        squares = factor * ((target.predicted - onehot) ** 2).sum(axis=1)
        yield "Brier score", _mean(squares), float(factor * (1 - (shares**2).sum())), True


def _number_scores(target: Target) -> Iterator[tuple[str, Score, float, bool]]:
    truth, error = target.truth, target.predicted - target.truth
    centred = truth - truth.mean()  # sums of squares of far numbers would lose their digits

    def r2(counts: Floats) -> Floats:
        total = counts.sum(axis=1)
        spread = counts @ centred**2 / total - (counts @ centred / total) ** 2
        values: Floats = 1 - (counts @ error**2 / total) / np.where(spread > 0, spread, np.nan)
        return values

    yield "R2", r2, 0.0, False
    yield "mean absolute error", _mean(np.abs(error)), float(np.abs(truth - np.median(truth)).mean()), True
    yield "root mean squared error", lambda c: np.sqrt(_mean(error**2)(c)), float(truth.std()), True


def auc(scores: Floats, positive: NDArray[np.bool_]) -> Score:
    """Area under the ROC curve as a function of counts: the share of pairs in the right order, ties half.

    Parameters
    ----------
    scores : array of shape (n,)
        Higher for positives.
    positive : bool array of shape (n,)
        True class.
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) != 0])
    signs = positive[order]

    def score(counts: Floats) -> Floats:
        ordered = counts[:, order]
        good = np.add.reduceat(ordered * signs, starts, axis=1)
        bad = np.add.reduceat(ordered * ~signs, starts, axis=1)
        below = np.cumsum(bad, axis=1) - bad / 2
        values: Floats = (good * below).sum(axis=1) / (good.sum(axis=1) * bad.sum(axis=1))
        return values

    return score
