"""Shared-Bottom, MMoE, CGC, PLE and AdaTT: one vector in, one output per task.

All of them end in towers, one small MLP per task. They differ in how experts are shared: a *level* maps the
representations of its paths to new ones.
"""

# Shapes: N rows, d input width, T tasks, E experts of a level, P paths of a level (its gates), h representation width

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from moeapps.core.checks import check_sizes
from moeapps.core.config import Configurable, takes
from moeapps.core.dense_experts import DenseExperts
from moeapps.core.errors import ConfigError
from moeapps.core.gates import MultiGate, mix_experts

__all__ = [
    "PLE",
    "AdaTT",
    "AdaTTConfig",
    "MMoE",
    "MMoEConfig",
    "MultiGateConfig",
    "MultiTaskModel",
    "PLEConfig",
    "SharedBottom",
    "task_names",
]


@dataclass(frozen=True)
class MultiGateConfig:
    """Layers of experts and towers, the same for Shared-Bottom, MMoE, PLE and AdaTT.

    Parameters
    ----------
    expert : sequence of int, default=(64,)
        Widths of an expert's layers; the last one is the width h of a representation. At least one.
    tower : sequence of int, default=(32,)
        Hidden widths of the towers.
    activation : {"relu", "silu", "gelu"}, default="relu"
        Activation of the experts.
    norm : bool, default=True
        Whether the experts are batch-normalised.
    dropout : float, default=0.0
        Dropout probability in experts and towers, in [0, 1).
    """

    expert: Sequence[int] = (64,)
    tower: Sequence[int] = (32,)
    activation: str = "relu"
    norm: bool = True
    dropout: float = 0.0


class MultiTaskModel(Configurable, nn.Module):
    """Base of the multi-task models: the towers, and the recording of experts and gates for a diagnosis.

    A subclass turns ``(N, d)`` into one representation per task, ``(N, T, h)``, in :meth:`represent`.

    Parameters
    ----------
    num_tasks : int
        Number of tasks T.
    expert : sequence of int
        Widths of an expert's layers; the last one is h.
    tower : sequence of int
        Hidden widths of the towers.
    dropout : float
        Dropout probability in the towers.

    Attributes
    ----------
    gated : bool
        Whether the model has experts and gates to diagnose.
    width : int
        Width h of a representation.
    record : bool
        Whether a forward pass keeps what a diagnosis needs.
    recorded : list of dict
        For each level of the last recorded pass: ``level`` (its name), ``outputs`` of the experts ``(N, E, h)``,
        ``weights`` of the gates ``(N, P, E)``, and the names of ``experts`` and ``gates``.

    Raises
    ------
    ConfigError
        If a size is below 1 or ``expert`` is empty.
    """

    gated: ClassVar[bool] = True
    towers: nn.Module

    def __init__(self, num_tasks: int, expert: Sequence[int], tower: Sequence[int], dropout: float) -> None:
        super().__init__()
        check_sizes(num_tasks=num_tasks)
        if not len(expert):
            raise ConfigError("expert is empty, expected the width of at least one layer")
        self.num_tasks, self.width = num_tasks, list(expert)[-1]
        self.towers = DenseExperts(self.width, [*tower, 1], num_tasks, last_linear=True, dropout=dropout)
        self.record = False
        self.recorded: list[dict[str, Any]] = []

    def represent(self, x: Tensor) -> Tensor:
        """Representation per task: ``(N, d)`` to ``(N, T, h)``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``(N, T)``: logits of binary tasks, predictions of regression tasks, log rates of counts."""
        self.recorded = []
        outputs: Tensor = self.towers(self.represent(x))  # (N, T, 1)
        return outputs[..., 0]

    def note(self, level: str, outputs: Tensor, weights: Tensor, experts: list[str], gates: list[str]) -> None:
        """Keep a level's outputs and weights in ``recorded``, if ``record`` is set."""
        if self.record:
            self.recorded.append(
                {
                    "level": level,
                    "outputs": outputs.detach(),
                    "weights": weights.detach(),
                    "experts": experts,
                    "gates": gates,
                }
            )


class SharedBottom(MultiTaskModel):
    """One MLP for all tasks, then a tower each (Caruana 1997).

    Parameters
    ----------
    dim, num_tasks : int
        Input width d and number of tasks T.
    **settings
        The fields of :class:`MultiGateConfig`; the shared MLP is the one expert.
    """

    gated = False

    @takes(MultiGateConfig)
    def __init__(self, dim: int, num_tasks: int, layers: MultiGateConfig) -> None:
        super().__init__(num_tasks, layers.expert, layers.tower, layers.dropout)
        self.experts = _experts(dim, 1, layers)

    def represent(self, x: Tensor) -> Tensor:
        """The same representation for every task."""
        return self.experts(x).expand(-1, self.num_tasks, -1)


@dataclass(frozen=True)
class MMoEConfig:
    """Number of experts of MMoE.

    Parameters
    ----------
    num_experts : int, default=8
        Number of experts E, at least 1.
    """

    num_experts: int = 8


class MMoE(MultiTaskModel):
    """Shared experts and one softmax gate per task (Ma et al., KDD 2018).

    Parameters
    ----------
    dim, num_tasks : int
        Input width d and number of tasks T.
    **settings
        The fields of :class:`MMoEConfig`, then those of :class:`MultiGateConfig`.

    Examples
    --------
    >>> import torch
    >>> MMoE(dim=20, num_tasks=2, num_experts=4)(torch.randn(4, 20)).shape
    torch.Size([4, 2])
    """

    @takes(MMoEConfig, MultiGateConfig)
    def __init__(self, dim: int, num_tasks: int, config: MMoEConfig, layers: MultiGateConfig) -> None:
        super().__init__(num_tasks, layers.expert, layers.tower, layers.dropout)
        self.experts = _experts(dim, config.num_experts, layers)
        self.gate = MultiGate(dim, config.num_experts, num_tasks)

    def represent(self, x: Tensor) -> Tensor:
        """Each task's mixture of the experts."""
        outputs, weights = self.experts(x), self.gate(x)  # (N, E, h), (N, T, E)
        experts = [f"expert {e}" for e in range(outputs.shape[1])]
        self.note("experts", outputs, weights, experts, task_names(self.num_tasks))
        return mix_experts(weights, outputs)


class _LevelModel(MultiTaskModel):
    """Levels of experts that each belong to one path. A subclass adds the levels and says how a level is mixed.

    An expert of the first level reads the input, one of a later level its own path's representation.

    Parameters
    ----------
    num_tasks : int
        Number of tasks T.
    owner : list of int
        Path of each expert of a level.
    names : list of str
        Names of these experts.
    layers : MultiGateConfig
        Layers of experts and towers.
    """

    def __init__(self, num_tasks: int, owner: list[int], names: list[str], layers: MultiGateConfig) -> None:
        super().__init__(num_tasks, layers.expert, layers.tower, layers.dropout)
        self.names, self.owner, self._layers = names, owner, layers
        self.experts, self.gates = nn.ModuleList(), nn.ModuleList()

    def add_level(self, dim: int, num_paths: int, allowed: list[list[bool]] | None = None) -> None:
        """Add experts, and a gate for each of ``num_paths`` paths; the first level reads ``dim`` numbers."""
        width = self.width if len(self.experts) else dim
        reads = self.owner if len(self.experts) else None
        self.experts.append(_experts(width, len(self.names), self._layers, reads))
        self.gates.append(MultiGate(width, len(self.names), num_paths, allowed))

    def run_level(self, level: int, x: Tensor, gates: list[str]) -> tuple[Tensor, Tensor]:
        """Outputs ``(N, E, h)`` of the experts and weights ``(N, P, E)`` of the gates.

        ``x`` is the input ``(N, d)`` or the representations ``(N, paths, h)`` of the level below; ``gates`` names the
        P paths that this level has.
        """
        outputs = self.experts[level](x)
        fewer = x.ndim == 3 and x.shape[1] > len(gates)
        weights = self.gates[level](x[:, : len(gates)] if fewer else x)
        self.note(f"level {level}", outputs, weights, self.names, gates)
        return outputs, weights


@dataclass(frozen=True)
class PLEConfig:
    """Numbers of experts and levels of PLE.

    Parameters
    ----------
    num_specific : int, default=3
        Experts of each task per level, at least 1.
    num_shared : int, default=2
        Shared experts per level, at least 1.
    num_levels : int, default=2
        Number of levels, at least 1; one level is CGC.
    """

    num_specific: int = 3
    num_shared: int = 2
    num_levels: int = 2


class PLE(_LevelModel):
    """Experts of each task beside shared ones, in levels (Tang et al., RecSys 2020); one level is CGC.

    In a level, a task's gate mixes the task's own experts and the shared ones; between levels the shared path has a
    gate over all experts. A task's experts and gate read the task's representation of the level below, the shared
    experts the shared one.

    Parameters
    ----------
    dim, num_tasks : int
        Input width d and number of tasks T.
    **settings
        The fields of :class:`PLEConfig`, then those of :class:`MultiGateConfig`.
    """

    @takes(PLEConfig, MultiGateConfig)
    def __init__(self, dim: int, num_tasks: int, config: PLEConfig, layers: MultiGateConfig) -> None:
        specific, shared = config.num_specific, config.num_shared
        check_sizes(num_tasks=num_tasks, num_specific=specific, num_shared=shared, num_levels=config.num_levels)
        # Paths 0 .. T-1 are the tasks', path T is the shared one
        owner = [task for task in range(num_tasks) for _ in range(specific)] + [num_tasks] * shared
        names = [f"{task}: {i}" for task in task_names(num_tasks) for i in range(specific)]
        super().__init__(num_tasks, owner, [*names, *(f"shared {i}" for i in range(shared))], layers)
        self.paths = [num_tasks + 1] * (config.num_levels - 1) + [num_tasks]  # nothing reads the last shared path
        for paths in self.paths:
            allowed = [[own in (path, num_tasks) or path == num_tasks for own in owner] for path in range(paths)]
            self.add_level(dim, paths, allowed)

    def represent(self, x: Tensor) -> Tensor:
        """Level by level; after the last one there is one path per task."""
        gates = [*task_names(self.num_tasks), "shared"]
        for level, paths in enumerate(self.paths):
            outputs, weights = self.run_level(level, x, gates[:paths])
            x = mix_experts(weights, outputs)  # (N, P, h)
        return x


@dataclass(frozen=True)
class AdaTTConfig:
    """Numbers of experts and levels of AdaTT.

    Parameters
    ----------
    num_specific : int, default=3
        Experts of each task per level, at least 1.
    num_levels : int, default=2
        Number of levels, at least 1.
    """

    num_specific: int = 3
    num_levels: int = 2


class AdaTT(_LevelModel):
    """Every task fuses all tasks' experts, on top of a linear fusion of its own (Li et al., KDD 2023, AdaTT-sp).

    In each level, task t's new representation is its gate's mixture of all experts plus its own experts weighted by
    learned numbers (the residual path).

    Parameters
    ----------
    dim, num_tasks : int
        Input width d and number of tasks T.
    **settings
        The fields of :class:`AdaTTConfig`, then those of :class:`MultiGateConfig`.
    """

    @takes(AdaTTConfig, MultiGateConfig)
    def __init__(self, dim: int, num_tasks: int, config: AdaTTConfig, layers: MultiGateConfig) -> None:
        specific, levels = config.num_specific, config.num_levels
        check_sizes(num_tasks=num_tasks, num_specific=specific, num_levels=levels)
        owner = [task for task in range(num_tasks) for _ in range(specific)]
        super().__init__(num_tasks, owner, [f"task {t}: {i % specific}" for i, t in enumerate(owner)], layers)
        for _ in range(levels):
            self.add_level(dim, num_tasks)
        self.own = nn.Parameter(torch.full((levels, num_tasks, specific), 1.0 / specific))

    def represent(self, x: Tensor) -> Tensor:
        """Level by level, one path per task."""
        for level, own_weights in enumerate(self.own):
            outputs, weights = self.run_level(level, x, task_names(self.num_tasks))
            own = outputs.unflatten(1, own_weights.shape)  # (N, T, experts of a task, h)
            x = mix_experts(weights, outputs) + torch.einsum("ntih,ti->nth", own, own_weights)
        return x


def task_names(number: int) -> list[str]:
    """Names of tasks that have none of their own."""
    return [f"task {t}" for t in range(number)]


def _experts(dim: int, number: int, layers: MultiGateConfig, reads: Sequence[int] | None = None) -> DenseExperts:
    return DenseExperts(dim, layers.expert, number, layers.activation, layers.norm, dropout=layers.dropout, reads=reads)
