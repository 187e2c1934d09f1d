"""Mowst: a mixture of a weak expert (MLP) and a strong expert (GNN), weighted per node by the weak one's confidence."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.checks import check_one_of
from moeapps.core.config import Configurable, takes
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.layer import RoutedLayer
from moeapps.core.routing import Routing
from moeapps.core.saving import SavableModule
from moeapps.graph.confidence import Confidence, ConfidenceMode
from moeapps.graph.dispersion import Dispersion
from moeapps.graph.edges import Edges, Neighborhood
from moeapps.graph.mixing import chain_log_weights, chain_weights, joint_loss, separate_loss
from moeapps.graph.networks import NetworkConfig, build_network, run_network

__all__ = ["INFERENCES", "VARIANTS", "Inference", "Mowst", "MowstConfig", "MowstOutput", "Variant", "chain_names"]

Variant = Literal["mowst", "mowst_star"]
Inference = Literal["mix", "cascade", "threshold", "sample"]
VARIANTS = ("mowst", "mowst_star")
INFERENCES = ("mix", "cascade", "threshold", "sample")

Run = Callable[[str, Tensor | None], Tensor]
"""Logits of the named expert for these rows, ``(A,)`` row numbers, or for all of them when None."""


@dataclass(frozen=True, eq=False)
class MowstOutput:
    """What Mowst says about N nodes and K classes, with n experts in the order weak to strong.

    Attributes:
        log_probs: ``(N, K)`` logarithm of the predicted distribution.
        logits: By expert, ``(N, K)``; NaN for nodes that the expert was not asked about, None if it was asked nothing.
        confidence: ``(N,)`` confidence c of the weak expert.
        weights: ``(N, n)`` weight of each expert in the prediction.
        last: ``(N,)`` int64, number of the last (strongest) expert that was asked about a node.
        routing: The same as a routing over n experts, for core's statistics.
    """

    log_probs: Tensor
    logits: Mapping[str, Tensor | None]
    confidence: Tensor
    weights: Tensor
    last: Tensor
    routing: Routing

    @property
    def weak_logits(self) -> Tensor:
        """``(N, K)`` logits of the weak expert."""
        logits = self.logits["weak"]
        assert logits is not None
        return logits

    @property
    def strong_logits(self) -> Tensor | None:
        """``(N, K)`` logits of the strong expert; None when no node needed it."""
        return self.logits["strong"]

    @property
    def used_strong(self) -> Tensor:
        """``(N,)`` bool, nodes whose prediction uses the strong expert."""
        return self.last == self.weights.shape[1] - 1


@dataclass(frozen=True)
class MowstConfig(NetworkConfig):
    """Experts, gates and loss of Mowst.

    Parameters
    ----------
    hidden_channels : int, default 64
        Width of the hidden layers of all experts.
    num_layers : int, default 2
        Layers of all experts.
    dropout : float, default 0.5
        Dropout probability of all experts, in [0, 1).
    norm : str or None, default "batch_norm"
        Norm after each hidden layer: ``"batch_norm"`` or None.
    weak : str or torch.nn.Module, default "mlp"
        ``"mlp"``, or a module with ``forward(x)``.
    medium : str, torch.nn.Module, list of str or None, default None
        Networks between weak and strong, in the order of their cost.
    strong : str or torch.nn.Module, default "gcn"
        A name that :func:`~moeapps.graph.networks.make_network` knows (``"gcn"``, ``"sage"``, ``"gat"``, ...), or a
        module with ``forward(x, edge_index)``.
    variant : {"mowst_star", "mowst"}, default "mowst_star"
        Which loss: :func:`joint_loss`, whose parts are trained jointly, or :func:`separate_loss`, in turns.
    confidence : {"learned", "learned+x", "hyper", "given"}, default "learned"
        How confidence is computed; see :class:`~moeapps.graph.confidence.Confidence`.
    dispersion : {"variance", "entropy"}, default "variance"
        Dispersion of the given confidence.
    alpha : float, default 1.0
        Exponent of the given confidence, above 0.
    gate_channels : int, default 16
        Hidden width of the learned confidence.
    monotone : bool, default False
        Whether the confidence ``"learned"`` is non-decreasing in the dispersion.
    detach_confidence : bool, default False
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

    With ``medium`` experts between the two it is a chain: each expert has a confidence of its own and passes on only
    what it is unsure of (:func:`chain_weights`).

    Args:
        in_channels: Features per node F.
        out_channels: Classes K, at least 2.

    Attributes:
        experts: Networks by name, ``weak`` first, ``strong`` last.
        gates: Confidence of each expert but the last, by the expert's name.

    Raises:
        ConfigError: If an argument is impossible.

    Example:
        >>> x, edge_index = torch.randn(4, 8), torch.tensor([[0, 1, 2], [1, 0, 3]])
        >>> output = Mowst(in_channels=8, out_channels=3).eval()(x, edge_index)
        >>> output.log_probs.exp().sum(1).allclose(torch.ones(4))
        True
    """

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
        threshold: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> MowstOutput:
        """Predict all nodes of a graph, or the seeds of a neighbourhood.

        An expert that no node asks for does not run. One that some ask for runs on the whole graph here;
        :func:`~moeapps.graph.conditional.predict_nodes` runs it only where it is asked for.

        Args:
            x: ``(N, F)`` node features.
            edges: ``(2, E)`` int64, source and target of each edge; or prepared edges; or a neighbourhood, and ``x``
                then holds its nodes.
            edge_weight: ``(E,)`` or None, with plain edges.
            mode: See :meth:`cascade`.
            threshold: For ``"threshold"`` and ``"cascade"``.
            generator: Source of randomness for ``"sample"``.

        Raises:
            ConfigError: If the mode is unknown.
            DataError: If the features have another width.
        """
        if x.ndim != 2 or x.shape[1] != self.in_channels:
            raise DataError(f"x must have shape (N, {self.in_channels}), got {tuple(x.shape)}")
        if isinstance(edges, Tensor):
            edges = Edges(edges, edge_weight, x.shape[0])
        seeds = x[: edges.nodes_per_hop[0]] if isinstance(edges, Neighborhood) else x

        def run(name: str, rows: Tensor | None) -> Tensor:
            logits = self.run_expert(name, x, edges)
            return logits if rows is None else logits[rows]

        output = self.cascade(run, seeds, mode=mode, threshold=threshold, generator=generator)
        self.last_routing = output.routing
        return output

    def run_expert(self, name: str, x: Tensor, edges: Edges | Neighborhood) -> Tensor:
        """``(N, K)`` logits of one expert; the weak one sees no edges."""
        if name == "weak":
            return self.experts["weak"](x[: edges.nodes_per_hop[0]] if isinstance(edges, Neighborhood) else x)
        return run_network(self.experts[name], x, edges)

    def is_ignored(self, name: str) -> bool:
        """Whether an expert has no say because another one alone was kept; waits for the device."""
        forced = {gate: float(module.forced) for gate, module in self.gates.items()}  # type: ignore[arg-type]
        earlier = self.names[: self.names.index(name)]
        return forced.get(name) == 0.0 or any(forced[gate] == 1.0 for gate in earlier)

    def confidence_of(self, name: str, logits: Tensor, x: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Confidence c ``(N,)`` of an expert and its logit, from its logits ``(N, K)`` and the features ``(N, F)``."""
        return self.gates[name](logits.detach() if self.detach_confidence else logits, x)

    def cascade(
        self,
        run: Run,
        x: Tensor,
        *,
        mode: Inference = "mix",
        threshold: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> MowstOutput:
        """Ask the experts one after another, each about the nodes that the ones before it passed on.

        - ``"mix"``: every node passes through; the prediction is the mixture of all experts.
        - ``"cascade"``: a node stops at the first expert with c >= ``threshold``; the prediction is the mixture of
          those that were asked, the last of them getting what weight is left.
        - ``"threshold"``: the same, but the prediction is that of the last one alone.
        - ``"sample"``: a node stops with probability c, and gets the prediction of the expert where it stopped
          (Algorithm 1 of the paper).

        Args:
            run: Computes the logits of an expert for some of the rows.
            x: ``(N, F)`` features of the rows, for the confidences that look at them.
            mode: One of the four.
            threshold: For ``"threshold"`` and ``"cascade"``.
            generator: Source of randomness for ``"sample"``; drawn before any expert runs.
        """
        if mode not in INFERENCES:
            raise ConfigError(f"inference must be one of {', '.join(INFERENCES)}, got {mode!r}")
        count, mixing = x.shape[0], mode in ("mix", "cascade")
        drawn = torch.rand(count, len(self.gates), generator=generator).to(x.device) if mode == "sample" else None
        logits: dict[str, Tensor | None] = dict.fromkeys(self.names)
        asked = torch.ones(count, dtype=torch.bool, device=x.device)
        last = torch.zeros(count, dtype=torch.int64, device=x.device)
        rows: Tensor | None = None  # the same as numbers; None for all, so that nothing is copied
        left = torch.zeros((), device=x.device)  # log of the weight that is not yet given away, (N,) after the first
        sum_so_far = log_probs = confidence = None
        weights = []
        for i, name in enumerate(self.names):
            if i > 0 and mode != "mix":
                rows = asked.nonzero().flatten()
                if rows.numel() == 0:
                    break
            z = run(name, rows)
            z = z if rows is None else z.new_full((count, z.shape[1]), torch.nan).index_copy(0, rows, z)
            logits[name], own = z, z.log_softmax(-1)
            here = _add(sum_so_far, own + left[..., None]) if mixing else own  # the prediction of those who stop here
            if name not in self.gates:
                log_probs = here if log_probs is None else torch.where(asked[:, None], here, log_probs)
                weights.append(torch.where(asked, left.exp() if mixing else 1.0, 0.0))
                last = torch.where(asked, i, last)
                break
            c, g = self.confidence_of(name, z, x)
            confidence = c if confidence is None else confidence
            share = left + F.logsigmoid(g)
            if mode == "mix":
                weights.append(share.exp())
            else:
                stops = asked & (c >= threshold if drawn is None else drawn[:, i] < c)
                log_probs = here if log_probs is None else torch.where(asked[:, None], here, log_probs)
                weight = torch.where(stops, left.exp(), share.exp()) if mixing else stops.to(c.dtype)
                weights.append(torch.where(asked, weight, 0.0))
                last = torch.where(asked, i, last)
                asked = asked & ~stops
            sum_so_far, left = _add(sum_so_far, own + share[:, None]), left + F.logsigmoid(-g)
        assert log_probs is not None
        assert confidence is not None
        weights += [torch.zeros_like(confidence)] * (len(self.names) - len(weights))
        table = torch.stack(weights, dim=-1)
        return MowstOutput(log_probs, logits, confidence, table, last, _routing(table, last, mode))

    def loss(
        self, logits: Sequence[Tensor], y: Tensor, x: Tensor | None = None, class_weight: Tensor | None = None
    ) -> Tensor:
        """Loss of the variant.

        Args:
            logits: ``(N, K)`` of every expert, weak first.
            y: ``(N,)`` int64 labels, all >= 0.
            x: ``(N, F)`` features, for the confidences that look at them.
            class_weight: ``(K,)`` how much a node of each class counts.
        """
        found = [self.confidence_of(name, z, x) for name, z in zip(self.gates, logits, strict=False)]
        if self.variant == "mowst":
            return separate_loss(logits, chain_weights([c for c, _ in found]), y, class_weight)
        return joint_loss(logits, chain_log_weights([g for _, g in found]), y, class_weight)


def chain_names(medium: str | nn.Module | Sequence[str] | None) -> tuple[str, ...]:
    """Names of the experts: weak, those between, strong."""
    between = len(_between(medium))
    middle = ("medium",) if between == 1 else tuple(f"medium_{i + 1}" for i in range(between))
    return ("weak", *middle, "strong")


def _between(medium: str | nn.Module | Sequence[str] | None) -> list[str | nn.Module]:
    if medium is None:
        return []
    return [medium] if isinstance(medium, str | nn.Module) else list(medium)


def _add(log_sum: Tensor | None, log_term: Tensor) -> Tensor:
    return log_term if log_sum is None else torch.logaddexp(log_sum, log_term)


@torch.no_grad()
def _routing(weights: Tensor, last: Tensor, mode: Inference) -> Routing:
    """Who was asked about whom, as core's routing: the experts up to the last one, or the last one alone."""
    n = weights.shape[1]
    logits = weights.clamp(min=torch.finfo(weights.dtype).tiny).log()
    if mode in ("threshold", "sample"):
        return Routing.from_topk(last[:, None], torch.ones_like(weights[:, :1]), logits=logits, probabilities=weights)
    expert = torch.arange(n, device=weights.device).expand(weights.shape[0], n)
    keep = None if mode == "mix" else expert <= last[:, None]
    return Routing.from_topk(expert, weights, logits=logits, probabilities=weights, keep=keep)
