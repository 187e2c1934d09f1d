"""WideNet and ViT-MoE for torch.jit.script: a copy in plain torch and timm, for evaluation."""

import copy
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

__all__ = ["PlainBlock", "as_plain_transformer"]


class PlainBlock(nn.Module):
    """A block of WideNet that holds what it shares as modules of its own, which is how TorchScript finds them.

    Parameters
    ----------
    block : WideBlock
        The block.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        shared = block.shared
        self.norm1 = shared["norm1"] if block.norm1 is None else block.norm1
        self.norm2 = shared["norm2"] if block.norm2 is None else block.norm2
        self.attn, self.mlp = shared["attn"], shared["moe"]
        self.ls1, self.ls2 = block.ls1, block.ls2
        self.drop_path = block.drop_path

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Tokens ``(N, T, d)`` to tokens."""
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal)))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


def as_plain_transformer(model: VisionTransformer) -> VisionTransformer:
    """Copy of a model as timm's ``VisionTransformer``, whose methods TorchScript can read.

    The blocks of WideNet become :class:`PlainBlock`; ``torch.jit.script`` itself puts
    :class:`~moeapps.core.scripting.ScriptedMoE` in place of MoE layers. It changes the modules that it is given, so
    that it must not be given the model itself.
    """
    plain = copy.deepcopy(model)
    plain.__class__ = VisionTransformer
    if hasattr(plain, "shared"):
        plain.blocks = nn.Sequential(*map(PlainBlock, plain.blocks)).train(plain.training)
        del plain.shared
    return plain
