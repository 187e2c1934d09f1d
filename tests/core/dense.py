"""A mixture computed the slow way: every expert on every token, weighted by what the routing says."""

from typing import Any

import torch
from torch import Tensor

from moeapps import registry
from moeapps.core import FactoredExpertMLP, GatedFactoredExpertMLP, MoE, make_router
from moeapps.core.activations import ACTIVATIONS
from moeapps.core.routers import SoftRouting

ROUTERS = [entry.name for entry in registry.entries("router")]
"""Short names of all routers, as `moeapps list routers` prints them."""

BACKENDS = ("loop", "bmm", "grouped", "masked", "auto")


def make(
    router: str = "topk", backend: str = "auto", dim: int = 8, experts: int = 4, k: int = 2, **options: Any
) -> MoE:
    """A small layer; ``options`` that a router knows go to the router."""
    arguments: dict[str, Any] = options.pop("router_arguments", {})
    if router == "shared" and experts == 1:
        arguments = {"num_shared": 0, **arguments}
    if router in ("shared", "bilevel", "null_experts"):
        k = {"shared": max(1, min(k, experts - 1)), "bilevel": 1, "null_experts": min(k + 1, 2 * experts)}[router]
    made = make_router(router, dim, experts, min(k, experts) if router != "null_experts" else k, **arguments)
    return MoE(dim, experts, hidden_dim=16, router=made, backend=backend, **options)


def every_expert(experts: Any, x: Tensor) -> Tensor:
    """Outputs ``(N, E, d_out)`` of every expert on every token."""
    if isinstance(experts, GatedFactoredExpertMLP):
        narrow = torch.einsum("nd,edr->ner", x, experts.down)
        gate = torch.nn.functional.silu(torch.einsum("ner,erh->neh", narrow, experts.weight1))
        return torch.einsum("neh,eho->neo", gate * torch.einsum("nd,edh->neh", x, experts.value), experts.weight2)
    if isinstance(experts, FactoredExpertMLP):
        inner = torch.einsum("nd,edr->ner", x, experts.down)
        pre = torch.einsum("ner,erh->neh", inner, experts.weight1) + experts.bias1
    else:
        pre = torch.einsum("nd,edh->neh", x, experts.weight1) + experts.bias1
    return torch.einsum("neh,eho->neo", ACTIVATIONS[experts.activation].forward(pre), experts.weight2) + experts.bias2


def mixture(layer: MoE, x: Tensor) -> Tensor:
    """What the layer's last forward pass should have answered to tokens ``(N, d)``."""
    routing = layer.last_routing
    assert routing is not None
    if isinstance(routing, SoftRouting):
        assert routing.mix is not None
        assert routing.share is not None
        samples, size, experts, slots = routing.mix.shape
        slot = torch.einsum("btes,btd->besd", routing.mix, x.view(samples, size, x.shape[1]))
        out = every_expert(layer.experts, slot.flatten(0, 2)).unflatten(0, (samples, experts, slots))
        own = torch.stack([out[:, e, :, e] for e in range(experts)], dim=1)  # (B, E, S, d)
        return torch.einsum("btes,besd->btd", routing.share, own).flatten(0, 1)
    weight = torch.zeros(x.shape[0], layer.num_experts + 1, dtype=x.dtype)
    weight = weight.index_put((routing.token, routing.expert), routing.weight.to(x.dtype), accumulate=True)[:, :-1]
    return torch.einsum("ne,neo->no", weight, every_expert(layer.experts, x))
