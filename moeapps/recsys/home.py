"""HoME: normalised experts in a hierarchy of task groups, with feature gates and self gates (Kuaishou 2024)."""

# Shapes: N rows, d input width, T tasks, C groups, E experts of a level, G gates of a level, K low-rank feature gates
# of rank r, h representation width

from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from moeapps.core.checks import check_sizes
from moeapps.core.dense_experts import DenseExperts
from moeapps.core.errors import ConfigError
from moeapps.core.gates import MultiGate, gate_logits, mix_experts
from moeapps.recsys.multigate import MultiTaskModel, task_names

__all__ = ["FeatureGate", "HoME", "SelfGate"]


class FeatureGate(nn.Module):
    r"""A view of the input for every expert: :math:`v \cdot \sum_k w_{ek}(v)\, 2\sigma(v B_k A_k)`.

    K low-rank gates ("feature LoRAs"), mixed for each expert by a small softmax gate, so that experts do not compete
    for the gradient of the embeddings they share. The low-rank gates are shared by the experts and the mixing is each
    expert's own, which keeps K (not E) views of the input in memory; the paper leaves this open.

    Parameters
    ----------
    dim : int
        Width d of the input.
    num_experts : int
        Number of experts E.
    num_gates : int, default=2
        Number of low-rank gates K, at least 1.
    rank : int, default=8
        Rank r of a gate, at least 1.
    """

    def __init__(self, dim: int, num_experts: int, num_gates: int = 2, rank: int = 8) -> None:
        super().__init__()
        check_sizes(num_gates=num_gates, rank=rank)
        self.narrow = nn.Linear(dim, num_gates * rank, bias=False)
        self.wide = nn.Parameter(torch.zeros(num_gates, rank, dim))  # zero, so that every view starts as the input
        self.mix = MultiGate(dim, num_gates, num_experts)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, d)`` to ``(N, E, d)``."""
        narrow = self.narrow(x).unflatten(1, self.wide.shape[:2]).transpose(0, 1)  # (K, N, r)
        gated = torch.bmm(narrow, self.wide).sigmoid().transpose(0, 1) * x[:, None]  # (N, K, d)
        return mix_experts(2 * self.mix(x), gated)


class SelfGate(nn.Module):
    """A residual gate over a path's own experts, which trains them even where the mixing gate gives them no weight.

    Sigmoid where a path has one expert of its own, softmax where it has several.

    Parameters
    ----------
    dim : int
        Width d of the gate's input.
    own : sequence of sequence of bool
        ``G`` rows of ``E`` booleans: which experts are each path's own.
    """

    own: Tensor

    def __init__(self, dim: int, own: Sequence[Sequence[bool]]) -> None:
        super().__init__()
        mask = torch.tensor(own, dtype=torch.bool)
        single = mask.sum(1) == 1
        self.all_single, self.any_single = bool(single.all()), bool(single.any())
        self.weight = nn.Parameter(torch.randn(*mask.shape, dim) * dim**-0.5)
        self.register_buffer("own", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Weights ``(N, G, E)`` from ``(N, d)`` or ``(N, G, d)``; zero for experts of other paths."""
        return self.mixture(gate_logits(x, self.used_weight()))

    def used_weight(self) -> Tensor:
        """Weights of the logits that :meth:`mixture` takes: ``(G, 1, d)`` if one per path is enough."""
        return (self.weight * self.own[..., None]).sum(1, keepdim=True) if self.all_single else self.weight

    def mixture(self, logits: Tensor) -> Tensor:
        """Weights ``(N, G, E)`` from logits ``(G, E, N)``, or ``(G, 1, N)`` if each path has one expert of its own."""
        own = self.own[..., None]
        if self.all_single:
            return (logits.sigmoid() * own).permute(2, 0, 1)
        weights = logits.masked_fill(~own, -torch.inf).softmax(1)
        if self.any_single:
            weights = torch.where(own.sum(1, keepdim=True) == 1, logits.sigmoid() * own, weights)
        return weights.permute(2, 0, 1)


class HoME(MultiTaskModel):
    """Hierarchy of multi-gate experts.

    Every expert is Swish(BatchNorm(MLP(v))). Tasks are in groups. A forward pass:

    1. Feature gates give each expert of the meta level its view of the input.
    2. Meta level: shared experts and experts of each group. A group's gate mixes the shared experts and its own, the
       shared path's gate mixes all; each path adds a self gate over its own experts.
    3. Task level: global experts read the shared path; experts of a group and of its tasks read the group's path.
    4. Task t of group c mixes global experts, those of the group and its own, by a gate that reads both paths,
       concatenated, and adds a self gate over its own experts. The paper leaves the gate's input open.
    5. A tower per task.

    A task has no path to the task level's experts of another group or task. On the meta level, as in the paper, the
    shared path mixes every group's experts, so that these get gradient from all tasks.

    Parameters
    ----------
    dim, num_tasks : int
        Input width d and number of tasks T.
    groups : dict of str to sequence of int, optional
        Name of a group to the numbers of its tasks; every task in exactly one. One group of all by default.
    num_shared : int, default=2
        Shared experts of the meta level, and global experts of the task level.
    num_group : int, default=2
        Experts of each group, on both levels.
    num_specific : int, default=1
        Experts of each task.
    expert : sequence of int, default=(64,)
        Widths of an expert's layers; the last one is the width h of a representation.
    tower : sequence of int, default=(32,)
        Hidden widths of the towers.
    num_feature_gates : int, default=2
        Number of low-rank feature gates; 0 for none.
    rank : int, default=8
        Rank of a feature gate.
    self_gate : bool, default=True
        Whether paths add their self gate.
    dropout : float, default=0.0
        Dropout probability in experts and towers, in [0, 1).

    Raises
    ------
    ConfigError
        If a task is in no group or in two, or a group is empty.

    Examples
    --------
    >>> import torch
    >>> model = HoME(dim=20, num_tasks=3, groups={"watch": [0, 1], "interact": [2]})
    >>> model(torch.randn(4, 20)).shape
    torch.Size([4, 3])
    """

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
        super().__init__(num_tasks, expert, tower, dropout)
        check_sizes(num_shared=num_shared, num_group=num_group, num_specific=num_specific)
        every = list(range(num_tasks))
        self.groups = {"all": every} if groups is None else {name: list(members) for name, members in groups.items()}
        _check_groups(self.groups, num_tasks)
        count = len(self.groups)
        group_of = [next(c for c, members in enumerate(self.groups.values()) if t in members) for t in every]
        self.runs = [(group, len(list(run))) for group, run in groupby(group_of)]

        # Meta level. Paths 0 .. C-1 are the groups', path C is the shared one; an expert belongs to one path.
        path_names = [*(f"group {name}" for name in self.groups), "shared"]
        owners = [count] * num_shared + [c for c in range(count) for _ in range(num_group)]

        self.meta_names = _number([path_names[owner] for owner in owners])
        self.feature_gate = FeatureGate(dim, len(owners), num_feature_gates, rank) if num_feature_gates else None
        self.meta_experts = DenseExperts(dim, expert, len(owners), "silu", norm=True, dropout=dropout)
        allowed = [[owner in (path, count) or path == count for owner in owners] for path in range(count + 1)]
        self.meta_gate = MultiGate(dim, len(owners), count + 1, allowed)
        own = [[owner == path for owner in owners] for path in range(count + 1)]
        self.meta_self = SelfGate(dim, own) if self_gate else None

        # Task level: global experts, those of each group, those of each task. Of each expert the path of the meta level
        # that it reads, the tasks whose gates may use it, and its name.
        reads = [*owners, *(group_of[t] for t in every for _ in range(num_specific))]
        users = [every] * num_shared
        users += [members for members in self.groups.values() for _ in range(num_group)]
        users += [[t] for t in every for _ in range(num_specific)]
        names = ["global"] * num_shared + [path_names[owner] for owner in owners[num_shared:]]
        names += [name for name in task_names(num_tasks) for _ in range(num_specific)]
        self.task_names = _number(names)
        self.task_experts = DenseExperts(
            self.width, expert, len(reads), "silu", norm=True, dropout=dropout, reads=reads
        )
        usable = [[t in tasks for tasks in users] for t in every]
        self.task_gate = MultiGate(2 * self.width, len(reads), num_tasks, usable)
        mine = [[name == task for name in names] for task in task_names(num_tasks)]
        self.task_self = SelfGate(2 * self.width, mine) if self_gate else None

    def represent(self, x: Tensor) -> Tensor:
        """Meta level, then task level: ``(N, d)`` to ``(N, T, h)``."""
        views = x if self.feature_gate is None else self.feature_gate(x)
        outputs, weights = self.meta_experts(views), self.meta_gate(x)  # (N, E, h), (N, C + 1, E)
        if self.meta_self is not None:
            # One product mixes by both gates: the sum of two mixtures of the same outputs
            weights = weights + self.meta_self(x)
        gates = [*(f"group {name}" for name in self.groups), "shared"]
        self.note("meta", outputs, weights, self.meta_names, gates)
        paths = mix_experts(weights, outputs)  # (N, C + 1, h)

        outputs, reps = self.task_experts(paths), paths.unbind(1)
        weights = self.task_gate.mixture(self._task_logits(reps, self.task_gate.weight))  # (N, T, E)
        if self.task_self is not None:
            weights = weights + self.task_self.mixture(self._task_logits(reps, self.task_self.used_weight()))
        self.note("task", outputs, weights, self.task_names, task_names(self.num_tasks))
        return mix_experts(weights, outputs)

    def _task_logits(self, paths: Sequence[Tensor], weight: Tensor) -> Tensor:
        """Logits ``(T, E, N)`` of gates ``(T, E, 2 h)`` that read the path of a task's group and the shared one.

        The two halves of a gate are multiplied apart, so that no path is copied for every task that reads it.
        """
        of_group, of_shared = weight.split(self.width, dim=2)
        parts = of_group.split([size for _, size in self.runs])
        logits = [gate_logits(paths[group], part) for (group, _), part in zip(self.runs, parts, strict=True)]
        return torch.cat(logits) + gate_logits(paths[-1], of_shared)


def _check_groups(groups: dict[str, list[int]], num_tasks: int) -> None:
    for name, tasks in groups.items():
        if not tasks:
            raise ConfigError(f"groups: {name!r} has no task")
    listed = [task for tasks in groups.values() for task in tasks]
    for task in range(num_tasks):
        if listed.count(task) != 1:
            raise ConfigError(
                f"groups must name every task exactly once, but task {task} is named {listed.count(task)} times"
            )
    if len(listed) != num_tasks:
        raise ConfigError(
            f"groups name {sorted(set(listed) - set(range(num_tasks)))}, but the tasks are 0 to {num_tasks - 1}"
        )


def _number(names: list[str]) -> list[str]:
    return [f"{name}: {names[:i].count(name)}" for i, name in enumerate(names)]
