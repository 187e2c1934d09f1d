"""Auxiliary losses and the routers' own updates, for training loops and LightningModules that know of no experts."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from moeapps.core.checks import check_at_least_zero
from moeapps.core.errors import ConfigError
from moeapps.core.layer_losses import SampleGroups, losses_of, sum_of_terms
from moeapps.core.module import MoEModule
from moeapps.core.routers import Router
from moeapps.core.statistics import routed_layers

__all__ = ["MoELosses", "SampleGroups", "auxiliary_losses", "collect_losses", "update_routers"]


def auxiliary_losses(
    model: nn.Module, token_weight: Tensor | None = None, sample_groups: SampleGroups | None = None
) -> dict[str, Tensor]:
    """Weighted auxiliary losses of the last forward pass, keyed ``<layer>/<name>``.

    Parameters
    ----------
    model : Module
        A network with MoE layers.
    token_weight : Tensor, optional
        ``(N,)`` how much each token counts; one each when None.
    sample_groups : Tensor or sequence of int, optional
        Group of each sample, from 0, for experts in groups (:func:`~moeapps.core.tuning.low_rank.lora_experts`).

    Raises
    ------
    ConfigError
        If the network has no MoE layer, none of them has run yet, or groups are given without experts in groups, or the
        other way round.
    DataError
        If ``sample_groups`` are no groups of the experts, or not one per sample.
    """
    layers = routed_layers(model)
    if not layers:
        raise ConfigError(f"there is no MoE layer in this {type(model).__name__}: its loss is the task's alone")
    if all(layer.last_routing is None for layer in layers.values()):
        raise ConfigError("no MoE layer has run: call the network first, then collect the losses of that pass")
    return losses_of(layers, token_weight, sample_groups)


def collect_losses(
    model: nn.Module, token_weight: Tensor | None = None, sample_groups: SampleGroups | None = None
) -> Tensor:
    """Sum of the auxiliary losses of the last forward pass, to be added to the task's loss.

    The factors are those of the layers (``balance_weight``, ``z_weight``). Each pass that is trained on has losses of
    its own: under gradient accumulation they are collected after every pass. After the optimiser's step
    :func:`update_routers` does what routers learn without gradients.

    Parameters
    ----------
    model : Module
        A network with MoE layers.
    token_weight : Tensor, optional
        ``(N,)`` how much each token counts; one each when None.
    sample_groups : Tensor or sequence of int, optional
        Group of each sample, from 0, for experts in groups (:func:`~moeapps.core.tuning.low_rank.lora_experts`).

    Returns
    -------
    Tensor
        Scalar; zero where the routers have no losses.

    Raises
    ------
    ConfigError
        If the network has no MoE layer, none of them has run yet, or groups are given without experts in groups, or the
        other way round.
    DataError
        If ``sample_groups`` are no groups of the experts, or not one per sample.

    Examples
    --------
    >>> import torch
    >>> from moeapps.core import MoE
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), MoE(8, num_experts=4))
    >>> loss = network(torch.randn(3, 4)).square().mean() + collect_losses(network)
    >>> loss.backward()
    """
    losses = auxiliary_losses(model, token_weight, sample_groups)
    if losses:
        return sum_of_terms(losses)
    return next((p for p in model.parameters()), torch.zeros(())).new_zeros(())


def update_routers(model: nn.Module, progress: float = 0.0) -> None:
    """Update what routers learn without gradients: balancing bias, growing k. Call it after the optimiser's step.

    Parameters
    ----------
    model : Module
        A network with MoE layers.
    progress : float, default=0.0
        Fraction of the training that is done, 0 to 1; only routers that change over the training use it.
    """
    for layer in routed_layers(model).values():
        layer.update(progress)


class MoELosses(L.Callback):
    """Lightning callback that trains the experts of any LightningModule, which need not know of them.

    It adds the auxiliary losses of all MoE layers to the loss that ``training_step`` returns, before Lightning divides
    it for gradient accumulation and scales it for mixed precision, and updates what routers learn without gradients
    after every step of the optimiser. The losses are logged as ``moe/<name>``, summed over the layers.

    Parameters
    ----------
    weight : float, default=1.0
        Factor of the sum of the losses, on top of the layers' own.
    log : bool, default=True
        Whether to log them.
    sample_groups : callable, optional
        From a batch to the group of each of its samples, for experts in groups
        (:func:`~moeapps.core.tuning.low_rank.lora_experts`).

    Raises
    ------
    ConfigError
        When the training begins, if the module has no MoE layer, adds the losses itself (a
        :class:`~moeapps.core.module.MoEModule`), optimises by hand, or has a router that compares two passes (THOR).
    """

    def __init__(
        self, weight: float = 1.0, log: bool = True, sample_groups: Callable[[Any], SampleGroups] | None = None
    ) -> None:
        check_at_least_zero(weight=weight)
        if sample_groups is not None and not callable(sample_groups):
            raise ConfigError(
                f"sample_groups must be a function of the batch, got {type(sample_groups).__name__}: "
                "sample_groups=lambda batch: batch[2]"
            )
        self.weight, self.log, self.sample_groups = weight, log, sample_groups
        self._step = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse what the losses cannot be added to, and put them into the training step."""
        if isinstance(pl_module, MoEModule):
            raise ConfigError(f"{type(pl_module).__name__} adds its auxiliary losses itself: leave MoELosses out")
        if not pl_module.automatic_optimization:
            raise ConfigError(
                f"{type(pl_module).__name__} optimises by hand: add collect_losses(self) to its loss, and call "
                "update_routers(self) after the optimiser's step"
            )
        if not routed_layers(pl_module):
            raise ConfigError(f"there is no MoE layer in this {type(pl_module).__name__}: leave MoELosses out")
        if any(m.draws_per_step > 1 for m in pl_module.modules() if isinstance(m, Router)):
            raise ConfigError("a router compares two passes of a step (THOR), which this callback cannot run")
        self._step = trainer.global_step
        # of the instance: the class may have other instances, whose networks have no experts
        pl_module.training_step = self._with_losses(pl_module, pl_module.training_step)  # type: ignore[method-assign]

    def _with_losses(self, pl_module: L.LightningModule, step: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(step)
        def training_step(*args: Any, **kwargs: Any) -> Any:
            output = step(*args, **kwargs)
            if output is None:  # Lightning skips such a batch
                return None
            batch = args[0] if args else kwargs.get("batch")
            groups = None if self.sample_groups is None else self.sample_groups(batch)
            losses = auxiliary_losses(pl_module, sample_groups=groups)
            if not losses:
                return output
            added = self.weight * sum_of_terms(losses)
            if self.log:
                pl_module.log_dict(_by_kind(losses), on_step=False, on_epoch=True)
            if isinstance(output, Mapping):
                return {**output, "loss": output["loss"] + added}
            return output + added

        return training_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the routers, if this batch ended with a step of the optimiser; checkpoints are written after it."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        update_routers(pl_module, _progress(trainer, batch_idx))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the module its own training step back."""
        vars(pl_module).pop("training_step", None)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the module its own training step back."""
        vars(pl_module).pop("training_step", None)


def _by_kind(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    kinds: dict[str, Tensor] = {}
    for name, value in losses.items():
        kind = f"moe/{name.rpartition('/')[2]}"
        kinds[kind] = kinds[kind] + value.detach() if kind in kinds else value.detach()
    return kinds


def _progress(trainer: L.Trainer, batch_idx: int) -> float:
    """Fraction of the training that is done; 0 for a training without an end."""
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        return (trainer.current_epoch + (batch_idx + 1) / trainer.num_training_batches) / trainer.max_epochs
    return trainer.global_step / trainer.max_steps if trainer.max_steps > 0 else 0.0
