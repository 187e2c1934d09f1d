"""Read what runs leave on disk into one form: folders of ``moeapps fit``, of ``stream run`` and of the demo."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moeapps.core.errors import DataError, FileFormatError
from moeapps.core.run_result import RunResult, is_smaller_better
from moeapps.core.views import VIEWS, Views
from moeapps.core.yaml_files import flat, read_yaml

__all__ = ["RUN", "Run", "Score", "find_runs", "is_larger_better", "read_runs", "settings_of"]

RUN = "run.json"
"""Name of the file with what the metrics of a run do not say: ``name``, ``facts`` and ``scores``."""

METRICS = "metrics.csv"
CONFIG = "config.yaml"
SEED = "seed_everything"
"""Key of the configuration in which repeated runs differ."""

_WHERE = ("ckpt_path", "trainer.default_root_dir", "trainer.enable_progress_bar", "trainer.accelerator", "logger")

_LARGER = ("accuracy", "auc", "f1", "r2", "ndcg", "recall", "precision", "hit", "kappa", "windowed", "total")


@dataclass(frozen=True)
class Score:
    """A metric of a run.

    Parameters
    ----------
    name : str
        Name of the metric.
    values : list of float
        One per seed.
    smaller : bool, default False
        Whether lower is better.
    repeats : str, default "seeds"
        What the values differ in: seeds, splits, blocks of a stream.
    """

    name: str
    values: list[float]
    smaller: bool = False
    repeats: str = "seeds"


@dataclass
class Run:
    """One run.

    Parameters
    ----------
    name : str
        Its headline on the page.
    path : Path
        Its folder or file.
    facts : dict
        Model, data and the like, by name.
    config : dict
        The configuration, flat (``model.init_args.lr``); empty where there is none.
    history : DataFrame
        Logged metrics over epochs or instances.
    scores : list of Score
        Final metrics.
    views : Views
        Maps and curves of its experts.
    """

    name: str
    path: Path
    facts: dict[str, str] = field(default_factory=dict)
    config: dict[str, str] = field(default_factory=dict)
    history: pd.DataFrame = field(default_factory=pd.DataFrame)
    scores: list[Score] = field(default_factory=list)
    views: Views = field(default_factory=Views)

    @property
    def axis(self) -> str:
        """Column of ``history`` on the x axis: ``epoch`` or ``instance``."""
        return "instance" if "instance" in self.history else "epoch"


def find_runs(paths: list[str]) -> list[Run]:
    """Read runs.

    Parameters
    ----------
    paths : list of str
        Folders of runs, folders with such folders inside, or metrics files of ``moeapps stream run``.

    Returns
    -------
    list of Run
        Each once; runs that differ only in their seed as one.

    Raises
    ------
    DataError
        If a path does not exist or holds no run.
    FileFormatError
        If a file of a run is damaged.
    """
    return _named_apart(_with_seeds_joined(read_runs(paths)))


def read_runs(paths: list[str]) -> list[Run]:
    """Read runs as :func:`find_runs`, each by itself."""
    runs: list[Run] = []
    for given in paths:
        path = Path(given)
        if not path.exists():
            raise DataError(f"{path} does not exist, expected the folder of a run")
        if not (path.is_dir() or path.is_file()):
            raise DataError(f"{path} is neither a folder nor a file")
        read = [_read(folder) for folder in _folders(path)] if path.is_dir() else [_stream(path, path)]
        if not read:
            early = " (a stream run writes it with its first window)" if any(path.glob("stream.safetensors")) else ""
            raise DataError(f"{path} holds no run: no {METRICS}, {RUN} or {VIEWS} in it or below{early}")
        runs += [run for run in read if run.path not in {other.path for other in runs}]
    return runs


def _folders(path: Path) -> Iterator[Path]:
    """Folders of runs in ``path`` or below, links not followed."""
    if any((path / name).is_file() for name in (METRICS, RUN, VIEWS)):
        yield path
        return
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.is_symlink()):
        yield from _folders(folder)


def _read(folder: Path) -> Run:
    run = Run(_name(folder), folder, views=Views.load(folder))
    if (folder / RUN).is_file():
        document = _json(folder / RUN)
        run.name = str(document["name"])
        run.facts = {str(name): str(value) for name, value in document["facts"].items()}
        run.scores = [Score(**score) for score in document["scores"]]
    metrics = folder / METRICS
    if metrics.is_file() and "windowed" in _columns(metrics):
        return _stream(metrics, folder, run)
    if metrics.is_file():
        run.history = _by_epoch(_csv(metrics))
    if (folder / CONFIG).is_file():
        run.config = dict(flat(read_yaml(folder / CONFIG)))
        run.facts = {**_facts(run.config), **run.facts}
    if not run.scores:
        scores = {score.name: score for score in _last_scores(run.history, run.views.kept_epoch)}
        run.scores = list({**scores, **_evaluated(folder)}.values())
    return run


def _evaluated(folder: Path) -> dict[str, Score]:
    """Scores that ``moeapps validate`` and ``test`` have kept, the newest of each name.

    Those on other data, or with other settings of the model, have these in their names.
    """
    scores = {}
    for evaluation in RunResult.load(folder).evaluations:
        settings = ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in evaluation.settings.items())
        for metric, value in evaluation.scores.items():
            name = f"{metric} ({settings})" if settings else metric
            scores[name] = Score(name, [value], is_smaller_better(metric))
    return scores


def _stream(metrics: Path, path: Path, run: Run | None = None) -> Run:
    run = run or Run(metrics.stem, path)
    run.history = _csv(metrics)
    if not {"instance", "windowed", "total"} <= set(run.history):
        raise FileFormatError(f"{metrics} has no columns instance, windowed and total: not the metrics of a stream")
    if not run.scores and len(run.history):
        hits, last = counts_hits(run.history), run.history.iloc[-1]
        run.scores = [Score("accuracy" if hits else "mean absolute error", [float(last["total"])], not hits)]
        for column in map(str, run.history):  # what --metric has added
            name = column.removesuffix(" total")
            if name != column and pd.notna(last[column]):
                run.scores.append(Score(name, [float(last[column])], is_smaller_better(name)))
        run.facts["instances"] = f"{int(last['instance']):,}"
        for column, what in (
            ("drifts", "drift alarms"),
            ("renewed", "experts renewed"),
            ("rejected", "rejected events"),
        ):
            if column in run.history:
                run.facts[what] = f"{int(last[column]):,}"
    return run


def counts_hits(history: pd.DataFrame) -> bool:
    """Whether the score of a stream's metrics is an accuracy; a regression logs errors, which are no counts."""
    rows = history.dropna(subset="windowed")
    hits = rows["windowed"] * (rows["instance"].diff().median() if len(rows) > 1 else rows["instance"])
    return bool(rows["windowed"].between(0, 1).all() and np.allclose(hits, hits.round(), atol=1e-6))


def _by_epoch(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per epoch of a CSV logger's file, whose rows hold either training's or validation's metrics."""
    if "epoch" not in rows:
        return rows
    # a resumed run logs an epoch twice: the later row counts
    return rows.groupby("epoch").last().copy().reset_index()  # copied: pandas warns of a frame in many blocks


def is_larger_better(name: str) -> bool:
    """Whether higher values of a metric are better, by its name; of some names nobody knows."""
    return any(part in name.lower() for part in _LARGER)


def _last_scores(history: pd.DataFrame, kept: int | None = None) -> Iterator[Score]:
    """Scores of the epoch whose weights were kept, or of the last one."""
    if kept is not None and "epoch" in history and (history["epoch"] == kept).any():
        history = history[history["epoch"] == kept]
    chosen = [n for n in history if str(n).startswith(("test/", "val/")) and "/moe/" not in str(n)]
    for name in chosen or [n for n in history if str(n) == "train/loss"]:
        values = history[name].dropna()
        if len(values):
            yield Score(str(name), [float(values.iloc[-1])], is_smaller_better(str(name)))


def _facts(config: dict[str, str]) -> dict[str, str]:
    wanted = {
        "model": "model.class_path", "kind": "model.init_args.model", "data": "data.class_path",
        "set": "data.init_args.name", "target": "data.init_args.target",
        "epochs at most": "trainer.max_epochs", "seed": SEED,
    }  # fmt: skip
    return {name: config[key] for name, key in wanted.items() if config.get(key) not in (None, "None")}


def _name(folder: Path) -> str:
    folder = folder.resolve()
    if folder.name.startswith("seed_"):  # one of several, which become one
        return folder.parent.name
    return f"{folder.parent.name}/{folder.name}" if folder.name.startswith("version_") else folder.name


def _named_apart(runs: list[Run]) -> list[Run]:
    for run in runs:
        if sum(other.name == run.name for other in runs) > 1:
            run.name = f"{run.name} ({run.path})"
    return runs


def settings_of(run: Run) -> dict[str, str]:
    """Settings that tell a run from others: all but the seed, and where and how it was made."""
    return {key: value for key, value in run.config.items() if key != SEED and not key.startswith(_WHERE)}


def _with_seeds_joined(runs: list[Run]) -> list[Run]:
    """Runs that differ only in their seed become one, with a score per seed and the curves of the first."""
    joined: dict[Any, Run] = {}
    for run in runs:
        key = tuple(sorted(settings_of(run).items())) or id(run)
        first = joined.setdefault(key, run)
        if first is run:
            continue
        values = {score.name: score.values for score in run.scores}
        first.scores = [
            Score(score.name, score.values + values.get(score.name, []), score.smaller) for score in first.scores
        ]
        first.facts["seed"] = f"{first.facts.get('seed', '?')}, {run.facts.get('seed', '?')}"
    return list(joined.values())


def _csv(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except ValueError as error:  # pandas' parser errors are, and those of text that is not UTF-8
        raise FileFormatError(f"{path} cannot be read as a table: {error}") from None


def _columns(path: Path) -> list[str]:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.readline().strip().split(",")


def _json(path: Path) -> Any:
    try:
        document = json.loads(path.read_text())
        _ = document["name"], document["facts"].items(), [Score(**score) for score in document["scores"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileFormatError(f"{path} is damaged: {error}") from None
    return document
