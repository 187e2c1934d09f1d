"""``moeify``: a network whose blocks are MoE layers, and which computes what it computed before.

Shapes: N tokens, d width, h hidden width, E experts, k experts per token.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeVar, cast

import pandas as pd
import torch
from torch import nn

from moeapps import registry
from moeapps.core.checks import check_at_least_zero, check_one_of, check_sizes, check_top_k
from moeapps.core.errors import ConfigError
from moeapps.core.growth.blocks import Block, random_rows
from moeapps.core.growth.layer import MoEBlock, count_calls, experts_of
from moeapps.core.growth.sites import Site, Skipped, contents, find_sites
from moeapps.core.routers import NoisyTopKRouter, Router, TopKRouter, make_router

__all__ = ["Layers", "MoEifyReport", "Replaced", "Skipped", "moeify", "upcycled_block"]

Network = TypeVar("Network", bound=nn.Module)
Layers = str | Sequence[str] | Callable[[str, nn.Module], bool]
Init = Literal["copy", "split", "noise"]
INITS = ("copy", "split", "noise")
ARGUMENTS = (
    "backend", "capacity_factor", "overflow", "eval_capacity_factor", "balance_weight", "z_weight", "balance_loss",
)  # fmt: skip
"""Further arguments of the layers that :func:`moeify` takes."""


@dataclass(frozen=True)
class Replaced:
    """A block that became an MoE layer.

    Attributes
    ----------
    name : str
        Name of the layer in the network.
    kind : str
        What the block was.
    dim : int
        Width d of the tokens.
    hidden_dim : int
        Hidden width of an expert.
    num_experts : int
        Number of experts E.
    parameters_before : int
        Parameters of the block.
    parameters_after : int
        Parameters of the layer.
    difference : float or None
        Largest difference of the outputs of block and layer, relative to the largest output, for 64 random tokens in
        evaluation; None for a network without memory (torch's meta device).
    """

    name: str
    kind: str
    dim: int
    hidden_dim: int
    num_experts: int
    parameters_before: int
    parameters_after: int
    difference: float | None


@dataclass(frozen=True)
class MoEifyReport:
    """What :func:`moeify` did.

    Attributes
    ----------
    replaced : tuple of Replaced
        The new MoE layers.
    skipped : tuple of Skipped
        What was left as it is, and why.
    arguments : dict
        Arguments with which the same layers are made out of the same network again, as JSON values.
    """

    replaced: tuple[Replaced, ...]
    skipped: tuple[Skipped, ...]
    arguments: dict[str, Any]

    @property
    def difference(self) -> float | None:
        """Largest difference of a layer from its block; None where it could not be measured."""
        found = [layer.difference for layer in self.replaced if layer.difference is not None]
        return max(found, default=None)

    def frame(self) -> pd.DataFrame:
        """One row per block, replaced or not."""
        rows = [{**asdict(layer), "reason": ""} for layer in self.replaced]
        return pd.DataFrame([*rows, *(asdict(block) for block in self.skipped)])

    def __str__(self) -> str:
        before, after = (sum(getattr(r, f"parameters_{w}") for r in self.replaced) for w in ("before", "after"))
        lines = [f"{len(self.replaced)} blocks became MoE layers: {before:,} parameters became {after:,}"]
        lines += [f"  {r.name}: {r.kind}, {r.num_experts} experts of {r.hidden_dim} units" for r in self.replaced]
        lines += [f"  {s.name or 'the network'} stays: {s.reason}" for s in self.skipped]
        return "\n".join(lines)


def moeify(
    model: Network,
    layers: Layers = "auto",
    num_experts: int = 8,
    top_k: int = 2,
    router: str = "topk",
    every: int = 2,
    init: Init = "copy",
    *,
    router_args: Mapping[str, Any] | None = None,
    noise_std: float = 0.02,
    **arguments: Any,
) -> tuple[Network, MoEifyReport]:
    """Replace blocks Linear - activation - Linear of a network by MoE layers made from their weights.

    Found are timm's ``Mlp``, ``GluMlp`` and ``SwiGLU``, torchvision's ``MLP`` and ``MLPBlock``, Linear - activation -
    Linear inside of ``nn.Sequential``, ``linear1`` and ``linear2`` of ``nn.TransformerEncoderLayer`` and
    ``nn.TransformerDecoderLayer``, PyG's ``MLP`` of two layers, and classes of your own whose forward, tried with
    random weights, computes such a block, plain or gated. Weights, biases, activation, dropout, dtype, device, mode
    and what was frozen are kept; a block that several places share becomes a layer that they share.

    ``init`` says what the experts are:

    - ``"copy"``: each is the block (sparse upcycling, Komatsuzaki et al. 2023). In evaluation the network computes what
      it computed before, up to rounding, with any router that sends each token to at least one expert.
    - ``"split"``: each has one k-th of the hidden units, times k, and there are E / k experts of each part. The router
      starts with equal scores for the parts of a block, so that the k experts of a token are one of each (virtual
      groups; He et al. 2024, "Upcycling large language models into mixture of experts"). The network computes what it
      computed before, at the cost that it had before. With ``top_k=num_experts`` no parameter is added.
    - ``"noise"``: copies, with Gaussian noise of ``noise_std`` times each matrix's own standard deviation. The network
      computes nearly what it did; experts differ from the first step on.

    Parameters
    ----------
    model : Module
        The network, which stays as it is.
    layers : "auto", str, sequence of str, or callable, default="auto"
        Which blocks: ``"auto"`` takes every ``every``-th of those whose output is as wide as their input (of all,
        where there are none such); otherwise names of blocks, a pattern (``"blocks.*.mlp"``), several of these, or a
        function of name and module that says whether to take the block.
    num_experts : int, default=8
        Number of experts E.
    top_k : int, default=2
        Experts per token k.
    router : str, default="topk"
        Name of a router, as in ``moeapps list routers``.
    every : int, default=2
        With ``layers="auto"``: every second, third, ... block; 1 takes all of them.
    init : {"copy", "split", "noise"}, default="copy"
        What the experts are, see above.
    router_args : mapping, optional
        Further arguments of the router.
    noise_std : float, default=0.02
        Size of the noise of ``init="noise"``.
    **arguments
        Further arguments of the layers: ``backend``, ``capacity_factor``, ``overflow``, ``eval_capacity_factor``,
        ``balance_weight``, ``z_weight``, ``balance_loss`` (see :class:`~moeapps.core.layer.MoE`).

    Returns
    -------
    network : Module
        A copy of the network with MoE layers. Their auxiliary losses are collected by
        :func:`~moeapps.core.auxiliary.collect_losses`, or in Lightning by
        :class:`~moeapps.core.auxiliary.MoELosses`.
    report : MoEifyReport
        What was replaced and what was skipped and why.

    Raises
    ------
    ConfigError
        If there is no such block, ``layers`` names none, or router and ``init`` do not keep the function.

    Examples
    --------
    >>> import torch
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).eval()
    >>> grown, report = moeify(network, num_experts=4)
    >>> x = torch.randn(3, 4)
    >>> torch.allclose(grown(x), network(x), atol=1e-5), len(report.replaced)
    (True, 1)
    """
    check_sizes(num_experts=num_experts, every=every)
    check_top_k(top_k, num_experts)
    check_one_of("init", init, INITS)
    check_at_least_zero(noise_std=noise_std)
    if unknown := [name for name in arguments if name not in ARGUMENTS]:
        known = [*_NAMES, *ARGUMENTS]
        hint = registry.did_you_mean(unknown[0], known, f"it takes {', '.join(known)}")
        raise ConfigError(f"moeify has no argument {unknown[0]!r}{hint}")
    if not isinstance(router, str):
        raise ConfigError(f"router must be the name of a router, got {router!r}: each layer makes its own")
    settings = {
        "num_experts": num_experts, "top_k": top_k, "router": router, "init": init,
        "router_args": dict(router_args or {}), "noise_std": noise_std, **arguments,
    }  # fmt: skip
    network = copy.deepcopy(model)
    sites, skipped = find_sites(network)
    chosen, left = _choose(network, sites, skipped, layers, every)
    replaced = []
    for site in chosen:
        layer, entry = _layer_of(site, settings)
        network = cast(Network, site.put(layer))
        replaced.append(entry)
    count_calls(network)
    settings["layers"] = [site.name for site in chosen]
    return network, MoEifyReport(tuple(replaced), (*skipped, *left), settings)


_NAMES = ("layers", "num_experts", "top_k", "router", "every", "init", "router_args", "noise_std")


def _choose(
    network: nn.Module, sites: Sequence[Site], skipped: Sequence[Skipped], layers: Layers, every: int
) -> tuple[list[Site], list[Skipped]]:
    """The sites that are meant, and why the others are not."""
    if not sites:
        why = "; ".join(f"{entry.name or 'the network'}: {entry.reason}" for entry in skipped[:4])
        raise ConfigError(
            f"this {type(network).__name__} has no block Linear - activation - Linear to make experts of. It is made "
            f"of {contents(network)}" + (f"; {why}" if why else "")
        )
    if isinstance(layers, str) and layers == "auto":
        square = [site for site in sites if site.block.dim == site.block.out_dim] or list(sites)
        chosen = square[every - 1 :: every] or square[-1:]
        reasons = {
            id(site): f"every={every} takes others"
            if any(site is other for other in square)
            else f"maps {site.block.dim} numbers to {site.block.out_dim}: name it in layers to replace it"
            for site in sites
        }
    else:
        chosen = _named(network, sites, skipped, layers)
        reasons = dict.fromkeys(map(id, sites), "layers does not name it")
    taken = {id(site) for site in chosen}
    left = [Skipped(s.name, s.block.kind, reasons[id(s)]) for s in sites if id(s) not in taken]
    return chosen, left


def _named(network: nn.Module, sites: Sequence[Site], skipped: Sequence[Skipped], layers: Layers) -> list[Site]:
    if callable(layers):
        chosen = [site for site in sites if layers(site.name, network.get_submodule(site.name))]
        if not chosen:
            raise ConfigError(f"layers takes none of the blocks {_listed(sites)}")
        return chosen
    patterns = [layers] if isinstance(layers, str) else list(layers)
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise ConfigError(f"layers must be 'auto', names, a pattern or a function, got {layers!r}")
    for pattern in patterns:
        if any(_matches(site.name, pattern) for site in sites):
            continue
        reason = next((s.reason for s in skipped if _matches(s.name, pattern)), None)
        if reason is not None:
            raise ConfigError(f"layers names {pattern!r}, which cannot become experts: {reason}")
        hint = registry.did_you_mean(pattern, [site.name for site in sites], f"its blocks are {_listed(sites)}")
        raise ConfigError(f"layers names {pattern!r}, which is no block of this {type(network).__name__}{hint}")
    return [site for site in sites if any(_matches(site.name, pattern) for pattern in patterns)]


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def _listed(sites: Sequence[Site]) -> str:
    names = [repr(site.name) for site in sites]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _layer_of(site: Site, settings: Mapping[str, Any]) -> tuple[MoEBlock, Replaced]:
    """The layer for a site, and its line of the report."""
    block = site.block
    training = site.parts[0].training
    layer = upcycled_block([block], settings, tokens_first=site.tokens_first)
    layer.origin = {**settings, "name": site.name}
    layer.calls_kept = site.places
    difference = _difference(block, layer)
    if settings["init"] != "noise" and difference is not None and difference > _TOLERANCE.get(block.first.dtype, 0.05):
        raise ConfigError(
            f"router={settings['router']!r} does not keep what {site.name!r} computes (outputs differ by "
            f"{difference:.2g}): it mixes tokens, leaves some without an expert, or scales them. init='noise' allows it"
        )
    entry = Replaced(
        site.name,
        block.kind,
        block.dim,
        layer.experts.hidden_dim,  # type: ignore[arg-type]
        layer.num_experts,
        block.numel,
        sum(p.numel() for p in layer.parameters()),
        difference,
    )
    return layer.train(training), entry


_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}


def upcycled_block(blocks: Sequence[Block], settings: Mapping[str, Any], *, tokens_first: bool = False) -> MoEBlock:
    """The layer of one block, or of several that become its experts in turn.

    Parameters
    ----------
    blocks : sequence of Block
        Blocks of the same shape.
    settings : mapping
        ``num_experts``, ``top_k``, ``router``, ``router_args``, ``init``, ``noise_std`` and arguments of the layer.
    tokens_first : bool, default=False
        Whether tokens ``(T, B, d)`` come before samples.
    """
    num_experts, top_k, init = settings["num_experts"], settings["top_k"], settings["init"]
    shards = top_k if init == "split" else 1
    if num_experts % shards:
        raise ConfigError(
            f"init='split' makes num_experts / top_k experts of each part: {num_experts} / {top_k} is no whole number"
        )
    noise = settings["noise_std"] if init == "noise" else 0.0
    experts = experts_of(blocks, num_experts, shards=shards, noise_std=noise)
    like = blocks[0].first
    router = make_router(settings["router"], blocks[0].dim, num_experts, top_k, **settings["router_args"])
    if (needed := router.default_experts(1)) is not None:
        raise ConfigError(
            f"router={settings['router']!r} needs experts of its own kind ({type(needed).__name__}), which cannot be "
            "made of a block"
        )
    if shards > 1:
        _score_in_groups(router, shards)
    arguments = {name: settings[name] for name in ARGUMENTS if name in settings}
    layer = MoEBlock(blocks[0], router, experts, tokens_first=tokens_first, **arguments)
    layer.router.to(like.device, like.dtype)
    return layer


@torch.no_grad()
def _score_in_groups(router: Router, shards: int) -> None:
    """Give the experts of one group, one of each part, the same scores."""
    if not isinstance(router, TopKRouter | NoisyTopKRouter) or router.top_k != shards:
        raise ConfigError(f"init='split' needs router='topk' or 'noisy_topk', got {type(router).__name__}")
    router.weight.copy_(router.weight[::shards].repeat_interleave(shards, dim=0))


@torch.no_grad()
def _difference(block: Block, layer: MoEBlock) -> float | None:
    """Largest difference of the outputs for random tokens in evaluation, relative to the largest output."""
    if block.first.is_meta:
        return None
    x = random_rows(block.dim).to(block.first)
    mode, cap = layer.training, layer.eval_capacity_factor
    layer.eval_capacity_factor = None  # whoever caps experts wants tokens to be left out
    act = block.act
    was = act.training if isinstance(act, nn.Module) else None
    if isinstance(act, nn.Module):
        act.eval()
    expected, found = block(x), layer.eval()(x[None])[0]
    if isinstance(act, nn.Module) and was is not None:
        act.train(was)
    layer.train(mode)
    layer.eval_capacity_factor = cap
    layer.last_routing, layer._calls, layer._taken = None, (), ()
    size = float(expected.abs().max())
    difference = float((expected - found).float().abs().max())
    return difference / size if size > 0 else difference
