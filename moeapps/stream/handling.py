"""What a stream run does with an event: predict it, learn it, keep it for its label, or reject it.

1. Its values become numbers, text and bools (:mod:`~moeapps.stream.io.values`); what cannot is rejected.
2. Events with features and a label are collected, and learned in one compiled call. Everything else waits until those
   before it have been learned, so the order of events and not the size of the batches decides.
3. Its id is remembered once it was used: an event that was rejected may come again, corrected.
"""

import datetime
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from moeapps.core.errors import DataError
from moeapps.core.labels import plain
from moeapps.core.tabledata.cells import CellKind
from moeapps.stream.alarms import RECENT, DriftAlarm, ErrorWatch, OnDrift
from moeapps.stream.estimator import StreamEstimator
from moeapps.stream.field_check import FieldCheck
from moeapps.stream.io.delay import PendingLabels, RecentIds, learn_late
from moeapps.stream.io.events import Event, Source
from moeapps.stream.io.sinks import Sink
from moeapps.stream.io.values import event_key, finite_json, is_empty, plain_fields, plain_label, retyped, storable
from moeapps.stream.named_metrics import NamedMetrics
from moeapps.stream.scores import ClassScores, NumberScores

log = logging.getLogger("moeapps.stream")

__all__ = ["Counts", "EventHandling", "token_of"]


@dataclass
class Counts:
    """Numbers of events by outcome."""

    events: int = 0
    learned: int = 0
    rejected: int = 0
    repeated: int = 0
    unlabeled: int = 0


@dataclass(slots=True)
class _Pending:
    """An event that has been read and is not in the model yet.

    Parameters
    ----------
    event : Event
        The event.
    raw_key : Any
        Its id, as it came.
    token : str or None
        What is remembered of its id once it is learned.
    reason : str or None
        Why it is rejected, if it is.
    """

    event: Event
    raw_key: Any = None
    token: str | None = None
    reason: str | None = None


class EventHandling:
    """Mixed into :class:`~moeapps.stream.run.StreamRun`: one event after the other."""

    model: StreamEstimator
    source: Source
    target: str
    types: dict[str, CellKind]
    id_field: str | None
    drop: tuple[str, ...]
    keep: tuple[str, ...]
    time_field: str | None
    notes: list[str]
    on_drift: OnDrift | None
    alarms: Sink | None
    metrics: Sink | None
    predictions: Sink | None
    rejects: Sink | None
    window: int
    counts: Counts
    scores: ClassScores | NumberScores
    named: NamedMetrics
    watch_errors: ErrorWatch
    waiting: PendingLabels
    ids: RecentIds
    position: Any
    reasons: Counter[str]
    _activation: list[float]
    _fields: FieldCheck | None
    _time: Any
    _ahead: int
    _stopping: bool
    _retyped: dict[str, CellKind]
    _missing: frozenset[str]
    _no_labels: frozenset[str]

    def _work(self, events: Iterable[Event]) -> None:
        rows: list[dict[Any, Any]] = []
        labels: list[Any] = []
        queue: list[_Pending] = []
        tokens: set[str] = set()

        def learn() -> None:
            self._learn(rows, labels, queue)
            tokens.clear()

        for event in events:
            if self._stopping:
                break
            if self._fields is not None:
                self._check_fields(event)
            self.counts.events += 1
            self.position = event.position
            try:
                fields, label, raw_key, key = self._read(event)
            except DataError as error:
                queue.append(_Pending(event, reason=str(error)))
                continue
            token = None if key is None else token_of(key, label is not None)
            if token is not None and tokens and (token in tokens or token in self.ids):
                # whether it is a repetition depends on whether the first one is accepted, and on how many ids that are
                # accepted in between push it out of the window
                learn()
            if token is not None and token in self.ids:
                self.counts.repeated += 1
                continue
            late = key is not None and label is not None and is_empty(fields)
            if label is not None and not late:
                rows.append(fields)
                labels.append(label)
                queue.append(_Pending(event, raw_key, token))
                if token is not None:
                    tokens.add(token)
                continue
            learn()
            pending = _Pending(event, raw_key, token)
            if late:
                self._late_label(pending, key, label)
            else:
                self._predict(pending, key, fields)
        learn()

    def _check_fields(self, event: Event) -> None:
        """Look for misspelled names in the first events, before the event is handled."""
        assert self._fields is not None
        self.notes += self._fields.see(event.fields)
        if self._fields.done:
            self._fields = None

    def _read(self, event: Event) -> tuple[dict[Any, Any], Any, Any, str | None]:
        """Features, label, id as it came and as it is compared.

        Raises
        ------
        DataError
            If there is a value that cannot be used, or nothing to predict from.
        """
        if event.fields is None:
            raise DataError(event.error or "unreadable")
        fields = {
            name: None if isinstance(value, str) and value in self._missing and name != self.id_field else value
            for name, value in event.fields.items()
        } if self._missing else event.fields  # fmt: skip
        if self.drop:
            fields = {name: value for name, value in fields.items() if name not in self.drop}
        if self._retyped:
            fields = retyped(fields, self._retyped)
        fields = plain_fields(fields, (self.target, self.id_field))
        label = plain_label(fields.pop(self.target, None), self._no_labels)
        raw_key = fields.pop(self.id_field, None) if self.id_field is not None else None
        key = event_key(raw_key)
        if is_empty(fields):
            if label is None:
                raise DataError("it has neither features nor a label")
            if self.id_field is not None and key is None:
                raise DataError(
                    f"it has a label, but neither features nor an {self.id_field!r} whose label it could be"
                )
        return fields, label, raw_key, key

    def _learn(self, rows: list[dict[Any, Any]], labels: list[Any], queue: list[_Pending]) -> None:
        """Learn the rows that were collected, and then count everything in the queue in its order."""
        if not queue:
            return
        predictions, refused, shares = self._test_then_train(rows, labels)
        self._ahead = len(rows) - len(refused)
        place = -1
        for pending in queue:
            if pending.reason is None:
                place += 1
                pending.reason = str(refused[place]) if place in refused else None
            if pending.reason is not None:
                self._reject(pending.event, pending.reason)
                continue
            if pending.token is not None:
                self.ids.add(pending.token)
                self.waiting.discard(_key_of(pending.token))
            self._ahead -= 1
            self._count(labels[place], predictions[place], pending.event, shares[place] if shares else None)
            self._write_prediction(pending, predictions[place], labels[place])
        for waiting in (rows, labels, queue):
            waiting.clear()

    def _test_then_train(
        self, rows: list[dict[Any, Any]], labels: list[Any]
    ) -> tuple[list[Any], dict[int, DataError], list[dict[Any, float] | None]]:
        """Predictions, refusals, and probabilities where a metric needs them; those are asked for one row at a time."""
        if not self.named.needs_probabilities or not rows:
            return (*(self.model.test_then_train(rows, labels) if rows else ([], {})), [])
        predictions: list[Any] = []
        refused: dict[int, DataError] = {}
        shares: list[dict[Any, float] | None] = []
        for place, (row, label) in enumerate(zip(rows, labels, strict=True)):
            try:
                shares.append(self.model.predict_proba_one(row))
            except DataError:  # learning says why
                shares.append(None)
            (prediction,), wrong = self.model.test_then_train([row], [label])
            predictions.append(prediction)
            if wrong:
                refused[place] = wrong[0]
        return predictions, refused, shares

    def _predict(self, pending: _Pending, key: str | None, fields: dict[Any, Any]) -> None:
        try:
            if key is not None:
                fields = storable(fields, self.model.on_bad == "impute")
                prediction = self.waiting.predict(key, fields)
            else:
                prediction = self.model.predict_one(fields)
        except DataError as error:
            self._reject(pending.event, str(error))
            return
        self.counts.unlabeled += 1
        if pending.token is not None:
            self.ids.add(pending.token)
        self._write_prediction(pending, prediction, None)

    def _late_label(self, pending: _Pending, key: str | None, label: Any) -> None:
        found = self.waiting.get(key)
        if found is None:
            self.waiting.unknown += 1
            self._reject(pending.event, f"a label for {pending.raw_key!r}, for which no features are waiting")
            return
        fields, prediction = found
        probabilities = self.waiting.probabilities(key)
        learned = self.model.n_seen_
        try:
            learn_late(self.model, fields, label, self.waiting.votes(key))
        except DataError as error:
            self._reject(pending.event, str(error))
            return
        self.waiting.discard(key)
        if self.model.n_seen_ == learned:  # on_bad="skip"
            self._reject(pending.event, str(self.model.why_left_out(fields, label)))
            return
        if pending.token is not None:
            self.ids.add(pending.token)
        self._count(label, prediction, pending.event, probabilities)

    def _count(self, label: Any, prediction: Any, event: Event, probabilities: dict[Any, float] | None = None) -> None:
        self.counts.learned += 1
        if self.time_field is not None and event.fields is not None:
            self._time = self._time_of(event.fields.get(self.time_field), self._time)
        before = self.scores.n
        self.scores.update(label, prediction)
        self.named.update(label, prediction, probabilities)
        if self.scores.n > before:
            mean = self.watch_errors.update(self.scores.last_error(1))
            if mean is not None:
                self._alarm(mean, event)
        if self.metrics is not None and self.scores.n > before and self.scores.n % self.window == 0:
            self.metrics.write(self._record())

    def _alarm(self, before: float, event: Event) -> None:
        events = self.model.drift_events_
        learned = events["instance"] <= self.model.n_seen_ - self._ahead
        metric = "error rate" if self.scores.COUNTS_HITS else "mean absolute error"
        alarm = DriftAlarm(
            self.watch_errors.count, self.scores.n, event.where, self._time, metric, before,
            self.scores.last_error(RECENT), int((learned & (events["event"] == "renewed")).sum()),
        )  # fmt: skip
        if self.alarms is not None:
            self.alarms.write(alarm.as_dict())
        if self.on_drift is not None:
            try:
                self.on_drift(alarm)
            except Exception:  # whatever it does, the run goes on
                log.exception("on_drift failed at alarm %d", alarm.number)

    def _record(self) -> dict[str, Any]:
        now = self.model.activation_.tolist()
        before = [*self._activation, *[0.0] * (len(now) - len(self._activation))]
        shares = [new - old for new, old in zip(now, before, strict=True)]
        total = math.fsum(shares) or 1.0
        events = self.model.drift_events_["event"]
        self._activation = now
        return {
            "instance": self.scores.n,
            **({} if self.time_field is None else {"time": self._time}),
            "windowed": self.scores.windowed,
            "total": self.scores.total,
            "rejected": self.counts.rejected,
            "drifts": self.watch_errors.count,
            "warnings": int((events == "warning").sum()),
            "renewed": int((events == "renewed").sum()),
            **{f"{name} windowed": value for name, value in self.named.windowed().items()},
            **{f"{name} total": value for name, value in self.named.as_dict().items()},
            **{name: share / total for name, share in zip(self.model._expert_columns, shares, strict=True)},
        }

    def _write_prediction(self, pending: _Pending, prediction: Any, label: Any) -> None:
        if self.predictions is not None:
            record = {"event": pending.event.where, "id": plain(pending.raw_key), "prediction": plain(prediction)}
            fields = pending.event.fields or {}
            kept = {name: finite_json(fields.get(name)) for name in self.keep}
            self.predictions.write({**record, "target": label, **kept})

    def _time_of(self, value: Any, before: Any) -> Any:
        """The time of an event for the metrics: ISO 8601 where it is a time, else as it is; the last one if missing."""
        if value is None or value == "":
            return before
        if isinstance(value, float | int) and self._kind_of_time() == "time":
            return datetime.datetime.fromtimestamp(value, datetime.UTC).isoformat()
        return finite_json(value)

    def _kind_of_time(self) -> str | None:
        kinds = getattr(getattr(self.source, "kinds", None), "kinds", {})
        return self.types.get(self.time_field or "", kinds.get(self.time_field))

    def _reject(self, event: Event, reason: str) -> None:
        self.counts.rejected += 1
        short = re.sub(r"'[^']*' (is|has|holds)", r"... \1", reason)
        short = re.sub(r"(UTF-8|ISO 8601)|-?\d+(\.\d+)?(e[-+]?\d+)?", lambda found: found[1] or "N", short)[:200]
        if short in self.reasons or len(self.reasons) < 100:
            self.reasons[short] += 1
        if self.rejects is not None:
            content = event.raw if event.fields is None else event.fields
            self.rejects.write({"event": event.where, "reason": reason, "content": content})


def token_of(key: str, labeled: bool) -> str:
    """What is remembered of an id: whether it was predicted and whether it was learned are two things."""
    return f"{'learned' if labeled else 'predicted'} {key}"


def _key_of(token: str) -> str:
    return token.partition(" ")[2]
