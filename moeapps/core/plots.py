"""Pictures of training, each a function from recorded numbers to a matplotlib Figure (drawn without a display)."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["new_figure", "plot_load", "plot_training"]


def new_figure(columns: int = 1, width: float = 6.0, height: float = 3.6) -> Figure:
    """Figure with a canvas of its own, so that the caller's matplotlib backend and state are not touched."""
    figure = Figure(figsize=(width * columns, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.subplots(1, columns, squeeze=False)
    return figure


def plot_training(
    histories: Mapping[str, pd.DataFrame], metric: str = "val/accuracy", stages: Sequence[str] = ()
) -> Figure:
    """One curve per model over epochs; where a history has a ``stage`` column, its last curve is shaded by stage.

    Parameters
    ----------
    histories : mapping of str to DataFrame
        ``history_`` frames by model name.
    metric : str, default="val/accuracy"
        Column to draw; a model without it is left out.
    stages : sequence of str, default=()
        Names of the stage numbers.

    Returns
    -------
    Figure
        The figure; save it with ``figure.savefig(path)``.
    """
    figure = new_figure(width=8.0)
    axes = figure.axes[0]
    for name, history in histories.items():
        if metric in history:
            axes.plot(history["epoch"], history[metric], label=name, linewidth=1.3)
    staged = [history for history in histories.values() if "stage" in history]
    if staged and stages:
        _shade(axes, staged[-1], stages)
    axes.set(xlabel="epoch", ylabel=metric)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    return figure


def plot_load(load: pd.DataFrame) -> Figure:
    """Heat map of experts by class, time, task or timestep.

    Parameters
    ----------
    load : DataFrame
        One line per group, one column per expert, values in [0, 1], as :func:`~moeapps.core.statistics.load_by_group`
        gives them.

    Returns
    -------
    Figure
        The figure.
    """
    groups, experts = load.shape
    figure = new_figure(width=max(3.0, 1.6 + 0.55 * experts), height=max(2.2, 1.2 + 0.35 * groups))
    axes = figure.axes[0]
    image = axes.imshow(load.to_numpy(), cmap="viridis", vmin=0.0, vmax=float(load.to_numpy().max()), aspect="auto")
    axes.set_xticks(range(experts), [str(name) for name in load.columns])
    step = max(1, groups // 20)
    axes.set_yticks(range(0, groups, step), [str(name) for name in load.index[::step]])
    axes.set(xlabel="expert", ylabel=str(load.index.name or "group"))
    figure.colorbar(image, ax=axes, label="fraction of assignments")
    return figure


def _shade(axes: Axes, history: pd.DataFrame, stages: Sequence[str]) -> None:
    block = (history["stage"] != history["stage"].shift()).cumsum()
    for index, (_, part) in enumerate(history.groupby(block)):
        first, last = part["epoch"].iloc[0], part["epoch"].iloc[-1] + 1
        if index % 2 == 0:
            axes.axvspan(first, last, color="black", alpha=0.05, linewidth=0)
        name = stages[int(part["stage"].iloc[0])].replace("_", " ")
        height = 1.01 + 0.05 * (index % 2)  # neighbours at two heights, so that short stages do not overlap
        axes.text((first + last) / 2, height, name, transform=axes.get_xaxis_transform(), ha="center", fontsize=7)
