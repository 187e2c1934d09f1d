"""Maps, curves and warnings about a trained mixture, as numbers in a file that a report draws.

A run leaves a ``views.json`` beside its metrics. The module decides what to show (experts by class, gates
by task, confidence by dispersion); drawing does not depend on the model.
"""

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from moeapps.core.errors import FileFormatError
from moeapps.core.files import atomic_write

__all__ = ["VIEWS", "Curves", "Gallery", "Map", "Views", "expert_shares"]

VIEWS = "views.json"
"""Name of the file in the folder of a run."""

GALLERY_BYTES = 60_000
"""Largest size of the images of a gallery together, so that a page can be sent by mail."""

_PNG = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+=*")


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
    percent : bool, default=False
        Whether the values are shares, shown as "25 %".
    """

    title: str
    rows: list[str]
    columns: list[str]
    values: list[list[float | None]]
    row_name: str = ""
    column_name: str = "expert"
    percent: bool = False

    @classmethod
    def of(
        cls, title: str, frame: pd.DataFrame, row_name: str = "", column_name: str = "expert", percent: bool = False
    ) -> "Map":
        """Make a map of a frame."""
        values = [[_number(value) for value in row] for row in frame.to_numpy(dtype=float)]
        rows, columns = [str(name) for name in frame.index], [str(name) for name in frame.columns]
        return cls(title, rows, columns, values, row_name, column_name, percent)


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
class Gallery:
    """Small pictures with a caption each: images that were misclassified.

    Attributes
    ----------
    title : str
        What is seen.
    images : list of str
        ``data:image/png;base64,...`` of each picture; :meth:`of` makes them of files.
    captions : list of str
        One per picture.
    """

    title: str
    images: list[str]
    captions: list[str]

    def __post_init__(self) -> None:
        """Refuse what is no picture, or too much of it."""
        if len(self.images) != len(self.captions):
            raise ValueError(f"a gallery has {len(self.images)} images and {len(self.captions)} captions")
        for image in self.images:
            if not _PNG.fullmatch(image):
                raise ValueError(f"an image of a gallery must be a PNG data URI, got {image[:40]!r}")
        if sum(map(len, self.images)) > GALLERY_BYTES:
            raise ValueError(f"the images of a gallery must have at most {GALLERY_BYTES:,} bytes together")

    @classmethod
    def of(cls, title: str, pictures: Sequence[tuple[str, bytes]]) -> "Gallery":
        """Make a gallery of files.

        Parameters
        ----------
        title : str
            What is seen.
        pictures : sequence of (str, bytes)
            Caption and PNG file of each; those beyond the size that a page may have are left out.
        """
        images: list[str] = []
        for _, content in pictures:
            images.append("data:image/png;base64," + base64.b64encode(content).decode())
            if sum(map(len, images)) > GALLERY_BYTES:
                images.pop()
                break
        return cls(title, images, [caption for caption, _ in pictures[: len(images)]])


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
    galleries : list of Gallery, default=field(default_factory=list)
        Small pictures.
    kept_epoch : int, optional
        Epoch whose weights were kept, from 0; None where those of the last one were.
    """

    maps: list[Map] = field(default_factory=list)
    curves: list[Curves] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)
    kept_epoch: int | None = None

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
            galleries = [Gallery(**entry) for entry in found.get("galleries", [])]  # 0.1 had none
            kept = found.get("kept_epoch")
            hints = [str(hint) for hint in found["hints"]]
            return cls(maps, curves, hints, galleries, None if kept is None else int(kept))
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
