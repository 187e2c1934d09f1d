"""Base of the mixtures of any estimators: checking, fitting experts and gate, asking experts for rows."""

# n rows, E experts, K classes or targets

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.utils import Bunch, Tags, check_random_state, get_tags
from sklearn.utils.validation import (
    _check_sample_weight,
    _num_samples,
    check_consistent_length,
    check_is_fitted,
    validate_data,
)

from moeapps.core.arguments import NamedArguments
from moeapps.core.card import record_of
from moeapps.core.checks import check_at_least_zero, check_fraction, check_one_of
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.mixing import Cascade, CascadeAnswer, GatedMixture, fit_cascade, fit_mixture
from moeapps.core.search import Choice, Distribution
from moeapps.core.tabledata.checking import CheckMixin
from moeapps.core.tabledata.frames import as_frame, is_table
from moeapps.core.tabledata.kinds import ColumnKind, columns_frame
from moeapps.core.tabledata.profile import ColumnProfile
from moeapps.tables.mixture.answers import ClassAnswers, TargetAnswers
from moeapps.tables.mixture.columns import UnusedColumns
from moeapps.tables.mixture.costs import check_costs, given_costs, measure_costs
from moeapps.tables.mixture.experts import (
    ExpertComposition,
    Named,
    check_experts,
    check_fitted_experts,
    name_experts,
)
from moeapps.tables.mixture.features import TableFeatures
from moeapps.tables.mixture.folds import FittedExperts, fit_experts, make_folds, take
from moeapps.tables.mixture.forms import ColumnForms
from moeapps.tables.mixture.inspection import MixtureInspection
from moeapps.tables.mixture.output import MixtureOutput
from moeapps.tables.mixture.portfolio import default_experts
from moeapps.tables.mixture.saving import MixtureSaving

__all__ = ["MixtureEstimator"]

GATE_CATEGORIES = 16
"""Categories per column that the gate tells apart."""

Task = Literal["classification", "regression"]


class MixtureEstimator(NamedArguments, CheckMixin, MixtureSaving, MixtureOutput, MixtureInspection, ExpertComposition):
    """Base of :class:`MixtureClassifier` and :class:`MixtureRegressor`, each of which declares its own constructor."""

    _search_space: ClassVar[Mapping[str, Distribution]] = {
        "gate": Choice(("auto", "mlp", "linear")),
        "calibrate": Choice((True, False)),
    }

    task: Task
    gate: Any
    costs: Any
    budget: float | None
    tolerance: float | None
    inference: Literal["mix", "cascade"]
    cv: Any
    calibrate: bool
    n_jobs: int | None
    verbose: bool
    random_state: Any
    column_types: Mapping[str, ColumnKind] | None
    ignore_columns: Sequence[Any] | None

    n_features_in_: int
    feature_names_in_: NDArray[Any]
    experts_: list[Any]
    expert_names_: list[str]
    failed_: dict[str, str]
    mixture_: GatedMixture
    cascade_: Cascade | None
    costs_: pd.Series
    gate_features_: TableFeatures
    unused_: UnusedColumns = UnusedColumns({})
    forms_: ColumnForms = ColumnForms()
    answers_: ClassAnswers | TargetAnswers
    _fit_params: dict[str, Any] | None = None
    """Constructor arguments as they were at the last fit."""

    # ------------------------------------------------------------------ what a task fills in

    def _check_target(self, y: Any) -> NDArray[Any]:
        """Targets as experts take them."""
        raise NotImplementedError

    def _learn_answers(self, y: NDArray[Any], weight: NDArray[np.float64], named: Named) -> None:
        """Set what is known about the target, and ``answers_``."""
        raise NotImplementedError

    def _encode_target(self, y: NDArray[Any]) -> NDArray[Any]:
        """Class codes, or standardised targets."""
        raise NotImplementedError

    # ------------------------------------------------------------------ fitting

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit every expert on every fold and on all rows, and the gate on what they predict for rows not seen.

        Parameters
        ----------
        X : DataFrame or array of shape (n, P)
            Rows: a pandas or polars frame, a pyarrow table or an array of numbers. The experts get them as they are
            (as pandas frames), and rows to predict in the types of these columns. With ``cv="prefit"``, rows that the
            experts have not seen.
        y : array of shape (n,) or, for regression, (n, T)
            Targets.
        sample_weight : array of shape (n,), optional
            Non-negative weights, for experts and gate. A weight of 0 equals leaving the row out. As in
            :class:`~sklearn.ensemble.StackingClassifier`, an expert that takes no weights is refused; a pipeline
            passes them to its last step.

        Returns
        -------
        self
            Fitted. If fitting fails, an earlier fit stays as it was.

        Raises
        ------
        ConfigError, DataError
            Naming the argument or input that cannot be used.
        Exception
            What the first expert raised, if every expert has failed.
        """
        with self._all_or_nothing() as fitted:
            fitted._fit(X, y, sample_weight)
            fitted._training_record = record_of(_num_samples(y))
        return self

    @classmethod
    def from_module(cls, module: Any) -> Self:
        """The estimator of a trained :class:`~moeapps.tables.MixtureModule`, without a cascade."""
        estimator: Self = module.to_estimator()
        return estimator

    @contextmanager
    def _all_or_nothing(self) -> Iterator[Self]:
        """A copy to be fitted, which the estimator becomes when the block ends well."""
        fitted = copy.copy(self)
        yield fitted
        fitted._fit_params = dict(fitted.get_params(deep=False))
        self.__dict__ = fitted.__dict__

    def _fit(self, X: Any, y: Any, sample_weight: Any) -> None:
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        self._check_arguments()
        table = self._table(X, reset=True)
        # fitted experts expect all columns that they were fitted on
        ids = not isinstance(self.cv, str)
        self.unused_ = UnusedColumns.of(table, self.ignore_columns, self.column_types, ids)
        table = self.unused_.drop(table)
        self.forms_ = ColumnForms.of(table)
        y = self._check_target(y)
        check_consistent_length(table, y)
        weight = _check_sample_weight(sample_weight, table, dtype=np.float64, ensure_non_negative=True)
        named = self._chosen_experts(table, y)
        prefit = isinstance(self.cv, str)
        rng = check_random_state(self.random_state)
        seeds = [int(seed) for seed in rng.randint(np.iinfo(np.int32).max, size=len(named) + 2)]
        counts = weight > 0
        if not counts.all():
            table, y, weight = take(table, np.flatnonzero(counts)), y[counts], weight[counts]
        self._learn_answers(y, weight, named if prefit else [])
        target = self._encode_target(y)
        if prefit:
            check_fitted_experts(named)
            outcome = self._asked_prefit(named, table)
        else:
            codes = target if self.task == "classification" else None
            folds = make_folds(self.cv, table, y, seeds[0], codes, counts)
            passed = None if sample_weight is None else weight
            outcome = fit_experts(named, table, y, passed, folds, self.answers_, seeds[2:], self.n_jobs, self.verbose)
        self.failed_ = outcome.failed
        self.expert_names_ = [name for name, _ in outcome.experts]
        self.experts_ = [expert for _, expert in outcome.experts]
        self._fit_gate(table, target, weight, outcome, [name for name, _ in named], seeds[1])

    def _fit_gate(
        self,
        table: Any,
        target: NDArray[Any],
        weight: NDArray[np.float64],
        outcome: FittedExperts,
        names: list[str],
        seed: int,
    ) -> None:
        rows, predictions = outcome.rows, outcome.predictions
        if not len(rows):
            raise DataError("cv predicts no row that counts: the gate has nothing to learn from")
        gate_table = take(table, rows)
        self.gate_features_ = TableFeatures(
            "clipped", GATE_CATEGORIES, self.experts is not None, self._gate_types(table)
        )
        self.gate_features_.fit(table, sample_weight=weight)
        features = self.gate_features_.transform(gate_table)
        self.mixture_ = fit_mixture(
            features,
            predictions,
            target[rows],
            weight[rows],
            task=self.task,
            names=self.expert_names_,
            gate=self.gate,
            calibrate=self.calibrate,
            seed=seed,
        )
        if isinstance(self.costs, str):
            costs = measure_costs(outcome.experts, table, self.answers_)
        else:
            costs = given_costs(self.costs, names)[[names.index(name) for name in self.expert_names_]]
        self.costs_ = pd.Series(costs, index=pd.Index(self.expert_names_, name="expert"), name="cost per row")
        self.cascade_ = fit_cascade(
            self.mixture_,
            features,
            predictions,
            target[rows],
            weight[rows],
            costs=costs,
            budget=self.budget,
            tolerance=self.tolerance,
            seed=seed,
        )

    def _gate_types(self, table: Any) -> dict[str, ColumnKind] | None:
        """What the user says of the columns that are used."""
        if self.column_types is None or not isinstance(table, pd.DataFrame):
            return None
        return {name: kind for name, kind in self.column_types.items() if name in table.columns}

    def _asked_prefit(self, named: Named, table: Any) -> FittedExperts:
        """Predictions of fitted experts for rows that they have not seen; one that fails is an error here."""
        predictions = np.stack([self.answers_.read(expert, table) for _, expert in named], axis=1)
        return FittedExperts(list(named), predictions, np.arange(len(table)), {})

    def _check_arguments(self) -> None:
        check_one_of("inference", self.inference, ("mix", "cascade"))
        check_one_of("calibrate", self.calibrate, (True, False))
        if self.budget is not None:
            check_fraction(budget=self.budget)
        if self.tolerance is not None:
            check_at_least_zero(tolerance=self.tolerance)
        if self.budget is not None and self.tolerance is not None:
            raise ConfigError("budget and tolerance both choose the cascade's threshold: give one of them")
        if isinstance(self.cv, str):
            check_one_of("cv", self.cv, ("prefit",))
            if self.experts is None:
                raise ConfigError("cv='prefit' needs fitted experts, got experts=None")

    def _chosen_experts(self, table: Any, y: NDArray[Any]) -> Named:
        if self.experts is None:
            named = default_experts(table, y, self.task, column_types=self._gate_types(table))
        else:
            named = check_experts(name_experts(self.experts), self.task, list(super().get_params(deep=False)))
        check_costs(self.costs, [name for name, _ in named])
        return named

    def _table(self, X: Any, reset: bool) -> pd.DataFrame | NDArray[np.float64]:
        """Check a table: column names, number of columns, and (in arrays) that all values are numbers.

        To predict, without the columns that are not used, and with the types that those of the fit had.
        """
        if not is_table(X):
            holes = "allow-nan" if get_tags(self).input_tags.allow_nan else True
            array: NDArray[np.float64] = validate_data(self, X, dtype=np.float64, reset=reset, ensure_all_finite=holes)
            if reset:
                return array
            if hasattr(self, "feature_names_in_"):  # what the experts were fitted on
                return self.forms_.restore(self.unused_.drop(pd.DataFrame(array, columns=self.feature_names_in_)))
            return self.unused_.drop(array)
        X = as_frame(X, "X")
        if not reset and hasattr(self, "feature_names_in_"):
            X = self.unused_.insert(X, list(self.feature_names_in_))
        validate_data(self, X, reset=reset, skip_check_array=True)
        if X.shape[1] == 0:
            raise ValueError(f"0 feature(s) (shape={X.shape}) while a minimum of 1 is required.")
        if len(X) == 0:
            raise ValueError(f"Found array with 0 sample(s) (shape={X.shape}) while a minimum of 1 is required.")
        return X if reset else self.forms_.restore(self.unused_.drop(X))

    # ------------------------------------------------------------------ predicting

    def _ask(self, table: Any, wanted: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Predictions ``(n, E, K)`` of the wanted experts; the others' place is filled."""
        predictions = np.zeros((len(table), len(self.experts_), self.answers_.width))
        for index, expert in enumerate(self.experts_):
            read = wanted[index]
            predictions[:, index] = self.answers_.read(expert, table) if read else self.answers_.unknown(len(table))
        return predictions

    def _features(self, table: Any) -> NDArray[np.float64]:
        features: NDArray[np.float64] = self.gate_features_.transform(table)
        return features

    def _answers(self, X: Any) -> CascadeAnswer:
        """Mixed predictions, weights of the experts, and which of them were asked."""
        check_is_fitted(self, "mixture_")
        check_one_of("inference", self.inference, ("mix", "cascade"))
        table = self._table(X, reset=False)
        features = self._features(table)
        if self.inference == "cascade":
            return self._fitted_cascade().run(
                features, lambda expert, rows: self.answers_.read(self.experts_[expert], take(table, rows)), len(table)
            )
        needed = self.mixture_.needed
        weights, mixed = self.mixture_.weigh(features, self._ask(table, needed))
        return CascadeAnswer(mixed, weights, np.broadcast_to(needed, (len(table), len(needed))))

    def _fitted_cascade(self) -> Cascade:
        if self.cascade_ is None:
            raise ConfigError(
                "this mixture has no cascade, since MixtureModule.to_estimator() was not given the data of the "
                "training: to_estimator(data), or inference='mix'"
            )
        return self.cascade_

    # ------------------------------------------------------------------ what was fitted

    @property
    def named_experts_(self) -> Bunch:
        """Fitted experts by name."""
        check_is_fitted(self, "experts_")
        return Bunch(**dict(zip(self.expert_names_, self.experts_, strict=True)))

    @property
    def candidates_(self) -> pd.DataFrame:
        """Candidates of the gate with their losses on rows that they have not seen."""
        check_is_fitted(self, "mixture_")
        return self.mixture_.candidates

    @property
    def chosen_(self) -> str:
        """Name of the candidate that predicts."""
        check_is_fitted(self, "mixture_")
        return self.mixture_.name

    @property
    def temperatures_(self) -> pd.Series:
        """Exponent-dividing temperature of each expert's probabilities; 1 leaves them as they are."""
        check_is_fitted(self, "mixture_")
        return pd.Series(np.asarray(self.mixture_.temperatures), index=self.expert_names_, name="temperature")

    def column_kinds(self) -> dict[str, ColumnKind]:
        """Columns of the table and what they are, for :func:`moeapps.core.predict_file`.

        Raises
        ------
        DataError
            If the mixture was fitted on an array, whose columns have no names; or if only its experts read a column,
            since nobody knows then how cells of a file have to be read for them.
        """
        check_is_fitted(self, "gate_features_")
        if not hasattr(self, "feature_names_in_"):
            raise DataError("the model was fitted on an array, whose columns have no names: fit it on a DataFrame")
        used = [str(name) for i, name in enumerate(self.feature_names_in_) if i not in self.unused_.columns]
        if alone := [used[i] for i in self.gate_features_.left_out()]:
            raise DataError(
                f"only the experts read {', '.join(repr(name) for name in alone)}, which the "
                "gate could not: the kinds of all columns have to be known to score a file or to serve. Call predict "
                "on a DataFrame, or fit on a table without such columns"
            )
        encoder = self.gate_features_.encoder_
        # prefit experts read ids, too
        kinds: dict[str, ColumnKind] = dict.fromkeys(encoder.names, "category")
        return {**kinds, **encoder.column_kinds()}

    def _profiles(self) -> list[ColumnProfile]:
        check_is_fitted(self, "gate_features_")
        return self.gate_features_.encoder_.profile()

    def unused_columns(self) -> list[str]:
        """Ids and ignored columns: ``predict`` takes frames with and without them."""
        return self.unused_.names

    def missing_texts(self) -> frozenset[str]:
        """Texts that mean a missing value in a table's cells."""
        return frozenset(self.gate_features_.encoder_.missing_values)

    @property
    def columns_(self) -> pd.DataFrame:
        """What each column is to the gate (and to the experts chosen for the data), and why; id, ignored: not used."""
        check_is_fitted(self, "gate_features_")
        used = self.gate_features_.encoder_.summary()
        frame = pd.concat([used, columns_frame(self.unused_.columns.values())])
        order = getattr(self, "feature_names_in_", frame.index)
        return frame.reindex([name for name in order if name in frame.index]) if len(self.unused_) else used

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "mixture_")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        experts = self._expert_tags()
        tags.input_tags.allow_nan = bool(experts) and all(expert.input_tags.allow_nan for expert in experts)
        tags.input_tags.categorical = True
        return tags
