"""Layers of other packages on the same sizes, where they are installed: megablocks and scattermoe.

Neither is on PyPI as a wheel for every torch: what cannot be imported, built or run is reported with its reason.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["RIVALS"]


class _ScatterMoE(nn.Module):
    """Its experts behind a top-k router, which the package leaves to the user."""

    def __init__(self, d: int, h: int, experts: int, k: int) -> None:
        super().__init__()
        from scattermoe.mlp import MLP

        self.router, self.k = nn.Linear(d, experts, bias=False), k
        self.experts = MLP(input_size=d, hidden_size=h, num_experts=experts, top_k=k, activation=nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``(N, d)`` to ``(N, d)``."""
        weights, chosen = self.router(x).float().softmax(-1).topk(self.k)
        out: Tensor = self.experts(x, F.normalize(weights, p=1, dim=-1).to(x.dtype), chosen)
        return out


class _MegaBlocks(nn.Module):
    """Its dropless layer, router included."""

    def __init__(self, d: int, h: int, experts: int, k: int) -> None:
        super().__init__()
        from megablocks.layers.arguments import Arguments
        from megablocks.layers.dmoe import dMoE

        arguments = Arguments(hidden_size=d, ffn_hidden_size=h, moe_num_experts=experts, moe_top_k=k,
                              moe_normalize_expert_weights=1, fp16=False, bf16=True)  # fmt: skip
        self.layer = dMoE(arguments)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``(N, d)`` to ``(N, d)``."""
        out = self.layer(x[:, None])  # (tokens, batch, d)
        out = out[0] if isinstance(out, tuple) else out
        return out[:, 0]


RIVALS: dict[str, Callable[[int, int, int, int], nn.Module]] = {"megablocks": _MegaBlocks, "scattermoe": _ScatterMoE}
"""From width, hidden width, number of experts and experts per token to a layer."""
