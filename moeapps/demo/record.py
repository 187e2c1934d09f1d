"""Results of the demo: a row per model with its history and views, and a table that grows while the demo runs."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table

from moeapps.core.views import Views

__all__ = ["Gap", "Recorder", "Row", "Summary", "summarised"]


@dataclass
class Row:
    """One model over all seeds.

    Parameters
    ----------
    package : str
        Part of the demo.
    task : str
        Data and what is predicted.
    model : str
        Name in the table.
    metric : str
        Name of the score.
    default : bool, default False
        Whether it is the mixture that the summary compares with the others of its task.
    part : bool, default False
        Whether it is one of that mixture's own parts, or the same network without experts.
    rival : bool, default False
        Whether it is what a user would take instead; a part may be that, too.
    percent : bool, default True
        Whether scores are shown in percent.
    less : bool, default False
        Whether a lower score is better.
    scores : list of float
        One per seed.
    seconds : list of float
        Duration of each training.
    parameters : int
        Number of parameters of the network; 0 where there is none.
    notes : dict
        Further numbers by name, one per seed.
    history : DataFrame, optional
        Logged metrics of the last training.
    views : Views
        Maps and curves of the last trained model.
    """

    package: str
    task: str
    model: str
    metric: str
    default: bool = False
    part: bool = False
    rival: bool = False
    percent: bool = True
    less: bool = False
    scores: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    parameters: int = 0
    notes: dict[str, list[float]] = field(default_factory=dict)
    history: pd.DataFrame | None = None
    views: Views = field(default_factory=Views)

    @property
    def ours(self) -> bool:
        """Whether it is a mixture of this package, neither a part of one nor a baseline."""
        return not (self.part or self.rival)

    def summary(self) -> dict[str, Any]:
        """The entry of the model in ``results.json``."""
        kept = {name: value for name, value in vars(self).items() if name not in ("history", "views")}
        return {**kept, "ours": self.ours, "mean": float(np.mean(self.scores)), "sd": self.spread}

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds; 0 for one."""
        return float(np.std(self.scores, ddof=1)) if len(self.scores) > 1 else 0.0

    @property
    def shown(self) -> str:
        """Mean and spread, as the table prints them."""
        if not self.scores:
            return ""
        return f"{self.number(float(np.mean(self.scores)))} +- {self.number(self.spread)}"

    def number(self, value: float, sign: str = "") -> str:
        """A score or a difference of scores, in percent or points where the row is."""
        return f"{100 * value:{sign}.2f}" if self.percent else f"{value:{sign}.4f}"


CAPTION = """differences are turned so that more is better for the default, in points for accuracy and ROC-AUC;
ahead, behind: with every seed. "Best" is the best of the scores shown here, which nobody knows beforehand."""


@dataclass(frozen=True)
class Gap:
    """The default's distance to another model.

    Parameters
    ----------
    model : str
        The other one.
    mean : float
        Mean difference over the seeds; above 0 the default is better.
    verdict : {"ahead", "behind", "mixed"}
        "ahead" and "behind" hold for every seed.
    """

    model: str
    mean: float
    verdict: str

    @classmethod
    def between(cls, ours: Row, other: Row) -> "Gap":
        """Of two rows of a task, seed by seed."""
        gaps = (np.array(other.scores) - np.array(ours.scores)) * (1 if ours.less else -1)
        verdict = "ahead" if (gaps > 0).all() else "behind" if (gaps < 0).all() else "mixed"
        return cls(other.model, float(gaps.mean()), verdict)


@dataclass(frozen=True)
class Summary:
    """A default beside the best of its parts and the best rival; None where there is none.

    Parameters
    ----------
    row : Row
        The default.
    part, rival : Gap or None
        Those with the smallest difference.
    """

    row: Row
    part: Gap | None
    rival: Gap | None

    def as_json(self) -> dict[str, Any]:
        """The entry in ``results.json``."""
        gaps = {name: gap and vars(gap) for name, gap in (("part", self.part), ("rival", self.rival))}
        return {"task": self.row.task, "model": self.row.model, "metric": self.row.metric, **gaps}


def summarised(rows: list[Row]) -> list[Summary]:
    """A summary for each task whose models have all been trained.

    Parameters
    ----------
    rows : list of Row
        Rows of the demo.

    Returns
    -------
    list of Summary
        In the order of the tasks.
    """
    found = []
    for row in rows:
        others = [other for other in rows if other.task == row.task and other is not row]
        if row.default and all(len(other.scores) == len(row.scores) > 0 for other in others):
            part, rival = (
                min(
                    (Gap.between(row, other) for other in others if wanted(other)),
                    key=lambda gap: gap.mean,
                    default=None,
                )
                for wanted in (lambda other: other.part, lambda other: other.rival)
            )
            found.append(Summary(row, part, rival))
    return found


class Recorder:
    """Collects rows and pictures, and shows progress on the console.

    Parameters
    ----------
    console : Console
        Where to print.
    seeds : int
        Number of trainings per model.
    """

    def __init__(self, console: Console, seeds: int) -> None:
        self.console, self.seeds = console, seeds
        self.rows: list[Row] = []
        self.pictures: dict[str, Figure] = {}
        self._start = time.perf_counter()
        self._doing = "starting"
        self._spinner = Spinner("dots")
        self._live = Live(get_renderable=self._display, console=console, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    @property
    def seconds(self) -> float:
        """Seconds since the demo began."""
        return time.perf_counter() - self._start

    def add(self, *rows: Row) -> None:
        """Announce rows, in the order of the table."""
        self.rows += rows

    @contextmanager
    def training(self, row: Row, seed: int) -> Iterator[None]:
        """Time one training; its score is noted by :meth:`score` afterwards."""
        self._doing = f"{row.task}: {row.model}, seed {seed}"
        start = time.perf_counter()
        yield
        row.seconds.append(time.perf_counter() - start)

    def score(self, row: Row, value: float, parameters: int = 0, **notes: float) -> None:
        """Note the result of the training that was timed last.

        Parameters
        ----------
        row : Row
            The model.
        value : float
            Its score.
        parameters : int, default 0
            Number of parameters of the network.
        **notes : float
            Further numbers for ``results.json``.
        """
        row.scores.append(float(value))
        row.parameters = parameters
        for name, number in notes.items():
            row.notes.setdefault(name, []).append(float(number))
        if not self.console.is_terminal:
            shown = f"{100 * value:.2f} %" if row.percent else f"{value:.4f}"
            self.console.print(
                f"{self.seconds:4.0f} s  {self._doing}: {row.metric} {shown} ({row.seconds[-1]:.1f} s)", highlight=False
            )

    def table(self) -> Table:
        """All rows."""
        table = Table(
            title=f"test scores, mean +- standard deviation over {self.seeds} seed{'s' * (self.seeds > 1)}",
            box=box.SIMPLE, pad_edge=False,
        )  # fmt: skip
        for name in ("task", "model", "metric", "score", "params", "seconds"):
            side: Any = "left" if name in ("task", "model", "metric") else "right"
            table.add_column(name, justify=side, no_wrap=True)
        before = ""
        for row in self.rows:
            if row.scores:
                if before and row.task != before:
                    table.add_section()
                table.add_row(
                    row.task if row.task != before else "", row.model, row.metric, row.shown,
                    f"{row.parameters:,}" if row.parameters else "", f"{np.mean(row.seconds):.1f}",
                    style="bold" if row.ours else None,
                )  # fmt: skip
                before = row.task
        table.caption = "accuracy and ROC-AUC in %, denoising error: lower is better; mixtures in bold"
        return table

    def summary(self) -> Table:
        """One line per task that has its default: beside the best of its parts and the best rival."""
        table = Table(
            title="the default beside the best of its own parts, and beside what you would take instead",
            box=box.SIMPLE, pad_edge=False, caption=CAPTION,
        )  # fmt: skip
        for name in ("data, score", "default", "score", "best part, difference", "best rival, difference"):
            table.add_column(name, justify="right" if name == "score" else "left")
        for line in summarised(self.rows):
            table.add_row(
                f"{line.row.task}, {line.row.metric}", line.row.model, line.row.number(float(np.mean(line.row.scores))),
                *(f"{gap.model} {line.row.number(gap.mean, '+')} {gap.verdict}" if gap else "none" for gap in
                  (line.part, line.rival)),
            )  # fmt: skip
        return table

    def results(self) -> list[dict[str, Any]]:
        """All rows, as JSON values."""
        return [row.summary() for row in self.rows]

    def _display(self) -> Group:
        self._spinner.update(text=f"{self._doing}   {self.seconds:.0f} s")
        return Group(self.table(), self._spinner) if any(row.scores for row in self.rows) else Group(self._spinner)
