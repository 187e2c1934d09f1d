"""Training of image classifiers: cross-entropy, auxiliary losses, AdamW with warm-up and a cosine schedule."""

# Shapes: N images, C channels, H height, W width, K classes

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from moeapps.core.checks import check_at_least_zero, check_below_one, check_one_of, check_sizes
from moeapps.core.config import Configurable, takes
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.growth.moeify import moeify
from moeapps.core.labels import probability_columns
from moeapps.core.losses import consistency_loss
from moeapps.core.module import DataDependentModule
from moeapps.core.optimizers import fused_where_possible
from moeapps.core.search import Distribution, Float
from moeapps.core.statistics import GroupCounts
from moeapps.core.views import Views
from moeapps.vision.augmentation import AUGMENTATIONS, augmentation_for, augmented
from moeapps.vision.defaults import patch_side
from moeapps.vision.images import ImageSpec, pad_to, to_float
from moeapps.vision.networks import FAMILIES, make_network

__all__ = ["FAMILIES", "SIZES", "ImageModule", "ImageModuleConfig", "SpecModule", "make_network"]

SIZES = ("embed_dim", "depth", "num_heads", "mlp_ratio", "stem", "init_values")
"""Sizes of those models that :class:`~moeapps.vision.WideNetClassifier` has as arguments."""


class SpecModule(DataDependentModule):
    """Base of modules whose network is built once the :class:`ImageSpec` is known.

    The spec comes from the data module, or from the checkpoint that is loaded.
    """

    entry = "moeapps_images"
    fetches = True  # whether building the network may download pretrained weights, or read a file of them
    spec: ImageSpec

    def attach(self, spec: ImageSpec) -> None:
        """Build the network for images of a spec."""
        raise NotImplementedError

    def attach_for_weights(self, spec: ImageSpec) -> None:
        """As :meth:`attach`, for weights that are at hand: nothing is downloaded, and no file is read."""
        self.fetches = False
        try:
            self.attach(spec)
        finally:
            self.fetches = True

    def attach_data(self, data: Any) -> None:
        """Take the spec from the data module."""
        if getattr(data, "spec", None) is not None:
            self.attach(data.spec)

    def attach_state(self, state: dict[str, Any]) -> None:
        """Take the spec from the checkpoint."""
        self.attach_for_weights(ImageSpec.from_state(state))

    def data_state(self) -> dict[str, Any]:
        """The spec."""
        return self.spec.state()

    def difference(self, state: dict[str, Any]) -> str | None:
        """Other shapes or classes; other channel statistics are accepted."""
        spec = ImageSpec.from_state(state)
        if (spec.shape, spec.classes) == (self.spec.shape, self.spec.classes):
            return None
        return (
            f"images {self.spec.shape} of {len(self.spec.classes)} classes, the checkpoint's {spec.shape} of "
            f"{len(spec.classes)}"
        )


@dataclass(frozen=True)
class ImageModuleConfig:
    """A network that classifies images, and how it is trained.

    Parameters
    ----------
    model : str, default="widenet"
        ``"widenet"``, ``"vit_moe"``, ``"vit"``, or the name of a timm model.
    options : dict, optional
        Further arguments of the model (``embed_dim``, ``depth``, ``router``, ...). The three families have
        ``stem="patch"`` or ``"conv"``; their ``patch_size`` defaults to an eighth of the images' side, 2 to 16 pixels,
        rounded (with a convolutional stem to a quarter, if that is at most 8, and to a power of two).
    moeify : dict or bool, optional
        Turns blocks of the network into MoE layers: arguments of :func:`~moeapps.core.growth.moeify.moeify`
        (``{"num_experts": 4, "every": 1}``), or True for its defaults. Neither when None or False.
    augment : {"none", "auto", "shift", "shift_flip", "affine", "affine_flip"}, default="none"
        Augmentation of training images, on the device: shifts by up to an eighth; ``"affine"`` also rotates by up to
        10 degrees and changes the size by up to a tenth; ``"_flip"`` also mirrors half of the images. ``"auto"`` is
        ``"affine_flip"`` for colour images and ``"affine"`` for others.
    lr : float, default=1e-3
        Learning rate of AdamW.
    weight_decay : float, default=0.05
        Weight decay of AdamW; none on norms, biases and position embeddings.
    warmup : float, default=0.1
        Fraction of the training over which the learning rate rises, before it falls along a cosine. Below 1.
    label_smoothing : float, default=0.1
        Label smoothing of the cross-entropy, below 1.
    compile : bool, default=False
        Whether ``torch.compile`` compiles the network.
    grad_checkpointing : bool, default=False
        Whether blocks are computed again in the backward pass, which saves memory.
    """

    model: str = "widenet"
    options: dict[str, Any] | None = None
    moeify: dict[str, Any] | bool | None = None
    augment: str = "none"
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    label_smoothing: float = 0.1
    compile: bool = False
    grad_checkpointing: bool = False

    def check(self) -> None:
        """Refuse impossible values.

        Raises
        ------
        ConfigError
            Naming the argument.
        """
        check_at_least_zero(lr=self.lr, weight_decay=self.weight_decay)
        check_below_one(warmup=self.warmup, label_smoothing=self.label_smoothing)
        check_one_of("augment", self.augment, AUGMENTATIONS)


class ImageModule(SpecModule, Configurable):
    """Trains a network that classifies images, uint8 (divided by 255) or float.

    Takes the fields of :class:`ImageModuleConfig` as arguments.

    Attributes
    ----------
    network : nn.Module
        Standardised images ``(N, C, H, W)`` to logits ``(N, K)``, once attached.
    moeify_report : MoEifyReport
        Which blocks became MoE layers, once attached, where ``moeify`` asks for it.

    Raises
    ------
    ConfigError
        If an argument is impossible.
    """

    _search_space: ClassVar[Mapping[str, Distribution]] = {
        "lr": Float(3e-4, 1e-2, log=True),
        "weight_decay": Float(1e-3, 0.2, log=True),
        "label_smoothing": Float(0.0, 0.2),
        "warmup": Float(0.0, 0.2),
    }

    mean: Tensor
    scale: Tensor

    @takes(ImageModuleConfig)
    def __init__(self, config: ImageModuleConfig) -> None:
        super().__init__()
        config.check()
        self.config = config
        self.lr = config.lr  # Lightning's learning rate finder sets it

    def attach(self, spec: ImageSpec) -> None:
        """Build the network.

        Raises
        ------
        ConfigError
            If the options do not fit the images.
        """
        self.spec = spec
        channels, height, width = spec.shape
        self.augment = augmentation_for(self.config.augment, channels)
        model, options = self.config.model, dict(self.config.options or {})
        if fixed := [name for name in ("in_chans", "num_classes") if name in options]:
            raise ConfigError(f"options has {' and '.join(fixed)}, which follow from the images")
        if model in FAMILIES:  # other models of timm have a patch size of their own; these are padded to whole patches
            patch = options.get("patch_size", patch_side(height, width, options.get("stem", "patch")))
            check_sizes(patch_size=patch)
            height, width = (-(-side // patch) * patch for side in (height, width))
            options = {**options, "patch_size": patch}
        self.size = (height, width)
        shape = (channels, height, width)
        self.network = make_network(model, shape, len(spec.classes), for_weights=not self.fetches, **options)
        if self.config.moeify is not None and self.config.moeify is not False:
            arguments = {} if self.config.moeify is True else dict(self.config.moeify)
            self.network, self.moeify_report = moeify(self.network, **arguments)
        for name, values in (("mean", spec.mean), ("scale", spec.scale)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        if self.config.grad_checkpointing:
            try:
                self.network.set_grad_checkpointing(True)  # type: ignore[operator]
            except (AttributeError, AssertionError) as error:
                raise ConfigError(f"grad_checkpointing: model={model!r} has none ({error})") from None
        if self.config.compile:
            self.network.compile()

    def prepare(self, images: Tensor) -> Tensor:
        """Standardise and pad images.

        Raises
        ------
        DataError
            If the images have another shape than those the network was built for.
        """
        if tuple(images.shape[1:]) != self.spec.shape:
            raise DataError(f"images are {tuple(images.shape[1:])}, the network was built for {self.spec.shape}")
        return pad_to((to_float(images) - self.mean) / self.scale, *self.size)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, K)`` of images ``(N, C, H, W)``."""
        logits: Tensor = self.network(self.prepare(images))
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy and auxiliary losses of one batch."""
        images, labels = batch
        images = augmented(images, self.augment)

        def run() -> tuple[Tensor, dict[str, Tensor]]:
            logits = self(images)
            return logits, {"task": F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)}

        return self.total_loss(self.by_draws(run, consistency_loss), batch_size=len(labels))

    def on_validation_epoch_start(self) -> None:
        """Reset the counts of experts by class."""
        self._by_class = GroupCounts(self.spec.classes)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log ``val/loss`` and ``val/accuracy``."""
        self._evaluate("val", batch_idx, *batch)
        self._by_class.update(self, batch[1])

    def views(self) -> Views:
        """Experts by class, over all patches of the last validation (in a WideNet, in all its blocks)."""
        return Views(maps=self._by_class.maps("class") if hasattr(self, "_by_class") else [])

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log ``test/loss`` and ``test/accuracy``."""
        self._evaluate("test", batch_idx, *batch)

    def _evaluate(self, stage: str, batch_idx: int, images: Tensor, labels: Tensor) -> None:
        own = self.own_rows(stage, batch_idx, len(labels))
        logits, labels = self(images)[:own], labels[:own]
        logged = {
            f"{stage}/loss": F.cross_entropy(logits, labels),
            f"{stage}/accuracy": (logits.argmax(1) == labels).float().mean(),
        }
        self.log_evaluation(logged, own, batch_idx)

    def predict_step(self, batch: tuple[Tensor, Any], batch_idx: int) -> dict[str, Any]:
        """Columns ``image`` (file name, or label of images in memory), ``prediction``, ``probability_<class>``."""
        images, names = batch
        probabilities = self(images).float().softmax(1).cpu().numpy()
        best = probabilities.argmax(1)
        columns = dict(zip(probability_columns(self.spec.classes), probabilities.T, strict=True))
        if isinstance(names, Tensor):
            names = [self.spec.classes[int(code)] for code in names]
        return {"image": list(names), "prediction": [self.spec.classes[k] for k in best], **columns}

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and a cosine schedule; no weight decay on norms, biases and position embeddings."""
        skipped: set[str] = getattr(self.network, "no_weight_decay", set)()
        plain = [p for n, p in self.network.named_parameters() if p.ndim < 2 or n in skipped or n.endswith(_BIASES)]
        chosen = {id(p) for p in plain}
        decayed = [p for p in self.network.parameters() if id(p) not in chosen]
        groups = [{"params": decayed, "weight_decay": self.config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.lr, **fused_where_possible(self.network.parameters()))
        return self.with_cosine_schedule(optimizer, self.config.warmup)


_BIASES = ("experts.bias1", "experts.bias2")
