"""Streams that change: DriftMoE, compiled pools of Hoeffding trees, prequential evaluation, sources and sinks."""

from moeapps.stream.classifier import DriftMoEClassifier
from moeapps.stream.pool import HoeffdingPool
from moeapps.stream.regressor import DriftMoERegressor
from moeapps.stream.synthetic import SyntheticStream, synthetic_stream

__all__ = ["DriftMoEClassifier", "DriftMoERegressor", "HoeffdingPool", "SyntheticStream", "synthetic_stream"]
