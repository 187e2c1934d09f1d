"""Results of runs as one table: configurations by metrics, mean and standard deviation over seeds, and a paired test.

1. Runs are read one by one (:func:`~moeapps.report.runs.read_runs`) and grouped by their settings without the seed.
2. A configuration is named by the settings in which the configurations differ.
3. Each is compared with the baseline on the seeds that both have: a paired t-test, with Holm's correction over all
   configurations that a metric has.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import ttest_rel

from moeapps.core.errors import ConfigError, DataError
from moeapps.core.files import atomic_write
from moeapps.core.run_result import is_smaller_better
from moeapps.core.text_tables import latex_table, latex_text, markdown_table
from moeapps.registry import did_you_mean
from moeapps.report.runs import SEED, Run, read_runs, settings_of

__all__ = ["ENDINGS", "as_markdown", "results_table", "write_results"]

ENDINGS = (".csv", ".md", ".tex")
"""Forms in which a table is written."""

MIN_PAIRS = 3
"""Number of common seeds below which there is no test."""

MAX_VALUE = 40
"""Number of characters of a setting in the name of a configuration."""


@dataclass
class _Group:
    """Runs of one configuration: its name, and for each metric a value by seed."""

    name: str
    scores: dict[str, dict[str, float]]


def results_table(
    paths: Sequence[str | Path] | str | Path, baseline: str | None = None, metrics: Sequence[str] | str | None = None
) -> pd.DataFrame:
    """Mean and standard deviation of every metric, by configuration.

    Parameters
    ----------
    paths : path or sequence of paths
        Folders of runs, or folders with such folders inside.
    baseline : str, optional
        Name of the configuration, as in the table, that the others are tested against; no test when None.
    metrics : str or sequence of str, optional
        Which metrics; when None, those of the test data where runs have some (``moeapps test``), else all.

    Returns
    -------
    DataFrame
        One row per configuration and metric: ``configuration``, ``metric``, ``mean``, ``sd`` (NaN for one seed), ``n``
        (number of seeds), ``best`` (whether its mean is the best of the metric), and, with a baseline, ``difference``
        (mean over the common seeds, this minus baseline), ``pairs`` (number of common seeds), ``p`` (paired t-test, two
        sided) and ``p_holm`` (corrected for the number of configurations; both NaN with fewer than three pairs).

    Raises
    ------
    DataError
        If there is no run, or none with scores.
    ConfigError
        If there is no such baseline or metric.
    FileFormatError
        If a file of a run is damaged.

    Notes
    -----
    The t-test takes the differences of seeds as normally distributed; with three to ten seeds that cannot be checked.
    Seeds measure the spread of the training on one split of the data, not that of the data.

    Examples
    --------
    >>> results_table("moeapps-runs", baseline="GNNModule")  # doctest: +SKIP
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    groups = _groups(read_runs([str(path) for path in given]))
    names = _metrics(groups, [metrics] if isinstance(metrics, str) else metrics)
    if baseline is not None and baseline not in [group.name for group in groups]:
        known = [group.name for group in groups]
        guess = did_you_mean(baseline, known)
        raise ConfigError(f"baseline: there is no configuration {baseline!r}{guess} (there are {', '.join(known)})")
    rows: list[dict[str, Any]] = []
    for metric in names:
        having = [group for group in groups if group.scores.get(metric)]
        reference = next((group.scores[metric] for group in having if group.name == baseline), None)
        part = [_row(group, metric, reference, group.name == baseline) for group in having]
        sign = -1 if is_smaller_better(metric) else 1
        best = max((sign * row["mean"] for row in part if not math.isnan(row["mean"])), default=math.nan)
        corrected = iter(_holm([row["p"] for row in part]))
        for row in part:
            row["best"] = sign * row["mean"] == best
            row["p_holm"] = next(corrected)
        rows += part
    columns = ["configuration", "metric", "mean", "sd", "n", "best"]
    if baseline is not None:
        columns += ["difference", "pairs", "p", "p_holm"]
    table = pd.DataFrame(rows)[columns]
    table.attrs["baseline"] = baseline
    return table


def write_results(table: pd.DataFrame, output: str | Path) -> Path:
    """Write a table of :func:`results_table`.

    Parameters
    ----------
    table : DataFrame
        The table.
    output : str or path
        ``.csv``: as it is. ``.md`` and ``.tex``: a line per configuration and a column per metric, ``mean ± sd``, the
        best in bold, an asterisk where ``p_holm`` is below 0.05. An older file is replaced.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ConfigError
        If it has another ending.
    """
    path = Path(output)
    if path.suffix not in ENDINGS:
        raise ConfigError(f"--table must be a {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]} file, got {str(output)!r}")
    text = {".csv": _csv, ".md": as_markdown, ".tex": _latex}[path.suffix](table)
    with atomic_write(path) as file:
        file.write(text.encode())
    return path


def _groups(runs: list[Run]) -> list[_Group]:
    joined: dict[Any, list[Run]] = {}
    for run in runs:
        if run.scores:
            joined.setdefault(tuple(sorted(settings_of(run).items())) or id(run), []).append(run)
    if not joined:
        raise DataError("these runs have no scores yet: let fit end, and run moeapps test")
    parts = list(joined.values())
    return [_Group(name, _by_seed(part)) for name, part in zip(_names(parts), parts, strict=True)]


def _by_seed(runs: list[Run]) -> dict[str, dict[str, float]]:
    """Values by metric and seed; a seed that was run twice counts once, the later folder."""
    scores: dict[str, dict[str, float]] = {}
    for run in runs:
        for score in run.scores:
            of_metric = scores.setdefault(score.name, {})
            if len(score.values) == 1:
                of_metric[run.config.get(SEED, str(len(of_metric)))] = score.values[0]
            else:  # runs of the demo keep a value per seed
                of_metric.update({str(seed): value for seed, value in enumerate(score.values)})
    return scores


def _names(parts: list[list[Run]]) -> list[str]:
    """What differs between configurations, or the name of the run where nothing does; numbered where two agree."""
    configs = [settings_of(part[0]) for part in parts]
    keys = dict.fromkeys(key for config in configs for key in config)
    differing = [key for key in keys if len({c[key] for c in configs if key in c}) > 1]
    names: list[str] = []
    for part, config in zip(parts, configs, strict=True):
        name = ", ".join(_words(differing, config)) or _model(config) or part[0].name
        again = sum(other == name or other.startswith(f"{name} (") for other in names)
        names.append(f"{name} ({again + 1})" if again else name)
    return names


def _words(keys: Iterable[str], config: dict[str, str]) -> Iterator[str]:
    for key in keys:
        value, last = config.get(key), key.rpartition(".")[2]
        if value is not None:
            shown = value if len(value) <= MAX_VALUE else f"{value[:MAX_VALUE]}..."
            yield value.rpartition(".")[2] if last == "class_path" else f"{last}={shown}"


def _model(config: dict[str, str]) -> str:
    return config.get("model.class_path", "").rpartition(".")[2]


def _metrics(groups: list[_Group], wanted: Sequence[str] | None) -> list[str]:
    known = list(dict.fromkeys(name for group in groups for name in group.scores))
    if wanted is None:
        return [name for name in known if name.startswith("test/")] or known
    for name in wanted:
        if name not in known:
            raise ConfigError(f"metric: no run has {name!r}{did_you_mean(name, known)} (there are {', '.join(known)})")
    return list(dict.fromkeys(wanted))


def _row(group: _Group, metric: str, reference: dict[str, float] | None, is_reference: bool) -> dict[str, Any]:
    own = group.scores[metric]
    values = [value for value in own.values() if not math.isnan(value)]
    row = {
        "configuration": group.name, "metric": metric, "mean": float(np.mean(values)) if values else math.nan,
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else math.nan, "n": len(values),
        "difference": math.nan, "pairs": 0, "p": math.nan,
    }  # fmt: skip
    if reference is None or is_reference:
        return row
    pairs = [(own[seed], reference[seed]) for seed in own if seed in reference]
    pairs = [pair for pair in pairs if not any(map(math.isnan, pair))]
    differences = [a - b for a, b in pairs]
    row["pairs"] = len(pairs)
    if pairs:
        row["difference"] = float(np.mean(differences))
    if len(pairs) >= MIN_PAIRS:
        # equal on every seed: nothing speaks for a difference, and the t statistic is 0 / 0
        row["p"] = 1.0 if not any(differences) else float(ttest_rel(*zip(*pairs, strict=True)).pvalue)
    return row


def _holm(p_values: list[float]) -> list[float]:
    """p-values corrected by Holm's step-down procedure (1979); NaN stays, and is no comparison."""
    order = sorted((n for n, p in enumerate(p_values) if not math.isnan(p)), key=lambda n: p_values[n])
    corrected, largest = [math.nan] * len(p_values), 0.0
    for rank, n in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[n]))
        corrected[n] = largest
    return corrected


def _csv(table: pd.DataFrame) -> str:
    return str(table.to_csv(index=False))


def _wide(table: pd.DataFrame, styled: Callable[[str, bool, bool], str]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table for reading; ``styled`` writes a cell, given whether it is best and different."""
    metrics = list(dict.fromkeys(table["metric"]))
    rows: list[dict[str, Any]] = [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]
    cells = {(row["configuration"], row["metric"]): row for row in rows}
    lines = []
    alone = table["configuration"].nunique() == 1
    for name in dict.fromkeys(table["configuration"]):
        having = [cells[name, metric] for metric in metrics if (name, metric) in cells]
        numbers = sorted({row["n"] for row in having})
        shown = [_cell(cells.get((name, metric)), styled, alone) for metric in metrics]
        lines.append([name, *shown, "-".join(str(number) for number in dict.fromkeys((numbers[0], numbers[-1])))])
    return ["configuration", *metrics, "n"], lines


def _cell(row: dict[str, Any] | None, styled: Callable[[str, bool, bool], str], alone: bool) -> str:
    if row is None or math.isnan(row["mean"]):
        return ""
    text = f"{row['mean']:.4f}" + ("" if math.isnan(row["sd"]) else f" ± {row['sd']:.4f}")
    return styled(text, bool(row["best"]) and not alone, row.get("p_holm", math.nan) < 0.05)


def as_markdown(table: pd.DataFrame) -> str:
    """The table for reading, in Markdown."""

    def styled(text: str, best: bool, different: bool) -> str:
        return (f"**{text}**" if best else text) + (" \\*" if different else "")

    return f"{markdown_table(*_wide(table, styled), numbers=True)}\n\n{_caption(table)}\n"


def _latex(table: pd.DataFrame) -> str:
    def styled(text: str, best: bool, different: bool) -> str:
        text = latex_text(text)
        return (rf"\textbf{{{text}}}" if best else text) + ("$^*$" if different else "")

    header, lines = _wide(table, styled)
    return latex_table(header, [[latex_text(name), *others] for name, *others in lines], [_caption(table)])


def _caption(table: pd.DataFrame) -> str:
    text = "Mean ± standard deviation over n seeds; best mean in bold."
    if (baseline := table.attrs.get("baseline")) is not None:
        text += f" An asterisk: differs from {baseline} (paired t-test over common seeds, Holm-corrected p < 0.05)."
    return text
