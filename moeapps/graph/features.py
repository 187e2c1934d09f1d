"""Node features: what users have to one float32 matrix."""

# N nodes, F features

from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from moeapps.core.arrays import kind_of, missing
from moeapps.core.errors import DataError, DataTypeError
from moeapps.graph.edges import is_sparse, sparse_parts
from moeapps.graph.sparse_features import GIVEN_SHARE, SIZE, SparseFeatures

__all__ = ["as_features", "normalized"]

NUMBERS = ("integer", "floating", "boolean", "decimal", "empty")


def as_features(x: Any) -> Tensor:
    """``(N, F)`` float32 features on the CPU; large sparse ones stay sparse.

    Parameters
    ----------
    x
        Array, Tensor on any device, sparse matrix or tensor, or a pandas frame of numbers.

    Raises
    ------
    DataError
        If a column holds something else than numbers (text, also of digits; categories; dates), or a feature is
        missing or infinite. The error names column and row.
    """
    if x is None:
        raise DataError("the graph has no node features x, expected an (N, F) matrix")
    if isinstance(x, SparseFeatures):  # checked before
        return x
    if (kept := _kept_sparse(x)) is not None:
        return kept
    names = list(x.columns) if isinstance(x, pd.DataFrame) else None
    dense = _dense(x)
    if dense.ndim != 2:
        raise DataError(f"x must have shape (N, F), got {tuple(dense.shape)}. Reshape your data")
    for axis, what in enumerate(("sample", "feature")):
        if dense.shape[axis] == 0:
            raise DataError(f"x has 0 {what}(s) (shape={tuple(dense.shape)}) while a minimum of 1 is required.")
    features = dense.to(torch.float32)
    fine = features.isfinite()
    bad = (~fine.all(dim=1)).nonzero().flatten()
    if bad.numel():
        columns = (
            "" if names is None else f" (columns {[names[i] for i in (~fine.all(dim=0)).nonzero().flatten()][:5]})"
        )
        raise DataError(
            f"x has NaN or infinite features in {bad.numel()} of {len(dense)} nodes, the first are "
            f"{bad[:5].tolist()}{columns}; replace them, or they would spread to all neighbours"
        )
    return features.contiguous()


def normalized(x: Tensor) -> Tensor:
    """Features ``(N, F)`` with each row scaled to sum to 1; a row whose sum is below 1 stays as it is.

    Not PyG's NormalizeFeatures: it would first subtract the smallest feature of the graph.
    """
    if isinstance(x, SparseFeatures):
        return x.scaled(1 / x.row_sums().clamp(min=1))
    return x / x.sum(dim=1, keepdim=True).clamp(min=1)


def _kept_sparse(x: Any) -> SparseFeatures | None:
    """A sparse matrix of real numbers that is large and mostly zeros; None for all else."""
    if is_sparse(x) and not isinstance(x, Tensor):  # torch_sparse.SparseTensor
        row, column, value, shape = sparse_parts(x)
        value = torch.ones(len(row)) if value is None else value
        x = sparse.coo_array((value.cpu().numpy(), (row.cpu().numpy(), column.cpu().numpy())), shape=shape)
    if sparse.issparse(x):
        entries, real = x.nnz, x.dtype.kind in "biuf"
    elif isinstance(x, Tensor) and x.layout != torch.strided:
        entries, real = x._nnz(), not x.is_complex()
    else:
        return None
    size = int(np.prod(x.shape))
    if not real or len(x.shape) != 2 or size < SIZE or entries > GIVEN_SHARE * size:
        return None
    features = SparseFeatures.of(x)
    bad = (~features.value.isfinite()).nonzero().flatten()
    if bad.numel():
        line = int(torch.searchsorted(features.pointer, bad[:1], right=True)) - 1
        raise DataError(
            f"x has {bad.numel()} NaN or infinite features, the first in row {line}, column "
            f"{int(features.column[bad[0]])}; replace them, or they would spread to all neighbours"
        )
    return features


def _dense(x: Any) -> Tensor:
    if isinstance(x, pd.DataFrame):
        columns = [_column(x.iloc[:, i], f"column {x.columns[i]!r} of x") for i in range(x.shape[1])]
        return torch.from_numpy(np.stack(columns, axis=1) if columns else np.zeros(x.shape))
    if sparse.issparse(x):
        x = x.toarray()
    if hasattr(x, "to_dense") and not isinstance(x, Tensor):  # torch_sparse.SparseTensor
        x = x.to_dense()
    if isinstance(x, Tensor):
        if x.is_complex():
            raise DataError(f"x has complex numbers ({x.dtype}), which are no features. Complex data not supported")
        return (x if x.layout == torch.strided else x.to_dense()).detach().cpu()
    if isinstance(x, np.ma.MaskedArray):
        x = np.where(np.ma.getmaskarray(x), np.nan, x.data)
    try:
        array = np.asarray(x)
    except (TypeError, ValueError) as error:  # rows of unequal length
        raise DataError(f"x must be a matrix of numbers: {error}") from None
    if array.dtype.kind not in "biuf":
        array = _of_objects(array)
    return torch.from_numpy(array.astype(np.float32))


def _of_objects(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind != "O":
        hint = ". Complex data not supported" if array.dtype.kind == "c" else ""
        raise DataError(f"x must be a matrix of numbers, got an array of {array.dtype}{hint}")
    if kind_of(array) not in NUMBERS:
        for place, value in np.ndenumerate(array):
            if isinstance(value, str | bytes):
                raise DataError(f"x must be a matrix of numbers, got {value!r} in row {place[0]}, column {place[-1]}")
    try:
        return np.where(missing(array), np.nan, array).astype(np.float64)
    except (TypeError, ValueError) as error:
        kind = DataTypeError if isinstance(error, TypeError) else DataError
        raise kind(f"x must be a matrix of numbers: {error}") from None


def _column(column: "pd.Series[Any]", name: str) -> np.ndarray:
    """A column of numbers as float64, NaN where one is missing."""
    if isinstance(column.dtype, pd.SparseDtype):
        column = pd.Series(np.asarray(column), index=column.index)
    if pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_complex_dtype(column.dtype):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    cells = column.astype(object).to_numpy()
    kind = "category" if isinstance(column.dtype, pd.CategoricalDtype) else kind_of(cells)
    if kind in NUMBERS:
        return np.where(missing(cells), np.nan, cells).astype(np.float64)
    strange = [isinstance(cell, str) for cell in cells] if kind == "mixed" else ~missing(cells)
    row = int(np.argmax(strange))
    raise DataError(
        f"{name} holds no numbers but {kind}: {cells[row]!r} in row {column.index[row]!r}; make numbers of it "
        "(pandas.get_dummies for text and categories) or leave it out"
    )
