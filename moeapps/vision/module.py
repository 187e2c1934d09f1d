"""How image classifiers are trained: cross-entropy, auxiliary losses, AdamW with warm-up and a cosine."""

from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.checks import check_at_least_zero
from moeapps.core.distributed import world_size
from moeapps.core.errors import ConfigError
from moeapps.core.module import MoEModule
from moeapps.vision.widenet import ViTMoE, WideNet

__all__ = ["FAMILIES", "ImageModule", "make_network"]

FAMILIES: dict[str, type[nn.Module]] = {"widenet": WideNet, "vit_moe": ViTMoE, "vit": VisionTransformer}
"""Models whose sizes are arguments; any other name is one of timm."""


def make_network(model: str, shape: tuple[int, int, int], num_classes: int, **options: Any) -> nn.Module:
    """A network for images ``(C, H, W)``.

    Args:
        model: ``"widenet"``, ``"vit_moe"``, ``"vit"``, or the name of a timm model.
        shape: Channels, height, width.
        num_classes: Number of classes.
        **options: Further arguments of the model.

    Raises:
        ConfigError: If there is no such model or argument.
    """
    sizes: dict[str, Any] = {"in_chans": shape[0], "img_size": shape[1:], "num_classes": num_classes}
    try:
        if model in FAMILIES:
            return FAMILIES[model](**sizes, **options)
        if not timm.is_model(model):
            raise ConfigError(f"model must be one of {', '.join(FAMILIES)} or a model of timm, got {model!r}")
        network: nn.Module = timm.create_model(model, **sizes, **options)
        return network
    except (TypeError, AssertionError) as error:
        raise ConfigError(f"options of model={model!r}: {error}") from None


class ImageModule(MoEModule):
    """Classifies images.

    Args:
        network: Images ``(N, C, H, W)`` to logits ``(N, K)``.
        lr: Learning rate of AdamW.
        weight_decay: Its weight decay; none on norms, biases and position embeddings.
        warmup: Part of the training over which the rate rises.
        label_smoothing: Of the cross-entropy.

    Raises:
        ConfigError: If an argument is impossible.
    """

    def __init__(
        self,
        network: nn.Module,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        warmup: float = 0.1,
        label_smoothing: float = 0.1,
    ) -> None:
        super().__init__()
        check_at_least_zero(lr=lr, weight_decay=weight_decay, warmup=warmup, label_smoothing=label_smoothing)
        for name, value in (("warmup", warmup), ("label_smoothing", label_smoothing)):
            if value >= 1:
                raise ConfigError(f"{name} must be below 1, got {value!r}")
        self.network = network
        self.lr, self.weight_decay, self.warmup, self.label_smoothing = lr, weight_decay, warmup, label_smoothing

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, K)``."""
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy and auxiliary losses of one batch."""
        images, labels = batch
        loss = F.cross_entropy(self(images), labels, label_smoothing=self.label_smoothing)
        return self.total_loss({"task": loss}, batch_size=len(labels))

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log ``val/loss`` and ``val/accuracy``."""
        images, labels = batch
        logits = self(images)
        logged = {
            "val/loss": F.cross_entropy(logits, labels),
            "val/accuracy": (logits.argmax(1) == labels).float().mean(),
        }
        self.log_dict(logged, batch_size=len(labels), sync_dist=world_size() > 1)

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and a cosine."""
        skipped: set[str] = getattr(self.network, "no_weight_decay", set)()
        plain = [p for n, p in self.network.named_parameters() if p.ndim < 2 or n in skipped or n.endswith(_BIASES)]
        chosen = {id(p) for p in plain}
        decayed = [p for p in self.network.parameters() if id(p) not in chosen]
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        return self.with_cosine_schedule(torch.optim.AdamW(groups, lr=self.lr), self.warmup)


_BIASES = ("experts.bias1", "experts.bias2")
