"""Batches of images with augmentation."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from moeapps.core.loading import ResumableLoader, as_it_is, make_loader

__all__ = ["ImageArrays", "ImageDataModule", "make_augmentation"]

AUGMENTATIONS = ("none", "shift", "shift_flip")


def make_augmentation(name: str, size: tuple[int, int]) -> Callable[[Tensor], Tensor] | None:
    """Random shifts by an eighth of the size, and flips."""
    if name == "none":
        return None
    steps: list[Any] = [v2.RandomCrop(size, padding=max(1, min(size) // 8))]
    return v2.Compose([*steps, v2.RandomHorizontalFlip()] if name == "shift_flip" else steps)


class ImageArrays(Dataset):
    """Images in memory, each augmented when it is asked for.

    Args:
        images: ``(N, C, H, W)``.
        labels: ``(N,)`` int64.
        augment: Applied to each image ``(C, H, W)``; None for nothing.
    """

    def __init__(self, images: Tensor, labels: Tensor, augment: Callable[[Tensor], Tensor] | None = None) -> None:
        self.images, self.labels, self.augment = images, labels, augment

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index]
        return (image if self.augment is None else self.augment(image)), self.labels[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Return a whole batch."""
        chosen = torch.as_tensor(indices)
        images = self.images[chosen]
        if self.augment is not None:
            images = torch.stack([self.augment(image) for image in images])
        return images, self.labels[chosen]


class ImageDataModule(L.LightningDataModule):
    """Training and validation batches ``(images, labels)``.

    Args:
        train: Images ``(N, C, H, W)``, standardised, and labels ``(N,)``.
        val: The same to validate on; None for no validation.
        batch_size: Images per step.
        augment: ``"none"``, ``"shift"`` or ``"shift_flip"``.
        seed: Seed of the order.
        num_workers: Processes that load.
    """

    def __init__(
        self,
        train: tuple[Tensor, Tensor],
        val: tuple[Tensor, Tensor] | None = None,
        batch_size: int = 128,
        augment: str = "none",
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        size = (train[0].shape[2], train[0].shape[3])
        self.train = ImageArrays(*train, make_augmentation(augment, size))
        self.val = None if val is None else ImageArrays(*val)
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled batches; an incomplete last one is left out where there is a complete one."""
        return make_loader(
            self.train,
            self.batch_size,
            shuffle=True,
            seed=self.seed,
            num_workers=self.num_workers,
            drop_last=len(self.train) >= self.batch_size,
            collate_fn=as_it_is,
        )

    def val_dataloader(self) -> ResumableLoader:
        """Batches in order."""
        assert self.val is not None
        return make_loader(self.val, max(self.batch_size, 256), collate_fn=as_it_is)
