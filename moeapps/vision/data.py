"""Data modules of images: arrays, public data sets by name, folders of files."""

# Shapes: N images, C channels, H height, W width

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import Dataset

from moeapps.core.checks import check_one_of, check_proper_fraction, check_sizes
from moeapps.core.config import as_arguments, takes
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.loading import ResumableLoader, identity_collate, make_loader
from moeapps.core.splits import hold_out
from moeapps.vision.datasets import LabelledImages, load_images
from moeapps.vision.folders import FolderImages
from moeapps.vision.images import CentreCrop, ImageSpec
from moeapps.vision.listing import find_images, list_images
from moeapps.vision.reading import MODES, Transform

__all__ = ["ImageArrays", "ImageDataModule", "ImageFolderData", "LoadingConfig", "PublicImageData", "make_transform"]


def crop_fraction(side: int) -> float:
    """Part of an image that evaluation crops; of small ones all: ImageNet's crops would leave too little of them."""
    return 1.0 if side <= 64 else 0.9


def make_transform(size: tuple[int, int, int], training: bool, auto_augment: str | None = None) -> Transform:
    """A transform of timm: in training random crops, flips and a policy, otherwise resizing and a centre crop.

    Parameters
    ----------
    size : tuple[int, int, int]
        Channels, height, width of the result, which is uint8.
    training : bool
        Whether it is for training.
    auto_augment : str, optional
        A policy as timm spells it (``"rand-m9-mstd0.5"``, ``"augmix-m3-w3"``, ...).

    Raises
    ------
    ConfigError
        If timm has no such policy.
    """
    small = crop_fraction(min(size[1:])) == 1.0
    if not training and size[1] == size[2]:
        return CentreCrop(size[1], crop_fraction(size[1]))
    try:
        made: Transform = create_transform(
            size, is_training=training, auto_augment=auto_augment, interpolation="bicubic", normalize=False,
            crop_pct=crop_fraction(min(size[1:])), scale=(0.6, 1.0) if small else None,
        )  # fmt: skip
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        raise ConfigError(
            f"{auto_augment!r} is no augmentation: none, shift, shift_flip, or a policy of timm ({error})"
        ) from None
    return made


class ImageArrays(Dataset):
    """Data set of images in memory.

    Parameters
    ----------
    images : Tensor
        Images ``(N, C, H, W)``.
    labels : Tensor
        Codes of their classes ``(N,)``, int64.
    transform : callable, optional
        From a PIL image to a tensor ``(C, H, W)``, for uint8 images.

    Raises
    ------
    ConfigError
        If there is a transform and the images are not uint8.
    """

    def __init__(self, images: Tensor, labels: Tensor, transform: Transform | None = None) -> None:
        if transform is not None and images.dtype != torch.uint8:
            raise ConfigError(f"auto_augment needs uint8 images, got {images.dtype}")
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Images ``(B, C, H, W)`` and labels ``(B,)`` of a batch, by one indexing."""
        chosen = torch.as_tensor(indices)
        images = self.images[chosen]
        if self.transform is not None:
            mode = MODES[images.shape[1]]
            pictures = (image.squeeze(0) if mode == "L" else image.permute(1, 2, 0) for image in images)
            images = torch.stack([self.transform(Image.fromarray(picture.numpy(), mode)) for picture in pictures])
        return images, self.labels[chosen]


@dataclass(frozen=True)
class LoadingConfig:
    """How images are loaded.

    Parameters
    ----------
    batch_size : int, default=128
        Images per training step.
    num_workers : int, default=0
        Number of processes that load images; 0 loads them in the main process.
    seed : int, default=0
        Seed of the order of training images, and of the split where a part is held out.
    """

    batch_size: int = 128
    num_workers: int = 0
    seed: int = 0


class ImageDataModule(L.LightningDataModule):
    """Batches ``(images, labels)`` of data sets that are given, or that a subclass makes in ``setup``.

    Takes the fields of :class:`LoadingConfig` as further arguments.

    Parameters
    ----------
    train, val, test, predict : Dataset, optional
        Data of each stage; without ``val`` there is no validation.
    spec : ImageSpec, optional
        Shape, classes and channel statistics of the images; a module reads it.
    """

    @takes(LoadingConfig)
    def __init__(
        self,
        train: Dataset | None = None,
        val: Dataset | None = None,
        test: Dataset | None = None,
        predict: Dataset | None = None,
        spec: ImageSpec | None = None,
        loading: LoadingConfig = LoadingConfig(),
    ) -> None:
        super().__init__()
        self.batch_size, self.num_workers, self.seed = loading.batch_size, loading.num_workers, loading.seed
        check_sizes(batch_size=self.batch_size)
        self.parts = {"train": train, "val": val, "test": test, "predict": predict}
        self.spec = spec

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled batches. An incomplete last batch is dropped, unless it is the only one."""
        data = self._part("train")
        whole = len(data) >= self.batch_size  # type: ignore[arg-type]
        # a data set of the user's own may augment, too
        fixed = isinstance(data, ImageArrays) and data.transform is None
        return self._loader(data, self.batch_size, shuffle=True, drop_last=whole, random_reads=not fixed)

    def val_dataloader(self) -> Any:
        """Batches in order; none without validation data."""
        return [] if self.parts["val"] is None else self._loader(self._part("val"), max(self.batch_size, 256))

    @property
    def has_test_data(self) -> bool:
        """Whether there are images to test on, after ``setup``."""
        return self.parts["test"] is not None

    def test_dataloader(self) -> ResumableLoader:
        """Batches in order."""
        return self._loader(self._part("test"), max(self.batch_size, 256))

    def predict_dataloader(self) -> ResumableLoader:
        """Batches in order."""
        return self._loader(self._part("predict"), max(self.batch_size, 256))

    def _part(self, name: str) -> Dataset:
        data = self.parts[name]
        if data is None:
            raise ConfigError(f"there is nothing to {name} on: set {name}")
        return data

    def _loader(self, data: Dataset, batch_size: int, **options: Any) -> ResumableLoader:
        whole = identity_collate if isinstance(data, ImageArrays) else None  # it returns whole batches
        return make_loader(
            data, batch_size, seed=self.seed, num_workers=self.num_workers, collate_fn=whole, **options
        )  # fmt: skip


class PublicImageData(ImageDataModule):
    """A public set of images by name, for ``moeapps fit``.

    Takes the fields of :class:`LoadingConfig` as further arguments.

    Parameters
    ----------
    name : {"digits", "cifar10", "cifar100", "mnist", "fashion_mnist"}, default="digits"
        Which set.
    path : str, optional
        Folder or archive of its files, as in :func:`load_images`. Not for digits.
    download : bool, default=False
        Whether torchvision may download them to ``path``.
    validation_fraction : float, default=0.1
        Fraction of the training images that is held out for validation, above 0 and at most 1.
    auto_augment : str, optional
        A policy of timm for the training images (``"rand-m9-mstd0.5"``).

    Raises
    ------
    ConfigError
        If an argument is impossible.
    """

    @takes(LoadingConfig)
    def __init__(
        self,
        name: str = "digits",
        path: str | None = None,
        download: bool = False,
        validation_fraction: float = 0.1,
        auto_augment: str | None = None,
        loading: LoadingConfig = LoadingConfig(),
    ) -> None:
        super().__init__(**as_arguments(loading))
        check_proper_fraction(validation_fraction=validation_fraction)
        if name != "digits" and path is None:
            raise ConfigError(f"{name} is not part of the package: give its folder as path (download: true fetches it)")
        self.set_name, self.path, self.download = name, path, download
        self.validation_fraction, self.auto_augment = validation_fraction, auto_augment

    def setup(self, stage: str) -> None:
        """Read the images, at the first call."""
        if self.spec is not None:
            return
        train, test = load_images(self.set_name, self.path, self.download, self.seed)
        learned, held = hold_out(len(train), self.validation_fraction, self.seed, train.labels.numpy())
        part, val = train.at(learned), train.at(held)
        self.spec = ImageSpec.of(part.images, train.classes)
        transform = None
        if self.auto_augment is not None:
            transform = make_transform(self.spec.shape, True, self.auto_augment)
        self.parts["train"] = ImageArrays(part.images, part.labels, transform)
        self.parts["val"], self.parts["test"] = _plain(val), _plain(test)
        self.parts["predict"] = self.parts["test"]


def _plain(images: LabelledImages) -> ImageArrays:
    return ImageArrays(images.images, images.labels)


@dataclass(frozen=True)
class FolderLoadingConfig(LoadingConfig):
    """As :class:`LoadingConfig`, with processes that decode files.

    Parameters
    ----------
    batch_size : int, default=128
        Images per training step.
    num_workers : int, default=4, or the number of processors where there are fewer
        Number of processes that load images; 0 loads them in the main process.
    seed : int, default=0
        Seed of the order of training images, and of the split where a part is held out.
    """

    num_workers: int = min(4, os.cpu_count() or 1)


class ImageFolderData(ImageDataModule):
    """Your own images, one folder per class, read as they are needed; for ``moeapps fit``.

    Training images get timm's random crops and flips, the others are resized and cropped at the centre. Channels are
    standardised by mean 0.5 and scale 0.5. Files are read and left out as in
    :func:`~moeapps.vision.listing.find_images`; images of more than 8 bits are rounded to 8. Takes the fields of
    :class:`FolderLoadingConfig` as further arguments.

    Parameters
    ----------
    train, val, test : str, optional
        Folders with one folder of images per class. Without ``val`` a part of ``train`` is held out.
    predict : str, optional
        Folder of images to predict, in subfolders or not.
    image_size : int, default=224
        Height and width of the images that the network gets.
    channels : {1, 3, 4}, default=3
        1 (grey), 3 (RGB) or 4 (RGBA).
    validation_fraction : float, default=0.1
        Fraction of ``train`` that is held out for validation where ``val`` is None, above 0 and at most 1.
    auto_augment : str or None, default="rand-m9-mstd0.5"
        A policy of timm for the training images.

    Raises
    ------
    ConfigError
        If an argument is impossible.
    """

    @takes(FolderLoadingConfig)
    def __init__(
        self,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        predict: str | None = None,
        image_size: int = 224,
        channels: int = 3,
        validation_fraction: float = 0.1,
        auto_augment: str | None = "rand-m9-mstd0.5",
        loading: FolderLoadingConfig = FolderLoadingConfig(),
    ) -> None:
        super().__init__(**as_arguments(loading))
        check_sizes(image_size=image_size)
        check_one_of("channels", channels, MODES)
        check_proper_fraction(validation_fraction=validation_fraction)
        self.folders = {"train": train, "val": val, "test": test, "predict": predict}
        self.shape, self.channels = (channels, image_size, image_size), channels
        self.validation_fraction = validation_fraction
        self._transforms = {
            True: make_transform(self.shape, True, auto_augment),
            False: make_transform(self.shape, False),
        }

    def setup(self, stage: str) -> None:
        """List the files of the stage."""
        if stage == "predict":
            self.parts["predict"] = self._unlabelled()
        if stage != "fit" and self.folders["train"] is None:
            if stage == "test":
                self.parts["test"] = self._labelled("test", None)
            return
        if self.spec is not None:
            return
        if self.folders["train"] is None:
            raise ConfigError("there is nothing to train on: set train to a folder with one folder of images per class")
        files, codes, classes = find_images(self.folders["train"])
        if len(classes) < 2:
            raise DataError(f"{self.folders['train']} has one class: at least two are needed")
        held: NDArray[Any] = np.array([], dtype=np.int64)
        learned = np.arange(len(files))
        if self.folders["val"] is None:
            learned, held = hold_out(len(files), self.validation_fraction, self.seed, np.array(codes))
        self.parts["train"] = self._images([files[i] for i in learned], [codes[i] for i in learned], True, files)
        if self.folders["val"] is None:
            self.parts["val"] = self._images([files[i] for i in held], [codes[i] for i in held], False, files)
        else:
            self.parts["val"] = self._labelled("val", classes)
        if self.folders["test"] is not None:
            self.parts["test"] = self._labelled("test", classes)
        half = (0.5,) * self.channels
        self.spec = ImageSpec(self.shape, tuple(classes), half, half, crop_fraction(self.shape[1]))

    def _images(
        self, files: list[Path], codes: list[Any], training: bool, among: list[Path] | None = None
    ) -> FolderImages:
        return FolderImages(files, codes, self._transforms[training], self.channels, among)

    def _labelled(self, part: str, classes: list[str] | None) -> FolderImages:
        folder = self.folders[part]
        if folder is None:
            raise ConfigError(
                f"there is nothing to {part} on: set {part} to a folder with one folder of images per class"
            )
        files, codes, names = find_images(folder)
        if classes is None:
            # Without a training folder the classes are those of the checkpoint, if one was loaded.
            module: Any = self.trainer.lightning_module if self.trainer is not None else None
            spec = getattr(module, "spec", None)
            classes = list(spec.classes) if spec is not None else names
        unknown = sorted(set(names) - set(classes))
        if unknown:
            raise DataError(f"{folder} has classes that training lacks: {', '.join(unknown)}")
        return self._images(files, [classes.index(names[code]) for code in codes], False)

    def _unlabelled(self) -> FolderImages:
        folder = self.folders["predict"]
        if folder is None or not Path(folder).is_dir():
            raise ConfigError(f"predict must be a folder of images, got {folder!r}")
        files = list_images(folder)
        return self._images(files, [str(path.relative_to(folder)) for path in files], False)
