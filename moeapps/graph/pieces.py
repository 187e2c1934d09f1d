"""A graph network on a piece of a graph: each layer computes the nodes that the later layers use, and no others.

PyG's networks compute in the first layer also the outermost nodes of a piece, whose neighbours are not in it. No later
layer uses these rows; but they are most of the rows, and a batch norm would count them in its mean and variance.
"""

# M nodes and E' edges of the piece, S seeds, L layers, K classes

from torch import Tensor
from torch.nn import functional as F

from moeapps.graph.convolutions import steps_of, tail_of
from moeapps.graph.edges import Neighborhood
from moeapps.graph.networks import GraphNetwork, neighbor_sum, sorted_edge_index

__all__ = ["on_piece"]


def on_piece(network: GraphNetwork, x: Tensor, piece: Neighborhood) -> Tensor:
    """Logits of the seeds ``(S, K)`` in the network's present mode, from the features ``(M, F)`` of the piece.

    Parameters
    ----------
    network : GraphNetwork
        Of L layers.
    x : Tensor of shape (M, F)
        Features of the nodes of the piece.
    piece : Neighborhood
        Of L hops.
    """
    layers = len(network.convs)
    if network.input_dropout:
        x = F.dropout(x, network.input_dropout, network.training)
    seeds, kept = piece.nodes_per_hop[0], []
    for number, (conv, norm) in enumerate(zip(network.convs, network.norms, strict=True)):
        hops = layers - number  # whose edges the layer uses
        targets, used = sum(piece.nodes_per_hop[:hops]), sum(piece.edges_per_hop[:hops])
        sources = sum(piece.nodes_per_hop[: hops + 1])
        weight = None if piece.edge_weight is None else piece.edge_weight[:used]
        index = sorted_edge_index(piece.edge_index[:, :used], sources)
        prepare, finish, mean = steps_of(conv)
        rows = x[:sources]
        if finish is None:
            more = {} if weight is None or not network.uses_weights else {network.weight_name: weight}
            x = conv(rows, index, **more)[:targets]
        else:
            before = rows if prepare is None else prepare(rows)
            x = finish(x[:targets], neighbor_sum(index, before, weight, "mean" if mean else "sum")[:targets])
        if number < layers - 1 or network.jk_mode is not None:
            x = network.dropout(tail_of(network, norm)(x))
            kept.append(x[:seeds])
    if hasattr(network, "jk"):
        x = network.jk(kept)
    out: Tensor = network.lin(x) if hasattr(network, "lin") else x
    return out[:seeds]
