"""What torch is doing while a layer runs: tracing it, transforming it, or computing it again for a gradient."""

import torch
from torch.autograd import forward_ad

__all__ = ["is_transformed", "notes_are_kept", "values_are_hidden"]


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` (``grad``, ``vmap``, ``jvp``, ...) or forward-mode differentiation runs.

    Hand-written gradients have no rules for these: ordinary differentiable steps are taken instead.
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def values_are_hidden() -> bool:
    """Whether the values of tensors cannot be looked at: in a traced graph, or under ``vmap``."""
    return torch.compiler.is_compiling() or is_transformed()


def notes_are_kept() -> bool:
    """Whether a forward pass is one whose routing should be remembered.

    Not in a backward pass, where activation checkpointing computes a layer again, and not in torch.export, whose
    tensors hold no values.
    """
    if torch.compiler.is_compiling():
        return not torch.compiler.is_exporting()
    # torch has no public name for it; torch.utils.checkpoint and FSDP ask the same question
    return torch._C._current_graph_task_id() == -1
