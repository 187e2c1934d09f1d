"""Bi-level routing: first a group of experts, then an expert inside it.

Shapes: N tokens, d width, E experts in G groups of M, k experts per token.
"""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.checks import check_one_of, check_sizes, check_top_k
from moeapps.core.distributed import global_sum
from moeapps.core.errors import ConfigError
from moeapps.core.routers.base import Router, linear_scores
from moeapps.core.routing import Routing

__all__ = ["BilevelRouter"]


class BilevelRouter(Router):
    r"""A softmax over groups times a softmax inside each group (SMILE, He et al. 2022, section 4).

    Only the ``top_groups`` most probable groups are looked into; inside them the k most probable experts are taken.
    Where each group lives on one machine, a token is then sent to few machines.

    As in the paper, the balance loss is a sum of one between the groups and one inside them. That the latter are
    averaged over the groups, and that both have the same weight, is our reading:

    .. math:: G \sum_g f_g P_g + \frac1G \sum_g M \sum_m f_{m|g} P_{m|g},

    f the fraction of assignments and P the mean probability of the group's softmax, and inside a group those of the
    tokens that it got, on whatever process. It is 2 at uniform routing.

    Parameters
    ----------
    dim, num_experts : int
        Width d of a token and number of experts E.
    num_groups : int, optional
        Number of groups, a divisor of E; the largest divisor up to the square root of E when None.
    top_groups : int, default=1
        Groups per token.
    top_k : int, optional
        Experts per token, from all chosen groups together; the smaller of 2 and what these groups have when None.
    balance : {"bilevel", "flat"}, default="bilevel"
        The loss above, or that of :class:`~moeapps.core.routers.TopKRouter` over all experts.

    Raises
    ------
    ConfigError
        If a size is impossible.
    """

    defaults_of_0_1: ClassVar[dict[str, Any]] = {"balance": "flat"}
    balance: Literal["bilevel", "flat"] = "flat"  # as in pickles of 0.1, which have none

    def __init__(
        self,
        dim: int,
        num_experts: int,
        num_groups: int | None = None,
        top_groups: int = 1,
        top_k: int | None = None,
        balance: Literal["bilevel", "flat"] = "bilevel",
    ) -> None:
        super().__init__(dim, num_experts)
        check_one_of("balance", balance, ("bilevel", "flat"))
        self.balance = balance
        if num_groups is None:
            num_groups = max(g for g in range(1, num_experts + 1) if num_experts % g == 0 and g * g <= num_experts)
        check_sizes(num_groups=num_groups, top_groups=top_groups)
        if num_experts % num_groups:
            raise ConfigError(f"num_groups must divide num_experts={num_experts}, got {num_groups}")
        if top_groups > num_groups:
            raise ConfigError(f"top_groups must be between 1 and num_groups={num_groups}, got {top_groups}")
        self.group_size = num_experts // num_groups
        reachable = top_groups * self.group_size
        top_k = min(2, reachable) if top_k is None else top_k
        check_top_k(top_k, num_experts)
        if top_k > reachable:
            raise ConfigError(f"top_k must be at most the {reachable} experts of the chosen groups, got {top_k}")
        self.num_groups, self.top_groups, self.top_k = num_groups, top_groups, top_k
        self.group_weight = linear_scores(dim, num_groups)
        self.weight = linear_scores(dim, num_experts)

    @property
    def balances_itself(self) -> bool:  # type: ignore[override]
        """Whether groups are balanced."""
        return self.balance == "bilevel"

    def scores(self, x: Tensor, experts: nn.Module | None, ids: Tensor | None) -> Tensor:
        """Scores of the groups, and of the experts inside them, beside each other: ``(N, G + E)``."""
        return torch.cat([F.linear(x, self.group_weight.to(x.dtype)), F.linear(x, self.weight.to(x.dtype))], dim=-1)

    def choose(self, logits: Tensor, valid: Tensor) -> Routing:
        """Choose the best experts of the best groups, by the product of both probabilities."""
        raw_group, raw_inside = logits.split([self.num_groups, self.num_experts], dim=-1)
        by_group = raw_group.log_softmax(dim=-1)  # (N, G)
        by_expert = raw_inside.unflatten(-1, (self.num_groups, self.group_size)).log_softmax(dim=-1)  # (N, G, M)
        logits = torch.where(valid[:, None], (by_group[..., None] + by_expert).flatten(-2), 0.0)  # (N, E)
        probabilities = logits.softmax(dim=-1)
        group = probabilities.detach().unflatten(-1, (self.num_groups, self.group_size)).sum(dim=-1)
        best = group.topk(self.top_groups, dim=-1).indices
        chosen = (best[..., None] == torch.arange(self.num_groups, device=best.device)).any(dim=-2)
        inside = chosen.repeat_interleave(self.group_size, dim=-1)
        expert = torch.where(inside, probabilities.detach(), -1).topk(self.top_k, dim=-1).indices
        weight = probabilities.gather(-1, expert)
        return Routing.from_topk(
            expert,
            weight,
            logits=logits,
            probabilities=probabilities,
            valid=valid,
            details={
                "group": by_group,
                "inside": by_expert,
                "chosen": chosen,
                # what the products have lost: their own logsumexp is always 0
                "z": raw_group.logsumexp(-1).square()
                + raw_inside.unflatten(-1, (self.num_groups, self.group_size)).logsumexp(-1).square().mean(-1),
            },
        )

    def losses(self, routing: Routing, token_weight: Tensor | None = None) -> dict[str, Tensor]:
        """``balance`` and ``z``, each between groups plus inside them."""
        if self.balance == "flat":
            return super().losses(routing, token_weight)
        weight = routing.token_weight(token_weight)
        group, inside = routing.details["group"].exp(), routing.details["inside"].exp()
        visits = (
            routing.details["chosen"].to(weight.dtype) * weight[:, None]
        )  # (N, G), which groups a token looked into
        parts = (
            routing.valid_counts(token_weight).detach(),  # (E,) assignments
            (group * weight[:, None]).sum(0),  # (G,) probability of the groups
            (inside * visits[..., None]).sum(0).flatten(),  # (E,) probability inside the groups that tokens went to
            visits.sum(0),  # (G,)
            (routing.details["z"] * weight).sum()[None],
            weight.sum()[None],
        )
        sizes = [part.numel() for part in parts]
        counts, between, within, visited, z, tokens = global_sum(torch.cat(parts)).split(sizes)
        counts, within = (part.view(self.num_groups, self.group_size) for part in (counts, within))
        of_groups = _share(counts.sum(dim=1))
        tokens = torch.where(tokens > 0, tokens, 1)
        outer = self.num_groups * (of_groups * between / tokens).sum()
        mean_within = within / torch.where(visited > 0, visited, 1)[:, None]
        inner = self.group_size * (_share(counts) * mean_within).sum(dim=1).mean()
        return {"balance": outer + inner, "z": z[0] / tokens[0]}


def _share(counts: Tensor) -> Tensor:
    """Counts as fractions of their sum along the last axis; zeros where that is 0."""
    total = counts.sum(dim=-1, keepdim=True)
    return counts / torch.where(total > 0, total, 1)
