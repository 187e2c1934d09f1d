"""Embeddings: encoded rows become the vector that all models read."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moeapps.core.checks import check_sizes
from moeapps.recsys.encoder import PAD, Rows

__all__ = ["FeatureEmbedding", "pool_mean"]


class FeatureEmbedding(nn.Module):
    """All categories in one table, so that a batch is looked up once; numbers and their flags beside them.

    Args:
        table_sizes: Number of codes of each table: one per sparse column, then one per sequence that shares none.
        num_sparse: Number of sparse columns, which own the first tables.
        num_dense: Width of the dense part of the rows.
        sequence_tables: For each sequence, the table of its entries.
        dim: Width of an embedding.
        sparse_gradients: Whether the table's gradient holds only the rows that a batch has, which pays for large
            tables; the optimiser has to take it.

    Attributes:
        out_dim: Width of :meth:`forward`'s result: sparse, pooled sequences, dense.
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
        starts = torch.tensor([0, *table_sizes]).cumsum(0)
        self.register_buffer("starts", starts[:-1], persistent=False)
        self.table = nn.Embedding(max(int(starts[-1]), 1), dim, sparse=sparse_gradients)
        nn.init.normal_(self.table.weight, std=dim**-0.5 * 0.3)
        self.out_dim = dim * (num_sparse + len(self.sequence_tables)) + num_dense

    def sparse(self, rows: Rows) -> Tensor:
        """``(N, S, dim)``."""
        return self.table(rows.sparse + self.starts[: self.num_sparse])

    def sequence(self, rows: Rows, place: int) -> tuple[Tensor, Tensor]:
        """Entries ``(N, L, dim)`` of a sequence and ``(N, L)`` where there are any."""
        codes = rows.sequences[place]
        return self.table(codes + self.starts[self.sequence_tables[place]]), codes != PAD

    def forward(self, rows: Rows) -> Tensor:
        """``(N, out_dim)``; a sequence is the mean of its entries, zero when it is empty."""
        parts = [self.sparse(rows).flatten(1)] if self.num_sparse else []
        parts += [pool_mean(*self.sequence(rows, place)) for place in range(len(self.sequence_tables))]
        if self.num_dense:
            parts.append(rows.dense.to(self.table.weight.dtype))
        return torch.cat(parts, dim=1)


def pool_mean(entries: Tensor, there: Tensor) -> Tensor:
    """Mean ``(N, dim)`` over the entries that are there; zero where there is none."""
    share = there.to(entries.dtype)
    return torch.bmm(share[:, None], entries)[:, 0] / share.sum(1, keepdim=True).clamp_min(1)
