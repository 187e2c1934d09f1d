"""Which features moved when a drift alarm came: windows of instances before and after each alarm, compared.

1. An alarm is a renewal in ``drift_events_``. Alarms of several experts within one window are one alarm.
2. ADWIN reports a drift some time after it has begun. The window before therefore ends where the expert's warning came,
   at most ``window`` instances before the alarm, and ``window`` instances before it where there was no warning since.
   The window after begins at the alarm.
3. Each feature, and the target, gets a two-sample test: Kolmogorov-Smirnov for numbers, chi-squared for categories.
"""

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import chi2_contingency, false_discovery_control, ks_2samp

from moeapps.core.checks import check_sizes
from moeapps.core.errors import DataError

__all__ = ["Alarm", "AlarmWindows", "drift_report"]

COLUMNS = [
    "alarm", "experts", "feature", "kind", "statistic", "p_value", "moved", "direction", "before", "after",
    "missing_before", "missing_after",
]  # fmt: skip

MOST_ALARMS = 100
"""Alarms whose windows are kept; older ones are dropped."""

FEWEST = 20
"""Instances that both windows need; and present values, for a test of a feature."""

BATCH = 256
"""Largest number of instances between two looks at the events."""

RARE = 10
"""A category with fewer instances in both windows together is counted with the other rare ones."""

LEVEL = 0.01
"""False discovery rate within an alarm below which a feature counts as moved."""


@dataclass
class Alarm:
    """The instances around an alarm.

    Attributes
    ----------
    instance : int
        Instances learned when the alarm came.
    experts : list[int]
        Experts that were replaced.
    before, after : DataFrame
        Features in the windows, one row per instance.
    targets_before, targets_after : list
        Their targets.
    """

    instance: int
    experts: list[int]
    before: pd.DataFrame
    after: pd.DataFrame
    targets_before: list[Any]
    targets_after: list[Any]


class AlarmWindows:
    """Collects the windows around alarms while a stream goes by, in bounded memory.

    Parameters
    ----------
    window : int, default 200
        Instances before and after an alarm.
    start : int, default 0
        Instances that the model had learned before the first call of :meth:`update`.
    """

    def __init__(self, window: int = 200, start: int = 0) -> None:
        check_sizes(window=window)
        self.window, self.seen = window, start
        self.alarms: deque[Alarm] = deque(maxlen=MOST_ALARMS)
        self._rows: deque[tuple[dict[Any, Any], Any]] = deque(maxlen=3 * window + BATCH)
        self._open: list[tuple[int, int, list[int]]] = []  # alarm, end of the window before, experts
        self._warned: dict[int, int] = {}
        self._looked = start

    def update(self, learned: Sequence[tuple[dict[Any, Any], Any]], events: pd.DataFrame) -> None:
        """Add instances in the order in which they were learned, at most 256, and the model's events up to now."""
        self._rows.extend(learned)
        self.seen += len(learned)
        for instance, expert, event in events.loc[events["instance"] > self._looked].itertuples(index=False):
            if event == "warning":
                self._warned[expert] = instance
            else:
                self._alarm(int(instance), int(expert))
        self._looked = self.seen
        while self._open and self._open[0][0] + self.window <= self.seen:
            self._close()

    def finish(self) -> None:
        """End of the stream: the windows after the last alarms are shorter."""
        while self._open:
            self._close()

    def _alarm(self, instance: int, expert: int) -> None:
        if self._open and instance < self._open[-1][0] + self.window:
            if expert not in self._open[-1][2]:
                self._open[-1][2].append(expert)
            return
        self._open.append((instance, max(self._warned.get(expert, 0), instance - self.window), [expert]))

    def _close(self) -> None:
        alarm, end, experts = self._open.pop(0)
        first = self.seen - len(self._rows)  # number of the oldest row that is kept
        rows = list(self._rows)
        before = rows[max(end - self.window - first, 0) : max(end - first, 0)]
        after = rows[max(alarm - first, 0) : alarm - first + self.window]
        if min(len(before), len(after)) < FEWEST:
            return
        (xs, ys), (later_xs, later_ys) = (zip(*part, strict=True) for part in (before, after))
        self.alarms.append(
            Alarm(alarm, sorted(experts), pd.DataFrame(xs), pd.DataFrame(later_xs), list(ys), list(later_ys))
        )

    def report(self) -> pd.DataFrame:
        """The comparison, see :func:`drift_report`."""
        parts = [_compare(alarm) for alarm in self.alarms]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)


def drift_report(
    events: pd.DataFrame,
    rows: pd.DataFrame | Iterable[dict[Hashable, Any]],
    targets: Iterable[Any] | None = None,
    *,
    window: int = 200,
) -> pd.DataFrame:
    """Which features moved at each drift alarm of a model.

    :func:`prequential` makes the same report while it runs, as ``drift_report`` of its result.

    Parameters
    ----------
    events : DataFrame
        ``drift_events_`` of the model: ``instance``, ``expert``, ``event``.
    rows : DataFrame or Iterable[dict[Hashable, Any]]
        The instances that the model learned, in their order, from the first on.
    targets : Iterable[Any], optional
        Their targets, to compare them too.
    window : int, default 200
        Instances before and after an alarm. Alarms within one window are one.

    Returns
    -------
    DataFrame
        One row per alarm and feature, for the last 100 alarms, in an alarm the largest statistic first:

        - ``alarm``: instances learned when it came; ``experts``: number of experts that were replaced;
        - ``feature``, missing for the target; ``kind``: "number", "category" or "target";
        - ``statistic``: the largest difference of the distribution functions (numbers), half the sum of the differences
          of shares (categories), or the difference of the shares of missing values where too few are present;
        - ``p_value`` of the two-sample test, and ``moved``: whether it is significant at a false discovery rate of 1 %
          among the features of this alarm;
        - ``direction``: "up" or "down" (the median, or the mean where the medians are equal), ``more 'Ulm'`` (the
          category whose share changed most), "appeared" or "vanished" (values are no longer missing, or are), "" where
          it did not change;
        - ``before``, ``after``: the median, or the share of that category;
        - ``missing_before``, ``missing_after``: shares of missing values.

    Raises
    ------
    DataError
        If ``events`` lacks a column, or there are not as many targets as rows.

    Notes
    -----
    The tests take instances as independent. In a stream with trend or season (Electricity) most features differ between
    any two windows; ``statistic`` then tells more than ``moved``. A drift of the concept alone moves no feature.

    Examples
    --------
    >>> events = pd.DataFrame({"instance": [500], "expert": [3], "event": ["renewed"]})
    >>> rows = pd.DataFrame({"a": [0.0, 1.0] * 500, "b": [0.0, 1.0] * 250 + [5.0, 6.0] * 250})
    >>> drift_report(events, rows)[["alarm", "feature", "statistic", "direction"]].to_numpy().tolist()
    [[500, 'b', 1.0, 'up'], [500, 'a', 0.0, '']]
    """
    if missing := {"instance", "expert", "event"} - set(events.columns):
        raise DataError(f"events has no column {min(missing)!r}, expected drift_events_ of a model")
    records = rows.to_dict("records") if isinstance(rows, pd.DataFrame) else list(rows)
    answers = [None] * len(records) if targets is None else list(targets)
    if len(answers) != len(records):
        raise DataError(f"rows has {len(records)} instances, targets has {len(answers)}")
    events = events[["instance", "expert", "event"]]
    windows = AlarmWindows(window)
    for first in range(0, len(records), BATCH):
        last = min(first + BATCH, len(records))
        now = events[events["instance"] <= last]
        windows.update(list(zip(records[first:last], answers[first:last], strict=True)), now)
    windows.finish()
    return windows.report()


def _compare(alarm: Alarm) -> pd.DataFrame:
    """The rows of one alarm."""
    found = []
    for feature in dict.fromkeys([*alarm.before, *alarm.after]):
        before, after = (
            frame[feature] if feature in frame else pd.Series([None] * len(frame), dtype=object)
            for frame in (alarm.before, alarm.after)
        )
        found.append({"feature": feature, **_test(before, after)})
    targets = [pd.Series(values) for values in (alarm.targets_before, alarm.targets_after)]
    if not (targets[0].isna().all() and targets[1].isna().all()):
        # whole numbers, bools and text are labels
        kind = "number" if all(values.dtype.kind == "f" for values in targets) else "category"
        found.append({"feature": None, **_test(targets[0], targets[1], kind=kind), "kind": "target"})
    frame = pd.DataFrame(found)
    frame["moved"] = false_discovery_control(frame["p_value"]) <= LEVEL
    frame["alarm"], frame["experts"] = alarm.instance, len(alarm.experts)
    return frame.sort_values("statistic", ascending=False, kind="stable")[COLUMNS]


def _test(before: pd.Series, after: pd.Series, kind: str | None = None) -> dict[str, Any]:
    """Two-sample test of one feature."""
    present = [values[values.notna()] for values in (before, after)]
    if kind is None:
        numeric = all(isinstance(value, int | float | np.number | np.bool_) for part in present for value in part)
        kind = "number" if numeric else "category"
    gone = [float(values.isna().mean()) for values in (before, after)]
    common = {"kind": kind, "missing_before": gone[0], "missing_after": gone[1]}
    if min(map(len, present)) < FEWEST:
        return {**common, **_test_missing(before, after, gone)}
    if kind == "number":
        return {**common, **_test_numbers(*(part.to_numpy(dtype=float) for part in present))}
    return {**common, **_test_categories(*present)}


def _test_missing(before: pd.Series, after: pd.Series, gone: list[float]) -> dict[str, Any]:
    table = np.array([[values.isna().sum(), values.notna().sum()] for values in (before, after)])
    constant = (table.sum(axis=0) == 0).any()
    direction = "" if gone[0] == gone[1] else "vanished" if gone[1] > gone[0] else "appeared"
    return {
        "statistic": abs(gone[1] - gone[0]),
        "p_value": 1.0 if constant else float(chi2_contingency(table).pvalue),
        "direction": direction,
        "before": np.nan,
        "after": np.nan,
    }


def _test_numbers(before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    found = ks_2samp(before, after, method="asymp")
    medians = float(np.median(before)), float(np.median(after))
    change = medians[1] - medians[0] or float(after.mean() - before.mean())
    return {
        "statistic": float(found.statistic),
        "p_value": float(found.pvalue),
        "direction": "up" if change > 0 else "down" if change < 0 else "",
        "before": medians[0],
        "after": medians[1],
    }


def _test_categories(before: pd.Series, after: pd.Series) -> dict[str, Any]:
    counts = pd.DataFrame({"before": before.value_counts(), "after": after.value_counts()}).fillna(0.0)
    shares = counts / counts.sum()
    change = shares["after"] - shares["before"]
    place = int(change.abs().to_numpy().argmax())
    most, difference = change.index[place], float(change.iloc[place])
    table = counts[counts.sum(axis=1) >= RARE]
    rest = counts[counts.sum(axis=1) < RARE].sum()
    if rest.sum() > 0:
        table = pd.concat([table, rest.to_frame().T])
    return {
        "statistic": float(change.abs().sum() / 2),
        "p_value": float(chi2_contingency(table).pvalue) if len(table) > 1 else 1.0,
        "direction": "" if difference == 0 else f"{'more' if difference > 0 else 'fewer'} {most!r}",
        "before": float(shares["before"].iloc[place]),
        "after": float(shares["after"].iloc[place]),
    }
