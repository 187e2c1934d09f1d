"""Routers: they score experts for each token and answer with a :class:`~moeapps.core.routing.Routing`."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.errors import ConfigError, DataError
from moeapps.core.routing import Routing

__all__ = ["Router", "TopKRouter"]


def router_dtype(x: Tensor) -> torch.dtype:
    """Router arithmetic is done in float32, or in float64 for a float64 model; never in less."""
    return torch.promote_types(x.dtype, torch.float32)


def check_sizes(**sizes: int) -> None:
    """Refuse sizes that are not whole numbers of at least one, naming the argument."""
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")


class Router(nn.Module):
    """Base of all routers: ``forward`` maps tokens ``(N, d)`` to a routing over ``num_experts`` experts.

    Args:
        dim: Width d of a token.
        num_experts: Number of experts E.

    Raises:
        ConfigError: If a size is below 1.
    """

    def __init__(self, dim: int, num_experts: int) -> None:
        super().__init__()
        check_sizes(dim=dim, num_experts=num_experts)
        self.dim = dim
        self.num_experts = num_experts

    def forward(self, x: Tensor) -> Routing:
        """Route tokens ``(N, d)``."""
        raise NotImplementedError

    def check_tokens(self, x: Tensor) -> None:
        """Refuse tokens of another shape than ``(N, d)``."""
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise DataError(f"{type(self).__name__} expects tokens of shape (N, {self.dim}), got {tuple(x.shape)}")


class TopKRouter(Router):
    r"""Softmax over all experts, then the k most probable ones.

    .. math:: p = \mathrm{softmax}(W x + \epsilon), \qquad w_e = p_e \text{ or } p_e / \sum_{j \in top-k} p_j

    with :math:`\epsilon \sim N(0, \sigma^2)` in training only. ``top_k=1`` without renormalisation is Switch
    Transformer (Fedus et al. 2022, eq. 1-2), ``top_k=2`` with renormalisation is GShard (Lepikhin et al. 2021) and
    Mixtral; noise of standard deviation ``1 / num_experts`` is V-MoE's (Riquelme et al. 2021, section 2) and
    WideNet's. All arithmetic is in float32 or better, also under autocast.

    Args:
        dim: Width d of a token.
        num_experts: Number of experts E.
        top_k: Experts per token k, 1 to E.
        noise_std: Standard deviation of the Gaussian noise on the logits in training; 0 for none.
        renormalize: Whether the k weights are scaled to sum to 1. None means: yes for k > 1, no for k = 1 (where a
            weight of constantly 1 would leave the router without a gradient).

    Raises:
        ConfigError: If a size is impossible (``top_k`` outside 1..E, a negative ``noise_std``).

    Example:
        >>> import torch
        >>> routing = TopKRouter(dim=8, num_experts=4, top_k=2)(torch.randn(5, 8))
        >>> routing.counts.sum().item(), routing.weight.shape
        (10, torch.Size([10]))
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int = 2,
        noise_std: float = 0.0,
        renormalize: bool | None = None,
    ) -> None:
        super().__init__(dim, num_experts)
        if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= num_experts:
            raise ConfigError(f"top_k must be between 1 and num_experts={num_experts}, got {top_k!r}")
        if not 0 <= noise_std < float("inf"):
            raise ConfigError(f"noise_std must be a number of at least 0, got {noise_std!r}")
        self.top_k = top_k
        self.noise_std = noise_std
        self.renormalize = top_k > 1 if renormalize is None else renormalize
        self.weight = nn.Parameter(torch.empty(num_experts, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights from N(0, 1/d), so that logits of unit-variance tokens have unit variance."""
        nn.init.normal_(self.weight, std=self.dim**-0.5)

    def forward(self, x: Tensor) -> Routing:
        """Route tokens ``(N, d)``; a token with a NaN or infinite score is marked invalid and gets weight NaN."""
        self.check_tokens(x)
        dtype = router_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.to(dtype), self.weight.to(dtype))  # (N, E)
            if self.training and self.noise_std > 0:
                logits = logits + torch.randn_like(logits) * self.noise_std
            valid = logits.isfinite().all(dim=-1)  # (N,)
            # topk would rank a NaN highest: a bad token must neither win a slot nor reach losses and statistics
            logits = torch.where(valid[:, None], logits, 0.0)
            probabilities = logits.softmax(dim=-1)
            weight, expert = probabilities.topk(self.top_k, dim=-1)  # (N, k)
            if self.renormalize:
                weight = weight / weight.sum(dim=-1, keepdim=True)
            weight = torch.where(valid[:, None], weight, torch.nan)
        return Routing.from_topk(expert, weight, logits=logits, probabilities=probabilities, valid=valid)

    def extra_repr(self) -> str:
        """Arguments, for ``print(model)``."""
        return (
            f"dim={self.dim}, num_experts={self.num_experts}, top_k={self.top_k}, "
            f"noise_std={self.noise_std}, renormalize={self.renormalize}"
        )
