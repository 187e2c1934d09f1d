"""One row explained: what was predicted, which experts it was mixed of, and which columns made the difference."""

# n rows, P columns, E experts

from typing import Any

import numpy as np
import pandas as pd

from moeapps.core.errors import ConfigError
from moeapps.report.judged import Judged, Target
from moeapps.report.sections import Section, Table, number, percent

__all__ = ["explain_row", "most_certain_error"]

SHOWN = 10
"""Experts and columns that are listed, at most."""

COLUMNS = 300
"""Largest number of columns of which each is changed to a typical value."""

LEAST = 0.005
"""Change of a probability (of a number: part of the standard deviation of the predictions) that is worth a line."""


def most_certain_error(target: Target) -> int:
    """Row whose wrong class has the highest probability, or with the largest error; the first one if all are right."""
    if not target.classification:
        return int(target.losses.argmax())
    wrong = target.best != target.truth
    return int(np.where(wrong, target.predicted.max(axis=1), -1.0).argmax())


def explain_row(judged: Judged, row: int | None) -> Section:
    """Explain a row.

    Parameters
    ----------
    judged : Judged
        n rows.
    row : int, optional
        Its number; the most certain error when None.

    Raises
    ------
    ConfigError
        If there is no such row.
    """
    target = judged.first
    if row is not None and (
        isinstance(row, bool) or not isinstance(row, int | np.integer) or not 0 <= row < len(judged)
    ):
        raise ConfigError(f"row must be the number of a row, 0 to {len(judged) - 1}, got {row!r}")
    chosen = most_certain_error(target) if row is None else int(row)
    name = judged.names[chosen] if judged.names else str(chosen)
    section = Section(f"One {judged.row_name} explained: {name}")
    section.text.append(_summary(target, chosen, row is None))
    if judged.weights is not None:
        section.tables.append(_experts(judged, chosen))
    alone = judged.predict is not None and judged.shuffled is None
    if alone and judged.frame is not None and judged.frame.shape[1] <= COLUMNS:
        _columns(judged, chosen, section)
    return section


def _summary(target: Target, row: int, chosen: bool) -> str:
    said = target.shown(target.predicted, row)
    if not target.classification:
        truth = number(float(target.truth[row]), 4)
        largest = ", the largest error of all rows" if chosen else ""
        return f"Predicted {said}, true {truth}{largest}."
    truth = target.classes[int(target.truth[row])]
    right = int(target.best[row]) == int(target.truth[row])
    if right:
        return f"Predicted {said}, which is right."
    most = ": the most certain error" if chosen else ""
    share = percent(float(target.predicted[row, int(target.truth[row])]))
    return f"Predicted {said}, but it is {truth}, which got {share}{most}."


def _experts(judged: Judged, row: int) -> Table:
    weights = judged.weights.iloc[row]  # type: ignore[union-attr]
    order = [name for name in weights.sort_values(ascending=False, kind="stable").index if weights[name] > 0][:SHOWN]
    alone = bool(judged.opinions)
    rows = []
    for name in order:
        cells = [str(name), percent(float(weights[name]))]
        if alone:
            opinion = judged.opinions.get(str(name))
            cells.append("" if opinion is None else judged.first.shown(opinion, row))
        rows.append(cells)
    title = f"{order[0]} had the largest weight, {percent(float(weights[order[0]]))}"
    return Table(title, ["expert", "weight", *(["its own prediction"] if alone else [])], rows, numbers=1 + alone)


def _columns(judged: Judged, row: int, section: Section) -> None:
    """What would be predicted if one column had a typical value instead."""
    frame, target = judged.frame, judged.first
    assert frame is not None
    assert judged.predict is not None
    own = frame.iloc[[row]]
    typical = {name: _typical(frame.iloc[:, i]) for i, name in enumerate(frame.columns)}
    differing = [i for i, name in enumerate(frame.columns) if not _same(own.iloc[0, i], typical[name])]
    if not differing:
        return
    changed = pd.concat([own] * (len(differing) + 1), ignore_index=True)
    for place, i in enumerate(differing, start=1):
        column = changed.iloc[:, i].copy()
        if pd.api.types.is_integer_dtype(column.dtype) and not float(typical[frame.columns[i]]).is_integer():
            column = column.astype(float)
        column.iloc[place] = typical[frame.columns[i]]
        changed.isetitem(i, column.array)
    predicted = judged.predict(changed)[0]
    if target.classification:
        best = int(target.best[row])
        moved = predicted[:, best] - predicted[0, best]
        scale, what = 1.0, f"probability of {target.classes[best]}"
    else:
        moved, scale, what = predicted - predicted[0], float(target.predicted.std()) or 1.0, "prediction"
    order = [k for k in np.argsort(-np.abs(moved[1:]), kind="stable") if abs(moved[k + 1]) >= LEAST * scale][:SHOWN]
    if not order:
        section.text.append("No single column decides: replacing any of them by its typical value changes nothing.")
        return
    rows = []
    for k in order:
        i = differing[k]
        rows.append([
            str(frame.columns[i]), _cell(own.iloc[0, i]), _cell(typical[frame.columns[i]]), _move(moved[k + 1], target)
        ])  # fmt: skip
    title = f"{rows[0][0]} = {rows[0][1]} makes the largest difference"
    heads = ["column", "value here", "typical value", f"change of the {what} with the typical value"]
    section.tables.append(Table(title, heads, rows, numbers=3))


def _move(change: float, target: Target) -> str:
    return f"{100 * change:+.0f} points" if target.classification else f"{'+' if change > 0 else ''}{number(change)}"


def _typical(column: pd.Series) -> Any:
    """Median of numbers, most frequent value of others; a value that occurs where the column is of whole numbers."""
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        known = column.dropna()
        return known.quantile(0.5, interpolation="lower") if len(known) else column.iloc[0]
    try:
        counts = column.value_counts(dropna=False)
    except TypeError:  # lists
        return column.iloc[0]
    return counts.index[0]


def _same(value: Any, other: Any) -> bool:
    if pd.api.types.is_scalar(value) and pd.api.types.is_scalar(other):
        return (
            bool(value == other) if not (pd.isna(value) or pd.isna(other)) else bool(pd.isna(value) and pd.isna(other))
        )
    return str(value) == str(other)


def _cell(value: Any) -> str:
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return "missing"
    if isinstance(value, pd.Timestamp):
        return str(value).removesuffix(" 00:00:00")
    if isinstance(value, float | np.floating):  # a code or a year stands as it is, not in thousands
        whole = float(value)
        text = str(int(whole)) if whole.is_integer() and abs(whole) < 1e15 else number(whole, 4)
    else:
        text = str(value)
    return text if len(text) <= 40 else text[:39] + "…"
