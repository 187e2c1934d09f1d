"""Embeddings: from encoded rows to the vector that all models read."""

# Shapes: N rows, S sparse columns, D dense columns, L entries of a sequence, dim width of an embedding

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from moeapps.core.checks import check_sizes
from moeapps.recsys.encoder import PAD, Rows
from moeapps.recsys.packing import PackedHistories

__all__ = ["FeatureEmbedding", "pool_mean"]


class FeatureEmbedding(nn.Module):
    """All categories in one embedding table, so that a batch is one look-up; numbers and their flags beside them.

    Parameters
    ----------
    table_sizes : sequence of int
        Number of codes of each table: one per sparse column, then one per sequence that shares none.
    num_sparse : int
        Number of sparse columns S, which own the first tables.
    num_dense : int
        Width 2 D of the dense part of the rows.
    sequence_tables : sequence of int, default=()
        For each sequence, the table of its entries.
    dim : int, default=8
        Width of an embedding.
    sparse_gradients : bool, default=False
        Whether the table's gradient holds only the rows of the batch, which is faster for large tables; the optimiser
        must accept sparse gradients.

    Attributes
    ----------
    out_dim : int
        Width of the result of ``forward``: sparse columns, pooled sequences, dense columns.
    """

    starts: Tensor

    def __init__(
        self,
        table_sizes: Sequence[int],
        num_sparse: int,
        num_dense: int,
        sequence_tables: Sequence[int] = (),
        dim: int = 8,
        sparse_gradients: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(dim=dim)
        self.dim, self.num_sparse, self.num_dense = dim, num_sparse, num_dense
        self.sequence_tables = list(sequence_tables)
        *starts, end = accumulate(table_sizes, initial=0)
        self.register_buffer("starts", torch.tensor(starts, dtype=torch.int64), persistent=False)
        self.table = nn.Embedding(max(end, 1), dim, sparse=sparse_gradients)
        nn.init.normal_(self.table.weight, std=dim**-0.5 * 0.3)
        self.out_dim = dim * (num_sparse + len(self.sequence_tables)) + num_dense

    def sparse(self, rows: Rows) -> Tensor:
        """Embeddings ``(N, S, dim)`` of the sparse columns."""
        return self._look_up(self._sparse_codes(rows))

    def sequence(self, rows: Rows, index: int) -> tuple[Tensor, Tensor]:
        """Embeddings ``(N, L, dim)`` of a sequence, and the mask ``(N, L)`` of the entries that are no padding."""
        return self.entries(rows, index), self.present(rows, index)

    def entries(self, rows: Rows, index: int) -> Tensor:
        """Embeddings ``(N, L, dim)`` of a sequence."""
        return self._look_up(self._sequence_codes(rows, index))

    def present(self, rows: Rows, index: int) -> Tensor:
        """The mask ``(N, L)`` of a sequence's entries that are no padding."""
        return rows.sequences[index] != PAD

    def packed(self, rows: Rows, index: int, present: Tensor) -> PackedHistories:
        """Embeddings of a sequence's entries that are in the mask ``(N, L)``, row by row; on the CPU."""
        place = present.flatten().nonzero()[:, 0]
        codes = self._sequence_codes(rows, index).flatten().index_select(0, place)
        return PackedHistories(self._look_up(codes), place // max(present.shape[1], 1), present.sum(1))

    def codes(self, rows: Rows) -> list[Tensor]:
        """Rows of the table that encoded rows look up: ``(N, S)``, then ``(N, L)`` of each sequence."""
        return [self._sparse_codes(rows), *(self._sequence_codes(rows, i) for i in range(len(self.sequence_tables)))]

    def _sparse_codes(self, rows: Rows) -> Tensor:
        return rows.sparse + self.starts[: self.num_sparse]

    def _sequence_codes(self, rows: Rows, index: int) -> Tensor:
        return rows.sequences[index] + self.starts[self.sequence_tables[index]]

    def _look_up(self, codes: Tensor) -> Tensor:
        """Embeddings of codes of any shape.

        While training on the CPU by ``index_select``: its gradient adds rows up by ``index_add_``, in the order of the
        batch, in a fifth of the time of that of ``embedding``. On CUDA its sums would differ from run to run.
        """
        weight = self.table.weight
        if not self.training or self.table.sparse or weight.device.type != "cpu":
            return self.table(codes)
        return weight.index_select(0, codes.flatten()).unflatten(0, codes.shape)

    def forward(self, rows: Rows) -> Tensor:
        """Vectors ``(N, out_dim)``; a sequence is the mean of its entries, zero if it is empty."""
        parts = [self.sparse(rows).flatten(1)] if self.num_sparse else []
        parts += [pool_mean(*self.sequence(rows, index)) for index in range(len(self.sequence_tables))]
        if self.num_dense:
            parts.append(rows.dense.to(self.table.weight.dtype))
        return torch.cat(parts, dim=1)


def pool_mean(entries: Tensor, present: Tensor) -> Tensor:
    """Mean ``(N, dim)`` of the entries ``(N, L, dim)`` in the mask ``(N, L)``; zero where there is none."""
    weight = present.to(entries.dtype)
    return torch.bmm(weight[:, None], entries)[:, 0] / weight.sum(1, keepdim=True).clamp_min(1)
