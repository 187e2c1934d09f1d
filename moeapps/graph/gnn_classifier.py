"""One network alone behind scikit-learn's interface."""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from moeapps.core.config import as_arguments, config_from, store_arguments
from moeapps.core.search import Distribution
from moeapps.graph.data import GraphDataModule
from moeapps.graph.experts import node_expert
from moeapps.graph.measures import Monitor
from moeapps.graph.networks import NetworkConfig, build_network
from moeapps.graph.node_classifier import NodeClassifier
from moeapps.graph.node_module import GNNConfig, GNNModule, NodeModule
from moeapps.graph.portfolio import AUTO
from moeapps.graph.search_spaces import NETWORK_SEARCH
from moeapps.graph.settings import is_one_network

__all__ = ["GNNClassifier"]


class GNNClassifier(NodeClassifier):
    """One network alone as a node classifier: the baseline that a mixture has to beat.

    Trained with cross-entropy and early stopping on validation accuracy; the best weights are kept. By default several
    networks start, the better half goes on after some epochs, and the one that validates best is kept.

    Parameters
    ----------
    network : str, dict, list or torch.nn.Module, default="auto"
        ``"auto"``: an MLP and the networks of :data:`~moeapps.graph.portfolio.PORTFOLIO` compete; a list: these do. Or
        one network: ``"mlp"`` (no edges),
        ``"gcn"``, ``"sage"``, ``"gat"``, ``"gatv2"`` or ``"gin"``, the last five also with
        ``_skip`` or ``_jk`` behind the name (see :func:`~moeapps.graph.networks.make_network`), or in a dict with sizes
        of its own, ``{"network": "gcn_skip", "num_layers": 4}``; or a module with ``forward(x, edge_index)``.
    hidden_channels : int, default=64
        Width of the hidden layers.
    num_layers : int, default=2
        Number of layers of a network that does not have its own.
    dropout : float, default=0.5
        Dropout probability.
    norm : str or None, default="auto"
        Norm after each hidden layer: ``"batch_norm"``, ``"layer_norm"`` (of each node's row), None, or ``"auto"``,
        whichever of the three validates best.
    lr, weight_decay : float, default=0.01 and 0.0005
        Learning rate and L2 penalty of Adam.
    max_epochs : int, default=500
        Maximum number of epochs.
    patience : int, default=40
        Epochs without improvement after which training stops.
    monitor : {"accuracy", "loss", "auc", "macro_f1"}, default="accuracy"
        Score on validation nodes by which weights and networks are selected.
    class_weight : dict, list, "balanced", optional
        Weight of each class in the loss: by label, in the order of ``classes_``, or inversely to how
        often the class occurs.
    batch_size : int, optional
        Training nodes in a mini-batch, each with ``num_neighbors`` randomly drawn neighbours at each hop, and nodes
        that are predicted at a time, with all neighbours. None takes the whole graph at once.
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
        Seed of weights, dropout and validation split.

    Attributes
    ----------
    classes_ : array of shape (K,)
        Class labels.
    model_ : torch.nn.Module
        The trained network.
    network_ : dict
        Its name and sizes, if several competed.
    selection_ : pandas.DataFrame
        The networks that competed: sizes, epochs, validation score, and which was kept.
    history_ : pandas.DataFrame
        Logged metrics, one row per epoch.
    n_iter_ : int
        Epochs run.
    n_features_in_ : int
        Features per node.

    Examples
    --------
    >>> from moeapps.graph import GNNClassifier, load_cora
    >>> cora = load_cora()
    >>> gcn = GNNClassifier("gcn", norm=None, max_epochs=20, random_state=0).fit(cora)
    >>> gcn.score(cora) > 0.6
    True
    """

    _search_space: ClassVar[Mapping[str, Distribution]] = NETWORK_SEARCH

    def __init__(
        self,
        network: Any = "auto",
        hidden_channels: int = 64,
        num_layers: int = 2,
        dropout: float = 0.5,
        norm: str | None = "auto",
        lr: float = 0.01,
        weight_decay: float = 5e-4,
        max_epochs: int = 500,
        patience: int = 40,
        monitor: Monitor = "accuracy",
        class_weight: Any = None,
        batch_size: int | None = None,
        num_neighbors: Any = None,
        accelerator: str = "auto",
        verbose: bool = False,
        log_dir: str | None = None,
        random_state: Any = None,
        logger: Any = None,
    ) -> None:
        store_arguments(self, locals())

    def _fit_networks(self, data: GraphDataModule, seed: int) -> tuple[NodeModule, pd.DataFrame]:
        for name in ("network_", "selected_"):
            self.__dict__.pop(name, None)
        if not self._several():
            return super()._fit_networks(data, seed)
        module, history = self._search(data, seed, self.network, "mlp" if self.network == AUTO else None)
        module.model = module.model.experts[module.plan.champion]  # type: ignore[assignment]
        return module, history

    def _several(self) -> bool:
        """Whether several networks compete."""
        return not is_one_network(self.network) or (self.norm == AUTO and not isinstance(self.network, nn.Module))

    def _make_module(self, class_weight: Any) -> GNNModule:
        network = copy.deepcopy(self.network)
        norm = None if self.norm == AUTO else self.norm  # of a module, which has its own
        module: GNNModule = GNNModule.from_config(
            config=config_from(GNNConfig, self, network=network, norm=norm, class_weight=class_weight)
        )
        return module

    def _stopping(self) -> dict[str, Any]:
        return {"monitor": "val/score", "mode": "max"}

    @classmethod
    def _settings_of(cls, module: GNNModule) -> dict[str, Any]:
        return as_arguments(module.config)

    @torch.no_grad()
    def _log_probs(self, graph: Data, nodes: Tensor | None = None) -> Tensor:
        x, edges, device = self._place(graph)
        chosen = None if nodes is None else nodes.to(device)
        logits = node_expert(self.model_.to(device)).on_nodes(x, edges, chosen, batch_size=self.batch_size)
        return logits.log_softmax(-1)

    def _build_model(self) -> nn.Module:
        network: Any = getattr(self, "network_", self.network)
        return build_network(network, self.n_features_in_, len(self.classes_), config_from(NetworkConfig, self))
