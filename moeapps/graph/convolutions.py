"""A layer of a graph network in steps: what comes before the sum over neighbours, and what comes after it."""

# b nodes of a block, d width of a layer

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from moeapps.graph.networks import GraphNetwork, _GCNConv, _GINConv, _SAGEConv, _Skip

__all__ = ["Finish", "Rows", "steps_of", "tail_of"]

Rows = Callable[[Tensor], Tensor]
"""From rows to rows."""

Finish = Callable[[Tensor, Tensor], Tensor]
"""From a node's own rows ``(b, d)`` and the sums over its neighbours to the layer's output."""


def steps_of(conv: Any) -> tuple[Rows | None, Finish | None, bool]:
    """What a layer does to the rows before the sum over neighbours, what after it, and whether the sum is a mean.

    After it: from a node's own rows and the sums to the layer's output. Nothing for a layer that is no sum of rows
    (attention): it runs on pieces of one hop.
    """
    if isinstance(conv, _Skip):
        prepare, inner, mean = steps_of(conv.conv)
        if inner is None:
            return None, None, False
        return prepare, lambda own, total: inner(own, total) + conv.own(own), mean
    if type(conv) is _GCNConv:
        return conv.lin, lambda own, total: total if conv.bias is None else total + conv.bias, False
    if type(conv) is _GINConv:
        return None, lambda own, total: conv.nn(total + (1 + conv.eps) * own), False
    if type(conv) is _SAGEConv:
        weight, bias = conv.lin_l.weight, conv.lin_l.bias
        if weight.shape[0] < weight.shape[1]:
            return lambda rows: F.linear(rows, weight), lambda own, total: conv.lin_r(own) + (total + bias), True
        return None, lambda own, total: conv.lin_r(own) + F.linear(total, weight, bias), True
    return None, None, False


def tail_of(network: GraphNetwork, norm: Any) -> Rows:
    """Norm and activation behind a layer."""

    def tail(rows: Tensor) -> Tensor:
        if network.act is not None and network.act_first:
            rows = network.act(rows)
        rows = norm(rows)
        if network.act is not None and not network.act_first:
            rows = network.act(rows)
        return rows

    return tail
