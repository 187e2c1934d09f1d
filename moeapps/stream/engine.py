"""The engines: compiled trees, or the same steps in Python with clones of a river model."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moeapps.stream.compiled.engine import GrowingMixture, TreeEngine
from moeapps.stream.compiled.kind_engine import KindEngine
from moeapps.stream.compiled.mixture import decide_class, decide_number, score_experts, score_experts_numeric
from moeapps.stream.compiled.mixture_state import (
    RENEW,
    TASK,
    WARN,
    MixtureSettings,
    make_work,
)
from moeapps.stream.compiled.number_engine import NumberEngine
from moeapps.stream.compiled.references import as_reference

__all__ = ["Engine", "KindEngine", "NumberEngine", "RiverEngine", "TreeEngine"]


class Engine(Protocol):
    """What the estimators need of an engine."""

    mixture: Any
    settings: Any

    def add_features(self, nominal: Sequence[bool]) -> None:
        """Make room for features, of which each is categorical or not."""

    def add_values(self, number: int) -> None:
        """Make room for category codes below this."""

    def add_classes(self, number: int) -> None:
        """Make room for classes."""

    def learn(self, X: NDArray[np.float64], y: NDArray[Any]) -> NDArray[Any]:
        """Predict, then learn, row by row; the predictions."""

    def predict(self, X: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Class probabilities ``(n, C)`` or numbers ``(n, 1)``, and weights of the experts ``(n, E)``."""


class RiverEngine(GrowingMixture):
    """The flexible one: clones of any river model as experts, with the same mixture.

    Parameters
    ----------
    settings : MixtureSettings
        Of the mixture.
    expert : object
        The model to be cloned, one per expert.
    hidden : tuple[int, int]
        Widths of the router's hidden layers.
    seed : int
        Seed of everything.
    numbers : bool
        Whether the targets are numbers.
    decode : Callable[[array], dict[Any, Any]]
        From a row of the table back to what the model is given: a dict of features.
    """

    def __init__(
        self,
        settings: MixtureSettings,
        expert: Any,
        hidden: tuple[int, int],
        seed: int,
        numbers: bool,
        decode: Callable[[NDArray[np.float64]], dict[Any, Any]],
    ) -> None:
        super().__init__(settings, hidden, seed, numbers)
        self._expert, self._decode = expert, decode
        self.experts: list[Any] = [self._new() for _ in range(settings.n_experts)]
        self.background: list[Any] = [None] * settings.n_experts

    def _new(self) -> Any:
        return self._expert.clone()

    def add_features(self, nominal: Sequence[bool]) -> None:
        """Make room for features."""
        self._grow(self.n_features + len(nominal), self.n_classes)

    def add_values(self, number: int) -> None:
        """River's models take categories as they are."""

    def add_classes(self, number: int) -> None:
        """Make room for classes."""
        self._grow(self.n_features, self.n_classes + number)
        while len(self.experts) < self.settings.n_experts:
            self.experts.append(self._new())
            self.background.append(None)

    def _vote(self, row: dict[Any, Any], work: Any) -> None:
        for e, expert in enumerate(self.experts):
            if self.numbers:
                work.votes[e, 0] = expert.predict_one(row)
                continue
            work.votes[e] = 0.0
            labels: Sequence[int] = (0, 1) if self.settings.variant == TASK else range(self.n_classes)
            probabilities = expert.predict_proba_one(row)
            for label in labels:
                work.votes[e, label] = probabilities.get(label, 0.0)

    def _work(self) -> tuple[Any, Any, Any]:
        """Room for an instance, and references to the mixture and to it."""
        votes = 1 if self.numbers else 2 if self.settings.variant == TASK else self.n_classes
        work = make_work(as_reference(self.mixture), self.settings, votes, self.n_classes)
        return work, as_reference(self.mixture), as_reference(work)

    def learn(self, X: NDArray[np.float64], y: NDArray[Any]) -> NDArray[Any]:
        """Predict, then learn, row by row; the predictions."""
        s = self.settings
        work, m, w = self._work()
        predictions = np.empty(len(X), dtype=np.float64 if self.numbers else np.int64)
        for i, x in enumerate(X):
            row = self._decode(x)
            self._vote(row, work)
            if self.numbers:
                predictions[i] = decide_number(m, s, x, w)
                score_experts_numeric(m, s, x, y[i], w)
            else:
                predictions[i] = decide_class(m, s, x, self.n_classes, w)
                score_experts(m, s, x, y[i], self.n_classes, w)
            for e in range(s.n_experts):
                label = int(y[i] == e) if s.variant == TASK else y[i].item()
                for learner in (self.experts[e], self.background[e]):
                    for _ in range(int(work.learn[e]) if learner is not None else 0):
                        learner.learn_one(row, label)
                if work.action[e] == WARN:
                    self.background[e] = self._new()
                elif work.action[e] == RENEW:
                    self.experts[e] = self.background[e] or self._new()
                    self.background[e] = None
        self._refuse_divergence()
        return predictions

    def predict(self, X: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Class probabilities or numbers, and weights of the experts."""
        s = self.settings
        work, m, w = self._work()
        out, weights = np.empty((len(X), self.n_classes)), np.empty((len(X), s.n_experts))
        for i, x in enumerate(X):
            self._vote(self._decode(x), work)
            if self.numbers:
                decide_number(m, s, x, w)
            else:
                decide_class(m, s, x, self.n_classes, w)
            out[i], weights[i] = work.mixed, work.weights
        return out, weights
