"""Mowst: mixture of weak and strong experts on graphs."""

from moeapps.graph.conditional import Activation, predict_nodes
from moeapps.graph.confidence import Confidence
from moeapps.graph.data import GraphDataModule, load_cora
from moeapps.graph.datasets import PublicGraphData
from moeapps.graph.dispersion import entropy_dispersion, variance_dispersion
from moeapps.graph.edges import Edges, Neighborhood
from moeapps.graph.gnn_classifier import GNNClassifier
from moeapps.graph.mixing import joint_loss, separate_loss
from moeapps.graph.module import MowstModule
from moeapps.graph.mowst import Mowst, MowstOutput
from moeapps.graph.mowst_classifier import MowstClassifier
from moeapps.graph.networks import make_network
from moeapps.graph.node_module import GNNModule
from moeapps.graph.thresholds import choose_threshold

__all__ = [
    "Activation",
    "Confidence",
    "Edges",
    "GNNClassifier",
    "GNNModule",
    "GraphDataModule",
    "Mowst",
    "MowstClassifier",
    "MowstModule",
    "MowstOutput",
    "Neighborhood",
    "PublicGraphData",
    "choose_threshold",
    "entropy_dispersion",
    "joint_loss",
    "load_cora",
    "make_network",
    "predict_nodes",
    "separate_loss",
    "variance_dispersion",
]
