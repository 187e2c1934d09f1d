"""Pictures for a page: SVG by matplotlib in the text colour of the page, with a description for screen readers."""

import io
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from cycler import cycler
from markupsafe import Markup, escape
from matplotlib.axes import Axes

from moeapps.core.plots import new_figure
from moeapps.core.views import Curves

__all__ = ["Picture", "draw_curves", "draw_lines"]

INK = "#010203"
"""Placeholder for the colour of the page's text, which replaces it."""

COLORS = ("#4d8ad0", "#ee6677", "#228833", "#b8a11f", "#35a5c7", "#aa3377", "#888888", "#d9822b", "#7a5fc0", "#5b9a8b")
"""Colours with enough contrast on white and on black."""

POINTS = 400
"""Largest number of points of a line; of more, every n-th is drawn."""

STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "font.family": "sans-serif",
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.facecolor", "figure.facecolor", "savefig.facecolor", "legend.facecolor"), "none"),
    "axes.prop_cycle": cycler(color=COLORS),
}


class Picture(NamedTuple):
    """A picture and its caption."""

    title: str
    svg: Markup


def draw_curves(curves: Curves) -> Picture:
    """Picture of curves.

    Parameters
    ----------
    curves : Curves
        Lines over one axis; shares of a whole (``stacked``) are drawn as areas.
    """
    x = np.array(curves.x)
    lines = {name: _array(values) for name, values in curves.lines.items()}

    def draw(axes: Axes) -> None:
        if curves.stacked and len(x) > 1:
            colors = [COLORS[i % len(COLORS)] for i in range(len(lines))]
            axes.stackplot(x, np.nan_to_num(list(lines.values())), labels=list(lines), colors=colors, linewidth=0)
            axes.set_ylim(0, 1)
            axes.set_xlim(x.min(), x.max())
        else:
            for name, values in lines.items():
                _line(axes, x, values, name)
        for mark in curves.marks:
            axes.axvline(mark, color=INK, linewidth=0.6, alpha=0.5)
        axes.set(xlabel=curves.x_name, ylabel=curves.y_name)

    marks = f"; {len(curves.marks)} marks" if curves.marks else ""
    return _svg(draw, curves.title, f"{_described(lines)} over {curves.x_name}{marks}", len(lines))


def draw_lines(title: str, x_name: str, lines: Mapping[str, tuple[Any, Any]]) -> Picture:
    """Picture of lines, each with its own x.

    Parameters
    ----------
    title, x_name : str
        Caption, and name of the x axis.
    lines : mapping of str to (x, y)
        Values by name; None is a gap.
    """
    arrays = {name: (_array(x), _array(y)) for name, (x, y) in lines.items()}

    def draw(axes: Axes) -> None:
        for name, (x, y) in arrays.items():
            _line(axes, x, y, name)
        axes.set(xlabel=x_name)

    return _svg(draw, title, f"{_described({n: y for n, (_, y) in arrays.items()})} over {x_name}", len(lines))


def _array(values: Any) -> Any:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _line(axes: Axes, x: Any, y: Any, name: str) -> None:
    known = np.isfinite(y)
    x, y = x[known], y[known]
    step = max(1, len(x) // POINTS)
    axes.plot(x[::step], y[::step], label=name, linewidth=1.4, marker="o" if len(x) < 15 else None, markersize=3)


def _described(lines: Mapping[str, Any]) -> str:
    """First and last value of the first few lines, in words."""
    parts = []
    for name, values in list(lines.items())[:6]:
        known = values[np.isfinite(values)]
        parts.append(f"{name}: from {known[0]:.3g} to {known[-1]:.3g}" if len(known) else f"{name}: no values")
    return "; ".join(parts) + ("; ..." if len(lines) > 6 else "")


def _svg(draw: Any, title: str, description: str, entries: int) -> Picture:
    # every id of a page must be unique: matplotlib derives its own from this salt
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": f"{title} {description}"}):
        figure = new_figure(width=4.7, height=2.9 if entries <= 10 else 2.6)
        axes = figure.axes[0]
        draw(axes)
        axes.grid(alpha=0.15, color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        if 1 < entries <= 10:
            figure.legend(
                *axes.get_legend_handles_labels(), loc="outside lower center", ncols=2 if entries > 2 else entries,
                frameon=False, fontsize=8,
            )  # fmt: skip
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    label = escape(f"{title}. {description}")
    text = text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    return Picture(title, Markup(text))
