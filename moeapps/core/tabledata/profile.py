"""How the values of a column were spread in training: what later rows are compared with."""

# n rows, B bins

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moeapps.core.errors import FileFormatError
from moeapps.core.saved_arguments import fits
from moeapps.core.tabledata.kinds import Column, ColumnKind
from moeapps.core.tabledata.numbers import to_days, to_numbers
from moeapps.core.tabledata.source import TableSource
from moeapps.core.tabledata.vocabulary import count_values

__all__ = ["BINS", "ColumnProfile", "number_bins", "profile_table", "read_numbers"]

BINS = 10
"""Bins of a number, by the quantiles of training."""


@dataclass(frozen=True)
class ColumnProfile:
    """Values of a column in training, counted.

    Parameters
    ----------
    name : str
        Column.
    kind : {"number", "category", "time"}
        What it is.
    rows : int, default=0
        Rows of training; 0 where a file of an older version does not say.
    missing : int, default=0
        How many of them had no value.
    edges : tuple of float, default=()
        Where the bins of a number meet, increasing.
    counts : tuple of int, default=()
        Rows of each bin, or of each of ``values``; none where they are not known.
    low, high : float, optional
        Smallest and largest number; a time's are days since 1970.
    values : tuple, default=()
        Categories.
    """

    name: str
    kind: ColumnKind
    rows: int = 0
    missing: int = 0
    edges: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    low: float | None = None
    high: float | None = None
    values: tuple[Any, ...] = field(default=(), repr=False)

    def to_json(self) -> dict[str, Any]:
        """JSON values, without the categories, which the encoder holds."""
        return {
            "name": self.name,
            "kind": self.kind,
            "rows": self.rows,
            "missing": self.missing,
            "edges": list(self.edges),
            "counts": list(self.counts),
            "low": self.low,
            "high": self.high,
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any], values: Iterable[Any] = ()) -> Self:
        """Undo :meth:`to_json`.

        Raises
        ------
        FileFormatError
            If it contradicts itself.
        """
        values = tuple(values)
        good = (
            fits(saved.get("name"), str)
            and saved.get("kind") in ("number", "category", "time")
            and all(fits(saved.get(key), int) and saved[key] >= 0 for key in ("rows", "missing"))
            and fits(saved.get("edges"), list[float])
            and fits(saved.get("counts"), list[int])
            and all(fits(saved.get(key), float | None) for key in ("low", "high"))
            and len(saved["counts"]) in (0, len(values) if saved["kind"] == "category" else len(saved["edges"]) + 1)
        )
        if not good:
            raise FileFormatError("the profile of its columns is malformed")
        return cls(**{**saved, "edges": tuple(saved["edges"]), "counts": tuple(saved["counts"]), "values": values})

    def with_numbers(self, numbers: NDArray[np.float64]) -> Self:
        """With further rows ``(n,)`` of a number or a time counted, NaN where missing."""
        known = numbers[~np.isnan(numbers)]
        counts = number_bins(known, self.edges)
        before = np.array(self.counts) if self.counts else np.zeros_like(counts)
        ends = [end for end in (self.low, self.high) if end is not None]
        return replace(
            self,
            rows=self.rows + len(numbers),
            missing=self.missing + len(numbers) - len(known),
            counts=tuple((before + counts).tolist()),
            low=float(min([*ends, known.min()])) if len(known) else self.low,
            high=float(max([*ends, known.max()])) if len(known) else self.high,
        )

    @classmethod
    def of_numbers(cls, name: str, kind: ColumnKind, numbers: NDArray[np.float64]) -> Self:
        """Of numbers or times, in bins of about equally many rows."""
        known = numbers[np.isfinite(numbers)]
        levels = np.linspace(0, 1, BINS + 1)[1:-1]
        edges = np.unique(np.quantile(known, levels, method="inverted_cdf")) if len(known) else np.zeros(0)
        return cls(name, kind, edges=tuple(edges.tolist())).with_numbers(numbers)


def number_bins(known: NDArray[np.float64], edges: Sequence[float]) -> NDArray[np.int64]:
    """How many numbers are in each bin, shape (B,); a number that is an edge counts to the bin below."""
    return np.bincount(np.searchsorted(edges, known, side="left"), minlength=len(edges) + 1)


def read_numbers(column: pd.Series, kind: ColumnKind, missing: frozenset[str], name: str) -> NDArray[np.float64]:
    """Numbers of a column, or days of a time, shape (n,), NaN where missing.

    Raises
    ------
    DataError
        Naming row, column and cell, if a cell is none.
    """
    return to_days(column, missing, name) if kind == "time" else to_numbers(column, missing, name)


def profile_table(source: TableSource, columns: Iterable[Column]) -> list[ColumnProfile]:
    """Profiles of a table without a model, batch by batch; the bins are those of the first batch.

    Parameters
    ----------
    source : TableSource
        Rows.
    columns : iterable of Column
        What its columns are; lists, ids and ignored columns have no profile.

    Raises
    ------
    DataError
        As :func:`read_numbers`.
    """
    columns = [column for column in columns if column.kind in ("number", "category", "time")]
    numbers: dict[str, ColumnProfile] = {}
    counted: dict[str, dict[Any, int]] = {column.name: {} for column in columns if column.kind == "category"}
    rows, missing = 0, dict.fromkeys(counted, 0)
    for frame in source.batches([column.name for column in columns]):
        rows += len(frame)
        for column in columns:
            name = column.name
            if column.kind != "category":
                values = read_numbers(frame[name], column.kind, source.missing, name)
                before = numbers.get(name)
                numbers[name] = (
                    before.with_numbers(values) if before else ColumnProfile.of_numbers(name, column.kind, values)
                )
                continue
            found, _ = count_values(frame[name], source.missing, name, column.typed)
            for value, number in found.items():
                counted[name][value] = counted[name].get(value, 0) + number
            missing[name] += len(frame) - sum(found.values())
    return [
        numbers.get(column.name) or ColumnProfile(column.name, column.kind)
        if column.kind != "category"
        else ColumnProfile(
            column.name,
            "category",
            rows,
            missing[column.name],
            counts=tuple(counted[column.name].values()),
            values=tuple(counted[column.name]),
        )
        for column in columns
    ]
