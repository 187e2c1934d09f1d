"""What moeapps 0.1 wrote goes on as it was, where a router's defaults have changed since.

A router's class says which defaults (``defaults_of_0_1``). Files and checkpoints of today say that they were written
under today's; one that does not is of 0.1. Arguments that it names stay as they are.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from moeapps.core.errors import ConfigError
from moeapps.core.experts import GatedFactoredExpertMLP
from moeapps.core.layer import MoE
from moeapps.core.routers import Router, router_class
from moeapps.core.routers.self_scoring import AutonomyRouter

__all__ = ["DEFAULTS", "DEFAULTS_ENTRY", "arguments_of_0_1", "as_in_0_1"]

DEFAULTS = 2
"""Number of the defaults; those of 0.1 had none."""

DEFAULTS_ENTRY = "moeapps_defaults"
"""Where checkpoints have it; the document of a saved file has it under ``defaults``."""


def arguments_of_0_1(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an estimator that 0.1 saved, with its router's defaults of then written out in ``router_args``.

    Parameters
    ----------
    arguments : mapping
        Constructor arguments; those without a router are returned as they are. A router named in ``options`` (images)
        counts.
    """
    options = arguments.get("options")
    if isinstance(options, Mapping) and "router" in options:
        return {**arguments, "options": arguments_of_0_1(options)}
    try:
        cls = router_class(arguments["router"]) if isinstance(arguments.get("router"), str) else Router
    except ConfigError:  # said where the network is built
        cls = Router
    given = arguments.get("router_args") or {}
    if not cls.defaults_of_0_1 or not isinstance(given, Mapping):
        return dict(arguments)
    return {**arguments, "router_args": {**cls.defaults_of_0_1, **given}}


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
