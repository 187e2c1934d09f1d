"""Move tokens to their experts and outputs back.

Each direction is the transpose of the other, written out, so that both only read: no atomic additions, hence the
gradient is the same bits every time, on CUDA too.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from moeapps.core.modes import is_transformed, values_are_hidden

__all__ = ["gather_rows", "inverse_permutation", "sorted_by_expert", "starts_of", "weighted_sum"]


def inverse_permutation(order: Tensor) -> Tensor:
    """For a permutation ``(A,)``, where each element went."""
    if is_transformed():  # vmap has no rule for scatter
        return order.argsort()
    return torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))


def sorted_by_expert(expert: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Sort experts ``(A,)``, 0 to E, stably: their numbers in order, and where each stood, both ``(A,)`` int64.

    On the CPU NumPy does it, by counting where bytes are enough; the order is the same.
    """
    if expert.device.type != "cpu" or values_are_hidden() or expert.requires_grad or not _is_plain(expert):
        found = torch.sort(expert, stable=True)
        return found.values, found.indices
    numbers = expert.numpy()
    narrow = np.uint8 if num_experts < 256 else np.uint16 if num_experts < 65536 else numbers.dtype
    order = torch.from_numpy(np.argsort(numbers.astype(narrow), kind="stable"))
    return expert[order], order


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has memory that NumPy can read: not one of torch's tracing or fake tensors."""
    return type(tensor) is Tensor and tensor.dtype == torch.int64


def starts_of(ordered: Tensor, bins: int, dtype: torch.dtype = torch.int64) -> Tensor:
    """For sorted numbers ``(A,)``, how many are below 0, 1, ..., ``bins``: ``(bins + 1,)``, where each bin begins."""
    boundaries = torch.arange(bins + 1, device=ordered.device)
    if is_transformed():  # nor for searchsorted
        return (ordered[None] < boundaries[:, None]).sum(1, dtype=dtype)
    return torch.searchsorted(ordered, boundaries, out_int32=dtype == torch.int32)


def _sum_of_rows(y: Tensor, position: Tensor, weight: Tensor | None = None) -> Tensor:
    """Sum rows ``y[position[n]]``, times ``weight[n]``, for every token n: ``(N, d)`` in one pass over the rows."""
    if values_are_hidden() or position.numel() == 0:
        rows = y[position]
        return (rows if weight is None else rows * weight[..., None]).sum(dim=1)
    if y.is_cuda:  # plain kernels in place of embedding_bag; sums are float32, as in it
        rows = y[position]
        if weight is None:
            return rows.sum(dim=1)
        wide = weight.to(torch.promote_types(y.dtype, torch.float32))
        return (rows * wide[..., None]).sum(dim=1).to(y.dtype)
    return F.embedding_bag(position, y, mode="sum", per_sample_weights=weight)


class _Gather(torch.autograd.Function):
    """Rows of the sorted list from rows of tokens; its transpose is a sum over each token's positions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor, position: Tensor) -> Tensor:
        ctx.save_for_backward(token, position)
        return x.index_select(0, token)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        token, position = ctx.saved_tensors
        return _Sum.apply(grads[0].contiguous(), token, position), None, None


class _Sum(torch.autograd.Function):
    """The sum of each token's rows in the sorted list: the transpose of :class:`_Gather`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, token: Tensor, position: Tensor) -> Tensor:
        ctx.save_for_backward(token, position)
        return _sum_of_rows(y, position)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        token, position = ctx.saved_tensors
        return _Gather.apply(grads[0].contiguous(), token, position), None, None


class _WeightedSum(torch.autograd.Function):
    """The weighted sum of each token's rows, without a weighted copy of the rows."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor, token: Tensor, position: Tensor) -> Tensor:
        ctx.save_for_backward(y, weight, token, position)
        return _sum_of_rows(y, position, weight[position])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        y, weight, token, position = ctx.saved_tensors
        rows = _Gather.apply(grads[0].contiguous(), token, position)
        return rows * weight[:, None], torch.linalg.vecdot(rows, y), None, None


def gather_rows(x: Tensor, token: Tensor, position: Tensor | None) -> Tensor:
    """Gather the token of each assignment.

    Parameters
    ----------
    x : Tensor
        ``(N, d)`` tokens.
    token : Tensor
        ``(A,)`` the token of each assignment.
    position : Tensor or None
        ``(N, k)`` where each token's assignments stand in the list, or None.

    Returns
    -------
    Tensor
        ``(A, d)``.
    """
    if position is None or is_transformed():
        return x.index_select(0, token)
    rows: Tensor = _Gather.apply(x, token, position)
    return rows


def weighted_sum(y: Tensor, weight: Tensor, token: Tensor, position: Tensor | None, num_tokens: int) -> Tensor:
    """Weight the outputs of all assignments and add them up per token.

    Parameters
    ----------
    y : Tensor
        ``(A, d_out)`` outputs.
    weight : Tensor
        ``(A,)`` their weights.
    token : Tensor
        ``(A,)`` the token of each assignment.
    position : Tensor or None
        ``(N, k)`` where each token's assignments stand in the list, or None.
    num_tokens : int
        N.

    Returns
    -------
    Tensor
        ``(N, d_out)``; zero for a token without any assignment.
    """
    weight = weight.to(y.dtype)
    if position is None:
        return y.new_zeros(num_tokens, y.shape[1]).index_add(0, token, y * weight[:, None])
    if is_transformed():
        return _sum_of_rows(y, position, weight[position])
    summed: Tensor = _WeightedSum.apply(y, weight, token, position)
    return summed
