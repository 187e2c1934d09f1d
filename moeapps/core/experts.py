"""Experts: the networks that tokens are routed to.

Shapes: A assignments (rows, sorted by expert), d width, h hidden width, r rank, E experts.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.activations import ACTIVATIONS
from moeapps.core.backends import Backend, choose_backend
from moeapps.core.checks import check_one_of, check_sizes
from moeapps.core.errors import ConfigError
from moeapps.core.kernels import sorted_linear, sorted_mlp
from moeapps.core.modes import is_transformed, values_are_hidden

__all__ = [
    "ExpertList",
    "ExpertMLP",
    "Experts",
    "FactoredExpertMLP",
    "FeedForward",
    "HeterogeneousExperts",
    "LowRankExpertMLP",
]


class Experts(nn.Module):
    """Base of all experts: ``forward(rows, offsets, backend)`` maps ``(A, d)`` sorted rows to ``(A, d_out)``.

    Attributes
    ----------
    dim : int
        Input width d.
    out_dim : int
        Output width.
    num_experts : int
        Number of experts E.
    sizes : tuple[int, ...], optional
        Size of each expert, where they differ, for the parameter penalty; None when all are alike.
    groups : tuple[int, ...], optional
        Group of each expert, where they are trained for groups of samples; None when there are no groups.
    stacked : bool, default=False
        Whether every parameter has one row per expert, so that experts can be taken out.
    dtype : dtype or None
        Parameter type, or None if there are no parameters.
    """

    dim: int
    out_dim: int
    num_experts: int
    sizes: tuple[int, ...] | None = None
    groups: tuple[int, ...] | None = None
    stacked: bool = False

    @property
    def dtype(self) -> torch.dtype | None:
        """Type of the first floating-point parameter."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), None)

    def forward(self, rows: Tensor, offsets: Tensor, backend: Backend = "auto") -> Tensor:
        """Apply expert e to ``rows[offsets[e]:offsets[e + 1]]``, for every e; rows beyond give zero."""
        raise NotImplementedError


def _fan_in_uniform_(weight: Tensor, bias: Tensor | None) -> None:
    """Initialise each expert as ``torch.nn.Linear`` initialises itself; weights are ``(E, in, out)``."""
    bound = weight.shape[1] ** -0.5
    nn.init.uniform_(weight, -bound, bound)
    if bias is not None:
        nn.init.uniform_(bias, -bound, bound)


def _compute_dtype(rows: Tensor) -> torch.dtype:
    """Type of the products: autocast's where it is on (grouped_mm is not registered with autocast), else the rows'."""
    device = rows.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else rows.dtype


def _counts(offsets: Tensor) -> Tensor | None:
    """Rows of each expert; None while tracing, and on CUDA, where reading them synchronises with the device."""
    return None if values_are_hidden() or offsets.is_cuda else offsets.diff()


class ExpertMLP(Experts):
    r"""E two-layer networks with stacked weights: :math:`f_e(x) = \phi(x W_1^e + b_1^e) W_2^e + b_2^e`.

    With ``activation="swiglu"``: :math:`f_e(x) = (\mathrm{silu}(x W_g^e) \cdot x W_v^e) W_2^e` (Shazeer 2020), the
    two halves of the first layer stored side by side.

    Parameters
    ----------
    dim : int
        Input width d.
    hidden_dim : int
        Hidden width h.
    num_experts : int
        Number of experts E.
    out_dim : int, optional
        Output width; ``dim`` when None.
    activation : str, default="gelu"
        ``"gelu"``, ``"relu"``, ``"silu"`` or ``"swiglu"``.
    bias : bool, default=True
        Whether the layers have biases.
    dropout : float, default=0.0
        Training only: dropout after the activation and after the second layer.

    Raises
    ------
    ConfigError
        If a size is below 1, the activation is unknown, or the dropout is not a probability below 1.

    Examples
    --------
    >>> import torch
    >>> experts = ExpertMLP(dim=4, hidden_dim=8, num_experts=2)
    >>> experts(torch.randn(3, 4), torch.tensor([0, 1, 3], dtype=torch.int32)).shape
    torch.Size([3, 4])
    """

    stacked = True
    # pickles of 0.1 have none
    dropout: float = 0.0  # of the hidden units
    out_dropout: float = 0.0

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        num_experts: int,
        out_dim: int | None = None,
        activation: str = "gelu",
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        out_dim = dim if out_dim is None else out_dim
        check_sizes(dim=dim, hidden_dim=hidden_dim, num_experts=num_experts, out_dim=out_dim)
        check_one_of("activation", activation, ACTIVATIONS)
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout must be at least 0 and below 1, got {dropout!r}")
        self.dropout = self.out_dropout = dropout
        self.dim, self.hidden_dim, self.out_dim, self.num_experts = dim, hidden_dim, out_dim, num_experts
        self.activation = activation
        first = hidden_dim * (2 if ACTIVATIONS[activation].gated else 1)
        self.weight1 = nn.Parameter(torch.empty(num_experts, dim, first))
        self.weight2 = nn.Parameter(torch.empty(num_experts, hidden_dim, out_dim))
        self.bias1 = nn.Parameter(torch.empty(num_experts, first)) if bias else None
        self.bias2 = nn.Parameter(torch.empty(num_experts, out_dim)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise each expert as ``torch.nn.Linear`` initialises its layers."""
        _fan_in_uniform_(self.weight1, self.bias1)
        _fan_in_uniform_(self.weight2, self.bias2)

    def forward(self, rows: Tensor, offsets: Tensor, backend: Backend = "auto") -> Tensor:
        """Apply the experts to rows ``(A, d)`` sorted by expert; see :func:`~moeapps.core.backends.choose_backend`."""
        dtype = _compute_dtype(rows)
        w1, b1, w2, b2 = (
            None if p is None else p.to(dtype) for p in (self.weight1, self.bias1, self.weight2, self.bias2)
        )
        assert w1 is not None
        assert w2 is not None
        widths = (w1.shape[1], w1.shape[2], self.hidden_dim, self.out_dim)
        chosen = choose_backend(backend, device=rows.device, dtype=dtype, counts=_counts(offsets), widths=widths)
        with torch.autocast(rows.device.type, enabled=False):
            if rows.shape[0] == 0:  # no product to compute, but rows and parameters still get gradients of zero
                return rows.new_zeros(0, self.out_dim, dtype=dtype) + sum(
                    p.sum() * 0 for p in (rows.to(dtype), w1, b1, w2, b2) if p is not None
                )
            if self._in_one_kernel():
                return sorted_mlp(rows.to(dtype), offsets, (w1, b1, w2, b2), self.activation, chosen)
            hidden = self._activated(sorted_linear(rows.to(dtype), offsets, w1, chosen, b1))
            hidden = F.dropout(hidden, self.dropout, self.training)
            return F.dropout(sorted_linear(hidden, offsets, w2, chosen, b2), self.out_dropout, self.training)

    def _in_one_kernel(self) -> bool:
        """Whether one kernel computes both layers: none has dropout between them."""
        return not (self.training and (self.dropout > 0 or self.out_dropout > 0))

    def _activated(self, pre: Tensor) -> Tensor:
        """Hidden units ``(A, h)`` of what the first layer gives."""
        return ACTIVATIONS[self.activation].forward(pre)

    @property
    def gated(self) -> bool:
        """Whether the first layer has two halves, of which one multiplies the other."""
        return ACTIVATIONS[self.activation].gated

    def mean_keys(self) -> Tensor:
        """Mean of each expert's first-layer key vectors, ``(E, d)``."""
        return self.weight1.mean(dim=2)

    def extra_repr(self) -> str:
        """Arguments, for ``print(model)``."""
        return (
            f"dim={self.dim}, hidden_dim={self.hidden_dim}, num_experts={self.num_experts}, "
            f"out_dim={self.out_dim}, activation={self.activation!r}, bias={self.bias1 is not None}"
        )


class FactoredExpertMLP(ExpertMLP):
    r"""Experts whose first layer has a narrow factor: :math:`\phi(x W_{down}^e W_1^e + b_1^e) W_2^e + b_2^e`.

    The narrow activations :math:`x W_{down}^e` of all experts are what
    :class:`~moeapps.core.routers.AutonomyRouter` compares. Experts that were chosen compute theirs again, on their own
    rows: k r d more multiply-adds per token, and no (N, E, r) tensor to keep.

    Parameters
    ----------
    dim : int
        Input width d.
    hidden_dim : int
        Hidden width h.
    num_experts : int
        Number of experts E.
    rank : int
        Width r of the first factor.
    out_dim : int, optional
        Output width; ``dim`` when None.
    activation : str, default="gelu"
        As in :class:`ExpertMLP`.
    bias : bool, default=True
        Whether the layers have biases.

    Raises
    ------
    ConfigError
        If a size is below 1 or the activation is unknown.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        num_experts: int,
        rank: int,
        out_dim: int | None = None,
        activation: str = "gelu",
        bias: bool = True,
    ) -> None:
        check_sizes(dim=dim, rank=rank)
        super().__init__(rank, hidden_dim, num_experts, dim if out_dim is None else out_dim, activation, bias)
        self.rank, self.dim = rank, dim
        self.down = nn.Parameter(torch.empty(num_experts, dim, rank))
        _fan_in_uniform_(self.down, None)

    def forward(self, rows: Tensor, offsets: Tensor, backend: Backend = "auto") -> Tensor:
        """Apply the experts to rows ``(A, d)`` sorted by expert."""
        dtype = _compute_dtype(rows)
        chosen = choose_backend(
            backend, device=rows.device, dtype=dtype, counts=_counts(offsets), widths=(self.dim, self.rank)
        )
        with torch.autocast(rows.device.type, enabled=False):
            narrow = sorted_linear(rows.to(dtype), offsets, self.down.to(dtype), chosen)
        return super().forward(narrow, offsets, backend)

    def inner_squares(self, x: Tensor) -> Tensor:
        """Squared norm of every expert's narrow activation for every token, ``(N, E)``."""
        down = self.down.to(x.dtype)  # (E, d, r)
        narrow = x @ down.transpose(0, 1).flatten(1)  # (N, E r)
        return narrow.unflatten(1, (self.num_experts, self.rank)).square().sum(dim=-1)

    def mean_keys(self) -> Tensor:
        """Mean of each expert's first-layer key vectors, ``(E, d)``."""
        return (self.down @ self.weight1.mean(dim=2)[..., None])[..., 0]


class GatedFactoredExpertMLP(FactoredExpertMLP):
    r"""Autonomous experts of Lv et al. 2025 (eq. 6): :math:`(\phi(x W_{down}^e W_1^e) \odot x V^e) W_2^e`.

    The narrow activations score the experts, as in :class:`FactoredExpertMLP`; beside them an expert sees its whole
    token, through V. Per expert there are d r + r h + d h + h d_out weights: with r = d / 4 about 1.6 times those of a
    plain expert, so that a smaller hidden width makes them comparable.

    Parameters
    ----------
    dim : int
        Input width d.
    hidden_dim : int
        Hidden width h.
    num_experts : int
        Number of experts E.
    rank : int
        Width r of the first factor.
    out_dim : int, optional
        Output width; ``dim`` when None.
    activation : str, default="silu"
        ``"gelu"``, ``"relu"`` or ``"silu"``.
    bias : bool, default=False
        Whether the two outer layers have biases.

    Raises
    ------
    ConfigError
        If a size is below 1 or the activation is unknown.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        num_experts: int,
        rank: int,
        out_dim: int | None = None,
        activation: str = "silu",
        bias: bool = False,
    ) -> None:
        check_one_of("activation", activation, [name for name, act in ACTIVATIONS.items() if not act.gated])
        super().__init__(dim, hidden_dim, num_experts, rank, out_dim, activation, bias)
        self.value = nn.Parameter(torch.empty(num_experts, dim, hidden_dim))
        _fan_in_uniform_(self.value, None)

    def forward(self, rows: Tensor, offsets: Tensor, backend: Backend = "auto") -> Tensor:
        """Apply the experts to rows ``(A, d)`` sorted by expert."""
        dtype = _compute_dtype(rows)
        widths = (self.dim, self.rank, self.hidden_dim, self.out_dim)
        chosen = choose_backend(backend, device=rows.device, dtype=dtype, counts=_counts(offsets), widths=widths)
        with torch.autocast(rows.device.type, enabled=False):
            down, w1, value, w2, b1, b2 = (
                None if p is None else p.to(dtype)
                for p in (self.down, self.weight1, self.value, self.weight2, self.bias1, self.bias2)
            )
            assert down is not None and w1 is not None and value is not None and w2 is not None  # noqa: PT018
            rows = rows.to(dtype)
            wide = sorted_linear(sorted_linear(rows, offsets, down, chosen), offsets, w1, chosen, b1)
            hidden = ACTIVATIONS[self.activation].forward(wide) * sorted_linear(rows, offsets, value, chosen)
            return sorted_linear(hidden, offsets, w2, chosen, b2)


class LowRankExpertMLP(FactoredExpertMLP):
    r"""Experts whose two layers are both products of narrow ones; see :func:`~moeapps.core.surgery.compress_experts`.

    Parameters and errors are those of :class:`FactoredExpertMLP`, with ``rank`` the width of both factors.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        num_experts: int,
        rank: int,
        out_dim: int | None = None,
        activation: str = "gelu",
        bias: bool = True,
    ) -> None:
        super().__init__(dim, hidden_dim, num_experts, rank, rank, activation, bias)
        self.out_dim = dim if out_dim is None else out_dim
        self.up = nn.Parameter(torch.empty(num_experts, rank, self.out_dim))
        _fan_in_uniform_(self.up, None)
        if bias:
            self.bias2 = nn.Parameter(torch.zeros(num_experts, self.out_dim))

    def forward(self, rows: Tensor, offsets: Tensor, backend: Backend = "auto") -> Tensor:
        """Apply the experts to rows ``(A, d)`` sorted by expert."""
        dtype = _compute_dtype(rows)
        widths = (self.dim, self.rank, self.weight1.shape[2], self.hidden_dim, self.out_dim)
        chosen = choose_backend(backend, device=rows.device, dtype=dtype, counts=_counts(offsets), widths=widths)
        with torch.autocast(rows.device.type, enabled=False):
            down, w1, b1, w2, up, b2 = (
                None if p is None else p.to(dtype)
                for p in (self.down, self.weight1, self.bias1, self.weight2, self.up, self.bias2)
            )
            assert down is not None and w1 is not None and w2 is not None and up is not None  # noqa: PT018
            narrow = sorted_linear(rows.to(dtype), offsets, down, chosen)
            narrow = sorted_mlp(narrow, offsets, (w1, b1, w2, None), self.activation, chosen)
            return sorted_linear(narrow, offsets, up, chosen, b2)


class ExpertList(Experts):
    """Any modules as experts: each maps ``(n, d)`` to ``(n, d_out)``. They are called one after the other.

    Parameters
    ----------
    experts : iterable of Module
        The modules, at least one.
    dim : int
        Input width d of every expert.
    out_dim : int, optional
        Output width of every expert; ``dim`` when None.

    Raises
    ------
    ConfigError
        If there is no expert or an expert returns another shape.
    """

    def __init__(self, experts: Iterable[nn.Module], dim: int, out_dim: int | None = None) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.dim, self.out_dim, self.num_experts = dim, dim if out_dim is None else out_dim, len(self.experts)
        check_sizes(dim=self.dim, out_dim=self.out_dim, num_experts=self.num_experts)

    def forward(self, rows: Tensor, offsets: Tensor, backend: Backend = "auto") -> Tensor:
        """Apply the experts to rows ``(A, d)`` sorted by expert; ``backend`` does not matter here."""
        if torch.compiler.is_exporting() or is_transformed():  # how many rows an expert gets is hidden
            return self._on_every_row(rows, offsets)
        outputs = []
        idle = rows[:0].sum()  # zero, and a gradient of zero for rows, where no expert has any
        *chunks, rest = rows.split([*offsets.diff().tolist(), rows.shape[0] - int(offsets[-1])])
        for index, chunk in enumerate(chunks):
            expert = self.experts[index]
            if chunk.shape[0] == 0:
                # its parameters still take part, with gradient zero: distributed training expects a gradient of each
                idle = idle + sum(p.sum() * 0 for p in expert.parameters() if p.requires_grad)
                continue
            outputs.append(self._output(index, chunk))
        dtype = outputs[0].dtype if outputs else rows.dtype
        return torch.cat([*outputs, rest.new_zeros(rest.shape[0], self.out_dim, dtype=dtype)]) + idle.to(dtype)

    def _output(self, index: int, rows: Tensor) -> Tensor:
        """Output of one expert, checked."""
        expert = self.experts[index]
        out: Tensor = expert(rows)
        if out.shape != (rows.shape[0], self.out_dim):
            raise ConfigError(
                f"expert {index} ({type(expert).__name__}) returned {tuple(out.shape)} for rows of shape "
                f"{tuple(rows.shape)}, expected {(rows.shape[0], self.out_dim)}"
            )
        return out

    def _on_every_row(self, rows: Tensor, offsets: Tensor) -> Tensor:
        """Every expert on every row, of which its own are kept: E times the work."""
        row = torch.arange(rows.shape[0], device=rows.device)[:, None]
        out = rows.new_zeros(rows.shape[0], self.out_dim)
        for index, (first, last) in enumerate(pairwise(offsets.unbind())):
            mine = (row >= first) & (row < last)
            out = out + torch.where(mine, self._output(index, torch.where(mine, rows, 0)), 0)
        return out


class FeedForward(nn.Module):
    """One two-layer network d -> h -> d_out: an expert by itself, or the dense layer that an MoE replaces.

    Parameters
    ----------
    dim : int
        Input width d.
    hidden_dim : int
        Hidden width h.
    out_dim : int, optional
        Output width; ``dim`` when None.
    activation : str, default="gelu"
        ``"gelu"``, ``"relu"`` or ``"silu"``.

    Raises
    ------
    ConfigError
        If a size is below 1 or the activation is unknown.
    """

    changed_by_surgery: bool = False  # whether it was a mixture

    def __init__(self, dim: int, hidden_dim: int, out_dim: int | None = None, activation: str = "gelu") -> None:
        super().__init__()
        out_dim = dim if out_dim is None else out_dim
        check_sizes(dim=dim, hidden_dim=hidden_dim, out_dim=out_dim)
        check_one_of("activation", activation, [name for name, act in ACTIVATIONS.items() if not act.gated])
        self.dim, self.hidden_dim, self.out_dim, self.activation = dim, hidden_dim, out_dim, activation
        self.first = nn.Linear(dim, hidden_dim)
        self.second = nn.Linear(hidden_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., d)`` to ``(..., d_out)``."""
        out: Tensor = self.second(ACTIVATIONS[self.activation].forward(self.first(x)))
        return out


class HeterogeneousExperts(ExpertList):
    """Two-layer experts of different hidden widths (HMoE, Wang et al. 2024): small ones for easy tokens.

    The layer adds the parameter-penalty loss, by which small experts are preferred where they suffice.

    Parameters
    ----------
    dim : int
        Input width d.
    hidden_dims : sequence of int
        Hidden width of each expert, E numbers.
    out_dim : int, optional
        Output width; ``dim`` when None.
    activation : str, default="gelu"
        ``"gelu"``, ``"relu"`` or ``"silu"``.

    Raises
    ------
    ConfigError
        If a size is below 1 or the activation is unknown.
    """

    def __init__(
        self, dim: int, hidden_dims: Sequence[int], out_dim: int | None = None, activation: str = "gelu"
    ) -> None:
        super().__init__([FeedForward(dim, hidden, out_dim, activation) for hidden in hidden_dims], dim, out_dim)
        self.sizes = tuple(hidden_dims)
