"""The engine of experts of several kinds: their arrays, and how the compiled loop runs over them."""

# T trees, E experts, F features, C classes

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
from joblib import effective_n_jobs  # type: ignore[import-untyped]
from numpy.typing import NDArray

from moeapps.stream.compiled.archive import grow_archive, new_archive
from moeapps.stream.compiled.engine import TreeEngine, remove_trees
from moeapps.stream.compiled.inputs import Layout
from moeapps.stream.compiled.kind_loop import ALL_STEPS, OTHERS_ONLY, PREDICT, TREES_ONLY, reference_to, run
from moeapps.stream.compiled.kinds import (
    KINDS,
    KindMixture,
    KindSettings,
    first_of_each_kind,
    grow_kinds,
    new_kinds,
    new_work,
)
from moeapps.stream.compiled.mixture_state import INSTANCES
from moeapps.stream.compiled.online_gate import AUTO, WAYS
from moeapps.stream.compiled.pool import TreeConfig
from moeapps.stream.compiled.references import as_reference

__all__ = ["KindEngine"]


_BLOCK = 128
"""Instances that the trees are ahead of the other experts, in two threads; twice as many votes are kept."""

_NO_VOTES, _NO_ROWS, _NO_CLASSES = np.empty((0, 0, 0)), np.empty((0, 0)), np.empty(0, dtype=np.int64)

_MOST_VOTES = 1 << 20
"""Numbers that are kept of a block; with many classes blocks are smaller."""


class KindEngine(TreeEngine):
    """A :class:`~moeapps.stream.compiled.pool.HoeffdingPool` and experts of other kinds under the online gate.

    Parameters
    ----------
    settings : KindSettings
        Of the mixture.
    tree_config : TreeConfig
        Of the trees.
    seed : int
        Seed of everything.
    n_jobs : int, optional
        Threads that learn many instances, as in scikit-learn; more than two are of no use.
    """

    settings: KindSettings  # type: ignore[assignment]
    mixture: KindMixture  # type: ignore[assignment]
    numbers = False

    def __init__(self, settings: KindSettings, tree_config: TreeConfig, seed: int, n_jobs: int | None = None) -> None:
        self.settings, self.seed = settings, seed
        self.n_features, self.n_classes = 0, 1 if self.numbers else 0
        self.layout = Layout(0, 0, 0)
        self.tree_config, self.n_jobs = tree_config, n_jobs
        self.archive = new_archive(settings.n_experts, settings.archive, 0) if settings.archive else None
        self.pool = self._new_pool()
        self.mixture = self._new_mixture()
        self._packed = None
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"n_jobs": None, **state, "_lock": threading.RLock()})

    @property
    def _threads(self) -> int:
        return 1 if self.n_jobs in (None, 1) else min(effective_n_jobs(self.n_jobs), 2)

    @property
    def _block(self) -> int:
        """Instances per block."""
        return max(1, min(_BLOCK, _MOST_VOTES // max(self.n_all_experts * self.n_classes, 1)))

    def _n_archived(self) -> int:
        return self.settings.archive

    def _retire_background(self) -> None:
        """Background trees begin at a warning, and archived ones were experts before."""
        if self.pool.n_trees > self.settings.n_experts:
            remove_trees(as_reference(self.pool.state), self.settings.n_experts, self.pool.n_trees)

    def add_features(self, nominal: Sequence[bool]) -> None:
        """Make room for features, of which each is categorical or not."""
        with self._lock:
            super().add_features(nominal)

    def add_classes(self, number: int) -> None:
        """Make room for classes."""
        with self._lock:
            super().add_classes(number)

    def _grow(self, features: int, classes: int) -> None:
        self.n_features, self.n_classes = features, classes
        layout = self._layout_of_pool()
        self.mixture = self._grown_mixture(layout)
        self.layout = layout
        if self.archive is not None:
            self.archive = grow_archive(self.archive, classes)

    def _new_mixture(self) -> Any:
        """One that has learned nothing."""
        return new_kinds(self.settings, self.layout, self.n_classes, self.seed)

    def _grown_mixture(self, layout: Layout) -> Any:
        """The present one for a layout, and for as many classes as there are now."""
        return grow_kinds(self.mixture, self.settings, self.layout, layout, self.n_classes, self.seed)

    def _layout_of_pool(self) -> Layout:
        t = self.pool.state.trees
        places = int((t.kind[: self.n_features] >= 0).sum())
        return Layout(self.n_features, places, t.nominal.shape[2] - 1 if places else 0)

    def resize(self, features: int, classes: int) -> None:
        """Make the mixture for a pool that has been restored, with nothing learned yet."""
        self.n_features, self.n_classes = features, classes
        self.layout = self._layout_of_pool()
        self.mixture = self._new_mixture()

    def add_values(self, number: int) -> None:
        """Make room for category codes below this."""
        with self._lock:
            super().add_values(number)
            if self._layout_of_pool() != self.layout:
                self._grow(self.n_features, self.n_classes)

    def _references(self) -> tuple[Any, Any, tuple[bool, bool]]:
        """References to state and archive, and whether the pool may grow: made anew only where arrays were replaced."""
        pool, mixture, archive = self.pool.state, self.mixture, self.archive
        kept = 2 * self._block if self._threads > 1 else 1
        old = self._packed
        if old is not None and old[0] is pool and old[1] is mixture and old[2] is archive and len(old[3].votes) >= kept:
            return old[4]
        width = pool.trees.counts.shape[1]
        if old is None or old[1] is not mixture or old[3].votes.shape[2] != width or len(old[3].votes) < kept:
            work, before = new_work(mixture, self.settings, width, pool.trees.values, kept), None
        else:
            work, before = old[3], old[4][0]
        state = reference_to(pool, self.pool.settings, mixture, self.settings, work, before)
        references = state, None if archive is None else as_reference(archive), self.pool.may_grow
        self._packed = pool, mixture, archive, work, references
        return references

    @property
    def n_all_experts(self) -> int:
        """Number E of experts of all kinds."""
        s = self.settings
        return s.n_experts + s.bayes + s.neighbours + s.linear + s.networks

    def expert_names(self) -> list[str]:
        """Kind and number of each expert."""
        first = first_of_each_kind(self.settings)
        return [f"{kind} {i}" for kind, a, b in zip(KINDS, first[:-1], first[1:], strict=True) for i in range(b - a)]

    def gate_table(self) -> dict[str, pd.Series]:
        """The ways of mixing by name: recent log loss, share of the answers, whether it is the one that answers."""
        gate = self.mixture.gate
        kept = [self.settings.gate in (AUTO, way) for way in range(len(WAYS))]
        columns = {
            "loss": gate.loss,
            "answered": gate.answered / max(int(gate.state[1]), 1),
            "answers": np.arange(len(WAYS)) == gate.state[0],
        }
        return {name: pd.Series(column, index=WAYS)[kept] for name, column in columns.items()}

    def learn(self, X: NDArray[np.float64], y: NDArray[Any], votes: NDArray[Any] | None = None) -> NDArray[Any]:
        """Predict, then learn, row by row; the predictions.

        ``votes`` ``(n, E, C)``, or fewer classes, are what the experts predicted when the instances came, where their
        labels are late: what experts and gate are judged by, in place of what they would predict now.
        """
        predictions = np.empty(len(X), dtype=np.int64)
        with self._lock:
            late = _NO_VOTES
            if votes is not None:
                late = np.zeros((len(X), self.n_all_experts, self.n_classes))
                late[:, :, : votes.shape[2]] = votes
            if len(X) > 2 * _BLOCK and votes is None and self.settings.n_experts > 0 and self._threads > 1:
                self._learn_in_two_threads(X, y, predictions)
            else:
                self._run(ALL_STEPS, X, y, predictions, late=late)
        return predictions

    def _run(
        self,
        steps: int,
        X: NDArray[np.float64],
        y: NDArray[Any],
        predictions: NDArray[np.int64],
        start: int = 0,
        shift: int = 0,
        late: NDArray[np.float64] = _NO_VOTES,
    ) -> None:
        """Learn rows from ``start`` on, making room for the trees where they need it."""
        while True:
            start = run(
                *self._references(), steps, X, y, late, self.n_classes, start, shift, predictions, _NO_ROWS, _NO_ROWS,
                _NO_VOTES,
            )  # fmt: skip
            if start == len(X):
                return
            self.pool.reserve()

    def _learn_in_two_threads(self, X: NDArray[np.float64], y: NDArray[Any], predictions: NDArray[np.int64]) -> None:
        """The trees learn a block in this thread, while the other experts learn the block before in another one."""
        self._references()  # with room for what is kept
        block, counters = self._block, self.mixture.counters
        begun, waiting = int(counters[INSTANCES]), deque[Future[None]]()
        learned = 0  # by the others
        with ThreadPoolExecutor(1, thread_name_prefix="moeapps-stream") as worker:

            def others(first: int, last: int) -> None:
                self._run(OTHERS_ONLY, X[:last], y, predictions, first, (first // block % 2) * block - first)

            try:
                for first in range(0, len(X), block):
                    last = min(first + block, len(X))
                    if len(waiting) == 2:  # so the place that votes are kept in is free again
                        waiting.popleft().result()
                    self._run(TREES_ONLY, X[:last], y, predictions, first, (first // block % 2) * block - first)
                    waiting.append(worker.submit(others, first, last))
                    learned = last
            finally:  # also after an interrupt, so that trees and others have learned the same instances
                done = int(counters[INSTANCES]) - begun
                if done > learned:
                    waiting.append(worker.submit(others, learned, done))
                for future in waiting:
                    future.result()

    def predict(self, X: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Class probabilities, and weights of the experts; nothing is changed."""
        return self._predict(X, _NO_VOTES)

    def votes(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """Class probabilities of every expert ``(n, E, C)``; nothing is changed."""
        votes = np.empty((len(X), self.n_all_experts, self.n_classes))
        self._predict(X, votes)
        return votes

    def _predict(
        self, X: NDArray[np.float64], votes: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        out, weights = np.empty((len(X), self.n_classes)), np.empty((len(X), self.n_all_experts))
        with self._lock:
            run(
                *self._references(), PREDICT, X, _NO_CLASSES, _NO_VOTES, self.n_classes, 0, 0, _NO_CLASSES, out,
                weights, votes,
            )  # fmt: skip
        return out, weights
