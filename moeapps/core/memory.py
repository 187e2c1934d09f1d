"""Memory of the process on the CPU."""

import ctypes
from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["keep_freed_memory", "return_freed_memory"]

_ADAPTS_TO = 32 * 2**20
"""Largest block by which glibc adapts its thresholds by itself (its DEFAULT_MMAP_THRESHOLD_MAX on 64 bits)."""

_LARGEST = 2**30
"""Largest block that is kept, and no larger than an int of C may hold twice."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of the options in glibc's malloc.h."""


def keep_freed_memory(parameters: Iterable[Tensor] = ()) -> None:
    """Make the process keep the memory that a training step frees for the next step, which needs as much.

    A step allocates and frees tensors of some MiB, and a gradient for every parameter. At first glibc gives such blocks
    back to the system, and every page of the next one is a page fault, which costs most with tables of hundreds of
    MiB (``benchmarks/recsys_speed.py --profile``). With other allocators this has no effect.

    Parameters
    ----------
    parameters : iterable of Tensor, optional
        What is trained. Up to twice the largest one is kept, at least 64 MiB and at most 2 GiB.
    """
    largest = min(max((p.nbytes for p in parameters if p.device.type == "cpu"), default=0), _LARGEST)
    if largest > _ADAPTS_TO // 2:
        try:
            mallopt = ctypes.CDLL(None).mallopt
        except (AttributeError, OSError, TypeError):  # not glibc
            return
        # An eighth more, since an allocation is rounded up
        mallopt(_MMAP_THRESHOLD, min(largest + largest // 8, _LARGEST))
        mallopt(_TRIM_THRESHOLD, min(2 * largest + 2 * _ADAPTS_TO, 2**31 - 1))
        return
    # malloc adapts to the largest block that was freed: from then on it takes blocks up to that size from the heap, and
    # keeps twice as much of it free. So the largest block that counts is allocated and freed, untouched.
    block = torch.empty(_ADAPTS_TO - 2**14, dtype=torch.uint8)
    del block


def return_freed_memory() -> None:
    """Give back to the system what :func:`keep_freed_memory` made the process keep, and keep no more than glibc does.

    The thresholds are then those that glibc itself adapts to at most.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, _ADAPTS_TO)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _ADAPTS_TO)
        libc.malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # not glibc
        return
