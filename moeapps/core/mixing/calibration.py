r"""Calibration of each expert's class probabilities: a temperature and a floor, fitted by log loss.

.. math:: \tilde p_k \propto \max(p_k, \epsilon)^{1 / T}

Temperature scaling (Guo et al. 2017, eq. 9), applied to the logarithms of the probabilities, which are logits up to a
constant. The floor is needed because forests and nearest neighbours give probabilities of exactly 0, whose logarithm
no temperature makes harmless. ``benchmarks/gate_selection.py --calibration`` compares the two on public tables.

In regression there is nothing for the single experts; what corrects a mixture is in :mod:`~moeapps.core.mixing.line`.

Shapes: n rows, E experts, K classes or targets.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from moeapps.core.mixing.inputs import LOWEST, Floats, MixingData

__all__ = ["FLOORS", "Calibration", "fit_calibration", "fit_temperature", "picked"]

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

    def rows(self, data: MixingData) -> MixingData:
        """Rows with calibrated log-probabilities; in regression as they are."""
        return replace(data, predictions=self(data.predictions)) if data.task == "classification" else data

    def experts(self, chosen: Sequence[int]) -> "Calibration":
        """Calibration of some of the experts, in this order."""
        return Calibration(self.temperatures[list(chosen)], self.floors[list(chosen)])


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
