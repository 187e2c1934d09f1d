"""What is compared: metrics, models, and a task that measures one model on one split."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pandas as pd

from moeapps.core.errors import ConfigError
from moeapps.core.views import Views
from moeapps.registry import nearest

__all__ = ["Candidate", "Measured", "Metric", "Task", "chosen_candidates", "named_or_nearest"]

MOST = 12
"""Known names that an error lists."""


@dataclass(frozen=True)
class Metric:
    """A score by which models are compared.

    Parameters
    ----------
    name : str
        Name in tables, such as ``"log loss"``.
    smaller : bool, default=False
        Whether lower is better.
    """

    name: str
    smaller: bool = False

    @property
    def better(self) -> str:
        """Which way is better, in a word."""
        return "lower" if self.smaller else "higher"


@dataclass(frozen=True)
class Candidate:
    """A model that takes part.

    Parameters
    ----------
    name : str
        Name in tables.
    make : callable
        The unfitted model for a seed.
    ours : bool, default=False
        Whether it is a mixture of this package. All others are baselines.
    """

    name: str
    make: Callable[[int], Any]
    ours: bool = False


@dataclass
class Measured:
    """One model on one split.

    Parameters
    ----------
    scores : dict of str to float
        By the names of the task's metrics; NaN where a metric is not defined.
    fit_seconds, predict_seconds : float
        Time of fitting, and of predicting the test rows.
    rows : int
        Number of test rows.
    parameters : int, default=0
        Number of parameters of a network.
    note : str, default=""
        What the model chose by itself, such as the experts that it kept.
    history : DataFrame, optional
        Metrics that were logged while it was fitted.
    views : Views, optional
        Maps and curves of its experts.
    predicted : int, default=0
        Rows that were predicted in that time, where these are not the test rows.
    """

    scores: dict[str, float]
    fit_seconds: float
    predict_seconds: float
    rows: int
    parameters: int = 0
    note: str = ""
    history: pd.DataFrame | None = None
    views: Views = field(default_factory=Views)
    predicted: int = 0


class Task(ABC):
    """Data, metrics, models and splits.

    Attributes
    ----------
    kind : str
        What is predicted, such as ``"classification of rows"``.
    data : str
        Name of the data.
    told : list of str
        What was found out about the data, and what was done with it: a sentence each.
    metrics : list of Metric
        The first one counts.
    candidates : list of Candidate
        Models, quick ones first.
    splits : int
        Number of splits.
    split_name : str
        What a split is: fold, seed, block.
    overlap : float
        Test rows over training rows where splits share training rows, by which the standard error of a difference is
        corrected; 0 where they do not.
    seed : int
        Seed of splits and models.
    fits : bool
        Whether models are fitted before they predict; of a stream, predicting and learning is one time.
    """

    kind: str = ""
    split_name: str = "fold"
    fits: bool = True

    def __init__(
        self,
        data: str,
        told: Sequence[str],
        metrics: Sequence[Metric],
        candidates: Sequence[Candidate],
        splits: int,
        overlap: float,
        seed: int,
    ) -> None:
        self.data, self.told = data, list(told)
        self.metrics, self.candidates = list(metrics), list(candidates)
        self.splits, self.overlap, self.seed = splits, overlap, seed

    @abstractmethod
    def measure(self, candidate: Candidate, split: int) -> Measured:
        """Fit a model on a split and score it. Splits of a model are measured in their order."""

    def pooled(self, candidate: Candidate, splits: int) -> dict[str, float]:
        """Scores over the first splits together, where that is not the mean of the splits' scores."""
        return {}


def chosen_candidates(usual: Sequence[Candidate], models: Any, seeded: Callable[[Any, int], Any]) -> list[Candidate]:
    """Those of the usual models that the user names, and the user's own.

    Parameters
    ----------
    usual : sequence of Candidate
        Models of the task.
    models : sequence of str or of (str, estimator) pairs, mapping of str to estimator, or None
        Names of usual models and own models. Names of own models only, or a mapping: beside all usual models. None: the
        usual models.
    seeded : callable
        Copy of the user's unfitted model with a seed.

    Raises
    ------
    ConfigError
        If a name is unknown or occurs twice.
    """
    if models is None:
        return list(usual)
    if isinstance(models, str):
        models = [models]
    entries = list(models.items()) if isinstance(models, Mapping) else list(models)
    known = {candidate.name: candidate for candidate in usual}
    names = [entry for entry in entries if isinstance(entry, str)]
    chosen = {
        known[name].name: known[name] for name in (named_or_nearest("models", name, list(known)) for name in names)
    }
    chosen = chosen or dict(known)
    for entry in entries:
        if isinstance(entry, str):
            continue
        if not isinstance(entry, tuple | list) or len(entry) != 2 or not isinstance(entry[0], str):
            raise ConfigError(f"models must hold names or (name, estimator) pairs, got {entry!r}")
        name, model = entry
        if name in chosen:
            raise ConfigError(f"models has the name {name!r} twice: the usual models are {', '.join(known)}")
        chosen[name] = Candidate(name, partial(seeded, model))
    return list(chosen.values())


def named_or_nearest(argument: str, name: Any, known: Sequence[str]) -> str:
    """The known name that this is, in any case of letters.

    Raises
    ------
    ConfigError
        With the known name that looks most like it.
    """
    by_fold = {entry.casefold(): entry for entry in known}
    if isinstance(name, str) and name.casefold() in by_fold:
        return by_fold[name.casefold()]
    guess = nearest(str(name).casefold(), list(by_fold))
    hint = f"; did you mean {by_fold[guess]!r}?" if guess else ""
    shown = ", ".join(known[:MOST]) + (f" and {len(known) - MOST} more" if len(known) > MOST else "")
    raise ConfigError(f"{argument}: {name!r} is not one of {shown}{hint}")
