"""Learning over HTTP as a stream run learns: every row is predicted before it is learned, and labels may come late.

What an id means, how many events may wait and how many ids are remembered is as in :mod:`moeapps.stream.run`.
"""

from typing import Any

import pandas as pd
from river.base import Regressor

from moeapps.core.errors import DataError
from moeapps.core.tabledata.cells import missing_texts
from moeapps.serve.limits import MAX_CELLS
from moeapps.stream.alarms import ErrorWatch
from moeapps.stream.estimator import StreamEstimator
from moeapps.stream.handling import token_of
from moeapps.stream.io.delay import PendingLabels, RecentIds, learn_late
from moeapps.stream.io.values import event_key, storable
from moeapps.stream.scores import ClassScores, NumberScores

__all__ = ["Prequential"]

WINDOW = 1000
"""Rows of the windowed score."""

PENDING = IDS = 10_000
"""Events that may wait for their label, and ids that are remembered; the oldest is forgotten first."""

Request = dict[str, Any]


class Prequential:
    """Scores and waiting events of a model that learns while it serves.

    Parameters
    ----------
    model
        A model with ``predict_one``, ``learn_one`` and ``learn_many``.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.numbers = isinstance(model, Regressor)
        self.missing_labels = missing_texts(getattr(model, "missing_values", None) or ())
        self.scores = NumberScores(WINDOW) if self.numbers else ClassScores(WINDOW)
        self.errors = ErrorWatch(self.numbers)
        self.waiting = PendingLabels(model, PENDING)
        self.ids = RecentIds(IDS)

    # --- requests

    def learn(self, request: Request) -> dict[str, Any]:
        """Predict and learn the rows of a request: all of them, or none.

        Raises
        ------
        DataError
            If the model cannot learn a row, or no event with its id waits for a label.
        """
        rows = request["rows"]
        for position, row in enumerate(rows):
            if isinstance(row["y"], str) and row["y"] in self.missing_labels:
                raise DataError(
                    f"rows[{position}]: y is {row['y']!r}, which means missing: a label must not be missing"
                )
        if all(row.get("x") is None for row in rows):
            learned, repeated = self._learn_late(rows)
        else:
            learned, repeated = self._learn_rows(rows)
        answer = {"learned": learned, "total": int(self.model.n_seen_), "scores": self._scores()}
        return {**answer, "repeated": repeated} if any(row.get("id") is not None for row in rows) else answer

    def remember(self, request: Request) -> None:
        """Predict rows that have an id, and keep their features until their labels come.

        Raises
        ------
        DataError
            If a value can be no id, or no feature of an event that waits.
        """
        keys = [event_key(key) for key in request["ids"]]
        impute = getattr(self.model, "on_bad", "") == "impute"
        kept = [storable(row, impute) for row in request["rows"]]
        for key, row in zip(keys, kept, strict=True):
            if key is not None and token_of(key, True) not in self.ids:
                self.waiting.predict(key, row)

    def _learn_rows(self, rows: list[Request]) -> tuple[int, int]:
        keys, fresh, repeated = [], [], 0
        for row in rows:
            key = event_key(row.get("id"))
            if key is not None and (token_of(key, True) in self.ids or key in keys):
                repeated += 1
                continue
            keys.append(key)
            fresh.append(row)
        names = dict.fromkeys(name for row in fresh for name in row["x"])
        if len(fresh) * len(names) > MAX_CELLS:
            raise DataError(
                f"rows: {len(fresh)} rows with {len(names)} different features make a table of "
                f"{len(fresh) * len(names)} cells, at most {MAX_CELLS} are learned at once: send fewer rows per request"
            )
        if not fresh:
            return 0, repeated
        # as objects: a frame would make floats of whole numbers beside a missing one
        columns = {name: pd.Series([row["x"].get(name) for row in fresh], dtype=object) for name in names}
        frame = pd.DataFrame(columns, index=range(len(fresh)), dtype=object)
        labels = [row["y"] for row in fresh]
        predictions, kept = self._test_then_train(frame, labels, fresh)
        for key, label, prediction, learned in zip(keys, labels, predictions, kept, strict=True):
            if learned:
                self._count(label, prediction)
                if key is not None:
                    self._done(key)
        return sum(kept), repeated

    def _test_then_train(
        self, frame: pd.DataFrame, labels: list[Any], rows: list[Request]
    ) -> tuple[list[Any], list[bool]]:
        """Predictions made before each row was learned, and which rows were: one with ``on_bad="skip"`` skips some.

        Of a model with a way of its own they are made before any of them was learned.
        """
        if isinstance(self.model, StreamEstimator) and type(self.model).learn_many is StreamEstimator.learn_many:
            return self.model.test_then_train_frame(frame, labels)
        predictions = [self.model.predict_one(row["x"]) for row in rows]
        self.model.learn_many(frame, labels)
        return predictions, [True] * len(rows)

    def _learn_late(self, rows: list[Request]) -> tuple[int, int]:
        keys = [event_key(row["id"]) for row in rows]
        late = [
            (key, row["y"]) for key, row in zip(keys, rows, strict=True) if token_of(str(key), True) not in self.ids
        ]
        late = list(dict(reversed(late)).items())[::-1]  # the first label of an id counts
        for key, label in late:
            found = self.waiting.get(key)
            if found is None:
                raise DataError(f"id {key!r}: no event with this id waits for a label")
            if isinstance(self.model, StreamEstimator):  # that the last one is refused must not cost the first ones
                self.model.check_one(found[0], label)
        before = self.model.n_seen_
        for key, label in late:
            x, prediction = self.waiting.get(key)  # type: ignore[misc]
            seen = self.model.n_seen_
            learn_late(self.model, x, label, self.waiting.votes(key))
            if self.model.n_seen_ == seen:  # on_bad="skip"
                self.waiting.discard(key)
                continue
            self._count(label, prediction)
            self._done(str(key))
        return int(self.model.n_seen_ - before), len(rows) - len(late)

    def _done(self, key: str) -> None:
        self.ids.add(token_of(key, True))
        self.waiting.discard(key)

    def _count(self, label: Any, prediction: Any) -> None:
        before = self.scores.n
        self.scores.update(label, prediction)
        if self.scores.n > before:
            self.errors.update(self.scores.last_error(1))

    # --- what others see

    def _scores(self) -> dict[str, Any]:
        finite = {name: value for name, value in self.scores.as_dict().items() if value == value}
        windowed = {"windowed": self.scores.windowed, "window": min(WINDOW, self.scores.n)} if self.scores.n else {}
        return {"scored": self.scores.n, **finite, **windowed}

    def learning(self) -> dict[str, Any]:
        """Numbers for ``/metrics``, see :data:`moeapps.core.exposition.Learning`; None in place of NaN."""
        events = getattr(self.model, "drift_events_", None)
        classes = getattr(self.model, "classes_", None) if not self.numbers and self.model.n_seen_ else []
        scored = self.scores.n > 0
        return {
            "metric": "mae" if self.numbers else "accuracy",
            "total": self.scores.total if scored else None, "windowed": self.scores.windowed if scored else None,
            "window": WINDOW, "scored": self.scores.n, "alarms": self.errors.count,
            "renewed": 0 if events is None else int((events["event"] == "renewed").sum()),
            "learned": int(self.model.n_seen_), "waiting": len(self.waiting),
            "classes": None if self.numbers or classes is None else len(classes),
        }  # fmt: skip

    # --- what a saved model does not have

    def state(self) -> dict[str, Any] | None:
        """Scores, waiting events and ids, as JSON values; None if there is nothing."""
        if not (self.scores.n or len(self.waiting) or self.ids.state()):
            return None
        return {
            "scores": self.scores.state(), "errors": self.errors.state(), "waiting": self.waiting.state(),
            "ids": self.ids.state(),
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state`."""
        self.scores.restore(state["scores"])
        self.errors.restore(state["errors"])
        self.waiting.restore(state["waiting"])
        self.ids.restore(state["ids"])
