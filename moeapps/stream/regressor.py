"""DriftMoERegressor: the same mixture for streams of numbers."""

import numbers
from collections.abc import Hashable, Mapping
from decimal import Decimal
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from river.base import MiniBatchRegressor
from sklearn.base import RegressorMixin
from sklearn.utils.validation import _check_y, check_consistent_length

from moeapps.core.config import config_from, store_arguments
from moeapps.core.errors import DataError, FileFormatError
from moeapps.core.labels import plain
from moeapps.core.tabledata.cells import shown
from moeapps.core.tabledata.frames import as_frame
from moeapps.stream.compiled.intervals import ConformalIntervals
from moeapps.stream.config import DriftMoEConfig, NumberConfig
from moeapps.stream.encoding import Encoded, OnBad
from moeapps.stream.engine import RiverEngine, TreeEngine
from moeapps.stream.estimator import StreamEstimator
from moeapps.stream.values import LARGEST, number_of, unwrapped

__all__ = ["DriftMoERegressor"]


@MiniBatchRegressor.register
class DriftMoERegressor(RegressorMixin, StreamEstimator):
    """Experts of different kinds that learn numbers one instance at a time, mixed by a gate that learns with them.

    By default the experts are regression trees with linear models in their leaves (FIMT-DD; online bagging, ADWIN,
    background trees), means of the recent targets, nearest neighbours, linear models, linear models on squares and
    products of the features, and a small neural network. The gate keeps four ways of mixing them, and answers with the
    way whose absolute error over the recent instances is lowest, see :mod:`~moeapps.stream.compiled.number_gate`.

    ``experts=None`` is the mixture of 0.1: trees whose leaves predict means under a neural router, as in
    :class:`DriftMoEClassifier` with ``experts=None``. There an expert counts as right if its absolute error is at most
    the running median of all experts' errors. Drift detection receives the error in units of three standard deviations
    of the target, cut off at 1.

    ``predict_interval_one`` and ``predict_interval_many`` give intervals that contain the target with a chosen
    probability, also while the stream drifts: adaptive conformal inference (Gibbs and Candes, NeurIPS 2021) on the
    residuals of the last 500 predictions that were made before their instance was learned.

    Parameters
    ----------
    n_experts : int, default 12
        Number of trees, where ``experts`` has no count of them.
    experts : list of str, dict of str to int, "auto" or None, default "auto"
        Kinds of experts: "tree" (``n_experts`` of them), "mean" (3, of which the first is the last target),
        "neighbours" (2), "linear" (3), "quadratic" (2), "network" (1). A list of kinds, or a dict of how many there are
        of each; those of one kind differ in how much they remember. None stands for trees under the neural router.
        "auto" stands for all kinds, and for None where an argument with [1]_ is not at its default.
    gate : {"auto", "mean", "accuracy", "stack", "context"}, default "auto"
        The one way of mixing experts of several kinds; "auto" keeps all and chooses.
    top_k, expert, predict_with, learn_with
        As for :class:`DriftMoEClassifier`; ``expert`` is a river regressor. [1]_
    bagging, drift, window
        As for :class:`DriftMoEClassifier`.
    drift_delta, warning_delta : float, default 0.001 and 0.01
        Confidences of the two ADWIN windows of each tree.
    grace_period, delta, tie_threshold, feature_share, max_nodes
        Of the trees, as for :class:`DriftMoEClassifier`.
    use_router : bool, default True
        False weights all experts by their recent errors only, as ``gate="accuracy"`` does.
    router_hidden : pair of int, default (64, 32)
        Widths of the router's hidden layers. [1]_
    router_period : int, default 32
        Instances per step of the router. [1]_
    router_inputs, router_lr, router_dropout, temperature
        Of the router, as for :class:`DriftMoEClassifier`. [1]_
    max_features, max_categories, on_bad, missing_values, column_types, seed
        As for :class:`DriftMoEClassifier`.

    Attributes
    ----------
    columns_, drift_events_, activation_, expert_names_, n_seen_, n_skipped_, n_bad_, n_ignored_
        As for :class:`DriftMoEClassifier`.
    gate_ : DataFrame
        The ways of mixing experts of several kinds: recent absolute error in units of the target's standard deviation,
        and how often each has answered.

    Notes
    -----
    .. [1] Of trees under the neural router (``experts=None``).

    Examples
    --------
    >>> from river import datasets, evaluate, metrics
    >>> model = DriftMoERegressor(seed=1)
    >>> score = evaluate.progressive_val_score(datasets.ChickWeights(), model, metrics.MAE())
    >>> score.get() < 25
    True
    """

    _numbers = True
    _not_in_0_1: ClassVar[dict[str, Any]] = {**StreamEstimator._not_in_0_1, "experts": None, "gate": "auto"}
    _intervals: ConformalIntervals

    def __init__(
        self,
        n_experts: int = 12,
        top_k: int = 3,
        *,
        expert: Any = None,
        experts: list[str] | dict[str, int] | Literal["auto"] | None = "auto",
        gate: Literal["auto", "mean", "accuracy", "stack", "context"] = "auto",
        predict_with: Literal["mixture", "top"] = "mixture",
        learn_with: Literal["all", "top_k"] = "all",
        bagging: float = 6.0,
        drift: Literal["replace", "reset"] | None = "replace",
        drift_delta: float = 0.001,
        warning_delta: float = 0.01,
        window: int = 100,
        grace_period: int = 100,
        delta: float = 0.01,
        tie_threshold: float = 0.05,
        feature_share: float | list[float] = 1.0,
        max_nodes: int = 1023,
        use_router: bool = True,
        router_inputs: Literal["enriched", "raw"] = "enriched",
        router_hidden: tuple[int, int] = (64, 32),
        router_lr: float = 3e-3,
        router_dropout: float = 0.0,
        router_period: int = 32,
        temperature: float = 0.8,
        max_features: int = 1000,
        max_categories: int = 256,
        on_bad: OnBad = "raise",
        missing_values: Literal["auto"] | list[str] = "auto",
        column_types: dict[Any, Literal["number", "category"]] | None = None,
        seed: int | None = None,
    ) -> None:
        store_arguments(self, locals())
        self._reset()

    def _reset(self) -> None:
        super()._reset()
        self._intervals = ConformalIntervals()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle; a pickle of 0.1 has no residuals, so its intervals begin anew."""
        super().__setstate__({"_intervals": ConformalIntervals(), **self._not_in_0_1, **state})

    def _config(self) -> DriftMoEConfig:
        return config_from(NumberConfig, self)

    def _check_targets(self, targets: Any) -> dict[Hashable, int]:
        for target in targets:
            if type(target) is float and -LARGEST < target < LARGEST:
                continue
            good = isinstance(unwrapped(target), numbers.Real | np.bool_ | Decimal)
            number = number_of(target) if good and not isinstance(target, np.timedelta64) else None
            if number is None or not abs(number) < LARGEST:
                raise DataError(f"y is {shown(target)}, expected a finite number below {LARGEST:g}")
        return {}

    def _add_labels(self, labels: list[Hashable], engine: TreeEngine | RiverEngine) -> None:
        """Numbers have no labels."""

    def _codes(self, targets: Any) -> NDArray[np.float64]:
        return np.array([float(unwrapped(target)) for target in targets], dtype=np.float64)

    def _label_of(self, code: Any) -> Any:
        return float(code)

    def _learn_encoded(
        self, encoded: Encoded, targets: Any, added: Mapping[Hashable, int], **late: NDArray[Any]
    ) -> NDArray[Any]:
        predictions = super()._learn_encoded(encoded, targets, added, **late)
        self._intervals.update(np.abs(self._codes(targets) - predictions))
        return predictions

    def _numbers_of(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        out, _ = self._outputs(table)
        assert self._engine is not None
        return np.where(np.isnan(out[:, 0]), self._engine.mixture.scale[1], out[:, 0])

    def predict_one(self, x: dict[Hashable, Any], **kwargs: Any) -> float:
        """Predicted number; 0.0 before anything was learned. Nothing is changed."""
        if self._engine is None:
            return 0.0
        return float(self._numbers_of(self._encode_one(x))[0])

    def predict_interval_one(self, x: dict[Hashable, Any], level: float = 0.9) -> tuple[float, float]:
        """Interval that contains the target with probability ``level``. Nothing is changed.

        The share of targets that are inside converges to the level on any stream, drifting or not; it does not hold for
        each region of the features, since the width is the same for all instances.

        Parameters
        ----------
        x : dict
            Features, as in :meth:`predict_one`.
        level : float, default 0.9
            Share of targets that should be inside, above 0 and below 1.

        Returns
        -------
        lower, upper : float
            Infinite where the residuals so far do not support the level: before nine for 0.9 and ninety-nine for 0.99,
            and for some instances after many targets in a row were outside.

        Raises
        ------
        ConfigError
            If the level is impossible.

        References
        ----------
        Gibbs and Candes, "Adaptive conformal inference under distribution shift", NeurIPS 2021.
        """
        half = self._intervals.half_width(level)
        prediction = self.predict_one(x)
        return prediction - half, prediction + half

    def predict_interval_many(self, X: pd.DataFrame, level: float = 0.9) -> pd.DataFrame:
        """Interval of each row, see :meth:`predict_interval_one`: columns ``lower`` and ``upper``."""
        half = self._intervals.half_width(level)
        predictions = self.predict_many(X)
        return pd.DataFrame({"lower": predictions - half, "upper": predictions + half})

    def predict_many(self, X: pd.DataFrame) -> pd.Series:
        """Predicted number of each row."""
        X = as_frame(X, "X")
        if self._engine is None:
            return pd.Series(0.0, index=X.index)
        return pd.Series(self._numbers_of(self._encode_frame(X)), index=X.index)

    def partial_fit(self, X: Any, y: Any, **unsupported: Any) -> Self:
        """Learn rows on top of what was learned before; arguments as in :meth:`fit`."""
        self._refuse(unsupported)
        with self._columns_kept_on_error():
            table = self._table(X, reset=self._width is None)
            y = _check_y(y, y_numeric=True, estimator=self)
            check_consistent_length(table, y)
            self.learn_many(table, [plain(number) for number in y])
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Predicted number of each row, shape (n,)."""
        self._need_fitted()
        return self._numbers_of(self._encode_frame(self._table(X, reset=False)))

    def saved_state(self) -> dict[str, Any]:
        """Names, categories and counters."""
        return {**super().saved_state(), "intervals_seen": self._intervals.seen}

    def saved_tensors(self) -> dict[str, NDArray[Any]]:
        """Every array of the engine, and the residuals of the intervals."""
        tensors = super().saved_tensors()
        if tensors:
            tensors.update(self._intervals.arrays())
        return tensors

    def _restore(self, state: dict[str, Any]) -> None:
        self._intervals.seen = state.get("intervals_seen", 0)

    def _restore_engine(self, config: DriftMoEConfig, tensors: dict[str, NDArray[Any]]) -> None:
        own = {name: tensors[name] for name in self._intervals.arrays() if name in tensors}
        super()._restore_engine(config, {name: tensor for name, tensor in tensors.items() if name not in own})
        if len(own) == len(self._intervals.arrays()):
            self._intervals = ConformalIntervals.restored(own, self._intervals.seen)
        elif own or self._intervals.seen:  # a file of 0.1 has neither
            raise FileFormatError("the residuals of its intervals are incomplete")
