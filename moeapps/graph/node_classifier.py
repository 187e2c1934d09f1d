"""Base of the node classifiers: inputs, labels, masks, prediction, scores."""

import warnings
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn import MLP

from moeapps.core.arrays import as_array, tightened
from moeapps.core.checks import check_sizes
from moeapps.core.config import field_names
from moeapps.core.errors import ConfigError, DataError, NonFiniteError
from moeapps.core.estimator import resolve_device
from moeapps.core.labels import classes_from_json, labels_to_json
from moeapps.core.tabledata.frames import frame_if_table
from moeapps.core.tabledata.scoring import label_columns
from moeapps.graph.as_trained import scaled_as_trained, warn_of_weights
from moeapps.graph.class_weights import weights_in_order
from moeapps.graph.data import GraphDataModule
from moeapps.graph.edges import Edges
from moeapps.graph.inputs import as_graph, bare_graph, edges_of, on_disk, opened, refuse_other_graphs
from moeapps.graph.labels import as_labels, encode_labels, known_labels, labeled, like_classes
from moeapps.graph.masks import MASKS, check_split, has_splits, node_index, read_mask
from moeapps.graph.measures import measure
from moeapps.graph.mixture import GraphMixture
from moeapps.graph.module import MowstModule
from moeapps.graph.networks import NetworkConfig
from moeapps.graph.node_module import NodeModule
from moeapps.graph.node_names import check_alignment
from moeapps.graph.node_table import NodeTable, TableGraph
from moeapps.graph.portfolio import Networks
from moeapps.graph.table_input import TableInput, ids_of_rows, one_of

__all__ = ["NodeClassifier", "node_index"]


class NodeClassifier(ClassifierMixin, TableInput):
    """Base of the node classifiers: inputs, labels, masks, prediction. Subclasses have the constructor."""

    classes_: np.ndarray
    batch_size: int | None
    num_neighbors: Any
    class_weight: Any

    split_: int
    n_edges_: int
    weighted_: bool
    normalized_: bool = False  # of a checkpoint whose data normalised features
    network_: dict[str, Any]
    selected_: list[dict[str, Any]]
    _optional_attributes: tuple[str, ...] = (
        "split_", "n_edges_", "weighted_", "normalized_", "network_", "selected_",
    )  # fmt: skip
    _saved_attributes: tuple[str, ...] = ("n_features_in_", "n_iter_", *_optional_attributes)

    def fit(
        self,
        X: Any,
        y: Any = None,
        edge_index: Any = None,
        *,
        edge_weight: Any = None,
        train_mask: Any = None,
        val_mask: Any = None,
        split: int | str | None = 0,
        edges: Any = None,
        id: str | None = None,
        target: str | None = None,
        **tables: Any,
    ) -> Self:
        """Learn from the labeled nodes of one graph.

        Two tables are a graph, too: ``fit(nodes, edges=edges, id="node", target="label")``, each a frame or the path of
        a CSV or Parquet file. The columns of the nodes may then be of any kind, and cells may be missing; nodes without
        a label are predicted only.

        Parameters
        ----------
        X : torch_geometric.data.Data, table, path, or array of shape (N, F)
            The graph, the table of nodes, the folder of memory-mapped files that the graph is in
            (:func:`~moeapps.graph.open_graph`), or its node features, all of them numbers; a ``Data`` brings labels,
            edges (``edge_index`` or ``adj_t``), their weights (``edge_weight``, or ``edge_attr`` of one number per
            edge) and masks with it.
        y : array of shape (N,), optional
            Labels of any kind; below 0 or missing means unlabeled.
        edge_index : optional
            Edges: an array of shape (2, E), a scipy sparse matrix or array of shape (N, N) (row: source), a frame of
            edges (first two columns: source and target, by position or by the names in the index of a pandas frame
            ``X``; a third one holds weights) or a networkx graph. None means no edges at all.
        edge_weight : array of shape (E,), optional
            Weights of the edges.
        train_mask, val_mask : array of shape (N,) or array of node numbers, optional
            Nodes to train and to validate on: one bool (or 0 and 1) per node, or distinct node numbers. Without
            ``train_mask`` all labeled nodes are trained on, without ``val_mask`` a fifth of the training nodes is set
            aside.
        split : int or str, default=0
            Column of masks that hold several splits; :meth:`score` and :meth:`evaluate` take the same one. Of two
            tables the name of the column of nodes that says ``train``, ``val`` or ``test``.
        edges : DataFrame or path, optional
            The table of edges, one row each.
        id : str, optional
            Column of nodes with a different id in each row; one called ``id``, ``node`` or ``node_id`` when None.
        target : str, optional
            Column of nodes with the labels; empty where the label is to be predicted.
        **tables
            Further fields of :class:`~moeapps.graph.graph_tables.GraphTables`: ``edge_source``, ``edge_target``,
            ``edge_weight`` (a column then), ``undirected``, ``missing_nodes``, ``ignore_columns``, ``column_types``,
            ``missing_values``.

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
            options = {"id": id, "target": target, **tables}
            one_of(edge_index, edges)
            if self._means_tables(X, edges, options):
                if isinstance(split, str | None):
                    options["split"], split = split, 0
                if isinstance(edge_weight, str):
                    options["edge_weight"], edge_weight = edge_weight, None
                X = fitted._learn_tables(X, edges, options).graph
                if y is None and "y" not in X:
                    raise ConfigError("target is missing: the column of nodes with the labels")
            else:
                fitted._forget_tables()
            number: Any = split
            X = opened(X)
            refuse_other_graphs(X)
            X = frame_if_table(X)
            if isinstance(X, Data):
                fitted.__dict__.pop("feature_names_in_", None)
            else:
                validate_data(fitted, X, y, skip_check_array=True)  # names of columns, and that there is a y
                check_alignment(X, y=y)
                y = as_array(y)
                if y.ndim == 2 and y.shape[1] == 1:
                    y = column_or_1d(y, warn=True)
            own = [getattr(X, name, None) for name in MASKS] if isinstance(X, Data) else []
            check_split(number, [train_mask, val_mask, *own])
            graph = as_graph(
                X, y, edge_index, edge_weight=edge_weight, train_mask=train_mask, val_mask=val_mask, split=number
            )
            if graph.y is not None:
                check_classification_targets(known_labels(graph.y))
            seed = self._seed()
            data = GraphDataModule(graph, seed=seed, batch_size=self.batch_size, num_neighbors=self.num_neighbors)
            data.setup("fit")
            module, fitted.history_ = fitted._fit_networks(data, seed)
            fitted.n_iter_ = len(fitted.history_)
            fitted.n_features_in_ = data.in_channels
            fitted.n_edges_, fitted.normalized_ = data.edges.count("plain"), False
            fitted.__dict__.pop("weighted_", None)
            if not on_disk(graph):
                fitted.weighted_ = graph.edge_weight is not None and bool((graph.edge_weight != 1).any())
            fitted.split_ = int(number)
            fitted.classes_ = data.classes
            if isinstance(module.model, GraphMixture):
                module.model.drop_unused()
            fitted.model_ = module.model.eval()
            fitted.graph_ = bare_graph(graph) if on_disk(graph) else Data(x=graph.x, edge_index=graph.edge_index)
            fitted.graph_.edge_weight = graph.edge_weight
            fitted.graph_.edges = data.edges
            fitted.graph_.table = fitted.node_ids_
            fitted._after_training(module, data)
            fitted._note_predictions()
        return self

    @classmethod
    def from_module(cls, module: NodeModule) -> Self:
        """See :meth:`LightningEstimator.from_module`."""
        if module.classes is None:
            raise ConfigError(
                "the checkpoint does not say which classes it was trained on (moeapps 0.1 did not note them): go on "
                "with the training by moeapps fit --ckpt_path, or predict with moeapps predict"
            )
        estimator = cls._with_settings(cls._settings_of(module))
        assert module.in_channels is not None
        estimator.n_features_in_, estimator.classes_ = module.in_channels, module.classes
        if module.split is not None:
            estimator.split_ = module.split
        estimator.normalized_ = bool(module.normalized)
        estimator.model_ = module.model.eval()
        if module.node_table is not None:
            estimator.node_table_ = NodeTable.from_state(module.node_table)
        return estimator

    @classmethod
    def _settings_of(cls, module: Any) -> dict[str, Any]:
        """Settings of a module as constructor arguments."""
        return dict(module.hparams)

    def predict_proba(
        self, X: Any = None, edge_index: Any = None, *, edge_weight: Any = None, nodes: Any = None, edges: Any = None
    ) -> np.ndarray:
        """Class probabilities of nodes.

        Parameters
        ----------
        X : torch_geometric.data.Data, path, or array of shape (N, F), optional
            The graph, its folder, or its node features; the table of nodes, where the model was fitted on tables; the
            training graph when None. Labels and masks are not read.
        edge_index, edge_weight : optional
            As in :meth:`fit`. A new ``X`` needs its own edges.
        nodes : array of node numbers or mask of shape (N,), optional
            Which nodes; all when None. Of a model that was fitted on tables: their ids, or a mask.
        edges : optional
            The same as ``edge_index``: a table of edges.

        Returns
        -------
        array of shape (number of nodes, number of classes)
            Rows sum to 1; columns are in the order of ``classes_``.
        """
        graph = self._graph_to_predict(X, one_of(edge_index, edges), edge_weight)
        chosen = None if nodes is None else torch.from_numpy(self._node_index(nodes, graph))
        probabilities: np.ndarray = self._finite_log_probs(graph, chosen).exp().cpu().numpy()
        return probabilities

    def predict(
        self, X: Any = None, edge_index: Any = None, *, edge_weight: Any = None, nodes: Any = None, edges: Any = None
    ) -> np.ndarray:
        """Most probable class of nodes, one label per node; parameters as in :meth:`predict_proba`."""
        best = self.predict_proba(X, edge_index, edge_weight=edge_weight, nodes=nodes, edges=edges).argmax(axis=1)
        labels: np.ndarray = self.classes_[best]
        return labels

    def predict_frame(self, X: Any = None, edges: Any = None, *, nodes: Any = None) -> pd.DataFrame:
        """Predictions with the names of the nodes; parameters as in :meth:`predict_proba`.

        Returns
        -------
        DataFrame
            The ids (in a column called as that of the table, else ``node``), ``prediction`` and
            ``probability_<class>``.
        """
        graph = self._graph_to_predict(X, edges, None)
        chosen = None if nodes is None else self._node_index(nodes, graph)
        asked = None if chosen is None else torch.from_numpy(chosen)
        probabilities = self._finite_log_probs(graph, asked).exp().cpu().numpy()
        ids = ids_of_rows(self._nodes_of(graph), X, graph.num_nodes)
        ids = ids if chosen is None else ids.iloc[chosen].reset_index(drop=True)
        return pd.concat([ids, label_columns(self.classes_, probabilities)], axis=1)

    def _node_index(self, nodes: Any, graph: Data) -> np.ndarray:
        """Rows of nodes: from ids where the model was fitted on tables, else from numbers; or from a mask."""
        read = self._nodes_of(graph)
        if read is None or as_array(nodes).dtype == bool:
            return node_index(nodes, graph.num_nodes)
        return read.positions(nodes, "nodes")

    @staticmethod
    def _nodes_of(graph: Data) -> TableGraph | None:
        """What names the nodes of a graph that was read from tables."""
        return getattr(graph, "table", None)

    def score(
        self,
        X: Any = None,
        y: Any = None,
        edge_index: Any = None,
        *,
        sample_weight: Any = None,
        edge_weight: Any = None,
        nodes: Any = None,
        edges: Any = None,
    ) -> float:
        """Accuracy over labeled nodes.

        Parameters
        ----------
        X, edge_index, edge_weight
            As in :meth:`predict_proba`.
        y : array of shape (N,), optional
            True labels of all nodes; those of ``X`` when it is a ``Data``, or a table with the target's column.
        sample_weight : array, optional
            Weight of each scored node.
        nodes : array of node numbers or mask, optional
            Which nodes count. When None and ``X`` is a ``Data`` with a ``test_mask``: those, of the split that the
            model was fitted on if the mask has several; otherwise all.
        edges : optional
            The same as ``edge_index``: a table of edges.

        Raises
        ------
        DataError
            Naming the input that cannot be used; also if a ``test_mask`` has several splits and the model was saved by
            moeapps 0.1, which did not note the split.
        """
        graph, truth, chosen = self._nodes_to_score(X, y, one_of(edge_index, edges), edge_weight, nodes)
        predicted = self.classes_[self._finite_log_probs(graph, torch.from_numpy(chosen)).argmax(-1).cpu().numpy()]
        return float(accuracy_score(truth, predicted, sample_weight=sample_weight))

    def evaluate(
        self,
        X: Any = None,
        y: Any = None,
        edge_index: Any = None,
        *,
        edge_weight: Any = None,
        nodes: Any = None,
        edges: Any = None,
    ) -> dict[str, float]:
        """Accuracy, mean negative log-likelihood, macro-F1 and ROC-AUC over labeled nodes.

        Parameters are those of :meth:`score`.

        Returns
        -------
        dict
            ``accuracy``, ``loss``, ``macro_f1``, ``auc``. The AUC of several classes is the mean of one against the
            rest; it is NaN where a class does not occur among the nodes.
        """
        graph, truth, chosen = self._nodes_to_score(X, y, one_of(edge_index, edges), edge_weight, nodes)
        codes = encode_labels(truth, self.classes_)
        if bool((codes < 0).any()):
            raise DataError(f"y has labels that {type(self).__name__} was not fitted with")
        return measure(self._finite_log_probs(graph, torch.from_numpy(chosen)).cpu(), codes, everything=True)

    def _nodes_to_score(
        self, X: Any, y: Any, edge_index: Any, edge_weight: Any, nodes: Any
    ) -> tuple[Data, np.ndarray, np.ndarray]:
        X = opened(X) if self.node_table_ is None else X
        graph = self._graph_to_predict(X, edge_index, edge_weight)
        if (read := self._nodes_of(graph)) is not None:
            X = read.graph
        y = getattr(X, "y", None) if y is None and isinstance(X, Data) else y
        if y is None:
            raise DataError("score needs the true labels y")
        check_alignment(X, y=y)
        truth = as_labels(y, graph.num_nodes)
        test_mask = getattr(X, "test_mask", None) if isinstance(X, Data) else None
        if nodes is None and test_mask is not None:
            nodes = read_mask("test_mask", test_mask, graph.num_nodes, self._fitted_split(test_mask))
        chosen = np.arange(len(truth)) if nodes is None else self._node_index(nodes, graph)
        chosen = chosen[labeled(truth)[chosen]]
        if len(chosen) == 0:
            raise DataError("none of the nodes to score has a label")
        labels = tightened(truth[chosen])
        return graph, labels if read is None else like_classes(labels, self.classes_), chosen

    def _fitted_split(self, mask: Any) -> int:
        """Number of the split that the model was fitted on, needed if the mask has several."""
        if hasattr(self, "split_"):
            return self.split_
        if has_splits(mask):
            raise DataError(
                "test_mask has several splits, and the file of this model does not say which one it was fitted on: "
                "give nodes=data.test_mask[:, split]"
            )
        return 0

    def _graph_to_predict(self, X: Any, edge_index: Any, edge_weight: Any) -> Data:
        check_is_fitted(self, "model_")
        if X is None:
            if edge_index is not None or edge_weight is not None:
                raise DataError(
                    "edges were given without nodes: give X too, the node features, a Data or the table of nodes"
                )
            if not hasattr(self, "graph_"):
                raise DataError("a loaded model does not hold its training graph: give X, a Data or node features")
            return self.graph_
        read = self._read_tables(X, edge_index)
        if read is not None:
            X, edge_index = read.graph, None
        X = frame_if_table(opened(X))
        graph = bare_graph(X, edge_index, edge_weight=edge_weight)
        if self.normalized_:
            scaled_as_trained(graph)
        graph.edges = edges_of(graph)
        graph.table = read
        if not isinstance(X, Data):
            validate_data(self, X, reset=False, skip_check_array=True)
        elif graph.num_features != self.n_features_in_:
            raise DataError(
                f"x has {graph.num_features} features, {type(self).__name__} was fitted with {self.n_features_in_}"
            )
        lost = not graph.edges.count("plain") and graph.num_nodes > 1 and getattr(self, "n_edges_", 0)
        if lost and self._uses_edges():
            warnings.warn(
                f"the graph to predict has no edges, the one that {type(self).__name__} was fitted on had "
                f"{self.n_edges_}: predictions then rest on each node's own features; give edge_index",
                UserWarning,
                stacklevel=4,
            )
        elif self._uses_edges() and not on_disk(graph):
            warn_of_weights(getattr(self, "weighted_", None), graph.edge_weight, type(self).__name__)
        return graph

    def _graph_of_tables(self, nodes: Any, edges: Any) -> Data:
        return self._graph_to_predict(nodes, edges, None)

    def _place(self, graph: Data) -> tuple[Tensor, Edges, torch.device]:
        """Features and edges on the device where prediction happens."""
        device = resolve_device(self.accelerator)
        edges = graph.edges.to(device)
        return graph.x if edges.on_disk else graph.x.to(device), edges, device

    def _uses_edges(self) -> bool:
        """Whether predictions depend on edges."""
        return not isinstance(self.model_, MLP)

    def _finite_log_probs(self, graph: Data, nodes: Tensor | None) -> Tensor:
        """As :meth:`_log_probs`; a prediction that is NaN is an error."""
        if self.batch_size is not None:
            check_sizes(batch_size=self.batch_size)
        log_probs = self._log_probs(graph, nodes)
        bad = log_probs.isnan().any(dim=1).nonzero().flatten()
        if bad.numel():
            first = int(bad[0]) if nodes is None else int(nodes[int(bad[0])])
            raise NonFiniteError(
                f"{type(self).__name__} predicts NaN for {bad.numel()} nodes, the first is node {first}: the features "
                "or edge weights are too large for float32, or the network cannot take their sign"
            )
        return log_probs

    def _log_probs(self, graph: Data, nodes: Tensor | None = None) -> Tensor:
        """``(B, K)`` log-probabilities of these nodes, of all when None."""
        raise NotImplementedError

    def _fit_networks(self, data: GraphDataModule, seed: int) -> tuple[NodeModule, pd.DataFrame]:
        """The trained module, and what was logged."""
        module = self._make_module(weights_in_order(self.class_weight, data.classes))
        return module, self._train(module, data, seed, **self._stopping())

    def _search(
        self, data: GraphDataModule, seed: int, networks: Networks, weak: str | None
    ) -> tuple[MowstModule, pd.DataFrame]:
        """Train several networks alone and keep the one that validates best; notes it in ``network_``."""
        sizes = {name: getattr(self, name) for name in field_names(NetworkConfig)}
        training = {name: getattr(self, name) for name in ("monitor", "patience", "lr", "weight_decay")}
        weight = weights_in_order(self.class_weight, data.classes)
        module: MowstModule = MowstModule(
            variant="best", strong=networks, weak=weak, class_weight=weight, **sizes, **training
        )
        history = self._train(module, data, seed)
        self.network_ = dict(module.networks[module.plan.champion])  # type: ignore[arg-type]
        self.selected_ = module.selection()
        return module, history

    @property
    def selection_(self) -> pd.DataFrame:
        """The networks that competed; see the class."""
        check_is_fitted(self, "model_")
        if not hasattr(self, "selected_"):
            raise AttributeError("only one network was trained: there was nothing to select")
        table = pd.DataFrame(self.selected_)
        if "norm" in table:  # None is a norm here, not a missing value
            table["norm"] = pd.Series([row.get("norm") for row in self.selected_], dtype=object)
        return table

    def _make_module(self, class_weight: Any) -> NodeModule:
        raise NotImplementedError

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
        self.classes_ = classes_from_json(state["classes_"])
        super()._restore(state)
