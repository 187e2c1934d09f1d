"""The result of a comparison: a table, the scores of every split, and paired differences from the best baseline."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text
from scipy.stats import t as student

from moeapps.comparison.rounds import Outcome
from moeapps.comparison.task import Candidate, Measured, Metric, Task
from moeapps.core.checks import check_one_of
from moeapps.core.errors import ConfigError
from moeapps.core.files import atomic_write
from moeapps.core.text_tables import latex_table, latex_text, markdown_table

__all__ = ["Comparison", "paired_difference"]

LEVEL = 0.95
"""Confidence at which a difference is called one."""

BASELINE = "best baseline"


def paired_difference(ours: NDArray[np.float64], other: NDArray[np.float64], overlap: float) -> tuple[float, float]:
    r"""Mean of the differences over the same splits, and its standard error.

    With the variance :math:`s^2` of the :math:`n` differences the standard error is :math:`\sqrt{(1/n + o) s^2}`. The
    overlap :math:`o`, test rows over training rows, corrects for splits that share training rows (Nadeau and Bengio
    2003, "Inference for the generalization error", equation 5).

    Parameters
    ----------
    ours, other : array of shape (n,)
        Scores by split.
    overlap : float
        Test rows over training rows; 0 for splits that are independent.

    Returns
    -------
    mean, error : float
        The error is NaN for one split.
    """
    difference = np.asarray(ours, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    n = len(difference)
    if n < 2:
        return float(difference.mean()), float("nan")
    return float(difference.mean()), float(np.sqrt((1 / n + overlap) * difference.var(ddof=1)))


class Comparison:
    """What :func:`moeapps.compare` found.

    Parameters
    ----------
    task : Task
        What was compared.
    outcome : Outcome
        What was measured.

    Attributes
    ----------
    table : DataFrame
        One row per model, best first: for each metric its mean and standard deviation over the splits (``"accuracy"``,
        ``"accuracy sd"``); ``difference`` from the best baseline in the metric that counts, its ``standard error`` and
        the ``verdict``; seconds of fitting and of predicting 1,000 rows; ``ours``, ``splits`` and ``error``.
    splits : DataFrame
        One row per model and split, with all scores and times, and whether it counts (``compared``): splits that not
        all models have finished do not.
    metric : str
        The metric that counts.
    best_ : str or None
        Name of the best model; None if all failed.
    baseline_ : str or None
        Name of the best baseline.
    told : list of str
        What was found out about the data, and what was done with it.
    stopped : str
        Why the comparison ended early; empty if it did not.
    """

    def __init__(self, task: Task, outcome: Outcome) -> None:
        self.task, self.outcome = task, outcome
        self.kind, self.data, self.told, self.stopped = task.kind, task.data, list(task.told), outcome.stopped
        self.metric = task.metrics[0].name
        self.compared = outcome.complete()
        self.splits = self._splits()
        ranked = self._ranked()
        self.best_ = ranked[0].name if ranked else None
        self.baseline_ = next((candidate.name for candidate in ranked if not candidate.ours), None)
        self.table = self._table(ranked)

    # --- numbers

    def _counted(self, name: str) -> list[Measured]:
        """Splits of a model that count; none of a model that failed or has finished none."""
        found = self.outcome.measured[name]
        return [] if name in self.outcome.failed or not found else found[: self.compared]

    def _values(self, name: str, metric: Metric) -> NDArray[np.float64]:
        return np.array([found.scores.get(metric.name, np.nan) for found in self._counted(name)])

    def _score(self, candidate: Candidate, metric: Metric) -> float:
        pooled = self.task.pooled(candidate, self.compared)
        return pooled.get(metric.name, float(np.mean(self._values(candidate.name, metric))))

    def _ranked(self) -> list[Candidate]:
        """Models with scores, best first; models without a score in the metric that counts are last."""
        metric = self.task.metrics[0]
        sign = 1.0 if metric.smaller else -1.0
        having = [candidate for candidate in self.task.candidates if self._counted(candidate.name)]
        return sorted(having, key=lambda one: (np.isnan(s := self._score(one, metric)), sign * s))

    def difference(self, model: str, other: str, metric: str | None = None) -> tuple[float, float, str]:
        """Compare two models on the same splits.

        Parameters
        ----------
        model, other : str
            Names in the table.
        metric : str, optional
            Name of a metric of the table; the one that counts by default.

        Returns
        -------
        mean, standard_error : float
            Of ``model`` minus ``other``.
        verdict : str
            "better", "worse" or "unclear" (within noise), by a paired t-test at the level of 95 %.

        Raises
        ------
        ConfigError
            If a name is unknown, or a model has no scores.
        """
        known = {entry.name: entry for entry in self.task.metrics}
        name = self.metric if metric is None else metric
        check_one_of("metric", name, known)
        chosen = known[name]
        for name in (model, other):
            if name not in self.outcome.measured or not self._counted(name):
                raise ConfigError(f"{name!r} has no scores; there are {', '.join(self.table.index[: self._shown])}")
        mean, error = paired_difference(self._values(model, chosen), self._values(other, chosen), self.task.overlap)
        n = self.compared
        if n < 2 or np.isnan(error):
            return mean, error, "one split" if n < 2 else "not defined"
        if abs(mean) <= student.ppf((1 + LEVEL) / 2, n - 1) * error:
            return mean, error, "unclear"
        return mean, error, "better" if (mean < 0) == chosen.smaller else "worse"

    @property
    def _shown(self) -> int:
        return sum(bool(self._counted(candidate.name)) for candidate in self.task.candidates)

    def _splits(self) -> pd.DataFrame:
        rows = []
        for name, found in self.outcome.measured.items():
            for number, one in enumerate(found):
                counts = number < self.compared and name not in self.outcome.failed
                rows.append(
                    {"model": name, "split": number, **one.scores, "fit seconds": one.fit_seconds,
                     "predict seconds": one.predict_seconds, "test rows": one.rows, "compared": counts}
                )  # fmt: skip
        names = ["model", "split", *(metric.name for metric in self.task.metrics), "fit seconds", "predict seconds"]
        return pd.DataFrame(rows, columns=pd.Index([*names, "test rows", "compared"]))

    def _table(self, ranked: list[Candidate]) -> pd.DataFrame:
        rest = [candidate for candidate in self.task.candidates if candidate not in ranked]
        rows = [self._row(candidate) for candidate in ranked] + [self._empty_row(candidate) for candidate in rest]
        columns = ["model", *(name for metric in self.task.metrics for name in (metric.name, f"{metric.name} sd"))]
        columns += ["difference", "standard error", "verdict", "fit seconds", "predict seconds per 1,000", "ours"]
        return pd.DataFrame(rows, columns=pd.Index([*columns, "splits", "error"])).set_index("model")

    def _row(self, candidate: Candidate) -> dict[str, Any]:
        name, found = candidate.name, self._counted(candidate.name)
        row: dict[str, Any] = {"model": name}
        for metric in self.task.metrics:
            values = self._values(name, metric)
            row[metric.name] = self._score(candidate, metric)
            row[f"{metric.name} sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
        mean, error, verdict = np.nan, np.nan, BASELINE if name == self.baseline_ else ""
        if self.baseline_ not in (None, name):
            mean, error, verdict = self.difference(name, str(self.baseline_))
        predicted = sum(one.predicted or one.rows for one in found)
        return {
            **row, "difference": mean, "standard error": error, "verdict": verdict,
            "fit seconds": float(np.mean([one.fit_seconds for one in found])),
            "predict seconds per 1,000": 1000 * sum(one.predict_seconds for one in found) / max(predicted, 1),
            "ours": candidate.ours, "splits": len(found), "error": "",
        }  # fmt: skip

    def _empty_row(self, candidate: Candidate) -> dict[str, Any]:
        gone = self.outcome.failed.get(candidate.name, f"not finished: {self.outcome.stopped or 'not run'}")
        return {"model": candidate.name, "verdict": "failed" if candidate.name in self.outcome.failed else "not run",
                "ours": candidate.ours, "splits": 0, "error": gone}  # fmt: skip

    # --- the table to read

    @property
    def title(self) -> str:
        """What was compared, in one line."""
        over = f"{self.compared} {self.task.split_name}{'s' * (self.compared != 1)}"
        return f"{self.data}: {self.kind}, mean ± standard deviation over {over}"

    @property
    def notes(self) -> list[str]:
        """What the reader of the table has to know: a line each."""
        metric = self.task.metrics[0]
        lines = [f"* best. ours: mixtures of moeapps. {metric.name} counts: {metric.better} is better."]
        if self.baseline_ is not None and self.compared > 1:
            lines.append(
                f"difference: from {self.baseline_}, the best baseline, {self._pairing}, ± its standard error. "
                f"verdict: paired t-test at {100 * LEVEL:.0f} %; unclear: the difference is within noise."
            )
        if self.task.fits:
            lines.append("fit s: seconds of a fit. s per 1,000: seconds of predicting 1,000 rows.")
        else:
            lines.append("s per 1,000: seconds of predicting and learning 1,000 events.")
        for candidate in self.task.candidates:
            found = self._counted(candidate.name)
            if found and found[-1].note:
                lines.append(f"{candidate.name}, last {self.task.split_name}: {found[-1].note}")
        lines += [f"{name}: {error}" for name, error in self.table["error"].items() if error]
        if self.stopped:
            lines.append(f"Stopped early ({self.stopped}): only what all models have finished is compared.")
        return lines

    @property
    def _pairing(self) -> str:
        paired = f"{self.task.split_name} by {self.task.split_name}"
        return f"{paired}, corrected for shared training rows (Nadeau and Bengio 2003)" if self.task.overlap else paired

    def cells(self, wide: bool = True) -> pd.DataFrame:
        """The table as text, as it is printed and saved.

        Parameters
        ----------
        wide : bool, default=True
            Whether all metrics have their standard deviation, or only the one that counts.
        """
        best = {}
        for metric in self.task.metrics:
            values = pd.to_numeric(self.table[metric.name], errors="coerce")
            best[metric.name] = values.min() if metric.smaller else values.max()
        rows = []
        for name, row in self.table.iterrows():
            cells = {"model": str(name), "": "ours" if row["ours"] else ""}
            for metric in self.task.metrics:
                mark = "*" if row[metric.name] == best[metric.name] else ""
                spread = row[f"{metric.name} sd"] if wide or metric.name == self.metric else np.nan
                cells[metric.name] = _with_spread(row[metric.name], spread, mark=mark)
            cells["difference"] = _with_spread(row["difference"], row["standard error"], "+.4f")
            cells["verdict"] = row["verdict"]
            if self.task.fits:
                cells["fit s"] = _number(row["fit seconds"], ".2f" if row["fit seconds"] < 10 else ".1f")
            cells["s per 1,000"] = _number(row["predict seconds per 1,000"], ".3f")
            rows.append(cells)
        return pd.DataFrame(rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = self._rich_table(self.cells())
        if console.measure(table, options=options.update(width=1000)).maximum > options.max_width:
            table = self._rich_table(self.cells(wide=False))
        yield table
        for note in self.notes:
            yield Text(note)

    def _rich_table(self, cells: pd.DataFrame) -> Table:
        table = Table(title=self.title, box=box.SIMPLE, pad_edge=False, title_justify="left")
        for name in cells:
            words = name in ("model", "", "verdict")
            table.add_column(str(name), justify="left" if words else "right", no_wrap=True)
        for values, ours in zip(cells.itertuples(index=False), self.table["ours"], strict=True):
            table.add_row(*values, style="bold" if ours else None)
        return table

    def __str__(self) -> str:
        console = Console(width=140, no_color=True, force_terminal=False)
        with console.capture() as capture:
            console.print(self, highlight=False)
        return "\n".join(line.rstrip() for line in capture.get().splitlines()).strip("\n")

    def __repr__(self) -> str:
        return f"Comparison({self.data!r}, {len(self.table)} models, best_={self.best_!r})"

    # --- files

    def save(self, path: str | Path) -> Path:
        """Write the table to a file.

        Parameters
        ----------
        path : str or Path
            ``.csv``: all numbers of ``table``. ``.md`` or ``.tex``: what is printed. ``.html``: the page of
            :meth:`report`.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        ConfigError
            If the file has another ending.
        """
        path = Path(path)
        check_ending(path)
        if path.suffix == ".html":
            return self.report(path)
        with atomic_write(path) as file:
            if path.suffix == ".csv":
                self.table.to_csv(file)
            elif path.suffix == ".md":
                file.write(_markdown(self.cells(), [self.title, *self.notes]).encode())
            else:
                file.write(self._latex().encode())
        return path

    def report(self, path: str | Path = "comparison.html") -> Path:
        """Write a page with the scores, and with curves and experts of each model's last split.

        Parameters
        ----------
        path : str or Path, default="comparison.html"
            An ``.html`` file.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        ConfigError
            If the file has another ending, or no model has scores.
        """
        from moeapps.comparison.page import write_page

        return write_page(self, path)

    def _latex(self) -> str:
        cells = self.cells().rename(columns={"": "kind"})
        rows = [[latex_text(cell) for cell in row] for row in cells.itertuples(index=False)]
        return latex_table([str(name) for name in cells], rows, [self.title, *self.notes])


ENDINGS = (".csv", ".md", ".tex", ".html")
"""Endings of the files that :meth:`Comparison.save` writes."""


def check_ending(path: str | Path) -> None:
    """Refuse a file that could not be written in the end: before anything is fitted."""
    if Path(path).suffix not in ENDINGS:
        raise ConfigError(f"a comparison is saved as {', '.join(ENDINGS)}, got {str(path)!r}")


def _number(value: float, form: str) -> str:
    return "" if pd.isna(value) else format(value, form)


def _with_spread(value: float, spread: float, form: str = ".4f", mark: str = "") -> str:
    if pd.isna(value):
        return ""
    if abs(value) >= 1000:
        form = form.replace(".4f", ".1f")
    shown = f"{value:{form}}"
    return shown + (f" ± {spread:{form.lstrip('+')}}" if not pd.isna(spread) else "") + mark


def _markdown(cells: pd.DataFrame, lines: list[str]) -> str:
    head, *notes = lines
    table = markdown_table([str(name) for name in cells], cells.itertuples(index=False))
    return "\n".join([head, "", table, "", *(f"- {note}" for note in notes), ""])
