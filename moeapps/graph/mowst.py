"""Mowst: a mixture of a weak expert (MLP) and a strong expert (GNN), weighted per node by the weak one's confidence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from moeapps.core.checks import check_one_of
from moeapps.core.config import Configurable, takes
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.layer import RoutedLayer
from moeapps.core.savable_module import SavableModule
from moeapps.graph.confidence import Confidence, ConfidenceMode, ConfidenceOutput
from moeapps.graph.dispersion import Dispersion
from moeapps.graph.edges import Edges, Neighborhood
from moeapps.graph.experts import FeatureExpert, NodeExpert, node_expert
from moeapps.graph.inference import (
    INFERENCES,
    Inference,
    MowstOutput,
    Run,
    last_expert,
    mixture,
    pass_on,
    routing_of,
    run_all,
)
from moeapps.graph.mixing import chain_log_weights, chain_weights, joint_loss, separate_loss
from moeapps.graph.networks import NetworkConfig, build_network
from moeapps.moved import warn_deprecated

__all__ = ["INFERENCES", "VARIANTS", "Inference", "Mowst", "MowstConfig", "MowstOutput", "Variant", "chain_names"]

# N nodes, M nodes of a piece of the graph, F features, K classes, n experts in the order weak to strong

THRESHOLD = 0.5
"""Confidence at which a node stops where no other is given."""

Variant = Literal["mowst", "mowst_star"]
VARIANTS = ("mowst", "mowst_star")


@dataclass(frozen=True)
class MowstConfig(NetworkConfig):
    """Experts, gates and loss of Mowst.

    Parameters
    ----------
    hidden_channels : int, default=64
        Width of the hidden layers of all experts.
    num_layers : int, default=2
        Layers of all experts.
    dropout : float, default=0.5
        Dropout probability of all experts, in [0, 1).
    norm : str or None, default="batch_norm"
        Norm after each hidden layer: ``"batch_norm"`` or None.
    weak : str or torch.nn.Module, default="mlp"
        ``"mlp"``, or a module with ``forward(x)``.
    medium : str, torch.nn.Module, list of str or None, default=None
        Networks between weak and strong, in the order of their cost.
    strong : str or torch.nn.Module, default="gcn"
        A name that :func:`~moeapps.graph.networks.make_network` knows (``"gcn"``, ``"sage"``, ``"gat"``, ...), or a
        module with ``forward(x, edge_index)``.
    variant : {"mowst_star", "mowst"}, default="mowst_star"
        Which loss: :func:`joint_loss`, whose parts are trained jointly, or :func:`separate_loss`, in turns.
    confidence : {"learned", "learned+x", "hyper", "given"}, default="learned"
        How confidence is computed; see :class:`~moeapps.graph.confidence.Confidence`.
    dispersion : {"variance", "entropy"}, default="variance"
        Dispersion of the given confidence.
    alpha : float, default=1.0
        Exponent of the given confidence, above 0.
    gate_channels : int, default=16
        Hidden width of the learned confidence.
    monotone : bool, default=False
        Whether the confidence ``"learned"`` is non-decreasing in the dispersion.
    detach_confidence : bool, default=False
        Whether no gradient flows from the confidence into the expert. False follows the paper, True its released code.
    """

    weak: str | nn.Module = "mlp"
    medium: str | nn.Module | Sequence[str] | None = None
    strong: str | nn.Module = "gcn"
    variant: Variant = "mowst_star"
    confidence: ConfidenceMode = "learned"
    dispersion: Dispersion = "variance"
    alpha: float = 1.0
    gate_channels: int = 16
    monotone: bool = False
    detach_confidence: bool = False


class Mowst(Configurable, RoutedLayer, SavableModule):
    r"""Mixture of a weak and a strong expert on graphs (Zeng et al., ICLR 2024).

    The weak expert sees a node's own features, the strong one the graph. With p and q their predicted distributions
    and :math:`c = G(D(p))` the confidence of the weak one, the prediction is :math:`c\,p + (1 - c)\,q`. The loss is
    :func:`separate_loss` for ``variant="mowst"`` (trained in turns) and :func:`joint_loss` for ``"mowst_star"``
    (trained jointly); see :class:`~moeapps.graph.module.MowstModule` for the training.

    With ``medium`` experts between the two it is a chain: each expert but the last has a confidence, and the next one
    gets the remaining weight (:func:`chain_weights`).

    Parameters
    ----------
    in_channels : int
        Features per node F.
    out_channels : int
        Classes K, at least 2.
    **settings
        The fields of :class:`MowstConfig`, by name or in their order.

    Attributes
    ----------
    experts : torch.nn.ModuleDict
        Networks by name, ``weak`` first, ``strong`` last.
    gates : torch.nn.ModuleDict
        Confidence of each expert but the last, by the expert's name.

    Raises
    ------
    ConfigError
        If an argument is impossible.

    Examples
    --------
    >>> x, edge_index = torch.randn(4, 8), torch.tensor([[0, 1, 2], [1, 0, 3]])
    >>> output = Mowst(in_channels=8, out_channels=3).eval()(x, edge_index)
    >>> output.log_probs.exp().sum(1).allclose(torch.ones(4))
    True
    """

    non_finite_tensors = ("forced",)  # NaN where validation forced nothing

    @takes(MowstConfig)
    def __init__(self, in_channels: int, out_channels: int, config: MowstConfig) -> None:
        super().__init__()
        if out_channels < 2:
            raise ConfigError(f"out_channels must be at least 2 classes, got {out_channels!r}")
        check_one_of("variant", config.variant, VARIANTS)
        if isinstance(config.weak, str) and config.weak != "mlp":
            raise ConfigError(f"weak must be 'mlp' or a torch module with forward(x), got {config.weak!r}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.variant: Variant = config.variant
        self.detach_confidence = config.detach_confidence
        networks = [config.weak, *_between(config.medium), config.strong]
        self.experts = nn.ModuleDict(
            {
                name: build_network(network, in_channels, out_channels, config)
                for name, network in zip(chain_names(config.medium), networks, strict=True)
            }
        )
        self.names = tuple(self.experts)
        self.strongest = "strong"
        self.gates = nn.ModuleDict(
            {
                name: Confidence(
                    config.confidence,
                    config.dispersion,
                    config.alpha,
                    config.gate_channels,
                    config.monotone,
                    in_channels,
                )
                for name in self.names[:-1]
            }
        )

    def forward(
        self,
        x: Tensor,
        edges: Tensor | Edges | Neighborhood,
        edge_weight: Tensor | None = None,
        *,
        mode: Inference = "mix",
        threshold: float | None = None,
        generator: torch.Generator | None = None,
    ) -> MowstOutput:
        """Predict all nodes of a graph, or the seeds of a neighbourhood.

        An expert that no node reaches does not run. One that some nodes reach runs on the whole graph here;
        :func:`~moeapps.graph.conditional.predict_nodes` runs it only where it is needed.

        Parameters
        ----------
        x : Tensor of shape (N, F), or (M, F) for a piece of the graph
            Features.
        edges : int64 Tensor of shape (2, E), sparse Tensor of shape (N, N), Edges or Neighborhood
            Source and target of each edge; or PyG's ``adj_t``; or prepared edges; or a piece of the graph.
        edge_weight : Tensor of shape (E,), optional
            Edge weights, with plain edges.
        mode : {"mix", "cascade", "threshold", "sample"}, default="mix"
            See :meth:`infer`.
        threshold : float, optional
            For ``"threshold"`` and ``"cascade"``; 0.5 when None.
        generator : torch.Generator, optional
            Source of randomness for ``"sample"``.

        Returns
        -------
        MowstOutput

        Raises
        ------
        ConfigError
            If the mode is unknown.
        DataError
            If the features have another width.
        """
        if x.ndim != 2 or x.shape[1] != self.in_channels:
            raise DataError(f"x must have shape (N, {self.in_channels}), got {tuple(x.shape)}")
        if not isinstance(edges, Neighborhood):
            edges = Edges.of(edges, edge_weight, x.shape[0])
        seeds = x[: edges.nodes_per_hop[0]] if isinstance(edges, Neighborhood) else x

        def run(name: str, rows: Tensor | None) -> Tensor:
            logits = self.run_expert(name, x, edges)
            return logits if rows is None else logits[rows]

        output = self.infer(run, seeds, mode=mode, threshold=threshold, generator=generator)
        self.last_routing = output.routing
        return output

    def expert(self, name: str) -> NodeExpert:
        """How one expert is run; the weak one sees no edges."""
        network = self.experts[name]
        return FeatureExpert(network) if name == "weak" else node_expert(network)

    def run_expert(self, name: str, x: Tensor, edges: Edges | Neighborhood) -> Tensor:
        """``(N, K)`` logits of one expert; see :meth:`NodeExpert.run <moeapps.graph.experts.NodeExpert.run>`."""
        return self.expert(name).run(x, edges)

    def part(self, name: str) -> nn.Module:
        """An expert by its name, or the gate of one by ``<name>_gate``."""
        return self.experts[name] if name in self.names else self.gates[name.removesuffix("_gate")]

    @property
    def sees_x(self) -> bool:
        """Whether a confidence looks at the features."""
        return any(gate.sees_x for gate in self.gates.values())

    def is_ignored(self, name: str) -> bool:
        """Whether an expert's weight is fixed at 0 because another one alone was kept; synchronises with the device."""
        forced = {gate: float(module.forced) for gate, module in self.gates.items()}  # type: ignore[arg-type]
        earlier = self.names[: self.names.index(name)]
        return forced.get(name) == 0.0 or any(forced[gate] == 1.0 for gate in earlier)

    def unused_experts(self, mode: Inference = "mix", threshold: float | None = None) -> set[str]:
        """Experts whose logits cannot change a prediction; synchronises with the device.

        They are those whose weight is fixed at 0, unless the threshold is one that all confidences reach or none does:
        then such an expert can be the one at which a node stops.
        """
        threshold = THRESHOLD if threshold is None else threshold
        all_stop = mode in ("cascade", "threshold") and threshold <= 0
        none_stops = mode == "threshold" and threshold > 1
        return set() if all_stop or none_stops else {name for name in self.names if self.is_ignored(name)}

    def confidence_of(self, name: str, logits: Tensor, x: Tensor | None = None) -> ConfidenceOutput:
        """Confidence c ``(N,)`` of an expert and its logit, from its logits ``(N, K)`` and the features ``(N, F)``."""
        output: ConfidenceOutput = self.gates[name](logits.detach() if self.detach_confidence else logits, x)
        return output

    def infer(
        self,
        run: Run,
        x: Tensor,
        *,
        mode: Inference = "mix",
        threshold: float | None = None,
        generator: torch.Generator | None = None,
    ) -> MowstOutput:
        """Predict nodes from the logits that ``run`` computes.

        - ``"mix"``: all experts run on every node; the prediction is their mixture.
        - ``"cascade"``: a node stops at the first expert with c >= ``threshold``; the prediction is the mixture of the
          experts up to it, the last of them getting the remaining weight.
        - ``"threshold"``: as ``"cascade"``, but the prediction is that of the expert where the node stops.
        - ``"sample"``: a node stops with probability c, and the prediction is that of the expert where it stops
          (Algorithm 1 of the paper).

        Parameters
        ----------
        run : callable
            Computes the logits of an expert, by its name, for some of the rows.
        x : Tensor of shape (N, F)
            Features of the rows, for the confidences that look at them.
        mode : {"mix", "cascade", "threshold", "sample"}, default="mix"
            One of the four.
        threshold : float, optional
            For ``"threshold"`` and ``"cascade"``; 0.5 when None. No confidence is above 1.
        generator : torch.Generator, optional
            Source of randomness for ``"sample"``; drawn before any expert runs.

        Raises
        ------
        ConfigError
            If the mode is unknown.
        """
        check_one_of("inference", mode, INFERENCES)

        def gate(name: str, logits: Tensor) -> ConfidenceOutput:
            return self.confidence_of(name, logits, x)

        if mode == "mix":
            chain = run_all(self.names, run, gate)
        elif mode == "sample":
            drawn = torch.rand(x.shape[0], len(self.gates), generator=generator).to(x.device)
            chain = pass_on(self.names, run, gate, lambda i, c: drawn[:, i] < c, last_expert)
        else:
            combine = mixture if mode == "cascade" else last_expert
            enough = THRESHOLD if threshold is None else threshold
            chain = pass_on(self.names, run, gate, lambda i, c: c >= enough, combine)
        return MowstOutput(*chain, routing=routing_of(chain, mode))

    def cascade(self, run: Run, x: Tensor, **options: Any) -> MowstOutput:
        """Old name of :meth:`infer`."""
        warn_deprecated("Mowst.cascade is now called Mowst.infer")
        return self.infer(run, x, **options)

    def loss(
        self, logits: Sequence[Tensor], y: Tensor, x: Tensor | None = None, class_weight: Tensor | None = None
    ) -> Tensor:
        """Loss of the variant.

        Parameters
        ----------
        logits : sequence of n Tensors of shape (N, K)
            Of every expert, weak first.
        y : int64 Tensor of shape (N,)
            Labels, all >= 0.
        x : Tensor of shape (N, F), optional
            Features, for the confidences that look at them.
        class_weight : Tensor of shape (K,), optional
            Weight of each class; 1 when None.
        """
        confidences = [self.confidence_of(name, z, x) for name, z in zip(self.gates, logits, strict=False)]
        if self.variant == "mowst":
            return separate_loss(logits, chain_weights([c for c, _ in confidences]), y, class_weight)
        return joint_loss(logits, chain_log_weights([g for _, g in confidences]), y, class_weight)


def chain_names(medium: str | nn.Module | Sequence[str] | None) -> tuple[str, ...]:
    """Names of the experts: weak, those between, strong."""
    between = len(_between(medium))
    middle = ("medium",) if between == 1 else tuple(f"medium_{i + 1}" for i in range(between))
    return ("weak", *middle, "strong")


def _between(medium: str | nn.Module | Sequence[str] | None) -> list[str | nn.Module]:
    if medium is None:
        return []
    return [medium] if isinstance(medium, str | nn.Module) else list(medium)
