"""A column of the user's as a NumPy array with no value changed on the way: labels, masks, weights and node ids.

``numpy.asarray`` is not enough: it makes the text ``"nan"`` of a missing value in a list of text, and floats, which
hold 15 digits, of integers with a gap.
"""

# n values

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moeapps.core.errors import DataError
from moeapps.core.tabledata.cells import EXACT
from moeapps.core.tabledata.frames import frame_if_table
from moeapps.core.torch_types import is_tensor, is_type_of_tensors

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "EXACT",
    "as_array",
    "kind_of",
    "missing",
    "numbers",
    "plain",
    "tightened",
    "unreadable",
    "whole_numbers",
    "with_gaps",
]


def as_array(values: Any) -> np.ndarray:
    """Values of any kind as an array that holds them exactly: of dtype object where a missing one would change them.

    Parameters
    ----------
    values
        Tensor on any device, NumPy or masked array, pandas Series, Index, array or DataFrame, polars or pyarrow column,
        list.

    Returns
    -------
    array
        In the shape of the values. Of dtype object if values are missing or of several kinds.
    """
    values = frame_if_table(values, "the values")
    if is_tensor(values):
        return _of_tensor(values)
    if isinstance(values, pd.DataFrame):
        columns = [as_array(values.iloc[:, i]) for i in range(values.shape[1])]
        return tightened(np.stack(columns, axis=1)) if columns else np.zeros(values.shape)
    if isinstance(values, pd.Series | pd.Index | pd.api.extensions.ExtensionArray):
        if isinstance(values.dtype, np.dtype):
            return tightened(np.asarray(values))
        return tightened(pd.Series(values).astype(object).to_numpy())
    if isinstance(values, np.ma.MaskedArray):
        return tightened(with_gaps(values.data, np.ma.getmaskarray(values)))
    for convert in ("to_pylist", "to_list"):  # pyarrow, polars
        if hasattr(values, convert) and not isinstance(values, np.ndarray):
            values = getattr(values, convert)()
            break
    if isinstance(values, list | tuple) and not any(map(_is_type_of_arrays, set(map(type, values)))):
        found = tightened(np.array(values, dtype=object))
        # text of a list is of dtype U, as NumPy reads it
        return found.astype(str) if kind_of(found) == "text" and not missing(found).any() else found
    return tightened(np.asarray(values))


def _of_tensor(values: "Tensor") -> np.ndarray:
    import torch

    values = values.detach().cpu()
    values = values if values.layout == torch.strided else values.to_dense()
    half = values.is_floating_point() and values.dtype not in (torch.float32, torch.float64)
    return np.asarray((values.float() if half else values).numpy())


def _is_type_of_arrays(kind: type) -> bool:
    return issubclass(kind, np.ndarray) or is_type_of_tensors(kind)


def missing(values: np.ndarray) -> np.ndarray:
    """Which values are missing: NaN, None, NA or NaT."""
    found: np.ndarray = pd.isna(values)
    return found


def with_gaps(values: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """Values as objects, None where ``gaps`` is true."""
    found = values.astype(object)
    found[gaps] = None
    return found


def kind_of(values: np.ndarray) -> str:
    """Kind of the values that are not missing, as pandas infers it, for messages too.

    ``"integer"``, ``"floating"`` (also mixed with integers), ``"boolean"``, ``"text"``, ``"empty"``, ``"mixed"``,
    ``"decimal"``, ``"datetime"``, ``"bytes"``, ...
    """
    kind = str(pd.api.types.infer_dtype(values.ravel(), skipna=True))
    names = {"string": "text", "mixed-integer-float": "floating", "mixed-integer": "mixed", "datetime64": "datetime"}
    return names.get(kind, kind)


def numbers(values: np.ndarray, what: str, where: str = "row") -> np.ndarray:
    """Values as float64, missing ones as NaN.

    Parameters
    ----------
    values : array of shape (n,)
        From :func:`as_array`.
    what : str
        What the values are, for the error.
    where : str, default="row"
        What one value belongs to, for the error.

    Raises
    ------
    DataError
        If a value is no number; text is none, whatever it says.
    """
    if values.dtype.kind in "biuf":
        return values.astype(np.float64)
    kind = kind_of(values)
    if values.dtype == object and kind in ("integer", "floating", "boolean", "decimal", "empty"):
        return np.where(missing(values), np.nan, values).astype(np.float64)
    first = int((~missing(values)).argmax())
    if kind == "mixed":
        first = next((i for i, value in enumerate(values) if isinstance(value, str)), first)
    raise DataError(f"{what} must be numbers, got {plain(values[first])!r} ({kind}) in {where} {first}")


def whole_numbers(values: np.ndarray) -> np.ndarray | None:
    """Floats as the whole numbers that they are; None where one is not, or is beyond 2**53 and may have lost digits."""
    if values.dtype.kind != "f" or not np.isfinite(values).all():
        return None
    exact = (np.abs(values) <= EXACT).all() and np.array_equal(values, np.floor(values))
    return values.astype(np.int64) if exact else None


def tightened(values: np.ndarray) -> np.ndarray:
    """Objects of one kind, none missing, in the dtype of that kind; text stays an object."""
    if values.dtype != object or values.size == 0 or missing(values).any():
        return values
    kind = kind_of(values)
    if kind == "boolean":
        return values.astype(bool)
    if kind == "floating":
        return values.astype(np.float64)
    if kind == "integer":
        low, high = min(values.flat), max(values.flat)
        if low >= -(2**63) and high < 2**63:
            return values.astype(np.int64)
        if low >= 0 and high < 2**64:
            return values.astype(np.uint64)
    return values


def plain(value: Any) -> Any:
    """A Python value in place of a numpy scalar."""
    return value.item() if isinstance(value, np.generic) else value


def unreadable(error: Exception, expected: str) -> str:
    """Why NumPy could not read a file, as the end of an error; without its advice to unpickle what may run code.

    Parameters
    ----------
    error : Exception
        What ``numpy.load`` raised.
    expected : str
        What the file should be.
    """
    reason = str(error)
    if "Object arrays" in reason or "Python objects" in reason:
        reason = "it holds Python objects; save arrays of numbers, or of text with astype(str)"
    elif "pickle" in reason:  # of any file that does not begin with NumPy's mark
        reason = "it is no file of NumPy"
    return f"is not a readable {expected}: {reason}"
