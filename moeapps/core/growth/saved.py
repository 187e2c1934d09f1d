"""Save and load networks whose MoE layers were made out of their blocks: one safetensors file, no pickle.

The file says of each layer where it is and what it is like (experts, router, what surgery made of it). Loading asks for
the network as it was before, made by the caller's code, puts layers of that kind in the same places, and loads the
weights. Low-rank experts of :func:`~moeapps.core.tuning.low_rank.lora_experts` are saved likewise.
"""

import copy
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from moeapps.core import saving
from moeapps.core.errors import ConfigError, FileFormatError
from moeapps.core.experts import ExpertMLP, LowRankExpertMLP
from moeapps.core.growth.blocks import Block
from moeapps.core.growth.layer import MoEBlock, count_calls, new_experts
from moeapps.core.growth.moeify import ARGUMENTS
from moeapps.core.growth.sites import find_sites, without_fast_path
from moeapps.core.layer import MoE
from moeapps.core.rebuilding import rebuild
from moeapps.core.routers import Router, router_class
from moeapps.core.routers.merged import MergedRouter
from moeapps.core.saving import SaveMixin, registered_path
from moeapps.core.tuning.low_rank import LowRankUpdates, RoutedLinear, replace_module

__all__ = ["MoEified", "load_moeified", "save_moeified"]

Network = TypeVar("Network", bound=nn.Module)


class MoEified(SaveMixin):
    """What a file holds of a network with MoE layers in the place of its blocks.

    :func:`save_moeified` writes it; :func:`moeapps.load` and :func:`load_moeified` return the network.

    Parameters
    ----------
    model : Module
        The network.
    trained_only : bool, default=False
        Whether the file holds only what can be trained and the layers' own tensors.
    """

    def __init__(self, model: nn.Module, trained_only: bool = False) -> None:
        self.model, self.trained_only = model, trained_only

    def saved_arguments(self) -> dict[str, Any]:
        """The network, of which the file keeps no code, and whether its weights are all there."""
        return {"model": self.model, "trained_only": self.trained_only}

    def saved_state(self) -> dict[str, Any]:
        """What the layers are like."""
        frozen = [name for name, p in self.model.named_parameters() if not p.requires_grad]
        return {"layers": describe_layers(self.model), "frozen": frozen}

    def saved_tensors(self) -> dict[str, Tensor]:
        """The state dict, or what of it the network before has not."""
        tensors = self.model.state_dict()
        if not self.trained_only:
            return tensors
        own = {name for name, p in self.model.named_parameters(remove_duplicate=False) if p.requires_grad}
        for prefix, module in self.model.named_modules(remove_duplicate=False):
            if isinstance(module, MoEBlock):
                own |= {name for name in tensors if name.startswith(f"{prefix}.")}
            elif isinstance(module, RoutedLinear):
                base = f"{prefix}.base."
                own |= {name for name in tensors if name.startswith(f"{prefix}.") and not name.startswith(base)}
        buffers = {name for name, _ in self.model.named_buffers(remove_duplicate=False)}  # running means of norms
        return {name: tensor for name, tensor in tensors.items() if name in own or name in buffers}

    @classmethod
    def from_saved(
        cls, arguments: dict[str, Any], state: dict[str, Any], tensors: dict[str, Tensor], source: Path
    ) -> Self:
        """The network: the caller's, with layers as the file says and its weights."""
        model, layers, frozen = arguments["model"], state["layers"], set(state["frozen"])
        if not isinstance(model, nn.Module):
            raise FileFormatError(f"{source} names no network")

        def build() -> nn.Module:
            with torch.random.fork_rng(devices=[]):
                return with_layers(model, layers, frozen)

        if arguments.get("trained_only"):
            with torch.device("meta"):
                planned = with_layers(model, layers).state_dict()
            kept = {name: tensor for name, tensor in planned.items() if not tensor.is_meta}
            tensors = {**kept, **tensors}
        return rebuild(build, tensors, source)  # type: ignore[return-value]


def save_moeified(model: nn.Module, path: str | os.PathLike[str], *, trained_only: bool = False) -> None:
    """Save a network of ``moeify`` or ``lora_experts``, pruned, merged or compressed since or not.

    Parameters
    ----------
    model : Module
        The network, or one that holds it.
    path : str or path
        Where to; an existing file is replaced only once the new one is safely on disk.
    trained_only : bool, default=False
        Whether to leave out the weights that are frozen and that the network had before: a small file, which needs the
        same weights again (a pretrained network with low-rank experts).

    Raises
    ------
    ConfigError
        If the network has no such layer, some of its experts are frozen by ``freeze_except`` (undo it first), or a
        router is not registered.
    OSError
        If the disk refuses.
    """
    MoEified(model, trained_only).save(path)


def load_moeified(path: str | os.PathLike[str], model: Network) -> Network:
    """Load what :func:`save_moeified` wrote. No code from the file is run and nothing is unpickled.

    Parameters
    ----------
    path : str or path
        The file.
    model : Module
        The network as it was before ``moeify``, made by your own code; its weights do not matter, unless the file was
        saved with ``trained_only``. It stays as it is.

    Returns
    -------
    Module
        The network with MoE layers, in evaluation mode; the same as ``moeapps.load(path, model=model)``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If it is damaged, or does not fit the network.

    Examples
    --------
    >>> import tempfile
    >>> from moeapps.core import moeify
    >>> dense = lambda: torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    >>> network, _ = moeify(dense(), num_experts=4)
    >>> path = tempfile.mkdtemp() + "/network.safetensors"
    >>> save_moeified(network, path)
    >>> x = torch.randn(3, 4)
    >>> torch.equal(load_moeified(path, dense())(x), network.eval()(x))
    True
    """
    network: Network = saving.load(path, model=model)
    return network


def describe_layers(model: nn.Module) -> list[dict[str, Any]]:
    """What the layers of a network are like, as JSON values.

    Raises
    ------
    ConfigError
        If there is none.
    """
    found = []
    for name, module in model.named_modules():
        if not isinstance(module, MoEBlock | RoutedLinear):
            continue
        if any(parametrize.is_parametrized(part) for part in module.modules()):
            raise ConfigError(f"some experts of {name!r} are frozen: call undo() of what freeze_except returned first")
        found.append({"name": name, **_described(module)})
    if not found:
        raise ConfigError(f"this {type(model).__name__} has no layers made by moeify or lora_experts")
    return found


def _described(layer: MoE) -> dict[str, Any]:
    experts = layer.experts
    common = {
        "num_experts": layer.num_experts,
        "router": _router_described(layer.router),
        "arguments": {name: getattr(layer, name) for name in ARGUMENTS},
    }
    if isinstance(layer, RoutedLinear):
        assert isinstance(experts, LowRankUpdates)
        grouped = {} if experts.groups is None else {"groups": list(experts.groups), "delta": layer.delta}
        return {"kind": "low_rank", "rank": experts.rank, "scale": layer.scale, **grouped, **common}
    assert isinstance(layer, MoEBlock)
    assert isinstance(experts, ExpertMLP)
    rank = experts.rank if isinstance(experts, LowRankExpertMLP) else None
    return {"kind": "block", "hidden_dim": experts.hidden_dim, "rank": rank, "divides": layer.divides, **common}


def _router_described(router: Router) -> dict[str, Any]:
    if isinstance(router, MergedRouter):
        chosen = router.group[:-1].tolist()
        groups = [[e for e, new in enumerate(chosen) if new == g] for g in range(router.num_experts)]
        return {"groups": groups, **_router_described(router.router)}
    return {
        "class": registered_path(type(router)), "num_experts": router.num_experts, "arguments": router.arguments(),
    }  # fmt: skip


def _router_of(dim: int, entry: Mapping[str, Any]) -> Router:
    router = router_class(entry["class"])(dim, entry["num_experts"], **entry["arguments"])
    return MergedRouter(router, entry["groups"]) if "groups" in entry else router


def with_layers(model: Network, layers: list[dict[str, Any]], frozen: Collection[str] = ()) -> Network:
    """A copy of a network with layers of these kinds in these places; their weights are to be loaded.

    Parameters
    ----------
    model : Module
        The network, which stays as it is.
    layers : list of dict
        What :func:`describe_layers` returned.
    frozen : collection of str, default=()
        Names of the parameters that are frozen; all others are trained.

    Raises
    ------
    FileFormatError
        If the network has no such places.
    """
    network = copy.deepcopy(model)
    blocks = {entry["name"]: entry for entry in layers if entry["kind"] == "block"}
    sites = {site.name: site for site in find_sites(network)[0]} if blocks else {}
    for name, entry in blocks.items():
        if name not in sites:
            known = ", ".join(map(repr, list(sites)[:6])) or "none"
            raise FileFormatError(
                f"the file has an MoE layer for {name!r}, and this {type(model).__name__} has no such block: {known}"
            )
        site = sites[name]
        layer = _block_layer(site.block, entry, site.tokens_first)
        layer.calls_kept = site.places
        network = cast(Network, site.put(layer))
    if blocks:
        count_calls(network)
    for entry in layers:
        if entry["kind"] == "low_rank":
            network = _with_low_rank(network, entry)
    without_fast_path(network)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return network


def _block_layer(block: Block, entry: Mapping[str, Any], tokens_first: bool) -> MoEBlock:
    num_experts, width = entry["num_experts"], entry["hidden_dim"]
    if entry["rank"] is None:
        experts = new_experts(block, width, num_experts)
    else:
        experts = LowRankExpertMLP(
            block.dim, width, num_experts, entry["rank"], block.out_dim, block.activation or "",
            bias=block.bias1 is not None,
        )  # fmt: skip
    router = _router_of(block.dim, entry["router"])
    layer = MoEBlock(block, router, experts, tokens_first=tokens_first, **_known(entry["arguments"]))
    layer.divides = bool(entry["divides"])
    return _like(layer, block.first)


def _with_low_rank(network: Network, entry: Mapping[str, Any]) -> Network:
    name = entry["name"]
    base = dict(network.named_modules()).get(name)
    if not isinstance(base, nn.Linear):
        raise FileFormatError(f"the file has low-rank experts for {name!r}, which is no Linear layer of this network")
    experts = LowRankUpdates(base.in_features, base.out_features, entry["rank"], entry["num_experts"])
    if (groups := entry.get("groups")) is not None:
        if len(groups) != experts.num_experts:
            raise FileFormatError(f"the file has {len(groups)} groups for {experts.num_experts} experts of {name!r}")
        experts.groups = tuple(map(int, groups))
    router = _router_of(base.in_features, entry["router"])
    scale, delta = float(entry["scale"]), float(entry.get("delta", 0.1))
    layer = RoutedLinear(base, router, experts, scale, delta, **_known(entry["arguments"]))
    for part in (layer.router, layer.experts):
        _like(part, base.weight)
    return replace_module(network, base, layer)


def _known(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name in ARGUMENTS}


M = TypeVar("M", bound=nn.Module)


def _like(module: M, tensor: Tensor) -> M:
    """A module in the dtype and, unless it has no memory, on the device of a tensor."""
    module.to(tensor.dtype)
    if not any(p.is_meta for p in module.parameters()):
        module.to(tensor.device)
    return module
