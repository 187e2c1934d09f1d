"""Tables: mixtures beside a linear model, boosting, a forest and the simplest prediction."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.dummy import DummyClassifier, DummyRegressor

from moeapps.comparison.held_out import SplitTask, make_splits, seeded, told_rare
from moeapps.comparison.reading import check_named_columns, read_table
from moeapps.comparison.scoring import Scoring
from moeapps.comparison.task import Candidate, chosen_candidates
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.tabledata.cells import missing_texts
from moeapps.core.tabledata.frames import as_frame, is_table, missing_cells
from moeapps.core.tabledata.ids import UnusedColumns
from moeapps.core.tabledata.source import TableSource, listed
from moeapps.tables.mixture.classifier import MixtureClassifier
from moeapps.tables.mixture.portfolio import default_experts
from moeapps.tables.mixture.regressor import MixtureRegressor
from moeapps.tables.table_data import PUBLIC_TABLES, TableData

__all__ = ["table_task"]

MAX_ROWS = 20_000
"""Rows that are compared on, unless the user says otherwise."""

TaskName = Literal["auto", "classification", "regression"]


def table_task(
    data: Any,
    target: Any = None,
    *,
    task: TaskName = "auto",
    metric: Any = None,
    models: Any = None,
    splits: int = 5,
    groups: str | None = None,
    time: str | None = None,
    ignore: Sequence[str] = (),
    max_rows: int | None = MAX_ROWS,
    seed: int = 0,
) -> SplitTask:
    """Compare on a table.

    Parameters
    ----------
    data : DataFrame, array of shape (n, P), path, or name of a public table
        The rows.
    target : str or array of shape (n,), optional
        The column to be predicted, or the targets themselves; a public table has one.
    task : {"auto", "classification", "regression"}, default="auto"
        What the target is.
    metric, models
        As in :func:`moeapps.compare`.
    splits : int, default=5
        Number of splits.
    groups : str, optional
        Column whose values are never on both sides of a split; models do not see it.
    time : str, optional
        Column by which the rows are ordered: models learn from the past and are tested on what comes next.
    ignore : sequence of str, default=()
        Columns that models do not see.
    max_rows : int or None, default=20,000
        A random sample of so many rows is taken from a larger table.
    seed : int, default=0
        Seed of sample, splits and models.

    Raises
    ------
    ConfigError, DataError
        If an argument is impossible, or the table cannot be learned from.
    """
    if groups is not None and time is not None:
        raise ConfigError("groups and time are both given: rows are split by one of them")
    told: list[str] = []
    name = _name(data)
    if isinstance(data, str) and data in PUBLIC_TABLES:
        load, usual_target = PUBLIC_TABLES[data]
        frame, target = load(), usual_target if target is None else target
    elif isinstance(data, str | os.PathLike):
        frame = read_table(data, max_rows, seed, told, {"target": [_wanted(target, data)]})
    else:
        frame = as_frame(data, "data") if is_table(data) else _array_frame(data)
    frame, target = _with_target(frame, target)
    named = {"target": [target], "groups": [groups], "time": [time], "ignore": ignore}
    check_named_columns(frame.columns, named, name)
    if target in ignore:
        raise ConfigError(f"target and ignore both name the column {target!r}")
    frame = _labelled(frame, target, told)
    if max_rows is not None and len(frame) > max_rows:
        rows = np.sort(np.random.default_rng(seed).choice(len(frame), max_rows, replace=False))
        told.append(f"A random sample of {max_rows:,} of {len(frame):,} rows (max_rows).")
        frame = frame.iloc[rows]
    times = None
    if time is not None:
        frame, times = _in_order(frame, time)
    frame = frame.reset_index(drop=True)
    drop = [*ignore, *([groups] if groups is not None else [])]
    read = TableData(frame, target, task=task, ignore_columns=drop, validation_fraction=0.0)
    with warnings.catch_warnings():  # told below: that warning names arguments of an estimator
        warnings.simplefilter("ignore", UnusedColumns)
        read.setup("fit")
    part, classes = read.part("train"), read.classes
    assert part.target is not None
    told.insert(0, _found(part.frame, target, classes))
    if ids := [column.name for column in read.unused.values() if column.kind == "id"]:
        told.append(f"Not used, since nearly every row has another value (ids?): {listed(ids)}.")
    y = part.target
    scoring = Scoring(_usual_metrics(classes), metric, y, classes)
    parts = make_splits(
        y, splits, seed, classes=classes is not None, times=times, groups=None if groups is None else frame[groups],
    )  # fmt: skip
    told += told_rare(y) if classes is not None else []
    told.append(_told_splits(groups, time, parts))
    kind = f"{'regression' if classes is None else 'classification'} of rows"
    return SplitTask(
        kind, part.frame, y, scoring, parts, data=name, told=told, seed=seed, split_name="split",
        candidates=chosen_candidates(_candidates(part.frame, y, read.task), models, seeded),
    )  # fmt: skip


def _candidates(X: pd.DataFrame, y: Any, task: Literal["classification", "regression"]) -> list[Candidate]:
    """Quick ones first, so that a short time has something to show."""
    classes = task == "classification"
    experts = dict(default_experts(X, y, task))
    names = {
        "linear": "logistic regression" if classes else "ridge regression",
        "boosting": "gradient boosting",
        "forest": "random forest",
        "moe": "MoEClassifier" if classes else "MoERegressor",
    }

    def expert(name: str) -> Candidate:
        return Candidate(
            names[name], lambda seed: dict(default_experts(X, y, task, random_state=seed))[name], ours=name == "moe"
        )

    simplest = (
        Candidate("most frequent class", lambda seed: DummyClassifier(strategy="prior"))
        if classes
        else Candidate("mean", lambda seed: DummyRegressor())
    )
    mixture = (
        Candidate("MixtureClassifier", lambda seed: MixtureClassifier(random_state=seed), ours=True)
        if classes
        else Candidate("MixtureRegressor", lambda seed: MixtureRegressor(random_state=seed), ours=True)
    )
    return [simplest, *(expert(name) for name in experts), mixture]


def _usual_metrics(classes: Any) -> list[str]:
    if classes is None:
        return ["r2", "neg_mean_absolute_error"]
    return ["neg_log_loss", "roc_auc" if len(classes) == 2 else "roc_auc_ovr", "accuracy"]


def _name(data: Any) -> str:
    if isinstance(data, str | os.PathLike):
        return Path(data).name if Path(data).exists() else str(data)
    return "the table"


def _wanted(target: Any, path: Any) -> str:
    if isinstance(target, str):
        return target
    columns = TableSource(path).columns
    raise ConfigError(f"target is missing: the column to be predicted, one of {listed(columns, 50)} (--target COLUMN)")


def _array_frame(data: Any) -> pd.DataFrame:
    array = np.asarray(data)
    if array.ndim != 2:
        raise DataError(f"data must be a table or an array of shape (n, P), got shape {array.shape}")
    return pd.DataFrame(array, columns=[f"x{i}" for i in range(array.shape[1])])


def _with_target(frame: pd.DataFrame, target: Any) -> tuple[pd.DataFrame, str]:
    """The table with its target in a column."""
    if isinstance(target, str):
        return frame, target
    if target is None:
        raise ConfigError("target is missing: the name of the column to be predicted, or an array of targets")
    values = np.asarray(target)
    if values.shape != (len(frame),):
        raise DataError(f"target has shape {values.shape}, expected ({len(frame)},): one for each row")
    name = getattr(target, "name", None)
    name = name if isinstance(name, str) and name not in frame else "target"
    if name in frame:
        raise DataError("data has a column 'target': give its name as target, or rename it")
    return frame.assign(**{name: values}), name


def _labelled(frame: pd.DataFrame, target: str, told: list[str]) -> pd.DataFrame:
    gone = missing_cells(frame[target], missing_texts())
    if gone.all():
        raise DataError(f"target: no row has a value in the column {target!r}")
    if gone.any():
        told.append(f"{int(gone.sum()):,} rows without {target!r} are left out.")
    return frame[~gone]


def _in_order(frame: pd.DataFrame, time: str) -> tuple[pd.DataFrame, NDArray[Any]]:
    """Rows ordered by a column of numbers or dates, and their times."""
    values = frame[time]
    if not (pd.api.types.is_numeric_dtype(values) or pd.api.types.is_datetime64_any_dtype(values)):
        values = pd.to_datetime(values, errors="coerce", format="ISO8601", utc=True)
    if values.isna().any():
        row = int(values.isna().to_numpy().argmax())
        raise DataError(f"time: {frame[time].iloc[row]!r} in row {row} of {time!r} is neither a number nor an ISO date")
    times = values.to_numpy()
    order = np.argsort(times, kind="stable")
    return frame.iloc[order], times[order]


def _found(X: pd.DataFrame, target: str, classes: Any) -> str:
    shape = f"{len(X):,} rows, {X.shape[1]} columns"
    if classes is None:
        return f"{shape}; the target {target!r} is a number."
    shown = ", ".join(map(str, classes[:5])) + (", ..." if len(classes) > 5 else "")
    return f"{shape}; the target {target!r} has {len(classes)} classes: {shown}."


def _told_splits(groups: str | None, time: str | None, parts: Any) -> str:
    train, test = parts[-1]
    if time is not None:
        return f"{len(parts)} splits by {time!r}: models learn from the past and are tested on what comes next."
    by = f", no value of {groups!r} on both sides" if groups is not None else ""
    sizes = f"{len(train):,} rows to learn from, {len(test):,} to test on{by}"
    count = "1 split" if len(parts) == 1 else f"{len(parts)} splits"
    return f"{count}, the same for all models: {sizes}."
