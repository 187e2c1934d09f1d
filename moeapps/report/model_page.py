"""The page of one fitted model: what it is, how well it predicts rows that it has not seen, why, and where it fails.

1. Model and rows are read into one form (:func:`~moeapps.report.subjects.judge`).
2. Scores with intervals, next to the best constant prediction (:mod:`~moeapps.report.measures`).
3. What went right and wrong, which columns matter, what each expert is for, one row explained: a section each.
4. What training logged, with the kept epoch marked; settings, columns and versions.

Without rows only the fourth part and the header are there.
"""

import os
import platform
import warnings
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import pandas as pd
from sklearn.exceptions import NotFittedError

import moeapps
from moeapps.core.errors import ConfigError
from moeapps.core.tabledata.vocabulary import ImputedValues, UnseenCategories
from moeapps.core.views import Map, Views
from moeapps.report.evaluation import evaluate
from moeapps.report.expert_roles import expert_roles
from moeapps.report.explained import explain_row
from moeapps.report.figures import draw_curves
from moeapps.report.hints import find_hints
from moeapps.report.html import fill, heat_map, informative, write_page
from moeapps.report.importance import importance
from moeapps.report.judged import Judged
from moeapps.report.measures import Measure, measure
from moeapps.report.model_hints import model_hints
from moeapps.report.runs import Run
from moeapps.report.sections import Section, Table, number, plural
from moeapps.report.subjects import judge
from moeapps.report.timeline import over_time
from moeapps.report.training import layer_curves, training_pictures

__all__ = ["model_report", "render_model"]


def model_report(
    model: Any,
    X: Any = None,
    y: Any = None,
    path: str | os.PathLike[str] = "moeapps-report.html",
    *,
    title: str = "",
    target: str = "",
    row: int | None = None,
    seconds: float = 20.0,
    seed: int = 0,
) -> Path:
    """Write the page of a fitted model.

    Parameters
    ----------
    model
        A fitted estimator of moeapps.
    X, optional
        Rows that the model has not seen, as its ``predict`` takes them (rankers: a frame with the targets as columns).
        Without rows the page shows settings and training only.
    y : array of shape (n,), optional
        Their true targets.
    path : str or path, default "moeapps-report.html"
        The file to write; it replaces an older one when it is complete.
    title : str, default ""
        Headline; the model's name when empty.
    target : str, default ""
        Name of the target; that of ``y`` where it has one.
    row : int, optional
        Number of the row to explain; the most certain error when None.
    seconds : float, default 20
        What the importance of the columns may take. Rows and shuffles are as many as fit in.
    seed : int, default 0
        Of resamples, shuffles and, above 20,000 rows, of the rows that are drawn.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ConfigError
        If the file has another ending than .html, there is no such row, or y is missing.
    DataError
        If rows and targets do not fit the model or each other.
    sklearn.exceptions.NotFittedError
        If the model is not fitted.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from moeapps import MoEClassifier
    >>> from moeapps.report import model_report
    >>> X, y = load_iris(return_X_y=True, as_frame=True)
    >>> model = MoEClassifier(num_experts=4, max_epochs=20, random_state=0).fit(X[::2], y[::2])
    >>> model_report(model, X[1::2], y[1::2], "iris.html").name  # doctest: +SKIP
    'iris.html'
    """
    options = {"title": title, "target": target, "row": row, "seconds": seconds, "seed": seed}
    return write_page(os.fspath(path), lambda: render_model(model, X, y, **options))  # type: ignore[arg-type]


def render_model(
    model: Any,
    X: Any = None,
    y: Any = None,
    *,
    title: str = "",
    target: str = "",
    row: int | None = None,
    seconds: float = 20.0,
    seed: int = 0,
) -> str:
    """The page of :func:`model_report`, as HTML."""
    if not hasattr(model, "get_params"):
        raise ConfigError(f"a {type(model).__name__} is no estimator: a report is made of a fitted one")
    if not any(hasattr(model, name) for name in ("model_", "mixture_", "_engine")):
        raise NotFittedError(f"this {type(model).__name__} is not fitted yet: call fit before a report")
    if not seconds > 0:
        raise ConfigError(f"seconds must be above 0, got {seconds!r}")
    run = _run_of(model)
    sections: list[Section] = []
    facts, lead, hints = _facts(model), "", find_hints(run)
    if X is None and y is not None:
        raise ConfigError("y was given without X: give the rows, too")
    if X is not None:
        judged = judge(model, X, y, target or str(getattr(y, "name", "") or ""), seed)
        measures = [measure(one, seed) for one in judged.targets]
        lead = _lead(judged, measures[0])
        facts |= _facts_of_rows(judged)
        with warnings.catch_warnings():  # what is odd about the rows was said when they were judged
            warnings.simplefilter("ignore", ImputedValues)
            warnings.simplefilter("ignore", UnseenCategories)
            hints = [*model_hints(model, X, judged, measures[0]), *hints]
            sections = _sections(model, judged, measures, row, seconds, seed)
    sections += _training(run)
    return fill(
        "model.html",
        title=title or type(model).__name__,
        lead=lead,
        facts=facts,
        hints=hints,
        sections=[_ready(section) for section in sections],
        settings=_settings(model),
    )


def _sections(
    model: Any, judged: Judged, measures: Sequence[Sequence[Measure]], row: int | None, seconds: float, seed: int
) -> list[Section]:
    """What the rows show, from scores to one row explained."""
    sections = [
        _scores(judged, measures),
        *(evaluate(target, judged.row_name) for target in judged.targets[:4]),
        *over_time(judged),
        *([Section("Each scenario", maps=judged.scenarios)] if judged.scenarios else []),
        *importance(judged, model, seconds, seed),
        *expert_roles(judged, model, seed),
    ]
    if judged.gallery is not None:
        sections.append(Section("Wrong predictions with the highest probability", galleries=[judged.gallery]))
    return [*sections, explain_row(judged, row)]


def _ready(section: Section) -> dict[str, Any]:
    maps: list[Map] = [table for table in section.maps if informative(table)]
    return {**vars(section), "maps": [heat_map(table) for table in maps]}


def _run_of(model: Any) -> Run:
    """What a model says about itself, as a run: its history, and the epoch that it kept."""
    history = getattr(model, "history_", None)
    history = pd.DataFrame() if not isinstance(history, pd.DataFrame) else history.copy()
    if "epoch" in history and not history["epoch"].is_monotonic_increasing:  # networks compete first, each anew
        history["epoch"] = range(len(history))
    return Run(type(model).__name__, Path(), history=history, views=Views(kept_epoch=kept_epoch(model, history)))


def kept_epoch(model: Any, history: pd.DataFrame) -> int | None:
    """Epoch whose weights a fitted estimator kept, from 0; None where it kept those of the last one."""
    if "epoch" not in history:
        return None
    for name, best in (("val/accuracy", "idxmax"), ("val/loss", "idxmin")):
        watched = hasattr(model, "spec_") if name == "val/accuracy" else not hasattr(model, "spec_")
        if watched and name in history and history[name].notna().any() and not hasattr(model, "champion_"):
            return int(history["epoch"][getattr(history[name], best)()])
    return None


# ---------------------------------------------------------------------- header


def _facts(model: Any) -> dict[str, str]:
    facts = {"model": type(model).__name__}
    columns = _columns(model)
    if columns is not None:
        kinds = columns["kind"].value_counts()
        facts["columns"] = f"{len(columns)}: " + ", ".join(
            plural(int(count), str(kind)) for kind, count in kinds.items()
        )
    elif hasattr(model, "n_features_in_"):
        facts["features" if hasattr(model, "_nodes_to_score") else "columns"] = str(model.n_features_in_)
    if hasattr(model, "classes_") and model.classes_ is not None:
        names = [str(value) for value in model.classes_]
        facts["classes"] = f"{len(names)}: " + ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    if isinstance(getattr(model, "model_", None), object) and hasattr(getattr(model, "model_", None), "parameters"):
        facts["parameters of the network"] = f"{sum(p.numel() for p in model.model_.parameters()):,}"
    if hasattr(model, "expert_names_"):
        facts["experts"] = _expert_names([str(name) for name in model.expert_names_])
    if hasattr(model, "chosen_"):
        facts["gate"] = str(model.chosen_)
    if getattr(model, "n_iter_", 0):
        facts["epochs"] = str(model.n_iter_)
    facts["versions"] = ", ".join(_versions())
    return facts


def _expert_names(names: list[str]) -> str:
    """Names of the experts; of a stream's, which are numbered by kind ("tree 0"), how many there are of each kind."""
    kinds = [name.rpartition(" ") for name in names]
    if len(names) < 2 or not all(kind and number.isdigit() for kind, _, number in kinds):
        return ", ".join(names)
    return ", ".join(f"{count} {kind}" for kind, count in Counter(kind for kind, _, _ in kinds).items())


def _versions() -> list[str]:
    found = [f"Python {platform.python_version()}", f"moeapps {moeapps.__version__}"]
    for name in ("torch", "scikit-learn"):
        try:
            found.append(f"{name} {version_of(name)}")
        except PackageNotFoundError:
            continue
    return found


def _columns(model: Any) -> pd.DataFrame | None:
    try:
        columns = model.node_columns_ if getattr(model, "node_table_", None) is not None else model.columns_
    except (AttributeError, NotImplementedError):
        return None
    return columns if isinstance(columns, pd.DataFrame) and "kind" in columns and len(columns) else None


def _facts_of_rows(judged: Judged) -> dict[str, str]:
    facts = {f"{judged.row_name}s of this report": f"{len(judged):,}"}
    names = [one.name for one in judged.targets if one.name]
    if names:
        facts["target" if len(names) == 1 else "targets"] = ", ".join(names)
    if judged.notes:
        facts["left out"] = " ".join(judged.notes)
    return facts


def _lead(judged: Judged, measures: Sequence[Measure]) -> str:
    """The one sentence of the page."""
    target = judged.first
    score = next(one for one in measures if one.name in ("accuracy", "R2", "mean absolute error"))
    of = f"{target.name}: " if len(judged.targets) > 1 else ""
    if target.classification:
        shown = [f"{100 * value:.1f}\u00a0%" for value in (score.value, score.low, score.high, score.baseline)]
        text = (
            f"{of}{shown[0]} of the {judged.row_name}s are predicted right (95 % interval {shown[1]} to {shown[2]}); "
            f"always naming the most frequent class would get {shown[3]}."
        )
    else:
        error = next(one for one in measures if one.name == "mean absolute error")
        text = (
            f"{of}{'predictions' if of else 'Predictions'} are off by {number(error.value, 4)} on average "
            f"(95 % interval {number(error.low, 4)} to {number(error.high, 4)}); "
            f"always predicting the median would be off by {number(error.baseline, 4)}."
        )
        score = error
    if score.beats_baseline:
        return text
    # where one class is rare, accuracy hides what probabilities and ranking show
    named = {one.name: one for one in measures if one.beats_baseline}
    better = named.get("ROC AUC", named.get("log loss"))
    if better is None:
        return f"{text} The model is not measurably better than that."
    return (
        f"{text} The model is not measurably better in that, but its probabilities tell the classes apart: "
        f"{better.name} {number(better.value, 3)} (95 % interval {number(better.low, 3)} to {number(better.high, 3)}), "
        f"{number(better.baseline, 3)} without a model."
    )


def _scores(judged: Judged, measures: Sequence[Sequence[Measure]]) -> Section:
    section = Section("Scores")
    for target, scores in zip(judged.targets, measures, strict=True):
        rows = [
            [
                f"{one.name} {'↓' if one.smaller else '↑'}", f"{one.value:.4f}",
                f"{one.low:.4f} to {one.high:.4f}", f"{one.baseline:.4f}",
            ]
            for one in scores
        ]  # fmt: skip
        heads = ["score", "this model", "95 % interval", "best constant"]
        section.tables.append(Table(target.name, heads, rows, numbers=3))
    section.text.append(
        "↑ higher is better, ↓ lower is better. Intervals are of 1,000 bootstrap resamples of the "
        f"{judged.row_name}s. The constant "
        f"is the best single prediction for these {judged.row_name}s: the share of each class, or the mean or median."
    )
    return section


# ---------------------------------------------------------------------- training, settings


def _training(run: Run) -> list[Section]:
    pictures = [*training_pictures(run), *map(draw_curves, layer_curves(run))]
    if not pictures:
        return []
    section = Section("Training", pictures=pictures)
    if run.views.kept_epoch is not None:
        section.text.append(f"The weights are those of epoch {run.views.kept_epoch} of {len(run.history)} (from 0).")
    return [section]


def _settings(model: Any) -> list[Table]:
    """Settings that differ from the defaults, all the others, and what the columns are."""
    now = model.get_params(deep=False)
    defaults = type(model)().get_params(deep=False) if _has_defaults(type(model)) else {}
    changed = {name: value for name, value in now.items() if name not in defaults or not _same(value, defaults[name])}
    tables = [
        _named_values("Settings that differ from the defaults" if changed else "All settings are the defaults", changed)
    ]
    rest = {name: value for name, value in now.items() if name not in changed}
    if rest:
        tables.append(_named_values("Settings that are the defaults", rest))
    columns = _columns(model)
    if columns is not None:
        frame = columns.reset_index() if "column" not in columns and columns.index.name else columns
        frame = frame[[name for name in frame if name != "missing_texts" or frame[name].astype(bool).any()]]
        rows = [[_cell(value) for value in row] for row in frame.to_numpy(dtype=object).tolist()]
        tables.append(Table("Columns, and what they are taken for", [str(name) for name in frame], rows[:1000]))
    return tables


def _has_defaults(kind: type) -> bool:
    try:
        kind()
    except TypeError:
        return False
    return True


def _same(value: Any, default: Any) -> bool:
    try:
        return bool(value is default or (type(value) is type(default) and value == default))
    except (TypeError, ValueError):
        return False


def _named_values(title: str, values: dict[str, Any]) -> Table:
    return Table(
        title, ["setting", "value"] if values else [], [[name, _cell(value)] for name, value in values.items()]
    )


def _cell(value: Any) -> str:
    text = repr(value) if isinstance(value, str) and value == "" else str(value)
    return text if len(text) <= 300 else text[:299] + "…"
