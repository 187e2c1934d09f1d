"""The class of a whole graph: several experts and their mixture behind scikit-learn's interface."""

# G graphs, F features, K classes, E experts

import copy
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils.validation import check_is_fitted
from torch import nn

from moeapps.core.checks import check_sizes
from moeapps.core.config import config_from, store_arguments
from moeapps.core.errors import ConfigError, DataError, NonFiniteError
from moeapps.core.estimator import resolve_device
from moeapps.core.labels import classes_from_json, labels_to_json
from moeapps.core.mixing.inputs import LOWEST
from moeapps.core.tabledata.scoring import label_columns
from moeapps.graph.as_trained import scaled_as_trained, warn_of_weights
from moeapps.graph.class_weights import weights_in_order
from moeapps.graph.experts_estimator import ExpertsEstimator
from moeapps.graph.graph_module import GraphConfig, GraphExpertsModule, Pooling, make_graph_experts
from moeapps.graph.graph_sets import GraphBatch, GraphSetData, graph_labels, read_graphs
from moeapps.graph.labels import encode_labels
from moeapps.graph.measures import Monitor, measure

__all__ = ["MowstGraphClassifier"]


class MowstGraphClassifier(ClassifierMixin, ExpertsEstimator):
    """Mixture of weak and strong experts for the class of a graph: a pooled MLP of the nodes, and graph networks.

    Every expert is trained alone. On validation graphs each expert alone, the experts' mean and several gates compete
    (:func:`~moeapps.core.mixing.fit_mixture`), and what did best predicts. A gate sees how sure the experts are, and
    how many nodes and edges a graph has.

    Parameters
    ----------
    strong : str, torch.nn.Module or list of these, default="auto"
        Graph networks, by the names of :func:`~moeapps.graph.networks.make_network` (``"gcn"``, ``"sage"``, ``"gat"``,
        ``"gatv2"``, ``"gin"``, each also with ``_skip`` or ``_jk``), or modules with ``forward(x, edge_index)`` and
        ``hidden_channels`` outputs. ``"auto"``: gcn, sage and gin; only gcn for edges with weights.
    weak : str, torch.nn.Module or None, default="mlp"
        Network that sees each node's own features and no edges; None for none.
    pooling : {"mean", "sum", "max"}, default="mean"
        From the rows of a graph's nodes to one row, for all experts.
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
    monitor : {"accuracy", "auc", "macro_f1", "loss"}, default="accuracy"
        Validation score that keeps an expert's weights.
    class_weight : dict, list, "balanced", optional
        Weight of each class in the loss, in the validation score and for the mixture: by label, in the order of
        ``classes_``, or inversely to how often the class occurs. Probabilities are then those of classes that
        occur in these proportions.
    val_fraction : float, default=0.15
        Part of the graphs to hold out for validation, by class.
    batch_size : int, default=64
        Graphs in a mini-batch.
    inference : {"mix", "cascade"}, default="mix"
        Whether all experts that the mixture needs are asked for every graph; or one after the other in the order of
        their cost, as far as it pays: the pooled MLP first.
    budget : float, optional
        For the cascade: largest mean cost per graph, as a fraction of asking all.
    tolerance : float, optional
        For the cascade: log loss that may be given up against asking all; 0 when neither is given.
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
        Seed of weights, dropout, validation graphs and order.

    Attributes
    ----------
    classes_ : array of shape (K,)
        Class labels.
    champion_ : str
        The candidate that predicts.
    candidates_ : pandas.DataFrame
        What competed, with its loss on validation graphs.
    expert_names_ : list of str
        Names of the experts.
    model_ : torch.nn.ModuleList
        The experts.
    mixture_, cascade_
        The fitted :class:`~moeapps.core.mixing.GatedMixture` and :class:`~moeapps.core.mixing.Cascade`.
    history_ : pandas.DataFrame
        Logged metrics, one row per epoch.
    n_iter_ : int
        Epochs run.
    n_features_in_ : int
        Features per node.

    Examples
    --------
    >>> from moeapps.graph import MowstGraphClassifier, ego_nets, load_cora
    >>> graphs = ego_nets(load_cora(), most=60)
    >>> model = MowstGraphClassifier("sage", max_epochs=2, random_state=0).fit(graphs)
    >>> model.predict_proba(graphs[:3]).shape
    (3, 7)
    """

    pooling: Pooling
    val_fraction: float
    batch_size: int
    classes_: np.ndarray
    _num_gate_features = 2

    def __init__(
        self,
        strong: Any = "auto",
        weak: Any = "mlp",
        pooling: Pooling = "mean",
        hidden_channels: int = 64,
        num_layers: int = 2,
        dropout: float = 0.5,
        norm: str | None = "batch_norm",
        gate: str = "auto",
        lr: float = 0.01,
        weight_decay: float = 0.0,
        max_epochs: int = 200,
        patience: int = 20,
        monitor: Monitor = "accuracy",
        class_weight: Any = None,
        val_fraction: float = 0.15,
        batch_size: int = 64,
        inference: Literal["mix", "cascade"] = "mix",
        budget: float | None = None,
        tolerance: float | None = None,
        accelerator: str = "auto",
        verbose: bool = False,
        log_dir: str | None = None,
        random_state: Any = None,
        logger: Any = None,
    ) -> None:
        store_arguments(self, locals())

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn from graphs with one class each.

        Parameters
        ----------
        X : list of torch_geometric.data.Data, or a PyG Dataset
            The graphs, each with node features ``x`` and edges.
        y : array of shape (G,), optional
            Labels of any kind; each graph's own ``y`` when None.

        Returns
        -------
        self
            Fitted. If fitting fails, an earlier fit stays as it was.

        Raises
        ------
        ValueError
            Naming the graph or argument that cannot be used.
        """
        with self._all_or_nothing() as fitted:
            self._check_mixing()
            seed = self._seed()
            data = GraphSetData(
                X, val_fraction=self.val_fraction, test_fraction=0.0, batch_size=self.batch_size, seed=seed % 2**31, y=y
            )
            if isinstance(X, str):
                raise DataError(f"X must be a list of graphs or a Dataset, got {X!r}")
            data.setup("fit")
            own = {"strong": copy.deepcopy(self.strong), "weak": copy.deepcopy(self.weak)}
            own["class_weight"] = weights_in_order(self.class_weight, data.classes)
            module = GraphExpertsModule.from_config(config=config_from(GraphConfig, self, **own))
            fitted._fit_experts(module, data, seed)
            fitted.classes_ = data.classes
        return self

    @classmethod
    def from_module(cls, module: GraphExpertsModule) -> Self:  # type: ignore[override]
        """See :meth:`LightningEstimator.from_module`."""
        if module.classes is None:
            raise ConfigError("the checkpoint does not say which classes it was trained on: go on with the training")
        estimator = super().from_module(module)
        estimator.classes_ = module.classes
        return estimator

    def predict_proba(self, X: Any) -> np.ndarray:
        """Class probabilities of graphs.

        Parameters
        ----------
        X : list of torch_geometric.data.Data, or a PyG Dataset
            The graphs; labels are not read.

        Returns
        -------
        array of shape (G, K)
            Rows sum to 1; columns are in the order of ``classes_``.
        """
        return self._answer(self._read(X)).mixed

    def predict(self, X: Any) -> np.ndarray:
        """Most probable class of each graph."""
        labels: np.ndarray = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return labels

    def predict_table(self, X: Any) -> pd.DataFrame:
        """Predictions with the weights behind them.

        Returns
        -------
        DataFrame
            ``prediction``, ``probability_<class>``, ``weight_<expert>`` and, with ``inference="cascade"``,
            ``asked_<expert>``.
        """
        answer = self._answer(self._read(X))
        weights = pd.DataFrame(self._weight_columns(answer))
        return pd.concat([label_columns(self.classes_, answer.mixed, None), weights], axis=1)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Accuracy; labels are each graph's own ``y`` when None."""
        predicted = self.predict(X)
        return float(accuracy_score(graph_labels(X, y), predicted, sample_weight=sample_weight))

    def evaluate(self, X: Any, y: Any = None) -> dict[str, float]:
        """Accuracy, mean negative log-likelihood, macro-F1 and ROC-AUC.

        Parameters
        ----------
        X : list of torch_geometric.data.Data, or a PyG Dataset
            The graphs.
        y : array of shape (G,), optional
            Labels; each graph's own ``y`` when None.

        Returns
        -------
        dict
            ``accuracy``, ``loss``, ``macro_f1``, ``auc``. The AUC of several classes is the mean of one against the
            rest; it is NaN where a class does not occur.
        """
        mixed = np.log(np.maximum(self.predict_proba(X), np.exp(LOWEST)))
        return measure(torch.from_numpy(mixed), self._codes(X, y), everything=True)

    def compare(self, X: Any, y: Any = None) -> pd.DataFrame:
        """Scores of the mixture and of each expert alone, one row each; parameters as in :meth:`evaluate`."""
        batch, codes = self._read(X), self._codes(X, y)
        return self._compare(batch, lambda log_probs: measure(log_probs, codes, everything=True))

    def cost_curve(self, X: Any, y: Any = None) -> pd.DataFrame:
        """Cost against score of the cascade over all thresholds; parameters as in :meth:`evaluate`.

        Returns
        -------
        DataFrame
            See :meth:`Cascade.curve <moeapps.core.mixing.Cascade.curve>`.
        """
        batch, codes = self._read(X), self._codes(X, y)
        return self._cost_curve(batch, codes.numpy())

    # ------------------------------------------------------------------ reading and experts

    def _read(self, X: Any) -> "_Graphs":
        check_is_fitted(self, "model_")
        graphs = read_graphs(X, self.n_features_in_)
        if self.normalized_:
            for graph in graphs:
                scaled_as_trained(graph)
        weights = [graph.edge_weight for graph in graphs]  # of all graphs or of none
        weight = None if weights[0] is None else torch.cat(weights)
        warn_of_weights(self.weighted_, weight, type(self).__name__)
        check_sizes(batch_size=self.batch_size)
        return _Graphs(graphs, self.batch_size)

    def _codes(self, X: Any, y: Any) -> torch.Tensor:
        codes = encode_labels(graph_labels(X, y), self.classes_)
        if bool((codes < 0).any()):
            raise DataError(f"y has labels that {type(self).__name__} was not fitted with")
        return codes

    def _gate_features(self, batch: "_Graphs") -> np.ndarray:
        return batch.features()

    @torch.no_grad()
    def _ask(self, expert: nn.Module, batch: "_Graphs", rows: np.ndarray | None) -> np.ndarray:
        device = resolve_device(self.accelerator)
        expert = expert.to(device).eval()
        log_probs = torch.cat([expert(part.to(device)).double().log_softmax(-1).cpu() for part in batch.parts(rows)])
        bad = log_probs.isnan().any(dim=1)
        if bool(bad.any()):
            raise NonFiniteError(
                f"{type(self).__name__} predicts NaN for {int(bad.sum())} graphs: their features or edge weights are "
                "too large for float32"
            )
        return np.maximum(log_probs.numpy(), LOWEST)

    def _make_experts(self) -> list[nn.Module]:
        config = config_from(GraphConfig, self)
        return make_graph_experts(config, self.n_features_in_, len(self.classes_), self.weighted_)[1]

    @property
    def _num_outputs(self) -> int:  # type: ignore[override]
        return len(self.classes_)

    def saved_state(self) -> dict[str, Any]:
        """Fitted attributes, mixture, cascade and class labels."""
        return {**super().saved_state(), "classes_": labels_to_json(self.classes_)}

    def _restore(self, state: dict[str, Any]) -> None:
        self.classes_ = classes_from_json(state["classes_"])
        super()._restore(state)


class _Graphs:
    """Checked graphs, which experts see in batches."""

    def __init__(self, graphs: list[Any], batch_size: int) -> None:
        self.graphs, self.batch_size = graphs, batch_size
        self._whole: list[GraphBatch] = []

    @property
    def count(self) -> int:
        return len(self.graphs)

    def features(self) -> np.ndarray:
        return np.concatenate([part.features() for part in self.parts(None)])

    def parts(self, rows: np.ndarray | None) -> list[GraphBatch]:
        """Batches of some graphs; those of all are kept, with the forms of their edges."""
        if rows is None or len(rows) == self.count:
            self._whole = self._whole or self._batches(self.graphs)
            return self._whole
        return self._batches([self.graphs[row] for row in rows])

    def _batches(self, graphs: list[Any]) -> list[GraphBatch]:
        size = self.batch_size
        return [GraphBatch.of(graphs[i : i + size]) for i in range(0, len(graphs), size)]
