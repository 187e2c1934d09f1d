"""Fitting a cascade: a gate per stage, what going on is expected to bring, and the threshold.

Everything that the threshold is chosen by is cross-fitted: the rows of a fold are mixed by gates, and their gains
estimated by regressions, that were fitted on the other folds.

Shapes: n rows, E experts, S stages, K classes or targets, F features.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moeapps.core.checks import check_one_of
from moeapps.core.errors import ConfigError
from moeapps.core.mixing.calibration import fit_temperature
from moeapps.core.mixing.cascade import CRITERIA, Cascade, Criterion
from moeapps.core.mixing.gain import Gain, fit_gain, known_of
from moeapps.core.mixing.gate import FixedGate, PredictionGate
from moeapps.core.mixing.inputs import Floats, MixingData
from moeapps.core.mixing.line import fit_line, fit_stacked
from moeapps.core.mixing.mixture import GatedMixture
from moeapps.core.mixing.selection import cut_folds
from moeapps.core.mixing.simulation import ASK_ALL, check_limits, choose_cost, row_losses, threshold_for
from moeapps.core.mixing.training import train_gate

__all__ = ["fit_cascade"]

FOLDS = 3


def fit_cascade(
    mixture: GatedMixture,
    features: Any,
    predictions: Any,
    target: Any,
    weight: Any = None,
    *,
    costs: Any,
    budget: float | None = None,
    tolerance: float | None = None,
    criterion: Criterion | None = None,
    groups: Any = None,
    seed: int = 0,
) -> Cascade:
    """Fit a cascade behind a mixture, on the rows that the mixture was fitted on.

    Parameters
    ----------
    mixture : GatedMixture
        What predicts where all experts are asked.
    features, predictions, target, weight
        As for :func:`~moeapps.core.mixing.fit_mixture`.
    costs : array of shape (E,)
        Cost per row of each expert, in any unit; 0 counts as next to nothing.
    budget : float, optional
        Largest mean cost per row as a fraction of asking all E experts, in (0, 1]; the loss is as low as it allows, and
        where less cost makes no difference beyond noise, the budget is used.
    tolerance : float, optional
        Loss (log loss, or squared error) that may be given up against asking all; the cost is as low as it allows.
        When neither is given it is 0.
    criterion : {"gain", "confidence"}, optional
        What decides whether a row goes on, see :mod:`~moeapps.core.mixing.cascade`; ``"gain"`` when None.
    groups : array of shape (n,), optional
        Rows of one group stay in one fold.
    seed : int, default=0
        Seed of folds and gates.

    Raises
    ------
    ConfigError
        If costs are negative or not E numbers, budget or tolerance is impossible, or confidence is asked for in
        regression.
    DataError
        As :func:`~moeapps.core.mixing.fit_mixture`.
    """
    check_limits(budget, tolerance)
    criterion = "gain" if criterion is None else criterion
    check_one_of("criterion", criterion, CRITERIA)
    if criterion == "confidence" and mixture.task == "regression":
        raise ConfigError("criterion='confidence' needs class probabilities: use 'gain' in regression")
    given = np.asarray(costs, dtype=np.float64)
    if given.shape != (mixture.num_experts,) or not np.isfinite(given).all() or (given < 0).any():
        raise ConfigError(f"costs must be {mixture.num_experts} finite numbers of at least 0, got {costs!r}")
    if groups is not None:
        groups = np.unique(np.asarray(groups), return_inverse=True)[1]
        if weight is not None:
            groups = groups[np.asarray(weight, dtype=np.float64) > 0]
    data = MixingData.checked(features, predictions, target, weight, mixture.task, mixture.names)
    order, fractions = _order(mixture, given)
    fitter = _StageFitter(mixture, order, fractions, criterion, seed)
    if len(order) == 1:
        return fitter.fit(data)
    # what each stage would predict, and go on for, on rows that it was not fitted on
    mixed = np.empty((len(order), len(data), mixture.num_outputs))
    scores = np.empty((len(order) - 1, len(data)))
    for train, held in cut_folds(data, groups, seed, FOLDS):
        cascade = fitter.fit(data.rows(train), refit_last=True)
        mixed[:, held], scores[:, held] = cascade.simulate(data.rows(held))
    cost = choose_cost(mixed, scores, fractions, data, budget, tolerance)
    cascade = fitter.fit(data)
    return replace(cascade, threshold=threshold_for(cost, cascade.simulate(data)[1], fractions, data))


def _order(mixture: GatedMixture, costs: Floats) -> tuple[tuple[int, ...], Floats]:
    """Experts by cost, and the cost up to each as a fraction of all.

    Experts that the mixture does not need are left out, all but the cheapest, at which easy rows may stop.
    """
    costs = np.maximum(costs, 1e-9 * costs.sum() if costs.sum() > 0 else 1.0)
    by_cost = np.argsort(costs, kind="stable")
    needed = mixture.needed
    order = tuple(int(e) for i, e in enumerate(by_cost) if needed[e] or i == 0)
    return order, np.cumsum(costs[list(order)]) / costs.sum()


@dataclass(frozen=True)
class _StageFitter:
    """Fits all stages on some rows."""

    mixture: GatedMixture
    order: tuple[int, ...]
    costs: Floats
    criterion: Criterion
    seed: int

    def fit(self, data: MixingData, refit_last: bool = False) -> Cascade:
        """Cascade that asks all experts; with ``refit_last`` the mixture's gate is fitted on these rows, too."""
        mixture = self.mixture
        if refit_last and isinstance(mixture.gate, PredictionGate):
            mixture = replace(mixture, gate=self._gate(data, list(range(mixture.num_experts))))
        stages = tuple(self._stage(data, list(self.order[: i + 1])) for i in range(len(self.order) - 1))
        cascade = Cascade(mixture, self.order, stages, self.costs, "confidence", (), ASK_ALL)
        if self.criterion == "confidence" or not stages:
            return replace(cascade, criterion=self.criterion)
        return replace(cascade, criterion="gain", gains=self._gains(cascade, data))

    def _gate(self, data: MixingData, experts: list[int]) -> PredictionGate | FixedGate:
        """The mixture's kind of gate over some of the experts."""
        gate = self.mixture.gate
        if len(experts) == 1:
            return FixedGate(np.ones(1))
        if not isinstance(gate, PredictionGate):
            weights = gate.weights.numpy()[experts]
            return FixedGate(weights if weights.sum() > 0 else np.ones(len(experts)))
        config = replace(gate.config, top_k=None if gate.config.top_k is None else min(gate.config.top_k, len(experts)))
        return train_gate(config, self._calibrated(data, experts), self.seed)

    def _calibrated(self, data: MixingData, experts: list[int]) -> MixingData:
        return self.mixture.calibration.experts(experts).rows(data.experts(experts))

    def _stage(self, data: MixingData, experts: list[int]) -> GatedMixture:
        whole = self.mixture
        stage = GatedMixture(
            task=whole.task,
            names=tuple(whole.names[expert] for expert in experts),
            num_outputs=whole.num_outputs,
            num_features=whole.num_features,
            name=f"expert:{whole.names[experts[0]]}" if len(experts) == 1 else whole.name,
            gate=self._gate(data, experts),
            calibration=whole.calibration.experts(experts),
        )
        if whole.temperature == 1 and whole.line is None:
            return stage  # nothing is calibrated
        if len(experts) > 1 and whole.line is not None and whole.line.free is not None:
            return replace(stage, line=fit_stacked(self._calibrated(data, experts)))
        if len(experts) == 1 and (whole.task == "regression" or whole.line is None):
            return stage  # the expert has its own temperature; in regression it stays as it is
        mixed = stage.log_mix(data.features, data.predictions[:, experts])
        if whole.line is not None:
            return replace(stage, line=fit_line(mixed, data))
        return replace(stage, temperature=fit_temperature(mixed, data.target, data.weight)[0])

    def _gains(self, cascade: Cascade, data: MixingData) -> tuple[Gain, ...]:
        mixed = cascade.simulate(data)[0]
        losses = row_losses(mixed, data)
        gains = []
        for i, stage in enumerate(cascade.stages):
            calibrated = stage.calibrated(data.predictions[:, self.order[: i + 1]])
            known = known_of(data.features, calibrated, mixed[i], data.task)
            gains.append(fit_gain(known, (losses[i] - losses[i + 1 :]).T, data.weight))
        return tuple(gains)
