"""Base of the node classifiers: inputs, labels, masks, prediction, scores."""

from typing import Any, Self

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Tensor
from torch_geometric.data import Data

from moeapps.core.errors import DataError
from moeapps.core.estimator import LightningEstimator, resolve_device
from moeapps.core.labels import labels_from_json, labels_to_json
from moeapps.graph.data import GraphDataModule
from moeapps.graph.edges import Edges
from moeapps.graph.inputs import as_graph, as_labels, encode_labels, labeled
from moeapps.graph.measures import measure
from moeapps.graph.node_module import NodeModule

__all__ = ["NodeClassifier", "node_index"]


class NodeClassifier(ClassifierMixin, LightningEstimator):
    """Base of the node classifiers: inputs, labels, masks, prediction. Subclasses have the constructor."""

    classes_: np.ndarray
    batch_size: int | None
    num_neighbors: Any
    class_weight: Any

    def fit(
        self,
        X: Any,
        y: Any = None,
        edge_index: Any = None,
        *,
        edge_weight: Any = None,
        train_mask: Any = None,
        val_mask: Any = None,
        split: int = 0,
    ) -> Self:
        """Learn from the labeled nodes of one graph.

        Parameters
        ----------
        X : torch_geometric.data.Data or array of shape (N, F)
            The graph, or its node features; a ``Data`` brings labels, edges and masks with it.
        y : array of shape (N,), optional
            Labels of any kind; below 0 or NaN means unlabeled.
        edge_index : optional
            Edges: an array of shape (2, E), a scipy sparse matrix or array of shape (N, N), a pandas frame of edges
            (first two columns: source and target, by position or by the names in the index of a frame ``X``; a third
            one holds weights) or a networkx graph. None means no edges at all.
        edge_weight : array of shape (E,), optional
            Weights of the edges.
        train_mask, val_mask : bool array of shape (N,) or array of node numbers, optional
            Nodes to train and to validate on. Without ``train_mask`` all labeled nodes are trained on, without
            ``val_mask`` a fifth of the training nodes is set aside.
        split : int
            Column of masks that hold several splits.

        Returns
        -------
        self
            Fitted. If fitting fails, an earlier fit stays as it was.

        Raises
        ------
        ValueError
            Naming the input that cannot be used.
        """
        with self._all_or_nothing() as fitted:
            if isinstance(X, Data):
                fitted.__dict__.pop("feature_names_in_", None)
            else:
                validate_data(fitted, X, y, skip_check_array=True)  # names of columns, and that there is a y
                y = column_or_1d(y, warn=True)
            graph = as_graph(
                X, y, edge_index, edge_weight=edge_weight, train_mask=train_mask, val_mask=val_mask, split=split
            )
            if graph.y is not None:
                check_classification_targets(graph.y[labeled(graph.y)])
            seed = self._seed()
            data = GraphDataModule(graph, seed=seed, batch_size=self.batch_size, num_neighbors=self.num_neighbors)
            data.setup("fit")
            module = self._make_module(self._class_weight(data.classes))
            fitted.history_ = fitted._train(module, data, seed, **self._stopping())
            fitted.n_iter_ = len(fitted.history_)
            fitted.n_features_in_ = data.in_channels
            fitted.classes_ = data.classes
            fitted.model_ = module.model.eval()
            fitted.graph_ = Data(x=graph.x, edge_index=graph.edge_index, edge_weight=graph.edge_weight)
            fitted.graph_.edges = data.edges
            fitted._after_training(module, data)
        return self

    def predict_proba(
        self, X: Any = None, edge_index: Any = None, *, edge_weight: Any = None, nodes: Any = None
    ) -> np.ndarray:
        """Class probabilities of nodes.

        Parameters
        ----------
        X : torch_geometric.data.Data or array of shape (N, F), optional
            The graph or its node features; the training graph when None.
        edge_index, edge_weight : optional
            As in :meth:`fit`. A new ``X`` needs its own edges.
        nodes : array of node numbers or bool array of shape (N,), optional
            Which nodes; all when None.

        Returns
        -------
        array of shape (number of nodes, number of classes)
            Rows sum to 1; columns are in the order of ``classes_``.
        """
        graph = self._graph_to_predict(X, edge_index, edge_weight)
        chosen = None if nodes is None else torch.from_numpy(node_index(nodes, graph.num_nodes))
        probabilities: np.ndarray = self._log_probs(graph, chosen).exp().cpu().numpy()
        return probabilities

    def predict(
        self, X: Any = None, edge_index: Any = None, *, edge_weight: Any = None, nodes: Any = None
    ) -> np.ndarray:
        """Most probable class of nodes, one label per node; parameters as in :meth:`predict_proba`."""
        best = self.predict_proba(X, edge_index, edge_weight=edge_weight, nodes=nodes).argmax(axis=1)
        labels: np.ndarray = self.classes_[best]
        return labels

    def score(
        self,
        X: Any = None,
        y: Any = None,
        edge_index: Any = None,
        *,
        sample_weight: Any = None,
        edge_weight: Any = None,
        nodes: Any = None,
    ) -> float:
        """Accuracy over labeled nodes.

        Parameters
        ----------
        X, edge_index, edge_weight
            As in :meth:`predict_proba`.
        y : array of shape (N,), optional
            True labels of all nodes; those of ``X`` when it is a ``Data``.
        sample_weight : array, optional
            Weight of each scored node.
        nodes : array of node numbers or bool array, optional
            Which nodes count. When None and ``X`` is a ``Data`` with a ``test_mask``: those; otherwise all.
        """
        graph, truth, chosen = self._nodes_to_score(X, y, edge_index, edge_weight, nodes)
        predicted = self.classes_[self._log_probs(graph, torch.from_numpy(chosen)).argmax(-1).cpu().numpy()]
        return float(accuracy_score(truth, predicted, sample_weight=sample_weight))

    def evaluate(
        self, X: Any = None, y: Any = None, edge_index: Any = None, *, edge_weight: Any = None, nodes: Any = None
    ) -> dict[str, float]:
        """Accuracy, mean negative log-likelihood, macro-F1 and ROC-AUC over labeled nodes.

        Parameters are those of :meth:`score`.

        Returns
        -------
        dict
            ``accuracy``, ``loss``, ``macro_f1``, ``auc``. The AUC of several classes is the mean of one against the
            rest; it is NaN where a class does not occur among the nodes.
        """
        graph, truth, chosen = self._nodes_to_score(X, y, edge_index, edge_weight, nodes)
        codes = encode_labels(truth, self.classes_)
        if bool((codes < 0).any()):
            raise DataError(f"y has labels that {type(self).__name__} was not fitted with")
        return measure(self._log_probs(graph, torch.from_numpy(chosen)).cpu(), codes, everything=True)

    def _nodes_to_score(
        self, X: Any, y: Any, edge_index: Any, edge_weight: Any, nodes: Any
    ) -> tuple[Data, np.ndarray, np.ndarray]:
        graph = self._graph_to_predict(X, edge_index, edge_weight)
        truth = graph.y if y is None else as_labels(y, graph.num_nodes)
        if truth is None:
            raise DataError("score needs the true labels y")
        if nodes is None and "test_mask" in graph:
            nodes = graph.test_mask
        chosen = np.arange(len(truth)) if nodes is None else node_index(nodes, len(truth))
        chosen = chosen[labeled(truth)[chosen]]
        if len(chosen) == 0:
            raise DataError("none of the nodes to score has a label")
        return graph, truth[chosen], chosen

    def _graph_to_predict(self, X: Any, edge_index: Any, edge_weight: Any) -> Data:
        check_is_fitted(self, "model_")
        if X is None:
            if not hasattr(self, "graph_"):
                raise DataError("a loaded model does not hold its training graph: give X, a Data or node features")
            return self.graph_
        graph = as_graph(X, None, edge_index, edge_weight=edge_weight)
        graph.edges = Edges(graph.edge_index, graph.edge_weight, graph.num_nodes)
        if not isinstance(X, Data):
            validate_data(self, X, reset=False, skip_check_array=True)
        elif graph.num_features != self.n_features_in_:
            raise DataError(
                f"x has {graph.num_features} features, {type(self).__name__} was fitted with {self.n_features_in_}"
            )
        return graph

    def _place(self, graph: Data) -> tuple[Tensor, Edges, torch.device]:
        """Features and edges on the device where prediction happens."""
        device = resolve_device(self.accelerator)
        return graph.x.to(device), graph.edges.to(device), device

    def _log_probs(self, graph: Data, nodes: Tensor | None = None) -> Tensor:
        """``(B, K)`` log-probabilities of these nodes, of all when None."""
        raise NotImplementedError

    def _make_module(self, class_weight: Any) -> NodeModule:
        raise NotImplementedError

    def _class_weight(self, classes: np.ndarray) -> Any:
        """``class_weight`` for the module: a dict by label becomes a list in the order of the classes."""
        if not isinstance(self.class_weight, dict):
            return self.class_weight
        unknown = set(self.class_weight) - set(classes.tolist())
        if unknown:
            raise DataError(f"class_weight names classes that y does not have: {sorted(unknown, key=str)}")
        return [float(self.class_weight.get(label, 1.0)) for label in classes.tolist()]

    def _stopping(self) -> dict[str, Any]:
        """Early-stopping arguments of :meth:`_train`."""
        return {}

    def _after_training(self, module: Any, data: GraphDataModule) -> None:
        """Set further fitted attributes."""

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def saved_state(self) -> dict[str, Any]:
        """Fitted attributes and class labels."""
        return {**super().saved_state(), "classes_": labels_to_json(self.classes_)}

    def _restore(self, state: dict[str, Any]) -> None:
        self.classes_ = labels_from_json(state["classes_"])
        super()._restore(state)


def node_index(nodes: Any, num_nodes: int) -> np.ndarray:
    """Node numbers from node numbers or a bool mask.

    Raises
    ------
    DataError
        If a mask has another length, or a number is outside the graph.
    """
    chosen = nodes.detach().cpu().numpy() if isinstance(nodes, Tensor) else np.asarray(nodes)
    if chosen.dtype == bool:
        if chosen.shape != (num_nodes,):
            raise DataError(f"nodes must have one entry per node ({num_nodes}), got {chosen.shape}")
        return np.flatnonzero(chosen)
    if chosen.ndim != 1 or (len(chosen) and chosen.dtype.kind not in "iu"):
        raise DataError(f"nodes must be a list of node numbers or a bool array, got {chosen.dtype} {chosen.shape}")
    if len(chosen) and (chosen.min() < 0 or chosen.max() >= num_nodes):
        raise DataError(f"nodes must be in 0..{num_nodes - 1}, got {chosen.min()}..{chosen.max()}")
    return chosen.astype(np.int64)
