"""SASRec: self-attention over a user's history gives one vector, whose product with an item's is the score."""

# Shapes: N rows, L entries of a history (padded), dim width of an embedding, I items

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.checks import check_below_one, check_sizes
from moeapps.core.errors import ConfigError
from moeapps.recsys.attention import trimmed

__all__ = ["HistoryEncoder", "SASRec"]


class SelfAttention(nn.Module):
    """A transformer layer with its norms first: attention of all entries, then an MLP of twice the width.

    Not torch's TransformerEncoderLayer, whose exported program fails for no rows, and which has an output for every
    entry where the last layer needs one.

    Parameters
    ----------
    dim : int
        Width of an entry.
    heads : int
        Attention heads.
    dropout : float
        Dropout probability, in [0, 1).
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key_value, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor, present: Tensor, queries: int) -> Tensor:
        """Entries ``(N, L, dim)`` with the mask ``(N, L)`` to ``(N, queries, dim)``, for the last ones of them."""
        normed, x = self.norm(x), x[:, -queries:]
        query = self.query(normed[:, -queries:]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(normed).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, present[:, None, None], dropout)
        x = x + F.dropout(self.out(mixed.transpose(1, 2).flatten(2)), dropout)
        return x + F.dropout(self.mlp(self.mlp_norm(x)), dropout)


class HistoryEncoder(nn.Module):
    """Self-attention over a history with learned positions, counted from the newest entry.

    A learned token is appended, whose output sums the history up; it is also what an empty history has to attend to.

    Parameters
    ----------
    dim : int
        Width of an embedding.
    layers : int, default=1
        Transformer layers, at least 1.
    heads : int, default=2
        Attention heads; ``dim`` must be a multiple.
    dropout : float, default=0.1
        Dropout probability, in [0, 1).
    max_len : int, default=200
        Entries with a position of their own; older ones share the last.

    Raises
    ------
    ConfigError
        If a size is impossible.
    """

    def __init__(self, dim: int, layers: int = 1, heads: int = 2, dropout: float = 0.1, max_len: int = 200) -> None:
        super().__init__()
        check_sizes(dim=dim, layers=layers, heads=heads, max_len=max_len)
        check_below_one(dropout=dropout)
        if dim % heads:
            raise ConfigError(f"heads={heads} must divide the width of an embedding, {dim}")
        self.max_len = max_len
        self.summary = nn.Parameter(torch.randn(dim) * dim**-0.5)
        self.positions = nn.Parameter(torch.randn(max_len, dim) * dim**-0.5 * 0.3)
        self.layers = nn.ModuleList(SelfAttention(dim, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, behaviour: Tensor, present: Tensor) -> Tensor:
        """Entries ``(N, L, dim)`` with the mask ``(N, L)`` to the summary ``(N, dim)``."""
        number, length = present.shape
        age = torch.arange(length - 1, -1, -1, device=present.device).clamp_max(self.max_len - 1)
        x = torch.cat([behaviour + self.positions[age], self.summary.expand(number, 1, -1)], dim=1)
        present = torch.cat([present, present.new_ones(number, 1)], dim=1)
        for layer in self.layers[:-1]:
            x = layer(x, present, length + 1)
        summary: Tensor = self.norm(self.layers[-1](x, present, 1)[:, 0])
        return summary


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
        # As large as an embedding at first: a larger summary would drown what the entries say by themselves
        nn.init.constant_(self.encoder.norm.weight, 0.3 * dim**-0.5)

    def user_vectors(self, behaviour: Tensor, present: Tensor) -> Tensor:
        """What sums the histories up, ``(N, dim)``."""
        summary: Tensor = self.encoder(*trimmed(behaviour, present))
        return summary

    def forward(self, behaviour: Tensor, target: Tensor, present: Tensor, profile: Any) -> Tensor:
        """Logits ``(N,)``."""
        return (self.user_vectors(behaviour, present) * target).sum(-1)
