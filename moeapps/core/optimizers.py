"""Which form of torch's optimisers a training takes, and the state that one may go on from."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from moeapps.core.errors import FileFormatError

__all__ = ["LazyAdamW", "fused_where_possible", "with_checked_state"]

Opt = TypeVar("Opt", bound=torch.optim.Optimizer)


class LazyAdamW(torch.optim.AdamW):
    r"""AdamW that also takes sparse gradients, whose parameters it moves in the rows of the batch only.

    A row with a gradient g is moved as by AdamW (Loshchilov and Hutter, ICLR 2019, algorithm 2), with the number of
    all steps in the bias corrections. A row without one keeps its weights and moments, where AdamW would go on by the
    row's momentum; that saves passing over tables of which a batch looks up a small part. Parameters whose gradients
    are dense are trained by AdamW itself.

    The arguments are those of ``torch.optim.AdamW``, and so is the state that is saved. ``maximize``, ``amsgrad`` and a
    learning rate that is a tensor are not for sparse gradients.

    Examples
    --------
    >>> import torch
    >>> table = torch.nn.Embedding(1000, 4, sparse=True)
    >>> optimizer = LazyAdamW(table.parameters(), lr=0.1, weight_decay=0.0)
    >>> before = table.weight.detach().clone()
    >>> table(torch.tensor([3, 3, 7])).sum().backward()
    >>> optimizer.step()
    >>> (table.weight != before).any(1).nonzero().flatten()
    tensor([3, 7])
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move the parameters, after ``closure`` where it is given, whose value is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        sparse = [(p, group) for group in self.param_groups for p in group["params"] if _has_sparse_gradient(p)]
        gradients = [p.grad for p, _ in sparse]
        for p, group in sparse:
            self._move_rows(p, group)
            p.grad = None  # AdamW's own step refuses it
        super().step()
        for (p, _), gradient in zip(sparse, gradients, strict=True):
            p.grad = gradient
        return loss

    def _move_rows(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        state = self.state[p]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        state["step"] += 1
        step, (beta1, beta2), lr = float(state["step"]), group["betas"], float(group["lr"])
        # Not coalesce(), which takes several times as long as this
        rows, where = torch.unique(p.grad._indices()[0], return_inverse=True)
        values = p.grad._values()
        gradient = values.new_zeros(len(rows), *p.shape[1:]).index_add_(0, where, values)
        first = state["exp_avg"].index_select(0, rows).lerp_(gradient, 1 - beta1)
        second = state["exp_avg_sq"].index_select(0, rows).mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        for name, moment in (("exp_avg", first), ("exp_avg_sq", second)):
            state[name].index_copy_(0, rows, moment)
        weight = p.index_select(0, rows).mul_(1 - lr * group["weight_decay"])
        spread = second.sqrt_().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
        p.index_copy_(0, rows, weight.addcdiv_(first, spread, value=-lr / (1 - beta1**step)))


def _has_sparse_gradient(p: Tensor) -> bool:
    return p.grad is not None and p.grad.is_sparse


def fused_where_possible(parameters: Iterable[nn.Parameter]) -> dict[str, Any]:
    """Arguments for ``torch.optim.Adam`` and ``AdamW``: the fused form for plain floating parameters on the CPU.

    There torch's default is a loop of about fifteen small operators per parameter; fused, a step is one call per dtype.
    The numbers are the same up to rounding. Elsewhere torch's own choice is left alone: on CUDA a fused optimiser
    cannot be combined with gradient clipping under 16-bit mixed precision.

    Parameters
    ----------
    parameters : iterable of Parameter
        What the optimiser will move.
    """
    kinds = (torch.float32, torch.float64)
    plain = all(type(p) is nn.Parameter and p.device.type == "cpu" and p.dtype in kinds for p in parameters)
    return {"fused": True} if plain else {}


def with_checked_state(optimizer: Opt, module: nn.Module) -> Opt:
    """Let ``load_state_dict`` of an Adam or AdamW refuse a state whose tensors are not of the parameters' shapes.

    torch does not compare them, and the fused form then reads and writes beyond their memory.

    Parameters
    ----------
    optimizer : Optimizer
        Changed in place.
    module : Module
        Where the parameters have names, for messages.

    Returns
    -------
    Optimizer
        The same one. Its ``load_state_dict`` raises FileFormatError, naming the parameter, before it changes anything.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}

    def check(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        # torch itself refuses other numbers of groups or parameters, after this
        for own, group in zip(optimizer.param_groups, state["param_groups"], strict=False):
            for parameter, key in zip(own["params"], group["params"], strict=False):
                for entry, value in state["state"].get(key, {}).items():
                    if isinstance(value, Tensor) and (problem := _problem(entry, value, parameter)):
                        name = names.get(id(parameter), f"number {key}")
                        raise FileFormatError(
                            f"the optimiser's state does not fit the model: {entry} of {name} {problem}"
                        )

    optimizer.register_load_state_dict_pre_hook(check)
    return optimizer


def _problem(entry: str, value: Tensor, parameter: Tensor) -> str | None:
    if entry == "step":
        return None if value.numel() == 1 else f"must be one number, got the shape {tuple(value.shape)}"
    if value.shape != parameter.shape:
        return f"has the shape {tuple(value.shape)}, the parameter {tuple(parameter.shape)}"
    if not value.is_contiguous() and value.stride() != parameter.stride():
        return f"lies in memory by the strides {value.stride()}, the parameter by {parameter.stride()}"
    return None
