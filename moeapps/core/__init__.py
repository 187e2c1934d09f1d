"""Gating, dispatch, experts, and the bases that the task packages stand on."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moeapps.core.estimator import LightningEstimator as LightningEstimator
    from moeapps.core.experts import ExpertList as ExpertList
    from moeapps.core.experts import ExpertMLP as ExpertMLP
    from moeapps.core.experts import Experts as Experts
    from moeapps.core.layer import MoE as MoE
    from moeapps.core.layer import Routed as Routed
    from moeapps.core.losses import load_balance_loss as load_balance_loss
    from moeapps.core.losses import router_z_loss as router_z_loss
    from moeapps.core.module import MoEModule as MoEModule
    from moeapps.core.routers import Router as Router
    from moeapps.core.routers import TopKRouter as TopKRouter
    from moeapps.core.routing import Routing as Routing
    from moeapps.core.saving import load as load
    from moeapps.core.statistics import RoutingMonitor as RoutingMonitor
    from moeapps.core.statistics import RoutingStatistics as RoutingStatistics

_LAZY = {
    "ExpertList": "experts",
    "ExpertMLP": "experts",
    "Experts": "experts",
    "LightningEstimator": "estimator",
    "MoE": "layer",
    "MoEModule": "module",
    "Routed": "layer",
    "Router": "routers",
    "Routing": "routing",
    "RoutingMonitor": "statistics",
    "RoutingStatistics": "statistics",
    "TopKRouter": "routers",
    "load": "saving",
    "load_balance_loss": "losses",
    "router_z_loss": "losses",
}

__all__ = [
    "ExpertList",
    "ExpertMLP",
    "Experts",
    "LightningEstimator",
    "MoE",
    "MoEModule",
    "Routed",
    "Router",
    "Routing",
    "RoutingMonitor",
    "RoutingStatistics",
    "TopKRouter",
    "load",
    "load_balance_loss",
    "router_z_loss",
]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(import_module(f"moeapps.core.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'moeapps.core' has no attribute {name!r}")
