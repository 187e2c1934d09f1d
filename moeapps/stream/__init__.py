"""Streams that change: DriftMoE, compiled pools of Hoeffding trees, prequential evaluation, sources and sinks."""

from moeapps.stream.classifier import DriftMoEClassifier
from moeapps.stream.compiled.pool import HoeffdingPool
from moeapps.stream.data import electricity
from moeapps.stream.evaluate import PrequentialResult, plot_prequential, prequential
from moeapps.stream.io.delay import PendingLabels, RecentIds
from moeapps.stream.io.sinks import CSVSink, LinesSink, Sink, open_sink
from moeapps.stream.io.sources import CSVSource, Event, FrameSource, LinesSource, ParquetSource, Source, open_source
from moeapps.stream.regressor import DriftMoERegressor
from moeapps.stream.router import StreamRouter
from moeapps.stream.run import StreamCheckpoint, StreamRun
from moeapps.stream.synthetic import SYNTHETIC_STREAMS, SyntheticStream, synthetic_stream

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
