"""Expert choice: experts choose tokens instead of tokens choosing experts."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.errors import ConfigError
from moeapps.core.losses import router_z_loss
from moeapps.core.routers.base import Router, linear_scores
from moeapps.core.routing import Routing

__all__ = ["ExpertChoiceRouter"]


class ExpertChoiceRouter(Router):
    """In training every expert takes its C = N c / E most probable tokens (Zhou et al. 2022, section 3.2).

    Load is perfectly balanced by construction. A token may get no expert, or all of them; which it gets depends on
    the other tokens of its batch. Hence it is refused where rows arrive one at a time, and evaluation falls back to
    choosing per token: the c most probable experts with the same weights.

    Parameters
    ----------
    dim, num_experts : int
        Width d of a token and number of experts E.
    capacity_factor : float, default=2.0
        Mean number of experts per token c, above 0 and at most E. Unlike the ``capacity_factor`` of a
        layer, which caps what tokens chose, it is the number of experts that choose a token.

    Raises
    ------
    ConfigError
        If an argument is impossible.
    """

    mixes_tokens = True
    token_choice = False
    per_expert = ("weight",)

    def __init__(self, dim: int, num_experts: int, capacity_factor: float = 2.0) -> None:
        super().__init__(dim, num_experts)
        if isinstance(capacity_factor, bool) or not 0 < capacity_factor < float("inf"):
            raise ConfigError(f"capacity_factor must be a number above 0, got {capacity_factor!r}")
        self.capacity_factor = min(capacity_factor, num_experts)
        self.weight = linear_scores(dim, num_experts)

    def scores(self, x: Tensor, experts: nn.Module | None, ids: Tensor | None) -> Tensor:
        """W x."""
        return F.linear(x, self.weight.to(x.dtype))

    def choose(self, logits: Tensor, valid: Tensor) -> Routing:
        """Top C tokens of each expert in training, top c experts of each token in evaluation."""
        probabilities = logits.softmax(dim=-1)
        if not self.training:
            k = min(max(1, round(self.capacity_factor)), self.num_experts)
            weight, expert = probabilities.topk(k, dim=-1)
            return Routing.from_topk(expert, weight, logits=logits, probabilities=probabilities, valid=valid)
        tokens, experts = probabilities.shape
        capacity = min(tokens, math.ceil(tokens * self.capacity_factor / experts))
        ranked = torch.where(valid[:, None], probabilities, -1)  # invalid tokens come last
        token = ranked.detach().topk(capacity, dim=0).indices.t().reshape(-1)  # (E C,), sorted by expert
        expert = torch.arange(experts, device=token.device).repeat_interleave(capacity)
        weight = probabilities[token, expert]
        return Routing(
            token=token,
            expert=expert,
            weight=weight,
            offsets=torch.arange(experts + 1, dtype=torch.int32, device=token.device) * capacity,
            logits=logits,
            probabilities=probabilities,
            valid=valid,
            position=None,
            dropped=torch.zeros((), dtype=torch.int64, device=token.device),
        )

    def losses(self, routing: Routing, token_weight: Tensor | None = None) -> dict[str, Tensor]:
        """``z`` only: the load is balanced by construction."""
        return {"z": router_z_loss(routing, token_weight)}
