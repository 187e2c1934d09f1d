"""Which experts a task uses, by the rule of ESFT.

Shapes: N tokens, E experts, k experts per token.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from moeapps.core.checks import check_fraction, check_one_of
from moeapps.core.errors import DataError
from moeapps.core.expert_use import ExpertUse, measure_use, moe_layers

__all__ = ["relevant_experts"]

Score = Literal["gate", "token"]


def relevant_experts(
    model: nn.Module,
    data: Any,
    share: float = 0.3,
    *,
    score: Score = "gate",
    inputs: Callable[[Any], Any] | None = None,
) -> dict[str, tuple[int, ...]]:
    r"""The experts that carry most of the load of some data, per layer (ESFT, Wang et al. 2024, section 3.2).

    The score of an expert is its mean gate value over tokens (eq. 5), or the fraction of choices that fell on it
    (eq. 6), divided by the sum over the routed experts. Of each layer the fewest experts are taken whose scores
    together reach ``share`` (eq. 7),

    .. math:: \sum_{e \in S} R_e \ge p

    Experts that take every token (shared experts) are not counted and not taken.

    Parameters
    ----------
    model : Module
        A network with MoE layers.
    data : Tensor, DataLoader, or iterable of batches
        What the task looks like: a few hundred samples are enough. A tuple of a batch is passed as several arguments,
        unless ``inputs`` takes out what the network wants.
    share : float, default=0.3
        Fraction p of the load that the experts shall carry, above 0 and at most 1.
    score : {"gate", "token"}, default="gate"
        ``"gate"``: mean gate value; ``"token"``: how often an expert is chosen.
    inputs : callable, optional
        From a batch to the network's input: ``lambda batch: batch[0]`` for a loader of inputs and targets.

    Returns
    -------
    dict of str to tuple of int
        Experts of each layer, by its name, in increasing order; for
        :func:`~moeapps.core.tuning.freezing.freeze_except`.

    Raises
    ------
    ConfigError
        If there is no MoE layer, or an argument is impossible.
    DataError
        If there is no data.
    """
    check_fraction(share=share)
    check_one_of("score", score, ("gate", "token"))
    layers = moe_layers(model)
    use = measure_use(model, _batches(model, data, inputs))
    return {name: _carriers(use[name], layer.router.always_on, share, score) for name, layer in layers.items()}


def _carriers(use: ExpertUse, always_on: int, share: float, score: Score) -> tuple[int, ...]:
    load = (use.weight if score == "gate" else use.activation)[always_on:].double()
    total = load.sum()
    if not bool(total > 0):
        raise DataError("no routed expert was chosen by any token: the data says nothing of them")
    ordered, experts = (load / total).sort(descending=True, stable=True)
    # the sums of all experts may end a rounding error below 1
    count = int((ordered.cumsum(0) < share - 1e-9).sum()) + 1
    return tuple(sorted(e + always_on for e in experts[:count].tolist()))


def _batches(model: nn.Module, data: Any, inputs: Callable[[Any], Any] | None) -> Iterator[Any]:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    batches: Iterable[Any] = [data] if isinstance(data, Tensor) else data
    for batch in batches:
        yield _moved(batch if inputs is None else inputs(batch), device)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple | list):
        return tuple(_moved(part, device) for part in value)
    return value
