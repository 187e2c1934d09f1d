"""Folders and lists of image files where a classifier predicts, scores, or shows what it gets wrong.

Files are read in batches, so that a folder of any size needs the memory of one batch.
"""

# Shapes: n images, K classes, C channels, H height, W width

import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from sklearn.metrics import accuracy_score
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from moeapps.core.errors import ConfigError, DataError
from moeapps.core.files import similar
from moeapps.core.labels import class_labels
from moeapps.core.tabledata.scoring import label_columns
from moeapps.core.tabledata.writer import TableWriter
from moeapps.registry import did_you_mean
from moeapps.vision.folders import find_images
from moeapps.vision.images import to_float
from moeapps.vision.listing import list_images

__all__ = ["ImageFilesMixin", "write_predictions"]

BATCH = 256
"""Files that are decoded at once."""


class ImageFilesMixin:
    """Adds to a classifier of images what it does with folders and files: score, predictions by file, mistakes."""

    classes_: NDArray[Any]

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Class probabilities of images, shape ``(n, K)``."""
        raise NotImplementedError

    def score(self, X: Any, y: ArrayLike | None = None, sample_weight: ArrayLike | None = None) -> float:
        """Accuracy.

        Parameters
        ----------
        X : array, sequence of images, or path
            Images, or a folder with one folder of image files per class, as in ``fit``.
        y : array of shape (n,), optional
            Labels; None for a folder.
        sample_weight : array of shape (n,), optional
            Weights of the images.

        Returns
        -------
        float
            Fraction of the images whose class is predicted.

        Raises
        ------
        DataError
            If a folder has the name of no class, or there is not one label per image.
        """
        _, labels, probabilities = self._judged(X, y)
        return float(accuracy_score(labels, self.classes_[probabilities.argmax(axis=1)], sample_weight=sample_weight))

    def predict_files(self, source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> pd.DataFrame:
        """Predict image files, one row each.

        Parameters
        ----------
        source : path or sequence of paths
            A folder, whose images and those of its subfolders are read in the order of their names; an image file; or
            several.

        Returns
        -------
        DataFrame
            ``file`` (below the folder, or as given), ``prediction``, and ``probability_<class>`` for each class.

        Raises
        ------
        DataError
            If there is no image, or naming a file that cannot be read.
        """
        return pd.concat(list(self._predicted(source)), ignore_index=True)

    def mistakes(self, X: Any, y: ArrayLike | None = None, n: int | None = None) -> pd.DataFrame:
        """The images that are classified wrongly, the most certain mistake first.

        Parameters
        ----------
        X : array, sequence of images, or path
            As :meth:`score` takes them.
        y : array of shape (n,), optional
            Labels; None for a folder.
        n : int, optional
            Number of mistakes; all of them when None.

        Returns
        -------
        DataFrame
            Columns ``image`` (its position, or its file in a folder), ``label``, ``prediction`` and ``probability``,
            that of the prediction.
        """
        names, labels, probabilities = self._judged(X, y)
        best = probabilities.argmax(axis=1)
        rows = pd.DataFrame(
            {
                "image": names,
                "label": labels,
                "prediction": self.classes_[best],
                "probability": probabilities.max(axis=1),
            }
        )
        wrong = rows[rows["label"] != rows["prediction"]].sort_values("probability", ascending=False, kind="stable")
        return wrong.head(len(wrong) if n is None else n).reset_index(drop=True)

    def mistake_thumbnails(
        self, X: Any, y: ArrayLike | None = None, n: int = 24, side: int = 64
    ) -> list[tuple[str, bytes]]:
        """Small pictures of the most certain :meth:`mistakes`, for a report.

        Parameters
        ----------
        X, y
            As :meth:`score` takes them.
        n : int, default=24
            Number of pictures, at most.
        side : int, default=64
            Their longer side in pixels; smaller images are enlarged without smoothing.

        Returns
        -------
        list of (str, bytes)
            Caption (label, prediction and its probability) and PNG file.
        """
        wrong = self.mistakes(X, y, n)
        if isinstance(X, str | os.PathLike):
            images: Any = [Path(X) / name for name in wrong["image"]]
        else:
            images = [X[position] for position in wrong["image"]]
        if not images:
            return []
        pixels = to_float(self._checked(images))
        ranges = getattr(self, "pixels_", None)  # models of 0.1 have none
        low, high = (0.0, 1.0) if ranges is not None and ranges.by_depth else (float(pixels.min()), float(pixels.max()))
        whole = ((pixels - low) / max(high - low, 1e-12)).clip(0, 1).mul(255).round().to(torch.uint8)
        captions = [
            f"{label}, predicted {prediction} ({probability:.0%})"
            for label, prediction, probability in zip(
                wrong["label"], wrong["prediction"], wrong["probability"], strict=True
            )
        ]
        return list(zip(captions, [_thumbnail(image, side) for image in whole], strict=True))

    def _checked(self, X: Any) -> Tensor:
        """Images as the network takes them, ``(n, C, H, W)``."""
        raise NotImplementedError

    def _judged(self, X: Any, y: ArrayLike | None) -> tuple[Sequence[Any], NDArray[Any], NDArray[np.float64]]:
        """Names (files below the folder, or positions), labels and class probabilities of images."""
        check_is_fitted(self, "model_")
        if isinstance(X, str | os.PathLike):
            files, labels = self._read_folder(X, y)
            names: Sequence[Any] = [file.relative_to(X).as_posix() for file in files]
            return names, labels, np.concatenate([self.predict_proba(part) for part in _batches(files)])
        if y is None:
            raise DataError("y is needed: one label per image; only a folder with one folder per class has its own")
        labels, probabilities = class_labels(y, "image"), self.predict_proba(X)
        if len(labels) != len(probabilities):
            raise DataError(f"{len(probabilities)} images and {len(labels)} labels")
        return range(len(labels)), labels, probabilities

    def _read_folder(self, folder: str | os.PathLike[str], y: ArrayLike | None) -> tuple[list[Path], NDArray[Any]]:
        """The files of a folder with one folder per class, and the label of each."""
        if y is not None:
            raise DataError("the classes of a folder are the names of its folders: y must be None")
        files, codes, names = find_images(Path(folder))
        known = {str(label): label for label in self.classes_.tolist()}
        if unknown := [name for name in names if name not in known]:
            hint = did_you_mean(unknown[0], known, f"the classes are {', '.join(known)}")
            raise DataError(f"{folder}: {unknown[0]!r} is the name of no class{hint}")
        return files, np.array([known[name] for name in names], dtype=self.classes_.dtype)[codes]

    def _predicted(self, source: Any) -> Iterator[pd.DataFrame]:
        """Predictions of files, a batch at a time."""
        check_is_fitted(self, "model_")
        one = isinstance(source, str | os.PathLike)
        if one and Path(source).is_dir():
            files = list_images(source)
            names = [file.relative_to(source).as_posix() for file in files]
        else:
            names = [os.fspath(file) for file in ([source] if one else source)]
            files = [Path(name) for name in names]
            if missing := [name for name, file in zip(names, files, strict=True) if not file.is_file()]:
                raise DataError(
                    f"{missing[0]} does not exist{similar(missing[0])}: expected an image or a folder of images"
                )
            if not files:
                raise DataError("there is no image")
        for part, named in zip(_batches(files), _batches(names), strict=True):
            frame = label_columns(self.classes_, self.predict_proba(part))
            frame.insert(0, "file", named)
            yield frame


def _thumbnail(image: Tensor, side: int) -> bytes:
    """A PNG file of an image ``(C, H, W)`` of uint8."""
    array = image.movedim(0, -1).numpy()
    picture = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    scale = side / max(picture.size)
    width, height = (max(1, round(scale * length)) for length in picture.size)
    smooth = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR
    buffer = io.BytesIO()
    picture.resize((width, height), smooth).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _batches(entries: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(entries), BATCH):
        yield entries[start : start + BATCH]


def write_predictions(model: ImageFilesMixin, source: str | os.PathLike[str], output: str | os.PathLike[str]) -> int:
    """Predict the image files of a folder into a table; returns the number of rows.

    Parameters
    ----------
    model : ImageFilesMixin
        A fitted classifier.
    source : path
        A folder of image files, or one file.
    output : path
        ``.csv`` or ``.parquet`` file; it replaces an older one only when it is complete.

    Raises
    ------
    ConfigError
        If the output has another ending, or is the source.
    DataError
        If there is no image, or naming a file that cannot be read.
    """
    if os.path.realpath(source) == os.path.realpath(output):
        raise ConfigError(f"{output} is the file to be predicted: name another one to write to")
    with TableWriter(output) as writer:
        for frame in model._predicted(source):
            writer.write(frame)
    return writer.rows
