"""Faults of multi-gate models that HoME's paper describes: collapse, degradation, underfitting."""

# Shapes: N rows, E experts and G gates of a level, h width of an expert's output

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from moeapps.core.errors import ConfigError
from moeapps.core.views import Map, Views
from moeapps.recsys.encoder import Rows
from moeapps.recsys.network import MultiTaskNetwork

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Diagnosis", "diagnose", "has_gates"]

ZEROS, DEAD, SPREAD, IGNORED, CAPTURED = 0.9, 0.2, 10.0, 0.05, 0.6
"""Thresholds of the hints: share of zeros; share of units that are always zero; ratio of largest to smallest variance
in a level; weight of all own experts, below which they are ignored; weight of one shared expert, above which it may be
captured."""


@dataclass
class Diagnosis:
    """Statistics of experts and gates on some rows.

    Parameters
    ----------
    experts : DataFrame
        One row per level and expert: ``mean``, ``variance`` and ``zeros`` (fraction of exact zeros) of its outputs, and
        ``dead`` (fraction of its units that are zero on every row).
    gates : DataFrame
        One row per level, gate and expert: mean ``weight``. Weights of self gates are included.
    """

    experts: pd.DataFrame
    gates: pd.DataFrame

    def hints(self) -> list[str]:
        """Warnings, one sentence each; an empty list if there is none.

        1. Collapse: an expert's outputs are almost all zero, or many of its units are.
        2. Collapse: the experts' outputs differ in scale.
        3. Underfitting: a gate gives its own experts almost no weight.
        4. Degradation: a shared expert has much weight in one gate and almost none in the others.
        """
        hints = []
        for level, part in self.experts.groupby("level", sort=False):
            for _, row in part[part["zeros"] > ZEROS].iterrows():
                hints.append(f"{level}, {row['expert']}: {100 * row['zeros']:.0f} % of its outputs are zero (collapse)")
            dying = part[(part["dead"] > DEAD) & (part["zeros"] <= ZEROS)]
            if len(dying):
                share = f"{100 * dying['dead'].min():.0f} to {100 * dying['dead'].max():.0f} %"
                hints.append(f"{level}: {share} of the units of {len(dying)} experts are zero on every row (collapse)")
            low, high = part["variance"].min(), part["variance"].max()
            if len(part) > 1 and high > SPREAD * max(low, 1e-12):
                hints.append(
                    f"{level}: variances of the experts' outputs differ by a factor of {high / max(low, 1e-12):.0f}"
                )
        for (place, gate), part in self.gates.groupby(["level", "gate"], sort=False):
            # A task's experts are called "<task>: <number>"; MMoE's experts belong to no task
            own = part[part["expert"].str.startswith(f"{gate}:")]
            if len(own) and own["weight"].sum() < IGNORED:
                hints.append(f"{place}: {gate} hardly uses its own experts ({own['weight'].sum():.3f}; underfitting)")
            # "shared 0", "shared: 0" or "global: 0", but not "shared_posts: 0" of a task with that name
            shared = part[part["expert"].str.fullmatch(r"(shared|global):? \d+") & (part["weight"] > CAPTURED)]
            for _, row in shared.iterrows():
                others = self.gates.query("level == @place and expert == @row.expert and gate != @gate")["weight"]
                if len(others) and others.max() < IGNORED:
                    hints.append(f"{place}: only {gate} uses {row['expert']} (degradation)")
        return hints

    def metrics(self) -> dict[str, float]:
        """Numbers to log: zeros and ratio of variances of each level, and the weights of the gates."""
        metrics = {}
        for level, part in self.experts.groupby("level", sort=False):
            metrics[f"{level}/zeros"] = float(part["zeros"].max())
            metrics[f"{level}/variance_ratio"] = float(part["variance"].max() / max(part["variance"].min(), 1e-12))
        for row in self.gates.itertuples():
            metrics[f"{row.level}/{row.gate}/{row.expert}"] = float(row.weight)  # type: ignore[arg-type]
        return metrics

    def views(self) -> Views:
        """Maps for a report: weights of the gates, statistics of the experts' outputs; and the hints."""
        maps = []
        for level, part in self.gates.groupby("level", sort=False):
            weights = part.pivot_table(index="gate", columns="expert", values="weight", sort=False)
            maps.append(Map.of(f"mean weight of experts by gate: {level}", weights, "gate"))
        for level, part in self.experts.groupby("level", sort=False):
            outputs = part.set_index("expert")[["variance", "zeros", "dead"]]
            maps.append(Map.of(f"outputs of experts: {level}", outputs, "expert", "statistic"))
        return Views(maps, hints=self.hints())

    def plot(self, title: str = "") -> "Figure":
        """Draw variance, zeros and dead units of each expert (left), and the mean weights of each gate (right).

        Parameters
        ----------
        title : str, default=""
            Title of the figure.

        Returns
        -------
        matplotlib.figure.Figure
            One line of two panels per level.
        """
        from moeapps.core.plots import new_figure

        levels = list(dict.fromkeys(self.experts["level"]))
        figure = new_figure(width=11.0, height=3.4 * len(levels))
        figure.clear()
        panels = figure.subplots(len(levels), 2, squeeze=False, width_ratios=[1, 1.3])
        for (left, right), level in zip(panels, levels, strict=True):
            part = self.experts[self.experts["level"] == level]
            positions = range(len(part))
            left.barh(positions, part["variance"], color="tab:blue", alpha=0.7)
            for y, row in enumerate(part.to_dict("records")):
                text = f" {100 * row['zeros']:.0f} % zeros, {100 * row['dead']:.0f} % of units dead"
                left.text(row["variance"], y, text, va="center", fontsize=8)
            left.set_yticks(positions, part["expert"], fontsize=8)
            left.set_xlim(0, float(part["variance"].max()) * 2 + 1e-12)
            left.invert_yaxis()
            left.set_xlabel(f"{level}: variance of an expert's outputs")
            weights = self.gates[self.gates["level"] == level].pivot_table(
                index="gate", columns="expert", values="weight", sort=False
            )
            image = right.imshow(weights, aspect="auto", cmap="viridis", vmin=0)
            right.set_xticks(range(weights.shape[1]), weights.columns, rotation=60, ha="right", fontsize=8)
            right.set_yticks(range(weights.shape[0]), weights.index, fontsize=8)
            for (i, j), value in np.ndenumerate(weights.to_numpy()):
                shade = "black" if value > 0.6 * float(weights.to_numpy().max()) else "white"
                right.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=shade)
            figure.colorbar(image, ax=right, label="mean weight")
        figure.suptitle(title)
        return figure


def has_gates(network: Any) -> bool:
    """Whether a network has gates to diagnose."""
    return isinstance(network, MultiTaskNetwork) and network.model.gated


@torch.no_grad()
def diagnose(network: Any, rows: Rows, task_names: list[str] | None = None) -> Diagnosis:
    """Measure experts and gates on some rows.

    Parameters
    ----------
    network : MultiTaskNetwork
        A network with a multi-task model, in evaluation mode.
    rows : Rows
        Encoded rows; a few thousand are enough.
    task_names : list of str, optional
        Names of the tasks; ``"task 0"`` and so on by default.

    Returns
    -------
    Diagnosis
        Statistics of experts and gates.

    Raises
    ------
    ConfigError
        If the network has no gates of experts (Shared-Bottom, STAR, PEPNet, DIN).
    """
    model = getattr(network, "model", network)
    if not has_gates(network):
        raise ConfigError(f"{type(model).__name__} has no gates to diagnose")
    model.record = True
    try:
        network(rows)
    finally:
        model.record = False
    experts, gates = [], []
    task_names = network.head_names or task_names
    for level in model.recorded:
        outputs, weights = level["outputs"], level["weights"]
        expert_names = [_named(name, task_names) for name in level["experts"]]
        for e, name in enumerate(expert_names):
            output = outputs[:, e]  # (N, h)
            experts.append(
                {
                    "level": level["level"],
                    "expert": name,
                    "mean": float(output.mean()),
                    "variance": float(output.var()),
                    "zeros": float((output == 0).float().mean()),
                    "dead": float((output == 0).all(dim=0).float().mean()),
                }
            )
        for g, gate in enumerate(level["gates"]):
            for e, name in enumerate(expert_names):
                weight = float(weights[:, g, e].mean())
                gates.append(
                    {"level": level["level"], "gate": _named(gate, task_names), "expert": name, "weight": weight}
                )
    model.recorded = []
    return Diagnosis(pd.DataFrame(experts), pd.DataFrame(gates))


def _named(name: str, tasks: list[str] | None) -> str:
    """``task 1: 0`` with the task's own name."""
    head, colon, number = name.partition(":")
    if tasks is None or not head.startswith("task "):
        return name
    return tasks[int(head.removeprefix("task "))] + colon + number
