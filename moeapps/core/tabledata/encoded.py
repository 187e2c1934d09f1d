"""Rows of a table as tensors, taken a batch at a time."""

import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["EncodedTable"]


class EncodedTable(Dataset[tuple[Tensor, ...]]):
    """Tensors of equally many rows, of which a batch is taken at once, not row by row."""

    def __init__(self, *columns: Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(column[index] for column in self.columns)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        """Return a whole batch; torch's loader calls it where it exists."""
        return self.take(torch.as_tensor(indices))

    def take(self, rows: Tensor | slice) -> tuple[Tensor, ...]:
        """Return a whole batch; :class:`~moeapps.core.loading.ResumableLoader` calls it."""
        if isinstance(rows, slice):
            return tuple(column[rows] for column in self.columns)
        return tuple(column.index_select(0, rows) for column in self.columns)
