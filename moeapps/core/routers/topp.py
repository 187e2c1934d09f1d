"""Top-p routing: as many experts as a token needs."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.checks import check_at_least_zero, check_fraction, check_top_k
from moeapps.core.losses import entropy_loss
from moeapps.core.routers.base import Router, linear_scores, normalized
from moeapps.core.routing import Routing

__all__ = ["TopPRouter"]


class TopPRouter(Router):
    """The smallest set of experts whose probabilities sum to at least p: hard tokens get more experts.

    At least one, at most ``max_experts``. The entropy of the router is minimised as well, since a router that is unsure
    about everything would take every expert. ("Harder Tasks Need More Experts", Huang et al. 2024, eq. 3-6.)

    Parameters
    ----------
    dim, num_experts : int
        Width d of a token and number of experts E.
    p : float, default=0.4
        Probability to reach, above 0 and at most 1.
    max_experts : int, optional
        Maximum number of experts per token; E when None.
    entropy_weight : float, default=0.0001
        Factor of the entropy loss.
    renormalize : bool, default=False
        Whether the weights are scaled to sum to 1; the paper leaves them as they are.

    Raises
    ------
    ConfigError
        If an argument is impossible.
    """

    per_expert = ("weight",)

    def __init__(
        self,
        dim: int,
        num_experts: int,
        p: float = 0.4,
        max_experts: int | None = None,
        entropy_weight: float = 1e-4,
        renormalize: bool = False,
    ) -> None:
        super().__init__(dim, num_experts)
        check_fraction(p=p)
        check_at_least_zero(entropy_weight=entropy_weight)
        if max_experts is not None:
            check_top_k(max_experts, num_experts, "max_experts")
        self.p, self.entropy_weight, self.renormalize = p, entropy_weight, renormalize
        self.max_experts = num_experts if max_experts is None else max_experts
        self.weight = linear_scores(dim, num_experts)

    def scores(self, x: Tensor, experts: nn.Module | None, ids: Tensor | None) -> Tensor:
        """W x."""
        return F.linear(x, self.weight.to(x.dtype))

    def choose(self, logits: Tensor, valid: Tensor) -> Routing:
        """Choose the most probable experts until p is reached."""
        probabilities = logits.softmax(dim=-1)
        weight, expert = probabilities.topk(self.max_experts, dim=-1)
        before = weight.detach().cumsum(dim=-1) - weight.detach()  # what the better experts sum to
        keep = before < self.p
        keep[:, 0] = True
        weight = torch.where(keep, weight, 0)
        if self.renormalize:
            weight = normalized(weight)
        return Routing.from_topk(expert, weight, logits=logits, probabilities=probabilities, valid=valid, keep=keep)

    def losses(self, routing: Routing, token_weight: Tensor | None = None) -> dict[str, Tensor]:
        """``balance``, ``z`` and ``entropy``."""
        return {
            **super().losses(routing, token_weight),
            "entropy": self.entropy_weight * entropy_loss(routing, token_weight),
        }
