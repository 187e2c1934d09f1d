"""Numbers from ranges: all of them, or some drawn without replacement, for all ranges at once."""

# n ranges

import torch
from torch import Tensor

__all__ = ["draw", "expand"]

ONE_BY_ONE = 64
"""Largest number of draws from a range that are drawn one after another; more are taken from a shuffled range."""


def expand(start: Tensor, length: Tensor) -> Tensor:
    """Concatenate the ranges ``start[i], ..., start[i] + length[i] - 1``.

    Examples
    --------
    >>> expand(torch.tensor([5, 0]), torch.tensor([2, 3]))
    tensor([5, 6, 0, 1, 2])
    """
    ends = length.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    shift = (start - ends + length).repeat_interleave(length, output_size=total)
    return shift + torch.arange(total, device=start.device)


def draw(start: Tensor, length: Tensor, limit: int) -> Tensor:
    """Draw ``limit`` numbers without replacement from each range, or all where there are no more; range by range.

    Draws from torch's global generator.

    Parameters
    ----------
    start, length : int64 Tensor of shape (n,)
        The ranges ``start[i], ..., start[i] + length[i] - 1``.
    limit : int
        Most numbers from each.
    """
    more = length > limit
    if not bool(more.any()):
        return expand(start, length)
    taken = length.clamp(max=limit)
    out = torch.empty(int(taken.sum()), dtype=start.dtype, device=start.device)
    place = taken.cumsum(0) - taken
    rest = ~more
    out[expand(place[rest], length[rest])] = expand(start[rest], length[rest])
    pick = _floyd if limit <= ONE_BY_ONE else _shuffled
    chosen = start[more, None] + pick(length[more], limit)
    out[place[more, None] + torch.arange(limit, device=out.device)] = chosen
    return out


def _floyd(length: Tensor, limit: int) -> Tensor:
    """``(n, limit)`` distinct numbers below each length, by Floyd's algorithm (Bentley and Floyd 1987)."""
    # The j-th draw is uniform over the first length - limit + j + 1 numbers; where it has been taken, the last of
    # these is free and is taken instead.
    uniform = torch.rand(limit, len(length), dtype=torch.float64, device=length.device)
    chosen = length.new_empty(limit, len(length))
    for j in range(limit):
        last = length - limit + j
        number = (uniform[j] * (last + 1)).to(length.dtype).minimum(last)
        taken = (chosen[:j] == number).any(0)
        chosen[j] = torch.where(taken, last, number)
    return chosen.T


def _shuffled(length: Tensor, limit: int) -> Tensor:
    """``(n, limit)`` distinct numbers below each length, the first ones of a random order of all."""
    total = int(length.sum())
    begin = length.cumsum(0) - length
    owner = torch.arange(len(length), device=length.device).repeat_interleave(length, output_size=total)
    order = (owner + torch.rand(total, dtype=torch.float64, device=length.device)).argsort()
    first = order[begin[:, None] + torch.arange(limit, device=length.device)]
    return first - begin[:, None]
