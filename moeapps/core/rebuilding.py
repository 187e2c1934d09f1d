"""Build a network again for the weights of a file, whose arguments may ask for anything.

:func:`rebuild` goes in four steps:

1. Build the network without memory (torch's "meta" device). Every tensor that the constructors make is counted, and
   none may be far larger, nor may there be far more of them, than the file's own tensors justify.
2. Compare names, shapes and kinds of that network's weights with the file's.
3. Build it with memory, which is now known to be about that of the file.
4. Load the weights. Buffers that the arguments decide have to be what the arguments say, and the others possible.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import TorchDispatchMode

from moeapps.core.errors import FileFormatError
from moeapps.core.state_dict import check_state_dict

__all__ = ["bounded", "check_buffers", "rebuild", "uncounted"]

M = TypeVar("M", bound=nn.Module)

_ELEMENTS, _ELEMENTS_PER_ELEMENT = 1 << 22, 16
"""Elements that a tensor may have besides those of the file: position tables, schedules, and the like are not saved."""

_STEPS, _STEPS_PER_TENSOR = 5_000, 100
"""Calls of torch that constructors may make; they make about five per weight."""


_counts: ContextVar[bool] = ContextVar("counts", default=True)


@contextmanager
def uncounted() -> Iterator[None]:
    """Let calls of torch in this block be free: they try something on the meta device, which the real build does not.

    Used where a network is asked by an image which sizes it takes; the image may be a huge one.
    """
    token = _counts.set(False)
    try:
        yield
    finally:
        _counts.reset(token)


class _Budget(TorchDispatchMode):
    """Counts what constructors do, and stops them."""

    def __init__(self, tensors: Mapping[str, Tensor], source: Path) -> None:
        super().__init__()
        total = sum(tensor.numel() for tensor in tensors.values())
        self.source, self.held = source, f"{len(tensors)} tensors with {total} elements"
        self.largest = _ELEMENTS + _ELEMENTS_PER_ELEMENT * total
        self.steps = _STEPS + _STEPS_PER_TENSOR * len(tensors)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _counts.get():
            return func(*args, **(kwargs or {}))
        self.steps -= 1
        if self.steps < 0:
            raise FileFormatError(f"{self.source}: its arguments ask for far more weights than the {self.held} in it")
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.check(out.numel())
        return out

    def check(self, elements: int) -> None:
        """Refuse a tensor of so many elements."""
        if elements > self.largest:
            raise FileFormatError(
                f"{self.source}: its arguments ask for a tensor of {elements} elements, far more than the {self.held} "
                "in it justify"
            )


def bounded(tensors: Mapping[str, Tensor], source: Path) -> AbstractContextManager[Any]:
    """Context in which nothing may be built that is far larger than the weights of a file justify.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        State dict of the file.
    source : Path
        The file, for messages.

    Returns
    -------
    context manager
        Raises FileFormatError inside.
    """
    return _Budget(tensors, source)


def rebuild(build: Callable[[], M], tensors: dict[str, Tensor], source: Path) -> M:
    """Build a network and load weights into it, in the steps above.

    Parameters
    ----------
    build : callable
        Makes the network; called twice.
    tensors : dict of str to Tensor
        State dict.
    source : Path
        The file, for messages.

    Returns
    -------
    Module
        In evaluation mode.

    Raises
    ------
    FileFormatError
        If the weights are not those of such a network.
    """
    budget = _Budget(tensors, source)
    plan = _without_memory(build, budget)
    if plan is not None:
        check_state_dict(plan, tensors, source)
        budget.check(sum(buffer.numel() for buffer in plan.buffers()))
        model = build()
    else:
        with bounded(tensors, source):
            model = build()
    check_state_dict(model, tensors, source)
    _check_determined(model, tensors, source)
    model.load_state_dict(tensors)
    check_buffers(model, source)
    return model.eval()


def _without_memory(build: Callable[[], M], budget: _Budget) -> M | None:
    """The network on the meta device; None where a constructor (of a user's class) looks at values."""
    try:
        with torch.device("meta"), budget:
            return build()
    except (NotImplementedError, RuntimeError) as error:
        if "meta" in str(error) and not isinstance(error, FileFormatError):
            return None
        raise


def _check_determined(model: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Buffers that a module names in ``determined_buffers`` are not learned: its arguments decide them."""
    for prefix, module in model.named_modules():
        for name in getattr(module, "determined_buffers", ()):
            full = f"{prefix}.{name}" if prefix else name
            own = getattr(module, name)
            if full in tensors and not torch.equal(own, tensors[full].to(own.dtype)):
                raise FileFormatError(f"{source}: {full} is not what the model's arguments and state say")


def check_buffers(model: nn.Module, source: Path) -> None:
    """Ask the modules that have learned buffers (``check_buffers``) whether theirs are possible.

    Raises
    ------
    FileFormatError
        If those of one are not.
    """
    for prefix, module in model.named_modules():
        problem: str | None = None
        if hasattr(module, "check_buffers"):
            problem = module.check_buffers()
        elif isinstance(module, _NormBase):
            if module.running_var is not None and bool((module.running_var < 0).any()):
                problem = "running_var is negative"
            elif module.num_batches_tracked is not None and int(module.num_batches_tracked) < 0:
                problem = "num_batches_tracked is negative"
        if problem is not None:
            raise FileFormatError(f"{source}: {prefix or type(module).__name__}: {problem}")
