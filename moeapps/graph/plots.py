"""Pictures of Mowst."""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from moeapps.core.plots import new_figure

__all__ = ["plot_confidence", "plot_confidence_by_neighborhood", "plot_cost_curve"]


def plot_confidence(dispersion: np.ndarray, confidence: np.ndarray, weak_right: np.ndarray, title: str = "") -> Figure:
    """Confidence in the weak expert, and whether its predictions are right, by their dispersion.

    Left: histogram of the dispersion of the weak expert's prediction, coloured by whether it was right. Where
    dispersion is informative, right predictions lie further to the right. Right: the confidence (the weight the weak
    expert gets) at each dispersion.

    Parameters
    ----------
    dispersion : array of shape (N,)
        In [0, 1], for example :func:`~moeapps.graph.variance_dispersion`.
    confidence : array of shape (N,)
        In [0, 1].
    weak_right : bool array of shape (N,)
        Whether the weak expert's prediction is right.
    title : str, default=""
        What the nodes are.

    Returns
    -------
    Figure
        The figure; save it with ``figure.savefig(path)``.
    """
    figure = new_figure(columns=2, width=4.6)
    left, right = figure.axes
    colors = {"right": "#2a7f9e", "wrong": "#e08a3c"}
    parts = {"right": weak_right, "wrong": ~weak_right}
    left.hist(
        [dispersion[chosen] for chosen in parts.values()],
        bins=np.linspace(0, 1, 41).tolist(),
        stacked=True,
        label=[f"weak expert {name} ({int(chosen.sum())})" for name, chosen in parts.items()],
        color=list(colors.values()),
    )
    left.set(xlabel="dispersion of the weak expert's prediction", ylabel="nodes")
    left.legend(frameon=False)
    for name, chosen in parts.items():
        right.scatter(dispersion[chosen], confidence[chosen], s=6, alpha=0.5, color=colors[name], linewidths=0)
    right.set(
        xlim=(0, 1),
        ylim=(0, max(0.05, 1.1 * float(confidence.max(initial=0.0)))),
        xlabel="dispersion of the weak expert's prediction",
        ylabel="confidence c: weight of the weak expert",
    )
    right.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    return figure


def plot_confidence_by_neighborhood(
    confidence: np.ndarray, weak_right: np.ndarray, degree: np.ndarray, homophily: np.ndarray, title: str = ""
) -> Figure:
    """Confidence of the weak expert, and how often it is right, by a node's degree and homophily.

    Parameters
    ----------
    confidence : array of shape (N,)
        In [0, 1].
    weak_right : bool array of shape (N,)
        Whether the weak expert's prediction is right.
    degree : array of shape (N,)
        In-degree.
    homophily : array of shape (N,)
        Fraction of the neighbours with the node's own label; NaN for a node without neighbours.
    title : str, default=""
        What the nodes are.

    Returns
    -------
    Figure
        The figure.
    """
    figure = new_figure(columns=2, width=4.6)
    largest = max(2.0, float(degree.max(initial=0)))
    powers = np.unique(np.round(np.geomspace(1, largest + 1, 6)).astype(int))
    buckets = {
        "degree": (degree, [(0, 1), *pairwise(powers)]),
        "homophily": (homophily, [(low / 5, low / 5 + 0.2 + (0.01 if low == 4 else 0)) for low in range(5)]),
    }
    for axes, (name, (value, edges)) in zip(figure.axes, buckets.items(), strict=True):
        groups, labels, right = [], [], []
        for low, high in edges:
            chosen = (value >= low) & (value < high)
            if chosen.any():
                groups.append(confidence[chosen])
                right.append(float(weak_right[chosen].mean()))
                last = f"{high - 1:.0f}" if name == "degree" else f"{min(high, 1):.1f}"
                first = f"{low:.0f}" if name == "degree" else f"{low:.1f}"
                labels.append(f"{first if first == last else f'{first} to {last}'}\n{chosen.sum()} nodes")
        boxes = axes.boxplot(groups, showfliers=False, patch_artist=True, medianprops={"color": "#16313c"})
        for box in boxes["boxes"]:
            box.set(facecolor="#a9d0dd", edgecolor="#2a7f9e")
        axes.plot(range(1, len(right) + 1), right, "o--", color="#e08a3c", label="weak expert is right")
        axes.set_xticks(range(1, len(labels) + 1), labels, fontsize=7)
        axes.set(xlabel=name, ylabel="confidence c", ylim=(-0.03, 1.03))
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def plot_cost_curve(curves: Mapping[str, pd.DataFrame], alone: Mapping[str, float], title: str = "") -> Figure:
    """Score against work: what is lost when the strong expert runs on fewer nodes.

    Parameters
    ----------
    curves : Mapping[str, pd.DataFrame]
        By name, what :meth:`~moeapps.graph.MowstClassifier.cost_curve` returned.
    alone : Mapping[str, float]
        Scores to compare with, by name; drawn as level lines.
    title : str, default=""
        Which graph.

    Returns
    -------
    Figure
        The figure. Left: by the fraction of nodes on which the strong expert runs; right: by the fraction of the
        edges that it uses for them.
    """
    figure = new_figure(columns=2, width=4.6)
    colors = ["#2a7f9e", "#e08a3c", "#6b8f3a", "#8a5a9e"]
    for axes, (column, label) in zip(
        figure.axes,
        (
            ("strong", "fraction of nodes that use the strong expert"),
            ("edges", "fraction of the edges that it uses"),
        ),
        strict=True,
    ):
        for color, (name, curve) in zip(colors, curves.items(), strict=False):
            axes.plot(curve[column], curve["score"], "o-", markersize=3, color=color, label=name)
        for style, (name, score) in zip(("--", ":", "-."), alone.items(), strict=False):
            axes.axhline(score, linestyle=style, color="#777777", linewidth=1, label=name)
        axes.set(xlabel=label, ylabel="score", xlim=(-0.03, 1.03))
        axes.grid(alpha=0.3)
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure
