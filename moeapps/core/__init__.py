"""Gating, dispatch, experts, and the bases that the task packages stand on."""

from importlib import import_module
from typing import TYPE_CHECKING

from moeapps.moved import warn_deprecated

if TYPE_CHECKING:
    from moeapps.core.auxiliary import MoELosses as MoELosses
    from moeapps.core.auxiliary import collect_losses as collect_losses
    from moeapps.core.auxiliary import update_routers as update_routers
    from moeapps.core.estimator import LightningEstimator as LightningEstimator
    from moeapps.core.experts import ExpertList as ExpertList
    from moeapps.core.experts import ExpertMLP as ExpertMLP
    from moeapps.core.experts import Experts as Experts
    from moeapps.core.experts import FactoredExpertMLP as FactoredExpertMLP
    from moeapps.core.experts import FeedForward as FeedForward
    from moeapps.core.experts import GatedFactoredExpertMLP as GatedFactoredExpertMLP
    from moeapps.core.experts import HeterogeneousExperts as HeterogeneousExperts
    from moeapps.core.gates import MultiGate as MultiGate
    from moeapps.core.gates import mix_experts as mix_experts
    from moeapps.core.growth.moeify import MoEifyReport as MoEifyReport
    from moeapps.core.growth.moeify import moeify as moeify
    from moeapps.core.growth.saved import load_moeified as load_moeified
    from moeapps.core.growth.saved import save_moeified as save_moeified
    from moeapps.core.layer import MoE as MoE
    from moeapps.core.layer import RoutedLayer as RoutedLayer
    from moeapps.core.losses import consistency_loss as consistency_loss
    from moeapps.core.losses import entropy_loss as entropy_loss
    from moeapps.core.losses import importance_loss as importance_loss
    from moeapps.core.losses import load_balance_loss as load_balance_loss
    from moeapps.core.losses import localized_balance_loss as localized_balance_loss
    from moeapps.core.losses import mixture_loss as mixture_loss
    from moeapps.core.losses import mutual_information as mutual_information
    from moeapps.core.losses import parameter_penalty_loss as parameter_penalty_loss
    from moeapps.core.losses import router_z_loss as router_z_loss
    from moeapps.core.module import MoEModule as MoEModule
    from moeapps.core.routers import AutonomyRouter as AutonomyRouter
    from moeapps.core.routers import AvgKRouter as AvgKRouter
    from moeapps.core.routers import BilevelRouter as BilevelRouter
    from moeapps.core.routers import ExpertChoiceRouter as ExpertChoiceRouter
    from moeapps.core.routers import HashRouter as HashRouter
    from moeapps.core.routers import NoisyTopKRouter as NoisyTopKRouter
    from moeapps.core.routers import NullExpertsRouter as NullExpertsRouter
    from moeapps.core.routers import Router as Router
    from moeapps.core.routers import SharedExpertsRouter as SharedExpertsRouter
    from moeapps.core.routers import SMoEDropoutRouter as SMoEDropoutRouter
    from moeapps.core.routers import SoftRouter as SoftRouter
    from moeapps.core.routers import ThorRouter as ThorRouter
    from moeapps.core.routers import TopKRouter as TopKRouter
    from moeapps.core.routers import TopPRouter as TopPRouter
    from moeapps.core.routers import make_router as make_router
    from moeapps.core.routing import Routing as Routing
    from moeapps.core.saving import load as load
    from moeapps.core.statistics import RoutingMonitor as RoutingMonitor
    from moeapps.core.statistics import RoutingStatistics as RoutingStatistics
    from moeapps.core.tabledata.drift import DataCheck as DataCheck
    from moeapps.core.tabledata.drift import compare_tables as compare_tables
    from moeapps.core.tabledata.scoring import predict_file as predict_file
    from moeapps.core.tuning.freezing import freeze_except as freeze_except
    from moeapps.core.tuning.low_rank import lora_experts as lora_experts
    from moeapps.core.tuning.low_rank import merge_lora as merge_lora
    from moeapps.core.tuning.relevance import relevant_experts as relevant_experts

_LAZY = {
    "AutonomyRouter": "routers",
    "AvgKRouter": "routers",
    "BilevelRouter": "routers",
    "DataCheck": "tabledata.drift",
    "ExpertChoiceRouter": "routers",
    "ExpertList": "experts",
    "ExpertMLP": "experts",
    "Experts": "experts",
    "FactoredExpertMLP": "experts",
    "FeedForward": "experts",
    "GatedFactoredExpertMLP": "experts",
    "HashRouter": "routers",
    "HeterogeneousExperts": "experts",
    "LightningEstimator": "estimator",
    "MoE": "layer",
    "MoELosses": "auxiliary",
    "MoEModule": "module",
    "MoEifyReport": "growth.moeify",
    "MultiGate": "gates",
    "NoisyTopKRouter": "routers",
    "NullExpertsRouter": "routers",
    "RoutedLayer": "layer",
    "Router": "routers",
    "Routing": "routing",
    "RoutingMonitor": "statistics",
    "RoutingStatistics": "statistics",
    "SMoEDropoutRouter": "routers",
    "SharedExpertsRouter": "routers",
    "SoftRouter": "routers",
    "ThorRouter": "routers",
    "TopKRouter": "routers",
    "TopPRouter": "routers",
    "collect_losses": "auxiliary",
    "compare_tables": "tabledata.drift",
    "consistency_loss": "losses",
    "entropy_loss": "losses",
    "freeze_except": "tuning.freezing",
    "importance_loss": "losses",
    "load": "saving",
    "load_balance_loss": "losses",
    "localized_balance_loss": "losses",
    "load_moeified": "growth.saved",
    "lora_experts": "tuning.low_rank",
    "make_router": "routers",
    "merge_lora": "tuning.low_rank",
    "mix_experts": "gates",
    "mixture_loss": "losses",
    "moeify": "growth.moeify",
    "mutual_information": "losses",
    "parameter_penalty_loss": "losses",
    "predict_file": "tabledata.scoring",
    "relevant_experts": "tuning.relevance",
    "router_z_loss": "losses",
    "save_moeified": "growth.saved",
    "update_routers": "auxiliary",
}

__all__ = [
    "AutonomyRouter",
    "AvgKRouter",
    "BilevelRouter",
    "DataCheck",
    "ExpertChoiceRouter",
    "ExpertList",
    "ExpertMLP",
    "Experts",
    "FactoredExpertMLP",
    "FeedForward",
    "GatedFactoredExpertMLP",
    "HashRouter",
    "HeterogeneousExperts",
    "LightningEstimator",
    "MoE",
    "MoELosses",
    "MoEModule",
    "MoEifyReport",
    "MultiGate",
    "NoisyTopKRouter",
    "NullExpertsRouter",
    "RoutedLayer",
    "Router",
    "Routing",
    "RoutingMonitor",
    "RoutingStatistics",
    "SMoEDropoutRouter",
    "SharedExpertsRouter",
    "SoftRouter",
    "ThorRouter",
    "TopKRouter",
    "TopPRouter",
    "collect_losses",
    "compare_tables",
    "consistency_loss",
    "entropy_loss",
    "freeze_except",
    "importance_loss",
    "load",
    "load_balance_loss",
    "load_moeified",
    "localized_balance_loss",
    "lora_experts",
    "make_router",
    "merge_lora",
    "mix_experts",
    "mixture_loss",
    "moeify",
    "mutual_information",
    "parameter_penalty_loss",
    "predict_file",
    "relevant_experts",
    "router_z_loss",
    "save_moeified",
    "update_routers",
]


_RENAMED = {"Routed": "RoutedLayer"}
"""Public names of 0.1: those of today."""


def __getattr__(name: str) -> object:
    if name in _RENAMED:
        new = _RENAMED[name]
        warn_deprecated(f"moeapps.core.{name} is deprecated: use moeapps.core.{new}")
        name = new
    if name in _LAZY:
        return getattr(import_module(f"moeapps.core.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'moeapps.core' has no attribute {name!r}")
