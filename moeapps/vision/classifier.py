"""Images behind scikit-learn's interface."""

import copy
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin
from sklearn.model_selection import train_test_split
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d
from torch import Tensor, nn

from moeapps.core.callbacks import seed_everything
from moeapps.core.checks import check_fraction, check_one_of, check_sizes
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.estimator import LightningEstimator, resolve_device
from moeapps.core.saving import labels_from_json, labels_to_json
from moeapps.core.statistics import load_by_group, routed_layers
from moeapps.vision.data import AUGMENTATIONS, ImageDataModule
from moeapps.vision.images import as_images, normalise
from moeapps.vision.module import FAMILIES, ImageModule, make_network
from moeapps.vision.widenet import SharedMoE

__all__ = ["WideNetClassifier"]

PREDICT_IMAGES = 256
"""Images that are predicted at once."""


class WideNetClassifier(ClassifierMixin, LightningEstimator):
    """Classifier of small images by WideNet, or by a ViT-MoE or a plain ViT of the same size.

    Parameters
    ----------
    model : str
        ``"widenet"``, ``"vit_moe"``, ``"vit"``, or the name of a timm model, whose sizes are its own.
    embed_dim, depth, num_heads : int
        Width, blocks, and heads.
    mlp_ratio : float
        Hidden width of an expert (or MLP), as a multiple of the width.
    patch_size : int or "auto"
        Side of a patch in pixels; "auto" gives about eight patches a side, of 2 to 16 pixels. Images are padded to a
        multiple of it.
    num_experts, top_k : int
        Experts, and how many of them a patch uses. Not for ``"vit"``.
    router : str
        As in ``moeapps list routers``.
    options : dict, optional
        Further arguments of the model (``drop_path_rate``, ``capacity_factor``, ``individual_norms``, ...).
    augment : str
        ``"none"``, ``"shift"`` or ``"shift_flip"``.
    lr, weight_decay : float
        Of AdamW.
    label_smoothing : float
        Of the loss.
    batch_size : int
        Images per step.
    max_epochs : int
        Passes over the images, at most.
    validation_fraction : float
        Part of the images to validate on; training stops after ``patience`` epochs without a better accuracy and keeps
        the best epoch. 0 trains on everything, for all epochs.
    patience : int
        Epochs to wait.
    accelerator : str
        Lightning's accelerator.
    verbose : bool
        Whether to show a progress bar.
    log_dir : str, optional
        Where to log and write checkpoints; nowhere when None.
    random_state : int, RandomState or None
        Seed of everything.

    Attributes
    ----------
    classes_ : array
        Class labels.
    image_shape_ : tuple
        Channels, height and width of the images.
    mean_, scale_ : list of float
        Of each channel, in training.
    model_ : torch.nn.Module
        The network.
    history_ : DataFrame
        What was logged, one row per epoch.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from moeapps.vision import WideNetClassifier
    >>> digits = load_digits()
    >>> model = WideNetClassifier(embed_dim=32, depth=2, max_epochs=6, validation_fraction=0, random_state=0)
    >>> model = model.fit(digits.images[:1000], digits.target[:1000])
    >>> bool(model.score(digits.images[1000:], digits.target[1000:]) > 0.3)
    True
    """

    _saved_attributes = ("n_iter_", "image_shape_", "mean_", "scale_", "largest_")

    def __init__(
        self,
        model: str = "widenet",
        *,
        embed_dim: int = 96,
        depth: int = 6,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        patch_size: Any = "auto",
        num_experts: int = 4,
        top_k: int = 2,
        router: str = "topk",
        options: Mapping[str, Any] | None = None,
        augment: str = "none",
        lr: float = 3e-3,
        weight_decay: float = 0.05,
        label_smoothing: float = 0.1,
        batch_size: int = 32,
        max_epochs: int = 30,
        validation_fraction: float = 0.1,
        patience: int = 8,
        accelerator: str = "auto",
        verbose: bool = False,
        log_dir: str | None = None,
        random_state: Any = None,
    ) -> None:
        self.model = model
        self.embed_dim = embed_dim
        self.depth = depth
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.patch_size = patch_size
        self.num_experts = num_experts
        self.top_k = top_k
        self.router = router
        self.options = options
        self.augment = augment
        self.lr = lr
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.accelerator = accelerator
        self.verbose = verbose
        self.log_dir = log_dir
        self.random_state = random_state

    def fit(self, X: Any, y: ArrayLike) -> Self:
        """Learn from images.

        Parameters
        ----------
        X : array of shape (n, H, W), (n, C, H, W) or (n, H, W, C)
            Images with 1, 3 or 4 channels, uint8 or float.
        y : array of shape (n,)
            Labels.

        Returns
        -------
        self
            Fitted. If fitting fails, an earlier fit stays as it was.

        Raises
        ------
        ValueError
            Naming the argument or image that cannot be used.
        """
        fitted = copy.copy(self)
        fitted._fit(X, y)
        self.__dict__ = fitted.__dict__
        return self

    def _fit(self, X: Any, y: ArrayLike) -> None:
        check_sizes(batch_size=self.batch_size)
        check_one_of("augment", self.augment, AUGMENTATIONS)
        if self.validation_fraction != 0:
            check_fraction(validation_fraction=self.validation_fraction)
        images = as_images(X)
        labels = column_or_1d(y, warn=True)
        check_classification_targets(labels)
        if len(labels) != len(images):
            raise DataError(f"{len(images)} images and {len(labels)} labels")
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise DataError(f"y has {len(self.classes_)} class: at least two are needed")
        self.image_shape_ = list(images.shape[1:])
        seed = self._seed()
        train, held = self._split(codes, seed)
        part = images[torch.from_numpy(train)]
        self.mean_ = part.mean(dim=(0, 2, 3)).tolist()
        self.scale_ = [float(value) or 1.0 for value in part.std(dim=(0, 2, 3), correction=0)]
        self.largest_ = float(part.abs().max())
        ready, target = self._ready(images), torch.from_numpy(codes.astype(np.int64))
        with isolate_rng():
            seed_everything(seed)
            module = ImageModule(
                self._build_model(), lr=self.lr, weight_decay=self.weight_decay, label_smoothing=self.label_smoothing
            )
        watched = len(held) > 0
        data = ImageDataModule(
            (ready[torch.from_numpy(train)], target[torch.from_numpy(train)]),
            (ready[torch.from_numpy(held)], target[torch.from_numpy(held)]) if watched else None,
            self.batch_size,
            self.augment,
            seed,
        )
        self.history_ = self._train(module, data, seed, monitor="val/accuracy" if watched else None, validate=watched)
        self.n_iter_ = len(self.history_)
        self.model_ = module.network.eval()

    def _split(self, codes: NDArray[Any], seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
        rows = np.arange(len(codes))
        if not self.validation_fraction:
            return rows, rows[:0]
        held = max(1, round(len(rows) * self.validation_fraction))
        counts = np.bincount(codes)
        stratify = codes if counts.min() >= 2 and min(held, len(rows) - held) >= len(counts) else None
        train, val = train_test_split(rows, test_size=held, random_state=seed, stratify=stratify)
        return train, val

    def _patch(self) -> int:
        if self.patch_size == "auto":
            return max(2, min(16, round(min(self.image_shape_[1:]) / 8)))
        check_sizes(patch_size=self.patch_size)
        return int(self.patch_size)

    def _padded(self) -> tuple[int, int]:
        """Height and width as the network sees them."""
        if self.model not in FAMILIES:
            return self.image_shape_[1], self.image_shape_[2]
        patch = self._patch()
        height, width = (-(-side // patch) * patch for side in self.image_shape_[1:])
        return height, width

    def _ready(self, images: Tensor) -> Tensor:
        return normalise(images, torch.tensor(self.mean_), torch.tensor(self.scale_), self._padded())

    def _build_model(self) -> nn.Module:
        options = dict(self.options or {})
        if self.model in FAMILIES:
            sizes: dict[str, Any] = {
                "embed_dim": self.embed_dim,
                "depth": self.depth,
                "num_heads": self.num_heads,
                "mlp_ratio": self.mlp_ratio,
                "patch_size": self._patch(),
            }
            check_sizes(embed_dim=self.embed_dim, depth=self.depth, num_heads=self.num_heads)
            if self.embed_dim % self.num_heads:
                raise ConfigError(f"embed_dim={self.embed_dim} is not a multiple of num_heads={self.num_heads}")
            if self.model != "vit":
                sizes |= {"num_experts": self.num_experts, "top_k": self.top_k, "router": self.router}
            options = {**sizes, **options}
        return make_network(self.model, (self.image_shape_[0], *self._padded()), len(self.classes_), **options)

    def _checked(self, X: Any) -> Tensor:
        check_is_fitted(self, "model_")
        images = as_images(X)
        if list(images.shape[1:]) != list(self.image_shape_):
            raise DataError(
                f"images are (C, H, W) = {tuple(images.shape[1:])}, the model was fitted on {tuple(self.image_shape_)}"
            )
        largest = float(images.abs().max())
        if largest > 20 * max(self.largest_, 1e-12) or (20 * largest < self.largest_ and largest > 0):
            raise DataError(
                f"pixels reach {largest:g}, those of training {self.largest_:g}: uint8 is divided by 255, floats not"
            )
        return self._ready(images)

    @torch.no_grad()
    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Class probabilities, shape (n, number of classes); columns in the order of ``classes_``."""
        ready = self._checked(X)
        device = resolve_device(self.accelerator)
        network = self.model_.to(device)
        try:
            parts = [network(part.to(device)).double().softmax(1).cpu() for part in ready.split(PREDICT_IMAGES)]
        finally:
            self.model_.cpu()
        probabilities: NDArray[np.float64] = torch.cat(parts).numpy()
        return probabilities

    def predict(self, X: Any) -> NDArray[Any]:
        """Most probable class of each image."""
        best = self.predict_proba(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    @torch.no_grad()
    def expert_load(self, X: Any, groups: ArrayLike | None = None, layer: int = -1) -> pd.DataFrame:
        """Which experts the patches of each group of images use: one line per group, each sums to 1.

        Parameters
        ----------
        X : array
            Images.
        groups : array of shape (n,), optional
            What to group images by; what the model predicts when None.
        layer : int
            Which block (of those with experts).

        Raises
        ------
        ConfigError
            If the model has no experts.
        """
        ready = self._checked(X)
        names, number = np.unique(self.predict(X) if groups is None else np.asarray(groups), return_inverse=True)
        if len(number) != len(ready):
            raise DataError(f"{len(ready)} images and {len(number)} groups")
        network = copy.deepcopy(self.model_)
        layers = list(routed_layers(network).values())
        if not layers:
            raise ConfigError(f"model={self.model!r} has no experts")
        network(ready)
        first = layers[0]
        routings = first.routings if isinstance(first, SharedMoE) else [found.last_routing for found in layers]
        routing = routings[layer]
        assert routing is not None
        tokens = len(routing.valid) // len(ready)
        groups_of = torch.from_numpy(number.astype(np.int64)).repeat_interleave(tokens)
        load = load_by_group(routing, groups_of, len(names))
        return pd.DataFrame(load.numpy(), index=pd.Index(names, name="group"))

    def saved_state(self) -> dict[str, Any]:
        """Fitted attributes and class labels."""
        return {**super().saved_state(), "classes_": labels_to_json(self.classes_)}

    def _restore(self, state: dict[str, Any]) -> None:
        self.classes_ = labels_from_json(state["classes_"])
        super()._restore(state)
