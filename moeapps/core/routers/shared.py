"""Shared experts beside fine-grained routed ones, balanced by a bias instead of a loss."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.checks import check_at_least_zero, check_one_of
from moeapps.core.distributed import global_sum
from moeapps.core.errors import ConfigError
from moeapps.core.losses import router_z_loss
from moeapps.core.routers.base import Router, linear_scores, normalized
from moeapps.core.routing import Routing

__all__ = ["SharedExpertsRouter"]


class SharedExpertsRouter(Router):
    r"""The first ``num_shared`` experts take every token, the others are routed (DeepSeekMoE, Dai et al. 2024, eq. 9).

    Routed experts are chosen by :math:`s_e + b_e` and weighted by :math:`s_e` alone: sigmoids are scaled to sum to 1,
    a softmax is taken as it is, and both are multiplied by ``route_scale`` (DeepSeek-V3's released gate). After each
    optimiser step the bias of an overloaded expert falls by ``bias_rate`` and that of an underloaded one rises:
    balance without an auxiliary loss (Wang et al. 2024; DeepSeek-V3, section 2.1.2). Where several blocks share a
    layer, the load is that of all its calls.

    Parameters
    ----------
    dim : int
        Width d of a token.
    num_experts : int
        Number of experts E, shared ones included.
    top_k : int, default=2
        Routed experts per token, 1 to E - num_shared.
    num_shared : int, default=1
        Number of always-on experts, 0 to E - 1.
    score : {"sigmoid", "softmax"}, default="sigmoid"
        ``"sigmoid"`` (DeepSeek-V3) or ``"softmax"`` (DeepSeekMoE).
    bias_rate : float, default=0.001
        Step u of the balancing bias; 0 turns it off.
    renormalize : bool, optional
        Whether the k weights are scaled to sum to 1. None means: for a sigmoid and k > 1. One weight alone would
        always be 1 and leave the router without a gradient, so at k = 1 the score itself is the weight, as in
        :class:`TopKRouter` (the released gate has no such case).
    route_scale : float, default=1.0
        Factor of the routed experts' weights, above 0; 2.5 in DeepSeek-V3.

    Raises
    ------
    ConfigError
        If a size is impossible.
    """

    balance_bias: Tensor
    defaults_of_0_1: ClassVar[dict[str, Any]] = {"renormalize": True}
    renormalize: bool = True  # as in pickles of 0.1, which have neither
    route_scale: float = 1.0

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int = 2,
        num_shared: int = 1,
        score: Literal["sigmoid", "softmax"] = "sigmoid",
        bias_rate: float = 0.001,
        renormalize: bool | None = None,
        route_scale: float = 1.0,
    ) -> None:
        super().__init__(dim, num_experts)
        if isinstance(num_shared, bool) or not isinstance(num_shared, int) or not 0 <= num_shared < num_experts:
            raise ConfigError(f"num_shared must be between 0 and {num_experts - 1}, got {num_shared!r}")
        routed = num_experts - num_shared
        if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= routed:
            raise ConfigError(
                f"top_k must be between 1 and the {routed} routed experts (num_experts={num_experts} less "
                f"num_shared={num_shared}), got {top_k!r}"
            )
        check_one_of("score", score, ("sigmoid", "softmax"))
        check_at_least_zero(bias_rate=bias_rate)
        if not 0 < route_scale < math.inf:
            raise ConfigError(f"route_scale must be a number above 0, got {route_scale!r}")
        self.top_k, self.num_shared, self.score, self.bias_rate = top_k, num_shared, score, bias_rate
        learns = routed > 1 and top_k == 1  # with a single routed expert there is nothing to choose, nor to learn
        self.renormalize = score == "sigmoid" and not learns if renormalize is None else renormalize
        self.route_scale = route_scale
        self.weight = linear_scores(dim, routed)
        self.register_buffer("balance_bias", torch.zeros(routed))

    def scores(self, x: Tensor, experts: nn.Module | None, ids: Tensor | None) -> Tensor:
        """W x over the routed experts."""
        return F.linear(x, self.weight.to(x.dtype))

    def choose(self, logits: Tensor, valid: Tensor) -> Routing:
        """All shared experts with weight 1, then the k routed ones."""
        affinity = logits.sigmoid() if self.score == "sigmoid" else logits.softmax(dim=-1)
        routed = (affinity.detach() + self.balance_bias.to(affinity.dtype)).topk(self.top_k, dim=-1).indices
        weight = affinity.gather(-1, routed)
        if self.renormalize:
            weight = normalized(weight)
        if self.route_scale != 1:
            weight = weight * self.route_scale
        shared = torch.arange(self.num_shared, device=logits.device).expand(logits.shape[0], -1)
        always = weight.new_ones(shared.shape)
        routed_share = normalized(affinity)
        return Routing.from_topk(
            torch.cat([shared, routed + self.num_shared], dim=-1),
            torch.cat([always, weight], dim=-1),
            logits=logits,
            probabilities=torch.cat([always, routed_share], dim=-1) / (self.num_shared + 1),
            valid=valid,
        )

    @property
    def always_on(self) -> int:
        """The shared experts."""
        return self.num_shared

    def restricted(self, kept: Sequence[int]) -> Self:
        """Copy with all shared experts and some of the routed ones.

        Raises
        ------
        ConfigError
            If a shared expert is left out, or no routed one is left.
        """
        shared, routed = list(range(self.num_shared)), [e - self.num_shared for e in kept[self.num_shared :]]
        if list(kept[: self.num_shared]) != shared or not routed:
            raise ConfigError(f"the shared experts {shared} and at least one routed expert have to stay")
        copied = self._with_rows({"weight": routed, "balance_bias": routed}, len(kept))
        copied.top_k = min(self.top_k, len(routed))
        return copied

    def losses(self, routing: Routing, token_weight: Tensor | None = None) -> dict[str, Tensor]:
        """``z`` only: the bias balances the load."""
        return {"z": router_z_loss(routing, token_weight)}

    def update(self, routing: Routing, progress: float) -> None:
        """Move the bias of each routed expert towards balance."""
        self.update_by_calls([routing], progress)

    @torch.no_grad()
    def update_by_calls(self, routings: Sequence[Routing], progress: float) -> None:
        """Move the bias of each routed expert towards balance of all calls together."""
        counts = torch.stack([routing.valid_counts()[self.num_shared :] for routing in routings]).sum(0)
        counts = global_sum(counts)
        self.balance_bias += self.bias_rate * torch.sign(counts.mean() - counts).to(self.balance_bias.dtype)
