"""The result of routing: which token goes to which expert, with which weight.

Shapes: N tokens, d width, E experts, k experts per token, A assignments.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moeapps.core.dispatch import gather_rows, inverse_permutation, sorted_by_expert, starts_of, weighted_sum

__all__ = ["Routing"]


@dataclass(frozen=True, eq=False)
class Routing:
    """The list of assignments, sorted by expert, and everything that losses and statistics need.

    ``N`` tokens, ``E`` experts, ``A`` assignments (``A = N k`` when every token may take ``k`` experts). One form
    covers every routing method, and it is the layout of grouped matrix products: the rows of expert ``e`` are
    ``offsets[e]:offsets[e + 1]``. Assignments beyond ``offsets[E]`` belong to no expert (a null expert, a token that
    wanted fewer than k, one that capacity refused): they keep the shapes constant, and cost and add nothing.

    Attributes
    ----------
    token : Tensor
        ``(A,)`` int64, the token of each assignment.
    expert : Tensor
        ``(A,)`` int64, its expert, never decreasing; E for no expert.
    weight : Tensor
        ``(A,)`` float32 or better, what the expert's output is multiplied by.
    offsets : Tensor
        ``(E + 1,)`` int32, where each expert begins; stays on the device.
    logits : Tensor
        ``(N, E)`` router scores, float32 or better (``(N, E + m)`` with m null experts); rows of invalid tokens are
        zero.
    probabilities : Tensor
        ``(N, E)`` what the router makes of them, usually a softmax.
    valid : Tensor
        ``(N,)`` bool, False for tokens with NaN or infinite scores. They get an output of NaN and count in no loss and
        no statistic.
    position : Tensor or None
        ``(N, k)`` int64, where in the list the assignments of each token stand; None when experts choose tokens.
    dropped : Tensor
        ``()`` int64, assignments that capacity refused (always 0 when dropless).
    details : mapping of str to Tensor, default=field(default_factory=dict)
        What a router's own losses need besides, by name.
    """

    token: Tensor
    expert: Tensor
    weight: Tensor
    offsets: Tensor
    logits: Tensor
    probabilities: Tensor
    valid: Tensor
    position: Tensor | None
    dropped: Tensor
    details: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """Number of tokens N."""
        return self.probabilities.shape[0]

    @property
    def num_experts(self) -> int:
        """Number of experts E."""
        return self.offsets.shape[0] - 1

    @property
    def counts(self) -> Tensor:
        """``(E,)`` rows of each expert, invalid tokens included."""
        return self.offsets.diff()

    @property
    def choices(self) -> Tensor:
        """``(N, k)`` experts of each token in the router's order (E for none); only where tokens choose experts."""
        assert self.position is not None
        return self.expert[self.position]

    def valid_counts(self, token_weight: Tensor | None = None) -> Tensor:
        """``(E,)`` assignments of each expert from valid tokens, in the dtype of the probabilities.

        Parameters
        ----------
        token_weight : Tensor, optional
            ``(N,)`` how much each token counts; one each when None.
        """
        weight = self.token_weight(token_weight)
        counts = weight.new_zeros(self.num_experts + 1)
        return counts.index_add(0, self.expert, weight[self.token])[:-1]

    def token_weight(self, given: Tensor | None = None) -> Tensor:
        """``(N,)`` what each token counts in losses: 1 or the given weight, 0 for invalid tokens."""
        weight = self.valid.to(self.probabilities.dtype)
        return weight if given is None else weight * given.to(weight.dtype)

    def used(self) -> Tensor:
        """``(N, E)`` bool: which token went to which expert."""
        used = torch.zeros(self.num_tokens, self.num_experts + 1, dtype=torch.bool, device=self.expert.device)
        return used.index_put((self.token, self.expert), used.new_ones(()))[:, :-1]

    def dispatch(self, x: Tensor) -> Tensor:
        """Gather the tokens ``(N, d)`` of each expert: ``(A, d)``, sorted by expert."""
        return gather_rows(x, self.token, self.position)

    def combine(self, y: Tensor) -> Tensor:
        """Weight the experts' outputs ``(A, d_out)`` and add them up per token.

        Returns
        -------
        Tensor
            ``(N, d_out)``: zero for a token without any expert, NaN for an invalid one.
        """
        out = weighted_sum(y, self.weight, self.token, self.position, self.num_tokens)
        # a weight of NaN already reaches the output where every token has positions
        return out if self.position is not None else torch.where(self.valid[:, None], out, torch.nan)

    @classmethod
    def from_topk(
        cls,
        expert: Tensor,
        weight: Tensor,
        *,
        logits: Tensor,
        probabilities: Tensor,
        valid: Tensor | None = None,
        keep: Tensor | None = None,
        dropped: Tensor | None = None,
        details: Mapping[str, Tensor] | None = None,
    ) -> "Routing":
        """Build the routing in which every token takes up to k experts.

        Parameters
        ----------
        expert : Tensor
            ``(N, k)`` int64, the experts of each token, best first.
        weight : Tensor
            ``(N, k)`` their weights; NaN for invalid tokens.
        logits : Tensor
            ``(N, E)`` or more router scores.
        probabilities : Tensor
            ``(N, E)`` router probabilities.
        valid : Tensor, optional
            ``(N,)`` bool; all valid when None.
        keep : Tensor, optional
            ``(N, k)`` bool, which of these assignments are meant; all when None.
        dropped : Tensor, optional
            Number of assignments that capacity refused; 0 when None.
        details : mapping of str to Tensor, optional
            What the router's own losses need.

        Returns
        -------
        Routing
            The routing. Nothing is moved to the host: it works without a synchronisation on CUDA.
        """
        num_tokens, k = expert.shape
        num_experts = probabilities.shape[1]
        if keep is not None:
            expert = torch.where(keep, expert, num_experts)
            weight = torch.where(keep | weight.isnan(), weight, 0)  # NaN marks an invalid token: it is kept
        sorted_expert, order = sorted_by_expert(expert.reshape(-1), num_experts)
        return cls(
            token=order // max(k, 1),
            expert=sorted_expert,
            weight=weight.reshape(-1).gather(0, order),
            offsets=starts_of(sorted_expert, num_experts, torch.int32),
            logits=logits,
            probabilities=probabilities,
            valid=torch.ones(num_tokens, dtype=torch.bool, device=expert.device) if valid is None else valid,
            position=inverse_permutation(order).view(num_tokens, k),
            dropped=torch.zeros((), dtype=torch.int64, device=expert.device) if dropped is None else dropped,
            details=details or {},
        )
