"""What a column is: number, category, id, time, list or ignored; decided once, in training."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import pandas as pd

from moeapps.core.checks import check_one_of
from moeapps.core.errors import ConfigError
from moeapps.registry import did_you_mean

__all__ = ["UNUSED", "Column", "ColumnKind", "check_column_types", "columns_frame", "is_named_id"]

ColumnKind = Literal["number", "category", "id", "time", "list", "ignored"]
"""What a column is. Of an id nearly every row has its own; tables do not learn from it."""

UNUSED: tuple[ColumnKind, ...] = ("id", "ignored")
"""Columns that a table may have, and from which nothing is learned."""


@dataclass(frozen=True)
class Column:
    """What was decided about a column in training.

    Parameters
    ----------
    name : str
        Column.
    kind : {"number", "category", "id", "time", "list", "ignored"}
        What it is.
    why : str
        Reason, for people.
    typed : bool, default=True
        Whether categories are numbers or bools, so that "19.0" and 19 are one; else they are texts, which are exact.
    whole : bool, default=False
        Whether all numbers are whole.
    rows : int, default=0
        Rows looked at.
    missing : int, default=0
        How many of them were missing.
    missing_texts : tuple of str, default=()
        Texts that were read as missing.
    """

    name: str
    kind: ColumnKind
    why: str
    typed: bool = True
    whole: bool = False
    rows: int = 0
    missing: int = 0
    missing_texts: tuple[str, ...] = ()

    @property
    def is_category(self) -> bool:
        """Whether the column is looked up rather than computed with."""
        return self.kind in ("category", "id")

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "missing_texts": list(self.missing_texts)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Column":
        """Undo :meth:`to_json`."""
        return cls(**{**values, "missing_texts": tuple(values["missing_texts"])})


def is_named_id(name: str) -> bool:
    """Whether the name says that whole numbers are ids: ``id``, ``..._id``, ``...Id``."""
    return name.lower() == "id" or name.endswith(("_id", "Id", "_ID"))


def check_column_types(given: Mapping[str, Any] | None, names: Iterable[str] | None = None) -> dict[str, ColumnKind]:
    """The ``column_types`` argument, checked.

    Raises
    ------
    ConfigError
        Naming the entry that is no column, or no kind.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"column_types must be a dict such as {{'zip': 'category'}}, got {given!r}")
    known = None if names is None else list(names)
    for name, kind in given.items():
        if known is not None and name not in known:
            there = f"{', '.join(known[:10])}{', ...' if len(known) > 10 else ''}"
            hint = did_you_mean(name, known, f"the columns are {there}")
            raise ConfigError(f"column_types: there is no column {name!r}{hint}")
        check_one_of(f"column_types: {name!r}", kind, get_args(ColumnKind))
    return dict(given)


def columns_frame(columns: Iterable[Column], categories: Mapping[str, int] | None = None) -> pd.DataFrame:
    """The decisions as a table: one row per column; kind, reason, categories and missing cells.

    Parameters
    ----------
    columns : iterable of Column
        Decisions.
    categories : dict, optional
        Number of categories by column.
    """
    rows = [
        {
            "kind": column.kind,
            "why": column.why,
            "categories": (categories or {}).get(column.name, 0) if column.is_category else 0,
            "missing": column.missing,
            "missing_texts": ", ".join(repr(text) for text in column.missing_texts),
        }
        for column in columns
    ]
    index = pd.Index([column.name for column in columns], name="column")
    return pd.DataFrame(rows, index=index, columns=["kind", "why", "categories", "missing", "missing_texts"])
