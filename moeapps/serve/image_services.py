"""Services of images: classifiers of image files, and generators."""

import base64
import time
from typing import Any, Protocol, runtime_checkable

import numpy as np

from moeapps.core.errors import ConfigError
from moeapps.core.tabledata.scoring import label_columns
from moeapps.serve.drawing import BLOCK, png
from moeapps.serve.files import decode_file
from moeapps.serve.refusal import refused_data, timed_out
from moeapps.serve.service import Request, Service, attempt, records

__all__ = ["ImageModel", "ImageService", "SampleModel", "SampleService"]


@runtime_checkable
class ImageModel(Protocol):
    """A classifier that knows the shape of its images (``spec_.shape``)."""

    spec_: Any

    def predict_proba(self, X: Any) -> Any:
        """Class probabilities of images."""


@runtime_checkable
class SampleModel(Protocol):
    """A generator of images of a known shape (``spec_.shape``)."""

    spec_: Any
    classes_: Any
    timesteps: int

    def sample(self, n: int, y: Any) -> Any:
        """Images of classes."""

    def to_pixels(self, images: Any) -> Any:
        """Images as pixels of 0 to 255."""


class ImageService(Service):
    """Classifiers of images; files come as base64 or data URLs."""

    kind = "images"

    @classmethod
    def serves(cls, model: Any) -> bool:
        """Whether the model classifies images of a known shape."""
        return isinstance(model, ImageModel)

    def describe(self) -> dict[str, Any]:
        """With channels, height and width."""
        return {**super().describe(), "shape": list(self.model.spec_.shape), "resizes": bool(self.model.image_size)}

    def answer(self, request: Request) -> list[dict[str, Any]]:
        """Most probable class, and the probability of every class."""
        from moeapps.vision.folders import read_images

        names = [f"images.{number}" for number in range(len(request["images"]))]
        files = [decode_file(text, name) for text, name in zip(request["images"], names, strict=True)]
        spec = self.model.spec_
        images = read_images(files, spec.shape[0], self.model.image_size, names, spec.transform())
        probabilities = self.model.predict_proba(images)
        return records(label_columns(self.model.classes_, probabilities))


class SampleService(Service):
    """Generators of images. They have no ``predict``, but ``sample``."""

    kind = "generator"

    @classmethod
    def serves(cls, model: Any) -> bool:
        """Whether the model samples images."""
        return isinstance(model, SampleModel)

    def describe(self) -> dict[str, Any]:
        """With channels, height and width, the classes (None where there are none) and the most steps."""
        classes = None if self.model.classes_ is None else np.asarray(self.model.classes_).tolist()
        shape, timesteps = list(self.model.spec_.shape), int(self.model.timesteps)
        return {**super().describe(), "shape": shape, "classes": classes, "timesteps": timesteps}

    def sample(self, requests: list[Request]) -> list[Any]:
        """For each request a list of its blocks, or a refusal."""
        return [attempt(self._blocks, request) for request in requests]

    def _blocks(self, request: Request) -> Any:
        """Blocks of images, each a list of base64 or of nested lists; timed out if they take too long."""
        end = time.monotonic() + request["seconds"]

        def watch(*_: Any) -> None:
            if time.monotonic() > end:
                raise TimeoutError

        options = {name: request[name] for name in ("guidance", "steps", "sampler", "eta", "seed")}
        labels, last, blocks = request["labels"], request["n"], []
        for block in range(request["first_block"], request["first_block"] + request["blocks"]):
            start, stop = block * BLOCK, min((block + 1) * BLOCK, last)
            y = None if labels is None else labels[start:stop]
            try:
                images = self.model.sample(stop - start, y, first=start, watch=watch, **options)
            except TimeoutError:
                return timed_out()
            except ConfigError as error:  # a sampler whose package is not installed
                return refused_data(error)
            blocks.append([self._image(image, request["form"]) for image in images])
        return blocks

    def _image(self, image: Any, form: str) -> Any:
        if form == "array":
            return image.tolist()
        return base64.b64encode(png(self.model.to_pixels(image))).decode()
