"""Experts of a mixture: named, checked, and behind one way to ask them whatever their labels are."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline
from sklearn.utils import Tags, check_random_state, get_tags
from sklearn.utils.metaestimators import _BaseComposition
from sklearn.utils.validation import check_is_fitted, has_fit_parameter

from moeapps.core.errors import ConfigError
from moeapps.core.labels import encode

__all__ = ["CodedLabels", "ExpertComposition", "check_experts", "name_experts", "seeded", "weight_argument"]

DROP = "drop"
"""In the place of an expert: leave it out."""

Named = list[tuple[str, Any]]


def name_experts(experts: Any) -> Named:
    """Experts as (name, estimator) pairs; an estimator without a name is called as its class, in lower case.

    Several of one class are called ``-1``, ``-2`` and so on, as in :func:`sklearn.pipeline.make_pipeline`.

    Raises
    ------
    ConfigError
        If it is no list of estimators and pairs.
    """
    if not isinstance(experts, Sequence) or isinstance(experts, str) or not experts:
        raise ConfigError(
            f"experts must be a list of estimators or of (name, estimator) pairs, or None for a choice for the data, "
            f"got {experts!r}"
        )
    pairs: list[tuple[str | None, Any]] = []
    for entry in experts:
        if isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str):
            pairs.append(entry)
        elif isinstance(entry, tuple | list | str | type) or not hasattr(entry, "fit"):
            raise ConfigError(f"experts must be estimators or (name, estimator) pairs, got {entry!r} among them")
        else:
            pairs.append((None, entry))
    kinds = [type(expert).__name__.lower() for name, expert in pairs if name is None]
    total, seen = Counter(kinds), Counter[str]()
    named: Named = []
    for name, expert in pairs:
        if name is None:
            kind = type(expert).__name__.lower()
            seen[kind] += 1
            name = kind if total[kind] == 1 else f"{kind}-{seen[kind]}"
        named.append((name, expert))
    return named


def check_experts(named: Named, task: str, arguments: Sequence[str]) -> Named:
    """Experts that take part, each able to do what the task asks for.

    Parameters
    ----------
    named : list of (str, estimator)
        What :func:`name_experts` gives.
    task : {"classification", "regression"}
        What they are to predict.
    arguments : sequence of str
        Names that an expert cannot have: the mixture's own arguments.

    Raises
    ------
    ConfigError
        Naming the expert.
    """
    counts = Counter(name for name, _ in named)
    for name, number in counts.items():
        if number > 1:
            raise ConfigError(f"experts must have different names, got {name!r} {number} times")
        if not name or "__" in name or name in arguments:
            why = "is empty" if not name else "has two underscores" if "__" in name else "is an argument of the mixture"
            raise ConfigError(f"an expert cannot be called {name!r}: the name {why}")
    kept = [(name, expert) for name, expert in named if not (isinstance(expert, str) and expert == DROP)]
    if not kept:
        raise ConfigError("every expert is 'drop': at least one must remain")
    for name, expert in kept:
        if not hasattr(expert, "fit") or isinstance(expert, type):
            raise ConfigError(f"expert {name!r} must be an estimator or 'drop', got {expert!r}")
        _check_kind(name, expert, task)
    return kept


def tags_of(expert: Any) -> Tags | None:
    """scikit-learn's tags of an expert; None for one that has none, from a library older than they are."""
    try:
        return get_tags(expert)
    except (AttributeError, TypeError):
        return None


def _check_kind(name: str, expert: Any, task: str) -> None:
    kind = type(expert).__name__
    tags = tags_of(expert)
    if task == "classification":
        if tags is not None and tags.estimator_type == "regressor":
            raise ConfigError(f"expert {name!r} is a regressor, {kind}: a classifier is needed, or MixtureRegressor")
        if not hasattr(expert, "predict_proba"):
            raise ConfigError(
                f"expert {name!r} ({kind}) has no predict_proba, which a mixture of classifiers needs: wrap it, "
                f"sklearn.calibration.CalibratedClassifierCV({kind}(...)), or set what makes it predict probabilities"
            )
    else:
        if tags is not None and tags.estimator_type == "classifier":
            raise ConfigError(f"expert {name!r} is a classifier, {kind}: a regressor is needed, or MixtureClassifier")
        if not hasattr(expert, "predict"):
            raise ConfigError(f"expert {name!r} ({kind}) has no predict")


def check_fitted_experts(named: Named) -> None:
    """Refuse experts that are not fitted, for ``cv="prefit"``.

    Raises
    ------
    NotFittedError
        Naming the expert.
    """
    for name, expert in named:
        try:
            check_is_fitted(expert)
        except NotFittedError:
            raise NotFittedError(
                f"expert {name!r} is not fitted: with cv='prefit' fit it first, on other rows than those given here, "
                "or set cv to a number of folds"
            ) from None


def weight_argument(name: str, expert: Any) -> str:
    """Argument of the expert's ``fit`` that takes weights of rows.

    Raises
    ------
    ConfigError
        If it has none, as :class:`~sklearn.ensemble.StackingClassifier` does.
    """
    target, argument = expert, "sample_weight"
    while isinstance(target, Pipeline):
        step, last = target.steps[-1]
        argument, target = f"{step}__{argument}", last
    if not has_fit_parameter(target, "sample_weight"):
        raise ConfigError(
            f"expert {name!r} ({type(target).__name__}) does not take sample_weight: fit without weights, or drop "
            "this expert"
        )
    return argument


def seeded(expert: Any, seed: int) -> Any:
    """Clone whose random states that are None are seeded; those that the user has set stay."""
    copied = clone(expert)
    params = copied.get_params(deep=True) if hasattr(copied, "get_params") else {}
    draw = check_random_state(seed)
    free = {
        name: int(draw.randint(np.iinfo(np.int32).max))
        for name in sorted(params)
        if (name == "random_state" or name.endswith("__random_state")) and params[name] is None
    }
    return copied.set_params(**free) if free else copied


class CodedLabels(MetaEstimatorMixin, ClassifierMixin, BaseEstimator):
    """Classifier that learns the numbers 0 to K-1 in the place of labels, for one that knows no others (XGBoost).

    Parameters
    ----------
    estimator : estimator
        Classifier with ``predict_proba``.

    Attributes
    ----------
    estimator_ : estimator
        Fitted.
    classes_ : array of shape (K,)
        Labels, in the order of the columns of ``predict_proba``.
    """

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator

    def fit(self, X: Any, y: Any, **params: Any) -> Self:
        """Fit a clone of the classifier; further parameters are its own."""
        self.classes_, codes = np.unique(y, return_inverse=True)
        self.estimator_ = clone(self.estimator).fit(X, codes, **params)
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Class probabilities, shape (n, K)."""
        probabilities: NDArray[np.float64] = self.estimator_.predict_proba(X)
        return probabilities

    def predict(self, X: Any) -> NDArray[Any]:
        """Most probable label of each row."""
        labels: NDArray[Any] = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return labels

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        if (inner := tags_of(self.estimator)) is not None:
            tags.input_tags = inner.input_tags
        return tags


def needs_codes(expert: Any, classes: NDArray[Any], labels: NDArray[Any]) -> bool:
    """Whether labels differ from codes, and no dictionary of the expert (``class_weight``) speaks of labels."""
    if np.array_equal(encode(labels, classes), labels) and len(np.unique(labels)) == int(np.max(labels)) + 1:
        return False
    params = expert.get_params(deep=True) if hasattr(expert, "get_params") else {}
    return not any(name.endswith("class_weight") and isinstance(value, Mapping) for name, value in params.items())


class ExpertComposition(_BaseComposition):
    """Parameters of experts by name, ``hgb__max_iter``, as :class:`~sklearn.ensemble.VotingClassifier` has them."""

    experts: Any

    def _expert_tags(self) -> list[Tags]:
        """Tags of the experts that have some."""
        experts = [expert for _, expert in self._named() if hasattr(expert, "fit") and not isinstance(expert, type)]
        return [tags for expert in experts if (tags := tags_of(expert)) is not None]

    def _named(self) -> Named:
        """The experts by name; none where they are not given or no list of estimators."""
        try:
            return [] if self.experts is None else name_experts(self.experts)
        except ConfigError:  # fit says so; get_params and set_params must work all the same
            return []

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Constructor arguments and, if ``deep``, the experts and their parameters by name."""
        params: dict[str, Any] = super().get_params(deep=False)
        if deep:
            for name, expert in self._named():
                params[name] = expert
                if hasattr(expert, "get_params") and not isinstance(expert, type):
                    params |= {f"{name}__{key}": value for key, value in expert.get_params(deep=True).items()}
        return params

    def set_params(self, **params: Any) -> Self:
        """Set constructor arguments, experts by name (``hgb="drop"``), and their parameters (``hgb__max_iter=50``)."""
        if "experts" in params:
            self.experts = params.pop("experts")
        named = self._named()
        own = super().get_params(deep=False)
        replaced = {name: params.pop(name) for name, _ in named if name in params and name not in own}
        if replaced:
            self.experts = [(name, replaced.get(name, expert)) for name, expert in named]
        super().set_params(**params)
        return self
