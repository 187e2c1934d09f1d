"""Baselines for images: a small convolutional network, and estimators of scikit-learn on pixels."""

import math
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from timm.layers import ConvNormAct
from torch import nn
from torch.nn import functional as F

from moeapps.vision.augmentation import augmentation_for, augmented
from moeapps.vision.defaults import automatic
from moeapps.vision.images import as_images, to_float

__all__ = ["OnPixels", "SmallCNN"]


class SmallCNN(ClassifierMixin, BaseEstimator):
    """Six convolutions of 3 x 3, three of stride 2, and a linear layer.

    Trained in a plain loop with the epochs, batches, augmentation and schedule of
    :class:`~moeapps.vision.WideNetClassifier`.

    Parameters
    ----------
    random_state : int, default=0
        Seed.
    width : int, default=32
        Channels of the first two convolutions; twice and four times as many follow.
    max_epochs : int, optional
        Passes over the images; as many as WideNetClassifier has by itself when None, the default.
    """

    def __init__(self, random_state: int = 0, width: int = 32, max_epochs: int | None = None) -> None:
        self.random_state = random_state
        self.width = width
        self.max_epochs = max_epochs

    def _network(self, channels: int, classes: int) -> nn.Module:
        layers: list[nn.Module] = []
        for wide in (self.width, 2 * self.width, 4 * self.width):
            layers += [ConvNormAct(channels, wide, 3), ConvNormAct(wide, wide, 3, stride=2)]
            channels = wide
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))

    def fit(self, X: NDArray[Any], y: NDArray[Any]) -> Self:
        """Train on images."""
        torch.manual_seed(self.random_state)
        self.classes_, codes = np.unique(y, return_inverse=True)
        images, labels = to_float(as_images(X)), torch.from_numpy(codes)
        self.mean_, self.scale_ = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
        self.model_ = self._network(images.shape[1], len(self.classes_))
        auto = automatic(*images.shape[:2])
        size, epochs = min(int(auto["batch_size"]), len(images)), int(self.max_epochs or auto["max_epochs"])
        steps = epochs * (len(images) // size)
        optimizer = torch.optim.AdamW(self.model_.parameters(), lr=3e-3, weight_decay=0.05, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda s: (0.1 + 9 * s / steps) if s < 0.1 * steps else 0.55 + 0.45 * math.cos(math.pi * s / steps),
        )
        name = augmentation_for("auto", images.shape[1])
        for _ in range(epochs):
            for rows in torch.randperm(len(images))[: len(images) // size * size].split(size):
                batch = (augmented(images[rows], name) - self.mean_) / self.scale_
                loss = F.cross_entropy(self.model_(batch), labels[rows], label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        return self

    @torch.no_grad()
    def predict_proba(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Class probabilities, shape (n, K)."""
        images = (to_float(as_images(X)) - self.mean_) / self.scale_
        self.model_.eval()
        found: NDArray[np.float64] = (
            torch.cat([self.model_(part) for part in images.split(500)]).double().softmax(1).numpy()
        )
        return found

    def predict(self, X: NDArray[Any]) -> NDArray[Any]:
        """Most probable class of each image."""
        labels: NDArray[Any] = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return labels


class OnPixels(ClassifierMixin, BaseEstimator):
    """A classifier of scikit-learn whose features are the pixels.

    Parameters
    ----------
    classifier : estimator
        The classifier.
    """

    def __init__(self, classifier: Any) -> None:
        self.classifier = classifier

    def fit(self, X: NDArray[Any], y: NDArray[Any]) -> Self:
        """Train on images."""
        self.classifier.fit(self._pixels(X), y)
        self.classes_ = self.classifier.classes_
        return self

    def predict_proba(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Class probabilities, shape (n, K)."""
        found: NDArray[np.float64] = self.classifier.predict_proba(self._pixels(X))
        return found

    def predict(self, X: NDArray[Any]) -> NDArray[Any]:
        """Most probable class of each image."""
        labels: NDArray[Any] = self.classifier.predict(self._pixels(X))
        return labels

    @staticmethod
    def _pixels(X: NDArray[Any]) -> NDArray[Any]:
        pixels: NDArray[Any] = X.reshape(len(X), -1) / 255.0
        return pixels
