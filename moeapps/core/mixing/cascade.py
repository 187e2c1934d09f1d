r"""Experts asked one after the other, in the order of their cost, as long as it pays.

1. The experts are ordered by their cost per row; the cheapest is asked for every row.
2. After each expert a gate that has seen only the experts asked so far mixes what is known. After the last one it is
   the mixture itself.
3. ``criterion="gain"``: an estimate, learned on out-of-fold rows, says by how much the loss would fall if the row went
   on to each later stage. A row goes on from stage s while

   .. math:: \max_{t > s} \frac{g_{s \to t}(x)}{C_t - C_s} > \lambda

   where :math:`C_t` is the cost of all experts up to t, as a fraction of asking all, and :math:`\lambda` the price of
   that cost in units of the loss. ``criterion="confidence"``: a row goes on while 1 minus the highest probability of
   the mixture so far is above the threshold. With two experts this is the cascade of Mowst (Zeng et al. 2024, section
   2), whose loop over experts is the same function, :func:`~moeapps.core.chain.pass_on`.
4. The threshold is chosen on out-of-fold rows, for a budget or a tolerance.

Shapes: n rows, E experts, S stages, K classes or targets, F features.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from moeapps.core.chain import pass_on
from moeapps.core.errors import DataError, FileFormatError
from moeapps.core.mixing.gain import Gain, known_of
from moeapps.core.mixing.inputs import Floats, MixingData
from moeapps.core.mixing.mixture import GatedMixture
from moeapps.core.mixing.simulation import measure_thresholds, thresholds_of
from moeapps.core.saved_arguments import check_fields
from moeapps.core.saved_tensors import under

__all__ = ["Ask", "Cascade", "CascadeAnswer", "Criterion"]

Criterion = Literal["gain", "confidence"]
CRITERIA = ("gain", "confidence")

Ask = Callable[[int, NDArray[np.int64]], Any]
"""Predictions ``(A, K)`` of an expert, by its number, for rows ``(A,)``: log-probabilities or targets."""


class CascadeAnswer(NamedTuple):
    """Predictions of a cascade.

    Parameters
    ----------
    mixed : float64 array of shape (n, K)
        Probabilities or targets.
    weights : float64 array of shape (n, E)
        Weight of each expert in the prediction; 0 for those not asked.
    asked : bool array of shape (n, E)
        Which experts were asked.
    """

    mixed: Floats
    weights: Floats
    asked: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Cascade:
    """Experts in the order of their cost, with a gate per stage and a rule when to stop.

    Made by :func:`~moeapps.core.mixing.fit_cascade`.

    Parameters
    ----------
    mixture : GatedMixture
        The mixture of all experts.
    order : tuple of int
        Experts in the order in which they are asked, S of the E; those that the mixture does not need are left out.
    stages : tuple of GatedMixture
        S - 1 mixtures: that of number s has seen the first s + 1 experts of the order.
    costs : float64 array of shape (S,)
        Cost of the experts up to each stage, as a fraction of the cost of all E.
    criterion : {"gain", "confidence"}
        What is compared with the threshold.
    gains : tuple of Gain
        S - 1 estimates for ``"gain"``; empty for ``"confidence"``.
    threshold : float
        Rows whose criterion is above it go on.
    """

    mixture: GatedMixture
    order: tuple[int, ...]
    stages: tuple[GatedMixture, ...]
    costs: Floats
    criterion: Criterion
    gains: tuple[Gain, ...]
    threshold: float

    def run(self, features: Any, ask: Ask, n_rows: int | None = None) -> CascadeAnswer:
        """Predict rows, asking each expert only for the rows that reach it.

        Parameters
        ----------
        features : float64 array of shape (n, F)
            The gate's features.
        ask : callable
            ``ask(expert, rows)`` returns what the expert predicts for these rows, ``(A, K)``: log-probabilities or
            targets, as the mixture was fitted on.
        n_rows : int, optional
            Number of rows n; that of the features when None.

        Raises
        ------
        DataError
            If a shape is another one, or an expert predicts NaN; the message names it.
        """
        features = np.asarray(features, dtype=np.float64)
        n = len(features) if n_rows is None else n_rows
        if len(features) != n:
            raise DataError(f"features must have {n} rows, got {len(features)}")
        num_experts, num_outputs = self.mixture.num_experts, self.mixture.num_outputs
        # experts that the mixture does not need are never asked: any prediction will do
        filler = -np.log(num_outputs) if self.mixture.task == "classification" else 0.0
        known = np.full((n, num_experts, num_outputs), filler)
        mixed, weights = np.zeros((n, num_outputs)), np.zeros((n, num_experts))
        asked = np.zeros((n, num_experts), dtype=bool)

        def visit(stage: int, chosen: Tensor | None) -> Tensor:
            rows = np.arange(n) if chosen is None else chosen.numpy()
            expert = self.order[stage]
            answer = np.asarray(ask(expert, rows), dtype=np.float64)
            if answer.shape != (len(rows), num_outputs):
                raise DataError(
                    f"expert {self.mixture.names[expert]!r} must predict shape {(len(rows), num_outputs)}, "
                    f"got {answer.shape}"
                )
            known[rows, expert] = answer
            asked[rows, expert] = True
            mixed[rows], weights[np.ix_(rows, np.array(self.experts_at(stage)))], score = self.at(
                stage, features[rows], known[rows]
            )
            return torch.from_numpy(score > self.threshold)

        if n:
            pass_on(len(self.order), visit)
        return CascadeAnswer(np.exp(mixed) if self.mixture.task == "classification" else mixed, weights, asked)

    def experts_at(self, stage: int) -> list[int]:
        """Experts whose predictions the mixture of a stage takes."""
        last = stage == len(self.order) - 1
        return list(range(self.mixture.num_experts)) if last else list(self.order[: stage + 1])

    def at(self, stage: int, features: Floats, predictions: Floats) -> tuple[Floats, Floats, Floats]:
        """What one stage makes of predictions ``(n, E, K)``, of which it takes those of its own experts.

        Returns
        -------
        mixed : float64 array of shape (n, K)
            Log-probabilities or targets.
        weights : float64 array
            Weights of the experts of :meth:`experts_at`.
        score : float64 array of shape (n,)
            The criterion; rows with more than the threshold go on. Minus infinity at the last stage.
        """
        last = stage == len(self.order) - 1
        mixture = self.mixture if last else self.stages[stage]
        own = predictions[:, self.experts_at(stage)]
        weights = mixture.weights(features, own)
        calibrated = mixture.calibrated(own)
        mixed = mixture.pool(weights, calibrated)
        if last:
            return mixed, weights, np.full(len(mixed), -np.inf)
        if self.criterion == "confidence":
            return mixed, weights, 1 - np.exp(mixed.max(axis=1))
        gains = self.gains[stage](known_of(features, calibrated, mixed, mixture.task))
        return mixed, weights, (gains / (self.costs[stage + 1 :] - self.costs[stage])).max(axis=1)

    def curve(self, features: Any, predictions: Any, target: Any, weight: Any = None) -> pd.DataFrame:
        """Cost against score over all thresholds, on rows whose predictions by all experts are known.

        Parameters
        ----------
        features, predictions, target, weight
            As in :func:`~moeapps.core.mixing.fit_mixture`; test rows, say.

        Returns
        -------
        DataFrame
            ``threshold``, ``cost`` (mean cost per row as a fraction of asking all experts), ``loss`` (log loss or
            squared error), and ``accuracy`` or ``r2``; from the cheapest to all experts.
        """
        mixture = self.mixture
        data = MixingData.checked(features, predictions, target, weight, mixture.task, mixture.names)
        mixed, scores = self.simulate(data)
        thresholds = np.append(thresholds_of(scores), self.threshold)
        table = measure_thresholds(mixed, scores, self.costs, thresholds, data)
        return table.drop_duplicates("threshold").sort_values("threshold", ascending=False, ignore_index=True)

    def simulate(self, data: MixingData) -> tuple[Floats, Floats]:
        """Mixed predictions ``(S, n, K)`` and criterion ``(S - 1, n)`` of every stage for rows known in full."""
        parts = [self.at(stage, data.features, data.predictions) for stage in range(len(self.order))]
        mixed = np.stack([part[0] for part in parts])
        return mixed, np.stack([part[2] for part in parts])[:-1]

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What a file has to hold: JSON values, and tensors by name."""
        document, tensors = self.mixture.state()
        tensors = {f"mixture.{name}": tensor for name, tensor in tensors.items()}
        stages = []
        for i, stage in enumerate(self.stages):
            stage_document, stage_tensors = stage.state()
            stages.append(stage_document)
            tensors |= {f"stage{i}.{name}": tensor for name, tensor in stage_tensors.items()}
        for i, gain in enumerate(self.gains):
            tensors |= {f"gain{i}.{name}": torch.from_numpy(value.copy()) for name, value in vars(gain).items()}
        tensors["costs"] = torch.from_numpy(self.costs.copy())
        plain = {
            "order": list(self.order),
            "criterion": self.criterion,
            "threshold": float(self.threshold),
            "mixture": document,
            "stages": stages,
        }
        return plain, tensors

    @classmethod
    def from_state(cls, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The cascade whose :meth:`state` this is.

        Raises
        ------
        FileFormatError
            If a value or tensor is missing, of another kind or shape, or not finite.
        """
        check_fields(_CascadeState, state)
        mixture = GatedMixture.from_state(state["mixture"], under("mixture.", tensors))
        order = tuple(state["order"])
        if not order or len(set(order)) < len(order) or not set(order) <= set(range(mixture.num_experts)):
            raise FileFormatError(f"the order of a cascade over {mixture.num_experts} experts cannot be {order}")
        if len(state["stages"]) != len(order) - 1:
            raise FileFormatError(f"a cascade of {len(order)} experts cannot have {len(state['stages'])} early stages")
        if not np.isfinite(state["threshold"]):
            raise FileFormatError(f"the threshold of a cascade cannot be {state['threshold']}")
        stages = []
        for i, document in enumerate(state["stages"]):
            stage = GatedMixture.from_state(document, under(f"stage{i}.", tensors))
            names = tuple(mixture.names[expert] for expert in order[: i + 1])
            same = (stage.task, stage.num_outputs, stage.num_features) == (
                mixture.task,
                mixture.num_outputs,
                mixture.num_features,
            )
            if stage.names != names or not same:
                raise FileFormatError(f"stage {i} of a cascade does not fit its experts {names}")
            stages.append(stage)
        costs = _finite(tensors, "costs", (len(order),))
        if (np.diff(costs, prepend=0.0) <= 0).any():
            raise FileFormatError("the costs of a cascade must rise from stage to stage")
        gains: tuple[Gain, ...] = ()
        if state["criterion"] == "gain":
            gains = tuple(_gain_from(tensors, i, stage, len(order)) for i, stage in enumerate(stages))
        return cls(mixture, order, tuple(stages), costs, state["criterion"], gains, float(state["threshold"]))


class _CascadeState:
    """Kinds of the values of :meth:`Cascade.state`."""

    order: list[int]
    criterion: Criterion
    threshold: float
    mixture: dict[str, Any]
    stages: list[dict[str, Any]]


def _finite(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Floats:
    tensor = tensors.get(name)
    if tensor is None or tuple(tensor.shape) != shape:
        raise FileFormatError(f"the tensor {name} of a cascade must have shape {shape}")
    values: Floats = tensor.detach().cpu().double().numpy().copy()
    if not np.isfinite(values).all():
        raise FileFormatError(f"the tensor {name} of a cascade has values that are not finite")
    return values


def _gain_from(tensors: Mapping[str, Tensor], i: int, stage: GatedMixture, num_stages: int) -> Gain:
    """The estimate of one stage; its width follows from what :func:`known_of` makes of a row."""
    empty = np.zeros((0, i + 1, stage.num_outputs))
    known = known_of(np.zeros((0, stage.num_features)), empty, empty[:, 0], stage.task)
    width, later = known.shape[1], num_stages - 1 - i
    gain = Gain(
        center=_finite(tensors, f"gain{i}.center", (width,)),
        scale=_finite(tensors, f"gain{i}.scale", (width,)),
        weight=_finite(tensors, f"gain{i}.weight", (width, later)),
        bias=_finite(tensors, f"gain{i}.bias", (later,)),
    )
    if (gain.scale <= 0).any():
        raise FileFormatError(f"gain{i}.scale of a cascade must be above 0")
    return gain
