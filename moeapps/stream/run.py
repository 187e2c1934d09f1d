"""``moeapps stream run``: test, then train, on an endless stream; after a kill at any moment it resumes exactly.

Model, position of the source, scores and sizes of the output files stand in one checkpoint, written atomically. After a
crash the source goes back to the position, the files are cut back to their sizes, and every event is learned
exactly once: the result is that of a run that was never stopped, bit for bit.

How an event is handled is in :mod:`moeapps.stream.handling`, how a run goes on in :mod:`moeapps.stream.resumption`.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from moeapps.core.checks import check_sizes
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.tabledata.cells import CellKind
from moeapps.stream.alarms import ErrorWatch, OnDrift
from moeapps.stream.checkpoint import CHECKPOINT, StreamCheckpoint
from moeapps.stream.estimator import StreamEstimator
from moeapps.stream.exposition import Latencies
from moeapps.stream.field_check import FieldCheck
from moeapps.stream.handling import Counts, EventHandling
from moeapps.stream.io.delay import PendingLabels, RecentIds
from moeapps.stream.io.events import Source
from moeapps.stream.io.sinks import Sink, open_sink
from moeapps.stream.io.sources import FrameSource, open_source
from moeapps.stream.label_check import LabelCheck
from moeapps.stream.named_metrics import NamedMetrics
from moeapps.stream.resumption import Resumption
from moeapps.stream.scores import ClassScores, NumberScores

__all__ = ["CHECKPOINT", "StreamCheckpoint", "StreamRun", "run_stream"]

_QUICK, _SLOW = 0.05, 0.25
"""Seconds of a batch below which the next one is larger, and above which it is smaller: a signal waits for a batch."""


@dataclass
class StreamRun(Resumption, EventHandling):
    """One run over a source.

    Parameters
    ----------
    model : StreamEstimator
        The model.
    source : Source
        Where events come from.
    target : str
        Field that holds the label. An event without it is predicted only.
    checkpoint : Path, optional
        Folder of the checkpoint; none is written when None. One run at a time may use it.
    every : int, default 10000
        Events between two checkpoints.
    every_seconds : float, default 30.0
        Seconds between two checkpoints, whichever comes first.
    metrics : Sink, optional
        Takes a record per window: instance, windowed and total score, rejects, drifts, shares of the experts.
    predictions : Sink, optional
        Takes a record per predicted event.
    rejects : Sink, optional
        Takes events that could not be read or learned, with the reason.
    batch : int, default 256
        Events handled at once, at most; the result does not depend on it.
    window : int, default 1000
        Instances of a window.
    id_field : str, optional
        Field that identifies an event: a repeated event is learned once, and an event that has only this field and the
        target, all others being missing, is the late label of an earlier one. It is not a feature.
    id_window : int, default 10000
        Number of ids that are remembered.
    pending : int, default 10000
        Largest number of predicted events that wait for their label.
    limit : int, optional
        Events after which the run ends.
    types : dict[str, CellKind]
        Kinds of fields, by name, where the source does not say, or says another.
    missing : tuple of str
        Texts that mean a missing value, besides those that the source knows.
    settings : dict[str, Any]
        What else a resumed run has to be asked for again, as JSON values by name.
    allow_change : bool, default False
        Whether a resumed run may have another source, which it then reads from its beginning, or other settings of
        :data:`~moeapps.stream.checkpoint.CHANGEABLE`, or new output files in place of those that are gone.
    replayed : bool, default False
        Whether a pipe sends again what it had sent before the checkpoint, which is then skipped.
    drop : tuple of str
        Fields that are no features. The id is none anyway.
    keep : tuple of str
        Fields that are written beside each prediction. They are features unless they are dropped as well.
    time_field : str, optional
        Field with the time of an event. The metrics have a column ``time``, that of the last event of the window.
    alarms : Sink, optional
        Takes every :class:`~moeapps.stream.alarms.DriftAlarm`.
    on_drift : callable, optional
        Called with every :class:`~moeapps.stream.alarms.DriftAlarm`, in the thread of the run. What it raises is
        logged, and the run goes on.
    named_metrics : tuple of str
        Further metrics of river, by name, see :class:`~moeapps.stream.named_metrics.NamedMetrics`. ROCAUC, LogLoss and
        CrossEntropy need probabilities: events are then handled one by one.
    """

    model: StreamEstimator
    source: Source
    target: str
    checkpoint: Path | None = None
    every: int = 10_000
    every_seconds: float = 30.0
    metrics: Sink | None = None
    predictions: Sink | None = None
    rejects: Sink | None = None
    batch: int = 256
    window: int = 1000
    id_field: str | None = None
    id_window: int = 10_000
    pending: int = 10_000
    limit: int | None = None
    counts: Counts = field(default_factory=Counts)
    rate: float = 0.0
    types: dict[str, CellKind] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    allow_change: bool = False
    replayed: bool = False
    drop: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    time_field: str | None = None
    alarms: Sink | None = None
    on_drift: OnDrift | None = None
    named_metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_sizes(
            every=self.every, batch=self.batch, window=self.window, pending=self.pending, id_window=self.id_window
        )
        if self.limit is not None:
            check_sizes(limit=self.limit)
        if not self.every_seconds > 0:
            raise ConfigError(f"every_seconds must be above 0, got {self.every_seconds!r}")
        if self.id_field is not None and self.id_field == self.target:
            raise ConfigError(f"the id and the target cannot be the same field, got {self.target!r}")
        for name in (self.target, self.id_field):
            if name in self.drop:
                raise ConfigError(f"--drop {name}: it is the {'target' if name == self.target else 'id'}, no feature")
        numbers = self.model._numbers
        self.scores: ClassScores | NumberScores = NumberScores(self.window) if numbers else ClassScores(self.window)
        self.named = NamedMetrics(self.named_metrics, self.window, numbers)
        self.watch_errors = ErrorWatch(numbers)
        self.waiting = PendingLabels(self.model, self.pending, self.named.needs_probabilities)
        self.ids = RecentIds(self.id_window)
        self.position: Any = None
        self.restarted: str | None = None
        """Why the source does not go on where it was though the run was resumed, if it does not."""
        self.reasons: Counter[str] = Counter()
        """Why events were rejected since the run began or was resumed, without what differs from event to event."""
        self.notes: list[str] = []
        """What was noticed and does not stop the run."""
        self._fields: FieldCheck | None = None
        self._time: Any = None
        self._ahead = 0  # events of a compiled call that the model has learned and that are not counted yet
        self.latencies = Latencies()
        self.observe: Callable[[], None] = lambda: None
        """Called at most once a second in the thread of the run."""
        self.still_owned: Callable[[], None] = lambda: None
        """Called before every checkpoint; raises if the files belong to another process by now."""
        self.saved_at: float | None = None
        """When the last checkpoint was written, in seconds since 1970."""
        self._activation: list[float] = []
        self._stopping = False
        self._ready = self._registered = self._fresh = False
        self._pace: _Pace | None = None
        self._locks = ExitStack()
        self._declare()

    @property
    def unfinished(self) -> str | None:
        """The end of the source that was not read, since it has no newline yet; None if there is none."""
        return getattr(self.source, "unfinished", None)

    def stop(self) -> None:
        """End after the present event or compiled call; may be called from a signal handler."""
        self._stopping = True

    def close(self) -> None:
        """Close the source and the sinks."""
        self.source.close()
        for sink in self._sinks().values():
            sink.close()
        self._release()

    def _release(self) -> None:
        self._locks.close()
        self._ready = False

    # --- the loop

    def run(self, watch: Callable[["StreamRun"], None] = lambda run: None) -> None:
        """Work until the source ends, the limit is reached, or :meth:`stop` was called; then save.

        Parameters
        ----------
        watch : Callable[[StreamRun], None], default lambda run: None
            Called after every micro-batch.
        """
        self.begin()
        try:
            while self.step():
                watch(self)
            self.finish()
        finally:
            self._release()

    def begin(self) -> None:
        """Take the right to write the files; afterwards :meth:`step`, as often as wanted, and :meth:`finish`."""
        self._prepare()
        try:
            if not self._registered:
                self._register()
        except BaseException:
            self._release()
            raise
        self._fresh = self.counts.events == 0 and not any(sink.size for sink in self._file_sinks().values())
        self._fields = self._field_check()
        self._pace = _Pace(self)

    def step(self) -> bool:
        """Read and handle a micro-batch, and save if it is time; False where the run ends.

        Raises
        ------
        DataError
            If the source cannot be read. What was learned before is saved.
        ConfigError
            If a field is misspelled. The files that the run has written are then removed.
        """
        assert self._pace is not None
        if self._stopping or (size := self._pace.size(self)) <= 0:
            return False
        try:
            events = self.source.read(size)
        except DataError:
            self.save()  # what was learned before is safe
            raise
        if not events and not self.source.endless:
            return False
        if events:
            begun = time.monotonic()
            with self._outputs_removed():
                self._work(events)
            self._pace.note(self, time.monotonic() - begun)
            for sink in self._file_sinks().values():
                sink.push()
            self.latencies.add(time.monotonic() - begun, len(events))
        if self._pace.looks(bool(events)):
            self.observe()
        self.save_if_due()
        return True

    def save_if_due(self) -> None:
        """Save if there are as many events, or it is as long ago, as the run was told."""
        assert self._pace is not None
        if self._pace.due(self):
            self.save()
            self._pace.saved(self)

    def finish(self) -> None:
        """Tell which fields never came, and save.

        Raises
        ------
        ConfigError
            As :meth:`step`.
        """
        if self._fields is not None and not self._stopping:
            with self._outputs_removed():
                self.notes += self._fields.finish()
        self.save()

    def leave(self) -> None:
        """Save, for another process to go on.

        Where nothing was learned and it is not sure that the named fields exist, nothing is kept: the next process may
        be told other names.
        """
        self.stop()
        if self._fresh and self._fields is not None and not self.counts.learned:
            self._remove_outputs()
        else:
            self.finish()

    @contextmanager
    def _outputs_removed(self) -> Iterator[None]:
        """After a misspelled name: the same command with the right one finds nothing in its way."""
        try:
            yield
        except ConfigError:
            if self._fresh:
                self._remove_outputs()
            raise

    def _field_check(self) -> FieldCheck | None:
        """A check of the first events for misspelled names, where nothing was learned yet."""
        if self.counts.learned:
            return None
        named = {
            "target": (self.target,), "id": (self.id_field,) if self.id_field else (), "drop": self.drop,
            "keep": self.keep, "time": (self.time_field,) if self.time_field else (),
        }  # fmt: skip
        late, new = self.id_field is not None, self.model.n_seen_ == 0
        labels = LabelCheck(self.target, self.named.positive, classes=new and self.target not in self.types)
        return FieldCheck(named, not late and new, late, None if self.model._numbers else labels)

    def _remove_outputs(self) -> None:
        for sink in self._file_sinks().values():
            sink.resume(0)
            sink.path.unlink(missing_ok=True)


class _Pace:
    """How large the next micro-batch is, how fast the run is, and when it saves."""

    def __init__(self, run: StreamRun) -> None:
        self._saved_at, self._saved_time = run.counts.events, time.monotonic()
        self._started, self._first = time.monotonic(), run.counts.events
        self._batches, self._observed, self._most = 0, 0.0, run.batch

    def size(self, run: StreamRun) -> int:
        """Events of the next micro-batch, at most; 0 at the limit."""
        size = min(self._most, run.window - run.scores.n % run.window)
        return size if run.limit is None else min(size, run.limit - run.counts.events)

    def note(self, run: StreamRun, seconds: float) -> None:
        """Take notice of a micro-batch."""
        if seconds > _SLOW:
            self._most = max(1, self._most // 2)
        elif seconds < _QUICK:
            self._most = min(run.batch, 2 * self._most)
        self._batches += 1
        run.rate = (run.counts.events - self._first) / max(time.monotonic() - self._started, 1e-9)
        if self._batches == 1:  # which may have had to compile: the rate is that of the others
            self._started, self._first = time.monotonic(), run.counts.events

    def looks(self, worked: bool) -> bool:
        """Whether the run is to be observed now: once a second, and after the first micro-batch."""
        if time.monotonic() - self._observed < 1.0 and not (worked and self._batches == 1):
            return False
        self._observed = time.monotonic()
        return True

    def due(self, run: StreamRun) -> bool:
        """Whether to save now."""
        events, seconds = run.counts.events - self._saved_at, time.monotonic() - self._saved_time
        return events > 0 and (events >= run.every or seconds >= run.every_seconds)

    def saved(self, run: StreamRun) -> None:
        """Take notice of a checkpoint."""
        self._saved_at, self._saved_time = run.counts.events, time.monotonic()


def run_stream(
    model: StreamEstimator,
    source: str | Path | Source | pd.DataFrame,
    target: str,
    *,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    metrics: str | None = None,
    predictions: str | None = None,
    rejects: str | None = None,
    alarms: str | None = None,
    follow: bool = False,
    **settings: Any,
) -> StreamRun:
    """Predict every event of a source, then learn it, until the source ends: ``moeapps stream run`` in Python.

    Parameters
    ----------
    model : StreamEstimator
        The model; it learns.
    source : str or Path or Source or DataFrame
        What :func:`open_source` takes, or an open source, or a frame.
    target : str
        Field that holds the label.
    checkpoint : str or Path, optional
        Folder of the checkpoint.
    resume : bool, default False
        Whether to go on from the checkpoint, if there is one; the model is then that of the result.
    metrics, predictions, rejects, alarms : str, optional
        What :func:`open_sink` takes.
    follow : bool, default False
        Whether to wait at the end of a file for what is added to it.
    settings
        Arguments of :class:`StreamRun`, such as ``id_field``, ``window``, ``drop`` and ``on_drift``.

    Returns
    -------
    StreamRun
        The run, closed, with its ``model``, ``counts``, ``scores`` and ``named`` metrics.

    Examples
    --------
    >>> from moeapps.stream import DriftMoEClassifier
    >>> frame = pd.DataFrame({"a": [float(i % 5) for i in range(300)], "y": ["up", "down", "up"] * 100})
    >>> run = run_stream(DriftMoEClassifier(seed=0, n_experts=2), frame, "y", on_drift=print)
    >>> run.counts.learned
    300
    """
    if isinstance(source, pd.DataFrame):
        opened: Source = FrameSource(source)
    else:
        opened = open_source(str(source), follow=follow) if isinstance(source, str | Path) else source
    folder = None if checkpoint is None else Path(checkpoint)
    run = StreamRun(model, opened, target, folder, **settings)
    try:
        for name, path in {
            "metrics": metrics,
            "predictions": predictions,
            "rejects": rejects,
            "alarms": alarms,
        }.items():
            setattr(run, name, None if path is None else open_sink(path, name))
        if resume:
            run.resume()
        run.run()
    finally:
        run.close()
    return run
