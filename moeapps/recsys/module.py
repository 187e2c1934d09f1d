"""How rankers are trained: masked task losses, AdamW, a cosine schedule."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moeapps.core.checks import check_at_least_zero
from moeapps.core.errors import ConfigError
from moeapps.core.module import MoEModule
from moeapps.recsys.attention import AWMoE, contrastive_loss
from moeapps.recsys.encoder import Rows
from moeapps.recsys.network import SequenceNetwork
from moeapps.recsys.targets import TargetKind, task_losses

__all__ = ["RankingModule"]


class RankingModule(MoEModule):
    """Weighted sum of the tasks' losses over the rows whose label is known.

    Args:
        network: Rows to outputs ``(N, T)``.
        kinds: Kind of each task.
        names: Name of each task, for logging.
        task_weights: Weight of each task; one each when None.
        positive_weight: Weight of the positive rows of each binary task; one each when None.
        lr: Learning rate of AdamW.
        weight_decay: Its weight decay; none on embeddings and norms.
        contrastive_weight: Of AW-MoE's contrastive loss on the gate (lambda in the paper); 0 for none.
        mask_probability: Of a behaviour, in the other view.
        temperature: Of the contrastive loss.

    Raises:
        ConfigError: If an argument is impossible.
    """

    def __init__(
        self,
        network: nn.Module,
        kinds: Sequence[TargetKind],
        names: Sequence[str],
        task_weights: Sequence[float] | None = None,
        positive_weight: Sequence[float] | None = None,
        lr: float = 1e-3,
        weight_decay: float = 1e-5,
        contrastive_weight: float = 0.0,
        mask_probability: float = 0.2,
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        check_at_least_zero(
            lr=lr, weight_decay=weight_decay, contrastive_weight=contrastive_weight, temperature=temperature
        )
        if not 0 <= mask_probability < 1:
            raise ConfigError(f"mask_probability must be at least 0 and below 1, got {mask_probability!r}")
        for name, value in (("lr", lr), ("temperature", temperature)):
            if value == 0:
                raise ConfigError(f"{name} must be above 0, got 0")
        if contrastive_weight > 0 and not (isinstance(network, SequenceNetwork) and isinstance(network.model, AWMoE)):
            raise ConfigError("contrastive_weight is for AW-MoE's gate; this network has none")
        self.network, self.kinds, self.names = network, list(kinds), list(names)
        self.lr, self.weight_decay = lr, weight_decay
        self.contrastive_weight, self.mask_probability, self.temperature = (
            contrastive_weight,
            mask_probability,
            temperature,
        )
        ones = [1.0] * len(self.kinds)
        for name, values in (("task_weights", task_weights), ("positive_weight", positive_weight)):
            values = ones if values is None else list(values)
            if len(values) != len(ones):
                raise ConfigError(f"{name} has {len(values)} numbers, expected one for each of {len(ones)} tasks")
            check_at_least_zero(**{name: min(values)})
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)

    def _by_name(self, outputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        losses = task_losses(outputs, labels, self.kinds, self.get_buffer("positive_weight"))
        return dict(zip(self.names, losses * self.get_buffer("task_weights"), strict=True))

    def training_step(self, batch: tuple[Rows, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch of rows and labels ``(N, T)``."""
        rows, labels = batch
        if self.contrastive_weight > 0:
            assert isinstance(self.network, SequenceNetwork)
            outputs, gate, view = self.network.with_views(rows, self.mask_probability)
            terms = self._by_name(outputs, labels)
            terms["contrastive"] = self.contrastive_weight * contrastive_loss(gate, view, self.temperature)
        else:
            terms = self._by_name(self.network(rows), labels)
        return self.total_loss(terms, batch_size=len(rows))

    def validation_step(self, batch: tuple[Rows, Tensor], batch_idx: int) -> None:
        """Log ``val/loss`` and each task's."""
        rows, labels = batch
        losses = self._by_name(self.network(rows), labels)
        self.log("val/loss", torch.stack(list(losses.values())).sum(), batch_size=len(rows))
        self.log_dict({f"val/{name}": loss for name, loss in losses.items()}, batch_size=len(rows))

    def configure_optimizers(self) -> Any:
        """AdamW with a cosine schedule to a tenth of the rate."""
        tables = {id(m.weight) for m in self.modules() if isinstance(m, nn.Embedding)}
        decayed = [p for p in self.parameters() if p.ndim > 2 or (p.ndim == 2 and id(p) not in tables)]
        chosen = {id(p) for p in decayed}
        others = [p for p in self.parameters() if id(p) not in chosen]
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=self.lr)
        return self.with_cosine_schedule(optimizer)
