"""A fitted mixture: calibration, gate, and how the experts' predictions become one.

Shapes: n rows, E experts, K classes or targets, F features, U columns of uncertainty.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp
from torch import Tensor

from moeapps.core.config import as_arguments
from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.core.mixing.calibration import Calibration
from moeapps.core.mixing.gate import FixedGate, GateConfig, PredictionGate, dense_weights
from moeapps.core.mixing.inputs import Floats, Task, check_predictions, uncertainty, uncertainty_width
from moeapps.core.mixing.line import Line
from moeapps.core.rebuilding import rebuild
from moeapps.core.routing import Routing
from moeapps.core.saved_arguments import check_fields, check_kinds
from moeapps.core.saved_tensors import under

__all__ = ["GatedMixture", "mix_predictions"]


def mix_predictions(weights: Floats, predictions: Floats, task: Task) -> Floats:
    """Mix calibrated predictions ``(n, E, K)`` by weights ``(n, E)``: log-probabilities or targets ``(n, K)``."""
    if task == "regression":
        mixed: Floats = np.einsum("ne,nek->nk", weights, predictions)
        return mixed
    with np.errstate(divide="ignore"):
        log_mixed: Floats = logsumexp(np.log(weights)[:, :, None] + predictions, axis=1)
    return log_mixed


@dataclass(frozen=True, eq=False)
class GatedMixture:
    """A gate over E experts that are known by their predictions only.

    Made by :func:`~moeapps.core.mixing.fit_mixture`.

    Parameters
    ----------
    task : {"classification", "regression"}
        What is predicted.
    names : tuple of str
        Names of the E experts.
    num_outputs : int
        Classes or targets K.
    num_features : int
        Width F of the gate's features.
    name : str
        Which candidate this is: ``"expert:<name>"``, ``"mean"``, ``"constant"``, ``"stacked"``, ``"confidence"``,
        ``"linear"`` or ``"mlp"``.
    gate : PredictionGate or FixedGate
        Its forward gives a core :class:`~moeapps.core.routing.Routing` over the experts.
    calibration : Calibration
        Temperature and floor of each expert; changes nothing in regression.
    temperature : float, default=1.0
        Temperature of the mixed probabilities. A mean of calibrated probabilities is less sure than it should be
        (Ranjan and Gneiting 2010), which a temperature below 1 corrects.
    line : Line, optional
        The same in regression: a slope and an intercept for the mixed prediction, or a linear regression on those of
        the experts. In classification, if at all, instead of the temperature: one over it, and a bias per class, for
        the mixed log-probabilities; or a multinomial regression on those of the experts.
    candidates : DataFrame, optional
        What was compared; see :func:`~moeapps.core.mixing.fit_mixture`.
    """

    task: Task
    names: tuple[str, ...]
    num_outputs: int
    num_features: int
    name: str
    gate: PredictionGate | FixedGate
    calibration: Calibration
    temperature: float = 1.0
    line: Line | None = None
    candidates: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def num_experts(self) -> int:
        """Number of experts E."""
        return len(self.names)

    @property
    def temperatures(self) -> Floats:
        """``(E,)`` temperature of each expert; all 1 in regression."""
        return self.calibration.temperatures

    @property
    def needed(self) -> NDArray[np.bool_]:
        """``(E,)`` experts whose weight can be other than 0; what the others predict changes nothing."""
        if isinstance(self.gate, FixedGate):
            used: NDArray[np.bool_] = (self.gate.weights > 0).numpy()
            return used
        return np.ones(self.num_experts, dtype=bool)

    def calibrated(self, predictions: Any) -> Floats:
        """Calibrated log-probabilities ``(n, E, K)``; in regression the predictions as they are.

        Raises
        ------
        DataError
            If the shape is another one, or a value is NaN or infinite; the message names the expert.
        """
        checked = check_predictions(predictions, self.task, self.names)
        if checked.shape[2] != self.num_outputs:
            raise DataError(f"predictions must have {self.num_outputs} columns per expert, got {checked.shape[2]}")
        return self.calibration(checked) if self.task == "classification" else checked

    def routing(self, features: Any, predictions: Any) -> Routing:
        """The gate's routing of each row, for the core's statistics."""
        return self._route(self._features(features), self.calibrated(predictions))

    def weights(self, features: Any, predictions: Any) -> Floats:
        """Weight of each expert for each row.

        Parameters
        ----------
        features : float64 array of shape (n, F)
            The gate's features.
        predictions : float64 array of shape (n, E, K)
            What the experts predict, not calibrated.

        Returns
        -------
        float64 array of shape (n, E)
            Rows sum to 1.
        """
        return self._weights(self._features(features), self.calibrated(predictions))

    def mix(self, features: Any, predictions: Any) -> Floats:
        """Mixed prediction: probabilities ``(n, K)`` whose rows sum to 1, or targets ``(n, K)``; arguments as above."""
        mixed = self.log_mix(features, predictions)
        return np.exp(mixed) if self.task == "classification" else mixed

    def log_mix(self, features: Any, predictions: Any) -> Floats:
        """As :meth:`mix`, with logarithms of the probabilities."""
        calibrated = self.calibrated(predictions)
        return self.pool(self._weights(self._features(features), calibrated), calibrated)

    def weigh(self, features: Any, predictions: Any) -> tuple[Floats, Floats]:
        """:meth:`weights` and :meth:`mix` of the same rows, from one pass of the gate."""
        calibrated = self.calibrated(predictions)
        weights = self._weights(self._features(features), calibrated)
        mixed = self.pool(weights, calibrated)
        return weights, np.exp(mixed) if self.task == "classification" else mixed

    def pool(self, weights: Floats, calibrated: Floats) -> Floats:
        """Mix calibrated predictions by given weights: log-probabilities or targets ``(n, K)``."""
        mixed = mix_predictions(weights, calibrated, self.task)
        if self.task == "regression":
            return mixed if self.line is None else self.line(mixed, calibrated)
        logits = mixed / self.temperature if self.line is None else self.line(mixed, calibrated)
        log_probs: Floats = log_softmax(logits, axis=1)
        return log_probs

    def _features(self, features: Any) -> Floats:
        features = np.asarray(features, dtype=np.float64)
        if features.ndim != 2 or features.shape[1] != self.num_features:
            raise DataError(f"features must have shape (n, {self.num_features}), got {features.shape}")
        if not np.isfinite(features).all():
            column = int(np.argmin(np.isfinite(features).all(axis=0)))
            raise DataError(f"the gate's feature {column} has values that are not finite: impute them before")
        return features

    def _route(self, features: Floats, calibrated: Floats) -> Routing:
        with torch.no_grad():
            uncertain = uncertainty(calibrated, self.task)
            routing: Routing = self.gate(torch.from_numpy(features), torch.from_numpy(uncertain))
        return routing

    def _weights(self, features: Floats, calibrated: Floats) -> Floats:
        if len(features) != len(calibrated):
            raise DataError(f"{len(features)} rows of features, but {len(calibrated)} of predictions")
        weights: Floats = dense_weights(self._route(features, calibrated)).numpy()
        return weights

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What a file has to hold: JSON values, and tensors by name."""
        document = {
            "task": self.task,
            "names": list(self.names),
            "num_outputs": self.num_outputs,
            "num_features": self.num_features,
            "name": self.name,
            "gate": as_arguments(self.gate.config) if isinstance(self.gate, PredictionGate) else None,
            "temperature": float(self.temperature),
            "line": None if self.line is None else _line_state(self.line),
            "candidates": [_plain(row) for row in self.candidates.to_dict("records")],
        }
        tensors = {f"gate.{name}": value.clone() for name, value in self.gate.state_dict().items()}
        tensors["temperatures"] = torch.from_numpy(self.calibration.temperatures.copy())
        tensors["floors"] = torch.from_numpy(self.calibration.floors.copy())
        return document, tensors

    @classmethod
    def from_state(cls, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The mixture whose :meth:`state` this is.

        Raises
        ------
        FileFormatError
            If a value or tensor is missing, of another kind or shape, or not finite.
        """
        check_fields(_MixtureState, state)
        names = tuple(state["names"])
        for key, least in (("num_outputs", 1), ("num_features", 0)):
            if state[key] < least:
                raise FileFormatError(f"{key} of a mixture cannot be {state[key]}")
        if not names or len(set(names)) < len(names):
            raise FileFormatError(f"the mixture's experts cannot be {names}")
        if not 0 < state["temperature"] < np.inf:
            raise FileFormatError(f"temperature of a mixture cannot be {state['temperature']}")
        calibration = Calibration(
            *(_positive(tensors, name, len(names)) for name in ("temperatures", "floors"))  # in the fields' order
        )
        line = None if state["line"] is None else _line_from(state["line"], state["num_outputs"], len(names))
        gate_tensors = under("gate.", tensors)
        gate = _gate_from(state, len(names), gate_tensors)
        return cls(
            state["task"],
            names,
            state["num_outputs"],
            state["num_features"],
            state["name"],
            gate,
            calibration,
            float(state["temperature"]),
            line,
            pd.DataFrame(state["candidates"]),
        )


class _MixtureState:
    """Kinds of the values of :meth:`GatedMixture.state`."""

    task: Task
    names: list[str]
    num_outputs: int
    num_features: int
    name: str
    gate: dict[str, Any] | None
    temperature: float
    line: list[list[float]] | None
    candidates: list[dict[str, Any]]


def _plain(row: Mapping[Any, Any]) -> dict[str, Any]:
    values = {str(key): value.item() if isinstance(value, np.generic) else value for key, value in row.items()}
    return {key: None if isinstance(v, float) and not np.isfinite(v) else v for key, v in values.items()}


def _positive(tensors: Mapping[str, Tensor], name: str, num_experts: int) -> Floats:
    """A tensor of one number above 0 per expert."""
    tensor = tensors.get(name)
    if tensor is None or tuple(tensor.shape) != (num_experts,):
        raise FileFormatError(f"{name} of a mixture must be {num_experts} numbers, one per expert")
    values: Floats = tensor.detach().cpu().double().numpy().copy()
    if not (np.isfinite(values) & (values > 0)).all():
        raise FileFormatError(f"{name} of a mixture must be finite and above 0")
    return values


def _line_state(line: Line) -> list[list[float]]:
    """Slopes, intercepts, and the factors of each expert where there are some."""
    free = [] if line.free is None else line.free.tolist()
    return [line.slope.tolist(), line.intercept.tolist(), *free]


def _line_from(numbers: list[list[float]], num_outputs: int, num_experts: int) -> Line:
    """The line whose state this is."""
    fits = len(numbers) in (2, 2 + num_experts) and all(len(part) == num_outputs for part in numbers)
    if not fits or not np.isfinite(numbers).all():
        raise FileFormatError(
            f"the line of a mixture must be {num_outputs} slopes, as many intercepts, and as many factors for each of "
            f"{num_experts} experts or none, all finite"
        )
    slope, intercept, *free = (np.asarray(part, dtype=np.float64) for part in numbers)
    return Line(slope, intercept, np.stack(free) if free else None)


def _gate_from(state: Mapping[str, Any], num_experts: int, tensors: Mapping[str, Tensor]) -> PredictionGate | FixedGate:
    gate: PredictionGate | FixedGate
    try:
        if state["gate"] is None:
            gate = FixedGate(np.ones(num_experts))
            gate.load_state_dict(dict(tensors))
        else:
            check_kinds(GateConfig, state["gate"], "a mixture's gate")  # type: ignore[arg-type]
            width = uncertainty_width(state["task"], num_experts, state["num_outputs"])
            config = GateConfig(**state["gate"])
            with isolate_rng():  # initial weights are drawn before the saved ones replace them
                gate = rebuild(
                    lambda: PredictionGate.from_config(state["num_features"], width, num_experts, config=config),
                    dict(tensors),
                    Path("the gate of a mixture"),
                )
    except (ConfigError, OverflowError, TypeError, RuntimeError) as error:
        raise FileFormatError(f"the gate of a mixture cannot be restored: {error}") from None
    for name, tensor in gate.state_dict().items():
        if not bool(tensor.isfinite().all()):
            raise FileFormatError(f"the tensor {name} of a mixture's gate has values that are not finite")
    if isinstance(gate, FixedGate) and not (bool((gate.weights >= 0).all()) and float(gate.weights.sum()) > 0):
        raise FileFormatError("the weights of a mixture's gate must be at least 0 and not all 0")
    return gate.eval().requires_grad_(False)
