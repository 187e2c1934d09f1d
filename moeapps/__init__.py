"""Mixture-of-experts models for tables, graphs, data streams, recommendation and images.

Importing this package loads no framework: every public name is resolved when it is first used (PEP 562).

    >>> import moeapps
    >>> moeapps.__version__.count(".")
    2
"""

from importlib import import_module
from typing import TYPE_CHECKING

from moeapps import moved

__version__ = "0.2.0"

moved.install()

if TYPE_CHECKING:
    from moeapps.comparison.compare import compare as compare
    from moeapps.core.saving import load as load
    from moeapps.graph.gnn_classifier import GNNClassifier as GNNClassifier
    from moeapps.graph.graph_classifier import MowstGraphClassifier as MowstGraphClassifier
    from moeapps.graph.link_predictor import MowstLinkPredictor as MowstLinkPredictor
    from moeapps.graph.mowst_classifier import MowstClassifier as MowstClassifier
    from moeapps.recsys.aw_moe_ranker import AWMoERanker as AWMoERanker
    from moeapps.recsys.multi_task_ranker import MultiTaskRanker as MultiTaskRanker
    from moeapps.stream.classifier import DriftMoEClassifier as DriftMoEClassifier
    from moeapps.stream.regressor import DriftMoERegressor as DriftMoERegressor
    from moeapps.tables.classifier import MoEClassifier as MoEClassifier
    from moeapps.tables.mixture.classifier import MixtureClassifier as MixtureClassifier
    from moeapps.tables.mixture.regressor import MixtureRegressor as MixtureRegressor
    from moeapps.tables.regressor import MoERegressor as MoERegressor

_LAZY = {
    "compare": "moeapps.comparison.compare",
    "load": "moeapps.core.saving",
    "MoEClassifier": "moeapps.tables.classifier",
    "MoERegressor": "moeapps.tables.regressor",
    "MixtureClassifier": "moeapps.tables.mixture.classifier",
    "MixtureRegressor": "moeapps.tables.mixture.regressor",
    "MowstClassifier": "moeapps.graph.mowst_classifier",
    "MowstGraphClassifier": "moeapps.graph.graph_classifier",
    "MowstLinkPredictor": "moeapps.graph.link_predictor",
    "GNNClassifier": "moeapps.graph.gnn_classifier",
    "AWMoERanker": "moeapps.recsys.aw_moe_ranker",
    "MultiTaskRanker": "moeapps.recsys.multi_task_ranker",
    "DriftMoEClassifier": "moeapps.stream.classifier",
    "DriftMoERegressor": "moeapps.stream.regressor",
}

__all__ = [
    "AWMoERanker",
    "DriftMoEClassifier",
    "DriftMoERegressor",
    "GNNClassifier",
    "MixtureClassifier",
    "MixtureRegressor",
    "MoEClassifier",
    "MoERegressor",
    "MowstClassifier",
    "MowstGraphClassifier",
    "MowstLinkPredictor",
    "MultiTaskRanker",
    "__version__",
    "compare",
    "load",
]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'moeapps' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
