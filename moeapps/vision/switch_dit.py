"""Switch-DiT (Park et al., ECCV 2024): a DiT whose blocks have experts that are chosen by the timestep."""

# Shapes: N images, T tokens per image, d width, E experts, k experts per timestep, L blocks, S timesteps

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.config import as_arguments, takes
from moeapps.core.errors import ConfigError
from moeapps.core.layer import RoutedLayer
from moeapps.core.modes import notes_are_kept, values_are_hidden
from moeapps.core.routers import TopKRouter
from moeapps.vision.dit import DiT, DiTBlock, DiTConfig, modulate

__all__ = ["SwitchBlock", "SwitchDiT", "SwitchDiTConfig", "TimestepRouter", "TimestepSwitch"]

MOST_MATRIX = 8
"""One matrix per image is used where the width is at most this multiple of the number of tokens."""


class TimestepRouter(TopKRouter):
    r"""Router of a block as released: logits :math:`V x + b`, V Xavier-uniform and b zero at first, no renormalisation.

    Parameters
    ----------
    dim : int
        Width d of an embedded timestep.
    num_experts : int
        Number of experts E.
    top_k : int
        Experts k per timestep.
    """

    per_expert: tuple[str, ...] = ("weight", "bias")  # type: ignore[assignment, misc]
    bias: nn.Parameter | None

    def __init__(self, dim: int, num_experts: int, top_k: int) -> None:
        super().__init__(dim, num_experts, top_k, renormalize=False)
        nn.init.xavier_uniform_(self.weight)
        self.bias = nn.Parameter(torch.zeros(num_experts))

    def scores(self, x: Tensor, experts: nn.Module | None, ids: Tensor | None) -> Tensor:
        """Logits ``(N, E)``."""
        logits = super().scores(x, experts, ids)
        return logits if self.bias is None else logits + self.bias.to(logits.dtype)

    def without_bias(self) -> None:
        """Drop the bias: moeapps 0.1 had none."""
        self.bias = None
        self.per_expert = ("weight",)


class TimestepSwitch(RoutedLayer):
    r"""Mask on the tokens of an image, from linear experts that are chosen by its timestep.

    .. math::
        x \odot mask(x), \quad mask(x) = 1 + \sum_{e \in top-k} p_e(t)\,(W_e x + b_e), \quad
        p(t) = \mathrm{softmax}(V\,\mathrm{SiLU}(temb(t)) + c)

    where the probabilities of the chosen experts are not renormalised. Experts are initialised to zero, so that the
    mask is one. Since experts are linear,

    1. the experts of an image are mixed into one matrix ``(d, d)`` by their gates,
    2. which is applied to its tokens: one linear map per token, whatever k.

    Where an image has far fewer tokens than they are wide, those matrices would cost more than they save; there every
    expert is applied to every token, and the outputs are mixed.

    Parameters
    ----------
    dim : int
        Width d of the tokens.
    num_experts : int, default=3
        Number of experts E.
    top_k : int, default=2
        Experts k per timestep.
    gate_bias : bool, default=True
        Whether the gate has the bias c.
    """

    def __init__(self, dim: int, num_experts: int = 3, top_k: int = 2, gate_bias: bool = True) -> None:
        super().__init__()
        self.router: TopKRouter = (
            TimestepRouter(dim, num_experts, top_k)
            if gate_bias
            else TopKRouter(dim, num_experts, top_k, renormalize=False)
        )
        self.weight = nn.Parameter(torch.zeros(num_experts, dim, dim))
        self.bias = nn.Parameter(torch.zeros(num_experts, dim))

    def gates(self, temb: Tensor) -> Tensor:
        """Weights ``(N, E)`` of the experts for embedded timesteps ``(N, d)``; zero for experts that are not chosen."""
        routing = self.router(F.silu(temb))
        self.remember(routing)
        empty = routing.weight.new_zeros(temb.shape[0], routing.num_experts)
        return empty.index_put((routing.token, routing.expert), routing.weight)

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        """Masked tokens ``(N, T, d)`` for tokens ``(N, T, d)`` and gates ``(N, E)``, or ``(1, E)`` for all images."""
        gates = gates.to(x.dtype)
        experts, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        exporting = torch.compiler.is_exporting()  # a program is of any number of images: no branch by that number
        if (exporting or gates.shape[0] > 1) and x.shape[2] > MOST_MATRIX * x.shape[1]:
            outputs = F.linear(x, experts.transpose(1, 2).flatten(0, 1), bias.flatten())  # (N, T, E d)
            return x * (1 + torch.einsum("ntei,ne->nti", outputs.unflatten(2, bias.shape), gates))
        matrix = (gates @ experts.flatten(1)).view(-1, *experts.shape[1:])  # (N or 1, d, d)
        bias_and_one = 1 + gates @ bias  # (N or 1, d)
        if not exporting and gates.shape[0] == 1:
            return x * F.linear(x, matrix[0].t(), bias_and_one[0])
        return x * torch.baddbmm(bias_and_one[:, None], x, matrix)


class SwitchBlock(DiTBlock):
    r"""A DiT block on masked tokens: attention and MLP are shared by all timesteps, the mask depends on the timestep.

    The paper's :math:`r = x \odot mask`, :math:`r' = r + a(r)`, :math:`r'' = r' + m(r')`,
    :math:`out = r'' + (1 - mask) \odot x` equals :math:`x + a(r) + m(r')`, which is what is computed: only the
    inputs of attention and MLP are masked.

    Parameters
    ----------
    dim, num_heads, mlp_ratio
        As in :class:`~moeapps.vision.dit.DiTBlock`.
    num_experts, top_k, gate_bias
        As in :class:`TimestepSwitch`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        num_experts: int = 3,
        top_k: int = 2,
        gate_bias: bool = True,
    ) -> None:
        super().__init__(dim, num_heads, mlp_ratio)
        self.switch = TimestepSwitch(dim, num_experts, top_k, gate_bias)

    def forward(self, x: Tensor, condition: Tensor, gates: Tensor | None = None) -> Tensor:
        """Tokens ``(N, T, d)``, condition ``(N, d)`` and gates ``(N or 1, E)`` to tokens."""
        assert gates is not None
        masked = self.switch(x, gates)
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=2)
        attended = gate1 * self.attn(modulate(self.norm1(masked), shift1, scale1))
        passed = self.mlp(modulate(self.norm2(masked + attended), shift2, scale2))
        return torch.addcmul(x + attended, gate2, passed)


@dataclass(frozen=True)
class SwitchDiTConfig:
    """What a :class:`SwitchDiT` has beside the sizes of a :class:`~moeapps.vision.dit.DiTConfig`.

    Parameters
    ----------
    num_experts : int, default=3
        Number of experts E per block.
    top_k : int, default=2
        Experts k per timestep and block.
    gate_bias : bool, default=True
        Whether the gates have a bias, as in the released code; those of moeapps 0.1 had none.
    """

    num_experts: int = 3
    top_k: int = 2
    gate_bias: bool = True


class SwitchDiT(DiT, library_name="moeapps", tags=["diffusion", "mixture-of-experts"]):
    """DiT whose blocks have experts that the timestep chooses (Park et al., ECCV 2024).

    Takes the fields of :class:`SwitchDiTConfig` and of :class:`~moeapps.vision.dit.DiTConfig` as arguments. The gates
    depend on the timestep alone: in evaluation those of all timesteps are computed once, and no router runs in
    sampling.

    Attributes
    ----------
    last_gates : list of Tensor
        Gates ``(N or 1, E)`` of each block in the last forward pass.

    Raises
    ------
    ConfigError
        If sizes do not fit together, as in :class:`~moeapps.vision.DiT`, or ``top_k`` exceeds ``num_experts``.

    Examples
    --------
    >>> import torch
    >>> model = SwitchDiT(img_size=8, patch_size=2, in_chans=1, dim=32, depth=2, num_heads=4)
    >>> model.gate_table().shape
    torch.Size([2, 1000, 3])
    """

    @takes(SwitchDiTConfig, DiTConfig)
    def __init__(self, switch: SwitchDiTConfig, dit: DiTConfig) -> None:
        self._switch = switch  # before the base's constructor, which calls make_block
        super().__init__(**as_arguments(dit))
        self._table: Tensor | None = None
        self.last_gates: list[Tensor] = []

    def make_block(self, dim: int, num_heads: int, mlp_ratio: float) -> nn.Module:
        """Make a block with experts."""
        switch = self._switch
        return SwitchBlock(dim, num_heads, mlp_ratio, switch.num_experts, switch.top_k, switch.gate_bias)

    @classmethod
    def _from_pretrained(cls, **arguments: Any) -> "SwitchDiT":
        """Load a folder or repository; one that 0.1 saved does not say that its gates have no bias."""
        return cast(SwitchDiT, super()._from_pretrained(**{"gate_bias": False, **arguments}))

    def last_probabilities(self) -> Tensor:
        """Probabilities ``(L, N or 1, E)`` of all experts, chosen or not, in the last forward pass that ran routers.

        Raises
        ------
        ConfigError
            If none did.
        """
        routings = [switch.last_routing for switch in self.switches]
        if any(routing is None for routing in routings):
            raise ConfigError("no router has run yet: call the network first, in training mode")
        return torch.stack([routing.probabilities for routing in routings if routing is not None])

    def gate_table(self) -> Tensor:
        """Gates ``(L, S, E)`` of every block at every timestep; zero for experts that are not chosen."""
        temb = self.t_embed(torch.arange(self.timesteps, device=self.head.weight.device))
        return torch.stack([switch.gates(temb) for switch in self.switches])

    @torch.no_grad()
    def keep_gates(self) -> None:
        """Compute the gates of all timesteps now, as evaluation does when it first needs them.

        ``torch.export.export`` then makes them a constant of the program, which has no router.
        """
        self._table = self.gate_table()

    @property
    def switches(self) -> list[TimestepSwitch]:
        """The experts of each block."""
        return [block.switch for block in self.blocks if isinstance(block, SwitchBlock)]

    def train(self, mode: bool = True) -> "SwitchDiT":
        """Set the mode. Gates that evaluation cached are dropped where training starts or ends."""
        if mode or self.training:
            self._table = None
        return super().train(mode)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load weights, and drop the gates that evaluation cached."""
        self._table = None
        return super().load_state_dict(*args, **kwargs)

    def run_blocks(self, tokens: Tensor, condition: Tensor, temb: Tensor, t: Tensor) -> Tensor:
        """Run all blocks on tokens ``(N, T, d)``, each with its gates of the timesteps."""
        every = self._gates(temb, t)
        if notes_are_kept():
            self.last_gates = every
        for block, gates in zip(self.blocks, every, strict=True):
            tokens = block(tokens, condition, gates)
        return tokens

    def _gates(self, temb: Tensor, t: Tensor) -> list[Tensor]:
        hidden, exporting = values_are_hidden(), torch.compiler.is_exporting()
        if self.training or torch.is_grad_enabled() or (hidden and not (exporting and self._table is not None)):
            return [switch.gates(temb) for switch in self.switches]
        if exporting:
            assert self._table is not None
            return list(self._table[:, t])
        if self._table is None or self._table.device != t.device:
            self.keep_gates()
        assert self._table is not None
        # In sampling all images are at one timestep: one matrix for all. On a GPU the question would synchronise.
        same = not t.is_cuda and len(t) > 0 and bool((t == t[0]).all())
        return list(self._table[:, t[:1] if same else t])

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_table": None, "last_gates": []}
