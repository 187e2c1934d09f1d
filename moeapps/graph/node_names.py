"""Names of nodes: the index of a frame of features, and what a frame of edges or a networkx graph calls them."""

# N nodes, n ends of edges

from typing import Any

import numpy as np
import pandas as pd

from moeapps.core.arrays import as_array, kind_of, missing, whole_numbers
from moeapps.core.errors import DataError
from moeapps.core.labels import plain

__all__ = ["check_alignment", "exact_ids", "node_names", "positions"]


def node_names(x: Any) -> pd.Index | None:
    """Names of the nodes; None when they are their positions.

    Raises
    ------
    DataError
        If a name stands there twice or is missing, or the names are floats that have lost digits.
    """
    if not isinstance(x, pd.DataFrame) or x.index.equals(pd.RangeIndex(len(x))):
        return None
    names = exact_ids(x.index, "the index of x")
    if not names.is_unique:
        raise DataError(f"the index of x names the nodes, but {names[names.duplicated()][0]!r} stands there twice")
    return names


def check_alignment(x: Any, **columns: Any) -> None:
    """Refuse columns whose index has the names of the nodes in another order: values go by position.

    Parameters
    ----------
    x
        Features; nothing is checked unless they are a pandas frame.
    **columns
        Labels and masks by their names.

    Raises
    ------
    DataError
        Naming the column.
    """
    if not isinstance(x, pd.DataFrame):
        return
    for name, column in columns.items():
        if not isinstance(column, pd.Series | pd.DataFrame) or len(column) != len(x) or column.index.equals(x.index):
            continue
        if x.index.is_unique and column.index.is_unique and column.index.isin(x.index).all():
            raise DataError(
                f"the index of {name} has the same entries as that of x in another order, and rows go by position: "
                f"give {name}.loc[x.index], or {name}.to_numpy() if its rows are those of x as they stand"
            )


def exact_ids(ids: Any, what: str) -> pd.Index:
    """Ids as an index that compares them exactly: 7.0 is 7, and none of 19 digits passes through a float.

    Parameters
    ----------
    ids : pandas Series or Index of length n
        Integers, whole floats, text, or anything hashable of one kind.
    what : str
        Where they stand, for the error.

    Raises
    ------
    DataError
        If an id is missing, or a float that is not whole or beyond 2**53.
    """
    if isinstance(ids, pd.MultiIndex):
        return ids
    values = as_array(ids)
    gaps = missing(values)
    if gaps.any():
        raise DataError(f"{what} has no node id in row {int(gaps.argmax())}")
    if values.dtype.kind == "f":
        whole = whole_numbers(values)
        if whole is None:
            fine = np.abs(values) <= 2**53
            first = int(((values != np.floor(values)) | ~fine).argmax())
            raise DataError(
                f"{what} has the float {plain(values[first])!r} as node id in row {first}: ids are integers or text "
                "(floats hold 15 digits; read the column as 'Int64' or text)"
            )
        values = whole
    if values.dtype == bool:
        raise DataError(f"{what} has bool as node ids, expected integers or text")
    return pd.Index(values)


def positions(ends: pd.Index, names: pd.Index | None, what: str) -> np.ndarray:
    """Positions ``(n,)`` of nodes by their names; ids that are positions already stay as they are.

    Raises
    ------
    DataError
        If a node is not there, or names are used and the nodes have none.
    """
    if names is None:
        if not len(ends):
            return np.zeros(0, dtype=np.int64)
        if not pd.api.types.is_integer_dtype(ends.dtype):
            raise DataError(
                f"{what} has names like {plain(ends[0])!r}, but the nodes have none: give x as a DataFrame whose index "
                "names them"
            )
        return ends.to_numpy()
    if _is_number(ends) and _is_number(names) and ends.dtype != names.dtype:  # uint64 and int64 would meet as floats
        ends, names = ends.astype(object), names.astype(object)
    found: np.ndarray = names.get_indexer(ends)
    if (found < 0).any():
        hint = ""
        if len(names) and _is_number(ends) != _is_number(names):
            hint = f" ({kind_of(as_array(names))}s like {plain(names[0])!r}; ids and index must be of one type)"
        raise DataError(
            f"{what} names the node {plain(ends[int((found < 0).argmax())])!r}, which is not in the index of x{hint}"
        )
    return found


def _is_number(index: pd.Index) -> bool:
    return pd.api.types.is_numeric_dtype(index.dtype)
