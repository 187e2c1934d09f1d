"""The MoE layer: a router, dispatch, and experts."""

from typing import Any

import torch
from torch import Tensor, nn

from moeapps.core.dispatch import BACKENDS, Backend, combine, dispatch
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.experts import ExpertMLP, Experts
from moeapps.core.losses import load_balance_loss, router_z_loss
from moeapps.core.routers import Router, TopKRouter, check_sizes
from moeapps.core.routing import Routing

__all__ = ["MoE", "Routed"]


class Routed(nn.Module):
    """Base of every module that routes: it remembers its last routing and knows its auxiliary losses.

    :class:`~moeapps.core.module.MoEModule` adds up the losses of all of them, and
    :class:`~moeapps.core.statistics.RoutingMonitor` watches their routing. The routing belongs to one forward pass:
    copies and pickles of the module do not carry it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.last_routing: Routing | None = None

    def auxiliary_losses(self) -> dict[str, Tensor]:
        """Weighted losses of the last forward pass, by name; empty before the first."""
        return {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "last_routing": None}


class MoE(Routed):
    r"""Mixture of experts: :math:`y = \sum_{e \in R(x)} w_e(x) f_e(x)`, computed only where a token was sent.

    Dropless: every assignment is computed. In evaluation the output of a token never depends on the other tokens of
    its batch. Shapes: ``(..., d)`` to ``(..., d_out)``, with at least one leading dimension.

    Args:
        dim: Width d of a token.
        num_experts: Number of experts E.
        top_k: Experts per token, for the default router.
        hidden_dim: Hidden width of the default experts; ``4 * dim`` when None.
        router: Any router; a :class:`~moeapps.core.routers.TopKRouter` when None.
        experts: Any experts; an :class:`~moeapps.core.experts.ExpertMLP` when None.
        backend: ``"auto"``, ``"loop"``, ``"bmm"`` or ``"grouped"``.
        balance_weight: Factor of the load-balance loss.
        z_weight: Factor of the router z-loss.

    Raises:
        ConfigError: At construction, if sizes do not fit together.
        DataError: In forward, if the tokens have another width or dtype than the layer.

    Example:
        >>> import torch
        >>> layer = MoE(dim=16, num_experts=4, top_k=2)
        >>> layer(torch.randn(3, 5, 16)).shape
        torch.Size([3, 5, 16])
        >>> sorted(layer.auxiliary_losses())
        ['balance', 'z']
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int = 2,
        hidden_dim: int | None = None,
        *,
        router: Router | None = None,
        experts: Experts | None = None,
        backend: Backend = "auto",
        balance_weight: float = 0.01,
        z_weight: float = 0.001,
    ) -> None:
        super().__init__()
        check_sizes(dim=dim, num_experts=num_experts)
        if backend not in BACKENDS:
            raise ConfigError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
        self.router = router if router is not None else TopKRouter(dim, num_experts, top_k)
        self.experts = experts if experts is not None else ExpertMLP(dim, hidden_dim or 4 * dim, num_experts)
        for name, part in (("router", self.router), ("experts", self.experts)):
            if (part.dim, part.num_experts) != (dim, num_experts):
                raise ConfigError(
                    f"{name} is built for dim={part.dim}, num_experts={part.num_experts}, "
                    f"the layer for dim={dim}, num_experts={num_experts}"
                )
        self.dim, self.num_experts = dim, num_experts
        self.backend: Backend = backend
        self.balance_weight, self.z_weight = balance_weight, z_weight

    def forward(self, x: Tensor) -> Tensor:
        """Mix the experts' outputs for tokens ``(..., d)``."""
        self._check(x)
        tokens = x.reshape(-1, self.dim)  # (N, d)
        routing = self.router(tokens)
        out = combine(self.experts(dispatch(tokens, routing), routing.offsets, self.backend), routing)
        self.last_routing = routing
        return out.view(*x.shape[:-1], out.shape[-1])

    def auxiliary_losses(self) -> dict[str, Tensor]:
        """Weighted load-balance and z-loss of the last forward pass."""
        if self.last_routing is None:
            return {}
        return {
            "balance": self.balance_weight * load_balance_loss(self.last_routing),
            "z": self.z_weight * router_z_loss(self.last_routing),
        }

    def _check(self, x: Tensor) -> None:
        if x.ndim < 2 or x.shape[-1] != self.dim:
            raise DataError(f"MoE expects tokens of shape (..., {self.dim}), got {tuple(x.shape)}")
        dtype = self.experts.dtype
        if dtype is None or x.dtype == dtype:
            return
        if not (x.is_floating_point() and torch.is_autocast_enabled(x.device.type)):
            raise DataError(
                f"tokens are {x.dtype} but the layer is {dtype}: convert the tokens with x.to({dtype}) "
                f"or the layer with layer.to({x.dtype})"
                if x.is_floating_point()
                else f"tokens are {x.dtype} but the layer is {dtype}: convert the tokens with x.to({dtype})"
            )
