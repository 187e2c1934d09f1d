"""Fit and score all models, split by split in turns, within a time that is kept.

1. Every model is measured on the first split, then every model on the second, and so on: whenever this ends, what was
   measured compares like with like.
2. A model that fails is left out from then on, with the first line of its error.
3. A further round begins only if the time that is left is enough for it, by the rounds before. In the first round a
   timer ends the model that is being fitted.
4. Ctrl-C ends the comparison, not the program.
"""

import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from moeapps.comparison.task import Candidate, Measured, Task
from moeapps.core.warnings import warnings_silenced

__all__ = ["INTERRUPTED", "Outcome", "run_rounds"]

Tell = Callable[[str], None]
"""Takes one line of progress."""

INTERRUPTED = "interrupted"
"""Why a comparison ended at Ctrl-C."""

_AGAIN = 5.0
"""Seconds after which the timer interrupts once more, where a library has swallowed the first interruption."""


class Halted(BaseException):
    """The time is over, or Ctrl-C was pressed: not an Exception, so that no model takes it for a failure of its own."""


@dataclass
class Outcome:
    """What was measured.

    Attributes
    ----------
    measured : dict of str to list of Measured
        By model, in the order of the splits.
    failed : dict of str to str
        Why models were left out.
    stopped : str
        Why it ended before the last split; empty if it did not.
    """

    measured: dict[str, list[Measured]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    stopped: str = ""

    def complete(self) -> int:
        """Number of splits that all models which did not fail have finished; those without any do not count."""
        lengths = [len(found) for name, found in self.measured.items() if name not in self.failed and found]
        return min(lengths, default=0)


def run_rounds(task: Task, max_time: float | None, tell: Tell) -> Outcome:
    """Measure all models of a task.

    Parameters
    ----------
    task : Task
        Models and splits.
    max_time : float, optional
        Seconds after which to end.
    tell : callable
        Takes one line of progress after the other.

    Returns
    -------
    Outcome
        Also if the time is over or Ctrl-C was pressed.
    """
    outcome = Outcome({candidate.name: [] for candidate in task.candidates})
    clock = _Clock(max_time)
    try:
        with _halting(max_time):
            for split in range(task.splits):
                if not _one_round(task, split, clock, outcome, tell):
                    break
    except Halted as halted:
        outcome.stopped = str(halted)
    except KeyboardInterrupt:  # outside of the main thread, or where there are no signals
        outcome.stopped = INTERRUPTED
    if outcome.stopped:
        tell(f"stopped: {outcome.stopped}")
    return outcome


class _Clock:
    """Seconds since the beginning, and until the end."""

    def __init__(self, max_time: float | None) -> None:
        self.start, self.max_time = time.perf_counter(), max_time

    @property
    def passed(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self.start

    @property
    def left(self) -> float:
        """Seconds until the end; infinite where there is none."""
        return float("inf") if self.max_time is None else self.max_time - self.passed


def _one_round(task: Task, split: int, clock: _Clock, outcome: Outcome, tell: Tell) -> bool:
    """Measure every model on one split; whether to go on."""
    active = [candidate for candidate in task.candidates if candidate.name not in outcome.failed]
    expected = sum(_expected(outcome.measured[candidate.name]) for candidate in active)
    if split and expected > clock.left:
        outcome.stopped = (
            f"max_time is {clock.max_time:g} s: {clock.passed:.0f} s have passed, and one more {task.split_name} takes "
            f"about {expected:.0f} s"
        )
        return False
    for candidate in active:
        if clock.left <= 0:
            raise Halted(_over(clock.max_time))
        _one_model(task, candidate, split, clock, outcome, tell)
    return any(candidate.name not in outcome.failed for candidate in active)


def _one_model(task: Task, candidate: Candidate, split: int, clock: _Clock, outcome: Outcome, tell: Tell) -> None:
    head = f"{task.split_name} {split + 1}/{task.splits}  {candidate.name}"
    try:
        with warnings_silenced(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a hundred fits would say the same thing a hundred times
            found = task.measure(candidate, split)
    except Exception as error:
        outcome.failed[candidate.name] = _first_line(error)
        tell(f"{_time(clock.passed):>7}  {head}: failed, {outcome.failed[candidate.name]}")
        return
    outcome.measured[candidate.name].append(found)
    metric = task.metrics[0]
    took = found.fit_seconds + found.predict_seconds
    score = f"{metric.name} {found.scores[metric.name]:.4f}"
    tell(f"{_time(clock.passed):>7}  {head}: {score}, {took:.1f} s{_left(task, outcome, clock)}")


def _left(task: Task, outcome: Outcome, clock: _Clock) -> str:
    """How long the rest takes, once every model was measured."""
    active = [name for name in outcome.measured if name not in outcome.failed]
    if not all(outcome.measured[name] for name in active):
        return ""
    rest = sum(_expected(outcome.measured[name]) * (task.splits - len(outcome.measured[name])) for name in active)
    return f" (about {_time(min(rest, max(clock.left, 0.0)))} left)" if rest else ""


def _expected(found: list[Measured]) -> float:
    """Seconds of one more split."""
    return sum(m.fit_seconds + m.predict_seconds for m in found) / len(found) if found else 0.0


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


def _over(max_time: float | None) -> str:
    return f"max_time of {max_time:g} s is over"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."


@contextmanager
def _halting(max_time: float | None) -> Iterator[None]:
    """Raise :class:`Halted` at Ctrl-C and when the time is over.

    Lightning answers a KeyboardInterrupt by ending the process, so Ctrl-C must not become one.
    """
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to no other
        yield
        return

    def interrupted(number: int, frame: FrameType | None) -> None:
        raise Halted(INTERRUPTED)

    def over(number: int, frame: FrameType | None) -> None:
        raise Halted(_over(max_time))

    timed = max_time is not None and hasattr(signal, "setitimer")  # not on Windows: checked between models there
    before = {signal.SIGINT: signal.signal(signal.SIGINT, interrupted)}
    if timed:
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, over)
        signal.setitimer(signal.ITIMER_REAL, max(float(max_time or 0.0), 1e-3), _AGAIN)
    try:
        yield
    finally:
        if timed:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number, handler in before.items():
            signal.signal(number, handler)
