"""Parts of a report's page: text, tables, pictures and maps under one heading."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from moeapps.core.views import Gallery, Map
from moeapps.report.figures import Picture

__all__ = ["Section", "Table", "listed", "percent", "plural"]


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Parameters
    ----------
    title : str
        Its one message; empty for none.
    columns : list of str
        Their names.
    rows : list of list of str
        Cells.
    numbers : int, default 0
        How many of the last columns are numbers, set to the right.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    numbers: int = 0


@dataclass
class Section:
    """A heading and what stands under it."""

    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    maps: list[Map] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)


def percent(share: float) -> str:
    """A share as "25 %", which is not broken; "99.6 %" where rounding would claim all or nothing."""
    whole = round(100 * share)
    if 0 < share < 1 and whole in (0, 100):
        return f"{100 * share:.1f}\u00a0%"
    return f"{whole}\u00a0%"


def number(value: float, digits: int = 3) -> str:
    """A number of so many significant digits, in full where it is large: "23,800" and not "2.38e+04"."""
    if not 10**digits <= abs(value) < 1e15:
        return f"{value:.{digits}g}"
    return f"{float(f'{value:.{digits}g}'):,.0f}"


def plural(count: int, noun: str) -> str:
    """A count with its noun: "1 row", "2 rows"."""
    more = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else more}"


def listed(names: Sequence[str], most: int = 8) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
