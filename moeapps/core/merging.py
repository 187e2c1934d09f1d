"""Merging of experts: similar ones become one, and the router goes on choosing among the old ones.

Shapes: E experts.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from moeapps.core.checks import check_top_k
from moeapps.core.errors import ConfigError
from moeapps.core.expert_tensors import averaged, sliced
from moeapps.core.expert_use import ExpertUse, moe_layers
from moeapps.core.layer import MoE
from moeapps.core.operations import LayerReport, Model, operate, report, use_of
from moeapps.core.routers.merged import MergedRouter

__all__ = ["global_budgets", "merge_experts", "regroup"]


def merge_experts(
    model: Model, num_experts: int, use: Mapping[str, ExpertUse], *, globally: bool = False
) -> tuple[Model, dict[str, LayerReport]]:
    """Merge similar experts after aligning their hidden units, weighted by use (M-SMoE, Li et al. 2024, section 3).

    1. The experts that are chosen most often are the heads of groups.
    2. Each of the others joins the head whose router logits have the largest cosine with its own.
    3. The hidden units of a group are aligned to those of its head, and the weights averaged by how often each expert
       is chosen.
    4. The router stays and sends the tokens of an old expert to the one it was merged into.

    Experts that take every token (shared experts) are neither heads nor members: they stay as they are.

    Parameters
    ----------
    model : Model
        A layer or a model.
    num_experts : int
        How many experts are left in each layer, shared ones included.
    use : mapping of str to ExpertUse
        Result of :func:`measure_use`.
    globally : bool, default=False
        Whether ``num_experts`` is the mean over the layers instead: layers whose choices are spread over many experts
        keep more of them than layers in which a few experts take most tokens (see :func:`global_budgets`).

    Returns
    -------
    tuple[Model, dict of str to LayerReport]
        The merged copy and a report per layer.

    Raises
    ------
    ConfigError
        If there are not that many experts, no routed expert would be left, or tokens do not choose experts in this kind
        of router.
    """
    layers = moe_layers(model)
    for layer in layers.values():
        _check_number(num_experts, layer)
    budgets = dict.fromkeys(layers, num_experts)
    if globally:
        routed = {name: use_of(use, name).activation[layer.router.always_on :] for name, layer in layers.items()}
        mean = num_experts - sum(layer.router.always_on for layer in layers.values()) / len(layers)
        found = global_budgets(routed, round(mean * len(layers)))
        budgets = {name: layer.router.always_on + found[name] for name, layer in layers.items()}

    def merge(name: str, layer: MoE) -> tuple[nn.Module, LayerReport]:
        measured = use_of(use, name)
        groups = _groups(measured, budgets[name], layer.router.always_on)
        merged = regroup(layer, groups, measured.activation)
        return merged, report(layer, merged, groups)

    return operate(model, merge)


def _check_number(num_experts: int, layer: MoE) -> None:
    check_top_k(num_experts, layer.num_experts, "num_experts")
    if num_experts <= layer.router.always_on < layer.num_experts:
        raise ConfigError(
            f"num_experts counts the {layer.router.always_on} shared experts, which are not merged: it must be at "
            f"least {layer.router.always_on + 1}, got {num_experts}"
        )


def _groups(use: ExpertUse, num_experts: int, always_on: int) -> list[list[int]]:
    """For each new expert the old ones it is made of, its head first; experts that take every token are alone."""
    routed = range(always_on, len(use.weight))
    order = use.activation[always_on:].topk(num_experts - always_on).indices
    heads = (order + always_on).tolist()
    groups = {head: [head] for head in heads}
    for e in routed:
        if e not in groups:
            groups[heads[int(use.similarity[e, heads].argmax())]].append(e)
    return [*([e] for e in range(always_on)), *groups.values()]


def global_budgets(frequency: Mapping[str, Tensor], total: int) -> dict[str, int]:
    """How many groups each layer keeps of ``total``: its experts above a frequency that is the same for all layers.

    As the released code of M-SMoE does it (``globally_group``): the most used expert of a layer counts as if it was
    always chosen, so that every layer keeps one; the frequencies of all layers are sorted together, and the number at
    place ``total`` (from 0) is the threshold, above which an expert is kept. Where several are equal to it there are
    fewer groups than asked for.

    Parameters
    ----------
    frequency : mapping of str to Tensor
        ``(E,)`` how often each expert of a layer is chosen, as a fraction.
    total : int
        Groups of all layers together, at least one per layer.

    Raises
    ------
    ConfigError
        If there would not be one per layer.
    """
    if total < len(frequency):
        raise ConfigError(f"num_experts leaves {total} experts to {len(frequency)} layers: each needs one")
    raised = {}
    for name, values in frequency.items():
        raised[name] = values.clone()
        raised[name][values.argmax()] = 1.0
    every = torch.cat(list(raised.values())).sort(descending=True).values
    if total >= len(every):
        return {name: len(values) for name, values in frequency.items()}
    return {name: max(1, int((values > every[total]).sum())) for name, values in raised.items()}


def regroup(layer: MoE, groups: Sequence[Sequence[int]], weight: Tensor | None = None) -> MoE:
    """Merge the experts of a layer into given groups.

    Parameters
    ----------
    layer : MoE
        The layer.
    groups : Sequence[sequence of int]
        For each new expert the old ones it is made of, the one that the others are aligned to first.
    weight : Tensor, optional
        ``(E,)`` how much each old expert counts; all alike when None.
    """
    use = torch.ones(layer.num_experts, dtype=torch.float64) if weight is None else weight
    router, *later = (MergedRouter(copy.deepcopy(router), groups) for router in layer.routers)
    experts = sliced(layer.experts, groups, lambda group: averaged(layer.experts, group, use))
    return layer.rebuilt(router=router, experts=experts, later_routers=later)
