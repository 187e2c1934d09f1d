"""Tensors of stacked experts: taken apart, aligned to each other, averaged, and put together again.

Shapes: E experts, d width, h hidden width.
"""

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.utils import parametrize

from moeapps.core.errors import ConfigError
from moeapps.core.experts import ExpertMLP, Experts, FactoredExpertMLP

__all__ = ["averaged", "sliced", "stack_of"]


def stack_of(experts: Experts, expert: int) -> dict[str, Tensor]:
    """Tensors of one expert, by name."""
    return {name: p.detach()[expert] for name, p in experts.named_parameters()}


def averaged(experts: Experts, group: Sequence[int], use: Tensor) -> dict[str, Tensor]:
    """Mean of some experts' tensors, weighted by use, hidden units aligned to the first one's.

    Parameters
    ----------
    experts : ExpertMLP
        Experts with a plain first layer.
    group : sequence of int
        Which of them.
    use : Tensor
        ``(E,)`` how much each expert counts.

    Raises
    ------
    ConfigError
        If the experts are factored (compressed, or an autonomy router's): each expert's factors have a basis of their
        own, so that their mean means nothing.
    """
    if not isinstance(experts, ExpertMLP) or isinstance(experts, FactoredExpertMLP):
        raise ConfigError(
            f"merging needs experts with stacked and unfactored weights (ExpertMLP), got {type(experts).__name__}: "
            "merge experts before they are compressed"
        )
    gated = experts.gated
    share = use[list(group)].clamp(min=1e-12)
    share = share / share.sum()
    reference = stack_of(experts, group[0])
    total = {name: tensor * share[0] for name, tensor in reference.items()}
    for part, e in zip(share[1:], group[1:], strict=True):
        own = stack_of(experts, e)
        order = _alignment(reference, own, gated)
        for name, tensor in _permuted(own, order, gated).items():
            total[name] += tensor * part
    return {name: tensor.to(reference[name].dtype) for name, tensor in total.items()}


def _units(tensors: Mapping[str, Tensor], gated: bool) -> Tensor:
    """One row per hidden unit: everything that goes in and out of it."""
    first = torch.cat(tensors["weight1"].chunk(2, dim=1)) if gated else tensors["weight1"]
    parts = [first.t() if not gated else first.unflatten(0, (2, -1)).permute(2, 0, 1).flatten(1), tensors["weight2"]]
    return torch.cat(parts, dim=1).double()


def _alignment(reference: Mapping[str, Tensor], other: Mapping[str, Tensor], gated: bool) -> Tensor:
    """For each hidden unit of the reference, the unit of the other that matches it best, each used once."""
    gain = _units(reference, gated) @ _units(other, gated).t()
    if gain.is_meta:  # a network that is built without memory, to know its shapes
        return torch.arange(len(gain), device=gain.device)
    _, columns = linear_sum_assignment(gain.cpu().numpy(), maximize=True)
    return torch.as_tensor(columns, device=gain.device)


def _permuted(tensors: Mapping[str, Tensor], order: Tensor, gated: bool) -> dict[str, Tensor]:
    """An expert with its hidden units in another order: the same function."""
    first = torch.cat([order, order + len(order)]) if gated else order
    change = {
        "weight1": lambda t: t[:, first],
        "bias1": lambda t: t[first],
        "weight2": lambda t: t[order],
    }
    return {name: change.get(name, lambda t: t)(tensor) for name, tensor in tensors.items()}


def sliced(
    experts: Experts, groups: Sequence[Sequence[int]], make: Callable[[Sequence[int]], dict[str, Tensor]]
) -> Experts:
    """Experts of the same kind, one per group; what was frozen stays frozen.

    Parameters
    ----------
    experts : Experts
        The old experts, stacked.
    groups : sequence of sequences of int
        For each new expert the old ones that it is made of.
    make : callable
        From a group to the tensors of one expert.

    Raises
    ------
    ConfigError
        If the experts have no stacked weights, or some of them are frozen by ``freeze_except``.
    """
    if not experts.stacked:
        raise ConfigError(f"this needs experts with stacked weights (ExpertMLP), got {type(experts).__name__}")
    if parametrize.is_parametrized(experts):
        raise ConfigError("some of these experts are frozen: call undo() of what freeze_except returned first")
    made = [make(list(group)) for group in groups]
    new = copy.deepcopy(experts)
    new.num_experts = len(groups)
    if experts.groups is not None:
        new.groups = tuple(experts.groups[group[0]] for group in groups)
    for name, old in experts.named_parameters():
        setattr(new, name, nn.Parameter(torch.stack([tensors[name] for tensors in made]), old.requires_grad))
    return new
