"""What every kind of surgery has in common: it works on a copy, layer by layer, and reports what it changed."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

from torch import nn

from moeapps.core.errors import ConfigError
from moeapps.core.expert_use import ExpertUse, moe_layers
from moeapps.core.layer import MoE

__all__ = ["LayerReport", "Model", "operate", "report", "use_of"]

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class LayerReport:
    """What surgery changed in one layer.

    Attributes
    ----------
    experts_before : int
        Number of experts before.
    experts_after : int
        Number of experts after.
    parameters_before : int
        Number of parameters of the layer before.
    parameters_after : int
        Number of parameters of the layer after.
    groups : tuple[tuple[int, ...], ...]
        For each new expert, the old ones it was made of.
    error : float, default=0.0
        Mean relative error of the expert weights, where they were approximated; else 0.
    """

    experts_before: int
    experts_after: int
    parameters_before: int
    parameters_after: int
    groups: tuple[tuple[int, ...], ...]
    error: float = 0.0


def operate(
    model: Model, operation: Callable[[str, MoE], tuple[nn.Module, LayerReport]]
) -> tuple[Model, dict[str, LayerReport]]:
    """Apply an operation to each layer of a copy of the model."""
    result = copy.deepcopy(model)
    reports = {}
    for name, layer in moe_layers(result).items():
        new, reports[name] = operation(name, layer)
        if name == "":
            return cast(Model, new), reports
        for parent in list(result.modules()):  # several blocks may share the layer
            for child, module in parent._modules.items():
                if module is layer:
                    setattr(parent, child, new)
    return result, reports


def use_of(use: Mapping[str, ExpertUse], name: str) -> ExpertUse:
    """The use of one layer, or an error that says which layers were measured."""
    if name not in use:
        raise ConfigError(f"use has no entry for layer {name!r}, it has {', '.join(map(repr, use))}")
    return use[name]


def report(
    before: nn.Module,
    after: nn.Module,
    groups: Sequence[Sequence[int]],
    error: float = 0.0,
    experts_after: int | None = None,
) -> LayerReport:
    """Report of a layer that was changed."""
    assert isinstance(before, MoE)
    return LayerReport(
        before.num_experts,
        after.num_experts if isinstance(after, MoE) else experts_after or 0,
        sum(p.numel() for p in before.parameters()),
        sum(p.numel() for p in after.parameters()),
        tuple(tuple(group) for group in groups),
        error,
    )
