"""HoME: normalised experts in a hierarchy of task groups, with feature gates and self gates (Kuaishou 2024)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from moeapps.core.checks import check_sizes
from moeapps.core.dense_experts import DenseExperts
from moeapps.core.errors import ConfigError
from moeapps.core.gates import MultiGate, mix_experts
from moeapps.recsys.multigate import MultiTaskModel

__all__ = ["FeatureGate", "HoME", "SelfGate"]


class FeatureGate(nn.Module):
    r"""A view of the input for every expert: :math:`v \cdot \sum_k w_{ek}(v)\, 2\sigma(v B_k A_k)`.

    K low-rank gates ("feature LoRAs"), mixed for each expert by a small softmax gate, so that experts do not fight over
    the gradient of the embeddings they share. The low-rank gates are shared by the experts and the mixing is each
    expert's own, which keeps K (not E) views of the input in memory; the paper leaves this open.

    Args:
        dim: Width d of the input.
        num_experts: Number of experts E.
        num_gates: Number of low-rank gates K.
        rank: Their rank r.
    """

    def __init__(self, dim: int, num_experts: int, num_gates: int = 2, rank: int = 8) -> None:
        super().__init__()
        check_sizes(num_gates=num_gates, rank=rank)
        self.narrow = nn.Linear(dim, num_gates * rank, bias=False)
        self.wide = nn.Parameter(torch.zeros(num_gates, rank, dim))  # so that every view begins as the input
        self.mix = MultiGate(dim, num_gates, num_experts)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, d)`` to ``(N, E, d)``."""
        narrow = self.narrow(x).unflatten(1, self.wide.shape[:2]).transpose(0, 1)  # (K, N, r)
        gates = 2 * torch.bmm(narrow, self.wide).sigmoid().transpose(0, 1)  # (N, K, d)
        return mix_experts(self.mix(x), gates) * x[:, None]


class SelfGate(nn.Module):
    """A residual path that keeps gradient flowing to a path's own experts, however little the mixing gate uses them.

    Sigmoid where a path has one expert of its own, softmax where it has several.

    Args:
        dim: Width of the gate's input.
        own: For each path, which experts are its own.
    """

    own: Tensor

    def __init__(self, dim: int, own: Sequence[Sequence[bool]]) -> None:
        super().__init__()
        mask = torch.tensor(own, dtype=torch.bool)
        self.weight = nn.Parameter(torch.randn(*mask.shape, dim) * dim**-0.5)
        self.register_buffer("own", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Weights ``(N, G, E)`` from ``(N, d)`` or ``(N, G, d)``; zero for experts of others."""
        logits = torch.einsum("ngd,ged->nge" if x.ndim == 3 else "nd,ged->nge", x.float(), self.weight.float())
        single = (self.own.sum(1) == 1)[:, None]
        several = logits.masked_fill(~self.own, -torch.inf).softmax(-1)
        return torch.where(single, logits.sigmoid() * self.own, several)


class HoME(MultiTaskModel):
    """Hierarchy of multi-gate experts.

    Every expert is Swish(BatchNorm(MLP(v))). Tasks are in groups. The first (meta) level has shared experts and experts
    of each group: a group's gate mixes the shared ones and its own, the shared path's gate mixes all. On the second
    level task t of group c mixes global experts (which read the shared path), experts of the group and of the task
    (which read the group's path); its gate reads both paths, concatenated. Every path adds a self gate over its own
    experts.

    A task has no path to the second-level experts of another group or task. On the meta level, as in the paper, the
    shared path mixes every group's experts, so that these do get gradient from all tasks.

    Args:
        dim: Input width d.
        num_tasks: Number of tasks T.
        groups: Name of a group to the numbers of its tasks; every task in exactly one. One group of all when None.
        num_shared: Shared experts of the meta level, and global experts of the task level.
        num_group: Experts of each group, on both levels.
        num_specific: Experts of each task.
        expert: Widths of an expert's layers.
        tower: Hidden widths of the towers.
        num_feature_gates: Low-rank feature gates; 0 for none.
        rank: Their rank.
        self_gate: Whether paths add their self gate.
        dropout: In experts and towers.

    Raises:
        ConfigError: If a task is in no group or in two, or a group is empty.

    Example:
        >>> import torch
        >>> model = HoME(dim=20, num_tasks=3, groups={"watch": [0, 1], "interact": [2]})
        >>> model(torch.randn(4, 20)).shape
        torch.Size([4, 3])
    """

    reads: Tensor
    group_of: Tensor

    def __init__(
        self,
        dim: int,
        num_tasks: int,
        groups: Mapping[str, Sequence[int]] | None = None,
        num_shared: int = 2,
        num_group: int = 2,
        num_specific: int = 1,
        expert: Sequence[int] = (64,),
        tower: Sequence[int] = (32,),
        num_feature_gates: int = 2,
        rank: int = 8,
        self_gate: bool = True,
        dropout: float = 0.0,
    ) -> None:
        width = list(expert)[-1]
        super().__init__(num_tasks, width, tower, dropout)
        check_sizes(num_shared=num_shared, num_group=num_group, num_specific=num_specific)
        given = {"all": list(range(num_tasks))} if groups is None else {k: list(v) for k, v in groups.items()}
        _check_groups(given, num_tasks)
        self.groups = given
        group_of = [next(c for c, tasks in enumerate(given.values()) if t in tasks) for t in range(num_tasks)]
        self.register_buffer("group_of", torch.tensor(group_of), persistent=False)
        count, shared = len(given), len(given)  # `shared` is the number of the shared path and of its owner

        meta = [shared] * num_shared + [c for c in range(count) for _ in range(num_group)]
        self.meta_names = _number(["shared" if c == shared else f"group {list(given)[c]}" for c in meta])
        self.feature_gate = FeatureGate(dim, len(meta), num_feature_gates, rank) if num_feature_gates else None
        self.meta_experts = DenseExperts(dim, expert, len(meta), "silu", norm=True, dropout=dropout)
        allowed = [[owner in (path, shared) or path == shared for owner in meta] for path in range(count + 1)]
        self.meta_gate = MultiGate(dim, len(meta), count + 1, allowed)
        own = [[owner == path for owner in meta] for path in range(count + 1)]
        self.meta_self = SelfGate(dim, own) if self_gate else None

        # of each expert of the second level: the path it reads, and which tasks may use it
        reads = [shared] * num_shared + [c for c in range(count) for _ in range(num_group)]
        users: list[list[int]] = [list(range(num_tasks))] * num_shared
        users += [tasks for tasks in given.values() for _ in range(num_group)]
        names = ["global"] * num_shared + [f"group {name}" for name in given for _ in range(num_group)]
        for task in range(num_tasks):
            reads += [group_of[task]] * num_specific
            users += [[task]] * num_specific
            names += [f"task {task}"] * num_specific
        self.task_names = _number(names)
        self.register_buffer("reads", torch.tensor(reads), persistent=False)
        self.task_experts = DenseExperts(width, expert, len(reads), "silu", norm=True, dropout=dropout)
        self.task_gate = MultiGate(
            2 * width, len(reads), num_tasks, [[t in u for u in users] for t in range(num_tasks)]
        )
        mine = [[name == f"task {t}" for name in names] for t in range(num_tasks)]
        self.task_self = SelfGate(2 * width, mine) if self_gate else None

    def represent(self, x: Tensor) -> Tensor:
        """Meta level, then task level."""
        views = x if self.feature_gate is None else self.feature_gate(x)
        outputs, weights = self.meta_experts(views), self.meta_gate(x)
        if self.meta_self is not None:
            weights = weights + self.meta_self(x)
        gates = [*(f"group {name}" for name in self.groups), "shared"]
        self.note("meta", outputs, weights, self.meta_names, gates)
        paths = mix_experts(weights, outputs)  # (N, C + 1, h)

        outputs = self.task_experts(paths.index_select(1, self.reads))
        both = torch.cat([paths.index_select(1, self.group_of), paths[:, -1:].expand(-1, self.num_tasks, -1)], dim=-1)
        weights = self.task_gate(both)
        if self.task_self is not None:
            weights = weights + self.task_self(both)
        self.note("task", outputs, weights, self.task_names, [f"task {t}" for t in range(self.num_tasks)])
        return mix_experts(weights, outputs)


def _check_groups(groups: dict[str, list[int]], num_tasks: int) -> None:
    for name, tasks in groups.items():
        if not tasks:
            raise ConfigError(f"groups: {name!r} has no task")
    listed = [task for tasks in groups.values() for task in tasks]
    for task in range(num_tasks):
        if listed.count(task) != 1:
            raise ConfigError(
                f"groups must have every task exactly once, but task {task} stands {listed.count(task)} times"
            )
    if len(listed) != num_tasks:
        raise ConfigError(
            f"groups name {sorted(set(listed) - set(range(num_tasks)))}, but the tasks are 0 to {num_tasks - 1}"
        )


def _number(names: list[str]) -> list[str]:
    return [f"{name}: {names[:i].count(name)}" for i, name in enumerate(names)]
