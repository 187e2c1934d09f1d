"""Rows or images in splits: fit on some, score on the others."""

import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.model_selection import (
    GroupKFold,
    RepeatedKFold,
    RepeatedStratifiedKFold,
    StratifiedGroupKFold,
    TimeSeriesSplit,
)

from moeapps.comparison.scoring import Scoring
from moeapps.comparison.task import Candidate, Measured, Task
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.tabledata.source import listed
from moeapps.core.views import Views

__all__ = ["FOLDS", "SplitTask", "Splits", "make_splits", "measured", "seeded", "told_rare"]

FOLDS = 5
"""A fifth of the rows is tested on in each split; more than five splits are further rounds of five."""

Splits = list[tuple[NDArray[np.int64], NDArray[np.int64]]]
"""Rows to train on and rows to test on."""


def make_splits(
    y: NDArray[Any], splits: int, seed: int, *, classes: bool, groups: Any = None, times: NDArray[Any] | None = None
) -> Splits:
    """Splits that all models share.

    Parameters
    ----------
    y : array of shape (n,)
        Targets.
    splits : int
        Number of splits.
    seed : int
        Seed of the splits.
    classes : bool
        Whether the splits are stratified by ``y``.
    groups : array of shape (n,), optional
        No group is in both parts of a split; rows without one are one group.
    times : array of shape (n,), optional
        Times of rows that are in their order: then each split trains on the rows before those that it tests on, without
        those of the time at which its test begins.

    Returns
    -------
    list of (train, test)
        Row numbers.

    Raises
    ------
    DataError
        If there are too few rows, or groups, to split.
    """
    least = splits + 1 if times is not None else FOLDS
    if len(y) < 2 * least:
        raise DataError(f"{len(y)} rows are too few to compare models by {splits} splits: at least {2 * least}")
    if times is not None:
        parts = [(train[times[train] < times[test[0]]], test) for train, test in TimeSeriesSplit(splits).split(y)]
        if not len(parts[0][0]):
            raise DataError(
                f"time: the first {len(parts[0][1])} rows are of one time: nothing is before the first test"
            )
        return parts
    if classes and max(np.unique(y, return_counts=True)[1]) < FOLDS:
        raise DataError(f"no class has the {FOLDS} rows that are needed to test on a fifth of them")
    rounds = math.ceil(splits / FOLDS)
    if groups is not None:
        groups, _ = pd.factorize(groups, use_na_sentinel=False)
        found = len(np.unique(groups))
        if found < FOLDS:
            raise DataError(f"groups has {found} different values, at least {FOLDS} are needed")
        kind: Any = StratifiedGroupKFold if classes else GroupKFold
        folds = [kind(FOLDS, shuffle=True, random_state=seed + number) for number in range(rounds)]
    else:
        repeated = RepeatedStratifiedKFold if classes else RepeatedKFold
        folds = [repeated(n_splits=FOLDS, n_repeats=rounds, random_state=seed)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of rare classes, which are told
        return [part for fold in folds for part in fold.split(y, y if classes else None, groups)][:splits]


def told_rare(y: NDArray[Any]) -> list[str]:
    """A sentence about classes of which some splits have no row to test on."""
    values, counts = np.unique(y, return_counts=True)
    rare = [str(value) for value in values[counts < FOLDS]]
    return [f"Fewer than {FOLDS} rows, so that not every split tests them: {listed(rare, 5)}."] if rare else []


class SplitTask(Task):
    """Rows of a table, or images, with targets.

    Parameters
    ----------
    kind : str
        What is predicted.
    X : DataFrame or array with n rows
        What models learn from.
    y : array of shape (n,)
        Targets.
    scoring : Scoring
        Metrics.
    parts : list of (train, test)
        Rows of the splits.
    split_name : str
        What a split is called.
    data, told, candidates, seed
        As in :class:`~moeapps.comparison.task.Task`.
    """

    def __init__(
        self,
        kind: str,
        X: Any,
        y: NDArray[Any],
        scoring: Scoring,
        parts: Splits,
        *,
        data: str,
        told: Sequence[str],
        candidates: Sequence[Candidate],
        seed: int,
        split_name: str = "fold",
    ) -> None:
        overlap = float(np.mean([len(test) / len(train) for train, test in parts]))
        super().__init__(data, told, scoring.metrics, candidates, len(parts), overlap, seed)
        self.kind, self.X, self.y, self.scoring, self.parts = kind, X, y, scoring, parts
        self.split_name = split_name

    def measure(self, candidate: Candidate, split: int) -> Measured:
        """Fit on the split's training rows, predict and score its test rows."""
        train, test = self.parts[split]
        model = candidate.make(self.seed + split)
        start = time.perf_counter()
        model.fit(self._rows(train), self.y[train])
        return measured(model, self.scoring, self._rows(test), self.y[test], start)

    def _rows(self, rows: NDArray[np.int64]) -> Any:
        return self.X.iloc[rows].reset_index(drop=True) if isinstance(self.X, pd.DataFrame) else self.X[rows]


def measured(
    model: Any, scoring: Scoring, X: Any, y: NDArray[Any], start: float, of_all: Callable[[Any], Any] | None = None
) -> Measured:
    """Predict with a model that was fitted since ``start``, and score it.

    Parameters
    ----------
    model : estimator
        The fitted model.
    scoring : Scoring
        Metrics.
    X : object
        What is predicted.
    y : array of shape (n,)
        Its targets.
    start : float
        When fitting began, by ``time.perf_counter``.
    of_all : callable, optional
        Takes the predictions for ``X`` and returns those that ``y`` belongs to.
    """
    fitted = time.perf_counter()
    predictions = scoring.predictions(model, X)
    done = time.perf_counter()
    predictions = predictions.labelled_by(model, X)  # a second pass, which is not in the time
    if of_all is not None:
        predictions = of_all(predictions)
    network = getattr(model, "model_", None)
    parameters = sum(p.numel() for p in network.parameters()) if isinstance(network, torch.nn.Module) else 0
    history = getattr(model, "history_", None)
    return Measured(
        scoring.scores(predictions, y),
        fitted - start,
        done - fitted,
        len(y),
        parameters,
        _note(model),
        history if isinstance(history, pd.DataFrame) else None,
        _views(model),
    )


def seeded(model: Any, seed: int) -> Any:
    """Copy of an unfitted estimator, with the seed where it has ``random_state`` and none is set.

    Raises
    ------
    ConfigError
        If it is not an estimator.
    """
    try:
        copied = clone(model)
    except TypeError as error:
        raise ConfigError(f"models must hold estimators: {error}") from None
    if copied.get_params(deep=False).get("random_state", 0) is None:
        copied.set_params(random_state=seed)
    return copied


def _note(model: Any) -> str:
    """What a mixture chose by itself."""
    if hasattr(model, "chosen_") and hasattr(model, "expert_names_"):
        return f"gate {model.chosen_!r} over the experts {', '.join(model.expert_names_)}"
    if hasattr(model, "champion_") and hasattr(model, "selected_"):
        kept = ", ".join(str(row["name"]) for row in model.selected_ if row.get("kept", True))
        return f"kept the experts {kept}; predicts with {model.champion_!r}"
    return ""


def _views(model: Any) -> Views:
    """Maps and curves that the network describes itself by."""
    views = getattr(getattr(model, "model_", None), "views", None)
    try:
        found = views() if callable(views) else None
    except Exception:  # a picture more or less does not decide about a comparison
        found = None
    return found if isinstance(found, Views) else Views()
