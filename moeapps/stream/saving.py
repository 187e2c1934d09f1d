"""How stream estimators are saved: names and counters as JSON, everything else as arrays, nothing as pickle."""

from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from moeapps.core.errors import ConfigError, FileFormatError
from moeapps.core.labels import value_from_json, value_to_json
from moeapps.core.saved_arguments import arguments_to_json, check_kinds
from moeapps.core.saved_tensors import refuse_non_finite
from moeapps.core.saving import SaveMixin
from moeapps.stream.compiled.engine import TreeEngine, restore_arrays, tree_arrays
from moeapps.stream.config import DriftMoEConfig
from moeapps.stream.encoding import FeatureEncoder
from moeapps.stream.restoring import check_encoder, check_engine, check_sizes_of_file
from moeapps.stream.sklearn_face import order_of

__all__ = ["StreamSaving"]


class StreamSaving(SaveMixin):
    """Mixed into the stream estimators: what a file holds of them, and how they are built again."""

    numpy_arrays = True

    expert: Any
    _engine: Any
    _features: FeatureEncoder
    _skipped: int
    _real_seed: int | None
    _names: list[str] | None
    _width: int | None
    _order: list[Hashable] | None
    missing_values: Any
    column_types: Any
    _not_in_0_1: ClassVar[dict[str, Any]] = {"missing_values": []}
    """Constructor arguments that 0.1 did not have, as it would have been with them."""
    _start_params: dict[str, Any] | None = None
    """Constructor arguments with which the engine was built; ``set_params`` may change them later."""

    if TYPE_CHECKING:  # the estimator's, and scikit-learn's

        def get_params(self, deep: bool = True) -> dict[str, Any]:
            """Constructor arguments."""

        def set_params(self, **params: Any) -> Any:
            """Change constructor arguments."""

        def _new_engine(self, seed: int) -> Any: ...

        def _config(self) -> DriftMoEConfig: ...

    def saved_arguments(self) -> dict[str, Any]:
        """Constructor arguments, as they were when the first instance was learned."""
        if self.expert is not None:
            raise ConfigError(
                "a model with experts of river's (expert=...) cannot be saved without pickle: pickle it yourself, or "
                "use the built-in trees (expert=None)"
            )
        return self._savable(self.get_params(deep=False) if self._start_params is None else self._start_params)

    @staticmethod
    def _savable(params: dict[str, Any]) -> dict[str, Any]:
        """Arguments without ``column_types``: JSON has no other keys than texts, so the state holds them."""
        return {**params, "column_types": None}

    def saved_state(self) -> dict[str, Any]:
        """Names, categories and counters."""
        started = self._engine is not None
        fit = arguments_to_json(self.saved_arguments())
        now = arguments_to_json(self._savable(self.get_params(deep=False)))
        changed = {name: value for name, value in now.items() if value != fit.get(name)}
        if changed:
            self._config()  # refuses what set_params has made impossible: nobody could load it
        return {
            **({"changed_arguments": changed} if changed else {}),  # by set_params, since the engine was built
            "started": started,
            "features": self._features.state(),
            "skipped": self._skipped,
            "real_seed": self._real_seed,
            "names": self._names,
            "width": self._width,
            "columns": None if self._order is None else [value_to_json(name) for name in self._order],
        }

    def saved_tensors(self) -> dict[str, NDArray[Any]]:
        """Every array of the engine; unsigned ones as signed."""
        if self._engine is None:
            return {}
        assert isinstance(self._engine, TreeEngine)
        arrays = {
            name: array.view(np.int64) if array.dtype == np.uint64 else array
            for name, array in tree_arrays(self._engine).items()
        }
        refuse_non_finite(arrays)
        return arrays

    @classmethod
    def from_saved(
        cls, arguments: dict[str, Any], state: dict[str, Any], tensors: dict[str, NDArray[Any]], source: Path
    ) -> Self:
        """Construct, then restore names and arrays; check that they fit each other."""
        if arguments.get("expert") is not None:
            raise FileFormatError(f"{source}: a saved model has no experts of river's, its expert must be None")
        model = cls(**{**cls._not_in_0_1, **arguments})
        config = model._config()
        model._features.restore(state["features"])
        check_encoder(model._features, state["features"])
        model.column_types = model._features.types or None
        model._features.given = model.missing_values, model.column_types
        model._restore(state)
        model._restore_counters(state)
        if state["started"]:
            try:
                model._restore_engine(config, tensors)
            except FileFormatError as error:
                raise FileFormatError(f"{source} was damaged or changed: {error}") from None
        elif tensors:
            raise FileFormatError(f"{source} is of a model that has learned nothing, and has arrays")
        changed = state.get("changed_arguments", {})
        if unknown := set(changed) - set(arguments):
            raise FileFormatError(f"{source}: {cls.__name__} has no argument {min(unknown)!r}")
        check_kinds(cls, changed, source)
        model.set_params(**changed)
        model._config()  # checks them
        return model

    def _restore_counters(self, state: dict[str, Any]) -> None:
        self._skipped, self._real_seed = state["skipped"], state["real_seed"]
        self._names, self._width = state["names"], state["width"]
        seed_is_good = _is_count(self._real_seed) or (self._real_seed is None and not state["started"])
        names_are_good = self._names is None or (
            isinstance(self._names, list) and all(isinstance(name, str) for name in self._names)
            and self._width == len(self._names)
        )  # fmt: skip
        columns = state.get("columns")
        self._order = (
            [value_from_json(name) for name in columns] if columns else order_of(self._names, self._width)
        )  # fmt: skip
        width_is_good = self._width is None or _is_count(self._width)
        if not (_is_count(self._skipped) and seed_is_good and names_are_good and width_is_good):
            raise FileFormatError("its counters, seed or names are impossible")

    def _restore_engine(self, config: DriftMoEConfig, tensors: dict[str, NDArray[Any]]) -> None:
        """Build the engine and give it the arrays of a file."""
        arrays = {name: array.view(np.uint64) if name.endswith("rng") else array for name, array in tensors.items()}
        check_sizes_of_file(config, self._number_of_labels(), arrays)
        engine = self._new_engine(int(self._real_seed or 0))
        assert isinstance(engine, TreeEngine)
        self._resize(engine)
        restore_arrays(engine, arrays)
        codes = [len(self._features.codes.get(name, ())) for name in self._features.columns]
        check_engine(engine, self._features.nominal, codes)
        self._start_params = self.get_params(deep=False)
        self._engine = engine

    def _number_of_labels(self) -> int:
        """Number of labels so far; 1 for numbers."""
        return 1

    def _restore(self, state: dict[str, Any]) -> None:
        """Restore what a subclass has saved."""

    def _resize(self, engine: TreeEngine) -> None:
        """Tell a new engine how many features and classes there are."""
        engine.n_features = len(self._features.columns)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**128
