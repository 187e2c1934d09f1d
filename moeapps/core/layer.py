"""The MoE layer: a router, dispatch, and experts.

Shapes: N tokens, d width, E experts, k experts per token, A assignments (N k without drops).
"""

import copy
import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from moeapps.core.capacity import OVERFLOW, Overflow, apply_capacity
from moeapps.core.checks import check_at_least_zero, check_one_of, check_sizes
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.experts import ExpertMLP, Experts
from moeapps.core.kernels import BACKENDS, Backend
from moeapps.core.losses import parameter_penalty_loss
from moeapps.core.modes import notes_are_kept
from moeapps.core.routers import Router, make_router
from moeapps.core.routing import Routing

__all__ = ["MoE", "RoutedLayer"]


class RoutedLayer(nn.Module):
    """Base of every module that routes: it keeps its last routing and computes its auxiliary losses.

    :class:`~moeapps.core.module.MoEModule` adds up the losses of all of them, and
    :class:`~moeapps.core.statistics.RoutingMonitor` watches their routing. The routing belongs to one forward pass:
    copies and pickles of the module do not carry it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.last_routing: Routing | None = None
        self._had_gradients = True

    def remember(self, routing: Routing) -> None:
        """Keep the routing of a forward pass, for losses and statistics.

        Activation checkpointing runs a pass twice, the second time within the backward pass: it is not kept. Nor is
        that of torch.export.
        """
        if notes_are_kept():
            self.last_routing = routing
            self._had_gradients = torch.is_grad_enabled()

    @property
    def routings(self) -> Sequence[Routing]:
        """Routing of each call in the last forward pass: one, unless several blocks share the layer."""
        return [] if self.last_routing is None else [self.last_routing]

    def auxiliary_losses(self, token_weight: Tensor | None = None) -> dict[str, Tensor]:
        """Weighted losses of the last forward pass, by name; empty before the first.

        Parameters
        ----------
        token_weight : Tensor, optional
            ``(N,)`` how much each token counts; one each when None.
        """
        return {}

    def update(self, progress: float) -> None:
        """Update what is learned without gradients; called once after every optimiser step.

        Parameters
        ----------
        progress : float
            Fraction of the training that is done, 0 to 1.
        """

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "last_routing": None}


class MoE(RoutedLayer):
    r"""Mixture of experts: :math:`y = \sum_{e \in R(x)} w_e(x) f_e(x)`, computed only where a token was sent.

    In evaluation every assignment is computed, and the output of a token never depends on the other tokens of its
    batch (with ``eval_capacity_factor`` it depends on those of its sample). Shapes: ``(..., d)`` to ``(..., d_out)``,
    with at least one leading dimension.

    Parameters
    ----------
    dim : int
        Width d of a token.
    num_experts : int
        Number of experts E.
    top_k : int, default=2
        Experts per token, for a router that is made by name and has such an argument.
    hidden_dim : int, optional
        Hidden width of the default experts; ``4 * dim`` when None.
    router : Router or str, default="topk"
        A router, or the name of one (``"topk"``, ``"topp"``, ... as in ``moeapps list routers``). One router may serve
        several layers (Omni-router): pass the same object.
    experts : Experts, optional
        Any experts; those that the router needs, else an :class:`~moeapps.core.experts.ExpertMLP`, when None.
    backend : Backend, default="auto"
        ``"auto"``, ``"loop"``, ``"bmm"``, ``"grouped"`` or ``"masked"``.
    capacity_factor : float, optional
        In training an expert takes at most ``ceil(capacity_factor * N * k / E)`` tokens. None, the default, is
        dropless.
    overflow : Overflow, default="drop"
        What becomes of the others: ``"drop"`` or ``"next_best"`` (see :func:`~moeapps.core.capacity.apply_capacity`).
    eval_capacity_factor : float, optional
        Evaluation only: caps tokens per expert. Of each sample (images ``(N, T, d)`` have samples of T patches) an
        expert takes at most this multiple of its fair share, tokens with the largest weights first (batch-prioritised
        routing of V-MoE, per sample); the other tokens keep the outputs of their other experts. None is no cap. Tokens
        ``(N, d)`` have no samples and no cap.
    balance_weight : float, default=0.01
        Factor of the router's balance loss.
    z_weight : float, default=0.001
        Factor of the router z-loss.
    penalty_weight : float, default=0.1
        Factor of the parameter penalty, for experts of different sizes.

    Raises
    ------
    ConfigError
        At construction, if sizes do not fit together.
    DataError
        In forward, if the tokens have another width or dtype than the layer.

    Examples
    --------
    >>> import torch
    >>> layer = MoE(dim=16, num_experts=4, top_k=2)
    >>> layer(torch.randn(3, 5, 16)).shape
    torch.Size([3, 5, 16])
    >>> sorted(layer.auxiliary_losses())
    ['balance', 'z']
    """

    changed_by_surgery: bool = False  # an estimator's arguments may not describe the layer any more

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int = 2,
        hidden_dim: int | None = None,
        *,
        router: Router | str = "topk",
        experts: Experts | None = None,
        backend: Backend = "auto",
        capacity_factor: float | None = None,
        overflow: Overflow = "drop",
        eval_capacity_factor: float | None = None,
        balance_weight: float = 0.01,
        z_weight: float = 0.001,
        penalty_weight: float = 0.1,
    ) -> None:
        super().__init__()
        check_sizes(dim=dim, num_experts=num_experts)
        check_one_of("backend", backend, BACKENDS)
        check_one_of("overflow", overflow, OVERFLOW)
        check_at_least_zero(balance_weight=balance_weight, z_weight=z_weight, penalty_weight=penalty_weight)
        self.router = make_router(router, dim, num_experts, top_k) if isinstance(router, str) else router
        if experts is None:
            hidden_dim = 4 * dim if hidden_dim is None else hidden_dim
            experts = self.router.default_experts(hidden_dim) or ExpertMLP(dim, hidden_dim, num_experts)
        self.experts = experts
        self.dim, self.num_experts = dim, num_experts
        self.backend: Backend = backend
        self.capacity_factor, self.overflow = capacity_factor, overflow
        self.eval_capacity_factor = eval_capacity_factor
        self.balance_weight, self.z_weight, self.penalty_weight = balance_weight, z_weight, penalty_weight
        self._check_parts()

    def rebuilt(self, *, router: Router | None = None, experts: Experts | None = None) -> Self:
        """Copy of this layer with another router, other experts, or both.

        Everything else is kept: arguments, the class and what a subclass holds. Surgery is built on it.

        Parameters
        ----------
        router : Router, optional
            Used without copying; a copy of this layer's router when None.
        experts : Experts, optional
            Used without copying; a copy of this layer's experts when None. Their number becomes E.

        Raises
        ------
        ConfigError
            If router and experts do not fit together.
        """
        # deepcopy takes what its memo holds as copied already
        parts = {id(old): new for old, new in ((self.router, router), (self.experts, experts)) if new is not None}
        layer = copy.deepcopy(self, parts)
        layer.num_experts = layer.experts.num_experts
        layer.changed_by_surgery = True
        layer._check_parts()
        return layer.train(self.training)

    def forward(self, x: Tensor, ids: Tensor | None = None) -> Tensor:
        """Mix the experts' outputs for tokens ``(..., d)``.

        Parameters
        ----------
        x : Tensor
            Tokens. Where soft routing is used, the second to last axis is a sample.
        ids : Tensor, optional
            ``(...)`` int64 token ids, for the hash router.
        """
        self._check(x)
        tokens = x.reshape(-1, self.dim)  # (N, d)
        routing: Routing = self.router(
            tokens,
            experts=self.experts,
            ids=None if ids is None else ids.reshape(-1),
            sample_size=x.shape[-2] if x.ndim > 2 else 1,
        )
        if self.training and self.capacity_factor is not None:
            routing = apply_capacity(routing, self.capacity_factor, self.overflow)
        elif not self.training and self.eval_capacity_factor is not None and x.ndim > 2 and x.shape[-2] > 0:
            routing = apply_capacity(routing, self.eval_capacity_factor, by_weight=True, sample_size=x.shape[-2])
        out = routing.combine(self.experts(routing.dispatch(tokens), routing.offsets, self.backend))
        self.remember(routing)
        return out.view(*x.shape[:-1], out.shape[-1])

    def auxiliary_losses(self, token_weight: Tensor | None = None) -> dict[str, Tensor]:
        """Weighted losses of the last forward pass: those of the router, and the experts' parameter penalty.

        Parameters
        ----------
        token_weight : Tensor, optional
            ``(N,)`` or the tokens' leading shape: how much each token counts; one each when None.

        Raises
        ------
        ConfigError
            In training, if the forward pass ran without gradients, as reentrant activation checkpointing runs it: the
            losses could not train anything.
        """
        routing = self.last_routing
        if routing is None:
            return {}
        weight = None if token_weight is None else token_weight.reshape(-1)
        factors = {"balance": self.balance_weight, "z": self.z_weight, "penalty": self.penalty_weight}
        losses = {name: factors.get(name, 1.0) * value for name, value in self.router.losses(routing, weight).items()}
        if self.experts.sizes is not None:
            losses["penalty"] = self.penalty_weight * parameter_penalty_loss(routing, self.experts.sizes, weight)
        if any(factors.get(name, 1.0) > 0 for name in losses):
            self._check_gradients()
        return losses

    def update(self, progress: float) -> None:
        """Update what the router learns without gradients."""
        if self.last_routing is not None:
            self.router.update(self.last_routing, progress)

    def _check_gradients(self) -> None:
        """Refuse losses that should train but cannot."""
        learns = self.training and torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        if learns and not self._had_gradients:
            raise ConfigError(
                "the forward pass of this layer ran without gradients, so its auxiliary losses have none: with "
                "activation checkpointing pass use_reentrant=False; a pass under torch.no_grad is for evaluation"
            )

    def _check_parts(self) -> None:
        """Refuse a router, experts and capacities that do not fit together."""
        for name, part in (("router", self.router), ("experts", self.experts)):
            if (part.dim, part.num_experts) != (self.dim, self.num_experts):
                raise ConfigError(
                    f"{name} is built for dim={part.dim}, num_experts={part.num_experts}, "
                    f"the layer for dim={self.dim}, num_experts={self.num_experts}"
                )
        for name in ("capacity_factor", "eval_capacity_factor"):
            factor = getattr(self, name)
            if factor is None:
                continue
            if not 0 < factor < math.inf:
                raise ConfigError(f"{name} must be a number above 0, got {factor!r}")
            if not self.router.token_choice:
                raise ConfigError(f"{name} has no meaning with {type(self.router).__name__}: leave it None")

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
