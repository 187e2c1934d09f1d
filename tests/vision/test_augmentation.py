"""Rotations, sizes and shifts of whole batches, and what "auto" means."""

import math

import pytest
import torch

from moeapps.vision import augmentation
from moeapps.vision.augmentation import affine, augmentation_for, augmented


def centre_of_mass(images: torch.Tensor) -> torch.Tensor:
    """Row and column ``(N, 2)`` of the mean of the mass of images ``(N, 1, H, W)``, from the centre, in pixels."""
    mass = images[:, 0] / images[:, 0].sum(dim=(1, 2), keepdim=True)
    axes = [torch.arange(side) - (side - 1) / 2 for side in images.shape[2:]]
    return torch.stack([(mass.sum(2) * axes[0]).sum(1), (mass.sum(1) * axes[1]).sum(1)], dim=1)


def blob(height: int, width: int, row: float, column: float) -> torch.Tensor:
    """A round spot, ``(1, 1, H, W)``, at a place from the centre."""
    rows, columns = (torch.arange(side) - (side - 1) / 2 for side in (height, width))
    return torch.exp(-((rows[:, None] - row) ** 2 + (columns - column) ** 2) / 8)[None, None]


def test_images_are_shifted_by_at_most_an_eighth_of_each_side():
    places = centre_of_mass(affine(blob(48, 32, 0, 0).repeat(400, 1, 1, 1), flip=False))
    rows, columns = places.abs().amax(dim=0).tolist()
    assert 5 < rows < 6 / 0.9 + 4 / 0.9 * math.sin(math.radians(10))  # an eighth; smaller by a tenth, and rotated
    assert 3.4 < columns < 4 / 0.9 + 6 / 0.9 * math.sin(math.radians(10))
    assert places.mean(dim=0).abs().max() < 0.5


def test_a_rotation_keeps_distances_in_pixels_where_sides_differ(monkeypatch):
    monkeypatch.setattr(augmentation, "REACH", 0.0)
    monkeypatch.setattr(augmentation, "SCALE", 0.0)
    moved = centre_of_mass(affine(blob(64, 32, 16, 0).repeat(200, 1, 1, 1), flip=False))
    assert moved.norm(dim=1) == pytest.approx(torch.full((200,), 16.0), abs=0.15)
    angles = torch.atan2(moved[:, 1], moved[:, 0]).abs() * 180 / math.pi
    assert 8 < angles.max() < 10.3


def test_half_of_the_images_are_mirrored_and_only_where_asked():
    right = blob(32, 32, 0, 9).repeat(300, 1, 1, 1)
    mirrored = (centre_of_mass(affine(right, flip=True))[:, 1] < 0).float().mean()
    assert 0.4 < mirrored < 0.6
    assert (centre_of_mass(affine(right, flip=False))[:, 1] > 0).all()


def test_pixels_stay_within_those_of_the_image_and_colours_move_together():
    images = torch.randint(40, 200, (8, 3, 16, 16), dtype=torch.uint8)
    images[:, 1] = images[:, 0]
    found = augmented(images, "affine")
    assert (found.dtype, found.shape) == (torch.float32, images.shape)
    assert all(40 / 255 <= edge <= 200 / 255 for edge in (found.min(), found.max()))  # no black border
    torch.testing.assert_close(found[:, 0], found[:, 1])
    assert augmented(images, "none") is images


def test_auto_mirrors_colour_images_only():
    assert [augmentation_for("auto", channels) for channels in (1, 3, 4)] == ["affine", "affine_flip", "affine_flip"]
    assert augmentation_for("shift", 3) == "shift"
