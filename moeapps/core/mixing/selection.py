"""Which mixture: the candidates are compared on rows that their gates have not seen, then one is fitted on all rows.

1. The rows, whose predictions are out-of-fold already, are cut into folds (stratified, or by group).
2. On all folds but one each candidate is fitted: calibration of the experts, gate, temperature of the mixture.
3. On the remaining fold it is judged: log loss, or squared error. So every row is judged once by every candidate.
4. :func:`choose` takes one, and it is fitted on all rows.

This is the cross-validated choice among combinations of van der Laan, Polley and Hubbard (2007, "Super learner"), with
level-one data as in stacking (Wolpert 1992).

Shapes: n rows, E experts, K classes or targets, C candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.model_selection import GroupKFold

from moeapps.core.checks import check_one_of
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.mixing.calibration import Calibration, fit_calibration, fit_temperature, picked
from moeapps.core.mixing.gate import KINDS, FixedGate, GateConfig
from moeapps.core.mixing.inputs import Floats, MixingData, Task
from moeapps.core.mixing.line import Line, fit_line, fit_stacked
from moeapps.core.mixing.mixture import GatedMixture
from moeapps.core.mixing.training import train_gate

__all__ = ["GATES", "CandidateFitter", "Gate", "choose", "compare", "cross_fitted_losses", "fit_mixture"]

Gate = Literal["auto", "best", "mean", "constant", "stacked", "confidence", "linear", "mlp"]
GATES = ("auto", "best", "mean", "stacked", *KINDS)
FOLDS = 5
FEWEST = 10
"""With fewer rows nothing is fitted: the experts and their mean compete as they are."""

SUSPICIOUS = 2.0
"""Temperatures above this or below its inverse are tried without, too, where the gate tells rows apart."""

SIMPLER_FIRST = ("constant", "stacked", "confidence", "linear", "mlp", "mean", "expert")
STACKED_FIRST = ("stacked", *(name for name in SIMPLER_FIRST if name != "stacked"))
"""The order for classes with biases: a regression has no more parameters than constant weights with a bias per class.
Set on the tuning splits of ``benchmarks/graph_gates.py``."""

MARGIN = 0.5
"""Set on the tuning tables (``benchmarks/gate_selection.py --every-candidate``), as the order of the others."""

DEFAULTS = {
    "constant": GateConfig("constant"),
    "confidence": GateConfig("confidence"),
    "linear": GateConfig("linear", penalty=30.0),
    "mlp": GateConfig("mlp", penalty=10.0),
}
"""Settings of the gates that compete."""


def fit_mixture(
    features: Any,
    predictions: Any,
    target: Any,
    weight: Any = None,
    *,
    task: Task = "classification",
    names: Sequence[str] | None = None,
    gate: Gate | GateConfig = "auto",
    calibrate: bool = True,
    class_bias: bool = False,
    groups: Any = None,
    seed: int = 0,
    verbose: bool = False,
    margin: float = MARGIN,
) -> GatedMixture:
    """Fit a mixture of experts that are known by their out-of-fold predictions.

    Parameters
    ----------
    features : array of shape (n, F)
        What the gate may look at beside the predictions: numbers without missing values. F may be 0.
    predictions : array of shape (n, E, K)
        Log-probabilities, or predicted targets (standardised ones where their scales differ), by experts that have not
        seen these rows.
    target : array of shape (n,) of class codes, or (n, K)
        What was to be predicted.
    weight : array of shape (n,), optional
        Weight of each row; all 1 when None.
    task : {"classification", "regression"}, default="classification"
        Which kind of prediction.
    names : sequence of str, optional
        Names of the experts; ``"0"``, ``"1"``, ... when None.
    gate : str or GateConfig, default="auto"
        ``"auto"``: whichever candidate does best. ``"best"``: the best expert alone. ``"mean"``, ``"constant"``,
        ``"confidence"``, ``"linear"``, ``"mlp"`` or a :class:`~moeapps.core.mixing.GateConfig`: that one.
        ``"stacked"``: a linear regression on the predictions, of classes a multinomial one on the log-probabilities
        with a factor per expert and a bias per class; its weights are the absolute factors' shares.
    calibrate : bool, default=True
        Whether each expert and the mixture get a temperature, or in regression the mixture a straight line.
    class_bias : bool, default=False
        For classification, where these rows may have other class shares than those that the experts were trained on:
        each candidate, the experts alone among them, gets a bias per class beside the temperature if that is better by
        more than one standard error on rows that it was not fitted on, and ``"auto"`` tries ``"stacked"``, too.
    groups : array of shape (n,), optional
        Rows of one group stay in one fold.
    seed : int, default=0
        Seed of folds and gates. The global random state is left as it was.
    verbose : bool, default=False
        Whether the candidates are printed.
    margin : float, default=0.5
        For ``gate="auto"``: so many standard errors of the difference a simpler candidate may be behind the best.

    Returns
    -------
    GatedMixture
        Its ``candidates`` has one row per candidate: ``candidate``, ``loss`` (mean over rows that its gate had not
        seen), ``standard_error``, ``difference`` to the lowest loss, ``difference_error`` (the standard error of that
        difference, by pairs of rows), ``chosen``.

    Raises
    ------
    ConfigError
        If an argument is impossible.
    DataError
        If the arrays do not fit together, or a value is NaN; the message names the expert.
    """
    check_one_of("task", task, ("classification", "regression"))
    if not isinstance(gate, GateConfig):
        check_one_of("gate", gate, GATES)
    shape = np.shape(predictions)
    names = tuple(str(i) for i in range(shape[1] if len(shape) == 3 else 1)) if names is None else tuple(names)
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"names of the experts must differ, and there must be one at least, got {names}")
    if groups is not None:
        groups = np.unique(np.asarray(groups), return_inverse=True)[1]
        if len(groups) != shape[0]:
            raise DataError(f"groups must have one entry per row: {shape[0]}, got {len(groups)}")
        if weight is not None:
            groups = groups[np.asarray(weight, dtype=np.float64) > 0]
    data = MixingData.checked(features, predictions, target, weight, task, names)
    fitter = CandidateFitter(names, calibrate, seed, class_bias)
    candidates = _candidates(gate, names, len(data))
    if gate == "auto" and (task == "regression" or class_bias) and fitter.calibrates(data) and len(names) > 1:
        candidates["stacked"] = None
    losses, corrections = cross_fitted_losses(fitter, candidates, data, groups)
    order = STACKED_FIRST if fitter.class_bias and task == "classification" else SIMPLER_FIRST
    chosen = _chosen(gate, list(candidates), losses, data.weight, margin, order)
    table = compare(list(candidates), losses, data.weight)
    table["chosen"] = table["candidate"] == chosen
    if verbose:
        print(table.to_string(index=False, float_format="{:.4f}".format))
    mixture = fitter.fit({chosen: candidates[chosen]}, data)[chosen]
    return replace(mixture, **corrections[chosen], candidates=table)


@dataclass(frozen=True)
class CandidateFitter:
    """Fits candidates on rows, calibration and gate.

    Parameters
    ----------
    names : tuple of str
        Names of the E experts.
    calibrate : bool
        Whether there are temperatures and lines.
    seed : int
        Seed of the gates.
    class_bias : bool, default=False
        Whether a candidate may have a bias per class.
    """

    names: tuple[str, ...]
    calibrate: bool
    seed: int
    class_bias: bool = False

    def calibrates(self, data: MixingData) -> bool:
        """Whether temperatures, or a line, are fitted on these rows."""
        return self.calibrate and len(data) >= FEWEST

    def fit(self, candidates: "Candidates", data: MixingData) -> dict[str, GatedMixture]:
        """One mixture per candidate; they share the experts' calibration."""
        calibration = fit_calibration(data) if self.calibrates(data) else Calibration.identity(data.num_experts)
        return {name: self._fit_one(name, gate, calibration, data) for name, gate in candidates.items()}

    def _fit_one(
        self, name: str, gate: GateConfig | Floats | None, calibration: Calibration, data: MixingData
    ) -> GatedMixture:
        if gate is None:
            line = fit_stacked(calibration.rows(data))
            return replace(self._with_calibration(name, line.shares, calibration, data), line=line)
        made = self._with_calibration(name, gate, calibration, data)
        stretch = np.abs(np.log(calibration.temperatures)).max()
        if not isinstance(gate, GateConfig) or gate.kind == "constant" or stretch <= np.log(SUSPICIOUS):
            return made
        # An expert that is sure and right in one part of the rows and wrong in another gets a high temperature from all
        # rows, which hides what it knows. A gate that tells the parts apart does better with its own probabilities.
        own = replace(calibration, temperatures=np.ones(data.num_experts))
        twin = self._with_calibration(name, gate, own, data)
        losses = [
            float(-(data.weight * picked(mixture.log_mix(data.features, data.predictions), data.target)).mean())
            for mixture in (made, twin)
        ]
        return made if losses[0] <= losses[1] else twin  # on the rows of the fit: both have as many parameters

    def _with_calibration(
        self, name: str, gate: GateConfig | Floats, calibration: Calibration, data: MixingData
    ) -> GatedMixture:
        made = train_gate(gate, calibration.rows(data), self.seed) if isinstance(gate, GateConfig) else FixedGate(gate)
        return GatedMixture(
            task=data.task,
            names=self.names,
            num_outputs=data.predictions.shape[2],
            num_features=data.features.shape[1],
            name=name,
            gate=made,
            calibration=calibration,
        )


def cross_fitted_losses(
    fitter: CandidateFitter, candidates: "Candidates", data: MixingData, groups: NDArray[np.int64] | None = None
) -> tuple[Floats, dict[str, dict[str, Any]]]:
    """Judge candidates on the folds that they were not fitted on.

    Returns
    -------
    losses : float64 array of shape (n, C)
        Log loss, or squared error as a mean over the targets, of each row by each candidate.
    corrections : dict of str to dict
        What each candidate's mixture gets beside its gate, ``temperature`` or ``line``, fitted on the same rows: on
        rows that a gate learned from its mixture looks surer than it may be.
    """
    mixed = {name: np.empty((len(data), data.predictions.shape[2])) for name in candidates}
    for train, held in cut_folds(data, groups, fitter.seed):
        judged = data.rows(held)
        for name, mixture in fitter.fit(candidates, data.rows(train)).items():
            mixed[name][held] = mixture.log_mix(judged.features, judged.predictions)
    corrections: dict[str, dict[str, Any]] = {name: {} for name in candidates}
    # an expert alone has its temperature already, and in regression it stays as it is; a stacked one has a line
    corrected = [name for name, gate in candidates.items() if gate is not None and not name.startswith("expert:")]
    several = corrected if fitter.calibrates(data) else []
    if data.task == "regression":
        for name in several:
            line = fit_line(mixed[name], data)
            corrections[name], mixed[name] = {"line": line}, line(mixed[name], data.predictions)
        return np.stack([np.square(m - data.target).mean(axis=1) for m in mixed.values()], axis=1), corrections
    biased = _with_class_bias(mixed, candidates, data, groups, fitter)
    for name in several:
        temperature = fit_temperature(mixed[name], data.target, data.weight)[0]
        corrections[name], mixed[name] = {"temperature": temperature}, log_softmax(mixed[name] / temperature, axis=1)
    for name, (line, log_probs) in biased.items():
        gain = (picked(log_probs, data.target) - picked(mixed[name], data.target))[:, None]
        if (data.weight * gain[:, 0]).mean() > _standard_error(gain, data.weight)[0]:
            corrections[name], mixed[name] = {"line": line}, log_probs
    return np.stack([-picked(log_probs, data.target) for log_probs in mixed.values()], axis=1), corrections


def _with_class_bias(
    mixed: dict[str, Floats],
    candidates: "Candidates",
    data: MixingData,
    groups: NDArray[np.int64] | None,
    fitter: CandidateFitter,
) -> dict[str, tuple[Line, Floats]]:
    """Each candidate's line with a bias per class, and log-probabilities by lines that have not seen the rows.

    A bias per class is too much to be judged on the rows that it was fitted on, as one temperature is.
    """
    if not (fitter.class_bias and fitter.calibrates(data)):
        return {}
    folds = cut_folds(data, groups, fitter.seed + 1)
    found = {}
    for name, gate in candidates.items():
        if gate is None:
            continue  # a multinomial regression has its biases
        judged = np.empty_like(mixed[name])
        for train, held in folds:
            line = fit_line(mixed[name][train], data.rows(train))
            judged[held] = log_softmax(line(mixed[name][held], data.predictions[held]), axis=1)
        found[name] = fit_line(mixed[name], data), judged
    return found


def cut_folds(
    data: MixingData, groups: NDArray[np.int64] | None, seed: int, folds: int = FOLDS
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows to fit on and rows to judge on, of each fold; all rows are both where there are too few to cut.

    Classes are dealt out in turn, so that folds are stratified, and a class with one row is no trouble.
    """
    n = len(data)
    rows = np.arange(n)
    count = len(np.unique(rows if groups is None else groups))
    if n < FEWEST or count < 2:
        return [(rows, rows)]
    if groups is not None:
        return list(GroupKFold(min(folds, count)).split(rows, groups=groups))
    shuffled = np.random.default_rng(seed).permutation(n)
    if data.task == "classification":
        shuffled = shuffled[np.argsort(data.target[shuffled], kind="stable")]
    fold = np.empty(n, dtype=np.int64)
    fold[shuffled] = rows % folds
    return [(np.flatnonzero(fold != i), np.flatnonzero(fold == i)) for i in range(folds)]


def compare(names: Sequence[str], losses: Floats, weight: Floats) -> pd.DataFrame:
    """Mean loss of each candidate, and its difference to the lowest by pairs of rows, with standard errors."""
    means = (weight[:, None] * losses).mean(axis=0)
    differences = losses - losses[:, [np.argmin(means)]]
    return pd.DataFrame(
        {
            "candidate": list(names),
            "loss": means,
            "standard_error": _standard_error(losses, weight),
            "difference": (weight[:, None] * differences).mean(axis=0),
            "difference_error": _standard_error(differences, weight),
        }
    )


def _standard_error(values: Floats, weight: Floats) -> Floats:
    """Standard error of each column's weighted mean; the weights have mean 1."""
    centred = weight[:, None] * (values - (weight[:, None] * values).mean(axis=0))
    error: Floats = np.sqrt(np.square(centred).sum(axis=0)) / len(values)
    return error


def choose(
    names: Sequence[str],
    losses: Floats,
    weight: Floats,
    margin: float = MARGIN,
    order: Sequence[str] = SIMPLER_FIRST,
) -> str:
    """Choose a candidate: the simplest that is not clearly behind the best.

    1. The best has the lowest mean loss on rows that it has not seen.
    2. Those behind it by at most ``margin`` standard errors of the paired difference are as good.
    3. Of these the first of ``order`` is taken; among experts the one with the lowest loss.

    This is Breiman's rule (Breiman et al. 1984, section 3.4.3, with one standard error) on paired differences, which
    are far less noisy than the losses themselves. Simple means few chances to go wrong on new rows: fitted constant
    weights come before the plain mean, which a bad expert spoils, and both before an expert alone, whose choice is
    the one that overfits.

    Parameters
    ----------
    names : sequence of C str
        The candidates.
    losses : float64 array of shape (n, C)
        Loss of each row.
    weight : float64 array of shape (n,)
        Weights with mean 1.
    margin : float, default=0.5
        See above.
    order : sequence of str, default=SIMPLER_FIRST
        Kinds of candidates, the simplest first.
    """
    table = compare(names, losses, weight)
    as_good = table[table["difference"] <= margin * table["difference_error"] + 1e-12]
    kinds = [list(order).index(name.partition(":")[0]) for name in as_good["candidate"]]
    simplest = as_good[np.array(kinds) == min(kinds)]
    return str(simplest["candidate"][simplest["loss"].idxmin()])


Candidates = dict[str, GateConfig | Floats | None]
"""Gates to be trained, fixed weights ``(E,)``, and None for a regression on predictions, by the candidate's name."""


def _candidates(gate: Gate | GateConfig, names: Sequence[str], n: int) -> Candidates:
    """The experts, their mean, and the gates that ``gate`` lets compete."""
    num_experts = len(names)
    made: Candidates = {f"expert:{name}": weights for name, weights in zip(names, np.eye(num_experts), strict=True)}
    if num_experts == 1 and not isinstance(gate, GateConfig) and gate in ("auto", "best"):
        return made
    made["mean"] = np.full(num_experts, 1 / num_experts)
    if isinstance(gate, GateConfig):
        made[gate.kind] = gate
    elif gate == "stacked":
        made["stacked"] = None if n >= FEWEST else made["mean"]
    elif gate in DEFAULTS:
        made[gate] = DEFAULTS[gate]
    elif gate == "auto" and n >= FEWEST:
        made.update(DEFAULTS)
    return made


def _chosen(
    gate: Gate | GateConfig, names: list[str], losses: Floats, weight: Floats, margin: float, order: Sequence[str]
) -> str:
    if isinstance(gate, GateConfig):
        return gate.kind
    if gate in names:
        return gate
    if gate == "auto" and len(losses) < FEWEST and "mean" in names:
        return "mean"  # too few rows to prefer an expert
    allowed = [i for i, name in enumerate(names) if gate == "auto" or name.startswith("expert:")]
    return choose([names[i] for i in allowed], losses[:, allowed], weight, margin, order)
