"""A table that is learned from or scored, whether a frame or a file: in batches, its columns checked by name."""

import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moeapps.core.errors import DataError
from moeapps.core.tabledata.cells import category_text, missing_texts
from moeapps.core.tabledata.evidence import ColumnEvidence
from moeapps.core.tabledata.files import TableFile
from moeapps.core.tabledata.frames import as_frame, is_table
from moeapps.core.tabledata.ids import find_ids
from moeapps.core.tabledata.kinds import Column, ColumnKind, check_column_types
from moeapps.core.tabledata.vocabulary import distinct_cells
from moeapps.registry import did_you_mean

__all__ = ["Table", "TableSource", "errors_named", "listed", "require_columns"]

Table = pd.DataFrame | str | os.PathLike[str]
"""A frame (also a polars frame or an Arrow table), or the path of a file or folder."""

T = TypeVar("T")


class TableSource:
    """A frame or a file as batches of rows.

    Parameters
    ----------
    table : DataFrame, Arrow table or path
        A frame, which is one batch, or a file or folder; see :class:`~moeapps.core.tabledata.files.TableFile`.
    batch_rows : int, default=65,536
        Rows of a file's batch, at most.
    kinds : dict, optional
        What columns are, as a model knows.
    missing : frozenset of str, optional
        Texts that mean a missing value; those of pandas by default.
    copy_to, copied
        Of a file; see :class:`~moeapps.core.tabledata.files.TableFile`.

    Attributes
    ----------
    columns : list of str
        Names of the columns.
    is_file : bool
        Whether it is a file.
    name : str
        What an error calls it: the path, or "the frame".

    Raises
    ------
    DataError
        If the table is neither a frame nor a path.
    FileNotFoundError, FileFormatError
        If there is no such file, or it is not a table.
    """

    def __init__(
        self,
        table: Table,
        batch_rows: int = 65_536,
        kinds: Mapping[str, ColumnKind] | None = None,
        missing: frozenset[str] | None = None,
        copy_to: Path | None = None,
        copied: Sequence[str] | None = None,
    ) -> None:
        self._table: pd.DataFrame | TableFile
        self.missing = missing_texts() if missing is None else missing
        if isinstance(table, str | os.PathLike):
            self._table = TableFile(table, batch_rows, kinds, missing, copy_to, copied)
            self.columns, self.name = self._table.columns, str(self._table.path)
        elif is_table(table):
            self._table, self.name = as_frame(table), "the frame"
            self.columns = list(self._table.columns)
        else:
            raise DataError(
                "frame must be a table (a pandas or polars DataFrame, a pyarrow Table) or the path of a file, got "
                f"{type(table).__name__}"
            )
        self.is_file = isinstance(self._table, TableFile)

    @property
    def untyped(self) -> bool:
        """Whether its cells are text, as those of a CSV file."""
        return isinstance(self._table, TableFile) and self._table.untyped

    def infer(self, names: Iterable[str], column_types: Mapping[str, ColumnKind] | None = None) -> dict[str, Column]:
        """Decide what columns are, from all rows.

        Parameters
        ----------
        names : iterable of str
            Columns.
        column_types : dict, optional
            Kinds that the user chose, by column.

        Raises
        ------
        ConfigError, DataError
            As :func:`~moeapps.core.tabledata.evidence.infer_columns`.
        """
        wanted = check_column_types(column_types, map(str, self.columns))
        names = list(names)
        for name in names:
            if not isinstance(name, str):
                raise DataError(
                    f"{self.name} has a column called {name!r} ({type(name).__name__}), names must be text: "
                    "frame.columns = frame.columns.astype(str)"
                )
        evidence = {name: ColumnEvidence(str(name), self.missing, self.untyped) for name in names}
        for frame in self.batches(list(evidence)):
            for name, seen in evidence.items():
                seen.update(frame[name])
        return {str(name): seen.decide(wanted.get(str(name))) for name, seen in evidence.items()}

    def find_ids(self, columns: Sequence[Column], types: Container[str] = ()) -> dict[str, Column]:
        """Columns that look like ids, by name; see :func:`~moeapps.core.tabledata.ids.find_ids`.

        Of a file, the first batch decides: nothing is held of those that follow.

        Parameters
        ----------
        columns : sequence of Column
            What was inferred.
        types : container of str, default=()
            Columns of which the user has said what they are.
        """
        frame = next(iter(self.batches([column.name for column in columns])), None)
        if frame is None:
            return {}
        return {column.name: column for column in find_ids(frame, columns, self.missing, types).values()}

    def count_rows(self) -> int:
        """Number of rows; those of a CSV file are counted."""
        return len(self._table) if isinstance(self._table, pd.DataFrame) else self._table.count_rows()

    def batches(self, columns: list[str] | None = None) -> Iterator[pd.DataFrame]:
        """The rows, in batches; all columns, or some of them.

        Raises
        ------
        FileFormatError, DataError
            As :meth:`~moeapps.core.tabledata.files.TableFile.batches`.
        """
        if isinstance(self._table, pd.DataFrame):
            yield self._table if columns is None else self._table[columns]
        else:
            yield from self._table.batches(columns)

    def with_kinds(self, kinds: Mapping[str, ColumnKind]) -> None:
        """Say what columns of a file are, once that is known: the next pass reads those that are numbers as such."""
        if isinstance(self._table, TableFile):
            self._table.kinds = dict(kinds)

    def require(self, names: Iterable[str], because: str = "") -> None:
        """Raise :class:`DataError` if columns are missing; see :func:`require_columns`."""
        require_columns(names, self.columns, self.name, because)

    def named(self, work: Callable[[], T]) -> T:
        """Return ``work()``; a :class:`DataError` about the content of a file starts with the file's name."""
        if not self.is_file:
            return work()
        with errors_named(self.name):
            return work()

    def hashes(self, name: str) -> NDArray[np.uint64]:
        """A hash of each value of a column that is not missing, the same for the same cell of a frame and of a file."""
        parts = []
        for frame in self.batches([name]):
            index, values = distinct_cells(frame[name], name)
            texts = np.array([*map(category_text, values), ""], dtype=object)
            known = ~np.isin(texts, list(self.missing))  # -1, a missing cell, finds the last one
            parts.append(pd.util.hash_array(texts[index[known[index]]]))
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)


@contextmanager
def errors_named(name: str) -> Iterator[None]:
    """Let a :class:`DataError` about the content of a file start with the file's name."""
    try:
        yield
    except DataError as error:
        if not str(error).startswith(name):
            raise DataError(f"{name}: {error}") from None
        raise


def require_columns(names: Iterable[str], present: Iterable[str], table: str, because: str = "") -> None:
    """Check that a table has the columns that are needed.

    Parameters
    ----------
    names : iterable of str
        Columns that are needed.
    present : iterable of str
        Columns that are there.
    table : str
        What the error calls the table.
    because : str, optional
        Where the names come from, such as ``"row_id"``.

    Raises
    ------
    DataError
        Naming up to ten columns that are missing.
    """
    there, wanted = set(present), list(dict.fromkeys(names))
    missing = [name for name in wanted if name not in there]
    if missing:
        plural = "s" if len(missing) > 1 else ""
        reason = f", which {because} names" if because else ""
        others = [name for name in map(str, there) if name not in wanted]
        guess = did_you_mean(missing[0], others) if len(missing) == 1 else ""
        raise DataError(f"{table} lacks the column{plural} {listed(missing)}{reason}{guess}")


def listed(names: Iterable[object], most: int = 10) -> str:
    """Names in quotation marks for an error, and how many more there are."""
    quoted = [repr(str(name)) for name in names]
    return ", ".join(quoted[:most]) + (f" and {len(quoted) - most} more" if len(quoted) > most else "")
