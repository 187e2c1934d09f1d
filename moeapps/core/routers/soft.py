"""Soft MoE: every slot of an expert processes a mix of the sample's tokens.

Shapes: B samples of T tokens, N = B T, d width, E experts, S slots per expert.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.checks import check_sizes
from moeapps.core.errors import DataError
from moeapps.core.routers.base import Router, router_dtype
from moeapps.core.routing import Routing

__all__ = ["SoftRouter", "SoftRouting"]


@dataclass(frozen=True, eq=False)
class SoftRouting(Routing):
    """Routing in which every token takes part in every slot; the rows of an expert are its slots.

    ``token``, ``expert`` and ``weight`` list all N E pairs, for losses and statistics; ``offsets`` counts slots.

    Attributes
    ----------
    mix : Tensor, optional
        ``(B, T, E, S)`` share of each token in each slot; sums to 1 over the tokens of a sample.
    share : Tensor, optional
        ``(B, T, E, S)`` share of each slot in each token's output; sums to 1 over the slots.
    """

    mix: Tensor | None = None
    share: Tensor | None = None

    def dispatch(self, x: Tensor) -> Tensor:
        """Mix the tokens ``(N, d)`` into slots: ``(E B S, d)``, sorted by expert."""
        assert self.mix is not None
        samples, size = self.mix.shape[:2]
        x = torch.where(self.valid[:, None], x, 0).view(samples, size, x.shape[1])
        # not einsum: onnxruntime's ends the process on a batch without rows
        mixed = self.mix.to(x.dtype).flatten(2).transpose(1, 2) @ x  # (B, E S, d)
        return mixed.unflatten(1, self.mix.shape[2:]).transpose(0, 1).flatten(0, 2)

    def combine(self, y: Tensor) -> Tensor:
        """Mix the slots' outputs ``(E B S, d_out)`` back: ``(N, d_out)``; NaN for invalid tokens."""
        assert self.share is not None
        samples, _, experts, slots = self.share.shape
        by_sample = y.view(experts, samples, slots, y.shape[1]).transpose(0, 1).flatten(1, 2)  # (B, E S, d_out)
        out = self.share.to(y.dtype).flatten(2) @ by_sample
        return torch.where(self.valid[:, None], out.flatten(0, 1), torch.nan)


class SoftRouter(Router):
    r"""Slots that are softmax mixes over the tokens of one sample (Soft MoE, Puigcerver et al. 2024, eq. 1-3).

    Every expert has S slots. Tokens and slot vectors are normalised and scaled by a learned factor (section 2.3).
    A sample is the second to last axis of the layer's input ``(B, T, d)``; the samples of a batch never mix. For
    ``(N, d)`` input each row is a sample of its own, and the layer is a dense mixture of all experts.

    Parameters
    ----------
    dim, num_experts : int
        Width d of a token and number of experts E.
    slots : int, default=1
        Slots per expert S.

    Raises
    ------
    ConfigError
        If a size is below 1.
    """

    token_choice = False

    def __init__(self, dim: int, num_experts: int, slots: int = 1) -> None:
        super().__init__(dim, num_experts)
        check_sizes(slots=slots)
        self.slots = slots
        self.weight = nn.Parameter(torch.randn(num_experts * slots, dim) * dim**-0.5)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(
        self,
        x: Tensor,
        *,
        experts: nn.Module | None = None,
        ids: Tensor | None = None,
        sample_size: int = 1,
    ) -> Routing:
        """Mix tokens ``(N, d)`` that come in samples of ``sample_size`` rows each."""
        self.check_tokens(x)
        if x.shape[0] == 0 and sample_size == 0:  # samples without tokens: there is nothing to mix
            sample_size = 1
        if sample_size < 1 or x.shape[0] % sample_size:
            raise DataError(f"{x.shape[0]} tokens do not divide into samples of sample_size={sample_size}")
        dtype = router_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            slot = F.normalize(self.weight.to(dtype), dim=-1) * self.scale.to(dtype)
            logits = F.linear(F.normalize(x.to(dtype), dim=-1), slot)  # (N, E S)
            valid = x.detach().sum(dim=-1).isfinite()
            logits = torch.where(valid[:, None], logits, 0.0)
            samples = x.shape[0] // sample_size
            present = valid.view(samples, sample_size, 1)
            by_sample = logits.view(samples, sample_size, logits.shape[1])
            # the lowest number, not minus infinity: a sample of invalid tokens only must not give NaN
            mix = by_sample.masked_fill(~present, torch.finfo(dtype).min).softmax(dim=1)
            per_slot = (samples, sample_size, self.num_experts, self.slots)
            share = by_sample.softmax(dim=-1).view(per_slot)
            probabilities = share.sum(dim=-1).view(x.shape[0], self.num_experts)
            pairs = torch.arange(self.num_experts, device=x.device).repeat_interleave(x.shape[0])
            return SoftRouting(
                token=torch.arange(x.shape[0], device=x.device).repeat(self.num_experts),
                expert=pairs,
                weight=torch.where(valid[:, None], probabilities, torch.nan).t().reshape(-1),
                offsets=torch.arange(self.num_experts + 1, dtype=torch.int32, device=x.device) * samples * self.slots,
                logits=logits.view(x.shape[0], self.num_experts, self.slots).logsumexp(dim=-1),
                probabilities=probabilities,
                valid=valid,
                position=None,
                dropped=torch.zeros((), dtype=torch.int64, device=x.device),
                mix=mix.view(per_slot),
                share=share,
            )

    def restricted(self, kept: Sequence[int]) -> Self:
        """Copy with the slots of some of the experts."""
        return self._with_rows({"weight": [e * self.slots + s for e in kept for s in range(self.slots)]}, len(kept))

    def losses(self, routing: Routing, token_weight: Tensor | None = None) -> dict[str, Tensor]:
        """None: every expert gets the same number of slots."""
        return {}
