"""Weight decay of embeddings that is stronger the rarer an id is: DIN's mini-batch aware regularisation."""

# Shapes: N rows, S sparse columns, L entries of a sequence, V codes of all tables together

import torch
from torch import Tensor

from moeapps.core.distributed import gather_rows
from moeapps.recsys.encoder import PAD, Rows
from moeapps.recsys.features import FeatureEmbedding

__all__ = ["EmbeddingDecay", "code_counts"]

_ROWS = 65_536
"""Rows that are counted at once."""


class EmbeddingDecay:
    r"""Shrinks the embeddings of the ids that a step has seen, each by its share of the id's occurrences.

    After section 5.1 of DIN (Zhou et al., KDD 2018): an id that occurs in :math:`n_j` rows of the training and in a
    step's rows, however often, has :math:`w_j \leftarrow w_j (1 - \eta \lambda / n_j)`. So an id that is once in a
    batch at most shrinks by :math:`\eta \lambda` in an epoch, and one that is in every batch hardly at all; ids that a
    batch does not have cost nothing. As in AdamW the decay stands beside the gradient, whose scale Adam would undo.

    Parameters
    ----------
    embedding : FeatureEmbedding
        Whose table decays.
    counts : Tensor of shape (V,)
        Occurrences of every code in an epoch's rows; see :func:`code_counts`.
    strength : float
        :math:`\lambda`, at least 0.
    """

    def __init__(self, embedding: FeatureEmbedding, counts: Tensor, strength: float) -> None:
        self.embedding = embedding
        weight = embedding.table.weight
        self.rate = (strength / counts.clamp_min(1)).to(weight)
        self.seen = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)

    def see(self, rows: Rows) -> None:
        """Note the codes of a batch."""
        for codes in self.embedding.codes(rows):
            self.seen[codes] = True

    @torch.no_grad()
    def shrink(self, lr: float) -> None:
        """Shrink what any process has seen since the last time."""
        found = torch.unique(gather_rows(self.seen.nonzero()[:, 0]))
        weight = self.embedding.table.weight
        kept = (1 - lr * self.rate[found]).clamp_min(0)
        weight.index_copy_(0, found, weight.index_select(0, found) * kept[:, None])
        self.seen.zero_()


def code_counts(
    embedding: FeatureEmbedding, rows: Rows, weights: Tensor | None = None, sequences: bool = True
) -> Tensor:
    """Occurrences ``(V,)`` of every code in encoded rows, of which padding has none.

    Parameters
    ----------
    embedding : FeatureEmbedding
        Knows which code of the table a column's code is.
    rows : Rows
        Encoded rows.
    weights : Tensor of shape (N,), optional
        How often each row occurs; once by default.
    sequences : bool, default=True
        Whether the entries of sequences count, too.
    """
    counts = torch.zeros(embedding.table.num_embeddings, dtype=torch.float64)
    for start in range(0, len(rows), _ROWS):
        part = slice(start, start + _ROWS)
        found = embedding.codes(rows.at(part))
        for codes in found if sequences else found[:1]:
            each = None if weights is None else weights[part, None].expand_as(codes).flatten()
            counts += torch.bincount(codes.flatten(), each, len(counts)).double()
    counts[embedding.starts + PAD] = 0
    return counts
