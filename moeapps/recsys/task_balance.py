"""How the losses of many tasks are added up: weights by uncertainty, and surgery of gradients that conflict."""

# Shapes: N rows, T tasks, P numbers of all parameters

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moeapps.core.packages import needs
from moeapps.recsys.targets import TargetKind

__all__ = ["SURGERY", "TASK_WEIGHTING", "UncertaintyWeights", "gradient_matrix", "surgery_term", "surgery_weighting"]

TASK_WEIGHTING = ("fixed", "uncertainty")
"""What ``task_weighting`` may be."""

SURGERY = {"pcgrad": "PCGradWeighting", "aligned_mtl": "AlignedMTLWeighting"}
"""``gradient_surgery`` to the name of torchjd's class."""

SPEED = 10.0
"""Factor of the log variances' learning rate: Adam moves each by the rate per step, and they have units to go."""


class UncertaintyWeights(nn.Module):
    r"""Losses weighted by the tasks' learned noise (Kendall, Gal and Cipolla, CVPR 2018, eq. 7 and 10).

    With :math:`s = \log \sigma^2` a task counts :math:`e^{-s} L + s / 2`, in regression :math:`e^{-s} L / 2 + s / 2`.
    A count's L is the Poisson loss less that of a perfect prediction: the loss itself may be negative, and its weight
    would then grow without bound. A task without a label in the batch counts nothing.

    Parameters
    ----------
    kinds : sequence of {"binary", "regression", "count"}
        Kind of each task.
    """

    factor: Tensor
    counts: Tensor

    def __init__(self, kinds: Sequence[TargetKind]) -> None:
        super().__init__()
        self.scaled = nn.Parameter(torch.zeros(len(kinds)))
        factor = torch.tensor([0.5 if kind == "regression" else 1.0 for kind in kinds])
        self.register_buffer("factor", factor, persistent=False)
        self.register_buffer("counts", torch.tensor([kind == "count" for kind in kinds]), persistent=False)

    @property
    def log_variance(self) -> Tensor:
        """Log variances s ``(T,)``."""
        return SPEED * self.scaled

    def weights(self) -> Tensor:
        """What the losses are multiplied by, ``(T,)``."""
        return self.factor * (-self.log_variance).exp()

    def forward(self, losses: Tensor, labels: Tensor) -> Tensor:
        """Weighted losses ``(T,)`` from mean losses ``(T,)`` over the known ones of the labels ``(N, T)``."""
        known = ~labels.isnan()
        number = known.sum(0)
        y = labels.nan_to_num(0.0)
        perfect = torch.where(known, y - torch.xlogy(y, y), 0.0).sum(0) / number.clamp_min(1)
        losses = torch.where(self.counts, losses - perfect, losses)
        return torch.where(number > 0, self.weights() * losses + self.log_variance / 2, 0.0)


def surgery_weighting(name: str) -> Any:
    """The method that turns the inner products of the tasks' gradients ``(T, T)`` into weights ``(T,)``.

    Parameters
    ----------
    name : {"pcgrad", "aligned_mtl"}
        PCGrad (Yu et al., NeurIPS 2020): of a task's gradient, what points against another task's is taken out.
        Aligned-MTL (Senushkin et al., CVPR 2023).

    Raises
    ------
    ConfigError
        If torchjd, which has the methods, is not installed.
    """
    with needs(f"gradient_surgery={name!r}", "moeapps[tasks]"):
        from torchjd import aggregation
    return getattr(aggregation, SURGERY[name])()


def gradient_matrix(losses: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> Tensor:
    """Gradients of the tasks on the parameters that they share, ``(T, P)``.

    A number of a parameter is shared if at least two tasks have a gradient there; elsewhere the result is zero. So
    towers, and experts that a mask leaves to one task, do not count, whatever the model.

    Parameters
    ----------
    losses : sequence of Tensor
        T scalars. Their graph is kept.
    parameters : sequence of Parameter
        Of the network, with dense gradients.
    """
    rows = []
    for loss in losses:
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        flat = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        rows.append(torch.cat([gradient.flatten() for gradient in flat]))
    gradients = torch.stack(rows)
    return gradients * ((gradients != 0).sum(0) > 1)


def surgery_term(losses: Sequence[Tensor], parameters: Sequence[nn.Parameter], weighting: Any) -> tuple[Tensor, Tensor]:
    """A term of value 0 that, added to the sum of the losses, makes the shared parameters' gradient the operated one.

    Since it is part of the loss, scaling, accumulation and averaging over processes treat it as they treat the loss.
    Several processes operate each on its own rows' gradients, before they are averaged.

    Parameters
    ----------
    losses : sequence of Tensor
        T scalars, the sum of which is the loss.
    parameters : sequence of Parameter
        Of the network.
    weighting : callable
        From inner products ``(T, T)`` to weights ``(T,)``; see :func:`surgery_weighting`.

    Returns
    -------
    term : Tensor
        Scalar.
    conflicts : Tensor
        Part of the pairs of tasks whose gradients point against each other.
    """
    gradients = gradient_matrix(losses, parameters)
    products = gradients @ gradients.T
    change = (weighting(products) - 1) @ gradients  # (P,); the loss itself brings the sum
    parts = change.split([p.numel() for p in parameters])
    term = torch.stack([(p * part.view_as(p)).sum() for p, part in zip(parameters, parts, strict=True)]).sum()
    pairs = torch.triu(products < 0, diagonal=1).sum() / max(len(losses) * (len(losses) - 1) / 2, 1)
    return term - term.detach(), pairs
