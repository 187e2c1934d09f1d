"""Tables of other libraries as pandas frames whose values are exact: Arrow, polars, anything that exports Arrow."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from moeapps.core.errors import DataError
from moeapps.core.tabledata.cells import is_missing_cell

__all__ = [
    "arrow_text",
    "arrow_to_frame",
    "as_frame",
    "frame_if_table",
    "is_arrow_text",
    "is_arrow_type",
    "is_table",
    "missing_cells",
]


def arrow_text(column: pd.Series, name: str) -> pa.Array:
    """Texts and missing cells of a column as one Arrow array.

    Raises
    ------
    DataError
        Naming row and column of a text that is not Unicode.
    """
    try:
        cells = pa.array(column, pa.large_string(), from_pandas=True)
    except UnicodeEncodeError:
        for row, value in column.items():
            try:
                str(value).encode()
            except UnicodeEncodeError:
                raise DataError(f"column {name!r}, row {row}: {value!r} is not valid Unicode text") from None
        raise
    return cells.combine_chunks() if isinstance(cells, pa.ChunkedArray) else cells


def is_arrow_type(kind: Any, *tests: Any) -> bool:
    """Whether a dtype is an Arrow type that one of the tests, such as ``pyarrow.types.is_list``, is true of."""
    return isinstance(kind, pd.ArrowDtype) and any(test(kind.pyarrow_dtype) for test in tests)


def is_arrow_text(kind: Any) -> bool:
    """Whether a dtype is Arrow's text."""
    return is_arrow_type(kind, pa.types.is_string, pa.types.is_large_string)


def missing_cells(column: pd.Series, missing: frozenset[str]) -> NDArray[np.bool_]:
    """Which cells of a column, of any type, are None, NaN, NA or one of the ``missing`` texts, shape (n,)."""
    kind = column.dtype
    if pd.api.types.is_object_dtype(kind):  # which may hold lists, that pandas cannot look up
        return np.fromiter((is_missing_cell(cell, missing) for cell in column), dtype=bool, count=len(column))
    gone: NDArray[np.bool_] = column.isna().to_numpy(dtype=bool)
    categories = kind.categories.dtype if isinstance(kind, pd.CategoricalDtype) else kind
    if pd.api.types.is_object_dtype(categories) or pd.api.types.is_string_dtype(categories):
        gone = gone | column.isin(list(missing)).to_numpy(dtype=bool)  # Arrow compares texts with texts only
    return gone


def is_table(X: Any) -> bool:
    """Whether this is a table with named columns: a pandas, polars or Arrow frame."""
    return isinstance(X, pd.DataFrame | pa.Table | pa.RecordBatch) or _exports_arrow(X)


def as_frame(X: Any, argument: str = "frame") -> pd.DataFrame:
    """A table as a pandas frame; a pandas frame is returned as it is.

    Parameters
    ----------
    X : DataFrame of pandas or polars, pyarrow Table or RecordBatch, or any object with ``__arrow_c_stream__``
        Table with named columns.
    argument : str, default="frame"
        What an error calls it.

    Raises
    ------
    DataError
        If it is none, or two columns have one name.
    """
    if isinstance(X, pa.RecordBatch):
        X = pa.Table.from_batches([X])
    if isinstance(X, pd.DataFrame):
        frame = X
    elif isinstance(X, pa.Table) or _exports_arrow(X):
        frame = arrow_to_frame(X if isinstance(X, pa.Table) else pa.table(X))
    else:
        raise DataError(
            f"{argument} must be a table: a pandas or polars DataFrame or a pyarrow Table, got {type(X).__name__}"
        )
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise DataError(f"{argument} has the column {twice!r} more than once")
    return frame


def frame_if_table(X: Any, argument: str = "X") -> Any:
    """As :func:`as_frame` for a table with named columns; anything else as it is."""
    return as_frame(X, argument) if is_table(X) else X


def arrow_to_frame(table: pa.Table) -> pd.DataFrame:
    """An Arrow table as a frame of Arrow columns, which hold whole numbers beside missing ones exactly."""
    fields = []
    for field in table.schema:
        kind = field.type
        if pa.types.is_string_view(kind) if hasattr(pa.types, "is_string_view") else False:
            kind = pa.string()  # polars' own layout, which pandas does not know
        fields.append(pa.field(field.name, kind))
    table = table.cast(pa.schema(fields))
    return table.to_pandas(types_mapper=_pandas_type, ignore_metadata=True)


def _pandas_type(kind: pa.DataType) -> Any:
    if pa.types.is_dictionary(kind) or pa.types.is_null(kind):
        return None  # a pandas category, or objects that are all None
    return pd.ArrowDtype(kind)


def _exports_arrow(X: Any) -> bool:
    # a polars Series exports Arrow, too
    return hasattr(X, "__arrow_c_stream__") and hasattr(X, "columns") and not isinstance(X, pd.DataFrame)
