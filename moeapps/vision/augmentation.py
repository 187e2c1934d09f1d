"""Random changes of training images, for whole batches and on their device."""

# Shapes: N images, C channels, H height, W width

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from moeapps.vision.images import to_float

__all__ = ["AUGMENTATIONS", "affine", "augmentation_for", "augmented", "shift_and_flip"]

AUGMENTATIONS = ("auto", "none", "shift", "shift_flip", "affine", "affine_flip")
"""What is done to batches of training images; every other name is a policy of timm, for single images."""

DEGREES, SCALE, REACH = 10.0, 0.1, 0.125
"""Largest rotation to either side, change of size, and shift as a fraction of the side."""


def augmentation_for(name: str, channels: int) -> str:
    """What ``"auto"`` means: shifts, rotations and changes of size, for colour images also flips."""
    if name != "auto":
        return name
    return "affine_flip" if channels >= 3 else "affine"


def augmented(images: Tensor, name: str) -> Tensor:
    """Training images ``(N, C, H, W)`` after one of :data:`AUGMENTATIONS`, uint8 as floats of 0 to 1 where needed."""
    if name in ("shift", "shift_flip"):
        return shift_and_flip(images, name == "shift_flip")
    if name in ("affine", "affine_flip"):
        return affine(to_float(images), name == "affine_flip")
    return images


def affine(images: Tensor, flip: bool) -> Tensor:
    """Rotate, scale and shift each image ``(N, C, H, W)``, and mirror half of them.

    Angles are up to 10 degrees, sizes change by up to a tenth, shifts are up to an eighth of a side, all uniform. New
    pixels are interpolated (bilinear); those from outside are the nearest ones at the border.
    """
    n, _, height, width = images.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, device=images.device) * 2 - 1

    angle, size, shift = uniform(n) * math.radians(DEGREES), 1 + uniform(n) * SCALE, uniform(n, 2) * 2 * REACH
    cosine, sine = torch.cos(angle) * size, torch.sin(angle) * size
    # coordinates go from -1 to 1 on either side, so that a rotation of pixels depends on the sides' ratio
    ratio = height / width
    mirror = torch.where(torch.rand(n, device=images.device) < 0.5, -1.0, 1.0) if flip else torch.ones_like(size)
    rows = torch.stack(
        [
            torch.stack([cosine * mirror, -sine * ratio, shift[:, 0]], dim=1),
            torch.stack([sine * mirror / ratio, cosine, shift[:, 1]], dim=1),
        ],
        dim=1,
    )  # (N, 2, 3)
    grid = F.affine_grid(rows.to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def shift_and_flip(images: Tensor, flip: bool) -> Tensor:
    """Shift each image ``(N, C, H, W)`` by up to an eighth of its size, padding with zeros; mirror half of them."""
    n, _, height, width = images.shape
    reach = max(1, min(height, width) // 8)
    windows = F.pad(images, (reach,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    down, right = torch.randint(2 * reach + 1, (2, n), device=images.device)
    images = windows[torch.arange(n, device=images.device), :, down, right]
    if flip:
        images = torch.where(torch.rand(n, 1, 1, 1, device=images.device) < 0.5, images.flip(3), images)
    return images
