"""Names of 0.1 that have better ones now: they still work, and warn."""

from typing import Any

from torch import Tensor, nn

from moeapps.graph.conditional import PredictionCost
from moeapps.graph.datasets import load_cora
from moeapps.graph.edges import EdgeForm, Edges, Neighborhood
from moeapps.graph.experts import node_expert
from moeapps.moved import warn_deprecated

__all__ = ["old_name"]


def _run_network(network: nn.Module, x: Tensor, edges: Edges | Neighborhood) -> Tensor:
    return node_expert(network).run(x, edges)


def _run_on_nodes(network: nn.Module, x: Tensor, edges: Edges, nodes: Tensor | None, **options: Any) -> Tensor:
    return node_expert(network).on_nodes(x, edges, nodes, **options)


def _edge_form(network: nn.Module) -> EdgeForm:
    return node_expert(network).edge_form


def _num_hops(network: nn.Module) -> int:
    return node_expert(network).known_hops()


def _count_multiply_adds(network: nn.Module, nodes: list[int], edges: list[int]) -> int:
    return node_expert(network).multiply_adds(nodes, edges)


OLD_NAMES: dict[str, tuple[str, Any]] = {
    "Activation": ("PredictionCost", PredictionCost),
    "load_cora": ("moeapps.graph.load_cora", load_cora),
    "run_network": ("moeapps.graph.experts.node_expert(network).run", _run_network),
    "run_on_nodes": ("moeapps.graph.experts.node_expert(network).on_nodes", _run_on_nodes),
    "edge_form": ("moeapps.graph.experts.node_expert(network).edge_form", _edge_form),
    "num_hops": ("moeapps.graph.experts.node_expert(network).hops", _num_hops),
    "count_multiply_adds": ("moeapps.graph.experts.node_expert(network).multiply_adds", _count_multiply_adds),
}


def old_name(module: str, name: str) -> Any:
    """What a module of 0.1 had by this name.

    Raises
    ------
    AttributeError
        If it had nothing.
    """
    if name not in OLD_NAMES:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    new, value = OLD_NAMES[name]
    warn_deprecated(f"{module}.{name} is deprecated: use {new}", 3)
    return value
