"""Compare weights with the model that they are meant for, without importing Lightning."""

import os

import torch

from moeapps.core.errors import FileFormatError

__all__ = ["check_state_dict"]


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
