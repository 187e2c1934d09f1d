r"""What corrects a mixed prediction: a line through it, or through the experts' own predictions.

In regression a mean varies less than the target does, and a straight line gives it its spread back. In classification
the line goes through the log-probabilities and gives logits: a factor, which is one over a temperature, and a bias per
class (vector scaling without its factor per class; Guo et al. 2017, section 4.2),

.. math:: p_k \propto \exp(a \log m_k + b_k)

The bias is for rows whose class shares are others than those that the experts were trained on. Log-probabilities of
balanced training rows, plus a bias, are those of the shares in these rows (Saerens et al. 2002, eq. 2.4); here it is
fitted with the labels, so that it takes up what else is wrong with a class.

With a factor for each expert instead of the mixture's it is a logarithmic pool (Genest and Zidek 1986, section 3),
whose factors and biases are those of a multinomial regression: stacking (Wolpert 1992) with few parameters.

Shapes: n rows, E experts, K classes or targets, S terms.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import RidgeCV

from moeapps.core.mixing.calibration import MAX_ROWS
from moeapps.core.mixing.inputs import Floats, MixingData

__all__ = ["Line", "fit_line", "fit_stacked"]


@dataclass(frozen=True)
class Line:
    """What multiplies a mixed prediction and what is added to it, for each target or class.

    A mean of regressions varies less than the target does, the more so the more they differ, as weights that sum to 1
    cannot give it its spread back (Breiman 1996, "Stacked regressions", section 3, on sums that are left free). In
    classification predictions are log-probabilities, and what comes out are logits.

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

    @property
    def shares(self) -> Floats:
        """``(E,)`` shares of the experts in the absolute factors, which sum to 1; there must be free factors."""
        assert self.free is not None
        factors: Floats = np.abs(self.free).mean(axis=1)
        return factors / factors.sum() if factors.sum() > 0 else np.full(len(factors), 1 / len(factors))


LINE_ROWS = 10
"""So many rows of weight 1 stand for the line that changes nothing, with the variance that the predictions have."""

BIAS_PENALTY, FACTOR_PENALTY = 1.0, 10.0
"""Half of it times the squared biases, and the squared distances of the factors from equal ones that sum to 1, is added
to the summed log loss. Set on splits of the graphs that no table of the documentation uses
(``benchmarks/graph_gates.py``)."""


def fit_line(mixed: Floats, data: MixingData) -> Line:
    """Line with the least squared error, or log loss, drawn towards the one that changes nothing.

    In regression :data:`LINE_ROWS` rows draw it there, in classification the penalties.

    Parameters
    ----------
    mixed : float64 array of shape (n, K)
        Predictions for rows that the mixture was not fitted on; log-probabilities in classification.
    data : MixingData
        The rows, with their targets and weights.
    """
    if data.task == "classification":
        factors, bias = _fit_logits(replace(data, predictions=mixed[:, None]))
        return Line(factors.repeat(len(bias)), bias)
    prior, column, target = LINE_ROWS / data.amount, data.weight[:, None], data.target
    centre, wanted = (column * mixed).mean(axis=0), (column * target).mean(axis=0)
    spread = (column * (mixed - centre) ** 2).mean(axis=0)
    together = (column * (mixed - centre) * (target - wanted)).mean(axis=0)
    constant = spread <= 1e-18 * (1 + centre**2)
    slope = np.where(constant, 1.0, (together + prior * spread) / np.where(constant, 1.0, (1 + prior) * spread))
    middle = centre + (wanted - centre) / (1 + prior)
    return Line(slope, middle - slope * centre)


def fit_stacked(data: MixingData) -> Line:
    """Regression of the target on what the experts predict for it.

    For numbers a ridge regression of each target, as scikit-learn's StackingRegressor has it; the penalties that are
    tried suit targets in units of their standard deviations. For classes a multinomial regression on the
    log-probabilities, with a factor per expert and a bias per class.

    Parameters
    ----------
    data : MixingData
        Rows with targets, weights, and predictions of experts that have not seen them; calibrated ones for classes.
    """
    if data.task == "classification":
        factors, bias = _fit_logits(data)
        return Line(np.zeros(len(bias)), bias, factors[:, None].repeat(len(bias), axis=1))
    targets = range(data.target.shape[1])
    fits = [RidgeCV().fit(data.predictions[:, :, k], data.target[:, k], data.weight) for k in targets]
    intercepts = np.array([float(fit.intercept_) for fit in fits])
    return Line(np.zeros(len(fits)), intercepts, np.stack([fit.coef_ for fit in fits], axis=1))


def _fit_logits(data: MixingData) -> tuple[Floats, Floats]:
    """Factors ``(S,)`` of log-probabilities ``(n, S, K)`` and biases ``(K,)`` with the least penalised log loss.

    The loss is convex. scikit-learn's LogisticRegression has a factor for every pair of classes, not one per expert.
    """
    if len(data) > MAX_ROWS:
        data = data.rows(np.linspace(0, len(data) - 1, MAX_ROWS).astype(np.int64))
    terms, weight = data.predictions, data.weight * data.scale
    num_terms, num_classes = terms.shape[1:]
    flat = terms.swapaxes(0, 1).reshape(num_terms, -1)  # (S, n K), so that both products are those of matrices
    truth = np.eye(num_classes)[data.target]
    equal = np.full(num_terms, 1 / num_terms)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        factors, bias = parameters[:num_terms], parameters[num_terms:]
        log_probs = log_softmax((factors @ flat).reshape(-1, num_classes) + bias, axis=1)
        error = weight[:, None] * (np.exp(log_probs) - truth)
        slopes = flat @ error.ravel() + FACTOR_PENALTY * (factors - equal)
        away = FACTOR_PENALTY * np.square(factors - equal).sum() + BIAS_PENALTY * np.square(bias).sum()
        value = -float(weight @ (log_probs * truth).sum(axis=1)) + float(away) / 2
        return value, np.concatenate([slopes, error.sum(axis=0) + BIAS_PENALTY * bias])

    start = np.concatenate([equal, np.zeros(num_classes)])
    best: Floats = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    return best[:num_terms], best[num_terms:]
