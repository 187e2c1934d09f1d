"""Binary, regression and count targets, each with a loss that leaves out unknown labels."""

# Shapes: N rows, T tasks (targets)

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from moeapps.core.errors import ConfigError, DataError
from moeapps.core.tabledata.source import require_columns
from moeapps.recsys.moments import Moments, column_moments, merge_moments

__all__ = ["TargetKind", "Targets", "task_losses"]

TargetKind = Literal["binary", "regression", "count"]
TARGET_KINDS: tuple[TargetKind, ...] = get_args(TargetKind)


class Targets:
    """Columns of a frame as an array of labels, NaN where a label is not known.

    Parameters
    ----------
    names : sequence of str
        The columns.
    kinds : dict, optional
        ``"binary"``, ``"regression"`` or ``"count"`` by name. Inferred for the others: two values are binary, anything
        else is regression.

    Attributes
    ----------
    classes : dict
        For a binary target of other values than 0 and 1: its two values, the second one is the positive class.
    mean : list of float
        Mean of a regression target; 0 for the others.
    scale : list of float
        Its standard deviation; 1 for the others.

    Raises
    ------
    ConfigError
        If a kind is unknown, or that of a column that is no target.
    """

    def __init__(self, names: Sequence[str], kinds: Mapping[str, TargetKind] | None = None) -> None:
        kinds = dict(kinds or {})
        for name, kind in kinds.items():
            if name not in names:
                raise ConfigError(f"kinds: {name!r} is not a target; the targets are {', '.join(names)}")
            if kind not in TARGET_KINDS:
                raise ConfigError(f"kinds: {name!r} must be one of {', '.join(TARGET_KINDS)}, got {kind!r}")
        self.names, self.kinds = list(names), kinds
        self.classes: dict[str, list[Any]] = {}
        self.mean: list[float] = []
        self.scale: list[float] = []

    def fit(self, frame: pd.DataFrame) -> Self:
        """Learn kinds, classes, means and scales.

        Raises
        ------
        DataError
            If a column is missing or has no known label, or a binary target has more than two values.
        """
        return self.fit_batches([frame])

    def fit_batches(self, frames: Iterable[pd.DataFrame]) -> Self:
        """Learn from rows that come in batches.

        Raises
        ------
        DataError
            As in :meth:`fit`.
        """
        values: dict[str, set[Any]] = {name: set() for name in self.names}
        moments: dict[str, Moments] = {}
        for frame in frames:
            require_columns(self.names, frame.columns, "the frame", "targets")
            for name in self.names:
                known = frame[name].dropna()
                if len(values[name]) <= 2:
                    values[name].update(known.unique().tolist()[:3])  # three show that it is not binary
                numbers = pd.to_numeric(known, errors="coerce").dropna().to_numpy(dtype=float)
                if len(numbers):
                    batch = column_moments(numbers[:, None])
                    moments[name] = merge_moments(moments[name], batch) if name in moments else batch
        for name in self.names:
            # By type first: values of one column may be of types that do not compare
            distinct = sorted(values[name], key=lambda value: (str(type(value)), value))
            if not distinct:
                raise DataError(f"target {name!r} has no known label")
            kind = self.kinds.setdefault(name, "binary" if len(distinct) <= 2 else "regression")
            if kind == "binary":
                if len(distinct) > 2:
                    raise DataError(f"target {name!r} is binary and has more than two values, such as {distinct[:3]}")
                if not set(distinct) <= {0, 1}:
                    self.classes[name] = distinct
        self.mean, self.scale = [0.0] * len(self.names), [1.0] * len(self.names)
        for t, name in enumerate(self.names):
            if self.kinds[name] == "regression" and name in moments:
                count, mean, squares = (float(part[0]) for part in moments[name])
                self.mean[t], self.scale[t] = mean, (squares / count) ** 0.5 or 1.0
        return self

    def encode(self, frame: pd.DataFrame) -> NDArray[np.float32]:
        """Labels ``(N, T)``, those of regression targets standardised.

        Raises
        ------
        DataError
            If a column is missing, or holds values of another kind.
        """
        require_columns(self.names, frame.columns, "the frame", "targets")
        labels = np.full((len(frame), len(self.names)), np.nan)
        for t, name in enumerate(self.names):
            column = frame[name]
            if name in self.classes:
                codes = {value: float(i) for i, value in enumerate(self.classes[name])}
                unseen = column[column.notna() & ~column.isin(list(codes))]
                if len(unseen):
                    raise DataError(f"target {name!r} holds {unseen.iloc[0]!r}, expected {self.classes[name]}")
                column = column.map(codes)
            try:
                labels[:, t] = pd.to_numeric(column).to_numpy(dtype=float, na_value=np.nan)
            except (TypeError, ValueError):
                raise DataError(f"target {name!r} is {self.kinds[name]} and holds what is not a number") from None
            if np.isinf(labels[:, t]).any():
                raise DataError(f"target {name!r} is infinite at row {int(np.isinf(labels[:, t]).argmax())}")
            if self.kinds[name] == "count" and (labels[:, t] < 0).any():
                raise DataError(f"target {name!r} is a count and is negative at row {int((labels[:, t] < 0).argmax())}")
            labels[:, t] = (labels[:, t] - self.mean[t]) / self.scale[t]
        return labels.astype(np.float32)

    def decode(self, outputs: NDArray[Any]) -> NDArray[np.float64]:
        """Outputs ``(N, T)`` of a model as probabilities, numbers and rates."""
        numbers = np.asarray(outputs, dtype=np.float64)
        result = np.empty_like(numbers)
        for t, name in enumerate(self.names):
            column = numbers[:, t]
            if self.kinds[name] == "binary":
                result[:, t] = 1 / (1 + np.exp(-np.clip(column, -700, 700)))
            elif self.kinds[name] == "count":
                result[:, t] = np.exp(np.clip(column, -700, 700))
            else:
                result[:, t] = column * self.scale[t] + self.mean[t]
        return result

    def index(self, name: str, what: str) -> int:
        """Number of a target.

        Raises
        ------
        ConfigError
            Beginning with ``what``, if there is no such target.
        """
        if name not in self.names:
            raise ConfigError(f"{what} {name!r}, which is not among {', '.join(self.names)}")
        return self.names.index(name)

    def state(self) -> dict[str, Any]:
        """The learned values as JSON values."""
        return dict(vars(self))

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Undo :meth:`state`."""
        targets = cls(state["names"])
        vars(targets).update(state)
        return targets


def task_losses(
    outputs: Tensor, labels: Tensor, kinds: Sequence[TargetKind], positive_weight: Tensor | None = None
) -> Tensor:
    """Mean loss of each task over its known labels, ``(T,)``; zero (with zero gradient) for a task without any.

    Binary: cross-entropy of logits. Regression: squared error. Count: Poisson, the output being the log rate.

    Parameters
    ----------
    outputs : Tensor of shape (N, T)
        Outputs of a model.
    labels : Tensor of shape (N, T)
        Labels, NaN where not known.
    kinds : sequence of {"binary", "regression", "count"}
        Kind of each task.
    positive_weight : Tensor of shape (T,), optional
        Weight of the positive rows of binary tasks.
    """
    known = ~labels.isnan()
    target = labels.nan_to_num(0.0)
    losses = []
    for t, kind in enumerate(kinds):
        y, out = target[:, t], outputs[:, t]
        if kind == "binary":
            weight = None if positive_weight is None else positive_weight[t]
            loss = F.binary_cross_entropy_with_logits(out, y, pos_weight=weight, reduction="none")
        elif kind == "count":
            loss = F.poisson_nll_loss(out, y, log_input=True, reduction="none")
        else:
            loss = F.mse_loss(out, y, reduction="none")
        # where, not a product with the mask: infinity times zero is NaN
        losses.append(torch.where(known[:, t], loss, 0.0).sum() / known[:, t].sum().clamp_min(1))
    return torch.stack(losses)
