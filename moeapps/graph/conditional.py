"""Prediction that runs each expert only on the nodes that reach it, and reports how much work that was."""

# N nodes of the graph, B of them predicted, F features, K classes

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moeapps.graph.edges import Edges
from moeapps.graph.experts import Work
from moeapps.graph.masks import node_index
from moeapps.graph.mixture import GraphMixture
from moeapps.graph.mowst import Inference, Mowst, MowstOutput
from moeapps.moved import warn_deprecated

__all__ = ["PredictionCost", "predict_nodes"]


@dataclass(frozen=True)
class PredictionCost:
    """Work of a prediction.

    Parameters
    ----------
    nodes : int
        Number of nodes that were predicted.
    share : mapping of str to float
        By expert, the fraction of these nodes on which it ran.
    edges : int
        Edges that were used, summed over layers and experts.
    edges_alone : int
        Edges that the strong expert alone uses on the whole graph.
    multiply_adds : int
        Estimate of the multiply-adds of all experts and layers.
    multiply_adds_alone : int
        The same for the strong expert alone on the whole graph.
    """

    nodes: int
    share: Mapping[str, float] = field(default_factory=dict)
    edges: int = 0
    edges_alone: int = 0
    multiply_adds: int = 0
    multiply_adds_alone: int = 0

    @property
    def strong(self) -> float:
        """Fraction of the nodes on which the strong expert ran; of several, the one that ran on most."""
        return self.share.get("strong", max((v for name, v in self.share.items() if name != "weak"), default=0.0))

    @property
    def asked(self) -> Mapping[str, float]:
        """Old name of ``share``."""
        warn_deprecated("asked is now called share")
        return self.share


@torch.no_grad()
def predict_nodes(
    model: Mowst | GraphMixture,
    x: Tensor,
    edges: Edges,
    nodes: Tensor | None = None,
    *,
    mode: Inference = "mix",
    threshold: float | None = None,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
) -> tuple[MowstOutput, PredictionCost]:
    """Predict nodes with :meth:`Mowst.infer <moeapps.graph.Mowst.infer>`, each expert running only where it is needed.

    The result is that of ``model(x, edges, mode=...)`` at these nodes, up to rounding.

    Parameters
    ----------
    model : Mowst or GraphMixture
        In evaluation mode.
    x : Tensor of shape (N, F)
        Features of the whole graph.
    edges : Edges
        Its edges.
    nodes : Tensor of shape (B,), optional
        Node numbers, or a bool mask ``(N,)``; all when None.
    mode : {"mix", "cascade", "threshold", "sample"}, default="mix"
        As in :meth:`Mowst.infer <moeapps.graph.Mowst.infer>`.
    threshold : float, optional
        As there.
    generator : torch.Generator, optional
        As there; one number is drawn for each node, in their order.
    batch_size : int, optional
        Number of nodes around which one piece of the graph is cut out, which bounds the memory. None decides by the
        size of the piece.

    Returns
    -------
    MowstOutput, PredictionCost

    Raises
    ------
    ConfigError
        If the mode is unknown, or ``batch_size`` is given and the number of hops that an expert sees is unknown.
    DataError
        If a node is not in the graph.
    """
    device = next(model.parameters()).device
    if nodes is not None:  # -1 would be the last node
        nodes = torch.from_numpy(node_index(nodes, x.shape[0])).to(device)
    work = {name: Work() for name in model.names}
    unused = model.unused_experts(mode, threshold)

    def run(name: str, rows: Tensor | None) -> Tensor:
        chosen = nodes if rows is None else rows if nodes is None else nodes[rows]
        count = x.shape[0] if chosen is None else chosen.numel()
        if name in unused:  # its logits get the weight 0
            return torch.zeros(count, model.out_channels, dtype=x.dtype, device=device)
        work[name].nodes = count
        return model.expert(name).on_nodes(x, edges, chosen, batch_size=batch_size, work=work[name])

    count = x.shape[0] if nodes is None else nodes.numel()
    rows = x[:0].new_empty(count, 0)  # features that no confidence looks at are not read
    if model.sees_x:
        rows = x if nodes is None else x[nodes.to(x.device)]
    rows = rows.to(device)
    output = model.infer(run, rows, mode=mode, threshold=threshold, generator=generator)
    alone = model.expert(model.strongest).work_on_whole_graph(edges)
    return output, PredictionCost(
        nodes=count,
        share={name: done.nodes / max(count, 1) for name, done in work.items()},
        edges=sum(done.edges for done in work.values()),
        edges_alone=alone.edges,
        multiply_adds=sum(done.multiply_adds for done in work.values()),
        multiply_adds_alone=alone.multiply_adds,
    )


def __getattr__(name: str) -> object:
    if name.startswith("__"):  # the import system asks for __path__
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from moeapps.graph.deprecated import old_name

    return old_name(__name__, name)
