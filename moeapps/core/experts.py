"""Experts: what tokens are routed to."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.dispatch import Backend, choose_backend, pad, unpad
from moeapps.core.errors import ConfigError
from moeapps.core.routers import check_sizes

__all__ = ["ACTIVATIONS", "ExpertList", "ExpertMLP", "Experts"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


class Experts(nn.Module):
    """Base of all experts: ``forward(rows, offsets, backend)`` maps ``(A, d)`` sorted rows to ``(A, d_out)``.

    Attributes:
        dim: Input width d.
        out_dim: Output width.
        num_experts: Number of experts E.
        dtype: Parameter type, or None if there are no parameters.
    """

    dim: int
    out_dim: int
    num_experts: int

    @property
    def dtype(self) -> torch.dtype | None:
        """Type of the first floating-point parameter."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), None)

    def forward(self, rows: Tensor, offsets: Tensor, backend: Backend = "auto") -> Tensor:
        """Apply expert e to ``rows[offsets[e]:offsets[e + 1]]``, for every e."""
        raise NotImplementedError


class ExpertMLP(Experts):
    r"""E two-layer networks with stacked weights: :math:`f_e(x) = \phi(x W_1^e + b_1^e) W_2^e + b_2^e`.

    Args:
        dim: Input width d.
        hidden_dim: Hidden width h.
        num_experts: Number of experts E.
        out_dim: Output width; ``dim`` when None.
        activation: ``"gelu"``, ``"relu"`` or ``"silu"``.
        bias: Whether the layers have biases.

    Raises:
        ConfigError: If a size is below 1 or the activation is unknown.

    Example:
        >>> import torch
        >>> experts = ExpertMLP(dim=4, hidden_dim=8, num_experts=2)
        >>> experts(torch.randn(3, 4), torch.tensor([0, 1, 3], dtype=torch.int32)).shape
        torch.Size([3, 4])
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        num_experts: int,
        out_dim: int | None = None,
        activation: str = "gelu",
        bias: bool = True,
    ) -> None:
        super().__init__()
        out_dim = dim if out_dim is None else out_dim
        check_sizes(dim=dim, hidden_dim=hidden_dim, num_experts=num_experts, out_dim=out_dim)
        if activation not in ACTIVATIONS:
            raise ConfigError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.dim, self.hidden_dim, self.out_dim, self.num_experts = dim, hidden_dim, out_dim, num_experts
        self.activation = activation
        self.weight1 = nn.Parameter(torch.empty(num_experts, dim, hidden_dim))
        self.weight2 = nn.Parameter(torch.empty(num_experts, hidden_dim, out_dim))
        self.bias1 = nn.Parameter(torch.empty(num_experts, hidden_dim)) if bias else None
        self.bias2 = nn.Parameter(torch.empty(num_experts, out_dim)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise each expert as ``torch.nn.Linear`` initialises its layers."""
        for weight, bias in ((self.weight1, self.bias1), (self.weight2, self.bias2)):
            bound = weight.shape[1] ** -0.5
            nn.init.uniform_(weight, -bound, bound)
            if bias is not None:
                nn.init.uniform_(bias, -bound, bound)

    def forward(self, rows: Tensor, offsets: Tensor, backend: Backend = "auto") -> Tensor:
        """Apply the experts to rows ``(A, d)`` sorted by expert; see :func:`~moeapps.core.dispatch.choose_backend`."""
        device = rows.device.type
        # grouped_mm is not registered with autocast: cast here, once, for every backend alike
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else rows.dtype
        layers: list[Tensor | None] = [
            None if p is None else p.to(dtype) for p in (self.weight1, self.bias1, self.weight2, self.bias2)
        ]
        chosen = choose_backend(
            backend,
            device=rows.device,
            dtype=dtype,
            rows=rows.shape[0],
            num_experts=self.num_experts,
            widths=(self.dim, self.hidden_dim, self.out_dim),
        )
        run = {"loop": self._loop, "bmm": self._bmm, "grouped": self._grouped}[chosen]
        with torch.autocast(device, enabled=False):
            if rows.shape[0] == 0:  # no product to compute, but every parameter still gets a gradient of zero
                return rows.new_zeros(0, self.out_dim, dtype=dtype) + sum(p.sum() * 0 for p in layers if p is not None)
            return run(rows.to(dtype), offsets, *layers)  # type: ignore[arg-type]

    def _loop(
        self, rows: Tensor, offsets: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None
    ) -> Tensor:
        act = ACTIVATIONS[self.activation]
        # unbind, not w1[e]: indexing would make autograd write a gradient of full size for each expert
        w1s, w2s = w1.unbind(), w2.unbind()
        b1s = [None] * self.num_experts if b1 is None else b1.unbind()
        b2s = [None] * self.num_experts if b2 is None else b2.unbind()
        outputs = [
            _affine(act(_affine(chunk, w1s[e], b1s[e])), w2s[e], b2s[e])
            for e, chunk in enumerate(rows.split(offsets.diff().tolist()))
            if chunk.shape[0]
        ]
        return torch.cat(outputs)

    def _bmm(
        self, rows: Tensor, offsets: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None
    ) -> Tensor:
        blocks, place = pad(rows, offsets)  # (E, C, d)
        hidden = torch.bmm(blocks, w1) if b1 is None else torch.baddbmm(b1[:, None], blocks, w1)
        hidden = ACTIVATIONS[self.activation](hidden)
        out = torch.bmm(hidden, w2) if b2 is None else torch.baddbmm(b2[:, None], hidden, w2)
        return unpad(out, place)

    def _grouped(
        self, rows: Tensor, offsets: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None
    ) -> Tensor:
        ends, counts = offsets[1:], offsets.diff()

        def layer(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            y = F.grouped_mm(x, weight, offs=ends)
            return y if bias is None else y + bias.repeat_interleave(counts, dim=0, output_size=x.shape[0])

        return layer(ACTIVATIONS[self.activation](layer(rows, w1, b1)), w2, b2)

    def extra_repr(self) -> str:
        """Arguments, for ``print(model)``."""
        return (
            f"dim={self.dim}, hidden_dim={self.hidden_dim}, num_experts={self.num_experts}, "
            f"out_dim={self.out_dim}, activation={self.activation!r}, bias={self.bias1 is not None}"
        )


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x @ weight if bias is None else torch.addmm(bias, x, weight)


class ExpertList(Experts):
    """Any modules as experts: each maps ``(n, d)`` to ``(n, d_out)``. They are called one after the other.

    Args:
        experts: The modules, at least one.
        dim: Input width d that all of them take.
        out_dim: Output width that all of them give; ``dim`` when None.

    Raises:
        ConfigError: If there is no expert or an expert answers with another shape.
    """

    def __init__(self, experts: Iterable[nn.Module], dim: int, out_dim: int | None = None) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.dim, self.out_dim, self.num_experts = dim, dim if out_dim is None else out_dim, len(self.experts)
        check_sizes(dim=self.dim, out_dim=self.out_dim, num_experts=self.num_experts)

    def forward(self, rows: Tensor, offsets: Tensor, backend: Backend = "auto") -> Tensor:
        """Apply the experts to rows ``(A, d)`` sorted by expert; ``backend`` does not matter here."""
        outputs = []
        idle: Tensor | float = 0.0
        for index, chunk in enumerate(rows.split(offsets.diff().tolist())):
            expert = self.experts[index]
            if chunk.shape[0] == 0:
                # its parameters still take part, with gradient zero: distributed training waits for all of them
                idle = idle + sum(p.sum() * 0 for p in expert.parameters() if p.requires_grad)
                continue
            out = expert(chunk)
            if out.shape != (chunk.shape[0], self.out_dim):
                raise ConfigError(
                    f"expert {index} ({type(expert).__name__}) answered {tuple(out.shape)} to rows of shape "
                    f"{tuple(chunk.shape)}, expected {(chunk.shape[0], self.out_dim)}"
                )
            outputs.append(out)
        if not outputs:
            return rows.new_zeros(0, self.out_dim) + idle
        return torch.cat(outputs) + idle
