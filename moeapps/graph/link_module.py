"""Link prediction by several experts: networks with a decoder over pairs, and the structure around a pair."""

# N nodes, B pairs, F features, S columns of structure, d width of what a network knows of a node

import copy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import MLP

from moeapps.core.checks import check_below_one, check_one_of
from moeapps.core.config import config_from, takes
from moeapps.core.errors import ConfigError
from moeapps.graph.expert_config import ExpertsConfig, expert_networks
from moeapps.graph.expert_module import ExpertModule
from moeapps.graph.experts import NodeExpert, node_expert
from moeapps.graph.links import LinkBatch, Structure, draw_negatives, warn_of_symmetric, without_links
from moeapps.graph.networks import NetworkConfig, build_network
from moeapps.graph.table_reading import TableReading

__all__ = ["DECODERS", "Decoder", "LinkConfig", "LinkExpert", "LinkModule", "StructureExpert", "link_scores"]

Decoder = Literal["dot", "hadamard", "mlp"]
DECODERS = ("dot", "hadamard", "mlp")
MONITORS = ("auc", "average_precision", "loss")

STEP_LINKS = 16_384
"""Links of a step on the whole graph, at most: they bound its time and memory."""

OTHER_TABLES = "predict pairs of other tables with moeapps score MODEL --input PAIRS --nodes NODES --edges EDGES"

DECODED = 65_536
"""Pairs that are decoded at a time."""


@dataclass(frozen=True)
class LinkConfig(ExpertsConfig):
    """Experts for links and their training.

    Parameters
    ----------
    decoder : {"hadamard", "dot", "mlp"}, default="hadamard"
        From what a network knows of two nodes to the logit of a link: a network of their product, number by number;
        the sum of that product; or a network of both beside each other, the only one that tells directions apart (on
        undirected graphs the mean over both orders).
    structure : bool, default=True
        Whether common neighbours, Adamic-Adar, resource allocation, Jaccard and the degrees are one more expert.
    disjoint_train_ratio : float, default=0.5
        Part of the links that a step on the whole graph learns from, chosen anew each time; they pass no messages in
        that step, as those of validation and test never do. 0: all links do both. Mini-batches take no link out.
    monitor : {"auc", "average_precision", "loss"}, default="auc"
        Validation score that keeps an expert's weights.
    """

    decoder: Decoder = "hadamard"
    structure: bool = True
    disjoint_train_ratio: float = 0.5
    monitor: Literal["auc", "average_precision", "loss"] = "auc"


class LinkExpert(nn.Module):
    """A network, and a decoder over what it knows of two nodes.

    Parameters
    ----------
    network : torch.nn.Module
        With ``forward(x, edge_index)``, or PyG's MLP; its output has ``width`` columns.
    decoder : {"hadamard", "dot", "mlp"}
        See :class:`LinkConfig`.
    width : int
        Columns d.
    directed : bool
        Whether the order of a pair matters.
    dropout : float
        Dropout probability of the decoder.
    """

    def __init__(self, network: nn.Module, decoder: Decoder, width: int, directed: bool, dropout: float) -> None:
        super().__init__()
        self.network, self.kind, self.width, self.directed = network, decoder, width, directed
        if decoder == "dot":
            slope = nn.Linear(1, 1)  # a sum of products has any scale
            nn.init.constant_(slope.weight, width**-0.5)
            nn.init.zeros_(slope.bias)
            self.decoder: nn.Module = slope
        else:
            inputs = width if decoder == "hadamard" else 2 * width
            self.decoder = MLP([inputs, width, 1], dropout=dropout, norm=None)

    def decode(self, source: Tensor, target: Tensor) -> Tensor:
        """Logit ``(B,)`` of a link, from rows ``(B, d)`` of both nodes."""
        if self.kind == "dot":
            out: Tensor = self.decoder((source * target).sum(dim=-1, keepdim=True))
        elif self.kind == "hadamard":
            out = self.decoder(source * target)
        else:
            out = self.decoder(torch.cat([source, target], dim=-1))
            if not self.directed:
                out = (out + self.decoder(torch.cat([target, source], dim=-1))) / 2
        return out.flatten()

    def forward(self, batch: LinkBatch) -> Tensor:
        """Logits ``(B,)``: in training of the whole graph or of drawn neighbours, in evaluation exact."""
        expert = node_expert(self.network)
        if self.training and not batch.sampled:
            rows = self._checked(expert.run(batch.x, batch.edges))
            return self.decode(rows[batch.pairs[0]], rows[batch.pairs[1]])
        nodes, place = batch.pairs.unique(return_inverse=True)
        if self.training:
            rows = expert.on_drawn(batch.x, batch.edges, nodes, batch.num_neighbors)
        else:
            rows = expert.on_nodes(batch.x, batch.edges, nodes, batch_size=batch.batch_size)
        rows = self._checked(rows)
        parts = [self.decode(rows[part[0]], rows[part[1]]) for part in place.split(DECODED, dim=1)]
        return torch.cat(parts) if parts else rows.new_zeros(0)

    def cost(self, batch: LinkBatch) -> float:
        """Estimate of the multiply-adds of a prediction."""
        expert: NodeExpert = node_expert(self.network)
        decoder = sum(p.numel() for p in self.decoder.parameters()) * batch.pairs.shape[1]
        return float(expert.work_on_whole_graph(batch.edges).multiply_adds + decoder)

    def _checked(self, rows: Tensor) -> Tensor:
        if rows.shape[1] != self.width and self.kind != "dot":
            raise ConfigError(
                f"{type(self.network).__name__} has {rows.shape[1]} outputs per node, the decoder takes {self.width}: "
                f"give hidden_channels={rows.shape[1]}, or decoder='dot'"
            )
        return rows


class StructureExpert(nn.Module):
    """A small network of what the edges around a pair say (:class:`~moeapps.graph.links.Structure`)."""

    def __init__(self) -> None:
        super().__init__()
        width = len(Structure.columns)
        self.scale, self.network = nn.BatchNorm1d(width), MLP([width, 16, 1], norm=None)

    def forward(self, batch: LinkBatch) -> Tensor:
        """Logits ``(B,)``."""
        rows = torch.from_numpy(batch.structure.features(batch.pairs)).to(batch.x)
        out: Tensor = self.network(self.scale(rows))
        return out.flatten()

    def cost(self, batch: LinkBatch) -> float:
        """Estimate of the multiply-adds of a prediction: neighbours that are compared, and the network."""
        neighbors = 2 * batch.edges.index.shape[1] / max(batch.edges.num_nodes, 1)
        return batch.pairs.shape[1] * (neighbors + sum(p.numel() for p in self.parameters()))


class LinkModule(TableReading, ExpertModule):
    """Experts for links, trained side by side and mixed.

    Each step draws as many pairs without a link as it has links, never an edge of the graph. See
    :class:`~moeapps.graph.expert_module.ExpertModule` for the training.

    Parameters
    ----------
    in_channels : int, optional
        Features per node; taken from the data when None.
    directed : bool, optional
        Whether the direction of an edge matters; taken from the data when None.
    weighted : bool, optional
        Whether the edges have weights; taken from the data when None.
    **settings
        The fields of :class:`LinkConfig`.

    Raises
    ------
    ConfigError
        If an argument is impossible.
    """

    @takes(LinkConfig, first=("strong", "weak", "decoder"))
    def __init__(
        self,
        config: LinkConfig,
        in_channels: int | None = None,
        directed: bool | None = None,
        weighted: bool | None = None,
    ) -> None:
        super().__init__(config, MONITORS, config.monitor)
        check_one_of("decoder", config.decoder, DECODERS)
        check_below_one(disjoint_train_ratio=config.disjoint_train_ratio)
        self.config, self.in_channels, self.out_channels = config, in_channels, 2
        self.directed, self.weighted = directed, weighted

    def configure_model(self) -> None:
        """See :meth:`ExpertModule.configure_model`."""
        if self.directed is None:
            self.directed = bool(getattr(getattr(self._trainer, "datamodule", None), "directed", False))
            self.hparams["directed"] = self.directed
        super().configure_model()

    def on_fit_start(self) -> None:
        """Note how the tables were read, and warn where the decoder cannot tell a direction."""
        super().on_fit_start()
        self.compare_reading(self.trainer.ckpt_path is None, OTHER_TABLES)
        warn_of_symmetric(self.config.decoder, bool(self.directed))

    def on_validation_start(self) -> None:
        """Refuse tables that are read in another way."""
        super().on_validation_start()
        self.compare_reading(False, OTHER_TABLES)

    def on_test_start(self) -> None:
        """Refuse tables that are read in another way."""
        super().on_test_start()
        self.compare_reading(False, OTHER_TABLES)

    def on_predict_start(self) -> None:
        """Refuse tables that are read in another way."""
        super().on_predict_start()
        self.compare_reading(False, OTHER_TABLES)

    def make_experts(self, in_channels: int, out_channels: int, weighted: bool) -> tuple[list[str], list[nn.Module]]:
        """Networks with decoders, and the structure."""
        return make_link_experts(self.config, in_channels, bool(self.directed), weighted)

    def draw(self, batch: LinkBatch) -> LinkBatch:
        """Links of a step, and as many pairs without a link."""
        positive, drawn, ratio = batch.pairs, copy.copy(batch), self.config.disjoint_train_ratio
        if not batch.sampled:
            links = positive.shape[1]
            count = min(STEP_LINKS, max(1, round(ratio * links)) if ratio else links)
            positive = positive[:, torch.randperm(links, device=positive.device)[:count]]
            if ratio:
                drawn.edges = without_links(batch.edges, positive, bool(self.directed))
        negative = draw_negatives(batch.known, batch.x.shape[0], positive.shape[1])
        drawn.pairs = torch.cat([positive, negative], dim=1)
        drawn.y = torch.cat([positive.new_ones(positive.shape[1]), positive.new_zeros(negative.shape[1])])
        return drawn

    def logits(self, expert: nn.Module, batch: LinkBatch) -> Tensor:
        """``(B, 2)``: 0 and the logit of a link."""
        scores = expert(batch)
        return torch.stack([torch.zeros_like(scores), scores], dim=1)

    def gate_features(self, batch: LinkBatch) -> np.ndarray:
        """``(B, S)`` structure around each pair."""
        return batch.structure.features(batch.pairs)

    def costs(self, batch: LinkBatch) -> list[float]:
        """Multiply-adds of each expert."""
        return [expert.cost(batch) for expert in self.experts]  # type: ignore[operator]

    def measure(self, log_probs: Tensor, y: Tensor, everything: bool) -> dict[str, float]:
        """See :func:`link_scores`."""
        return link_scores(log_probs, y, everything)

    @torch.no_grad()
    def predict_step(self, batch: LinkBatch, batch_idx: int) -> dict[str, Any]:
        """Columns: source, target (ids, if the data is in tables), probability of a link."""
        part = self.predict_part([batch])
        mixed = self.ready().mix(part.features, part.predictions)
        source, target = batch.pairs.cpu().numpy()
        ids = getattr(getattr(self._trainer, "datamodule", None), "node_ids", None)
        if ids is not None:
            source, target = ids.iloc[source].tolist(), ids.iloc[target].tolist()
        return {"source": source, "target": target, "probability": mixed[:, 1]}


def make_link_experts(
    config: LinkConfig, in_channels: int, directed: bool, weighted: bool
) -> tuple[list[str], list[nn.Module]]:
    """Names and experts of a config: the structure if it is wanted, the weak one, the strong ones."""
    names: list[str] = []
    experts: list[nn.Module] = []
    width, sizes = config.hidden_channels, config_from(NetworkConfig, config)
    if config.structure:
        names, experts = ["structure"], [StructureExpert()]
    for name, network in expert_networks(config, weighted):
        built = build_network(copy.deepcopy(network), in_channels, width, sizes)
        names.append(name)
        experts.append(LinkExpert(built, config.decoder, width, directed, config.dropout))
    return names, experts


def link_scores(
    log_probs: Tensor, y: Tensor, everything: bool = True, ks: tuple[int, ...] = (10, 50)
) -> dict[str, float]:
    """Scores of predicted links.

    Parameters
    ----------
    log_probs : Tensor of shape (B, 2)
        Log-probabilities of no link and of a link.
    y : int64 Tensor of shape (B,)
        1 (linked) and 0.
    everything : bool, default=True
        Whether to add the last three.
    ks : tuple of int, default=(10, 50)
        Ranks of ``hits@k``.

    Returns
    -------
    dict of str to float
        ``auc``, ``average_precision`` (scikit-learn's), ``loss`` (mean negative log-likelihood), ``accuracy``,
        ``hits@k``, the part of the links that score above the k-th best pair without a link, and ``mrr``, the mean of
        1 / rank of a link among all pairs without one (both as in the Open Graph Benchmark, Hu et al. 2020; of equal
        scores the link counts as the last). NaN where all pairs are of one kind.
    """
    score = (log_probs[:, 1] - log_probs[:, 0]).double().cpu().numpy()
    truth = y.cpu().numpy()
    found = {"loss": float(F.nll_loss(log_probs.cpu(), y.cpu())), "accuracy": float(((score > 0) == truth).mean())}
    both = 0 < truth.sum() < len(truth) and np.isfinite(score).all()
    found["auc"] = float(roc_auc_score(truth, score)) if both else float("nan")
    found["average_precision"] = float(average_precision_score(truth, score)) if both else float("nan")
    if everything:
        without = np.sort(score[truth == 0])
        ahead = len(without) - np.searchsorted(without, score[truth == 1], side="left")
        for k in ks:
            found[f"hits@{k}"] = float((ahead < k).mean()) if both else float("nan")
        found["mrr"] = float((1.0 / (1 + ahead)).mean()) if both else float("nan")
    return found
