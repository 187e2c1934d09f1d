"""``moeapps report``: runs on one HTML page that needs no network and no script.

1. The runs are read (:func:`~moeapps.report.runs.find_runs`); those that differ only in their seed become one.
2. Scores, curves and configurations of several runs are compared (``_scores``, ``_comparisons``, ``_differences``).
3. Each run becomes a section: facts, warnings, scores, curves of training, curves and maps of experts and routing.
4. jinja2 fills ``page.html``, and the file is replaced at once.
"""

import datetime
import itertools
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

import moeapps
from moeapps.core.errors import ConfigError
from moeapps.core.files import atomic_write
from moeapps.core.views import Curves, Map, expert_shares
from moeapps.report.figures import draw_curves, draw_lines
from moeapps.report.hints import find_hints, routing_layers
from moeapps.report.runs import Run, Score, find_runs

__all__ = ["render", "write_report"]

MAP_ROWS = 30
"""Largest number of rows of a map that are shown: of more, those that differ most from the mean."""


def write_report(paths: list[str], output: str = "moeapps-report.html", title: str = "") -> Path:
    """Show runs on one page.

    Parameters
    ----------
    paths : list of str
        Folders of runs, or folders with such folders inside.
    output : str, default "moeapps-report.html"
        The file to write; it replaces an older one when it is complete.
    title : str, default ""
        Headline; the name of the run, or "moeapps report" for several, when empty.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ConfigError
        If the output has another ending than .html.
    DataError
        If there is no run.
    FileFormatError
        If a file of a run is damaged.
    """
    if Path(output).suffix not in (".html", ".htm"):
        raise ConfigError(f"--output must be an .html file, got {output!r}")
    page = render(find_runs(paths), title)
    with atomic_write(output) as file:
        file.write(page.encode())
    return Path(output)


def render(runs: list[Run], title: str = "") -> str:
    """The page, as HTML.

    Parameters
    ----------
    runs : list of Run
        What to show, in this order.
    title : str, default ""
        Headline, as in :func:`write_report`.
    """
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(files("moeapps.report").joinpath("page.html").read_text())
    return template.render(
        title=title or ("moeapps report" if len(runs) > 1 else runs[0].name),
        version=moeapps.__version__,
        made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        runs=[_section(number, run) for number, run in enumerate(runs)],
        scores=_scores(runs),
        differences=_differences(runs),
        comparisons=_comparisons(runs),
    )


def _section(number: int, run: Run) -> dict[str, Any]:
    return {
        "anchor": f"run-{number}",
        "name": run.name,
        "facts": run.facts,
        "scores": [{"name": score.name, "shown": _shown(score)} for score in run.scores],
        "hints": find_hints(run),
        "curves": _training(run),
        "inside": [draw_curves(curves) for curves in (*run.views.curves, *_of_layers(run), *_of_stream(run))],
        "maps": [_map(table) for table in run.views.maps],
        "config": run.config,
    }


def _shown(score: Score) -> str:
    values = score.values
    text = f"{np.mean(values):.4f}"
    return f"{text} ± {np.std(values, ddof=1):.4f} ({len(values)} {score.repeats})" if len(values) > 1 else text


def _scores(runs: list[Run]) -> list[dict[str, Any]]:
    """One table per metric that several runs have, best first."""
    tables = []
    for name in dict.fromkeys(score.name for run in runs for score in run.scores):
        entries = [(n, run, score) for n, run in enumerate(runs) for score in run.scores if score.name == name]
        if len(entries) < 2:
            continue
        entries.sort(key=lambda entry: float(np.mean(entry[2].values)) * (1 if entry[2].smaller else -1))
        means = [float(np.mean(score.values)) for _, _, score in entries]
        width = max(abs(mean) for mean in means) or 1.0  # the longest bar; scores may be negative (R²)
        rows = [
            {"anchor": f"run-{n}", "name": run.name, "shown": _shown(score), "part": 100 * abs(mean) / width}
            for (n, run, score), mean in zip(entries, means, strict=True)
        ]
        tables.append({"metric": name, "smaller": entries[0][2].smaller, "rows": rows})
    return tables


def _differences(runs: list[Run]) -> dict[str, Any]:
    """Keys of the configurations in which runs differ."""
    having = [run for run in runs if run.config]
    if len(having) < 2:
        return {}
    keys = dict.fromkeys(key for run in having for key in run.config)
    rows = [(key, [run.config.get(key, "") for run in having]) for key in keys]
    differing = [(key, values) for key, values in rows if len(set(values)) > 1]
    return {"names": [run.name for run in having], "rows": differing} if differing else {}


def _comparisons(runs: list[Run]) -> list[Any]:
    """Curves of a metric over all the runs that logged it on the same data."""
    pictures = []
    names = dict.fromkeys(str(name) for run in runs for name in run.history if _is_metric(str(name)))
    grounds = dict.fromkeys(_ground(run) for run in runs)
    for name, ground in itertools.product(names, grounds):
        having = [run for run in runs if _ground(run) == ground and _is_curve(run, name)]
        if len(having) > 1:
            data, axis = ground
            title = f"{name}, {data}" if len(grounds) > 1 and data else name
            lines = {run.name: (run.history[axis], run.history[name]) for run in having}
            pictures.append(draw_lines(title, axis, lines))
    return pictures[:24]  # a page of a hundred pictures is no comparison


def _ground(run: Run) -> tuple[str, str]:
    """What curves must have in common to be compared: the data, and the axis."""
    return " ".join(run.facts[name] for name in ("data", "set") if name in run.facts), run.axis


def _is_curve(run: Run, name: str) -> bool:
    return name in run.history and run.axis in run.history and run.history[name].notna().sum() > 1


def _is_metric(name: str) -> bool:
    return (name.startswith(("val/", "test/")) and "/moe/" not in name) or name in ("train/loss", "windowed")


def _training(run: Run) -> list[Any]:
    """Pictures of the training: losses together, every other metric alone."""
    history, axis = run.history, run.axis
    if axis not in history:
        return []
    metrics = [str(n) for n in history if _is_metric(str(n)) and _is_curve(run, str(n))]
    losses = [name for name in metrics if name.endswith("/loss")]
    groups = [losses, *([name] for name in metrics if name not in losses and name != "windowed")]
    if "windowed" in metrics:
        groups.append(["windowed", "total"])
    return [
        draw_lines(", ".join(group), axis, {name: (history[axis], history[name]) for name in group})
        for group in groups[:9]
        if group
    ]


def _of_layers(run: Run) -> list[Curves]:
    layers = [layer for layer in routing_layers(run.history) if len(layer.load) > 1]
    curves = [
        Curves.of(f"load: {layer.name}", layer.epochs.tolist(), _lines(layer.load), "epoch", "load", stacked=True)
        for layer in layers[:12]
    ]
    for statistic, what in (("entropy", "entropy of the router, nats"), ("dead_experts", "experts without tokens")):
        lines = {layer.name: layer.values[statistic].tolist() for layer in layers if statistic in layer.values}
        lengths = {len(values) for values in lines.values()}
        if lines and len(lengths) == 1 and any(any(values) for values in lines.values()):
            curves.append(Curves.of(what, layers[0].epochs.tolist(), lines, "epoch", what))
    return curves


def _of_stream(run: Run) -> list[Curves]:
    history = run.history
    shares = expert_shares(history)
    if run.axis != "instance" or shares.empty or run.views.curves:
        return []
    marks: list[float] = []
    if "renewed" in history:
        more = history["renewed"].diff().fillna(history["renewed"]) > 0
        marks = [float(place) for place in history["instance"][more]]
    what = "expert" if str(shares.columns[0]).startswith("expert ") else "kind of experts"
    title = f"share of each {what}; lines: an expert was renewed"
    lines = _lines(shares)
    return [Curves.of(title, history["instance"].tolist(), lines, "instance", "share", stacked=True, marks=marks)]


def _lines(frame: pd.DataFrame) -> dict[str, list[float]]:
    return {str(name): values.tolist() for name, values in frame.items()}


def _map(table: Map) -> dict[str, Any]:
    values = np.array([[np.nan if v is None else v for v in row] for row in table.values], dtype=float)
    values = values.reshape(len(table.rows), len(table.columns))
    order = np.arange(len(table.rows))
    if len(order) > MAP_ROWS:
        apart = np.abs(values - np.nanmean(values, axis=0)).sum(axis=1)
        order = np.sort(np.argsort(-apart)[:MAP_ROWS])
    top = np.nanmax(np.abs(values)) if np.isfinite(values).any() else 1.0
    rows = [
        (table.rows[i], [(_cell(v), 0 if np.isnan(v) else round(85 * abs(v) / (top or 1.0))) for v in values[i]])
        for i in order
    ]
    return {
        "title": table.title, "columns": table.columns, "rows": rows, "row_name": table.row_name,
        "column_name": table.column_name, "left_out": len(table.rows) - len(order),
    }  # fmt: skip


def _cell(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.2f}" if abs(value) < 100 else f"{value:.3g}"
