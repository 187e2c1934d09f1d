"""The network of the tabular estimators: embedded columns, residual MoE blocks, a linear head.

Shapes: n rows, P numeric columns, C categorical columns, d width of the blocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moeapps.core.checks import check_below_one, check_sizes
from moeapps.core.config import Configurable, takes
from moeapps.core.errors import ConfigError
from moeapps.core.expert_sizes import ExpertSizes
from moeapps.core.layer import BalanceLoss, MoE
from moeapps.core.routers import HashRouter, Router, make_router, router_class

__all__ = ["NumericEmbedding", "TabularConfig", "TabularMoE", "balance_hashes"]


class NumericEmbedding(nn.Module):
    """Numeric columns as features for a linear layer: standardised value, missing flag, piecewise-linear encoding.

    The encoding is that of Gorishniy et al. 2022 (section 3.1): one feature per quantile bin, 0 below the bin, 1 above
    it, linear inside.

    Parameters
    ----------
    mean : sequence of float
        Mean of each column.
    scale : sequence of float
        Standard deviation of each column.
    edges : sequence of sequences of float
        Quantiles of each column; empty for a constant column.
    """

    mean: Tensor
    scale: Tensor
    low: Tensor
    width: Tensor
    column: Tensor
    determined_buffers = ("mean", "scale", "column", "low", "width")

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
        binned = ((x[:, self.column] - self.low) / self.width).clamp(0, 1).nan_to_num(0.0)  # (n, bins of all columns)
        standard = torch.where(missing, 0.0, (x - self.mean) / self.scale)
        return torch.cat([standard, missing.to(x.dtype), binned], dim=1)

    def _apply(self, fn: Any, recurse: bool = True) -> "NumericEmbedding":
        """Follow the model to another device, but keep the quantiles in float64: they are compared with raw numbers."""
        kept = {name: getattr(self, name) for name in ("mean", "scale", "low", "width")}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self


@dataclass(frozen=True)
class TabularConfig:
    """Settings of :class:`TabularMoE`.

    Parameters
    ----------
    dim : int, default=128
        Width d of the blocks.
    num_blocks : int, default=2
        Number of residual blocks.
    num_experts : int, default=8
        Experts per block E.
    top_k : int, default=2
        Experts per row, for routers with such an argument.
    hidden_dim : int, optional
        Hidden width of the experts; ``2 * dim`` when None.
    router : str, default="topk"
        Name of a router, as in ``moeapps list routers``.
    router_args : mapping, optional
        Further arguments of the router.
    share_router : bool, default=False
        Whether all blocks use one router (Omni-router).
    capacity_factor : float, optional
        In training an expert takes at most this multiple of its fair share of rows; no limit when None.
    embedding_dim : int, default=8
        Width of the embedding of a categorical column.
    dropout : float, default=0.0
        Probability of dropping an embedded feature, and an output feature of a block, in training; below 1.
    balance_weight : float, default=0.01
        Factor of the router's balance loss.
    z_weight : float, default=0.001
        Factor of the router z-loss.
    balance_loss : {"load", "mutual_information"}, default="load"
        The router's own balance loss, or ModuleFormer's in its place; see :class:`~moeapps.core.MoE`.
    iterations : int, default=1
        How often each block applies its experts in turn (chain of experts).
    expert_sizes : {"arithmetic", "geometric"} or sequence of int, optional
        Experts of different hidden widths (HMoE): a name, by which they share the units of ``hidden_dim``, or the
        widths; all alike when None.
    penalty_weight : float, default=0.1
        Factor of the parameter penalty of experts of different widths.
    route_by : int, optional
        Which of the categorical columns has the ids that ``router="hash"`` routes by; None routes by the row.
    """

    dim: int = 128
    num_blocks: int = 2
    num_experts: int = 8
    top_k: int = 2
    hidden_dim: int | None = None
    router: str = "topk"
    router_args: Mapping[str, Any] | None = None
    share_router: bool = False
    capacity_factor: float | None = None
    embedding_dim: int = 8
    dropout: float = 0.0
    balance_weight: float = 0.01
    z_weight: float = 0.001
    balance_loss: BalanceLoss = "load"
    iterations: int = 1
    expert_sizes: ExpertSizes = None
    penalty_weight: float = 0.1
    route_by: int | None = None

    def make_router(self, cardinalities: Sequence[int] = ()) -> Router:
        """Router of one block; ``cardinalities`` as those of :class:`TabularMoE`."""
        given = {"top_k": self.top_k, **(self.router_args or {})}
        if self.route_by is not None:
            if router_class(self.router) is not HashRouter:
                raise ConfigError(f"route_by is for router='hash', which routes by an id, got router={self.router!r}")
            if not 0 <= self.route_by < len(cardinalities):
                raise ConfigError(f"route_by must be below the {len(cardinalities)} categorical columns")
            given["vocabulary"] = cardinalities[self.route_by]
        return make_router(self.router, self.dim, self.num_experts, **given)


class TabularMoE(Configurable, nn.Module):
    """Embedded columns, a linear layer, residual blocks x + MoE(norm(x)), a linear head.

    Parameters
    ----------
    mean : sequence of float
        Mean of each numeric column.
    scale : sequence of float
        Standard deviation of each numeric column.
    edges : sequence of sequences of float
        Quantiles of each numeric column.
    cardinalities : sequence of int
        Number of codes of each categorical column.
    out_dim : int
        Number of outputs: classes or targets.
    config : TabularConfig
        Given as keyword arguments, one per field.

    Raises
    ------
    ConfigError
        If a size is impossible.
    """

    determined_buffers = ("start",)
    route_by: int | None = None  # pickles of 0.1 have none

    @takes(TabularConfig)
    def __init__(
        self,
        mean: Sequence[float],
        scale: Sequence[float],
        edges: Sequence[Sequence[float]],
        cardinalities: Sequence[int],
        out_dim: int,
        config: TabularConfig,
    ) -> None:
        super().__init__()
        dim, embedding_dim = config.dim, config.embedding_dim
        check_sizes(dim=dim, num_blocks=config.num_blocks, num_experts=config.num_experts, embedding_dim=embedding_dim)
        check_below_one(dropout=config.dropout)
        self.numeric = NumericEmbedding(mean, scale, edges)
        # one embedding table for all columns: the codes of a column start where those of the last one end
        starts = [sum(cardinalities[:i]) for i in range(len(cardinalities))]
        self.start: Tensor
        self.register_buffer("start", torch.tensor(starts, dtype=torch.int64))
        self.embedding = nn.Embedding(max(sum(cardinalities), 1), embedding_dim)
        nn.init.normal_(self.embedding.weight, std=0.1)
        width = self.numeric.out_dim + len(cardinalities) * embedding_dim
        self.drop = nn.Dropout(config.dropout)
        self.project = nn.Linear(width, dim)
        self.route_by = config.route_by
        shared = config.make_router(cardinalities) if config.share_router else None
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(config.num_blocks))
        self.blocks = nn.ModuleList(
            MoE(
                dim,
                config.num_experts,
                hidden_dim=2 * dim if config.hidden_dim is None else config.hidden_dim,
                router=config.make_router(cardinalities) if shared is None else shared,
                capacity_factor=config.capacity_factor,
                balance_weight=config.balance_weight,
                z_weight=config.z_weight,
                penalty_weight=config.penalty_weight,
                balance_loss=config.balance_loss,
                iterations=config.iterations,
                expert_sizes=config.expert_sizes,
            )
            for _ in range(config.num_blocks)
        )
        if shared is not None and config.iterations > 1:
            first, *others = self.blocks
            for block in others:
                block.later_routers = first.later_routers
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, out_dim))

    def forward(self, numbers: Tensor, codes: Tensor) -> Tensor:
        """Map numbers ``(n, P)`` in float64 and codes ``(n, C)`` to outputs ``(n, out_dim)``."""
        embedded = self.embedding(codes + self.start).flatten(1)
        features = torch.cat([self.numeric(numbers).to(embedded.dtype), embedded], dim=1)
        x = self.project(self.drop(features))
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + self.drop(block(norm(x)) if self.route_by is None else block(norm(x), codes[:, self.route_by]))
        out: Tensor = self.head(x)
        return out


def balance_hashes(model: nn.Module, ids: NDArray[np.int64]) -> None:
    """Give the hash routers of a network the balanced table for ids ``(n,)`` of the training data."""
    for router in model.modules():
        if isinstance(router, HashRouter) and router.vocabulary is not None:
            router.balance(np.bincount(ids, minlength=router.vocabulary))
