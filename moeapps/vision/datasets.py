"""Public image data sets by name."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from moeapps.core.checks import check_one_of
from moeapps.core.errors import ConfigError, DataError
from moeapps.vision.folders import find_images, read_images, read_tar

__all__ = ["PUBLIC", "LabelledImages", "load_images"]

PUBLIC = {"digits": "", "cifar10": "CIFAR10", "cifar100": "CIFAR100", "mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
"""Names of the data sets, and of their classes in torchvision."""


@dataclass(frozen=True)
class LabelledImages:
    """Images in memory.

    Attributes
    ----------
    images : Tensor
        ``(N, C, H, W)``, uint8 or float32.
    labels : Tensor
        ``(N,)`` int64 codes.
    classes : list[str]
        Names of the classes.
    """

    images: Tensor
    labels: Tensor
    classes: list[str]

    def __len__(self) -> int:
        return len(self.images)

    def at(self, rows: np.ndarray) -> "LabelledImages":
        """Images of the given rows."""
        chosen = torch.from_numpy(rows)
        return LabelledImages(self.images[chosen], self.labels[chosen], self.classes)


def load_images(
    name: str, path: str | Path | None = None, download: bool = False, seed: int = 0
) -> tuple[LabelledImages, LabelledImages]:
    """Load a public data set: images to train on and images to test on.

    Parameters
    ----------
    name : str
        ``"digits"`` (scikit-learn's 1,797 of 8 x 8 pixels, a fifth for testing), ``"cifar10"``, ``"cifar100"``,
        ``"mnist"`` or ``"fashion_mnist"``.
    path : str or Path, optional
        Folder in which torchvision keeps the data set; or a folder or tar archive with ``train/<class>/<file>`` and
        ``test/<class>/<file>``. Not for digits.
    download : bool, default=False
        Whether torchvision may download missing files.
    seed : int, default=0
        Seed of the split of digits.

    Returns
    -------
    train, test : LabelledImages
        Both with the same classes.

    Raises
    ------
    ConfigError
        If the name is unknown, or a path is needed.
    DataError
        If files are missing or damaged.
    """
    check_one_of("name", name, PUBLIC)
    if name == "digits":
        return _digits(seed)
    if path is None:
        raise ConfigError(f"{name} is not part of the package: give its folder as path (download=True fetches it)")
    channels = 1 if "mnist" in name else 3
    if Path(path).is_file():
        parts = read_tar(path, channels)
        missing = {"train", "test"} - set(parts)
        if missing:
            raise DataError(f"{path} has no {' and no '.join(sorted(missing))} part")
        (train, names), (test, test_names) = parts["train"], parts["test"]
        classes = sorted(set(names))
        code = {name: i for i, name in enumerate(classes)}
        if not set(test_names) <= set(code):
            raise DataError(f"{path} has test images of classes that train lacks: {set(test_names) - set(code)}")
        return (
            LabelledImages(train, torch.tensor([code[name] for name in names]), classes),
            LabelledImages(test, torch.tensor([code[name] for name in test_names]), classes),
        )
    if (Path(path) / "train").is_dir():
        return _folder_part(Path(path) / "train", channels), _folder_part(Path(path) / "test", channels)
    return _torchvision(name, Path(path), download, True), _torchvision(name, Path(path), download, False)


def _digits(seed: int) -> tuple[LabelledImages, LabelledImages]:
    digits = load_digits()
    images = torch.from_numpy(digits.images.astype(np.float32) / 16)[:, None]  # pixels are 0 to 16
    whole = LabelledImages(images, torch.from_numpy(digits.target.astype(np.int64)), [str(i) for i in range(10)])
    rows = np.arange(len(images))
    train, test = train_test_split(rows, test_size=0.2, random_state=seed, stratify=digits.target)
    return whole.at(train), whole.at(test)


def _folder_part(folder: Path, channels: int) -> LabelledImages:
    files, codes, classes = find_images(folder)
    return LabelledImages(read_images(files, channels), torch.tensor(codes), classes)


def _torchvision(name: str, root: Path, download: bool, train: bool) -> LabelledImages:
    from torchvision import datasets

    try:
        loaded = getattr(datasets, PUBLIC[name])(root, train=train, download=download)
    except (RuntimeError, OSError) as error:
        raise DataError(f"{name} in {root}: {' '.join(str(error).split())}") from None
    images = torch.as_tensor(loaded.data)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
    return LabelledImages(images.contiguous(), torch.as_tensor(loaded.targets).long(), [str(c) for c in loaded.classes])
