"""Where a network has blocks that can become MoE layers, and how each of them is replaced.

Four kinds of place:

1. a module that is a block as a whole (timm's Mlp, torchvision's MLP, a class of the user's own);
2. Linear - activation - Linear among the children of a longer ``nn.Sequential``;
3. ``linear1`` and ``linear2`` of torch's transformer layers;
4. an MLP of PyG with two layers.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from moeapps.core.growth.blocks import Block, act_problem, describe, hook_problem, plain_block
from moeapps.core.layer import RoutedLayer

__all__ = ["Emptied", "Site", "Skipped", "contents", "find_sites", "without_fast_path"]


class Emptied(nn.Identity):
    """What is left of a layer whose work an MoE layer has taken over; indices and attributes stay in place."""

    def reset_parameters(self) -> None:
        """Nothing to draw."""


@dataclass(frozen=True)
class Skipped:
    """A block that is left as it is.

    Attributes
    ----------
    name : str
        Its name in the network.
    kind : str
        Its class.
    reason : str
        Why.
    """

    name: str
    kind: str
    reason: str


@dataclass(frozen=True, eq=False)
class Site:
    """A block that can become an MoE layer.

    Attributes
    ----------
    name : str
        Name of the layer in the network.
    block : Block
        What the block computes.
    parts : tuple of Module
        Modules that hold its weights.
    put : callable
        Puts the layer into the network; returns the network.
    places : int, default=1
        How often the block is in the network.
    tokens_first : bool, default=False
        Whether tokens ``(T, B, d)`` come before samples.
    """

    name: str
    block: Block
    parts: tuple[nn.Module, ...]
    put: Callable[[nn.Module], nn.Module]
    places: int = 1
    tokens_first: bool = False


def find_sites(network: nn.Module) -> tuple[list[Site], list[Skipped]]:
    """All blocks of a network, in its order, and what looks like one but cannot be replaced."""
    sites: list[Site] = []
    skipped: list[Skipped] = []
    done: set[int] = set()
    for name, module in network.named_modules():
        if id(module) in done:
            continue
        if isinstance(module, RoutedLayer):
            done |= {id(part) for part in module.modules()}
            continue
        for found in _sites_of(network, name, module):
            if isinstance(found, Site):
                sites.append(found)
                done |= {id(part) for part in found.parts for part in part.modules()}
            else:
                skipped.append(found)
    return _without_shared_weights(network, sites, skipped)


def _sites_of(network: nn.Module, name: str, module: nn.Module) -> Iterator[Site | Skipped]:
    if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        yield _transformer_site(network, name, module)
    elif isinstance(module, nn.Sequential):
        if type(module).forward is nn.Sequential.forward:
            yield from _sequential_sites(network, name, module)
    elif _is_pyg_mlp(module):
        yield _pyg_site(network, name, module)
    elif isinstance(found := describe(module), Block):
        yield _whole(network, name, module, found)
    elif found is not None:
        yield Skipped(name, type(module).__name__, found)


def _whole(network: nn.Module, name: str, module: nn.Module, block: Block) -> Site:
    holders = [
        (parent, child) for parent in network.modules() for child, held in parent._modules.items() if held is module
    ]

    def put(layer: nn.Module) -> nn.Module:
        for parent, child in holders:
            parent._modules[child] = layer
        return network if holders else layer

    return Site(name, block, (module,), put, _places(network, module))


def _sequential_sites(network: nn.Module, name: str, module: nn.Sequential) -> Iterator[Site | Skipped]:
    children: list[tuple[str, Any]] = list(module._modules.items())
    start = 0
    while start < len(children):
        window = _window(children, start)
        if window is None:
            start += 1
            continue
        end, act, dropout, last = window
        first = children[start][1]
        assert first is not None
        block = plain_block(_kind(module), first, last, act, dropout)
        problem = _lost_hooks(child for _, child in children[start : end + 1])
        full = _prefixed(name, children[start][0])
        after = [child for _, child in children[end + 1 :]]
        whole = start == 0 and name != "" and all(isinstance(child, nn.Dropout) for child in after) and len(after) < 2
        if whole:
            problem = hook_problem(module)
        if isinstance(block, str) or problem:
            yield Skipped(name if whole else full, _kind(module), block if isinstance(block, str) else str(problem))
        elif whole:
            out = sum((float(child.p) for child in after), 0.0)
            block = plain_block(_kind(module), first, last, act, dropout, out)
            assert isinstance(block, Block)
            yield _whole(network, name, module, block)
        else:
            keys = [key for key, _ in children[start : end + 1]]
            yield Site(full, block, (first, last), _window_put(network, module, keys), _places(network, module))
        start = end + 1


def _lost_hooks(parts: Iterable[Any]) -> str | None:
    """Whether a module that is replaced has hooks."""
    return next((p for part in parts if isinstance(part, nn.Module) and (p := hook_problem(part))), None)


def _kind(module: nn.Module) -> str:
    owner = type(module).__module__.split(".")[0]
    return f"{owner} {type(module).__name__}" if owner in ("torchvision", "timm") else type(module).__name__


def _window_put(network: nn.Module, module: nn.Sequential, keys: list[str]) -> Callable[[nn.Module], nn.Module]:
    def put(layer: nn.Module) -> nn.Module:
        module._modules[keys[0]] = layer
        for key in keys[1:]:
            module._modules[key] = Emptied()
        return network

    return put


def _window(children: list[tuple[str, Any]], start: int) -> tuple[int, nn.Module, float, nn.Module] | None:
    """Linear, activation, any dropout, Linear from an index on: index of the end, activation, dropout, last layer."""
    first = children[start][1]
    if first is None or not _looks_linear(first) or start + 2 >= len(children):
        return None
    act = children[start + 1][1]
    if act is None or next(act.children(), None) is not None or isinstance(act, nn.Dropout) or _looks_linear(act):
        return None
    if type(act).__name__.endswith(("Norm", "Norm1d", "Norm2d", "Flatten")) or act_problem(act):
        return None
    end, dropouts = start + 2, []
    while end < len(children) and isinstance(children[end][1], nn.Dropout | nn.Identity):
        dropouts.append(float(getattr(children[end][1], "p", 0.0)))
        end += 1
    last = children[end][1] if end < len(children) else None
    if last is None or not _looks_linear(last) or sum(p > 0 for p in dropouts) > 1:
        return None
    return end, act, max(dropouts, default=0.0), last


def _looks_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__module__ == "torch_geometric.nn.dense.linear"


def _transformer_site(network: nn.Module, name: str, module: Any) -> Site | Skipped:
    base = nn.TransformerEncoderLayer if isinstance(module, nn.TransformerEncoderLayer) else nn.TransformerDecoderLayer
    if type(module)._ff_block is not base._ff_block:
        return Skipped(name, type(module).__name__, "its feed-forward block is not torch's own")
    block = plain_block(base.__name__, module.linear1, module.linear2, module.activation, float(module.dropout.p))
    problem = _lost_hooks((module.activation, module.dropout))
    if isinstance(block, str) or problem:
        return Skipped(name, type(module).__name__, block if isinstance(block, str) else str(problem))

    def put(layer: nn.Module) -> nn.Module:
        module.linear1 = layer
        for part in ("activation", "dropout", "linear2"):
            setattr(module, part, Emptied())
        without_fast_path(network)
        return network

    batch_first = bool(module.self_attn.batch_first)
    parts = (module.linear1, module.linear2)
    return Site(_prefixed(name, "linear1"), block, parts, put, _places(network, module), tokens_first=not batch_first)


def without_fast_path(network: nn.Module) -> None:
    """Keep torch's transformers from computing a layer from its Linear weights, which are no longer all there is.

    In evaluation an encoder layer is one fused call, and an encoder with a padding mask hands nested tensors on.
    """
    module: Any
    for module in network.modules():
        changed = isinstance(module, nn.TransformerEncoderLayer) and not all(
            type(part) is nn.Linear for part in (module.linear1, module.linear2)
        )
        if changed:
            module.activation_relu_or_gelu = 0
    for module in network.modules():
        if isinstance(module, nn.TransformerEncoder) and any(
            getattr(layer, "activation_relu_or_gelu", 0) == 0 for layer in module.layers
        ):
            module.enable_nested_tensor = module.use_nested_tensor = False


def _is_pyg_mlp(module: nn.Module) -> bool:
    package = sys.modules.get("torch_geometric.nn.models.mlp")
    return package is not None and type(module) is package.MLP


def _pyg_site(network: nn.Module, name: str, module: Any) -> Site | Skipped:
    lins, norms, kind = list(module.lins), list(module.norms), "PyG MLP"
    if len(lins) != 2:
        return Skipped(name, kind, f"has {len(lins)} Linear layers, a block has two")
    if not module.plain_last or not all(type(norm).__name__ == "Identity" for norm in norms):
        return Skipped(
            name, kind, "has norms, or an activation after its last layer: norm=None, plain_last=True has not"
        )
    if module.act is None:
        return Skipped(name, kind, "has no activation")
    block = plain_block(kind, lins[0], lins[1], module.act, float(module.dropout[0]))
    if isinstance(block, str) or (problem := hook_problem(module)):
        return Skipped(name, kind, block if isinstance(block, str) else str(problem))

    def put(layer: nn.Module) -> nn.Module:
        module.lins[0] = layer
        module.lins[1] = Emptied()
        module.act = None
        module.dropout = [0.0, module.dropout[1]]
        return network

    return Site(_prefixed(name, "lins.0"), block, (lins[0], lins[1]), put, _places(network, module))


def _places(network: nn.Module, module: nn.Module) -> int:
    """How often a module is in a network, by itself or inside of something that is there several times."""
    return sum(found is module for _, found in network.named_modules(remove_duplicate=False))


def _prefixed(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child


def _without_shared_weights(
    network: nn.Module, sites: list[Site], skipped: list[Skipped]
) -> tuple[list[Site], list[Skipped]]:
    """Leave out blocks whose weights another module holds, too: experts would no longer be tied to it."""
    owners: dict[int, set[int]] = defaultdict(set)
    names = {}
    for name, module in network.named_modules():
        names[id(module)] = name
        for parameter in module._parameters.values():
            if parameter is not None:
                owners[id(parameter)].add(id(module))
    kept = []
    for site in sites:
        own = {id(part) for whole in site.parts for part in whole.modules()}
        tied = {
            owner for whole in site.parts for p in whole.parameters() for owner in owners[id(p)] if owner not in own
        }
        if tied:
            others = ", ".join(sorted(repr(names[owner]) for owner in tied))
            skipped.append(Skipped(site.name, site.block.kind, f"shares weights with {others}"))
        else:
            kept.append(site)
    return kept, skipped


def contents(network: nn.Module) -> str:
    """What a network is made of: its most frequent layers, for messages."""
    counts = Counter(type(m).__name__ for m in network.modules() if next(m.children(), None) is None)
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common(6)) or "nothing"
