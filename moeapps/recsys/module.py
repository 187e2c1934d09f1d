"""Training of rankers: masked task losses, AdamW, a cosine schedule, experts and gates logged every epoch."""

# Shapes: N rows, T tasks

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import NDArray
from torch import Tensor, nn

from moeapps.core.checks import check_at_least_zero, check_one_of
from moeapps.core.config import Configurable, as_arguments, takes
from moeapps.core.distributed import gather_rows, world_size
from moeapps.core.errors import ConfigError, DataError, NonFiniteError
from moeapps.core.labels import beside_kept, probability_columns
from moeapps.core.loading import EpochSampler
from moeapps.core.memory import keep_freed_memory, return_freed_memory
from moeapps.core.module import DataDependentModule
from moeapps.core.older import DEFAULTS_ENTRY
from moeapps.core.optimizers import LazyAdamW, fused_where_possible
from moeapps.core.search import Distribution
from moeapps.core.views import Views
from moeapps.recsys.attention import HISTORY_ENCODERS, contrastive_loss
from moeapps.recsys.building import build_network, scenario_column
from moeapps.recsys.catalogue import ItemCatalogue
from moeapps.recsys.diagnosis import Diagnosis, diagnose, has_gates
from moeapps.recsys.embedding_decay import EmbeddingDecay, code_counts
from moeapps.recsys.encoder import UNKNOWN, Rows, TableEncoder
from moeapps.recsys.item_neighbours import ALONE, weigh_neighbours
from moeapps.recsys.metrics import ScenarioScores, auc, gauc
from moeapps.recsys.network import (
    SEQUENCE_MODELS,
    MultiTaskNetwork,
    RankingConfig,
    SequenceNetwork,
    settings_of_0_1,
)
from moeapps.recsys.search_space import RANKING_SEARCH
from moeapps.recsys.targets import Targets, task_losses
from moeapps.recsys.task_balance import SURGERY, TASK_WEIGHTING, UncertaintyWeights, surgery_term, surgery_weighting

__all__ = ["RankingModule"]


class RankingModule(Configurable, DataDependentModule):
    """Weighted sum of the tasks' losses over the rows whose label is known.

    The table (categories, numbers, targets) comes from the data module, or from the checkpoint that is loaded;
    :meth:`attach` builds the network for it.

    Parameters
    ----------
    **settings
        The fields of :class:`RankingConfig`.

    Attributes
    ----------
    network : torch.nn.Module
        Encoded rows to outputs ``(N, T)``, once attached.

    Raises
    ------
    ConfigError
        If a setting is impossible.
    """

    _search_space: ClassVar[Mapping[str, Distribution]] = RANKING_SEARCH

    entry = "moeapps_table"
    network: MultiTaskNetwork | SequenceNetwork
    encoder: TableEncoder
    targets: Targets
    uncertainty: UncertaintyWeights | None

    @takes(RankingConfig)
    def __init__(self, config: RankingConfig) -> None:
        super().__init__()
        _check(config)
        self.config = config
        self.lr = config.lr  # an attribute of its own, since Lightning's learning-rate finder sets it
        self._collected: list[tuple[Tensor, ...]] = []
        self._warned: set[str] = set()
        self._user: int | None = None
        self._scenario: int | None = None
        self._diagnosis: Diagnosis | None = None
        self._scenario_scores: ScenarioScores | None = None
        surgery = config.gradient_surgery
        self._surgery = None if surgery is None else surgery_weighting(surgery)
        self._decay: EmbeddingDecay | None = None

    def attach(
        self,
        encoder: TableEncoder,
        targets: Targets,
        catalogue: ItemCatalogue | None = None,
        label_counts: Callable[[str], tuple[Any, Any]] | None = None,
    ) -> None:
        """Build the network for a table, given its fitted encoder and targets.

        Parameters
        ----------
        encoder : TableEncoder
            Fitted encoder.
        targets : Targets
            Fitted targets.
        catalogue : ItemCatalogue, optional
            The items, of implicit feedback.
        label_counts : callable, optional
            From a sparse column to the numbers of training rows with label 1 and label 0 for each code, where the prior
            begins. Not needed where weights are loaded.

        Raises
        ------
        ConfigError
            If a setting does not fit the table.
        DataError
            If a model of behaviour has no history.
        """
        self.encoder, self.targets, self.catalogue = encoder, targets, catalogue
        sparse, user = encoder.schema.sparse_names, self.config.user
        if user is not None:
            check_one_of("user", user, sparse, "the sparse columns")
        if user is None and catalogue is not None and catalogue.user in sparse:
            user = catalogue.user
        self._user = None if user is None else sparse.index(user)
        scenario = self.config.scenario
        self._scenario = None if scenario is None else scenario_column(encoder, scenario)
        self.network = build_network(encoder, targets, self.config)
        if catalogue is not None and isinstance(self.network, SequenceNetwork):
            self.network.learn_neighbours(catalogue, encoder)
        prior = getattr(self.network, "prior", None)
        if prior is not None and label_counts is not None:
            prior.start_at({column: label_counts(sparse[column]) for column in prior.columns})
        learned = self.config.task_weighting == "uncertainty"
        self.uncertainty = UncertaintyWeights([targets.kinds[name] for name in targets.names]) if learned else None
        # Buffers, so that they move to the device; not saved, since they are settings
        for argument in ("task_weights", "positive_weight"):
            given = getattr(self.config, argument) or {}
            for name in given:
                targets.index(name, f"{argument}:")
            values = [float(given.get(name, 1.0)) for name in targets.names]
            check_at_least_zero(**{argument: min(values)})
            self.register_buffer(argument, torch.tensor(values), persistent=False)

    def attach_data(self, data: Any) -> None:
        """Take the table from the data module."""
        if hasattr(data, "encoder"):
            self.attach(data.encoder, data.targets, getattr(data, "catalogue", None), data.label_counts)

    def attach_state(self, state: dict[str, Any]) -> None:
        """Take the table from the checkpoint."""
        encoder, catalogue = TableEncoder.from_state(state["encoder"]), None
        if "catalogue" in state:
            catalogue = ItemCatalogue.from_state(state["catalogue"], state["catalogue_arrays"], encoder)
        self.attach(encoder, Targets.from_state(state["targets"]), catalogue)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on without what 0.1 did not have, where it wrote the checkpoint."""
        if DEFAULTS_ENTRY not in checkpoint and self.config.model in SEQUENCE_MODELS:
            missing = {"gate", "label_prior", "item_similarity"}
            known = {name: value for name, value in as_arguments(self.config).items() if name not in missing}
            self.config = RankingConfig(**settings_of_0_1(known))
            if self.attached:
                with isolate_rng():  # the weights are loaded: none need to be drawn
                    self.network = build_network(self.encoder, self.targets, self.config)
        super().on_load_checkpoint(checkpoint)

    def data_state(self) -> dict[str, Any]:
        """Categories, numbers and targets, and the catalogue of items if there is one."""
        state = {"encoder": self.encoder.state(), "targets": self.targets.state()}
        if self.catalogue is not None:
            state |= {"catalogue": self.catalogue.state(), "catalogue_arrays": self.catalogue.tensors()}
        return state

    def difference(self, state: dict[str, Any]) -> str | None:
        """In what the checkpoint's table differs; None if it is the same."""
        same = self.encoder.same_as(TableEncoder.from_state(state["encoder"]))
        same = same and self.targets.same_as(Targets.from_state(state["targets"]))
        return None if same else "its categories, numbers or targets differ"

    def forward(self, rows: Rows) -> Tensor:
        """Outputs ``(N, T)`` of encoded rows."""
        return self.network(rows)

    def _by_name(self, outputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Each task's weighted loss; in training by its uncertainty, too."""
        kinds = [self.targets.kinds[name] for name in self.targets.names]
        losses = task_losses(outputs, labels, kinds, self.get_buffer("positive_weight"))
        if self.training and self.uncertainty is not None:
            losses = self.uncertainty(losses, labels)
        return dict(zip(self.targets.names, losses * self.get_buffer("task_weights"), strict=True))

    def training_step(self, batch: tuple[Rows, Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch of rows and labels ``(N, T)``.

        1. Hide some categories, so that the unseen category's embedding is trained.
        2. Run the network; for AW-MoE with a contrastive loss also on a masked view of the behaviour.
        3. Sum the tasks' weighted losses and the contrastive loss.
        4. With gradient surgery, change the gradient of what the tasks share.
        """
        rows, labels = batch
        if len(rows) == 1 and any(isinstance(part, nn.BatchNorm1d) for part in self.network.modules()):
            raise DataError("batch normalisation needs batches of two rows or more: fit more rows, or raise batch_size")
        user = None if self._user is None else rows.sparse[:, self._user]
        config = self.config
        if config.unknown_rate > 0:
            hidden = torch.rand(rows.sparse.shape, device=rows.sparse.device) < config.unknown_rate
            rows = Rows(rows.sparse.masked_fill(hidden, UNKNOWN), rows.dense, rows.sequences)
        if self._decay is not None:
            self._decay.see(rows)
        if config.contrastive_weight > 0:
            assert isinstance(self.network, SequenceNetwork)
            outputs, gate, view = self.network.with_views(rows, config.mask_probability)
            terms = self._by_name(outputs, labels)
            terms["contrastive"] = config.contrastive_weight * contrastive_loss(gate, view, config.temperature, user)
        else:
            terms = self._by_name(self.network(rows), labels)
        loss = self.total_loss(terms, batch_size=len(rows))
        if self.uncertainty is not None:
            weights = dict(zip(self.targets.names, self.uncertainty.weights().detach(), strict=True))
            self._log_epoch({f"train/weight/{name}": weight for name, weight in weights.items()}, len(rows))
        if self._surgery is None:
            return loss
        term, conflicts = surgery_term(list(terms.values()), list(self.network.parameters()), self._surgery)
        self._log_epoch({"train/conflicts": conflicts}, len(rows))
        return loss + term

    def _log_epoch(self, values: dict[str, Tensor], rows: int) -> None:
        self.log_by_rows(values, rows, on_step=False, on_epoch=True)

    def on_fit_start(self) -> None:
        """Refuse what cannot be trained; keep what a step frees, since the next needs as much.

        Raises
        ------
        ConfigError
            If gradients of gradient surgery would need scaling, or ``embedding_decay`` has no data module to count in.
        """
        if self._surgery is not None and self.trainer.precision == "16-mixed":
            raise ConfigError(
                "gradient_surgery compares gradients before they are scaled, which precision='16-mixed' loses: take "
                "'bf16-mixed' or '32-true'"
            )
        self._decay = None if self.config.embedding_decay == 0 else self._embedding_decay()
        if self.device.type == "cpu":
            keep_freed_memory(self.parameters())

    def _embedding_decay(self) -> EmbeddingDecay:
        data: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(data, "counted_rows"):
            raise ConfigError("embedding_decay counts ids in the training rows: train with RankingData or ImplicitData")
        embedding = self.network.embedding
        counted = data.counted_rows()
        counts = torch.stack([code_counts(embedding, rows, weights) for rows, weights in counted]).sum(0)
        columns = torch.stack([code_counts(embedding, rows, weights, sequences=False) for rows, weights in counted])
        rows_of_an_epoch = columns.sum() / embedding.num_sparse  # each has a code of every column
        counts[embedding.starts + UNKNOWN] += rows_of_an_epoch * self.config.unknown_rate
        return EmbeddingDecay(embedding, counts, self.config.embedding_decay)

    def optimizer_step(self, epoch: int, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """After the optimiser's step, shrink the embeddings of its rows."""
        super().optimizer_step(epoch, batch_idx, *args, **kwargs)
        if self._decay is not None:
            optimizer: Any = self.optimizers(use_pl_optimizer=False)
            self._decay.shrink(optimizer.param_groups[0]["lr"])

    def on_fit_end(self) -> None:
        """Return to the system what was kept for the steps."""
        self._decay = None
        if self.device.type == "cpu":
            return_freed_memory()

    def validation_step(self, batch: tuple[Rows, Tensor], batch_idx: int) -> None:
        """Log ``val/loss`` and each task's loss; for the first batch also ``diagnosis/...`` of experts and gates."""
        self._evaluate("val", batch_idx, *batch)
        # One batch is enough for the diagnosis, and keeps no more rows in memory than that
        if batch_idx == 0 and has_gates(self.network):
            self._diagnosis = diagnose(self.network, batch[0], self.targets.names)
            metrics = self._diagnosis.metrics()
            self.log_dict({f"diagnosis/{name}": value for name, value in metrics.items()}, batch_size=len(batch[0]))

    def views(self) -> Views:
        """Maps of the last validation: experts and gates, AUC by task and scenario."""
        views = self._diagnosis.views() if self._diagnosis is not None else Views()
        scores = self._scenario_scores
        return views if scores is None else Views([*views.maps, scores.map()], views.curves, views.hints)

    def test_step(self, batch: tuple[Rows, Tensor], batch_idx: int) -> None:
        """Log ``test/loss`` and each task's loss."""
        self._evaluate("test", batch_idx, *batch)

    def _evaluate(self, stage: str, batch_idx: int, rows: Rows, labels: Tensor) -> None:
        outputs, own = self.network(rows), self.own_rows(stage, batch_idx, len(rows))
        losses = self._by_name(outputs[:own], labels[:own])
        labelled = (~labels[:own].isnan()).sum(dim=0)  # a task's loss is a mean over the rows that have its label
        self.log_evaluation(
            {f"{stage}/{name}": loss for name, loss in losses.items()},
            {f"{stage}/{name}": count for name, count in zip(losses, labelled, strict=True)},
            batch_idx,
        )
        # An AUC is no mean over batches. Codes of scenarios and users are kept where they are wanted
        columns = [column for column in (self._scenario, self._user) if column is not None]
        found = [outputs.float(), labels, rows.sparse[:, columns]]
        if stage == "val" and (network := self._weighed_network()) is not None:
            found.append(network.neighbour_sums(rows)[:, None])
        self._collected.append(tuple(part.cpu() for part in found))

    def _weighed_network(self) -> SequenceNetwork | None:
        """The network, if a validation during training is to weigh what the nearest items say."""
        network = self.network
        if not isinstance(network, SequenceNetwork) or self.trainer.state.fn != TrainerFn.FITTING:
            return None
        return network if network.neighbours is not None and network.neighbours.known else None

    def on_validation_epoch_start(self) -> None:
        """In training, validate the network without its neighbours, which are weighed at the end."""
        network: Any = self._weighed_network()
        if network is not None:
            network.neighbours.set(*ALONE)

    def on_validation_epoch_end(self) -> None:
        """Log ``val/auc/<task>`` of the binary tasks; NaN if the rows have one class only.

        With a scenario also ``val/auc/<task>/<scenario>``, of at most the first 20 scenarios; with ``user`` also
        ``val/gauc/<task>``, the mean of the users' own AUC (:func:`gauc`). In training on implicit feedback the nearest
        items are weighed first: these are scores with them, ``val/neighbour_weight`` is their weight, and ``val/loss``
        the network's own.
        """
        self._log_losses("val")
        self._log_auc("val")

    def on_test_epoch_end(self) -> None:
        """Log ``test/auc/<task>``; of implicit feedback also hit rate and NDCG among the items of the catalogue."""
        self._log_losses("test")
        self._log_auc("test")
        data: Any = getattr(self._trainer, "datamodule", None)
        if hasattr(data, "test_metrics"):
            self.log_dict({f"test/{name}": value for name, value in data.test_metrics(self).items()})

    def _log_losses(self, stage: str) -> None:
        losses = self.evaluation_means()
        known = [loss for loss in losses.values() if not loss.isnan()]  # NaN: no row has a label of this task
        self.log_dict({**losses, f"{stage}/loss": torch.stack(known).sum() if known else torch.tensor(math.nan)})

    def _log_auc(self, stage: str) -> None:
        outputs, labels, codes, *sums = self._gathered(stage)
        self._collected.clear()
        if not np.isfinite(outputs).all():
            raise NonFiniteError("the outputs are not finite: training has diverged. Lower lr, or scale the data")
        if sums:
            outputs = self._with_neighbours(outputs, sums[0], labels)
        for t, name in enumerate(self.targets.names):
            if self.targets.kinds[name] == "binary":
                area = auc(labels[:, t], outputs[:, t])
                if math.isnan(area) and name not in self._warned:
                    self._warned.add(name)
                    warnings.warn(
                        f"the known labels of {name!r} are of one class in the {stage} rows: its AUC is NaN",
                        stacklevel=2,
                    )
                self.log(f"{stage}/auc/{name}", area, sync_dist=world_size() > 1)
                if self._user is not None:
                    per_user = gauc(labels[:, t], outputs[:, t], codes[:, -1])
                    self.log(f"{stage}/gauc/{name}", per_user, sync_dist=world_size() > 1)
        if self.config.scenario is not None:
            scores = ScenarioScores.measure(
                outputs, labels, codes[:, 0], self.targets, self.encoder, self.config.scenario
            )
            for name, area in scores.metrics().items():
                self.log(f"{stage}/auc/{name}", area, sync_dist=world_size() > 1)
            self._scenario_scores = scores

    def _with_neighbours(self, outputs: NDArray[Any], sums: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
        """Weigh what the nearest items say; the outputs with it."""
        network: Any = self.network
        scale, weight, shift = weigh_neighbours(outputs[:, 0], sums[:, 0], labels[:, 0])
        network.neighbours.set(scale, weight, shift)
        self.log("val/neighbour_weight", weight, sync_dist=world_size() > 1)
        return scale * outputs + weight * sums + shift

    def _gathered(self, stage: str) -> list[NDArray[Any]]:
        """Outputs, labels and codes of all rows of an evaluation, of all processes."""
        loader = getattr(self.trainer, f"{stage}_dataloaders")
        total, each = _rows_dealt_out(loader), getattr(getattr(loader, "dataset", None), "rows_each", 1)
        collected = [torch.cat(parts).to(self.device) for parts in zip(*self._collected, strict=True)]
        return [
            gather_rows(part.unflatten(0, (len(part) // each, each)), total).flatten(0, 1).cpu().numpy()
            for part in collected
        ]

    def predict_step(self, batch: tuple[Rows, dict[str, Any]], batch_idx: int) -> dict[str, Any]:
        """The columns to keep, then one per target: probabilities (``probability_<target>``), numbers, rates."""
        rows, kept = batch
        predictions = self.targets.decode(self.network(rows).float().cpu().numpy())
        binary = [name for name in self.targets.names if self.targets.kinds[name] == "binary"]
        called = dict(zip(binary, probability_columns(binary), strict=True))
        columns = {called.get(name, name): predictions[:, t] for t, name in enumerate(self.targets.names)}
        return beside_kept(kept, columns)

    def configure_optimizers(self) -> Any:
        """AdamW (Adagrad or lazy AdamW for sparse gradients) with a cosine schedule to a tenth of the learning rate."""
        # Weight decay would shrink the embeddings of rare categories with every step that does not see them
        tables = {id(m.weight) for m in self.modules() if isinstance(m, nn.Embedding)}
        decayed = [p for p in self.parameters() if p.ndim > 2 or (p.ndim == 2 and id(p) not in tables)]
        chosen = {id(p) for p in decayed}
        others = [p for p in self.parameters() if id(p) not in chosen]
        groups = [
            {"params": decayed, "weight_decay": self.config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        if self.config.sparse_gradients:
            torch.sparse.check_sparse_tensor_invariants.disable()  # as it is anyway; torch warns unless it is told so
        groups = [group for group in groups if group["params"]]
        if self.config.sparse_gradients:
            if self.config.sparse_optimizer == "adagrad":
                return self.with_cosine_schedule(torch.optim.Adagrad(groups, lr=self.lr))
            fused = fused_where_possible(self.parameters())
            return self.with_cosine_schedule(LazyAdamW(groups, lr=self.lr, **fused))
        fused = fused_where_possible(self.parameters())
        return self.with_cosine_schedule(torch.optim.AdamW(groups, lr=self.lr, **fused))


def _rows_dealt_out(loader: Any) -> int | None:
    """Rows of the set that a loader deals out to the processes; None where each process reads all of it."""
    sampler = getattr(loader, "sampler", None)
    return sampler.length if isinstance(sampler, EpochSampler) else None


def _check(config: RankingConfig) -> None:
    check_one_of("sparse_optimizer", config.sparse_optimizer, ("adagrad", "adam"))
    at_least_zero = ("lr", "weight_decay", "embedding_decay", "contrastive_weight", "temperature")
    check_at_least_zero(**{name: getattr(config, name) for name in at_least_zero})
    for name in ("mask_probability", "unknown_rate"):
        if not 0 <= (value := getattr(config, name)) < 1:
            raise ConfigError(f"{name} must be at least 0 and below 1, got {value!r}")
    for name in ("lr", "temperature"):
        if getattr(config, name) == 0:
            raise ConfigError(f"{name} must be above 0, got 0")
    check_one_of("task_weighting", config.task_weighting, TASK_WEIGHTING)
    if config.gradient_surgery is not None:
        check_one_of("gradient_surgery", config.gradient_surgery, SURGERY)
        if config.sparse_gradients:
            raise ConfigError("gradient_surgery needs dense gradients: set sparse_gradients to False")
    for name, off in (("task_weighting", "fixed"), ("gradient_surgery", None)):
        if config.model in SEQUENCE_MODELS and (value := getattr(config, name)) != off:
            raise ConfigError(f"{name}={value!r} is for several targets, got model={config.model!r}")
    if config.history_encoder is not None:
        check_one_of("history_encoder", config.history_encoder, HISTORY_ENCODERS)
        if config.model not in ("din", "aw_moe"):
            raise ConfigError(f"history_encoder is for model='din' and 'aw_moe', got model={config.model!r}")
    if config.contrastive_weight > 0 and config.model != "aw_moe":
        raise ConfigError(f"contrastive_weight is for the gate of model='aw_moe', got model={config.model!r}")
