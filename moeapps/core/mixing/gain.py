"""What asking one more expert is expected to bring: a ridge regression on what is known of a row.

Shapes: n rows, K classes or targets, D inputs, G gains (one per later stage).
"""

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import RidgeCV

from moeapps.core.mixing.inputs import Floats, Task, uncertainty

__all__ = ["Gain", "fit_gain", "known_of"]

PENALTIES = tuple(10.0**i for i in range(-1, 6))
LIMIT = 4.0
"""Standardised inputs are cut off here: a linear estimate must not run away."""


def known_of(features: Floats, calibrated: Floats, mixed: Floats, task: Task) -> Floats:
    """What the estimate of a stage looks at, ``(n, D)``.

    Parameters
    ----------
    features : float64 array of shape (n, F)
        The gate's features.
    calibrated : float64 array of shape (n, s, K)
        Predictions of the experts asked so far.
    mixed : float64 array of shape (n, K)
        Their mixture: log-probabilities or targets.
    task : {"classification", "regression"}
        Which of the two.

    Returns
    -------
    float64 array of shape (n, D)
        Features, uncertainty of the mixture (or its prediction, in regression) and of each expert, and the squares of
        these two, as the gain is largest between the extremes.
    """
    own = uncertainty(mixed[:, None], task) if task == "classification" else mixed
    doubt = np.concatenate([own, uncertainty(calibrated, task)], axis=1)
    return np.concatenate([features, doubt, np.square(doubt)], axis=1)


@dataclass(frozen=True, eq=False)
class Gain:
    """Linear estimate of the gains.

    Parameters
    ----------
    center, scale : float64 arrays of shape (D,)
        Standardisation of the inputs.
    weight : float64 array of shape (D, G)
    bias : float64 array of shape (G,)
    """

    center: Floats
    scale: Floats
    weight: Floats
    bias: Floats

    def __call__(self, known: Floats) -> Floats:
        """Expected gains ``(n, G)`` from :func:`known_of`'s inputs ``(n, D)``."""
        out: Floats = np.clip((known - self.center) / self.scale, -LIMIT, LIMIT) @ self.weight + self.bias
        return out


def fit_gain(known: Floats, gains: Floats, weight: Floats) -> Gain:
    """Fit by weighted least squares; the ridge penalty is chosen by leave-one-out cross-validation.

    Parameters
    ----------
    known : float64 array of shape (n, D)
        Inputs.
    gains : float64 array of shape (n, G)
        Loss after this stage minus loss after each later one.
    weight : float64 array of shape (n,)
        Weight of each row.
    """
    center = known.mean(axis=0)
    scale = known.std(axis=0)
    scale = np.where(scale > 1e-9 * (1 + np.abs(center)), scale, 1.0)
    x = np.clip((known - center) / scale, -LIMIT, LIMIT)
    mean = np.average(gains, axis=0, weights=weight)
    if len(known) < 3:
        return Gain(center, scale, np.zeros((known.shape[1], gains.shape[1])), mean)
    model = RidgeCV(alphas=PENALTIES).fit(x, gains, sample_weight=weight)
    return Gain(center, scale, model.coef_.reshape(gains.shape[1], -1).T.copy(), np.atleast_1d(model.intercept_))
