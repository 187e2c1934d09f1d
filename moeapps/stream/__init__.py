"""Streams that change: DriftMoE, compiled pools of Hoeffding trees, prequential evaluation, sources and sinks.

Importing it loads numba, river and pandas, and no torch: :class:`StreamRouter`, a torch module, is imported at first
use.
"""

from typing import TYPE_CHECKING

from moeapps.stream.alarms import DriftAlarm, ErrorWatch
from moeapps.stream.classifier import DriftMoEClassifier
from moeapps.stream.compiled.pool import HoeffdingPool
from moeapps.stream.datasets import PUBLIC_STREAMS, electricity, public_stream
from moeapps.stream.drift_report import drift_report
from moeapps.stream.evaluate import PrequentialResult, plot_prequential, prequential
from moeapps.stream.generators import (
    RECURRING_STREAMS,
    SYNTHETIC_STREAMS,
    SyntheticStream,
    recurring_stream,
    synthetic_stream,
    with_label_noise,
)
from moeapps.stream.group_scores import GroupScores, group_scores
from moeapps.stream.hooks import AlarmHook
from moeapps.stream.io.delay import Arrival, LateLabels, PendingLabels, RecentIds
from moeapps.stream.io.events import Event, Source
from moeapps.stream.io.sinks import CSVSink, LinesSink, Sink, open_sink
from moeapps.stream.io.sources import CSVSource, FollowSource, FrameSource, LinesSource, ParquetSource, open_source
from moeapps.stream.named_metrics import NamedMetrics
from moeapps.stream.regressor import DriftMoERegressor
from moeapps.stream.run import StreamCheckpoint, StreamRun, run_stream
from moeapps.stream.updating import update

if TYPE_CHECKING:
    from moeapps.stream.router import StreamRouter as StreamRouter

__all__ = [
    "PUBLIC_STREAMS",
    "RECURRING_STREAMS",
    "SYNTHETIC_STREAMS",
    "AlarmHook",
    "Arrival",
    "CSVSink",
    "CSVSource",
    "DriftAlarm",
    "DriftMoEClassifier",
    "DriftMoERegressor",
    "ErrorWatch",
    "Event",
    "FollowSource",
    "FrameSource",
    "GroupScores",
    "HoeffdingPool",
    "LateLabels",
    "LinesSink",
    "LinesSource",
    "NamedMetrics",
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
    "drift_report",
    "electricity",
    "group_scores",
    "open_sink",
    "open_source",
    "plot_prequential",
    "prequential",
    "public_stream",
    "recurring_stream",
    "run_stream",
    "synthetic_stream",
    "update",
    "with_label_noise",
]


def __getattr__(name: str) -> object:
    if name == "StreamRouter":
        from moeapps.stream.router import StreamRouter

        return StreamRouter
    raise AttributeError(f"module 'moeapps.stream' has no attribute {name!r}")
