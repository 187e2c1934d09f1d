"""Saving a mixture: its experts inside its one file, gate and cascade as tensors, the arguments as JSON values."""

from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import sklearn.model_selection
from sklearn.model_selection import BaseCrossValidator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from moeapps.core.config import as_arguments
from moeapps.core.errors import FileFormatError
from moeapps.core.foreign import pack_estimators, unpack_estimators
from moeapps.core.labels import classes_from_json, labels_to_json
from moeapps.core.mixing import Cascade, GateConfig, GatedMixture
from moeapps.core.saved_arguments import arguments_to_json, check_kinds, fits
from moeapps.core.saved_tensors import under
from moeapps.core.saving import SaveMixin
from moeapps.core.tabledata.columns import FIRST, ColumnEncoder
from moeapps.tables.mixture.answers import ClassAnswers, TargetAnswers
from moeapps.tables.mixture.columns import UnusedColumns
from moeapps.tables.mixture.experts import name_experts
from moeapps.tables.mixture.features import TableFeatures
from moeapps.tables.mixture.forms import ColumnForms

__all__ = ["MixtureSaving", "expert_key", "features_from"]

_MIXTURE, _CASCADE = "mixture.", "cascade."
"""Beginnings of the names of tensors; those of experts begin with "nested."."""

_SPLITTERS = ("GroupKFold", "KFold", "LeaveOneOut", "ShuffleSplit", "StratifiedKFold", "StratifiedShuffleSplit")
"""Splitters of scikit-learn that a file keeps. In the place of other ones a loaded mixture has the default folds."""


class MixtureSaving(SaveMixin):
    """What :meth:`~moeapps.core.saving.SaveMixin.save` writes of a mixture, and how it comes back.

    The file holds the fitted experts and, in the arguments, the experts as they were given, so that a loaded mixture
    can be fitted again.
    """

    experts: Any
    experts_: list[Any]
    expert_names_: list[str]
    failed_: dict[str, str]
    costs_: pd.Series
    mixture_: GatedMixture
    cascade_: Cascade | None
    gate_features_: TableFeatures
    unused_: UnusedColumns
    forms_: ColumnForms
    answers_: Any
    task: Any
    classes_: Any
    target_mean_: Any
    target_scale_: Any
    _one_column: bool
    n_outputs_: int
    n_features_in_: int
    _fit_params: dict[str, Any] | None

    def _saved_target(self) -> dict[str, Any]:
        """What was learned about the target, as JSON values."""
        if self.task == "classification":
            return {"classes_": labels_to_json(self.classes_), "floor_": float(self.answers_.floor)}
        return {
            "target_mean_": self.target_mean_.tolist(),
            "target_scale_": self.target_scale_.tolist(),
            "one_column_": bool(self._one_column),
        }

    def _restore_target(self, state: dict[str, Any], source: Path) -> None:
        if self.task == "classification":
            self.classes_, floor = classes_from_json(state["classes_"]), state["floor_"]
            if len(self.classes_) < 2 or not fits(floor, float) or not 0 < floor < 1:
                raise FileFormatError(f"{source}: its classes are malformed")
            self.answers_ = ClassAnswers(self.classes_, floor)
            return
        mean, scale, one = state["target_mean_"], state["target_scale_"], state["one_column_"]
        good = fits(mean, list[float]) and fits(scale, list[float]) and len(mean) == len(scale) > 0
        if not good or not all(value > 0 for value in scale) or one is not (one and len(mean) == 1):
            raise FileFormatError(f"{source}: its targets are malformed")
        self.target_mean_, self.target_scale_ = np.array(mean, dtype=float), np.array(scale, dtype=float)
        self._one_column, self.n_outputs_ = one, len(mean)
        self.answers_ = TargetAnswers(self.target_mean_, self.target_scale_)

    def saved_arguments(self) -> dict[str, Any]:
        """Constructor arguments of the fit; the experts by the keys of :meth:`saved_content`."""
        check_is_fitted(self, "mixture_")
        params: dict[str, Any] = self.get_params(deep=False)  # type: ignore[attr-defined]
        return self._savable({**params, **(self._fit_params or {}), "experts": self.experts})

    def _savable(self, params: dict[str, Any]) -> dict[str, Any]:
        """Constructor arguments as values that JSON can hold."""
        params = dict(params)
        if not isinstance(params["random_state"], int | np.integer | None):
            params["random_state"] = None
        if isinstance(params["gate"], GateConfig):
            params["gate"] = as_arguments(params["gate"])
        params["cv"] = _savable_cv(params["cv"])
        if hasattr(params["costs"], "tolist"):
            params["costs"] = params["costs"].tolist()
        if hasattr(params["costs"], "items"):
            params["costs"] = {str(name): float(cost) for name, cost in params["costs"].items()}
        if params["column_types"] is not None:
            params["column_types"] = dict(params["column_types"])
        if params["ignore_columns"] is not None:
            params["ignore_columns"] = [int(c) if isinstance(c, np.integer) else c for c in params["ignore_columns"]]
        if params["experts"] is not None:
            given = [isinstance(entry, tuple) for entry in params["experts"]]
            named = [name for name, _ in name_experts(params["experts"])]
            keys = self._keys()
            params["experts"] = [
                [name if pair else None, key] for name, pair, key in zip(named, given, keys, strict=True)
            ]
        return params

    def _keys(self) -> list[str]:
        """Keys of the experts of the arguments; a prefit one is kept once, as the fitted one that it is."""
        fitted = {id(expert): key for key, expert in self._fitted_by_key().items()}
        named = enumerate(name_experts(self.experts))
        return [fitted.get(id(expert), expert_key(f"argument{i}", name)) for i, (name, expert) in named]

    def _fitted_by_key(self) -> dict[str, Any]:
        pairs = zip(self.expert_names_, self.experts_, strict=True)
        return {expert_key(str(i), name): expert for i, (name, expert) in enumerate(pairs)}

    def saved_content(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """State and tensors, with the experts inside.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the mixture is not fitted.
        ConfigError
            If an expert cannot be saved; the message says which one and why.
        """
        check_is_fitted(self, "mixture_")
        experts = self._fitted_by_key()
        if self.experts is not None:
            given = [expert for _, expert in name_experts(self.experts)]
            experts = {**dict(zip(self._keys(), given, strict=True)), **experts}
        documents, tensors = pack_estimators(experts)
        state: dict[str, Any] = {"nested": documents, **self._saved_target()}
        for prefix, part in ((_MIXTURE, self.mixture_), (_CASCADE, self.cascade_)):
            if part is None:
                state[prefix + "state"] = None
                continue
            state[prefix + "state"], own = part.state()
            tensors |= {prefix + name: tensor for name, tensor in own.items()}
        state |= {
            "expert_names_": list(self.expert_names_),
            "failed_": dict(self.failed_),
            "costs_": [float(cost) for cost in self.costs_],
            "gate_features_": self.gate_features_.__getstate__(),
            "unused_": self.unused_.to_json(),
            "forms_": self.forms_.to_json(),
            "n_features_in_": int(self.n_features_in_),
        }
        if hasattr(self, "feature_names_in_"):
            state["feature_names_in_"] = [str(name) for name in self.feature_names_in_]
        fit = arguments_to_json(self.saved_arguments())
        now = arguments_to_json(self._savable(self.get_params(deep=False)))  # type: ignore[attr-defined]
        if changed := {name: value for name, value in now.items() if value != fit[name]}:
            state["changed_arguments"] = changed  # by set_params: the mixture is that of the fit
        return state, tensors

    def saved_state(self) -> dict[str, Any]:
        """State of :meth:`saved_content`."""
        return self.saved_content()[0]

    def saved_tensors(self) -> dict[str, Tensor]:
        """Tensors of :meth:`saved_content`."""
        return self.saved_content()[1]

    @classmethod
    def from_saved(
        cls, arguments: dict[str, Any], state: dict[str, Any], tensors: dict[str, Tensor], source: Path
    ) -> Self:
        """Construct as at the fit, restore, then set what ``set_params`` had changed since.

        Raises
        ------
        FileFormatError
            If experts, gate, cascade and columns do not belong together, or an expert cannot be loaded.
        """
        experts = unpack_estimators(state["nested"], tensors, source)
        changed = state.get("changed_arguments", {})
        if not fits(changed, dict[str, Any]) or set(changed) - set(arguments) or "experts" in changed:
            raise FileFormatError(f"{source}: its changed arguments are malformed")
        check_kinds(cls, changed, source)
        mixture = cls(**_arguments(arguments, experts))
        mixture._restore(state, experts, tensors, source)
        mixture._fit_params = mixture.get_params(deep=False)  # type: ignore[attr-defined]
        return mixture.set_params(**_arguments(changed, experts))  # type: ignore[attr-defined]

    def _restore(
        self, state: dict[str, Any], experts: dict[str, Any], tensors: dict[str, Tensor], source: Path
    ) -> None:
        names, costs, failed = state["expert_names_"], state["costs_"], state["failed_"]
        columns = state.get("feature_names_in_")
        good = (
            fits(names, list[str])
            and fits(costs, list[float])
            and len(costs) == len(names) == len(set(names)) > 0
            and all(cost > 0 for cost in costs)
            and fits(failed, dict[str, str])
            and fits(columns, list[str] | None)
            and fits(state["n_features_in_"], int)
            and len(columns if columns is not None else range(state["n_features_in_"])) == state["n_features_in_"]
        )
        if not good:
            raise FileFormatError(f"{source}: names, costs or columns of its experts are malformed")
        self.expert_names_, self.failed_ = names, failed
        self.costs_ = pd.Series(costs, index=pd.Index(names, name="expert"), name="cost per row")
        self.n_features_in_ = state["n_features_in_"]
        if columns is not None:
            self.feature_names_in_ = np.array(columns, dtype=object)
        self._restore_target(state, source)
        self.unused_ = UnusedColumns.from_json(state.get("unused_", []), self.n_features_in_)
        self.forms_ = ColumnForms.from_json(state.get("forms_", []))
        self.gate_features_ = features_from(state["gate_features_"], self.n_features_in_ - len(self.unused_))
        self.mixture_ = GatedMixture.from_state(state[_MIXTURE + "state"], under(_MIXTURE, tensors))
        self._check_mixture(source)
        self.cascade_ = None
        if state[_CASCADE + "state"] is not None:
            self.cascade_ = Cascade.from_state(state[_CASCADE + "state"], under(_CASCADE, tensors))
        self.experts_ = [experts[expert_key(str(i), name)] for i, name in enumerate(names)]
        for name, expert in zip(names, self.experts_, strict=True):
            self._check_expert(name, expert, source)

    def _check_mixture(self, source: Path) -> None:
        own = (self.mixture_.task, list(self.mixture_.names), self.mixture_.num_outputs)
        width = len(self.gate_features_.get_feature_names_out())
        wanted = (self.task, self.expert_names_, self.answers_.width)
        if own != wanted or self.mixture_.num_features != width:
            raise FileFormatError(f"{source}: its gate is one of other experts, classes or columns")

    def _check_expert(self, name: str, expert: Any, source: Path) -> None:
        """An expert that was fitted on something else would predict something else, without a word."""
        method = "predict_proba" if self.task == "classification" else "predict"
        columns, classes = getattr(expert, "n_features_in_", None), getattr(expert, "classes_", ())
        problem = None
        if not hasattr(expert, method):
            problem = f"a {type(expert).__name__}, which has no {method}"
        elif columns is not None and columns != self.n_features_in_ - len(self.unused_):
            problem = f"one of {columns} columns"
        elif method == "predict_proba" and not set(np.asarray(classes).tolist()) <= set(self.classes_.tolist()):
            problem = f"one of the classes {np.asarray(classes).tolist()[:10]}"
        if problem is not None:
            raise FileFormatError(f"{source}: its expert {name!r} is {problem}")


def expert_key(number: str, name: str) -> str:
    """Name of an estimator's part in the file, which has no dots: the tensors' names are parted by them."""
    return f"{number}-{name.replace('.', '_')}"


def _savable_cv(cv: Any) -> Any:
    if isinstance(cv, int | str | np.integer):
        return cv
    kind = type(cv).__name__
    if isinstance(cv, BaseCrossValidator) or hasattr(cv, "n_splits"):
        own = vars(cv).items()
        arguments = {key: value for key, value in own if isinstance(value, int | float | bool | None)}
        if kind in _SPLITTERS and type(cv) is getattr(sklearn.model_selection, kind):
            return {"splitter": kind, "arguments": arguments}
    return 5


def _arguments(saved: dict[str, Any], experts: dict[str, Any]) -> dict[str, Any]:
    """Undo ``_savable``.

    Raises
    ------
    FileFormatError
        If an argument is not what it writes.
    """
    arguments = dict(saved)
    if isinstance(arguments.get("gate"), dict):
        arguments["gate"] = GateConfig(**arguments["gate"])
    if isinstance(cv := arguments.get("cv"), dict):
        if cv.get("splitter") not in _SPLITTERS or not isinstance(cv.get("arguments"), dict):
            raise FileFormatError(f"cv cannot be {str(cv)[:60]!r}")
        splitter = getattr(sklearn.model_selection, cv["splitter"])
        known = {key: value for key, value in cv["arguments"].items() if key.isidentifier() and not key.startswith("_")}
        arguments["cv"] = splitter(**known)
    given = arguments.get("experts")
    if given is not None:
        if not fits(given, list[list[str | None]]) or not all(len(e) == 2 and e[1] in experts for e in given):
            raise FileFormatError("its experts are malformed")
        arguments["experts"] = [experts[key] if name is None else (name, experts[key]) for name, key in given]
    return arguments


def features_from(state: Any, width: int) -> TableFeatures:
    """The gate's encoder of columns, whose parts have to fit each other.

    Raises
    ------
    FileFormatError
        If they do not.
    """
    names = ("kind", "max_categories", "skip_unreadable")
    features = TableFeatures(**{name: state[name] for name in names}, column_types=state.get("column_types"))
    encoder = ColumnEncoder.from_state(state["encoder_"])
    columns, kept = state["columns_"], state["kept_"]
    good = (
        features.kind == "clipped"
        and state["n_features_in_"] == width
        and fits(columns, list[int])
        and sorted(set(columns)) == columns
        and all(0 <= column < width for column in columns)
        and len(columns) == len(encoder.names)
        and fits(kept, list[list[int]])
        and len(kept) == len(encoder.categories)
        and all(
            0 <= code < len(values) + FIRST
            for codes, values in zip(kept, encoder.categories, strict=True)
            for code in codes
        )
    )
    if not good:
        raise FileFormatError("the columns of its gate contradict each other")
    # in the order of fit, so that it is saved again as the same bytes
    features.n_features_in_ = width
    features.columns_, features.encoder_, features.kept_ = columns, encoder, kept
    return features
