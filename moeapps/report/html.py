"""Fill the templates of the pages: everything is escaped, and a missing value is an error."""

import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

import moeapps
from moeapps.core.errors import ConfigError
from moeapps.core.files import atomic_write
from moeapps.core.views import Map

__all__ = ["fill", "heat_map", "informative", "write_page"]

MAP_ROWS = 30
"""Largest number of rows of a map that are shown: of more, those that differ most from the mean."""

ALIKE = 0.02
"""Largest difference between the values of a map, relative to the largest one, that says nothing."""


def fill(template: str, **values: Any) -> str:
    """A page, as HTML.

    Parameters
    ----------
    template : str
        Name of the file, beside this one.
    **values
        What it shows.
    """
    folder = files("moeapps.report")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text()),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return environment.get_template(template).render(version=moeapps.__version__, made=made, **values)


def write_page(path: str, make: Any) -> Path:
    """Write a page, which is made once the name of its file is known to be good; an older file is replaced at once.

    Raises
    ------
    ConfigError
        If the output has another ending than .html.
    """
    if Path(path).suffix not in (".html", ".htm"):
        raise ConfigError(f"--output must be an .html file, got {str(path)!r}")
    page: str = make()
    with atomic_write(path) as file:
        file.write(page.encode())
    return Path(path)


def informative(table: Map) -> bool:
    """Whether the values of a map differ: twelve equal cells say nothing."""
    values = np.array([v for row in table.values for v in row if v is not None], dtype=float)
    return bool(len(values) and (len(values) == 1 or np.ptp(values) > ALIKE * np.abs(values).max()))


def heat_map(table: Map) -> dict[str, Any]:
    """A map as the template shows it: cells with their text and their part of the colour."""
    values = np.array([[np.nan if v is None else v for v in row] for row in table.values], dtype=float)
    values = values.reshape(len(table.rows), len(table.columns))
    order = np.arange(len(table.rows))
    if len(order) > MAP_ROWS:
        apart = np.abs(values - np.nanmean(values, axis=0)).sum(axis=1)
        order = np.sort(np.argsort(-apart)[:MAP_ROWS])
    top = 1.0 if table.percent else np.nanmax(np.abs(values)) if np.isfinite(values).any() else 1.0
    rows = [
        (
            table.rows[i],
            [(_cell(v, table.percent), 0 if np.isnan(v) else round(85 * abs(v) / (top or 1.0))) for v in values[i]],
        )
        for i in order
    ]
    return {
        "title": table.title, "columns": table.columns, "rows": rows, "row_name": table.row_name,
        "column_name": table.column_name, "left_out": len(table.rows) - len(order),
    }  # fmt: skip


def _cell(value: float, percent: bool) -> str:
    if np.isnan(value):
        return ""
    if percent:
        return f"{100 * value:.0f}\u00a0%"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.3g}"
