"""Sums over all processes of a distributed training, with gradients, and rows of all processes."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from moeapps.core.errors import ConfigError

__all__ = [
    "alone",
    "average_gradients",
    "broadcast_buffers",
    "check_weights_are_whole",
    "gather_rows",
    "global_sum",
    "peer_is_gone",
    "rank",
    "world_size",
]

_alone = 0  # how many times `alone` was entered; of the process, so that threads of a fit see it, too


@contextmanager
def alone() -> Iterator[None]:
    """Let this process count as the only one, for a model that each process trains for itself."""
    global _alone
    _alone += 1
    try:
        yield
    finally:
        _alone -= 1


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and not _alone


def world_size(group: Any = None) -> int:
    """Number of processes that train together; 1 without torch.distributed."""
    return dist.get_world_size(group) if _distributed() else 1


def rank(group: Any = None) -> int:
    """Number of this process among them, from 0."""
    return dist.get_rank(group) if _distributed() else 0


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


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace gradients by their means over processes, as DistributedDataParallel does (every process has to call it).

    For steps that train some parameters only, of which DistributedDataParallel would have to search the others.

    Parameters
    ----------
    parameters : iterable of Tensor
        The same ones in every process; one without a gradient counts as zero.
    """
    if (processes := world_size()) == 1:
        return
    trained = list(parameters)
    for p in trained:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    for dtype in {p.dtype for p in trained}:
        grads = [p.grad for p in trained if p.grad is not None and p.dtype == dtype]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        flat /= processes
        parts = flat.split([grad.numel() for grad in grads])
        torch._foreach_copy_(grads, [part.view_as(grad) for part, grad in zip(parts, grads, strict=True)])


def broadcast_buffers(module: torch.nn.Module) -> None:
    """Give every process the first one's buffers, such as the means of a batch norm (every process has to call it)."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def check_weights_are_whole(trainer: Any) -> None:
    """Refuse strategies that divide the weights, for a module that keeps the best ones of each of its experts.

    Raises
    ------
    ConfigError
        If several processes train by another strategy than ``ddp``.
    """
    if world_size() > 1 and not isinstance(trainer.strategy.model, DistributedDataParallel):
        raise ConfigError(
            f"trainer.strategy={type(trainer.strategy).__name__} divides the weights, but the best ones of each expert "
            "are kept as a whole: set it to ddp"
        )


def peer_is_gone(error: BaseException) -> bool:
    """Whether an exchange failed because another process of the training has ended."""
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in signs)


def gather_rows(x: Tensor, total: int | None = None) -> Tensor:
    """Rows of all processes, in the order in which one process would have them (every process has to call it).

    A metric that is no mean over rows, such as an AUC, is computed from these: the mean of the processes' own AUCs is
    another number.

    Parameters
    ----------
    x : Tensor of shape (N, ...)
        This process's rows, without gradients; on the GPU if the processes exchange by NCCL.
    total : int, optional
        Number of rows of the data set, where :class:`~moeapps.core.loading.EpochSampler` deals them out: process r of
        P has the rows r, r + P, ..., and the last ones repeat the first ones where N does not divide. Rows beyond it
        are left out. Without it, all rows are returned, as when each process reads the whole set.

    Returns
    -------
    Tensor of shape (total, ...)
        ``x`` itself where there is one process. Processes with different numbers of rows follow one another.
    """
    processes = world_size()
    if processes == 1:
        return x
    count = torch.tensor([len(x)], device=x.device)
    counts = [torch.empty_like(count) for _ in range(processes)]
    dist.all_gather(counts, count)
    sizes = [int(c) for c in counts]
    # all_gather needs equal shapes, and NCCL and gloo refuse bool
    padded = x.new_zeros(max(sizes), *x.shape[1:], dtype=torch.uint8 if x.dtype == torch.bool else x.dtype)
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in range(processes)]
    dist.all_gather(parts, padded)
    if len(set(sizes)) == 1:
        rows = torch.stack(parts, dim=1).flatten(0, 1)
    else:
        rows = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
    return rows[:total].to(x.dtype)
