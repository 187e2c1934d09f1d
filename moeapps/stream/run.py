"""``moeapps stream run``: test, then train, on an endless stream; after a kill at any moment it resumes exactly.

Model, position of the source, scores and sizes of the output files stand in one checkpoint, written atomically. After a
crash the source goes back to the position, the files are cut back to their sizes, and every event is learned
exactly once: the result is that of a run that was never stopped, bit for bit.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from moeapps import registry
from moeapps.core.checks import check_sizes
from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.core.labels import plain
from moeapps.core.saving import SaveMixin, arguments_to_json, load, registered_path
from moeapps.stream.estimator import StreamEstimator
from moeapps.stream.io.delay import PendingLabels, RecentIds
from moeapps.stream.io.events import Event, Source
from moeapps.stream.io.sinks import Sink
from moeapps.stream.scores import ClassScores, NumberScores

__all__ = ["CHECKPOINT", "StreamCheckpoint", "StreamRun"]

CHECKPOINT = "stream.safetensors"
"""Name of the file in the checkpoint folder."""


class StreamCheckpoint(SaveMixin):
    """A model and where its run stands, in one file.

    ``moeapps.load("folder/stream.safetensors").model`` is the model.

    Parameters
    ----------
    model : StreamEstimator
        The model.
    run : dict[str, Any]
        Where the run stands, as JSON values.
    """

    def __init__(self, model: StreamEstimator, run: dict[str, Any]) -> None:
        self.model, self.run = model, run

    def saved_arguments(self) -> dict[str, Any]:
        """None of its own."""
        return {}

    def saved_state(self) -> dict[str, Any]:
        """Class, arguments and state of the model, and the run."""
        model = {
            "class": registered_path(type(self.model)),
            "arguments": arguments_to_json(self.model.saved_arguments()),
            "state": self.model.saved_state(),
        }
        return {"model": model, "run": self.run}

    def saved_tensors(self) -> dict[str, Tensor]:
        """Those of the model."""
        return self.model.saved_tensors()

    @classmethod
    def from_saved(
        cls, arguments: dict[str, Any], state: dict[str, Any], tensors: dict[str, Tensor], source: Path
    ) -> Self:
        """Build the model again."""
        saved = state["model"]
        kind = registry.resolve(saved["class"])
        if not issubclass(kind, StreamEstimator):
            raise FileFormatError(f"{source} holds a {saved['class']}, which is not a model of streams")
        return cls(kind.from_saved(saved["arguments"], saved["state"], tensors, source), state["run"])


@dataclass
class Counts:
    """Numbers of events by outcome."""

    events: int = 0
    learned: int = 0
    rejected: int = 0
    repeated: int = 0
    unlabeled: int = 0


@dataclass
class StreamRun:
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
        Folder of the checkpoint; none is written when None.
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
        Events handled at once; the result does not depend on it.
    window : int, default 1000
        Instances of a window.
    id_field : str, optional
        Field that identifies an event: a repeated event is learned once, and an event that has only this field and the
        target is the late label of an earlier one. It is not a feature.
    id_window : int, default 10000
        Number of ids that are remembered.
    pending : int, default 10000
        Largest number of predicted events that wait for their label.
    limit : int, optional
        Events after which the run ends.
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

    def __post_init__(self) -> None:
        check_sizes(every=self.every, batch=self.batch, window=self.window)
        if self.limit is not None:
            check_sizes(limit=self.limit)
        if not self.every_seconds > 0:
            raise ConfigError(f"every_seconds must be above 0, got {self.every_seconds!r}")
        if self.id_field is not None and self.id_field == self.target:
            raise ConfigError(f"the id and the target cannot be the same field, got {self.target!r}")
        numbers = self.model._numbers
        self.scores: ClassScores | NumberScores = NumberScores(self.window) if numbers else ClassScores(self.window)
        self.waiting = PendingLabels(self.model, self.pending)
        self.ids = RecentIds(self.id_window)
        self.position: Any = None
        self._activation: list[float] = []
        self._stopping = False

    @property
    def file(self) -> Path | None:
        """The checkpoint's file."""
        return None if self.checkpoint is None else self.checkpoint / CHECKPOINT

    def stop(self) -> None:
        """End after the present micro-batch; may be called from a signal handler."""
        self._stopping = True

    def resume(self) -> bool:
        """Take over model, position and scores from the checkpoint; False if there is none yet.

        Raises
        ------
        FileFormatError
            If the checkpoint is damaged, or of another target.
        """
        if self.file is None or not self.file.exists():
            return False
        found = load(self.file)
        if not isinstance(found, StreamCheckpoint):
            raise FileFormatError(f"{self.file} is not a checkpoint of a stream")
        run = found.run
        if run["target"] != self.target:
            raise ConfigError(f"{self.file} is of target {run['target']!r}, not {self.target!r}")
        if run["window"] != self.window:
            raise ConfigError(f"{self.file} was made with window {run['window']}, not {self.window}")
        self.model = found.model
        self.waiting.model = found.model
        self.counts = Counts(**run["counts"])
        self.scores.restore(run["scores"])
        self.waiting.restore(run["waiting"])
        self.ids.restore(run["ids"])
        self._activation = run["activation"]
        self.position = run["position"]
        self.source.seek(self.position)
        for name, sink in self._sinks().items():
            sink.resume(run["sizes"].get(name))
        return True

    def save(self) -> None:
        """Write the checkpoint, after everything that was written elsewhere is safe."""
        sizes = {name: sink.flush() for name, sink in self._sinks().items()}
        if self.file is None:
            return
        run = {
            "target": self.target,
            "window": self.window,
            "position": self.position,
            "counts": vars(self.counts),
            "scores": self.scores.state(),
            "waiting": self.waiting.state(),
            "ids": self.ids.state(),
            "activation": self._activation,
            "sizes": sizes,
        }
        StreamCheckpoint(self.model, run).save(self.file)
        committed = getattr(self.source, "committed", None)
        if committed is not None:
            committed(self.position)

    def close(self) -> None:
        """Close the source and the sinks."""
        self.source.close()
        for sink in self._sinks().values():
            sink.close()

    def _sinks(self) -> dict[str, Sink]:
        named = {"metrics": self.metrics, "predictions": self.predictions, "rejects": self.rejects}
        return {name: sink for name, sink in named.items() if sink is not None}

    def run(self, watch: Callable[["StreamRun"], None] = lambda run: None) -> None:
        """Work until the source ends, the limit is reached, or :meth:`stop` was called; then save.

        Parameters
        ----------
        watch : Callable[[StreamRun], None], default lambda run: None
            Called after every micro-batch.
        """
        saved_at, saved_time = self.counts.events, time.monotonic()
        started, first, batches = time.monotonic(), self.counts.events, 0
        while not self._stopping:
            size = min(self.batch, self.window - self.scores.n % self.window)
            if self.limit is not None:
                size = min(size, self.limit - self.counts.events)
                if size <= 0:
                    break
            events = self.source.read(size)
            if not events and not self.source.endless:
                break
            if events:
                self._work(events)
                batches += 1
                self.rate = (self.counts.events - first) / max(time.monotonic() - started, 1e-9)
                if batches == 1:  # which may have had to compile: the rate is that of the others
                    started, first = time.monotonic(), self.counts.events
            watch(self)
            due = self.counts.events - saved_at >= self.every or time.monotonic() - saved_time >= self.every_seconds
            if due and self.counts.events > saved_at:
                self.save()
                saved_at, saved_time = self.counts.events, time.monotonic()
        self.save()

    def _work(self, events: list[Event]) -> None:
        rows: list[dict[Any, Any]] = []
        labels: list[Any] = []
        keys: list[tuple[Event, Any]] = []
        for event in events:
            self.counts.events += 1
            if event.fields is None:
                self._reject(event, event.error or "unreadable")
                continue
            fields = dict(event.fields)
            label = _label(fields.pop(self.target, None))
            key = fields.pop(self.id_field, None) if self.id_field is not None else None
            if key is not None and not self.ids.add(f"{key} {label is not None} {len(fields) > 0}"):
                self.counts.repeated += 1
                continue
            if label is not None and (fields or key is None):
                rows.append(fields)
                labels.append(label)
                keys.append((event, key))
                continue
            self._learn(rows, labels, keys)
            if label is None:
                self._predict(event, key, fields)
            else:
                self._late_label(event, key, label)
        self._learn(rows, labels, keys)
        self.position = events[-1].position

    def _learn(self, rows: list[dict[Any, Any]], labels: list[Any], keys: list[tuple[Event, Any]]) -> None:
        if not rows:
            return
        predictions, refused = self.model.test_then_train(rows, labels)
        for place, (event, key) in enumerate(keys):
            if place in refused:
                self._reject(event, str(refused[place]))
                continue
            self._count(labels[place], predictions[place])
            self._write_prediction(event, key, predictions[place], labels[place])
        for waiting in (rows, labels, keys):
            waiting.clear()

    def _predict(self, event: Event, key: Any, fields: dict[Any, Any]) -> None:
        self.counts.unlabeled += 1
        try:
            prediction = self.waiting.predict(key, fields) if key is not None else self.model.predict_one(fields)
        except DataError as error:
            self._reject(event, str(error))
            return
        self._write_prediction(event, key, prediction, None)

    def _late_label(self, event: Event, key: Any, label: Any) -> None:
        found = self.waiting.take(key)
        if found is None:
            self._reject(event, f"a label for {key!r}, for which no features are waiting")
            return
        fields, prediction = found
        try:
            self.model.learn_one(fields, label)
        except DataError as error:
            self._reject(event, str(error))
            return
        self._count(label, prediction)

    def _count(self, label: Any, prediction: Any) -> None:
        self.counts.learned += 1
        before = self.scores.n
        self.scores.update(label, prediction)
        if self.metrics is not None and self.scores.n > before and self.scores.n % self.window == 0:
            self.metrics.write(self._record())

    def _record(self) -> dict[str, Any]:
        now = self.model.activation_.tolist()
        before = [*self._activation, *[0.0] * (len(now) - len(self._activation))]
        shares = [new - old for new, old in zip(now, before, strict=True)]
        total = math.fsum(shares) or 1.0
        events = self.model.drift_events_["event"]
        self._activation = now
        return {
            "instance": self.scores.n,
            "windowed": self.scores.windowed,
            "total": self.scores.total,
            "rejected": self.counts.rejected,
            "warnings": int((events == "warning").sum()),
            "renewed": int((events == "renewed").sum()),
            **{f"expert {e}": share / total for e, share in enumerate(shares)},
        }

    def _write_prediction(self, event: Event, key: Any, prediction: Any, label: Any) -> None:
        if self.predictions is not None:
            self.predictions.write({"event": event.where, "id": key, "prediction": plain(prediction), "target": label})

    def _reject(self, event: Event, reason: str) -> None:
        self.counts.rejected += 1
        if self.rejects is not None:
            content = event.raw if event.fields is None else event.fields
            self.rejects.write({"event": event.where, "reason": reason, "content": content})


def _label(value: Any) -> Any:
    return None if value is None or (isinstance(value, float) and math.isnan(value)) else value
