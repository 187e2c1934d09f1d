"""How the tabular network is trained: weighted loss, one optimiser, a cosine schedule."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from moeapps.core.checks import check_at_least_zero, check_one_of
from moeapps.core.errors import ConfigError
from moeapps.core.losses import consistency_loss
from moeapps.core.module import MoEModule
from moeapps.core.routers import Router
from moeapps.tables.network import TabularMoE

__all__ = ["TabularModule"]


class TabularModule(MoEModule):
    r"""Weighted cross-entropy or squared error, :math:`\sum_n w_n l_n / \sum_n w_n`, plus the routers' losses.

    Where a router asks for two draws per step (:class:`~moeapps.core.routers.ThorRouter`), both outputs are trained and
    their consistency loss is added.

    Args:
        model: The network.
        task: ``"classification"`` (integer targets) or ``"regression"`` (standardised targets).
        lr: Learning rate of AdamW.
        weight_decay: Its weight decay.
        schedule: ``"cosine"`` (to a tenth of the rate over all epochs) or ``"constant"``.

    Raises:
        ConfigError: If an argument is impossible.
    """

    def __init__(
        self,
        model: TabularMoE,
        task: Literal["classification", "regression"] = "classification",
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        schedule: Literal["cosine", "constant"] = "cosine",
    ) -> None:
        super().__init__()
        check_one_of("task", task, ("classification", "regression"))
        check_one_of("schedule", schedule, ("cosine", "constant"))
        check_at_least_zero(lr=lr, weight_decay=weight_decay)
        if lr == 0:
            raise ConfigError("lr must be above 0, got 0")
        self.model, self.task, self.lr, self.weight_decay, self.schedule = model, task, lr, weight_decay, schedule
        routers = [module for module in model.modules() if isinstance(module, Router)]
        self.optimizer_state: dict[str, Any] | None = None  # what an earlier training left, for one that goes on
        self.draws_per_step = max(router.draws_per_step for router in routers)
        self.consistency_weight = max(router.consistency_weight for router in routers)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of one batch ``(numbers, codes, target, weight)``."""
        numbers, codes, target, weight = batch
        out = self.model(numbers, codes)
        terms = {"task": self.task_loss(out, target, weight)}
        if self.draws_per_step == 2:
            again = self.model(numbers, codes)
            terms["task"] = 0.5 * (terms["task"] + self.task_loss(again, target, weight))
            if self.task == "classification":
                apart = consistency_loss(out, again, weight)
            else:
                apart = _weighted((out - again).square().mean(dim=1), weight)
            terms["consistency"] = self.consistency_weight * apart
        return self.total_loss(terms, batch_size=len(target), token_weight=weight)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log ``val/loss``."""
        numbers, codes, target, weight = batch
        self.log("val/loss", self.task_loss(self.model(numbers, codes), target, weight), batch_size=len(target))

    def task_loss(self, out: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Weighted mean of the rows' losses."""
        if self.task == "classification":
            return _weighted(F.cross_entropy(out, target, reduction="none"), weight)
        return _weighted((out - target).square().mean(dim=1), weight)

    def configure_optimizers(self) -> Any:
        """AdamW; weight decay on matrices only, not on biases and norms."""
        decayed = [p for p in self.parameters() if p.ndim > 1]
        others = [p for p in self.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=self.lr)
        if self.schedule == "constant":
            if self.optimizer_state is not None:
                optimizer.load_state_dict(self.optimizer_state)
            return optimizer
        return self.with_cosine_schedule(optimizer)

    def on_train_end(self) -> None:
        """Keep the optimiser's state for a training that goes on."""
        if self.schedule == "constant":
            optimizer = self.optimizers(use_pl_optimizer=False)
            assert isinstance(optimizer, torch.optim.Optimizer)
            self.optimizer_state = optimizer.state_dict()


def _weighted(rows: Tensor, weight: Tensor) -> Tensor:
    weight = weight.to(rows.dtype)
    return (rows * weight).sum() / weight.sum()
