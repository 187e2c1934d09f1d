"""Base of the modules for links and for graphs: experts trained side by side, then a gate over what they predict.

1. In each step every expert has a loss of its own, and no expert shares a weight with another one. The gradient of the
   sum of these losses is, for each of them, that of its own loss; and Adam treats each weight by itself. So each is
   trained as if it were alone, but batches, negative pairs and the Trainer are shared.
2. After each epoch every expert is scored on the validation rows. Its best weights are kept, and it rests once it has
   not improved for ``patience`` epochs; when all rest, the training ends.
3. The experts get their best weights back, and a mixture is fitted on what they predict for the validation rows
   (:func:`~moeapps.core.mixing.fit_mixture`): each expert alone, their mean and several gates compete.
"""

# B rows (pairs of nodes, or graphs) of a batch, n validation rows, E experts, K classes, F features of the gate

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from moeapps.core.checks import check_one_of, check_sizes
from moeapps.core.config import Configurable
from moeapps.core.distributed import alone, check_weights_are_whole, world_size
from moeapps.core.errors import ConfigError, NonFiniteError
from moeapps.core.losses import consistency_loss
from moeapps.core.mixing import Cascade, GatedMixture, fit_cascade, fit_mixture
from moeapps.core.mixing.inputs import LOWEST
from moeapps.core.mixing.selection import GATES, Gate
from moeapps.core.module import MoEModule
from moeapps.core.optimizers import fused_where_possible, with_checked_state
from moeapps.core.search import Distribution
from moeapps.core.views import Map, Views
from moeapps.graph.class_weights import ClassWeight, weigh_classes, weighted_cross_entropy
from moeapps.graph.expert_config import ExpertsConfig
from moeapps.graph.node_module import check_rates, sizes_from
from moeapps.graph.search import SearchPlan
from moeapps.graph.search_spaces import EXPERTS_SEARCH

__all__ = ["ExpertModule", "Part", "mixed_log_probs"]


@dataclass
class Part:
    """What the mixture sees of some rows.

    Parameters
    ----------
    features : float64 array of shape (n, F)
        The gate's features.
    predictions : float64 array of shape (n, E, K)
        Log-probabilities of the experts.
    target : int64 array of shape (n,)
        Classes.
    """

    features: np.ndarray
    predictions: np.ndarray
    target: np.ndarray


class ExpertModule(Configurable, MoEModule):
    """Experts trained side by side and mixed; a subclass says what a batch is.

    A subclass defines :meth:`make_experts`, :meth:`draw`, :meth:`logits`, :meth:`gate_features`, :meth:`costs` and
    :meth:`measure`, and has the fields of :class:`ExpertsConfig` in ``config``.

    Attributes
    ----------
    names : list of str
        Names of the experts.
    experts : torch.nn.ModuleList
        The experts, once the data is known.
    mixture : GatedMixture or None
        The fitted mixture, after the training.
    cascade : Cascade or None
        The experts in the order of their cost, as far as it pays.
    """

    _search_space: ClassVar[Mapping[str, Distribution]] = EXPERTS_SEARCH

    names: list[str]
    experts: nn.ModuleList
    in_channels: int | None
    out_channels: int | None
    weighted: bool | None
    class_weight: ClassWeight = None
    _class_weight: Tensor | None
    _concluded: dict[str, Any] | None = None  # what a checkpoint has of the mixture, until the experts are restored

    def __init__(self, config: ExpertsConfig, monitors: Sequence[str], monitor: str) -> None:
        super().__init__()
        check_rates(lr=config.lr, weight_decay=config.weight_decay)
        check_sizes(patience=config.patience)
        check_one_of("monitor", monitor, monitors)
        check_one_of("gate", config.gate, GATES)
        self.lr = config.lr  # Lightning's learning rate finder sets it
        self.experts_config, self.monitor = config, monitor
        self.mixture: GatedMixture | None = None
        self.cascade: Cascade | None = None
        self.cascade_limits: dict[str, Any] = {}  # budget and tolerance, which an estimator sets
        self._collected: list[tuple[list[Tensor | None], Tensor, np.ndarray]] = []

    def keep_arguments(self, arguments: dict[str, Any]) -> None:
        """As hyperparameters, without modules, whose weights a checkpoint has anyway."""
        given = arguments.get("strong")
        if isinstance(given, list | tuple) and any(isinstance(network, nn.Module) for network in given):
            arguments = {name: value for name, value in arguments.items() if name != "strong"}
        super().keep_arguments(arguments)

    # ------------------------------------------------------------------ what a subclass defines

    def make_experts(self, in_channels: int, out_channels: int, weighted: bool) -> tuple[list[str], list[nn.Module]]:
        """Names and experts; ``weighted`` says whether the edges have weights."""
        raise NotImplementedError

    def draw(self, batch: Any) -> Any:
        """What a training step learns from: the batch, or more drawn at random."""
        return batch

    def logits(self, expert: nn.Module, batch: Any) -> Tensor:
        """``(B, K)`` logits of one expert, from drawn neighbours in training and all of them in evaluation."""
        raise NotImplementedError

    def gate_features(self, batch: Any) -> np.ndarray:
        """``(B, F)`` what the gate may look at."""
        raise NotImplementedError

    def costs(self, batch: Any) -> list[float]:
        """Cost of each expert for this batch, in any unit."""
        raise NotImplementedError

    def measure(self, log_probs: Tensor, y: Tensor, everything: bool) -> dict[str, float]:
        """Scores by name, ``loss`` among them: those that select; with ``everything`` those that a test reports."""
        raise NotImplementedError

    # ------------------------------------------------------------------ building and training

    def configure_model(self) -> None:
        """Build the experts once the sizes are known; Lightning calls this before weights are restored."""
        if hasattr(self, "experts"):
            return
        data = getattr(self._trainer, "datamodule", None)
        if self.weighted is None:
            self.weighted = bool(getattr(data, "weighted", False))
        self.hparams["weighted"] = self.weighted
        self.names, experts = self.make_experts(*sizes_from(data, self), self.weighted)
        if not experts:
            raise ConfigError("there is no expert: give strong, or weak='mlp'")
        self.experts = nn.ModuleList(experts)
        weigh_classes(self, data)
        self.plan = SearchPlan(self.names, len(experts), self.experts_config.patience)

    def part(self, name: str) -> nn.Module:
        """An expert by its name."""
        return self.experts[self.names.index(name)]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One Adam over all experts, which share no weight."""
        fused = fused_where_possible(self.parameters())
        decay = self.experts_config.weight_decay
        return with_checked_state(torch.optim.Adam(self.parameters(), lr=self.lr, weight_decay=decay, **fused), self)

    def on_fit_start(self) -> None:
        """Forget the mixture of an earlier training."""
        check_weights_are_whole(self.trainer)
        weigh_classes(self, getattr(self._trainer, "datamodule", None), training=True)
        self.mixture = self.cascade = self._concluded = None

    def on_train_epoch_start(self) -> None:
        """Stop where a resumed training was finished already."""
        if not self._active():
            self.trainer.should_stop = True

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """Cross-entropy of every expert that does not rest, added up."""
        active = self._active()
        if not active:
            return None
        batch = self.draw(batch)

        def run() -> tuple[Tensor, dict[str, Tensor]]:
            logits = [self.logits(self.experts[i], batch) for i in active]
            losses = [weighted_cross_entropy(one, batch.y, self._class_weight) for one in logits]
            return torch.cat(logits), {self.names[i]: loss for i, loss in zip(active, losses, strict=True)}

        loss = self.total_loss(self.by_draws(run, consistency_loss), batch_size=len(batch.y))
        if world_size() > 1:  # DistributedDataParallel waits for a gradient of every weight, of those that rest too
            resting = [p.sum() for i, expert in enumerate(self.experts) if i not in active for p in expert.parameters()]
            loss = loss + 0.0 * sum(resting)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """In a training, predictions of the experts that do not rest; otherwise those of all, to be mixed."""
        fitting = self.trainer.state.fn == "fit"
        self._collect(batch, self._active() if fitting else range(len(self.experts)))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Predictions of all experts, to be mixed."""
        self._collect(batch, range(len(self.experts)))

    def on_validation_epoch_end(self) -> None:
        """Score each expert; log ``val/<score>/<expert>`` and ``val/score``, the best of them. Or that of the mixture.

        Raises
        ------
        NonFiniteError
            If an expert predicts NaN.
        """
        if self.trainer.state.fn != "fit":
            self._log_mixture("val")
            return
        parts, self._collected = self._collected, []
        y = torch.cat([part[1] for part in parts])
        scores = {}
        for i in self._active():
            log_probs = torch.cat([one for part in parts if (one := part[0][i]) is not None])
            found = self.measure(log_probs, y, everything=False)
            self.log_dict({f"val/{name}/{self.names[i]}": value for name, value in found.items()}, batch_size=len(y))
            # the loss decides ties
            score = -found["loss"] if self.monitor == "loss" else found[self.monitor] - 1e-4 * found["loss"]
            self._refuse(self.names[i], score)
            scores[i] = score
        # on a GPU the last bits may differ between processes, and one decision counts for all of them
        scores = self.trainer.strategy.broadcast(scores)
        if not self.trainer.sanity_checking and scores:
            self.plan.update({self.names[i]: (score,) for i, score in scores.items()}, self)
        best = max([*scores.values(), *(score[0] for score in self.plan.best_scores.values())])
        self.log("val/score", best, batch_size=len(y), prog_bar=True)
        self.log("experts_in_training", float(len(self._active())), batch_size=len(y))
        if not self._active():
            self.trainer.should_stop = True

    def on_test_epoch_end(self) -> None:
        """Log ``test/<score>`` of the mixture and ``test/<score>/<expert>`` of each expert."""
        self._log_mixture("test")

    def on_train_end(self) -> None:
        """Give every expert its best weights back and fit the mixture."""
        loaders: Any = self.trainer.val_dataloaders
        self.conclude(map(self.trainer.strategy.batch_to_device, loaders))

    def conclude(self, batches: Iterable[Any]) -> None:
        """Put the best weights back and fit the mixture and the cascade on validation batches."""
        self.plan.finish(self)
        kept = list(batches)
        part, gate = self.predict_part(kept), cast(Gate, self.experts_config.gate)
        costs = self.costs(kept[0])
        of_row = None if self._class_weight is None else self._class_weight.cpu().double().numpy()[part.target]
        rows = part.features, part.predictions, part.target, of_row
        with alone():  # each process fits on all rows
            self.mixture = fit_mixture(*rows, names=self.names, gate=gate)
            self.cascade = fit_cascade(self.mixture, *rows, costs=costs, **self.cascade_limits)

    @torch.no_grad()
    def predict_part(self, batches: Iterable[Any]) -> Part:
        """Predictions of all experts in evaluation mode, with targets and the gate's features."""
        training = self.training
        self.eval()
        every, features, targets = [], [], []
        for batch in batches:
            every.append(torch.stack([self.log_probs(expert, batch) for expert in self.experts], dim=1).cpu())
            features.append(self.gate_features(batch))
            targets.append(batch.y.cpu())
        self.train(training)
        predictions = torch.cat(every).double().numpy()
        return Part(np.concatenate(features), np.maximum(predictions, LOWEST), torch.cat(targets).numpy())

    def log_probs(self, expert: nn.Module, batch: Any) -> Tensor:
        """``(B, K)`` log-probabilities of one expert."""
        return self.logits(expert, batch).log_softmax(-1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add how far each expert is, with its best weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["plan"] = self.plan.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the weights and take over how far each expert is."""
        super().on_load_checkpoint(checkpoint)
        if "plan" in checkpoint:
            self.plan.load_state_dict(checkpoint["plan"])
        self._concluded = checkpoint.get("mixture")

    def conclusion(self) -> dict[str, Any]:
        """What the end of the training has added, for the last checkpoint of a run, which was written before it."""
        if self.mixture is None or self.cascade is None:
            return {}
        return {"mixture": {"mixture": self.mixture.state(), "cascade": self.cascade.state()}}

    def views(self) -> Views:
        """The candidates of the mixture with their losses on rows that they have not seen."""
        if self.mixture is None or not len(self.mixture.candidates):
            return Views()
        table = self.mixture.candidates.set_index("candidate").select_dtypes("number")
        shown = [f"{name} (chosen)" if name == self.mixture.name else str(name) for name in table.index]
        return Views(maps=[Map.of("gates that competed", table.set_axis(shown), "candidate", "")])

    # ------------------------------------------------------------------ parts of the above

    def _active(self) -> list[int]:
        """Experts that still train."""
        return [i for i, name in enumerate(self.names) if name in self.plan.stage.parts]

    def _collect(self, batch: Any, wanted: Iterable[int]) -> None:
        every: list[Tensor | None] = [None] * len(self.experts)
        for i in wanted:
            every[i] = self.log_probs(self.experts[i], batch)
        features = np.zeros((0, 0)) if self.trainer.state.fn == "fit" else self.gate_features(batch)
        self._collected.append((every, batch.y, features))

    def _log_mixture(self, stage: str) -> None:
        parts, self._collected = self._collected, []
        y = torch.cat([part[1] for part in parts]).cpu()
        predictions = [torch.cat([part[0][i] for part in parts]).cpu() for i in range(len(self.experts))]  # type: ignore[misc]
        features = np.concatenate([part[2] for part in parts])
        stacked = np.maximum(torch.stack(predictions, dim=1).double().numpy(), LOWEST)
        mixed = torch.from_numpy(mixed_log_probs(self.ready(), features, stacked))
        found = self.measure(mixed, y, everything=True)
        logged = {f"{stage}/{name}": value for name, value in found.items()}
        for name, one in zip(self.names, predictions, strict=True):
            logged |= {f"{stage}/{key}/{name}": value for key, value in self.measure(one, y, True).items()}
        self.log_dict(logged, batch_size=len(y))

    def on_validation_start(self) -> None:
        """Outside of a training the mixture has to be there."""
        if self.trainer.state.fn != "fit":
            self.ready()

    def on_test_start(self) -> None:
        """The mixture has to be there."""
        self.ready()

    def on_predict_start(self) -> None:
        """The mixture has to be there."""
        self.ready()

    def ready(self) -> GatedMixture:
        """The mixture; one that a checkpoint does not hold is fitted again on the data module's validation rows.

        Raises
        ------
        ConfigError
            If there is no data module to take them from, or nothing was trained.
        """
        if self.mixture is None and self._concluded is not None:
            self.plan.finish(self)
            self.mixture = GatedMixture.from_state(*self._concluded["mixture"])
            self.cascade = Cascade.from_state(*self._concluded["cascade"])
        if self.mixture is None:
            data = getattr(self._trainer, "datamodule", None)
            if data is None or not self.plan.best_scores:
                raise ConfigError(
                    "the experts are not trained to the end: give the last checkpoint of a training that has ended"
                )
            data.setup("validate")
            weigh_classes(self, data, training=True)
            loader = data.val_dataloader()
            with torch.inference_mode(False), torch.enable_grad():  # gates are trained
                self.conclude(data.transfer_batch_to_device(batch, self.device, 0) for batch in loader)
        assert self.mixture is not None
        return self.mixture

    def _refuse(self, name: str, score: float) -> None:
        if score != score:
            classes = "every class" if self._class_weight is None else "every class, one with a class_weight above 0"
            raise NonFiniteError(
                f"the expert {name} predicts NaN, or its {self.monitor} cannot be computed on the validation rows "
                f"(do they have {classes}?): lower lr, or scale the features"
            )


def mixed_log_probs(mixture: GatedMixture, features: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """``(n, K)`` log-probabilities of a mixture, finite."""
    return np.maximum(mixture.log_mix(features, predictions), LOWEST)
