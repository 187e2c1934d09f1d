"""Drift alarms of a run: its errors have risen.

1. ADWIN (Bifet and Gavalda 2007) watches the errors of the predictions, each made before its label was known. So it
   works for every model, whatever detectors the model has of its own.
2. Where the mean of its window has changed, and the newer part has the larger errors, that is an alarm. Errors that
   fall, as they do while a model learns, are none; nor is a drift that the model can absorb without more errors.
3. After a change the window begins anew.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from moeapps.core.checks import check_below_one
from moeapps.core.errors import ConfigError
from moeapps.stream.compiled.adwin import COUNT, SUM, allocate_windows, reset_window, update_window
from moeapps.stream.compiled.references import as_reference

__all__ = ["RECENT", "DriftAlarm", "ErrorWatch", "OnDrift"]

RECENT = 50
"""Events over which an alarm says what the errors are now."""

DELTA = 0.002
"""Probability of a false alarm at a check, as river's ADWIN has it."""


@dataclass(frozen=True)
class DriftAlarm:
    """What an alarm tells. It holds no features and no labels.

    Attributes
    ----------
    number : int
        Alarms of the run so far. A run that was killed may raise an alarm again after it is resumed, with this number.
    instance : int
        Labelled events so far.
    event : str
        Place of the event at which the alarm came, such as ``line 17``.
    time : JSON value
        Its time, where the run has a field for it.
    metric : {"error rate", "mean absolute error"}
        What rose.
    before, after : float
        Its mean between the last change and the alarm, and over the last 50 events.
    renewed : int
        Experts that the model has replaced so far.
    """

    number: int
    instance: int
    event: str
    time: Any
    metric: str
    before: float
    after: float
    renewed: int

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


OnDrift = Callable[[DriftAlarm], None]
"""Called at every alarm."""


class ErrorWatch:
    """ADWIN over errors, in a fixed amount of memory.

    Parameters
    ----------
    numbers : bool, default False
        Whether errors are numbers of any size. ADWIN takes values from 0 to 1: an error e is e / (e + m) then, with
        the mean m of the errors so far.
    delta : float, default 0.002
        ADWIN's delta, above 0 and below 1; smaller values make alarms rarer and later.

    Attributes
    ----------
    count : int
        Alarms so far.

    Examples
    --------
    >>> watch = ErrorWatch()
    >>> alarms = [i for i in range(2000) if watch.update(float(i >= 1000 or i % 10 == 0)) is not None]
    >>> 1000 < alarms[0] < 1100
    True
    """

    def __init__(self, numbers: bool = False, delta: float = DELTA) -> None:
        check_below_one(delta=delta)
        if not delta > 0:
            raise ConfigError(f"delta must be above 0 and below 1, got {delta!r}")
        self.numbers, self.delta, self.count = numbers, delta, 0
        self._windows = allocate_windows(1)
        self._reference = as_reference(self._windows)
        self._all = [0, 0.0]  # number and sum of all errors
        self._part = [0, 0.0]  # of those since the last change
        self._recent: deque[float] = deque(maxlen=RECENT)

    def update(self, error: float) -> float | None:
        """Add the error of one prediction: 0 or 1, or an absolute error.

        Returns
        -------
        float or None
            At an alarm the mean error since the last change.
        """
        if not math.isfinite(error):
            return None
        scale = self._all[1] / self._all[0] if self._all[0] else error
        value = (error / (error + scale) if error > 0 else 0.0) if self.numbers else error
        whole = self._windows.whole[0]
        mean = whole[SUM] / whole[COUNT] if whole[COUNT] else 0.0
        for sums in (self._all, self._part):
            sums[0] += 1
            sums[1] += error
        self._recent.append(error)
        if not update_window(self._reference, 0, value, self.delta):
            return None
        rose = whole[SUM] > mean * whole[COUNT]
        before = self._part[1] / self._part[0]
        if self.numbers:  # m falls while a model learns, which lifts e / (e + m) of errors that stay as they are
            rose = rose and sum(self._recent) / len(self._recent) > before
        reset_window(self._reference, 0)
        self._part = [0, 0.0]
        if not rose:
            return None
        self.count += 1
        return before

    def state(self) -> dict[str, Any]:
        """Everything but the settings, as JSON values."""
        arrays = {name: array.tolist() for name, array in self._windows._asdict().items()}
        return {
            "count": self.count,
            "all": list(self._all),
            "part": list(self._part),
            "recent": list(self._recent),
            "windows": arrays,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state`."""
        self.count, self._all, self._part = int(state["count"]), list(state["all"]), list(state["part"])
        self._recent = deque(state.get("recent", ()), maxlen=RECENT)
        for name, array in self._windows._asdict().items():
            array[...] = state["windows"][name]
