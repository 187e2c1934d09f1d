"""Experts that all process every token, computed as one batched product per layer.

Shapes: N rows, E experts.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.checks import check_below_one, check_one_of, check_sizes
from moeapps.core.errors import ConfigError, DataError

__all__ = ["DenseExperts"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "silu": F.silu, "gelu": F.gelu}


class DenseExperts(nn.Module):
    r"""E MLPs with stacked weights, each on all rows, as multi-gate models need them (MMoE, PLE, HoME).

    A layer is :math:`\phi(\mathrm{BN}(x W^e + b^e))`; batch normalisation is optional. Where all experts read the same
    input, the first layer is one matrix product; every other layer is one batched product.

    Parameters
    ----------
    dim : int
        Input width.
    widths : sequence of int
        Width of each layer; the last one is the output.
    num_experts : int
        Number of experts E.
    activation : str, default="relu"
        ``"relu"``, ``"silu"`` (Swish) or ``"gelu"``.
    norm : bool, default=False
        Whether every layer is batch-normalised, per expert and unit, before its activation.
    last_linear : bool, default=False
        Whether the last layer has neither normalisation nor activation, as in a tower that ends in a logit.
    dropout : float, default=0.0
        Probability of dropping a hidden unit, in training.

    Raises
    ------
    ConfigError
        If a size is below 1 or the activation is unknown.

    Examples
    --------
    >>> import torch
    >>> experts = DenseExperts(dim=8, widths=[16, 4], num_experts=3)
    >>> experts(torch.randn(5, 8)).shape, experts(torch.randn(5, 3, 8)).shape
    (torch.Size([5, 3, 4]), torch.Size([5, 3, 4]))
    """

    def __init__(
        self,
        dim: int,
        widths: Sequence[int],
        num_experts: int,
        activation: str = "relu",
        norm: bool = False,
        last_linear: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = list(widths)
        if not widths:
            raise ConfigError("widths is empty, expected the width of at least one layer")
        check_sizes(dim=dim, num_experts=num_experts, **{f"widths[{i}]": width for i, width in enumerate(widths)})
        check_one_of("activation", activation, _ACTIVATIONS)
        check_below_one(dropout=dropout)
        self.dim, self.num_experts, self.out_dim = dim, num_experts, widths[-1]
        self.activation, self.last_linear, self.dropout = activation, last_linear, dropout
        self.act = _ACTIVATIONS[activation]
        sizes = list(pairwise([dim, *widths]))
        self.weights = nn.ParameterList(torch.empty(num_experts, n_in, n_out) for n_in, n_out in sizes)
        self.biases = nn.ParameterList(torch.empty(num_experts, n_out) for _, n_out in sizes)
        normed = len(sizes) - (1 if last_linear else 0)
        self.norms = nn.ModuleList(nn.BatchNorm1d(num_experts * n_out) for _, n_out in sizes[:normed] if norm)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise each expert as ``torch.nn.Linear`` initialises its layers."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            limit = weight.shape[1] ** -0.5
            nn.init.uniform_(weight, -limit, limit)
            nn.init.uniform_(bias, -limit, limit)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``(N, E, out_dim)`` for rows ``(N, dim)`` that all experts read, or ``(N, E, dim)``, a row each.

        Raises
        ------
        DataError
            If the input has another shape.
        """
        if x.shape[-1] != self.dim or x.ndim not in (2, 3) or (x.ndim == 3 and x.shape[1] != self.num_experts):
            raise DataError(f"expected (N, {self.dim}) or (N, {self.num_experts}, {self.dim}), got {tuple(x.shape)}")
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if x.ndim == 2:
                x = torch.addmm(bias.flatten(), x, weight.transpose(0, 1).flatten(1)).unflatten(1, bias.shape)
            else:
                x = torch.baddbmm(bias[:, None], x.transpose(0, 1), weight).transpose(0, 1)
            if i == last and self.last_linear:
                break
            if self.norms:
                x = self.norms.get_submodule(str(i))(x.flatten(1)).unflatten(1, bias.shape)
            x = self.act(x)
            if self.dropout > 0 and i < last:
                x = F.dropout(x, self.dropout, self.training)
        return x

    def extra_repr(self) -> str:
        """Arguments, for ``print(model)``."""
        widths = [bias.shape[1] for bias in self.biases]
        return f"dim={self.dim}, widths={widths}, num_experts={self.num_experts}, activation={self.activation!r}"
