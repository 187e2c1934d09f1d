"""The LightningModule of Mowst: what each stage trains, on which nodes, and how it is scored."""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.checks import check_one_of, check_sizes
from moeapps.core.config import takes
from moeapps.core.distributed import world_size
from moeapps.core.errors import ConfigError
from moeapps.core.module import sum_of_terms
from moeapps.core.views import Views
from moeapps.graph.batches import NodeBatch
from moeapps.graph.conditional import predict_nodes, run_on_nodes
from moeapps.graph.dispersion import variance_dispersion
from moeapps.graph.measures import MONITORS, Monitor, confidence_curves, measure
from moeapps.graph.mowst import INFERENCES, VARIANTS, Inference, Mowst, MowstConfig, MowstOutput, chain_names
from moeapps.graph.node_module import NodeModule, check_rates
from moeapps.graph.plan import PRETRAIN, Pretrain, Scores, TrainingPlan

__all__ = ["GateFit", "MowstModule", "MowstTraining"]

GateFit = Literal["holdout", "train"]

GATE_STEPS = 10
"""Steps per epoch while nothing but the gates is fitted, on logits that do not change."""


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

    The weak expert memorises its training nodes and is confident exactly there. A gate fitted to the same nodes shuts
    the strong expert out. Hence, by default: the gate is fitted on validation nodes (``gate_fit="holdout"``), starts
    biased to the strong expert, and "strong expert alone" and "weak expert alone" stay candidates until the end. With
    ``gate_fit="train"`` and ``detach_confidence=True`` the training is that of the paper's released code. Validation
    nodes serve to fit the gate's few parameters *and* to select (one half each where the gate looks at the features and
    has many); test nodes serve nothing but the test.

    Stages (see :class:`~moeapps.graph.plan.TrainingPlan`): pretraining, fitting the gate, then either one joint stage
    or alternating weak and strong turns. When it is done it stops the Trainer, with the best state restored.

    Args:
        in_channels: Features per node; taken from the data when None.
        out_channels: Classes; taken from the data when None.

    Further arguments are the fields of :class:`~moeapps.graph.mowst.MowstConfig` and :class:`MowstTraining`.

    Raises:
        ConfigError: If an argument is impossible.
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
        self.monitor, self.class_weight, self.weight_decay = (
            training.monitor,
            training.class_weight,
            training.weight_decay,
        )
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
        self.held_out: dict[str, Tensor] = {}  # what each expert said about the validation nodes, and their labels
        self._held_parts: list[dict[str, Tensor]] = []
        self._seen: NodeBatch | None = None  # the last training batch
        self._evaluated: dict[str, Tensor] = {}  # logits of all nodes in eval mode, by expert, until its weights change

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
            torch.optim.Adam(list(self._part(part).parameters()), lr=lr, weight_decay=self.weight_decay)
            for part, lr in self.rates.items()
        ]

    def training_step(self, batch: NodeBatch, batch_idx: int) -> None:
        """One step of the current stage; where only gates are fitted, which costs next to nothing, several at once."""
        self._seen = batch
        parts = [part for part in self.plan.stage.parts if part in self.rates] if not self.plan.finished else []
        gates = [part for part in parts if part not in self.names] if self.gate_on_holdout else []
        trained = [part for part in parts if part not in gates]
        for _ in range(1 if trained else GATE_STEPS if gates and batch_idx == 0 else 0):
            self._step(batch, gates, trained)

    def _step(self, batch: NodeBatch, gates: list[str], trained: list[str]) -> None:
        """Gates learn from held-out nodes (unless ``gate_fit="train"``), all else from the batch."""
        optimizers = dict(zip(self.rates, self.optimizers(), strict=True))
        terms: dict[str, Tensor] = {}
        if gates:
            terms["gate"] = self._gate_loss()
        if trained:
            terms["task"] = self._experts_loss(batch, trained)
        loss = sum_of_terms(terms)
        self.refuse_non_finite(terms, loss)
        self.log_terms(terms, loss, batch_size=len(batch.chosen("train_mask")))
        for part in (*gates, *trained):
            optimizers[part].zero_grad()
        if gates:
            self.manual_backward(terms["gate"], inputs=self._parameters_of(gates))
        if trained:
            self.manual_backward(terms["task"], inputs=self._parameters_of(trained))
        for part in (*gates, *trained):
            optimizers[part].step()
            self._evaluated.pop(part, None)

    def validation_step(self, batch: NodeBatch, batch_idx: int) -> None:
        """Collect what each expert says about the validation nodes (outside of training: what the model predicts)."""
        if self.trainer.state.fn != "fit":
            super().validation_step(batch, batch_idx)
            return
        said = self._ask_experts(batch)
        self._held_parts.append(said)
        self.model.last_routing = self._mix(said, "threshold", self.threshold).routing  # for whoever watches it

    def on_validation_epoch_end(self) -> None:
        """Score each expert and the mixture on the validation nodes, and let the plan decide."""
        if self.trainer.state.fn != "fit":
            super().on_validation_epoch_end()
            return
        self._take_held_out()
        scores, measured = self._scores()
        kind = "accuracy" if self.monitor == "loss" else self.monitor
        self.log_dict(
            {
                **{f"val/{name}": value for name, value in measured["mix"].items()},
                **{f"val/{name}_{kind}": measured[name][kind] for name in self.names},
                **{f"{stage}/confidence": value for stage, value in self._mean_confidence().items()},
                "stage": float([*self.plan.stages, "finished"].index(self.plan.stage_name)),
                "round": float(self.plan.round),
            },
            batch_size=len(self.held_out["y"]),
        )
        if not self.trainer.sanity_checking and self.plan.started and not self.plan.finished:
            self._advance(scores)

    @torch.no_grad()
    def views(self) -> Views:
        """Confidence in the weak expert, and how often it is right, by the dispersion of what it says (validation)."""
        if not self.held_out:
            return Views()
        held = self._held(1)
        confidence, _ = self.model.confidence_of("weak", held["weak"], held.get("x"))
        dispersion = variance_dispersion(held["weak"].softmax(-1))
        right = held["weak"].argmax(-1) == held["y"]
        return Views(curves=[confidence_curves(dispersion.cpu(), confidence.cpu(), right.cpu(), "validation nodes")])

    def on_fit_start(self) -> None:
        """Forget the logits of an earlier fit: the weights may be others now."""
        self._evaluated = {}
        if world_size() > 1:
            raise ConfigError("Mowst trains in one process: its stages change by the score on all validation nodes")

    def on_train_start(self) -> None:
        """Score the experts as they are before the first step, so that training never ends below them."""
        if self.plan.started:
            return
        self._refresh_held_out()
        self.plan.start(self._scores()[0], self.model)

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
        checkpoint["held_out"] = self.held_out

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the weights and take the plan over."""
        super().on_load_checkpoint(checkpoint)
        if "plan" in checkpoint:
            self.plan.load_state_dict(checkpoint["plan"])
            self.held_out = checkpoint["held_out"]

    def _advance(self, scores: Scores) -> None:
        before = self.plan.stage_name
        last = self.trainer.max_epochs not in (None, -1) and self.trainer.current_epoch + 1 >= self.trainer.max_epochs
        if self.plan.update(scores, self.model, last=last):
            self._evaluated = {}
            self._refresh_held_out()
        if self.plan.finished:
            self.trainer.should_stop = True
            self._warn_of_memorising()
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
        return self.model.loss(logits, y, batch.graph.x[nodes], weight)

    def _gate_loss(self) -> Tensor:
        """Loss of the variant over held-out nodes, as a function of the gates alone."""
        held = self._held(0)
        return self.model.loss([held[name] for name in self.names], held["y"], held.get("x"), self._class_weight)

    def _train_logits(self, batch: NodeBatch, name: str, train: bool) -> Tensor:
        """Logits of one expert on the step's training nodes."""
        if not train and batch.nodes is None:
            return self._evaluated_logits(batch, name)[batch.chosen("train_mask")]
        expert = self.model.experts[name]
        mode = expert.training
        expert.train(train)
        with torch.set_grad_enabled(train):
            if name == "weak":
                logits: Tensor = expert(batch.graph.x[batch.chosen("train_mask")])
            else:
                logits = self.train_logits(expert, batch)
        expert.train(mode)
        return logits

    @torch.no_grad()
    def _evaluated_logits(self, batch: NodeBatch, name: str) -> Tensor:
        """Logits of one expert in eval mode on the batch's nodes, from all their neighbours.

        For the whole graph they are computed once per state of the expert's weights.
        """
        if batch.nodes is None and name in self._evaluated:
            return self._evaluated[name]
        expert, graph = self.model.experts[name], batch.graph
        mode = expert.training
        expert.eval()
        if name == "weak":
            logits: Tensor = expert(graph.x if batch.nodes is None else graph.x[batch.nodes])
        else:
            logits = run_on_nodes(expert, graph.x, batch.edges, batch.nodes, batch_size=batch.batch_size)
        expert.train(mode)
        if batch.nodes is None:
            self._evaluated[name] = logits
        return logits

    def _ask_experts(self, batch: NodeBatch) -> dict[str, Tensor]:
        """Logits of every expert on validation nodes, their labels, and their features if a gate looks at them."""
        nodes = batch.chosen("val_mask")
        found = {"y": batch.graph.y[nodes]}
        if any(gate.sees_x for gate in self.model.gates.values()):
            found["x"] = batch.graph.x[nodes]
        for name in self.names:
            logits = self._evaluated_logits(batch, name)
            found[name] = logits[nodes] if batch.nodes is None else logits
        return found

    @property
    def scored_labels(self) -> Tensor:
        """Labels of the nodes that :meth:`predict_held_out` is about."""
        return self._held(1)["y"]

    def _held(self, half: int) -> dict[str, Tensor]:
        """What gates are fitted on (0) and what is scored (1): both times all validation nodes, or one half each.

        A gate that looks at the features has enough parameters to learn the validation nodes by heart.
        """
        halved = self.gate_on_holdout and any(gate.sees_x for gate in self.model.gates.values())
        rows = slice(half, None, 2) if halved else slice(None)
        return {name: value[rows].to(self.device) for name, value in self.held_out.items()}

    @torch.no_grad()
    def predict_held_out(self, mode: Inference = "mix", threshold: float = 0.5) -> MowstOutput:
        """What the model says about the scored validation nodes, from the experts' logits at the last validation."""
        return self._mix(self._held(1), mode, threshold)

    @torch.no_grad()
    def _mix(self, said: dict[str, Tensor], mode: Inference, threshold: float) -> MowstOutput:
        """Ask the experts about nodes where their logits are known already."""

        def run(name: str, rows: Tensor | None) -> Tensor:
            return said[name] if rows is None else said[name][rows]

        return self.model.cascade(run, said.get("x", said["y"][:, None]), mode=mode, threshold=threshold)

    def _scores(self) -> tuple[Scores, dict[str, dict[str, float]]]:
        held, everything = self._held(1), self.monitor in ("auc", "macro_f1")
        output = self.predict_held_out()
        says = {**{name: held[name].log_softmax(-1) for name in self.names}, "mix": output.log_probs}
        measured = {name: measure(z, held["y"], everything, self._class_weight) for name, z in says.items()}
        # an improvement of less than 0.001 in loss is none: it would stretch a stage without end
        losses = {name: -round(found["loss"], 3) for name, found in measured.items()}
        if self.monitor == "loss":
            return {name: (loss,) for name, loss in losses.items()}, measured
        return {name: (found[self.monitor], losses[name]) for name, found in measured.items()}, measured

    @torch.no_grad()
    def _mean_confidence(self) -> dict[str, float]:
        """Mean confidence of the weak expert on validation nodes, and on those of the last training batch."""
        held = self._held(1)
        confidence, _ = self.model.confidence_of("weak", held["weak"], held.get("x"))
        found = {"val": float(confidence.mean())}
        if (batch := self._seen) is not None:
            nodes = batch.chosen("train_mask")
            logits = self._evaluated_logits(batch, "weak")
            confidence, _ = self.model.confidence_of(
                "weak", logits[nodes] if batch.nodes is None else logits, batch.graph.x[nodes]
            )
            found["train"] = float(confidence.mean())
        return found

    def _warn_of_memorising(self) -> None:
        mean = self._mean_confidence()
        if mean.get("train", 0.0) > mean["val"] + 0.2:
            warnings.warn(
                f"the weak expert is far surer of training nodes (mean confidence {mean['train']:.2f}) "
                f"than of validation nodes ({mean['val']:.2f}): it has memorised them, and the mixture may trust it "
                "too much. Stronger dropout, weight_decay or gate_fit='holdout' help",
                UserWarning,
                stacklevel=2,
            )

    def _refresh_held_out(self) -> None:
        """After weights were put back, let the experts speak again."""
        loaders: Any = self.trainer.val_dataloaders
        for batch in loaders:
            self._held_parts.append(self._ask_experts(self.trainer.strategy.batch_to_device(batch)))
        self._take_held_out()

    def _take_held_out(self) -> None:
        parts, self._held_parts = self._held_parts, []
        self.held_out = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _part(self, part: str) -> nn.Module:
        return self.model.experts[part] if part in self.names else self.model.gates[part.removesuffix("_gate")]

    def _parameters_of(self, parts: list[str]) -> list[Tensor]:
        return [p for part in parts for p in self._part(part).parameters()]
