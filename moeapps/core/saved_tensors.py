"""Tensors of a model by name, of torch or of NumPy: a model of NumPy's arrays is saved and loaded without torch.

torch is imported only where a tensor of torch is there, or a class wants one.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from moeapps.core.errors import NonFiniteError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "AnyTensor",
    "as_arrays",
    "as_tensors",
    "from_safetensors",
    "non_finite_names",
    "refuse_non_finite",
    "to_safetensors",
    "under",
]

AnyTensor: TypeAlias = "Tensor | NDArray[Any]"

T = TypeVar("T")


def to_safetensors(tensors: Mapping[str, AnyTensor]) -> bytes:
    """Tensors in the format of safetensors; the bytes are the same for a tensor of torch and of NumPy."""
    if all(isinstance(tensor, np.ndarray) for tensor in tensors.values()):
        content: bytes = save_arrays({name: np.array(tensors[name], order="C") for name in sorted(tensors)})
        return content
    from safetensors.torch import save

    given = as_tensors(tensors)
    # a copy of each: a parameter that two layers share is written under both names
    copies = {name: given[name].detach().cpu().contiguous().clone() for name in sorted(given)}
    content = save(copies)
    return content


def from_safetensors(content: bytes) -> dict[str, Any]:
    """Tensors in the content of a file: NumPy's; torch's if one is of a type that NumPy lacks, such as bfloat16.

    Raises
    ------
    SafetensorError
        If the content is none of such a file.
    """
    try:
        arrays: dict[str, Any] = load_arrays(content)
        return arrays
    except KeyError:  # no type of NumPy's
        pass
    from safetensors.torch import load

    tensors: dict[str, Any] = load(content)
    return tensors


def as_tensors(tensors: Mapping[str, AnyTensor]) -> "dict[str, Tensor]":
    """All of them as tensors of torch, which share the memory of arrays."""
    import torch

    return {
        name: torch.from_numpy(tensor) if isinstance(tensor, np.ndarray) else tensor for name, tensor in tensors.items()
    }


def as_arrays(tensors: Mapping[str, AnyTensor]) -> dict[str, NDArray[Any]]:
    """All of them as arrays of NumPy, which share the memory of tensors.

    Raises
    ------
    TypeError
        If one is of a type that NumPy lacks.
    """
    return {
        name: tensor if isinstance(tensor, np.ndarray) else tensor.detach().cpu().numpy()
        for name, tensor in tensors.items()
    }


def non_finite_names(tensors: Mapping[str, AnyTensor], allowed: Iterable[str] = ()) -> list[str]:
    """Names of the tensors that hold NaN or infinity.

    Parameters
    ----------
    tensors : mapping of str to Tensor or array
        Tensors by name.
    allowed : iterable of str
        Names of tensors that may, by their last part.
    """
    permitted = set(allowed)
    return [
        name
        for name, tensor in tensors.items()
        if name.rpartition(".")[2] not in permitted
        and not (_is_finite_array(tensor) if isinstance(tensor, np.ndarray) else _is_finite(tensor.detach()))
    ]


# The extremes are NaN where one value is; unlike isfinite() they need no memory of the tensor's size.


def _is_finite_array(array: NDArray[Any]) -> bool:
    return array.dtype.kind != "f" or not array.size or bool(np.isfinite(array.min()) and np.isfinite(array.max()))


def _is_finite(tensor: "Tensor") -> bool:
    import torch

    if not tensor.is_floating_point():
        return True
    if tensor.layout != torch.strided:  # the zeros that are not stored are finite
        tensor = tensor._values() if tensor.layout == torch.sparse_coo else tensor.values()
    if not tensor.numel():
        return True
    extremes = (tensor if tensor.dtype.itemsize > 1 else tensor.float()).aminmax()
    return all(bool(extreme.isfinite()) for extreme in extremes)


def refuse_non_finite(tensors: Mapping[str, AnyTensor], allowed: Iterable[str] = ()) -> None:
    """Raise an error that names weights with NaN or infinity.

    Raises
    ------
    NonFiniteError
        Naming the first ones.
    """
    names = non_finite_names(tensors, allowed)
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise NonFiniteError(
            f"training has diverged: {', '.join(names[:3])}{more} hold NaN or infinity. Lower lr, or scale the data"
        )


def under(prefix: str, tensors: Mapping[str, T]) -> dict[str, T]:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
