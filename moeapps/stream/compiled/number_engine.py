"""The engine of experts of several kinds that predict numbers."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeapps.stream.compiled.inputs import Layout
from moeapps.stream.compiled.kind_engine import KindEngine
from moeapps.stream.compiled.kind_loop import reference_to
from moeapps.stream.compiled.leaf_models import grow_leaf_models
from moeapps.stream.compiled.number_kinds import (
    NUMBER_KINDS,
    NumberMixture,
    NumberSettings,
    first_of_each_number_kind,
    grow_number_kinds,
    new_number_kinds,
    new_number_work,
)
from moeapps.stream.compiled.number_loop import run_numbers

__all__ = ["NumberEngine"]

_NO_VOTES, _NO_ROWS, _NO_TARGETS = np.empty((0, 0, 0)), np.empty((0, 0)), np.empty(0)


class NumberEngine(KindEngine):
    """As a :class:`~moeapps.stream.compiled.kind_engine.KindEngine`, for targets that are numbers."""

    settings: NumberSettings  # type: ignore[assignment]
    mixture: NumberMixture  # type: ignore[assignment]
    numbers = True

    def _new_mixture(self) -> NumberMixture:
        return new_number_kinds(self.settings, self.layout, self._nodes, self.seed)

    def _grown_mixture(self, layout: Layout) -> NumberMixture:
        return grow_number_kinds(self.mixture, self.settings, self.layout, layout, self._nodes, self.seed)

    @property
    def _nodes(self) -> int:
        """Nodes that the trees have room for."""
        return len(self.pool.state.trees.feature)

    def _reserve(self) -> None:
        """Make room for trees, and for the models of their leaves."""
        self.pool.reserve()
        if self._nodes > len(self.mixture.leaves.weights) > 0:
            leaves = grow_leaf_models(self.mixture.leaves, self._nodes, self.layout.features)
            self.mixture = self.mixture._replace(leaves=leaves)

    def _references(self) -> Any:
        """Reference to the state, and whether the pool may grow: made anew only where arrays were replaced."""
        pool, mixture = self.pool.state, self.mixture
        if self._packed is None or self._packed[0] is not pool or self._packed[1] is not mixture:
            work: Any = new_number_work(mixture, self.settings)
            state = reference_to(pool, self.pool.settings, mixture, self.settings, work, None)
            self._packed = pool, mixture, work, (state, self.pool.may_grow)
        return self._packed[3]

    @property
    def n_all_experts(self) -> int:
        """Number E of experts of all kinds."""
        return first_of_each_number_kind(self.settings)[-1]

    def expert_names(self) -> list[str]:
        """Kind and number of each expert."""
        first = first_of_each_number_kind(self.settings)
        kinds = zip(NUMBER_KINDS, first[:-1], first[1:], strict=True)
        return [f"{kind} {i}" for kind, a, b in kinds for i in range(b - a)]

    def learn(self, X: NDArray[np.float64], y: NDArray[Any], votes: NDArray[Any] | None = None) -> NDArray[Any]:
        """Predict, then learn, row by row; the predictions.

        ``votes`` ``(n, E, 1)`` are what the experts predicted when the instances came, where their targets are late.
        """
        predictions, start = np.empty(len(X)), 0
        late = _NO_VOTES if votes is None else np.array(votes, dtype=np.float64)  # a copy that can be written to
        with self._lock:
            while True:
                state, may_grow = self._references()
                start = run_numbers(
                    state, may_grow, True, X, y, late, start, predictions, _NO_ROWS, _NO_ROWS, _NO_VOTES
                )  # fmt: skip
                if start == len(X):
                    return predictions
                self._reserve()

    def _predict(
        self, X: NDArray[np.float64], votes: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        out, weights = np.empty((len(X), 1)), np.empty((len(X), self.n_all_experts))
        with self._lock:
            state, may_grow = self._references()
            run_numbers(
                state, may_grow, False, X, _NO_TARGETS, _NO_VOTES, 0, _NO_TARGETS, out, weights, votes
            )  # fmt: skip
        return out, weights
