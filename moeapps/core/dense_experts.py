"""Experts that all process every token, computed as one batched product per layer.

Shapes: N rows, E experts, P paths that experts read.
"""

from collections.abc import Callable, Sequence
from itertools import groupby, pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.checks import check_below_one, check_one_of, check_sizes
from moeapps.core.dropout import dropout
from moeapps.core.errors import ConfigError, DataError

__all__ = ["DenseExperts"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "silu": F.silu, "gelu": F.gelu}


class DenseExperts(nn.Module):
    r"""E MLPs with stacked weights, each on all rows, as multi-gate models need them (MMoE, PLE, HoME).

    A layer is :math:`\phi(\mathrm{BN}(x W^e + b^e))`; batch normalisation is optional. Where all experts read the same
    input, the first layer is one matrix product; every other layer is one batched product. Experts may also read one of
    P paths each: then neighbours that read neighbouring paths, equally many per path, are one product.

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
    reads : sequence of int, optional
        For each expert, the path of the input ``(N, P, dim)`` that it reads. None where all experts read the same
        rows, or an input has a row for each expert.

    Raises
    ------
    ConfigError
        If a size is below 1, the activation is unknown, or ``reads`` has not one number per expert.

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
        reads: Sequence[int] | None = None,
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
        if reads is not None and len(reads) != num_experts:
            raise ConfigError(f"reads must have {num_experts} numbers, one per expert, got {len(reads)}")
        self.blocks = None if reads is None else _blocks(reads)
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

        With ``reads`` the rows are ``(N, P, dim)``, one for each path.

        Raises
        ------
        DataError
            If the input has another shape.
        """
        rows = self.num_experts if self.blocks is None else max(start + count for start, count, _ in self.blocks)
        if x.shape[-1] != self.dim or x.ndim not in (2, 3) or (x.ndim == 3 and x.shape[1] != rows):
            raise DataError(f"expected (N, {self.dim}) or (N, {rows}, {self.dim}), got {tuple(x.shape)}")
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if x.ndim == 2:
                x = _shared_input(x, weight, bias)
            elif i == 0 and self.blocks is not None:
                x = self._from_paths(x, weight, bias)
            else:
                x = torch.baddbmm(bias[:, None], x.transpose(0, 1), weight).transpose(0, 1)
            if i == last and self.last_linear:
                break
            if self.norms:
                x = self.norms.get_submodule(str(i))(x.flatten(1))
            # In place where it is no view: the gradient of the layer before needs its input only
            x = F.relu_(x) if self.norms and self.activation == "relu" else self.act(x)
            x = x.unflatten(1, bias.shape) if self.norms else x
            if i < last:
                x = dropout(x, self.dropout, self.training)
        return x

    def _from_paths(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The first layer: ``(N, P, dim)`` to ``(N, E, width)``, one product per block of experts."""
        assert self.blocks is not None
        counts = [count for _, count, _ in self.blocks]
        # Blocks that take the paths in order share one split, whose gradient is one copy
        in_order = [start for start, _, _ in self.blocks] == [sum(counts[:i]) for i in range(len(counts))]
        paths = x.split(counts, 1) if in_order else [x.narrow(1, start, count) for start, count, _ in self.blocks]
        experts = [count * per_path for _, count, per_path in self.blocks]
        parts = []
        for z, w, b, (_, count, per_path) in zip(
            paths, weight.split(experts), bias.split(experts), self.blocks, strict=True
        ):
            if count == 1:
                parts.append(_shared_input(z[:, 0], w, b))
                continue
            # A path's experts side by side: (count, dim, per_path * width)
            w = w.unflatten(0, (count, per_path)).transpose(1, 2).flatten(2)
            out = torch.baddbmm(b.view(count, 1, -1), z.transpose(0, 1), w)
            parts.append(out.transpose(0, 1).reshape(z.shape[0], count * per_path, -1))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def extra_repr(self) -> str:
        """Arguments, for ``print(model)``."""
        widths = [bias.shape[1] for bias in self.biases]
        return f"dim={self.dim}, widths={widths}, num_experts={self.num_experts}, activation={self.activation!r}"


def _shared_input(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One layer of experts that all read the rows ``(N, dim)``, as one product."""
    return torch.addmm(bias.flatten(), x, weight.transpose(0, 1).flatten(1)).unflatten(1, bias.shape)


def _blocks(reads: Sequence[int]) -> list[tuple[int, int, int]]:
    """Neighbouring experts by what they read: first path, number of paths, experts per path of each block."""
    blocks: list[tuple[int, int, int]] = []
    for path, run in groupby(reads):
        size = len(list(run))
        if blocks and blocks[-1][0] + blocks[-1][1] == path and blocks[-1][2] == size:
            start, count, _ = blocks[-1]
            blocks[-1] = (start, count + 1, size)
        else:
            blocks.append((path, 1, size))
    return blocks
