"""DIN and AW-MoE: rank one candidate for a user with a sequence of behaviour."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.checks import check_sizes
from moeapps.core.dense_experts import DenseExperts

__all__ = ["DIN", "AWMoE", "ActivationUnit", "contrastive_loss", "drop_behaviour"]


class ActivationUnit(nn.Module):
    """How much each behaviour matters for a candidate (DIN, Zhou et al., KDD 2018).

    An MLP on [behaviour, target, behaviour - target, behaviour * target].

    Args:
        dim: Width of an embedding.
        hidden: Hidden widths.
        out_dim: Numbers per behaviour.
    """

    def __init__(self, dim: int, hidden: Sequence[int] = (32,), out_dim: int = 1) -> None:
        super().__init__()
        self.mlp = DenseExperts(4 * dim, [*hidden, out_dim], 1, "silu", last_linear=True)

    def forward(self, behaviour: Tensor, target: Tensor) -> Tensor:
        """``(N, L, dim)`` and ``(N, dim)`` to ``(N, L, out_dim)``."""
        target = target[:, None].expand_as(behaviour)
        joint = torch.cat([behaviour, target, behaviour - target, behaviour * target], dim=-1)
        return self.mlp(joint.flatten(0, 1))[:, 0].unflatten(0, behaviour.shape[:2])


def _attend(unit: ActivationUnit, behaviour: Tensor, target: Tensor, there: Tensor) -> Tensor:
    """Weighted sum ``(N, dim)``; zero for an empty sequence. The weights are not normalised, as in DIN."""
    weight = unit(behaviour, target)[..., 0] * there
    return torch.bmm(weight[:, None], behaviour)[:, 0]


class DIN(nn.Module):
    """Deep interest network: attention pools the behaviour, an MLP scores.

    Args:
        dim: Width of an embedding.
        profile_dim: Width of everything else that is known (user, context, candidate).
        hidden: Widths of the scoring MLP.
        dropout: In it.
    """

    def __init__(self, dim: int, profile_dim: int, hidden: Sequence[int] = (64, 32), dropout: float = 0.0) -> None:
        super().__init__()
        self.unit = ActivationUnit(dim)
        self.score = DenseExperts(dim + profile_dim, [*hidden, 1], 1, last_linear=True, dropout=dropout)

    def forward(self, behaviour: Tensor, target: Tensor, there: Tensor, profile: Tensor) -> Tensor:
        """Logits ``(N,)``."""
        return self.score(torch.cat([_attend(self.unit, behaviour, target, there), profile], dim=1))[:, 0, 0]


class AWMoE(nn.Module):
    r"""Experts activated by the behaviour itself (AW-MoE, ICDE 2023).

    Every expert scores the user, the candidate and the attention-pooled behaviour. The gate is
    :math:`g = b + \sum_j a_j u_j`: a gate unit maps each behaviour, with the candidate, to a vector :math:`u_j` over
    the experts, an activation unit to how much it matters, :math:`a_j`. The score is :math:`\sum_e g_e f_e`. An empty
    sequence has the gate b.

    Args:
        dim: Width of an embedding.
        profile_dim: Width of everything else that is known.
        num_experts: Number of experts E.
        expert: Hidden widths of an expert.
        gate_hidden: Hidden widths of the gate's units.
        softmax: Whether the gate is normalised (not in the paper).
        dropout: In the experts.
    """

    def __init__(
        self,
        dim: int,
        profile_dim: int,
        num_experts: int = 4,
        expert: Sequence[int] = (64, 32),
        gate_hidden: Sequence[int] = (32,),
        softmax: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(num_experts=num_experts)
        self.softmax = softmax
        self.pool = ActivationUnit(dim)
        self.experts = DenseExperts(dim + profile_dim, [*expert, 1], num_experts, last_linear=True, dropout=dropout)
        self.gate_unit = ActivationUnit(dim, gate_hidden, num_experts)
        self.gate_activation = ActivationUnit(dim, gate_hidden)
        self.bias = nn.Parameter(torch.full((num_experts,), 1.0 / num_experts))

    def gates(self, behaviour: Tensor, target: Tensor, *there: Tensor) -> list[Tensor]:
        """Activation of the experts ``(N, E)`` for each view of what is there ``(N, L)``; the rest changes nothing."""
        weight, units = self.gate_activation(behaviour, target)[..., 0], self.gate_unit(behaviour, target)
        found = [self.bias + torch.bmm((weight * view)[:, None], units)[:, 0] for view in there]
        return [gate.softmax(-1) for gate in found] if self.softmax else found

    def score(self, gate: Tensor, behaviour: Tensor, target: Tensor, there: Tensor, profile: Tensor) -> Tensor:
        """Logits ``(N,)`` of the experts as the gate activates them."""
        x = torch.cat([_attend(self.pool, behaviour, target, there), profile], dim=1)
        return (gate * self.experts(x)[..., 0]).sum(-1)

    def forward(self, behaviour: Tensor, target: Tensor, there: Tensor, profile: Tensor) -> Tensor:
        """Logits ``(N,)``."""
        (gate,) = self.gates(behaviour, target, there)
        return self.score(gate, behaviour, target, there, profile)


def contrastive_loss(gate: Tensor, view: Tensor, temperature: float = 0.1, user: Tensor | None = None) -> Tensor:
    """InfoNCE between gate vectors and those of the same users with masked behaviour; other users are the negatives.

    Args:
        gate: ``(N, E)``.
        view: ``(N, E)``, of the masked behaviour.
        temperature: Divides the cosine similarities.
        user: ``(N,)`` user of each row: rows of one user are not each other's negatives. Every row is a user of its
            own when None.
    """
    similarity = F.normalize(gate.float(), dim=-1) @ F.normalize(view.float(), dim=-1).t() / temperature
    rows = torch.arange(len(gate), device=gate.device)
    if user is not None:
        similarity = similarity.masked_fill((user[:, None] == user) & (rows[:, None] != rows), -torch.inf)
    return F.cross_entropy(similarity, rows)


def drop_behaviour(there: Tensor, mask_probability: float) -> Tensor:
    """Drop each behaviour with a probability, for another view of a user."""
    return there & (torch.rand(there.shape, device=there.device) >= mask_probability)
