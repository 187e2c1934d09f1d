"""Least squares that learn online and forget: a Kalman filter whose weights walk at random.

For an instance with inputs z and target y, with the weights w and their covariance P in units of the noise:

1. The prediction is w z.
2. The gain is k = P z / (1 / weight + z P z); w moves by k times the error, P by -k (P z).
3. P gets ``rate`` on its diagonal, so that the weights of about the last 1 / sqrt(rate) instances count; a rate of 0
   forgets nothing (recursive least squares). It is added only below the value that P began with, so that what is not
   seen for long has no more than the uncertainty of the start.

An error counts as at most :data:`CUT` times the recent mean error, so one outlier moves the weights by little (Huber).
Of more than :data:`MOST` inputs only the diagonal of P is kept, so the time is linear in their number.
"""

# L experts, R inputs

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeapps.stream.compiled.jit import kernel
from moeapps.stream.compiled.references import referable

__all__ = [
    "MOST",
    "LeastSquares",
    "grown",
    "learn_least_squares",
    "limited",
    "new_least_squares",
    "predict_linear",
    "step_diagonal",
]

MOST = 160
"""Inputs of which the covariance is kept whole."""

CUT = 4.0
"""Recent mean errors that an error counts for at most."""

ERROR_MEMORY = 100.0
"""Instances over which the errors are averaged."""

_YOUNG = 30.0
"""Instances before which errors are not cut off."""


@referable
class LeastSquares(NamedTuple):
    """Weights of all experts of this kind."""

    weights: NDArray[np.float64]  # (L, R)
    covariance: NDArray[np.float64]  # (L, R, R), or (L, R, 1) for its diagonal
    start: NDArray[np.float64]  # (R,) the diagonal that it began with
    rate: NDArray[np.float64]  # (L,)
    error: NDArray[np.float64]  # (L, 2) instances learned, recent mean of the absolute error


def new_least_squares(rates: tuple[float, ...], start: NDArray[np.float64]) -> LeastSquares:
    """One expert per rate; ``start`` is what the uncertainty of each weight begins with."""
    number, inputs = len(rates), len(start)
    diagonal = np.diag(start) if inputs <= MOST else start[:, None]
    covariance = np.repeat(diagonal[None], number, axis=0)
    return LeastSquares(
        np.zeros((number, inputs)), np.ascontiguousarray(covariance), start.copy(), np.array(rates),
        np.zeros((number, 2)),
    )  # fmt: skip


def grown(old: LeastSquares, start: NDArray[np.float64], places: NDArray[np.int64]) -> LeastSquares:
    """The same for more inputs; ``places`` are those of the old ones among them."""
    new = new_least_squares(tuple(old.rate.tolist()), start)
    new.weights[:, places] = old.weights
    if new.covariance.shape[2] > 1 or len(start) == 1:
        new.covariance[:, places[:, None], places] = old.covariance
    elif old.covariance.shape[2] > 1:
        new.covariance[:, places, 0] = np.diagonal(old.covariance, axis1=1, axis2=2)
    else:
        new.covariance[:, places] = old.covariance
    new.error[...] = old.error
    return new


@kernel
def predict_linear(weights, rows, numbers, n):  # type: ignore[no-untyped-def]
    """Sum of weights times inputs."""
    total = 0.0
    for i in range(n):
        total += weights[rows[i]] * numbers[i]
    return total


@kernel
def limited(error, recent):  # type: ignore[no-untyped-def]
    """An error, cut off; ``recent`` is how many there were, and their mean size, which is updated."""
    recent[0] += 1.0
    most = CUT * recent[1]
    if recent[0] > _YOUNG and abs(error) > most:
        error = most if error > 0.0 else -most
    recent[1] += max(1.0 / recent[0], 1.0 / ERROR_MEMORY) * (abs(error) - recent[1])
    return error


@kernel
def _step(weights, covariance, start, rate, error, weight, rows, numbers, n, gain):  # type: ignore[no-untyped-def]
    """Steps 2 and 3 of the module's list with the whole covariance."""
    inputs = weights.shape[0]
    spread = 1.0 / weight
    for j in range(inputs):
        gain[j] = 0.0
    for i in range(n):
        row, number = covariance[rows[i]], numbers[i]
        for j in range(inputs):
            gain[j] += number * row[j]
    for i in range(n):
        spread += numbers[i] * gain[rows[i]]
    for j in range(inputs):
        weights[j] += gain[j] * error / spread
    for i in range(inputs):
        row, share = covariance[i], gain[i] / spread
        for j in range(inputs):
            row[j] -= share * gain[j]
        row[i] = max(row[i], 0.0)
        if row[i] < start[i]:
            row[i] += rate


@kernel
def step_diagonal(weights, variances, start, rate, error, weight, rows, numbers, n):  # type: ignore[no-untyped-def]
    """The same with the diagonal only; all but ``rows`` are left alone."""
    spread = 1.0 / weight
    for i in range(n):
        spread += numbers[i] * numbers[i] * variances[rows[i]]
    for i in range(n):
        r = rows[i]
        share = variances[r] * numbers[i]
        weights[r] += share * error / spread
        variances[r] = max(variances[r] - share * share / spread, 0.0)
        if variances[r] < start[r]:
            variances[r] += rate


@kernel
def learn_least_squares(m, e, rows, numbers, n, error, gain):  # type: ignore[no-untyped-def]
    """Let expert e learn an instance by the error of its prediction; ``gain`` (R,) is room."""
    error = limited(error, m.error[e])
    if m.covariance.shape[2] == m.covariance.shape[1]:
        _step(m.weights[e], m.covariance[e], m.start, m.rate[e], error, 1.0, rows, numbers, n, gain)
    else:
        step_diagonal(
            m.weights[e], m.covariance[e, :, 0], m.start, m.rate[e], error, 1.0, rows, numbers, n
        )  # fmt: skip
