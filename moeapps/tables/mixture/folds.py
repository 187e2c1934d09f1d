"""Out-of-fold predictions: every expert on every fold, and once on all rows, in parallel."""

# n rows, E experts, K classes or targets

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.model_selection import KFold, PredefinedSplit, StratifiedKFold
from sklearn.utils.parallel import Parallel, delayed

from moeapps.core.checks import check_sizes
from moeapps.core.errors import ConfigError, DataError
from moeapps.tables.mixture.answers import ClassAnswers, TargetAnswers
from moeapps.tables.mixture.experts import CodedLabels, needs_codes, seeded, weight_argument

__all__ = ["FittedExperts", "fit_experts", "make_folds", "take"]

Answers = ClassAnswers | TargetAnswers
Folds = list[tuple[NDArray[np.int64], NDArray[np.int64]]]


def take(X: Any, rows: NDArray[Any]) -> Any:
    """Rows of a frame or array."""
    return X.iloc[rows] if isinstance(X, pd.DataFrame) else X[rows]


def make_folds(
    cv: Any, X: Any, y: NDArray[Any], seed: int, codes: NDArray[np.int64] | None, counts: NDArray[np.bool_]
) -> Folds:
    """Rows to fit on and rows to predict, by fold; no row is predicted twice.

    Parameters
    ----------
    cv : int, splitter or iterable of (train, test)
        A number means shuffled folds, with classes in equal ratios as far as they have as many rows.
    X, y
        Rows that count and their targets.
    seed : int
        Seed of the shuffle.
    codes : array of shape (n,), optional
        Class of each row.
    counts : array of bool
        Which of all rows count; (train, test) of an iterable are rows of all.

    Raises
    ------
    ConfigError
        If it is none of these, or its folds cannot be used.
    """
    n = len(y)
    given = np.where(counts, np.cumsum(counts) - 1, -1)  # places of all rows among those that count
    if isinstance(cv, int | np.integer) and not isinstance(cv, bool):
        return _shuffled(int(cv), n, seed, codes)
    if isinstance(cv, PredefinedSplit):  # it has a fold for each of all rows, whatever it is given
        if len(cv.test_fold) != len(counts):
            raise ConfigError(f"cv is a PredefinedSplit of {len(cv.test_fold)} rows, X has {len(counts)}")
        pairs, places = list(cv.split()), given
    elif hasattr(cv, "split"):
        pairs, places = list(cv.split(X, y)), np.arange(n)
    elif isinstance(cv, Iterable) and not isinstance(cv, str):
        pairs, places = list(cv), given
    else:
        raise ConfigError(
            "cv must be a number of folds, 'prefit', a splitter of scikit-learn or a list of (train, test) rows, "
            f"got {cv!r}"
        )
    folds: Folds = []
    asked = np.zeros(n, dtype=np.int64)
    for pair in pairs:
        try:
            train, test = (places[np.asarray(part)] for part in pair)
        except IndexError as error:
            raise ConfigError(f"cv has rows that X, of {len(places)} rows, does not have: {error}") from None
        train, test = train[train >= 0], test[test >= 0]
        if not len(train):
            raise ConfigError("cv has a fold without rows to fit on")
        asked[test] += 1
        if len(test):
            folds.append((train, test))
    if not folds or (asked > 1).any():
        twice = f" and row {int(np.argmax(asked > 1))} is predicted {int(asked.max())} times" if folds else ""
        raise ConfigError(f"cv must predict every row at most once, got {len(folds)} folds{twice}")
    return folds


def _shuffled(folds: int, n: int, seed: int, codes: NDArray[np.int64] | None) -> Folds:
    check_sizes(cv=folds)
    if folds < 2:
        raise ConfigError(f"cv must be at least 2 folds, got {folds}; experts that are fitted already: cv='prefit'")
    if n < 2:
        raise DataError(f"out-of-fold predictions need at least 2 rows, got n_samples={n}")
    largest = n if codes is None else int(np.bincount(codes).max())
    if codes is not None and largest >= 2:
        with warnings.catch_warnings():  # of classes with fewer rows than folds: their rows are in some folds only
            warnings.simplefilter("ignore", UserWarning)
            split = StratifiedKFold(min(folds, largest), shuffle=True, random_state=seed)
            return list(split.split(np.zeros(n), codes))
    return list(KFold(min(folds, n), shuffle=True, random_state=seed).split(np.zeros(n)))


@dataclass
class FittedExperts:
    """Experts fitted on all rows, and what those of the folds have predicted.

    Attributes
    ----------
    experts : list of (str, estimator)
        Those that did not fail.
    predictions : array of shape (m, E, K)
        Out-of-fold predictions of the rows below.
    rows : array of shape (m,)
        Rows that a fold has predicted, in order.
    failed : dict
        Reason for each expert that failed.
    """

    experts: list[tuple[str, Any]]
    predictions: NDArray[np.float64]
    rows: NDArray[np.int64]
    failed: dict[str, str]


def fit_experts(
    named: Sequence[tuple[str, Any]],
    X: Any,
    y: NDArray[Any],
    weight: NDArray[np.float64] | None,
    folds: Folds,
    answers: Answers,
    seeds: Sequence[int],
    n_jobs: int | None = None,
    verbose: bool = False,
) -> FittedExperts:
    """Fit a clone of every expert per fold and one on all rows.

    Parameters
    ----------
    named : sequence of (str, estimator)
        Experts; they are cloned.
    X, y, weight
        Rows, targets and weights (None: not passed to the experts).
    folds : list of (train, test)
        From :func:`make_folds`.
    answers : ClassAnswers or TargetAnswers
        How predictions are read.
    seeds : sequence of int
        One per expert, for its random states that are None.
    n_jobs : int, optional
        Processes of joblib.
    verbose : bool, default=False
        Whether to show a progress bar.

    Raises
    ------
    Exception
        What the first expert raised, if all have failed.
    """
    arguments = {name: None if weight is None else weight_argument(name, expert) for name, expert in named}
    everything = np.arange(len(y))
    jobs = [
        (index, number, train, test)
        for index in range(len(named))
        for number, (train, test) in enumerate([*folds, (everything, everything[:0])])
    ]
    calls = (
        delayed(_fit_one)(named[index][1], X, y, weight, train, test, answers, seeds[index], arguments[named[index][0]])
        for index, _, train, test in jobs
    )
    first: Exception | None = None
    failed: dict[str, str] = {}
    whole: dict[int, Any] = {}
    parts: dict[tuple[int, int], NDArray[np.float64]] = {}
    outcomes = Parallel(n_jobs=n_jobs, return_as="generator")(calls)
    with _progress(len(jobs), verbose) as advance:
        for (index, number, _, _), (expert, predicted, error) in zip(jobs, outcomes, strict=True):
            name = named[index][0]
            last = number == len(folds)
            advance(f"{name}, all rows" if last else f"{name}, fold {number + 1} of {len(folds)}")
            if error is not None:
                first = first or error
                where = "on all rows" if last else f"in fold {number + 1} of {len(folds)}"
                failed.setdefault(name, f"{where}: {type(error).__name__}: {error}")
            elif last:
                whole[index] = expert
            else:
                parts[index, number] = predicted
    kept = [index for index, (name, _) in enumerate(named) if name not in failed]
    if not kept:
        assert first is not None
        for name, reason in failed.items():
            first.add_note(f"expert {name!r} failed {reason}{_remedy(reason)}")
        raise first
    for name, reason in failed.items():
        message = f"expert {name!r} is left out, since it failed {reason}{_remedy(reason)}"
        warnings.warn(message, UserWarning, stacklevel=4)
    predictions = np.zeros((len(y), len(kept), answers.width))
    predicted_rows = np.zeros(len(y), dtype=bool)
    for number, (_, test) in enumerate(folds):
        predicted_rows[test] = True
        for position, index in enumerate(kept):
            predictions[test, position] = parts[index, number]
    rows = np.flatnonzero(predicted_rows)
    return FittedExperts([(named[index][0], whole[index]) for index in kept], predictions[rows], rows, failed)


def _remedy(reason: str) -> str:
    """What to do about an expert that cannot read columns of text."""
    if "could not convert string to float" not in reason:
        return ""
    return "; an expert that reads numbers only needs a pipeline, make_pipeline(TableFeatures('codes'), expert)"


def _fit_one(
    expert: Any,
    X: Any,
    y: NDArray[Any],
    weight: NDArray[np.float64] | None,
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    answers: Answers,
    seed: int,
    argument: str | None,
) -> tuple[Any, NDArray[np.float64] | None, Exception | None]:
    """Fit on one set of rows and predict another; an error is given back, since the other experts go on."""
    try:
        if len(test) and isinstance(answers, ClassAnswers) and (y[train] == y[train[:1]]).all():
            return None, answers.constant(y[train], len(test)), None
        params = {} if weight is None or argument is None else {argument: weight[train]}
        with warnings.catch_warnings():
            if len(test):  # the fit on all rows says it again
                warnings.simplefilter("ignore")
            fitted = _fitted(seeded(expert, seed), take(X, train), y[train], params, answers)
            predicted = answers.read(fitted, take(X, test)) if len(test) else None
        return (None if len(test) else fitted), predicted, None
    except Exception as error:
        return None, None, error


def _fitted(expert: Any, X: Any, y: NDArray[Any], params: dict[str, Any], answers: Answers) -> Any:
    # labels as the user has them, for class_weight and for whoever looks at the expert; XGBoost takes 0 .. K-1 only
    try:
        return expert.fit(X, y, **params)
    except (ValueError, TypeError):
        if not isinstance(answers, ClassAnswers) or not needs_codes(expert, np.unique(y), y):
            raise
        try:
            return CodedLabels(expert).fit(X, y, **params)
        except Exception:
            pass
        raise


@contextmanager
def _progress(jobs: int, verbose: bool) -> Iterator[Any]:
    """Function that moves a progress bar on by one and says what was done; silent unless ``verbose``."""
    if not verbose:
        yield lambda _: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = [TextColumn("fitting experts"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, TextColumn("{task.description}")) as bar:
        task = bar.add_task("", total=jobs)
        yield lambda done: bar.update(task, advance=1, description=done)
