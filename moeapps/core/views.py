"""Maps, curves and warnings about a trained mixture, as numbers in a file that a report draws.

A run leaves a ``views.json`` beside its metrics. The module decides what to show (experts by class, gates
by task, confidence by dispersion); drawing does not depend on the model.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from moeapps.core.errors import FileFormatError
from moeapps.core.files import atomic_write

__all__ = ["VIEWS", "Curves", "Map", "Views", "expert_shares"]

VIEWS = "views.json"
"""Name of the file in the folder of a run."""


@dataclass(frozen=True)
class Map:
    """A table of numbers that is coloured by its values: experts by class, by task, by timestep.

    Attributes
    ----------
    title : str
        What is seen.
    rows : list of str
        Names of the rows.
    columns : list of str
        Names of the columns.
    values : list[list[float or None]]
        One list per row; None where there is no number.
    row_name : str, default=""
        What a row is.
    column_name : str, default="expert"
        What a column is.
    """

    title: str
    rows: list[str]
    columns: list[str]
    values: list[list[float | None]]
    row_name: str = ""
    column_name: str = "expert"

    @classmethod
    def of(cls, title: str, frame: pd.DataFrame, row_name: str = "", column_name: str = "expert") -> "Map":
        """Make a map of a frame."""
        rows = [[_number(value) for value in row] for row in frame.to_numpy(dtype=float)]
        return cls(title, [str(x) for x in frame.index], [str(x) for x in frame.columns], rows, row_name, column_name)


@dataclass(frozen=True)
class Curves:
    """Lines over a common axis: load over time, confidence by dispersion.

    Attributes
    ----------
    title : str
        What is seen.
    x : list of float
        Where the values are.
    lines : dict[str, list[float or None]]
        Values by name, as many as ``x`` has; None where there is none.
    x_name : str
        What the axis is.
    y_name : str
        What the values are.
    stacked : bool, default=False
        Whether the lines are shares of a whole, drawn one upon the other.
    marks : list of float, default=field(default_factory=list)
        Places on the axis to mark (where experts were renewed).
    """

    title: str
    x: list[float]
    lines: dict[str, list[float | None]]
    x_name: str
    y_name: str
    stacked: bool = False
    marks: list[float] = field(default_factory=list)

    @classmethod
    def of(
        cls, title: str, x: Sequence[float], lines: Mapping[str, Any], x_name: str, y_name: str, **options: Any
    ) -> "Curves":
        """Make curves of arrays."""
        numbers = {name: [_number(value) for value in values] for name, values in lines.items()}
        return cls(title, [float(value) for value in x], numbers, x_name, y_name, **options)


@dataclass(frozen=True)
class Views:
    """Everything that is worth seeing of one run.

    Attributes
    ----------
    maps : list of Map, default=field(default_factory=list)
        Maps.
    curves : list of Curves, default=field(default_factory=list)
        Curves.
    hints : list of str, default=field(default_factory=list)
        Warnings, one sentence each.
    """

    maps: list[Map] = field(default_factory=list)
    curves: list[Curves] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write ``views.json`` into the folder of a run."""
        with atomic_write(folder / VIEWS) as file:
            file.write(json.dumps(asdict(self), allow_nan=False).encode())

    @classmethod
    def load(cls, folder: Path) -> "Views":
        """Read what :meth:`save` wrote; no views where there is no file.

        Raises
        ------
        FileFormatError
            If the file is not one of ours.
        """
        path = folder / VIEWS
        if not path.exists():
            return cls()
        try:
            found = json.loads(path.read_text())
            maps, curves = [Map(**entry) for entry in found["maps"]], [Curves(**entry) for entry in found["curves"]]
            return cls(maps, curves, [str(hint) for hint in found["hints"]])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FileFormatError(f"{path} is damaged: {error}") from None


def _number(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def expert_shares(history: pd.DataFrame) -> pd.DataFrame:
    """Shares of the experts of a stream over time: the columns "expert 0", "expert 1", ... of its history.

    Those of experts of several kinds ("expert tree 0", ...) are summed by kind: the columns are the kinds.
    """
    shares = history[[name for name in history if str(name).startswith("expert ")]].fillna(0.0)
    kinds = [str(name).split(" ")[1] for name in shares]
    if not kinds or kinds[0].isdecimal():
        return shares
    return shares.T.groupby(kinds, sort=False).sum().T
