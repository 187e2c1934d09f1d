"""What a report of a fitted model is made of: the rows, their true targets, and what the model made of them."""

# n rows, K classes, E experts

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moeapps.core.views import Gallery, Map
from moeapps.report.sections import number

__all__ = ["Judged", "Target"]


@dataclass(frozen=True)
class Target:
    """One target on n rows: what is true and what was predicted.

    Parameters
    ----------
    name : str
        Name of the target; empty where nobody gave one.
    truth : array of shape (n,)
        Codes of the true classes, or true numbers.
    predicted : array of shape (n, K) or (n,)
        Class probabilities, or predicted numbers.
    classes : sequence of str
        Names of the K classes; empty for numbers.
    """

    name: str
    truth: NDArray[Any]
    predicted: NDArray[np.float64]
    classes: Sequence[str] = ()

    @property
    def classification(self) -> bool:
        """Whether classes are predicted."""
        return bool(self.classes)

    @property
    def best(self) -> NDArray[np.int64]:
        """``(n,)`` code of the most probable class."""
        best: NDArray[np.int64] = self.predicted.argmax(axis=1)
        return best

    @property
    def losses(self) -> NDArray[np.float64]:
        """``(n,)`` log loss (nats) or absolute error of each row."""
        if not self.classification:
            errors: NDArray[np.float64] = np.abs(self.predicted - self.truth)
            return errors
        chosen = self.predicted[np.arange(len(self.truth)), self.truth]
        logs: NDArray[np.float64] = -np.log(np.clip(chosen, 1e-15, 1.0))
        return logs

    def shown(self, values: Any, row: int) -> str:
        """A prediction of one row in words, ``values`` being probabilities or numbers of the n rows."""
        if not self.classification:
            return number(float(values[row]), 4)
        best = int(values[row].argmax())
        return f"{self.classes[best]} ({100 * float(values[row][best]):.0f} %)"


@dataclass(frozen=True)
class Judged:
    """A model's predictions for rows that it has not seen, ready to be described.

    Parameters
    ----------
    targets : list of Target
        At least one.
    frame : DataFrame of n rows, optional
        Columns in which rules and explanations may be written.
    weights : DataFrame of shape (n, E), optional
        Weight of each expert for each row; rows sum to 1.
    opinions : dict of str to array, optional
        What each expert predicts by itself for the first target, as ``Target.predicted``.
    predict : callable, optional
        From a frame of such columns to the predictions of each target, as ``Target.predicted``; None where the columns
        cannot be changed one by one.
    shuffled : DataFrame, optional
        What is shuffled to find out what matters, where that is not ``frame``; ``predict`` takes it then, and predicts
        the n rows whatever its own length is.
    gallery : Gallery, optional
        Pictures of rows that were predicted wrong.
    notes : list of str
        What was left out, one sentence each.
    hints : list of str
        Warnings of the model's own, one sentence each.
    maps : list of Map
        What its gates and experts do, where there is no weight per row.
    scenarios : list of Map
        Scores by scenario, of a model that learns several.
    names : sequence of str, optional
        Names of the rows; their numbers by default.
    ordered : bool, default False
        Whether the rows stand in the order of time, as those of a stream.
    row_name : str, default "row"
        What a row is: "image", "node".
    layer : str, default ""
        Which experts the weights are those of, where a model has several layers.
    """

    targets: list[Target]
    frame: pd.DataFrame | None = None
    weights: pd.DataFrame | None = None
    opinions: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    predict: Callable[[pd.DataFrame], list[NDArray[np.float64]]] | None = None
    shuffled: pd.DataFrame | None = None
    gallery: Gallery | None = None
    notes: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    maps: list[Map] = field(default_factory=list)
    scenarios: list[Map] = field(default_factory=list)
    names: Sequence[str] = ()
    ordered: bool = False
    row_name: str = "row"
    layer: str = ""

    @property
    def first(self) -> Target:
        """The target that experts and rows are explained by."""
        return self.targets[0]

    def __len__(self) -> int:
        return len(self.first.truth)
