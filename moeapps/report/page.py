"""``moeapps report``: runs on one HTML page that needs no network and no script.

1. The runs are read (:func:`~moeapps.report.runs.find_runs`); those that differ only in their seed become one.
2. Scores, curves and configurations of several runs are compared (``_scores``, ``_comparisons``, ``_differences``).
3. Each run becomes a section: facts, warnings, scores, curves of training, curves and maps of experts and routing.
4. jinja2 fills ``page.html``, and the file is replaced at once.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from moeapps.report.figures import draw_curves, draw_lines
from moeapps.report.hints import find_hints
from moeapps.report.html import fill, heat_map, informative, write_page
from moeapps.report.runs import Run, Score, find_runs
from moeapps.report.training import is_curve, is_metric, layer_curves, stream_curves, training_pictures

__all__ = ["render", "write_report"]


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
    return write_page(output, lambda: render(find_runs(paths), title))


def render(runs: list[Run], title: str = "") -> str:
    """The page, as HTML.

    Parameters
    ----------
    runs : list of Run
        What to show, in this order.
    title : str, default ""
        Headline, as in :func:`write_report`.
    """
    return fill(
        "page.html",
        title=title or ("moeapps report" if len(runs) > 1 else runs[0].name),
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
        "curves": training_pictures(run),
        "inside": [draw_curves(curves) for curves in (*run.views.curves, *layer_curves(run), *stream_curves(run))],
        "maps": [heat_map(table) for table in run.views.maps if informative(table)],
        "galleries": run.views.galleries,
        "config": run.config,
    }


def _shown(score: Score) -> str:
    values = score.values
    text = f"{np.mean(values):.4f}"
    return f"{text} ± {np.std(values, ddof=1):.4f} ({len(values)} {score.repeats})" if len(values) > 1 else text


def _scores(runs: list[Run]) -> list[dict[str, Any]]:
    """One table per metric that several runs have, best first."""
    tables = []
    names = dict.fromkeys(score.name for run in runs for score in run.scores)
    targets = dict.fromkeys(run.facts.get("target") for run in runs)  # losses of two targets are no comparison
    for name, target in itertools.product(names, targets):
        having = [(n, run) for n, run in enumerate(runs) if run.facts.get("target") == target]
        entries = [(n, run, score) for n, run in having for score in run.scores if score.name == name]
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
    names = dict.fromkeys(str(name) for run in runs for name in run.history if is_metric(str(name)))
    grounds = dict.fromkeys(_ground(run) for run in runs)
    for name, ground in itertools.product(names, grounds):
        having = [run for run in runs if _ground(run) == ground and is_curve(run, name)]
        if len(having) > 1:
            data, axis = ground
            title = f"{name}, {data}" if len(grounds) > 1 and data else name
            lines = {run.name: (run.history[axis], run.history[name]) for run in having}
            pictures.append(draw_lines(title, axis, lines))
    return pictures[:24]  # a page of a hundred pictures is no comparison


def _ground(run: Run) -> tuple[str, str]:
    """What curves must have in common to be compared: the data, and the axis."""
    return " ".join(run.facts[name] for name in ("data", "set", "target") if name in run.facts), run.axis
