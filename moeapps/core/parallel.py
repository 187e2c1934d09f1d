"""Expert parallelism: each process holds some of the experts, tokens travel to them and back.

For layers that outgrow one device. Every process routes its own tokens; one all-to-all exchange sends the rows to the
processes that hold their experts, another brings the outputs back, and gradients take the same way in reverse. All
other parameters are replicated as in ordinary data-parallel training, under any Lightning strategy that is built on
``DistributedDataParallel``::

    class Model(MoEModule):
        def configure_model(self):  # torch.distributed runs by then
            experts = ExpertParallel(ExpertMLP(dim, hidden_dim, num_experts))
            self.moe = MoE(dim, num_experts, experts=experts)

Checkpoints hold all experts, under the names of the undivided layer: they can be read by any number of processes, and
by a model without expert parallelism.
"""

from collections import OrderedDict
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moeapps.core.backends import Backend
from moeapps.core.distributed import rank, world_size
from moeapps.core.errors import ConfigError
from moeapps.core.experts import ExpertMLP, Experts

__all__ = ["ExpertParallel", "gather_optimizer_states", "scatter_optimizer_states", "sharded_parameters"]

_SHARDED = "moeapps_sharded_optimizer_states"


class ExpertParallel(Experts):
    """Experts divided among the processes of a group; this process keeps E / W of them.

    Gradients of the experts are those of the mean loss over processes, as distributed training gives them for the
    replicated parameters.

    Parameters
    ----------
    experts : ExpertMLP
        All experts, initialised alike in every process (the same seed does it).
    group : object, optional
        Processes; all of them when None.

    Raises
    ------
    ConfigError
        If the experts do not divide among the processes.
    """

    def __init__(self, experts: ExpertMLP, group: Any = None) -> None:
        super().__init__()
        processes = world_size(group)
        if experts.num_experts % processes:
            raise ConfigError(f"num_experts={experts.num_experts} does not divide among {processes} processes")
        self.group = group
        self.dim, self.out_dim, self.num_experts = experts.dim, experts.out_dim, experts.num_experts
        local = experts.num_experts // processes
        for name, parameter in experts.named_parameters():
            kept = parameter.detach()[rank(group) * local : (rank(group) + 1) * local].clone()
            setattr(experts, name, nn.Parameter(kept))
        experts.num_experts = local
        self.local = experts

    def forward(self, rows: Tensor, offsets: Tensor, backend: Backend = "auto") -> Tensor:
        """Apply the experts to rows ``(A, d)`` sorted by expert; every process has to call it."""
        processes = world_size(self.group)
        if processes == 1:
            return self.local(rows, offsets, backend)
        sent = offsets.diff().view(processes, -1).contiguous()  # (W, local): rows for each process and its experts
        got = torch.empty_like(sent)
        dist.all_to_all_single(got, sent, group=self.group)
        send, receive = sent.sum(1).tolist(), got.sum(1).tolist()
        arrived = _Exchange.apply(rows[: sum(send)], send, receive, self.group)
        # by sender and expert, as they arrived; the experts take them by expert
        expert = torch.arange(got.shape[1], device=rows.device).repeat(processes).repeat_interleave(got.view(-1))
        order = torch.argsort(expert, stable=True)
        ends = got.sum(0).cumsum(0)
        local_offsets = torch.cat([ends.new_zeros(1), ends]).to(torch.int32)
        mine = _ScaledGradient.apply(arrived[order], float(processes))
        out = _ScaledGradient.apply(self.local(mine, local_offsets, backend), 1 / processes)
        back = _Exchange.apply(out[torch.argsort(order)], receive, send, self.group)
        return torch.cat([back, back.new_zeros(rows.shape[0] - back.shape[0], self.out_dim)])

    def state_dict(self, *, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """All experts of all processes, under the names of the undivided layer; every process has to call it."""
        destination = OrderedDict() if destination is None else destination
        for name, parameter in self.local.named_parameters():
            destination[prefix + name] = _gathered(parameter.detach(), self.group)
        return destination

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        for name, parameter in self.local.named_parameters():
            if prefix + name in state_dict:
                every = state_dict.pop(prefix + name)
                state_dict[f"{prefix}local.{name}"] = _own(every, rank(self.group), len(every) // len(parameter))


class _Exchange(torch.autograd.Function):
    """Send row blocks to all processes and get theirs; the gradient travels back the same way."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, send: list[int], receive: list[int], group: Any) -> Tensor:
        ctx.send, ctx.receive, ctx.group = send, receive, group
        out = rows.new_empty(sum(receive), rows.shape[1])
        dist.all_to_all_single(out, rows.contiguous(), receive, send, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _Exchange.apply(grads[0], ctx.receive, ctx.send, ctx.group), None, None, None


class _ScaledGradient(torch.autograd.Function):
    """The identity, with a factor on the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


def _gathered(part: Tensor, group: Any) -> Tensor:
    """The parts of all processes, one after the other."""
    if world_size(group) == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(world_size(group))]
    dist.all_gather(parts, part.contiguous(), group=group)
    return torch.cat(parts)


def _own(every: Tensor, index: int, parts: int) -> Tensor:
    return every.chunk(parts)[index].clone()


def _parallel_parts(module: nn.Module) -> dict[str, ExpertParallel]:
    return {name: part for name, part in module.named_modules() if isinstance(part, ExpertParallel)}


def sharded_parameters(module: nn.Module) -> list[str]:
    """Names of the parameters that differ between processes on purpose; none where there is one process."""
    return [
        f"{name}.local.{parameter}"
        for name, part in _parallel_parts(module).items()
        if world_size(part.group) > 1
        for parameter, _ in part.local.named_parameters()
    ]


def gather_optimizer_states(module: Any, checkpoint: dict[str, Any]) -> None:
    """Replace, in a checkpoint that is being written, the optimiser's state of local experts by that of all.

    Every process has to call it.

    Parameters
    ----------
    module : object
        The LightningModule.
    checkpoint : dict of str to Any
        What will be saved.
    """
    groups = {id(p): part.group for part in _parallel_parts(module).values() for p in part.local.parameters()}
    if not groups or "optimizer_states" not in checkpoint or world_size() == 1:
        return
    marks = []
    for optimizer, saved in zip(module.trainer.optimizers, checkpoint["optimizer_states"], strict=True):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        marks.append([index for index, p in enumerate(parameters) if id(p) in groups])
        saved["state"] = dict(saved["state"])
        for index in marks[-1]:
            if index in saved["state"]:
                saved["state"][index] = {
                    name: _gathered(value, groups[id(parameters[index])])
                    if isinstance(value, Tensor) and value.shape == parameters[index].shape
                    else value
                    for name, value in saved["state"][index].items()
                }
    checkpoint[_SHARDED] = marks


def scatter_optimizer_states(checkpoint: dict[str, Any]) -> None:
    """Undo :func:`gather_optimizer_states` in a checkpoint that was read: keep what belongs to this process."""
    for saved, marks in zip(checkpoint.get("optimizer_states", []), checkpoint.get(_SHARDED, []), strict=False):
        for index in marks:
            if index in saved["state"]:
                saved["state"][index] = {
                    name: _own(value, rank(), world_size()) if isinstance(value, Tensor) and value.ndim > 1 else value
                    for name, value in saved["state"][index].items()
                }
