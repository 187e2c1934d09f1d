"""Random neighbourhoods for training on large graphs: by PyG's compiled sampler where it is there, or plain torch."""

# N nodes, S seeds, M drawn nodes, E' drawn edges

import warnings
from collections.abc import Sequence

import torch
import torch_geometric.typing
from torch import Tensor

from moeapps.core.errors import ConfigError
from moeapps.graph.edges import EdgeForm, Edges, Neighborhood

__all__ = ["COMPILED", "check_num_neighbors", "sample_neighborhood"]

COMPILED = bool(torch_geometric.typing.WITH_PYG_LIB or torch_geometric.typing.WITH_TORCH_SPARSE)
"""Whether PyG's compiled sampler is there (pyg-lib or torch-sparse)."""


def sample_neighborhood(
    edges: Edges,
    seeds: Tensor,
    num_neighbors: Sequence[int],
    form: EdgeForm = "plain",
    compiled: bool | None = None,
) -> Neighborhood:
    """Draw at most ``num_neighbors`` in-neighbours of each node, hop by hop, without replacement.

    Both samplers draw from torch's global generator and give the same distribution, not the same draws.

    Parameters
    ----------
    edges : Edges
        Edges of the whole graph.
    seeds : Tensor of shape (S,)
        Distinct node numbers.
    num_neighbors : sequence of int
        Most neighbours at each hop; -1 for all.
    form : EdgeForm, default="plain"
        Which edges.
    compiled : bool, optional
        Whether to use PyG's compiled sampler; None uses it where it is there and the graph is on the CPU.
    """
    if compiled is None:
        compiled = COMPILED and not seeds.is_cuda
    if compiled:
        return _sample_compiled(edges, seeds, list(num_neighbors), form)
    found = edges.neighborhood(seeds, num_neighbors, form)
    assert found is not None
    return found


def check_num_neighbors(num_neighbors: Sequence[int] | None, num_layers: int) -> tuple[int, ...]:
    """One limit per layer; 10 each when None.

    Raises
    ------
    ConfigError
        If there is not one per layer, or one is neither positive nor -1.
    """
    limits = tuple(num_neighbors) if num_neighbors is not None else (10,) * num_layers
    if len(limits) != num_layers or any(
        isinstance(n, bool) or not isinstance(n, int) or n == 0 or n < -1 for n in limits
    ):
        raise ConfigError(
            f"num_neighbors must be one whole number per layer ({num_layers}), each at least 1 or -1 for all, "
            f"got {num_neighbors!r}"
        )
    return limits


def _sample_compiled(edges: Edges, seeds: Tensor, num_neighbors: list[int], form: EdgeForm) -> Neighborhood:
    from torch_geometric.data import Data
    from torch_geometric.sampler import NeighborSampler, NodeSamplerInput

    index, weight = edges.form(form)
    sampler = edges.samplers.get((form, tuple(num_neighbors)))
    if sampler is None:
        graph = Data(edge_index=index.as_tensor(), num_nodes=edges.num_nodes)
        with warnings.catch_warnings():  # of the deprecation of torch-sparse's sampler
            warnings.simplefilter("ignore")
            sampler = NeighborSampler(graph, num_neighbors, is_sorted=True)
        edges.samplers[form, tuple(num_neighbors)] = sampler
    drawn = sampler.sample_from_nodes(NodeSamplerInput(input_id=None, node=seeds))
    source, target, edge = drawn.row, drawn.col, drawn.edge
    order = target.argsort(stable=True)  # by hop already; inside a hop, by target
    source, target, edge = source[order], target[order], edge[order]
    if weight is not None:
        pointer, _ = edges.incoming(form)
        degree = (pointer[1:] - pointer[:-1])[drawn.node]
        taken = torch.bincount(target, minlength=len(drawn.node)).clamp(min=1)
        weight = weight[edge] * (degree / taken).to(weight.dtype)[target]
    hop = torch.full_like(drawn.node, -1)  # pyg-lib returns the hops, torch-sparse does not
    hop[: seeds.numel()] = 0
    edges_per_hop = []
    for number in range(len(num_neighbors)):
        inside = hop[target] == number
        edges_per_hop.append(int(inside.sum()))
        reached = source[inside]
        hop[reached[hop[reached] < 0]] = number + 1
    return Neighborhood(
        nodes=drawn.node,
        edge_index=torch.stack([source, target]),
        edge_weight=weight,
        nodes_per_hop=torch.bincount(hop, minlength=len(num_neighbors) + 1).tolist(),
        edges_per_hop=edges_per_hop,
    )
