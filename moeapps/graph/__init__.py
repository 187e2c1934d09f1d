"""Mowst: mixture of weak and strong experts on graphs."""

from moeapps.graph.confidence import Confidence
from moeapps.graph.data import GraphDataModule, PlanetoidData, load_cora
from moeapps.graph.dispersion import entropy_dispersion, variance_dispersion
from moeapps.graph.estimator import GNNClassifier, MowstClassifier
from moeapps.graph.module import MowstModule
from moeapps.graph.mowst import Mowst, MowstOutput, joint_loss, separate_loss
from moeapps.graph.node_module import GNNModule

__all__ = [
    "Confidence",
    "GNNClassifier",
    "GNNModule",
    "GraphDataModule",
    "Mowst",
    "MowstClassifier",
    "MowstModule",
    "MowstOutput",
    "PlanetoidData",
    "entropy_dispersion",
    "joint_loss",
    "load_cora",
    "separate_loss",
    "variance_dispersion",
]
