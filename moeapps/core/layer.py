"""The MoE layer: a router, dispatch, and experts.

Shapes: N tokens, d width, E experts, k experts per token, A assignments (N k without drops).
"""

import copy
import math
from collections.abc import Sequence
from itertools import cycle
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from moeapps.core.backends import BACKENDS, Backend
from moeapps.core.capacity import OVERFLOW, Overflow, apply_capacity
from moeapps.core.checks import check_at_least_zero, check_one_of, check_sizes
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.expert_sizes import ExpertSizes, hidden_sizes
from moeapps.core.experts import ExpertMLP, Experts, HeterogeneousExperts
from moeapps.core.losses import mutual_information, parameter_penalty_loss
from moeapps.core.modes import notes_are_kept
from moeapps.core.routers import Router, make_router
from moeapps.core.routing import Routing
from moeapps.core.scripting import ScriptedMoE

__all__ = ["BALANCE_LOSSES", "BalanceLoss", "MoE", "RoutedLayer"]

BalanceLoss = Literal["load", "mutual_information"]
BALANCE_LOSSES = ("load", "mutual_information")


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

    def auxiliary_losses(
        self, token_weight: Tensor | None = None, sample_groups: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Weighted losses of the last forward pass, by name; empty before the first.

        Parameters
        ----------
        token_weight : Tensor, optional
            ``(N,)`` how much each token counts; one each when None.
        sample_groups : Tensor, optional
            ``(S,)`` group of each sample; only layers whose experts are in groups use it.
        """
        return {}

    def update(self, progress: float) -> None:
        """Update what is learned without gradients (rules); called once after every optimiser step.

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

    With ``iterations=C`` above 1 the layer is a chain of experts (Chain-of-Experts, Wang et al. 2025): the experts are
    applied C times in turn, chosen by a router of each iteration's own,

    .. math:: h_0 = x, \qquad h_t = h_{t-1} + \sum_{e \in R_t(h_{t-1})} w_{t,e}(h_{t-1})\, f_e(h_{t-1}), \qquad
              y = h_C - x

    so that ``x + layer(x)`` is the paper's output.

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
        What happens to the others: ``"drop"`` or ``"next_best"`` (see :func:`~moeapps.core.capacity.apply_capacity`).
    eval_capacity_factor : float, optional
        Evaluation only: caps tokens per expert. Of each sample (images ``(N, T, d)`` have samples of T patches) an
        expert takes at most this multiple of its fair share, tokens with the largest weights first (batch-prioritised
        routing of V-MoE, per sample); the other tokens keep the outputs of their other experts. None: no cap. Tokens
        ``(N, d)`` have no samples and no cap.
    balance_weight : float, default=0.01
        Factor of the router's balance loss.
    z_weight : float, default=0.001
        Factor of the router z-loss.
    penalty_weight : float, default=0.1
        Factor of the parameter penalty, for experts of different sizes.
    iterations : int, default=1
        Iterations C of a chain of experts. Each has its own router; losses are the mean over them.
    balance_loss : {"load", "mutual_information"}, default="load"
        ``"load"`` is the router's own balance loss, ``"mutual_information"`` that of ModuleFormer (Shen et al. 2023)
        in its place: minus the mutual information of tokens and experts, -log E to 0 nats.
    expert_sizes : {"arithmetic", "geometric"} or sequence of int, optional
        Hidden widths of experts of different sizes (HMoE), for the default experts; see
        :func:`~moeapps.core.expert_sizes.hidden_sizes`. All are ``hidden_dim`` wide when None.

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
    # of layers that were pickled before these arguments existed
    iterations: int = 1
    balance_loss: BalanceLoss = "load"
    _taken: tuple[Routing, ...] = ()  # routings of the last forward pass, one per iteration

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
        iterations: int = 1,
        balance_loss: BalanceLoss = "load",
        expert_sizes: ExpertSizes = None,
    ) -> None:
        super().__init__()
        check_sizes(dim=dim, num_experts=num_experts, iterations=iterations)
        check_one_of("balance_loss", balance_loss, BALANCE_LOSSES)
        check_one_of("backend", backend, BACKENDS)
        check_one_of("overflow", overflow, OVERFLOW)
        check_at_least_zero(balance_weight=balance_weight, z_weight=z_weight, penalty_weight=penalty_weight)
        self.router = make_router(router, dim, num_experts, top_k) if isinstance(router, str) else router
        if experts is None:
            hidden_dim = 4 * dim if hidden_dim is None else hidden_dim
            experts = self._default_experts(dim, hidden_dim, num_experts, expert_sizes)
        elif expert_sizes is not None:
            raise ConfigError("expert_sizes are those of the default experts: those that were given have their own")
        self.experts = experts
        self.iterations, self.balance_loss = iterations, balance_loss
        if iterations > 1:
            self.later_routers = nn.ModuleList(_another(self.router) for _ in range(iterations - 1))
        self.dim, self.num_experts = dim, num_experts
        self.backend: Backend = backend
        self.capacity_factor, self.overflow = capacity_factor, overflow
        self.eval_capacity_factor = eval_capacity_factor
        self.balance_weight, self.z_weight, self.penalty_weight = balance_weight, z_weight, penalty_weight
        self._check_parts()

    def _default_experts(self, dim: int, hidden_dim: int, num_experts: int, sizes: ExpertSizes) -> Experts:
        """Those that the router needs, else two-layer networks, of one width or of several."""
        required = self.router.default_experts(hidden_dim)
        if sizes is None:
            return required or ExpertMLP(dim, hidden_dim, num_experts)
        widths = hidden_sizes(sizes, hidden_dim, num_experts)
        if required is not None:
            raise ConfigError(
                f"{type(self.router).__name__} needs {type(required).__name__}, whose experts are of one size: leave "
                "expert_sizes None"
            )
        return HeterogeneousExperts(dim, widths)

    @property
    def routers(self) -> tuple[Router, ...]:
        """The router of each iteration; one, unless the layer is a chain of experts."""
        return (self.router, *getattr(self, "later_routers", ()))

    @property
    def routings(self) -> Sequence[Routing]:
        """Routing of each iteration in the last forward pass."""
        if self.last_routing is None:
            return []
        return [self.last_routing] if self.iterations == 1 else list(self._taken)

    def rebuilt(
        self,
        *,
        router: Router | None = None,
        experts: Experts | None = None,
        later_routers: Sequence[Router] | None = None,
    ) -> Self:
        """Copy of this layer with another router, other experts, or both.

        Everything else is kept: arguments, the class and what a subclass holds. Surgery is built on it.

        Parameters
        ----------
        router : Router, optional
            Used without copying; a copy of this layer's router when None.
        experts : Experts, optional
            Used without copying; a copy of this layer's experts when None. Their number becomes E.
        later_routers : sequence of Router, optional
            Routers of the later iterations of a chain of experts, used without copying; copies when None.

        Raises
        ------
        ConfigError
            If router and experts do not fit together.
        """
        # deepcopy takes what its memo holds as copied already
        later = zip(self.routers[1:], later_routers or (), strict=False)
        pairs = [(self.router, router), (self.experts, experts), *later]
        parts = {id(old): new for old, new in pairs if new is not None}
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
        state = x.reshape(-1, self.dim)  # (N, d)
        total: Tensor | None = None
        taken = []
        for router in self.routers:
            routing = self._route(router, state, ids, x)
            out = routing.combine(self.experts(routing.dispatch(state), routing.offsets, self.backend))
            taken.append(routing)
            total = out if total is None else total + out
            if len(taken) < self.iterations:
                state = state + out
        assert total is not None
        if notes_are_kept():
            self._taken = tuple(taken)
        for routing in taken:
            self.remember(routing)
        return total.view(*x.shape[:-1], total.shape[-1])

    def _route(self, router: Router, tokens: Tensor, ids: Tensor | None, x: Tensor) -> Routing:
        """Routing of tokens ``(N, d)`` within the capacities; ``x`` has their leading shape."""
        routing: Routing = router(
            tokens,
            experts=self.experts,
            ids=None if ids is None else ids.reshape(-1),
            sample_size=x.shape[-2] if x.ndim > 2 else 1,
        )
        if self.training and self.capacity_factor is not None:
            return apply_capacity(routing, self.capacity_factor, self.overflow)
        if not self.training and self.eval_capacity_factor is not None and x.ndim > 2 and x.shape[-2] > 0:
            return apply_capacity(routing, self.eval_capacity_factor, by_weight=True, sample_size=x.shape[-2])
        return routing

    def auxiliary_losses(
        self, token_weight: Tensor | None = None, sample_groups: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Weighted losses of the last forward pass: those of the router, and the experts' parameter penalty.

        Of several calls or iterations it is the mean, so that a weight does not depend on their number.

        Parameters
        ----------
        token_weight : Tensor, optional
            ``(N,)`` or the tokens' leading shape: how much each token counts; one each when None.
        sample_groups : Tensor, optional
            Not used here; see :class:`~moeapps.core.tuning.low_rank.RoutedLinear`.

        Raises
        ------
        ConfigError
            In training, if the forward pass ran without gradients, as reentrant activation checkpointing runs it: the
            losses could not train anything. With ``balance_loss="mutual_information"``, if the router has no balance
            loss, which it would replace.
        """
        weight = None if token_weight is None else token_weight.reshape(-1)
        pairs = zip(cycle(self.routers), self.routings, strict=False)
        calls = [self._losses(router, routing, weight) for router, routing in pairs]
        if len(calls) < 2:
            return calls[0] if calls else {}
        return {name: torch.stack([losses[name] for losses in calls]).mean() for name in calls[0]}

    def _losses(self, router: Router, routing: Routing, weight: Tensor | None) -> dict[str, Tensor]:
        """Weighted losses of one call."""
        factors = {"balance": self.balance_weight, "z": self.z_weight, "penalty": self.penalty_weight}
        found = router.losses(routing, weight)
        if self.balance_loss == "mutual_information":
            if "balance" not in found:
                raise ConfigError(
                    f"balance_loss='mutual_information' replaces a router's balance loss, and {type(router).__name__} "
                    "has none: leave it 'load'"
                )
            found["balance"] = -mutual_information(routing, weight)
        losses = {name: factors.get(name, 1.0) * value for name, value in found.items()}
        if self.experts.sizes is not None:
            losses["penalty"] = self.penalty_weight * parameter_penalty_loss(routing, self.experts.sizes, weight)
        if any(factors.get(name, 1.0) > 0 for name in losses):
            self._check_gradients()
        return losses

    def update(self, progress: float) -> None:
        """Update what the routers learn without gradients."""
        routings = self.routings
        if routings:
            for index, router in enumerate(self.routers):
                router.update_by_calls(routings[index :: self.iterations], progress)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_taken": ()}

    def __prepare_scriptable__(self) -> nn.Module:
        """What torch.jit.script makes a program of: the evaluation of this layer; see ``ScriptedMoE``."""
        return ScriptedMoE(self)

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
        for name, part in (*(("router", router) for router in self.routers), ("experts", self.experts)):
            if (part.dim, part.num_experts) != (self.dim, self.num_experts):
                raise ConfigError(
                    f"{name} is built for dim={part.dim}, num_experts={part.num_experts}, "
                    f"the layer for dim={self.dim}, num_experts={self.num_experts}"
                )
        if self.iterations > 1 and self.experts.out_dim != self.dim:
            raise ConfigError(
                f"iterations={self.iterations} apply the experts to their own outputs: these map {self.dim} numbers to "
                f"{self.experts.out_dim}"
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


def _another(router: Router) -> Router:
    """A router with the same arguments and parameters of its own; a copy where it does not keep its arguments."""
    try:
        return type(router)(router.dim, router.num_experts, **router.arguments())
    except TypeError:
        return copy.deepcopy(router)
