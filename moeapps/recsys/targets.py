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

from moeapps.core.checks import check_one_of
from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.core.saved_arguments import check_fields
from moeapps.core.tabledata.cells import MISSING_VALUES
from moeapps.core.tabledata.evidence import ColumnEvidence
from moeapps.core.tabledata.kinds import Column
from moeapps.core.tabledata.numbers import to_days, to_numbers
from moeapps.core.tabledata.source import require_columns
from moeapps.core.tabledata.vocabulary import MISSING, UNKNOWN, Vocabulary, distinct_values, settle_values
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
    missing_values : iterable of str, optional
        Texts that mean a label that is not known; those of ``pandas.read_csv`` by default.

    Attributes
    ----------
    classes : dict
        For a binary target of other values than 0 and 1: its two values, the second one is the positive class.
    mean : list of float
        Mean of a regression target; 0 for the others.
    scale : list of float
        Its standard deviation; 1 for the others.
    times : list of str
        Targets that are dates or times; they are learned and predicted as days since 1970-01-01 UTC.

    Raises
    ------
    ConfigError
        If a kind is unknown, or that of a column that is no target.
    """

    names: list[str]
    kinds: dict[str, TargetKind]
    missing_values: list[str]
    classes: dict[str, list[Any]]
    times: list[str]
    mean: list[float]
    scale: list[float]

    def __init__(
        self,
        names: Sequence[str],
        kinds: Mapping[str, TargetKind] | None = None,
        missing_values: Iterable[str] | None = None,
    ) -> None:
        kinds = dict(kinds or {})
        for name, kind in kinds.items():
            if name not in names:
                raise ConfigError(f"kinds: {name!r} is not a target; the targets are {', '.join(names)}")
            check_one_of(f"kinds: {name!r}", kind, TARGET_KINDS)
        self.names, self.kinds = list(names), kinds
        self.missing_values = sorted(MISSING_VALUES if missing_values is None else missing_values)
        self.classes = {}
        self.times = []
        self.mean = []
        self.scale = []

    @property
    def missing(self) -> frozenset[str]:
        """Texts that mean a label that is not known."""
        return frozenset(self.missing_values)

    def fit(self, frame: pd.DataFrame) -> Self:
        """Learn kinds, classes, means and scales.

        Raises
        ------
        DataError
            If a column is missing or has no known label, or a binary target has more than two values.
        """
        return self.fit_batches([frame])

    def fit_batches(
        self, frames: Iterable[pd.DataFrame], columns: Mapping[str, Column] | None = None, untyped: bool = False
    ) -> Self:
        """Learn from rows that come in batches.

        Parameters
        ----------
        frames : iterable of DataFrame
            Batches.
        columns : dict, optional
            What the columns are, decided from all rows; else decided from the first batch.
        untyped : bool, default=False
            Whether the source has only text, as a CSV file.

        Raises
        ------
        DataError
            As in :meth:`fit`.
        """
        values: dict[str, dict[Any, None]] = {name: {} for name in self.names}
        moments: dict[str, Moments] = {}
        as_numbers = {name: self._is_number(name, columns) for name in self.names}
        for frame in frames:
            require_columns(self.names, frame.columns, "the frame", "targets")
            for name in self.names:
                if as_numbers[name] is None:
                    as_numbers[name] = self._looks_like_numbers(frame[name])
                if not as_numbers[name]:
                    values[name].update(dict.fromkeys(distinct_values(frame[name], self.missing, name)[:3]))
                    continue
                numbers = self._numbers(frame[name], name)
                numbers = numbers[~np.isnan(numbers)]
                if len(values[name]) <= 2:
                    values[name].update(dict.fromkeys(pd.unique(numbers).tolist()[:3]))  # three show: not binary
                if len(numbers):
                    batch = column_moments(numbers[:, None])
                    moments[name] = merge_moments(moments[name], batch) if name in moments else batch
        for name in self.names:
            # By type first: values of one column may be of types that do not compare
            distinct = sorted(map(_plain_label, values[name]), key=lambda value: (str(type(value)), value))
            if untyped:
                distinct = sorted(settle_values(distinct, True, name))
            if not distinct:
                raise DataError(f"target {name!r} has no known label")
            kind = self.kinds.setdefault(
                name, "binary" if len(distinct) <= 2 and name not in self.times else "regression"
            )
            if kind != "regression" and name in self.times:
                raise DataError(f"target {name!r} is {kind} and holds times, which can only be a regression")
            if kind == "binary":
                if len(distinct) > 2:
                    raise DataError(f"target {name!r} is binary and has more than two values, such as {distinct[:3]}")
                if not set(distinct) <= {0, 1}:
                    self.classes[name] = distinct
            elif not as_numbers[name]:
                raise DataError(f"target {name!r} is {kind} and holds what is not a number, such as {distinct[0]!r}")
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
            if name in self.classes:
                labels[:, t] = self._class_codes(name, frame[name], self.classes[name])
                continue
            try:
                labels[:, t] = self._numbers(frame[name], name)
            except DataError as error:
                if self.kinds[name] == "binary":  # true and false, which a CSV file has as text
                    labels[:, t] = self._class_codes(name, frame[name], [0, 1])
                    continue
                raise DataError(f"target {name!r} is {self.kinds[name]}: {error}") from None
            if self.kinds[name] == "binary":
                wrong = ~np.isnan(labels[:, t]) & (labels[:, t] != 0) & (labels[:, t] != 1)
                if wrong.any():
                    row = int(wrong.argmax())
                    raise DataError(
                        f"target {name!r} is binary, with the values 0 and 1 in training, and is {labels[row, t]:g} at "
                        f"row {frame.index[row]}"
                    )
            if np.isinf(labels[:, t]).any():
                raise DataError(f"target {name!r} is infinite at row {int(np.isinf(labels[:, t]).argmax())}")
            if self.kinds[name] == "count" and (labels[:, t] < 0).any():
                raise DataError(f"target {name!r} is a count and is negative at row {int((labels[:, t] < 0).argmax())}")
            labels[:, t] = (labels[:, t] - self.mean[t]) / self.scale[t]
        return labels.astype(np.float32)

    def _class_codes(self, name: str, column: pd.Series, classes: Sequence[Any]) -> NDArray[np.float64]:
        codes = Vocabulary(classes, self.missing, name).codes(column)
        unseen = codes == UNKNOWN
        if unseen.any():
            row = int(unseen.argmax())
            raise DataError(
                f"target {name!r} holds {column.iloc[row]!r} at row {column.index[row]}, expected {classes}"
            )
        return np.where(codes == MISSING, np.nan, codes)

    def _numbers(self, column: pd.Series, name: str) -> NDArray[np.float64]:
        read = to_days if name in self.times else to_numbers
        return read(column, self.missing, name)

    def _is_number(self, name: str, columns: Mapping[str, Column] | None) -> bool | None:
        if columns is None:
            return None
        column = columns[name]
        if column.kind == "time":
            self.times.append(name)
        return column.kind in ("number", "time") or column.why == "bools"

    def _looks_like_numbers(self, column: pd.Series) -> bool:
        evidence = ColumnEvidence(str(column.name), self.missing)
        evidence.update(column)
        return bool(self._is_number(str(column.name), {str(column.name): evidence.decide()}))

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

    def same_as(self, other: "Targets") -> bool:
        """Whether another one gives the same labels."""
        mine, its = ((each.names, each.kinds, each.classes, each.mean, each.scale) for each in (self, other))
        return mine == its

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickle, also one of 0.1."""
        vars(self).update(vars(Targets(state["names"])))
        vars(self).update(state)

    def state(self) -> dict[str, Any]:
        """The learned values as JSON values."""
        return dict(vars(self))

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Undo :meth:`state`.

        Raises
        ------
        FileFormatError
            If the state contradicts itself.
        """
        check_fields(cls, state, ("names",))
        targets = cls(state["names"])
        fields = {**vars(targets), **state}  # 0.1 lacks some
        check_fields(cls, fields)
        vars(targets).update({name: fields[name] for name in cls.__annotations__})
        names = set(targets.names)
        good = (
            set(targets.kinds) == names and len(names) == len(targets.names)
            and set(targets.classes) <= names and all(len(values) == 2 for values in targets.classes.values())
            and all(isinstance(value, str | int | float) for values in targets.classes.values() for value in values)
            and len(targets.mean) == len(targets.scale) == len(targets.names)
            and all(scale > 0 for scale in targets.scale)
        )  # fmt: skip
        if not good:
            raise FileFormatError("its targets contradict each other")
        return targets


def _plain_label(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


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
