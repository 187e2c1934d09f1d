"""DIN and AW-MoE: rank one candidate for a user with a sequence of behaviour."""

# Shapes: N rows, L entries of a behaviour (padded), dim width of an embedding, P width of the profile, E experts.
# `present` (N, L) masks the padding; no output depends on padded entries.

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.checks import check_one_of, check_sizes
from moeapps.core.dense_experts import DenseExperts

__all__ = [
    "DIN",
    "GATES",
    "AWMoE",
    "ActivationUnit",
    "activate",
    "contrastive_loss",
    "distinct",
    "drop_behaviour",
    "pool",
    "root_sum",
    "trimmed",
]

GATES = ("sum", "softmax", "mean")
"""How AW-MoE's gate adds up what the behaviours say."""


class ActivationUnit(nn.Module):
    """Weight of each behaviour for a candidate (DIN, Zhou et al., KDD 2018).

    An MLP on [behaviour, target, behaviour - target, behaviour * target].

    Parameters
    ----------
    dim : int
        Width of an embedding.
    hidden : sequence of int, default=(32,)
        Hidden widths.
    out_dim : int, default=1
        Numbers per behaviour.
    """

    def __init__(self, dim: int, hidden: Sequence[int] = (32,), out_dim: int = 1) -> None:
        super().__init__()
        self.mlp = DenseExperts(4 * dim, [*hidden, out_dim], 1, "silu", last_linear=True)

    def forward(self, behaviour: Tensor, target: Tensor) -> Tensor:
        """``(N, L, dim)`` and ``(N, dim)`` to ``(N, L, out_dim)``."""
        return activate([self], behaviour, target)[0]

    def later_layers(self, hidden: Tensor) -> Tensor:
        """From the first layer's sums ``(N, L, hidden[0])`` to ``(N, L, out_dim)``."""
        for weight, bias in zip(self.mlp.weights[1:], self.mlp.biases[1:], strict=True):
            hidden = F.linear(self.mlp.act(hidden), weight[0].t(), bias[0])
        return hidden


def activate(units: Sequence[ActivationUnit], behaviour: Tensor, target: Tensor) -> list[Tensor]:
    r"""Outputs ``(N, L, out_dim)`` of several units for the same behaviour ``(N, L, dim)`` and candidate ``(N, dim)``.

    The units' first layers are one product. With the blocks :math:`W_1 \dots W_4` of a first layer, the layer on
    [s, t, s - t, s * t] is :math:`s (W_1 + W_3) + t (W_2 - W_3) + (s * t) W_4`: the second term is the same for all
    behaviours of a row, and [s, t, s - t, s * t] need not be written to memory.
    """
    first = torch.cat([unit.mlp.weights[0][0] for unit in units], dim=1)  # (4 dim, H), H hidden units of all
    bias = torch.cat([unit.mlp.biases[0][0] for unit in units])
    s, t, difference, product = first.chunk(4)
    hidden = torch.cat([behaviour, behaviour * target[:, None]], dim=-1) @ torch.cat([s + difference, product])
    hidden = hidden + torch.addmm(bias, target, t - difference)[:, None]  # (N, L, H)
    widths = [unit.mlp.weights[0].shape[2] for unit in units]
    return [unit.later_layers(part) for unit, part in zip(units, hidden.split(widths, dim=-1), strict=True)]


def pool(weight: Tensor, behaviour: Tensor, present: Tensor) -> Tensor:
    """Sum ``(N, dim)`` with weights ``(N, L, 1)``; zero for an empty sequence. They are not normalised, as in DIN."""
    return torch.bmm((weight[..., 0] * present)[:, None], behaviour)[:, 0]


def root_sum(behaviour: Tensor, present: Tensor) -> Tensor:
    r"""Sum of the n entries, over the root of their number, ``(N, dim)``: :math:`n^{-1/2} \sum_j e_j`; 0 for none.

    Its product with the candidate's embedding is FISM's score (Kabbur et al., KDD 2013) with :math:`\alpha = 1/2`.
    """
    total = torch.bmm(present.to(behaviour.dtype)[:, None], behaviour)[:, 0]
    return total / present.sum(1, keepdim=True).clamp_min(1).sqrt()


def trimmed(behaviour: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Behaviour and mask without the first columns, where no row has an entry: they would be computed for nothing."""
    if torch.compiler.is_compiling() or not present.shape[1]:  # a traced program has one length
        return behaviour, present
    columns = present.any(0)
    start = int(columns.to(torch.uint8).argmax()) if bool(columns.any()) else present.shape[1] - 1
    return behaviour[:, start:], present[:, start:]


def distinct(codes: Tensor) -> tuple[Tensor, Tensor]:
    """First rows ``(R,)`` of the R runs of equal rows in ``(N, L)``, and the run of each row ``(N,)``.

    An event and the items that were drawn for it have one history, whose vector is computed once.
    """
    if torch.compiler.is_compiling():  # the number of runs is not that of the rows
        rows = torch.arange(codes.shape[0], device=codes.device)
        return rows, rows
    begins = torch.ones(len(codes), dtype=torch.bool, device=codes.device)
    begins[1:] = (codes[1:] != codes[:-1]).any(1)
    return begins.nonzero()[:, 0], begins.cumsum(0) - 1


class DIN(nn.Module):
    """Deep interest network: attention pools the behaviour, an MLP scores.

    Parameters
    ----------
    dim, profile_dim : int
        Width of an embedding, and width P of the other features (user, context, candidate).
    hidden : sequence of int, default=(64, 32)
        Hidden widths of the scoring MLP.
    dropout : float, default=0.0
        Dropout probability in it, in [0, 1).
    """

    def __init__(self, dim: int, profile_dim: int, hidden: Sequence[int] = (64, 32), dropout: float = 0.0) -> None:
        super().__init__()
        self.unit = ActivationUnit(dim)
        self.score = DenseExperts(dim + profile_dim, [*hidden, 1], 1, last_linear=True, dropout=dropout)

    def forward(self, behaviour: Tensor, target: Tensor, present: Tensor, profile: Tensor) -> Tensor:
        """Logits ``(N,)``."""
        behaviour, present = trimmed(behaviour, present)
        pooled = pool(self.unit(behaviour, target), behaviour, present)
        return self.score(torch.cat([pooled, profile], dim=1))[:, 0, 0]


class AWMoE(nn.Module):
    r"""Experts activated by the behaviour itself (AW-MoE, ICDE 2023).

    Every expert scores the user, the candidate and the attention-pooled behaviour. The gate is
    :math:`g = b + \sum_j a_j u_j`: a gate unit maps each behaviour, with the candidate, to a vector :math:`u_j` over
    the experts, an activation unit to its weight :math:`a_j`. The score is :math:`\sum_e g_e f_e`. An empty
    sequence has the gate b.

    The sum grows with the length of the history, and with it the score. So the gate may be normalised, which is not in
    the paper: ``softmax`` is over the experts, of b plus the mean over the behaviours.

    Parameters
    ----------
    dim, profile_dim : int
        Width of an embedding, and width P of the other features (user, context, candidate).
    num_experts : int, default=4
        Number of experts E, at least 1.
    expert : sequence of int, default=(64, 32)
        Hidden widths of an expert.
    gate_hidden : sequence of int, default=(32,)
        Hidden widths of the gate's units.
    softmax : bool, default=False
        Whether the gate is normalised over the experts: softmax of the sum, as in 0.1.
    dropout : float, default=0.0
        Dropout probability in the experts, in [0, 1).
    gate : {"sum", "softmax", "mean"}, optional
        The paper's sum; the softmax of b plus the mean over the behaviours; that mean itself. By default what
        ``softmax`` says.
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
        gate: str | None = None,
    ) -> None:
        super().__init__()
        check_sizes(num_experts=num_experts)
        if gate is not None:
            check_one_of("gate", gate, GATES)
        self.softmax, self.gate = softmax, gate
        self.pool = ActivationUnit(dim)
        self.experts = DenseExperts(dim + profile_dim, [*expert, 1], num_experts, last_linear=True, dropout=dropout)
        self.gate_unit = ActivationUnit(dim, gate_hidden, num_experts)
        self.gate_activation = ActivationUnit(dim, gate_hidden)
        self.bias = nn.Parameter(torch.full((num_experts,), 1.0 / num_experts))

    def forward(self, behaviour: Tensor, target: Tensor, present: Tensor, profile: Tensor) -> Tensor:
        """Logits ``(N,)``."""
        return self.with_gates(behaviour, target, [present], profile)[0]

    def with_gates(
        self, behaviour: Tensor, target: Tensor, masks: Sequence[Tensor], profile: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits ``(N,)``, and gate vectors ``(N, E)`` for each mask ``(N, L)`` of the behaviour; the first one scores.

        The other masks leave out more than the first one does.
        """
        length = behaviour.shape[1]
        behaviour, present = trimmed(behaviour, masks[0])
        masks = [mask[:, length - behaviour.shape[1] :] for mask in masks]
        weight, units, activation = activate([self.pool, self.gate_unit, self.gate_activation], behaviour, target)
        gates = [self._gate(activation[..., 0] * mask, units, mask) for mask in masks]
        scores = self.experts(torch.cat([pool(weight, behaviour, present), profile], dim=1))[..., 0]
        return (gates[0] * scores).sum(-1), gates

    def gates(self, behaviour: Tensor, target: Tensor, *present: Tensor) -> list[Tensor]:
        """Gate vectors ``(N, E)``, one for each mask ``(N, L)`` of the behaviour."""
        units, activation = activate([self.gate_unit, self.gate_activation], behaviour, target)
        return [self._gate(activation[..., 0] * mask, units, mask) for mask in present]

    def _gate(self, weight: Tensor, units: Tensor, mask: Tensor) -> Tensor:
        total = torch.bmm(weight[:, None], units)[:, 0]  # (N, E)
        if self.gate in ("softmax", "mean"):
            total = total / mask.sum(1, keepdim=True).clamp_min(1)
        gate = self.bias + total
        return gate.softmax(-1) if self.gate == "softmax" or (self.gate is None and self.softmax) else gate

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickle, also one of 0.1."""
        super().__setstate__({"gate": None, **state})


def contrastive_loss(gate: Tensor, view: Tensor, temperature: float = 0.1, user: Tensor | None = None) -> Tensor:
    """InfoNCE between gate vectors and those of the same rows with masked behaviour; other users are the negatives.

    Parameters
    ----------
    gate : Tensor of shape (N, E)
        Gate vectors.
    view : Tensor of shape (N, E)
        Gate vectors of the masked behaviour.
    temperature : float, default=0.1
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
