"""Columns that a mixture does not use: which they are, and how they come off a table."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from moeapps.core.errors import DataError, FileFormatError
from moeapps.core.saved_arguments import fits
from moeapps.core.tabledata.cells import missing_texts
from moeapps.core.tabledata.evidence import infer_columns
from moeapps.core.tabledata.ids import find_ids, ignored_columns, with_unused
from moeapps.core.tabledata.kinds import Column, ColumnKind, check_column_types

__all__ = ["UnusedColumns"]


class UnusedColumns:
    """Ids and ignored columns of a table.

    Parameters
    ----------
    columns : dict of int to Column
        Them, by their positions.
    """

    def __init__(self, columns: Mapping[int, Column]) -> None:
        self.columns = dict(sorted(columns.items()))

    def __len__(self) -> int:
        """Number of columns."""
        return len(self.columns)

    @property
    def names(self) -> list[str]:
        """Their names."""
        return [column.name for column in self.columns.values()]

    @classmethod
    def of(
        cls, table: Any, ignore: Sequence[Any] | None, types: Mapping[str, ColumnKind] | None, ids: bool
    ) -> "UnusedColumns":
        """Of a frame or an array to learn from.

        Parameters
        ----------
        table : DataFrame or array
            Rows.
        ignore : list of str or int, optional
            Columns that are ignored.
        types : dict, optional
            Kinds that the user chose.
        ids : bool
            Whether to look for ids.

        Raises
        ------
        ConfigError
            If an argument names a column that is not there.
        """
        if not isinstance(table, pd.DataFrame):
            names = [f"column {i}" for i in range(table.shape[1])]
            return cls({i: Column(names[i], "ignored", _IGNORED) for i in ignored_columns(ignore, names)})
        names = [str(name) for name in table.columns]
        given = check_column_types(types, names)
        found = {i: Column(names[i], "ignored", _IGNORED, rows=len(table)) for i in ignored_columns(ignore, names)}
        for i, name in enumerate(names):
            if given.get(name) in ("id", "ignored"):
                found.setdefault(i, Column(name, given[name], "chosen by column_types", rows=len(table)))
        if ids:
            positions = [i for i in range(len(names)) if i not in found]
            frame = table.iloc[:, positions]
            columns = [_inferred(frame.iloc[:, [i]], given) for i in range(len(positions))]
            found |= {positions[i]: column for i, column in find_ids(frame, columns, missing_texts(), given).items()}
        if len(found) == len(names):
            raise DataError("no column is left to learn from: all are ids or ignored")
        return cls(found)

    def insert(self, frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
        """The frame with these columns, empty where it lacks them; ``names`` are those of training."""
        return with_unused(frame, names, self.columns)

    def drop(self, table: Any) -> Any:
        """A frame or an array of all columns without these."""
        if not self.columns:
            return table
        used = [i for i in range(table.shape[1]) if i not in self.columns]
        return table.iloc[:, used] if isinstance(table, pd.DataFrame) else table[:, used]

    def to_json(self) -> list[list[Any]]:
        """JSON values."""
        return [[i, column.to_json()] for i, column in self.columns.items()]

    @classmethod
    def from_json(cls, values: Any, width: int) -> "UnusedColumns":
        """Undo :meth:`to_json`, for a table of so many columns.

        Raises
        ------
        FileFormatError
            If it is malformed.
        """
        if not fits(values, list[list[Any]]) or not all(
            len(entry) == 2 and fits(entry[0], int) and 0 <= entry[0] < width and fits(entry[1], dict[str, Any])
            for entry in values
        ):
            raise FileFormatError("its unused columns are malformed")
        return cls({i: Column.from_json(column) for i, column in values})


_IGNORED = "chosen by ignore_columns"


def _inferred(frame: pd.DataFrame, types: Mapping[str, ColumnKind]) -> Column:
    """What a column is; one that cannot be read is left to the experts, which may be able to."""
    name = str(frame.columns[0])
    try:
        with warnings.catch_warnings():  # said when the columns are learned
            warnings.simplefilter("ignore")
            return infer_columns(frame, missing_texts(), {k: v for k, v in types.items() if k == name})[0]
    except DataError:
        return Column(name, "list", "not readable")
