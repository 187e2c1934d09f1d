"""Bi-level routing: first a group of experts, then an expert inside it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.checks import check_sizes, check_top_k
from moeapps.core.errors import ConfigError
from moeapps.core.routers.base import Router, linear_scores
from moeapps.core.routing import Routing

__all__ = ["BilevelRouter"]


class BilevelRouter(Router):
    """A softmax over groups times a softmax inside each group (SMILE, He et al. 2022, section 4).

    Only the ``top_groups`` most probable groups are looked into; inside them the k most probable experts are taken.
    Where each group lives on one machine, a token then travels to few machines.

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

    Raises
    ------
    ConfigError
        If a size is impossible.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        num_groups: int | None = None,
        top_groups: int = 1,
        top_k: int | None = None,
    ) -> None:
        super().__init__(dim, num_experts)
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

    def scores(self, x: Tensor, experts: nn.Module | None, ids: Tensor | None) -> Tensor:
        """Logarithm of the product of both probabilities, ``(N, E)``."""
        group = F.linear(x, self.group_weight.to(x.dtype)).log_softmax(dim=-1)  # (N, G)
        inside = F.linear(x, self.weight.to(x.dtype)).unflatten(-1, (self.num_groups, self.group_size))
        return (group[..., None] + inside.log_softmax(dim=-1)).flatten(-2)

    def choose(self, logits: Tensor, valid: Tensor) -> Routing:
        """The best experts of the best groups."""
        probabilities = logits.softmax(dim=-1)
        group = probabilities.detach().unflatten(-1, (self.num_groups, self.group_size)).sum(dim=-1)
        best = group.topk(self.top_groups, dim=-1).indices
        chosen = (best[..., None] == torch.arange(self.num_groups, device=best.device)).any(dim=-2)
        inside = chosen.repeat_interleave(self.group_size, dim=-1)
        expert = torch.where(inside, probabilities.detach(), -1).topk(self.top_k, dim=-1).indices
        weight = probabilities.gather(-1, expert)
        return Routing.from_topk(expert, weight, logits=logits, probabilities=probabilities, valid=valid)
