"""Base of the estimators whose experts are graph networks trained side by side: predictions, weights, files."""

# n rows (pairs of nodes, or graphs), E experts, K classes, F features of the gate

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from moeapps.core.checks import check_at_least_zero, check_fraction, check_one_of
from moeapps.core.config import as_arguments
from moeapps.core.errors import ConfigError, FileFormatError
from moeapps.core.estimator import LightningEstimator
from moeapps.core.mixing import Cascade, CascadeAnswer, GatedMixture
from moeapps.core.saved_tensors import under
from moeapps.core.search import Distribution
from moeapps.graph.expert_module import ExpertModule, mixed_log_probs
from moeapps.graph.search_spaces import EXPERTS_SEARCH

__all__ = ["ExpertsEstimator"]

INFERENCES = ("mix", "cascade")
MIXTURE, CASCADE = "mixture_.", "cascade_."
"""Prefixes of the tensors of these two in a file."""


class ExpertsEstimator(LightningEstimator):
    """Base of the estimators for links and for graphs. Subclasses have the constructor, and read their rows.

    A subclass defines :meth:`_gate_features`, :meth:`_ask` and :meth:`_make_experts`; its batches have a ``count`` of
    rows.
    """

    _search_space: ClassVar[Mapping[str, Distribution]] = EXPERTS_SEARCH

    strong: Any
    weak: Any
    inference: Literal["mix", "cascade"]
    budget: float | None
    tolerance: float | None

    model_: nn.ModuleList
    mixture_: GatedMixture
    cascade_: Cascade
    expert_names_: list[str]
    weighted_: bool
    normalized_: bool = False  # of a checkpoint whose data normalised features
    _saved_attributes: tuple[str, ...] = ("n_features_in_", "n_iter_", "expert_names_", "weighted_", "normalized_")
    _optional_attributes: tuple[str, ...] = ("normalized_",)

    # ------------------------------------------------------------------ what a subclass defines

    def _gate_features(self, batch: Any) -> np.ndarray:
        """``(n, F)`` what the gate may look at."""
        raise NotImplementedError

    def _ask(self, expert: nn.Module, batch: Any, rows: np.ndarray | None) -> np.ndarray:
        """Log-probabilities ``(A, K)`` of one expert for some rows of a batch, for all when None."""
        raise NotImplementedError

    def _make_experts(self) -> list[nn.Module]:
        """The experts as they are before training, from arguments and fitted attributes."""
        raise NotImplementedError

    # ------------------------------------------------------------------ fitting

    def _check_mixing(self) -> None:
        """Check what the mixture takes, before anything is trained."""
        check_one_of("inference", self.inference, INFERENCES)
        if self.budget is not None:
            check_fraction(budget=self.budget)
        if self.tolerance is not None:
            check_at_least_zero(tolerance=self.tolerance)
        if self.budget is not None and self.tolerance is not None:
            raise ConfigError("budget and tolerance both choose the cascade's threshold: give one of them")

    def _fit_experts(self, module: ExpertModule, data: Any, seed: int) -> None:
        """Train the module and take over what it has learned."""
        module.cascade_limits = {"budget": self.budget, "tolerance": self.tolerance}
        self.history_ = self._train(module, data, seed)
        self.n_iter_, self.normalized_ = len(self.history_), False
        self.n_features_in_, self.weighted_ = data.in_channels, bool(data.weighted)
        self._take_over(module)

    @classmethod
    def from_module(cls, module: ExpertModule) -> Self:
        """See :meth:`LightningEstimator.from_module`."""
        module.ready()
        estimator = cls._with_settings(module.hparams, as_arguments(module.experts_config))
        assert module.in_channels is not None
        estimator.n_features_in_, estimator.weighted_ = module.in_channels, bool(module.weighted)
        estimator.normalized_ = bool(getattr(module, "normalized", None))
        estimator._take_over(module)
        return estimator

    def _take_over(self, module: ExpertModule) -> None:
        """The experts, and what mixes them."""
        self.expert_names_ = list(module.names)
        assert module.mixture is not None
        assert module.cascade is not None
        self.mixture_, self.cascade_ = module.mixture, module.cascade
        model: nn.ModuleList = module.experts.eval()
        self.model_ = model

    # ------------------------------------------------------------------ predicting

    def _answer(self, batch: Any) -> CascadeAnswer:
        """Mixed probabilities ``(n, K)``, weights of the experts, and which of them were asked."""
        check_one_of("inference", self.inference, INFERENCES)
        features, count = self._gate_features(batch), batch.count
        if self.inference == "cascade":
            return self.cascade_.run(features, lambda e, rows: self._ask(self.model_[e], batch, rows), count)
        needed = self.mixture_.needed
        weights, mixed = self.mixture_.weigh(features, self._predictions(batch, needed))
        return CascadeAnswer(mixed, weights, np.broadcast_to(needed, (count, len(needed))))

    def _predictions(self, batch: Any, wanted: np.ndarray | None = None) -> np.ndarray:
        """``(n, E, K)`` log-probabilities of the wanted experts, of all when None; the others' place is filled."""
        outputs = self.mixture_.num_outputs
        predictions = np.full((batch.count, len(self.model_), outputs), -np.log(outputs))
        for i, expert in enumerate(self.model_):
            if wanted is None or wanted[i]:
                predictions[:, i] = self._ask(expert, batch, None)
        return predictions

    def _compare(self, batch: Any, score: Callable[[Tensor], dict[str, float]]) -> pd.DataFrame:
        """Scores of the mixture and of each expert alone, one row each, from their log-probabilities ``(n, K)``."""
        predictions = self._predictions(batch)
        mixed = mixed_log_probs(self.mixture_, self._gate_features(batch), predictions)
        every = {"mixture": mixed, **{name: predictions[:, e] for e, name in enumerate(self.expert_names_)}}
        return pd.DataFrame({name: score(torch.from_numpy(part)) for name, part in every.items()}).T.rename_axis(
            "expert"
        )

    def _cost_curve(self, batch: Any, target: np.ndarray) -> pd.DataFrame:
        """Cost against score of the cascade over all thresholds."""
        return self.cascade_.curve(self._gate_features(batch), self._predictions(batch), target)

    def _weight_columns(self, answer: CascadeAnswer) -> dict[str, np.ndarray]:
        """``weight_<expert>``, and ``asked_<expert>`` where a cascade decides."""
        parts = {"weight": answer.weights, **({"asked": answer.asked} if self.inference == "cascade" else {})}
        return {
            f"{what}_{name}": values[:, e]
            for what, values in parts.items()
            for e, name in enumerate(self.expert_names_)
        }

    # ------------------------------------------------------------------ what was fitted

    @property
    def candidates_(self) -> pd.DataFrame:
        """Candidates of the mixture with their losses on validation rows that their gates have not seen."""
        check_is_fitted(self, "model_")
        return self.mixture_.candidates

    @property
    def champion_(self) -> str:
        """Name of the candidate that predicts: ``"expert:gcn"``, ``"mean"``, ``"constant"``, ``"confidence"``, ..."""
        check_is_fitted(self, "model_")
        return self.mixture_.name

    # ------------------------------------------------------------------ files

    def saved_arguments(self) -> dict[str, Any]:
        """Constructor arguments of the fit.

        Raises
        ------
        ConfigError
            If ``strong`` is a list with modules of the user, of which a file could hold the weights only.
        """
        arguments = super().saved_arguments()
        if isinstance(arguments["strong"], list | tuple) and any(isinstance(n, nn.Module) for n in arguments["strong"]):
            raise ConfigError(
                "strong is a list with modules of your own, which a file cannot hold: save a model with one module as "
                "strong, or with networks by name"
            )
        return arguments

    def saved_state(self) -> dict[str, Any]:
        """Fitted attributes, mixture and cascade."""
        state = super().saved_state()
        return {**state, "mixture_": self.mixture_.state()[0], "cascade_": self.cascade_.state()[0]}

    def saved_tensors(self) -> dict[str, Tensor]:
        """Weights of the experts, the mixture and the cascade."""
        tensors = super().saved_tensors()
        for prefix, part in ((MIXTURE, self.mixture_), (CASCADE, self.cascade_)):
            tensors = {**tensors, **{prefix + name: tensor for name, tensor in part.state()[1].items()}}
        return tensors

    @classmethod
    def from_saved(
        cls, arguments: dict[str, Any], state: dict[str, Any], tensors: dict[str, Tensor], source: Path
    ) -> Self:
        """Construct as at the fit, restore, and rebuild experts, mixture and cascade.

        Raises
        ------
        FileFormatError
            If they do not belong together.
        """
        parts = {prefix: under(prefix, tensors) for prefix in (MIXTURE, CASCADE)}
        own = {name: tensor for name, tensor in tensors.items() if not name.startswith((MIXTURE, CASCADE))}
        fitted = super().from_saved(arguments, state, own, source)
        fitted.mixture_ = GatedMixture.from_state(state["mixture_"], parts[MIXTURE])
        fitted.cascade_ = Cascade.from_state(state["cascade_"], parts[CASCADE])
        for part in (fitted.mixture_, fitted.cascade_.mixture):
            same = list(part.names) == fitted.expert_names_ and part.num_outputs == fitted._num_outputs
            if not same or part.task != "classification" or part.num_features != fitted._num_gate_features:
                raise FileFormatError(f"{source}: its mixture is one of other experts, classes or features")
        return fitted

    _num_outputs: int = 2
    _num_gate_features: int

    def _build_model(self) -> nn.Module:
        experts = nn.ModuleList(self._make_experts())
        if len(experts) != len(self.expert_names_):
            raise FileFormatError(f"it has {len(self.expert_names_)} names for {len(experts)} experts")
        return experts
