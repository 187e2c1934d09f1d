"""Mowst behind scikit-learn's interface."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import pandas as pd
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch_geometric.data import Data

from moeapps.core.checks import check_one_of
from moeapps.core.config import as_arguments, config_from, store_arguments
from moeapps.core.errors import ConfigError, FileFormatError
from moeapps.core.mixing.selection import Gate
from moeapps.core.saved_tensors import under
from moeapps.core.search import Distribution
from moeapps.graph.conditional_classifier import ConditionalClassifier
from moeapps.graph.confidence import ConfidenceMode
from moeapps.graph.data import GraphDataModule
from moeapps.graph.dispersion import Dispersion
from moeapps.graph.inference import Inference
from moeapps.graph.measures import Monitor
from moeapps.graph.mixture import GraphMixture
from moeapps.graph.module import MowstModule
from moeapps.graph.mowst import THRESHOLD, VARIANTS, Mowst, MowstConfig
from moeapps.graph.networks import NetworkConfig
from moeapps.graph.node_classifier import NodeClassifier
from moeapps.graph.node_module import NodeModule
from moeapps.graph.plan import Pretrain
from moeapps.graph.portfolio import AUTO
from moeapps.graph.search_spaces import MOWST_SEARCH
from moeapps.graph.settings import GateFit, MowstExperts, MowstTraining, is_one_network, trains_alone
from moeapps.graph.thresholds import check_choice, choose_threshold

__all__ = ["MowstClassifier"]

_MIXTURE = "mixture."
"""Prefix of what a file has of a mixture's gate."""


class MowstClassifier(ConditionalClassifier):
    """Mixture of a weak expert (MLP) and strong experts (GNNs) as a node classifier.

    By default a small portfolio of graph networks and an MLP are trained, each alone; after some epochs the better ones
    go on, and a gate over their predictions is fitted on validation nodes, where each network alone and their mean stay
    candidates. With one strong expert it is the mixture of the paper: the weak expert sees a node's own features; where
    its confidence is low, the strong one gets the larger weight, and again each alone stays a candidate (see
    :class:`~moeapps.graph.MowstModule`).

    Parameters
    ----------
    strong : str, dict, list or torch.nn.Module, default="auto"
        ``"auto"`` for the portfolio (:data:`~moeapps.graph.portfolio.PORTFOLIO`); a list of networks for your own; or
        one network: ``"gcn"``, ``"sage"``, ``"gat"``, ``"gatv2"`` or ``"gin"``, also with ``_skip`` or ``_jk`` behind
        the name, or in a dict with sizes of its own, ``{"network": "gcn_skip", "num_layers": 4}`` (see
        :func:`~moeapps.graph.networks.make_network`), or a module with ``forward(x, edge_index)``.
    weak : str or torch.nn.Module, default="mlp"
        ``"mlp"``, or a module with ``forward(x)``.
    medium : str, list of str, torch.nn.Module, optional
        Networks between the two, in the order of their cost: a chain of experts, each with a confidence.
    variant : {"auto", "mixture", "mowst_star", "mowst"}, default="auto"
        ``"mixture"``: experts trained alone, and a gate fitted to their predictions. ``"mowst_star"``, ``"mowst"``: the
        paper's joint training, or training in turns, of one strong expert; of several the one that validates best alone
        is taken. ``"auto"``: a mixture of several strong experts, Mowst* of one.
    hidden_channels, num_layers : int, default=64 and 2
        Width and number of layers of all experts that do not have their own.
    dropout : float, default=0.5
        Dropout probability of all experts.
    norm : str or None, default="auto"
        Norm after each hidden layer: ``"batch_norm"``, ``"layer_norm"`` (of each node's row) or None. ``"auto"``: that
        of each entry of the portfolio; of a network by name the one that validates best.
    confidence : {"learned", "learned+x", "hyper", "given"}, default="learned"
        Where the confidence comes from; see :class:`~moeapps.graph.Confidence`.
    dispersion : {"variance", "entropy"}, default="variance"
        For the given confidence.
    gate_fit : {"holdout", "train"}, default="holdout"
        Nodes that the gate is fitted on: validation nodes, or training nodes as in the paper's code.
    pretrain : {"both", "strong", "weak", "none"}, default="both"
        Experts that are first trained alone.
    lr, weight_decay : float, default=0.01 and 0.0005
        Learning rate and L2 penalty of Adam.
    lr_gate : float, optional
        Learning rate of the gate; ``lr`` when None.
    max_epochs : int, default=1000
        Maximum number of epochs, over all stages.
    patience : int, default=40
        Epochs without improvement that end a stage.
    round_patience : int, default=2
        Rounds without improvement that end training in turns.
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
    inference : {"mix", "cascade", "threshold", "sample"}, default="mix"
        How to predict. ``"mix"`` runs all experts on every node. ``"cascade"`` runs the strong expert only where the
        confidence is below ``threshold``, and mixes there; of a mixture it runs one expert after another, from the
        cheapest. Of one strong expert, ``"threshold"`` uses its prediction there instead; ``"sample"`` uses the weak
        one's with the confidence as probability (Algorithm 1 of the paper).
    threshold : float, "auto", optional
        For ``"cascade"`` and ``"threshold"``. ``"auto"`` chooses it on the validation nodes after training, by
        ``monitor``, ``budget`` and ``tolerance``; see :func:`~moeapps.graph.choose_threshold`. None is 0.5. Of a
        mixture, the probability of a class at which a node stops; None and ``"auto"`` let it go on as long as that is
        expected to bring more than it costs, by ``budget`` and ``tolerance``.
    budget : float, optional
        For ``threshold="auto"``: the largest fraction of nodes that may be passed on to the next expert; of a mixture
        the largest mean cost, as a fraction of running all experts.
    tolerance : float, default=0.0
        For ``threshold="auto"``: how much worse than the best the validation score (of a mixture: the log loss) may
        be, to pass on fewer nodes.
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
        Seed of weights, dropout, validation split and sampled inference.
    alpha : float, default=1.0
        Exponent of the given confidence, above 0.
    gate_channels : int, default=16
        Hidden width of the learned confidence.
    monotone : bool, default=False
        Whether the confidence ``"learned"`` is non-decreasing in the dispersion.
    detach_confidence : bool, default=False
        Whether no gradient flows from the confidence into the expert. False follows the paper, True its released code.
    gate : str, default="auto"
        How a mixture weighs its experts: ``"mean"``, ``"constant"``, ``"confidence"``, ``"linear"``, ``"mlp"``,
        ``"stacked"``, ``"best"``, or ``"auto"``, whichever does best on validation nodes that it was not fitted on (see
        :func:`~moeapps.core.mixing.fit_mixture`). All but ``"best"`` may get a bias per class.
    kept : int, default=5
        Graph networks of a mixture that are trained to the end.
    own_loss : float, default=0.1
        Share of each expert's own cross-entropy that joint training adds to the mixture's loss; the paper has none.

    Attributes
    ----------
    classes_ : array of shape (K,)
        Class labels.
    model_ : Mowst or GraphMixture
        The trained model.
    champion_ : str
        Candidate with the best validation score, used to predict: ``"mix"``, ``"strong"`` or ``"weak"``; of a mixture
        ``"mix"`` or the name of a network.
    selection_ : pandas.DataFrame
        The networks that competed, if there were several: sizes, epochs, validation score, whether it was trained to
        the end (``kept``), and its mean weight in the mixture.
    candidates_ : pandas.DataFrame
        Of a mixture: the gates that competed, with their log loss on validation nodes that they were not fitted on.
    confidence_ : dict
        Mean confidence on training and on validation nodes.
    threshold_ : float
        ``threshold``, or what was chosen.
    cost_ : PredictionCost
        Work of predicting the training graph; :meth:`cost` computes it for others.
    n_rounds_ : int
        Rounds of turns begun (1 for joint training).
    history_ : pandas.DataFrame
        Logged metrics, one row per epoch.
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
    >>> mowst = MowstClassifier(max_epochs=20, random_state=0).fit(cora)
    >>> mowst.predict(cora).shape, mowst.score(cora) > 0.6
    ((2708,), True)
    """

    _search_space: ClassVar[Mapping[str, Distribution]] = MOWST_SEARCH

    champion_: str
    confidence_: dict[str, float]
    threshold_: float
    n_rounds_: int
    sampling_seed_: int
    networks_: dict[str, Any]
    non_finite_tensors = Mowst.non_finite_tensors
    _saved_attributes = (
        *NodeClassifier._saved_attributes,
        "champion_",
        "confidence_",
        "threshold_",
        "n_rounds_",
        "sampling_seed_",
        "networks_",
    )
    _optional_attributes = (*NodeClassifier._optional_attributes, "networks_")

    def __init__(
        self,
        strong: Any = "auto",
        weak: str | nn.Module = "mlp",
        medium: Any = None,
        variant: Literal["auto", "mixture", "mowst_star", "mowst"] = "auto",
        hidden_channels: int = 64,
        num_layers: int = 2,
        dropout: float = 0.5,
        norm: str | None = "auto",
        confidence: ConfidenceMode = "learned",
        dispersion: Dispersion = "variance",
        gate_fit: GateFit = "holdout",
        pretrain: Pretrain = "both",
        lr: float = 0.01,
        lr_gate: float | None = None,
        weight_decay: float = 5e-4,
        max_epochs: int = 1000,
        patience: int = 40,
        round_patience: int = 2,
        monitor: Monitor = "accuracy",
        class_weight: Any = None,
        batch_size: int | None = None,
        num_neighbors: Any = None,
        inference: Inference = "mix",
        threshold: float | Literal["auto"] | None = None,
        budget: float | None = None,
        tolerance: float = 0.0,
        accelerator: str = "auto",
        verbose: bool = False,
        log_dir: str | None = None,
        random_state: Any = None,
        alpha: float = 1.0,
        gate_channels: int = 16,
        monotone: bool = False,
        detach_confidence: bool = False,
        gate: Gate = "auto",
        kept: int = 5,
        own_loss: float = 0.1,
        logger: Any = None,
    ) -> None:
        store_arguments(self, locals())

    def _log_probs(self, graph: Data, nodes: Tensor | None = None) -> Tensor:
        if self.inference == "sample" and nodes is not None:
            # drawn for all nodes, so that a node's draw does not depend on which nodes are requested
            return self._output(graph, None, "sample")[0].log_probs[nodes]
        return self._output(graph, nodes, self.inference)[0].log_probs

    @property
    def candidates_(self) -> pd.DataFrame:
        """The gates that competed; see the class."""
        check_is_fitted(self, "model_")
        if not isinstance(self.model_, GraphMixture) or self.model_.fitted is None:
            raise AttributeError("candidates_ are those of a mixture: history_ has the scores of one strong expert's")
        return self.model_.fitted.candidates

    def _fit_networks(self, data: GraphDataModule, seed: int) -> tuple[NodeModule, pd.DataFrame]:
        for name in ("network_", "networks_", "selected_"):
            self.__dict__.pop(name, None)
        self._check_threshold()
        check_one_of("variant", self.variant, ("auto", "mixture", *VARIANTS))
        one = is_one_network(self.strong)
        if trains_alone(self.variant, self.strong) or (
            one and (self.norm != AUTO or isinstance(self.strong, nn.Module))
        ):
            return super()._fit_networks(data, seed)
        # the paper's training takes one strong expert: the one that validates best alone
        before = self._search(data, seed, self.strong, None)[1]
        module, history = super()._fit_networks(data, seed)
        return module, pd.concat([before, history], ignore_index=True)

    def _check_threshold(self) -> None:
        if not (self.threshold in ("auto", None) or isinstance(self.threshold, int | float)):
            raise ConfigError(f"threshold must be a number, 'auto' or None, got {self.threshold!r}")
        if isinstance(self.threshold, int | float) and (self.budget is not None or self.tolerance != 0):
            raise ConfigError("budget and tolerance choose a threshold: they need threshold='auto'")
        if self.threshold == "auto" and self.inference == "sample":
            raise ConfigError("inference='sample' has no threshold to choose")
        check_choice(self.budget, self.tolerance)

    def _make_module(self, class_weight: Any) -> MowstModule:
        networks = {name: copy.deepcopy(getattr(self, name)) for name in ("weak", "medium", "strong")}
        if hasattr(self, "network_"):  # found by the search
            networks |= {"strong": self.network_, "norm": self.network_["norm"]}
        threshold = None if self.threshold == "auto" else self.threshold
        training = config_from(MowstTraining, self, class_weight=class_weight, threshold=threshold)
        module: MowstModule = MowstModule.from_config(
            config=config_from(MowstExperts, self, **networks), **as_arguments(training)
        )
        if module.searches:
            module.limits = {"budget": self.budget, "tolerance": self.tolerance or None}
        elif self.threshold is None and (self.budget is not None or self.tolerance != 0):
            raise ConfigError("budget and tolerance choose a threshold: they need threshold='auto'")
        return module

    def _after_training(self, module: MowstModule, data: GraphDataModule) -> None:
        self.n_rounds_ = module.plan.round + 1
        self.sampling_seed_ = data.seed
        if isinstance(module.model, GraphMixture):
            self._note_mixture(module, module.model)
        elif self.threshold == "auto":
            mode: Inference = "cascade" if self.inference == "mix" else self.inference
            self.champion_ = module.plan.champion
            self.threshold_ = choose_threshold(module, mode, self.budget, self.tolerance)
        else:
            self.champion_ = module.plan.champion
            self.threshold_ = THRESHOLD if self.threshold is None else float(self.threshold)
        output, self.cost_ = self._output(self.graph_, None, self.inference)
        self.confidence_ = {
            name: float(output.confidence.cpu()[data.graph[mask]].mean())
            for name, mask in (("train", "train_mask"), ("val", "val_mask"))
        }

    def _note_mixture(self, module: MowstModule, model: GraphMixture) -> None:
        """Attributes of experts that were trained alone, after the training."""
        self._note_networks(module, model)
        self.selected_ = module.selection()

    def _note_networks(self, module: MowstModule, model: GraphMixture) -> None:
        """Attributes of experts that were trained alone, which loading needs."""
        assert model.fitted is not None
        assert model.cascade is not None
        chosen = model.fitted.name
        self.champion_ = chosen.removeprefix("expert:") if chosen.startswith("expert:") else "mix"
        self.threshold_ = model.cascade.threshold if self._threshold() is None else float(self.threshold)
        specs = {name: module.networks[name] for name in model.experts}
        self.networks_ = {name: None if isinstance(spec, nn.Module) else spec for name, spec in specs.items()}

    @classmethod
    def from_module(cls, module: MowstModule) -> Self:  # type: ignore[override]
        """See :meth:`LightningEstimator.from_module`."""
        model = module.model
        if isinstance(model, GraphMixture) and model.fitted is None:
            raise ConfigError("the training has not ended, so that there is no mixture yet: go on with it")
        estimator = super().from_module(module)
        estimator.n_rounds_, estimator.confidence_ = module.plan.round + 1, {}
        estimator.sampling_seed_ = 0  # as the module samples
        if isinstance(model, GraphMixture):
            model.drop_unused()
            estimator._note_networks(module, model)
        else:
            estimator.champion_ = module.plan.champion
            estimator.threshold_ = THRESHOLD if module.threshold is None else float(module.threshold)
        return estimator

    @classmethod
    def _settings_of(cls, module: MowstModule) -> dict[str, Any]:
        """What the module has resolved: of one strong expert its name and norm; the best network is a mixture of it."""
        settings = {**module.hparams, **as_arguments(module.config)}
        return {**settings, "variant": "mixture", "gate": "best"} if module.config.variant == "best" else settings

    def _build_model(self) -> Mowst | GraphMixture:
        sizes = (self.n_features_in_, len(self.classes_))
        if hasattr(self, "networks_"):
            own = {name: getattr(self, name) for name in ("weak", "strong")}
            networks = {name: own[name] if spec is None else spec for name, spec in self.networks_.items()}
            return GraphMixture(*sizes, networks, config_from(NetworkConfig, self))
        found = getattr(self, "network_", None)
        changes = {"norm": "batch_norm"} if self.norm == AUTO else {}
        changes |= {} if found is None else {"strong": found, "norm": found["norm"]}
        variant = "mowst_star" if self.variant == "auto" else self.variant
        model: Mowst = Mowst.from_config(*sizes, config=config_from(MowstConfig, self, variant=variant, **changes))
        return model

    def saved_state(self) -> dict[str, Any]:
        """Fitted attributes and class labels, and the gate of a mixture."""
        state = super().saved_state()
        if isinstance(self.model_, GraphMixture):
            state["mixture"] = self.model_.state()[0]
        return state

    def saved_tensors(self) -> dict[str, Tensor]:
        """Weights of the networks, and those of a mixture's gate."""
        tensors = super().saved_tensors()
        if isinstance(self.model_, GraphMixture):
            tensors = {**tensors, **{_MIXTURE + key: value for key, value in self.model_.state()[1].items()}}
        return tensors

    @classmethod
    def from_saved(
        cls, arguments: dict[str, Any], state: dict[str, Any], tensors: dict[str, Tensor], source: Path
    ) -> Self:
        """As every estimator; a mixture's gate is restored, too."""
        document = state.get("mixture")
        if (document is None) != ("networks_" not in state):
            raise FileFormatError(f"{source}: a mixture needs its networks and its gate")
        rest = {key: tensor for key, tensor in tensors.items() if not key.startswith(_MIXTURE)}
        estimator = super().from_saved(arguments, state, rest, source)
        if document is not None:
            if not isinstance(document, dict):
                raise FileFormatError(f"{source}: the gate of the mixture is malformed")
            assert isinstance(estimator.model_, GraphMixture)
            estimator.model_.load_state(document, under(_MIXTURE, tensors))
        return estimator

    def _restore(self, state: dict[str, Any]) -> None:
        super()._restore(state)
        if not 0 <= self.sampling_seed_ < 2**63:
            raise FileFormatError(f"sampling_seed_={self.sampling_seed_} is no seed")
