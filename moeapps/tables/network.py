"""The network of the tabular estimators: embedded columns, residual MoE blocks, members, linear heads.

Shapes: n rows, P numeric columns, C categorical columns, d width of the blocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from moeapps.tables.numbers import NumericEmbedding, NumericKind, PeriodicEmbedding, Scaling, check_numeric

__all__ = ["MemberLinear", "MemberScale", "NumericEmbedding", "TabularConfig", "TabularMoE", "balance_hashes"]


class MemberScale(nn.Module):
    """One token per member from each row: the row scaled and shifted by the member's own vectors.

    The members share every other weight up to the head (BatchEnsemble as in Gorishniy et al. 2025, TabM-mini, whose
    scales begin as random signs). They begin apart, so that each learns its own function, and so does the routing: one
    row can visit other experts for each member.

    Parameters
    ----------
    num_members : int
        Number of members M.
    dim : int
        Width d.
    """

    def __init__(self, num_members: int, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randint(0, 2, (num_members, dim)) * 2.0 - 1.0)
        self.shift = nn.Parameter(torch.zeros(num_members, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, d)`` to ``(n, M, d)``."""
        return torch.addcmul(self.shift, x[:, None], self.scale)


class MemberLinear(nn.Module):
    """A linear layer of each member's own, initialised as ``torch.nn.Linear``.

    Parameters
    ----------
    num_members : int
        Number of members M.
    dim : int
        Input width d.
    out_dim : int
        Output width.
    """

    def __init__(self, num_members: int, dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_members, dim, out_dim).uniform_(-(dim**-0.5), dim**-0.5))
        self.bias = nn.Parameter(torch.empty(num_members, out_dim).uniform_(-(dim**-0.5), dim**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, M, d)`` to ``(n, M, out_dim)``."""
        return torch.bmm(x.transpose(0, 1), self.weight).transpose(0, 1) + self.bias


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
    numeric_embedding : {"piecewise", "periodic", "both", "linear"}, default="piecewise"
        What a number enters as besides its scaled value: its position among the column's quantiles, learned waves
        (:class:`~moeapps.tables.numbers.PeriodicEmbedding`), both, or nothing.
    numeric_dim : int, default=8
        Waves of a numeric column that the network sees.
    scaling : {"standard", "robust"}, default="standard"
        Whether scaled numbers are bounded smoothly ("robust"); what they are scaled by is up to the caller.
    num_members : int, default=1
        Members M that share the blocks and have scales, shifts and heads of their own; the output is their mean.
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
    numeric_embedding: NumericKind = "piecewise"
    numeric_dim: int = 8
    scaling: Scaling = "standard"
    num_members: int = 1

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
    """Embedded columns, a linear layer, residual blocks x + MoE(norm(x)), a linear head per member.

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
        check_sizes(num_members=config.num_members, numeric_dim=config.numeric_dim)
        check_below_one(dropout=config.dropout)
        check_numeric(config.numeric_embedding, config.scaling)
        bins = config.numeric_embedding in ("piecewise", "both")
        self.numeric = NumericEmbedding(mean, scale, edges, bins, config.scaling)
        # one embedding table for all columns: the codes of a column start where those of the last one end
        starts = [sum(cardinalities[:i]) for i in range(len(cardinalities))]
        self.start: Tensor
        self.register_buffer("start", torch.tensor(starts, dtype=torch.int64))
        self.embedding = nn.Embedding(max(sum(cardinalities), 1), embedding_dim)
        nn.init.normal_(self.embedding.weight, std=0.1)
        width = self.numeric.out_dim + len(cardinalities) * embedding_dim
        self.waves = None
        if mean and config.numeric_embedding in ("periodic", "both"):
            self.waves = PeriodicEmbedding(len(mean), config.numeric_dim)
            width += self.waves.out_dim
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
        members = self.num_members = config.num_members
        self.members = None if members == 1 else MemberScale(members, dim)
        last = nn.Linear(dim, out_dim) if members == 1 else MemberLinear(members, dim, out_dim)
        self.head = nn.Sequential(nn.LayerNorm(dim), last)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickle; one of 0.1 has no waves and one member."""
        super().__setstate__({"num_members": 1, **state})
        for name in ("waves", "members"):  # at the end: a copy's parameters keep their order
            self._modules.setdefault(name, None)

    def forward(self, numbers: Tensor, codes: Tensor) -> Tensor:
        """Map numbers ``(n, P)`` in float64 and codes ``(n, C)`` to outputs ``(n, out_dim)``, the members' mean."""
        out = self.member_outputs(numbers, codes)
        return out[:, 0] if self.num_members == 1 else out.mean(dim=1)

    def member_outputs(self, numbers: Tensor, codes: Tensor) -> Tensor:
        """Outputs of each member, ``(n, M, out_dim)``; the blocks route a row's M tokens next to each other."""
        embedded = self.embedding(codes + self.start).flatten(1)
        numeric = self.numeric(numbers).to(embedded.dtype)
        parts = [numeric, embedded]
        if self.waves is not None:
            parts.append(self.waves(numeric[:, : numbers.shape[1]]))
        x = self.project(self.drop(torch.cat(parts, dim=1)))
        if self.members is not None:
            x = self.members(x).flatten(0, 1)  # (n M, d)
        ids = None if self.route_by is None else codes[:, self.route_by].repeat_interleave(self.num_members)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + self.drop(block(norm(x)) if ids is None else block(norm(x), ids))
        out: Tensor = self.head(x.unflatten(0, (-1, self.num_members)) if self.members is not None else x)
        return out if self.members is not None else out[:, None]


def balance_hashes(model: nn.Module, ids: NDArray[np.int64]) -> None:
    """Give the hash routers of a network the balanced table for ids ``(n,)`` of the training data."""
    for router in model.modules():
        if isinstance(router, HashRouter) and router.vocabulary is not None:
            router.balance(np.bincount(ids, minlength=router.vocabulary))
