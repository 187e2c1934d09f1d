"""SASRec: self-attention over a user's history gives one vector, whose product with an item's is the score."""

# Shapes: N rows, R histories of N / R neighbouring rows each, L entries of a history, dim width of an embedding

from typing import Any

from torch import Tensor, nn

from moeapps.recsys.attention import for_each
from moeapps.recsys.packing import trimmed
from moeapps.recsys.self_attention import HistoryEncoder

__all__ = ["SASRec"]


class SASRec(nn.Module):
    r"""Score :math:`\langle h, e \rangle`: h sums up the history by self-attention, e is the item's embedding.

    After Kang and McAuley (ICDM 2018). Nothing but the ids of the history and the candidate is read, so that the best
    items of a large catalogue are one matrix product away. Unlike in the paper, each event is a row of its own with its
    history, and the whole history attends to itself.

    Parameters
    ----------
    dim, profile_dim : int
        Width of an embedding; the width of the other features, which are not used.
    layers, heads : int, default 2 and 2
        Transformer layers and their heads.
    dropout : float, default=0.1
        Dropout probability, in [0, 1).
    max_len : int, default=200
        Entries with a position of their own.
    """

    def __init__(
        self, dim: int, profile_dim: int, layers: int = 2, heads: int = 2, dropout: float = 0.1, max_len: int = 200
    ) -> None:
        super().__init__()
        self.encoder = HistoryEncoder(dim, layers, heads, dropout, max_len)

    def user_vectors(self, behaviour: Tensor, present: Tensor) -> Tensor:
        """What sums the histories ``(R, L, dim)`` up, ``(R, dim)``."""
        summary: Tensor = self.encoder(*trimmed(behaviour, present))
        return summary

    def forward(self, behaviour: Tensor, target: Tensor, present: Tensor, profile: Any) -> Tensor:
        """Logits ``(N,)`` of candidates ``(N, dim)`` with histories ``(R, L, dim)``, each for N / R rows."""
        return (for_each(self.user_vectors(behaviour, present), target.shape[0]) * target).sum(-1)
