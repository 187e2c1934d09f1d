"""Mowst: a mixture of a weak expert (MLP) and a strong expert (GNN), weighted per node by the weak one's confidence."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.errors import ConfigError, DataError
from moeapps.core.layer import Routed
from moeapps.core.routing import Routing
from moeapps.core.saving import SavableModule
from moeapps.graph.confidence import Confidence
from moeapps.graph.networks import make_network, run_network

__all__ = ["Inference", "Mowst", "MowstOutput", "Variant", "joint_loss", "mix_log_probs", "separate_loss"]

Variant = Literal["mowst", "mowst_star"]
Inference = Literal["mix", "threshold", "sample"]
VARIANTS = ("mowst", "mowst_star")
INFERENCES = ("mix", "threshold", "sample")


@dataclass(frozen=True, eq=False)
class MowstOutput:
    """What Mowst says about N nodes and K classes.

    Attributes:
        log_probs: ``(N, K)`` logarithm of the predicted distribution.
        weak_logits: ``(N, K)`` logits of the weak expert.
        strong_logits: ``(N, K)`` logits of the strong expert; None when no node needed it.
        confidence: ``(N,)`` weight c of the weak expert.
        gate_logit: ``(N,)`` its logit.
        used_strong: ``(N,)`` bool, nodes whose prediction uses the strong expert.
        routing: The same as a routing over two experts (0 weak, 1 strong), for core's statistics.
    """

    log_probs: Tensor
    weak_logits: Tensor
    strong_logits: Tensor | None
    confidence: Tensor
    gate_logit: Tensor
    used_strong: Tensor
    routing: Routing


def separate_loss(weak_logits: Tensor, strong_logits: Tensor, confidence: Tensor, y: Tensor) -> Tensor:
    r"""Mowst's loss: :math:`L = \frac1N \sum_v c_v\,\ell(p_v, y_v) + (1 - c_v)\,\ell(q_v, y_v)`.

    Args:
        weak_logits: ``(N, K)``, p = softmax of them.
        strong_logits: ``(N, K)``, q = softmax of them.
        confidence: ``(N,)`` c.
        y: ``(N,)`` int64 labels, all >= 0.

    Returns:
        Scalar; 0 for no nodes.
    """
    weak = F.cross_entropy(weak_logits, y, reduction="none")
    strong = F.cross_entropy(strong_logits, y, reduction="none")
    return _mean(confidence * weak + (1 - confidence) * strong)


def joint_loss(weak_logits: Tensor, strong_logits: Tensor, gate_logit: Tensor, y: Tensor) -> Tensor:
    r"""Mowst*'s loss: :math:`L^* = \frac1N \sum_v \ell(c_v p_v + (1 - c_v) q_v,\, y_v)`, never above Mowst's loss.

    Computed from logarithms (:func:`mix_log_probs`), so that a confident gate does not underflow.

    Args:
        weak_logits: ``(N, K)``, p = softmax of them.
        strong_logits: ``(N, K)``, q = softmax of them.
        gate_logit: ``(N,)`` logit of c.
        y: ``(N,)`` int64 labels, all >= 0.

    Returns:
        Scalar; 0 for no nodes.
    """
    return _mean(F.nll_loss(mix_log_probs(weak_logits, strong_logits, gate_logit), y, reduction="none"))


def mix_log_probs(weak_logits: Tensor, strong_logits: Tensor, gate_logit: Tensor) -> Tensor:
    r"""Logarithm of the mixture :math:`c\,p + (1-c)\,q`, without leaving log space.

    Args:
        weak_logits: ``(N, K)``, p = softmax of them.
        strong_logits: ``(N, K)``, q = softmax of them.
        gate_logit: ``(N,)`` logit of c.

    Returns:
        ``(N, K)`` log-probabilities.
    """
    weak = F.logsigmoid(gate_logit)[:, None] + weak_logits.log_softmax(-1)
    strong = F.logsigmoid(-gate_logit)[:, None] + strong_logits.log_softmax(-1)
    return torch.logaddexp(weak, strong)


def _mean(values: Tensor) -> Tensor:
    return values.sum() / max(values.numel(), 1)


class Mowst(Routed, SavableModule):
    r"""Mixture of a weak and a strong expert on graphs (Zeng et al., ICLR 2024).

    The weak expert sees a node's own features, the strong one the graph. With p and q their predicted distributions
    and :math:`c = G(D(p))` the confidence of the weak one, the prediction is :math:`c\,p + (1 - c)\,q`. The loss is
    :func:`separate_loss` for ``variant="mowst"`` (trained in turns) and :func:`joint_loss` for ``"mowst_star"``
    (trained jointly); see :class:`~moeapps.graph.module.MowstModule` for the training.

    Args:
        in_channels: Features per node F.
        out_channels: Classes K, at least 2.
        hidden_channels: Width of the hidden layers of both experts.
        num_layers: Layers of both experts.
        dropout: Dropout probability of both experts.
        norm: Norm after each hidden layer, ``"batch_norm"`` or None.
        weak: ``"mlp"`` or any module with ``forward(x)``.
        strong: ``"gcn"``, ``"sage"`` or any module with ``forward(x, edge_index)``.
        variant: Which loss: ``"mowst"`` or ``"mowst_star"``.
        confidence: ``"learned"`` or ``"given"``; see :class:`~moeapps.graph.confidence.Confidence`.
        dispersion: ``"variance"`` or ``"entropy"``, for the given confidence.
        alpha: Exponent of the given confidence.
        gate_channels: Hidden width of the learned confidence.
        monotone: Whether the learned confidence never falls when the dispersion rises.
        detach_confidence: Whether the weak expert is kept from feeling the confidence it causes. False is the paper's
            theory, True is what its released code does.

    Raises:
        ConfigError: If an argument is impossible.

    Example:
        >>> x, edge_index = torch.randn(4, 8), torch.tensor([[0, 1, 2], [1, 0, 3]])
        >>> output = Mowst(in_channels=8, out_channels=3).eval()(x, edge_index)
        >>> output.log_probs.exp().sum(1).allclose(torch.ones(4))
        True
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int = 64,
        num_layers: int = 2,
        dropout: float = 0.5,
        norm: str | None = "batch_norm",
        weak: str | nn.Module = "mlp",
        strong: str | nn.Module = "gcn",
        variant: Variant = "mowst_star",
        confidence: Literal["learned", "given"] = "learned",
        dispersion: Literal["variance", "entropy"] = "variance",
        alpha: float = 1.0,
        gate_channels: int = 16,
        monotone: bool = False,
        detach_confidence: bool = False,
    ) -> None:
        super().__init__()
        if out_channels < 2:
            raise ConfigError(f"out_channels must be at least 2 classes, got {out_channels!r}")
        if variant not in VARIANTS:
            raise ConfigError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
        self.arguments = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "hidden_channels": hidden_channels,
            "num_layers": num_layers,
            "dropout": dropout,
            "norm": norm,
            "weak": weak,
            "strong": strong,
            "variant": variant,
            "confidence": confidence,
            "dispersion": dispersion,
            "alpha": alpha,
            "gate_channels": gate_channels,
            "monotone": monotone,
            "detach_confidence": detach_confidence,
        }
        if isinstance(weak, str) and weak != "mlp":
            raise ConfigError(f"weak must be 'mlp' or a torch module with forward(x), got {weak!r}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.variant: Variant = variant
        self.detach_confidence = detach_confidence

        def build(network: str | nn.Module) -> nn.Module:
            return make_network(
                network,
                in_channels,
                out_channels,
                hidden_channels=hidden_channels,
                num_layers=num_layers,
                dropout=dropout,
                norm=norm,
            )

        self.weak, self.strong = build(weak), build(strong)
        self.gate = Confidence(confidence, dispersion, alpha, gate_channels, monotone)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_weight: Tensor | None = None,
        *,
        mode: Inference = "mix",
        threshold: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> MowstOutput:
        """Predict all nodes of a graph.

        Args:
            x: ``(N, F)`` node features.
            edge_index: ``(2, E)`` int64, source and target of each edge.
            edge_weight: ``(E,)`` or None.
            mode: ``"mix"`` predicts the mixture. ``"threshold"`` takes the weak expert where c >= ``threshold`` and
                the strong one elsewhere. ``"sample"`` takes the weak expert with probability c (Algorithm 1 of the
                paper). The last two do not call the strong expert when no node needs it.
            threshold: For ``"threshold"``.
            generator: Source of randomness for ``"sample"``.

        Raises:
            ConfigError: If the mode is unknown.
            DataError: If the features have another width.
        """
        if x.ndim != 2 or x.shape[1] != self.in_channels:
            raise DataError(f"x must have shape (N, {self.in_channels}), got {tuple(x.shape)}")
        if mode not in INFERENCES:
            raise ConfigError(f"inference must be one of {', '.join(INFERENCES)}, got {mode!r}")
        drawn = torch.rand(x.shape[0], generator=generator).to(x.device) if mode == "sample" else None
        weak_logits = self.run_weak(x)
        confidence, gate_logit = self.confidence_of(weak_logits)
        if mode == "mix":
            used_strong = torch.ones_like(confidence, dtype=torch.bool)
        else:
            used_strong = confidence < threshold if drawn is None else drawn >= confidence
        strong_logits = None
        if mode == "mix" or bool(used_strong.any()):
            strong_logits = self.run_strong(x, edge_index, edge_weight)
        log_probs = weak_logits.log_softmax(-1)
        if strong_logits is not None:
            mixed = mode == "mix"
            log_probs = (
                mix_log_probs(weak_logits, strong_logits, gate_logit)
                if mixed
                else torch.where(used_strong[:, None], strong_logits.log_softmax(-1), log_probs)
            )
        routing = self.remember_routing(confidence, gate_logit, None if mode == "mix" else used_strong)
        return MowstOutput(log_probs, weak_logits, strong_logits, confidence, gate_logit, used_strong, routing)

    def run_weak(self, x: Tensor) -> Tensor:
        """``(N, K)`` logits of the weak expert, which sees no edges."""
        return self.weak(x)

    def run_strong(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """``(N, K)`` logits of the strong expert."""
        return run_network(self.strong, x, edge_index, edge_weight)

    def confidence_of(self, weak_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Confidence c ``(N,)`` and its logit, from the weak expert's logits."""
        return self.gate(weak_logits.detach() if self.detach_confidence else weak_logits)

    def remember_routing(self, confidence: Tensor, gate_logit: Tensor, used_strong: Tensor | None) -> Routing:
        """Express who was used as core's routing over experts 0 (weak) and 1 (strong); both when None."""
        self.last_routing = _routing(confidence, gate_logit, used_strong)
        return self.last_routing

    def loss(self, weak_logits: Tensor, strong_logits: Tensor, y: Tensor) -> Tensor:
        """Loss of the variant on nodes with these logits ``(N, K)`` and labels ``(N,)``."""
        confidence, gate_logit = self.confidence_of(weak_logits)
        if self.variant == "mowst":
            return separate_loss(weak_logits, strong_logits, confidence, y)
        return joint_loss(weak_logits, strong_logits, gate_logit, y)


def _routing(confidence: Tensor, gate_logit: Tensor, used_strong: Tensor | None) -> Routing:
    probabilities = torch.stack([confidence, 1 - confidence], dim=-1)  # (N, 2)
    logits = torch.stack([gate_logit, torch.zeros_like(gate_logit)], dim=-1).nan_to_num(posinf=1e4, neginf=-1e4)
    if used_strong is None:
        expert = torch.arange(2, device=confidence.device).expand(confidence.shape[0], 2)
        return Routing.from_topk(expert, probabilities, logits=logits, probabilities=probabilities)
    expert = used_strong.long()[:, None]
    return Routing.from_topk(expert, torch.ones_like(confidence)[:, None], logits=logits, probabilities=probabilities)
