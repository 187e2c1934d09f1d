"""Comparisons on images: folders, arrays, public sets, and the baselines of pixels."""

import numpy as np
import pytest
from PIL import Image

import moeapps
from moeapps.comparison.image_models import SmallCNN
from moeapps.comparison.images import image_task
from moeapps.core.errors import ConfigError, DataError

QUICK = ["most frequent class", "logistic regression on pixels"]


def bright_and_dark(n=40, side=8):
    rng = np.random.default_rng(0)
    y = np.where(np.arange(n) % 2 == 0, "dark", "bright")
    X = rng.integers(0, 90, (n, side, side), dtype=np.uint8)
    X[y == "bright"] += 60
    return X, y


def write(folder, X, y, grow=0):
    for i, (image, label) in enumerate(zip(X, y, strict=True)):
        (folder / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).resize((8 + grow * i, 8 + grow * i)).save(folder / label / f"{i}.png")


def test_arrays_are_compared():
    X, y = bright_and_dark()
    found = moeapps.compare(X, y, models=QUICK, splits=2, progress=False)
    assert found.kind == "classification of images"
    assert found.best_ == "logistic regression on pixels"
    assert found.table.loc["most frequent class", "accuracy"] == pytest.approx(0.5)
    assert found.told[0] == "40 images of 1 x 8 x 8 pixels, 2 classes."


def test_a_folder_has_one_folder_per_class(tmp_path):
    write(tmp_path, *bright_and_dark())
    found = moeapps.compare(tmp_path, models=QUICK, splits=1, progress=False)
    assert found.table.loc["logistic regression on pixels", "accuracy"] > 0.8
    assert found.told[0] == "40 images of 3 x 8 x 8 pixels, 2 classes."


def test_images_of_different_sizes_are_resized_and_this_is_told(tmp_path):
    write(tmp_path, *bright_and_dark(), grow=1)
    assert image_task(tmp_path).X.shape == (40, 3, 8, 8)
    assert "Resized to 8 x 8 pixels (image_size)." in image_task(tmp_path).told
    assert image_task(tmp_path, image_size=12).X.shape == (40, 3, 12, 12)


def test_digits_are_images_unless_task_says_otherwise():
    assert image_task("digits", max_rows=100).X.shape == (100, 1, 8, 8)
    found = moeapps.compare(
        "digits", task="classification", models=["most frequent class"], splits=1, max_rows=200, progress=False
    )
    assert found.kind == "classification of rows"


def test_ours_is_compared_with_dense_and_convolutional_networks():
    task = image_task(*bright_and_dark())
    assert [one.name for one in task.candidates] == [*QUICK, "random forest on pixels", "convolutional network", "ViT",
                                                     "WideNetClassifier"]  # fmt: skip
    vit = task.candidates[-2].make(3)
    assert (vit.model, vit.random_state) == ("vit", 3)


def test_the_convolutional_network_learns(monkeypatch):
    monkeypatch.setattr(
        "moeapps.comparison.image_models.automatic", lambda n, channels: {"batch_size": 20, "max_epochs": 15}
    )
    X, y = bright_and_dark()
    model = SmallCNN(width=4).fit(X, y)
    assert model.score(X, y) > 0.9
    assert model.predict_proba(X).sum(axis=1) == pytest.approx(np.ones(40))


def test_what_cannot_be_compared_is_named(tmp_path):
    X, y = bright_and_dark()
    write(tmp_path / "whole" / "train", X, y)
    write(tmp_path / "whole" / "test", X, y)
    with pytest.raises(ConfigError, match="has the folders test, train, not one per class"):
        image_task(tmp_path / "whole")
    with pytest.raises(ConfigError, match="the classes of a folder are the names"):
        image_task(tmp_path / "whole" / "train", y)
    with pytest.raises(ConfigError, match="target is missing"):
        image_task(X)
    with pytest.raises(DataError, match="39 labels for 40 images"):
        image_task(X, y[1:])
    with pytest.raises(DataError, match="the images have one class"):
        image_task(X, np.full(40, "dark"))
