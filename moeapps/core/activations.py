"""Activations of expert networks, with their gradients."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ACTIVATIONS", "Activation"]


class Activation(NamedTuple):
    """An activation, its gradient, and whether it multiplies two halves of the first layer (then 2h wide)."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]
    gated: bool = False


def _swiglu(pre: Tensor) -> Tensor:
    gate, value = pre.chunk(2, dim=-1)
    return F.silu(gate) * value


def _swiglu_backward(grad: Tensor, pre: Tensor) -> Tensor:
    gate, value = pre.chunk(2, dim=-1)
    return torch.cat([torch.ops.aten.silu_backward(grad * value, gate), grad * F.silu(gate)], dim=-1)


ACTIVATIONS: dict[str, Activation] = {
    "gelu": Activation(F.gelu, lambda grad, pre: torch.ops.aten.gelu_backward(grad, pre)),
    "relu": Activation(F.relu, lambda grad, pre: torch.ops.aten.threshold_backward(grad, pre, 0)),
    "silu": Activation(F.silu, lambda grad, pre: torch.ops.aten.silu_backward(grad, pre)),
    "swiglu": Activation(_swiglu, _swiglu_backward, gated=True),
}
