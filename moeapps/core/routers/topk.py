"""Top-k routing: softmax, the k most probable experts, and what was added to it: noise, jitter, other gradients."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.checks import check_at_least_zero, check_one_of, check_top_k
from moeapps.core.distributed import global_sum
from moeapps.core.errors import ConfigError
from moeapps.core.losses import importance_loss, squared_variation, token_entropy
from moeapps.core.routers.base import Router, linear_scores
from moeapps.core.routing import Routing

__all__ = ["NoisyTopKRouter", "TopKRouter"]


class TopKRouter(Router):
    r"""Softmax over all experts, then the k most probable ones.

    .. math:: p = \mathrm{softmax}(W x + \epsilon), \qquad w_e = p_e \text{ or } p_e / \sum_{j \in top-k} p_j

    with :math:`\epsilon \sim N(0, \sigma^2)` in training only. ``top_k=1`` without renormalisation is Switch
    Transformer (Fedus et al. 2022, eq. 1-2), ``top_k=2`` with renormalisation is GShard (Lepikhin et al. 2021) and
    Mixtral; noise of standard deviation ``1 / num_experts`` is V-MoE's (Riquelme et al. 2021, section 2) and
    WideNet's; jitter, a factor of 1 +- jitter on the router's input, is Switch Transformer's.

    ``gradient="sparsemixer"`` trains the router with the mid-point estimate of Liu et al. 2023 (section 3) instead:
    experts are drawn rather than taken, among those whose score is near the best, and the output of a drawn expert
    that is not the best one is scaled by 1/3 three times out of four, where the gradient of the weight then equals
    Heun's third-order estimate of what the whole expert contributes. For ``top_k`` 1 or 2; evaluation takes the best.

    ``broadcast_above=`` is for fine-tuning: a token of which the router is unsure, with an entropy of at least that
    many nats, goes to all experts with weights p, so that any of them learns what such a token needs; evaluation is
    unchanged (GW-MoE, Wu et al. 2024, as the paper describes it, without a limit on such tokens per sequence). On a
    trained model set it as an attribute: ``layer.router.broadcast_above = 1.5``.

    Parameters
    ----------
    dim, num_experts : int
        Width d of a token and number of experts E.
    top_k : int, default=2
        Experts per token k, 1 to E.
    noise_std : float, default=0.0
        Standard deviation of the Gaussian noise on the logits in training; 0 for none.
    jitter : float, default=0.0
        Half width of the uniform factor on the router's input in training; 0 for none.
    renormalize : bool, optional
        Whether the k weights are scaled to sum to 1. None means yes for k > 1 and no for k = 1 (where a weight of
        constantly 1 would leave the router without a gradient), and no with sparsemixer.
    gradient : {"softmax", "sparsemixer"}, default="softmax"
        ``"softmax"`` or ``"sparsemixer"``.
    broadcast_above : float, optional
        Entropy of p in nats, 0 to log E, from which a token goes to all experts in training; None for never.

    Raises
    ------
    ConfigError
        If a size is impossible (``top_k`` outside 1..E, negative noise), or sparsemixer is asked for more than two
        experts per token or together with ``broadcast_above``.

    Examples
    --------
    >>> import torch
    >>> routing = TopKRouter(dim=8, num_experts=4, top_k=2)(torch.randn(5, 8))
    >>> routing.counts.sum().item(), routing.weight.shape
    (10, torch.Size([10]))
    """

    per_expert = ("weight",)
    broadcast_above: float | None = None  # pickles of 0.1 have none

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int = 2,
        noise_std: float = 0.0,
        jitter: float = 0.0,
        renormalize: bool | None = None,
        gradient: Literal["softmax", "sparsemixer"] = "softmax",
        broadcast_above: float | None = None,
    ) -> None:
        super().__init__(dim, num_experts)
        check_top_k(top_k, num_experts)
        check_at_least_zero(noise_std=noise_std, jitter=jitter)
        check_one_of("gradient", gradient, ("softmax", "sparsemixer"))
        if gradient == "sparsemixer" and top_k > 2:
            raise ConfigError(f"gradient='sparsemixer' is defined for top_k 1 or 2, got top_k={top_k}")
        if broadcast_above is not None:
            check_at_least_zero(broadcast_above=broadcast_above)
            if gradient == "sparsemixer":
                raise ConfigError("broadcast_above has no meaning with gradient='sparsemixer', which draws experts")
        self.top_k, self.noise_std, self.jitter, self.gradient = top_k, noise_std, jitter, gradient
        self.broadcast_above = broadcast_above
        self.renormalize = top_k > 1 and gradient == "softmax" if renormalize is None else renormalize
        self.weight = linear_scores(dim, num_experts)

    def scores(self, x: Tensor, experts: nn.Module | None, ids: Tensor | None) -> Tensor:
        """W x, with noise in training."""
        if self.training and self.jitter > 0:
            x = x * (1 + self.jitter * (2 * torch.rand_like(x) - 1))
        logits = F.linear(x, self.weight.to(x.dtype))
        if self.training and self.noise_std > 0:
            logits = logits + torch.randn_like(logits) * self.noise_std
        return logits

    def choose(self, logits: Tensor, valid: Tensor) -> Routing:
        """Choose the k most probable experts or, with sparsemixer in training, draw k."""
        probabilities = logits.softmax(dim=-1)
        if self.training and self.broadcast_above is not None:
            return self._broadcast(logits, probabilities, valid, self.broadcast_above)
        if self.gradient == "sparsemixer":
            weight, expert = sparsemixer(logits, self.top_k, self.jitter or 0.1, self.training)
        elif self.top_k == 1:
            weight, expert = probabilities.max(dim=-1, keepdim=True)
        else:
            weight, expert = probabilities.topk(self.top_k, dim=-1)  # (N, k)
        if self.renormalize:
            weight = weight / weight.sum(dim=-1, keepdim=True)  # never 0: the best of E is at least 1 / E
        return Routing.from_topk(expert, weight, logits=logits, probabilities=probabilities, valid=valid)

    def _broadcast(self, logits: Tensor, probabilities: Tensor, valid: Tensor, threshold: float) -> Routing:
        """As :meth:`choose`, with all experts for the tokens of which the router is unsure."""
        weight, expert = probabilities.topk(self.num_experts, dim=-1)
        unsure = token_entropy(probabilities.detach()) >= threshold
        best = torch.arange(self.num_experts, device=logits.device) < self.top_k
        if self.renormalize:  # those of all experts sum to 1 already
            among_best = torch.where(best, weight, 0).sum(dim=-1, keepdim=True)
            weight = torch.where(unsure[:, None], weight, weight / among_best)
        keep = best | unsure[:, None]
        return Routing.from_topk(expert, weight, logits=logits, probabilities=probabilities, valid=valid, keep=keep)


def sparsemixer(logits: Tensor, top_k: int, tolerance: float, training: bool) -> tuple[Tensor, Tensor]:
    """Draw experts one after the other, with the weights whose gradient is the mid-point estimate.

    Parameters
    ----------
    logits : Tensor
        ``(N, E)`` scores.
    top_k : int
        Number of experts to draw, without replacement.
    tolerance : float
        An expert takes part only if its score is within 2 * tolerance of the best, relative to the larger of the two
        magnitudes.
    training : bool
        Draw (True) or take the best (False).

    Returns
    -------
    tuple[Tensor, Tensor]
        Weights ``(N, k)`` and experts ``(N, k)``.
    """
    weights, experts = [], []
    remaining = logits
    for _ in range(top_k):
        best, index = remaining.max(dim=-1, keepdim=True)
        far = (best - remaining) / torch.maximum(remaining.abs(), best.abs()).clamp(min=1e-9) > 2 * tolerance
        p = remaining.masked_fill(far, -torch.inf).softmax(dim=-1)
        drawn = index
        if training and p.shape[0]:
            drawn = torch.multinomial(p.detach(), 1)
        weight = p.gather(-1, drawn)
        if training:
            third = (drawn != index) & (torch.rand_like(weight) < 0.75)
            # forward scaled by 1/3, gradient of the weight as if it were not
            weight = weight - torch.where(third, weight.detach() * (2 / 3), 0)
        weights.append(weight)
        experts.append(drawn)
        remaining = remaining.scatter(-1, drawn, -torch.inf)
    return torch.cat(weights, dim=-1), torch.cat(experts, dim=-1)


class NoisyTopKRouter(Router):
    r"""Noisy top-k gating (Shazeer et al. 2017, eq. 3-5): noise whose size the router learns for each token.

    .. math:: H(x) = W x + \epsilon \cdot \mathrm{softplus}(W_{noise} x), \qquad w = \mathrm{softmax}(\mathrm{topk}(H))

    In training only. The balance loss is the paper's: squared variation of importance plus that of the smooth load
    (its appendix A, eq. 8-11).

    Parameters
    ----------
    dim, num_experts : int
        Width d of a token and number of experts E.
    top_k : int, default=2
        As in :class:`TopKRouter`.

    Raises
    ------
    ConfigError
        If a size is impossible.
    """

    per_expert = ("weight", "noise_weight")

    def __init__(self, dim: int, num_experts: int, top_k: int = 2) -> None:
        super().__init__(dim, num_experts)
        check_top_k(top_k, num_experts)
        self.top_k = top_k
        self.weight = linear_scores(dim, num_experts)
        self.noise_weight = nn.Parameter(torch.zeros(num_experts, dim))

    def scores(self, x: Tensor, experts: nn.Module | None, ids: Tensor | None) -> Tensor:
        """Clean and noisy scores and the noise's size beside each other, ``(N, 3 E)``."""
        clean = F.linear(x, self.weight.to(x.dtype))
        size = F.softplus(F.linear(x, self.noise_weight.to(x.dtype))) + 1e-2
        noisy = clean + torch.randn_like(clean) * size if self.training else clean
        return torch.cat([noisy, clean, size], dim=-1)

    def choose(self, logits: Tensor, valid: Tensor) -> Routing:
        """Softmax over the k largest noisy scores."""
        noisy, clean, size = logits.chunk(3, dim=-1)
        top, expert = noisy.topk(min(self.top_k + 1, self.num_experts), dim=-1)
        return Routing.from_topk(
            expert[:, : self.top_k],
            top[:, : self.top_k].softmax(dim=-1),
            logits=noisy,
            probabilities=noisy.softmax(dim=-1),
            valid=valid,
            details={"clean": clean, "size": size, "top": top},
        )

    def losses(self, routing: Routing, token_weight: Tensor | None = None) -> dict[str, Tensor]:
        """``balance``: squared variation of importance and, in training, of the smooth load; and ``z``."""
        losses = super().losses(routing, token_weight)
        losses["balance"] = importance_loss(routing, token_weight)
        if self.training and self.top_k < self.num_experts:
            losses["balance"] = losses["balance"] + squared_variation(self._smooth_load(routing, token_weight))
        return losses

    def _smooth_load(self, routing: Routing, token_weight: Tensor | None) -> Tensor:
        """Expected number of tokens of each expert, over another draw of that expert's noise, ``(E,)``."""
        clean, size, top = (routing.details[name] for name in ("clean", "size", "top"))
        # an expert is in if its noisy score beats the k-th largest of the others
        inside = routing.logits > top[:, self.top_k, None]
        threshold = torch.where(inside, top[:, self.top_k, None], top[:, self.top_k - 1, None])
        chance = torch.special.ndtr((clean - threshold) / size.clamp(min=1e-6))
        return global_sum((chance * routing.token_weight(token_weight)[:, None]).sum(0))
