"""How stream estimators are saved: names and counters as JSON, everything else as arrays, nothing as pickle."""

from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from moeapps.core.errors import ConfigError
from moeapps.core.labels import value_from_json, value_to_json
from moeapps.core.saving import SaveMixin
from moeapps.stream.compiled.engine import TreeEngine, restore_arrays, tree_arrays
from moeapps.stream.encoding import FeatureEncoder
from moeapps.stream.sklearn_face import order_of

__all__ = ["StreamSaving"]


class StreamSaving(SaveMixin):
    """Mixed into the stream estimators: what a file holds of them, and how they are built again."""

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

    if TYPE_CHECKING:  # the estimator's, and scikit-learn's

        def get_params(self, deep: bool = True) -> dict[str, Any]:
            """Constructor arguments."""

        def _new_engine(self, seed: int) -> Any: ...

    def saved_arguments(self) -> dict[str, Any]:
        """Constructor arguments."""
        if self.expert is not None:
            raise ConfigError(
                "a model with experts of river's (expert=...) cannot be saved without pickle: pickle it yourself, or "
                "use the built-in trees (expert=None)"
            )
        # JSON has no other keys than texts, so the state holds column_types
        params: dict[str, Any] = {**self.get_params(deep=False), "column_types": None}
        return params

    def saved_state(self) -> dict[str, Any]:
        """Names, categories and counters."""
        started = self._engine is not None
        return {
            "started": started,
            "features": self._features.state(),
            "skipped": self._skipped,
            "real_seed": self._real_seed,
            "names": self._names,
            "width": self._width,
            "columns": None if self._order is None else [value_to_json(name) for name in self._order],
        }

    def saved_tensors(self) -> dict[str, Tensor]:
        """Every array of the engine; unsigned ones as signed."""
        if self._engine is None:
            return {}
        assert isinstance(self._engine, TreeEngine)
        arrays = tree_arrays(self._engine)
        return {
            name: torch.from_numpy(array.view(np.int64) if array.dtype == np.uint64 else array)
            for name, array in arrays.items()
        }

    @classmethod
    def from_saved(
        cls, arguments: dict[str, Any], state: dict[str, Any], tensors: dict[str, Tensor], source: Path
    ) -> Self:
        """Construct, then restore names and arrays."""
        model = cls(**{"missing_values": [], **arguments})  # 0.1 knew no texts that mean missing
        model._features.restore(state["features"])
        model.column_types = model._features.types or None
        model._features.given = model.missing_values, model.column_types
        model._skipped, model._real_seed = int(state["skipped"]), state["real_seed"]
        model._names, model._width = state["names"], state["width"]
        columns = state.get("columns")
        model._order = (
            [value_from_json(name) for name in columns] if columns else order_of(model._names, model._width)
        )  # fmt: skip
        model._restore(state)
        if state["started"]:
            engine = model._new_engine(int(state["real_seed"]))
            assert isinstance(engine, TreeEngine)
            model._resize(engine)
            arrays = {
                name: tensor.numpy().view(np.uint64) if name.endswith("rng") else tensor.numpy()
                for name, tensor in tensors.items()
            }
            restore_arrays(engine, arrays)
            model._engine = engine
        return model

    def _restore(self, state: dict[str, Any]) -> None:
        """Restore what a subclass has saved."""

    def _resize(self, engine: TreeEngine) -> None:
        """Tell a new engine how many features and classes there are."""
        engine.n_features = len(self._features.columns)
