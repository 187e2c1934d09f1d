"""Graph classification by several experts: networks whose rows are pooled to one per graph."""

# G graphs, N nodes, F features, K classes, d width of what a network knows of a node

import copy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.nn import MLP, global_add_pool, global_max_pool, global_mean_pool

from moeapps.core.checks import check_one_of
from moeapps.core.config import config_from, takes
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.labels import labels_from_json, labels_to_json, probability_columns
from moeapps.graph.expert_config import ExpertsConfig, expert_networks
from moeapps.graph.expert_module import ExpertModule
from moeapps.graph.experts import node_expert
from moeapps.graph.graph_sets import GraphBatch
from moeapps.graph.measures import MONITORS, Monitor, measure
from moeapps.graph.networks import NetworkConfig, build_network
from moeapps.graph.table_reading import TableReading

__all__ = ["POOLS", "GraphConfig", "GraphExpertsModule", "PooledExpert", "Pooling", "make_graph_experts"]

Pooling = Literal["mean", "sum", "max"]
POOLS = {"mean": global_mean_pool, "sum": global_add_pool, "max": global_max_pool}


@dataclass(frozen=True)
class GraphConfig(ExpertsConfig):
    """Experts for graph targets and their training.

    Parameters
    ----------
    pooling : {"mean", "sum", "max"}, default="mean"
        From the rows of a graph's nodes to one row.
    monitor : {"accuracy", "auc", "macro_f1", "loss"}, default="accuracy"
        Validation score that keeps an expert's weights.
    class_weight : "balanced", list of float or None, default=None
        Weight of each class in the loss: inversely proportional to its frequency, one number per class, or 1.
    """

    pooling: Pooling = "mean"
    monitor: Monitor = "accuracy"
    class_weight: list[float] | Literal["balanced"] | None = None


class PooledExpert(nn.Module):
    """A network, the pool of its rows, and a head.

    Parameters
    ----------
    network : torch.nn.Module
        With ``forward(x, edge_index)``, or PyG's MLP; its output has ``width`` columns.
    pooling : {"mean", "sum", "max"}
        How rows become one.
    width : int
        Columns d.
    out_channels : int
        Classes K.
    dropout : float
        Dropout probability of the head.
    """

    def __init__(self, network: nn.Module, pooling: Pooling, width: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.network, self.pooling, self.width = network, pooling, width
        self.head = MLP([width, width, out_channels], dropout=dropout, norm=None)

    def forward(self, batch: GraphBatch) -> Tensor:
        """Logits ``(G, K)``."""
        rows = node_expert(self.network).run(batch.x, batch.edges).relu()
        if rows.shape[1] != self.width:
            raise ConfigError(
                f"{type(self.network).__name__} has {rows.shape[1]} outputs per node, the head takes {self.width}: "
                f"give hidden_channels={rows.shape[1]}"
            )
        out: Tensor = self.head(POOLS[self.pooling](rows, batch.graph, batch.count))
        return out

    def cost(self, batch: GraphBatch) -> float:
        """Estimate of the multiply-adds of a prediction."""
        head = sum(p.numel() for p in self.head.parameters()) * batch.count
        return float(node_expert(self.network).work_on_whole_graph(batch.edges).multiply_adds + head)


class GraphExpertsModule(TableReading, ExpertModule):
    """Experts for graph targets, trained side by side and mixed.

    See :class:`~moeapps.graph.expert_module.ExpertModule` for the training.

    Parameters
    ----------
    in_channels : int, optional
        Features per node; taken from the data when None.
    out_channels : int, optional
        Classes; taken from the data when None.
    weighted : bool, optional
        Whether the edges have weights; taken from the data when None.
    **settings
        The fields of :class:`GraphConfig`.

    Raises
    ------
    ConfigError
        If an argument is impossible.
    """

    classes: np.ndarray | None = None  # of the training data, in the order of the outputs

    @takes(GraphConfig, first=("strong", "weak", "pooling"))
    def __init__(
        self,
        config: GraphConfig,
        in_channels: int | None = None,
        out_channels: int | None = None,
        weighted: bool | None = None,
    ) -> None:
        super().__init__(config, MONITORS, config.monitor)
        check_one_of("pooling", config.pooling, POOLS)
        self.config, self.in_channels, self.out_channels = config, in_channels, out_channels
        self.weighted, self.class_weight = weighted, config.class_weight

    def make_experts(self, in_channels: int, out_channels: int, weighted: bool) -> tuple[list[str], list[nn.Module]]:
        """Networks with pools and heads."""
        return make_graph_experts(self.config, in_channels, out_channels, weighted)

    def logits(self, expert: nn.Module, batch: GraphBatch) -> Tensor:
        """``(G, K)`` logits."""
        out: Tensor = expert(batch)
        return out

    def gate_features(self, batch: GraphBatch) -> np.ndarray:
        """``(G, 2)`` sizes of the graphs."""
        return batch.features()

    def costs(self, batch: GraphBatch) -> list[float]:
        """Multiply-adds of each expert."""
        return [expert.cost(batch) for expert in self.experts]  # type: ignore[operator]

    def measure(self, log_probs: Tensor, y: Tensor, everything: bool) -> dict[str, float]:
        """See :func:`~moeapps.graph.measures.measure`; classes have their weights in what selects only."""
        weight = None if everything else self._class_weight
        return measure(log_probs, y, everything or self.monitor in ("auc", "macro_f1"), weight)

    def on_fit_start(self) -> None:
        """Note the classes, which a resumed training must have, too."""
        super().on_fit_start()
        self._compare()

    def ready(self) -> Any:
        """See :meth:`ExpertModule.ready`; data of other classes is refused."""
        self._compare()
        return super().ready()

    def _compare(self) -> None:
        classes = getattr(getattr(self._trainer, "datamodule", None), "classes", None)
        if classes is None:
            return
        self.classes = classes if self.classes is None else self.classes
        if self.normalized is None:
            self.normalized = getattr(self.trainer.datamodule, "normalized", None)  # type: ignore[attr-defined]
        if not np.array_equal(self.classes, classes):
            raise DataError(
                f"the model was trained on the classes {self.classes.tolist()}, the labels of this data are "
                f"{classes.tolist()}: its outputs would get other names"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the classes."""
        super().on_save_checkpoint(checkpoint)
        if self.classes is not None:
            checkpoint["classes"] = labels_to_json(self.classes)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the classes."""
        super().on_load_checkpoint(checkpoint)
        if "classes" in checkpoint:
            self.classes = labels_from_json(checkpoint["classes"])

    @torch.no_grad()
    def predict_step(self, batch: GraphBatch, batch_idx: int) -> dict[str, Any]:
        """Columns: graph, predicted class, and one probability per class."""
        part = self.predict_part([batch])
        mixed = self.ready().mix(part.features, part.predictions)
        classes = range(mixed.shape[1]) if self.classes is None else self.classes
        first = getattr(getattr(self._trainer, "datamodule", None), "batch_size", len(mixed)) * batch_idx
        return {
            "graph": np.arange(first, first + len(mixed)),
            "prediction": np.asarray(classes)[mixed.argmax(axis=1)],
            **dict(zip(probability_columns(classes), mixed.T, strict=True)),
        }


def make_graph_experts(
    config: GraphConfig, in_channels: int, out_channels: int, weighted: bool
) -> tuple[list[str], list[nn.Module]]:
    """Names and experts of a config, the weak one first."""
    sizes = config_from(NetworkConfig, config)
    names, experts, width = [], [], config.hidden_channels
    for name, network in expert_networks(config, weighted):
        built = build_network(copy.deepcopy(network), in_channels, width, sizes)
        names.append(name)
        experts.append(PooledExpert(built, config.pooling, width, out_channels, config.dropout))
    return names, list(experts)
