"""Base of the tabular estimators: reading a table, building the network, training, predicting, surgery."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import NDArray
from sklearn.utils import Tags
from sklearn.utils.validation import (
    _check_sample_weight,
    check_consistent_length,
    check_is_fitted,
    validate_data,
)
from torch import Tensor

from moeapps.core.callbacks import seed_everything
from moeapps.core.checks import check_below_one, check_one_of, check_proper_fraction, check_sizes
from moeapps.core.config import config_from, field_names
from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.core.estimator import LightningEstimator
from moeapps.core.plots import plot_load
from moeapps.core.routers import router_class
from moeapps.core.search import Distribution
from moeapps.core.splits import hold_out
from moeapps.core.statistics import load_by_group, routed_layers
from moeapps.core.surgery import regroup
from moeapps.core.tabledata.checking import CheckMixin
from moeapps.core.tabledata.columns import FIRST, ColumnEncoder
from moeapps.core.tabledata.frames import as_frame, is_table
from moeapps.core.tabledata.ids import with_unused
from moeapps.core.tabledata.kinds import ColumnKind
from moeapps.core.tabledata.profile import ColumnProfile
from moeapps.tables.data import TableDataModule, refuse_holes
from moeapps.tables.defaults import BEFORE, ONE_BATCH, SEARCH, automatic, batch_rows, check_automatic, route_column
from moeapps.tables.module import TabularModule, TabularTraining
from moeapps.tables.network import TabularConfig, TabularMoE, balance_hashes
from moeapps.tables.numbers import Scaling
from moeapps.tables.surgery import TabularSurgery

__all__ = ["TabularEstimator"]

PREDICT_ROWS = 1024
"""Rows per forward pass in prediction."""


class TabularEstimator(CheckMixin, TabularSurgery, LightningEstimator):
    """Base of :class:`MoEClassifier` and :class:`MoERegressor`, each of which declares its own constructor."""

    _search_space: ClassVar[Mapping[str, Distribution]] = SEARCH

    task: Literal["classification", "regression"]
    model_: TabularMoE
    encoder_: ColumnEncoder
    merged_: list[list[list[int]]] | None = None
    n_outputs_: int
    auto_: dict[str, int | float]
    _saved_attributes: tuple[str, ...] = ("n_features_in_", "n_iter_", "n_outputs_", "merged_", "auto_")
    _optional_attributes: tuple[str, ...] = ("auto_",)  # 0.1 had none

    batch_size: int | Literal["auto"]
    max_epochs: int | Literal["auto"]  # type: ignore[assignment]
    dropout: float | Literal["auto"]
    num_members: int | Literal["auto"]
    scaling: Scaling
    early_stopping: bool | Literal["auto"]
    ema_decay: float
    validation_fraction: float
    num_bins: int
    categorical_features: Literal["auto"] | Sequence[Any] | None
    column_types: Mapping[str, ColumnKind] | None
    missing_values: Literal["auto"] | Sequence[str]
    ignore_columns: Sequence[Any] | None
    dtype: Literal["auto", "float32", "float64"]
    router: str
    router_args: Mapping[str, Any] | None
    route_by: Any
    top_k: int
    share_router: bool

    # ------------------------------------------------------------------ what a task fills in

    def _learn_target(self, y: NDArray[Any], weight: NDArray[np.float64]) -> None:
        """Set what is known about the target."""
        raise NotImplementedError

    def _encode_target(self, y: NDArray[Any]) -> NDArray[Any]:
        """Targets as the loss takes them."""
        raise NotImplementedError

    def _check_target(self, y: Any) -> NDArray[Any]:
        """Refuse targets that cannot be learned from."""
        raise NotImplementedError

    # ------------------------------------------------------------------ fitting

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Learn from a table.

        Parameters
        ----------
        X : DataFrame or array of shape (n, P)
            Rows: a pandas or polars frame, a pyarrow table or an array. In a frame, text, bool, category and object
            columns are categories (see ``columns_`` and the guide "Input data") and NaN means missing;
            an array has to be complete.
        y : array of shape (n,) or, for regression, (n, T)
            Targets.
        sample_weight : array of shape (n,), optional
            Non-negative weights. A weight of 0 equals leaving the row out.

        Returns
        -------
        self
            Fitted. If fitting fails, an earlier fit stays as it was.

        Raises
        ------
        ValueError
            Naming the input or argument that cannot be used.
        """
        with self._all_or_nothing() as fitted:
            fitted._fit(X, y, sample_weight)
        return self

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Learn one pass over these rows, on top of what was learned before.

        The first call learns the columns (categories, quantiles) and targets; later calls keep them. Parameters,
        errors and what is returned are as in :meth:`fit`. Routers that mix the rows of a batch (``expert_choice``)
        are refused, since their predictions would depend on how the caller batches the rows. Arguments that
        ``set_params`` has changed apply, except those of the network (``num_experts``, ``dim``, ...): a change of these
        is refused.
        """
        self._refuse_mixing()
        if hasattr(self, "model_"):
            self._refuse_other_network()
        with self._all_or_nothing(continued=hasattr(self, "model_")) as fitted:
            if hasattr(self, "model_"):
                fitted._continue(X, y, sample_weight)
            else:
                fitted._fit(X, y, sample_weight, passes=1)
        return self

    def _refuse_other_network(self) -> None:
        fit = self._as_fitted()
        for name in field_names(TabularConfig):
            if getattr(self, name) != fit[name]:
                raise ConfigError(
                    f"{name} was {fit[name]!r} at fit and is {getattr(self, name)!r} now: partial_fit goes on with the "
                    "network of the fit and cannot change it; fit builds a new one"
                )

    def _refuse_mixing(self) -> None:
        if router_class(self.router).mixes_tokens:
            raise ConfigError(
                f"router={self.router!r} mixes the rows of a batch and cannot learn from a stream of batches: "
                "use fit, or another router"
            )

    def _fit(self, X: Any, y: Any, sample_weight: Any, passes: int | None = None) -> None:
        self._run(*self.begin(X, y, sample_weight), passes)

    def begin(self, X: Any, y: Any, sample_weight: Any) -> tuple[TabularMoE, tuple[NDArray[Any], ...], int]:
        """Learn columns and targets: the network before its training, the rows as it reads them, and the seed."""
        self._check_arguments()
        self.merged_ = None
        table, y, weight = self._validated(X, y, sample_weight, reset=True)
        self._learn_target(y, weight)
        self.encoder_ = ColumnEncoder().fit(
            table,
            weight,
            self.categorical_features,
            self.num_bins,
            self.column_types,
            self.missing_values,
            self.scaling,
            self.ignore_columns,
        )
        self.auto_ = automatic(len(y))
        seed = self._seed()
        with isolate_rng():
            seed_everything(seed)
            model = self._build_model()
        rows = (*self.encoder_.transform(table), self._encode_target(y), weight)
        if model.route_by is not None:
            balance_hashes(model, rows[1][:, model.route_by])
        return model, rows, seed

    def _continue(self, X: Any, y: Any, sample_weight: Any) -> None:
        table, y, weight = self._validated(X, y, sample_weight, reset=False)
        rows = (*self.encoder_.transform(table), self._encode_target(y), weight)
        self._run(copy.deepcopy(self.model_).train(), rows, self._seed(), passes=1)

    def _run(self, model: TabularMoE, rows: tuple[NDArray[Any], ...], seed: int, passes: int | None) -> None:
        """Train the network on encoded rows and keep it; ``passes`` overrides the number of epochs."""
        module = TabularModule.from_config(model, config=self._training_config())
        n = len(rows[0])
        batch_size = batch_rows(n) if self.batch_size == "auto" else self.batch_size
        dtype = self._training_dtype(n, batch_size)
        module.to(dtype)
        train, val = rows, None
        if passes is None and self._stops_early(n):
            if n < 2:
                raise DataError(f"early_stopping needs at least 2 rows, got {n}: set early_stopping=False")
            codes = rows[2] if self.task == "classification" else None
            chosen, held = hold_out(n, self.validation_fraction, seed, codes)
            train, val = tuple(part[chosen] for part in rows), tuple(part[held] for part in rows)
        data = TableDataModule(train, val, batch_size, seed, dtype)
        if passes is not None:
            module.schedule = "constant"
            module.optimizer_state = getattr(self, "_optimizer_state", None)
        history = self._train(
            module,
            data,
            seed,
            monitor="val/loss" if val is not None else None,
            mode="min",
            max_epochs=passes or int(self._resolved("max_epochs")),
            validate=val is not None,
            ema_decay=0.0 if passes is not None else self.ema_decay,
        )
        self._optimizer_state = module.optimizer_state if passes is not None else None
        self.history_ = history if passes is None or not hasattr(self, "history_") else self._joined(history)
        self.n_iter_ = len(self.history_)
        # scikit-learn compares predictions for different batches at 1e-7
        self.model_ = module.model.double().eval()
        with torch.no_grad():  # the last step may have been the one that diverged
            self._finite(self.model_(*(torch.from_numpy(part[:PREDICT_ROWS]) for part in rows[:2])).numpy())

    def _training_config(self) -> TabularTraining:
        """Settings of the training: those of the arguments."""
        return config_from(TabularTraining, self)

    def _joined(self, history: pd.DataFrame) -> pd.DataFrame:
        return pd.concat([self.history_, history.assign(epoch=len(self.history_))], ignore_index=True)

    def _check_arguments(self) -> None:
        if self.batch_size != "auto":
            check_sizes(batch_size=self.batch_size)
        check_automatic(self.num_members, self.max_epochs, self.dropout)
        check_sizes(num_bins=self.num_bins)
        check_one_of("dtype", self.dtype, ("auto", "float32", "float64"))
        check_one_of("early_stopping", self.early_stopping, ("auto", True, False))
        check_proper_fraction(validation_fraction=self.validation_fraction)
        check_below_one(ema_decay=self.ema_decay)
        if self.validation_fraction >= 1:
            raise ConfigError(f"validation_fraction must be below 1, got {self.validation_fraction!r}")

    def _validated(
        self, X: Any, y: Any, sample_weight: Any, reset: bool
    ) -> tuple[pd.DataFrame | NDArray[np.float64], NDArray[Any], NDArray[np.float64]]:
        """Table, targets and weights of the rows that count."""
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        table = self._table(X, reset)
        y = self._check_target(y)
        check_consistent_length(table, y)
        weight = _check_sample_weight(sample_weight, table, dtype=np.float64, ensure_non_negative=True)
        counts = weight > 0
        if not counts.any():
            raise ValueError("sample_weight is zero for every row: nothing to learn from")
        if not counts.all():
            table = table[counts] if isinstance(table, np.ndarray) else table.loc[counts]
            y, weight = y[counts], weight[counts]
        return table, y, weight

    def _table(self, X: Any, reset: bool) -> pd.DataFrame | NDArray[np.float64]:
        """Check a table: column names, number of columns, and (in arrays) that every value is there."""
        if not is_table(X):
            array: NDArray[np.float64] = validate_data(self, X, dtype=np.float64, reset=reset, ensure_all_finite=False)
            refuse_holes(array)
            return array
        X = as_frame(X, "X")
        if not reset and hasattr(self, "feature_names_in_"):
            X = with_unused(X, list(self.feature_names_in_), self.encoder_.unused)
        validate_data(self, X, reset=reset, skip_check_array=True)
        if X.shape[1] == 0:
            raise ValueError(f"0 feature(s) (shape={X.shape}) while a minimum of 1 is required.")
        if len(X) == 0:
            raise ValueError(f"Found array with 0 sample(s) (shape={X.shape}) while a minimum of 1 is required.")
        if any(isinstance(kind, pd.SparseDtype) for kind in X.dtypes):
            raise TypeError("sparse columns are not supported: convert them with X.sparse.to_dense()")
        return X

    def column_kinds(self) -> dict[str, ColumnKind]:
        """Columns of the table and what they are, for :func:`moeapps.core.predict_file`.

        Raises
        ------
        DataError
            If the model was fitted on an array, whose columns have no names.
        """
        check_is_fitted(self, "model_")
        if not hasattr(self, "feature_names_in_"):
            raise DataError("the model was fitted on an array, whose columns have no names: fit it on a DataFrame")
        return self.encoder_.column_kinds()

    def _profiles(self) -> list[ColumnProfile]:
        check_is_fitted(self, "model_")
        return self.encoder_.profile()

    def unused_columns(self) -> list[str]:
        """Ids and ignored columns: ``predict`` takes frames with and without them."""
        return self.encoder_.unused_names()

    def missing_texts(self) -> frozenset[str]:
        """Texts that mean a missing value in a table's cells."""
        return frozenset(self.encoder_.missing_values)

    @property
    def columns_(self) -> pd.DataFrame:
        """What each column is: a row per column, with its kind (number, category, time; id, ignored: not used) and why.

        Also how many categories it has, how many cells were missing in training, and which texts meant that.
        """
        check_is_fitted(self, "model_")
        return self.encoder_.summary()

    def _resolved(self, name: str) -> int | float:
        """An argument, or what "auto" became when the network was built."""
        value: int | float | str = getattr(self, name)
        return self.auto_[name] if isinstance(value, str) else value

    def _training_dtype(self, n: int, batch_size: int) -> torch.dtype:
        """In float64 while all rows fit into one batch, where it costs nothing."""
        if self.dtype == "auto":
            return torch.float64 if n <= batch_size else torch.float32
        return torch.float64 if self.dtype == "float64" else torch.float32

    def _stops_early(self, n: int) -> bool:
        return n > ONE_BATCH if self.early_stopping == "auto" else bool(self.early_stopping)

    def _build_model(self) -> TabularMoE:
        columns = self.encoder_
        names = list(getattr(self, "feature_names_in_", range(self.n_features_in_)))
        cardinalities = [len(values) + FIRST for values in columns.categories]
        model: TabularMoE = TabularMoE.from_config(
            columns.mean,
            columns.scale,
            columns.edges,
            cardinalities,
            int(self.n_outputs_),
            config=config_from(
                TabularConfig,
                self,
                route_by=route_column(self.route_by, names, self.encoder_.categorical),
                dropout=self._resolved("dropout"),
                num_members=self._resolved("num_members"),
            ),
        )
        for index, groups in enumerate(self.merged_ or []):
            model.blocks[index] = regroup(model.blocks[index], groups)  # type: ignore[arg-type]
        return model

    # ------------------------------------------------------------------ predicting

    def _encoded(self, X: Any) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Numbers and codes of rows."""
        return self.encoder_.transform(self._table(X, reset=False))

    @torch.no_grad()
    def _outputs(self, X: Any) -> NDArray[np.float64]:
        """Network outputs ``(n, out_dim)`` in float64, computed on the CPU."""
        check_is_fitted(self, "model_")
        numbers, codes = (torch.from_numpy(part) for part in self._encoded(X))
        parts = zip(numbers.split(PREDICT_ROWS), codes.split(PREDICT_ROWS), strict=True)
        outputs: NDArray[np.float64] = torch.cat([self.model_(n, c) for n, c in parts]).numpy()
        return self._finite(outputs)

    def expert_load(self, X: Any, groups: Any = None, layer: int = -1) -> pd.DataFrame:
        """Which experts the rows use: one line per group, one column per expert, each line sums to 1.

        Parameters
        ----------
        X : DataFrame or array of shape (n, P)
            Rows.
        groups : array of shape (n,), optional
            What to group rows by (classes, time, region); what the model predicts when None.
        layer : int, default=-1, the last one
            Which block; of a chain of experts, the mean over its iterations.

        Returns
        -------
        DataFrame
            Fraction of each group's assignments that each expert gets.
        """
        check_is_fitted(self, "model_")
        if groups is None:
            groups = self.predict(X)
        numbers, codes = self._encoded(X)
        names, number = np.unique(np.asarray(groups), return_inverse=True)
        check_consistent_length(numbers, number)
        model = copy.deepcopy(self.model_)
        with torch.no_grad():
            model(torch.from_numpy(numbers), torch.from_numpy(codes))
        number = np.repeat(number, model.num_members)  # each member of a row visits experts of its own
        routings = list(routed_layers(model).values())[layer].routings
        loads = [load_by_group(routing, torch.from_numpy(number), len(names)) for routing in routings]
        load = torch.stack(loads).mean(dim=0)
        return pd.DataFrame(load.numpy(), index=pd.Index(names, name="group"))

    def plot_expert_load(self, X: Any, groups: Any = None, layer: int = -1) -> Any:
        """Plot :meth:`expert_load` as a heat map; returns a matplotlib Figure."""
        return plot_load(self.expert_load(X, groups, layer))

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.categorical = True
        return tags

    # ------------------------------------------------------------------ saving

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickle; in 0.1 the encoder was called ``columns_``, and some arguments did not exist."""
        if "columns_" in state:
            state = {**state, "encoder_": state["columns_"]}
            del state["columns_"]
        later = {"route_by": None, "balance_loss": "load", "iterations": 1, "expert_sizes": None, "penalty_weight": 0.1}
        defaults = {
            "column_types": None,
            "missing_values": "auto",
            "ignore_columns": None,
            **later,
            **self._before(),
            "auto_": {},
        }
        super().__setstate__({**defaults, **state})

    def _savable(self, params: dict[str, Any]) -> dict[str, Any]:
        """Constructor arguments, with plain containers."""
        arguments = dict(super()._savable(params))
        if arguments["router_args"] is not None:
            arguments["router_args"] = dict(arguments["router_args"])
        if not isinstance(arguments["categorical_features"], str | None):
            arguments["categorical_features"] = [
                int(c) if isinstance(c, np.integer) else c for c in arguments["categorical_features"]
            ]
        arguments["column_types"] = None if self.column_types is None else dict(self.column_types)
        if not isinstance(self.missing_values, str):
            arguments["missing_values"] = list(self.missing_values)
        if arguments["ignore_columns"] is not None:
            arguments["ignore_columns"] = [
                int(c) if isinstance(c, np.integer) else c for c in self.ignore_columns or ()
            ]
        return arguments

    def saved_state(self) -> dict[str, Any]:
        """Fitted attributes and what was learned about the columns."""
        return {**super().saved_state(), "columns_": self.encoder_.state()}

    def _restore(self, state: dict[str, Any]) -> None:
        self.encoder_ = ColumnEncoder.from_state(state["columns_"])
        super()._restore(state)
        if self.n_features_in_ != len(self.encoder_.names):
            raise FileFormatError("it has columns of another number than it was fitted on")

    @classmethod
    def _before(cls) -> dict[str, Any]:
        """Arguments that 0.1 did not have, as it behaved."""
        return {name: value for name, value in BEFORE.items() if name in cls._get_param_names()}

    @classmethod
    def from_saved(
        cls, arguments: dict[str, Any], state: dict[str, Any], tensors: dict[str, Tensor], source: Path
    ) -> Self:
        """As every estimator; arguments that 0.1 did not have mean in its files what it did."""
        return super().from_saved({**cls._before(), **arguments}, {"auto_": {}, **state}, tensors, source)

    def _build_saved_model(self) -> TabularMoE:
        """In float64, as it was saved."""
        return self._build_model().double()
