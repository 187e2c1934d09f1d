"""How data uses the experts of a model: what pruning and merging go by.

Shapes: E experts.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.errors import ConfigError, DataError
from moeapps.core.layer import MoE
from moeapps.core.routers.merged import MergedRouter
from moeapps.core.routing import Routing

__all__ = ["ExpertUse", "measure_use", "moe_layers"]


@dataclass(frozen=True)
class ExpertUse:
    """How the tokens of some data use the experts of one layer.

    Attributes
    ----------
    weight : Tensor
        ``(E,)`` sum of the weights that tokens gave each expert, divided by the number of tokens. On the data of one
        task it is the task-conditioned score of PreMoe (2025).
    similarity : Tensor
        ``(E, E)`` cosine of the router's logits over tokens: experts that the same tokens prefer (M-SMoE, Li et al.
        2024, section 3). That of experts without logits, those that take every token, is 0 with all others.
    frequency : Tensor, optional
        ``(E,)`` how often each expert was chosen, as a fraction of all choices. Merging weighs by it; by ``weight``
        where it is None.
    """

    weight: Tensor
    similarity: Tensor
    frequency: Tensor | None = None

    @property
    def activation(self) -> Tensor:
        """``(E,)`` how often each expert was chosen, or the weights where that was not counted."""
        return self.weight if self.frequency is None else self.frequency


@torch.no_grad()
def measure_use(model: nn.Module, batches: Iterable[Any]) -> dict[str, ExpertUse]:
    """Measure how data uses the experts.

    Parameters
    ----------
    model : Module
        A layer or a model with :class:`~moeapps.core.layer.MoE` layers.
    batches : iterable of Any
        Inputs; a tuple is passed as several arguments.

    Returns
    -------
    dict of str to ExpertUse
        The use of each layer, by its name in the model (``""`` for the layer itself).

    Raises
    ------
    DataError
        If there is not a single valid token.
    """
    probe = copy.deepcopy(model).eval()
    layers = moe_layers(probe)
    weight = {name: torch.zeros(layer.num_experts, dtype=torch.float64) for name, layer in layers.items()}
    counts = {name: torch.zeros_like(total) for name, total in weight.items()}
    logits: dict[str, list[Tensor]] = {name: [] for name in layers}
    for batch in batches:
        probe(*batch) if isinstance(batch, tuple | list) else probe(batch)
        for name, layer in layers.items():
            for routing in layer.routings:  # one per call, where several blocks share the layer
                ok = routing.valid[routing.token]
                total = torch.zeros(layer.num_experts + 1, dtype=torch.float64, device=ok.device)
                total = total.index_add(0, routing.expert[ok], routing.weight[ok].double())
                weight[name] += total[:-1].cpu()
                counts[name] += routing.valid_counts().double().cpu()
                logits[name].append(_scores(routing, layer)[routing.valid].double().cpu())
    use = {}
    for name in layers:
        every = torch.cat(logits[name]) if logits[name] else torch.zeros(0, 1)
        if len(every) == 0:
            raise DataError(f"layer {name!r} saw no valid token: its use cannot be measured")
        frequency = counts[name] / counts[name].sum().clamp(min=1)
        use[name] = ExpertUse(weight[name] / len(every), _cosine(every, layers[name].num_experts), frequency)
    return use


def _scores(routing: Routing, layer: MoE) -> Tensor:
    """What the router says of each expert: logits, of the routed ones only where some take every token.

    Where there is no logit per expert (merged or null experts), the logarithms of the probabilities.
    """
    counts = (routing.num_experts, routing.num_experts - layer.router.always_on)
    if isinstance(layer.router, MergedRouter) or routing.logits.shape[1] not in counts:
        return routing.probabilities.clamp(min=1e-12).log()
    return routing.logits


def _cosine(scores: Tensor, num_experts: int) -> Tensor:
    """Cosine ``(E, E)`` of the columns of scores ``(N, S)``; the first E - S experts have none."""
    scored = F.normalize(scores, dim=0)
    similarity = torch.eye(num_experts, dtype=scores.dtype)
    first = num_experts - scored.shape[1]
    similarity[first:, first:] = scored.t() @ scored
    return similarity.nan_to_num()


def moe_layers(model: nn.Module) -> dict[str, MoE]:
    """Every MoE layer inside a model, by its name.

    Raises
    ------
    ConfigError
        If there is none.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, MoE)}
    if not layers:
        raise ConfigError(f"there is no MoE layer in this {type(model).__name__}")
    return layers
