"""Move tokens to their experts and outputs back, and choose how the experts' products are computed."""

from typing import Any, Literal

import torch
from torch import Tensor

from moeapps.core.errors import ConfigError
from moeapps.core.routing import Routing

__all__ = [
    "BACKENDS",
    "Backend",
    "choose_backend",
    "combine",
    "dispatch",
    "grouped_is_possible",
    "pad",
    "unpad",
]

Backend = Literal["auto", "loop", "bmm", "grouped"]
BACKENDS = ("auto", "loop", "bmm", "grouped")


class _Gather(torch.autograd.Function):
    """Rows of the sorted list from rows of tokens; its transpose is a sum over each token's positions.

    Both directions only read (no atomic additions), hence the gradient is the same bits every time, on CUDA too.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor, position: Tensor) -> Tensor:
        ctx.save_for_backward(token, position)
        return x[token]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        token, position = ctx.saved_tensors
        return _Sum.apply(grads[0], token, position), None, None


class _Sum(torch.autograd.Function):
    """The sum of each token's rows in the sorted list: the transpose of :class:`_Gather`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, token: Tensor, position: Tensor) -> Tensor:
        ctx.save_for_backward(token, position)
        if position.shape[1] == 1:
            return y[position[:, 0]]
        return y[position].sum(dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        token, position = ctx.saved_tensors
        return _Gather.apply(grads[0], token, position), None, None


def dispatch(x: Tensor, routing: Routing) -> Tensor:
    """Gather the tokens of each expert.

    Args:
        x: ``(N, d)`` tokens.
        routing: Where they go.

    Returns:
        ``(A, d)``, rows sorted by expert.
    """
    if routing.position is None:
        return x.index_select(0, routing.token)
    rows: Tensor = _Gather.apply(x, routing.token, routing.position)
    return rows


def combine(y: Tensor, routing: Routing) -> Tensor:
    """Weight the experts' outputs and put them back to their tokens.

    Args:
        y: ``(A, d_out)`` outputs in the order of the routing.
        routing: Where they came from.

    Returns:
        ``(N, d_out)``, the weighted sum of each token's experts; zero for a token without any.
    """
    weighted = y * routing.weight.to(y.dtype)[:, None]
    if routing.position is None:
        return weighted.new_zeros(routing.num_tokens, y.shape[1]).index_add(0, routing.token, weighted)
    summed: Tensor = _Sum.apply(weighted, routing.token, routing.position)
    return summed


def pad(rows: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Lay sorted rows out as one equally long block per expert, for batched products.

    Args:
        rows: ``(A, d)`` sorted by expert.
        offsets: ``(E + 1,)`` where each expert begins.

    Returns:
        ``(E, C, d)`` blocks, filled with zeros, with C the largest count (this reads it back to the host), and
        ``(A,)`` the place of each row in the flattened blocks, for :func:`unpad`.
    """
    counts = offsets.diff()
    longest = int(counts.max())
    expert = torch.repeat_interleave(counts, output_size=rows.shape[0])  # (A,)
    place = torch.arange(rows.shape[0], device=rows.device) - offsets[expert] + expert * longest
    flat = rows.new_zeros(counts.numel() * longest, rows.shape[1]).index_copy(0, place, rows)
    return flat.view(counts.numel(), longest, rows.shape[1]), place


def unpad(blocks: Tensor, place: Tensor) -> Tensor:
    """Undo :func:`pad`: ``(E, C, d)`` blocks back to ``(A, d)`` sorted rows."""
    return blocks.flatten(0, 1).index_select(0, place)


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
    rows: int,
    num_experts: int,
    widths: tuple[int, ...],
) -> Backend:
    """Turn ``auto`` into a backend, and ``grouped`` into ``bmm`` where grouped products cannot be computed.

    The rule for ``auto`` comes from ``benchmarks/core_dispatch.py`` (its table is in ``benchmarks/results``): on CUDA
    always ``grouped``, which never waits for the host; on CPU ``loop`` while each expert has plenty of rows (every
    product is then a full-speed matrix product), ``grouped`` when many experts share few rows.

    Args:
        backend: What the user asked for.
        device: Where the tokens are.
        dtype: In which type the products are computed.
        rows: Number of assignments A.
        num_experts: Number of experts E.
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
    if device.type == "cuda" and possible:
        return "grouped"
    if possible and rows < ROWS_PER_EXPERT_FOR_LOOP * num_experts:
        return "grouped"
    return "loop"


ROWS_PER_EXPERT_FOR_LOOP = 256
"""Mean rows per expert from which, on CPU, a loop of full products beats one grouped product."""
