"""The LightningModule of Mowst: the parts that each stage trains, its nodes, and its scores."""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from moeapps.core.checks import check_one_of, check_sizes
from moeapps.core.config import takes
from moeapps.core.distributed import world_size
from moeapps.core.errors import ConfigError
from moeapps.core.module import sum_of_terms
from moeapps.core.optimizers import fused_where_possible, with_checked_state
from moeapps.core.views import Views
from moeapps.graph.batches import NodeBatch
from moeapps.graph.conditional import predict_nodes
from moeapps.graph.held_out import EvaluationLogits, HeldOut, infer_known, warn_of_memorising
from moeapps.graph.inference import INFERENCES, Inference, MowstOutput
from moeapps.graph.measures import MONITORS, Monitor
from moeapps.graph.mowst import VARIANTS, Mowst, MowstConfig, chain_names
from moeapps.graph.node_module import NodeModule, check_rates
from moeapps.graph.plan import PRETRAIN, Pretrain, Scores, TrainingPlan

__all__ = ["GateFit", "MowstModule", "MowstTraining"]

GateFit = Literal["holdout", "train"]

GATE_STEPS = 10
"""Steps per epoch while only the gates are fitted, on constant logits."""


@dataclass(frozen=True)
class MowstTraining:
    """How Mowst is trained, and how it predicts.

    Parameters
    ----------
    gate_fit : {"holdout", "train"}, default "holdout"
        Nodes that the gate is fitted on: validation nodes, or training nodes as in the paper's released code.
    pretrain : {"both", "weak", "strong", "none"}, default "both"
        Experts that are first trained alone; ``"both"`` means all.
    patience : int, default 40
        Epochs without improvement that end a stage.
    round_patience : int, default 2
        Rounds without improvement that end training in turns.
    monitor : {"accuracy", "auc", "macro_f1", "loss"}, default "accuracy"
        Validation score that selects; ties are decided by the loss.
    class_weight : "balanced", list of float or None, default None
        Weight of each class in the loss: inversely proportional to its frequency, one number per class, or 1.
    lr : float, default 0.01
        Learning rate of Adam for the experts.
    lr_gate : float or None, default None
        Learning rate for the gate; ``lr`` when None.
    weight_decay : float, default 5e-4
        L2 penalty of Adam.
    inference : {"mix", "cascade", "threshold", "sample"}, default "mix"
        How the model predicts; see :meth:`Mowst.infer <moeapps.graph.Mowst.infer>`.
    threshold : float, default 0.5
        Confidence at which a node stops, for ``inference="threshold"`` and ``"cascade"``.
    """

    gate_fit: GateFit = "holdout"
    pretrain: Pretrain = "both"
    patience: int = 40
    round_patience: int = 2
    monitor: Monitor = "accuracy"
    class_weight: list[float] | Literal["balanced"] | None = None
    lr: float = 0.01
    lr_gate: float | None = None
    weight_decay: float = 5e-4
    inference: Inference = "mix"
    threshold: float = 0.5


class MowstModule(NodeModule):
    """Trains :class:`~moeapps.graph.mowst.Mowst` on one graph, in turns or jointly, with the safeguards it needs.

    The weak expert memorises its training nodes and is confident exactly there. A gate fitted on the same nodes
    gives the strong expert no weight. Hence, by default: the gate is fitted on validation nodes
    (``gate_fit="holdout"``), starts biased to the strong expert, and "strong expert alone" and "weak expert alone" stay
    candidates until the end. With ``gate_fit="train"`` and ``detach_confidence=True`` the training is that of the
    paper's released code. Validation
    nodes fit the gate's few parameters *and* select (one half each where the gate uses the features and has many);
    test nodes are used for the test only.

    Stages (see :class:`~moeapps.graph.plan.TrainingPlan`): pretraining, fitting the gate, then either one joint stage
    or alternating weak and strong turns. When it is done it stops the Trainer, with the best state restored.

    Parameters
    ----------
    in_channels : int, optional
        Features per node; taken from the data when None.
    out_channels : int, optional
        Classes; taken from the data when None.
    **settings
        The fields of :class:`~moeapps.graph.mowst.MowstConfig` and :class:`MowstTraining`.

    Raises
    ------
    ConfigError
        If an argument is impossible.
    """

    @takes(MowstConfig, MowstTraining, first=("variant", "strong", "weak", "medium"))
    def __init__(
        self,
        config: MowstConfig,
        training: MowstTraining,
        in_channels: int | None = None,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        check_one_of("variant", config.variant, VARIANTS)
        check_one_of("gate_fit", training.gate_fit, ("holdout", "train"))
        check_one_of("pretrain", training.pretrain, PRETRAIN)
        check_one_of("monitor", training.monitor, MONITORS)
        check_one_of("inference", training.inference, INFERENCES)
        lr_gate = training.lr if training.lr_gate is None else training.lr_gate
        check_rates(lr=training.lr, lr_gate=lr_gate, weight_decay=training.weight_decay)
        check_sizes(patience=training.patience, round_patience=training.round_patience)
        self.automatic_optimization = False
        self.config = config
        self.in_channels, self.out_channels = in_channels, out_channels
        self.monitor, self.class_weight = training.monitor, training.class_weight
        self.weight_decay = training.weight_decay
        self.inference: Inference = training.inference
        self.threshold = training.threshold
        self.names = chain_names(config.medium)
        gates = [f"{name}_gate" for name in self.names[:-1]] if config.confidence != "given" else []
        self.rates = {**dict.fromkeys(self.names, training.lr), **dict.fromkeys(gates, lr_gate)}
        self.gate_on_holdout = bool(gates) and training.gate_fit == "holdout"
        self.plan = TrainingPlan(
            self.names,
            config.variant,
            training.pretrain,
            self.gate_on_holdout,
            training.patience,
            training.round_patience,
        )
        looks_at_x = config.confidence in ("learned+x", "hyper")
        self.held_out = HeldOut(halved=self.gate_on_holdout and looks_at_x)
        self._logits = EvaluationLogits()
        self._last_batch: NodeBatch | None = None  # of training

    model: Mowst

    def make_model(self, in_channels: int, out_channels: int) -> Mowst:
        """Build Mowst."""
        model: Mowst = Mowst.from_config(in_channels, out_channels, config=self.config)
        return model

    def log_probs(self, batch: NodeBatch) -> Tensor:
        """``(B, K)`` log-probabilities of the batch's nodes, by the chosen inference (sampled always the same way)."""
        output, _ = predict_nodes(
            self.model,
            batch.graph.x,
            batch.edges,
            batch.nodes,
            mode=self.inference,
            threshold=self.threshold,
            generator=torch.Generator().manual_seed(0),
            batch_size=batch.batch_size,
        )
        return output.log_probs

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One Adam per part, so that a frozen part cannot move; their momentum persists over turns."""
        return [
            with_checked_state(
                torch.optim.Adam(
                    list(self.model.part(part).parameters()),
                    lr=lr,
                    weight_decay=self.weight_decay,
                    **fused_where_possible(self.model.parameters()),
                ),
                self,
            )
            for part, lr in self.rates.items()
        ]

    def training_step(self, batch: NodeBatch, batch_idx: int) -> None:
        """One step of the current stage; several where only gates are fitted, which is cheap."""
        self._last_batch = batch
        parts = [part for part in self.plan.stage.parts if part in self.rates] if not self.plan.finished else []
        gates = [part for part in parts if part not in self.names] if self.gate_on_holdout else []
        trained = [part for part in parts if part not in gates]
        for _ in range(1 if trained else GATE_STEPS if gates and batch_idx == 0 else 0):
            self._step(batch, gates, trained)

    def _step(self, batch: NodeBatch, gates: list[str], trained: list[str]) -> None:
        """Gates are fitted on held-out nodes (unless ``gate_fit="train"``), all else on the batch."""
        optimizers = dict(zip(self.rates, self.optimizers(), strict=True))
        terms: dict[str, Tensor] = {}
        if gates:
            terms["gate"] = self.held_out.gate_loss(self.model, self._class_weight)
        if trained:
            terms["task"] = self._experts_loss(batch, trained)
        loss = sum_of_terms(terms)
        self.refuse_non_finite(terms, loss)
        self.log_terms(terms, loss, batch_size=len(batch.chosen("train_mask")))
        for part in (*gates, *trained):
            optimizers[part].zero_grad()
        for name, parts in (("gate", gates), ("task", trained)):
            if parts:  # each loss moves its own parts only
                inputs = [p for part in parts for p in self.model.part(part).parameters()]
                self.manual_backward(terms[name], inputs=inputs)
        for part in (*gates, *trained):
            optimizers[part].step()
            self._logits.forget(part)

    def validation_step(self, batch: NodeBatch, batch_idx: int) -> None:
        """In a training collect the experts' logits at the validation nodes, otherwise what the model predicts."""
        if self.trainer.state.fn != "fit":
            super().validation_step(batch, batch_idx)
            return
        values = self.held_out.add(self.model, batch, self._logits)
        # for RoutingMonitor
        self.model.last_routing = infer_known(self.model, values, "threshold", self.threshold).routing

    def on_validation_epoch_end(self) -> None:
        """Score each expert and the mixture on the validation nodes, and let the plan decide."""
        if self.trainer.state.fn != "fit":
            super().on_validation_epoch_end()
            return
        self.held_out.collect()
        scores, measured = self.held_out.scores(self.model, self.monitor, self._class_weight)
        confidence = self.held_out.mean_confidence(self.model, self._last_batch, self._logits)
        kind = "accuracy" if self.monitor == "loss" else self.monitor
        self.log_dict(
            {
                **{f"val/{name}": value for name, value in measured["mix"].items()},
                **{f"val/{name}_{kind}": measured[name][kind] for name in self.names},
                **{f"{stage}/confidence": value for stage, value in confidence.items()},
                "stage": float([*self.plan.stages, "finished"].index(self.plan.stage_name)),
                "round": float(self.plan.round),
            },
            batch_size=len(self.held_out.values["y"]),
        )
        if not self.trainer.sanity_checking and self.plan.started and not self.plan.finished:
            self._advance(scores)

    def views(self) -> Views:
        """Confidence in the weak expert, and how often it is right, by the dispersion of its prediction."""
        return Views(curves=[self.held_out.curves(self.model)] if self.held_out.values else [])

    def on_fit_start(self) -> None:
        """Drop the logits of an earlier fit, since the weights may have changed."""
        super().on_fit_start()
        self._logits.forget()
        if world_size() > 1:
            raise ConfigError("Mowst trains in one process: its stages change by the score on all validation nodes")

    def on_train_start(self) -> None:
        """Score the experts as they are before the first step, so that training never ends below them."""
        if self.plan.started:
            return
        self._refresh_held_out()
        self.plan.start(self.held_out.scores(self.model, self.monitor, self._class_weight)[0], self.model)

    def on_train_epoch_start(self) -> None:
        """Stop when a resumed training was finished already."""
        if self.plan.finished:
            self.trainer.should_stop = True

    def on_train_end(self) -> None:
        """Restore the champion also when something else (a step or time limit) ended the training."""
        if self.plan.started and not self.plan.finished:
            self.plan.finish(self.model)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the plan, and what the gates are fitted on."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["plan"] = self.plan.state_dict()
        checkpoint["held_out"] = self.held_out.values

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the weights and take the plan over."""
        super().on_load_checkpoint(checkpoint)
        if "plan" in checkpoint:
            self.plan.load_state_dict(checkpoint["plan"])
            self.held_out.values = checkpoint["held_out"]

    def _advance(self, scores: Scores) -> None:
        before = self.plan.stage_name
        last = self.trainer.max_epochs not in (None, -1) and self.trainer.current_epoch + 1 >= self.trainer.max_epochs
        if self.plan.update(scores, self.model, last=last):
            self._logits.forget()
            self._refresh_held_out()
        if self.plan.finished:
            self.trainer.should_stop = True
            warn_of_memorising(self.held_out.mean_confidence(self.model, self._last_batch, self._logits))
        elif before.startswith("pretrain") and self.plan.stage_name != before:
            for optimizer in self.optimizers():  # type: ignore[union-attr]
                optimizer.state.clear()

    def _experts_loss(self, batch: NodeBatch, trained: list[str]) -> Tensor:
        """Loss over the training nodes; experts that do not train are taken in eval mode and carry no gradient."""
        nodes = batch.chosen("train_mask")
        y, weight = batch.graph.y[nodes], self._class_weight
        if self.plan.stage_name.startswith("pretrain"):
            return F.cross_entropy(self._train_logits(batch, trained[0], train=True), y, weight=weight)
        logits = [self._train_logits(batch, name, train=name in trained) for name in self.names]
        x = batch.features("train_mask") if self.model.sees_x else None
        return self.model.loss(logits, y, x, weight)

    def _train_logits(self, batch: NodeBatch, name: str, train: bool) -> Tensor:
        """Logits of one expert on the step's training nodes."""
        if not train and batch.nodes is None:
            return self._logits.at(self.model, name, batch, "train_mask")
        expert = self.model.expert(name)
        mode = expert.network.training
        expert.network.train(train)
        with torch.set_grad_enabled(train):
            if name == "weak":
                logits = expert.run(batch.features("train_mask"), batch.edges)
            else:
                logits = self.train_logits(expert, batch)
        expert.network.train(mode)
        return logits

    @property
    def scored_labels(self) -> Tensor:
        """Old name of the labels in :attr:`held_out`."""
        warnings.warn(
            'MowstModule.scored_labels is now held_out.scored(module.device)["y"]', DeprecationWarning, stacklevel=2
        )
        return self.held_out.scored(self.device)["y"]

    def predict_held_out(self, mode: Inference = "mix", threshold: float = 0.5) -> MowstOutput:
        """Prediction of the model at the scored validation nodes, from the experts' logits at the last validation."""
        return self.held_out.predict(self.model, mode, threshold)

    def _refresh_held_out(self) -> None:
        loaders: Any = self.trainer.val_dataloaders
        self.held_out.refresh(self.model, map(self.trainer.strategy.batch_to_device, loaders), self._logits)
