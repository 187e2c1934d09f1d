"""The LightningModule that every trainable model of moeapps derives from."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from moeapps.core.checkpoint import check_state_dict
from moeapps.core.errors import NonFiniteError
from moeapps.core.statistics import routed_layers

__all__ = ["MoEModule"]


class MoEModule(L.LightningModule):
    """LightningModule that collects the auxiliary losses of all routed layers inside it.

    A subclass writes ``training_step`` as usual and passes its task loss through :meth:`total_loss`::

        def training_step(self, batch, batch_idx):
            x, y = batch
            return self.total_loss({"task": F.cross_entropy(self(x), y)})
    """

    def auxiliary_losses(self) -> dict[str, Tensor]:
        """Weighted auxiliary losses of the last forward pass, keyed ``<layer>/<name>``."""
        return {
            f"{name}/{kind}": value
            for name, layer in routed_layers(self).items()
            for kind, value in layer.auxiliary_losses().items()
        }

    def total_loss(self, terms: dict[str, Tensor], batch_size: int | None = None) -> Tensor:
        """Add up task terms and auxiliary losses, log each as ``train/<term>``, and refuse a non-finite sum.

        Args:
            terms: The task's own loss terms by name, scalars.
            batch_size: Rows in the batch, for Lightning's averaging.

        Returns:
            Scalar to call ``backward`` on.

        Raises:
            NonFiniteError: If the sum is NaN or infinite. The error names the step, the terms to blame and the layers
                that saw non-finite tokens; no weight has been changed by this step.
        """
        every = {**terms, **self.auxiliary_losses()}
        loss = torch.stack([term.float() if term.dtype.itemsize < 4 else term for term in every.values()]).sum()
        if not bool(loss.isfinite()):
            raise NonFiniteError(self._describe_non_finite(every))
        logged = {f"train/{name}": term.detach() for name, term in every.items()}
        self.log_dict({**logged, "train/loss": loss.detach()}, on_step=False, on_epoch=True, batch_size=batch_size)
        return loss

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say which weights do not fit, before Lightning tries to load them.

        Raises:
            FileFormatError: Naming the first missing, unexpected and mismatched weights, with both shapes.
        """
        if self.strict_loading:
            check_state_dict(self, checkpoint["state_dict"], "the checkpoint")

    def _describe_non_finite(self, terms: dict[str, Tensor]) -> str:
        step = self.trainer.fit_loop.epoch_loop.total_batch_idx if self._trainer is not None else 0
        bad = [f"{name} = {float(term.detach())}" for name, term in terms.items() if not bool(term.isfinite())]
        layers = []
        for name, layer in routed_layers(self).items():
            if layer.last_routing is not None and (count := int((~layer.last_routing.valid).sum())):
                layers.append(f"layer {name or type(layer).__name__!r} got {count} non-finite tokens")
        where = f"; {', '.join(layers)}" if layers else ""
        return f"the loss is not finite at step {step}: {', '.join(bad) or 'sum of terms'}{where}. Training stopped"
