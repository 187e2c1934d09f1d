"""Images: a WideNet beside the dense network of its kind, a convolutional one, and models of pixels."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from moeapps.comparison.held_out import SplitTask, make_splits, seeded, told_rare
from moeapps.comparison.image_models import OnPixels, SmallCNN
from moeapps.comparison.scoring import Scoring
from moeapps.comparison.task import Candidate, chosen_candidates
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.labels import class_labels
from moeapps.vision.classifier import WideNetClassifier
from moeapps.vision.datasets import PUBLIC, load_images
from moeapps.vision.folders import find_images
from moeapps.vision.images import as_images

__all__ = ["image_task"]

LARGEST = 64
"""Side to which the images of a folder are resized, if they differ in size or are larger, unless the user says how."""

PARTS = {"train", "test", "val", "valid", "validation"}


def image_task(
    data: Any,
    target: Any = None,
    *,
    root: str | Path | None = None,
    image_size: int | None = None,
    max_rows: int | None = 20_000,
    metric: Any = None,
    models: Any = None,
    splits: int = 5,
    seed: int = 0,
) -> SplitTask:
    """Compare on images.

    Parameters
    ----------
    data : path of a folder, array of images, or name of a public set
        The images. A folder has one folder of files per class.
    target : array of shape (n,), optional
        Labels of an array.
    root : path, optional
        Folder of a public set.
    image_size : int, optional
        Side to which images are resized.
    max_rows : int or None, default=20,000
        A random sample of so many images is taken of more.
    metric, models
        As in :func:`moeapps.compare`.
    splits : int, default=5
        Number of splits.
    seed : int, default=0
        Seed of sample, splits and models.

    Raises
    ------
    ConfigError, DataError
        If an argument is impossible, or the images cannot be read.
    """
    told: list[str] = []
    name = "the images"
    if isinstance(data, str) and data in PUBLIC:
        name = data
        parts = load_images(data, root, seed=seed)
        classes = np.array(parts[0].classes)
        y = classes[np.concatenate([part.labels.numpy() for part in parts])]
        rows = _sample(len(y), max_rows, seed, told)
        X = np.concatenate([part.images.numpy() for part in parts])[rows]
        X, y = as_images(X, size=image_size).numpy(), y[rows]
    elif isinstance(data, str | os.PathLike):
        if target is not None:
            raise ConfigError("target must be None: the classes of a folder are the names of its folders")
        name = Path(data).name
        _refuse_parts(Path(data))
        files, codes, names = find_images(Path(data))
        rows = _sample(len(files), max_rows, seed, told)
        chosen = [files[row] for row in rows]
        X = as_images(chosen, size=_size(chosen, image_size, told)).numpy()
        y = np.array(names)[np.array(codes)[rows]]
    else:
        if target is None:
            raise ConfigError("target is missing: an array with the label of each image")
        y = class_labels(np.asarray(target))
        if len(y) != len(data):
            raise DataError(f"target has {len(y)} labels for {len(data)} images")
        rows = _sample(len(y), max_rows, seed, told)
        X, y = as_images(data[rows], size=image_size).numpy(), y[rows]
    classes = np.unique(y)
    if len(classes) < 2:
        raise DataError(f"the images have one class, {classes.tolist()[0]!r}: at least 2 are needed")
    scoring = Scoring(["accuracy", "neg_log_loss"], metric, y, classes)
    parts_of = make_splits(y, splits, seed, classes=True)
    train, test = parts_of[0]
    told.insert(0, f"{len(y):,} images of {' x '.join(map(str, X.shape[1:]))} pixels, {len(classes)} classes.")
    told += told_rare(y)
    told.append(
        f"{splits} splits, the same for all models: {len(train):,} images to learn from, {len(test):,} to test on."
    )
    return SplitTask(
        "classification of images", X, y, scoring, parts_of, data=name, told=told, seed=seed, split_name="split",
        candidates=chosen_candidates(_candidates(), models, seeded),
    )  # fmt: skip


def _candidates() -> list[Candidate]:
    """Those of benchmarks/vision_accuracy.py; the ViT's MLPs are as wide as the two experts of a patch."""
    return [
        Candidate("most frequent class", lambda seed: OnPixels(DummyClassifier(strategy="prior"))),
        Candidate(
            "logistic regression on pixels",
            lambda seed: OnPixels(make_pipeline(StandardScaler(), LogisticRegression(max_iter=200, C=0.01))),
        ),
        Candidate(
            "random forest on pixels",
            lambda seed: OnPixels(RandomForestClassifier(n_estimators=300, random_state=seed)),
        ),
        Candidate("convolutional network", lambda seed: SmallCNN(seed)),
        Candidate("ViT", lambda seed: WideNetClassifier("vit", mlp_ratio=4.0, random_state=seed)),
        Candidate("WideNetClassifier", lambda seed: WideNetClassifier(random_state=seed), ours=True),
    ]


def _sample(n: int, most: int | None, seed: int, told: list[str]) -> NDArray[np.int64]:
    if most is None or n <= most:
        return np.arange(n)
    told.append(f"A random sample of {most:,} of {n:,} images (max_rows).")
    return np.sort(np.random.default_rng(seed).choice(n, most, replace=False))


def _size(files: list[Path], wanted: int | None, told: list[str]) -> int | None:
    """Side to which files are resized; None leaves them as they are."""
    if wanted is not None:
        return wanted
    sizes = set()
    for file in files:
        with Image.open(file) as image:
            sizes.add(image.size)
    if len(sizes) == 1 and max(next(iter(sizes))) <= LARGEST:
        return None
    smallest = min(min(size) for size in sizes)
    size = min(LARGEST, smallest)
    told.append(f"Resized to {size} x {size} pixels (image_size).")
    return size


def _refuse_parts(folder: Path) -> None:
    names = {entry.name.lower() for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    if names and names <= PARTS:
        raise ConfigError(f"{folder} has the folders {', '.join(sorted(names))}, not one per class: give one of them")
