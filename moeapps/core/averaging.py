"""A moving average of the weights, which is validated and kept in place of the last weights."""

import warnings
from collections.abc import Callable, Sequence

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from moeapps.core.checks import check_below_one

__all__ = ["RisingAverage", "averaged_module"]


class RisingAverage(WeightAveraging):
    r"""Lightning's average of the weights, exponential, with a decay that rises to its final value.

    After step n the average is :math:`d_n` times what it was and :math:`1 - d_n` times the new weights, with

    .. math:: d_n = \min\left(d, \frac{1 + n}{10 + n}\right)

    so that the first weights, which know nothing, are soon forgotten. Averages of weights are those of Polyak and
    Juditsky 1992; the rise is that of TensorFlow's ``ExponentialMovingAverage``. Buffers are copied, not averaged.

    Parameters
    ----------
    decay : float, default=0.98
        Final decay d, below 1: the average covers about 1 / (1 - d) steps.

    Raises
    ------
    ConfigError
        If the decay is not at least 0 and below 1.
    """

    def __init__(self, decay: float = 0.98) -> None:
        check_below_one(decay=decay)
        super().__init__(use_buffers=False, multi_avg_fn=_rising(decay))

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start the average, without Lightning's warning of models with a ``configure_model`` hook."""
        with warnings.catch_warnings():
            # ours builds the network from the data, and shards nothing
            warnings.filterwarnings("ignore", message=".*WeightAveraging callback with a model that overrides.*")
            super().setup(trainer, pl_module, stage)


def _rising(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor], None]:
    @torch.no_grad()
    def update(average: Sequence[Tensor], current: Sequence[Tensor], steps: Tensor) -> None:
        n = int(steps)
        torch._foreach_lerp_(list(average), list(current), 1 - min(decay, (1 + n) / (10 + n)))

    return update


def averaged_module(trainer: L.Trainer) -> torch.nn.Module | None:
    """What a :class:`~lightning.pytorch.callbacks.WeightAveraging` callback averages into; None where there is none."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging) and callback._average_model is not None:
            module: torch.nn.Module = callback._average_model.module
            return module
    return None
