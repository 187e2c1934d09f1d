"""Sums over all processes of a distributed training, with gradients."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["global_sum", "rank", "world_size"]


def world_size(group: Any = None) -> int:
    """Number of processes that train together; 1 without torch.distributed."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def rank(group: Any = None) -> int:
    """Number of this process among them, from 0."""
    return dist.get_rank(group) if dist.is_available() and dist.is_initialized() else 0


class _AllReduce(torch.autograd.Function):
    """Sum over processes; its gradient is the sum over processes of each one's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor]:
        total = grads[0].clone()
        dist.all_reduce(total)
        return (total,)


def global_sum(x: Tensor) -> Tensor:
    """Sum a tensor over all processes (every process has to call it); the tensor itself where there is only one.

    A loss made of global sums has the same value in every process. Averaged over processes, as distributed training
    does, its gradient is the gradient of that value with respect to the whole batch.
    """
    if world_size() == 1:
        return x
    total: Tensor = _AllReduce.apply(x)
    return total
