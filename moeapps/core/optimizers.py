"""Which form of torch's optimisers a training takes."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

__all__ = ["fused_where_possible"]


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
