"""Self-attention over a history: what sums it up (SASRec), or each entry in the light of the others."""

# Shapes: N rows, L entries of a history (padded), dim width of an embedding

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.checks import check_below_one, check_sizes
from moeapps.core.dropout import Dropout, dropout
from moeapps.core.errors import ConfigError
from moeapps.recsys.packing import padding_costs, trimmed

__all__ = ["HistoryEncoder"]

PART = 12_800
"""Entries, padding among them, that are encoded at once where padding costs: smaller parts cost more than they save."""


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
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), Dropout(dropout), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor, present: Tensor, queries: int) -> Tensor:
        """Entries ``(N, L, dim)`` with the mask ``(N, L)`` to ``(N, queries, dim)``, for the last ones of them."""
        normed, x = self.norm(x), x[:, -queries:]
        query = self.query(normed[:, -queries:]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(normed).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.training and self.dropout > 0 and x.device.type == "cpu":
            mixed = self._attend(query, key, value, present)
        else:
            rate = self.dropout if self.training else 0.0
            mixed = F.scaled_dot_product_attention(query, key, value, present[:, None, None], rate)
        x = x + dropout(self.out(mixed.transpose(1, 2).flatten(2)), self.dropout, self.training)
        return x + dropout(self.mlp(self.mlp_norm(x)), self.dropout, self.training)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, present: Tensor) -> Tensor:
        """What torch does where attention drops weights, without looking for rows that have nothing to attend to."""
        padding = torch.zeros(present.shape, dtype=query.dtype).masked_fill_(~present, -torch.inf)[:, None, None]
        scores = query @ (key * query.shape[-1] ** -0.5).transpose(-1, -2) + padding
        return dropout(scores.softmax(-1), self.dropout) @ value


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
        # As large as an embedding at first: a larger output would drown what the entries say by themselves
        nn.init.constant_(self.norm.weight, 0.3 * dim**-0.5)

    def forward(self, behaviour: Tensor, present: Tensor) -> Tensor:
        """Entries ``(N, L, dim)`` with the mask ``(N, L)`` to the summary ``(N, dim)``."""

        def summaries(behaviour: Tensor, present: Tensor) -> Tensor:
            return self._attended(behaviour, present, 1)[:, 0]

        return in_parts(summaries, behaviour, present)

    def entries(self, behaviour: Tensor, present: Tensor) -> Tensor:
        """Entries ``(N, L, dim)`` in the light of the others ``(N, L, dim)``; of no use where they are padding."""
        length = present.shape[1]

        def outputs(behaviour: Tensor, present: Tensor) -> Tensor:
            own = self._attended(behaviour, present, present.shape[1] + 1)[:, :-1]
            return F.pad(own, (0, 0, length - own.shape[1], 0))

        return in_parts(outputs, behaviour, present)

    def _attended(self, behaviour: Tensor, present: Tensor, queries: int) -> Tensor:
        """The last ``queries`` outputs, of which the summary is the last one."""
        number, length = present.shape
        age = torch.arange(length - 1, -1, -1, device=present.device).clamp_max(self.max_len - 1)
        x = torch.cat([behaviour + self.positions[age], self.summary.expand(number, 1, -1)], dim=1)
        present = torch.cat([present, present.new_ones(number, 1)], dim=1)
        for layer in self.layers[:-1]:
            x = layer(x, present, length + 1)
        outputs: Tensor = self.norm(self.layers[-1](x, present, queries))
        return outputs


def in_parts(encode: Callable[[Tensor, Tensor], Tensor], behaviour: Tensor, present: Tensor) -> Tensor:
    """``encode`` of histories ``(N, L, dim)`` with the mask ``(N, L)``, in parts of like lengths where padding costs.

    Attention to padding is for nothing, and each part is only as long as its longest history.
    """
    parts = present.numel() // PART if padding_costs(present) else 1
    if parts <= 1:
        return encode(behaviour, present)
    order = present.sum(1).argsort(stable=True)
    encoded = [encode(*trimmed(behaviour[rows], present[rows])) for rows in order.chunk(parts)]
    return torch.cat(encoded).index_select(0, order.argsort())
