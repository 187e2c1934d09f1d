"""Pictures of a training: losses together, every other metric alone, the kept epoch marked."""

from typing import Any

import numpy as np
import pandas as pd

from moeapps.core.run_result import is_smaller_better
from moeapps.core.views import Curves, expert_shares
from moeapps.report.figures import Picture, draw_lines
from moeapps.report.hints import Layer, routing_layers
from moeapps.report.runs import Run, counts_hits, is_larger_better

__all__ = ["is_curve", "is_metric", "layer_curves", "stream_curves", "training_pictures"]

PICTURES = 9
"""Pictures of the training of one run, at most."""

EVEN = 0.02
"""Largest difference between shares of experts, over the whole training, that says nothing: no picture is made."""


def is_curve(run: Run, name: str) -> bool:
    """Whether a metric was logged more than once."""
    return name in run.history and run.axis in run.history and run.history[name].notna().sum() > 1


def is_metric(name: str) -> bool:
    """Whether this column is a score, not the state of an expert."""
    return (name.startswith(("val/", "test/")) and "/moe/" not in name) or name in ("train/loss", "windowed")


def training_pictures(run: Run) -> list[Picture]:
    """Pictures of what a run logged; each title is its message."""
    history, axis = run.history, run.axis
    if axis not in history:
        return []
    metrics = [str(n) for n in history if is_metric(str(n)) and is_curve(run, str(n))]
    losses = [name for name in metrics if name.endswith("/loss")]
    groups = [losses, *([name] for name in metrics if name not in losses and name != "windowed")]
    if "windowed" in metrics:
        groups.append(["windowed", "total"])
    return [_picture(run, group) for group in groups[:PICTURES] if group]


def _picture(run: Run, group: list[str]) -> Picture:
    history, axis = run.history, run.axis
    if "windowed" in group:
        return _stream_picture(run, group)
    kept = run.views.kept_epoch
    marks = {"kept epoch": [kept]} if kept is not None and len(history) > 1 else {}
    lines = {name: (history[axis], history[name]) for name in group}
    telling = next((name for name in group if name.startswith("val/")), group[0])
    unit = next((word for word in ("loss", "accuracy", "auc") if word in telling), telling.rpartition("/")[2])
    return draw_lines(_message(history, axis, telling, kept), axis, lines, unit, marks)


def _message(history: pd.DataFrame, axis: str, name: str, kept: int | None) -> str:
    """A metric's best place, and its value at the kept epoch."""
    known = history[[axis, name]].dropna()
    places, values = known[axis].to_numpy(), known[name].to_numpy(dtype=float)
    smaller, larger = is_smaller_better(name), is_larger_better(name)
    best = int(values.argmin() if smaller else values.argmax())
    extreme = "lowest" if smaller else "highest"
    now = values[places == kept]
    if kept is not None and len(now):
        where = f", {extreme} at epoch {places[best]:.0f}" if places[best] != kept else f": the {extreme}"
        return f"{name}: {now[0]:.4g} at epoch {kept}, which is kept{where if smaller or larger else ''}"
    if not (smaller or larger):
        return f"{name}: {values[-1]:.4g} in the end"
    return f"{name}: {extreme} at {axis} {places[best]:.0f} ({values[best]:.4g})"


def _stream_picture(run: Run, group: list[str]) -> Picture:
    history = run.history
    axis, places = _time_axis(history, run.axis)
    hits, values = counts_hits(history), history["windowed"].to_numpy(dtype=float)
    low = int(values.argmin() if hits else values.argmax())
    worst = float(values[low])
    what, word = ("accuracy", "lowest") if hits else ("mean absolute error", "largest")
    names = {"windowed": f"{what}, last window", "total": f"{what}, all so far"}
    lines = {names[name]: (places, history[name]) for name in group if name in history}
    marks = {name: list(places[_rises(history[column])][:40]) for name, column in _EVENTS.items() if column in history}
    title = f"The {what} was {word} at {axis} {_place(places.iloc[low])}: {worst:.3g}"
    return draw_lines(title, axis, lines, what, marks)


_EVENTS = {"drift alarm": "drifts", "drift warning": "warnings", "expert renewed": "renewed"}
"""What is marked in the chart of a stream's accuracy, and the column that counts it."""


def _time_axis(history: pd.DataFrame, axis: str) -> tuple[str, pd.Series]:
    """Name and values of the x axis: the time, where a stream has one."""
    if "time" in history:
        if pd.api.types.is_numeric_dtype(history["time"]):
            return "time", history["time"]
        times = pd.to_datetime(history["time"], errors="coerce", utc=True)
        if not times.isna().any() and times.is_monotonic_increasing:
            return "time", times.dt.tz_localize(None)
    return axis, history[axis]


def _place(value: Any) -> str:
    return f"{value:%Y-%m-%d %H:%M}" if isinstance(value, pd.Timestamp) else f"{value:,.0f}"


def _rises(counts: pd.Series) -> pd.Series:
    """Where a count rose."""
    return counts.diff().fillna(counts) > 0


def layer_curves(run: Run) -> list[Curves]:
    """Load of the experts, entropy of the routers, experts without tokens; what is even everywhere is left out."""
    layers = [layer for layer in routing_layers(run.history) if len(layer.load) > 1]
    curves = [
        Curves.of(_load_message(layer), layer.epochs.tolist(), _lines(layer.load), "epoch", "load", stacked=True)
        for layer in layers[:12]
        if float(np.ptp(layer.load.to_numpy())) > EVEN
    ]
    for statistic, what in (("entropy", "entropy of the router, nats"), ("dead_experts", "experts without tokens")):
        lines = {layer.name: layer.values[statistic].tolist() for layer in layers if statistic in layer.values}
        lengths = {len(values) for values in lines.values()}
        if lines and len(lengths) == 1 and any(any(values) for values in lines.values()):
            curves.append(Curves.of(what, layers[0].epochs.tolist(), lines, "epoch", what))
    return curves


def _load_message(layer: Layer) -> str:
    last = layer.load.iloc[-1]
    return f"load of {layer.name}: {last.idxmax()} gets most in the end, {100 * last.max():.0f} %"


def stream_curves(run: Run) -> list[Curves]:
    """Shares of the experts of a stream over time."""
    history = run.history
    shares = expert_shares(history)
    if run.axis != "instance" or shares.empty or run.views.curves or float(np.ptp(shares.to_numpy())) <= EVEN:
        return []
    marks = history["instance"][_rises(history["renewed"])].astype(float).tolist() if "renewed" in history else []
    what = "expert" if str(shares.columns[0]).startswith("expert ") else "kind of experts"
    title = f"share of each {what}; lines: an expert was renewed"
    return [
        Curves.of(title, history["instance"].tolist(), _lines(shares), "instance", "share", stacked=True, marks=marks)
    ]


def _lines(frame: pd.DataFrame) -> dict[str, list[float]]:
    return {str(name): values.tolist() for name, values in frame.items()}
