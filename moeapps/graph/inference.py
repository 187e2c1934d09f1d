"""How the predictions of a chain of experts become one: the mixture of all, or a node stops at one of them."""

# N nodes, K classes, n experts in the order weak to strong

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from moeapps.core.chain import pass_on as core_pass_on
from moeapps.core.routing import Routing
from moeapps.graph.confidence import ConfidenceOutput
from moeapps.graph.mixing import chain_log_weights, mix_log_probs

__all__ = [
    "INFERENCES",
    "Chain",
    "Inference",
    "MowstOutput",
    "Run",
    "last_expert",
    "mixture",
    "pass_on",
    "routing_of",
    "run_all",
]

Inference = Literal["mix", "cascade", "threshold", "sample"]
INFERENCES = ("mix", "cascade", "threshold", "sample")

Run = Callable[[str, Tensor | None], Tensor]
"""Logits of the named expert for these rows, ``(A,)`` row numbers, or for all of them when None."""

Gate = Callable[[str, Tensor], ConfidenceOutput]
"""Confidence of the named expert, and its logit, from the expert's logits ``(N, K)``."""

Combine = Callable[[Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, Tensor]]
"""Prediction ``(N, K)`` and weights ``(N, i)`` of the first i experts, from their logits and i - 1 gate logits."""


@dataclass(frozen=True, eq=False)
class MowstOutput:
    """Prediction for N nodes and K classes by n experts, in the order weak to strong.

    Parameters
    ----------
    log_probs : Tensor of shape (N, K)
        Logarithm of the predicted distribution.
    logits : mapping of str to Tensor of shape (N, K) or None
        By expert; NaN for nodes on which the expert did not run, None if it ran on none.
    confidence : Tensor of shape (N,)
        Confidence c of the weak expert.
    weights : Tensor of shape (N, n)
        Weight of each expert in the prediction.
    last : int64 Tensor of shape (N,)
        Number of the last (strongest) expert that ran on a node.
    routing : Routing
        The same as a routing over n experts, for core's statistics.
    used_graph : bool Tensor of shape (N,), optional
        Of a mixture of several networks: nodes whose prediction uses one that sees edges.
    """

    log_probs: Tensor
    logits: Mapping[str, Tensor | None]
    confidence: Tensor
    weights: Tensor
    last: Tensor
    routing: Routing
    used_graph: Tensor | None = None

    @property
    def weak_logits(self) -> Tensor:
        """``(N, K)`` logits of the weak expert."""
        logits = self.logits["weak"]
        assert logits is not None
        return logits

    @property
    def strong_logits(self) -> Tensor | None:
        """``(N, K)`` logits of the strong expert; None when it ran on no node."""
        return self.logits["strong"]

    @property
    def used_strong(self) -> Tensor:
        """``(N,)`` bool, nodes whose prediction uses the strong expert."""
        return self.last == self.weights.shape[1] - 1 if self.used_graph is None else self.used_graph


class Chain(NamedTuple):
    """The first five entries of :class:`MowstOutput`."""

    log_probs: Tensor
    logits: Mapping[str, Tensor | None]
    confidence: Tensor
    weights: Tensor
    last: Tensor


def mixture(logits: Sequence[Tensor], gate_logits: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    r"""Mixture :math:`\sum_i w_i p_i` of a chain of experts, each weighted by its confidence.

    Parameters
    ----------
    logits : sequence of n Tensors of shape (N, K)
        Logits of the experts.
    gate_logits : sequence of n - 1 Tensors of shape (N,)
        Logits of the confidences of all experts but the last, which gets the remaining weight.

    Returns
    -------
    log_probs : Tensor of shape (N, K)
    weights : Tensor of shape (N, n)
        Rows sum to 1; see :func:`~moeapps.graph.mixing.chain_weights`.
    """
    if not gate_logits:
        return last_expert(logits, gate_logits)
    log_weights = chain_log_weights(gate_logits)
    return mix_log_probs(logits, log_weights), log_weights.exp()


def last_expert(logits: Sequence[Tensor], gate_logits: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Prediction of the last expert alone; parameters and results as in :func:`mixture`."""
    log_probs = logits[-1].log_softmax(-1)
    return log_probs, F.pad(torch.ones_like(log_probs[:, :1]), (len(logits) - 1, 0))


def run_all(names: Sequence[str], run: Run, gate: Gate) -> Chain:
    """Run every expert on every node and mix them."""
    logits = {name: run(name, None) for name in names}
    confidences = [gate(name, logits[name]) for name in names[:-1]]
    log_probs, weights = mixture(list(logits.values()), [opinion.logit for opinion in confidences])
    last = torch.full_like(log_probs[:, 0], len(names) - 1, dtype=torch.int64)
    return Chain(log_probs, logits, confidences[0].confidence, weights, last)


def pass_on(
    names: Sequence[str], run: Run, gate: Gate, stops: Callable[[int, Tensor], Tensor], combine: Combine
) -> Chain:
    """Run the experts one after another, each on the nodes that did not stop at an earlier one.

    1. The first expert runs on all nodes.
    2. The prediction of the nodes on which expert i ran is ``combine`` of the experts 0 to i.
    3. Nodes for which ``stops`` is true keep it; the others go on to expert i + 1. No node goes on from the last.
    4. When no node is left, the remaining experts do not run.

    Parameters
    ----------
    names : sequence of n str
        Names of the experts.
    run : callable
        Logits of an expert for some rows.
    gate : callable
        Confidence of an expert.
    stops : callable
        From the number i of an expert and its confidence ``(N,)`` to a bool ``(N,)``.
    combine : callable
        :func:`mixture` or :func:`last_expert`.
    """
    n = len(names)
    seen: list[Tensor] = []  # logits of each expert, NaN for nodes that stopped before
    gate_logits: list[Tensor] = []
    log_probs = weights = confidence = torch.empty(0)

    def visit(i: int, rows: Tensor | None) -> Tensor:
        nonlocal log_probs, weights, confidence
        z = run(names[i], rows)
        if rows is None:
            here = torch.ones_like(z[:, 0], dtype=torch.bool)
            rows = here.nonzero().flatten()
        else:
            here = torch.zeros_like(confidence, dtype=torch.bool).index_fill(0, rows, True)
            z = z.new_full((len(here), z.shape[1]), torch.nan).index_copy(0, rows, z)
        seen.append(z)
        combined, share = combine(seen, gate_logits)
        share = F.pad(share, (0, n - 1 - i))
        log_probs = combined if i == 0 else torch.where(here[:, None], combined, log_probs)
        weights = share if i == 0 else torch.where(here[:, None], share, weights)
        if i + 1 == n:
            return here[rows]  # no node goes on from the last
        c, logit = gate(names[i], z)
        confidence = c if i == 0 else confidence
        gate_logits.append(logit)
        return ~stops(i, c)[rows]

    last = core_pass_on(n, visit)
    logits = {**dict.fromkeys(names), **dict(zip(names, seen, strict=False))}
    return Chain(log_probs, logits, confidence, weights, last)


@torch.no_grad()
def routing_of(chain: Chain, mode: Inference) -> Routing:
    """Experts of each node as core's routing: all, those up to the last one that ran, or that one alone."""
    weights, last, n = chain.weights, chain.last, chain.weights.shape[1]
    logits = weights.clamp(min=torch.finfo(weights.dtype).tiny).log()
    if mode in ("threshold", "sample"):
        return Routing.from_topk(last[:, None], torch.ones_like(weights[:, :1]), logits=logits, probabilities=weights)
    expert = torch.arange(n, device=weights.device).expand(weights.shape[0], n)
    keep = None if mode == "mix" else expert <= last[:, None]
    return Routing.from_topk(expert, weights, logits=logits, probabilities=weights, keep=keep)
