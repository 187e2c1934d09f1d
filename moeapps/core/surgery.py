"""Surgery on trained mixtures: prune, merge and compress experts, turn them into a dense layer, or grow them from one.

Every function leaves its input unchanged and returns a new model or layer with a report. Those that take a model
work on every :class:`~moeapps.core.layer.MoE` inside it (or on the layer itself).

Shapes: E experts, d width, h hidden width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from moeapps.core.activations import ACTIVATIONS
from moeapps.core.checks import check_sizes, check_top_k
from moeapps.core.errors import ConfigError
from moeapps.core.expert_tensors import averaged, sliced, stack_of
from moeapps.core.expert_use import ExpertUse, measure_use
from moeapps.core.experts import ExpertMLP, FeedForward, LowRankExpertMLP
from moeapps.core.growth.blocks import Block
from moeapps.core.growth.layer import MoEBlock, experts_of
from moeapps.core.growth.sites import find_sites
from moeapps.core.layer import MoE
from moeapps.core.merging import merge_experts, regroup
from moeapps.core.operations import LayerReport, Model, operate, report, use_of
from moeapps.core.routers import make_router

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
        score = use_of(use, name).weight.clone()
        score[: layer.router.always_on] = torch.inf
        kept = score.topk(num_experts).indices.sort().values.tolist()
        experts = sliced(layer.experts, [[e] for e in kept], lambda group: stack_of(layer.experts, group[0]))
        router, *later = (router.restricted(kept) for router in layer.routers)
        pruned = layer.rebuilt(router=router, experts=experts, later_routers=later)
        return pruned, report(layer, pruned, [(e,) for e in kept])

    return operate(model, prune)


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
        # layers that share routers still do
        compressed = layer.rebuilt(router=layer.router, experts=experts, later_routers=layer.routers[1:])
        groups = [(i,) for i in range(layer.num_experts)]
        return compressed, report(layer, compressed, groups, float(torch.cat(errors).mean()))

    return operate(model, compress)


def merge_to_dense(layer: MoE, use: ExpertUse | None = None) -> tuple[FeedForward, LayerReport]:
    """Merge all experts of a layer into one dense network: the mean of their weights, the same for every token.

    That is not MEO (He et al. 2023), which merges the weights of the chosen experts anew for each input, by its
    router's weights; here the router goes, and what is left costs what one expert does. Hidden units are aligned to
    those of the most used expert first.

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
    return dense, report(layer, dense, [tuple(group)], experts_after=1)


def upcycle(
    dense: nn.Module | Sequence[nn.Module],
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
    dense : Module or sequence of Module
        One network, or several of the same shape: :class:`~moeapps.core.experts.FeedForward`, or any block that
        :func:`~moeapps.core.growth.moeify.moeify` finds (timm's ``Mlp``, torchvision's ``MLP``, a ``Sequential``, ...).
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
        If the networks differ in shape or activation, or are no such blocks, or their hidden units do not divide among
        the experts.
    """
    sources = [dense] if isinstance(dense, nn.Module) and not isinstance(dense, nn.ModuleList) else list(dense)
    if not sources:
        raise ConfigError("dense must be a network or several of them, got none")
    check_sizes(num_experts=num_experts)
    blocks = [_block_of(source) for source in sources]
    like = blocks[0]
    if split and (len(sources) > 1 or like.hidden_dim % num_experts):
        raise ConfigError(
            f"split needs one network whose {like.hidden_dim} hidden units divide among {num_experts} experts"
        )
    experts = experts_of(blocks, num_experts, shards=num_experts if split else 1, noise_std=noise_std)
    if like.out_dropout > 0:  # of a foreign network: the layer has it, too
        router = arguments.pop("router", "topk")
        made = make_router(router, like.dim, num_experts, top_k) if isinstance(router, str) else router
        layer: MoE = MoEBlock(like, made, experts, **arguments)
        layer.divides = False  # type: ignore[assignment]
    else:
        layer = MoE(like.dim, num_experts, top_k, experts=experts, **arguments)
    layer.to(like.first)
    before = sum(block.numel for block in blocks)
    after = sum(p.numel() for p in layer.parameters())
    groups = tuple((e % len(sources),) for e in range(num_experts))
    return layer, LayerReport(len(sources), num_experts, before, after, groups)


def _block_of(network: nn.Module) -> Block:
    """What a dense network computes, or an error that says why it cannot become experts."""
    sites, skipped = find_sites(network)
    if len(sites) == 1 and sum(p.numel() for p in network.parameters()) == sites[0].block.numel:
        return sites[0].block
    reason = f": {skipped[0].reason}" if skipped else ""
    raise ConfigError(f"dense must be Linear - activation - Linear, got a {type(network).__name__}{reason}")


def _stacked(layer: MoE) -> ExpertMLP:
    if type(layer.experts) is not ExpertMLP:
        raise ConfigError(f"this needs experts of type ExpertMLP, got {type(layer.experts).__name__}")
    return layer.experts
