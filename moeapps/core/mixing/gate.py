"""Gates over predictions: what they look at, and their scores through one of the core's routers.

Shapes: n rows, E experts, F features, U columns of uncertainty, h hidden units.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from moeapps.core.checks import check_at_least_zero, check_one_of, check_sizes, check_top_k
from moeapps.core.config import Configurable, takes
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.mixing.inputs import Floats
from moeapps.core.routers import TopKRouter, make_router
from moeapps.core.routing import Routing

__all__ = ["KINDS", "FixedGate", "GateConfig", "GateKind", "PredictionGate", "dense_weights"]

GateKind = Literal["constant", "confidence", "linear", "mlp"]
KINDS = ("constant", "confidence", "linear", "mlp")
LIMIT = 5.0
"""Standardised inputs are cut off here: one extreme value must not decide alone."""


@dataclass(frozen=True)
class GateConfig:
    """What a gate looks at, how its scores are made, and how strongly they are regularised.

    Parameters
    ----------
    kind : {"constant", "confidence", "linear", "mlp"}, default="linear"
        ``"constant"`` gives all rows the same weights, ``"confidence"`` scores linearly from the experts' uncertainty,
        ``"linear"`` from the features as well, ``"mlp"`` from both through a hidden layer.
    router : str, default="topk"
        Short name of a router in which rows choose experts and that scores by itself (``moeapps list routers``).
    top_k : int, optional
        Experts with a weight per row; all of them when None.
    hidden_dim : int, default=32
        Hidden units h of ``"mlp"``.
    penalty : float, default=1.0
        Half of it times the squared scores' weights is added to the summed loss, as 1 / C in LogisticRegression.
    """

    kind: GateKind = "linear"
    router: str = "topk"
    top_k: int | None = None
    hidden_dim: int = 32
    penalty: float = 1.0


class PredictionGate(Configurable, nn.Module):
    """Gate from features and uncertainty to a routing over the experts (Jacobs et al. 1991, with a core router).

    Parameters
    ----------
    num_features : int
        Width F of the features; may be 0.
    num_uncertainty : int
        Width U of the uncertainty, see :func:`~moeapps.core.mixing.inputs.uncertainty`; may be 0.
    num_experts : int
        Number of experts E.
    **settings
        The fields of :class:`GateConfig`, by name.

    Raises
    ------
    ConfigError
        If an argument is impossible, or the router needs the experts themselves, lets experts choose rows, or has
        nothing to learn.

    Examples
    --------
    >>> gate = PredictionGate(num_features=4, num_uncertainty=6, num_experts=2, kind="confidence")
    >>> routing = gate(torch.randn(5, 4), torch.rand(5, 6))
    >>> dense_weights(routing).sum(dim=1).allclose(torch.ones(5, dtype=torch.float64))
    True
    """

    center: Tensor
    scale: Tensor

    @takes(GateConfig)
    def __init__(self, num_features: int, num_uncertainty: int, num_experts: int, config: GateConfig) -> None:
        super().__init__()
        check_sizes(num_experts=num_experts, hidden_dim=config.hidden_dim)
        check_at_least_zero(num_features=num_features, num_uncertainty=num_uncertainty, penalty=config.penalty)
        check_one_of("kind", config.kind, KINDS)
        if config.top_k is not None:
            check_top_k(config.top_k, num_experts)
        self.num_features, self.num_uncertainty, self.num_experts = num_features, num_uncertainty, num_experts
        self.config = config
        inputs = {"constant": 0, "confidence": num_uncertainty}.get(config.kind, num_features + num_uncertainty)
        self.hidden = (
            nn.Sequential(nn.Linear(inputs, config.hidden_dim, dtype=torch.float64), nn.ReLU())
            if config.kind == "mlp"
            else None
        )
        # a column of ones stands for the bias, which routers do not have
        width = 1 + (config.hidden_dim if self.hidden is not None else inputs)
        self.router = make_router(config.router, width, num_experts, config.top_k or num_experts).double()
        if not (self.router.token_choice and self.router.scores_itself):
            raise ConfigError(
                f"router={config.router!r} cannot weight predictions: rows have to choose experts, by scores that the "
                "router makes itself, as in 'topk' or 'topp'"
            )
        if not any(True for _ in self.router.parameters()):
            raise ConfigError(f"router={config.router!r} cannot weight predictions: it has nothing to learn")
        weight = getattr(self.router, "weight", None)
        if isinstance(weight, nn.Parameter):
            nn.init.zeros_(weight)  # the mean of all experts is where training begins
        self.register_buffer("center", torch.zeros(inputs, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(inputs, dtype=torch.float64))

    def columns(self, features: Tensor, uncertainty: Tensor) -> Tensor:
        """Columns that this kind of gate looks at, as they are."""
        if self.config.kind == "constant":
            return features[:, :0]
        return uncertainty if self.config.kind == "confidence" else torch.cat([features, uncertainty], dim=1)

    def standardize(self, features: Tensor, uncertainty: Tensor) -> None:
        """Set mean and scale of the inputs from these rows; columns that are constant get the scale 1."""
        x = self.columns(features, uncertainty)
        self.center.copy_(x.mean(dim=0))
        deviation = (x - self.center).square().mean(dim=0).sqrt()
        self.scale.copy_(torch.where(deviation > 1e-9 * (1 + self.center.abs()), deviation, 1))

    def inputs(self, features: Tensor, uncertainty: Tensor) -> Tensor:
        """Standardised inputs, cut off at :data:`LIMIT` standard deviations."""
        return ((self.columns(features, uncertainty) - self.center) / self.scale).clamp(-LIMIT, LIMIT)

    @property
    def is_dense(self) -> bool:
        """Whether the weights are the softmax of the scores: top-k routing to all experts."""
        return type(self.router) is TopKRouter and self.router.top_k == self.num_experts

    def tokens(self, inputs: Tensor) -> Tensor:
        """What the router scores: the inputs ``(n, I)`` or hidden units, and a column of ones."""
        x = inputs if self.hidden is None else self.hidden(inputs)
        return torch.cat([x, x.new_ones(len(x), 1)], dim=1)

    def route(self, inputs: Tensor) -> Routing:
        """Routing from standardised inputs ``(n, I)``."""
        routing: Routing = self.router(self.tokens(inputs))
        return routing

    def forward(self, features: Tensor, uncertainty: Tensor) -> Routing:
        """Route rows.

        Parameters
        ----------
        features : float64 Tensor of shape (n, F)
            The gate's features.
        uncertainty : float64 Tensor of shape (n, U)
            The experts' uncertainty.

        Raises
        ------
        DataError
            If a width is another one.
        """
        if features.shape[1:] != (self.num_features,) or uncertainty.shape[1:] != (self.num_uncertainty,):
            raise DataError(
                f"the gate takes {self.num_features} features and {self.num_uncertainty} columns of uncertainty, "
                f"got {tuple(features.shape)} and {tuple(uncertainty.shape)}"
            )
        return self.route(self.inputs(features.double(), uncertainty.double()))

    def extra_repr(self) -> str:
        """Kind, for ``print(gate)``."""
        return f"kind={self.config.kind!r}"


class FixedGate(nn.Module):
    """The same given weights for every row: one expert alone, or the mean of all.

    Parameters
    ----------
    weights : float64 array of shape (E,)
        At least 0; scaled to sum to 1.
    """

    weights: Tensor

    def __init__(self, weights: Floats) -> None:
        super().__init__()
        given = torch.as_tensor(np.asarray(weights, dtype=np.float64))
        if given.ndim != 1 or not bool((given >= 0).all()) or not 0 < float(given.sum()) < torch.inf:
            raise ConfigError(f"weights must be numbers of at least 0 that are not all 0, got {weights}")
        self.register_buffer("weights", given / given.sum())
        self.num_experts = len(given)

    def forward(self, features: Tensor, uncertainty: Tensor) -> Routing:
        """Route each of n rows to the experts with a weight above 0."""
        n = len(features)
        expert = self.weights.nonzero().flatten()
        probabilities = self.weights.expand(n, -1)
        return Routing.from_topk(
            expert.expand(n, -1),
            self.weights[expert].expand(n, -1),
            logits=probabilities.clamp(min=torch.finfo(torch.float64).tiny).log(),
            probabilities=probabilities,
        )


def dense_weights(routing: Routing) -> Tensor:
    """Weights ``(n, E)`` of a routing, scaled to sum to 1 per row; 0 for experts that a row did not choose.

    A row without any expert (all its choices were null experts, say) gets the router's probabilities.
    """
    n, num_experts = routing.num_tokens, routing.num_experts
    weights = routing.weight.new_zeros(n, num_experts + 1)
    weights = weights.index_put((routing.token, routing.expert), routing.weight, accumulate=True)[:, :-1]
    total = weights.sum(dim=1, keepdim=True)
    fallback = routing.probabilities[:, :num_experts]
    fallback = fallback / fallback.sum(dim=1, keepdim=True)
    return torch.where(total > 0, weights / torch.where(total > 0, total, 1), fallback)
