"""What the terminal shows while ``moeapps stream run`` is at work."""

import time
from collections.abc import Callable

import numpy as np
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from moeapps.stream.run import StreamRun

__all__ = ["Notes", "Reporter", "display"]

BARS = " ▁▂▃▄▅▆▇█"
"""Heights from 0 to 8 eighths."""


class Notes:
    """Tells what a run and its source have noticed, each note once and at most 100 of them.

    Parameters
    ----------
    job : StreamRun
        The run.
    tell : callable
        Takes a note.
    """

    MOST = 100

    def __init__(self, job: StreamRun, tell: Callable[[str], None]) -> None:
        self.job, self.tell, self.told = job, tell, 0

    def __call__(self) -> None:
        """Tell the new ones."""
        for notes in (self.job.notes, getattr(self.job.source, "notes", [])):
            for note in notes:
                self.told += 1
                if self.told <= self.MOST:
                    self.tell(note)
            notes.clear()


class Reporter:
    """A line every ten seconds, where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self.console, self.last = console, time.monotonic()

    def __call__(self, job: StreamRun) -> None:
        """Print one if it is time."""
        if time.monotonic() - self.last >= 10:
            self.last = time.monotonic()
            self.console.print(
                f"{job.counts.events:,} events, {_name(job)} {job.scores.total:.4f} (last {job.window:,}: "
                f"{job.scores.windowed:.4f}), {job.rate:,.0f} events/s",
                highlight=False,
            )


def _name(job: StreamRun) -> str:
    return "mean absolute error" if job.model._numbers else "accuracy"


def display(job: StreamRun) -> Group:
    """What the terminal shows during a run: counts, scores, share of each expert, drift."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()

    def score(value: float) -> str:
        if job.scores.n == 0:
            return "-"
        return f"{value:.2f}" if job.model._numbers else f"{100 * value:.2f}%"

    table.add_row("events", f"{job.counts.events:,}   {job.rate:,.0f}/s")
    table.add_row(
        _name(job),
        f"{score(job.scores.windowed)} of the last {min(job.window, job.scores.n):,}   "
        f"{score(job.scores.total)} of all",
    )
    table.add_row(
        "aside", f"{job.counts.rejected:,} rejected   {job.counts.repeated:,} repeated   {len(job.waiting):,} waiting"
    )
    shares = job.model.activation_
    bars = Text("none yet")
    if shares.sum() > 0:
        heights = [BARS[round(8 * height)] for height in shares / shares.max()]
        names = [name.removeprefix("expert ") for name in job.model._expert_columns]
        largest = f"largest {100 * shares.max() / shares.sum():.0f} %"
        if names[0].isdecimal():
            bars = Text("".join(f"{bar} " for bar in heights), style="cyan")
            bars.append(f"  expert 0 to {len(shares) - 1}, {largest}", style="dim")
        else:
            bars = Text()
            kinds = [name.split(" ")[0] for name in names]
            for kind in dict.fromkeys(kinds):
                bars.append(f"{kind} ", style="dim")
                own = [bar for bar, other in zip(heights, kinds, strict=True) if other == kind]
                bars.append("".join(own) + "  ", style="cyan")
            bars.append(f"{largest}: {names[int(shares.argmax())]}", style="dim")
    for name, value in job.named.as_dict().items():
        table.add_row(
            name, f"{job.named.windowed()[name]:.4f} of the last {min(job.window, job.scores.n):,}   {value:.4f} of all"
        )
    table.add_row("experts", bars)
    table.add_row("drift", _drift_marks(job))
    return Group(table)


def _drift_marks(job: StreamRun, width: int = 48) -> Text:
    """The stream so far as a line: a mark where an expert was renewed."""
    events = job.model.drift_events_
    seen = max(job.model.n_seen_, 1)
    line = np.full(width, "·")
    renewed = events[events["event"] == "renewed"]["instance"].to_numpy(dtype=float)
    line[np.minimum((renewed / seen * width).astype(int), width - 1)] = "▲"
    text = Text()
    for mark in line:
        text.append(str(mark), style="red" if mark == "▲" else "dim")
    warnings = int((events["event"] == "warning").sum())
    text.append(f"  {job.watch_errors.count} alarms, {len(renewed)} renewed, {warnings} warnings", style="dim")
    return text
