"""Which form of torch's optimisers a training takes, and the state that one may go on from."""

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from moeapps.core.errors import FileFormatError

__all__ = ["fused_where_possible", "with_checked_state"]

Opt = TypeVar("Opt", bound=torch.optim.Optimizer)


def fused_where_possible(parameters: Iterable[nn.Parameter]) -> dict[str, Any]:
    """Arguments for ``torch.optim.Adam`` and ``AdamW``: the fused form for plain floating parameters on the CPU.

    There torch's default is a loop of about fifteen small operators per parameter; fused, a step is one call per dtype.
    The numbers are the same up to rounding. Elsewhere torch's own choice is left alone: on CUDA a fused optimiser
    cannot be combined with gradient clipping under 16-bit mixed precision.

    Parameters
    ----------
    parameters : iterable of Parameter
        What the optimiser will move.
    """
    kinds = (torch.float32, torch.float64)
    plain = all(type(p) is nn.Parameter and p.device.type == "cpu" and p.dtype in kinds for p in parameters)
    return {"fused": True} if plain else {}


def with_checked_state(optimizer: Opt, module: nn.Module) -> Opt:
    """Let ``load_state_dict`` of an Adam or AdamW refuse a state whose tensors are not of the parameters' shapes.

    torch does not compare them, and the fused form then reads and writes beyond their memory.

    Parameters
    ----------
    optimizer : Optimizer
        Changed in place.
    module : Module
        Where the parameters have names, for messages.

    Returns
    -------
    Optimizer
        The same one. Its ``load_state_dict`` raises FileFormatError, naming the parameter, before it changes anything.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}

    def check(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        # torch itself refuses other numbers of groups or parameters, after this
        for own, group in zip(optimizer.param_groups, state["param_groups"], strict=False):
            for parameter, key in zip(own["params"], group["params"], strict=False):
                for entry, value in state["state"].get(key, {}).items():
                    if isinstance(value, Tensor) and (problem := _problem(entry, value, parameter)):
                        name = names.get(id(parameter), f"number {key}")
                        raise FileFormatError(
                            f"the optimiser's state does not fit the model: {entry} of {name} {problem}"
                        )

    optimizer.register_load_state_dict_pre_hook(check)
    return optimizer


def _problem(entry: str, value: Tensor, parameter: Tensor) -> str | None:
    if entry == "step":
        return None if value.numel() == 1 else f"must be one number, got the shape {tuple(value.shape)}"
    if value.shape != parameter.shape:
        return f"has the shape {tuple(value.shape)}, the parameter {tuple(parameter.shape)}"
    if not value.is_contiguous() and value.stride() != parameter.stride():
        return f"lies in memory by the strides {value.stride()}, the parameter by {parameter.stride()}"
    return None
