"""LightningModules for node classification: the base, and one network alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from moeapps.core.checks import check_one_of
from moeapps.core.config import Configurable, takes
from moeapps.core.distributed import world_size
from moeapps.core.errors import ConfigError, DataError, NonFiniteError
from moeapps.core.labels import labels_from_json, labels_to_json, probability_columns
from moeapps.core.losses import consistency_loss
from moeapps.core.optimizers import fused_where_possible, with_checked_state
from moeapps.core.search import Distribution
from moeapps.graph.batches import NodeBatch
from moeapps.graph.class_weights import ClassWeight, weigh_classes, weighted_cross_entropy
from moeapps.graph.experts import NodeExpert, node_expert
from moeapps.graph.measures import MONITORS, Monitor, measure, refuse_nan
from moeapps.graph.networks import NetworkConfig, build_network
from moeapps.graph.search_spaces import NETWORK_SEARCH
from moeapps.graph.table_reading import TableReading

__all__ = ["GNNConfig", "GNNModule", "NodeModule", "check_rates", "sizes_from"]


class NodeModule(Configurable, TableReading):
    """Base of both modules: sizes taken from the data, scores, predictions.

    A subclass has ``in_channels`` and ``out_channels`` (None: taken from the data module) and defines
    :meth:`make_model` and :meth:`log_probs`. Batches are :class:`~moeapps.graph.batches.NodeBatch`: the whole graph, or
    some of its nodes.
    """

    in_channels: int | None
    out_channels: int | None
    model: nn.Module
    class_weight: ClassWeight = None
    _class_weight: Tensor | None
    monitor: Monitor = "accuracy"
    classes: np.ndarray | None = None  # of the training data, in the order of the outputs
    split: int | None = None  # of the training data, if it has several

    def make_model(self, in_channels: int, out_channels: int) -> nn.Module:
        """Build the network."""
        raise NotImplementedError

    def log_probs(self, batch: NodeBatch) -> Tensor:
        """``(B, K)`` log-probabilities of the batch's nodes, from all their neighbours."""
        raise NotImplementedError

    def configure_model(self) -> None:
        """Build the network once the sizes are known; Lightning calls this before weights are restored."""
        if hasattr(self, "model"):
            return
        data = getattr(self._trainer, "datamodule", None)
        self.model = self.make_model(*sizes_from(data, self))
        weigh_classes(self, data)

    def on_fit_start(self) -> None:
        """Note the classes and the split of the data, which a resumed training must have, too."""
        self._compare_data(split=True)
        weigh_classes(self, getattr(self._trainer, "datamodule", None), training=True)

    def on_validation_start(self) -> None:
        """Refuse data with other classes, or of another split."""
        self._compare_data(split=True)

    def on_test_start(self) -> None:
        """Refuse data with other classes, or of another split."""
        self._compare_data(split=True)

    def on_predict_start(self) -> None:
        """Refuse data with other classes."""
        self._compare_data(split=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the classes and the split of the training data."""
        super().on_save_checkpoint(checkpoint)
        if self.classes is not None:
            checkpoint["classes"] = labels_to_json(self.classes)
            checkpoint["split"] = self.split

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the weights; take over the classes and the split (checkpoints of 0.1 do not have them)."""
        super().on_load_checkpoint(checkpoint)
        if "classes" in checkpoint:
            self.classes, self.split = labels_from_json(checkpoint["classes"]), checkpoint["split"]

    def _compare_data(self, split: bool) -> None:
        """Outputs mean the classes of the training data; and test nodes of one split are training nodes of another.

        Raises
        ------
        DataError
            If the data has other classes, or (with ``split``) is another of several splits.
        """
        data = getattr(self._trainer, "datamodule", None)
        classes, number = getattr(data, "classes", None), getattr(data, "several_splits", None)
        if classes is None:
            return
        self.compare_reading(
            self.classes is None, "predict other nodes with moeapps score MODEL --input NODES --edges EDGES"
        )
        if self.classes is None:
            self.classes, self.split = classes, number
        if not np.array_equal(self.classes, classes):
            raise DataError(
                f"the model was trained on the classes {self.classes.tolist()}, the labels of this data are "
                f"{classes.tolist()}: its outputs would get other names"
            )
        if split and None not in (number, self.split) and number != self.split:
            raise DataError(
                f"the model was trained on split {self.split}, this is split {number} of the data, which may have its "
                f"training nodes among the others: give split={self.split}"
            )

    def train_logits(self, expert: NodeExpert, batch: NodeBatch) -> Tensor:
        """``(B, K)`` logits of the batch's training nodes, in the network's present mode.

        In a mini-batch they come from a random choice of neighbours, drawn anew at each call.
        """
        if batch.nodes is None:
            return expert.run(batch.graph.x, batch.edges)[batch.chosen("train_mask")]
        return expert.on_drawn(batch.graph.x, batch.edges, batch.nodes, batch.num_neighbors)

    def validation_step(self, batch: NodeBatch, batch_idx: int) -> None:
        """Collect the predictions of the validation nodes."""
        self._collect(batch, "val_mask")

    def on_validation_epoch_end(self) -> None:
        """Log ``val/accuracy``, ``val/loss`` and ``val/score``, what to select by."""
        self._log_collected("val")

    def test_step(self, batch: NodeBatch, batch_idx: int) -> None:
        """Collect the predictions of the test nodes.

        Raises
        ------
        ConfigError
            If the graph has no test nodes.
        """
        if "test_mask" not in batch.graph or not bool(batch.graph.test_mask.any()):
            raise ConfigError(
                "the data has no labeled node in test_mask: there is nothing to test on (GraphTableData takes a column "
                "that says train, val or test as split)"
            )
        self._collect(batch, "test_mask")

    def on_test_epoch_end(self) -> None:
        """Log ``test/accuracy``, ``test/loss``, ``test/macro_f1`` and ``test/auc``."""
        self._log_collected("test")

    def predict_step(self, batch: NodeBatch, batch_idx: int) -> dict[str, Any]:
        """Columns: node, predicted class name, and one probability per class."""
        probabilities = self.log_probs(batch).exp().cpu().numpy()
        if np.isnan(probabilities).any():
            raise NonFiniteError(f"{type(self.model).__name__} predicts NaN: features or edge weights are too large")
        classes = getattr(getattr(self._trainer, "datamodule", None), "classes", range(probabilities.shape[1]))
        nodes = np.arange(len(probabilities)) if batch.nodes is None else batch.nodes.cpu().numpy()
        ids = getattr(getattr(self._trainer, "datamodule", None), "node_ids", None)
        return {
            **({"node": nodes} if ids is None else {str(ids.name): ids.iloc[nodes].tolist()}),
            "prediction": np.asarray(classes)[probabilities.argmax(1)],
            **dict(zip(probability_columns(classes), probabilities.T, strict=True)),
        }

    def _collect(self, batch: NodeBatch, mask: str) -> None:
        log_probs = self.log_probs(batch)
        nodes = batch.chosen(mask)
        self._collected.append((log_probs[nodes] if batch.nodes is None else log_probs, batch.graph.y[nodes]))

    def _log_collected(self, stage: str) -> None:
        log_probs, y = (torch.cat(parts) for parts in zip(*self._collected, strict=True))
        self._collected.clear()
        everything = stage == "test" or self.monitor in ("auc", "macro_f1")
        # what training selects by weighs classes as its loss does; what a test reports does not
        found = measure(log_probs, y, everything, self._class_weight if stage == "val" else None)
        refuse_nan(log_probs, found, self.monitor if stage == "val" else "loss", type(self.model).__name__)
        if stage == "val":  # what training selects by; the loss decides ties
            found["score"] = -found["loss"] if self.monitor == "loss" else found[self.monitor] - 1e-4 * found["loss"]
        logged = {f"{stage}/{name}": value for name, value in found.items()}
        self.log_dict(logged, batch_size=len(y), prog_bar=stage == "val", sync_dist=world_size() > 1)

    @property
    def _collected(self) -> list[tuple[Tensor, Tensor]]:
        return self.__dict__.setdefault("_collected_parts", [])


@dataclass(frozen=True)
class GNNConfig(NetworkConfig):
    """A network alone and its training.

    Parameters
    ----------
    hidden_channels : int, default=64
        Width of the hidden layers.
    num_layers : int, default=2
        Number of layers.
    dropout : float, default=0.5
        Dropout probability, in [0, 1).
    norm : str or None, default="batch_norm"
        Norm after each hidden layer: ``"batch_norm"`` or None.
    network : str or torch.nn.Module, default="gcn"
        A name that :func:`~moeapps.graph.networks.make_network` knows (``"mlp"``, ``"gcn"``, ...), or a module with
        ``forward(x, edge_index)``.
    lr : float, default=0.01
        Learning rate of Adam.
    weight_decay : float, default=5e-4
        L2 penalty of Adam.
    class_weight : "balanced", list of float or None, default=None
        Weight of each class in the loss: inversely proportional to its frequency, one number per class, or 1.
    monitor : {"accuracy", "auc", "macro_f1", "loss"}, default="accuracy"
        Validation score that selects.
    """

    network: str | nn.Module = "gcn"
    lr: float = 0.01
    weight_decay: float = 5e-4
    class_weight: list[float] | Literal["balanced"] | None = None
    monitor: Monitor = "accuracy"


class GNNModule(NodeModule):
    """One network alone, trained with cross-entropy: the baseline that a mixture has to beat.

    Parameters
    ----------
    in_channels : int, optional
        Features per node; taken from the data when None.
    out_channels : int, optional
        Classes; taken from the data when None.
    **settings
        The fields of :class:`GNNConfig`.
    """

    _search_space: ClassVar[Mapping[str, Distribution]] = NETWORK_SEARCH

    @takes(GNNConfig, first=("network",))
    def __init__(self, config: GNNConfig, in_channels: int | None = None, out_channels: int | None = None) -> None:
        super().__init__()
        check_rates(lr=config.lr, weight_decay=config.weight_decay)
        check_one_of("monitor", config.monitor, MONITORS)
        self.config, self.in_channels, self.out_channels = config, in_channels, out_channels
        self.class_weight, self.monitor = config.class_weight, config.monitor
        self.lr = config.lr  # Lightning's learning rate finder sets it
        self.network = config.network  # checkpoints of 0.1 name the weights of a user's module by this attribute, too

    def make_model(self, in_channels: int, out_channels: int) -> nn.Module:
        """Build the network."""
        return build_network(self.config.network, in_channels, out_channels, self.config)

    def log_probs(self, batch: NodeBatch) -> Tensor:
        """``(B, K)`` log-probabilities of the batch's nodes, from all their neighbours."""
        expert = node_expert(self.model)
        logits = expert.on_nodes(batch.graph.x, batch.edges, batch.nodes, batch_size=batch.batch_size)
        return logits.log_softmax(-1)

    def training_step(self, batch: NodeBatch, batch_idx: int) -> Tensor:
        """Cross-entropy over the training nodes."""
        y = batch.graph.y[batch.chosen("train_mask")]

        def run() -> tuple[Tensor, dict[str, Tensor]]:
            logits = self.train_logits(node_expert(self.model), batch)
            return logits, {"task": weighted_cross_entropy(logits, y, self._class_weight)}

        return self.total_loss(self.by_draws(run, consistency_loss), batch_size=len(y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        fused = fused_where_possible(self.parameters())
        adam = torch.optim.Adam(self.parameters(), lr=self.lr, weight_decay=self.config.weight_decay, **fused)
        return with_checked_state(adam, self)


def sizes_from(data: Any, module: Any) -> tuple[int, int]:
    """Features per row and classes of a module, those that it does not have taken over from the data module.

    Raises
    ------
    ConfigError
        If one is missing and there is no data module.
    """
    for name in ("in_channels", "out_channels"):
        if getattr(module, name) is None:
            if data is None:
                raise ConfigError(f"{name} is not set and there is no data module to take it from")
            setattr(module, name, getattr(data, name))
        module.hparams[name] = getattr(module, name)
    return module.in_channels, module.out_channels


def check_rates(**rates: float) -> None:
    """Refuse negative or non-finite rates, naming the argument."""
    for name, value in rates.items():
        if not 0 <= value < float("inf"):
            raise ConfigError(f"{name} must be a number of at least 0, got {value!r}")
