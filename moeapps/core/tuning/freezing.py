"""Train some experts and freeze everything else, so that no optimiser can move what is frozen.

The experts of a layer are stacked in tensors ``(E, ...)``. A mask on the gradient would not be enough: weight decay
moves a weight whose gradient is zero, and so does the momentum of an optimiser that goes on. So the experts that are
trained become parameters of their own, and the stacked tensor is put together from them and the frozen ones whenever
it is used. Optimisers see, and keep a state for, nothing else.

Shapes: E experts, n trained experts.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from moeapps.core.errors import ConfigError
from moeapps.core.expert_use import moe_layers
from moeapps.core.experts import ExpertList, Experts
from moeapps.core.layer import MoE

__all__ = ["Freezing", "freeze_except"]

Patterns = str | Sequence[str] | Callable[[str], bool]


class _Slices(nn.Module):
    """A stacked tensor ``(E, ...)`` of which the rows ``experts`` are trained: ``(n, ...)`` to ``(E, ...)``."""

    frozen: Tensor
    experts: Tensor

    def __init__(self, stacked: Tensor, experts: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("frozen", stacked.detach().clone())
        self.register_buffer("experts", torch.tensor(experts, device=stacked.device))

    def forward(self, trained: Tensor) -> Tensor:
        """The whole tensor."""
        return self.frozen.index_copy(0, self.experts, trained)

    def right_inverse(self, stacked: Tensor) -> Tensor:
        """The rows that are trained."""
        return stacked.detach()[self.experts].clone()


class Freezing:
    """What :func:`freeze_except` did, and how to undo it. As a context manager it undoes it at the end.

    Attributes
    ----------
    trained : int
        Number of parameters that are trained.
    total : int
        Number of parameters of the model.
    experts : dict of str to tuple of int
        The experts that are trained, by the name of their layer.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.before = [(p, p.requires_grad) for p in model.parameters()]
        self.total = sum(p.numel() for p in model.parameters())
        self.experts: dict[str, tuple[int, ...]] = {}
        self.trained = 0
        self._sliced: list[tuple[nn.Module, str, bool]] = []

    @property
    def share(self) -> float:
        """Fraction of the parameters that are trained."""
        return self.trained / max(self.total, 1)

    def undo(self) -> None:
        """Put the tensors together again, with what was trained, and let train what could be trained before.

        The network can then be saved, pruned, merged and exported as any other. Optimisers that were made before have
        to be made anew.
        """
        for module, name, required in self._sliced:
            module.parametrizations[name].original.grad = None  # type: ignore[index, union-attr]
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
            module.get_parameter(name).requires_grad_(required)
        for parameter, required in self.before:
            parameter.requires_grad_(required)
        self._sliced, self.before = [], []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        return f"Freezing(trained={self.trained:,} of {self.total:,} parameters, {self.share:.1%})"


def freeze_except(
    model: nn.Module,
    experts: Mapping[str, Iterable[int]] | None = None,
    *,
    also: Patterns = (),
    routers: bool = False,
) -> Freezing:
    """Freeze a network but for some experts (ESFT, Wang et al. 2024, trains the experts of a task and nothing else).

    Make the optimiser afterwards. Weight decay and momentum cannot move a frozen expert, whichever optimiser it is:
    the trained experts of a layer become parameters of their own. Until :meth:`Freezing.undo`, ``state_dict`` holds
    them under other names (``parametrizations``), and surgery and pickle refuse the network.

    Parameters
    ----------
    model : Module
        A network with MoE layers. It is changed in place.
    experts : mapping of str to iterable of int, optional
        The experts of each layer that are trained, by the layer's name, as
        :func:`~moeapps.core.tuning.relevance.relevant_experts` returns them. Layers that it does not name are frozen.
    also : str, sequence of str, or callable, default=()
        Names or patterns of parameters that are trained besides (``"head*"``), or a function of a parameter's name.
    routers : bool, default=False
        Whether the routers of the named layers are trained.

    Returns
    -------
    Freezing
        With ``share`` of the parameters that are trained, and ``undo()``.

    Raises
    ------
    ConfigError
        If a layer, an expert or a pattern names nothing, or nothing would be trained; the network is then unchanged.

    Examples
    --------
    >>> import torch
    >>> from moeapps.core import MoE
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), MoE(8, num_experts=4))
    >>> freezing = freeze_except(network, {"1": [0, 2]})
    >>> freezing.trained, freezing.total
    (1104, 2280)
    >>> freezing.undo()
    """
    chosen = _checked(model, experts or {})
    extra = _matching(model, also)
    if not chosen and not extra:
        raise ConfigError("nothing would be trained: name experts, or parameters with also=")
    layers = dict(model.named_modules())
    freezing = Freezing(model)
    freezing.experts = chosen
    keep = {id(p) for p in extra}
    if routers:
        keep |= {id(p) for name in chosen for router in _moe(layers[name]).routers for p in router.parameters()}
    for parameter, required in freezing.before:
        parameter.requires_grad_(required and id(parameter) in keep)
    for name, numbers in chosen.items():
        _train_some(freezing, _moe(layers[name]).experts, numbers)
    freezing.trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return freezing


def _train_some(freezing: Freezing, experts: Experts, numbers: Sequence[int]) -> None:
    """Let these experts be trained, of those parameters that could be before."""
    required = {id(p): was for p, was in freezing.before}
    if isinstance(experts, ExpertList):
        for number in numbers:
            for parameter in experts.experts[number].parameters():
                parameter.requires_grad_(required[id(parameter)])
        return
    for name, parameter in list(experts.named_parameters(recurse=False)):
        if not required[id(parameter)]:
            continue
        if len(numbers) == experts.num_experts:
            parameter.requires_grad_(True)
            continue
        parameter.grad = None  # of another shape than what is trained from now on
        parametrize.register_parametrization(experts, name, _Slices(parameter, numbers), unsafe=True)
        original: Any = experts.parametrizations[name].original  # type: ignore[index, union-attr]
        original.requires_grad_(True)
        freezing.before = [(p, was) for p, was in freezing.before if p is not parameter]
        freezing._sliced.append((experts, name, True))


def _moe(module: nn.Module) -> MoE:
    assert isinstance(module, MoE)
    return module


def _checked(model: nn.Module, experts: Mapping[str, Iterable[int]]) -> dict[str, tuple[int, ...]]:
    if not isinstance(experts, Mapping):
        raise ConfigError(f"experts must map names of layers to numbers of experts, got {type(experts).__name__}")
    layers = moe_layers(model) if experts else {}
    chosen = {}
    for name, numbers in experts.items():
        if name not in layers:
            raise ConfigError(f"experts names the layer {name!r}; there are {', '.join(map(repr, layers))}")
        layer, kept = layers[name], tuple(sorted(set(numbers)))
        if bad := [e for e in kept if isinstance(e, bool) or not isinstance(e, int) or not 0 <= e < layer.num_experts]:
            raise ConfigError(f"experts of {name!r} are 0 to {layer.num_experts - 1}, got {bad[0]!r}")
        if any(parametrize.is_parametrized(part) for part in layer.experts.modules()):
            raise ConfigError(f"some experts of {name!r} are frozen already: undo that first")
        if kept:
            chosen[name] = kept
    return chosen


def _matching(model: nn.Module, also: Patterns) -> list[nn.Parameter]:
    named = dict(model.named_parameters())
    if callable(also):
        return [p for name, p in named.items() if also(name)]
    patterns = [also] if isinstance(also, str) else list(also)
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in named):
            raise ConfigError(f"also={pattern!r} matches no parameter of this {type(model).__name__}")
    return [p for name, p in named.items() if any(_matches(name, pattern) for pattern in patterns)]


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern names a parameter, or a module that it belongs to."""
    return fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")
