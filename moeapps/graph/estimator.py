"""The scikit-learn face of node classification: ``GNNClassifier`` and ``MowstClassifier``."""

import copy
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from moeapps.core.estimator import resolve_device
from moeapps.graph.data import GraphDataModule
from moeapps.graph.module import MowstModule
from moeapps.graph.mowst import Inference, Mowst, MowstOutput, Variant
from moeapps.graph.networks import make_network, run_network
from moeapps.graph.node_classifier import NodeClassifier, node_index
from moeapps.graph.node_module import GNNModule
from moeapps.graph.plan import Pretrain

__all__ = ["GNNClassifier", "MowstClassifier"]


class GNNClassifier(NodeClassifier):
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


class MowstClassifier(NodeClassifier):
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
        return confidence if nodes is None else confidence[node_index(nodes, len(confidence))]

    def route(self, X: Any = None, edge_index: Any = None, *, edge_weight: Any = None, nodes: Any = None) -> np.ndarray:
        """Which nodes' predictions use the strong expert, as a bool array; parameters as in :meth:`predict_proba`.

        With ``inference="mix"`` these are the nodes that a threshold would send there.
        """
        mode = "threshold" if self.inference == "mix" else self.inference
        output = self._output(self._graph_to_predict(X, edge_index, edge_weight), mode)
        used: np.ndarray = output.used_strong.cpu().numpy()
        return used if nodes is None else used[node_index(nodes, len(used))]

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
