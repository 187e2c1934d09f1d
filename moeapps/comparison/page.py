"""A comparison as an HTML page: each model is a run of :mod:`moeapps.report`."""

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from moeapps.core.errors import ConfigError
from moeapps.report.page import write_report
from moeapps.report.runs import Score
from moeapps.report.writing import write_run

if TYPE_CHECKING:
    from moeapps.comparison.result import Comparison

__all__ = ["write_page"]


def write_page(comparison: "Comparison", path: str | Path) -> Path:
    """Write the page; see :meth:`~moeapps.comparison.result.Comparison.report`."""
    if comparison.best_ is None:
        raise ConfigError(f"there is nothing to report: no model has scores ({'; '.join(comparison.notes[1:])})")
    with tempfile.TemporaryDirectory(prefix="moeapps-") as scratch:
        folders = [
            str(_write_run(comparison, str(name), Path(scratch), number))
            for number, name in enumerate(comparison.table.index[comparison.table["splits"] > 0])
        ]
        return write_report(folders, str(path), f"Comparison on {comparison.data}")


def _write_run(comparison: "Comparison", name: str, scratch: Path, number: int) -> Path:
    row = comparison.table.loc[name]
    found = comparison.outcome.measured[name][: comparison.compared]
    facts = {"data": comparison.data, "task": comparison.kind, "model": name}
    if not pd.isna(row["difference"]):
        error = "" if pd.isna(row["standard error"]) else f" ± {row['standard error']:.4f}"
        facts[f"{comparison.metric}, difference from {comparison.baseline_}"] = f"{row['difference']:+.4f}{error}"
    facts["verdict"] = row["verdict"]
    if comparison.task.fits:
        facts["seconds of a fit"] = f"{row['fit seconds']:.2f}"
    what = "predicting" if comparison.task.fits else "predicting and learning"
    facts[f"seconds of {what} 1,000 rows"] = f"{row['predict seconds per 1,000']:.3f}"
    if found[-1].parameters:
        facts["parameters"] = f"{found[-1].parameters:,}"
    if found[-1].note:
        facts["inside"] = found[-1].note
    scores = []
    for metric in comparison.task.metrics:
        mean, values = row[metric.name], [one.scores[metric.name] for one in found]
        if not np.isnan(mean):
            # a score of all events together is shown as it is: the mean of the blocks would contradict the table
            values = values if np.isclose(mean, np.mean(values)) else [mean]
            scores.append(Score(metric.name, values, metric.smaller, f"{comparison.task.split_name}s"))
    folder = scratch / f"{number:02}-{re.sub(r'[^a-z0-9]+', '-', name.lower())}"
    kept = {key: text for key, text in facts.items() if text}
    return write_run(folder, name, kept, scores, _without_experts(found[-1].history), found[-1].views)


def _without_experts(history: pd.DataFrame | None) -> pd.DataFrame | None:
    """The metrics of a whole model: those of single experts, as ``val/gcn_accuracy``, have no counterpart elsewhere."""
    if history is None:
        return None
    whole = set(map(str, history))
    single = [
        name
        for name in history
        if "_" in str(name).partition("/")[2]
        and f"{str(name).partition('/')[0]}/{str(name).rpartition('_')[2]}" in whole
    ]
    return history.drop(columns=single)
