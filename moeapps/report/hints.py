"""Warnings about a run, each with what to try.

Warned of are experts without tokens or with most of them, routers that are undecided or certain, dropped assignments,
a validation loss that rises, and, in streams, unreadable events and idle experts.
"""

import math
import re
from collections.abc import Iterator

import numpy as np
import pandas as pd

from moeapps.core.views import expert_shares
from moeapps.report.runs import Run, counts_hits

__all__ = ["Layer", "find_hints", "routing_layers"]

OVERLOADED = 3.0
"""Load of an expert over an equal share, above which it is named."""

DROPPED = 0.05
"""Share of the assignments refused for lack of capacity, above which it is named."""

CERTAIN, UNDECIDED = 0.02, 0.98
"""Entropy of the router over log E, the largest there is, at or below and at or above which it is named."""

WORSE = 1.1
"""Last validation loss over the best one, above which the model is said to overfit."""

DEAD = 0.01
"""Load of an expert over an equal share, below which it is called dead."""

FALLEN = 0.1
"""Fall of a stream's windowed accuracy that is named if no expert was renewed."""

IDLE = 0.1
"""Share of a stream's expert over an equal one, below which it is named."""

_LAYER = re.compile(r"^(?P<stage>val/)?moe/(?:(?P<layer>.+)/)?load/0$")


class Layer:
    """The logged routing of one layer with E experts.

    Parameters
    ----------
    name : str
        Name of the layer.
    prefix : str
        What its columns begin with, such as ``"val/moe/encoder/"``.
    history : DataFrame
        Logged metrics, one row per epoch.

    Attributes
    ----------
    epochs : Series
        Epochs with a logged load.
    load : DataFrame of shape (epochs, E)
        Share of the assignments of each expert.
    values : dict of Series
        Other statistics by name, one value per epoch: ``entropy`` in nats, ``dead_experts``, ``dropped``, ``max_load``.
    """

    def __init__(self, name: str, prefix: str, history: pd.DataFrame) -> None:
        self.name = name
        columns = [c for c in history if re.fullmatch(rf"{re.escape(prefix)}load/\d+", str(c))]
        columns.sort(key=lambda c: int(str(c).rpartition("/")[2]))
        rows = history[columns].dropna()
        self.epochs = history.loc[rows.index, "epoch"] if "epoch" in history else pd.Series(rows.index)
        self.load = rows.set_axis([f"expert {i}" for i in range(len(columns))], axis=1)
        self.values = {
            statistic: history.loc[rows.index, f"{prefix}{statistic}"]
            for statistic in ("entropy", "dead_experts", "dropped", "max_load")
            if f"{prefix}{statistic}" in history
        }

    @property
    def num_experts(self) -> int:
        """Number of experts E."""
        return self.load.shape[1]


def routing_layers(history: pd.DataFrame) -> list[Layer]:
    """The routed layers of a history.

    Parameters
    ----------
    history : DataFrame
        Logged metrics, one row per epoch.

    Returns
    -------
    list of Layer
        With what training logged, or validation where training logged nothing.
    """
    prefixes: dict[str, tuple[str, str]] = {}
    for column in history:
        match = _LAYER.match(str(column))
        if match is None:
            continue
        name, stage = match["layer"] or "model", match["stage"] or ""
        if name not in prefixes or not stage:
            prefixes[name] = (stage, str(column).removesuffix("load/0"))
    layers = [Layer(name, prefix, history) for name, (_, prefix) in prefixes.items()]
    return [layer for layer in layers if len(layer.load)]


def find_hints(run: Run) -> list[str]:
    """Warnings about a run.

    Parameters
    ----------
    run : Run
        The run.

    Returns
    -------
    list of str
        One sentence each, with what to try; empty for a healthy run.
    """
    return [*run.views.hints, *_of_layers(run), *_of_stream(run), *_of_training(run)]


def _of_layers(run: Run) -> Iterator[str]:
    for layer in routing_layers(run.history):
        count, last = layer.num_experts, layer.load.iloc[-1].to_numpy(dtype=float)
        if count < 2:
            continue
        dead = [str(e) for e in np.flatnonzero(last < DEAD / count)]
        if dead:
            yield (
                f"{layer.name}: expert{'s' * (len(dead) > 1)} {', '.join(dead)} got no token in the last epoch, or "
                "almost none: raise the balance weight, use a router with noise (noisy_topk) "
                "or a bias that balances (shared), or prune"
            )
        top = int(last.argmax())
        if last[top] > min(OVERLOADED / count, 0.9) and count > 2:
            yield (
                f"{layer.name}: expert {top} gets {100 * last[top]:.0f} % of the load (an equal share is "
                f"{100 / count:.0f} %): raise the balance weight, or try expert_choice"
            )
        yield from _of_entropy(layer)
        if "dropped" in layer.values and (dropped := float(layer.values["dropped"].iloc[-1])) > DROPPED:
            yield f"{layer.name}: capacity refused {dropped:.0%} of the assignments: raise capacity_factor"


def _of_entropy(layer: Layer) -> Iterator[str]:
    """Advice about a router that is undecided or certain; none about one that does not learn its choices."""
    entropy = layer.values.get("entropy", pd.Series(dtype=float)).to_numpy(dtype=float)
    # hash and thor have the same entropy in every epoch; with soft and expert_choice all experts get equally much
    fixed = len(entropy) > 1 and np.ptp(entropy) < 1e-9
    even = float(np.ptp(layer.load.to_numpy(dtype=float))) < 1e-9
    if not len(entropy) or fixed or even or entropy[-1] < 0:
        return
    part = float(entropy[-1]) / math.log(layer.num_experts)
    if part >= UNDECIDED:
        yield (
            f"{layer.name}: the router is undecided (entropy {part:.0%} of its largest value): the experts "
            "are alike; lower the balance weight or train longer"
        )
    elif part <= CERTAIN:
        yield (
            f"{layer.name}: the router is certain of every token (entropy {part:.0%} of its largest value): "
            "a z-loss or noise keeps it learning"
        )


def _of_stream(run: Run) -> Iterator[str]:
    history = run.history
    if not {"instance", "windowed"} <= set(history) or len(history) < 4:
        return
    if "rejected" in history and (count := int(history["rejected"].iloc[-1])):
        yield f"{count:,} events could not be read or learned: the file of rejects says why"
    yield from _of_drift(history)
    shares = expert_shares(history)
    if shares.shape[1] < 2:
        return
    late = shares.tail(max(1, len(history) // 4)).mean()
    idle = [str(name) for name in late.index[late < IDLE / len(late)]]
    if idle and len(late) > 2 and idle[0].startswith("expert "):
        which = f"expert{'s' * (len(idle) > 1)} {', '.join(name.removeprefix('expert ') for name in idle)}"
        yield f"{which} had almost no weight in the last quarter: try fewer experts"
    elif idle and not idle[0].startswith("expert "):
        # kinds are compared: that a gate gives all weight to one of a kind is no reason to leave the others out
        which = f"experts of the kind{'s' * (len(idle) > 1)} {', '.join(idle)}"
        yield f"{which} had almost no weight in the last quarter: experts= can leave them out"


def _of_drift(history: pd.DataFrame) -> Iterator[str]:
    """An accuracy that fell and stayed low, in a stream whose experts were never renewed."""
    accuracy = history["windowed"].dropna()
    if "renewed" not in history or int(history["renewed"].iloc[-1]) or len(accuracy) < 8:
        return
    if not counts_hits(history):
        return
    smooth = accuracy.rolling(max(2, len(accuracy) // 4), min_periods=1).median()
    best, late = float(smooth.max()), float(smooth.iloc[-1])
    if late < best - FALLEN:
        yield (
            f"the accuracy fell from {best:.0%} to {late:.0%} and no expert was renewed: drift='replace' with a larger "
            "drift_delta renews experts when the stream changes"
        )


def _of_training(run: Run) -> Iterator[str]:
    if "val/loss" not in run.history or run.views.kept_epoch is not None:  # the best weights were put back
        return
    losses = run.history["val/loss"].dropna()
    # a running median, since one bad epoch is no trend
    smooth = losses.rolling(max(3, len(losses) // 10), center=True, min_periods=2).median()
    if len(losses) < 5 or not smooth.min() > 0 or smooth.iloc[-1] <= WORSE * smooth.min():
        return
    epochs = run.history["epoch"] if "epoch" in run.history else pd.Series(range(len(run.history)))
    best = epochs[losses.index].iloc[int(smooth.to_numpy().argmin())]
    yield (
        f"the validation loss rose by {smooth.iloc[-1] / smooth.min() - 1:.0%} after epoch {best:.0f}: the model "
        "overfits; stop earlier, or use more dropout or weight decay (estimators put the best weights back)"
    )
