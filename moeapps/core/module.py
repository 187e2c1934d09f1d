"""The LightningModule that every trainable model of moeapps derives from."""

import inspect
import math
from collections.abc import Callable, Collection, Sequence
from traceback import walk_stack
from types import FrameType
from typing import Any, ClassVar, cast

import lightning as L
import torch
from torch import Tensor, nn

from moeapps import registry
from moeapps.core.callbacks import time_used
from moeapps.core.distributed import world_size
from moeapps.core.epoch_means import EpochMeans, EvaluationMeans
from moeapps.core.errors import FileFormatError, NonFiniteError
from moeapps.core.layer_losses import SampleGroups, losses_of, sum_of_terms
from moeapps.core.loading import EpochSampler
from moeapps.core.older import DEFAULTS, DEFAULTS_ENTRY
from moeapps.core.older_networks import as_in_0_1
from moeapps.core.parallel import gather_optimizer_states, scatter_optimizer_states, sharded_parameters
from moeapps.core.routers import Router
from moeapps.core.search import Searchable
from moeapps.core.state_dict import check_state_dict
from moeapps.core.statistics import routed_layers
from moeapps.core.views import Views

__all__ = ["DataDependentModule", "MoEModule"]


class MoEModule(Searchable, L.LightningModule):
    """LightningModule that collects the auxiliary losses of all routed layers inside it.

    A subclass writes ``training_step`` as usual and passes its task loss through :meth:`total_loss`::

        def training_step(self, batch, batch_idx):
            x, y = batch
            return self.total_loss({"task": F.cross_entropy(self(x), y)})

    One whose network may hold any router lets :meth:`by_draws` run it, which does so twice where a router (THOR's) asks
    for it::

        def training_step(self, batch, batch_idx):
            x, y = batch

            def run():
                logits = self(x)
                return logits, {"task": F.cross_entropy(logits, y)}

            return self.total_loss(self.by_draws(run, consistency_loss))
    """

    _as_in_0_1 = False  # whether its routers go on with the defaults of moeapps 0.1
    _own_modules: Sequence[str] = ()  # constructor arguments that are modules, which a checkpoint does not hold

    def keep_arguments(self, arguments: dict[str, Any]) -> None:
        """Save the constructor's arguments as hyperparameters, except modules, whose weights are saved anyway.

        :func:`~moeapps.core.config.takes` calls it; a constructor without it calls ``save_hyperparameters`` itself.
        Arguments that the constructors of subclasses add are saved too, as Lightning does.
        """
        stack = [frame for frame, _ in walk_stack(inspect.currentframe())]
        arguments = arguments | _arguments_of_subclasses(self, stack)
        kept = {name: value for name, value in arguments.items() if not isinstance(value, nn.Module)}
        self._own_modules = sorted(set(arguments) - set(kept))
        # the last frame: from any other one Lightning compares ``kept`` with all arguments on the stack, arrays too
        self.save_hyperparameters(kept, frame=stack[-1])

    def auxiliary_losses(
        self, token_weight: Tensor | None = None, sample_groups: SampleGroups | None = None
    ) -> dict[str, Tensor]:
        """Weighted auxiliary losses of the last forward pass, keyed ``<layer>/<name>``.

        Parameters
        ----------
        token_weight : Tensor, optional
            ``(N,)`` how much each token counts; one each when None.
        sample_groups : Tensor or sequence of int, optional
            ``(S,)`` group of each sample, where low-rank experts are in groups (``lora_experts(expert_groups=)``).
        """
        return losses_of(routed_layers(self), token_weight, sample_groups)

    @property
    def consistency_weight(self) -> float:
        """Largest factor of a consistency loss among the routers; 0 where none draws experts at random."""
        return max((m.consistency_weight for m in self.modules() if isinstance(m, Router)), default=0.0)

    @property
    def draws_per_step(self) -> int:
        """Forward passes of a training step: two where a router compares two random draws of experts."""
        return max((m.draws_per_step for m in self.modules() if isinstance(m, Router)), default=1)

    def by_draws(
        self, run: Callable[[], tuple[Tensor, dict[str, Tensor]]], apart: Callable[[Tensor, Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """Loss terms of a training step, from two draws of experts where a router asks for them (THOR).

        Then each term is the mean of both, and ``consistency`` is added: :attr:`consistency_weight` times how far the
        outputs are apart. Up to a factor of 2 it is the objective of Zuo et al. 2022, eq. 5, who add the two losses up.

        Parameters
        ----------
        run : callable
            Runs the network; returns its outputs and the step's loss terms by name, scalars.
        apart : callable
            From the outputs of both draws to how much they differ, a scalar:
            :func:`~moeapps.core.losses.consistency_loss` for class logits,
            :func:`~moeapps.core.losses.squared_difference` for numbers.

        Returns
        -------
        dict of str to Tensor
            Terms for :meth:`total_loss`.
        """
        outputs, terms = run()
        if self.draws_per_step == 1:
            return terms
        again, others = run()
        mean = {name: 0.5 * (term + others[name]) for name, term in terms.items()}
        return {**mean, "consistency": self.consistency_weight * apart(outputs, again)}

    def optimizer_step(self, epoch: int, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """After the optimiser's step, update what routers learn without gradients (growing k, balancing bias).

        Here and not in ``on_train_batch_end``, where a callback may already have saved the step.
        """
        super().optimizer_step(epoch, batch_idx, *args, **kwargs)
        progress = self._progress(batch_idx)
        for layer in routed_layers(self).values():
            layer.update(progress)

    def _progress(self, batch_idx: int) -> float:
        """Fraction of the training that is done, 0 to 1; 0 for a training without an end."""
        trainer = self.trainer
        if trainer.max_epochs is not None and trainer.max_epochs > 0:
            return (trainer.current_epoch + (batch_idx + 1) / trainer.num_training_batches) / trainer.max_epochs
        return trainer.global_step / trainer.max_steps if trainer.max_steps > 0 else 0.0

    def total_loss(
        self,
        terms: dict[str, Tensor],
        batch_size: int | None = None,
        token_weight: Tensor | None = None,
        sample_groups: SampleGroups | None = None,
    ) -> Tensor:
        """Add up task terms and auxiliary losses, log each as ``train/<term>``, and refuse a non-finite sum.

        Parameters
        ----------
        terms : dict of str to Tensor
            The task's own loss terms by name, scalars.
        batch_size : int, optional
            Rows in the batch, for Lightning's averaging.
        token_weight : Tensor, optional
            ``(N,)`` how much each routed token counts in auxiliary losses; one each when None.
        sample_groups : Tensor or sequence of int, optional
            ``(S,)`` group of each sample, where low-rank experts are in groups (``lora_experts(expert_groups=)``).

        Returns
        -------
        Tensor
            Scalar to call ``backward`` on.

        Raises
        ------
        NonFiniteError
            If the sum is NaN or infinite. The error names the step, the terms to blame and the layers that saw
            non-finite tokens; no weight has been changed by this step.
        """
        every = {**terms, **self.auxiliary_losses(token_weight, sample_groups)}
        loss = sum_of_terms(every)
        self.refuse_non_finite(every, loss)
        self.log_terms(every, loss, batch_size)
        return loss

    def refuse_non_finite(self, terms: dict[str, Tensor], loss: Tensor) -> None:
        """Stop the training at a loss that is NaN or infinite.

        Parameters
        ----------
        terms : dict of str to Tensor
            Loss terms by name, scalars.
        loss : Tensor
            Their sum.

        Raises
        ------
        NonFiniteError
            Naming the step, the terms to blame and the layers that saw non-finite tokens.
        """
        if not bool(loss.isfinite()):
            raise NonFiniteError(self._describe_non_finite(terms))

    def log_terms(self, terms: dict[str, Tensor], loss: Tensor, batch_size: int | None = None) -> None:
        """Log each term as ``train/<term>`` and their sum as ``train/loss``, averaged over the epoch.

        Parameters
        ----------
        terms : dict of str to Tensor
            Loss terms by name, scalars.
        loss : Tensor
            Their sum.
        batch_size : int, optional
            Rows in the batch, for Lightning's averaging.
        """
        logged = {f"train/{name}": term.detach() for name, term in {**terms, "loss": loss}.items()}
        trainer = self._trainer
        if trainer is None or batch_size is None or not trainer.training:  # only Lightning knows the rows of the batch
            self.log_by_rows(logged, batch_size, on_step=False, on_epoch=True)
            return
        means = self._epoch_means()
        means.begin(trainer.current_epoch)
        means.add(logged, batch_size)
        if trainer.is_last_batch:
            self._log_means(means)

    def own_rows(self, stage: str, batch_idx: int, rows: int) -> int:
        """How many rows of an evaluation's batch, the first ones, no other process evaluates too.

        Processes get equally many batches of equally many rows, since they wait for each other in each. Where the rows
        do not divide, the last batch of some ends with a row of another one.

        Parameters
        ----------
        stage : {"val", "test"}
            Which evaluation.
        batch_idx : int
            Number of the batch.
        rows : int
            Rows in it.
        """
        loader: Any = getattr(self.trainer, f"{stage}_dataloaders", None) if world_size() > 1 else None
        sampler = getattr(loader, "sampler", None)
        if not isinstance(sampler, EpochSampler) or batch_idx + 1 < len(loader):
            return rows
        return rows - sampler.repeated * getattr(loader.dataset, "rows_each", 1)

    def log_evaluation(
        self,
        values: dict[str, Tensor],
        weight: float | Tensor | dict[str, Tensor],
        batch_idx: int,
        roots: Collection[str] = (),
    ) -> None:
        """Log, at the end of the evaluation, means over the rows of all batches and processes.

        Parameters
        ----------
        values : dict of str to Tensor
            Means over a batch by name, scalars.
        weight : float, Tensor or dict of str to Tensor
            What they count, or each of them: its rows, of :meth:`own_rows`, or the sum of their weights.
        batch_idx : int
            Number of the batch; the first one begins anew.
        roots : collection of str, default=()
            Names of means of squares, of which the root is logged.
        """
        means: EvaluationMeans = self.__dict__.setdefault("_evaluation_means", EvaluationMeans())
        if batch_idx == 0:
            means.clear()
        means.add(values, weight, roots)

    def on_validation_epoch_end(self) -> None:
        """Log the means of :meth:`log_evaluation`."""
        self.log_dict(self.evaluation_means())

    def on_test_epoch_end(self) -> None:
        """Log the means of :meth:`log_evaluation`."""
        self.log_dict(self.evaluation_means())

    def evaluation_means(self) -> dict[str, Tensor]:
        """The means of :meth:`log_evaluation`, once; every process has to call it."""
        means: EvaluationMeans | None = self.__dict__.pop("_evaluation_means", None)
        return {} if means is None else means.take()

    def log_by_rows(self, values: dict[str, Tensor], rows: int | None, **options: Any) -> None:
        """``self.log_dict`` of means over some rows; those of all processes count by their rows."""
        processes = world_size()
        # Lightning averages the number of rows over processes and cuts off what is no whole number: a multiple is one
        rows = None if rows is None else rows * processes
        self.log_dict(values, batch_size=rows, sync_dist=processes > 1, **options)

    def on_train_epoch_end(self) -> None:
        """Log the means of an epoch that ended before its last batch, as ``max_steps`` ends it."""
        self._log_means(self._epoch_means())

    def _epoch_means(self) -> EpochMeans:
        """Sums of this epoch's terms: they belong to a training, so that no copy or file of the module holds them."""
        return cast(EpochMeans, vars(self.trainer).setdefault("_moeapps_epoch_means", EpochMeans()))

    def _log_means(self, means: EpochMeans) -> None:
        processes = world_size()
        for name, value, rows, weight in means.take():
            # one process: the means as they are; several: weighted by the rows of each
            size: Any = rows if processes > 1 else weight
            self.log_by_rows({name: value}, size, on_step=False, on_epoch=True)

    def with_cosine_schedule(
        self, optimizer: torch.optim.Optimizer, warmup: float = 0.0, end: float = 0.1
    ) -> dict[str, Any]:
        """For ``configure_optimizers``: the rate falls along a cosine, over all steps of the training.

        Under the Trainer's ``max_time`` the schedule ends with the time, if that comes first.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer
            The optimiser.
        warmup : float, default=0.0
            Part of the steps over which the rate first rises from a tenth.
        end : float, default=0.1
            What is left of the rate at the end; 1 keeps it.
        """

        # Not torch's SequentialLR: it has to know the number of steps when it is made, and its cosine would begin
        # after the warm-up, where this one is already on its way down.
        def factor(step: int) -> float:
            if step == 0:  # asked before training: counting the steps now would load the data before a resumed run's
                return 0.1 if warmup > 0 else 1.0  # checkpoint has said where in the data it was
            steps = max(int(self.trainer.estimated_stepping_batches), 1)
            done = max(step, steps * time_used(self.trainer))
            if done < warmup * steps:
                return 0.1 + 0.9 * done / (warmup * steps)
            return end + (1 - end) * (0.5 + 0.5 * math.cos(math.pi * min(done / steps, 1.0)))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def views(self) -> Views:
        """Maps, curves and warnings for a report, after training; a subclass adds its own."""
        return Views()

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """Parameters that differ between processes on purpose; DistributedDataParallel reads this attribute."""
        return sharded_parameters(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the optimiser's state of all processes' experts, whose defaults the routers have, and what this is."""
        gather_optimizer_states(self, checkpoint)
        checkpoint[registry.MODULE_NAME] = _public_path(type(self))
        if self._own_modules:
            checkpoint[registry.OWN_MODULES] = list(self._own_modules)
        if not self._as_in_0_1:
            checkpoint[DEFAULTS_ENTRY] = DEFAULTS

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with 0.1's defaults where 0.1 wrote it; say which weights do not fit, before Lightning loads them.

        Raises
        ------
        FileFormatError
            Naming the first missing, unexpected and mismatched weights, with both shapes.
        """
        self._as_in_0_1 = DEFAULTS_ENTRY not in checkpoint
        if self._as_in_0_1:
            as_in_0_1(self)
        if self.strict_loading:
            check_state_dict(self, checkpoint["state_dict"], "the checkpoint")
        scatter_optimizer_states(checkpoint)

    def _describe_non_finite(self, terms: dict[str, Tensor]) -> str:
        step = self.trainer.fit_loop.epoch_loop.total_batch_idx if self._trainer is not None else 0
        bad = [f"{name} = {float(term.detach())}" for name, term in terms.items() if not bool(term.isfinite())]
        layers = []
        for name, layer in routed_layers(self).items():
            if count := sum(int((~routing.valid).sum()) for routing in layer.routings):
                layers.append(f"layer {name or type(layer).__name__!r} got {count} non-finite tokens")
        where = f"; {', '.join(layers)}" if layers else ""
        return f"the loss is not finite at step {step}: {', '.join(bad) or 'sum of terms'}{where}. Training stopped"


class DataDependentModule(MoEModule):
    """A module whose network is built once it is known what the data is like.

    That comes from the data module, or from the checkpoint that is loaded, which remembers it.

    Attributes
    ----------
    entry : str
        Name of what a checkpoint remembers.
    network : Module
        The network, once it is built.
    """

    entry: ClassVar[str]
    network: nn.Module

    def attach_data(self, data: Any) -> None:
        """Build the network, if the data module has what it depends on."""
        raise NotImplementedError

    def attach_state(self, state: dict[str, Any]) -> None:
        """Build the network from what a checkpoint remembers."""
        raise NotImplementedError

    def data_state(self) -> dict[str, Any]:
        """What a checkpoint has to remember, as JSON values."""
        raise NotImplementedError

    def difference(self, state: dict[str, Any]) -> str | None:
        """In what the checkpoint's data differs from that of the network; None where it is the same."""
        return None if state == self.data_state() else "they differ"

    @property
    def attached(self) -> bool:
        """Whether the network is there."""
        return hasattr(self, "network")

    def configure_model(self) -> None:
        """Ask the data module; Lightning calls this before weights are restored."""
        data = getattr(self._trainer, "datamodule", None)
        if not self.attached and data is not None:
            self.attach_data(data)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember what the data is like beside the weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[self.entry] = self.data_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the network for the checkpoint's data, unless the data module has said what it is like.

        Raises
        ------
        FileFormatError
            If it is not such a checkpoint, or one of other data.
        """
        state = checkpoint.get(self.entry)
        if state is None:
            raise FileFormatError(
                f"the checkpoint is not one of a {type(self).__name__}: it has no description of its data"
            )
        if not self.attached:
            self.attach_state(state)
        elif (difference := self.difference(state)) is not None:
            raise FileFormatError(f"the data is not what the checkpoint was trained on: {difference}")
        super().on_load_checkpoint(checkpoint)


def _public_path(cls: type) -> str:
    """Path by which a module of ours is registered; that of its definition for one of somebody else."""
    path = f"{cls.__module__}.{cls.__qualname__}"
    registered = (entry.module for entry in registry.TRAINED if entry.module.rpartition(".")[2] == cls.__name__)
    return next((public for public in registered if registry.resolve(public) is cls), path)


def _arguments_of_subclasses(module: nn.Module, stack: list[FrameType]) -> dict[str, Any]:
    """Arguments of the constructors of ``module`` that are running; those of the outermost one decide."""
    constructors = [vars(cls)["__init__"] for cls in type(module).__mro__ if "__init__" in vars(cls)]
    codes = [init.__code__ for init in constructors if inspect.isfunction(init) and not hasattr(init, "__wrapped__")]
    found: dict[str, Any] = {}
    for frame in stack:  # the innermost one first
        names, _, rest, values = inspect.getargvalues(frame)
        if frame.f_code in codes and values.get(names[0]) is module:
            found |= {name: values[name] for name in names[1:] if name in values}
            found |= values[rest] if rest else {}
    return found
