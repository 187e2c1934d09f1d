"""From what users have (arrays of any layout) to float tensors, and everything that is refused."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from moeapps.core.errors import DataError

__all__ = ["as_images", "normalise"]

CHANNELS = (1, 3, 4)


def as_images(X: Any) -> Tensor:
    """Images ``(N, C, H, W)``, float32.

    Args:
        X: ``(N, H, W)``, ``(N, C, H, W)`` or ``(N, H, W, C)`` with 1, 3 or 4 channels. uint8 is divided by 255; floats
            are taken as they are.

    Raises:
        DataError: If it is none of these, empty, smaller than 2 x 2, or has a value that is not finite.
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
    if array.dtype == np.uint8:
        images = array.astype(np.float32) / 255
    elif array.dtype.kind in "fiu":
        images = array.astype(np.float32)
    else:
        raise DataError(f"images must be uint8 or numbers, got {array.dtype}")
    finite = np.isfinite(images).reshape(len(images), -1).all(axis=1)
    if not finite.all():
        raise DataError(f"image {int((~finite).argmax())} has a pixel that is NaN or infinite")
    return torch.from_numpy(np.ascontiguousarray(images))


def normalise(images: Tensor, mean: Tensor, scale: Tensor, size: tuple[int, int]) -> Tensor:
    """Standardise the channels and pad to ``size`` with the mean, the image in the middle."""
    images = (images - mean[:, None, None]) / scale[:, None, None]
    height, width = size[0] - images.shape[2], size[1] - images.shape[3]
    if height or width:
        edges = (width // 2, width - width // 2, height // 2, height - height // 2)
        images = torch.nn.functional.pad(images, edges)
    return images
