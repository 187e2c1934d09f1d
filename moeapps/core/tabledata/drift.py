"""Whether rows to come are like those of training: column by column, with a verdict."""

# n rows of training, m rows to check, B bins

import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binom, chi2

from moeapps.core.errors import ConfigError, DataError
from moeapps.core.json_text import json_text
from moeapps.core.tabledata.ids import ignored_columns
from moeapps.core.tabledata.profile import ColumnProfile, number_bins, profile_table, read_numbers
from moeapps.core.tabledata.source import TableSource, listed
from moeapps.core.tabledata.vocabulary import MISSING, Vocabulary

__all__ = ["VERDICTS", "DataCheck", "Verdict", "check_table", "compare_tables", "population_stability"]

Verdict = Literal["ok", "unknown", "shift", "drift", "unreadable", "absent"]
VERDICTS: tuple[Verdict, ...] = ("ok", "unknown", "shift", "drift", "unreadable", "absent")
"""From good to bad. unknown: an older file does not say what training was like; absent: there is no such column."""

SHIFT, DRIFT = 0.1, 0.25
"""Population stability indices from which a distribution has shifted a little, and a lot: the usual thresholds."""

SURE = 0.999
"""Part of the samples of one distribution whose index stays below what counts as more than noise."""

MISSING_SHIFT, MISSING_DRIFT = 0.05, 0.2
UNSEEN_SHIFT, UNSEEN_DRIFT = 0.05, 0.2
OUTSIDE_SHIFT, OUTSIDE_DRIFT = 0.02, 0.1
"""Rises of the share of missing cells, and shares of unseen categories and of numbers outside the range of training."""

LARGEST = 20
"""Categories that have a bin of their own; the others share one."""

_COLUMNS = [
    "kind", "verdict", "psi", "psi_noise", "missing_training", "missing_now", "unseen", "outside", "why",
]  # fmt: skip


@dataclass(frozen=True)
class DataCheck:
    """What :meth:`check` of a model, or ``moeapps compare-data``, found.

    Parameters
    ----------
    table : DataFrame
        A row per column: ``kind``; ``verdict``; ``psi``, the population stability index, and ``psi_noise``, what it
        would be on average if nothing had changed; ``missing_training`` and ``missing_now``, shares of missing cells;
        ``unseen``, the share of categories that training had not; ``outside``, the share of numbers outside the range
        of training; ``why``, the reason of the verdict. NaN where it does not apply or is not known.
    rows_training : int
        Rows of training; 0 if not known.
    rows : int
        Rows that were checked.
    extra : tuple of str, default=()
        Columns that training had not.
    """

    table: pd.DataFrame
    rows_training: int
    rows: int
    extra: tuple[str, ...] = field(default=())

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of a column."""
        return max(self.table["verdict"], key=VERDICTS.index, default="ok")

    def reaches(self, level: str) -> bool:
        """Whether a column has this verdict, or a worse one.

        Parameters
        ----------
        level : {"shift", "drift"}
            A verdict.
        """
        return VERDICTS.index(self.verdict) >= [*VERDICTS].index(level)  # type: ignore[arg-type]

    def named(self, *verdicts: str) -> list[str]:
        """Columns with one of these verdicts."""
        return [str(name) for name in self.table.index[self.table["verdict"].isin(verdicts)]]

    def summary(self) -> str:
        """One line for people."""
        bad = self.named(*VERDICTS[VERDICTS.index("shift") :])
        known = f"{self.rows_training:,} rows of training" if self.rows_training else "training"
        text = f"{self.rows:,} rows compared with {known}: "
        if not bad:
            return text + ("nothing has changed" if self.verdict == "ok" else "what is known has not changed")
        return text + f"{len(bad)} of {len(self.table)} columns have changed: " + ", ".join(bad)

    def __str__(self) -> str:
        shown = self.table.assign(
            **{name: self.table[name].map(_share) for name in ("missing_training", "missing_now", "unseen", "outside")},
            psi=self.table["psi"].map(_number),
            psi_noise=self.table["psi_noise"].map(_number),
        )
        more = f"\nnot in training: {', '.join(self.extra)}" if self.extra else ""
        return f"{shown.to_string()}\n{self.summary()}{more}"

    def to_json(self) -> str:
        """JSON text: verdict, rows, and the table as a list of columns; null where a value is not known."""
        records = self.table.reset_index().astype(object)
        columns = records.where(records.notna(), None).to_dict("records")
        content = {"verdict": self.verdict, "rows_training": self.rows_training, "rows": self.rows}
        return json_text({**content, "extra": list(self.extra), "columns": columns}, indent=2)

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """A page that needs nothing else; also written to ``path`` if one is given."""
        from moeapps.core.tabledata.drift_page import page

        text = page(self)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a file by its ending: ``.html``, ``.json`` or ``.csv``.

        Raises
        ------
        ConfigError
            If it has another ending.
        """
        ending = Path(path).suffix.lower()
        if ending not in (".html", ".json", ".csv"):
            raise ConfigError(f"{path}: the ending must be .html, .json or .csv, got {ending or 'none'!r}")
        if ending == ".html":
            self.to_html(path)
        elif ending == ".json":
            Path(path).write_text(self.to_json() + "\n", encoding="utf-8")
        else:
            self.table.to_csv(path)


def check_table(source: TableSource, profiles: Iterable[ColumnProfile], ignored: Iterable[str] = ()) -> DataCheck:
    """Compare rows with profiles of training, batch by batch.

    Parameters
    ----------
    source : TableSource
        Rows to check.
    profiles : iterable of ColumnProfile
        What training was like.
    ignored : iterable of str, default=()
        Further columns that training had and that are not compared.

    Raises
    ------
    DataError
        If there are no rows, or not one of the columns.
    """
    tallies = [_Tally(profile, source.missing) for profile in profiles]
    present = [tally for tally in tallies if tally.profile.name in set(source.columns)]
    if not present:
        names = (tally.profile.name for tally in tallies)
        raise DataError(
            f"{source.name} has no column of the training ({listed(names)}); it has {listed(source.columns)}"
        )
    rows = 0
    for frame in source.batches([tally.profile.name for tally in present]):
        rows += len(frame)
        for tally in present:
            tally.add(frame[tally.profile.name])
    if rows == 0:
        raise DataError(f"{source.name}: there is no row to check")
    records = [tally.record(tally in present) for tally in tallies]
    index = pd.Index([tally.profile.name for tally in tallies], name="column")
    known = {tally.profile.name for tally in tallies} | set(ignored)
    extra = tuple(str(name) for name in source.columns if name not in known)
    table = pd.DataFrame(records, index=index, columns=_COLUMNS)
    return DataCheck(table, max((tally.profile.rows for tally in tallies), default=0), rows, extra)


def compare_tables(training: Any, new: Any, ignore: Iterable[str] = ()) -> DataCheck:
    """Compare two tables without a model.

    Parameters
    ----------
    training : DataFrame or path
        Rows that say what is usual.
    new : DataFrame or path
        Rows to compare with them.
    ignore : iterable of str, default=()
        Columns that are not compared. Ids are not, either.

    Raises
    ------
    ConfigError
        If ``ignore`` names no column of ``training``.
    DataError
        Naming file, row and column, if ``training`` cannot be read.
    """
    source = TableSource(training)
    names = [str(name) for name in source.columns]
    ignored = {names[i] for i in ignored_columns(list(ignore), names)}
    columns = source.named(lambda: source.infer([name for name in source.columns if name not in ignored]))
    with warnings.catch_warnings():  # of an id that is not compared, nobody needs to hear what a model would do
        warnings.simplefilter("ignore")
        ids = source.find_ids(list(columns.values()))
    kinds = {name: column.kind for name, column in columns.items() if name not in ids}
    source.with_kinds(kinds)
    profiles = source.named(lambda: profile_table(source, [columns[name] for name in kinds]))
    return check_table(TableSource(new, kinds=kinds), profiles, [*ignored, *ids])


def population_stability(expected: NDArray[np.int64], found: NDArray[np.int64]) -> tuple[float, float, float]:
    r"""Population stability index of counts ``(B,)``, its mean without a change, and what it rarely exceeds then.

    :math:`\sum_b (q_b - p_b) \log(q_b / p_b)`, with half a row added to each bin, so that none is empty. Between
    samples of n and m rows of one distribution, the index is about :math:`(1/n + 1/m) \chi^2_{B-1}`.

    Parameters
    ----------
    expected : array of shape (B,)
        Rows of training in each bin.
    found : array of shape (B,)
        Rows to check in each bin.
    """
    used = (expected + found) > 0
    expected, found = expected[used], found[used]
    bins = max(len(expected), 1)
    p, q = (expected + 0.5) / (expected.sum() + bins / 2), (found + 0.5) / (found.sum() + bins / 2)
    size = 1 / max(expected.sum(), 1) + 1 / max(found.sum(), 1)
    index = float(((q - p) * np.log(q / p)).sum())
    return index, (bins - 1) * size, float(chi2.ppf(SURE, bins - 1)) * size if bins > 1 else 0.0


class _Tally:
    """Counts of a column to check."""

    def __init__(self, profile: ColumnProfile, missing: frozenset[str]) -> None:
        self.profile, self.missing_texts = profile, missing
        self.rows = self.missing = self.unseen = self.outside = 0
        self.problem = ""
        width = len(profile.values) if profile.kind == "category" else len(profile.edges) + 1
        self.counts = np.zeros(width, dtype=np.int64)
        self.vocabulary = (
            Vocabulary(list(profile.values), missing, profile.name) if profile.kind == "category" else None
        )

    def add(self, column: pd.Series) -> None:
        """Count further cells; one that cannot be read ends the counting of the column."""
        if self.problem:
            return
        try:
            self._count(column)
        except DataError as error:
            self.problem = str(error)

    def _count(self, column: pd.Series) -> None:
        profile = self.profile
        if self.vocabulary is not None:
            codes = self.vocabulary.codes(column)
            known = codes[codes >= 0]
            self.counts += np.bincount(known, minlength=len(self.counts))
            gone = int((codes == MISSING).sum())
            self.unseen += len(codes) - len(known) - gone
        else:
            numbers = read_numbers(column, profile.kind, self.missing_texts, profile.name)
            values = numbers[~np.isnan(numbers)]
            gone = len(numbers) - len(values)
            self.counts += number_bins(values, profile.edges)
            if profile.low is not None and profile.high is not None:
                self.outside += int(((values < profile.low) | (values > profile.high)).sum())
        self.rows += len(column)
        self.missing += gone

    def record(self, present: bool) -> dict[str, Any]:
        """A row of :attr:`DataCheck.table`."""
        profile, none = self.profile, float("nan")
        record: dict[str, Any] = dict.fromkeys(_COLUMNS, none) | {"kind": profile.kind}
        if profile.rows:
            record["missing_training"] = profile.missing / profile.rows
        if not present or self.problem:
            return record | {
                "verdict": "unreadable" if present else "absent",
                "why": self.problem or "there is no such column",
            }
        record["missing_now"] = self.missing / self.rows
        there = max(self.rows - self.missing, 1)
        reasons: list[tuple[Verdict, str]] = []
        size = max(profile.rows, 1)
        if profile.kind == "category":
            record["unseen"] = self.unseen / there
            once = sum(count == 1 for count in profile.counts) / size  # Good and Turing's estimate of unseen ones
            if _surprising(self.unseen, there, once):
                reasons.append(_reason(record["unseen"], UNSEEN_SHIFT, UNSEEN_DRIFT, "unseen categories"))
        elif profile.low is not None:
            record["outside"] = self.outside / there
            # of a time, later ones are no surprise
            if profile.kind == "number" and _surprising(self.outside, there, 2 / size):
                reasons.append(_reason(record["outside"], OUTSIDE_SHIFT, OUTSIDE_DRIFT, "outside the range"))
        if profile.rows:
            now, before = record["missing_now"], record["missing_training"]
            more, fewer = (self.missing, before), (self.rows - self.missing, 1 - before)
            count, base = more if now > before else fewer
            if _surprising(count, self.rows, base):
                word = "more" if now > before else "fewer"
                reasons.append(_reason(abs(now - before), MISSING_SHIFT, MISSING_DRIFT, f"{word} missing cells"))
        if profile.counts and sum(profile.counts) and profile.kind != "time":
            record["psi"], record["psi_noise"], limit = self._index()
            if record["psi"] > limit:
                verdict: Verdict = "drift" if record["psi"] >= DRIFT else "shift" if record["psi"] >= SHIFT else "ok"
                reasons.append((verdict, f"other distribution (PSI {record['psi']:.2f})"))
            elif record["psi"] >= SHIFT:
                reasons.append(("ok", "too few rows to tell from chance"))
        elif not profile.counts:
            reasons.append(("unknown", "the model's file does not say how training was distributed"))
        verdict = max((verdict for verdict, _ in reasons), key=VERDICTS.index, default="ok")
        why = [text for found, text in reasons if found == verdict and text and (verdict != "ok" or "few" in text)]
        return record | {"verdict": verdict, "why": ", ".join(why)}

    def _index(self) -> tuple[float, float, float]:
        expected, found = np.array(self.profile.counts), self.counts
        if self.profile.kind == "category":
            order = np.argsort(-expected, kind="stable")
            top, rest = order[:LARGEST], order[LARGEST:]
            expected = np.array([*expected[top], expected[rest].sum()])
            found = np.array([*found[top], found[rest].sum() + self.unseen])
        return population_stability(expected, found)


def _surprising(count: int, rows: int, share: float) -> bool:
    """Whether so many of the rows would come up once in a thousand times, if this were the share; at least 1 / rows."""
    return bool(binom.sf(count - 1, rows, min(max(share, 1 / rows), 1.0)) < 1 - SURE)


def _reason(share: float, shift: float, drift: float, what: str) -> tuple[Verdict, str]:
    verdict: Verdict = "drift" if share > drift else "shift" if share > shift else "ok"
    return verdict, f"{share:.1%} {what}"


def _share(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.1%}"


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.3f}"
