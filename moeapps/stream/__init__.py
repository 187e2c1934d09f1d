"""Streams that change: DriftMoE, compiled pools of Hoeffding trees, prequential evaluation, sources and sinks."""

from moeapps.stream.classifier import DriftMoEClassifier
from moeapps.stream.delay import PendingLabels, RecentIds
from moeapps.stream.evaluate import PrequentialResult, plot_prequential, prequential
from moeapps.stream.pool import HoeffdingPool
from moeapps.stream.regressor import DriftMoERegressor
from moeapps.stream.synthetic import SYNTHETIC_STREAMS, SyntheticStream, synthetic_stream

__all__ = [
    "SYNTHETIC_STREAMS",
    "DriftMoEClassifier",
    "DriftMoERegressor",
    "HoeffdingPool",
    "PendingLabels",
    "PrequentialResult",
    "RecentIds",
    "SyntheticStream",
    "plot_prequential",
    "prequential",
    "synthetic_stream",
]
