"""DIN and AW-MoE: rank one candidate for a user with a sequence of behaviour."""

# Shapes: N rows, R histories of N / R neighbouring rows each, L entries of a history (padded), M entries of all
# histories without padding, dim width of an embedding, P width of the profile, E experts.
# `present` (R, L) masks the padding; no output depends on padded entries.

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.checks import check_one_of, check_sizes
from moeapps.core.dense_experts import DenseExperts
from moeapps.core.errors import ConfigError
from moeapps.recsys.packing import PackedHistories, trimmed
from moeapps.recsys.self_attention import HistoryEncoder

__all__ = [
    "DIN",
    "GATES",
    "HISTORY_ENCODERS",
    "AWMoE",
    "ActivationUnit",
    "contrastive_loss",
    "distinct",
    "drop_behaviour",
    "for_each",
    "pool",
    "root_sum",
]

GATES = ("sum", "softmax", "mean")
"""How AW-MoE's gate adds up what the behaviours say."""

HISTORY_ENCODERS = ("sasrec",)
"""What may encode the entries of a history before they are attended to."""


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
        r"""``(N, L, dim)`` and ``(N, dim)`` to ``(N, L, out_dim)``.

        With the blocks :math:`W_1 \dots W_4` of the first layer, the layer on [s, t, s - t, s * t] is :math:`s (W_1 +
        W_3) + t (W_2 - W_3) + (s * t) W_4`: the second term is the same for all behaviours of a row, and [s, t, s - t,
        s * t] need not be written to memory.
        """
        own, product, same = self._first_layer(target)
        if behaviour.shape[1] >= behaviour.shape[2]:
            # A matrix for each candidate, of which there are fewer than entries, halves the multiplications
            hidden = torch.baddbmm(same[:, None], behaviour, torch.addcmul(own, target[..., None], product))
        else:
            both = torch.cat([behaviour, behaviour * target[:, None]], dim=-1)
            hidden = both @ torch.cat([own, product]) + same[:, None]
        return self._other_layers(hidden)

    def packed(self, both: Tensor, target: Tensor, row: Tensor) -> Tensor:
        """As ``forward`` for entries of any rows: [behaviour, behaviour * target] ``(M, 2 dim)`` to ``(M, out_dim)``.

        Parameters
        ----------
        both : Tensor of shape (M, 2 dim)
            Entries, and their products with their candidates.
        target : Tensor of shape (N, dim)
            Candidates.
        row : Tensor of shape (M,)
            Number of each entry's candidate.
        """
        own, product, same = self._first_layer(target)
        return self._other_layers(torch.addmm(same.index_select(0, row), both, torch.cat([own, product])))

    def _first_layer(self, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Factors ``(dim, hidden)`` of entries, and of their products with targets; what is added ``(N, hidden)``."""
        s, t, difference, product = self.mlp.weights[0][0].chunk(4)
        return s + difference, product, torch.addmm(self.mlp.biases[0][0], target, t - difference)

    def _other_layers(self, hidden: Tensor) -> Tensor:
        for weight, bias in zip(self.mlp.weights[1:], self.mlp.biases[1:], strict=True):
            hidden = F.linear(self.mlp.act(hidden), weight[0].t(), bias[0])
        return hidden


def pool(weight: Tensor, behaviour: Tensor, present: Tensor) -> Tensor:
    """Sum ``(N, dim)`` with weights ``(N, L, 1)``; zero for an empty sequence. They are not normalised, as in DIN."""
    return torch.bmm((weight[..., 0] * present)[:, None], behaviour)[:, 0]


def root_sum(behaviour: Tensor, present: Tensor) -> Tensor:
    r"""Sum of the n entries, over the root of their number, ``(N, dim)``: :math:`n^{-1/2} \sum_j e_j`; 0 for none.

    Its product with the candidate's embedding is FISM's score (Kabbur et al., KDD 2013) with :math:`\alpha = 1/2`.
    """
    total = torch.bmm(present.to(behaviour.dtype)[:, None], behaviour)[:, 0]
    return total / present.sum(1, keepdim=True).clamp_min(1).sqrt()


def distinct(codes: Tensor) -> Tensor:
    """Rows ``(R,)`` of ``(N, L)`` with the R histories of N / R neighbouring rows each, R as small as it can be.

    An event and the items that were drawn for it have one history, which is looked up and encoded once.
    """
    rows = torch.arange(codes.shape[0], device=codes.device)
    if torch.compiler.is_compiling() or len(rows) < 2:  # the number of histories is not that of the rows
        return rows
    begins = (codes[1:] != codes[:-1]).any(1).nonzero()[:, 0] + 1
    return rows[:: math.gcd(len(rows), *begins.tolist())]


def for_each(rows: Tensor, number: int) -> Tensor:
    """What belongs to R histories ``(R, ...)``, repeated for their rows ``(N, ...)``."""
    return rows if rows.shape[0] == number else rows.repeat_interleave(number // rows.shape[0], dim=0)


class HistoryModel(nn.Module):
    """A model of a history, whose entries may be encoded by self-attention before the candidate attends to them.

    Parameters
    ----------
    dim : int
        Width of an embedding.
    history_encoder : {"sasrec"}, optional
        SASRec's self-attention, whose output is added to each entry. By default there is none.
    history_options : dict, optional
        Its ``layers``, ``heads``, ``dropout`` and ``max_len``; see
        :class:`~moeapps.recsys.self_attention.HistoryEncoder`.

    Raises
    ------
    ConfigError
        If the encoder is unknown, or has an option that it does not know.
    """

    encoder: HistoryEncoder | None

    def __init__(self, dim: int, history_encoder: str | None, history_options: Mapping[str, Any] | None) -> None:
        super().__init__()
        self.history_encoder = history_encoder
        if history_encoder is None:
            if history_options:
                raise ConfigError("history_options are of the history_encoder: set history_encoder='sasrec'")
            self.encoder = None
            return
        check_one_of("history_encoder", history_encoder, HISTORY_ENCODERS)
        try:
            self.encoder = HistoryEncoder(dim, **(history_options or {}))
        except TypeError as error:
            raise ConfigError(f"history_options: {error}") from None

    def encoded(self, behaviour: Tensor, present: Tensor) -> Tensor:
        """Entries ``(R, L, dim)``, encoded if there is an encoder."""
        return behaviour if self.encoder is None else behaviour + self.encoder.entries(behaviour, present)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickle, also one from before there were encoders."""
        super().__setstate__({"history_encoder": None, **state})
        self._modules.setdefault("encoder", None)


class DIN(HistoryModel):
    """Deep interest network: attention pools the behaviour, an MLP scores.

    Parameters
    ----------
    dim, profile_dim : int
        Width of an embedding, and width P of the other features (user, context, candidate).
    hidden : sequence of int, default=(64, 32)
        Hidden widths of the scoring MLP.
    dropout : float, default=0.0
        Dropout probability in it, in [0, 1).
    history_encoder : {"sasrec"}, optional
        Self-attention over the history, whose output is added to each entry before the candidate attends to it; not in
        the paper. By default there is none.
    history_options : dict, optional
        Its ``layers`` (1), ``heads`` (2), ``dropout`` (0.1) and ``max_len`` (200).
    """

    def __init__(
        self,
        dim: int,
        profile_dim: int,
        hidden: Sequence[int] = (64, 32),
        dropout: float = 0.0,
        history_encoder: str | None = None,
        history_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(dim, history_encoder, history_options)
        self.unit = ActivationUnit(dim)
        self.score = DenseExperts(dim + profile_dim, [*hidden, 1], 1, last_linear=True, dropout=dropout)

    def forward(self, behaviour: Tensor, target: Tensor, present: Tensor, profile: Tensor) -> Tensor:
        """Logits ``(N,)`` of candidates ``(N, dim)`` with histories ``(R, L, dim)``, each for N / R rows."""
        behaviour, present = trimmed(behaviour, present)
        behaviour = for_each(self.encoded(behaviour, present), target.shape[0])
        pooled = pool(self.unit(behaviour, target), behaviour, for_each(present, target.shape[0]))
        return self._scored(pooled, profile)

    def packed(self, history: PackedHistories, target: Tensor, profile: Tensor) -> Tensor:
        """Logits ``(N,)`` of candidates ``(N, dim)`` with N histories, without an encoder."""
        weight = self.unit.packed(history.with_product(target), target, history.row)
        return self._scored(history.sum(weight * history.entries), profile)

    def _scored(self, pooled: Tensor, profile: Tensor) -> Tensor:
        return self.score(torch.cat([pooled, profile], dim=1))[:, 0, 0]


class AWMoE(HistoryModel):
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
    history_encoder, history_options
        As in :class:`DIN`.
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
        history_encoder: str | None = None,
        history_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(dim, history_encoder, history_options)
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
        """Logits ``(N,)`` of candidates ``(N, dim)`` with histories ``(R, L, dim)``, each for N / R rows."""
        return self.with_gates(behaviour, target, [present], profile)[0]

    def with_gates(
        self, behaviour: Tensor, target: Tensor, masks: Sequence[Tensor], profile: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits ``(N,)``, and gate vectors ``(N, E)`` for each mask of the behaviour ``(R, L, dim)``.

        The first mask ``(R, L)`` scores; the others ``(R, L)`` or ``(N, L)`` leave out more than it does.
        """
        length, rows = behaviour.shape[1], target.shape[0]
        behaviour, present = trimmed(behaviour, masks[0])
        masks = [for_each(mask[:, length - behaviour.shape[1] :], rows) for mask in masks]
        entries = for_each(self.encoded(behaviour, present), rows)
        if self.encoder is None:
            gates = self.gates(entries, target, *masks)
        else:  # an entry that a mask leaves out must not be seen through the others
            gates = self.gates(entries, target, masks[0])
            for mask in masks[1:]:
                gates += self.gates(self.encoded(for_each(behaviour, rows), mask), target, mask)
        pooled = pool(self.pool(entries, target), entries, masks[0])
        return self._scored(gates[0], pooled, profile), gates

    def packed(self, history: PackedHistories, target: Tensor, profile: Tensor) -> Tensor:
        """Logits ``(N,)`` of candidates ``(N, dim)`` with N histories, without an encoder."""
        both = history.with_product(target)
        weight, units, activation = (
            unit.packed(both, target, history.row) for unit in (self.pool, self.gate_unit, self.gate_activation)
        )
        gate = self._normalised(history.sum(activation * units), history.counts[:, None])
        return self._scored(gate, history.sum(weight * history.entries), profile)

    def _scored(self, gate: Tensor, pooled: Tensor, profile: Tensor) -> Tensor:
        scores = self.experts(torch.cat([pooled, profile], dim=1))[..., 0]
        return (gate * scores).sum(-1)

    def gates(self, behaviour: Tensor, target: Tensor, *present: Tensor) -> list[Tensor]:
        """Gate vectors ``(N, E)`` of encoded behaviour ``(N, L, dim)``, one for each of its masks ``(N, L)``."""
        units, activation = self.gate_unit(behaviour, target), self.gate_activation(behaviour, target)
        return [self._gate(activation[..., 0] * mask, units, mask) for mask in present]

    def _gate(self, weight: Tensor, units: Tensor, mask: Tensor) -> Tensor:
        return self._normalised(torch.bmm(weight[:, None], units)[:, 0], mask.sum(1, keepdim=True))

    def _normalised(self, total: Tensor, count: Tensor) -> Tensor:
        """Gate ``(N, E)`` from the sum ``(N, E)`` over the entries and their number ``(N, 1)``."""
        if self.gate in ("softmax", "mean"):
            total = total / count.clamp_min(1)
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
