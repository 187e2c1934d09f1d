"""Low-rank experts beside the frozen Linear layers of a network (MoLA, LoRAMoE).

Shapes: N tokens, A assignments, d width, d_out output width, r rank, E experts.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from moeapps import registry
from moeapps.core.backends import Backend, choose_backend
from moeapps.core.checks import check_at_least_zero, check_below_one, check_sizes, check_top_k
from moeapps.core.errors import ConfigError
from moeapps.core.experts import Experts, _compute_dtype, _counts
from moeapps.core.growth.blocks import linear_problem, random_rows
from moeapps.core.growth.moeify import Layers
from moeapps.core.growth.sites import Skipped, contents, find_sites, without_fast_path
from moeapps.core.kernels import sorted_linear
from moeapps.core.layer import MoE, RoutedLayer
from moeapps.core.losses import localized_balance_loss
from moeapps.core.routers import Router, SoftRouter, make_router

__all__ = ["LowRankReport", "LowRankUpdates", "RoutedLinear", "lora_experts", "merge_lora", "replace_module"]

Network = TypeVar("Network", bound=nn.Module)
ARGUMENTS = ("backend", "capacity_factor", "overflow", "eval_capacity_factor", "balance_weight", "z_weight")


class LowRankUpdates(Experts):
    r"""E products of two narrow matrices: :math:`f_e(x) = x A_e B_e`, with B zero at first.

    Parameters
    ----------
    dim : int
        Input width d.
    out_dim : int
        Output width.
    rank : int
        Width r of the product.
    num_experts : int
        Number of experts E.
    """

    stacked = True

    def __init__(self, dim: int, out_dim: int, rank: int, num_experts: int) -> None:
        super().__init__()
        check_sizes(dim=dim, out_dim=out_dim, rank=rank, num_experts=num_experts)
        self.dim, self.out_dim, self.rank, self.num_experts = dim, out_dim, rank, num_experts
        self.down = nn.Parameter(torch.empty(num_experts, dim, rank))
        self.up = nn.Parameter(torch.zeros(num_experts, rank, out_dim))
        bound = dim**-0.5
        nn.init.uniform_(self.down, -bound, bound)

    def forward(self, rows: Tensor, offsets: Tensor, backend: Backend = "auto") -> Tensor:
        """Apply the experts to rows ``(A, d)`` sorted by expert."""
        dtype = _compute_dtype(rows)
        widths = (self.dim, self.rank, self.out_dim)
        chosen = choose_backend(backend, device=rows.device, dtype=dtype, counts=_counts(offsets), widths=widths)
        with torch.autocast(rows.device.type, enabled=False):
            narrow = sorted_linear(rows.to(dtype), offsets, self.down.to(dtype), chosen)
            return sorted_linear(narrow, offsets, self.up.to(dtype), chosen)

    def mean_keys(self) -> Tensor:
        """Mean of each expert's key vectors, ``(E, d)``."""
        return self.down.mean(dim=2)

    def extra_repr(self) -> str:
        """Arguments, for ``print(model)``."""
        return f"dim={self.dim}, out_dim={self.out_dim}, rank={self.rank}, num_experts={self.num_experts}"


class RoutedLinear(MoE):
    r"""A Linear layer with low-rank experts: :math:`y = W x + b + \frac{\alpha}{r} \sum_e w_e(x) x A_e B_e`.

    Parameters
    ----------
    base : Linear
        The layer, used without copying.
    router : Router
        The router.
    experts : LowRankUpdates
        The experts.
    scale : float
        Factor of the experts, alpha / r.
    delta : float, default=0.1
        Of :func:`~moeapps.core.losses.localized_balance_loss`, where the experts are in groups.
    **arguments
        Further arguments of :class:`~moeapps.core.layer.MoE`.
    """

    def __init__(
        self,
        base: nn.Linear,
        router: Router,
        experts: LowRankUpdates,
        scale: float,
        delta: float = 0.1,
        **arguments: Any,
    ) -> None:
        super().__init__(base.in_features, experts.num_experts, router=router, experts=experts, **arguments)
        self.base, self.scale, self.delta = base, scale, delta
        self.origin: dict[str, Any] = {}

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return self.dim

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self.experts.out_dim

    def forward(self, x: Tensor, ids: Tensor | None = None) -> Tensor:
        """Map ``(..., d)`` to ``(..., d_out)``."""
        tokens = x[None] if x.ndim == 1 else x.flatten(1, -2) if x.ndim > 3 else x
        update = super().forward(tokens, ids)
        base: Tensor = self.base(x)
        return base + self.scale * update.view(base.shape)

    def auxiliary_losses(
        self, token_weight: Tensor | None = None, sample_groups: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Weighted losses of the last forward pass; with experts in groups, their balance is the localized one.

        Parameters
        ----------
        token_weight : Tensor, optional
            ``(N,)`` or the tokens' leading shape: how much each token counts; one each when None.
        sample_groups : Tensor, optional
            ``(S,)`` group of each sample, where the experts are in groups.

        Raises
        ------
        ConfigError
            If the experts are in groups and ``sample_groups`` is None, or as of
            :meth:`MoE.auxiliary_losses <moeapps.core.layer.MoE.auxiliary_losses>`.
        DataError
            If the tokens do not divide among the samples.
        """
        losses = super().auxiliary_losses(token_weight)
        if self.experts.groups is None or self.last_routing is None:
            return losses
        if sample_groups is None:
            raise ConfigError(
                "the low-rank experts are in groups (expert_groups), so that their loss needs the group of each "
                "sample: collect_losses(network, sample_groups=...); in Lightning MoELosses(sample_groups=...), "
                "or in a MoEModule of your own total_loss(..., sample_groups=...)"
            )
        if self.balance_weight > 0:
            self._check_gradients()
        weight = None if token_weight is None else token_weight.reshape(-1)
        loss = localized_balance_loss(self.last_routing, sample_groups, self.experts.groups, self.delta, weight)
        return {**losses, "balance": self.balance_weight * loss}


@dataclass(frozen=True)
class LowRankReport:
    """What :func:`lora_experts` did.

    Attributes
    ----------
    layers : tuple of str
        Names of the Linear layers that have experts now.
    skipped : tuple of Skipped
        Layers that were asked for and cannot have any, and why.
    trained : int
        Number of parameters that are trained.
    total : int
        Number of parameters of the network.
    num_experts : tuple of int
        Number of experts of each of the layers.
    """

    layers: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    trained: int
    total: int
    num_experts: tuple[int, ...] = ()

    @property
    def share(self) -> float:
        """Fraction of the parameters that are trained."""
        return self.trained / max(self.total, 1)


def lora_experts(
    model: Network,
    rank: int = 8,
    num_experts: int | Sequence[int] = 4,
    top_k: int = 2,
    layers: Layers = "auto",
    *,
    alpha: float | None = None,
    router: str = "topk",
    router_args: Mapping[str, Any] | None = None,
    also: str | Sequence[str] = (),
    expert_groups: int | None = None,
    delta: float = 0.1,
    **arguments: Any,
) -> tuple[Network, LowRankReport]:
    """Freeze a network and put routed low-rank experts beside its Linear layers.

    As in MoLA (Gao et al. 2024) and LoRAMoE (Dou et al. 2024), who do it for language models. The experts' second
    factor is zero at first, so that the network computes exactly what it did. Trained are the experts, their routers,
    and what ``also`` names.

    Parameters
    ----------
    model : Module
        The network, which stays as it is.
    rank : int, default=8
        Rank r of an expert.
    num_experts : int or sequence of int, default=4
        Number of experts E beside each layer: one number, or one per layer in the order of the network. Fewer numbers
        stand for as many parts of the network, with equally many layers: ``(2, 4, 6, 8)`` gives a quarter of them 2
        experts, the next 4, the next 6, and the last 8 (MoLA).
    top_k : int, default=2
        Experts per token; at most E. The default is 1 where there is one expert.
    layers : "auto", str, sequence of str, or callable, default="auto"
        Which Linear layers: ``"auto"`` are both layers of every block that :func:`~moeapps.core.growth.moeify.moeify`
        would find (as in LoRAMoE); or names, patterns (``"blocks.*.attn.qkv"``, ``"*"``), or a function of name and
        module.
    alpha : float, optional
        The experts' sum is multiplied by ``alpha / rank``; ``2 * rank`` when None.
    router : str, default="topk"
        Name of a router.
    router_args : mapping, optional
        Further arguments of the router.
    also : str or sequence of str, default=()
        Names or patterns of parameters that are trained besides (``"head"``).
    expert_groups : int, optional
        Number of groups into which the experts of each layer are divided, the first E / ``expert_groups`` experts being
        group 0. The balance loss then is LoRAMoE's localized one
        (:func:`~moeapps.core.losses.localized_balance_loss`): samples of a group prefer the experts of that group. It
        needs the group of each sample (``collect_losses(network, sample_groups=...)``), and samples as the first axis
        of the layers' inputs. ``top_k=num_experts`` is LoRAMoE's own routing. No groups when None.
    delta : float, default=0.1
        With ``expert_groups``: how much more the experts of a sample's group are used, (1 + delta) / (1 - delta) times
        the others; 0 to below 1.
    **arguments
        Further arguments of the layers: ``balance_weight``, ``z_weight``, ``capacity_factor``, ``overflow``,
        ``eval_capacity_factor``, ``backend``.

    Returns
    -------
    network : Module
        A copy of the network.
    report : LowRankReport
        The layers, and the share of parameters that are trained.

    Raises
    ------
    ConfigError
        If there is no such layer, an argument is impossible, or the numbers of ``num_experts`` or ``expert_groups`` do
        not divide.

    Examples
    --------
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    >>> tuned, report = lora_experts(network, rank=2)
    >>> x = torch.randn(3, 4)
    >>> torch.equal(tuned(x), network(x)), report.layers
    (True, ('0', '2'))
    """
    numbers = _checked_numbers(num_experts, top_k, expert_groups)
    check_sizes(rank=rank)
    check_below_one(delta=delta)
    alpha = float(2 * rank) if alpha is None else alpha
    check_at_least_zero(alpha=alpha)
    if unknown := [name for name in arguments if name not in ARGUMENTS]:
        raise ConfigError(f"lora_experts has no argument {unknown[0]!r}; layers take {', '.join(ARGUMENTS)}")
    settings = {
        "rank": rank, "top_k": top_k, "alpha": alpha, "router": router, "router_args": dict(router_args or {}),
        "expert_groups": expert_groups, "delta": delta, **arguments,
    }  # fmt: skip
    network = copy.deepcopy(model)
    chosen, skipped = _linears(network, layers)
    if len(chosen) % len(numbers):
        raise ConfigError(
            f"num_experts has {len(numbers)} numbers, and {len(chosen)} Linear layers do not divide into as many equal "
            f"parts: give {_listed(n for n in range(1, len(chosen) + 1) if len(chosen) % n == 0)} of them"
        )
    each = [number for number in numbers for _ in range(len(chosen) // len(numbers))]
    trained_also = _matching(network, also)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    for parameter in trained_also:
        parameter.requires_grad_(True)
    for (name, linear), number in zip(chosen.items(), each, strict=True):
        own = {**settings, "num_experts": number, "top_k": _top_k(top_k, number)}
        network = replace_module(network, linear, routed_linear(linear, own, name))
    without_fast_path(network)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    total = sum(p.numel() for p in network.parameters())
    return network, LowRankReport(tuple(chosen), tuple(skipped), trained, total, tuple(each))


def _top_k(top_k: int, num_experts: int) -> int:
    """The default of 2 holds for a single expert, too."""
    return min(top_k, num_experts) if top_k == 2 else top_k


def _checked_numbers(num_experts: int | Sequence[int], top_k: int, expert_groups: int | None) -> list[int]:
    """Numbers of experts, of which each takes ``top_k`` and divides into the groups."""
    single = isinstance(num_experts, int) or not isinstance(num_experts, Sequence)
    numbers: list[Any] = [num_experts] if single else list(num_experts)  # type: ignore[arg-type]
    if not numbers:
        raise ConfigError("num_experts is empty: give one number, or one per layer")
    if expert_groups is not None:
        check_sizes(expert_groups=expert_groups)
    for place, number in enumerate(numbers):
        name = "num_experts" if single else f"num_experts[{place}]"
        check_sizes(**{name: number})
        check_top_k(_top_k(top_k, number), number)
        if expert_groups is not None and number % expert_groups:
            raise ConfigError(f"{name}={number} does not divide into expert_groups={expert_groups} groups")
    return numbers


def _listed(numbers: Iterable[int]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} or {last}" if first else last


def routed_linear(linear: nn.Linear, settings: Mapping[str, Any], name: str) -> RoutedLinear:
    """The layer for a Linear layer, with settings as :func:`lora_experts` writes them."""
    dim, out, num_experts = linear.in_features, linear.out_features, settings["num_experts"]
    if not isinstance(settings["router"], str):
        raise ConfigError(f"router must be the name of a router, got {settings['router']!r}")
    router = make_router(settings["router"], dim, num_experts, settings["top_k"], **settings["router_args"])
    if isinstance(router, SoftRouter) or router.default_experts(1) is not None:
        raise ConfigError(f"router={settings['router']!r} cannot route to low-rank experts: it needs its own kind")
    experts = LowRankUpdates(dim, out, settings["rank"], num_experts)
    if (count := settings["expert_groups"]) is not None:
        experts.groups = tuple(e * count // num_experts for e in range(num_experts))
    arguments = {key: settings[key] for key in ARGUMENTS if key in settings}
    scale = settings["alpha"] / settings["rank"]
    layer = RoutedLinear(linear, router, experts, scale, settings["delta"], **arguments)
    layer.origin = {**settings, "name": name}
    layer.router.to(linear.weight.device, linear.weight.dtype)
    layer.experts.to(linear.weight.device, linear.weight.dtype)
    return layer.train(linear.training)


def _linears(network: nn.Module, layers: Layers) -> tuple[dict[str, nn.Linear], list[Skipped]]:
    """Linear layers by name, and what was asked for and is none."""
    names = {id(module): name for name, module in network.named_modules()}
    inside = {id(part) for m in network.modules() if isinstance(m, RoutedLayer) for part in m.modules()}
    every = {names[id(m)]: m for m in network.modules() if isinstance(m, nn.Linear) and id(m) not in inside}
    wanted: Callable[[str, nn.Module], bool]
    if isinstance(layers, str) and layers == "auto":
        sites, _ = find_sites(network)
        blocks = {id(part) for site in sites for whole in site.parts for part in whole.modules()}
        wanted = lambda name, module: id(module) in blocks  # noqa: E731
    elif callable(layers):
        wanted = layers
    else:
        patterns = [layers] if isinstance(layers, str) else list(layers)
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in every):
                hint = registry.did_you_mean(pattern, every, f"it has {', '.join(map(repr, list(every)[:6]))}")
                what = f"no Linear layer of this {type(network).__name__}"
                raise ConfigError(f"layers names {pattern!r}, which is {what}{hint}")
        wanted = lambda name, module: any(fnmatchcase(name, pattern) for pattern in patterns)  # noqa: E731
    chosen, skipped = {}, []
    for name, module in every.items():
        if not wanted(name, module):
            continue
        if problem := _problem(module):
            skipped.append(Skipped(name, type(module).__name__, problem))
        else:
            chosen[name] = module
    if not chosen:
        reasons = "; ".join(f"{entry.name}: {entry.reason}" for entry in skipped[:3])
        raise ConfigError(
            f"this {type(network).__name__} has no Linear layer for low-rank experts among those that layers takes. It "
            f"is made of {contents(network)}" + (f"; {reasons}" if reasons else "")
        )
    return chosen, skipped


def _problem(linear: nn.Module) -> str | None:
    if type(linear) is not nn.Linear and isinstance(linear, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "torch's attention reads its weights and does not call it"
    return linear_problem(linear)


def replace_module(network: Network, old: nn.Module, new: nn.Module) -> Network:
    """The network with a module exchanged in all places that hold it."""
    if network is old:
        return new  # type: ignore[return-value]
    for parent in list(network.modules()):
        for child, module in parent._modules.items():
            if module is old and parent is not new:
                parent._modules[child] = new
    return network


def _matching(network: nn.Module, also: str | Sequence[str]) -> list[nn.Parameter]:
    named = dict(network.named_parameters())
    found = []
    for pattern in [also] if isinstance(also, str) else also:
        matched = [p for name, p in named.items() if fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")]
        if not matched:
            raise ConfigError(f"also={pattern!r} matches no parameter of this {type(network).__name__}")
        found += matched
    return found


@torch.no_grad()
def merge_lora(model: Network) -> Network:
    """Add the low-rank experts to the weights of their Linear layers: a network of the old kind, at its old cost.

    Only one expert per layer, which takes every token, is a matrix; of several the sum depends on the token.

    Parameters
    ----------
    model : Module
        A network of :func:`lora_experts`, which stays as it is.

    Returns
    -------
    Module
        A copy with plain Linear layers. What was frozen is still frozen.

    Raises
    ------
    ConfigError
        If there are no low-rank experts, or a layer has several.
    """
    network = copy.deepcopy(model)
    layers = {name: module for name, module in network.named_modules() if isinstance(module, RoutedLinear)}
    if not layers:
        raise ConfigError(f"there are no low-rank experts in this {type(model).__name__}")
    for name, layer in layers.items():
        if layer.num_experts > 1:
            raise ConfigError(
                f"{name!r} has {layer.num_experts} low-rank experts: what they add depends on the token, so that they "
                "cannot become one matrix. lora_experts(num_experts=1) can be merged"
            )
        update = layer.experts.down[0].double() @ layer.experts.up[0].double()  # type: ignore[index]
        weight = _weight_of_one(layer)
        layer.base.weight.add_((layer.scale * weight * update).t().to(layer.base.weight.dtype))
        network = replace_module(network, layer, layer.base)
    return network


def _weight_of_one(layer: RoutedLinear) -> float:
    """What a single expert is multiplied by: 1, as a softmax over one score is, or a router's factor."""
    probe = random_rows(layer.dim).to(layer.base.weight)
    routing = copy.deepcopy(layer.router).eval()(probe, experts=layer.experts)
    weight = routing.weight
    if weight.numel() != len(probe) or not torch.allclose(weight, weight[:1].expand_as(weight)):
        raise ConfigError(f"{type(layer.router).__name__} weighs its expert by the token: it cannot become one matrix")
    return float(weight[0])
