"""Conditional computation over a chain of experts: each sees the rows that did not stop at an earlier one."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["pass_on"]

Visit = Callable[[int, Tensor | None], Tensor]
"""Runs an expert, by its number, on rows ``(A,)`` (all when None) and returns which of them go on, bool ``(A,)``."""


def pass_on(num_experts: int, visit: Visit) -> Tensor:
    """Visit experts one after another, each for the rows that earlier ones let go on.

    1. The first expert is visited for all rows.
    2. Rows for which ``visit`` is true go on to the next expert; no row goes on from the last.
    3. When no row is left, the remaining experts are not visited.

    Parameters
    ----------
    num_experts : int
        Length of the chain, at least 1.
    visit : callable
        Runs an expert on some rows, and says which go on; what it computes is its own business.

    Returns
    -------
    int64 Tensor of shape (N,)
        Number of the last expert that each row reached.
    """
    goes_on = visit(0, None)
    last = torch.zeros_like(goes_on, dtype=torch.int64)
    rows = goes_on.nonzero().flatten()
    for i in range(1, num_experts):
        if not rows.numel():
            break
        last[rows] = i
        rows = rows[visit(i, rows)]
    return last
