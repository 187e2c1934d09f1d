"""Batches of encoded tables."""

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray

from moeapps.core.errors import DataError
from moeapps.core.loading import ResumableLoader, identity_collate, make_loader
from moeapps.core.tabledata.encoded import EncodedTable

__all__ = ["TableDataModule", "refuse_holes"]


class TableDataModule(L.LightningDataModule):
    """Training and validation batches ``(numbers, codes, target, weight)``.

    Parameters
    ----------
    train : tuple[array, ...]
        The four arrays of the training rows.
    val : tuple[array, ...] or None
        The four arrays of the validation rows; None for no validation.
    batch_size : int
        Rows per batch.
    seed : int
        Seed of the order.
    dtype : dtype, default=torch.float32
        Type of targets and weights (numbers stay float64 until they are encoded).
    """

    def __init__(
        self,
        train: tuple[np.ndarray, ...],
        val: tuple[np.ndarray, ...] | None,
        batch_size: int,
        seed: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.train, self.val = _table(train, dtype), None if val is None else _table(val, dtype)
        self.batch_size, self.seed = batch_size, seed

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled batches; all rows in their order where they make one batch."""
        shuffle = len(self.train) > self.batch_size
        return make_loader(self.train, self.batch_size, shuffle=shuffle, seed=self.seed, collate_fn=identity_collate)

    def val_dataloader(self) -> ResumableLoader:
        """Batches in order."""
        assert self.val is not None
        return make_loader(self.val, max(self.batch_size, 1024), collate_fn=identity_collate)


def _table(arrays: tuple[np.ndarray, ...], dtype: torch.dtype) -> EncodedTable:
    numbers, codes, target, weight = (torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)
    target = target if target.dtype == torch.int64 else target.to(dtype)
    return EncodedTable(numbers, codes, target, weight.to(dtype))


def refuse_holes(array: NDArray[np.float64]) -> None:
    """Raise an error that names the first NaN or number beyond float32."""
    with np.errstate(invalid="ignore"):
        bad = ~(np.abs(array) <= np.finfo(np.float32).max)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        value = array[row, column]
        what = "NaN" if np.isnan(value) else "infinity" if np.isinf(value) else f"{value}, too large for float32,"
        cure = "; NaN means missing in a DataFrame: pass one, or impute" if np.isnan(value) else ""
        raise DataError(f"Input X contains {what} at row {row}, column {column}{cure}")
