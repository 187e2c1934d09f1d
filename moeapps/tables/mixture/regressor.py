"""Mixture of any regressors, behind scikit-learn's interface."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.base import RegressorMixin
from sklearn.utils import Tags

from moeapps.core.config import store_arguments
from moeapps.core.tabledata.kinds import ColumnKind
from moeapps.tables.mixture.answers import TargetAnswers
from moeapps.tables.mixture.estimator import MixtureEstimator
from moeapps.tables.mixture.experts import Named
from moeapps.tables.targets import NumericTarget

__all__ = ["MixtureRegressor"]


class MixtureRegressor(RegressorMixin, NumericTarget, MixtureEstimator):
    """Mixture of experts whose experts are any regressors: a gate weights them for each row.

    One target or several. The prediction is the weighted mean of the experts' predictions, and the gate minimises its
    squared error on targets that are standardised for this purpose; the experts get the targets as they are. Everything
    else is as in :class:`MixtureClassifier`.

    Parameters
    ----------
    experts : list of estimators or of (name, estimator) pairs, optional
        Regressors. None: a ridge regression, HistGradientBoosting, a random forest and a
        :class:`~moeapps.tables.MoERegressor`. With several targets, an expert that predicts only one is left out with a
        warning: wrap it in :class:`~sklearn.multioutput.MultiOutputRegressor`.
    n_jobs, verbose, random_state, column_types, ignore_columns
        As in :class:`MixtureClassifier`.
    gate, costs, budget, tolerance, inference, cv, calibrate
        As in :class:`MixtureClassifier`, with ``cv`` of folds that are not stratified. What ``calibrate`` fits is
        no temperature but a straight line for the mixed prediction, whose spread a mean of experts shrinks. One more
        gate competes, ``"stacked"``: a linear regression on what the experts predict, as in
        :class:`~sklearn.ensemble.StackingRegressor`. Its weights are the shares of its absolute factors.

    Attributes
    ----------
    experts_, expert_names_, named_experts_, mixture_, cascade_, candidates_, chosen_, costs_, failed_, gate_features_
        As in :class:`MixtureClassifier`.
    n_outputs_ : int
        Number of targets.
    target_mean_, target_scale_ : array of shape (T,)
        Means and standard deviations of the targets.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import RidgeCV
    >>> from sklearn.neighbors import KNeighborsRegressor
    >>> from moeapps import MixtureRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = MixtureRegressor([RidgeCV(), KNeighborsRegressor(20)], random_state=0).fit(X, y)
    >>> model.predict(X[:3]).shape
    (3,)
    """

    task: Literal["regression"] = "regression"

    def __init__(
        self,
        experts: Sequence[Any] | None = None,
        *,
        gate: Any = "auto",
        costs: Literal["measured"] | Mapping[str, float] | Sequence[float] = "measured",
        budget: float | None = None,
        tolerance: float | None = None,
        inference: Literal["mix", "cascade"] = "mix",
        cv: Any = 5,
        calibrate: bool = True,
        n_jobs: int | None = None,
        verbose: bool = False,
        random_state: Any = None,
        column_types: Mapping[str, ColumnKind] | None = None,
        ignore_columns: Sequence[Any] | None = None,
    ) -> None:
        store_arguments(self, locals())

    def _learn_answers(self, y: NDArray[Any], weight: NDArray[np.float64], named: Named) -> None:
        self._learn_target(y, weight)
        self.answers_ = TargetAnswers(self.target_mean_, self.target_scale_)

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Predicted targets, shape (n,) or (n, T) as in :meth:`fit`."""
        return self._decode_target(self._answers(X).mixed)

    def _row_scores(self, mixed: NDArray[np.float64], target: NDArray[Any]) -> NDArray[np.float64]:
        return np.sqrt(np.square((mixed - target) * self.target_scale_).mean(axis=1))

    def _groups(self, X: Any) -> NDArray[Any]:
        return np.full(len(self._table(X, reset=False)), "all")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = all(expert.target_tags.multi_output for expert in self._expert_tags())
        return tags
