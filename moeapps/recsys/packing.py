"""Histories without their padding: the entries of all rows one after the other."""

# Shapes: N rows, R histories of N / R neighbouring rows each, L entries of a history (padded), M entries of all
# histories without padding, dim width of an embedding

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["PackedHistories", "padding_costs", "trimmed"]

PADDED_FROM = 0.6
"""Part of the entries that are no padding from which padded histories take less time: their products are larger ones,
and have half of the multiplications."""


class PackedHistories(NamedTuple):
    """The entries of some histories, history by history.

    Parameters
    ----------
    entries : Tensor of shape (M, dim)
        Their embeddings.
    row : Tensor of shape (M,)
        Number of each entry's history, which never falls.
    counts : Tensor of shape (R,)
        Entries of each history.
    """

    entries: Tensor
    row: Tensor
    counts: Tensor

    def sum(self, values: Tensor) -> Tensor:
        """Sum over each history's entries, ``(R, k)``, of values ``(M, k)``; zero for an empty one."""
        total = self.entries.new_zeros(len(self.counts), values.shape[1])
        return total.index_add(0, self.row, values.to(total.dtype))

    def for_each(self, number: int) -> "PackedHistories":
        """Each of the R histories repeated for N / R neighbouring rows, N the ``number``."""
        if number == len(self.counts):
            return self
        times = number // len(self.counts)
        counts, starts = (part.repeat_interleave(times) for part in (self.counts, self.counts.cumsum(0) - self.counts))
        row = torch.arange(number).repeat_interleave(counts)
        # Place of an entry among all, less that of its row's first one, plus that of its history's first one
        place = torch.arange(len(row)) + (starts + counts - counts.cumsum(0)).index_select(0, row)
        return PackedHistories(self.entries.index_select(0, place), row, counts)

    def with_product(self, target: Tensor) -> Tensor:
        """Entries and their products with what belongs to their history ``(R, dim)``, side by side, ``(M, 2 dim)``."""
        return torch.cat([self.entries, self.entries * target.index_select(0, self.row)], dim=1)

    def root_sum(self) -> Tensor:
        """As :func:`moeapps.recsys.attention.root_sum`, ``(R, dim)``."""
        return self.sum(self.entries) / self.counts[:, None].clamp_min(1).sqrt()


def padding_costs(present: Tensor) -> bool:
    """Whether histories with the mask ``(R, L)`` are computed faster without their padding.

    On the CPU only: on a GPU the number of entries is not known without waiting for it, and its sums over entries would
    differ from run to run. A traced program has one number of entries.
    """
    if present.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return int(present.sum()) <= PADDED_FROM * present.numel()


def trimmed(behaviour: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Behaviour and mask without the first columns, where no row has an entry: they would be computed for nothing."""
    if torch.compiler.is_compiling() or not present.shape[1]:  # a traced program has one length
        return behaviour, present
    columns = present.any(0)
    start = int(columns.to(torch.uint8).argmax()) if bool(columns.any()) else present.shape[1] - 1
    return behaviour[:, start:], present[:, start:]
