"""Mixture of experts for regression on tables, behind scikit-learn's interface."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.base import RegressorMixin
from sklearn.utils import Tags

from moeapps.core.checks import check_one_of
from moeapps.core.config import store_arguments
from moeapps.core.errors import FileFormatError
from moeapps.core.saved_arguments import fits
from moeapps.core.tabledata.kinds import ColumnKind
from moeapps.tables.estimator import TabularEstimator
from moeapps.tables.module import TabularTraining
from moeapps.tables.targets import NumericTarget, has_outliers, robust_scale

__all__ = ["MoERegressor"]


class MoERegressor(RegressorMixin, NumericTarget, TabularEstimator):
    """Mixture-of-experts regressor for tables, for one target or several.

    Targets are standardised for training. Parameters and attributes are those of :class:`MoEClassifier`, without
    ``class_weight``, ``label_smoothing`` and ``classes_``, and with these.

    Parameters
    ----------
    loss : {"auto", "squared", "huber"}, default="auto"
        "squared": targets are standardised by mean and standard deviation, and the squared error is minimised. "huber":
        by median and quartiles, with Huber's loss, which is linear beyond three standard deviations. "auto" takes
        "huber" for targets with a few outliers far from all others (:func:`~moeapps.tables.targets.has_outliers`), and
        "squared" for all others, also for skewed ones, whose tail is part of the mean.

    Attributes
    ----------
    loss_ : {"squared", "huber"}
        The loss of the last fit.

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
    loss: Literal["auto", "squared", "huber"]
    loss_: Literal["squared", "huber"] = "squared"  # what 0.1 had
    _saved_attributes = (*TabularEstimator._saved_attributes, "_one_column", "loss_")
    _optional_attributes = (*TabularEstimator._optional_attributes, "loss_")

    def __init__(
        self,
        router: str = "topk",
        *,
        router_args: Mapping[str, Any] | None = None,
        route_by: Any = None,
        num_experts: int = 8,
        top_k: int = 2,
        dim: int = 64,
        hidden_dim: int | None = 64,
        num_blocks: int = 2,
        share_router: bool = False,
        capacity_factor: float | None = None,
        embedding_dim: int = 16,
        num_bins: int = 32,
        numeric_embedding: Literal["piecewise", "periodic", "both", "linear"] = "periodic",
        numeric_dim: int = 8,
        scaling: Literal["standard", "robust"] = "robust",
        num_members: int | Literal["auto"] = "auto",
        dropout: float | Literal["auto"] = "auto",
        balance_weight: float = 0.01,
        z_weight: float = 0.001,
        balance_loss: Literal["load", "mutual_information"] = "load",
        iterations: int = 1,
        expert_sizes: str | Sequence[int] | None = None,
        penalty_weight: float = 0.1,
        lr: float = 2e-3,
        weight_decay: float = 1e-2,
        beta2: float = 0.999,
        warmup: float = 0.0,
        final_lr: float = 0.1,
        loss: Literal["auto", "squared", "huber"] = "auto",
        ema_decay: float = 0.98,
        batch_size: int | Literal["auto"] = "auto",
        max_epochs: int | Literal["auto"] = "auto",
        early_stopping: bool | Literal["auto"] = "auto",
        validation_fraction: float = 0.1,
        patience: int = 5,
        categorical_features: Literal["auto"] | Sequence[Any] | None = "auto",
        column_types: Mapping[str, ColumnKind] | None = None,
        missing_values: Literal["auto"] | Sequence[str] = "auto",
        ignore_columns: Sequence[Any] | None = None,
        dtype: Literal["auto", "float32", "float64"] = "auto",
        accelerator: str = "auto",
        verbose: bool = False,
        log_dir: str | None = None,
        random_state: Any = None,
        logger: Any = None,
    ) -> None:
        store_arguments(self, locals())

    def _learn_target(self, y: NDArray[Any], weight: NDArray[np.float64]) -> None:
        super()._learn_target(y, weight)
        columns = y.reshape(len(y), -1).T
        outliers = self.loss == "auto" and any(has_outliers(column, weight) for column in columns)
        self.loss_ = "huber" if outliers or self.loss == "huber" else "squared"
        if self.loss_ == "huber":
            centres, scales = np.array([robust_scale(column, weight) for column in columns]).T
            known = scales > 0  # else most targets are one value, and the standard deviation has to do
            self.target_mean_ = np.where(known, centres, self.target_mean_)
            self.target_scale_ = np.where(known, scales, self.target_scale_)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_one_of("loss", self.loss, ("auto", "squared", "huber"))

    def _training_config(self) -> TabularTraining:
        return replace(super()._training_config(), loss=self.loss_)

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Predicted targets, shape (n,) or (n, targets) as in :meth:`fit`."""
        return self._decode_target(self._outputs(X))

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
