"""What a node classifier with several experts says of its predictions: confidence, route, cost, score against cost."""

import time
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch_geometric.data import Data

from moeapps.graph.conditional import PredictionCost, predict_nodes
from moeapps.graph.experts import node_expert
from moeapps.graph.inference import Inference, MowstOutput
from moeapps.graph.labels import encode_labels
from moeapps.graph.layerwise import edges_needed, nodes_needed
from moeapps.graph.measures import Monitor, measure
from moeapps.graph.mixture import GraphMixture
from moeapps.graph.node_classifier import NodeClassifier
from moeapps.graph.thresholds import UNREACHABLE
from moeapps.moved import warn_deprecated

__all__ = ["ConditionalClassifier"]


class ConditionalClassifier(NodeClassifier):
    """Base of a node classifier whose strong experts need not run on every node. Subclasses have the constructor."""

    inference: Inference
    threshold: Any
    monitor: Monitor
    threshold_: float
    sampling_seed_: int
    cost_: PredictionCost

    def predict_confidence(
        self, X: Any = None, edge_index: Any = None, *, edge_weight: Any = None, nodes: Any = None
    ) -> np.ndarray:
        """Confidence of the weak expert in [0, 1] for each node; parameters as in :meth:`predict_proba`.

        In a mixture of experts that were trained alone it is the weak expert's weight.
        """
        graph, chosen = self._requested(X, edge_index, edge_weight, nodes)
        if self._is_mixture():
            weight: np.ndarray = self._output(graph, chosen, "mix")[0].confidence.cpu().numpy()
            return weight
        x, edges, device = self._place(graph)
        chosen = None if chosen is None else chosen.to(device)
        model: Any = self.model_.to(device)
        with torch.no_grad():
            logits = model.expert("weak").on_nodes(x, edges, chosen, batch_size=self.batch_size)
            rows = None
            if model.sees_x:
                rows = (x if chosen is None else x[chosen.to(x.device)]).to(device)
            c, _ = model.confidence_of("weak", logits, rows)
        confidence: np.ndarray = c.cpu().numpy()
        return confidence

    def route(self, X: Any = None, edge_index: Any = None, *, edge_weight: Any = None, nodes: Any = None) -> np.ndarray:
        """Which nodes' predictions use the strong expert, as a bool array; parameters as in :meth:`predict_proba`.

        With ``inference="mix"``, which uses it for all, these are the nodes whose confidence is below ``threshold_``,
        or in a mixture those that go on from the weak expert in a cascade.
        """
        graph, chosen = self._requested(X, edge_index, edge_weight, nodes)
        instead: Inference = "cascade" if self._is_mixture() else "threshold"
        mode: Inference = instead if self.inference == "mix" else self.inference
        used: np.ndarray = self._output(graph, chosen, mode)[0].used_strong.cpu().numpy()
        return used

    def expert_weights(
        self, X: Any = None, edge_index: Any = None, *, edge_weight: Any = None, nodes: Any = None
    ) -> pd.DataFrame:
        """Weight of each expert in the prediction of each node.

        Parameters
        ----------
        X, edge_index, edge_weight, nodes
            As in :meth:`predict_proba`.

        Returns
        -------
        DataFrame of shape (N, E)
            A column per expert, from weak to strong; rows sum to 1.
        """
        graph, chosen = self._requested(X, edge_index, edge_weight, nodes)
        output = self._output(graph, chosen, "mix")[0]
        return pd.DataFrame(output.weights.cpu().numpy(), columns=list(output.logits))

    def expert_predictions(
        self, X: Any = None, edge_index: Any = None, *, edge_weight: Any = None, nodes: Any = None
    ) -> dict[str, np.ndarray]:
        """Class probabilities of each expert by itself, without calibration.

        Parameters
        ----------
        X, edge_index, edge_weight, nodes
            As in :meth:`predict_proba`.

        Returns
        -------
        dict of str to array of shape (N, K)
            By expert; one that no prediction needs is left out.
        """
        graph, chosen = self._requested(X, edge_index, edge_weight, nodes)
        logits = self._output(graph, chosen, "mix")[0].logits
        return {name: one.double().softmax(1).cpu().numpy() for name, one in logits.items() if one is not None}

    def cost(
        self, X: Any = None, edge_index: Any = None, *, edge_weight: Any = None, nodes: Any = None
    ) -> PredictionCost:
        """Work of a prediction: nodes and edges of each expert; parameters as in :meth:`predict_proba`."""
        graph, chosen = self._requested(X, edge_index, edge_weight, nodes)
        return self._output(graph, chosen, self.inference)[1]

    def activation(self, *args: Any, **options: Any) -> PredictionCost:
        """Old name of :meth:`cost`."""
        warn_deprecated("MowstClassifier.activation is now called cost")
        return self.cost(*args, **options)

    @property
    def activation_(self) -> PredictionCost:
        """Old name of ``cost_``."""
        warn_deprecated("MowstClassifier.activation_ is now called cost_")
        return self.cost_

    def cost_curve(
        self,
        X: Any = None,
        y: Any = None,
        edge_index: Any = None,
        *,
        edge_weight: Any = None,
        nodes: Any = None,
        thresholds: Any = None,
        mode: Literal["cascade", "threshold"] = "cascade",
    ) -> pd.DataFrame:
        """Score and work at several thresholds: what is lost when the strong expert runs on fewer nodes.

        Parameters
        ----------
        X, y, edge_index, edge_weight, nodes
            As in :meth:`score`. All nodes of the graph are predicted; ``nodes`` are those that are scored.
        thresholds : sequence of float, optional
            By default 0, the deciles of the confidence, and 2, which no confidence reaches; in a mixture those of the
            weak expert's highest probability.
        mode : {"cascade", "threshold"}, default="cascade"
            Whether nodes below the threshold get the mixture or the strong expert's prediction.

        Returns
        -------
        pandas.DataFrame
            ``threshold``; ``score`` (by ``monitor``, accuracy when that is the loss); ``strong`` and ``edges``, the
            fractions of the nodes on which the strong expert runs and of the edges that it uses for them;
            ``multiply_adds`` done, and ``seconds`` taken, where the latter may mean computing the whole graph because
            that is cheaper than cutting out a large piece.
        """
        graph, truth, chosen = self._nodes_to_score(X, y, edge_index, edge_weight, nodes)
        codes = encode_labels(truth, self.classes_)
        metric = "accuracy" if self.monitor == "loss" else self.monitor
        if thresholds is None:
            if self._is_mixture():
                confidence = self._output(graph, None, mode, 0.0)[0].log_probs.exp().amax(1).cpu().numpy()
            else:
                confidence = self.predict_confidence(graph)
            thresholds = [0.0, *np.quantile(confidence, np.linspace(0.1, 1, 10)).tolist(), UNREACHABLE]
        rows = []
        for threshold in thresholds:
            start = time.perf_counter()
            output, work = self._output(graph, None, mode, float(threshold))
            seconds = time.perf_counter() - start
            found = measure(output.log_probs.cpu()[chosen], codes, everything=metric in ("auc", "macro_f1"))
            rows.append(
                {
                    "threshold": float(threshold),
                    "score": found[metric],
                    "strong": work.strong,
                    "edges": self._edges_needed(graph, output),
                    "multiply_adds": work.multiply_adds / max(work.multiply_adds_alone, 1),
                    "seconds": seconds,
                }
            )
        return pd.DataFrame(rows)

    def _edges_needed(self, graph: Data, output: MowstOutput) -> float:
        """Edges that the strong expert uses for its nodes, as a fraction of those that it uses for all."""
        name: str = self.model_.strongest  # type: ignore[assignment]
        strong = node_expert(self.model_.get_submodule(f"experts.{name}"))
        passed_on = output.used_strong.cpu()
        if self._is_mixture():
            logits = output.logits[name]
            passed_on = torch.zeros_like(passed_on) if logits is None else ~logits.isnan().any(1).cpu()
        if strong.hops is None:  # it runs on the whole graph or not at all
            return float(passed_on.any())
        nodes, form = passed_on.nonzero().flatten(), strong.edge_form
        computed = nodes_needed(graph.edges, form, nodes, strong.hops)[1:]
        return float(sum(edges_needed(graph.edges, form, computed)) / max(strong.hops * graph.edges.count(form), 1))

    def _requested(self, X: Any, edge_index: Any, edge_weight: Any, nodes: Any) -> tuple[Data, Tensor | None]:
        graph = self._graph_to_predict(X, edge_index, edge_weight)
        return graph, None if nodes is None else torch.from_numpy(self._node_index(nodes, graph))

    def _output(
        self, graph: Data, nodes: Tensor | None, mode: Inference, threshold: float | None = None
    ) -> tuple[MowstOutput, PredictionCost]:
        x, edges, device = self._place(graph)
        return predict_nodes(
            self.model_.to(device),  # type: ignore[arg-type]
            x,
            edges,
            None if nodes is None else nodes.to(device),
            mode=mode,
            threshold=self._threshold() if threshold is None else threshold,
            generator=torch.Generator().manual_seed(self.sampling_seed_),
            batch_size=self.batch_size,
        )

    def _is_mixture(self) -> bool:
        """Whether the experts were trained alone."""
        return isinstance(self.model_, GraphMixture)

    def _threshold(self) -> float | None:
        """Where a node stops; None for a mixture's own rule."""
        if not self._is_mixture():
            return self.threshold_
        return float(self.threshold) if isinstance(self.threshold, int | float) else None
