"""Capacity: the most tokens that one expert takes in a training batch, and what becomes of the others.

Shapes: N tokens, E experts, k choices per token.
"""

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from moeapps.core.dispatch import inverse_permutation, starts_of
from moeapps.core.errors import ConfigError
from moeapps.core.modes import is_transformed
from moeapps.core.routing import Routing

__all__ = ["OVERFLOW", "Overflow", "apply_capacity", "expert_capacity"]

Overflow = Literal["drop", "next_best"]
OVERFLOW = ("drop", "next_best")


def expert_capacity(num_tokens: int, top_k: int, num_experts: int, capacity_factor: float) -> int:
    """Rows that one expert takes: ``ceil(capacity_factor * N * k / E)``, at least 1."""
    return max(1, math.ceil(capacity_factor * num_tokens * top_k / num_experts))


def apply_capacity(
    routing: Routing,
    capacity_factor: float,
    overflow: Overflow = "drop",
    *,
    by_weight: bool = False,
    sample_size: int | None = None,
) -> Routing:
    """Refuse the assignments that exceed the experts' capacity.

    All first choices come before all second choices, and earlier tokens before later ones (GShard, Lepikhin et al.
    2021, algorithm 1). A refused assignment is dropped (its token keeps its other experts, or gets zero: add a
    residual connection), or with ``"next_best"`` goes to the token's most probable expert that still has room.

    1. Compute the capacity from the number of tokens (of a sample, where ``sample_size`` is given).
    2. Number the assignments of each expert in their order of precedence; those beyond the capacity are refused.
    3. With ``"next_best"``, move refused assignments to other experts.
    4. Build a routing of what is left, and count what is not.

    Parameters
    ----------
    routing : Routing
        A routing in which tokens choose experts.
    capacity_factor : float
        Capacity as a multiple of the mean number of rows per expert.
    overflow : Overflow, default="drop"
        ``"drop"`` or ``"next_best"``.
    by_weight : bool, default=False
        Whether tokens with a larger first weight come before others, instead of earlier ones (batch-prioritised
        routing, Riquelme et al. 2021).
    sample_size : int, optional
        Number of consecutive tokens per sample. Every sample has a capacity of its own, so that its result does not
        depend on the others; all tokens share one capacity when None. Only with ``"drop"``.

    Returns
    -------
    Routing
        A routing in which no expert has more rows than its capacity; ``dropped`` counts the refused assignments.
    """
    expert = routing.choices  # (N, k), E for none
    weight = routing.weight[routing.position]
    num_tokens, k = expert.shape
    room = expert_capacity(num_tokens if sample_size is None else sample_size, k, routing.num_experts, capacity_factor)
    wanted = expert < routing.num_experts
    counted, bins = expert, routing.num_experts
    if sample_size is not None:  # experts of each sample counted apart
        bins = routing.num_experts * (num_tokens // sample_size)
        sample = torch.arange(num_tokens, device=expert.device) // sample_size
        counted = torch.where(wanted, expert + sample[:, None] * routing.num_experts, bins)
    if by_weight:
        order = weight[:, 0].argsort(descending=True, stable=True)
        fits = _fits(counted[order], bins, room)[inverse_permutation(order)]
    else:
        fits = _fits(counted, bins, room)
    keep = wanted & fits
    if overflow == "next_best":
        expert, weight, keep = _next_best(routing, expert, weight, keep, wanted, room)
    limited = Routing.from_topk(
        expert,
        weight,
        logits=routing.logits,
        probabilities=routing.probabilities,
        valid=routing.valid,
        keep=keep,
        dropped=routing.dropped + (wanted & ~keep & routing.valid[:, None]).sum(),
        details=routing.details,
    )
    return replace(routing, **vars(limited))  # what a router's own kind of routing holds besides stays


def _fits(expert: Tensor, num_experts: int, room: int | Tensor) -> Tensor:
    """Which choices ``(N, k)`` stand among the first ``room`` of their expert, first choices first."""
    flat = expert.t().reshape(-1)
    ordered, order = torch.sort(flat, stable=True)
    start = starts_of(ordered, num_experts)
    rank = (torch.arange(order.numel(), device=order.device) - start[ordered])[inverse_permutation(order)]
    limits = room if isinstance(room, int) else torch.cat([room, room.new_zeros(1)])[flat]
    return (rank < limits).view(expert.shape[1], expert.shape[0]).t()


def _known(value: Tensor) -> bool:
    try:
        return bool(value)
    except RuntimeError as error:
        if not is_transformed():
            raise
        raise ConfigError(
            "overflow='next_best' cannot run under torch.func.vmap, which hides how many tokens are refused: "
            "use overflow='drop'"
        ) from error


def _next_best(
    routing: Routing, expert: Tensor, weight: Tensor, keep: Tensor, wanted: Tensor, room: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Send refused choices, column by column, to the most probable expert with room that the token does not use."""
    experts = routing.num_experts
    probabilities = routing.probabilities.detach()
    expert, weight, keep = expert.clone(), weight.clone(), keep.clone()
    _known(keep.any())
    load = torch.bincount(expert[keep], minlength=experts)
    used = torch.zeros(expert.shape[0], experts + 1, dtype=torch.bool, device=expert.device)
    used.scatter_(1, torch.where(keep, expert, experts), True)
    for column in range(expert.shape[1]):
        for _ in range(experts):
            refused = wanted[:, column] & ~keep[:, column] & routing.valid
            open_ = ~used[:, :experts] & (load < room) & refused[:, None]
            has_room = open_.any(dim=-1)
            if not _known(has_room.any()):
                break
            target = torch.where(open_, probabilities, -1).argmax(dim=-1)
            target = torch.where(has_room, target, experts)
            taken = has_room & _fits(target[:, None], experts, room - load)[:, 0]
            rows = taken.nonzero()[:, 0]
            old, new = expert[rows, column], target[rows]
            p = routing.probabilities
            scale = p[rows, new] / p[rows, old].clamp(min=torch.finfo(p.dtype).tiny)
            weight[rows, column] = weight[rows, column] * scale
            expert[rows, column] = new
            keep[rows, column] = True
            used[rows, new] = True
            load = load + torch.bincount(new, minlength=experts)
    return expert, weight, keep
