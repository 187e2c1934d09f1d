"""Histories and splits that do not look ahead."""

import numpy as np
import pandas as pd

from moeapps.core.checks import check_sizes
from moeapps.core.errors import DataError
from moeapps.core.tabledata.cells import missing_texts
from moeapps.core.tabledata.numbers import to_numbers
from moeapps.core.tabledata.source import require_columns
from moeapps.recsys.events import as_times

__all__ = ["add_history", "leave_last_out", "time_split"]


def add_history(
    frame: pd.DataFrame,
    user: str = "user_id",
    item: str = "item_id",
    time: str = "timestamp",
    max_history: int = 50,
    where: str | None = None,
) -> pd.DataFrame:
    """Rows in order of time, with ``<item>_history``: the items of the user's earlier rows, oldest first.

    A history has nothing of the row itself, of rows of the same time, or of later ones.

    Parameters
    ----------
    frame : DataFrame
        One row per event.
    user : str, default="user_id"
        Column of users.
    item : str, default="item_id"
        Column of items.
    time : str, default="timestamp"
        Column of times: numbers, dates or times, also as text.
    max_history : int, default=50
        Number of newest entries that are kept.
    where : str, optional
        Column of 0 and 1 (such as a click): only rows with a 1 are in histories, none where it is missing. All rows by
        default.

    Returns
    -------
    DataFrame
        The rows, sorted by time, user and item, with a new index.

    Raises
    ------
    DataError
        If a column is missing, or a time is missing or none, or a cell of ``where`` is no number.
    """
    check_sizes(max_history=max_history)
    require_columns([user, item, time, *([] if where is None else [where])], frame.columns, "the frame")
    # By user and item within a time, so that the order of the given rows does not matter
    stamps = as_times(frame[time], time)
    keys = pd.DataFrame({"time": stamps, "user": frame[user].array, "item": frame[item].array})
    order = keys.sort_values(["time", "user", "item"], kind="stable").index.to_numpy()
    frame = frame.iloc[order].reset_index(drop=True)
    histories: list[list[object]] = [[] for _ in range(len(frame))]
    items, times = frame[item].to_numpy(), stamps[order]
    counts = np.ones(len(frame), dtype=bool) if where is None else to_numbers(frame[where], missing_texts(), where) == 1
    for rows in frame.groupby(user).indices.values():
        kept = rows[counts[rows]]
        user_items = items[kept]
        # Number of kept rows that are earlier than each row: a user's rows are in order of time
        earlier = np.searchsorted(times[kept], times[rows], side="left")
        for row, stop in zip(rows, earlier, strict=True):
            histories[row] = user_items[max(0, stop - max_history) : stop].tolist()
    return frame.assign(**{f"{item}_history": pd.Series(histories, dtype=object)})


def time_split(frame: pd.DataFrame, time: str, fractions: tuple[float, float] = (0.8, 0.1)) -> list[pd.DataFrame]:
    """Training, validation and test rows in order of time; rows of the same time stay together.

    Parameters
    ----------
    frame : DataFrame
        Rows.
    time : str
        Column of times: numbers, dates or times, also as text.
    fractions : tuple of two floats, default=(0.8, 0.1)
        Parts of the training and validation rows; the rest is for testing.

    Returns
    -------
    list of DataFrame
        Training, validation and test rows, each in the order of ``frame``.

    Raises
    ------
    DataError
        If the column is missing, a time is missing or none, or a part would be empty.
    """
    require_columns([time], frame.columns, "the frame")
    stamps = as_times(frame[time], time)
    # inverted_cdf gives times that are there, which keeps rows of one time together
    first, second = np.quantile(stamps, [fractions[0], sum(fractions)], method="inverted_cdf")
    masks = [stamps <= first, (stamps > first) & (stamps <= second), stamps > second]
    return _parts(frame, masks, f"fractions={fractions}")


def leave_last_out(frame: pd.DataFrame, user: str, time: str) -> list[pd.DataFrame]:
    """Each user's last row to test on, the one before it to validate on, all others to train on.

    Users with fewer than three rows are trained on only. A user's histories do not look ahead, but the training rows of
    one user may be later than the test row of another: use :func:`time_split` where that matters.

    Parameters
    ----------
    frame : DataFrame
        Rows.
    user : str
        Column of users.
    time : str
        Column of times, as in :func:`time_split`; of rows of the same time the later one in the frame is the last.

    Returns
    -------
    list of DataFrame
        As :func:`time_split`, which also has the errors.
    """
    require_columns([user, time], frame.columns, "the frame")
    owners = pd.DataFrame({"user": frame[user].array, "time": as_times(frame[time], time)})
    groups = owners.sort_values("time", kind="stable").groupby("user")["time"]
    from_last = groups.cumcount(ascending=False).sort_index().to_numpy()
    long = groups.transform("size").sort_index().to_numpy() >= 3
    test, val = long & (from_last == 0), long & (from_last == 1)
    return _parts(frame, [~(test | val), val, test], "leave_last_out")


def _parts(frame: pd.DataFrame, masks: list[np.ndarray], what: str) -> list[pd.DataFrame]:
    parts = [frame[mask] for mask in masks]
    for name, part in zip(("training", "validation", "test"), parts, strict=True):
        if len(part) == 0:
            raise DataError(f"{what} leaves no {name} row of {len(frame)}")
    return parts
