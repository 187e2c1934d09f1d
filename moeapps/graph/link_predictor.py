"""Which pairs of nodes are linked: several experts and their mixture behind scikit-learn's interface."""

# N nodes, B pairs, F features, E experts

import copy
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn
from torch_geometric.data import Data

from moeapps.core.checks import check_sizes
from moeapps.core.config import config_from, store_arguments
from moeapps.core.errors import DataError, NonFiniteError
from moeapps.core.estimator import resolve_device
from moeapps.core.mixing.inputs import LOWEST
from moeapps.core.tabledata.frames import frame_if_table
from moeapps.graph.as_trained import scaled_as_trained, warn_of_weights
from moeapps.graph.experts_estimator import ExpertsEstimator
from moeapps.graph.graph_tables import GraphTables
from moeapps.graph.inputs import bare_graph, refuse_other_graphs
from moeapps.graph.link_data import LinkData
from moeapps.graph.link_graph import LinkGraph
from moeapps.graph.link_module import Decoder, LinkConfig, LinkModule, link_scores, make_link_experts
from moeapps.graph.links import LinkBatch, Structure, labeled_pairs, link_labels
from moeapps.graph.node_table import NodeTable
from moeapps.graph.table_input import TableInput, one_of

__all__ = ["MowstLinkPredictor"]


class MowstLinkPredictor(TableInput, ExpertsEstimator):
    """Mixture of weak and strong experts for links: an MLP on the two nodes, graph networks, and common neighbours.

    Every expert is trained alone on the links of one graph, against pairs without a link that are drawn anew in each
    step. Links for validation are held out of the graph; on them each expert alone, the experts' mean and several gates
    compete (:func:`~moeapps.core.mixing.fit_mixture`), and what did best predicts. A gate sees how sure the experts
    are, and the structure around the pair.

    Probabilities are those of a pair that is linked as often as not. On a sparse graph most pairs are not linked:
    take them as a score to rank by.

    Parameters
    ----------
    strong : str, torch.nn.Module or list of these, default="auto"
        Graph networks, by the names of :func:`~moeapps.graph.networks.make_network` (``"gcn"``, ``"sage"``, ``"gat"``,
        ``"gatv2"``, ``"gin"``, each also with ``_skip`` or ``_jk``), or modules with ``forward(x, edge_index)`` and
        ``hidden_channels`` outputs. ``"auto"``: gcn, sage and gin; only gcn for edges with weights.
    weak : str, torch.nn.Module or None, default="mlp"
        Network that sees each node's own features and no edges; None for none.
    decoder : {"hadamard", "dot", "mlp"}, default="hadamard"
        From what a network knows of two nodes to a link: a network of their product number by number, the sum of that
        product, or a network of both beside each other, the only one that tells the directions of an edge apart.
    structure : bool, default=True
        Whether common neighbours, Adamic-Adar, resource allocation, Jaccard and degrees are one more expert.
    disjoint_train_ratio : float, default=0.5
        Part of the links that a step on the whole graph learns from; they pass no messages in that step.
    hidden_channels, num_layers, dropout, norm
        Sizes of the networks, see :class:`~moeapps.graph.networks.NetworkConfig`.
    gate : str, default="auto"
        How the experts are mixed: ``"auto"`` (whatever does best), ``"best"``, ``"mean"``, ``"constant"``,
        ``"confidence"``, ``"linear"``, ``"mlp"`` or ``"stacked"``.
    lr, weight_decay : float, default=0.01 and 0.0
        Learning rate and L2 penalty of Adam.
    max_epochs : int, default=200
        Maximum number of epochs.
    patience : int, default=20
        Epochs without improvement after which an expert rests; training ends when all do.
    monitor : {"auc", "average_precision", "loss"}, default="auc"
        Validation score that keeps an expert's weights.
    val_fraction : float, default=0.1
        Part of the links to hold out for validation.
    inference : {"mix", "cascade"}, default="mix"
        Whether all experts that the mixture needs are asked for every pair; or one after the other in the order of
        their cost, as far as it pays. A graph network then runs on the neighbourhood of the pairs that need it, with
        the same result as on the whole graph.
    budget : float, optional
        For the cascade: largest mean cost per pair, as a fraction of asking all.
    tolerance : float, optional
        For the cascade: log loss that may be given up against asking all; 0 when neither is given.
    batch_size : int, optional
        Links in a mini-batch, each node with ``num_neighbors`` randomly drawn neighbours at each hop, and nodes
        predicted at a time, with all neighbours. None takes the whole graph at once.
    num_neighbors : list of int, optional
        One number per layer, -1 for all; 10 each when None. For mini-batches.
    accelerator : str, default="auto"
        Lightning's accelerator: ``"auto"``, ``"cpu"``, ``"gpu"``, ...
    verbose : bool, default=False
        Whether to show a progress bar.
    log_dir : str, optional
        Folder for metrics and the last checkpoint; None leaves nothing on disk.
    logger : str, Logger or list of Logger, default=None
        ``"csv"``, ``"tensorboard"``, ``"wandb"`` or ``"mlflow"``, several with commas, in a new folder of ``log_dir``;
        or loggers of Lightning. None logs to CSV where there is a ``log_dir``.
    random_state : int, RandomState, optional
        Seed of weights, dropout, held-out links and pairs without a link.

    Attributes
    ----------
    classes_ : array of shape (2,)
        0 (no link) and 1.
    champion_ : str
        The candidate that predicts.
    candidates_ : pandas.DataFrame
        What competed, with its loss on validation pairs.
    expert_names_ : list of str
        Names of the experts.
    model_ : torch.nn.ModuleList
        The experts.
    mixture_, cascade_
        The fitted :class:`~moeapps.core.mixing.GatedMixture` and :class:`~moeapps.core.mixing.Cascade`.
    directed_ : bool
        Whether the direction of a pair matters.
    history_ : pandas.DataFrame
        Logged metrics, one row per epoch.
    n_iter_ : int
        Epochs run.
    n_features_in_ : int
        Features per node.

    Examples
    --------
    >>> from moeapps.graph import MowstLinkPredictor, load_cora
    >>> model = MowstLinkPredictor("gcn", max_epochs=3, random_state=0).fit(load_cora())
    >>> model.predict_proba([[0, 633], [0, 1]]).shape
    (2, 2)
    """

    decoder: Decoder
    structure: bool
    val_fraction: float
    batch_size: int | None
    num_neighbors: Any
    directed_: bool
    graph_: LinkGraph
    classes_ = np.array([0, 1])
    _saved_attributes = (*ExpertsEstimator._saved_attributes, "directed_")
    _num_gate_features = len(Structure.columns)

    def __init__(
        self,
        strong: Any = "auto",
        weak: Any = "mlp",
        decoder: Decoder = "hadamard",
        structure: bool = True,
        disjoint_train_ratio: float = 0.5,
        hidden_channels: int = 64,
        num_layers: int = 2,
        dropout: float = 0.5,
        norm: str | None = "batch_norm",
        gate: str = "auto",
        lr: float = 0.01,
        weight_decay: float = 0.0,
        max_epochs: int = 200,
        patience: int = 20,
        monitor: Literal["auc", "average_precision", "loss"] = "auc",
        val_fraction: float = 0.1,
        inference: Literal["mix", "cascade"] = "mix",
        budget: float | None = None,
        tolerance: float | None = None,
        batch_size: int | None = None,
        num_neighbors: Any = None,
        accelerator: str = "auto",
        verbose: bool = False,
        log_dir: str | None = None,
        random_state: Any = None,
        logger: Any = None,
    ) -> None:
        store_arguments(self, locals())

    def fit(
        self,
        X: Any,
        edge_index: Any = None,
        *,
        edge_weight: Any = None,
        val_data: Data | None = None,
        edges: Any = None,
        id: str | None = None,
        **tables: Any,
    ) -> Self:
        """Learn from the links of one graph.

        Parameters
        ----------
        X : torch_geometric.data.Data, table, or array of shape (N, F)
            The graph, its node features, or with ``edges`` the table of nodes. Where PyG's RandomLinkSplit made the
            ``Data``, the pairs of ``edge_label_index`` with label 1 are trained on, otherwise all edges.
        edge_index : optional
            Edges beside ``X``, in any form that :meth:`MowstClassifier.fit` takes.
        edge_weight : array of shape (E,), optional
            Weights of the edges.
        val_data : Data, optional
            Validation pairs, as RandomLinkSplit makes them: ``edge_label_index`` with ``edge_label``. When None, a part
            ``val_fraction`` of the links is held out of the graph.
        edges : DataFrame or path, optional
            The table of edges, as in :meth:`MowstClassifier.fit`. Pairs are then named by ids everywhere.
        id : str, optional
            Column of nodes with a different id in each row.
        **tables
            Further fields of :class:`~moeapps.graph.graph_tables.GraphTables`.

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
            self._check_mixing()
            options = {"id": id, **tables}
            one_of(edge_index, edges)
            if self._means_tables(X, edges, options):
                if isinstance(edge_weight, str):
                    options["edge_weight"], edge_weight = edge_weight, None
                X = fitted._learn_tables(X, edges, options).graph
            else:
                fitted._forget_tables()
            refuse_other_graphs(X)
            X = frame_if_table(X)
            graph = bare_graph(X, edge_index, edge_weight=edge_weight)
            if isinstance(X, Data):
                fitted.__dict__.pop("feature_names_in_", None)
                for name in ("edge_label_index", "edge_label", "pos_edge_label_index"):
                    if edge_index is None and getattr(X, name, None) is not None:
                        graph[name] = X[name]
            else:
                validate_data(fitted, X, skip_check_array=True)  # names of columns
            seed = self._seed()
            data = LinkData(
                graph, val_fraction=self.val_fraction, test_fraction=0.0, batch_size=self.batch_size,
                num_neighbors=self.num_neighbors, seed=seed % 2**31, val=val_data,
            )  # fmt: skip
            data.setup("fit")
            own = {"strong": copy.deepcopy(self.strong), "weak": copy.deepcopy(self.weak)}
            module = LinkModule.from_config(config=config_from(LinkConfig, self, **own))
            fitted._fit_experts(module, data, seed)
            fitted.directed_ = data.directed
            fitted.graph_ = LinkGraph.of(graph, X, fitted.node_ids_, fitted._pair_columns())
        return self

    def read_graph(self, X: Any, edge_index: Any = None, *, edge_weight: Any = None) -> LinkGraph:
        """Read a graph once, to ask it for pairs many times.

        Parameters
        ----------
        X, edge_index, edge_weight
            As in :meth:`predict_proba`.

        Returns
        -------
        LinkGraph
            What the other methods take as ``X``.
        """
        check_is_fitted(self, "model_")
        if isinstance(X, LinkGraph):
            if edge_index is not None or edge_weight is not None:
                raise DataError("X is a graph that was read already, with its edges: leave edge_index out")
            return X
        read = self._read_tables(X, edge_index)
        if read is not None:
            X, edge_index = read.graph, None
        X = frame_if_table(X)
        graph = bare_graph(X, edge_index, edge_weight=edge_weight)
        if graph.x.shape[1] != self.n_features_in_:
            raise DataError(
                f"x has {graph.x.shape[1]} features, {type(self).__name__} was fitted with {self.n_features_in_}"
            )
        if not isinstance(X, Data):
            validate_data(self, X, reset=False, skip_check_array=True)  # names of columns
        if self.normalized_:
            scaled_as_trained(graph)
        warn_of_weights(self.weighted_, graph.edge_weight, type(self).__name__)
        return LinkGraph.of(graph, X, read, self._pair_columns())

    def predict_proba(
        self, pairs: Any, X: Any = None, edge_index: Any = None, *, edge_weight: Any = None
    ) -> np.ndarray:
        """Probability that pairs are linked, from all edges of the graph.

        Parameters
        ----------
        pairs : array of shape (B, 2), frame, path or Data
            Node numbers; or a frame whose first two columns name nodes as the index of a pandas frame ``X`` does; or a
            ``Data`` of RandomLinkSplit, which brings pairs and graph. Where the model was fitted on tables, ids: an
            array, or a frame or file whose columns are called as those of the edges.
        X : torch_geometric.data.Data, table, LinkGraph or array of shape (N, F), optional
            The graph, its node features or the table of nodes, or what :meth:`read_graph` made of them; the training
            graph when None.
        edge_index, edge_weight : optional
            As in :meth:`fit`. A new ``X`` needs its own edges.

        Returns
        -------
        array of shape (B, 2)
            Probability of no link and of a link.
        """
        return self._answer(self._read(pairs, X, edge_index, edge_weight)).mixed

    def predict(self, pairs: Any, X: Any = None, edge_index: Any = None, *, edge_weight: Any = None) -> np.ndarray:
        """1 where a pair is more likely linked than not, else 0; parameters as in :meth:`predict_proba`."""
        probability = self.predict_proba(pairs, X, edge_index, edge_weight=edge_weight)
        return (probability[:, 1] > 0.5).astype(np.int64)

    def predict_table(
        self, pairs: Any, X: Any = None, edge_index: Any = None, *, edge_weight: Any = None
    ) -> pd.DataFrame:
        """Predictions with the weights behind them; parameters as in :meth:`predict_proba`.

        Returns
        -------
        DataFrame
            ``source``, ``target`` (node numbers, or ids of a table), ``probability``, ``weight_<expert>`` and, with
            ``inference="cascade"``, ``asked_<expert>``.
        """
        graph = self._graph_of(pairs, X, edge_index, edge_weight)
        batch = self._batch(pairs, graph)
        answer, (source, target) = self._answer(batch), map(graph.ids, batch.pairs.cpu().numpy())
        columns = {"source": source, "target": target, "probability": answer.mixed[:, 1]}
        return pd.DataFrame({**columns, **self._weight_columns(answer)})

    def expert_predictions(
        self, pairs: Any, X: Any = None, edge_index: Any = None, *, edge_weight: Any = None
    ) -> dict[str, np.ndarray]:
        """Probabilities ``(B, 2)`` of each expert alone, by its name; parameters as in :meth:`predict_proba`."""
        predictions = np.exp(self._predictions(self._read(pairs, X, edge_index, edge_weight)))
        return {name: predictions[:, e] for e, name in enumerate(self.expert_names_)}

    def score(
        self, pairs: Any, y: Any = None, X: Any = None, edge_index: Any = None, *, edge_weight: Any = None
    ) -> float:
        """ROC-AUC, which no share of linked pairs changes; parameters as in :meth:`evaluate`."""
        return self.evaluate(pairs, y, X, edge_index, edge_weight=edge_weight)["auc"]

    def evaluate(
        self, pairs: Any, y: Any = None, X: Any = None, edge_index: Any = None, *, edge_weight: Any = None
    ) -> dict[str, float]:
        """Scores of pairs with labels.

        Parameters
        ----------
        pairs, X, edge_index, edge_weight
            As in :meth:`predict_proba`.
        y : array of shape (B,), optional
            1 (linked) and 0; not needed where ``pairs`` is a ``Data`` with ``edge_label``.

        Returns
        -------
        dict
            ``auc``, ``average_precision``, ``hits@10``, ``hits@50``, ``mrr``, ``loss``, ``accuracy``; see
            :func:`~moeapps.graph.link_module.link_scores`.
        """
        batch = self._labeled(pairs, y, X, edge_index, edge_weight)
        mixed = np.log(np.maximum(self._answer(batch).mixed, np.exp(LOWEST)))
        return link_scores(torch.from_numpy(mixed), batch.y)

    def compare(
        self, pairs: Any, y: Any = None, X: Any = None, edge_index: Any = None, *, edge_weight: Any = None
    ) -> pd.DataFrame:
        """Scores of the mixture and of each expert alone, one row each; parameters as in :meth:`evaluate`."""
        batch = self._labeled(pairs, y, X, edge_index, edge_weight)
        return self._compare(batch, lambda log_probs: link_scores(log_probs, batch.y))

    def cost_curve(
        self, pairs: Any, y: Any = None, X: Any = None, edge_index: Any = None, *, edge_weight: Any = None
    ) -> pd.DataFrame:
        """Cost against score of the cascade over all thresholds; parameters as in :meth:`evaluate`.

        Returns
        -------
        DataFrame
            See :meth:`Cascade.curve <moeapps.core.mixing.Cascade.curve>`.
        """
        batch = self._labeled(pairs, y, X, edge_index, edge_weight)
        return self._cost_curve(batch, batch.y.cpu().numpy())

    @classmethod
    def from_module(cls, module: LinkModule) -> Self:  # type: ignore[override]
        """See :meth:`LightningEstimator.from_module`."""
        estimator = super().from_module(module)
        estimator.directed_ = bool(module.directed)
        if module.node_table is not None:
            estimator.node_table_ = NodeTable.from_state(module.node_table)
        return estimator

    # ------------------------------------------------------------------ reading

    def _read(self, pairs: Any, X: Any, edge_index: Any, edge_weight: Any) -> LinkBatch:
        return self._batch(pairs, self._graph_of(pairs, X, edge_index, edge_weight))

    def _graph_of_tables(self, nodes: Any, edges: Any) -> LinkGraph:
        return self.read_graph(nodes, edges)

    def _graph_of(self, pairs: Any, X: Any, edge_index: Any, edge_weight: Any) -> LinkGraph:
        """The graph of the pairs: the one that was given, that of a ``Data``, or that of the training."""
        check_is_fitted(self, "model_")
        if isinstance(pairs, Data):
            if X is not None or edge_index is not None:
                raise DataError("pairs is a Data, which brings its graph: leave X and edge_index out")
            return self.read_graph(pairs, edge_weight=edge_weight)
        if X is not None:
            return self.read_graph(X, edge_index, edge_weight=edge_weight)
        if edge_index is not None or edge_weight is not None:
            raise DataError("edge_index was given without X: give the graph as a Data, or node features beside it")
        if not hasattr(self, "graph_"):
            what = "X, a Data or node features" if self.node_table_ is None else "the tables of nodes and edges"
            raise DataError(f"a loaded model does not hold its training graph: give {what}")
        return self.graph_

    def _batch(self, pairs: Any, graph: LinkGraph) -> LinkBatch:
        if self.batch_size is not None:
            check_sizes(batch_size=self.batch_size)
        if isinstance(pairs, Data):
            found = labeled_pairs(pairs, graph.x.shape[0])
            if found is None:
                raise DataError(
                    "pairs is a Data without edge_label_index: give pairs as an array (B, 2), the Data as X"
                )
            chosen, y = found
        else:
            chosen = graph.pairs(pairs)
            y = torch.full((chosen.shape[1],), -1)
        batch = LinkBatch(
            graph.x, graph.edges, graph.structure, chosen, y, chosen[:, :0], batch_size=self.batch_size
        )  # fmt: skip
        return batch.to(resolve_device(self.accelerator))

    def _pair_columns(self) -> GraphTables | None:
        return None if self.node_table_ is None else self.node_table_.tables

    def _labeled(self, pairs: Any, y: Any, X: Any, edge_index: Any, edge_weight: Any) -> LinkBatch:
        batch = self._read(pairs, X, edge_index, edge_weight)
        if y is not None:
            batch.y = link_labels(y, batch.pairs.shape[1], "y")
        elif not isinstance(pairs, Data):
            raise DataError("the labels y are needed: 1 for a pair that is linked, 0 for one that is not")
        return batch

    # ------------------------------------------------------------------ experts

    def _gate_features(self, batch: LinkBatch) -> np.ndarray:
        return batch.structure.features(batch.pairs)

    @torch.no_grad()
    def _ask(self, expert: nn.Module, batch: LinkBatch, rows: np.ndarray | None) -> np.ndarray:
        if rows is not None:
            batch = copy.copy(batch)
            batch.pairs = batch.pairs[:, torch.from_numpy(rows).to(batch.pairs.device)]
        scores = expert.to(batch.x.device).eval()(batch).double()
        if bool(scores.isnan().any()):
            raise NonFiniteError(
                f"{type(self).__name__} predicts NaN: the features or edge weights are too large for float32"
            )
        log_probs = nn.functional.logsigmoid(torch.stack([-scores, scores], dim=1))
        return np.maximum(log_probs.cpu().numpy(), LOWEST)

    def _make_experts(self) -> list[nn.Module]:
        config = config_from(LinkConfig, self)
        return make_link_experts(config, self.n_features_in_, self.directed_, self.weighted_)[1]
