"""Tables of a user, whole or a sample of their rows, and the columns that arguments name."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from moeapps.core.errors import DataError
from moeapps.core.tabledata.source import TableSource
from moeapps.registry import did_you_mean

__all__ = ["check_named_columns", "read_table"]


def read_table(
    path: str | os.PathLike[str],
    most: int | None = None,
    seed: int = 0,
    told: list[str] | None = None,
    wanted: Mapping[str, Iterable[str | None]] | None = None,
) -> pd.DataFrame:
    """The rows of a file, or a sample of them in their order; the file may be larger than memory.

    Parameters
    ----------
    path : path
        CSV, Parquet, NDJSON, or a folder of these.
    most : int, optional
        Largest number of rows.
    seed : int, default=0
        Seed of the sample.
    told : list of str, optional
        Takes a sentence about the sample.
    wanted : mapping, optional
        Columns that must be there, as in :func:`check_named_columns`; checked before the rows are read.

    Raises
    ------
    DataError, FileFormatError
        If it cannot be read.
    """
    source = TableSource(path)
    check_named_columns(source.columns, wanted or {}, Path(path).name)
    kinds = source.named(lambda: source.infer(source.columns))
    source.with_kinds({name: column.kind for name, column in kinds.items()})
    chosen = None
    if most is not None and (rows := source.count_rows()) > most:
        chosen = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
        if told is not None:
            told.append(f"A random sample of {most:,} of {rows:,} rows (max_rows).")
    parts, start = [], 0
    for batch in source.batches():
        inside = slice(None) if chosen is None else chosen[(chosen >= start) & (chosen < start + len(batch))] - start
        parts.append(batch.iloc[inside])
        start += len(batch)
    return pd.concat(parts, ignore_index=True)


def check_named_columns(present: Iterable[object], wanted: Mapping[str, Iterable[str | None]], name: str) -> None:
    """Refuse columns that a table does not have.

    Parameters
    ----------
    present : iterable
        The table's columns.
    wanted : mapping of str to iterable of str or None
        Columns that each argument names.
    name : str
        What the error calls the table.

    Raises
    ------
    DataError
        Naming the argument, and the column that was probably meant.
    """
    columns = [str(column) for column in present]
    for argument, names in wanted.items():
        for column in names:
            if column is not None and column not in columns:
                hint = did_you_mean(column, columns, f"it has {', '.join(columns[:10])}")
                raise DataError(f"{argument}: {name} has no column {column!r}{hint}")
