"""Which tasks help and which hurt each other: the angles between their gradients on what they share."""

# Shapes: T tasks

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from moeapps.core.errors import DataError
from moeapps.core.views import Map
from moeapps.recsys.encoder import Rows
from moeapps.recsys.targets import TargetKind, task_losses
from moeapps.recsys.task_balance import gradient_matrix

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["TaskRelations", "measure_relations"]


@dataclass
class TaskRelations:
    """Cosines of the tasks' gradients on the parameters that the tasks share.

    Parameters
    ----------
    cosine : DataFrame
        One row and column per task: the mean cosine over batches, 1 on the diagonal. Above 0 a step for one task lowers
        the loss of the other, too; below 0 it raises it. NaN where no batch has labels of both.
    conflicts : DataFrame
        Part of the batches in which the cosine is below 0.
    """

    cosine: pd.DataFrame
    conflicts: pd.DataFrame

    @property
    def pairs(self) -> pd.DataFrame:
        """One row per pair of tasks, the strongest conflict first: ``task``, ``other``, ``cosine``, ``conflicts``."""
        names, cosine, conflicts = self._names, self.cosine.to_numpy(), self.conflicts.to_numpy()
        rows = [
            {"task": names[i], "other": names[j], "cosine": cosine[i, j], "conflicts": conflicts[i, j]}
            for i in range(len(names))
            for j in range(i + 1, len(names))
        ]
        frame = pd.DataFrame(rows, columns=["task", "other", "cosine", "conflicts"])
        return frame.sort_values("cosine", ignore_index=True)

    @property
    def _names(self) -> list[str]:
        return [str(name) for name in self.cosine]

    def map(self) -> Map:
        """For a report: tasks by tasks."""
        return Map.of("cosine of the tasks' gradients on shared parameters", self.cosine, "task", "task")

    def plot(self, title: str = "") -> "Figure":
        """Draw the cosines, from blue (tasks help each other) to red (they hurt each other).

        Parameters
        ----------
        title : str, default=""
            Title of the figure.

        Returns
        -------
        matplotlib.figure.Figure
            One panel.
        """
        from moeapps.core.plots import new_figure

        names, values = self._names, self.cosine.to_numpy()
        size = 2.8 + 0.62 * len(names)
        figure = new_figure(width=size + 1.2, height=size)
        figure.clear()
        axes = figure.subplots()
        # The diagonal is 1 by definition and would pale the rest
        off = np.where(np.eye(len(names), dtype=bool), np.nan, values)
        limit = float(np.nanmax(np.abs(off))) if np.isfinite(off).any() else 1.0
        image = axes.imshow(off, cmap="RdBu", vmin=-max(limit, 1e-3), vmax=max(limit, 1e-3))
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axes.set_yticks(range(len(names)), names)
        for (i, j), value in np.ndenumerate(off):
            if np.isfinite(value):
                shade = "white" if abs(value) > 0.6 * limit else "black"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color=shade)
        figure.colorbar(image, ax=axes, label="cosine of gradients", shrink=0.8)
        axes.set_title(title)
        return figure


def measure_relations(
    network: Any, batches: Iterable[tuple[Rows, Tensor]], names: Sequence[str], kinds: Sequence[TargetKind]
) -> TaskRelations:
    """Average the cosines of the tasks' gradients over batches.

    Parameters
    ----------
    network : MultiTaskNetwork
        In evaluation mode, with dense gradients; it is not changed.
    batches : iterable of (Rows, Tensor)
        Encoded rows and their labels ``(N, T)``, NaN where not known.
    names : sequence of str
        Names of the tasks.
    kinds : sequence of {"binary", "regression", "count"}
        Their kinds.

    Returns
    -------
    TaskRelations
        Cosines and conflicts.

    Raises
    ------
    DataError
        If there are fewer than two tasks.
    """
    if len(names) < 2:
        raise DataError(f"relations are between tasks, and there is one: {', '.join(names)}")
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    total, below, number = (torch.zeros(len(names), len(names)) for _ in range(3))
    for rows, labels in batches:
        with torch.enable_grad():
            losses = task_losses(network(rows), labels, list(kinds))
            gradients = gradient_matrix(list(losses), parameters)
        there = gradients.norm(dim=1) > 0
        both = there[:, None] & there
        unit = F.normalize(gradients, dim=1)
        cosine = unit @ unit.T
        total += torch.where(both, cosine, 0.0)
        below += both & (cosine < 0)
        number += both
    number = torch.where(number > 0, number, torch.nan)

    def frame(values: Tensor, diagonal: float) -> pd.DataFrame:
        table = (values / number).fill_diagonal_(diagonal).numpy().astype(float)
        return pd.DataFrame(table, index=pd.Index(names), columns=pd.Index(names))

    return TaskRelations(frame(total, 1.0), frame(below, 0.0))
