"""Prequential evaluation: every instance is predicted before it is learned. Scores, curves, plots."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from river.base import Regressor

from moeapps.core.checks import check_sizes
from moeapps.core.errors import ConfigError
from moeapps.core.tabledata.frames import is_table
from moeapps.stream.drift_report import BATCH, AlarmWindows
from moeapps.stream.estimator import StreamEstimator
from moeapps.stream.io.delay import Arrival, LateLabels, PendingLabels, learn_late, votes_of
from moeapps.stream.pairs import Stream, pairs_of
from moeapps.stream.scores import ClassScores, NumberScores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PrequentialResult", "plot_prequential", "prequential"]

CHUNK = BATCH
"""Instances per call of ``test_then_train``; the result does not depend on it."""


@dataclass
class PrequentialResult:
    """Result of a prequential evaluation.

    Attributes
    ----------
    scores : dict[str, float]
        Accuracy, kappa, kappa-M and kappa-T; or MAE, RMSE and R2.
    curve : DataFrame
        One row per window: ``instance``, ``windowed``, ``total``, ``seconds``, ``bytes`` of the learned arrays,
        and for a DriftMoE the mean weight of each expert in the window: ``expert 0``, ... or, of experts of several
        kinds, ``expert tree 0``, ... .
    drift_events : DataFrame
        ``drift_events_`` of the model, where it has them.
    n : int
        Instances evaluated.
    seconds : float
        Time spent in the model.
    drift_report : DataFrame
        Which features moved at the last 100 alarms, see :func:`drift_report`; made when it is asked for. Empty where
        the model has no ``drift_events_``.
    """

    scores: dict[str, float]
    curve: pd.DataFrame
    drift_events: pd.DataFrame
    n: int
    seconds: float
    windows: AlarmWindows | None = field(default=None, repr=False, compare=False)

    @cached_property
    def drift_report(self) -> pd.DataFrame:
        """Which features moved when an alarm came."""
        return (self.windows or AlarmWindows()).report()

    @property
    def instances_per_second(self) -> float:
        """Instances predicted and learned in a second."""
        return self.n / self.seconds if self.seconds > 0 else float("inf")


def prequential(
    model: Any,
    stream: Stream | LateLabels,
    *,
    n: int | None = None,
    window: int = 1000,
    delay: int = 0,
    drift_window: int = 200,
    progress: bool = False,
) -> PrequentialResult:
    """Test a model on every instance before it learns it.

    An instance that the model leaves out (``on_bad="skip"``: it has a bad value, or no target) is not scored.

    Parameters
    ----------
    model : object
        A model of this package, or any river classifier or regressor.
    stream : Iterable[tuple[dict[Any, Any], Any]] or tuple[DataFrame, Any] or LateLabels
        Pairs of features and target, or a frame and its targets. Of :class:`LateLabels` a prediction is scored, and its
        instance learned, when the label arrives.
    n : int, optional
        Largest number of instances; the whole stream when None.
    window : int, default 1000
        Instances per row of the curve and in the windowed score.
    delay : int, default 0
        Number of instances by which labels are late; each is learned with its own features when it arrives.
    drift_window : int, default 200
        Instances before and after an alarm that the result's ``drift_report`` compares.
    progress : bool, default False
        Whether to show a progress bar.

    Raises
    ------
    ConfigError
        If an argument is impossible.
    DataError
        If the stream has neither form, or the model refuses an instance.

    Examples
    --------
    >>> from moeapps.stream import DriftMoEClassifier, prequential, synthetic_stream
    >>> found = prequential(DriftMoEClassifier(seed=1), synthetic_stream("sea_abrupt", n=3000), window=1000)
    >>> found.scores["accuracy"] > 0.8, len(found.curve)
    (True, 3)
    """
    check_sizes(window=window, drift_window=drift_window)
    if isinstance(delay, bool) or not isinstance(delay, int) or delay < 0:
        raise ConfigError(f"delay must be a whole number of at least 0, got {delay!r}")
    if delay and isinstance(stream, LateLabels):
        raise ConfigError(f"delay must be 0 for a stream of LateLabels, which has delays of its own, got {delay!r}")
    if n is not None:
        check_sizes(n=n)
    numbers = isinstance(model, Regressor)
    scores: ClassScores | NumberScores = NumberScores(window) if numbers else ClassScores(window)
    rows: list[dict[str, float]] = []
    before = np.zeros(0)
    seconds = 0.0
    bar = _bar(_length(stream) if n is None else n) if progress else None
    instances: Iterator[Any]
    learner: _Direct | _Delayed | _Late
    if isinstance(stream, LateLabels):
        instances, learner = stream.arrivals(n), _Late(model, stream.high + 1)
    else:
        instances, learner = islice(pairs_of(stream), n), _Delayed(model, delay) if delay else _Direct(model)
    windows = AlarmWindows(drift_window, model.n_seen_) if isinstance(model, StreamEstimator) else None
    done = 0
    while batch := list(islice(instances, min(CHUNK, window - done % window))):
        start = time.perf_counter()
        scored = learner.step(batch)
        seconds += time.perf_counter() - start
        for truth, prediction in scored:
            scores.update(truth, prediction)
        done += len(scored)
        if windows is not None:
            windows.update(learner.learned, model.drift_events_)
        if bar is not None:
            bar.advance(bar.task_ids[0], len(scored))
        if scored and done % window == 0:
            rows.append({"instance": done, "windowed": scores.windowed, "total": scores.total, "seconds": seconds})
            if isinstance(model, StreamEstimator):
                rows[-1]["bytes"] = model.nbytes_
                now = model.activation_
                before = np.concatenate([before, np.zeros(len(now) - len(before))])
                share = now - before
                share = share / max(share.sum(), 1e-12)
                rows[-1].update(zip(model._expert_columns, share.tolist(), strict=True))
                before = now
    if bar is not None:
        bar.stop()
    if windows is not None:
        windows.finish()
    events = getattr(model, "drift_events_", pd.DataFrame(columns=["instance", "expert", "event"]))
    return PrequentialResult(scores.as_dict(), pd.DataFrame(rows), events, done, seconds, windows)


class _Direct:
    """Every label is known at once."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.learned: list[tuple[dict[Any, Any], Any]] = []
        """What the last step has learned."""

    def step(self, batch: list[tuple[dict[Any, Any], Any]]) -> list[tuple[Any, Any]]:
        """Targets and predictions that can be scored."""
        self.learned = batch
        targets = [y for _, y in batch]
        if isinstance(self.model, StreamEstimator):
            predictions, refused = self.model.test_then_train([x for x, _ in batch], targets)
            for error in refused.values():
                if self.model.on_bad != "skip":
                    raise error
            if refused:
                self.learned = [pair for i, pair in enumerate(batch) if i not in refused]
            pairs = enumerate(zip(targets, predictions, strict=True))
            return [pair for i, pair in pairs if i not in refused]
        predictions = []
        for x, y in batch:
            predictions.append(self.model.predict_one(x))
            self.model.learn_one(x, y)
        return list(zip(targets, predictions, strict=True))


class _Delayed:
    """Every label comes ``delay`` instances late."""

    def __init__(self, model: Any, delay: int) -> None:
        self.model, self.delay = model, delay
        self.learned: list[tuple[dict[Any, Any], Any]] = []
        self.waiting: deque[tuple[dict[Any, Any], Any, Any] | None] = deque()

    def step(self, batch: list[tuple[dict[Any, Any], Any]]) -> list[tuple[Any, Any]]:
        """Targets and predictions that can be scored."""
        scored, self.learned = [], []
        for x, y in batch:
            if self._leaves_out(x, y):
                self.waiting.append(None)
            else:
                scored.append((y, self.model.predict_one(x)))
                self.waiting.append((x, y, votes_of(self.model, x)))
            if len(self.waiting) > self.delay and (then := self.waiting.popleft()) is not None:
                self.learned.append(then[:2])
                learn_late(self.model, *then)
        return scored

    def _leaves_out(self, x: dict[Any, Any], y: Any) -> bool:
        """Whether an instance is skipped; one that the model refuses is an error now, as those at the end are too."""
        error = self.model.why_left_out(x, y) if isinstance(self.model, StreamEstimator) else None
        if error is None:
            return False
        if self.model.on_bad != "skip":
            raise error
        self.model.test_then_train([x], [y])  # which counts it
        return True


class _Late:
    """Features and labels arrive apart."""

    def __init__(self, model: Any, capacity: int) -> None:
        self.waiting = PendingLabels(model, capacity)
        self.learned: list[tuple[dict[Any, Any], Any]] = []

    def step(self, batch: list[Arrival]) -> list[tuple[Any, Any]]:
        """Targets and predictions that can be scored."""
        scored, self.learned = [], []
        for key, x, y in batch:
            if x is not None:
                self.waiting.predict(key, x)
            elif found := self.waiting.get(key):
                self.waiting.label(key, y)
                self.learned.append((found[0], y))
                scored.append((y, found[1]))
        return scored


def _length(stream: Any) -> int | None:
    """Number of instances, where it is known before they come."""
    if isinstance(stream, LateLabels):
        return _length(stream.stream)
    rows = stream[0] if isinstance(stream, tuple) and is_table(stream[0]) else stream
    return len(rows) if hasattr(rows, "__len__") else None


def _bar(total: int | None) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(TextColumn("instances"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar.add_task("instances", total=total)
    bar.start()
    return bar


def plot_prequential(
    results: dict[str, PrequentialResult], drifts: Iterable[int] = (), title: str = "", score: str = "accuracy"
) -> "Figure":
    """Windowed score over time, with the experts' shares and drift marks of the last result that has experts.

    Parameters
    ----------
    results : dict[str, PrequentialResult]
        Results by model name.
    drifts : Iterable[int], default ()
        Known positions of drifts, dashed.
    title : str, default ""
        Title of the figure.
    score : str, default "accuracy"
        Name of the windowed score.

    Returns
    -------
    Figure
        Save it with ``figure.savefig(path)``.
    """
    from moeapps.core.plots import new_figure  # matplotlib takes a second, which a running stream need not wait for

    shown = [result for result in results.values() if _expert_columns(result)]
    rows = 2 if shown else 1
    figure = new_figure(width=9.0, height=3.2 * rows)
    figure.clear()
    panels = figure.subplots(rows, 1, sharex=True, squeeze=False, height_ratios=[3, 2][:rows])[:, 0]
    for name, result in results.items():
        total = result.scores.get("accuracy", result.scores.get("mae"))
        panels[0].plot(result.curve["instance"], result.curve["windowed"], label=f"{name} ({total:.4f})", linewidth=1.2)
    for position in drifts:
        for panel in panels:
            panel.axvline(position, color="black", linestyle="--", linewidth=0.8)
    panels[0].set(ylabel=f"{score}, window", title=title)
    panels[0].grid(alpha=0.3)
    if shown:
        _draw_experts(panels[1], shown[-1])
        events = shown[-1].drift_events
        renewed = events[events["event"] == "renewed"]["instance"]
        low, high = panels[0].get_ylim()
        low -= 0.08 * (high - low)
        panels[0].set_ylim(low, high)
        height = np.full(len(renewed), low + 0.03 * (high - low))
        panels[0].plot(renewed, height, "|", color="tab:red", markersize=8, label="an expert was replaced")
    (handles, labels), (more, kinds) = (panel.get_legend_handles_labels() for panel in (panels[0], panels[-1]))
    if shown:
        handles, labels = handles + more, labels + kinds
    figure.legend(handles, labels, loc="outside lower center", ncols=len(kinds) or 2, frameon=False, fontsize=9)
    panels[-1].set_xlabel("instance")
    return figure


def _expert_columns(result: PrequentialResult) -> list[str]:
    return [str(name) for name in result.curve if str(name).startswith("expert ")]


def _draw_experts(panel: Any, result: PrequentialResult) -> None:
    names = _expert_columns(result)
    shares = result.curve[names].fillna(0.0).to_numpy().T
    colors, labels, width = [f"C{i % 10}" for i in range(len(names))], [""] * len(names), 0.0
    kinds = [name.split(" ")[1] for name in names]
    if not kinds[0].isdecimal():  # experts of several kinds: one color each, with lines between experts
        places = {kind: place for place, kind in enumerate(dict.fromkeys(kinds))}
        colors, width = [f"C{places[kind]}" for kind in kinds], 0.4
        labels = ["" if kind in kinds[:i] else kind for i, kind in enumerate(kinds)]
    panel.stackplot(
        result.curve["instance"], shares, labels=labels, colors=colors, alpha=0.8, linewidth=width, edgecolor="white"
    )
    panel.set(ylabel="share of each expert", ylim=(0, 1))
