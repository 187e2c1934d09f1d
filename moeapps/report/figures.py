"""Pictures for a page: SVG by matplotlib in the text colour of the page, with a description for screen readers."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from cycler import cycler
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.dates import ConciseDateFormatter
from matplotlib.ticker import MaxNLocator

from moeapps.core.plots import new_figure
from moeapps.core.views import Curves

__all__ = ["COLORS", "INK", "Picture", "draw_chart", "draw_curves", "draw_lines"]

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
    return draw_chart(draw, curves.title, f"{_described(lines)} over {curves.x_name}{marks}", len(lines))


def draw_lines(
    title: str,
    x_name: str,
    lines: Mapping[str, tuple[Any, Any]],
    y_name: str = "",
    marks: Mapping[str, Sequence[Any]] | None = None,
) -> Picture:
    """Picture of lines, each with its own x.

    Parameters
    ----------
    title, x_name : str
        Caption, and name of the x axis.
    lines : mapping of str to (x, y)
        Values by name; None is a gap.
    y_name : str, default ""
        Name of the y axis, and its unit.
    marks : mapping of str to sequence, optional
        Places on the x axis to mark with a line, by what happened there.
    """
    marks = {name: places for name, places in (marks or {}).items() if len(places)}
    arrays = {name: (_places(x), _array(y)) for name, (x, y) in lines.items()}

    def draw(axes: Axes) -> None:
        for name, (x, y) in arrays.items():
            _line(axes, x, y, name)
        for number, (name, places) in enumerate(marks.items()):
            for place in places:
                axes.axvline(place, color=INK, linewidth=1, linestyle=(":", "--", "-.")[number % 3], label=name)
                name = "_"  # one entry in the legend
        if any(x.dtype.kind == "M" for x, _ in arrays.values()):
            axes.xaxis.set_major_formatter(ConciseDateFormatter(axes.xaxis.get_major_locator()))
        axes.set(xlabel=x_name, ylabel=y_name)

    words = f"{_described({n: y for n, (_, y) in arrays.items()})} over {x_name}"
    for name, places in marks.items():
        words += f"; {name}: {', '.join(str(place) for place in list(places)[:6])}"
    return draw_chart(draw, title, words, len(lines) + len(marks))


def _places(values: Any) -> Any:
    """Places on the x axis: numbers or dates."""
    dates = getattr(getattr(values, "dtype", None), "kind", "") == "M"
    return np.asarray(values) if dates else _array(values)


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


def draw_chart(draw: Callable[[Axes], None], title: str, description: str, entries: int = 1) -> Picture:
    """Picture of one chart.

    A y axis that starts above 0 says so in its name, since heights cannot be compared then.

    Parameters
    ----------
    draw : callable
        Draws into the axes it is given.
    title : str
        Caption.
    description : str
        What is seen, in words, for screen readers.
    entries : int, default 1
        Number of names in the legend; none is shown for one, or for more than ten.
    """
    # every id of a page must be unique: matplotlib derives its own from this salt
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": f"{title} {description}"}):
        figure = new_figure(width=4.7, height=2.9 if entries <= 10 else 2.6)
        axes = figure.axes[0]
        draw(axes)
        low, high = axes.get_ylim()
        if axes.get_ylabel() and 0 < low < high and not axes.yaxis.get_inverted():
            axes.set_ylabel(f"{axes.get_ylabel()}\n(axis starts at {low:.{2 if low < 100 else 4}g})")
        if axes.get_xlabel() == "epoch":  # there is no epoch 0.25
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
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
    # a hundredth of a point is not seen, and pages with many curves stay small
    text = re.sub(r' (?:d|x|y)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), text)
    text = re.sub(r"font-family: 'DejaVu Sans',[^;]*;", "font-family: 'DejaVu Sans', sans-serif;", text)
    text = re.sub(r' transform="rotate\(-0 [^"]*"|\n +', lambda found: found[0][:1].strip(" "), text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    label = escape(f"{title}. {description}")
    text = text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    return Picture(title, Markup(text))
