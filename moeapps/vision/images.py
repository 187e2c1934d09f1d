"""Arrays of images in any layout to tensors ``(N, C, H, W)``, and their checks."""

# Shapes: N images, C channels, H height, W width

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moeapps.core.errors import DataError

__all__ = ["ImageSpec", "as_images", "channel_statistics", "pad_to", "to_float"]

CHANNELS = (1, 3, 4)
IMAGES_PER_CHUNK = 4096  # converted to float64 together


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
    """

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]

    def state(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {name: list(value) for name, value in vars(self).items()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "ImageSpec":
        """Undo :meth:`state`."""
        shape = tuple(state["shape"])
        return cls((shape[0], shape[1], shape[2]), *(tuple(state[name]) for name in ("classes", "mean", "scale")))

    @classmethod
    def of(cls, images: Tensor, classes: Any) -> "ImageSpec":
        """Spec of images ``(N, C, H, W)``, with their channel statistics."""
        mean, scale = channel_statistics(images)
        shape = tuple(images.shape[1:])
        return cls((shape[0], shape[1], shape[2]), tuple(map(str, classes)), tuple(mean), tuple(scale))


def as_images(X: Any) -> Tensor:
    """Check images and bring them to ``(N, C, H, W)``, uint8 or float32.

    Parameters
    ----------
    X : object
        ``(N, H, W)``, ``(N, C, H, W)`` or ``(N, H, W, C)`` with 1, 3 or 4 channels. uint8 stays uint8, every other
        number becomes float32.

    Raises
    ------
    DataError
        If it is none of these, empty, smaller than 2 x 2, or has a value that is not finite.
    """
    array = X.detach().cpu().numpy() if isinstance(X, Tensor) else np.asarray(X)
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1] not in CHANNELS and array.shape[3] in CHANNELS:
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
    if array.dtype.kind not in "fiu":
        raise DataError(f"images must be uint8 or numbers, got {array.dtype}")
    if array.dtype != np.uint8:
        array = array.astype(np.float32)
        finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
        if not finite.all():
            raise DataError(f"image {int((~finite).argmax())} has a pixel that is NaN or infinite")
    return torch.from_numpy(np.ascontiguousarray(array))


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
