"""Image files: folders with one subfolder per class, and tar archives of them."""

# Shapes: N images, C channels, H height, W width

import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from moeapps.core.errors import DataError

__all__ = ["FolderImages", "find_images", "open_image", "read_images", "read_tar"]

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


def open_image(source: str | Path | IO[bytes], channels: int = 3, name: str = "") -> Image.Image:
    """Read one image.

    Parameters
    ----------
    source : str or Path or IO[bytes]
        Path or open file.
    channels : int, default 3
        Number of channels to convert to: 1 (grey), 3 (RGB) or 4 (RGBA).
    name : str, default ""
        Name of the image in errors; the path when empty.

    Raises
    ------
    DataError
        If the file is not an image, is truncated, or decompresses to more pixels than Pillow allows.
    """
    try:
        with Image.open(source) as image:
            return image.convert(MODES[channels])
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{name or source} cannot be read as an image: {error}") from None


def find_images(folder: str | Path) -> tuple[list[Path], list[int], list[str]]:
    """List the files of a folder, the codes of their classes, and the classes (sorted names of its subfolders).

    Raises
    ------
    DataError
        If there is no such folder, it has no subfolders, or one of them has no image.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{folder} is not a folder: expected one folder of images per class in it")
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise DataError(f"{folder} has no folders: expected one folder of images per class in it")
    files: list[Path] = []
    codes: list[int] = []
    for code, name in enumerate(classes):
        images = sorted(p for p in (root / name).rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
        if not images:
            raise DataError(f"{root / name} has no image (files that end in {', '.join(ENDINGS)})")
        files += images
        codes += [code] * len(images)
    return files, codes, classes


def read_images(
    files: Sequence[Path | IO[bytes]], channels: int = 3, size: int | None = None, names: Sequence[str] | None = None
) -> Tensor:
    """Read files into one uint8 tensor ``(N, C, H, W)``.

    Parameters
    ----------
    files : Sequence[Path or IO[bytes]]
        Paths, or open files.
    channels : int, default 3
        1, 3 or 4.
    size : int, optional
        The shorter side is resized to this and the centre is cropped; None if all images have one size.
    names : Sequence[str], optional
        Names of the files in errors; the paths when None.

    Raises
    ------
    DataError
        If a file cannot be read, or has another size than the first.
    """
    names = [str(file) for file in files] if names is None else names
    # a generator: only one decoded image is held beside the result
    opened = ((name, open_image(file, channels, name)) for name, file in zip(names, files, strict=True))
    return _stack(opened, len(files), size)


def read_tar(path: str | Path, channels: int = 3, size: int | None = None) -> dict[str, tuple[Tensor, list[str]]]:
    """Read the images and class names of a tar archive with ``<part>/<class>/<file>``, by part, in memory.

    Raises
    ------
    DataError
        If it is not such an archive, or a file in it cannot be read as an image.
    """
    parts: dict[str, tuple[list[tuple[str, Image.Image]], list[str]]] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                names = Path(member.name).parts
                if not member.isfile() or len(names) < 3 or Path(member.name).suffix.lower() not in ENDINGS:
                    continue
                file = archive.extractfile(member)
                assert file is not None
                images, classes = parts.setdefault(names[-3], ([], []))
                images.append((f"{path}: {member.name}", open_image(file, channels, f"{path}: {member.name}")))
                classes.append(names[-2])
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{path} cannot be read as an archive of images: {error}") from None
    if not parts:
        raise DataError(f"{path} has no images in <part>/<class>/")
    return {part: (_stack(iter(images), len(images), size), classes) for part, (images, classes) in parts.items()}


def _stack(images: Iterator[tuple[str, Image.Image]], count: int, size: int | None) -> Tensor:
    stack: NDArray[np.uint8] | None = None
    for i, (name, image) in enumerate(images):
        array = np.atleast_3d(np.asarray(image if size is None else _fit(image, size))).transpose(2, 0, 1)
        if stack is None:
            stack = np.empty((count, *array.shape), dtype=np.uint8)
        if array.shape != stack.shape[1:]:
            raise DataError(
                f"{name} is {array.shape[1]} x {array.shape[2]} pixels, the first image {stack.shape[2]} x "
                f"{stack.shape[3]}: give image_size to resize them"
            )
        stack[i] = array
    assert stack is not None, "there is at least one image"
    return torch.from_numpy(stack)


def _fit(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to ``size`` and crop the centre."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    return image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))


class FolderImages(Dataset):
    """Data set that reads image files on access.

    Parameters
    ----------
    files : list[Path]
        Paths.
    codes : list[int]
        Codes of their classes.
    transform : Callable[[Image.Image], Tensor]
        From a PIL image to a tensor ``(C, H, W)``.
    channels : int, default 3
        1, 3 or 4.
    """

    def __init__(
        self, files: list[Path], codes: list[int], transform: Callable[[Image.Image], Tensor], channels: int = 3
    ) -> None:
        self.files, self.codes, self.transform, self.channels = files, codes, transform, channels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return self.transform(open_image(self.files[index], self.channels)), self.codes[index]
