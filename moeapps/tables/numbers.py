"""Numbers as features of the tabular network: scaled values, positions among quantiles, waves.

Shapes: n rows, P numeric columns.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.checks import check_one_of, check_sizes

__all__ = ["NumericEmbedding", "NumericKind", "PeriodicEmbedding", "Scaling", "check_numeric"]

NumericKind = Literal["piecewise", "periodic", "both", "linear"]
Scaling = Literal["standard", "robust"]


class NumericEmbedding(nn.Module):
    r"""Numeric columns as features for a linear layer: scaled value, missing flag, piecewise-linear encoding.

    The encoding is that of Gorishniy et al. 2022 (section 3.1): one feature per quantile bin, 0 below the bin, 1 above
    it, linear inside. With ``scaling="robust"`` the scaled value z becomes :math:`z / \sqrt{1 + (z / 3)^2}`, which is
    z near 0 and stays within -3 and 3 (Holzmüller et al. 2024, section 3).

    Parameters
    ----------
    mean : sequence of float
        Centre of each column: its mean, or its median.
    scale : sequence of float
        Spread of each column: its standard deviation, or its range between quartiles.
    edges : sequence of sequences of float
        Quantiles of each column; empty for a constant column.
    bins : bool, default=True
        Whether there are features of the bins.
    scaling : {"standard", "robust"}, default="standard"
        Whether scaled values are bounded smoothly ("robust").
    """

    mean: Tensor
    scale: Tensor
    low: Tensor
    width: Tensor
    column: Tensor
    determined_buffers = ("mean", "scale", "column", "low", "width")
    scaling: Scaling = "standard"  # also of what 0.1 pickled

    def __init__(
        self,
        mean: Sequence[float],
        scale: Sequence[float],
        edges: Sequence[Sequence[float]],
        bins: bool = True,
        scaling: Scaling = "standard",
    ) -> None:
        super().__init__()
        found = [(i, a, b - a) for i, e in enumerate(edges) for a, b in pairwise(e)] if bins else []
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64))
        self.register_buffer("column", torch.tensor([i for i, _, _ in found], dtype=torch.int64))
        self.register_buffer("low", torch.tensor([a for _, a, _ in found], dtype=torch.float64))
        self.register_buffer("width", torch.tensor([w for _, _, w in found], dtype=torch.float64))
        self.out_dim = 2 * len(mean) + len(found)
        self.scaling = scaling

    def forward(self, x: Tensor) -> Tensor:
        """Map float64 numbers ``(n, P)``, NaN where missing, to ``(n, out_dim)`` features, scaled values first."""
        missing = x.isnan()
        binned = ((x[:, self.column] - self.low) / self.width).clamp(0, 1).nan_to_num(0.0)  # (n, bins of all columns)
        scaled = torch.where(missing, 0.0, (x - self.mean) / self.scale)
        if self.scaling == "robust":
            scaled = scaled / (1 + (scaled / 3).square()).sqrt()
        return torch.cat([scaled, missing.to(x.dtype), binned], dim=1)

    def _apply(self, fn: Any, recurse: bool = True) -> "NumericEmbedding":
        """Follow the model to another device, but keep the quantiles in float64: they are compared with raw numbers."""
        kept = {name: getattr(self, name) for name in ("mean", "scale", "low", "width")}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self


class PeriodicEmbedding(nn.Module):
    r"""Each scaled number through its own small network of waves, :math:`\mathrm{relu}(\cos(2 \pi f z + b) W + c)`.

    Periodic embeddings with a bias in the wave (PBLD) of Holzmüller et al. 2024 (section 3), after Gorishniy et al.
    2022 (section 3.2); frequencies are drawn from a normal distribution of standard deviation ``sigma`` and learned.

    Parameters
    ----------
    columns : int
        Number of columns P.
    dim : int, default=8
        Features of each column.
    num_frequencies : int, default=16
        Waves of each column.
    sigma : float, default=0.3
        Standard deviation of the first frequencies.
    """

    def __init__(self, columns: int, dim: int = 8, num_frequencies: int = 16, sigma: float = 0.3) -> None:
        super().__init__()
        check_sizes(numeric_dim=dim)
        bound = num_frequencies**-0.5
        self.frequency = nn.Parameter(torch.randn(columns, num_frequencies) * sigma)
        self.phase = nn.Parameter(torch.empty(columns, num_frequencies).uniform_(-math.pi, math.pi))
        self.weight = nn.Parameter(torch.empty(columns, num_frequencies, dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(columns, dim).uniform_(-bound, bound))
        self.out_dim = columns * dim

    def forward(self, z: Tensor) -> Tensor:
        """Map scaled numbers ``(n, P)`` to ``(n, P * dim)`` features."""
        waves = (2 * math.pi * z[:, :, None] * self.frequency + self.phase).cos()  # (n, P, frequencies)
        out = torch.bmm(waves.transpose(0, 1), self.weight).transpose(0, 1) + self.bias
        return F.relu(out).flatten(1)


def check_numeric(kind: str, scaling: str) -> None:
    """Refuse an unknown embedding or scaling."""
    check_one_of("numeric_embedding", kind, ("piecewise", "periodic", "both", "linear"))
    check_one_of("scaling", scaling, ("standard", "robust"))
