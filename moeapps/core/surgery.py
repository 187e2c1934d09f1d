"""Surgery on trained mixtures: prune, merge and compress experts, turn them into a dense layer, or grow them from one.

Every function leaves its input unchanged and returns a new model or layer with a report. Those that take a model
work on every :class:`~moeapps.core.layer.MoE` inside it (or on the layer itself).

Shapes: E experts, d width, h hidden width.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from moeapps.core.checks import check_one_of, check_sizes, check_top_k
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.expert_tensors import averaged, sliced, stack_of
from moeapps.core.experts import ExpertMLP, FeedForward, LowRankExpertMLP
from moeapps.core.kernels import ACTIVATIONS
from moeapps.core.layer import MoE
from moeapps.core.routers.merged import MergedRouter

__all__ = [
    "ExpertUse",
    "LayerReport",
    "compress_experts",
    "measure_use",
    "merge_experts",
    "merge_to_dense",
    "prune_experts",
    "regroup",
    "upcycle",
]


Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class ExpertUse:
    """How the tokens of some data use the experts of one layer.

    Attributes
    ----------
    weight : Tensor
        ``(E,)`` sum of the weights that tokens gave each expert, divided by the number of tokens. On the data of one
        task it is the task-conditioned score of PreMoe (2025).
    similarity : Tensor
        ``(E, E)`` correlation of the router's logits over tokens: experts that the same tokens prefer.
    """

    weight: Tensor
    similarity: Tensor


@dataclass(frozen=True)
class LayerReport:
    """What surgery changed in one layer.

    Attributes
    ----------
    experts_before : int
        Number of experts before.
    experts_after : int
        Number of experts after.
    parameters_before : int
        Number of parameters of the layer before.
    parameters_after : int
        Number of parameters of the layer after.
    groups : tuple[tuple[int, ...], ...]
        For each new expert, the old ones it was made of.
    error : float, default=0.0
        Mean relative error of the expert weights, where they were approximated; else 0.
    """

    experts_before: int
    experts_after: int
    parameters_before: int
    parameters_after: int
    groups: tuple[tuple[int, ...], ...]
    error: float = 0.0


@torch.no_grad()
def measure_use(model: nn.Module, batches: Iterable[Any]) -> dict[str, ExpertUse]:
    """Measure how data uses the experts.

    Parameters
    ----------
    model : Module
        A layer or a model with :class:`~moeapps.core.layer.MoE` layers.
    batches : iterable of Any
        Inputs; a tuple is passed as several arguments.

    Returns
    -------
    dict of str to ExpertUse
        The use of each layer, by its name in the model (``""`` for the layer itself).

    Raises
    ------
    DataError
        If there is not a single valid token.
    """
    probe = copy.deepcopy(model).eval()
    layers = _layers(probe)
    weight = {name: torch.zeros(layer.num_experts, dtype=torch.float64) for name, layer in layers.items()}
    logits: dict[str, list[Tensor]] = {name: [] for name in layers}
    for batch in batches:
        probe(*batch) if isinstance(batch, tuple | list) else probe(batch)
        for name, layer in layers.items():
            for routing in layer.routings:  # one per call, where several blocks share the layer
                ok = routing.valid[routing.token]
                total = torch.zeros(layer.num_experts + 1, dtype=torch.float64, device=ok.device)
                total = total.index_add(0, routing.expert[ok], routing.weight[ok].double())
                weight[name] += total[:-1].cpu()
                logits[name].append(routing.probabilities[routing.valid].clamp(min=1e-12).log().double().cpu())
    use = {}
    for name in layers:
        every = torch.cat(logits[name]) if logits[name] else torch.zeros(0, 1)
        if len(every) == 0:
            raise DataError(f"layer {name!r} saw no valid token: its use cannot be measured")
        use[name] = ExpertUse(weight[name] / len(every), torch.atleast_2d(torch.corrcoef(every.t())).nan_to_num())
    return use


def prune_experts(model: Model, num_experts: int, use: Mapping[str, ExpertUse]) -> tuple[Model, dict[str, LayerReport]]:
    """Keep the experts that are used most (UNCURL, Sarkar et al. 2024; PreMoe 2025) and drop the others.

    Parameters
    ----------
    model : Model
        A layer or a model.
    num_experts : int
        How many to keep in each layer.
    use : mapping of str to ExpertUse
        Result of :func:`measure_use` on the data that matters.

    Returns
    -------
    tuple[Model, dict of str to LayerReport]
        The pruned copy and a report per layer. Shared experts always stay.

    Raises
    ------
    ConfigError
        If there are not that many experts, or they cannot be taken out of this kind of router.
    """

    def prune(name: str, layer: MoE) -> tuple[nn.Module, LayerReport]:
        check_top_k(num_experts, layer.num_experts, "num_experts")
        score = _use(use, name).weight.clone()
        score[: layer.router.always_on] = torch.inf
        kept = score.topk(num_experts).indices.sort().values.tolist()
        experts = sliced(layer.experts, [[e] for e in kept], lambda group: stack_of(layer.experts, group[0]))
        pruned = layer.rebuilt(router=layer.router.restricted(kept), experts=experts)
        return pruned, _report(layer, pruned, [(e,) for e in kept])

    return _operate(model, prune)


def merge_experts(model: Model, num_experts: int, use: Mapping[str, ExpertUse]) -> tuple[Model, dict[str, LayerReport]]:
    """Merge similar experts after aligning their hidden units, weighted by use (M-SMoE, Li et al. 2024, section 3).

    1. The most used experts are the heads of groups.
    2. Each of the others joins the head whose router logits correlate most with its own.
    3. The hidden units of a group are aligned to those of its head, and the weights averaged by use.
    4. The router stays and sends the tokens of an old expert to the one it was merged into.

    Parameters
    ----------
    model : Model
        A layer or a model.
    num_experts : int
        How many experts are left in each layer.
    use : mapping of str to ExpertUse
        Result of :func:`measure_use`.

    Returns
    -------
    tuple[Model, dict of str to LayerReport]
        The merged copy and a report per layer.

    Raises
    ------
    ConfigError
        If there are not that many experts, or tokens do not choose experts in this kind of router.
    """

    def merge(name: str, layer: MoE) -> tuple[nn.Module, LayerReport]:
        check_top_k(num_experts, layer.num_experts, "num_experts")
        measured = _use(use, name)
        heads = measured.weight.topk(num_experts).indices.tolist()
        groups = [[head] for head in heads]
        for e in range(layer.num_experts):
            if e not in heads:
                groups[int(measured.similarity[e, heads].argmax())].append(e)
        merged = regroup(layer, groups, measured.weight)
        return merged, _report(layer, merged, groups)

    return _operate(model, merge)


def regroup(layer: MoE, groups: Sequence[Sequence[int]], weight: Tensor | None = None) -> MoE:
    """Merge the experts of a layer into given groups.

    Parameters
    ----------
    layer : MoE
        The layer.
    groups : Sequence[sequence of int]
        For each new expert the old ones it is made of, the one that the others are aligned to first.
    weight : Tensor, optional
        ``(E,)`` how much each old expert counts; all alike when None.
    """
    use = torch.ones(layer.num_experts, dtype=torch.float64) if weight is None else weight
    router = MergedRouter(copy.deepcopy(layer.router), groups)
    experts = sliced(layer.experts, groups, lambda group: averaged(layer.experts, group, use))
    return layer.rebuilt(router=router, experts=experts)


def compress_experts(model: Model, rank: int) -> tuple[Model, dict[str, LayerReport]]:
    """Replace both layers of every expert by truncated singular value decompositions.

    The low-rank part of MC-SMoE (Li et al. 2024, section 3.3), best applied to merged experts, whose weights have a
    low rank; its sparse remainder is left out.

    Parameters
    ----------
    model : Model
        A layer or a model.
    rank : int
        Rank of every matrix that is left, below its width.

    Returns
    -------
    tuple[Model, dict of str to LayerReport]
        The compressed copy and a report per layer, whose ``error`` is the relative error of the weights.

    Raises
    ------
    ConfigError
        If the rank is not below the widths.
    """
    check_sizes(rank=rank)

    def compress(name: str, layer: MoE) -> tuple[nn.Module, LayerReport]:
        e = _stacked(layer)
        if rank >= min(e.dim, e.hidden_dim, e.out_dim):
            raise ConfigError(f"rank must be below {min(e.dim, e.hidden_dim, e.out_dim)}, got {rank}")
        experts = LowRankExpertMLP(
            e.dim, e.hidden_dim, e.num_experts, rank, e.out_dim, e.activation, bias=e.bias1 is not None
        ).to(e.weight1)
        errors = []
        with torch.no_grad():
            for weight, left, right in (
                (e.weight1, experts.down, experts.weight1),
                (e.weight2, experts.weight2, experts.up),
            ):
                u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
                root = s[:, :rank].sqrt()
                left.copy_(u[:, :, :rank] * root[:, None])
                right.copy_(root[:, :, None] * v[:, :rank])
                errors.append(s[:, rank:].norm(dim=1) / s.norm(dim=1).clamp(min=1e-300))
            if e.bias1 is not None and e.bias2 is not None:
                experts.bias1.copy_(e.bias1)  # type: ignore[union-attr]
                experts.bias2.copy_(e.bias2)  # type: ignore[union-attr]
        both = {"down": e.weight1, "up": e.weight2}
        for part, made in experts.named_parameters():  # what was frozen stays frozen
            made.requires_grad_((both[part] if part in both else e.get_parameter(part)).requires_grad)
        compressed = layer.rebuilt(router=layer.router, experts=experts)  # layers that share a router still do
        groups = [(i,) for i in range(layer.num_experts)]
        return compressed, _report(layer, compressed, groups, float(torch.cat(errors).mean()))

    return _operate(model, compress)


def merge_to_dense(layer: MoE, use: ExpertUse | None = None) -> tuple[FeedForward, LayerReport]:
    """Merge all experts of a layer into one dense network (MEO, He et al. 2023, with one weight per expert).

    Parameters
    ----------
    layer : MoE
        The layer; its experts are an :class:`~moeapps.core.experts.ExpertMLP` with a plain activation.
    use : ExpertUse, optional
        Weights of the experts; all alike when None.

    Returns
    -------
    tuple[FeedForward, LayerReport]
        The dense network and a report.

    Raises
    ------
    ConfigError
        If the experts are of another kind.
    """
    e = _stacked(layer)
    if ACTIVATIONS[e.activation].gated:
        raise ConfigError(f"a dense layer has no gate: experts with {e.activation} cannot be merged into one")
    weight = torch.ones(layer.num_experts, dtype=torch.float64) if use is None else use.weight
    group = list(range(layer.num_experts))
    group = [group.pop(int(weight.argmax())), *group]  # the others are aligned to the most used one
    merged = averaged(e, group, weight)
    dense = FeedForward(e.dim, e.hidden_dim, e.out_dim, e.activation).to(e.weight1)
    with torch.no_grad():
        for linear, matrix, bias in ((dense.first, "weight1", "bias1"), (dense.second, "weight2", "bias2")):
            linear.weight.copy_(merged[matrix].t()).requires_grad_(e.get_parameter(matrix).requires_grad)
            linear.bias.copy_(merged.get(bias, torch.zeros_like(linear.bias)))
            linear.bias.requires_grad_(bias not in merged or e.get_parameter(bias).requires_grad)
    dense.changed_by_surgery = True
    dense.train(layer.training)
    return dense, _report(layer, dense, [tuple(group)], experts_after=1)


def upcycle(
    dense: FeedForward | Sequence[FeedForward],
    num_experts: int,
    top_k: int = 2,
    *,
    split: bool = False,
    noise_std: float = 0.0,
    **arguments: Any,
) -> tuple[MoE, LayerReport]:
    """Grow a mixture from trained dense networks.

    Copies of one network are sparse upcycling (Komatsuzaki et al. 2023): its output at first equals
    the network's, as the weights of a token sum to 1. Several networks, trained on different data, become
    experts in turn (BAM, Zhang et al. 2024). ``split=True`` divides the hidden units among the experts (FactorLLM,
    Zhao et al. 2024): no parameter is added, and with all experts chosen alike the output is the network's.

    Parameters
    ----------
    dense : FeedForward or sequence of FeedForward
        One network, or several of the same shape.
    num_experts : int
        Number of experts E.
    top_k : int, default=2
        Experts per token.
    split : bool, default=False
        Whether to divide the network instead of copying it.
    noise_std : float, default=0.0
        Standard deviation of Gaussian noise on the copies, relative to each matrix's own, so that experts can grow
        apart even before the router has told them apart.
    **arguments
        Further arguments of :class:`~moeapps.core.layer.MoE`.

    Returns
    -------
    tuple[MoE, LayerReport]
        The layer, with a fresh router, and a report.

    Raises
    ------
    ConfigError
        If the networks differ in shape, or their hidden units do not divide among the experts.
    """
    sources = [dense] if isinstance(dense, FeedForward) else list(dense)
    if not sources:
        raise ConfigError("dense must be a FeedForward or several of them, got none")
    check_sizes(num_experts=num_experts)
    like = sources[0]
    for source in sources:
        if (source.dim, source.hidden_dim, source.out_dim) != (like.dim, like.hidden_dim, like.out_dim):
            raise ConfigError("the dense networks must have the same shape")
        check_one_of("activation", source.activation, (like.activation,))
    if split and (len(sources) > 1 or like.hidden_dim % num_experts):
        raise ConfigError(
            f"split needs one network whose {like.hidden_dim} hidden units divide among {num_experts} experts"
        )
    width = like.hidden_dim // num_experts if split else like.hidden_dim
    experts = ExpertMLP(like.dim, width, num_experts, like.out_dim, like.activation).to(like.first.weight)
    assert experts.bias1 is not None
    assert experts.bias2 is not None
    with torch.no_grad():
        for e in range(num_experts):
            source = sources[e % len(sources)]
            units = slice(e * width, (e + 1) * width) if split else slice(None)
            experts.weight1[e].copy_(source.first.weight[units].t())
            experts.bias1[e].copy_(source.first.bias[units])
            experts.weight2[e].copy_(source.second.weight[:, units].t() * (num_experts if split else 1))
            experts.bias2[e].copy_(source.second.bias)
        for matrix in (experts.weight1, experts.weight2):
            matrix.add_(torch.randn_like(matrix) * noise_std * matrix.std())
    layer = MoE(like.dim, num_experts, top_k, experts=experts, **arguments).to(like.first.weight)
    before = sum(p.numel() for source in sources for p in source.parameters())
    after = sum(p.numel() for p in layer.parameters())
    groups = tuple((e % len(sources),) for e in range(num_experts))
    return layer, LayerReport(len(sources), num_experts, before, after, groups)


def _layers(model: nn.Module) -> dict[str, MoE]:
    layers = {name: module for name, module in model.named_modules() if isinstance(module, MoE)}
    if not layers:
        raise ConfigError(f"there is no MoE layer in this {type(model).__name__}")
    return layers


def _operate(
    model: Model, operation: Callable[[str, MoE], tuple[nn.Module, LayerReport]]
) -> tuple[Model, dict[str, LayerReport]]:
    """Apply an operation to each layer of a copy of the model."""
    result = copy.deepcopy(model)
    reports = {}
    for name, layer in _layers(result).items():
        new, reports[name] = operation(name, layer)
        if name == "":
            return cast(Model, new), reports
        for parent in list(result.modules()):  # several blocks may share the layer
            for child, module in parent._modules.items():
                if module is layer:
                    setattr(parent, child, new)
    return result, reports


def _use(use: Mapping[str, ExpertUse], name: str) -> ExpertUse:
    if name not in use:
        raise ConfigError(f"use has no entry for layer {name!r}, it has {', '.join(map(repr, use))}")
    return use[name]


def _stacked(layer: MoE) -> ExpertMLP:
    if type(layer.experts) is not ExpertMLP:
        raise ConfigError(f"this needs experts of type ExpertMLP, got {type(layer.experts).__name__}")
    return layer.experts


def _report(
    before: nn.Module,
    after: nn.Module,
    groups: Sequence[Sequence[int]],
    error: float = 0.0,
    experts_after: int | None = None,
) -> LayerReport:
    assert isinstance(before, MoE)
    return LayerReport(
        before.num_experts,
        after.num_experts if isinstance(after, MoE) else experts_after or 0,
        sum(p.numel() for p in before.parameters()),
        sum(p.numel() for p in after.parameters()),
        tuple(tuple(group) for group in groups),
        error,
    )
