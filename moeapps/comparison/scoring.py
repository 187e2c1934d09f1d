"""Scores by scikit-learn's names, from predictions that were made once."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import get_scorer, get_scorer_names, log_loss, make_scorer

from moeapps.comparison.task import Metric, named_or_nearest
from moeapps.core.errors import ConfigError

__all__ = ["ClassPredictions", "NumberPredictions", "Scoring"]

Kind = Literal["classification", "regression"]

_SHORT = {
    "neg_log_loss": "log loss",
    "roc_auc": "AUC",
    "roc_auc_ovr": "AUC",
    "r2": "R2",
    "neg_mean_absolute_error": "MAE",
    "neg_root_mean_squared_error": "RMSE",
    "neg_mean_squared_error": "MSE",
}
"""Names in tables, where they are not scikit-learn's without "neg"."""


class _Predictions(BaseEstimator):
    """Stands for a fitted model whose predictions are known."""

    def __sklearn_is_fitted__(self) -> bool:
        return True


class ClassPredictions(ClassifierMixin, _Predictions):
    """A classifier as scorers see it, whatever rows they ask about.

    Parameters
    ----------
    labels : array of shape (n,)
        Predicted labels.
    probabilities : array of shape (n, K), optional
        Probabilities of the classes.
    classes : array of shape (K,)
        All classes of the data.
    """

    def __init__(self, labels: NDArray[Any], probabilities: NDArray[np.float64] | None, classes: NDArray[Any]) -> None:
        self.labels, self.probabilities, self.classes_ = labels, probabilities, classes

    @classmethod
    def of(cls, model: Any, X: Any, classes: NDArray[Any]) -> "ClassPredictions":
        """Let a fitted model predict; classes that it has not seen get a probability of 0."""
        if not hasattr(model, "predict_proba"):
            return cls(np.asarray(model.predict(X)), None, classes)
        found = np.asarray(model.predict_proba(X), dtype=np.float64)
        probabilities = np.zeros((len(found), len(classes)))
        probabilities[:, np.searchsorted(classes, model.classes_)] = found
        return cls(classes[probabilities.argmax(axis=1)], probabilities, classes)

    def labelled_by(self, model: Any, X: Any) -> "ClassPredictions":
        """The same with the model's own labels: one with another threshold does not choose the likeliest class."""
        if self.probabilities is None or type(model).__module__.startswith("moeapps."):  # which do
            return self
        return ClassPredictions(np.asarray(model.predict(X)), self.probabilities, self.classes_)

    def predict(self, X: Any) -> NDArray[Any]:
        """The labels."""
        return self.labels

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """The probabilities."""
        if self.probabilities is None:
            raise AttributeError("the model has no predict_proba")
        return self.probabilities


class NumberPredictions(RegressorMixin, _Predictions):
    """A regressor as scorers see it.

    Parameters
    ----------
    numbers : array of shape (n,)
        Predictions.
    """

    def __init__(self, numbers: NDArray[np.float64]) -> None:
        self.numbers = numbers

    @classmethod
    def of(cls, model: Any, X: Any, classes: Any = None) -> "NumberPredictions":
        """Let a fitted model predict."""
        return cls(np.asarray(model.predict(X), dtype=np.float64))

    def labelled_by(self, model: Any, X: Any) -> "NumberPredictions":
        """The same: numbers have no labels."""
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:
        """The predictions."""
        return self.numbers


class Scoring:
    """Metrics of a task; the first one counts.

    Parameters
    ----------
    usual : sequence of str
        scikit-learn's names of the metrics that are shown in any case.
    wanted : str, sequence of str, or None
        What counts instead of the first of them, and what is shown beside them.
    y : array of shape (n,)
        All targets.
    classes : array of shape (K,), optional
        Of a classification.

    Attributes
    ----------
    metrics : list of Metric
        The metrics, in their order.

    Raises
    ------
    ConfigError
        If a name is unknown, or the metric is not defined for the targets.
    """

    def __init__(self, usual: Sequence[str], wanted: Any, y: NDArray[Any], classes: NDArray[Any] | None = None) -> None:
        given = [wanted] if isinstance(wanted, str) else list(wanted or [])
        # what the table calls AUC is AUC here, too
        short = {_SHORT[name].casefold(): name for name in reversed(list(_SHORT))}
        short |= {_SHORT[name].casefold(): name for name in usual if name in _SHORT}
        wished = [short.get(str(name).casefold(), name) for name in given]
        names = [named_or_nearest("metric", name, _common_first(get_scorer_names())) for name in wished]
        self.classes = classes
        self.names = list(dict.fromkeys([*names, *usual]))
        self.metrics = [_metric(name) for name in self.names]
        self._scorers = [self._scorer(name) for name in self.names]
        self._try(names, y)

    def _scorer(self, name: str) -> Any:
        if name == "neg_log_loss":  # scikit-learn's needs every class among the test rows
            return make_scorer(log_loss, greater_is_better=False, response_method="predict_proba", labels=self.classes)
        return get_scorer(name)

    def _try(self, names: list[str], y: NDArray[Any]) -> None:
        """Refuse a metric that has no value even for the simplest predictions, before anything is fitted."""
        for name, scorer in zip(self.names, self._scorers, strict=True):
            if name in names:
                try:
                    scorer(self._simplest(y), None, y)
                except (ValueError, TypeError, AttributeError) as error:
                    reason = str(error).splitlines()[0]
                    raise ConfigError(f"metric: {name!r} is not defined for this target ({reason})") from None

    def _simplest(self, y: NDArray[Any]) -> Any:
        if self.classes is None:
            return NumberPredictions(np.full(len(y), float(np.mean(y))))
        share = np.full((len(y), len(self.classes)), 1 / len(self.classes))
        return ClassPredictions(np.full(len(y), self.classes[0], dtype=self.classes.dtype), share, self.classes)

    def predictions(self, model: Any, X: Any) -> Any:
        """What a fitted model predicts, for :meth:`scores`."""
        return NumberPredictions.of(model, X) if self.classes is None else ClassPredictions.of(model, X, self.classes)

    def scores(self, predictions: Any, y: NDArray[Any]) -> dict[str, float]:
        """Scores by the names of the metrics; NaN where one is not defined, as AUC of one class."""
        found = {}
        for metric, scorer in zip(self.metrics, self._scorers, strict=True):
            try:
                value = float(scorer(predictions, None, y))
            except (ValueError, AttributeError):
                value = float("nan")
            found[metric.name] = -value if metric.smaller else value
        return found


def _common_first(names: Sequence[str]) -> list[str]:
    common = ["accuracy", *_SHORT, "f1", "f1_macro", "average_precision", "balanced_accuracy"]
    return [*common, *(name for name in names if name not in common)]


def _metric(name: str) -> Metric:
    smaller = name.startswith("neg_")
    return Metric(_SHORT.get(name, name.removeprefix("neg_").replace("_", " ")), smaller)
