"""Routing statistics: whether every expert is used, and how sure the router is.

Shapes: N tokens, E experts, G groups.
"""

from collections.abc import Sequence
from typing import Any

import lightning as L
import pandas as pd
import torch
from torch import Tensor
from torchmetrics import Metric

from moeapps.core.layer import RoutedLayer
from moeapps.core.routing import Routing
from moeapps.core.views import Map

__all__ = ["GroupCounts", "RoutingMonitor", "RoutingStatistics", "load_by_group", "routed_layers"]


class RoutingStatistics(Metric):
    """Statistics of one layer's routing, accumulated over batches and summed over ranks.

    ``compute()`` returns a dictionary with

    - ``load`` ``(E,)``: fraction of assignments each expert got (sums to 1),
    - ``importance`` ``(E,)``: mean router probability of each expert (sums to 1; less with null experts),
    - ``entropy``: mean entropy of the router's probabilities in nats, 0 to log E,
    - ``max_load``: largest load times E (1 is perfect balance),
    - ``dropped``: fraction of assignments that capacity refused,
    - ``dead_experts``: number of experts without a single assignment,
    - ``coactivation`` ``(E, E)``: fraction of tokens that use both experts; the diagonal is the fraction that uses one,
    - ``invalid_tokens``: number of tokens with NaN or infinite scores; they count in nothing else.

    Before the first update all of them are zero, except ``dead_experts``, which is E.

    Parameters
    ----------
    num_experts : int
        Number of experts E.

    Examples
    --------
    >>> import torch
    >>> from moeapps.core import TopKRouter
    >>> statistics = RoutingStatistics(num_experts=4)
    >>> statistics.update(TopKRouter(dim=8, num_experts=4)(torch.randn(100, 8)))
    >>> round(float(statistics.compute()["load"].sum()), 5)
    1.0
    """

    full_state_update = False
    assigned: Tensor
    probability: Tensor
    entropy: Tensor
    tokens: Tensor
    dropped: Tensor
    invalid: Tensor
    together: Tensor

    def __init__(self, num_experts: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_experts = num_experts
        for name, shape in (("assigned", num_experts), ("probability", num_experts)):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("together", torch.zeros(num_experts, num_experts, dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("entropy", "tokens", "dropped", "invalid"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, routing: Routing) -> None:
        """Add the routing of one forward pass; nothing is read back to the host."""
        if routing.num_experts != self.num_experts:
            raise ValueError(f"num_experts is {self.num_experts}, got a routing over {routing.num_experts}")
        valid = routing.valid
        p = routing.probabilities.detach().double() * valid[:, None]
        used = (routing.used() & valid[:, None]).to(routing.probabilities.dtype)
        self.together += used.t() @ used
        self.assigned += routing.valid_counts().detach()
        self.probability += p.sum(0)
        self.entropy += torch.special.entr(p).sum()
        self.tokens += valid.sum()
        self.invalid += (~valid).sum()
        self.dropped += routing.dropped

    def compute(self) -> dict[str, Tensor]:
        """Return the statistics of everything seen since the last reset, in float32."""
        tokens, assigned = self.tokens.clamp(min=1), self.assigned.sum()
        load = self.assigned / assigned.clamp(min=1)
        result = {
            "load": load,
            "importance": self.probability / tokens,
            "entropy": self.entropy / tokens,
            "max_load": load.max() * self.num_experts,
            "dropped": self.dropped / (assigned + self.dropped).clamp(min=1),
            "dead_experts": (self.assigned == 0).sum(),
            "coactivation": self.together / tokens,
            "invalid_tokens": self.invalid,
        }
        return {name: value.float() for name, value in result.items()}


def load_by_group(routing: Routing, groups: Tensor, num_groups: int) -> Tensor:
    """Which experts each group of tokens (a class, a time, a task) uses.

    Parameters
    ----------
    routing : Routing
        A routing of N tokens.
    groups : Tensor
        ``(N,)`` int64, the group of each token, 0 to G - 1.
    num_groups : int
        Number of groups G.

    Returns
    -------
    Tensor
        ``(G, E)`` fraction of each group's assignments that each expert got; zero for a group without any.
    """
    counts = _count_by_group(routing, groups, num_groups)
    return counts / counts.sum(dim=1, keepdim=True).clamp(min=1)


def _count_by_group(routing: Routing, groups: Tensor, num_groups: int) -> Tensor:
    used = routing.used() & routing.valid[:, None]
    counts = torch.zeros(num_groups, routing.num_experts, dtype=torch.float64, device=used.device)
    return counts.index_add(0, groups, used.to(torch.float64))


class GroupCounts:
    """Assignments of every routed layer by group of samples and expert, added up over batches.

    Parameters
    ----------
    names : sequence of Any
        Names of the groups.
    """

    def __init__(self, names: Sequence[Any]) -> None:
        self.names = [str(name) for name in names]
        self.counts: dict[str, Tensor] = {}

    def update(self, module: torch.nn.Module, groups: Tensor) -> None:
        """Add the last forward pass of a module, whose batch had ``groups`` ``(B,)``; tokens follow their sample."""
        for name, layer in routed_layers(module).items():
            for routing in layer.routings:  # one per call, where several blocks share the layer
                if len(routing.valid) % max(len(groups), 1):
                    continue
                tokens = groups.repeat_interleave(len(routing.valid) // max(len(groups), 1))
                found = _count_by_group(routing, tokens, len(self.names))
                self.counts[name] = self.counts.get(name, 0) + found

    def maps(self, what: str) -> list[Map]:
        """One map per layer: which share of a group's assignments each expert gets."""
        found = []
        for layer, counts in self.counts.items():
            seen = counts.sum(dim=1) > 0
            load = (counts[seen] / counts[seen].sum(dim=1, keepdim=True)).cpu()
            names = [name for name, there in zip(self.names, seen.tolist(), strict=True) if there]
            found.append(Map.of(f"experts by {what}: {layer}", pd.DataFrame(load.numpy(), index=names), what))
        return found


def routed_layers(module: torch.nn.Module) -> dict[str, RoutedLayer]:
    """Every routed layer inside ``module`` by its name; a layer that is used in two places is listed once."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, RoutedLayer)}


class RoutingMonitor(L.Callback):
    """Log the routing statistics of every routed layer, once per epoch, in training and in validation.

    Keys are ``moe/<layer>/<statistic>`` for training and ``val/moe/<layer>/<statistic>`` for validation, with one key
    per expert for ``load`` and ``importance`` (``.../load/3``). Only totals are logged, never the choice of a single
    sample, which would reveal its content.

    Parameters
    ----------
    per_expert : bool, default=True
        Whether load and importance of each expert are logged too.
    """

    def __init__(self, per_expert: bool = True) -> None:
        self.per_expert = per_expert
        self._statistics: dict[str, RoutingStatistics] = {}
        self._counted: dict[str, Routing] = {}

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin an epoch of training with empty statistics."""
        self._statistics = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the routing of a training step."""
        self._update(pl_module, "")
        if trainer.is_last_batch:
            self._log(pl_module, "")

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin a validation run with empty statistics."""
        self._statistics = {name: value for name, value in self._statistics.items() if not name.startswith("val/")}

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the routing of a validation step."""
        self._update(pl_module, "val/")

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log what validation saw."""
        self._log(pl_module, "val/")

    def _update(self, pl_module: L.LightningModule, stage: str) -> None:
        for name, layer in routed_layers(pl_module).items():
            routing = layer.last_routing
            if routing is None or routing is self._counted.get(name):
                continue  # the layer took no part in this step
            self._counted[name] = routing
            key = f"{stage}moe/{name}"
            if key not in self._statistics:
                self._statistics[key] = RoutingStatistics(routing.num_experts).to(pl_module.device)
            for each in layer.routings:  # one per call, where several blocks share the layer
                self._statistics[key].update(each)

    def _log(self, pl_module: L.LightningModule, stage: str) -> None:
        values: dict[str, Tensor] = {}
        for key, metric in self._statistics.items():
            if not key.startswith(f"{stage}moe/"):
                continue
            for name, value in metric.compute().items():
                if value.ndim == 0:
                    values[f"{key}/{name}"] = value
                elif value.ndim == 1 and self.per_expert:
                    values.update({f"{key}/{name}/{e}": v for e, v in enumerate(value)})
        pl_module.log_dict(values, on_step=False, on_epoch=True, batch_size=1)
