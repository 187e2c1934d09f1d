"""Settings of Mowst's training: the experts and how they are combined, the stages, and how it predicts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from moeapps.core.mixing.selection import Gate
from moeapps.graph.inference import Inference
from moeapps.graph.measures import Monitor
from moeapps.graph.mowst import MowstConfig
from moeapps.graph.plan import Pretrain
from moeapps.graph.portfolio import AUTO, Networks

__all__ = ["GateFit", "MowstExperts", "MowstTraining", "is_one_network", "trains_alone"]

GateFit = Literal["holdout", "train"]


@dataclass(frozen=True)
class MowstExperts(MowstConfig):
    """Experts, and how they are combined; what is not said here is as in :class:`~moeapps.graph.mowst.MowstConfig`.

    Parameters
    ----------
    num_layers : int, default=2
        Layers of all experts that do not have their own.
    norm : str or None, default="auto"
        Norm after each hidden layer: ``"batch_norm"``, ``"layer_norm"`` or None. ``"auto"``: that of each entry of the
        portfolio, all three of a network in a list; of one strong expert ``"batch_norm"``.
    weak : str or torch.nn.Module, default="mlp"
        ``"mlp"``, or a module with ``forward(x)``.
    strong : str, dict, torch.nn.Module or list, default="auto"
        ``"auto"``: the networks of :data:`~moeapps.graph.portfolio.PORTFOLIO`. A list of names and of dicts such as
        ``{"network": "gcn_skip", "num_layers": 4}``: these. Or one network: a name or dict that
        :func:`~moeapps.graph.networks.make_network` takes, or a module with ``forward(x, edge_index)``. In the paper's
        training ``"auto"`` is ``"gcn"``.
    variant : {"auto", "mixture", "best", "mowst_star", "mowst"}, default="auto"
        ``"mixture"``: every expert is trained alone, and a gate over their predictions is fitted on validation nodes.
        ``"best"``: the expert with the best validation score. ``"mowst_star"``, ``"mowst"``: the paper's training of
        one weak and one strong expert, jointly or in turns. ``"auto"``: a mixture of several strong experts, Mowst* of
        one.
    gate : str, default="auto"
        How a mixture weighs its experts: ``"mean"``, ``"constant"``, ``"confidence"``, ``"linear"``, ``"mlp"``,
        ``"stacked"``, ``"best"``, or ``"auto"``, whichever of them does best on validation nodes that it was not fitted
        on; see :func:`~moeapps.core.mixing.fit_mixture`. All but ``"best"`` may get a bias per class.
    kept : int, default=5
        Graph networks of a mixture that are trained to the end; of more, those that have the better validation scores
        after 20, 40, ... epochs.
    """

    norm: str | None = AUTO
    strong: Networks = AUTO  # type: ignore[assignment]
    variant: Literal["auto", "mixture", "best", "mowst_star", "mowst"] = AUTO  # type: ignore[assignment]
    gate: Gate = "auto"
    kept: int = 5


def is_one_network(strong: Networks) -> bool:
    """Whether this is one network, not a portfolio."""
    return strong != AUTO and (isinstance(strong, str | Mapping | nn.Module))


def trains_alone(variant: str, strong: Networks) -> bool:
    """Whether the experts are trained alone, instead of by the paper's training of one strong expert."""
    return variant in ("mixture", "best") or (variant == AUTO and not is_one_network(strong))


@dataclass(frozen=True)
class MowstTraining:
    """How Mowst is trained, and how it predicts.

    Parameters
    ----------
    gate_fit : {"holdout", "train"}, default="holdout"
        Nodes that the gate is fitted on: validation nodes, or training nodes as in the paper's released code.
    pretrain : {"both", "weak", "strong", "none"}, default="both"
        Experts that are first trained alone; ``"both"`` means all.
    patience : int, default=40
        Epochs without improvement that end a stage.
    round_patience : int, default=2
        Rounds without improvement that end training in turns.
    monitor : {"accuracy", "auc", "macro_f1", "loss"}, default="accuracy"
        Validation score that selects; ties are decided by the loss.
    class_weight : "balanced", list of float or None, default=None
        Weight of each class in the loss: inversely proportional to its frequency, one number per class, or 1.
    lr : float, default=0.01
        Learning rate of Adam for the experts.
    lr_gate : float or None, default=None
        Learning rate for the gate; ``lr`` when None.
    weight_decay : float, default=5e-4
        L2 penalty of Adam.
    inference : {"mix", "cascade", "threshold", "sample"}, default="mix"
        How the model predicts; see :meth:`Mowst.infer <moeapps.graph.Mowst.infer>`.
    threshold : float or None, default=None
        Confidence at which a node stops, for ``inference="threshold"`` and ``"cascade"``; None is 0.5. For a cascade of
        a mixture the probability of a class at which a node stops; None lets a node go on as long as that is expected
        to bring more than it costs.
    own_loss : float, default=0.1
        Share of each expert's own cross-entropy that joint training adds to the mixture's loss: an expert to which the
        gate gives no weight would else be left to the weight decay. The paper has none.
    """

    gate_fit: GateFit = "holdout"
    pretrain: Pretrain = "both"
    patience: int = 40
    round_patience: int = 2
    monitor: Monitor = "accuracy"
    class_weight: list[float] | Literal["balanced"] | None = None
    lr: float = 0.01
    lr_gate: float | None = None
    weight_decay: float = 5e-4
    inference: Inference = "mix"
    threshold: float | None = None
    own_loss: float = 0.1
