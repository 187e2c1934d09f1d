"""Mixture of experts for regression on tables, behind scikit-learn's interface."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import RegressorMixin
from sklearn.utils import Tags
from sklearn.utils.validation import (
    check_array,
    column_or_1d,
)

from moeapps.core.arrays import as_array
from moeapps.core.config import store_arguments
from moeapps.core.errors import DataError, FileFormatError
from moeapps.core.saved_arguments import fits
from moeapps.core.tabledata.cells import missing_texts
from moeapps.core.tabledata.kinds import ColumnKind
from moeapps.core.tabledata.numbers import to_numbers
from moeapps.tables.estimator import TabularEstimator

__all__ = ["MoERegressor"]

_LARGEST, _SMALLEST = 1e150, 1e-150
"""Targets, and their standard deviations, whose squares fit into float64."""


class MoERegressor(RegressorMixin, TabularEstimator):
    """Mixture-of-experts regressor for tables, for one target or several.

    Targets are standardised for training; the loss is the squared error. Parameters and attributes are those of
    :class:`MoEClassifier`, without ``class_weight`` and ``classes_``.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from moeapps import MoERegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = MoERegressor(num_experts=4, max_epochs=20, random_state=0).fit(X, y)
    >>> model.predict(X[:3]).shape
    (3,)
    """

    task = "regression"
    target_mean_: NDArray[np.float64]
    target_scale_: NDArray[np.float64]
    _one_column: bool
    _saved_attributes = (*TabularEstimator._saved_attributes, "_one_column")

    def __init__(
        self,
        router: str = "topk",
        *,
        router_args: Mapping[str, Any] | None = None,
        num_experts: int = 8,
        top_k: int = 2,
        dim: int = 64,
        hidden_dim: int | None = None,
        num_blocks: int = 2,
        share_router: bool = False,
        capacity_factor: float | None = None,
        embedding_dim: int = 16,
        num_bins: int = 32,
        dropout: float = 0.0,
        balance_weight: float = 0.01,
        z_weight: float = 0.001,
        lr: float = 2e-3,
        weight_decay: float = 1e-2,
        batch_size: int | Literal["auto"] = "auto",
        max_epochs: int = 100,
        early_stopping: bool | Literal["auto"] = "auto",
        validation_fraction: float = 0.1,
        patience: int = 10,
        categorical_features: Literal["auto"] | Sequence[Any] | None = "auto",
        column_types: Mapping[str, ColumnKind] | None = None,
        missing_values: Literal["auto"] | Sequence[str] = "auto",
        dtype: Literal["auto", "float32", "float64"] = "auto",
        accelerator: str = "auto",
        verbose: bool = False,
        log_dir: str | None = None,
        random_state: Any = None,
    ) -> None:
        store_arguments(self, locals())

    def _check_target(self, y: Any) -> NDArray[Any]:
        y = as_array(y)
        if y.dtype.kind in "mM":
            raise DataError("y holds times: convert them to numbers, such as days since a date")
        if y.ndim == 1 and (y.dtype == object or y.dtype.kind in "US"):
            try:
                y = to_numbers(pd.Series(y, dtype=object), missing_texts(), "y")
            except DataError as error:
                found = str(error).removeprefix("column 'y', ").partition(" is not a number")[0]
                raise DataError(f"y must be numbers, got {found}") from None
        y = check_array(y, ensure_2d=False, dtype=None, input_name="y")
        if y.ndim > 2:
            raise DataError(f"y must have shape (n,) or (n, targets), got {y.shape}")
        if np.iscomplexobj(y):
            raise ValueError("Complex data not supported")
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        numbers = np.asarray(y, dtype=np.float64)
        if (large := np.argwhere(np.abs(numbers) >= _LARGEST)).size:
            value = numbers[tuple(large[0])]
            raise DataError(
                f"y holds {value:g} at row {large[0][0]}: numbers from {_LARGEST:g} cannot be scaled, divide them first"
            )
        return numbers

    def _learn_target(self, y: NDArray[Any], weight: NDArray[np.float64]) -> None:
        self._one_column = y.ndim == 1
        columns = y.reshape(len(y), -1)
        self.n_outputs_ = columns.shape[1]
        share = weight[:, None] / weight.sum()
        self.target_mean_ = (columns * share).sum(axis=0)
        gap = columns - self.target_mean_
        scale = np.sqrt((np.square(gap) * share).sum(axis=0))
        if (tiny := (scale < _SMALLEST) & (gap != 0).any(axis=0)).any():  # their squares are not numbers of float64
            unit = np.abs(gap).max(axis=0)
            unit[unit == 0] = 1.0
            scale = np.where(tiny, unit * np.sqrt((np.square(gap / unit) * share).sum(axis=0)), scale)
        self.target_scale_ = np.where(scale > 0, scale, 1.0)

    def _encode_target(self, y: NDArray[Any]) -> NDArray[np.float64]:
        columns = y.reshape(len(y), -1)
        if columns.shape[1] != self.n_outputs_:
            raise DataError(f"y has {columns.shape[1]} targets, the model was fitted with {self.n_outputs_}")
        return (columns - self.target_mean_) / self.target_scale_

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Predicted targets, shape (n,) or (n, targets) as in :meth:`fit`."""
        outputs = self._outputs(X) * self.target_scale_ + self.target_mean_
        return outputs[:, 0] if self._one_column else outputs

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def saved_state(self) -> dict[str, Any]:
        """Fitted attributes, columns, and the targets' mean and scale."""
        return {
            **super().saved_state(),
            "target_mean_": self.target_mean_.tolist(),
            "target_scale_": self.target_scale_.tolist(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        super()._restore(state)
        mean, scale = state["target_mean_"], state["target_scale_"]
        if not (fits(mean, list[float]) and fits(scale, list[float]) and len(mean) == len(scale) == self.n_outputs_):
            raise FileFormatError(f"it has {self.n_outputs_} outputs and other means and scales")
        if min(scale) <= 0 or (self._one_column and len(mean) > 1):
            raise FileFormatError("its targets are impossible")
        self.target_mean_, self.target_scale_ = np.array(mean, dtype=np.float64), np.array(scale, dtype=np.float64)
