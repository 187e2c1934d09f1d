"""Dropout with few random numbers on the CPU."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Dropout", "dropout"]


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """As ``torch.nn.functional.dropout``, with fewer random numbers on the CPU.

    There torch draws a number of 32 bits per element, one after the other. Here 16 bits decide about an element, so
    that p is met within 1 / 131,072.

    Parameters
    ----------
    x : Tensor
        Any shape.
    p : float
        Probability of dropping an element, in [0, 1).
    training : bool, default=True
        Whether anything is dropped.
    """
    if not training or p == 0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    drawn = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = drawn.view(torch.int16)[: x.numel()].view(x.shape) >= round(p * 2**16) - 2**15
    return x * kept.to(x.dtype).mul_(1 / (1 - p))


class Dropout(nn.Dropout):
    """:func:`dropout` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements while training."""
        return dropout(input, self.p, self.training)
