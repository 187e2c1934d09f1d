"""Mowst: mixture of weak and strong experts on graphs."""

from moeapps.graph import quiet_import  # noqa: F401 - before anything else imports PyG
from moeapps.graph.conditional import PredictionCost, predict_nodes
from moeapps.graph.confidence import Confidence
from moeapps.graph.data import GraphDataModule
from moeapps.graph.datasets import PublicGraphData, load_cora
from moeapps.graph.dispersion import entropy_dispersion, variance_dispersion
from moeapps.graph.edges import Edges, Neighborhood
from moeapps.graph.folders import open_graph, write_edges, write_graph
from moeapps.graph.gnn_classifier import GNNClassifier
from moeapps.graph.graph_classifier import MowstGraphClassifier
from moeapps.graph.graph_module import GraphExpertsModule
from moeapps.graph.graph_sets import EgoNetData, GraphSetData, ego_nets
from moeapps.graph.link_data import LinkData
from moeapps.graph.link_module import LinkModule
from moeapps.graph.link_predictor import MowstLinkPredictor
from moeapps.graph.link_table_data import LinkTableData
from moeapps.graph.mixing import joint_loss, separate_loss
from moeapps.graph.module import MowstModule
from moeapps.graph.mowst import Mowst, MowstOutput
from moeapps.graph.mowst_classifier import MowstClassifier
from moeapps.graph.networks import make_network
from moeapps.graph.node_module import GNNModule
from moeapps.graph.table_data import GraphTableData
from moeapps.graph.thresholds import choose_threshold

__all__ = [
    "Confidence",
    "Edges",
    "EgoNetData",
    "GNNClassifier",
    "GNNModule",
    "GraphDataModule",
    "GraphExpertsModule",
    "GraphSetData",
    "GraphTableData",
    "LinkData",
    "LinkModule",
    "LinkTableData",
    "Mowst",
    "MowstClassifier",
    "MowstGraphClassifier",
    "MowstLinkPredictor",
    "MowstModule",
    "MowstOutput",
    "Neighborhood",
    "PredictionCost",
    "PublicGraphData",
    "choose_threshold",
    "ego_nets",
    "entropy_dispersion",
    "joint_loss",
    "load_cora",
    "make_network",
    "open_graph",
    "predict_nodes",
    "separate_loss",
    "variance_dispersion",
    "write_edges",
    "write_graph",
]


def __getattr__(name: str) -> object:
    if name.startswith("__"):  # the import system asks for __path__
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from moeapps.graph.deprecated import old_name

    return old_name(__name__, name)
