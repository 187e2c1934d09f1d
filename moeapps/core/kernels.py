"""Two-layer networks on rows sorted by expert: four ways of computing the same.

``loop`` takes one full matrix product per expert, ``bmm`` pads every expert to the longest one and takes one batched
product, ``grouped`` hands the sorted rows to ``torch.nn.functional.grouped_mm``. The first two write outputs and
gradients of all experts into one buffer each. Left to autograd, each expert's weight gradient would be a tensor of its
own, stacked afterwards: as many bytes again as the layer has weights, in every step. ``masked`` computes every expert
on every row and keeps the output of the row's own expert: E times the work, for graphs traced where grouped products
cannot be.

Shapes: A assignments (rows), d width, h hidden width, E experts; ``offsets`` (E + 1,) holds the first row of
each expert.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from moeapps.core.activations import ACTIVATIONS, Activation
from moeapps.core.backends import Backend
from moeapps.core.buffers import gradient_buffer

__all__ = ["sorted_linear", "sorted_mlp"]

WHOLE = 2**18
"""Hidden numbers that, on CPU, are activated in one call: those of as many neighbouring experts as have no more.

A call costs as much as computing thousands of its values, and beyond this size what the cache holds of an expert's
activations is worth more."""

ROUND = 64
"""Rows of a call are rounded up to a multiple of this where there are several; what is computed beyond is not used.

oneDNN prepares an activation anew for a number of rows that it has not seen, which takes as long as computing 30,000 of
its values, and an expert's number of rows changes from batch to batch."""


def sorted_mlp(
    rows: Tensor,
    offsets: Tensor,
    weights: tuple[Tensor, Tensor | None, Tensor, Tensor | None],
    activation: str,
    backend: Backend,
) -> Tensor:
    """Apply expert e's network ``act(x W1 + b1) W2 + b2`` to ``rows[offsets[e]:offsets[e + 1]]``, for every e.

    Parameters
    ----------
    rows : Tensor
        ``(A, d)`` sorted by expert. Rows beyond ``offsets[E]`` are padding.
    offsets : Tensor
        ``(E + 1,)`` int32, on the device of the rows.
    weights : tuple[Tensor, Tensor or None, Tensor, Tensor or None]
        ``(E, d, h)``, ``(E, h)`` or None, ``(E, h, d_out)``, ``(E, d_out)`` or None. With a gated activation the first
        two are twice as wide.
    activation : str
        A name in ``ACTIVATIONS``.
    backend : Backend
        ``"loop"``, ``"bmm"``, ``"grouped"`` or ``"masked"``, as :func:`choose_backend` returns it.

    Returns
    -------
    Tensor
        ``(A, d_out)``. Rows beyond ``offsets[E]`` are zero.
    """
    if backend == "grouped":
        return _grouped_mlp(rows, offsets, weights, ACTIVATIONS[activation])
    if backend == "masked":
        return _masked_mlp(rows, offsets, weights, ACTIVATIONS[activation])
    function = _Loop if backend == "loop" else _Padded
    out: Tensor = function.apply(rows, offsets, ACTIVATIONS[activation], *weights)
    return out


def sorted_linear(
    rows: Tensor, offsets: Tensor, weight: Tensor, backend: Backend, bias: Tensor | None = None
) -> Tensor:
    """Compute ``rows[offsets[e]:offsets[e + 1]] @ weight[e] + bias[e]``, for every e: ``(A, d)`` to ``(A, d_out)``.

    Rows beyond ``offsets[E]`` are zero.
    """
    if backend == "grouped":
        y = F.grouped_mm(_owned(rows, offsets), weight, offs=offsets[1:])
        return _owned(_add_bias(y, bias, offsets), offsets)
    if backend == "masked":
        zero = rows.new_zeros(rows.shape[0], weight.shape[2])
        each = zip(_owners(rows, offsets), weight.unbind(), _each(bias, weight), strict=True)
        return sum((torch.where(mine, _affine(torch.where(mine, rows, 0), w, b), 0) for mine, w, b in each), zero)
    *chunks, rest = rows.split(_split_counts(rows, offsets))
    layers = zip(chunks, weight.unbind(), _each(bias, weight), strict=True)
    outputs = [chunk @ w if b is None else torch.addmm(b, chunk, w) for chunk, w, b in layers]
    return torch.cat([*outputs, rest.new_zeros(rest.shape[0], weight.shape[2])])


def _per_row(bias: Tensor, offsets: Tensor, num_rows: int) -> Tensor:
    """The bias of each row's expert; padding rows read an extra row of zeros, which takes their gradient as well."""
    row = torch.arange(num_rows, device=bias.device)
    # not of offsets[1:]: compiled for CUDA, torch 2.11's searchsorted ignores where a slice begins
    expert = torch.searchsorted(offsets, row, right=True, out_int32=True) - 1  # (A,); E for padding rows
    return F.pad(bias, (0, 0, 0, 1)).index_select(0, expert)


class _AddBias(torch.autograd.Function):
    """Add each row's bias; the bias gradient is a grouped product with ones.

    Autograd's own gradient of ``index_select`` adds rows atomically, so that its last bits change from run to run.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, bias: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(offsets)
        return y + _per_row(bias, offsets, y.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (offsets,), grad = ctx.saved_tensors, grads[0].contiguous()
        ones = grad.new_ones(grad.shape[0], 16 // grad.dtype.itemsize)  # grouped_mm takes rows of 16 bytes
        return grad, F.grouped_mm(ones.t(), grad, offs=offsets[1:])[:, 0], None  # (E, 8, h): sums, eight times


def _add_bias(y: Tensor, bias: Tensor | None, offsets: Tensor) -> Tensor:
    """Add ``bias[e]`` ``(E, h)`` to the rows ``(A, h)`` of expert e; rows of no expert stay as they are."""
    if bias is None:
        return y
    if y.is_cuda and not torch.compiler.is_compiling():
        out: Tensor = _AddBias.apply(y, bias, offsets)
        return out
    return y + _per_row(bias, offsets, y.shape[0])


def _owned(rows: Tensor, offsets: Tensor) -> Tensor:
    """Zero the rows that belong to no expert, and their gradient: a grouped product leaves both as memory held them."""
    owned = torch.arange(rows.shape[0], device=rows.device) < offsets[-1]
    return torch.where(owned[:, None], rows, 0)


def _grouped_mlp(
    rows: Tensor,
    offsets: Tensor,
    weights: tuple[Tensor, Tensor | None, Tensor, Tensor | None],
    act: Activation,
) -> Tensor:
    w1, b1, w2, b2 = weights

    def layer(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _add_bias(F.grouped_mm(x, weight, offs=offsets[1:]), bias, offsets)

    return _owned(layer(act.forward(layer(_owned(rows, offsets), w1, b1)), w2, b2), offsets)


def _owners(rows: Tensor, offsets: Tensor) -> list[Tensor]:
    """For each expert, ``(A, 1)``: which rows are its own."""
    row = torch.arange(rows.shape[0], device=rows.device)[:, None]
    starts = offsets.unbind()
    return [(row >= first) & (row < last) for first, last in pairwise(starts)]


def _masked_mlp(
    rows: Tensor,
    offsets: Tensor,
    weights: tuple[Tensor, Tensor | None, Tensor, Tensor | None],
    act: Activation,
) -> Tensor:
    w1, b1, w2, b2 = weights
    out = rows.new_zeros(rows.shape[0], w2.shape[2])
    layers = zip(_owners(rows, offsets), w1.unbind(), _each(b1, w1), w2.unbind(), _each(b2, w2), strict=True)
    for mine, first, bias1, second, bias2 in layers:
        x = torch.where(mine, rows, 0)  # the rows of others could overflow, and zero times infinity is a bad gradient
        out = out + torch.where(mine, _affine(act.forward(_affine(x, first, bias1)), second, bias2), 0)
    return out


def _differentiable(
    rows: Tensor, offsets: Tensor, act: Activation, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None
) -> Tensor:
    """The same by ordinary differentiable steps, for gradients of gradients."""
    counts = offsets.diff().tolist()
    *chunks, rest = rows.split([*counts, rows.shape[0] - sum(counts)])
    outputs = []
    for e, chunk in enumerate(chunks):
        pre = chunk @ w1[e] if b1 is None else torch.addmm(b1[e], chunk, w1[e])
        hidden = act.forward(pre)
        outputs.append(hidden @ w2[e] if b2 is None else torch.addmm(b2[e], hidden, w2[e]))
    return torch.cat([*outputs, rest.new_zeros(rest.shape[0], w2.shape[2])])


class _TwoLayer(torch.autograd.Function):
    """What both hand-written kernels share: when gradients of gradients are wanted, go the ordinary way."""

    @classmethod
    def gradients(cls, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        raise NotImplementedError

    @classmethod
    def twice(cls, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, offsets, w1, b1, w2, b2 = ctx.saved_tensors[:6]
        inputs = [t for t in (rows, w1, b1, w2, b2) if t is not None and t.requires_grad]
        out = _differentiable(rows, offsets, ctx.act, w1, b1, w2, b2)
        found = dict(zip(map(id, inputs), torch.autograd.grad(out, inputs, grad, create_graph=True), strict=True))
        return found.get(id(rows)), None, None, *(None if t is None else found.get(id(t)) for t in (w1, b1, w2, b2))

    @classmethod
    def backward(cls, ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0].contiguous()
        return cls.twice(ctx, grad) if torch.is_grad_enabled() else cls.gradients(ctx, grad)


class _Loop(_TwoLayer):
    """One product per expert and layer, each written into its part of a common buffer.

    Activations are one call for a group of neighbouring experts (see ``WHOLE``). They live only while it is the group's
    turn: they stay in the cache, and are computed again from the first layer's outputs when the gradient needs them,
    unless all experts are one group. The numbers are the same.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, offsets: Tensor, act: Activation,
        w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None,
    ) -> Tensor:  # fmt: skip
        counts = _split_counts(rows, offsets)
        groups = _groups(counts[:-1], w1.shape[2], rows.dtype)
        out = rows.new_empty(rows.shape[0], w2.shape[2])
        keep, hidden = any(ctx.needs_input_grad), None
        # without gradients to come, one group's part is enough, and stays in the cache
        pre = rows.new_empty((rows.shape[0] if keep else max(size for _, size in groups)) + ROUND, w1.shape[2])
        xs, (*outs, rest) = rows.split(counts), out.split(counts)
        first, bias1, second, bias2 = _each(w1), _each(b1, w1), _each(w2), _each(b2, w2)
        start = 0
        for experts, size in groups:
            before = pre[start : start + _rounded(size, act, rows.dtype, groups)]
            _products(xs[experts], first[experts], bias1[experts], before[:size].split(counts[experts]))
            hidden = act.forward(before)[:size]
            _products(hidden.split(counts[experts]), second[experts], bias2[experts], outs[experts])
            start += size if keep else 0
        rest.zero_()
        if keep:
            ctx.save_for_backward(rows, offsets, w1, b1, w2, b2, pre, hidden if len(groups) == 1 else None)
            ctx.act, ctx.counts, ctx.groups = act, counts, groups
        return out

    @classmethod
    def gradients(cls, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, offsets, w1, b1, w2, b2, pre, kept = ctx.saved_tensors
        counts, act, groups = ctx.counts, ctx.act, ctx.groups
        grad_rows, grad1, grad2 = torch.empty_like(rows), gradient_buffer(w1), gradient_buffer(w2)
        xs, dys, (*dxs, rest) = rows.split(counts), grad.split(counts), grad_rows.split(counts)
        back1, back2 = w1.transpose(1, 2).unbind(), w2.transpose(1, 2).unbind()
        nothing = _each(None, w1)
        grads1, grads2, sums1 = grad1.unbind(), grad2.unbind(), []
        grad_hidden = rows.new_empty(max(size for _, size in groups) + ROUND, w2.shape[1])
        start = 0
        for experts, size in groups:
            rounded = _rounded(size, act, rows.dtype, groups)
            before = pre[start : start + rounded]
            hidden = act.forward(before)[:size] if kept is None else kept
            for activated, dy, product in zip(
                hidden.split(counts[experts]), dys[experts], grads2[experts], strict=True
            ):
                torch.mm(activated.t(), dy, out=product)  # without rows: zeros
            _products(dys[experts], back2[experts], nothing[experts], grad_hidden[:size].split(counts[experts]))
            grad_pre = act.backward(grad_hidden[:rounded], before)[:size]
            dpre = grad_pre.split(counts[experts])
            for x, part, product in zip(xs[experts], dpre, grads1[experts], strict=True):
                torch.mm(x.t(), part, out=product)
            _products(dpre, back1[experts], nothing[experts], dxs[experts])
            if b1 is not None:
                sums1.append(_sums(grad_pre, offsets[experts] - start))
            start += size
        rest.zero_()
        sum1 = torch.cat(sums1) if sums1 else None
        return grad_rows, None, None, grad1, sum1, grad2, None if b2 is None else _sums(grad[:start], offsets[:-1])


class _Padded(_TwoLayer):
    """One batched product per layer over experts padded to the longest."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, offsets: Tensor, act: Activation,
        w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None,
    ) -> Tensor:  # fmt: skip
        counts = offsets.diff()
        longest, total = torch.stack([counts.max(), offsets[-1]]).tolist()
        expert = torch.repeat_interleave(counts, output_size=total)
        padded = torch.arange(total, device=rows.device) - (offsets[:-1] - longest * _numbers(counts))[expert]
        x = _pad(rows, padded, counts.numel(), longest)
        pre = torch.bmm(x, w1) if b1 is None else torch.baddbmm(b1[:, None], x, w1)
        hidden = act.forward(pre)
        blocks = torch.bmm(hidden, w2) if b2 is None else torch.baddbmm(b2[:, None], hidden, w2)
        ctx.save_for_backward(rows, offsets, w1, b1, w2, b2, pre, hidden, x, padded)
        ctx.act = act
        return _unpad(blocks, padded, rows.shape[0])

    @classmethod
    def gradients(cls, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, _, w1, b1, w2, b2, pre, hidden, x, padded = ctx.saved_tensors
        dy = _pad(grad, padded, x.shape[0], x.shape[1])
        dpre = ctx.act.backward(torch.bmm(dy, w2.transpose(1, 2)), pre)
        return (
            _unpad(torch.bmm(dpre, w1.transpose(1, 2)), padded, rows.shape[0]),
            None,
            None,
            torch.bmm(x.transpose(1, 2), dpre, out=gradient_buffer(w1)),
            None if b1 is None else dpre.sum(1),
            torch.bmm(hidden.transpose(1, 2), dy, out=gradient_buffer(w2)),
            None if b2 is None else dy.sum(1),
        )


def _split_counts(rows: Tensor, offsets: Tensor) -> list[int]:
    """Number of rows of each expert and, last, of padding rows."""
    counts: list[int] = offsets.diff().tolist()
    return [*counts, rows.shape[0] - sum(counts)]


def _each(stacked: Tensor | None, like: Tensor | None = None) -> Sequence[Tensor | None]:
    """A stacked parameter's experts one by one; None for each where there is no such parameter."""
    if stacked is None:
        assert like is not None
        return [None] * like.shape[0]
    return stacked.unbind()


def _sums(rows: Tensor, starts: Tensor) -> Tensor:
    """Sum of each expert's rows, ``(A, h)`` to ``(E, h)``, in one pass; ``starts`` ``(E,)``: where each begins."""
    return F.embedding_bag(
        torch.arange(rows.shape[0], dtype=starts.dtype, device=rows.device), rows, starts, mode="sum"
    )


def _groups(counts: list[int], hidden: int, dtype: torch.dtype) -> list[tuple[slice, int]]:
    """Neighbouring experts whose activations are one call, and their number of rows; at least one group.

    In float64, which oneDNN does not compute, every expert is a group: its predictions are those of 0.1 to the bit.
    """
    most = 0 if dtype == torch.float64 else WHOLE // hidden
    groups, first, size = [], 0, 0
    for expert, count in enumerate(counts):
        if expert > first and size + count > most:
            groups.append((slice(first, expert), size))
            first, size = expert, 0
        size += count
    return [*groups, (slice(first, len(counts)), size)]


def _rounded(size: int, act: Activation, dtype: torch.dtype, groups: Sequence[object]) -> int:
    """Rows of an activation's call: more than there are only where oneDNN computes it, whose values are the same.

    All rows of a batch are as many in the next batch; those of a part of the experts are not.
    """
    one = len(groups) == 1 or act is not ACTIVATIONS["gelu"] or dtype != torch.float32
    return size if one else -(-size // ROUND) * ROUND


def _products(
    rows: Sequence[Tensor],
    weight: Sequence[Tensor | None],
    bias: Sequence[Tensor | None],
    out: Sequence[Tensor | None],
) -> None:
    """One layer of each expert, into ``out``."""
    for x, w, b, y in zip(rows, weight, bias, out, strict=False):
        if x.shape[0]:
            assert w is not None
            _affine(x, w, b, y)


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    return torch.mm(x, weight, out=out) if bias is None else torch.addmm(bias, x, weight, out=out)


def _numbers(counts: Tensor) -> Tensor:
    return torch.arange(counts.numel(), device=counts.device)


def _pad(rows: Tensor, padded: Tensor, num_experts: int, longest: int) -> Tensor:
    """Rows ``(A, d)`` as blocks ``(E, longest, d)``; ``padded`` ``(A,)``: index of each row in the flat blocks."""
    flat = rows.new_zeros(num_experts * longest, rows.shape[1]).index_copy_(0, padded, rows[: padded.numel()])
    return flat.view(num_experts, longest, rows.shape[1])


def _unpad(blocks: Tensor, padded: Tensor, num_rows: int) -> Tensor:
    rows = blocks.flatten(0, 1).index_select(0, padded)
    return rows if rows.shape[0] == num_rows else F.pad(rows, (0, 0, 0, num_rows - rows.shape[0]))
