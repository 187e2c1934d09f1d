"""The router's network as a torch module: for reading, exporting and testing what the compiled loops do."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.checks import check_at_least_zero, check_sizes, check_top_k
from moeapps.core.errors import ConfigError
from moeapps.core.routers import Router
from moeapps.core.routing import Routing

__all__ = ["StreamRouter"]


class StreamRouter(Router):
    r"""MLP router of DriftMoE: ReLU layers of ``hidden`` units, softmax(logits / temperature), the k largest.

    Parameters
    ----------
    dim : int
        Width R of the input.
    num_experts : int
        Number of outputs E.
    top_k : int, default 3
        Experts per instance.
    hidden : tuple[int, int], default (256, 128)
        Widths of the two hidden layers.
    dropout : float, default 0.2
        Probability of dropping a unit of the first, in training.
    temperature : float, default 0.8
        Divides the logits before the softmax.

    Raises
    ------
    ConfigError
        If a size is impossible.

    Examples
    --------
    >>> import torch
    >>> router = StreamRouter(8, 12).eval()
    >>> router(torch.randn(5, 8)).choices.shape
    torch.Size([5, 3])
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int = 3,
        hidden: tuple[int, int] = (256, 128),
        dropout: float = 0.2,
        temperature: float = 0.8,
    ) -> None:
        super().__init__(dim, num_experts)
        check_top_k(top_k, num_experts)
        check_sizes(**{f"hidden[{i}]": width for i, width in enumerate(hidden)})
        check_at_least_zero(dropout=dropout)
        if not temperature > 0:
            raise ConfigError(f"temperature must be above 0, got {temperature!r}")
        self.top_k, self.temperature = top_k, temperature
        sizes = (dim, *hidden, num_experts)
        self.layers = nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in pairwise(sizes))
        self.dropout = nn.Dropout(dropout)
        for layer in self.layers:
            nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def scores(self, x: Tensor, experts: nn.Module | None, ids: Tensor | None) -> Tensor:
        """Logits ``(N, E)``."""
        first, second, last = self.layers
        out: Tensor = last(F.relu(second(self.dropout(F.relu(first(x))))))
        return out

    def choose(self, logits: Tensor, valid: Tensor) -> Routing:
        """The k experts with the largest softmax(logits / temperature)."""
        probabilities = (logits / self.temperature).softmax(dim=-1)
        weight, expert = probabilities.topk(self.top_k, dim=-1)
        return Routing.from_topk(expert, weight, logits=logits, probabilities=probabilities, valid=valid)

    def mask_loss(self, x: Tensor, mask: Tensor, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
        """Binary cross-entropy between the logits and the mask of the experts that were right, ``(N, E)``."""
        return F.binary_cross_entropy_with_logits(self.scores(x, None, None), mask, reduction=reduction)

    def load_layers(self, layers: Sequence[Tensor | NDArray[Any]]) -> None:
        """Take over weights ``(in, out)`` and biases of three layers: W1, b1, W2, b2, W3, b3."""
        with torch.no_grad():
            for layer, weight, bias in zip(self.layers, layers[::2], layers[1::2], strict=True):
                layer.weight.copy_(torch.as_tensor(weight).T)  # type: ignore[operator]
                layer.bias.copy_(torch.as_tensor(bias))  # type: ignore[operator]
