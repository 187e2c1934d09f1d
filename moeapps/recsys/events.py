"""Events of users and items as numbers: in order of time, as pairs, and as histories."""

# Shapes: P events, U users, I items, L entries of a history

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moeapps.core.errors import DataError
from moeapps.core.tabledata.cells import missing_texts
from moeapps.core.tabledata.evidence import ColumnEvidence
from moeapps.core.tabledata.frames import missing_cells
from moeapps.core.tabledata.numbers import to_days, to_numbers
from moeapps.core.tabledata.source import errors_named
from moeapps.recsys.negatives import pairs_in

__all__ = ["Codes", "Events", "Pairs", "as_times", "column_kind", "last_entries"]

Codes = NDArray[np.int64]
"""Numbers of users, items or events."""


@dataclass(frozen=True)
class Events:
    """Events as numbers, in order of time.

    Parameters
    ----------
    user, item : array of shape (P,)
        Numbers of user and item.
    time : array of shape (P,)
        When; only the order counts.
    """

    user: Codes
    item: Codes
    time: NDArray[Any]

    def __len__(self) -> int:
        return len(self.user)

    def at(self, index: Any) -> "Events":
        """The events of an index or mask."""
        return Events(self.user[index], self.item[index], self.time[index])

    def joined(self, other: "Events") -> "Events":
        """These and other events, in order of time, of equal times these first."""
        both = Events(*(np.concatenate(pair) for pair in zip(self.columns, other.columns, strict=True)))
        return both.at(np.argsort(both.time, kind="stable"))

    @property
    def columns(self) -> tuple[NDArray[Any], ...]:
        """The three arrays."""
        return self.user, self.item, self.time


@dataclass(frozen=True)
class Pairs:
    """Pairs of user and item, each once, in order.

    Parameters
    ----------
    keys : array
        User times number of items plus item, in order.
    starts : array of shape (U + 1,)
        Where each user begins.
    num_items : int
        Number of items.
    """

    keys: Codes
    starts: Codes
    num_items: int

    @classmethod
    def of(cls, events: Events, num_users: int, num_items: int) -> Self:
        """The pairs of events."""
        keys = np.unique(events.user * num_items + events.item)
        starts = np.searchsorted(keys, np.arange(num_users + 1) * num_items)
        return cls(keys, starts, num_items)

    def of_users(self, users: Codes) -> tuple[Codes, Codes]:
        """Pairs (place in ``users``, item)."""
        counts = self.starts[users + 1] - self.starts[users]
        rows = np.repeat(np.arange(len(users)), counts)
        place = (
            np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(self.starts[users], counts)
        )
        return rows, self.keys[place] % self.num_items

    def contains(self, users: Codes, items: Codes) -> NDArray[np.bool_]:
        """Which pairs are there."""
        return pairs_in(self.keys, users * self.num_items + items)


def last_entries(entries: Codes, start: Codes, stop: Codes, length: int) -> NDArray[np.int32]:
    """The last ``length`` entries of each span, -1 in front of short ones."""
    place = stop[:, None] - length + np.arange(length)
    inside = place >= start[:, None]
    found = entries[np.where(inside, place, 0)] if len(entries) else np.zeros_like(place)
    return np.where(inside, found, -1).astype(np.int32)


def column_kind(column: pd.Series, name: str) -> str:
    """What a column is; a text of digits is a number, as in a file."""
    evidence = ColumnEvidence(name, missing_texts(), untyped=True)
    evidence.update(column)
    return evidence.decide().kind


def as_times(column: pd.Series, name: str, table: str = "the frame") -> NDArray[Any]:
    """Times ``(n,)`` as numbers that have their order.

    Raises
    ------
    DataError
        Naming ``table``, column and row, if a cell is missing, infinite or neither a number nor a time.
    """
    if column.dtype.kind in "iumM" and not column.isna().any():  # exact: nanoseconds do not fit into a float
        times: NDArray[Any] = column.astype("uint64" if column.dtype.kind == "u" else "int64").to_numpy()
        return times
    missing = missing_texts()
    known = column.dropna().head(1000)
    known = known[~missing_cells(known, missing)]
    numbers = pd.api.types.is_numeric_dtype(known) or pd.to_numeric(known.astype(object), errors="coerce").notna()
    with errors_named(table):  # where some cells are numbers and some are times, the fewer ones are the wrong ones
        values = (to_numbers if np.mean(numbers) > 0.5 else to_days)(column, missing, name)
    if not np.isfinite(values).all():
        raise DataError(f"{table}: {name!r} is missing or infinite at row {int((~np.isfinite(values)).argmax())}")
    return values
