"""Which backend computes the experts: on the CPU by a measured table, elsewhere by rules.

Shapes: d width, h hidden width, E experts.
"""

import math
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from moeapps.core.checks import check_one_of
from moeapps.core.modes import is_transformed

__all__ = ["BACKENDS", "PADDING_PAYS", "ROWS", "Backend", "choose_backend", "grouped_is_possible", "padding_pays"]

Backend = Literal["auto", "loop", "bmm", "grouped", "masked"]
BACKENDS = ("auto", "loop", "bmm", "grouped", "masked")

ROWS = (1, 4, 16, 64, 256)
"""Mean rows per expert of the columns of ``PADDING_PAYS``."""

PADDING_PAYS = {
    (64, 128, 8): (1.55, 1.43, 1.35, 1.3, 1.01),
    (64, 128, 64): (1.53, 2.07, 1.64, 1.21, 1.06),
    (128, 512, 8): (1.02, 1.27, 1.17, 1.06, 1.06),
    (128, 512, 64): (0.82, 1.12, 1.22, 1.16, 0.9),
    (384, 1536, 8): (0.85, 1.07, 1.04, 1.09, 1.07),
    (384, 1536, 64): (0.85, 1.09, 1.12, 1.1, 0.94),
}
"""By d, h and E: how many rows, per real row, the batched product of padded experts computes in the time of the loop.

One number per entry of ``ROWS``; measured by ``benchmarks/core_dispatch.py --measure`` on one thread (Zen 4, MKL),
forward and backward pass, float32, GELU. ``grouped`` was ahead of both only with one row per
expert, by up to 17 %."""

BEYOND = 4
"""By which factor d, h, E and rows may differ from the nearest entry.

What is further away, or has more rows, takes the loop, which no uneven load makes slower."""

MARGIN = 1.05
"""How much faster than the loop the padded product must be: it takes more memory, and less is not measured reliably."""

GROUPED_TRACES_FLOAT32 = TorchVersion(torch.__version__) >= "2.15"
"""Whether torch.compile and torch.export take ``grouped_mm`` of float32; torch 2.14 computes it but cannot trace it."""


def grouped_is_possible(dtype: torch.dtype, *widths: int) -> bool:
    """Whether ``torch.nn.functional.grouped_mm`` takes this dtype and these row widths.

    It takes float32 (see ``GROUPED_TRACES_FLOAT32``), bfloat16 or float16, and rows whose length is a multiple of 16
    bytes.
    """
    if dtype == torch.float32:
        if torch.compiler.is_compiling() and not GROUPED_TRACES_FLOAT32:
            return False
    elif dtype not in (torch.bfloat16, torch.float16):
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
    """Turn ``auto`` into a backend, and ``grouped`` into another where grouped products cannot be computed.

    On CUDA ``auto`` is always ``grouped``, which in bfloat16 never synchronises with the host; float32 does, since
    torch falls back to one product per expert (torch 2.11, H200). On CPU it is ``bmm`` where the load is even enough
    for padding (see ``PADDING_PAYS``); else ``loop``. While the layer is traced (torch.compile, torch.export) values
    cannot be looked at: ``grouped`` where possible, else ``masked``, whatever was asked for. Under ``torch.func``'s
    transforms always ``masked``: the other backends have hand-written gradients.

    Parameters
    ----------
    backend : Backend
        What the user asked for.
    device : torch.device
        Where the tokens are.
    dtype : dtype
        In which type the products are computed.
    counts : Tensor or None
        ``(E,)`` rows of each expert, or None where looking at them is impossible or costly (tracing, CUDA).
    widths : tuple[int, ...]
        Lengths of the rows that take part (input, hidden, output).

    Raises
    ------
    ConfigError
        If the name is unknown.
    """
    check_one_of("backend", backend, BACKENDS)
    if is_transformed():
        return "masked"
    possible = grouped_is_possible(dtype, *widths)
    if torch.compiler.is_compiling():
        return "grouped" if possible and backend != "masked" else "masked"
    if backend == "grouped":
        return "grouped" if possible else "bmm"
    if backend != "auto":
        return backend
    if possible and device.type == "cuda":
        return "grouped"
    if counts is None:
        return "bmm"
    num_experts, rows, longest = counts.numel(), int(counts.sum()), int(counts.max())
    if rows == 0:
        return "loop"
    pays = padding_pays(rows / num_experts, widths[0], max(widths), num_experts)
    return "bmm" if MARGIN * longest * num_experts <= pays * rows else "loop"


def padding_pays(rows: float, d: int, h: int, num_experts: int) -> float:
    """Look up how many rows, per real row, padding may compute before the loop is faster; 0 beyond the table.

    Parameters
    ----------
    rows : float
        Mean rows per expert.
    d, h, num_experts : int
        Width, hidden width and number of experts.
    """
    row = _nearest_row(d * h, num_experts)
    if not row or not ROWS[0] / BEYOND <= rows <= ROWS[-1]:
        return 0.0
    return row[min(range(len(ROWS)), key=lambda column: abs(math.log(rows / ROWS[column])))]


@lru_cache(maxsize=1024)
def _nearest_row(weights: int, num_experts: int) -> tuple[float, ...]:
    """Row of the table nearest in E and in a layer's weights, d times h; empty where none is near enough."""

    def distance(key: tuple[int, int, int]) -> tuple[float, float]:
        return abs(math.log(weights / (key[0] * key[1]))), abs(math.log(num_experts / key[2]))

    nearest = min(PADDING_PAYS, key=lambda key: sum(distance(key)))
    by_weights, by_experts = distance(nearest)
    within = by_weights <= 2 * math.log(BEYOND) and by_experts <= math.log(BEYOND)
    return PADDING_PAYS[nearest] if within else ()
