"""Null experts: a token may use fewer real experts."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.checks import check_sizes, check_top_k
from moeapps.core.distributed import global_sum
from moeapps.core.losses import router_z_loss
from moeapps.core.routers.base import Router, linear_scores, normalized
from moeapps.core.routing import Routing

__all__ = ["NullExpertsRouter"]


class NullExpertsRouter(Router):
    """Top-k over E real and m null experts (AdaMoE, Zeng et al. 2024): null experts cost nothing and add nothing.

    The weights of the chosen real experts are scaled to sum to 1; a token that chose null experts only gets an output
    of zero (add a residual connection). The balance loss treats all null experts as one pooled expert, so that at
    balance a token uses k E / (E + m) real experts on average, and each as many as it needs.

    Parameters
    ----------
    dim : int
        Width d of a token.
    num_experts : int
        Number of real experts E.
    num_null : int, optional
        Number of null experts m; E when None.
    top_k : int, optional
        Experts per token k among all E + m; the smaller of 4 and E + m when None.

    Raises
    ------
    ConfigError
        If a size is impossible.
    """

    balances_itself = True

    def __init__(self, dim: int, num_experts: int, num_null: int | None = None, top_k: int | None = None) -> None:
        super().__init__(dim, num_experts)
        num_null = num_experts if num_null is None else num_null
        check_sizes(num_null=num_null)
        top_k = min(4, num_experts + num_null) if top_k is None else top_k
        check_top_k(top_k, num_experts + num_null)
        self.num_null, self.top_k = num_null, top_k
        self.weight = linear_scores(dim, num_experts + num_null)

    def scores(self, x: Tensor, experts: nn.Module | None, ids: Tensor | None) -> Tensor:
        """W x over real and null experts."""
        return F.linear(x, self.weight.to(x.dtype))

    def choose(self, logits: Tensor, valid: Tensor) -> Routing:
        """The k most probable of all; only the real ones are computed."""
        every = logits.softmax(dim=-1)
        weight, expert = every.topk(self.top_k, dim=-1)
        real = expert < self.num_experts
        return Routing.from_topk(
            expert,
            normalized(torch.where(real, weight, 0)),
            logits=logits,
            probabilities=every[:, : self.num_experts],
            valid=valid,
            keep=real,
            details={"every": every, "chosen": expert},
        )

    def restricted(self, kept: Sequence[int]) -> Self:
        """Copy with some of the real experts and all null experts."""
        null = range(self.num_experts, self.num_experts + self.num_null)
        copied = self._with_rows({"weight": [*kept, *null]}, len(kept))
        copied.top_k = min(self.top_k, len(kept) + self.num_null)
        return copied

    def losses(self, routing: Routing, token_weight: Tensor | None = None) -> dict[str, Tensor]:
        """``balance`` over the real experts and the pooled null expert, and ``z``."""
        weight = routing.token_weight(token_weight)
        every, chosen = routing.details["every"], routing.details["chosen"]
        counts = weight.new_zeros(every.shape[1]).index_add(0, chosen.reshape(-1), weight.repeat_interleave(self.top_k))
        sums = global_sum(torch.cat([counts, (every * weight[:, None]).sum(0), weight.sum()[None]]))
        total, (count, probability) = torch.where(sums[-1] > 0, sums[-1], 1), sums[:-1].chunk(2)
        fraction = count.detach() / (total * self.top_k)
        pooled = fraction[self.num_experts :].mean().expand(self.num_null)
        fraction = torch.cat([fraction[: self.num_experts], pooled])
        balance = every.shape[1] * (fraction * probability / total).sum()
        return {"balance": balance, "z": router_z_loss(routing, token_weight)}
