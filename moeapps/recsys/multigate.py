"""Shared-Bottom, MMoE, CGC, PLE and AdaTT: one vector in, one output per task.

All of them end in towers: one small MLP per task, computed for all tasks at once. What they differ in is how experts
are shared: a *level* maps the representations of its paths to new ones.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moeapps.core.checks import check_sizes
from moeapps.core.dense_experts import DenseExperts
from moeapps.core.gates import MultiGate, mix_experts

__all__ = ["PLE", "AdaTT", "MMoE", "MultiTaskModel", "SharedBottom"]


class MultiTaskModel(nn.Module):
    """What the models share: towers, and what a diagnosis may look at.

    A subclass turns ``(N, d)`` into one representation per task, ``(N, T, h)``, in :meth:`represent`.

    Args:
        num_tasks: Number of tasks T.
        width: Width h of the representations.
        tower: Hidden widths of the towers.
        dropout: In the towers.

    Attributes:
        record: Whether a forward pass keeps what a diagnosis needs.
        recorded: For each level its name, the experts' outputs ``(N, E, h)``, the gates' weights ``(N, G, E)``, and the
            names of experts and gates.
    """

    def __init__(self, num_tasks: int, width: int, tower: Sequence[int], dropout: float) -> None:
        super().__init__()
        check_sizes(num_tasks=num_tasks)
        self.num_tasks = num_tasks
        self.towers = DenseExperts(width, [*tower, 1], num_tasks, last_linear=True, dropout=dropout)
        self.record = False
        self.recorded: list[dict[str, Any]] = []

    def represent(self, x: Tensor) -> Tensor:
        """Representation per task, ``(N, d)`` to ``(N, T, h)``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``(N, T)``: logits of binary tasks, predictions of regression tasks, log rates of counts."""
        self.recorded = []
        return self.towers(self.represent(x))[..., 0]

    def note(self, name: str, outputs: Tensor, weights: Tensor, experts: list[str], gates: list[str]) -> None:
        """Keep what a diagnosis needs, where it was asked for."""
        if self.record:
            self.recorded.append(
                {
                    "level": name,
                    "outputs": outputs.detach(),
                    "weights": weights.detach(),
                    "experts": experts,
                    "gates": gates,
                }
            )


class SharedBottom(MultiTaskModel):
    """One MLP for all tasks, then a tower each (Caruana 1997).

    Args:
        dim: Input width d.
        num_tasks: Number of tasks T.
        expert: Widths of the shared MLP's layers.
        tower: Hidden widths of the towers.
        activation: Of the shared MLP.
        norm: Whether it is batch-normalised.
        dropout: In shared MLP and towers.
    """

    def __init__(
        self,
        dim: int,
        num_tasks: int,
        expert: Sequence[int] = (64,),
        tower: Sequence[int] = (32,),
        activation: str = "relu",
        norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_tasks, list(expert)[-1], tower, dropout)
        self.experts = DenseExperts(dim, expert, 1, activation, norm, dropout=dropout)

    def represent(self, x: Tensor) -> Tensor:
        """The same for every task."""
        return self.experts(x).expand(-1, self.num_tasks, -1)


class MMoE(MultiTaskModel):
    """Shared experts and one softmax gate per task (Ma et al., KDD 2018).

    Args:
        dim: Input width d.
        num_tasks: Number of tasks T.
        num_experts: Number of experts E.
        expert: Widths of an expert's layers.
        tower: Hidden widths of the towers.
        activation: Of the experts.
        norm: Whether the experts are batch-normalised.
        dropout: In experts and towers.

    Example:
        >>> import torch
        >>> MMoE(dim=20, num_tasks=2)(torch.randn(4, 20)).shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        dim: int,
        num_tasks: int,
        num_experts: int = 8,
        expert: Sequence[int] = (64,),
        tower: Sequence[int] = (32,),
        activation: str = "relu",
        norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_tasks, list(expert)[-1], tower, dropout)
        self.experts = DenseExperts(dim, expert, num_experts, activation, norm, dropout=dropout)
        self.gate = MultiGate(dim, num_experts, num_tasks)

    def represent(self, x: Tensor) -> Tensor:
        """Each task's mixture of the experts."""
        outputs, weights = self.experts(x), self.gate(x)
        count = outputs.shape[1]
        self.note("experts", outputs, weights, [f"expert {e}" for e in range(count)], _tasks(self.num_tasks))
        return mix_experts(weights, outputs)


class PLE(MultiTaskModel):
    """Experts of each task beside shared ones, in levels (Tang et al., RecSys 2020); one level is CGC.

    In a level, a task's gate mixes the task's own experts and the shared ones; between levels the shared path has a
    gate over all experts. A task's experts and gate read the task's representation of the level below, the shared
    experts the shared one.

    Args:
        dim: Input width d.
        num_tasks: Number of tasks T.
        num_specific: Experts of each task, per level.
        num_shared: Shared experts per level.
        num_levels: Number of levels.
        expert: Widths of an expert's layers.
        tower: Hidden widths of the towers.
        activation: Of the experts.
        norm: Whether the experts are batch-normalised.
        dropout: In experts and towers.
    """

    owner: Tensor

    def __init__(
        self,
        dim: int,
        num_tasks: int,
        num_specific: int = 3,
        num_shared: int = 2,
        num_levels: int = 2,
        expert: Sequence[int] = (64,),
        tower: Sequence[int] = (32,),
        activation: str = "relu",
        norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_tasks, list(expert)[-1], tower, dropout)
        check_sizes(num_specific=num_specific, num_shared=num_shared, num_levels=num_levels)
        owner = [task for task in range(num_tasks) for _ in range(num_specific)] + [num_tasks] * num_shared
        # task of each expert; num_tasks for the shared ones
        self.register_buffer("owner", torch.tensor(owner), persistent=False)
        self.names = [f"task {t}: {i}" for t in range(num_tasks) for i in range(num_specific)]
        self.names += [f"shared {i}" for i in range(num_shared)]
        self.experts, self.gates = nn.ModuleList(), nn.ModuleList()
        self.paths = [num_tasks + 1] * (num_levels - 1) + [num_tasks]  # the shared path ends before the last level
        for level, paths in enumerate(self.paths):
            allowed = [[own in (path, num_tasks) or path == num_tasks for own in owner] for path in range(paths)]
            width = dim if level == 0 else list(expert)[-1]
            self.experts.append(DenseExperts(width, expert, len(owner), activation, norm, dropout=dropout))
            self.gates.append(MultiGate(width, len(owner), paths, allowed))

    def represent(self, x: Tensor) -> Tensor:
        """Level by level; afterwards one path per task."""
        gates = [*_tasks(self.num_tasks), "shared"]
        for level, (experts, gate) in enumerate(zip(self.experts, self.gates, strict=True)):
            outputs = experts(x if x.ndim == 2 else x.index_select(1, self.owner))
            paths = self.paths[level]
            weights = gate(x if x.ndim == 2 else x[:, :paths])
            self.note(f"level {level}", outputs, weights, self.names, gates[:paths])
            x = mix_experts(weights, outputs)
        return x


class AdaTT(MultiTaskModel):
    """Every task may fuse all tasks' experts, on top of a linear fusion of its own (Li et al., KDD 2023, AdaTT-sp).

    In each level, task t's new representation is its gate's mixture of all experts plus its own experts weighted by
    learned numbers (the residual path).

    Args:
        dim: Input width d.
        num_tasks: Number of tasks T.
        num_specific: Experts of each task, per level.
        num_levels: Number of levels.
        expert: Widths of an expert's layers.
        tower: Hidden widths of the towers.
        activation: Of the experts.
        norm: Whether the experts are batch-normalised.
        dropout: In experts and towers.
    """

    owner: Tensor

    def __init__(
        self,
        dim: int,
        num_tasks: int,
        num_specific: int = 3,
        num_levels: int = 2,
        expert: Sequence[int] = (64,),
        tower: Sequence[int] = (32,),
        activation: str = "relu",
        norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_tasks, list(expert)[-1], tower, dropout)
        check_sizes(num_specific=num_specific, num_levels=num_levels)
        self.num_specific = num_specific
        owner = [task for task in range(num_tasks) for _ in range(num_specific)]
        self.names = [f"task {task}: {i % num_specific}" for i, task in enumerate(owner)]
        self.register_buffer("owner", torch.tensor(owner), persistent=False)
        self.experts, self.gates = nn.ModuleList(), nn.ModuleList()
        for level in range(num_levels):
            width = dim if level == 0 else list(expert)[-1]
            self.experts.append(DenseExperts(width, expert, len(owner), activation, norm, dropout=dropout))
            self.gates.append(MultiGate(width, len(owner), num_tasks))
        self.own = nn.Parameter(torch.full((num_levels, num_tasks, num_specific), 1.0 / num_specific))

    def represent(self, x: Tensor) -> Tensor:
        """Level by level, one path per task."""
        for level, (experts, gate) in enumerate(zip(self.experts, self.gates, strict=True)):
            outputs = experts(x if x.ndim == 2 else x.index_select(1, self.owner))
            weights = gate(x)
            self.note(f"level {level}", outputs, weights, self.names, _tasks(self.num_tasks))
            own = outputs.unflatten(1, (self.num_tasks, self.num_specific))
            x = mix_experts(weights, outputs) + torch.einsum("ntih,ti->nth", own, self.own[level])
        return x


def _tasks(number: int) -> list[str]:
    return [f"task {t}" for t in range(number)]
