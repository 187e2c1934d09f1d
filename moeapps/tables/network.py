"""The network of the tabular estimators: embedded columns, residual MoE blocks, a linear head."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from moeapps.core.checks import check_at_least_zero, check_sizes
from moeapps.core.errors import ConfigError
from moeapps.core.layer import MoE
from moeapps.core.routers import make_router

__all__ = ["NumericEmbedding", "TabularMoE"]


class NumericEmbedding(nn.Module):
    """Numbers as what a linear layer can read: standardised value, missing flag, and place among the quantiles.

    The place is a piecewise-linear encoding (Gorishniy et al. 2022, section 3.1): one feature per quantile bin, 0
    below the bin, 1 above it, linear inside.

    Args:
        mean: Mean of each column.
        scale: Standard deviation of each column.
        edges: Quantiles of each column; none for a constant.
    """

    mean: Tensor
    scale: Tensor
    low: Tensor
    width: Tensor
    column: Tensor

    def __init__(self, mean: Sequence[float], scale: Sequence[float], edges: Sequence[Sequence[float]]) -> None:
        super().__init__()
        bins = [(i, a, b - a) for i, e in enumerate(edges) for a, b in pairwise(e)]
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64))
        self.register_buffer("column", torch.tensor([i for i, _, _ in bins], dtype=torch.int64))
        self.register_buffer("low", torch.tensor([a for _, a, _ in bins], dtype=torch.float64))
        self.register_buffer("width", torch.tensor([w for _, _, w in bins], dtype=torch.float64))
        self.out_dim = 2 * len(mean) + len(bins)

    def forward(self, x: Tensor) -> Tensor:
        """Map float64 numbers ``(n, P)``, NaN where missing, to ``(n, out_dim)`` features."""
        missing = x.isnan()
        place = ((x[:, self.column] - self.low) / self.width).clamp(0, 1).nan_to_num(0.0)
        standard = torch.where(missing, 0.0, (x - self.mean) / self.scale)
        return torch.cat([standard, missing.to(x.dtype), place], dim=1)

    def _apply(self, fn: Any, recurse: bool = True) -> "NumericEmbedding":
        """Follow the model to another device, but keep the quantiles in float64: they are compared with raw numbers."""
        kept = {name: getattr(self, name) for name in ("mean", "scale", "low", "width")}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self


class TabularMoE(nn.Module):
    """Columns to outputs: embeddings side by side, a linear layer, residual blocks x + MoE(norm(x)), a linear head.

    Args:
        mean: Mean of each numeric column.
        scale: Standard deviation of each numeric column.
        edges: Quantiles of each numeric column.
        cardinalities: Number of codes of each categorical column.
        out_dim: Number of outputs (classes or targets).
        dim: Width d of the blocks.
        num_blocks: Number of blocks.
        num_experts: Experts per block E.
        top_k: Experts per row, for routers with such an argument.
        hidden_dim: Hidden width of the experts; ``2 * dim`` when None.
        router: Name of a router, as in ``moeapps list routers``.
        router_args: Its further arguments.
        share_router: Whether all blocks use one router (Omni-router).
        capacity_factor: As in :class:`~moeapps.core.layer.MoE`.
        embedding_dim: Width of a categorical column's embedding.
        dropout: Probability of dropping an embedded feature, and an output feature of a block, in training.
        balance_weight: Factor of the router's balance loss.
        z_weight: Factor of the router z-loss.

    Raises:
        ConfigError: If a size is impossible or there is no column at all.
    """

    def __init__(
        self,
        mean: Sequence[float],
        scale: Sequence[float],
        edges: Sequence[Sequence[float]],
        cardinalities: Sequence[int],
        out_dim: int,
        dim: int = 128,
        num_blocks: int = 2,
        num_experts: int = 8,
        top_k: int = 2,
        hidden_dim: int | None = None,
        router: str = "topk",
        router_args: Mapping[str, Any] | None = None,
        share_router: bool = False,
        capacity_factor: float | None = None,
        embedding_dim: int = 8,
        dropout: float = 0.0,
        balance_weight: float = 0.01,
        z_weight: float = 0.001,
    ) -> None:
        super().__init__()
        check_sizes(dim=dim, num_blocks=num_blocks, num_experts=num_experts, embedding_dim=embedding_dim)
        check_at_least_zero(dropout=dropout)
        if dropout >= 1:
            raise ConfigError(f"dropout must be below 1, got {dropout!r}")
        hidden_dim = 2 * dim if hidden_dim is None else hidden_dim
        self.numeric = NumericEmbedding(mean, scale, edges)
        starts = [sum(cardinalities[:i]) for i in range(len(cardinalities))]
        self.start: Tensor
        self.register_buffer("start", torch.tensor(starts, dtype=torch.int64))
        self.embedding = nn.Embedding(max(sum(cardinalities), 1), embedding_dim)
        nn.init.normal_(self.embedding.weight, std=0.1)
        width = self.numeric.out_dim + len(cardinalities) * embedding_dim
        self.drop = nn.Dropout(dropout)
        self.project = nn.Linear(width, dim)

        def made() -> Any:
            return make_router(router, dim, num_experts, **{"top_k": top_k, **(router_args or {})})

        shared = made() if share_router else None
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(num_blocks))
        self.blocks = nn.ModuleList(
            MoE(
                dim,
                num_experts,
                hidden_dim=hidden_dim,
                router=shared if shared is not None else made(),
                capacity_factor=capacity_factor,
                balance_weight=balance_weight,
                z_weight=z_weight,
            )
            for _ in range(num_blocks)
        )
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, out_dim))

    def forward(self, numbers: Tensor, codes: Tensor) -> Tensor:
        """Map numbers ``(n, P)`` in float64 and codes ``(n, C)`` to outputs ``(n, out_dim)``."""
        embedded = self.embedding(codes + self.start).flatten(1)
        features = torch.cat([self.numeric(numbers).to(embedded.dtype), embedded], dim=1)
        x = self.project(self.drop(features))
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + self.drop(block(norm(x)))
        out: Tensor = self.head(x)
        return out
