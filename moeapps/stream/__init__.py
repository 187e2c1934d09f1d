"""Streams that change: DriftMoE, compiled pools of Hoeffding trees, prequential evaluation, sources and sinks."""

from moeapps.stream.classifier import DriftMoEClassifier
from moeapps.stream.compiled.pool import HoeffdingPool
from moeapps.stream.datasets import SYNTHETIC_STREAMS, SyntheticStream, electricity, synthetic_stream
from moeapps.stream.evaluate import PrequentialResult, plot_prequential, prequential
from moeapps.stream.io.delay import PendingLabels, RecentIds
from moeapps.stream.io.events import Event, Source
from moeapps.stream.io.sinks import CSVSink, LinesSink, Sink, open_sink
from moeapps.stream.io.sources import CSVSource, FrameSource, LinesSource, ParquetSource, open_source
from moeapps.stream.regressor import DriftMoERegressor
from moeapps.stream.router import StreamRouter
from moeapps.stream.run import StreamCheckpoint, StreamRun

__all__ = [
    "SYNTHETIC_STREAMS",
    "CSVSink",
    "CSVSource",
    "DriftMoEClassifier",
    "DriftMoERegressor",
    "Event",
    "FrameSource",
    "HoeffdingPool",
    "LinesSink",
    "LinesSource",
    "ParquetSource",
    "PendingLabels",
    "PrequentialResult",
    "RecentIds",
    "Sink",
    "Source",
    "StreamCheckpoint",
    "StreamRouter",
    "StreamRun",
    "SyntheticStream",
    "electricity",
    "open_sink",
    "open_source",
    "plot_prequential",
    "prequential",
    "synthetic_stream",
]
