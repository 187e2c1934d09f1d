"""Two-layer networks on rows sorted by expert: three ways of computing the same.

``loop`` takes one full matrix product per expert, ``bmm`` pads every expert to the longest one and takes one batched
product, ``grouped`` hands the sorted rows to ``torch.nn.functional.grouped_mm``. The first two write outputs and
gradients of all experts into one buffer each. Left to autograd, each expert's weight gradient would be a tensor of its
own, stacked afterwards: as many bytes again as the layer has weights, in every step.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from moeapps.core.errors import ConfigError

__all__ = [
    "ACTIVATIONS",
    "BACKENDS",
    "Activation",
    "Backend",
    "choose_backend",
    "grouped_is_possible",
    "sorted_linear",
    "sorted_mlp",
]

Backend = Literal["auto", "loop", "bmm", "grouped"]
BACKENDS = ("auto", "loop", "bmm", "grouped")

SMALL_PRODUCT = 2_000_000
"""Multiply-adds of one expert's first product up to which, on CPU, calling it costs more than computing it."""

WASTE = 2.0
"""How many rows, per real row, padding may compute before ``bmm`` stops paying on CPU."""


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


def grouped_is_possible(dtype: torch.dtype, *widths: int) -> bool:
    """Whether ``torch.nn.functional.grouped_mm`` takes this dtype and these row widths.

    It wants float32, bfloat16 or float16, and rows whose length is a multiple of 16 bytes.
    """
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    return all(width * dtype.itemsize % 16 == 0 for width in widths)


def choose_backend(
    backend: Backend,
    *,
    device: torch.device,
    dtype: torch.dtype,
    counts: Tensor | None,
    widths: tuple[int, ...],
) -> Backend:
    """Turn ``auto`` into a backend, and ``grouped`` into ``bmm`` where grouped products cannot be computed.

    The rule for ``auto`` comes from ``benchmarks/core_dispatch.py`` (its table is in ``benchmarks/results``). On CUDA
    always ``grouped``, which never waits for the host. On CPU ``bmm`` where experts are so small that calling one
    product per expert would cost more than the products, and the load is even enough for padding; else ``loop``.

    Args:
        backend: What the user asked for.
        device: Where the tokens are.
        dtype: In which type the products are computed.
        counts: ``(E,)`` rows of each expert. None while the layer is traced (torch.compile, torch.export), where
            values cannot be looked at: ``auto`` is then ``grouped``.
        widths: Lengths of the rows that take part (input, hidden, output).

    Raises:
        ConfigError: If the name is unknown.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    possible = grouped_is_possible(dtype, *widths)
    if backend == "grouped":
        return "grouped" if possible else "bmm"
    if backend != "auto":
        return backend
    if possible and (device.type == "cuda" or counts is None):
        return "grouped"
    if counts is None:
        return "bmm"
    num_experts, rows, longest = counts.numel(), int(counts.sum()), int(counts.max())
    small = rows / num_experts * widths[0] * widths[1] <= SMALL_PRODUCT
    return "bmm" if small and longest * num_experts <= WASTE * rows else "loop"


def sorted_mlp(
    rows: Tensor,
    offsets: Tensor,
    weights: tuple[Tensor, Tensor | None, Tensor, Tensor | None],
    activation: str,
    backend: Backend,
) -> Tensor:
    """Apply expert e's network ``act(x W1 + b1) W2 + b2`` to ``rows[offsets[e]:offsets[e + 1]]``, for every e.

    Args:
        rows: ``(A, d)`` sorted by expert. Rows beyond ``offsets[E]`` belong to nobody.
        offsets: ``(E + 1,)`` int32, on the device of the rows.
        weights: ``(E, d, h)``, ``(E, h)`` or None, ``(E, h, d_out)``, ``(E, d_out)`` or None. With a gated activation
            the first two are twice as wide.
        activation: A name in ``ACTIVATIONS``.
        backend: ``"loop"``, ``"bmm"`` or ``"grouped"``, as :func:`choose_backend` answered.

    Returns:
        ``(A, d_out)``. Rows beyond ``offsets[E]`` are zero.
    """
    if backend == "grouped":
        return _grouped_mlp(rows, offsets, weights, ACTIVATIONS[activation])
    function = _Loop if backend == "loop" else _Padded
    out: Tensor = function.apply(rows, offsets, ACTIVATIONS[activation], *weights)
    return out


def sorted_linear(rows: Tensor, offsets: Tensor, weight: Tensor, backend: Backend) -> Tensor:
    """Multiply ``rows[offsets[e]:offsets[e + 1]]`` by ``weight[e]``, for every e: ``(A, d)`` to ``(A, d_out)``."""
    if backend == "grouped":
        return _owned(F.grouped_mm(rows, weight, offs=offsets[1:]), offsets)
    *chunks, rest = rows.split([*offsets.diff().tolist(), rows.shape[0] - int(offsets[-1])])
    outputs = [chunk @ matrix for chunk, matrix in zip(chunks, weight.unbind(), strict=True)]
    return torch.cat([*outputs, rest.new_zeros(rest.shape[0], weight.shape[2])])


def _owned(rows: Tensor, offsets: Tensor) -> Tensor:
    """Zero the rows that belong to no expert: a grouped product leaves them as it found the memory."""
    owned = torch.arange(rows.shape[0], device=rows.device) < offsets[-1]
    return torch.where(owned[:, None], rows, 0)


def _grouped_mlp(
    rows: Tensor,
    offsets: Tensor,
    weights: tuple[Tensor, Tensor | None, Tensor, Tensor | None],
    act: Activation,
) -> Tensor:
    w1, b1, w2, b2 = weights
    row = torch.arange(rows.shape[0], device=rows.device)
    expert = torch.searchsorted(offsets[1:], row, right=True, out_int32=True)  # (A,); E for rows of nobody
    owned = expert < w1.shape[0]
    expert = expert.clamp(max=w1.shape[0] - 1)

    def layer(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = torch.where(owned[:, None], F.grouped_mm(x, weight, offs=offsets[1:]), 0)
        return y if bias is None else y + bias.index_select(0, expert)

    return torch.where(owned[:, None], layer(act.forward(layer(rows, w1, b1)), w2, b2), 0)


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
    """One product per expert and layer, each written into its place of a common buffer."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, offsets: Tensor, act: Activation,
        w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None,
    ) -> Tensor:  # fmt: skip
        counts = offsets.diff().tolist()
        total = sum(counts)
        pre = _each(rows.new_empty(total, w1.shape[2]), rows[:total], w1, b1, counts)
        hidden = act.forward(pre)
        out = rows.new_empty(rows.shape[0], w2.shape[2])
        _each(out[:total], hidden, w2, b2, counts)
        out[total:] = 0
        ctx.save_for_backward(rows, offsets, w1, b1, w2, b2, pre, hidden)
        ctx.act, ctx.counts = act, counts
        return out

    @classmethod
    def gradients(cls, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, _, w1, b1, w2, b2, pre, hidden = ctx.saved_tensors
        counts, total = ctx.counts, pre.shape[0]
        grad_rows = torch.empty_like(rows)
        grad_rows[total:] = 0
        dy = grad[:total]
        g2, gb2 = _each_weight(hidden, dy, w2, b2, counts)
        dpre = ctx.act.backward(_each(torch.empty_like(hidden), dy, w2.transpose(1, 2), None, counts), pre)
        _each(grad_rows[:total], dpre, w1.transpose(1, 2), None, counts)
        g1, gb1 = _each_weight(rows[:total], dpre, w1, b1, counts)
        return grad_rows, None, None, g1, gb1, g2, gb2


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
        place = torch.arange(total, device=rows.device) - (offsets[:-1] - longest * _numbers(counts))[expert]
        x = _pad(rows, place, counts.numel(), longest)
        pre = torch.bmm(x, w1) if b1 is None else torch.baddbmm(b1[:, None], x, w1)
        hidden = act.forward(pre)
        blocks = torch.bmm(hidden, w2) if b2 is None else torch.baddbmm(b2[:, None], hidden, w2)
        ctx.save_for_backward(rows, offsets, w1, b1, w2, b2, pre, hidden, x, place)
        ctx.act = act
        return _unpad(blocks, place, rows.shape[0])

    @classmethod
    def gradients(cls, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, _, w1, b1, w2, b2, pre, hidden, x, place = ctx.saved_tensors
        dy = _pad(grad, place, x.shape[0], x.shape[1])
        dpre = ctx.act.backward(torch.bmm(dy, w2.transpose(1, 2)), pre)
        return (
            _unpad(torch.bmm(dpre, w1.transpose(1, 2)), place, rows.shape[0]),
            None,
            None,
            torch.bmm(x.transpose(1, 2), dpre),
            None if b1 is None else dpre.sum(1),
            torch.bmm(hidden.transpose(1, 2), dy),
            None if b2 is None else dy.sum(1),
        )


def _each(out: Tensor, rows: Tensor, weight: Tensor, bias: Tensor | None, counts: list[int]) -> Tensor:
    """Write every expert's product into its rows of ``out``."""
    biases = [None] * len(counts) if bias is None else bias.unbind()
    for count, x, w, b, y in zip(counts, rows.split(counts), weight.unbind(), biases, out.split(counts), strict=True):
        if not count:
            continue
        if b is None:
            torch.mm(x, w, out=y)
        else:
            torch.addmm(b, x, w, out=y)
    return out


def _each_weight(
    x: Tensor, grad: Tensor, weight: Tensor, bias: Tensor | None, counts: list[int]
) -> tuple[Tensor, Tensor | None]:
    """Gradients of every expert's weight and bias; an expert without rows gets zeros."""
    grad_weight = torch.empty_like(weight)
    chunks = grad.split(counts)
    for rows, dy, out in zip(x.split(counts), chunks, grad_weight.unbind(), strict=True):
        torch.mm(rows.t(), dy, out=out)
    return grad_weight, None if bias is None else torch.stack([dy.sum(0) for dy in chunks])


def _numbers(counts: Tensor) -> Tensor:
    return torch.arange(counts.numel(), device=counts.device)


def _pad(rows: Tensor, place: Tensor, num_experts: int, longest: int) -> Tensor:
    flat = rows.new_zeros(num_experts * longest, rows.shape[1]).index_copy_(0, place, rows[: place.numel()])
    return flat.view(num_experts, longest, rows.shape[1])


def _unpad(blocks: Tensor, place: Tensor, num_rows: int) -> Tensor:
    rows = blocks.flatten(0, 1).index_select(0, place)
    return rows if rows.shape[0] == num_rows else F.pad(rows, (0, 0, 0, num_rows - rows.shape[0]))
