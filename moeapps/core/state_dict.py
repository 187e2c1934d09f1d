"""Compare weights with the model that they are meant for, without importing Lightning."""

import os
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from moeapps.core.errors import FileFormatError, NonFiniteError

__all__ = ["check_state_dict", "non_finite_names", "refuse_non_finite", "under"]


def check_state_dict(
    model: torch.nn.Module, state: dict[str, torch.Tensor], source: str | os.PathLike[str], prefix: str = ""
) -> None:
    """Compare names, shapes and kinds (real, integer, bool) of a state dict with a model before loading it.

    Raises
    ------
    FileFormatError
        Naming the first missing, unexpected and mismatched entries, with both shapes.
    """
    weights, found = model.state_dict(), {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    own = {name: tensor.shape for name, tensor in weights.items()}
    given = {name: tensor.shape for name, tensor in found.items()}
    complaints = [f"missing {name} {tuple(own[name])}" for name in own if name not in given][:3]
    complaints += [f"unexpected {name} {tuple(given[name])}" for name in given if name not in own][:3]
    complaints += [
        f"{name} is {tuple(given[name])} in the file and {tuple(own[name])} in the model"
        for name in own
        if name in given and own[name] != given[name]
    ][:3]
    # torch would convert one into the other without a word
    complaints += [
        f"{name} holds {found[name].dtype} in the file and {weights[name].dtype} in the model"
        for name in own
        if name in found and _kind(found[name].dtype) != _kind(weights[name].dtype)
    ][:3]
    if complaints:
        raise FileFormatError(f"{source} does not fit {type(model).__name__}: {'; '.join(complaints)}")


def _kind(dtype: torch.dtype) -> str:
    real = dtype.is_floating_point or dtype.is_complex
    return str(dtype) if dtype == torch.bool or dtype.is_complex else "real" if real else "integer"


def non_finite_names(tensors: dict[str, Tensor], allowed: Iterable[str] = ()) -> list[str]:
    """Names of the tensors that hold NaN or infinity.

    Parameters
    ----------
    tensors : dict of str to Tensor
        Tensors by name.
    allowed : iterable of str
        Names of tensors that may, by their last part.
    """
    permitted = set(allowed)
    return [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and name.rpartition(".")[2] not in permitted and not _is_finite(tensor.detach())
    ]


def _is_finite(tensor: Tensor) -> bool:
    if tensor.layout != torch.strided:  # the zeros that are not stored are finite
        tensor = tensor._values() if tensor.layout == torch.sparse_coo else tensor.values()
    if not tensor.numel():
        return True
    # the extremes are NaN where one value is; unlike isfinite() they need no memory of the tensor's size
    extremes = (tensor if tensor.dtype.itemsize > 1 else tensor.float()).aminmax()
    return all(bool(extreme.isfinite()) for extreme in extremes)


def refuse_non_finite(tensors: dict[str, Tensor], allowed: Iterable[str] = ()) -> None:
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


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
