"""Whether a value is one of torch's, without importing torch: whoever has such a value has imported it.

Models of streams compute without torch, and importing it takes seconds and hundreds of MiB.
"""

from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["is_tensor", "is_torch_module", "is_type_of_tensors"]


def is_tensor(value: Any) -> "TypeGuard[Tensor]":
    """Whether this is a ``torch.Tensor``, a subclass's too."""
    return is_type_of_tensors(type(value))


def is_type_of_tensors(kind: type) -> bool:
    """Whether this type is ``torch.Tensor`` or a subclass."""
    return _inherits(kind, "torch", "Tensor")


def is_torch_module(value: Any) -> "TypeGuard[nn.Module]":
    """Whether this is a ``torch.nn.Module``."""
    return _inherits(type(value), "torch.nn.modules.module", "Module")


def _inherits(kind: type, module: str, name: str) -> bool:
    return any(base.__name__ == name and base.__module__ == module for base in kind.__mro__)
