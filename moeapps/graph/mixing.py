"""Weights and losses of a chain of experts, from weak to strong (Zeng et al., ICLR 2024, sections 2 and 3)."""

# N nodes, K classes, n experts

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["chain_log_weights", "chain_weights", "joint_loss", "mix_log_probs", "separate_loss"]


def chain_weights(confidences: Sequence[Tensor]) -> Tensor:
    r"""Weights of n experts: each takes its confidence of the rest, :math:`w_i = c_i \prod_{j<i} (1 - c_j)`.

    Parameters
    ----------
    confidences : sequence of Tensor
        n - 1 tensors ``(N,)``, of all experts but the last.

    Returns
    -------
    Tensor of shape (N, n)
        Rows sum to 1.
    """
    left, weights = torch.ones_like(confidences[0]), []
    for confidence in confidences:
        weights.append(left * confidence)
        left = left * (1 - confidence)
    return torch.stack([*weights, left], dim=-1)


def chain_log_weights(gate_logits: Sequence[Tensor]) -> Tensor:
    """Logarithm of :func:`chain_weights`, from the confidences' logits; ``(N, n)``."""
    left, weights = torch.zeros_like(gate_logits[0]), []
    for logit in gate_logits:
        weights.append(left + F.logsigmoid(logit))
        left = left + F.logsigmoid(-logit)
    return torch.stack([*weights, left], dim=-1)


def separate_loss(logits: Sequence[Tensor], weights: Tensor, y: Tensor, class_weight: Tensor | None = None) -> Tensor:
    r"""Mowst's loss :math:`L = \frac1N \sum_v \sum_i w_{vi}\,\ell(p_{vi}, y_v)`, with p the softmax of the logits.

    Parameters
    ----------
    logits : sequence of Tensor
        Of each of the n experts, ``(N, K)``.
    weights : Tensor of shape (N, n)
        See :func:`chain_weights`.
    y : int64 Tensor of shape (N,)
        Labels, all >= 0.
    class_weight : Tensor of shape (K,), optional
        Weight of each class; 1 when None.

    Returns
    -------
    Tensor
        Scalar; 0 for no nodes.
    """
    losses = torch.stack([F.cross_entropy(z, y, reduction="none") for z in logits], dim=-1)  # (N, n)
    return _mean((weights * losses).sum(-1), y, class_weight)


def joint_loss(logits: Sequence[Tensor], log_weights: Tensor, y: Tensor, class_weight: Tensor | None = None) -> Tensor:
    r"""Mowst*'s loss :math:`L^* = \frac1N \sum_v \ell(\sum_i w_{vi} p_{vi},\, y_v)`, never above Mowst's loss.

    Computed from logarithms (:func:`mix_log_probs`), so that a confident gate does not underflow.

    Parameters
    ----------
    logits, y, class_weight
        As in :func:`separate_loss`.
    log_weights : Tensor of shape (N, n)
        See :func:`chain_log_weights`.

    Returns
    -------
    Tensor
        Scalar; 0 for no nodes.
    """
    return _mean(F.nll_loss(mix_log_probs(logits, log_weights), y, reduction="none"), y, class_weight)


def mix_log_probs(logits: Sequence[Tensor], log_weights: Tensor) -> Tensor:
    r"""Logarithm of the mixture :math:`\sum_i w_i p_i`, without leaving log space.

    Parameters
    ----------
    logits : sequence of Tensor
        Of each of the n experts, ``(N, K)``.
    log_weights : Tensor of shape (N, n)
        See :func:`chain_log_weights`.

    Returns
    -------
    Tensor of shape (N, K)
        Log-probabilities.
    """
    mixed = logits[0].log_softmax(-1) + log_weights[:, :1]
    for i in range(1, len(logits)):
        mixed = torch.logaddexp(mixed, logits[i].log_softmax(-1) + log_weights[:, i : i + 1])
    return mixed


def _mean(losses: Tensor, y: Tensor, class_weight: Tensor | None) -> Tensor:
    if class_weight is None:
        return losses.sum() / max(losses.numel(), 1)
    weight = class_weight.to(losses.dtype)[y]
    return (weight * losses).sum() / weight.sum().clamp(min=torch.finfo(losses.dtype).tiny)
