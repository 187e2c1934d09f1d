"""Weights of classes in the losses of nodes and graphs: from what a user gives to a tensor, and the weighted loss."""

# B rows (nodes or graphs), K classes

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from moeapps.core.errors import ConfigError, DataError

__all__ = ["ClassWeight", "weigh_classes", "weighted_cross_entropy", "weights_in_order"]

ClassWeight = Sequence[float] | Literal["balanced"] | None


def weights_in_order(class_weight: Any, classes: np.ndarray) -> Any:
    """``class_weight`` for a module: a dict by label becomes a list in the order of the classes, 1 for those it lacks.

    Raises
    ------
    DataError
        If the dict has a label that is no class.
    """
    if not isinstance(class_weight, Mapping):
        return class_weight
    unknown = set(class_weight) - set(classes.tolist())
    if unknown:
        raise DataError(f"class_weight names classes that y does not have: {sorted(unknown, key=str)}")
    return [class_weight.get(label, 1.0) for label in classes.tolist()]


def weigh_classes(module: Any, data: Any, *, training: bool = False) -> None:
    """Set a module's buffer ``_class_weight``, ``(K,)`` or None, from its ``class_weight`` and ``out_channels``.

    Parameters
    ----------
    module : LightningModule
        Its buffer is not saved: it is a property of the training data. One that is set already stays.
    data : LightningDataModule or None
        With ``class_counts``, how often each class occurs in the training data; for ``"balanced"``.
    training : bool, default=False
        Whether the weights are needed now. A model that only predicts needs none, and is loaded without data.

    Raises
    ------
    ConfigError
        If the weights are no numbers of at least 0, or not K, or there is no data to balance by.
    """
    if getattr(module, "_class_weight", None) is not None:
        return
    if data is None and _is_balanced(module.class_weight):
        if training:
            raise ConfigError("class_weight='balanced' needs a data module, for the training labels")
        weight = None
    else:
        weight = _tensor_of(module.class_weight, module.out_channels, data)
    module.register_buffer("_class_weight", None if weight is None else weight.to(module.device), persistent=False)


def _is_balanced(class_weight: ClassWeight) -> bool:
    return isinstance(class_weight, str) and class_weight == "balanced"


def _tensor_of(class_weight: ClassWeight, num_classes: int, data: Any) -> Tensor | None:
    if class_weight is None:
        return None
    if _is_balanced(class_weight):
        counts = torch.as_tensor(data.class_counts, dtype=torch.float32)
        present = counts > 0  # as in scikit-learn, over the classes that occur
        return torch.where(present, counts.sum() / (present.sum() * counts.clamp(min=1)), 0.0)
    try:
        weight = torch.tensor([float(value) for value in class_weight])
    except (TypeError, ValueError):  # not a sequence, or not of numbers
        weight = torch.empty(0)
    if weight.shape != (num_classes,) or not bool((weight >= 0).all() & weight.isfinite().all()):
        raise ConfigError(
            f"class_weight must be 'balanced' or one number >= 0 for each of the {num_classes} classes, "
            f"got {class_weight!r}"
        )
    return weight


def weighted_cross_entropy(logits: Tensor, y: Tensor, class_weight: Tensor | None) -> Tensor:
    """Cross-entropy of logits ``(B, K)``, a weighted mean over the rows; 0 where no row has a weight.

    A mini-batch may have rows of classes of weight 0 only; PyTorch's weighted mean of them is NaN.
    """
    if class_weight is None:
        return F.cross_entropy(logits, y)
    total = class_weight[y].sum().clamp(min=torch.finfo(class_weight.dtype).tiny)
    return F.cross_entropy(logits, y, weight=class_weight, reduction="sum") / total
