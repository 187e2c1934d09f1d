"""Streams: DriftMoE beside river's learners, each of which predicts an event before it learns it."""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from river import compose, dummy, ensemble, forest, linear_model, naive_bayes, preprocessing, stats, tree

from moeapps.comparison.reading import check_named_columns
from moeapps.comparison.task import Candidate, Measured, Metric, Task, chosen_candidates, named_or_nearest
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.labels import plain
from moeapps.core.tabledata.cells import shown
from moeapps.core.tabledata.frames import as_frame, is_table
from moeapps.stream.classifier import DriftMoEClassifier
from moeapps.stream.datasets import PUBLIC_STREAMS, public_stream
from moeapps.stream.estimator import StreamEstimator
from moeapps.stream.io.sources import open_source
from moeapps.stream.pairs import pairs_of
from moeapps.stream.regressor import DriftMoERegressor
from moeapps.stream.scores import ClassScores, NumberScores

__all__ = ["StreamTask", "stream_task"]

Pair = tuple[dict[Any, Any], Any]

WARM = 20
"""Events that a throwaway model learns first, so that compilation is not part of the seconds."""

CHUNK = 500
"""Events that a model gets at a time; the result does not depend on it."""

METRICS = {
    "classification": {"accuracy": Metric("accuracy"), "kappa": Metric("kappa")},
    "regression": {"mae": Metric("MAE", smaller=True), "r2": Metric("R2")},
}
"""By the names that the scores have."""


def stream_task(
    data: Any,
    target: Any = None,
    *,
    ignore: Sequence[str] = (),
    root: str | Path | None = None,
    max_events: int | None = 50_000,
    metric: Any = None,
    models: Any = None,
    splits: int = 10,
    seed: int = 0,
) -> "StreamTask":
    """Compare on a stream.

    Parameters
    ----------
    data : iterable of (dict, label) pairs, frame, path, or name of a public stream
        The events, in their order.
    target : str or array, optional
        Field to be predicted, of a file or a frame; or the targets of a frame.
    ignore : sequence of str, default=()
        Fields that models do not see.
    root : path, optional
        Folder with the files of a public stream.
    max_events : int or None, default=50,000
        Events that are used, the first ones.
    metric : str or sequence of str, optional
        "accuracy" or "kappa"; "mae" or "r2" where the target is a number.
    models
        As in :func:`moeapps.compare`; own models are river's.
    splits : int, default=10
        Number of blocks of consecutive events.
    seed : int, default=0
        Seed of the models.

    Raises
    ------
    ConfigError, DataError
        If an argument is impossible, or the events cannot be read.
    """
    told: list[str] = []
    name = "the stream"
    if isinstance(data, str) and data in PUBLIC_STREAMS:
        name, pairs = data, pairs_of(public_stream(data, root))
    elif isinstance(data, str | os.PathLike):
        name, pairs = Path(data).name, _of_file(str(data), target, told)
    elif is_table(data):
        frame = as_frame(data, "data")
        if isinstance(target, str):
            check_named_columns(frame.columns, {"target": [target], "ignore": ignore}, "the table")
            frame, target = frame.drop(columns=[target]), frame[target]
        if target is None:
            raise ConfigError("target is missing: the name of the column to be predicted, or an array of targets")
        pairs = pairs_of((frame, target))
    else:
        pairs = pairs_of(data)
    events = list(islice(pairs, None if max_events is None else max_events + 1))
    if max_events is not None and len(events) > max_events:
        events = events[:max_events]
        told.insert(0, f"The first {max_events:,} events (max_events).")
    if len(events) < 2 * splits:
        raise DataError(f"{name} has {len(events)} events, too few for {splits} blocks: at least {2 * splits}")
    if ignore:
        seen = {str(field): None for fields, _ in events[:1000] for field in fields}
        check_named_columns(seen, {"ignore": ignore}, name)
        events = [({key: value for key, value in x.items() if key not in ignore}, y) for x, y in events]
    return StreamTask(events, name, told, metric, models, splits, seed)


class StreamTask(Task):
    """Events in their order, evaluated prequentially. The blocks share one model that goes on to learn.

    Parameters
    ----------
    events : list of (dict, target) pairs
        All events.
    data, told, metric, models, splits, seed
        As in :func:`stream_task`.
    """

    split_name = "block"
    fits = False

    def __init__(
        self, events: list[Pair], data: str, told: list[str], metric: Any, models: Any, splits: int, seed: int
    ) -> None:
        self.task = "regression" if _are_numbers([y for _, y in events]) else "classification"
        self.kind = f"{self.task} of a stream, predicted before it is learned"
        self.blocks = [list(block) for block in _blocks(events, splits)]
        metrics = METRICS[self.task]
        wanted = [metric] if isinstance(metric, str) else list(metric or [])
        names = dict.fromkeys([*(named_or_nearest("metric", name, list(metrics)) for name in wanted), *metrics])
        self.names = list(names)
        labels = {plain(y) for _, y in events} if self.task == "classification" else ()
        what = f"labels: {len(labels)}" if labels else "the target is a number"
        first = (
            f"{len(events):,} events, {len(events[0][0])} fields, {what}; {splits} blocks of {len(self.blocks[0]):,}."
        )
        self._models: dict[str, Any] = {}
        self._answers: dict[str, list[list[tuple[Any, Any]]]] = {}
        super().__init__(
            data, [first, *told], [metrics[name] for name in names],
            chosen_candidates(_candidates(self.task), models, _fresh), splits, 0.0, seed,
        )  # fmt: skip
        self._scores = lru_cache(maxsize=None)(self._scores_of)

    def measure(self, candidate: Candidate, split: int) -> Measured:
        """Predict and learn the next block, event by event."""
        if split == 0:
            self._scores.cache_clear()
            self._warm_up(candidate)
            self._models[candidate.name], self._answers[candidate.name] = candidate.make(self.seed), []
        model, answers = self._models[candidate.name], []
        block = self.blocks[split]
        start = time.perf_counter()
        for first in range(0, len(block), CHUNK):
            answers += _test_then_train(model, block[first : first + CHUNK])
        seconds = time.perf_counter() - start
        self._answers[candidate.name].append(answers)
        return Measured(self._of(answers), 0.0, seconds, len(block), history=self._history(candidate.name))

    def _history(self, name: str) -> pd.DataFrame:
        """Score of each block, and of everything until then, as the report draws it."""
        first = METRICS[self.task][self.names[0]].name
        ends = np.cumsum([len(block) for block in self.blocks])
        return pd.DataFrame(
            [
                {"instance": ends[i], "windowed": self._of(block)[first], "total": self._scores(name, i + 1)[first]}
                for i, block in enumerate(self._answers[name])
            ]
        )

    def pooled(self, candidate: Candidate, splits: int) -> dict[str, float]:
        """Scores over all events of the blocks: kappa and R2 are no means of those of the blocks."""
        found: dict[str, float] = self._scores(candidate.name, splits)
        return found

    def _scores_of(self, name: str, splits: int) -> dict[str, float]:
        return self._of([answer for block in self._answers[name][:splits] for answer in block])

    def _of(self, answers: Iterable[tuple[Any, Any]]) -> dict[str, float]:
        scores: Any = NumberScores() if self.task == "regression" else ClassScores()
        for truth, prediction in answers:
            scores.update(truth, prediction)
        found = scores.as_dict()
        return {METRICS[self.task][name].name: found[name] for name in self.names}

    def _warm_up(self, candidate: Candidate) -> None:
        model = candidate.make(self.seed)
        if isinstance(model, StreamEstimator):
            _test_then_train(model, self.blocks[0][:WARM])


def _test_then_train(model: Any, events: list[Pair]) -> list[tuple[Any, Any]]:
    """Targets and predictions."""
    targets = [y for _, y in events]
    if isinstance(model, StreamEstimator):
        predictions, refused = model.test_then_train([x for x, _ in events], targets)
        for error in refused.values():
            raise error
        return list(zip(targets, predictions, strict=True))
    answers = []
    for x, y in events:
        answers.append((y, model.predict_one(x)))
        model.learn_one(x, y)
    return answers


def _candidates(task: str) -> list[Candidate]:
    if task == "regression":
        return [
            Candidate("mean so far", lambda seed: dummy.StatisticRegressor(stats.Mean())),
            Candidate("linear regression", lambda seed: _scaled(linear_model.LinearRegression())),
            Candidate("adaptive Hoeffding tree", lambda seed: tree.HoeffdingAdaptiveTreeRegressor(seed=seed)),
            Candidate("DriftMoERegressor", lambda seed: DriftMoERegressor(seed=seed), ours=True),
            Candidate("adaptive random forest", lambda seed: forest.ARFRegressor(seed=seed)),
        ]
    return [
        Candidate("last label again", lambda seed: dummy.NoChangeClassifier()),
        Candidate("Gaussian naive Bayes", lambda seed: naive_bayes.GaussianNB()),
        Candidate("adaptive Hoeffding tree", lambda seed: tree.HoeffdingAdaptiveTreeClassifier(seed=seed)),
        Candidate("DriftMoEClassifier", lambda seed: DriftMoEClassifier(seed=seed), ours=True),
        Candidate(
            "leveraging bagging",
            lambda seed: ensemble.LeveragingBaggingClassifier(tree.HoeffdingTreeClassifier(), seed=seed),
        ),
        Candidate("adaptive random forest", lambda seed: forest.ARFClassifier(seed=seed)),
    ]


def _scaled(model: Any) -> Any:
    return compose.Pipeline(preprocessing.StandardScaler(), model)


def _fresh(model: Any, seed: int) -> Any:
    """A model that has learned nothing, with the settings of this one."""
    if not hasattr(model, "clone"):
        raise ConfigError(f"models of a stream must have river's interface, got {type(model).__name__}")
    return model.clone()


def _of_file(path: str, target: Any, told: list[str]) -> Iterator[Pair]:
    """Events of a CSV, Parquet or NDJSON file; those that cannot be read, or have no label, are left out."""
    if not isinstance(target, str):
        raise ConfigError("target must be the name of the field to be predicted (--target FIELD)")
    source = open_source(path, complete=True)
    left_out, total, fields = 0, 0, dict[str, None]()
    try:
        while batch := source.read(1000):
            for event in batch:
                total += 1
                x = dict(event.fields or {})
                y = x.pop(target, None)
                fields |= dict.fromkeys(event.fields or {})
                if event.error is not None or y is None:
                    left_out += 1
                else:
                    yield x, y
            if left_out == total:
                check_named_columns(fields, {"target": [target]}, Path(path).name)
    finally:
        source.close()
        if left_out:
            told.append(f"{left_out:,} events that are broken or have no {target!r} are left out.")


def _blocks(events: list[Pair], splits: int) -> Iterator[list[Pair]]:
    """Consecutive events in blocks that differ in length by one at most."""
    for rows in np.array_split(np.arange(len(events)), splits):
        yield events[rows[0] : rows[-1] + 1]


def _are_numbers(targets: list[Any]) -> bool:
    """Whether these are numbers to be predicted: some are no whole numbers, or there are more than 100 of them."""
    if any(isinstance(y, bool | str) or not isinstance(y, int | float | np.number) for y in targets):
        return False
    values = np.asarray(targets, dtype=np.float64)
    if np.isnan(values).any():
        raise DataError(f"target: event {shown(int(np.isnan(values).argmax()))} has no target (NaN)")
    return bool((values != np.round(values)).any()) or len(pd.unique(values)) > 100
