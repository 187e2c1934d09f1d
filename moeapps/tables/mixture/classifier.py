"""Mixture of any classifiers, behind scikit-learn's interface."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin

from moeapps.core.config import store_arguments
from moeapps.core.errors import DataError
from moeapps.core.labels import UNKNOWN, class_labels, encode
from moeapps.core.tabledata.kinds import ColumnKind
from moeapps.tables.mixture.answers import ClassAnswers, probability_floor
from moeapps.tables.mixture.estimator import MixtureEstimator
from moeapps.tables.mixture.experts import Named
from moeapps.tables.targets import refuse_several_labels

__all__ = ["MixtureClassifier"]


class MixtureClassifier(ClassifierMixin, MixtureEstimator):
    """Mixture of experts whose experts are any classifiers: a gate weights them for each row.

    Every expert is fitted on ``cv`` folds, as in :class:`~sklearn.ensemble.StackingClassifier`. From what they predict
    for the rows that they have not seen, the gate learns weights of the experts (Jacobs et al. 1991, by the likelihood
    of the mixture): from the row's features and from how sure each expert is, whose probabilities have a temperature
    each. Several gates compete, down to a single expert alone, and are judged by rows that they have not seen, so that
    the mixture should be no worse than its best expert beyond noise. Afterwards every expert is fitted on all rows.

    Parameters
    ----------
    experts : list of estimators or of (name, estimator) pairs, optional
        Classifiers with ``predict_proba``: pipelines, gradient boosting of any library, networks, moeapps' own. They
        are cloned, and get the rows as they are. An estimator without a name gets that of its class in lower case.
        ``"drop"`` in the place of an estimator leaves it out. None: a logistic regression, HistGradientBoosting, a
        random forest and a :class:`~moeapps.tables.MoEClassifier`, each of which reads any table that moeapps reads.
    gate : str or GateConfig, default="auto"
        "auto" lets all compete: each expert alone, "mean" (equal weights), "constant" (the same weights for all rows),
        "confidence" (weights by how sure the experts are), "linear" and "mlp" (by the row as well). The name of one
        fixes it, and "best" takes the best expert alone. "stacked", which does not compete, is a multinomial
        regression on the experts' log-probabilities with a factor per expert and a bias per class. A
        :class:`~moeapps.core.mixing.GateConfig` sets its router, ``top_k`` and width.
    costs : "measured", dict or list, default="measured"
        Cost of running each expert for a row: seconds measured in ``fit``, or numbers above 0 by name or in the order
        of ``experts``. Measured ones differ a little from fit to fit; give numbers if a cascade must be reproducible.
    budget : float, optional
        For the cascade: mean cost per row, as a fraction above 0 and at most 1 of the cost of running all experts.
    tolerance : float, optional
        For the cascade: how much worse the loss may be than that of running all experts. Not with ``budget``.
    inference : {"mix", "cascade"}, default="mix"
        "mix" runs for each row all experts that the gate can use; "cascade" runs them in the order of their cost, and
        stops for a row when the next one is not expected to be worth its cost. May be changed after the fit.
    cv : int, "prefit", splitter or list of (train, test), default=5
        Folds: a number of shuffled stratified ones, a splitter of scikit-learn, or given rows. A row that no fold
        predicts teaches the gate nothing. "prefit": the experts are fitted already, on other rows than those given to
        ``fit``, and are kept as they are.
    calibrate : bool, default=True
        Whether each expert's probabilities get a temperature.
    n_jobs : int, optional
        Processes that fit experts and folds, as in joblib. It changes no result.
    verbose : bool, default=False
        Whether to show a progress bar over experts and folds.
    random_state : int or RandomState, optional
        Seed of folds and gate, and of those experts whose own ``random_state`` is None.
    column_types : dict, optional
        What columns of a DataFrame are to the gate and to the experts that are chosen for the data: ``{"zip":
        "category"}``; one of "number", "category", "id", "time".
    ignore_columns : list of names or positions, optional
        Columns that neither gate nor experts get. They do not get ids either (a different value in nearly every row),
        with a warning, unless ``column_types`` says what they are or the experts are fitted already
        (``cv="prefit"``). A frame to predict may have these columns or not.

    Attributes
    ----------
    classes_ : array of shape (K,)
        Labels.
    experts_ : list of estimators
        Experts fitted on all rows. One that learns no labels but 0 to K-1 is wrapped in
        :class:`~moeapps.tables.mixture.experts.CodedLabels`.
    expert_names_ : list of str
        Their names.
    named_experts_ : Bunch
        Experts by name.
    mixture_ : GatedMixture
        Gate, temperatures and choice.
    cascade_ : Cascade
        Order of the experts and threshold.
    candidates_ : DataFrame
        Gates that competed, with loss and standard error on rows that they had not seen.
    chosen_ : str
        The candidate that predicts.
    temperatures_ : Series
        Temperature of each expert.
    costs_ : Series
        Cost per row of each expert: seconds, if measured.
    failed_ : dict
        Reason for each expert that failed in some fold and was left out, with a warning.
    gate_features_ : TableFeatures
        Encoder of the gate's features.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    See Also
    --------
    sklearn.ensemble.StackingClassifier : one linear model of all experts' predictions, the same for all rows.

    Notes
    -----
    Labels reach the experts as they are given, so that an expert's ``class_weight`` by label works. In a fold whose
    rows lack a class, an expert's probability of that class is 1 / (n K), 0.001 at most.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.naive_bayes import GaussianNB
    >>> from moeapps import MixtureClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = MixtureClassifier([LogisticRegression(max_iter=500), GaussianNB()], random_state=0).fit(X, y)
    >>> model.score(X, y) > 0.9
    True
    >>> model.weights(X[:2]).columns.tolist()
    ['logisticregression', 'gaussiannb']
    """

    task: Literal["classification"] = "classification"
    classes_: NDArray[Any]

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

    def _check_target(self, y: Any) -> NDArray[Any]:
        refuse_several_labels(y, self)
        return class_labels(y)

    def _learn_answers(self, y: NDArray[Any], weight: NDArray[np.float64], named: Named) -> None:
        # prefit experts may know classes that the rows given here lack
        known = [np.asarray(expert.classes_) for _, expert in named if hasattr(expert, "classes_")]
        try:
            self.classes_ = np.unique(np.concatenate([y, *known]))
        except TypeError:
            raise DataError("the labels of y are of another type than those of the fitted experts") from None
        if len(self.classes_) < 2:
            raise DataError(
                f"{type(self).__name__} needs samples of at least 2 classes in y, got one class: "
                f"{self.classes_.tolist()[0]!r}"
            )
        self.answers_ = ClassAnswers(self.classes_, probability_floor(weight.sum(), len(self.classes_)))

    def _encode_target(self, y: NDArray[Any]) -> NDArray[np.int64]:
        codes = encode(y, self.classes_)
        if (codes == UNKNOWN).any():
            new = y[codes == UNKNOWN][:1].tolist()[0]
            raise DataError(f"y has the label {new!r}, which is not among the classes {self.classes_.tolist()}")
        return codes

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Class probabilities, shape (n, K); columns in the order of ``classes_``."""
        return self._answers(X).mixed

    def predict_log_proba(self, X: Any) -> NDArray[np.float64]:
        """Logarithms of the class probabilities."""
        with np.errstate(divide="ignore"):
            logs: NDArray[np.float64] = np.log(self.predict_proba(X))
        return logs

    def predict(self, X: Any) -> NDArray[Any]:
        """Most probable class of each row."""
        best = self.predict_proba(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def _row_scores(self, mixed: NDArray[np.float64], target: NDArray[Any]) -> NDArray[np.float64]:
        return (mixed.argmax(axis=1) == target).astype(np.float64)

    def _groups(self, X: Any) -> NDArray[Any]:
        return self.predict(X)
