"""The layer and the experts that take a block's place, with what blocks have besides: dropout, any activation.

Shapes: N tokens, d width, h hidden width, E experts, A assignments.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from moeapps.core.errors import ConfigError
from moeapps.core.experts import ExpertMLP
from moeapps.core.growth.blocks import Act, Block
from moeapps.core.layer import MoE
from moeapps.core.modes import notes_are_kept
from moeapps.core.routers import NoisyTopKRouter, Router, TopKRouter
from moeapps.core.routing import Routing

__all__ = ["BlockExperts", "MoEBlock", "count_calls", "experts_of", "new_experts"]


class BlockExperts(ExpertMLP):
    """:class:`~moeapps.core.experts.ExpertMLP` with any elementwise activation, and either bias or none.

    Dropout falls between the layers only: the layer's own (:class:`MoEBlock`) falls on the mixed outputs, as the
    block's did.

    Parameters
    ----------
    dim : int
        Input width d.
    hidden_dim : int
        Hidden width h.
    num_experts : int
        Number of experts E.
    out_dim : int
        Output width.
    act : callable
        The activation.
    gated : bool
        Whether the activated half of the first layer is multiplied by the other half.
    dropout : float
        Dropout of the hidden units.
    name : str or None
        The activation's name among :data:`~moeapps.core.activations.ACTIVATIONS`.
    biases : tuple[bool, bool]
        Whether the first and the second layer have biases.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        num_experts: int,
        out_dim: int,
        *,
        act: Act,
        gated: bool,
        dropout: float,
        name: str | None,
        biases: tuple[bool, bool],
    ) -> None:
        super().__init__(dim, hidden_dim, num_experts, out_dim, name or ("swiglu" if gated else "gelu"))
        self.is_gated, self.dropout, self.out_dropout = gated, dropout, 0.0
        self.named = name is not None
        self.act = copy.deepcopy(act) if isinstance(act, nn.Module) else act
        if not biases[0]:
            self.bias1 = None
        if not biases[1]:
            self.bias2 = None

    @property
    def gated(self) -> bool:
        """Whether the first layer has two halves."""
        return self.is_gated

    def _in_one_kernel(self) -> bool:
        return self.named and super()._in_one_kernel()

    def _activated(self, pre: Tensor) -> Tensor:
        if not self.is_gated:
            return self.act(pre)
        gate, value = pre.chunk(2, dim=-1)
        return self.act(gate) * value

    def extra_repr(self) -> str:
        """Arguments, for ``print(model)``."""
        return (
            f"dim={self.dim}, hidden_dim={self.hidden_dim}, num_experts={self.num_experts}, out_dim={self.out_dim}, "
            f"gated={self.is_gated}, dropout={self.dropout}"
        )


def experts_of(blocks: Sequence[Block], num_experts: int, *, shards: int = 1, noise_std: float = 0.0) -> ExpertMLP:
    """Experts made of blocks: copies of one, of several in turn, or of shards of one.

    Parameters
    ----------
    blocks : sequence of Block
        Blocks of the same shape.
    num_experts : int
        Number of experts E.
    shards : int, default=1
        Parts into which the hidden units are divided: expert e has part ``e % shards``, with the second layer
        multiplied by ``shards``, so that the mean of all parts is the block.
    noise_std : float, default=0.0
        Standard deviation of Gaussian noise on the weights, relative to each matrix's own.

    Raises
    ------
    ConfigError
        If the blocks differ, or their hidden units do not divide.
    """
    like = blocks[0]
    for block in blocks:
        if problem := like.shape_problem(block):
            raise ConfigError(f"the dense networks must have the same shape, activation and dropout: {problem} differs")
    assert len(blocks) == 1 or shards == 1
    if like.hidden_dim % shards:
        raise ConfigError(f"{like.hidden_dim} hidden units do not divide among {shards} experts")
    width = like.hidden_dim // shards
    experts = _empty_experts(like, width, num_experts)
    halves = 2 if like.gated else 1
    period = max(len(blocks), shards)  # experts e, e + period, ... are alike
    with torch.no_grad():
        for e in range(min(period, num_experts)):
            source, alike = blocks[e % len(blocks)], slice(e, None, period)
            units = slice(e % shards * width, (e % shards + 1) * width)
            # (halves, h, d) of which some units: (halves * width, d)
            first = source.first.unflatten(0, (halves, -1))[:, units].flatten(0, 1)
            experts.weight1[alike] = first.t()
            experts.weight2[alike] = source.second[:, units].t() * shards
            if source.bias1 is not None and experts.bias1 is not None:
                experts.bias1[alike] = source.bias1.unflatten(0, (halves, -1))[:, units].flatten()
            if source.bias2 is not None and experts.bias2 is not None:
                experts.bias2[alike] = source.bias2
        if noise_std > 0:
            for matrix in (experts.weight1, experts.weight2):
                matrix.add_(torch.randn_like(matrix) * noise_std * matrix.std())
    pairs = zip(
        (experts.weight1, experts.bias1, experts.weight2, experts.bias2),
        (like.first, like.bias1, like.second, like.bias2),
        strict=True,
    )
    for new, old in pairs:  # what was frozen stays frozen
        if new is not None and old is not None:
            new.requires_grad_(old.requires_grad)
    return experts


def _empty_experts(like: Block, width: int, num_experts: int) -> ExpertMLP:
    """Experts without values: nothing is drawn that would be overwritten."""
    with torch.device("meta"):
        experts = new_experts(like, width, num_experts)
    return experts.to_empty(device=like.first.device).to(like.first.dtype)


def new_experts(like: Block, width: int, num_experts: int) -> ExpertMLP:
    """Experts of a block's kind with weights of their own, on torch's default device.

    Parameters
    ----------
    like : Block
        The block, whose widths, activation, biases and dropout they have.
    width : int
        Hidden width of an expert.
    num_experts : int
        Number of experts E.
    """
    name, biases = like.activation, (like.bias1 is not None, like.bias2 is not None)
    if name is not None and like.dropout == 0 and biases[0] == biases[1]:
        return ExpertMLP(like.dim, width, num_experts, like.out_dim, name, bias=biases[0])
    return BlockExperts(
        like.dim, width, num_experts, like.out_dim,
        act=like.act, gated=like.gated, dropout=like.dropout, name=name, biases=biases,
    )  # fmt: skip


class MoEBlock(MoE):
    """An MoE layer in the place of a block: with its dropout, and for tokens in the form that the network has them.

    The weights of a token are divided by their sum, where a router does not do so itself, so that equal experts give
    what one of them gives. The sum counts as a constant in the backward pass: a router with one expert per token, whose
    weight would always be 1, learns all the same.

    Takes tokens ``(d,)``, ``(N, d)``, ``(..., T, d)``; of images ``(B, H, W, d)`` all H W tokens are one sample.

    Parameters
    ----------
    block : Block
        The block, whose width and dropout the layer has.
    router : Router
        The router.
    experts : Experts
        The experts.
    tokens_first : bool, default=False
        Whether tokens ``(T, B, d)`` come before samples, as in torch's transformer layers without ``batch_first``.
    **arguments
        Further arguments of :class:`~moeapps.core.layer.MoE`.
    """

    tokens_first: bool = False
    calls_kept: int = 1  # how often it is in the network: what is kept where nobody counts its calls
    _calls: tuple[Routing, ...] = ()
    _counting: bool = False

    def __init__(
        self, block: Block, router: Router, experts: ExpertMLP, *, tokens_first: bool = False, **arguments: Any
    ) -> None:
        super().__init__(block.dim, experts.num_experts, router=router, experts=experts, **arguments)
        self.tokens_first = tokens_first
        self.divides = not _sums_to_one(router)
        self.out_dropout = nn.Dropout(block.out_dropout) if block.out_dropout > 0 else None
        self.origin: dict[str, Any] = {}

    def forward(self, x: Tensor, ids: Tensor | None = None) -> Tensor:
        """Mix the experts' outputs for tokens ``(..., d)``."""
        if x.ndim == 1:
            return self.forward(x[None], ids)[0]
        if self.tokens_first and x.ndim == 3:
            out = super().forward(x.transpose(0, 1), None if ids is None else ids.t()).transpose(0, 1)
        elif x.ndim > 3:
            out = super().forward(x.flatten(1, -2), None if ids is None else ids.flatten(1)).unflatten(1, x.shape[1:-1])
        else:
            out = super().forward(x, ids)
        return out if self.out_dropout is None else self.out_dropout(out)

    def _route(self, router: Router, tokens: Tensor, ids: Tensor | None, x: Tensor) -> Routing:
        routing = super()._route(router, tokens, ids, x)
        if not self.divides:
            return routing
        given = routing.weight.detach()
        if routing.position is not None:
            total = given[routing.position].sum(dim=1)
        else:
            total = given.new_zeros(routing.num_tokens).index_add(0, routing.token, given)
        return replace(routing, weight=routing.weight / torch.where(total > 0, total, 1)[routing.token])

    def remember(self, routing: Routing) -> None:
        """Keep the routing of each call of a forward pass."""
        if notes_are_kept():
            before = self._calls if self._counting else self._calls[len(self._calls) + 1 - self.calls_kept :]
            self._calls = (*before, routing)
        super().remember(routing)

    @property
    def routings(self) -> Sequence[Routing]:
        """Routing of each call in the last forward pass of the network."""
        if self.iterations > 1 or self.last_routing is None:
            return super().routings
        return list(self._calls)

    def start_pass(self) -> None:
        """Drop the routings of the pass before, and count the calls of this one."""
        self._calls, self._counting = (), True

    def end_pass(self) -> None:
        """Stop counting."""
        self._counting = False

    def reset_parameters(self) -> None:
        """Draw new experts and a new router, as the layers that they replaced drew new weights."""
        assert isinstance(self.experts, ExpertMLP)
        self.experts.reset_parameters()
        if hasattr(self.router, "weight"):
            nn.init.normal_(self.router.weight, std=self.dim**-0.5)  # type: ignore[arg-type]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_calls": (), "_counting": False}


def _sums_to_one(router: Router) -> bool:
    if isinstance(router, TopKRouter):
        return router.renormalize
    return isinstance(router, NoisyTopKRouter)


def count_calls(network: nn.Module) -> None:
    """Let a network say when a forward pass begins and ends, so that layers called several times keep each call."""
    network.register_forward_pre_hook(_begin)
    network.register_forward_hook(_end, always_call=True)


def _begin(network: nn.Module, inputs: Any) -> None:
    if torch.compiler.is_compiling():
        return
    for layer in network.modules():
        if isinstance(layer, MoEBlock):
            layer.start_pass()


def _end(network: nn.Module, inputs: Any, output: Any) -> None:
    if torch.compiler.is_compiling():
        return
    for layer in network.modules():
        if isinstance(layer, MoEBlock):
            layer.end_pass()
