"""What a router answers: which token goes to which expert, with which weight."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Routing"]


@dataclass(frozen=True, eq=False)
class Routing:
    """The list of assignments, sorted by expert, and everything that losses and statistics need.

    ``N`` tokens, ``E`` experts, ``A`` assignments (``A = N k`` when every token takes ``k`` experts). One form
    covers every routing method, and it is the one that grouped matrix products want: the rows of expert ``e`` are
    ``offsets[e]:offsets[e + 1]``.

    Attributes:
        token: ``(A,)`` int64, the token of each assignment.
        expert: ``(A,)`` int64, its expert, never decreasing.
        weight: ``(A,)`` float32 or better, what the expert's output is multiplied by.
        offsets: ``(E + 1,)`` int32, where each expert begins; stays on the device.
        logits: ``(N, E)`` router scores, float32 or better; rows of invalid tokens are zero.
        probabilities: ``(N, E)`` what the router makes of them, usually a softmax.
        valid: ``(N,)`` bool, False for tokens with NaN or infinite scores. They get an output of NaN and count in no
            loss and no statistic.
        position: ``(N, k)`` int64, where in the list the assignments of each token stand; None when tokens have
            different numbers of assignments.
        dropped: ``()`` int64, assignments that capacity refused (always 0 when dropless).
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

    @property
    def num_tokens(self) -> int:
        """Number of tokens N."""
        return self.logits.shape[0]

    @property
    def num_experts(self) -> int:
        """Number of experts E."""
        return self.logits.shape[1]

    @property
    def counts(self) -> Tensor:
        """``(E,)`` assignments of each expert, invalid tokens included."""
        return self.offsets.diff()

    def valid_counts(self) -> Tensor:
        """``(E,)`` assignments of each expert from valid tokens, in the dtype of the probabilities."""
        counts = self.probabilities.new_zeros(self.num_experts)
        return counts.index_add(0, self.expert, self.valid[self.token].to(counts.dtype))

    @classmethod
    def from_topk(
        cls,
        expert: Tensor,
        weight: Tensor,
        *,
        logits: Tensor,
        probabilities: Tensor,
        valid: Tensor | None = None,
    ) -> "Routing":
        """Build the routing in which every token takes the same number of experts.

        Args:
            expert: ``(N, k)`` int64, the experts of each token.
            weight: ``(N, k)`` their weights.
            logits: ``(N, E)`` router scores.
            probabilities: ``(N, E)`` router probabilities.
            valid: ``(N,)`` bool; all valid when None.

        Returns:
            The routing. Nothing is moved to the host: it works without a synchronisation on CUDA.
        """
        num_tokens, k = expert.shape
        sorted_expert, order = torch.sort(expert.reshape(-1), stable=True)
        position = torch.empty_like(order)
        position[order] = torch.arange(order.numel(), device=order.device)
        boundaries = torch.arange(logits.shape[1] + 1, device=expert.device)
        return cls(
            token=order // max(k, 1),
            expert=sorted_expert,
            weight=weight.reshape(-1)[order],
            offsets=torch.searchsorted(sorted_expert, boundaries, out_int32=True),
            logits=logits,
            probabilities=probabilities,
            valid=torch.ones(num_tokens, dtype=torch.bool, device=expert.device) if valid is None else valid,
            position=position.view(num_tokens, k),
            dropped=torch.zeros((), dtype=torch.int64, device=expert.device),
        )
