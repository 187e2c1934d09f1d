"""Memory of the process on the CPU."""

import torch

__all__ = ["keep_freed_memory"]

_LARGEST = 32 * 2**20
"""Largest block by which glibc adapts its thresholds (its DEFAULT_MMAP_THRESHOLD_MAX on 64 bits)."""


def keep_freed_memory() -> None:
    """Make the process keep up to 64 MiB of freed memory for its next training step.

    A step allocates and frees tensors of some MiB. At first glibc gives each back to the system, and every page of the
    next one is a page fault: a tenth to a quarter of the time of a small network's step. Its ``malloc`` adapts to the
    largest block that was freed: from then on it takes blocks up to that size from the heap, and keeps twice as much
    of it free. So one block of the largest size that counts is allocated and freed here, untouched. With other
    allocators this has no effect.
    """
    block = torch.empty(_LARGEST - 2**14, dtype=torch.uint8)
    del block
