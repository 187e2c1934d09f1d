"""The scikit-learn face of node classification: ``GNNClassifier`` and ``MowstClassifier``."""

import copy
from typing import Any, Literal, Self

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Tensor, nn
from torch_geometric.data import Data

from moeapps.core.errors import DataError
from moeapps.core.estimator import LightningEstimator, resolve_device
from moeapps.core.saving import labels_from_json, labels_to_json
from moeapps.graph.data import GraphDataModule
from moeapps.graph.inputs import as_graph, labeled
from moeapps.graph.module import GNNModule, MowstModule, NodeModule
from moeapps.graph.mowst import Inference, Mowst, MowstOutput, Variant
from moeapps.graph.networks import make_network, run_network
from moeapps.graph.plan import Pretrain

__all__ = ["GNNClassifier", "MowstClassifier"]


class _NodeClassifier(ClassifierMixin, LightningEstimator):
    """What both classifiers share: inputs, labels, masks, prediction."""

    classes_: np.ndarray

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
        edge_index : array of shape (2, E) or scipy sparse matrix of shape (N, N), optional
            Edges, or no edges at all when None.
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
        fitted = copy.copy(self)
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
        data = GraphDataModule(graph, seed=seed)
        data.setup("fit")
        module = self._make_module()
        fitted.history_ = fitted._train(module, data, seed, **self._stopping())
        fitted.n_iter_ = len(fitted.history_)
        fitted.n_features_in_ = data.in_channels
        fitted.classes_ = data.classes
        fitted.model_ = module.model.eval()
        fitted.graph_ = Data(x=graph.x, edge_index=graph.edge_index, edge_weight=graph.edge_weight)
        fitted._after_training(module, data)
        self.__dict__ = fitted.__dict__
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
        probabilities = self._log_probs(graph).exp().cpu().numpy()
        return probabilities if nodes is None else probabilities[_node_index(nodes, len(probabilities))]

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
        graph = self._graph_to_predict(X, edge_index, edge_weight)
        truth = as_graph(graph.x, y if y is not None or not isinstance(X, Data) else X.y).y
        if truth is None:
            raise DataError("score needs the true labels y")
        if nodes is None and isinstance(X, Data) and "test_mask" in X:
            nodes = as_graph(X).test_mask
        chosen = np.arange(len(truth)) if nodes is None else _node_index(nodes, len(truth))
        chosen = chosen[labeled(truth)[chosen]]
        if len(chosen) == 0:
            raise DataError("none of the nodes to score has a label")
        predicted = self.classes_[self._log_probs(graph).argmax(-1).cpu().numpy()[chosen]]
        return float(accuracy_score(truth[chosen], predicted, sample_weight=sample_weight))

    def _graph_to_predict(self, X: Any, edge_index: Any, edge_weight: Any) -> Data:
        check_is_fitted(self, "model_")
        if X is None:
            if not hasattr(self, "graph_"):
                raise DataError("a loaded model does not hold its training graph: give X, a Data or node features")
            return self.graph_
        graph = as_graph(X, None, edge_index, edge_weight=edge_weight)
        if not isinstance(X, Data):
            validate_data(self, X, reset=False, skip_check_array=True)
        elif graph.num_features != self.n_features_in_:
            raise DataError(
                f"x has {graph.num_features} features, {type(self).__name__} was fitted with {self.n_features_in_}"
            )
        return graph

    @torch.no_grad()
    def _log_probs(self, graph: Data) -> Tensor:
        device = resolve_device(self.accelerator)
        model = self.model_.to(device)
        weight = graph.edge_weight.to(device) if graph.edge_weight is not None else None
        return self._forward(model, graph.x.to(device), graph.edge_index.to(device), weight)

    def _forward(self, model: nn.Module, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _make_module(self) -> NodeModule:
        raise NotImplementedError

    def _stopping(self) -> dict[str, Any]:
        """What :meth:`_train` has to watch."""
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


class GNNClassifier(_NodeClassifier):
    """One network alone as a node classifier: the baseline that a mixture has to beat.

    Trained with cross-entropy and early stopping on validation accuracy; the best weights are kept.

    Parameters
    ----------
    network : str or torch.nn.Module
        ``"gcn"``, ``"sage"``, ``"mlp"`` (no edges), or a module with ``forward(x, edge_index)``.
    hidden_channels : int
        Width of the hidden layers.
    num_layers : int
        Number of layers.
    dropout : float
        Dropout probability.
    norm : str or None
        Norm after each hidden layer: ``"batch_norm"`` or None.
    lr, weight_decay : float
        Learning rate and L2 penalty of Adam.
    max_epochs : int
        Most epochs.
    patience : int
        Epochs without improvement after which training stops.
    accelerator : str
        Lightning's accelerator: ``"auto"``, ``"cpu"``, ``"gpu"``, ...
    verbose : bool
        Whether to show a progress bar.
    log_dir : str or None
        Folder for metrics and the last checkpoint; None leaves nothing on disk.
    random_state : int, RandomState or None
        Seed of weights, dropout and validation split.

    Attributes
    ----------
    classes_ : array of shape (K,)
        Class labels.
    model_ : torch.nn.Module
        The trained network.
    history_ : pandas.DataFrame
        What was logged, one row per epoch.
    n_iter_ : int
        Epochs run.
    n_features_in_ : int
        Features per node.

    Examples
    --------
    >>> from moeapps.graph import GNNClassifier, load_cora
    >>> cora = load_cora()
    >>> gcn = GNNClassifier(norm=None, max_epochs=20, random_state=0).fit(cora)
    >>> gcn.score(cora) > 0.6
    True

    """

    _saved_attributes = ("n_features_in_", "n_iter_")

    def __init__(
        self,
        network: str | nn.Module = "gcn",
        hidden_channels: int = 64,
        num_layers: int = 2,
        dropout: float = 0.5,
        norm: str | None = "batch_norm",
        lr: float = 0.01,
        weight_decay: float = 5e-4,
        max_epochs: int = 500,
        patience: int = 40,
        accelerator: str = "auto",
        verbose: bool = False,
        log_dir: str | None = None,
        random_state: Any = None,
    ) -> None:
        self.network = network
        self.hidden_channels = hidden_channels
        self.num_layers = num_layers
        self.dropout = dropout
        self.norm = norm
        self.lr = lr
        self.weight_decay = weight_decay
        self.max_epochs = max_epochs
        self.patience = patience
        self.accelerator = accelerator
        self.verbose = verbose
        self.log_dir = log_dir
        self.random_state = random_state

    def _make_module(self) -> GNNModule:
        return GNNModule(
            network=copy.deepcopy(self.network),
            hidden_channels=self.hidden_channels,
            num_layers=self.num_layers,
            dropout=self.dropout,
            norm=self.norm,
            lr=self.lr,
            weight_decay=self.weight_decay,
        )

    def _stopping(self) -> dict[str, Any]:
        return {"monitor": "val/accuracy", "mode": "max"}

    def _forward(self, model: nn.Module, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None) -> Tensor:
        return run_network(model, x, edge_index, edge_weight).log_softmax(-1)

    def _build_model(self) -> nn.Module:
        return make_network(
            self.network,
            self.n_features_in_,
            len(self.classes_),
            hidden_channels=self.hidden_channels,
            num_layers=self.num_layers,
            dropout=self.dropout,
            norm=self.norm,
        )


class MowstClassifier(_NodeClassifier):
    """Mixture of a weak expert (MLP) and a strong expert (GNN) as a node classifier.

    The weak expert looks at a node alone; the strong one is trusted where the weak one is unsure. Validation nodes
    fit the gate and choose what is kept (see :class:`~moeapps.graph.MowstModule`), so the result never validates
    worse than either expert alone.

    Parameters
    ----------
    strong : str or torch.nn.Module
        ``"gcn"``, ``"sage"``, or a module with ``forward(x, edge_index)``.
    weak : str or torch.nn.Module
        ``"mlp"``, or a module with ``forward(x)``.
    variant : {"mowst_star", "mowst"}
        Joint training, or training in turns.
    hidden_channels, num_layers : int
        Width and number of layers of both experts.
    dropout : float
        Dropout probability of both experts.
    norm : str or None
        Norm after each hidden layer: ``"batch_norm"`` or None.
    confidence : {"learned", "given"}
        Where the confidence comes from.
    dispersion : {"variance", "entropy"}
        For the given confidence.
    gate_fit : {"holdout", "train"}
        Nodes that the gate is fitted on: validation nodes, or training nodes as in the paper's code.
    pretrain : {"both", "strong", "weak", "none"}
        Experts that are first trained alone.
    lr, weight_decay : float
        Learning rate and L2 penalty of Adam.
    lr_gate : float or None
        Learning rate of the gate; ``lr`` when None.
    max_epochs : int
        Most epochs, over all stages.
    patience : int
        Epochs without improvement that end a stage.
    round_patience : int
        Rounds without improvement that end training in turns.
    inference : {"mix", "threshold", "sample"}
        How to predict; ``"threshold"`` takes the strong expert only where confidence is below ``threshold``.
    threshold : float
        For ``inference="threshold"``.
    accelerator : str
        Lightning's accelerator: ``"auto"``, ``"cpu"``, ``"gpu"``, ...
    verbose : bool
        Whether to show a progress bar.
    log_dir : str or None
        Folder for metrics and the last checkpoint; None leaves nothing on disk.
    random_state : int, RandomState or None
        Seed of weights, dropout, validation split and sampled inference.

    Attributes
    ----------
    classes_ : array of shape (K,)
        Class labels.
    model_ : Mowst
        The trained model.
    champion_ : str
        What validated best and is predicted with: ``"mix"``, ``"strong"`` or ``"weak"``.
    confidence_ : dict
        Mean confidence on training and on validation nodes.
    n_rounds_ : int
        Rounds of turns begun (1 for joint training).
    history_ : pandas.DataFrame
        What was logged, one row per epoch.
    n_iter_ : int
        Epochs run.
    n_features_in_ : int
        Features per node.

    References
    ----------
    Zeng, Lyu, Hu, Xia, Luo. Mixture of Weak & Strong Experts on Graphs. ICLR 2024.

    Examples
    --------
    >>> from moeapps.graph import MowstClassifier, load_cora
    >>> cora = load_cora()
    >>> mowst = MowstClassifier(norm=None, patience=5, max_epochs=60, random_state=0).fit(cora)
    >>> mowst.predict(cora).shape, mowst.score(cora) > 0.6
    ((2708,), True)

    """

    _saved_attributes = (
        "n_features_in_",
        "n_iter_",
        "champion_",
        "confidence_",
        "n_rounds_",
        "sampling_seed_",
    )

    def __init__(
        self,
        strong: str | nn.Module = "gcn",
        weak: str | nn.Module = "mlp",
        variant: Variant = "mowst_star",
        hidden_channels: int = 64,
        num_layers: int = 2,
        dropout: float = 0.5,
        norm: str | None = "batch_norm",
        confidence: Literal["learned", "given"] = "learned",
        dispersion: Literal["variance", "entropy"] = "variance",
        gate_fit: Literal["holdout", "train"] = "holdout",
        pretrain: Pretrain = "both",
        lr: float = 0.01,
        lr_gate: float | None = None,
        weight_decay: float = 5e-4,
        max_epochs: int = 1000,
        patience: int = 40,
        round_patience: int = 2,
        inference: Inference = "mix",
        threshold: float = 0.5,
        accelerator: str = "auto",
        verbose: bool = False,
        log_dir: str | None = None,
        random_state: Any = None,
    ) -> None:
        self.strong = strong
        self.weak = weak
        self.variant = variant
        self.hidden_channels = hidden_channels
        self.num_layers = num_layers
        self.dropout = dropout
        self.norm = norm
        self.confidence = confidence
        self.dispersion = dispersion
        self.gate_fit = gate_fit
        self.pretrain = pretrain
        self.lr = lr
        self.lr_gate = lr_gate
        self.weight_decay = weight_decay
        self.max_epochs = max_epochs
        self.patience = patience
        self.round_patience = round_patience
        self.inference = inference
        self.threshold = threshold
        self.accelerator = accelerator
        self.verbose = verbose
        self.log_dir = log_dir
        self.random_state = random_state

    def predict_confidence(
        self, X: Any = None, edge_index: Any = None, *, edge_weight: Any = None, nodes: Any = None
    ) -> np.ndarray:
        """Confidence of the weak expert in [0, 1] for each node; parameters as in :meth:`predict_proba`."""
        output = self._output(self._graph_to_predict(X, edge_index, edge_weight), "mix")
        confidence: np.ndarray = output.confidence.cpu().numpy()
        return confidence if nodes is None else confidence[_node_index(nodes, len(confidence))]

    def route(self, X: Any = None, edge_index: Any = None, *, edge_weight: Any = None, nodes: Any = None) -> np.ndarray:
        """Which nodes' predictions use the strong expert, as a bool array; parameters as in :meth:`predict_proba`.

        With ``inference="mix"`` these are the nodes that a threshold would send there.
        """
        mode = "threshold" if self.inference == "mix" else self.inference
        output = self._output(self._graph_to_predict(X, edge_index, edge_weight), mode)
        used: np.ndarray = output.used_strong.cpu().numpy()
        return used if nodes is None else used[_node_index(nodes, len(used))]

    @torch.no_grad()
    def _output(self, graph: Data, mode: Inference) -> MowstOutput:
        device = resolve_device(self.accelerator)
        weight = graph.edge_weight.to(device) if graph.edge_weight is not None else None
        output: MowstOutput = self.model_.to(device)(
            graph.x.to(device),
            graph.edge_index.to(device),
            weight,
            mode=mode,
            threshold=self.threshold,
            generator=torch.Generator().manual_seed(self.sampling_seed_),
        )
        return output

    def _log_probs(self, graph: Data) -> Tensor:
        return self._output(graph, self.inference).log_probs

    def _make_module(self) -> MowstModule:
        return MowstModule(
            variant=self.variant,
            strong=copy.deepcopy(self.strong),
            weak=copy.deepcopy(self.weak),
            hidden_channels=self.hidden_channels,
            num_layers=self.num_layers,
            dropout=self.dropout,
            norm=self.norm,
            confidence=self.confidence,
            dispersion=self.dispersion,
            gate_fit=self.gate_fit,
            pretrain=self.pretrain,
            patience=self.patience,
            round_patience=self.round_patience,
            lr=self.lr,
            lr_gate=self.lr_gate,
            weight_decay=self.weight_decay,
            inference=self.inference,
            threshold=self.threshold,
        )

    def _after_training(self, module: MowstModule, data: GraphDataModule) -> None:
        self.champion_ = module.plan.champion
        self.n_rounds_ = module.plan.round + 1
        self.sampling_seed_ = data.seed
        confidence = self._output(self.graph_, "mix").confidence
        self.confidence_ = {
            name: float(confidence[data.graph[mask]].mean())
            for name, mask in (("train", "train_mask"), ("val", "val_mask"))
        }

    def _build_model(self) -> Mowst:
        return Mowst(
            self.n_features_in_,
            len(self.classes_),
            hidden_channels=self.hidden_channels,
            num_layers=self.num_layers,
            dropout=self.dropout,
            norm=self.norm,
            weak=self.weak,
            strong=self.strong,
            variant=self.variant,
            confidence=self.confidence,
            dispersion=self.dispersion,
        )


def _node_index(nodes: Any, num_nodes: int) -> np.ndarray:
    """Node numbers from node numbers or a bool mask.

    Raises:
        DataError: If a mask has another length, or a number is outside the graph.

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
