"""Experts for any table, where the user names none: a linear model, boosting, a forest and a network."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.multioutput import MultiOutputRegressor
from sklearn.pipeline import Pipeline

from moeapps.core.checks import check_one_of
from moeapps.core.tabledata.kinds import ColumnKind
from moeapps.tables.classifier import MoEClassifier
from moeapps.tables.mixture.features import TableFeatures
from moeapps.tables.regressor import MoERegressor

__all__ = ["default_experts"]

_MANY = 20_000
"""Rows from which a forest's leaves are larger, so that its trees do not grow with the table."""


def default_experts(
    X: Any,
    y: Any,
    task: Literal["classification", "regression"],
    random_state: int | None = None,
    column_types: Mapping[str, ColumnKind] | None = None,
) -> list[tuple[str, Any]]:
    """Experts of different kinds, each of which reads any table that moeapps reads.

    Parameters
    ----------
    X : DataFrame or array of shape (n, P)
        The table; its size decides how large the experts are.
    y : array of shape (n,) or (n, T)
        Targets.
    task : {"classification", "regression"}
        What is to be predicted.
    random_state : int, optional
        Seed of the experts.
    column_types : dict, optional
        What columns are, where it shall not be inferred.

    Returns
    -------
    list of (str, estimator)
        ``linear`` (logistic regression or ridge on standardised numbers and one-hot categories), ``boosting``
        (HistGradientBoosting, categories as such), ``forest`` (random forest) and ``moe`` (MoEClassifier or
        MoERegressor), unfitted.
    """
    check_one_of("task", task, ("classification", "regression"))
    rows, targets = len(X), 1 if getattr(y, "ndim", 1) == 1 else y.shape[1]
    leaf = 1 if rows < _MANY else 5
    linear, boosting, forest, network = (
        (
            LogisticRegression(max_iter=500, random_state=random_state),
            HistGradientBoostingClassifier(random_state=random_state),
            RandomForestClassifier(min_samples_leaf=leaf, random_state=random_state),
            MoEClassifier(random_state=random_state, column_types=column_types),
        )
        if task == "classification"
        else (
            RidgeCV(alphas=(0.1, 1.0, 10.0, 100.0)),
            HistGradientBoostingRegressor(random_state=random_state),
            RandomForestRegressor(min_samples_leaf=leaf, random_state=random_state),
            MoERegressor(random_state=random_state, column_types=column_types),
        )
    )
    if targets > 1:  # boosting has one target
        boosting = MultiOutputRegressor(boosting)
    features = partial(TableFeatures, column_types=column_types)
    scaled = features("clipped" if task == "classification" else "onehot")
    # HistGradientBoosting takes at most 255 categories per column
    return [
        ("linear", Pipeline([("features", scaled), ("model", linear)])),
        ("boosting", Pipeline([("features", features("categories", max_categories=254)), ("model", boosting)])),
        ("forest", Pipeline([("features", features("codes")), ("model", forest)])),
        ("moe", network),
    ]
