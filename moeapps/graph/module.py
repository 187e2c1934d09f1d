"""The LightningModule of Mowst: what each stage trains, on which nodes, and how it is scored."""

import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data

from moeapps.core.errors import ConfigError
from moeapps.graph.mowst import INFERENCES, VARIANTS, Inference, Mowst, Variant, mix_log_probs, separate_loss
from moeapps.graph.node_module import NodeModule, check_rates, measure
from moeapps.graph.plan import STAGES, Pretrain, Scores, TrainingPlan

__all__ = ["MowstModule"]


class MowstModule(NodeModule):
    """Trains :class:`~moeapps.graph.mowst.Mowst` on a whole graph, in turns or jointly, with the safeguards it needs.

    The weak expert memorises its training nodes and is confident exactly there. A gate fitted to the same nodes shuts
    the strong expert out. Hence, by default: the gate is fitted on validation nodes (``gate_fit="holdout"``), starts
    biased to the strong expert, and "strong expert alone" and "weak expert alone" stay candidates until the end. With
    ``gate_fit="train"`` and ``detach_confidence=True`` the training is that of the paper's released code. Validation
    nodes serve to fit the gate's few parameters *and* to select; test nodes serve nothing but the test.

    Stages (see :class:`~moeapps.graph.plan.TrainingPlan`): pretraining, fitting the gate, then either one joint stage
    or alternating weak and strong turns. When it is done it stops the Trainer, with the best state restored.

    Args:
        variant: ``"mowst"`` (in turns) or ``"mowst_star"`` (joint).
        strong: ``"gcn"``, ``"sage"`` or any module with ``forward(x, edge_index)``.
        weak: ``"mlp"`` or a module with ``forward(x)``.
        hidden_channels: Width of the hidden layers of both experts.
        num_layers: Layers of both experts.
        dropout: Dropout probability of both experts.
        norm: Norm after each hidden layer, ``"batch_norm"`` or None.
        confidence: ``"learned"`` or ``"given"``.
        dispersion: ``"variance"`` or ``"entropy"``, for the given confidence.
        alpha: Exponent of the given confidence.
        gate_channels: Hidden width of the learned confidence.
        monotone: Whether the learned confidence never falls when the dispersion rises.
        detach_confidence: Whether the weak expert is kept from feeling the confidence it causes.
        gate_fit: ``"holdout"`` fits the gate on validation nodes, ``"train"`` on training nodes.
        pretrain: Which experts are first trained alone: ``"none"``, ``"weak"``, ``"strong"`` or ``"both"``.
        patience: Epochs without improvement that end a stage.
        round_patience: Rounds without improvement that end training in turns.
        monitor: ``"accuracy"`` (ties decided by the loss) or ``"loss"`` on the validation nodes.
        lr: Learning rate of Adam for the experts.
        lr_gate: Learning rate for the gate; ``lr`` when None.
        weight_decay: L2 penalty.
        inference: How the model predicts: ``"mix"``, ``"threshold"`` or ``"sample"``.
        threshold: For ``inference="threshold"``.
        in_channels: Features per node; taken from the data when None.
        out_channels: Classes; taken from the data when None.

    Raises:
        ConfigError: If an argument is impossible.
    """

    def __init__(
        self,
        variant: Variant = "mowst_star",
        strong: str | nn.Module = "gcn",
        weak: str | nn.Module = "mlp",
        hidden_channels: int = 64,
        num_layers: int = 2,
        dropout: float = 0.5,
        norm: str | None = "batch_norm",
        confidence: Literal["learned", "given"] = "learned",
        dispersion: Literal["variance", "entropy"] = "variance",
        alpha: float = 1.0,
        gate_channels: int = 16,
        monotone: bool = False,
        detach_confidence: bool = False,
        gate_fit: Literal["holdout", "train"] = "holdout",
        pretrain: Pretrain = "both",
        patience: int = 40,
        round_patience: int = 2,
        monitor: Literal["accuracy", "loss"] = "accuracy",
        lr: float = 0.01,
        lr_gate: float | None = None,
        weight_decay: float = 5e-4,
        inference: Inference = "mix",
        threshold: float = 0.5,
        in_channels: int | None = None,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(
            ignore=[n for n, v in (("strong", strong), ("weak", weak)) if isinstance(v, nn.Module)]
        )
        _check_choice("variant", variant, VARIANTS)
        _check_choice("gate_fit", gate_fit, ("holdout", "train"))
        _check_choice("pretrain", pretrain, ("none", "weak", "strong", "both"))
        _check_choice("monitor", monitor, ("accuracy", "loss"))
        _check_choice("inference", inference, INFERENCES)
        check_rates(lr=lr, lr_gate=lr_gate if lr_gate is not None else lr, weight_decay=weight_decay)
        for name, value in (("patience", patience), ("round_patience", round_patience)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value!r}")
        self.automatic_optimization = False
        self.in_channels, self.out_channels = in_channels, out_channels
        self.settings: dict[str, Any] = {
            "hidden_channels": hidden_channels,
            "num_layers": num_layers,
            "dropout": dropout,
            "norm": norm,
            "weak": weak,
            "strong": strong,
            "variant": variant,
            "confidence": confidence,
            "dispersion": dispersion,
            "alpha": alpha,
            "gate_channels": gate_channels,
            "monotone": monotone,
            "detach_confidence": detach_confidence,
        }
        self.monitor, self.weight_decay = monitor, weight_decay
        self.rates = {"weak": lr, "strong": lr, "gate": lr if lr_gate is None else lr_gate}
        self.inference: Inference = inference
        self.threshold = threshold
        self.learns_gate = confidence == "learned"
        self.gate_on_holdout = self.learns_gate and gate_fit == "holdout"
        self.plan = TrainingPlan(variant, pretrain, self.gate_on_holdout, patience, round_patience)
        self._evaluated: dict[str, Tensor] = {}  # logits in eval mode, by expert, while its weights do not change

    def make_model(self, in_channels: int, out_channels: int) -> Mowst:
        """Build Mowst."""
        return Mowst(in_channels, out_channels, **self.settings)

    def log_probs(self, graph: Data) -> Tensor:
        """``(N, K)`` log-probabilities of every node, by the chosen inference (sampled always with the same seed)."""
        generator = torch.Generator().manual_seed(0)
        output = self.model(
            graph.x,
            graph.edge_index,
            graph.get("edge_weight"),
            mode=self.inference,
            threshold=self.threshold,
            generator=generator,
        )
        log_probs: Tensor = output.log_probs
        return log_probs

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One Adam per part, so that a frozen part cannot move; their momentum persists over turns."""
        return [
            torch.optim.Adam(list(self.model.get_submodule(part).parameters()), lr=lr, weight_decay=self.weight_decay)
            for part, lr in self.rates.items()
            if part != "gate" or self.learns_gate
        ]

    def training_step(self, batch: Data, batch_idx: int) -> None:
        """One step of the current stage, on the whole graph."""
        if self.plan.finished:
            return
        if not self.plan.started:
            self.plan.start(self._scores(batch), self.model)  # type: ignore[arg-type]
        parts = [part for part in self.plan.stage.parts if part != "gate" or self.learns_gate]
        optimizers = dict(zip(self.rates, self.optimizers(), strict=False))
        terms: dict[str, Tensor] = {}
        on_holdout = "gate" in parts and self.gate_on_holdout
        if on_holdout:
            terms["gate"] = self._gate_loss(batch)
        trained = [part for part in parts if not (part == "gate" and on_holdout)]
        if trained:
            terms["task"] = self._experts_loss(batch, trained)
        self.total_loss(terms, batch_size=int(batch.train_mask.sum()))
        for part in parts:
            optimizers[part].zero_grad()
        if on_holdout:
            self.manual_backward(terms["gate"], inputs=list(self.model.get_submodule("gate").parameters()))
        if trained:
            self.manual_backward(terms["task"], inputs=self._parameters_of(trained))
        for part in parts:
            optimizers[part].step()
            self._evaluated.pop(part, None)

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        """Score the weak expert, the strong expert and the mixture on the validation nodes, and let the plan decide."""
        scores = self._scores(batch)
        if self.trainer.state.fn != "fit":
            self.log_measures("val", self.log_probs(batch), batch.y, batch.val_mask)
            return
        self.log_dict(
            {
                "val/accuracy": self._measured["mix"][0],
                "val/loss": self._measured["mix"][1],
                "val/weak_accuracy": self._measured["weak"][0],
                "val/strong_accuracy": self._measured["strong"][0],
                "train/confidence": self._mean_confidence(batch.train_mask),
                "val/confidence": self._mean_confidence(batch.val_mask),
                "stage": float(self.plan_stages().index(self.plan.stage_name)),
                "round": float(self.plan.round),
            },
            batch_size=int(batch.val_mask.sum()),
        )
        if self.trainer.sanity_checking or not self.plan.started or self.plan.finished:
            return
        self._advance(scores, batch)

    @staticmethod
    def plan_stages() -> tuple[str, ...]:
        """Names of the stages, in the order of their logged numbers."""
        return (*STAGES, "finished")

    def on_fit_start(self) -> None:
        """Forget the logits of an earlier fit: the weights may be others now."""
        self._evaluated = {}

    def on_train_epoch_start(self) -> None:
        """Stop when a resumed training was finished already."""
        if self.plan.finished:
            self.trainer.should_stop = True

    def on_train_end(self) -> None:
        """Restore the champion also when something else (a step or time limit) ended the training."""
        if self.plan.started and not self.plan.finished:
            self.plan.finish(self.model)  # type: ignore[arg-type]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the plan."""
        checkpoint["plan"] = self.plan.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the weights and take the plan over."""
        super().on_load_checkpoint(checkpoint)
        if "plan" in checkpoint:
            self.plan.load_state_dict(checkpoint["plan"])

    def _advance(self, scores: Scores, batch: Data) -> None:
        before = self.plan.stage_name
        last = self.trainer.max_epochs not in (None, -1) and self.trainer.current_epoch + 1 >= self.trainer.max_epochs
        if self.plan.update(scores, self.model, last=last):  # type: ignore[arg-type]
            self._evaluated = {}
        if self.plan.finished:
            self.trainer.should_stop = True
            self._warn_of_memorising(batch)
        elif before.startswith("pretrain") and self.plan.stage_name != before:
            for optimizer in self.optimizers():  # type: ignore[union-attr]
                optimizer.state.clear()

    def _experts_loss(self, batch: Data, trained: list[str]) -> Tensor:
        """Loss over the training nodes; experts that do not train are taken in eval mode and carry no gradient."""
        mask, y = batch.train_mask, batch.y[batch.train_mask]
        if self.plan.stage_name.startswith("pretrain"):
            return F.cross_entropy(self._logits(batch, trained[0], train=True)[mask], y)
        weak, strong = (self._logits(batch, part, train=part in trained)[mask] for part in ("weak", "strong"))
        model = self.model
        if self.plan.stage_name == "strong_turn":  # only the strong expert's term of the loss moves
            return separate_loss(weak, strong, model.confidence_of(weak)[0], y)  # type: ignore[operator]
        return model.loss(weak, strong, y)  # type: ignore[operator]

    def _gate_loss(self, batch: Data) -> Tensor:
        """Loss of the variant over held-out nodes, as a function of the gate alone."""
        mask = batch.val_mask
        weak, strong = (self._logits(batch, part, train=False)[mask] for part in ("weak", "strong"))
        return self.model.loss(weak, strong, batch.y[mask])  # type: ignore[operator]

    def _logits(self, batch: Data, part: str, train: bool) -> Tensor:
        """Logits of one expert on all nodes; outside training they are computed once per state of its weights."""
        if not train and part in self._evaluated:
            return self._evaluated[part]
        expert = self.model.get_submodule(part)
        mode = expert.training
        expert.train(train)
        with torch.set_grad_enabled(train):
            if part == "weak":
                logits: Tensor = self.model.run_weak(batch.x)  # type: ignore[operator]
            else:
                logits = self.model.run_strong(batch.x, batch.edge_index, batch.get("edge_weight"))  # type: ignore[operator]
        expert.train(mode)
        if not train:
            self._evaluated[part] = logits
        return logits

    @torch.no_grad()
    def _scores(self, batch: Data) -> Scores:
        weak, strong = (self._logits(batch, part, train=False) for part in ("weak", "strong"))
        confidence, gate_logit = self.model.confidence_of(weak)  # type: ignore[operator]
        self._confidence = confidence
        self.model.remember_routing(confidence, gate_logit, confidence < self.threshold)  # type: ignore[operator]
        mask, y = batch.val_mask, batch.y[batch.val_mask]
        self._measured = {
            "weak": measure(weak[mask].log_softmax(-1), y),
            "strong": measure(strong[mask].log_softmax(-1), y),
            "mix": measure(mix_log_probs(weak[mask], strong[mask], gate_logit[mask]), y),
        }
        # an improvement of less than 0.001 in loss is none: it would stretch a stage without end
        losses = {name: -round(loss, 3) for name, (_, loss) in self._measured.items()}
        if self.monitor == "loss":
            return {name: (loss,) for name, loss in losses.items()}
        return {name: (accuracy, losses[name]) for name, (accuracy, _) in self._measured.items()}

    def _mean_confidence(self, mask: Tensor) -> float:
        return float(self._confidence[mask].mean())

    @torch.no_grad()
    def _warn_of_memorising(self, batch: Data) -> None:
        self._scores(batch)
        train, val = self._mean_confidence(batch.train_mask), self._mean_confidence(batch.val_mask)
        if train > val + 0.2:
            warnings.warn(
                f"the weak expert is far surer of training nodes (mean confidence {train:.2f}) than of validation "
                f"nodes ({val:.2f}): it has memorised them, and the mixture may trust it too much. Stronger dropout, "
                "weight_decay or gate_fit='holdout' help",
                UserWarning,
                stacklevel=2,
            )

    def _parameters_of(self, parts: list[str]) -> list[Tensor]:
        return [p for part in parts for p in self.model.get_submodule(part).parameters()]


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
