"""DIN and AW-MoE: rank one candidate for a user with a sequence of behaviour."""

# Shapes: N rows, L entries of a behaviour (padded), dim width of an embedding, P width of the profile, E experts.
# `present` (N, L) masks the padding; no output depends on padded entries.

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.checks import check_sizes
from moeapps.core.dense_experts import DenseExperts

__all__ = ["DIN", "AWMoE", "ActivationUnit", "contrastive_loss", "drop_behaviour"]


class ActivationUnit(nn.Module):
    """Weight of each behaviour for a candidate (DIN, Zhou et al., KDD 2018).

    An MLP on [behaviour, target, behaviour - target, behaviour * target].

    Parameters
    ----------
    dim : int
        Width of an embedding.
    hidden : sequence of int, default (32,)
        Hidden widths.
    out_dim : int, default 1
        Numbers per behaviour.
    """

    def __init__(self, dim: int, hidden: Sequence[int] = (32,), out_dim: int = 1) -> None:
        super().__init__()
        self.mlp = DenseExperts(4 * dim, [*hidden, out_dim], 1, "silu", last_linear=True)

    def forward(self, behaviour: Tensor, target: Tensor) -> Tensor:
        """``(N, L, dim)`` and ``(N, dim)`` to ``(N, L, out_dim)``."""
        target = target[:, None].expand_as(behaviour)
        joint = torch.cat([behaviour, target, behaviour - target, behaviour * target], dim=-1)
        return self.mlp(joint.flatten(0, 1))[:, 0].unflatten(0, behaviour.shape[:2])


def _attend(unit: ActivationUnit, behaviour: Tensor, target: Tensor, present: Tensor) -> Tensor:
    """Weighted sum ``(N, dim)``; zero for an empty sequence. The weights are not normalised, as in DIN."""
    weight = unit(behaviour, target)[..., 0] * present  # (N, L)
    return torch.bmm(weight[:, None], behaviour)[:, 0]


class DIN(nn.Module):
    """Deep interest network: attention pools the behaviour, an MLP scores.

    Parameters
    ----------
    dim, profile_dim : int
        Width of an embedding, and width P of the other features (user, context, candidate).
    hidden : sequence of int, default (64, 32)
        Hidden widths of the scoring MLP.
    dropout : float, default 0.0
        Dropout probability in it, in [0, 1).
    """

    def __init__(self, dim: int, profile_dim: int, hidden: Sequence[int] = (64, 32), dropout: float = 0.0) -> None:
        super().__init__()
        self.unit = ActivationUnit(dim)
        self.score = DenseExperts(dim + profile_dim, [*hidden, 1], 1, last_linear=True, dropout=dropout)

    def forward(self, behaviour: Tensor, target: Tensor, present: Tensor, profile: Tensor) -> Tensor:
        """Logits ``(N,)``."""
        return self.score(torch.cat([_attend(self.unit, behaviour, target, present), profile], dim=1))[:, 0, 0]


class AWMoE(nn.Module):
    r"""Experts activated by the behaviour itself (AW-MoE, ICDE 2023).

    Every expert scores the user, the candidate and the attention-pooled behaviour. The gate is
    :math:`g = b + \sum_j a_j u_j`: a gate unit maps each behaviour, with the candidate, to a vector :math:`u_j` over
    the experts, an activation unit to its weight :math:`a_j`. The score is :math:`\sum_e g_e f_e`. An empty
    sequence has the gate b.

    Parameters
    ----------
    dim, profile_dim : int
        Width of an embedding, and width P of the other features (user, context, candidate).
    num_experts : int, default 4
        Number of experts E, at least 1.
    expert : sequence of int, default (64, 32)
        Hidden widths of an expert.
    gate_hidden : sequence of int, default (32,)
        Hidden widths of the gate's units.
    softmax : bool, default False
        Whether the gate is normalised (not in the paper).
    dropout : float, default 0.0
        Dropout probability in the experts, in [0, 1).
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

    def gates(self, behaviour: Tensor, target: Tensor, *present: Tensor) -> list[Tensor]:
        """Gate vectors ``(N, E)``, one for each mask ``(N, L)`` of the behaviour."""
        weight, units = self.gate_activation(behaviour, target)[..., 0], self.gate_unit(behaviour, target)
        gates = [self.bias + torch.bmm((weight * mask)[:, None], units)[:, 0] for mask in present]
        return [gate.softmax(-1) for gate in gates] if self.softmax else gates

    def score(self, gate: Tensor, behaviour: Tensor, target: Tensor, present: Tensor, profile: Tensor) -> Tensor:
        """Logits ``(N,)``: the experts' scores, weighted by a gate ``(N, E)``."""
        x = torch.cat([_attend(self.pool, behaviour, target, present), profile], dim=1)
        return (gate * self.experts(x)[..., 0]).sum(-1)

    def forward(self, behaviour: Tensor, target: Tensor, present: Tensor, profile: Tensor) -> Tensor:
        """Logits ``(N,)``."""
        (gate,) = self.gates(behaviour, target, present)
        return self.score(gate, behaviour, target, present, profile)


def contrastive_loss(gate: Tensor, view: Tensor, temperature: float = 0.1, user: Tensor | None = None) -> Tensor:
    """InfoNCE between gate vectors and those of the same rows with masked behaviour; other users are the negatives.

    Parameters
    ----------
    gate : Tensor of shape (N, E)
        Gate vectors.
    view : Tensor of shape (N, E)
        Gate vectors of the masked behaviour.
    temperature : float, default 0.1
        Divides the cosine similarities.
    user : Tensor of shape (N,), optional
        User of each row: rows of one user are not each other's negatives. Without it every row counts as a user.

    Returns
    -------
    Tensor
        Mean over the rows, a scalar.
    """
    # (N, N): row i's own view is on the diagonal
    similarity = F.normalize(gate.float(), dim=-1) @ F.normalize(view.float(), dim=-1).t() / temperature
    rows = torch.arange(len(gate), device=gate.device)
    if user is not None:
        similarity = similarity.masked_fill((user[:, None] == user) & (rows[:, None] != rows), -torch.inf)
    return F.cross_entropy(similarity, rows)


def drop_behaviour(present: Tensor, mask_probability: float) -> Tensor:
    """The mask ``(N, L)`` with each behaviour dropped with a probability: another view of a user."""
    return present & (torch.rand(present.shape, device=present.device) >= mask_probability)
