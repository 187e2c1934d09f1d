"""Images in any form to tensors ``(N, C, H, W)``, their checks, and the range of their pixels."""

# Shapes: N images, C channels, H height, W width

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from moeapps.core.errors import DataError, FileFormatError
from moeapps.vision.folders import read_images, stack_images
from moeapps.vision.reading import Transform, read_image, resize_centre, resize_part

__all__ = [
    "CentreCrop",
    "ImageSpec",
    "PixelRange",
    "as_images",
    "channel_statistics",
    "pad_to",
    "refuse_other_scale",
    "to_float",
]

CHANNELS = (1, 3, 4)
IMAGES_PER_CHUNK = 4096  # converted to float64 together


class CentreCrop:
    """Resizes the shorter side and crops the centre, as timm does in evaluation, but never makes more than the crop.

    Parameters
    ----------
    size : int
        Side of the result in pixels.
    fraction : float, default=1.0
        ``size`` as a fraction of the side that images are resized to.
    """

    def __init__(self, size: int, fraction: float = 1.0) -> None:
        self.size, self.side = size, math.floor(size / fraction)

    def __call__(self, image: Image.Image) -> Tensor:
        """Image to uint8 tensor ``(C, H, W)``."""
        short, long = min(image.size), max(image.size)
        longer = int(self.side * long / short)  # torchvision's rounding, here and for the corner
        resized = (self.side, longer) if image.width <= image.height else (longer, self.side)
        left, top = (round((side - self.size) / 2.0) for side in resized)
        part = resize_part(image, resized, (left, top), (self.size, self.size))
        return torch.from_numpy(np.atleast_3d(np.array(part)).transpose(2, 0, 1).copy())


@dataclass(frozen=True)
class ImageSpec:
    """What a network has to know about its images.

    Attributes
    ----------
    shape : tuple[int, int, int]
        Channels, height, width.
    classes : tuple[str, ...]
        Names of the classes, in the order of their codes.
    mean : tuple[float, ...]
        Mean of each channel, as :func:`to_float` gives it.
    scale : tuple[float, ...]
        Standard deviation of each channel.
    crop : float or None
        Of images that a training read from a folder and evaluated: the part that was cropped, as in
        :class:`CentreCrop`.
    """

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    crop: float | None = None

    def state(self) -> dict[str, Any]:
        """The fields as JSON values; without ``crop`` where there is none."""
        known = {name: value for name, value in vars(self).items() if value is not None}
        return {name: value if name == "crop" else list(value) for name, value in known.items()}

    def transform(self) -> Transform | None:
        """How the training read an image file that it evaluated; None where it got arrays."""
        return None if self.crop is None else CentreCrop(self.shape[1], self.crop)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "ImageSpec":
        """Undo :meth:`state`.

        Raises
        ------
        FileFormatError
            If these are not the fields of a spec.
        """
        shape, classes, mean, scale = (tuple(state[name]) for name in ("shape", "classes", "mean", "scale"))
        crop = state.get("crop")
        sides = len(shape) == 3 and all(type(side) is int and side > 0 for side in shape)
        if not sides or shape[0] not in CHANNELS or not all(isinstance(name, str) for name in classes):
            raise FileFormatError(f"images of shape {shape} with {len(classes)} classes: it is damaged")
        for values in (mean, scale):
            if len(values) != shape[0] or not all(type(v) in (int, float) and math.isfinite(v) for v in values):
                raise FileFormatError(f"channel statistics {mean} and {scale} of {shape[0]} channels: it is damaged")
        if min(scale) <= 0:
            raise FileFormatError(f"a channel has scale {min(scale)}: it is damaged")
        if crop is not None and not (type(crop) in (int, float) and 0.1 <= crop <= 1 and shape[1] == shape[2]):
            raise FileFormatError(f"images of shape {shape} are cropped to {crop!r}: it is damaged")
        return cls((shape[0], shape[1], shape[2]), classes, mean, scale, crop)

    @classmethod
    def of(cls, images: Tensor, classes: Any) -> "ImageSpec":
        """Spec of images ``(N, C, H, W)``, with their channel statistics."""
        mean, scale = channel_statistics(images)
        shape = tuple(images.shape[1:])
        return cls((shape[0], shape[1], shape[2]), tuple(map(str, classes)), tuple(mean), tuple(scale))


def as_images(
    X: Any,
    *,
    channels: int | None = None,
    size: int | None = None,
    shape: tuple[int, int, int] | None = None,
    scale_depth: bool = True,
    transform: Transform | None = None,
) -> Tensor:
    """Check images and bring them to ``(N, C, H, W)``, uint8 or float32.

    Parameters
    ----------
    X : object
        Array or tensor ``(N, H, W)``, ``(N, C, H, W)`` or ``(N, H, W, C)`` with 1, 3 or 4 channels; or a sequence of
        images: arrays, tensors, images of Pillow, paths, contents of files or open files. uint8 stays uint8, bool
        becomes 0 and 255, uint16 is divided by 65,535; every other number is kept, as float32. Where channels may come
        first or last, the layout of ``shape`` counts, then that of square images, then ``(N, C, H, W)``.
    channels : int, optional
        Number of channels to convert files and images of Pillow to. When None it is 3, but 1 or 4 where all are images
        of Pillow that are grey, or RGBA.
    size : int, optional
        The shorter side of images of another size is resized to this and the centre is cropped; None refuses images of
        different sizes.
    shape : tuple[int, int, int], optional
        Channels, height and width that are expected. Images that have it are not resized.
    scale_depth : bool, default=True
        Whether uint16 is divided by 65,535; False keeps its numbers.
    transform : callable, optional
        What reads files and images of Pillow, and resizes arrays, in place of resizing to ``size``.

    Raises
    ------
    DataError
        If it is none of these, empty, smaller than 2 x 2, or has a value that is not finite.
    """
    entries = _entries(X)
    if entries is None:
        images = _from_array(X, shape, scale_depth)
        if size is not None and tuple(images.shape[1:]) != shape and tuple(images.shape[2:]) != (size, size):
            resized = [_resized(image, size, transform) for image in images]
            images = stack_images(((f"image {i}", image) for i, image in enumerate(resized)), len(resized))
        return images
    channels = _channels_of(entries) if channels is None else channels
    if not any(_is_array(entry) for entry in entries):
        return _refuse_tiny(read_images(entries, channels, size, transform=transform))
    return _refuse_tiny(_from_sequence(entries, channels, size, shape, scale_depth, transform))


def _entries(X: Any) -> list[Any] | None:
    """Images one by one, where ``X`` is a sequence of them that is no array of numbers."""
    if isinstance(X, _FILES) or hasattr(X, "read"):
        raise DataError(f"expected images, got one {type(X).__name__}: give a list of them")
    if isinstance(X, Tensor) or not isinstance(X, Sequence | np.ndarray | pd.Series | pd.Index):
        return None
    if isinstance(X, np.ndarray) and (X.ndim != 1 or X.dtype.kind not in "OUS"):
        return None
    entries = list(X)
    if not any(_is_array(entry) or isinstance(entry, _FILES) or hasattr(entry, "read") for entry in entries):
        return None  # nested lists of numbers, or nothing
    return entries


_FILES = (str, Path, bytes, bytearray, memoryview, Image.Image)


def _channels_of(entries: list[Any]) -> int:
    modes = {entry.mode if isinstance(entry, Image.Image) else "RGB" for entry in entries}
    if modes == {"RGBA"}:
        return 4
    return 1 if modes <= {"1", "L", "F", "I", "I;16", "I;16B", "I;16L", "I;16N"} else 3


def _is_array(entry: Any) -> bool:
    return isinstance(entry, np.ndarray | Tensor) and entry.ndim >= 1


def _from_sequence(
    entries: list[Any],
    channels: int,
    size: int | None,
    shape: tuple[int, int, int] | None,
    scale_depth: bool,
    transform: Transform | None,
) -> Tensor:
    """Images one by one, of which some are arrays."""
    arrays_only = [_to_numpy(entry) for entry in entries if _is_array(entry)]
    dtypes = {array.dtype for array in arrays_only}
    if len(arrays_only) < len(entries) and dtypes != {np.dtype(np.uint8)}:
        raise DataError("arrays among image files must be uint8: the scale of other numbers is not known")
    if len(dtypes) > 1 and not all(dtype.kind == "f" for dtype in dtypes):
        raise DataError(f"images are of different types ({', '.join(sorted(map(str, dtypes)))}): their scales differ")

    def arrays() -> Iterator[tuple[str, NDArray[Any]]]:
        for i, entry in enumerate(entries):
            name = f"image {i}"
            if not _is_array(entry):
                yield name, read_image(entry, channels, size, name, transform)
                continue
            try:
                image = _from_array(_to_numpy(entry)[None], shape, scale_depth)[0]
            except DataError as error:
                raise DataError(f"{name}: {error}") from None
            fits = size is None or tuple(image.shape) == shape or tuple(image.shape[1:]) == (size, size)
            yield name, image.numpy() if fits else _resized(image, size or 0, transform)

    return stack_images(arrays(), len(entries))


def _from_array(X: Any, shape: tuple[int, int, int] | None, scale_depth: bool) -> Tensor:
    array = _to_numpy(X)
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and _channels_last(array.shape[1:], shape):
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] not in CHANNELS:
        raise DataError(
            f"expected images of shape (N, H, W), (N, C, H, W) or (N, H, W, C) with 1, 3 or 4 channels, "
            f"got {tuple(np.shape(X))}"
        )
    if len(array) == 0:
        raise DataError("there is no image")
    if min(array.shape[2:]) < 2:
        raise DataError(f"images are {array.shape[2]} x {array.shape[3]} pixels, expected at least 2 x 2")
    if array.dtype.kind not in "fiub":
        raise DataError(f"images must be uint8 or numbers, got {array.dtype}")
    if np.ma.isMaskedArray(X) and np.ma.is_masked(X):
        raise DataError("images have masked pixels: fill them first")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype == np.uint16 and scale_depth:
        array = (array / np.float64(65535)).astype(np.float32)
    elif array.dtype != np.uint8:
        with np.errstate(over="ignore"):  # what exceeds float32 becomes infinite, and is refused
            array = array.astype(np.float32)
        finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
        if not finite.all():
            raise DataError(f"image {int((~finite).argmax())} has a pixel that is NaN or infinite")
    return torch.from_numpy(np.ascontiguousarray(array))


def _to_numpy(X: Any) -> NDArray[Any]:
    if isinstance(X, Tensor):
        X = X.detach().cpu()
        return (X.float() if X.dtype == torch.bfloat16 else X).numpy()  # numpy has no bfloat16
    return np.asarray(X)


def _channels_last(sides: tuple[int, ...], shape: tuple[int, int, int] | None) -> bool:
    """Whether images of these three sides are ``(H, W, C)`` and not ``(C, H, W)``."""
    first, last = sides[0] in CHANNELS, sides[2] in CHANNELS
    if first != last or not first:
        return last
    if shape is not None and shape != sides and shape == (sides[2], sides[0], sides[1]):
        return True
    return shape != sides and min(sides[:2]) > 1 and sides[0] == sides[1] != sides[2]


def _resized(image: Tensor, size: int, transform: Transform | None) -> NDArray[Any]:
    """An image ``(C, H, W)`` with its shorter side resized and its centre cropped, as an image file would be."""
    array = image.numpy()

    def resized(picture: Image.Image) -> NDArray[Any]:  # (C, H, W)
        if transform is not None:
            return transform(picture).numpy()
        return np.atleast_3d(np.asarray(resize_centre(picture, size))).transpose(2, 0, 1)

    if array.dtype == np.uint8:
        # all channels at once, as for files, since Pillow weights colours by the fourth channel, transparency
        picture = Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))
        return resized(picture)
    bands = [resized(Image.fromarray(band))[0] for band in array]
    return np.stack(bands).clip(array.min(), array.max())  # bicubic interpolation overshoots


def _refuse_tiny(images: Tensor) -> Tensor:
    if min(images.shape[2:]) < 2:
        raise DataError(f"images are {images.shape[2]} x {images.shape[3]} pixels, expected at least 2 x 2")
    return images


@dataclass(frozen=True)
class PixelRange:
    """The pixels that a model was fitted on, to which those of a prediction are held.

    Attributes
    ----------
    low, high : float
        Smallest and largest pixel, uint8 divided by 255.
    whole : bool
        Whether they were uint8.
    """

    low: float
    high: float
    whole: bool

    def __post_init__(self) -> None:
        numbers = all(type(value) in (int, float) for value in (self.low, self.high))
        if not (numbers and self.low <= self.high and isinstance(self.whole, bool)):
            raise FileFormatError(f"pixels from {self.low!r} to {self.high!r}: it is damaged")

    @classmethod
    def of(cls, images: Tensor) -> "PixelRange":
        """Range of images ``(N, C, H, W)``."""
        low, high = to_float(torch.stack([images.min(), images.max()])).tolist()
        return cls(low, high, images.dtype == torch.uint8)

    @staticmethod
    def is_by_depth(spec: ImageSpec) -> bool:
        """Whether images of a spec lie between 0 and 1, as far as mean and standard deviation can tell."""
        return all(0 <= mean <= 1 and scale <= 0.5 for mean, scale in zip(spec.mean, spec.scale, strict=True))

    @property
    def by_depth(self) -> bool:
        """Whether pixels lie between 0 and 1, as all image files and uint8 do once they are scaled by their depth."""
        return self.whole or (self.low >= 0 and self.high <= 1)

    def check(self, images: Tensor) -> None:
        """Compare images of a prediction with those of the fit.

        Raises
        ------
        DataError
            If their scale is another one. Where that is likely but not certain, it is a warning.
        """
        new = PixelRange.of(images)
        if new.whole and self.by_depth and (self.whole or new.high > 1 / 255):
            return  # both are scaled by their depth; dark images may be dark
        if new.whole and not self.by_depth:
            raise DataError(
                f"images are uint8, which is divided by 255; the model was fitted on numbers from {self.low:g} to "
                f"{self.high:g}: give numbers of that scale"
            )
        low, high = (0.0, 1.0) if self.by_depth else (self.low, self.high)
        refuse_other_scale(max(-new.low, new.high), max(-self.low, self.high))
        span = max(high - low, 1e-12)
        outside = max(new.high - high, low - new.low) / span
        text = f"pixels lie between {new.low:g} and {new.high:g}, those of training between {low:g} and {high:g}"
        hint = "uint8 is divided by 255, floats are not"
        if outside > 2:
            raise DataError(f"{text}: {hint}")
        if outside > 0.25:
            warnings.warn(f"{text}: is the scale the same? {hint[0].upper()}{hint[1:]}", stacklevel=4)
        elif not self.by_depth and new.low >= 0 and new.high <= 1 and (high > 2 or low < -0.25):
            warnings.warn(f"{text}: were they scaled to [0, 1], and those of training not?", stacklevel=4)


def refuse_other_scale(largest: float, fitted: float) -> None:
    """Refuse pixels whose largest absolute value is far from that of training.

    Raises
    ------
    DataError
        If it is more than 20 times larger or smaller: the user normalised one of the two and not the other.
    """
    if largest > 20 * max(fitted, 1e-12) or (20 * largest < fitted and largest > 0):
        raise DataError(f"pixels reach {largest:g}, those of training {fitted:g}: uint8 is divided by 255, floats not")


def to_float(images: Tensor) -> Tensor:
    """Floating-point images: uint8 is divided by 255, other images are returned as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation (1 for a constant) of each channel over all pixels of images ``(N, C, H, W)``."""
    total = squares = torch.zeros(images.shape[1], dtype=torch.float64)
    for part in images.split(IMAGES_PER_CHUNK):
        values = to_float(part).double()
        total = total + values.sum(dim=(0, 2, 3))
        squares = squares + values.square().sum(dim=(0, 2, 3))
    count = images.numel() / images.shape[1]
    mean = total / count
    scale = (squares / count - mean.square()).clamp(min=0).sqrt()
    return mean.tolist(), [
        value if value > 1e-6 * (1 + abs(m)) else 1.0 for value, m in zip(scale.tolist(), mean, strict=True)
    ]


def pad_to(images: Tensor, height: int, width: int) -> Tensor:
    """Pad images ``(N, C, H, W)`` with zeros on all sides to the given height and width."""
    down, right = height - images.shape[2], width - images.shape[3]
    if not (down or right):
        return images
    return torch.nn.functional.pad(images, (right // 2, right - right // 2, down // 2, down - down // 2))
