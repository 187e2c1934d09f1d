"""How far a predicted distribution is from undecided: 0 at the uniform distribution, 1 at a one-hot one.

Both functions take *probabilities*. (Feeding them through a softmax once more would squeeze the result into a small
part of [0, 1]; :class:`~moeapps.graph.confidence.Confidence` takes logits and does the one softmax itself.)
"""

import math
from typing import Literal

import torch
from torch import Tensor

from moeapps.core.errors import ConfigError

__all__ = ["DISPERSIONS", "Dispersion", "entropy_dispersion", "variance_dispersion"]

Dispersion = Literal["variance", "entropy"]


def variance_dispersion(probabilities: Tensor) -> Tensor:
    r"""Normalised variance: :math:`D_{var}(p) = (K \sum_k p_k^2 - 1) / (K - 1)`.

    The variance of the K probabilities divided by its largest value :math:`(K-1)/K^2`. Convex in p.

    Parameters
    ----------
    probabilities : Tensor of shape (..., K)
        With K >= 2, each row summing to 1.

    Returns
    -------
    Tensor of shape (...)
        In [0, 1].

    Raises
    ------
    ConfigError
        If K is 1.

    Examples
    --------
    >>> round(float(variance_dispersion(torch.tensor([0.8, 0.2]))), 4)
    0.36
    """
    k = _classes(probabilities)
    return ((k * probabilities.square().sum(-1) - 1) / (k - 1)).clamp(0, 1)


def entropy_dispersion(probabilities: Tensor) -> Tensor:
    r"""Normalised negative entropy: :math:`D_{ent}(p) = 1 + \sum_k p_k \ln p_k / \ln K`.

    Convex in p; exactly 1 at a one-hot distribution (0 ln 0 counts as 0).

    Parameters, result and errors are those of :func:`variance_dispersion`.

    Examples
    --------
    >>> round(float(entropy_dispersion(torch.tensor([0.8, 0.2]))), 6)
    0.278072
    """
    k = _classes(probabilities)
    smallest = torch.finfo(probabilities.dtype).tiny
    negative_entropy = (probabilities * probabilities.clamp(min=smallest).log()).sum(-1)
    return (1 + negative_entropy / math.log(k)).clamp(0, 1)


def _classes(probabilities: Tensor) -> int:
    k = probabilities.shape[-1]
    if k < 2:
        raise ConfigError(f"dispersion needs at least 2 classes, got {k}")
    return k


DISPERSIONS = {"variance": variance_dispersion, "entropy": entropy_dispersion}
