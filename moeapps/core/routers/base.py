"""Base of all routers: tokens in, one routing out, computed in float32 or better.

Shapes: N tokens, d width, E experts, k experts per token.
"""

import copy
import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from moeapps.core.checks import check_sizes
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.experts import Experts
from moeapps.core.losses import load_balance_loss, router_z_loss
from moeapps.core.modes import values_are_hidden
from moeapps.core.routing import Routing
from moeapps.moved import warn_deprecated

__all__ = ["Router", "linear_scores", "router_dtype"]


def router_dtype(x: Tensor) -> torch.dtype:
    """Router arithmetic is done in float32, or in float64 for a float64 model; never in less."""
    return torch.promote_types(x.dtype, torch.float32)


def linear_scores(dim: int, num_scores: int) -> nn.Parameter:
    """Weights ``(S, d)`` from N(0, 1/d), so that scores of unit-variance tokens have unit variance."""
    return nn.Parameter(torch.randn(num_scores, dim) * dim**-0.5)


class Router(nn.Module):
    """Base of all routers: ``forward`` maps tokens ``(N, d)`` to a routing over ``num_experts`` experts.

    To write a router, implement :meth:`scores` and :meth:`choose`; the base class handles precision, shapes and tokens
    that are not finite. In evaluation the choice for a token depends on nothing but the token.

    Parameters
    ----------
    dim : int
        Width d of a token.
    num_experts : int
        Number of experts E.

    Attributes
    ----------
    mixes_tokens : bool, default=False
        Whether, in training, tokens of one batch influence each other's routing. Such a router cannot learn from a
        stream one row at a time.
    token_choice : bool, default=True
        Whether tokens choose experts, so that a capacity can be set.
    scores_itself : bool, default=True
        Whether the scores come from the tokens and the router alone, not from the experts.
    balances_itself : bool, default=False
        Whether the balance loss is one of its own (groups, null experts), which it keeps when experts are merged.
    per_expert : tuple[str, ...], optional
        Names of the tensors with one row per expert, for :meth:`restricted`; None where experts cannot be taken out.
    always_on : int
        Number of experts that take every token. They come first.
    consistency_weight : float, default=0.0
        Factor of the loss that makes the outputs of two draws agree; :meth:`~moeapps.core.module.MoEModule.by_draws`
        adds it.
    defaults_of_0_1 : dict[str, Any]
        Defaults of moeapps 0.1 that differ from the current ones; models saved by 0.1 keep them.

    Raises
    ------
    ConfigError
        If a size is below 1.
    """

    mixes_tokens: ClassVar[bool] = False
    token_choice: ClassVar[bool] = True
    scores_itself: ClassVar[bool] = True
    balances_itself: ClassVar[bool] = False
    per_expert: ClassVar[tuple[str, ...] | None] = None
    defaults_of_0_1: ClassVar[dict[str, Any]] = {}
    consistency_weight: float = 0.0

    def __init__(self, dim: int, num_experts: int) -> None:
        super().__init__()
        check_sizes(dim=dim, num_experts=num_experts)
        self.dim = dim
        self.num_experts = num_experts

    @property
    def always_on(self) -> int:
        """Number of experts that take every token."""
        return 0

    @property
    def mergeable(self) -> bool:
        """Whether experts can be merged behind this router: it goes on choosing among the old ones."""
        return self.token_choice and self.scores_itself

    @property
    def draws_per_step(self) -> int:
        """Forward passes of a training step: two where the outputs of two random draws are compared."""
        return 2 if self.consistency_weight > 0 else 1

    def arguments(self) -> dict[str, Any]:
        """Constructor arguments beside ``dim`` and ``num_experts``, as they are now; those kept as attributes."""
        names = set(inspect.signature(type(self)).parameters) - {"dim", "num_experts"}
        return {name: getattr(self, name) for name in sorted(names) if hasattr(self, name)}

    def scores(self, x: Tensor, experts: nn.Module | None, ids: Tensor | None) -> Tensor:
        """Score experts: ``(N, d)`` to ``(N, E)`` or more, in the dtype of ``x``.

        Parameters
        ----------
        x : Tensor
            Tokens, in float32 or better.
        experts : Module or None
            The layer's experts, for routers that score with them.
        ids : Tensor or None
            ``(N,)`` int64 token ids, for routers that use them.
        """
        raise NotImplementedError

    def choose(self, logits: Tensor, valid: Tensor) -> Routing:
        """Choose experts from scores; those of tokens that are not valid are zero, and their weights do not matter."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        *,
        experts: nn.Module | None = None,
        ids: Tensor | None = None,
        sample_size: int = 1,
    ) -> Routing:
        """Route tokens.

        Parameters
        ----------
        x : Tensor
            ``(N, d)`` tokens. One with a NaN or infinite score is marked invalid and gets weight NaN.
        experts : Module, optional
            The layer's experts; required by routers that score with them (average keys, autonomy).
        ids : Tensor, optional
            ``(N,)`` int64 token ids; used by the hash router only.
        sample_size : int, default=1
            Tokens per sample; used by soft routing only, which mixes the tokens of a sample.

        Returns
        -------
        Routing
            The routing.
        """
        self.check_tokens(x)
        with torch.autocast(x.device.type, enabled=False):
            logits = self.scores(x.to(router_dtype(x)), experts, ids)
            valid = logits.detach().sum(dim=-1).isfinite()  # (N,)
            if not (values_are_hidden() or valid.is_cuda) and bool(valid.all()):
                return self.choose(logits, valid)
            # topk would rank a NaN highest: a bad token must neither win a slot nor reach losses and statistics
            routing = self.choose(torch.where(valid[:, None], logits, 0.0), valid)
            return replace(routing, weight=torch.where(valid[routing.token], routing.weight, torch.nan))

    def losses(self, routing: Routing, token_weight: Tensor | None = None) -> dict[str, Tensor]:
        """Auxiliary losses by name: ``balance`` and ``z`` unless a subclass has others.

        The layer multiplies ``balance`` and ``z`` by its own weights and takes every other entry as it is.
        """
        return {
            "balance": load_balance_loss(routing, token_weight),
            "z": router_z_loss(routing, token_weight),
        }

    def update(self, routing: Routing, progress: float) -> None:
        """Update what is learned without gradients (rules); called once after every optimiser step.

        :class:`~moeapps.core.module.MoEModule` does it. In a training loop of your own call
        ``layer.update(progress)`` yourself if the router has such a rule (growing k, balancing by bias).

        Parameters
        ----------
        routing : Routing
            The step's last routing.
        progress : float
            Fraction of the training that is done, 0 to 1.
        """

    def update_by_calls(self, routings: Sequence[Routing], progress: float) -> None:
        """:meth:`update` after a step in which several blocks called the same layer; by the last call by default.

        Parameters
        ----------
        routings : sequence of Routing
            The step's routings, at least one, in the order of the calls.
        progress : float
            Fraction of the training that is done, 0 to 1.
        """
        self.update(routings[-1], progress)

    def restricted(self, kept: Sequence[int]) -> Self:
        """Copy of this router over some of its experts only.

        Parameters
        ----------
        kept : sequence of int
            The experts, in their new order.

        Raises
        ------
        ConfigError
            If experts cannot be taken out of this kind of router.
        """
        if self._overrides_subset():  # a router that was written for 0.1
            warn_deprecated(f"{type(self).__name__}.subset is called restricted now: rename the method")
            return self.subset(kept)
        return self._restricted(kept)

    def _restricted(self, kept: Sequence[int]) -> Self:
        if self.per_expert is None:
            raise ConfigError(f"experts cannot be taken out of {type(self).__name__}: merge them instead")
        return self._with_rows({name: list(kept) for name in self.per_expert}, len(kept))

    def _overrides_subset(self) -> bool:
        return type(self).subset is not Router.subset

    def subset(self, experts: Sequence[int]) -> Self:
        """Deprecated name of :meth:`restricted`."""
        if self._overrides_subset():  # called by super().subset(...)
            return self._restricted(experts)
        warn_deprecated("Router.subset is deprecated: use Router.restricted")
        return self.restricted(experts)

    def _with_rows(self, rows: dict[str, list[int]], num_experts: int) -> Self:
        """Copy with these rows of these tensors, and k no larger than the number of experts."""
        copied = copy.deepcopy(self)
        for name, chosen in rows.items():
            kept = getattr(self, name).detach()[chosen].clone()
            old = getattr(self, name)  # a frozen parameter stays frozen
            setattr(copied, name, nn.Parameter(kept, old.requires_grad) if isinstance(old, nn.Parameter) else kept)
        copied.num_experts = num_experts
        for name in ("top_k", "max_experts", "capacity_factor", "end_k", "start_k"):
            if (value := getattr(copied, name, None)) is not None:
                setattr(copied, name, min(value, num_experts))
        return copied

    def default_experts(self, hidden_dim: int) -> Experts | None:
        """Experts that this router requires; None where it works with any."""
        return None

    def check_tokens(self, x: Tensor) -> None:
        """Raise an error for tokens of another shape than ``(N, d)``."""
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise DataError(f"{type(self).__name__} expects tokens of shape (N, {self.dim}), got {tuple(x.shape)}")

    def extra_repr(self) -> str:
        """Plain attributes, for ``print(model)``."""
        plain: dict[str, Any] = {
            name: value
            for name, value in vars(self).items()
            if not name.startswith("_") and name != "training" and isinstance(value, int | float | str)
        }
        return ", ".join(f"{name}={value!r}" for name, value in plain.items())


def normalized(weight: Tensor) -> Tensor:
    """Weights ``(N, k)`` scaled to sum to 1 per token; all zero where they sum to 0."""
    total = weight.sum(dim=-1, keepdim=True)
    return weight / torch.where(total > 0, total, 1)


def require_method(experts: nn.Module | None, method: str, router: nn.Module) -> Any:
    """Return a method of the experts, or raise an error that says what is missing."""
    found = getattr(experts, method, None)
    if found is None:
        raise ConfigError(
            f"{type(router).__name__} needs experts with {method}(), which "
            f"{'no experts were given' if experts is None else type(experts).__name__ + ' does not offer'}"
        )
    return found
