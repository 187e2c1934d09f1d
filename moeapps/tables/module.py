"""Training of the tabular network: weighted loss, AdamW, a cosine schedule."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from moeapps.core.checks import check_at_least_zero, check_below_one, check_one_of
from moeapps.core.config import Configurable, takes
from moeapps.core.errors import ConfigError
from moeapps.core.losses import consistency_loss, squared_difference
from moeapps.core.module import MoEModule
from moeapps.core.optimizers import fused_where_possible, with_checked_state
from moeapps.core.search import Distribution
from moeapps.tables.defaults import SEARCH
from moeapps.tables.network import TabularMoE

__all__ = ["TabularModule", "TabularTraining"]

HUBER = 3.0
"""Standardised error from which Huber's loss is linear.

Larger than the usual 1.345: nearly all rows without outliers keep the squared error, whose minimum is the mean.
"""


@dataclass(frozen=True)
class TabularTraining:
    """Settings of :class:`TabularModule`.

    Parameters
    ----------
    task : {"classification", "regression"}, default="classification"
        Whether targets are class codes or standardised numbers.
    lr : float, default=0.001
        Learning rate of AdamW, above 0.
    weight_decay : float, default=0.01
        Weight decay of AdamW, on matrices only.
    schedule : {"cosine", "constant"}, default="cosine"
        Whether the rate falls along a cosine over all epochs.
    warmup : float, default=0.0
        Part of the steps over which the rate first rises from a tenth; below 1.
    final_lr : float, default=0.1
        Part of the rate that is left at the end of the cosine.
    beta2 : float, default=0.999
        Decay of AdamW's mean of squared gradients, below 1.
    label_smoothing : float, default=0.0
        In classification, part of a label's weight that is spread evenly over all classes in training; below 1.
    loss : {"squared", "huber"}, default="squared"
        In regression, squared error, or Huber's loss: squared up to 3 (standardised), linear beyond, so that outliers
        pull with a bounded force.
    """

    task: Literal["classification", "regression"] = "classification"
    lr: float = 1e-3
    weight_decay: float = 1e-2
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: float = 0.0
    final_lr: float = 0.1
    beta2: float = 0.999
    label_smoothing: float = 0.0
    loss: Literal["squared", "huber"] = "squared"


class TabularModule(Configurable, MoEModule):
    r"""Weighted cross-entropy, squared error or Huber's loss, plus the routers' losses.

    The first is :math:`\sum_n w_n l_n / \sum_n w_n` over the rows' losses.

    Where a router makes two draws per step (:class:`~moeapps.core.routers.ThorRouter`), both outputs are trained and
    their consistency loss is added.

    Parameters
    ----------
    model : TabularMoE
        The network.
    config : TabularTraining
        Given as keyword arguments, one per field.

    Raises
    ------
    ConfigError
        If an argument is impossible.
    """

    _search_space: ClassVar[Mapping[str, Distribution]] = SEARCH

    @takes(TabularTraining)
    def __init__(self, model: TabularMoE, config: TabularTraining) -> None:
        super().__init__()
        self.model = model
        self.prepare(config)

    def prepare(self, config: TabularTraining) -> None:
        """Check the settings of the training, and take them over."""
        check_one_of("task", config.task, ("classification", "regression"))
        check_one_of("schedule", config.schedule, ("cosine", "constant"))
        check_one_of("loss", config.loss, ("squared", "huber"))
        check_at_least_zero(lr=config.lr, weight_decay=config.weight_decay)
        check_below_one(warmup=config.warmup, beta2=config.beta2, label_smoothing=config.label_smoothing)
        check_at_least_zero(final_lr=config.final_lr)
        if config.lr == 0:
            raise ConfigError("lr must be above 0, got 0")
        self.task, self.lr, self.weight_decay = config.task, config.lr, config.weight_decay
        self.schedule, self.warmup, self.final_lr = config.schedule, config.warmup, config.final_lr
        self.beta2, self.label_smoothing, self.loss = config.beta2, config.label_smoothing, config.loss
        self.optimizer_state: dict[str, Any] | None = None  # of the last call of partial_fit

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of one batch ``(numbers, codes, target, weight)``."""
        numbers, codes, target, weight = batch
        members = self.model.num_members  # each learns from every row
        target, repeated = target.repeat_interleave(members, 0), weight.repeat_interleave(members, 0)

        def run() -> tuple[Tensor, dict[str, Tensor]]:
            out = self.model.member_outputs(numbers, codes).flatten(0, 1)
            return out, {"task": self.task_loss(out, target, repeated, self.label_smoothing)}

        distance = consistency_loss if self.task == "classification" else squared_difference
        terms = self.by_draws(run, lambda first, second: distance(first, second, repeated))
        return self.total_loss(terms, batch_size=len(weight), token_weight=repeated)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log ``val/loss``."""
        numbers, codes, target, weight = batch
        self.log("val/loss", self.task_loss(self.model(numbers, codes), target, weight), batch_size=len(target))

    def task_loss(self, out: Tensor, target: Tensor, weight: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Weighted mean of the rows' losses."""
        if self.task == "classification":
            rows = F.cross_entropy(out, target, reduction="none", label_smoothing=label_smoothing)
            return _weighted(rows, weight)
        if self.loss == "huber":  # twice Huber's, so that it is the squared error where that is small
            target = target.to(out.dtype)
            return _weighted(2 * F.huber_loss(out, target, reduction="none", delta=HUBER).mean(dim=1), weight)
        return _weighted((out - target).square().mean(dim=1), weight)

    def configure_optimizers(self) -> Any:
        """AdamW; weight decay on matrices only, not on biases, norms and the members' scales."""
        scales = [] if self.model.members is None else [id(p) for p in self.model.members.parameters()]
        decayed = [p for p in self.parameters() if p.ndim > 1 and id(p) not in scales]
        others = [p for p in self.parameters() if p.ndim <= 1 or id(p) in scales]
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": others, "weight_decay": 0.0}]
        fused = fused_where_possible(self.parameters())
        groups = [group for group in groups if group["params"]]
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=(0.9, self.beta2), **fused)
        with_checked_state(optimizer, self)
        if self.schedule == "constant":
            if self.optimizer_state is not None:
                optimizer.load_state_dict(self.optimizer_state)
            return optimizer
        return self.with_cosine_schedule(optimizer, self.warmup, self.final_lr)

    def on_train_end(self) -> None:
        """Keep the optimiser's state for the next call of ``partial_fit``."""
        if self.schedule == "constant":
            optimizer = self.optimizers(use_pl_optimizer=False)
            assert isinstance(optimizer, torch.optim.Optimizer)
            self.optimizer_state = optimizer.state_dict()


def _weighted(rows: Tensor, weight: Tensor) -> Tensor:
    weight = weight.to(rows.dtype)
    return (rows * weight).sum() / weight.sum()
