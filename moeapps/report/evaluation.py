"""What went right and wrong: confusion, reliability and ROC of classes, predicted against true numbers, residuals.

Every picture has one message, which is its title.
"""

# n rows, K classes

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, roc_curve

from moeapps.core.views import Map
from moeapps.report.figures import COLORS, INK, Picture, draw_chart
from moeapps.report.judged import Target
from moeapps.report.sections import Section, Table, number, percent, plural

__all__ = ["evaluate"]

CLASSES = 15
"""Largest number of classes whose confusion matrix is shown; of more, the most frequent confusions."""

POINTS = 300
"""Points of a scatter plot, at most."""

BINS = 10
"""Bins of the reliability curve."""

TRUSTED = 0.03
"""Mean gap between probability and frequency, at or below which probabilities are said to be right."""


def evaluate(target: Target, row_name: str = "row") -> Section:
    """Pictures and tables of one target.

    Parameters
    ----------
    target : Target
        n rows.
    row_name : str, default "row"
        What a row is: "image", "node".
    """
    title = f"Right and wrong predictions{f': {target.name}' if target.name else ''}"
    section = Section(title)
    if target.classification:
        _confusion(target, section, row_name)
        section.pictures.append(_reliability(target))
        if len(target.classes) == 2 and len(set(target.truth.tolist())) == 2:
            section.pictures.append(_roc(target))
    else:
        section.pictures += [_scatter(target), _residuals(target)]
    return section


def _confusion(target: Target, section: Section, row_name: str) -> None:
    counts = confusion_matrix(target.truth, target.best, labels=range(len(target.classes)))
    wrong = counts - np.diag(np.diag(counts))
    totals = counts.sum(axis=1)
    if not wrong.sum():
        section.text.append(f"All {len(target.truth):,} {row_name}s are predicted right.")
        return
    t, p = np.unravel_index(wrong.argmax(), wrong.shape)
    title = (
        f"Most frequent error: {target.classes[t]} predicted as {target.classes[p]} "
        f"({wrong[t, p]:,} of {totals[t]:,} {row_name}s)"
    )
    if len(target.classes) <= CLASSES:
        rows = [f"{name} ({plural(total, row_name)})" for name, total in zip(target.classes, totals, strict=True)]
        shares = np.where(totals[:, None] > 0, counts / np.maximum(totals[:, None], 1), np.nan)
        frame = pd.DataFrame(shares, index=rows, columns=list(target.classes))
        section.maps.append(Map.of(title, frame, "true", "predicted", percent=True))
        return
    order = np.argsort(-wrong, axis=None, kind="stable")[:CLASSES]
    pairs = [np.unravel_index(place, wrong.shape) for place in order if wrong.flat[place]]
    cells = [
        [target.classes[i], target.classes[j], f"{wrong[i, j]:,}", percent(wrong[i, j] / totals[i])] for i, j in pairs
    ]
    section.tables.append(Table(title, ["true", "predicted", f"{row_name}s", "of this class"], cells, numbers=2))


def _reliability(target: Target) -> Picture:
    if len(target.classes) == 2:
        said, happened = target.predicted[:, 1], target.truth == 1
        x_name, y_name = f"predicted probability of {target.classes[1]}", f"how often it is {target.classes[1]}"
    else:
        said, happened = target.predicted.max(axis=1), target.best == target.truth
        x_name, y_name = "predicted probability of the chosen class", "how often it is right"
    said = np.clip(said, 0, 1)
    # quantiles, so that every point stands for as many rows; fewer points for few rows
    bins = max(2, min(BINS, len(said) // 20))
    y, x = calibration_curve(happened, said, n_bins=bins, strategy="quantile")
    gap = float(np.abs(y - x).mean())
    # mean distance that probabilities which are right would have in bins of so few rows
    chance = float(np.sqrt(2 / np.pi * x * (1 - x) * len(x) / len(said)).mean())
    if gap <= max(TRUSTED, 1.5 * chance):
        title = f"Probabilities are right: {100 * gap:.1f} points off on average, {100 * chance:.1f} by chance alone"
    else:
        # of two classes high probabilities too high and low ones too low, of several simply too high
        sure = np.sign(x - 0.5) if len(target.classes) == 2 else np.ones_like(x)
        lean = float(((x - y) * sure).mean())
        which = "too certain" if lean > gap / 3 else "not certain enough" if lean < -gap / 3 else "unreliable"
        title = f"Probabilities are {which}: {100 * gap:.0f} points off on average"

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":", label="perfect")
        axes.plot(x, y, marker="o", markersize=4, linewidth=1.4, label="this model")
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel=x_name, ylabel=y_name)

    points = "; ".join(f"{a:.2f} predicted, {b:.2f} observed" for a, b in zip(x, y, strict=True))
    return draw_chart(draw, title, points, 2)


def _roc(target: Target) -> Picture:
    """Of two classes the rarer one is what is looked for."""
    wanted = int(np.mean(target.truth == 1) <= 0.5)
    false, true, _ = roc_curve(target.truth == wanted, target.predicted[:, wanted])
    place = int(np.searchsorted(false, 0.1, side="right")) - 1
    name = target.classes[wanted]
    title = f"With 10 % false alarms, {percent(true[place])} of all {name} are found"
    kept = np.unique(np.linspace(0, len(false) - 1, 150).astype(int))

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":", label="guessing")
        axes.plot(false[kept], true[kept], linewidth=1.4, label="this model")
        axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel=f"false alarms: share of the others called {name}")
        axes.set_ylabel(f"share of {name} found")

    return draw_chart(draw, title, f"ROC curve; {true[place]:.2f} at a false positive rate of 0.1", 2)


def _some(n: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, n - 1, POINTS).astype(np.int64))


def _scatter(target: Target) -> Picture:
    rows = _some(len(target.truth))
    truth, predicted = target.truth[rows], target.predicted[rows]
    half = float(np.median(target.losses))
    title = f"Half of the predictions are within {number(half)} of the true value"
    ends = [float(min(truth.min(), predicted.min())), float(max(truth.max(), predicted.max()))]

    def draw(axes: Axes) -> None:
        axes.plot(ends, ends, color=INK, linewidth=0.8, linestyle=":", label="perfect")
        axes.plot(truth, predicted, linestyle="", marker=".", markersize=4, alpha=0.6, color=COLORS[0], label="rows")
        axes.set(xlabel=f"true {target.name}".strip(), ylabel=f"predicted {target.name}".strip())

    return draw_chart(
        draw, title, f"{len(rows)} of {len(target.truth)} rows; values from {number(ends[0])} to {number(ends[1])}"
    )


def _residuals(target: Target) -> Picture:
    errors = target.predicted - target.truth
    bias, spread = float(errors.mean()), float(errors.std())
    low, high = np.percentile(errors, [5, 95])
    if abs(bias) > 0.1 * spread:
        title = f"Predictions are too {'high' if bias > 0 else 'low'} by {number(abs(bias))} on average"
    else:
        title = f"Nine of ten errors are between {number(low)} and {number(high)}"
    ends = np.percentile(errors, [0.5, 99.5])  # one far row would leave a single bar

    def draw(axes: Axes) -> None:
        axes.hist(np.clip(errors, *ends), bins=30, color=COLORS[0])
        axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
        axes.set(xlabel=f"error: predicted minus true {target.name}".strip(), ylabel="rows")

    return draw_chart(draw, title, f"mean {number(bias)}, standard deviation {number(spread)}")
