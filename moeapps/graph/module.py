"""The LightningModule of Mowst: the parts that each stage trains, its nodes, and its scores."""

# V validation nodes, K classes

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from moeapps.core.checks import check_at_least_zero, check_one_of, check_sizes
from moeapps.core.config import as_arguments, config_from, takes
from moeapps.core.distributed import alone, average_gradients, broadcast_buffers, check_weights_are_whole, world_size
from moeapps.core.errors import ConfigError
from moeapps.core.layer_losses import sum_of_terms
from moeapps.core.mixing.selection import Gate
from moeapps.core.optimizers import fused_where_possible, with_checked_state
from moeapps.core.search import Distribution
from moeapps.core.views import Views
from moeapps.graph.batches import NodeBatch
from moeapps.graph.class_weights import weighted_cross_entropy
from moeapps.graph.conditional import predict_nodes
from moeapps.graph.held_out import EvaluationLogits, HeldOut, infer_known, warn_of_memorising
from moeapps.graph.inference import INFERENCES, Inference, MowstOutput
from moeapps.graph.measures import MONITORS
from moeapps.graph.mixture import FITTED_INFERENCES, GraphMixture
from moeapps.graph.mowst import VARIANTS, Mowst, MowstConfig, chain_names
from moeapps.graph.networks import NetworkConfig
from moeapps.graph.node_module import NodeModule, check_rates
from moeapps.graph.plan import PRETRAIN, Scores, TrainingPlan
from moeapps.graph.portfolio import AUTO, Spec, named_experts, neighbors_of, portfolio_of
from moeapps.graph.search import SearchPlan
from moeapps.graph.search_spaces import MOWST_SEARCH
from moeapps.graph.settings import GateFit, MowstExperts, MowstTraining, trains_alone
from moeapps.moved import warn_deprecated

__all__ = ["GateFit", "MowstModule", "MowstTraining"]

GATE_STEPS = 10
"""Steps per epoch while only the gates are fitted, on constant logits."""


OF_THE_PAPER = (
    "medium",
    "confidence",
    "dispersion",
    "alpha",
    "gate_channels",
    "monotone",
    "detach_confidence",
    "gate_fit",
    "pretrain",
    "round_patience",
    "lr_gate",
    "own_loss",
)
"""Settings of the paper's training that a mixture of experts trained alone has no use for."""


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

    Several strong experts (the default) are trained at once, each alone, and the better half goes on after some epochs
    (:class:`~moeapps.graph.search.SearchPlan`); at the end a gate is fitted to what they predict for validation nodes
    (:class:`~moeapps.graph.mixture.GraphMixture`). The training of the paper takes one strong expert.

    Parameters
    ----------
    in_channels : int, optional
        Features per node; taken from the data when None.
    out_channels : int, optional
        Classes; taken from the data when None.
    **settings
        The fields of :class:`MowstExperts` and :class:`MowstTraining`.

    Raises
    ------
    ConfigError
        If an argument is impossible.
    """

    _search_space: ClassVar[Mapping[str, Distribution]] = MOWST_SEARCH

    @takes(MowstExperts, MowstTraining, first=("variant", "strong", "weak", "medium"))
    def __init__(
        self,
        config: MowstExperts,
        training: MowstTraining,
        in_channels: int | None = None,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        check_one_of("variant", config.variant, (AUTO, "mixture", "best", *VARIANTS))
        check_at_least_zero(own_loss=training.own_loss)
        check_sizes(kept=config.kept)
        check_one_of("gate_fit", training.gate_fit, ("holdout", "train"))
        check_one_of("pretrain", training.pretrain, PRETRAIN)
        check_one_of("monitor", training.monitor, MONITORS)
        check_one_of("inference", training.inference, INFERENCES)
        lr_gate = training.lr if training.lr_gate is None else training.lr_gate
        check_rates(lr=training.lr, lr_gate=lr_gate, weight_decay=training.weight_decay)
        check_sizes(patience=training.patience, round_patience=training.round_patience)
        self.automatic_optimization = False
        self.in_channels, self.out_channels = in_channels, out_channels
        self.monitor, self.class_weight = training.monitor, training.class_weight
        self.weight_decay = training.weight_decay
        self.inference: Inference = training.inference
        self.threshold, self.own_loss = training.threshold, training.own_loss
        self.searches = trains_alone(config.variant, config.strong)
        self._logits = EvaluationLogits()
        self._last_batch: NodeBatch | None = None  # of training
        self.limits: dict[str, float | None] = {}  # budget and tolerance of a mixture's cascade
        self.plan: TrainingPlan | SearchPlan
        if self.searches:
            self._several_experts(config, training)
        else:
            self._weak_and_strong(config, training, lr_gate)

    def _several_experts(self, config: MowstExperts, training: MowstTraining) -> None:
        """Experts that are trained alone."""
        defaults = {**as_arguments(MowstExperts()), **as_arguments(MowstTraining())}
        given = {**as_arguments(config), **as_arguments(training)}
        for name in OF_THE_PAPER:
            if given[name] != defaults[name]:
                raise ConfigError(
                    f"{name}={given[name]!r} is for variant='mowst_star' or 'mowst', with one strong expert: a mixture "
                    "of experts that are trained alone does not use it. Name the strong expert, strong='gcn' say"
                )
        if self.inference not in FITTED_INFERENCES:
            raise ConfigError(
                f"inference={self.inference!r} needs the confidence of variant='mowst_star' or 'mowst', with one "
                f"strong expert: a mixture has {' and '.join(FITTED_INFERENCES)}"
            )
        self.config: MowstConfig = config
        self.networks: dict[str, Spec | nn.Module] = {}
        if config.weak is not None:  # None where one network by name is looked for
            weak = {"network": config.weak, "norm": "batch_norm" if config.norm == AUTO else config.norm}
            self.networks["weak"] = config.weak if isinstance(config.weak, nn.Module) else weak
        if isinstance(config.strong, nn.Module):
            self.networks["strong"] = config.strong
        else:
            self.networks |= named_experts(portfolio_of(config.strong, config), config)
        self.names = tuple(self.networks)
        always = ("weak",) if config.variant != "best" and "weak" in self.names else ()
        kept = config.kept if config.variant != "best" else 1
        self.rates = dict.fromkeys(self.names, training.lr)
        self.gate_on_holdout, self.held_out = False, HeldOut()
        self.plan = SearchPlan(self.names, kept, training.patience, always)

    def _weak_and_strong(self, config: MowstExperts, training: MowstTraining, lr_gate: float) -> None:
        """The paper's training."""
        if isinstance(config.strong, list | tuple):
            raise ConfigError(
                f"variant={config.variant!r} trains one strong expert: name it, strong='gcn' say, or leave variant "
                f"'auto' for a mixture of several; got strong={config.strong!r}"
            )
        strong = "gcn" if config.strong == AUTO else config.strong
        if config.gate != AUTO:
            raise ConfigError(
                f"gate={config.gate!r} is for variant='mixture': the paper's training has a confidence (confidence=...)"
            )
        norm = "batch_norm" if config.norm == AUTO else config.norm
        variant = "mowst_star" if config.variant == AUTO else config.variant
        self.config = config_from(MowstConfig, config, strong=strong, norm=norm, variant=variant)
        self.names = chain_names(config.medium)
        gates = [f"{name}_gate" for name in self.names[:-1]] if config.confidence != "given" else []
        self.rates = {**dict.fromkeys(self.names, training.lr), **dict.fromkeys(gates, lr_gate)}
        self.gate_on_holdout = bool(gates) and training.gate_fit == "holdout"
        self.plan = TrainingPlan(
            self.names,
            self.config.variant,
            training.pretrain,
            self.gate_on_holdout,
            training.patience,
            training.round_patience,
        )
        looks_at_x = config.confidence in ("learned+x", "hyper")
        self.held_out = HeldOut(halved=self.gate_on_holdout and looks_at_x)

    model: Mowst | GraphMixture

    def make_model(self, in_channels: int, out_channels: int) -> Mowst | GraphMixture:
        """Build Mowst, or the mixture of several experts."""
        if self.searches:
            sizes = config_from(NetworkConfig, self.config)
            return GraphMixture(in_channels, out_channels, self.networks, sizes)
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
            assert isinstance(self.model, Mowst)
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
                with self._without_reducer():
                    self.manual_backward(terms[name], inputs=inputs)
                average_gradients(inputs)
        for part in (*gates, *trained):
            optimizers[part].step()
            self._logits.forget(part)

    def _without_reducer(self) -> AbstractContextManager[Any]:
        """DistributedDataParallel would wait for the gradients of parts that this stage does not train."""
        wrapped = self.trainer.strategy.model
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else nullcontext()

    def on_validation_epoch_start(self) -> None:
        """Let all processes validate the same model."""
        broadcast_buffers(self)

    def validation_step(self, batch: NodeBatch, batch_idx: int) -> None:
        """In a training collect the experts' logits at the validation nodes, otherwise what the model predicts."""
        if self.trainer.state.fn != "fit":
            super().validation_step(batch, batch_idx)
            return
        values = self.held_out.add(self.model, batch, self._logits)
        # for RoutingMonitor
        mode: Inference = "mix" if self.searches else "threshold"
        self.model.last_routing = infer_known(self.model, values, mode, self.threshold).routing

    def on_validation_epoch_end(self) -> None:
        """Score each expert and the mixture on the validation nodes, and let the plan decide."""
        if self.trainer.state.fn != "fit":
            super().on_validation_epoch_end()
            return
        self.held_out.collect()
        scores, measured = self.held_out.scores(self.model, self.monitor, self._class_weight)
        # experts that train alone have the same weight until the end
        confidence = {} if self.searches else self.held_out.mean_confidence(self.model, self._last_batch, self._logits)
        kind = "accuracy" if self.monitor == "loss" else self.monitor
        self.log_dict(
            {
                **{f"val/{name}": value for name, value in measured["mix"].items()},
                **{f"val/{name}_{kind}": measured[name][kind] for name in self.model.names},
                **{f"{stage}/confidence": value for stage, value in confidence.items()},
                "stage": float([*self.plan.stages, "finished"].index(self.plan.stage_name)),
                "round": float(self.plan.round),
            },
            batch_size=len(self.held_out.values["y"]),
        )
        if not self.trainer.sanity_checking and self.plan.started and not self.plan.finished:
            self._advance(scores)

    def views(self) -> Views:
        """Weight of the weak expert, and how often it is right, by the dispersion of its prediction."""
        has_weak = self.held_out.values and "weak" in self.model.names
        return Views(curves=[self.held_out.curves(self.model)] if has_weak else [])

    def on_fit_start(self) -> None:
        """Drop the logits of an earlier fit, since the weights may have changed."""
        super().on_fit_start()
        self._logits.forget()
        check_weights_are_whole(self.trainer)
        if world_size() > 1 and getattr(getattr(self._trainer, "datamodule", None), "batch_size", None) is None:
            raise ConfigError(
                f"trainer.devices={world_size()}: on the whole graph every process would compute the same. Set it to "
                "1, or divide the training nodes among processes by mini-batches, data.batch_size=512 say"
            )

    def on_train_start(self) -> None:
        """Score the experts as they are before the first step, so that training never ends below them."""
        if self.plan.started:
            return
        self._refresh_held_out()
        if isinstance(self.plan, SearchPlan) and len(self.names) > 1:
            rank_zero_info(
                f"{len(self.names)} networks compete ({', '.join(self.names)}); at most {self.plan.most_kept} are "
                f"trained to the end: in all about {self.plan.cost(self._work()):.1f} trainings of the costliest"
            )
        self.plan.start(self.held_out.scores(self.model, self.monitor, self._class_weight)[0], self.model)

    def on_train_epoch_start(self) -> None:
        """Stop when a resumed training was finished already."""
        if self.plan.finished:
            self.trainer.should_stop = True

    def on_train_end(self) -> None:
        """Restore the champion also when something else (a step or time limit) ended the training."""
        if self.plan.started and not self.plan.finished:
            self.plan.finish(self.model)
            self._fit_mixture()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the plan, and what the gates are fitted on."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["plan"] = self.plan.state_dict()
        checkpoint["held_out"] = self.held_out.values
        if isinstance(self.model, GraphMixture):
            checkpoint["mixture"] = self.model.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the weights and take the plan over."""
        super().on_load_checkpoint(checkpoint)
        if "plan" in checkpoint:
            self.plan.load_state_dict(checkpoint["plan"])
            self.held_out.values = checkpoint["held_out"]
        if isinstance(self.model, GraphMixture):
            self.model.load_state(*checkpoint["mixture"])

    def _advance(self, scores: Scores) -> None:
        # on a GPU the last bits may differ between processes, and one decision counts for all of them
        scores = self.trainer.strategy.broadcast(scores)
        before = self.plan.stage_name
        last = self.trainer.max_epochs not in (None, -1) and self.trainer.current_epoch + 1 >= self.trainer.max_epochs
        restored = self.plan.update(scores, self.model, last=last)
        if self.searches:
            if restored:
                self._fit_mixture()
                self.trainer.should_stop = True
            return
        if restored:
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
        if self.searches or self.plan.stage_name.startswith("pretrain"):  # each expert alone
            each = [self._train_logits(batch, name, train=True) for name in trained]
            return torch.stack([weighted_cross_entropy(z, y, weight) for z in each]).sum()
        assert isinstance(self.model, Mowst)
        logits = [self._train_logits(batch, name, train=name in trained) for name in self.names]
        x = batch.features("train_mask") if self.model.sees_x else None
        loss = self.model.loss(logits, y, x, weight)
        if self.plan.stage_name == "joint" and self.own_loss:
            own = torch.stack([weighted_cross_entropy(z, y, weight) for z in logits])
            loss = loss + self.own_loss * own.sum()
        return loss

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
            elif self.searches and batch.nodes is not None:
                limits = neighbors_of(batch.num_neighbors, expert.known_hops())
                logits = expert.on_drawn(batch.graph.x, batch.edges, batch.nodes, limits)
            else:
                logits = self.train_logits(expert, batch)
        expert.network.train(mode)
        return logits

    @property
    def scored_labels(self) -> Tensor:
        """Old name of the labels in :attr:`held_out`."""
        warn_deprecated('MowstModule.scored_labels is now held_out.scored(module.device)["y"]')
        return self.held_out.scored(self.device)["y"]

    def predict_held_out(self, mode: Inference = "mix", threshold: float | None = None) -> MowstOutput:
        """Prediction of the model at the scored validation nodes, from the experts' logits at the last validation."""
        return self.held_out.predict(self.model, mode, threshold)

    def _work(self) -> dict[str, int]:
        """Multiply-adds of each expert's pass over the whole graph."""
        edges = self._some_batch().edges
        experts = {name: self.model.expert(name) for name in self.names}
        return {name: max(expert.work_on_whole_graph(edges).multiply_adds, 1) for name, expert in experts.items()}

    def _fit_mixture(self) -> None:
        """Fit the gate to the best states of the networks that were kept."""
        if not isinstance(self.model, GraphMixture) or not isinstance(self.plan, SearchPlan):
            return
        assert isinstance(self.config, MowstExperts)
        best = self.config.variant == "best"
        self.model.keep([self.plan.champion] if best else self.plan.survivors)
        self.model.strongest = self.plan.champion
        self._logits.forget()
        self._refresh_held_out()
        values = self.held_out.values
        gate: Gate = "best" if best else self.config.gate
        seed = int(torch.initial_seed() % 2**31)
        with alone():  # each process fits on all validation nodes
            self.model.fit(values, values["y"], self._class_weight, self._work(), gate=gate, **self.limits, seed=seed)

    def selection(self) -> list[dict[str, Any]]:
        """The networks that competed: name and sizes, epochs, validation score, kept or not, mean weight."""
        assert isinstance(self.plan, SearchPlan)
        assert isinstance(self.model, GraphMixture)
        weights = dict(zip(self.model.names, self.predict_held_out().weights.mean(0).tolist(), strict=True))
        rows = []
        for name, network in self.networks.items():
            sizes = {} if isinstance(network, nn.Module) else network
            own = type(network).__name__ if not sizes else None
            rows.append(
                {
                    "name": name,
                    **({"network": own} if own else sizes),
                    "epochs": self.plan.epochs[name],
                    "score": float(self.plan.best_scores[name][0]),
                    "kept": name in self.model.names,
                    "weight": weights.get(name, 0.0),
                }
            )
        return rows

    def _some_batch(self) -> NodeBatch:
        loaders: Any = self.trainer.val_dataloaders
        batch: NodeBatch = next(iter(loaders))
        return batch

    def _refresh_held_out(self) -> None:
        loaders: Any = self.trainer.val_dataloaders
        self.held_out.refresh(self.model, map(self.trainer.strategy.batch_to_device, loaders), self._logits)
