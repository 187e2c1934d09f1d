"""Classification of images behind scikit-learn's interface."""

# Shapes: N images, C channels, H height, W width, T tokens per image, E experts

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from moeapps.core.checks import check_below_one, check_fraction, check_one_of, check_sizes
from moeapps.core.config import as_arguments, config_from, field_names, store_arguments
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.routing import Routing
from moeapps.core.saved_arguments import check_fields
from moeapps.core.search import Choice, Distribution, Float, Int
from moeapps.core.statistics import load_by_group, routed_layers
from moeapps.vision.augmentation import AUGMENTATIONS
from moeapps.vision.data import ImageArrays, make_transform
from moeapps.vision.defaults import BEFORE, automatic, check_automatic
from moeapps.vision.estimator import ImageEstimator
from moeapps.vision.folders import find_images
from moeapps.vision.image_files import ImageFilesMixin
from moeapps.vision.images import ImageSpec, PixelRange, as_images, refuse_other_scale
from moeapps.vision.module import FAMILIES, SIZES, ImageModule, ImageModuleConfig
from moeapps.vision.stem import STEMS
from moeapps.vision.widenet import VisionMoEConfig

__all__ = ["WideNetClassifier"]

PREDICT_IMAGES = 256
"""Images per forward pass of a prediction."""


class WideNetClassifier(ImageFilesMixin, ClassifierMixin, ImageEstimator):
    """Image classifier with a WideNet (Xue et al., AAAI 2022), a ViT-MoE or a plain ViT.

    Parameters
    ----------
    model : str, default="widenet"
        ``"widenet"``, ``"vit_moe"``, ``"vit"``, or the name of a timm model, which has sizes of its own.
    embed_dim : int, default=64
        Width of the tokens, a multiple of ``num_heads``.
    depth : int, default=3
        Number of blocks.
    num_heads : int, default=4
        Number of attention heads.
    mlp_ratio : float, default=2.0
        Hidden width of an expert (or MLP), as a multiple of ``embed_dim``.
    stem : {"conv", "patch"}, default="conv"
        How images become tokens: by several small convolutions (:class:`~moeapps.vision.ConvPatchEmbed`), or by one as
        wide as a patch, as in the papers.
    patch_size : int or "auto", default="auto"
        Side of a patch in pixels; ``"auto"`` is an eighth of the images' side, 2 to 16 pixels, rounded; with the
        convolutional stem a quarter, if that is at most 8, and a power of two. Images are padded to a multiple of it.
    global_pool : {"avg", "token"}, default="avg"
        What the head sees: the mean of all patches, or a class token, as in the papers.
    init_values : float or None, default=0.01
        Layer scale: what every block adds is multiplied, channel by channel, by learned numbers that begin at this one
        (Touvron et al., ICCV 2021), so that the network begins as its stem and a linear layer. None is without, as in
        the papers.
    image_size : int, optional
        Side to which images are resized and cropped, files and arrays alike; None if all have one size.
    num_experts : int, default=4
        Number of experts. Not for ``"vit"``.
    top_k : int, default=2
        Experts per patch. Not for ``"vit"``.
    router : str, default="topk"
        Name of a router, as in ``moeapps list routers``. Not for ``"vit"``.
    router_args : dict, optional
        Further arguments of the router: ``{"slots": 4}`` for ``"soft"``. Not for ``"vit"``.
    balance_loss : {"load", "mutual_information"}, default="load"
        The router's own balance loss, or ModuleFormer's in its place: minus the mutual information of patches and
        experts. Not for ``"vit"``.
    iterations : int, default=1
        How often a layer applies its experts in turn, chosen anew each time (chain of experts). Not for ``"vit"``.
    expert_sizes : {"arithmetic", "geometric"} or sequence of int, optional
        Experts of different hidden widths (HMoE): a name, by which they share the units of experts of one size, or the
        widths; all alike when None. Not for ``"vit"``.
    options : dict, optional
        Further arguments of the model (``drop_path_rate``, ``capacity_factor``, ``individual_norms``, ...).
    moeify : dict or bool, optional
        Turns blocks of the network into MoE layers before it is trained, pretrained or not: arguments of
        :func:`~moeapps.core.growth.moeify.moeify` (``{"num_experts": 4, "every": 1}``), or True for its defaults. Of
        convolutional networks only Linear layers can become experts (ConvNeXt's, not ResNet's).
    augment : str, default="auto"
        Augmentation of training images: ``"none"``; ``"shift"`` by up to an eighth; ``"affine"``, which also rotates by
        up to 10 degrees and changes the size by up to a tenth; either with ``"_flip"``, which mirrors half of them; or
        for uint8 images a policy of timm (``"rand-m9-mstd0.5"``). ``"auto"`` is ``"affine_flip"`` for colour images and
        ``"affine"`` for others: take ``"affine"`` where left and right matter, as in images of text.
    lr : float, default=3e-3
        Learning rate of AdamW.
    weight_decay : float, default=0.05
        Weight decay of AdamW.
    label_smoothing : float, default=0.1
        Label smoothing of the cross-entropy, below 1.
    ema_decay : float, default=0.99
        Decay of a moving average of the weights, which is validated and kept; 0 keeps the last weights.
    batch_size : int or "auto", default="auto"
        Images per training step; ``"auto"`` is 32 below 1,000 images, 64 below 20,000, and 128.
    max_epochs : int or "auto", default="auto"
        Largest number of epochs; ``"auto"`` is 25, for colour images 40, times the root of 2,000 / n where there are
        fewer than 2,000 images (up to four times) and of 10,000 / n where there are more than 10,000; at least 10.
    max_time : float, optional
        Seconds after which training ends, with the learning rate at the end of its schedule. How far it gets then
        depends on the machine; without a limit, equal seeds give equal models.
    validation_fraction : float or "auto", default="auto"
        Fraction of the images that is held out for early stopping. 0 trains on all images for ``max_epochs`` epochs.
        ``"auto"`` is 0 below 5,000 images, and 0.1.
    patience : int, default=8
        Training stops after this many epochs without a better accuracy on the held-out images; the weights of the best
        epoch are kept.
    accelerator : str, default="auto"
        Lightning's accelerator.
    precision : str, default="32-true"
        Lightning's precision of the training (``"32-true"``, ``"bf16-mixed"``, ``"16-mixed"``).
    verbose : bool, default=False
        Whether to show a progress bar.
    log_dir : str, optional
        Folder for logs and checkpoints; nothing is written when None.
    logger : str, Logger or list of Logger, default=None
        ``"csv"``, ``"tensorboard"``, ``"wandb"`` or ``"mlflow"``, several with commas, in a new folder of ``log_dir``;
        or loggers of Lightning. None logs to CSV where there is a ``log_dir``.
    random_state : int, RandomState or None, default=None
        Seed of the split, the weights and the order of images.

    Attributes
    ----------
    classes_ : ndarray of shape (K,)
        Class labels.
    spec_ : ImageSpec
        Shape of the images, names of the classes, and mean and standard deviation of each channel in training.
    model_ : ImageModule
        The trained module; ``model_.network`` is timm's network.
    pixels_ : PixelRange
        Smallest and largest pixel in training, to which predictions are held.
    auto_ : dict
        What ``batch_size``, ``max_epochs`` and ``validation_fraction`` are where they are "auto".
    history_ : DataFrame
        Logged metrics, one row per epoch.
    n_iter_ : int
        Number of epochs.

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

    _search_space: ClassVar[Mapping[str, Distribution]] = {
        "embed_dim": Choice((32, 64, 96, 128)),
        "depth": Int(2, 6),
        "num_experts": Int(2, 8),
        "lr": Float(5e-4, 1e-2, log=True),
        "weight_decay": Float(1e-3, 0.2, log=True),
        "label_smoothing": Float(0.0, 0.2),
    }

    classes_: NDArray[Any]
    model_: ImageModule
    auto_: dict[str, int | float]
    _saved_attributes = ("n_iter_", "largest_", "auto_")
    _optional_attributes = ("largest_", "auto_")
    router_args: Mapping[str, Any] | None = None  # pickles of 0.1 have none
    largest_: float  # of models that 0.1 saved: largest absolute pixel value of training

    def __init__(
        self,
        model: str = "widenet",
        *,
        embed_dim: int = 64,
        depth: int = 3,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        stem: Literal["conv", "patch"] = "conv",
        patch_size: int | Literal["auto"] = "auto",
        global_pool: Literal["avg", "token"] = "avg",
        init_values: float | None = 0.01,
        image_size: int | None = None,
        num_experts: int = 4,
        top_k: int = 2,
        router: str = "topk",
        router_args: Mapping[str, Any] | None = None,
        balance_loss: Literal["load", "mutual_information"] = "load",
        iterations: int = 1,
        expert_sizes: str | Sequence[int] | None = None,
        options: Mapping[str, Any] | None = None,
        moeify: Mapping[str, Any] | bool | None = None,
        augment: str = "auto",
        lr: float = 3e-3,
        weight_decay: float = 0.05,
        label_smoothing: float = 0.1,
        ema_decay: float = 0.99,
        batch_size: int | Literal["auto"] = "auto",
        max_epochs: int | Literal["auto"] = "auto",
        max_time: float | None = None,
        validation_fraction: float | Literal["auto"] = "auto",
        patience: int = 8,
        accelerator: str = "auto",
        precision: str = "32-true",
        verbose: bool = False,
        log_dir: str | None = None,
        random_state: Any = None,
        logger: Any = None,
    ) -> None:
        store_arguments(self, locals())

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickle; in 0.1 some arguments did not exist."""
        super().__setstate__(
            {"balance_loss": "load", "iterations": 1, "expert_sizes": None, "moeify": None, **BEFORE, **state}
        )

    @classmethod
    def from_saved(
        cls, arguments: dict[str, Any], state: dict[str, Any], tensors: dict[str, Tensor], source: Path
    ) -> Self:
        """As every estimator; arguments that 0.1 did not have mean in its files what it did."""
        return super().from_saved({**BEFORE, **arguments}, state, tensors, source)

    def fit(self, X: Any, y: ArrayLike | None = None) -> Self:
        """Train on images.

        Parameters
        ----------
        X : array of shape (n, H, W), (n, C, H, W) or (n, H, W, C), sequence of images, or path
            Images with 1, 3 or 4 channels; arrays, tensors, images of Pillow, paths or contents of files one by one; or
            a folder with one folder of image files per class. Files are read as RGB. uint8 is divided by 255, uint16
            by 65,535, other numbers are used as they are.
        y : array of shape (n,), optional
            Labels; None for a folder.

        Returns
        -------
        self
            The fitted estimator. If fitting fails, an earlier fit is kept.

        Raises
        ------
        ValueError
            Naming the argument, image or file that cannot be used.
        """
        with self._all_or_nothing() as fitted:
            fitted._fit(X, y)
        return self

    def _fit(self, X: Any, y: ArrayLike | None) -> None:
        check_automatic(self.batch_size, self.max_epochs, self.validation_fraction, self.max_time)
        check_below_one(ema_decay=self.ema_decay)
        if self.model in FAMILIES:
            check_one_of("stem", self.stem, STEMS)
            check_one_of("global_pool", self.global_pool, ("avg", "token"))
            if self.init_values is not None:
                check_fraction(init_values=self.init_values)
        if self.image_size is not None:
            check_sizes(image_size=self.image_size)
        if isinstance(X, str | Path):
            if y is not None:
                raise DataError("the classes of a folder are the names of its folders: y must be None")
            X, codes_of_files, names = find_images(X)
            y = np.array(names)[codes_of_files]
        images = as_images(X, size=self.image_size)
        if y is None:
            raise DataError("y is needed: one label per image")
        codes = self._encode(y, len(images))
        if len(self.classes_) < 2:
            raise DataError(f"y has {len(self.classes_)} class: at least two are needed")
        seed = self._seed()
        self.auto_ = automatic(len(images), images.shape[1])
        train, val = self._split(images, codes, seed)
        self.spec_ = ImageSpec.of(train.images, self.classes_)
        self.pixels_ = PixelRange.of(train.images)
        if self.augment not in AUGMENTATIONS:  # a policy of timm, which needs the images one by one
            train = ImageArrays(train.images, train.labels, make_transform(self.spec_.shape, True, self.augment))
        self._train_on(train, val, seed, monitor="val/accuracy", ema_decay=self.ema_decay, max_time=self.max_time)

    def _setting(self, name: str) -> Any:
        """An argument, or what it is for these images where it is "auto"."""
        value = getattr(self, name)
        return self.auto_[name] if value == "auto" else value

    def saved_state(self) -> dict[str, Any]:
        """Also the range of the pixels."""
        state = super().saved_state()
        return {**state, "pixels_": vars(self.pixels_)} if hasattr(self, "pixels_") else state

    def _restore(self, state: dict[str, Any]) -> None:
        if "pixels_" in state:
            check_fields(PixelRange, state["pixels_"])
            self.pixels_ = PixelRange(**state["pixels_"])
        super()._restore(state)

    def _make_module(self) -> ImageModule:
        config = config_from(
            ImageModuleConfig,
            self,
            options={**self._sizes(), **(self.options or {})},
            augment=self.augment if self.augment in AUGMENTATIONS else "none",
        )
        return ImageModule.from_config(config=config)

    def _sizes(self) -> dict[str, Any]:
        """Arguments of the network that are arguments of the estimator; none for a timm model, which has its own."""
        if self.model not in FAMILIES:
            return {}
        experts = field_names(VisionMoEConfig) if self.model != "vit" else ()
        patch = ("patch_size",) if self.patch_size != "auto" else ()
        sizes = {name: getattr(self, name) for name in (*SIZES, *patch, *experts) if hasattr(self, name)}
        return {**sizes, "global_pool": self.global_pool, "class_token": self.global_pool == "token"}

    @classmethod
    def from_module(cls, module: ImageModule) -> Self:
        """See :meth:`LightningEstimator.from_module`. Square images of other sizes are resized to the module's."""
        config = module.config
        options = dict(config.options or {})
        if config.model in FAMILIES:  # what the module leaves to the network, not to the defaults of the estimator
            names = {*SIZES, *field_names(VisionMoEConfig), "global_pool", "class_token"}
            families = [signature(kind).parameters for kind in (FAMILIES["vit"], FAMILIES[config.model])]
            defaults = {"stem": "patch"} | {
                name: p.default for family in families for name, p in family.items() if name in names
            }
            options = {**defaults, **options}
        estimator = cls._with_settings({**as_arguments(config), "options": options})
        height, width = module.spec.shape[1:]
        estimator.set_params(image_size=height if height == width else None)
        estimator._fit_params = estimator.get_params(deep=False)
        estimator.spec_, estimator.auto_ = module.spec, {}
        estimator.classes_ = np.array(module.spec.classes)
        estimator.model_ = module
        if PixelRange.is_by_depth(module.spec):  # where it is not, the range is not known
            estimator.pixels_ = PixelRange(0.0, 1.0, True)
        return estimator

    def _checked(self, X: Any) -> Tensor:
        check_is_fitted(self, "model_")
        if isinstance(X, str | Path):
            raise DataError("predict images from a list of files, or an array; predict_files(folder) names the files")
        shape, old = self.spec_.shape, hasattr(self, "largest_")  # 0.1 kept the numbers of uint16, and one limit
        images = as_images(
            X, channels=shape[0], size=self.image_size, shape=shape, scale_depth=not old,
            transform=self.spec_.transform(),
        )  # fmt: skip
        if tuple(images.shape[1:]) != self.spec_.shape:
            raise DataError(
                f"images are (C, H, W) = {tuple(images.shape[1:])}, the model was fitted on {self.spec_.shape}"
            )
        if old:
            new = PixelRange.of(images)
            refuse_other_scale(max(-new.low, new.high), self.largest_)
        elif hasattr(self, "pixels_"):  # not known of the checkpoint of a training
            self.pixels_.check(images)
        return images

    def _run(self, images: Tensor, function: Callable[[ImageModule, Tensor], Tensor]) -> Tensor:
        with torch.no_grad(), self._on_device() as module:
            parts = images.split(PREDICT_IMAGES)
            outputs = torch.cat([function(module, part.to(module.device)).cpu() for part in parts])
        self._finite(outputs.numpy())
        return outputs

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Class probabilities.

        Parameters
        ----------
        X : array, or sequence of images
            n images as :meth:`fit` takes them, of the shape and scale that the model was fitted on.

        Returns
        -------
        ndarray of shape (n, K)
            Columns are in the order of ``classes_``.

        Raises
        ------
        DataError
            If an image cannot be read, or shape or scale are not those of the fit.
        """
        images = self._checked(X)
        probabilities: NDArray[np.float64] = self._run(images, lambda net, part: net(part).double().softmax(1)).numpy()
        return probabilities

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Features of n images before the last layer, shape ``(n, embed_dim)``."""

        def pooled(module: ImageModule, part: Tensor) -> Tensor:
            network: Any = module.network
            features: Tensor = network.forward_head(network.forward_features(module.prepare(part)), pre_logits=True)
            return features.float()

        features: NDArray[np.float32] = self._run(self._checked(X), pooled).numpy()
        return features

    def predict(self, X: Any) -> NDArray[Any]:
        """Most probable class of each image, shape ``(n,)``."""
        best = self.predict_proba(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def expert_load(self, X: Any, groups: ArrayLike | None = None, layer: int = -1) -> pd.DataFrame:
        """Fraction of patches that each expert gets, by group of images.

        Parameters
        ----------
        X : array, sequence of images, or path
            n images, or a folder with one folder of image files per class.
        groups : array of shape (n,), optional
            Group of each image; when None the predicted class, of a folder the class.
        layer : int, default=-1
            Index among the blocks with experts; of a chain of experts it is its last iteration.

        Returns
        -------
        DataFrame of shape (number of groups, E)
            Rows sum to 1.

        Raises
        ------
        ConfigError
            If the model has no experts, or no such layer.
        DataError
            If there is not one group per image.
        """
        check_is_fitted(self, "model_")
        if isinstance(X, str | Path):
            X, labels = self._read_folder(X, None)
            groups = labels if groups is None else groups
        images = self._checked(X)
        names, number = np.unique(self.predict(X) if groups is None else np.asarray(groups), return_inverse=True)
        if len(number) != len(images):
            raise DataError(f"{len(images)} images and {len(number)} groups")
        routing = self._routing(images, layer)
        tokens = len(routing.valid) // len(images)
        groups_of = torch.from_numpy(number.astype(np.int64)).repeat_interleave(tokens)  # (N T,)
        load = load_by_group(routing, groups_of, len(names))
        return pd.DataFrame(load.numpy(), index=pd.Index(names, name="group"))

    def patch_experts(self, X: Any, layer: int = -1) -> NDArray[np.int64]:
        """The most probable expert of each patch of n images, shape ``(n, rows, columns)``.

        ``X`` and ``layer``, and the errors, are those of :meth:`expert_load`.
        """
        images = self._checked(X)
        best = self._routing(images, layer).probabilities.argmax(dim=-1).view(len(images), -1)  # (N, T)
        network: Any = self.model_.network
        best = best[:, getattr(network, "num_prefix_tokens", 0) :]
        rows, columns = getattr(getattr(network, "patch_embed", None), "grid_size", None) or (0, 0)
        if rows * columns != best.shape[1]:  # a later stage of a network that has fewer patches from stage to stage
            rows = columns = math.isqrt(best.shape[1])
        if rows * columns != best.shape[1]:
            raise ConfigError(f"layer={layer} of model={self.model!r} routes {best.shape[1]} tokens, which are no grid")
        chosen: NDArray[np.int64] = best.reshape(len(images), rows, columns).numpy()
        return chosen

    @torch.no_grad()
    def _routing(self, images: Tensor, layer: int) -> Routing:
        module = copy.deepcopy(self.model_)  # the routing of this pass is not to stay in the fitted model
        layers = list(routed_layers(module).values())
        if not layers:
            raise ConfigError(f"model={self.model!r} has no experts; moeify= makes some of Linear blocks")
        module(images)
        routings = []
        for routed in layers:
            steps = getattr(routed, "iterations", 1)  # of a chain of experts, the last one
            routings += list(routed.routings)[steps - 1 :: steps]
        if not -len(routings) <= layer < len(routings):
            raise ConfigError(f"layer must be below the {len(routings)} blocks with experts, got {layer}")
        return routings[layer]
