"""Many image files at once: into one tensor, from tar archives, or as a data set that reads them as needed."""

# Shapes: N images, C channels, H height, W width

import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from moeapps.core.errors import DataError
from moeapps.vision.listing import LeftOut, find_images, is_hidden, list_images
from moeapps.vision.reading import ENDINGS, MODES, Source, Transform, open_image, read_image

__all__ = [
    "ENDINGS",
    "MODES",
    "FolderImages",
    "find_images",
    "list_images",
    "open_image",
    "read_images",
    "read_tar",
    "stack_images",
]

LOOKED_AT = 1000
"""Files after a broken one that are tried, too."""

LOOKING = 10.0
"""Seconds that this may take: 1,000 photographs of a camera take minutes."""


def read_images(
    files: Sequence[Source],
    channels: int = 3,
    size: int | None = None,
    names: Sequence[str] | None = None,
    transform: Transform | None = None,
) -> Tensor:
    """Read images into one tensor ``(N, C, H, W)``: uint8, or float32 in [0, 1] if one of them has more than 8 bits.

    Parameters
    ----------
    files : Sequence[str, Path, bytes, IO[bytes] or PIL.Image.Image]
        Paths, contents of files, open files, or images of Pillow.
    channels : int, default=3
        1, 3 or 4.
    size : int, optional
        The shorter side is resized to this and the centre is cropped; None if all images have one size.
    names : Sequence[str], optional
        Names of the files in errors; the paths when None.
    transform : callable, optional
        As in :func:`~moeapps.vision.reading.read_image`.

    Raises
    ------
    DataError
        If a file cannot be read, naming also some of the others, or has another size than the first.
    """
    if names is None:
        names = [str(file) if isinstance(file, str | Path) else f"image {i}" for i, file in enumerate(files)]

    def opened() -> Iterator[tuple[str, NDArray[Any]]]:  # only one decoded image is held beside the result
        for i, (name, file) in enumerate(zip(names, files, strict=True)):
            try:
                image = read_image(file, channels, size, name, transform)
            except DataError as error:
                raise DataError(f"{error}{_further_broken(files[i + 1 :], names[i + 1 :])}") from None
            yield name, image

    return stack_images(opened(), len(files))


def _further_broken(files: Sequence[Source], names: Sequence[str]) -> str:
    """The end of an error: which of the next files on disk cannot be read either, so that all are found at once."""
    broken = []
    end = time.monotonic() + LOOKING
    for name, file in list(zip(names, files, strict=True))[:LOOKED_AT]:
        if time.monotonic() > end:
            break
        try:
            if isinstance(file, str | Path):
                read_image(file)
        except DataError:
            broken.append(name)
    more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
    return f"; neither can {', '.join(broken[:5])}{more}: move them out of the folder" if broken else ""


def read_tar(path: str | Path, channels: int = 3, size: int | None = None) -> dict[str, tuple[Tensor, list[str]]]:
    """Read the images and class names of a tar archive with ``<part>/<class>/<file>``, by part, in memory.

    What is left out, as in :func:`find_images`, is a warning.

    Raises
    ------
    DataError
        If it is not such an archive, or a file in it cannot be read as an image.
    """
    parts: dict[str, tuple[list[tuple[str, NDArray[Any]]], list[str]]] = {}
    left_out = LeftOut(path)
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                file_path = PurePosixPath(member.name)
                names = file_path.parts
                if member.isdir():
                    continue
                hidden = [name for name in names if is_hidden(name)]  # also what lies in a hidden folder
                if hidden or not left_out.takes(file_path):
                    if hidden:
                        left_out.takes(PurePosixPath(hidden[0]))
                    continue
                if not member.isfile() or len(names) < 3:
                    left_out.add("not in <part>/<class>/", member.name)
                    continue
                file = archive.extractfile(member)
                assert file is not None
                images, classes = parts.setdefault(names[-3], ([], []))
                name = f"{path}: {member.name}"
                content = file.read()  # here, so that a damaged archive is not taken for a damaged image
                images.append((name, read_image(content, channels, size, name)))
                classes.append(names[-2])
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{path} cannot be read as an archive of images: {error}") from None
    if not parts:
        there = f"; it has {left_out}" if len(left_out) else ""
        raise DataError(f"{path} has no images in <part>/<class>/{there}")
    left_out.warn()
    return {part: (stack_images(images, len(images)), classes) for part, (images, classes) in parts.items()}


def stack_images(images: Iterable[tuple[str, NDArray[Any]]], count: int) -> Tensor:
    """Stack named images ``(C, H, W)`` of one size, uint8 or float32 in [0, 1]; one float makes all of them floats.

    Raises
    ------
    DataError
        Naming the first image of another size.
    """
    stack: NDArray[Any] | None = None
    for i, (name, array) in enumerate(images):
        if stack is None:
            stack = np.empty((count, *array.shape), dtype=array.dtype)
        if array.shape != stack.shape[1:]:
            raise DataError(
                f"{name} is {array.shape[1]} x {array.shape[2]} pixels, the first image {stack.shape[2]} x "
                f"{stack.shape[3]}: give image_size to resize them"
            )
        if array.dtype != stack.dtype:
            whole = stack.dtype == np.uint8
            stack = (stack / np.float32(255)).astype(np.float32) if whole else stack
            array = array if whole else array / np.float32(255)
        stack[i] = array
    if stack is None:
        raise DataError("there is no image")
    return torch.from_numpy(stack)


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
    channels : int, default=3
        1, 3 or 4.
    among : Sequence[Path], optional
        All files of the folder, of which ``files`` may be a part; ``files`` when None.

    Raises
    ------
    DataError
        On access, if a file cannot be read, naming also some of the others ``among`` which it is.
    """

    def __init__(
        self,
        files: list[Path],
        codes: list[int],
        transform: Callable[[Image.Image], Tensor],
        channels: int = 3,
        among: Sequence[Path] | None = None,
    ) -> None:
        self.files, self.codes, self.transform, self.channels = files, codes, transform, channels
        self.among = files if among is None else among

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        file = self.files[index]
        try:
            image = open_image(file, self.channels)
        except DataError as error:
            place = self.among.index(file)
            others = [*self.among[place + 1 :], *self.among[:place]]
            raise DataError(f"{error}{_further_broken(others, [str(other) for other in others])}") from None
        return self.transform(image), self.codes[index]
