r"""Calibration of each expert's class probabilities: a temperature and a floor, fitted by log loss.

.. math:: \tilde p_k \propto \max(p_k, \epsilon)^{1 / T}

Temperature scaling (Guo et al. 2017, eq. 9), applied to the logarithms of the probabilities, which are logits up to a
constant. The floor is needed because forests and nearest neighbours give probabilities of exactly 0, whose logarithm
no temperature makes harmless. ``benchmarks/gate_selection.py --calibration`` compares the two on public tables.

In regression there is one straight line for the mixture (:class:`Line`), and nothing for the single experts.

Shapes: n rows, E experts, K classes or targets.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.linear_model import RidgeCV

from moeapps.core.mixing.inputs import LOWEST, Floats, MixingData

__all__ = ["FLOORS", "Calibration", "Line", "fit_calibration", "fit_line", "fit_stacked", "fit_temperature", "picked"]

FLOORS = (1e-15, 1e-8, 1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""Floors that are tried; the first is no floor."""

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.1, 20.0
MAX_ROWS = 20_000
"""Two numbers per expert need no more rows."""


@dataclass(frozen=True)
class Calibration:
    """Temperature and floor of each expert.

    Parameters
    ----------
    temperatures : float64 array of shape (E,)
        Above 1 where an expert was too sure of itself.
    floors : float64 array of shape (E,)
        Smallest probability that counts, before the temperature.
    """

    temperatures: Floats
    floors: Floats

    @classmethod
    def identity(cls, num_experts: int) -> "Calibration":
        """The calibration that changes nothing but probabilities below exp(:data:`LOWEST`)."""
        return cls(np.ones(num_experts), np.full(num_experts, np.exp(LOWEST)))

    def __call__(self, predictions: Floats) -> Floats:
        """Calibrated log-probabilities of ``(n, E, K)`` log-probabilities; each row sums to 1 as probabilities."""
        raised = np.maximum(predictions, np.log(self.floors)[:, None])
        out: Floats = log_softmax(raised / self.temperatures[:, None], axis=-1)
        return out

    def experts(self, chosen: Sequence[int]) -> "Calibration":
        """Calibration of some of the experts, in this order."""
        return Calibration(self.temperatures[list(chosen)], self.floors[list(chosen)])


@dataclass(frozen=True)
class Line:
    """What multiplies a mixed prediction and what is added to it, for each target.

    A mean of regressions varies less than the target does, the more so the more they differ, as weights that sum to 1
    cannot give it its spread back (Breiman 1996, "Stacked regressions", section 3, on sums that are left free).

    Parameters
    ----------
    slope : float64 array of shape (K,)
        Factor.
    intercept : float64 array of shape (K,)
        Summand.
    free : float64 array of shape (E, K), optional
        Factors of the experts' own predictions, of any sign.
    """

    slope: Floats
    intercept: Floats
    free: Floats | None = None

    def __call__(self, mixed: Floats, predictions: Floats) -> Floats:
        """Map mixed predictions ``(n, K)`` and those of the experts ``(n, E, K)`` to corrected ones ``(n, K)``."""
        out: Floats = self.slope * mixed + self.intercept
        return out if self.free is None else out + np.einsum("nek,ek->nk", predictions, self.free)


LINE_ROWS = 10
"""So many rows of weight 1 stand for the line that changes nothing, with the variance that the predictions have."""


def fit_line(mixed: Floats, data: MixingData) -> Line:
    """Line with the least squared error, drawn towards the one that changes nothing by :data:`LINE_ROWS` rows.

    Parameters
    ----------
    mixed : float64 array of shape (n, K)
        Predictions for rows that the mixture was not fitted on.
    data : MixingData
        The rows, with their targets and weights.
    """
    prior, column, target = LINE_ROWS / data.amount, data.weight[:, None], data.target
    centre, wanted = (column * mixed).mean(axis=0), (column * target).mean(axis=0)
    spread = (column * (mixed - centre) ** 2).mean(axis=0)
    together = (column * (mixed - centre) * (target - wanted)).mean(axis=0)
    constant = spread <= 1e-18 * (1 + centre**2)
    slope = np.where(constant, 1.0, (together + prior * spread) / np.where(constant, 1.0, (1 + prior) * spread))
    middle = centre + (wanted - centre) / (1 + prior)
    return Line(slope, middle - slope * centre)


def fit_stacked(data: MixingData) -> Line:
    """Ridge regression of each target on what the experts predict for it, as scikit-learn's StackingRegressor has it.

    Parameters
    ----------
    data : MixingData
        Rows with targets, weights, and predictions of experts that have not seen them. The penalties that are tried
        suit targets in units of their standard deviations.
    """
    targets = range(data.target.shape[1])
    fits = [RidgeCV().fit(data.predictions[:, :, k], data.target[:, k], data.weight) for k in targets]
    intercepts = np.array([float(fit.intercept_) for fit in fits])
    return Line(np.zeros(len(fits)), intercepts, np.stack([fit.coef_ for fit in fits], axis=1))


def picked(log_probs: Floats, target: NDArray[np.int64]) -> Floats:
    """Log-probability of each row's class: ``(n, ..., K)`` to ``(n, ...)``."""
    index = target.reshape(-1, *[1] * (log_probs.ndim - 1))
    out: Floats = np.take_along_axis(log_probs, index, axis=-1)[..., 0]
    return out


def fit_temperature(logits: Floats, target: NDArray[np.int64], weight: Floats) -> tuple[float, float]:
    """Temperature with the least log loss, by Newton's method.

    The loss is convex in 1 / T. One half of a row is added that gets all classes equally: it keeps the temperature
    finite where every prediction is right.

    Parameters
    ----------
    logits : float64 array of shape (n, K)
        Log-probabilities, up to a constant per row.
    target : int64 array of shape (n,)
        Class codes.
    weight : float64 array of shape (n,)
        Weights with mean 1.

    Returns
    -------
    temperature, loss : float
        The temperature, and the mean log loss with it.
    """
    n = len(logits)
    chosen = picked(logits, target)
    even = 0.5 * float(np.mean(logits.max(axis=1) - logits.mean(axis=1))) / n  # slope of that half row at T near 0
    inverse = 1.0
    for _ in range(12):
        p = np.exp(log_softmax(inverse * logits, axis=1))
        mean = (p * logits).sum(axis=1)
        slope = float((weight * (mean - chosen)).mean()) + even
        curvature = float((weight * ((p * logits**2).sum(axis=1) - mean**2)).mean())
        # a step may at most halve or double 1 / T: Newton's method overshoots where the loss is nearly flat
        step = -slope / max(curvature, 1e-12)
        updated = min(max(inverse + step, inverse / 2), inverse * 2)
        updated = min(max(updated, 1 / MAX_TEMPERATURE), 1 / MIN_TEMPERATURE)
        if abs(updated - inverse) < 1e-6 * inverse:
            break
        inverse = updated
    loss = float(-(weight * picked(log_softmax(inverse * logits, axis=1), target)).mean())
    return 1 / inverse, loss


def fit_calibration(data: MixingData) -> Calibration:
    """Fit temperature and floor of every expert by log loss; regression has nothing to calibrate.

    The floor is the smallest of :data:`FLOORS` unless a higher one has a lower loss.
    """
    if data.task == "regression":
        return Calibration.identity(data.num_experts)
    if len(data) > MAX_ROWS:
        data = data.rows(np.linspace(0, len(data) - 1, MAX_ROWS).astype(np.int64))
    temperatures, floors = [], []
    for expert in range(data.num_experts):
        log_probs = data.predictions[:, expert]
        smallest = log_probs.min()
        best = (np.inf, 1.0, FLOORS[0])
        for i, floor in enumerate(FLOORS):
            if i + 1 < len(FLOORS) and np.log(FLOORS[i + 1]) <= smallest:
                continue  # neither this floor nor the next one changes anything: the highest such stands for all
            temperature, loss = fit_temperature(np.maximum(log_probs, np.log(floor)), data.target, data.weight)
            if loss < best[0]:
                best = (loss, temperature, floor)
        temperatures.append(best[1])
        floors.append(best[2])
    return Calibration(np.array(temperatures), np.array(floors))
