"""How predictions of a stream change over time: accuracy, and which classes are found."""

# n rows, K classes, T parts of the time

from typing import Any

import numpy as np
import pandas as pd

from moeapps.core.views import Map
from moeapps.report.figures import draw_lines
from moeapps.report.judged import Judged
from moeapps.report.sections import Section

__all__ = ["over_time"]

PARTS = 20
"""Parts of the time, at most."""

PART_ROWS = 25
"""Rows of a part, at least."""

CLASSES = 15
"""Classes of the map, at most: the most frequent ones."""


def over_time(judged: Judged) -> list[Section]:
    """Accuracy (or error) in parts of equally many rows, and the share of each class that is predicted right.

    Parameters
    ----------
    judged : Judged
        Rows in the order of time; nothing is made of others, or of few.
    """
    target, parts = judged.first, min(PARTS, len(judged) // PART_ROWS)
    if not judged.ordered or parts < 2:
        return []
    section = Section("Over time")
    groups = np.array_split(np.arange(len(judged)), parts)
    axis, places = _axis(judged)
    x = places.iloc[[int(rows[-1]) for rows in groups]]
    good = (target.best == target.truth).astype(float) if target.classification else target.losses
    values = pd.Series([float(good[rows].mean()) for rows in groups])
    what = "accuracy" if target.classification else "mean absolute error"
    worst = int(values.to_numpy().argmin() if target.classification else values.to_numpy().argmax())
    word = "lowest" if target.classification else "largest"
    title = f"The {what} is {word} up to {axis} {x.iloc[worst]:{_FORM[axis]}}: {values[worst]:.3g}"
    section.pictures.append(draw_lines(title, axis, {what: (x, values)}, what))
    if target.classification:
        frequent = np.argsort(-np.bincount(target.truth, minlength=len(target.classes)), kind="stable")[:CLASSES]
        shares = [[_share(good[rows], target.truth[rows] == k) for k in sorted(frequent)] for rows in groups]
        index, columns = [f"{value:{_FORM[axis]}}" for value in x], [target.classes[k] for k in sorted(frequent)]
        frame = pd.DataFrame(shares, index=index, columns=columns)
        lowest = frame.min()
        title = f"Share of each class that is predicted right: least for {lowest.idxmin()}"
        section.maps.append(Map.of(title, frame, f"up to {axis}", "true class", percent=True))
    return [section]


_FORM = {"row": ",.0f", "time": "%Y-%m-%d %H:%M"}
"""How a place on each axis is written."""


def _axis(judged: Judged) -> tuple[str, pd.Series]:
    """The first column of times that never go back, or the number of the row."""
    if judged.frame is not None:
        for name, column in judged.frame.items():
            text = column.dtype == object or pd.api.types.is_string_dtype(column)
            if pd.api.types.is_datetime64_any_dtype(column) or (text and "time" in str(name).lower()):
                times: Any = pd.to_datetime(column, errors="coerce", utc=True).reset_index(drop=True)
                if not times.isna().any() and times.is_monotonic_increasing:
                    return "time", times.dt.tz_localize(None)
    return "row", pd.Series(np.arange(1, len(judged) + 1, dtype=float))


def _share(good: Any, mine: Any) -> float:
    return float(good[mine].mean()) if mine.any() else np.nan
