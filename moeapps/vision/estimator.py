"""What the image estimators share: checks, the split, labels, training, and what a saved file holds."""

# Shapes: N images, C channels, H height, W width, K classes

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from moeapps.core.callbacks import seed_everything
from moeapps.core.checks import check_below_one, check_sizes
from moeapps.core.errors import DataError, FileFormatError
from moeapps.core.estimator import LightningEstimator, resolve_device
from moeapps.core.labels import class_labels, classes_and_codes, classes_from_json, labels_to_json
from moeapps.core.splits import hold_out
from moeapps.vision.data import ImageArrays, ImageDataModule
from moeapps.vision.images import ImageSpec
from moeapps.vision.module import SpecModule

__all__ = ["ImageEstimator"]


class ImageEstimator(LightningEstimator):
    """Base of the estimators of images.

    A subclass stores these constructor arguments besides those of
    :class:`~moeapps.core.estimator.LightningEstimator`: ``batch_size`` and ``validation_fraction``.

    Attributes
    ----------
    classes_ : array of shape (K,), or None
        Class labels; None if it was fitted without.
    spec_ : ImageSpec
        Shape of the images, names of their classes, and mean and standard deviation of their channels.
    """

    batch_size: int
    validation_fraction: float
    classes_: NDArray[Any] | None
    spec_: ImageSpec
    n_iter_: int

    def _check_settings(self) -> None:
        """Refuse what can be refused before the images are looked at."""
        check_sizes(batch_size=self.batch_size)
        check_below_one(validation_fraction=self.validation_fraction)

    def _setting(self, name: str) -> Any:
        """An argument, or what it is for these images where it is "auto"."""
        return getattr(self, name)

    def _encode(self, y: Any, count: int) -> NDArray[np.int64]:
        """Set ``classes_`` and return the code of each of ``count`` images.

        Raises
        ------
        ValueError
            If the labels are not those of a classification, or not one per image; or one is missing, or some are text
            and some are numbers.
        """
        labels = class_labels(y, "image")
        if len(labels) != count:
            raise DataError(f"{count} images and {len(labels)} labels")
        self.classes_, codes = classes_and_codes(labels)
        return codes

    def _split(self, images: Tensor, codes: NDArray[np.int64], seed: int) -> tuple[ImageArrays, ImageArrays | None]:
        """Images ``(N, C, H, W)`` to train on, and those to validate on where ``validation_fraction`` is above 0."""
        labels = torch.from_numpy(codes)
        rows = hold_out(len(images), self._setting("validation_fraction"), seed, codes)
        train, held_out = (ImageArrays(images[part], labels[part]) for part in map(torch.from_numpy, rows))
        return train, held_out if len(held_out) else None

    def _train_on(
        self,
        train: ImageArrays,
        val: ImageArrays | None,
        seed: int,
        monitor: str | None = None,
        ema_decay: float = 0.0,
        max_time: float | None = None,
    ) -> None:
        """Build the module and train it; ``monitor`` is the metric of ``val`` for early stopping."""
        data = ImageDataModule(train, val, spec=self.spec_, batch_size=self._setting("batch_size"), seed=seed)
        with isolate_rng():
            seed_everything(seed)
            module = self._new_model(for_weights=False)
        watched = val is not None
        self.history_ = self._train(
            module, data, seed, monitor=monitor if watched else None, validate=watched, ema_decay=ema_decay,
            max_epochs=self._setting("max_epochs"), max_time=max_time,
        )  # fmt: skip
        self.n_iter_ = len(self.history_)
        self.model_ = module.eval()

    def _build_model(self) -> SpecModule:
        """For the weights of a file; nothing but the file is read."""
        return self._new_model(for_weights=True)

    def _new_model(self, for_weights: bool) -> SpecModule:
        """The module with its network; ``for_weights`` as in :meth:`SpecModule.attach_for_weights`."""
        module = self._make_module()
        (module.attach_for_weights if for_weights else module.attach)(self.spec_)
        return module

    def _make_module(self) -> SpecModule:
        raise NotImplementedError

    @contextmanager
    def _on_device(self) -> Iterator[Any]:
        """The fitted module on the device that ``accelerator`` names; on the CPU again afterwards."""
        check_is_fitted(self, "model_")
        try:
            yield self.model_.to(resolve_device(self.accelerator))
        finally:
            self.model_.cpu()

    def saved_state(self) -> dict[str, Any]:
        """Fitted attributes, class labels and the spec of the images."""
        state = super().saved_state()
        classes = None if self.classes_ is None else labels_to_json(self.classes_)
        return {**state, "classes_": classes, "spec_": self.spec_.state()}

    def _restore(self, state: dict[str, Any]) -> None:
        self.classes_ = None if state["classes_"] is None else classes_from_json(state["classes_"])
        self.spec_ = ImageSpec.from_state(state["spec_"])
        count = 0 if self.classes_ is None else len(self.classes_)
        if count != len(self.spec_.classes):
            raise FileFormatError(f"it has {count} class labels for {len(self.spec_.classes)} classes")
        super()._restore(state)
        if self.classes_ is not None and len(self.classes_) != len(self.spec_.classes):
            raise FileFormatError(f"it has {len(self.classes_)} classes and {len(self.spec_.classes)} names of classes")
