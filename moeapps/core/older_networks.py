"""A network that goes on from a checkpoint of moeapps 0.1: its routers keep the defaults of then."""

from torch import nn

from moeapps.core.experts import GatedFactoredExpertMLP
from moeapps.core.layer import MoE
from moeapps.core.routers import Router
from moeapps.core.routers.self_scoring import AutonomyRouter

__all__ = ["as_in_0_1"]


def as_in_0_1(network: nn.Module) -> None:
    """Give the routers of a network that was built from a checkpoint of 0.1 the defaults of then.

    Parameters
    ----------
    network : Module
        A network as its arguments made it, before its weights are loaded. It is changed.
    """
    for module in list(network.modules()):
        if isinstance(module, Router):
            for name, value in module.defaults_of_0_1.items():
                setattr(module, name, value)
    for layer in network.modules():
        if not (isinstance(layer, MoE) and isinstance(layer.router, AutonomyRouter)):
            continue
        if isinstance(layer.experts, GatedFactoredExpertMLP):
            layer.experts = layer.router.default_experts(layer.experts.hidden_dim).to(layer.experts.down)
