"""Compare weights with the model that they are meant for, without importing Lightning."""

import os

import torch

from moeapps.core.errors import FileFormatError

__all__ = ["check_state_dict"]


def check_state_dict(
    model: torch.nn.Module, state: dict[str, torch.Tensor], source: str | os.PathLike[str], prefix: str = ""
) -> None:
    """Compare names and shapes of a state dict with a model before loading it.

    Raises
    ------
    FileFormatError
        Naming the first missing, unexpected and mismatched entries, with both shapes.
    """
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    given = {name.removeprefix(prefix): tensor.shape for name, tensor in state.items()}
    complaints = [f"missing {name} {tuple(own[name])}" for name in own if name not in given][:3]
    complaints += [f"unexpected {name} {tuple(given[name])}" for name in given if name not in own][:3]
    complaints += [
        f"{name} is {tuple(given[name])} in the file and {tuple(own[name])} in the model"
        for name in own
        if name in given and own[name] != given[name]
    ][:3]
    if complaints:
        raise FileFormatError(f"{source} does not fit {type(model).__name__}: {'; '.join(complaints)}")
