"""Memory for the gradients of large weights, kept from one training step to the next.

A tensor above 32 MiB comes fresh from the operating system every time it is made, and a page that is written for the
first time costs more than the writing. So each large weight keeps the memory of its gradient, which its next gradient
gets unless something still uses it: the gradient itself, a view or a detached copy.
"""

import contextlib
import mmap
import weakref
from collections.abc import Callable, Iterable
from threading import Lock

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["gradient_buffer", "kept_bytes"]

LARGE = 2**25
"""Bytes from which a gradient's memory is kept: below, the C library keeps it."""


class _Block:
    """Memory of one gradient, and whether a tensor uses it."""

    def __init__(self, nbytes: int) -> None:
        self.memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without large pages
                self.memory.madvise(mmap.MADV_HUGEPAGE)
        self._user: Callable[[], memoryview | None] = lambda: None

    @property
    def is_used(self) -> bool:
        """Whether a tensor's storage is still in this memory, whichever tensors share it."""
        return self._user() is not None

    def tensor(self, like: Tensor) -> Tensor:
        """Uninitialised tensor of the shape and dtype of ``like``, in this memory."""
        view = memoryview(self.memory)
        self._user = weakref.ref(view)  # the storage holds the view as long as it lives
        return torch.frombuffer(view, dtype=like.dtype).view(like.shape)


_BLOCKS = WeakTensorKeyDictionary()
_LOCK = Lock()


def gradient_buffer(weight: Tensor) -> Tensor:
    """Uninitialised tensor for the gradient of a weight: of its shape, dtype and device, contiguous.

    Large parameters on the CPU get memory that is kept while they live; everything else gets new memory.

    Parameters
    ----------
    weight : Tensor
        What the gradient belongs to.
    """
    keeps = weight.nbytes >= LARGE and weight.is_leaf and weight.device.type == "cpu" and hasattr(mmap, "MAP_ANONYMOUS")
    if not keeps or type(weight) not in (Tensor, torch.nn.Parameter):
        return torch.empty_like(weight, memory_format=torch.contiguous_format)
    with _LOCK:  # backward passes of two threads may ask for the same block
        block = _BLOCKS.get(weight)
        if block is None or len(block.memory) != weight.nbytes:
            block = _BLOCKS[weight] = _Block(weight.nbytes)
        if not block.is_used:
            return block.tensor(weight)
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


def kept_bytes(weights: Iterable[Tensor]) -> int:
    """Bytes that are kept for the gradients of these weights.

    Parameters
    ----------
    weights : iterable of Tensor
        Usually a module's parameters.
    """
    return sum(len(_BLOCKS[weight].memory) for weight in weights if weight in _BLOCKS)
