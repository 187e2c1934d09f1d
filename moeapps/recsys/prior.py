"""What counting says before any model: how often each item, and each user, had a positive label."""

# Shapes: N rows, C codes of a column

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moeapps.recsys.encoder import Rows

__all__ = ["LabelCounts", "LabelPrior"]

LabelCounts = Mapping[int, tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Rows with label 1 and with label 0 for each code, by number of a sparse column."""

SMOOTHING = 10.0
"""Rows of the average label that every category has besides its own."""


class LabelPrior(nn.Module):
    r"""A number per category of some columns, added to the logit, and learned like any other weight.

    It begins at what the labels of training say: with p the share of positive rows, and P of the N rows of a category
    positive, at :math:`\log\frac{P + a p}{N - P + a (1 - p)} - \log\frac{p}{1 - p}`, a = 10; beside it stands the
    overall :math:`\log\frac{p}{1 - p}`. So a ranker begins at popularity, and an unseen category at the average.

    Parameters
    ----------
    columns : sequence of int
        Numbers of the sparse columns.
    sizes : sequence of int
        Number of codes of each.
    """

    def __init__(self, columns: Sequence[int], sizes: Sequence[int]) -> None:
        super().__init__()
        self.columns = list(columns)
        # At the average, wherever no counts are given
        tables = [nn.Embedding(size, 1, _weight=torch.zeros(size, 1)) for size in sizes]
        self.tables: Iterable[nn.Embedding] = nn.ModuleList(tables)  # type: ignore[assignment]
        self.base = nn.Parameter(torch.zeros(()))

    @torch.no_grad()
    def start_at(self, counts: LabelCounts) -> None:
        """Set the numbers to the log odds of the labels."""
        for column, table in zip(self.columns, self.tables, strict=True):
            positive, negative = counts[column]
            share = float(np.clip(positive.sum() / max(positive.sum() + negative.sum(), 1.0), 1e-6, 1 - 1e-6))
            base = float(np.log(share / (1 - share)))
            odds = np.log((positive + SMOOTHING * share) / (negative + SMOOTHING * (1 - share))) - base
            table.weight.copy_(torch.from_numpy(odds)[:, None])
            self.base.fill_(base)

    def forward(self, rows: Rows) -> Tensor:
        """What is added to the logits, ``(N,)``."""
        return self.base + self._sum(rows, self.columns)

    def of_items(self, rows: Rows, item: int) -> Tensor:
        """What belongs to the item, column ``item``, ``(N,)``."""
        return self._sum(rows, [c for c in self.columns if c == item])

    def of_users(self, rows: Rows, item: int) -> Tensor:
        """All the rest, ``(N,)``."""
        return self.base + self._sum(rows, [c for c in self.columns if c != item])

    def _sum(self, rows: Rows, columns: Sequence[int]) -> Tensor:
        total = self.base.new_zeros(rows.sparse.shape[0])  # not len(rows), which a traced program would fix
        for column, table in zip(self.columns, self.tables, strict=True):
            if column in columns:
                total = total + table(rows.sparse[:, column])[:, 0]
        return total
