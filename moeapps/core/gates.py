"""Dense gates: every task mixes the outputs of all experts that it may use.

Shapes: N rows, T tasks, E experts, d width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moeapps.core.checks import check_sizes
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.routers.base import router_dtype

__all__ = ["MultiGate", "gate_logits", "mix_experts"]


class MultiGate(nn.Module):
    r"""One softmax gate per task over a list of experts (MMoE, Ma et al. 2018, eq. 6-7).

    .. math:: g_t(x) = \mathrm{softmax}(W_t x), \qquad y_t = \sum_e g_{te}(x) f_e(x)

    With ``allowed`` a task mixes some of the experts only: its own and the shared ones, as in CGC and PLE (Tang et al.
    2020). Shapes: ``(N, d)``, or ``(N, T, d)`` with an input per task, to weights ``(N, T, E)``.

    Parameters
    ----------
    dim : int
        Width d of the gates' input.
    num_experts : int
        Number of experts E.
    num_tasks : int
        Number of tasks T.
    allowed : Sequence[sequence of bool], optional
        ``T`` rows of ``E`` booleans, which experts each task may use; all of them when None.

    Raises
    ------
    ConfigError
        If a size is below 1, the mask has another shape, or a task may use no expert.

    Examples
    --------
    >>> import torch
    >>> gate = MultiGate(dim=8, num_experts=3, num_tasks=2, allowed=[[True, True, False], [False, True, True]])
    >>> weights = gate(torch.randn(5, 8))
    >>> mix_experts(weights, torch.randn(5, 3, 16)).shape, bool((weights[:, 0, 2] == 0).all())
    (torch.Size([5, 2, 16]), True)
    """

    allowed: Tensor

    def __init__(
        self, dim: int, num_experts: int, num_tasks: int, allowed: Sequence[Sequence[bool]] | None = None
    ) -> None:
        super().__init__()
        check_sizes(dim=dim, num_experts=num_experts, num_tasks=num_tasks)
        mask = torch.ones(num_tasks, num_experts, dtype=torch.bool)
        if allowed is not None:
            if [len(row) for row in allowed] != [num_experts] * num_tasks:
                raise ConfigError(f"allowed must have {num_tasks} rows of {num_experts} booleans")
            mask = torch.tensor(allowed, dtype=torch.bool)
            if not bool(mask.any(dim=1).all()):
                raise ConfigError(f"task {int((~mask.any(dim=1)).nonzero()[0])} may use no expert")
        self.dim, self.num_experts, self.num_tasks = dim, num_experts, num_tasks
        self.all_allowed = bool(mask.all())
        self.weight = nn.Parameter(torch.randn(num_tasks, num_experts, dim) * dim**-0.5)
        self.register_buffer("allowed", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Weights of all experts for every task: ``(N, d)`` or ``(N, T, d)`` to ``(N, T, E)``, in float32 or better.

        Raises
        ------
        DataError
            If the input has another shape.
        """
        per_task = x.ndim == 3
        if x.shape[-1] != self.dim or x.ndim not in (2, 3) or (per_task and x.shape[1] != self.num_tasks):
            raise DataError(
                f"MultiGate expects (N, {self.dim}) or (N, {self.num_tasks}, {self.dim}), got {tuple(x.shape)}"
            )
        return self.mixture(gate_logits(x, self.weight))

    def mixture(self, logits: Tensor) -> Tensor:
        """Weights ``(N, T, E)`` from logits ``(T, E, N)``: a softmax over the experts that are allowed."""
        if not self.all_allowed:
            logits = logits.masked_fill(~self.allowed[..., None], -torch.inf)
        return logits.softmax(dim=1).permute(2, 0, 1)

    def extra_repr(self) -> str:
        """Arguments, for ``print(model)``."""
        return f"dim={self.dim}, num_experts={self.num_experts}, num_tasks={self.num_tasks}"


def gate_logits(x: Tensor, weight: Tensor) -> Tensor:
    """Logits ``(T, E, N)`` of linear gates, in float32 or better.

    The rows are last, since a softmax over experts then runs along vectors of rows: torch's softmax over a last
    dimension of a handful of experts is slow on the CPU (``benchmarks/recsys_speed.py --profile``).

    Parameters
    ----------
    x : Tensor of shape (N, d) or (N, T, d)
        One input for all gates, or one for each.
    weight : Tensor of shape (T, E, d)
        Weights of the gates.
    """
    dtype = router_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        x, weight = x.to(dtype), weight.to(dtype)
        if x.ndim == 3:
            return torch.bmm(weight, x.permute(1, 2, 0))
        return torch.mm(weight.flatten(0, 1), x.t()).unflatten(0, weight.shape[:2])


def mix_experts(weights: Tensor, outputs: Tensor) -> Tensor:
    """Mix the outputs of experts by the weights of gates.

    Parameters
    ----------
    weights : Tensor of shape (N, T, E)
        Weights of :class:`MultiGate`.
    outputs : Tensor of shape (N, E, d)
        Outputs of the experts.

    Returns
    -------
    Tensor of shape (N, T, d)
        One mixture per task.
    """
    # Contiguous, since a product per row is slow where the numbers of a row are far apart in memory
    return torch.bmm(weights.to(outputs.dtype).contiguous(), outputs)
