"""Pictures of Mowst."""

import numpy as np
from matplotlib.figure import Figure

from moeapps.core.plots import new_figure

__all__ = ["plot_confidence"]


def plot_confidence(dispersion: np.ndarray, confidence: np.ndarray, weak_right: np.ndarray, title: str = "") -> Figure:
    """How sure the weak expert is, whether rightly so, and what the gate made of it.

    Left: histogram of the dispersion of the weak expert's prediction, coloured by whether it was right. Where
    dispersion tells something, the right ones lie further to the right. Right: the confidence (the weight the weak
    expert gets) at each dispersion.

    Args:
        dispersion: ``(N,)`` in [0, 1], for example :func:`~moeapps.graph.variance_dispersion`.
        confidence: ``(N,)`` in [0, 1].
        weak_right: ``(N,)`` bool.
        title: What the nodes are.

    Returns:
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
