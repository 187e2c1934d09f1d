"""Images in any form, one scale for all of them, and predictions held to what was fitted."""

import io
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import moeapps
from moeapps.core.errors import DataError
from moeapps.vision import SwitchDiTGenerator, WideNetClassifier
from moeapps.vision.images import PixelRange, as_images
from tests.vision.conftest import CLASSIFIER, GENERATOR

RNG = np.random.default_rng(0)
WHOLE = RNG.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(24) % 2
WHOLE[LABELS == 1] //= 2


@pytest.fixture(scope="module")
def model() -> WideNetClassifier:
    """Fitted on uint8 images."""
    return WideNetClassifier(**CLASSIFIER).fit(WHOLE, LABELS)


def fitted_on(X: np.ndarray, y=LABELS, **options) -> WideNetClassifier:
    return WideNetClassifier(**{**CLASSIFIER, **options}).fit(X, y)


def write(folder: Path, images: np.ndarray) -> list[Path]:
    paths = [folder / f"{i:02d}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths


# ------------------------------------------------------------------------------------------------------------- forms


def test_every_form_of_the_same_images_gives_the_same_probabilities(model, tmp_path):
    expected = model.predict_proba(WHOLE)
    paths = write(tmp_path, WHOLE)
    pictures = [Image.fromarray(image) for image in WHOLE]
    objects = np.empty(len(WHOLE), dtype=object)
    objects[:] = list(WHOLE)
    forms = {
        "list of arrays": list(WHOLE),
        "tuple of arrays, channels first": tuple(WHOLE.transpose(0, 3, 1, 2)),
        "object array": objects,
        "nested lists": WHOLE[:3].tolist(),
        "tensor, channels last": torch.from_numpy(WHOLE),
        "tensor, channels first": torch.from_numpy(WHOLE).permute(0, 3, 1, 2),
        "list of tensors": list(torch.from_numpy(WHOLE).permute(0, 3, 1, 2)),
        "images of Pillow": pictures,
        "paths": paths,
        "paths as text": [str(path) for path in paths],
        "array of text": np.array([str(path) for path in paths]),
        "series of paths": pd.Series([str(path) for path in paths]),
        "contents": [path.read_bytes() for path in paths],
        "open files": [io.BytesIO(path.read_bytes()) for path in paths],
        "mixed files": [paths[0], pictures[1], paths[2].read_bytes(), *WHOLE[3:]],
        "bool of none": WHOLE,
    }
    forms.pop("nested lists")  # numbers without a depth: see below
    for name, X in forms.items():
        np.testing.assert_array_equal(model.predict_proba(X), expected, err_msg=name)


def test_fit_takes_every_form_of_images(tmp_path):
    paths = write(tmp_path, WHOLE)
    expected = fitted_on(WHOLE).predict_proba(WHOLE)
    for X in (paths, [Image.fromarray(image) for image in WHOLE], list(WHOLE), [path.read_bytes() for path in paths]):
        np.testing.assert_array_equal(fitted_on(X).predict_proba(WHOLE), expected)
    grey = [Image.fromarray(image[:, :, 0]) for image in WHOLE]
    assert fitted_on(grey).spec_.shape == (1, 8, 8)
    assert fitted_on([image.convert("RGBA") for image in map(Image.fromarray, WHOLE)]).spec_.shape == (4, 8, 8)
    with pytest.raises(DataError, match="24 images and 23 labels"):
        fitted_on(paths, LABELS[1:])
    with pytest.raises(DataError, match="y is needed"):
        fitted_on(paths, None)


def test_images_of_different_sizes_are_resized_where_image_size_is_given_and_named_where_not(tmp_path):
    sizes = [(8 + i % 3, 9 + i % 2) for i in range(24)]
    arrays = [RNG.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    with pytest.raises(DataError, match="image 1 is 9 x 10 pixels, the first image 8 x 9: give image_size"):
        fitted_on(arrays)
    model = fitted_on(arrays, image_size=8)
    assert model.spec_.shape == (3, 8, 8)
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / f"{i:02d}.png")
    files = sorted(tmp_path.glob("*.png"))
    expected = model.predict_proba(files)
    ragged = np.empty(24, dtype=object)
    ragged[:] = arrays
    for X in (arrays, ragged, [torch.from_numpy(array) for array in arrays], [Image.open(file) for file in files]):
        np.testing.assert_array_equal(model.predict_proba(X), expected)
    np.testing.assert_allclose(model.predict_proba(np.stack(arrays[:1])), expected[:1], atol=1e-6)
    floats = [(array / 255).astype(np.float32) for array in arrays]
    np.testing.assert_allclose(model.predict_proba(floats), expected, atol=0.02)  # files are rounded to 8 bits


def test_channels_last_and_first_are_told_apart():
    for shape in ((5, 4, 4, 3), (5, 4, 4, 1), (5, 9, 3, 3), (5, 3, 9, 3)):
        assert as_images(np.zeros(shape, np.uint8)).shape[1] in (1, 3)
    assert as_images(np.zeros((5, 4, 4, 3), np.uint8)).shape == (5, 3, 4, 4)
    assert as_images(np.zeros((5, 3, 4, 4), np.uint8)).shape == (5, 3, 4, 4)
    assert as_images(np.zeros((5, 3, 9, 3), np.uint8), shape=(3, 3, 9)).shape == (5, 3, 3, 9)
    assert as_images(np.zeros((5, 3, 9, 3), np.uint8), shape=(3, 9, 3)).shape == (5, 3, 9, 3)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ("photo.png", "expected images, got one str: give a list"),
        (Path("photo.png"), "expected images, got one PosixPath: give a list"),
        (Image.fromarray(WHOLE[0]), "expected images, got one Image: give a list"),  # not 8 images of 8 x 3 pixels
        (b"content", "expected images, got one bytes: give a list"),
        ([WHOLE[0], (WHOLE[1] / 255).astype(np.float32)], "images are of different types"),
        ([Image.fromarray(WHOLE[0]), WHOLE[1] / 255], "arrays among image files must be uint8"),
        ([WHOLE[0], WHOLE[1, 0, 0]], r"image 1: expected images of shape"),
        ([np.zeros((8, 8)), np.full((8, 8), np.nan)], "image 1: image 0 has a pixel that is NaN"),
        ([], "expected images of shape"),
        ([None, None], "images must be uint8 or numbers|expected images of shape"),
        (np.zeros((3, 8, 8), complex), "images must be uint8 or numbers, got complex128"),
        (np.full((3, 8, 8), 1e300), "image 0 has a pixel that is NaN or infinite"),
        (np.ma.masked_less(np.arange(192.0).reshape(3, 8, 8), 5), "images have masked pixels"),
        (np.zeros((3, 8, 8, 2)), "with 1, 3 or 4 channels"),
        ([Image.new("L", (1, 5))] * 3, "images are 5 x 1 pixels, expected at least 2 x 2"),
    ],
)
def test_what_is_no_set_of_images_is_refused(X, message):
    with pytest.raises(DataError, match=message):
        as_images(X)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_every_float_type_is_read(model, dtype):
    X = torch.from_numpy(WHOLE / 255).to(getattr(torch, dtype))
    np.testing.assert_allclose(model.predict_proba(X), model.predict_proba(WHOLE), atol=0.05)


def test_bool_is_black_and_white():
    X = WHOLE > 100
    np.testing.assert_array_equal(as_images(X), as_images(X.astype(np.uint8) * 255))


# ------------------------------------------------------------------------------------------------------------- depth


def test_16_bits_are_one_scale_in_arrays_files_and_predictions(tmp_path):
    deep = RNG.integers(0, 65536, (24, 8, 8)).astype(np.uint16)
    deep[LABELS == 1] //= 4
    for name, code in (("bright", 0), ("dark", 1)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, deep[code == LABELS])
    options = {"max_epochs": 12, "batch_size": 8, "embed_dim": 32, "depth": 1, "lr": 1e-2}
    from_files = fitted_on(tmp_path, None, **options)
    files = sorted(tmp_path.glob("*/*.png"))
    assert from_files.score(files, [file.parent.name for file in files]) == 1
    from_arrays = fitted_on(deep, **options)
    assert from_arrays.score(deep, LABELS) == 1
    loose = tmp_path / "loose"
    loose.mkdir()
    loose_files = write(loose, deep)
    np.testing.assert_array_equal(from_arrays.predict_proba(loose_files), from_arrays.predict_proba(deep))
    np.testing.assert_allclose(
        from_arrays.predict_proba((deep / 257).round().astype(np.uint8)), from_arrays.predict_proba(deep), atol=0.02
    )
    np.testing.assert_allclose(from_arrays.predict_proba(deep / 65535), from_arrays.predict_proba(deep), atol=1e-4)


def test_a_folder_of_8_and_16_bits_is_one_scale(tmp_path):
    for name, code in (("a", 0), ("b", 1)):
        (tmp_path / name).mkdir()
        for i, image in enumerate(WHOLE[code == LABELS][:, :, :, 0]):
            Image.fromarray(image if i % 2 else image.astype(np.uint16) * 257).save(tmp_path / name / f"{i}.png")
    model = fitted_on(tmp_path, None)
    files = sorted(tmp_path.glob("*/*.png"))
    found = as_images(files)
    assert found.dtype == torch.float32
    expected = np.concatenate([WHOLE[code == LABELS][:, :, :, 0] for code in (0, 1)]) / 255
    order = np.argsort([f"{name}/{i}" for name in "ab" for i in range(12)])
    np.testing.assert_allclose(found[:, 0], expected[order], atol=1e-6)
    assert model.predict(files).shape == (24,)


def test_a_generator_keeps_the_numbers_of_16_bits():
    X = (WHOLE[:, :, :, 0].astype(np.uint16)) * 100
    samples = SwitchDiTGenerator(**GENERATOR).fit(X).sample(2, steps=2)
    assert samples.shape == (2, 8, 8)
    assert samples.max() > 255


# ------------------------------------------------------------------------------------------------- held at prediction


@pytest.mark.parametrize(
    ("fitted", "given", "message"),
    [
        (WHOLE, WHOLE * 1.0, "pixels reach 255, those of training 1: uint8 is divided by 255, floats not"),
        (WHOLE / 255, WHOLE * 1.0, "pixels reach 255, those of training 1"),
        (WHOLE / 255, WHOLE.astype(np.int64), "pixels reach 255, those of training 1"),
        (WHOLE * 1.0, WHOLE, "uint8, which is divided by 255; the model was fitted on numbers from 0 to 255"),
        (WHOLE * 1.0, WHOLE / 255, "pixels reach 1, those of training 255"),
        (WHOLE / 127.5 - 1, WHOLE, "uint8, which is divided by 255; the model was fitted on numbers from -1 to 1"),
        (WHOLE / 255, (WHOLE / 255 - 0.45) / 0.2, "between -2.25 and 2.75, those of training between 0 and 1"),
        (WHOLE / 16, WHOLE * 1.0, "between 0 and 255, those of training between 0 and 15.9"),
        (WHOLE / 255, WHOLE / 255 / 255, "pixels reach 0.0039"),
        (np.uint16(257) * WHOLE, WHOLE * 257.0, "pixels reach 65535, those of training 1"),
    ],
    ids=[
        "uint8-255",
        "1-255",
        "1-int",
        "255-uint8",
        "255-1",
        "signed-uint8",
        "1-standardised",
        "16-255",
        "twice",
        "16",
    ],
)
def test_images_of_another_scale_are_refused(fitted, given, message):
    given, fitted = (x.astype(np.float32) if x.dtype == np.float64 else x for x in (given, fitted))
    with pytest.raises(DataError, match=message):
        fitted_on(fitted).predict(given)


@pytest.mark.parametrize(
    ("fitted", "given", "message"),
    [
        (WHOLE / 255, WHOLE / 127.5 - 1, "between -1 and 1, those of training between 0 and 1: is the scale the same"),
        (WHOLE, WHOLE / 127.5 - 1, "is the scale the same"),
        (WHOLE / 16, WHOLE / 255, "were they scaled to"),
        (WHOLE / 127.5 - 1, WHOLE / 255, "were they scaled to"),
        (WHOLE / 255, WHOLE / 255 * 2, "between 0 and 2, those of training between 0 and 1"),
    ],
)
def test_images_of_a_doubtful_scale_are_told(fitted, given, message):
    model = fitted_on(fitted)
    with pytest.warns(UserWarning, match=message):
        model.predict(given)


def test_dark_bright_and_single_images_of_the_same_scale_are_no_matter(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for X in (WHOLE // 60, np.zeros_like(WHOLE), np.full_like(WHOLE, 255), WHOLE[:1] // 8, WHOLE / 255 * 1.1):
            model.predict(X)
        fitted_on(WHOLE * 1.0).predict(WHOLE[:1] * 0.9 + 30)


def test_the_scale_is_held_after_loading(model, tmp_path):
    model.save(tmp_path / "m.safetensors")
    loaded = moeapps.load(tmp_path / "m.safetensors")
    assert loaded.pixels_ == model.pixels_ == PixelRange(0.0, 1.0, True)
    with pytest.raises(DataError, match="pixels reach 255"):
        loaded.predict(WHOLE * 1.0)
    np.testing.assert_array_equal(loaded.predict_proba(WHOLE // 60), model.predict_proba(WHOLE // 60))


def test_a_model_without_a_recorded_range_keeps_the_rules_of_0_1():
    deep = RNG.integers(0, 65536, (24, 8, 8)).astype(np.uint16)
    model = fitted_on(deep.astype(np.float32))
    expected = model.predict_proba(deep.astype(np.float32))
    model.largest_ = 65535.0
    del model.pixels_
    np.testing.assert_array_equal(model.predict_proba(deep), expected)
    with pytest.raises(DataError, match="those of training 65535"):
        model.predict(deep / 65535)


def test_channels_are_those_of_the_fit(model, tmp_path):
    for X in (WHOLE[:, :, :, 0], WHOLE[:, :, :, :1], np.concatenate([WHOLE, WHOLE[..., :1]], axis=3)):
        with pytest.raises(DataError, match=r"the model was fitted on \(3, 8, 8\)"):
            model.predict(X)
    grey = Image.fromarray(WHOLE[0, :, :, 0])
    np.testing.assert_array_equal(model.predict_proba([grey]), model.predict_proba([grey.convert("RGB")]))


# ------------------------------------------------------------------------------------------------------------ labels


@pytest.mark.parametrize(
    "labels",
    [
        LABELS.tolist(), LABELS.astype(np.int8), LABELS.astype(np.uint64), LABELS == 1, LABELS.astype(float),
        np.where(LABELS == 1, "dog", "cat"), np.where(LABELS == 1, "dog", "cat").astype(object),
        pd.Series(np.where(LABELS == 1, "dog", "cat"), dtype="string"), pd.Series(LABELS, dtype="Int64"),
        pd.Series(LABELS, dtype="boolean"), pd.Categorical(np.where(LABELS == 1, "dog", "cat")),
        pd.Series(pd.Categorical(np.where(LABELS == 1, "dog", "cat"))), torch.from_numpy(LABELS),
        LABELS[:, None], (LABELS + 2**60).tolist(),
    ],
    ids=lambda labels: f"{type(labels).__name__}-{getattr(labels, 'dtype', '')}",
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:A column-vector y")
def test_labels_of_every_type_come_back(labels, tmp_path):
    model = WideNetClassifier(**CLASSIFIER).fit(WHOLE, labels)
    expected = sorted(set(np.ravel(np.asarray(labels)).tolist()))
    assert model.classes_.tolist() == expected
    assert set(model.predict(WHOLE).tolist()) <= set(expected)
    model.save(tmp_path / "m.safetensors")
    assert moeapps.load(tmp_path / "m.safetensors").classes_.tolist() == expected


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (pd.Series([pd.NA, *LABELS[1:]], dtype="Int64"), r"y has no label for image 0 \(1 in all\)"),
        (np.where(LABELS == 1, np.nan, 0.0), r"no label for image 1 \(12 in all\)"),
        ([np.nan, *["a"] * 23], "no label for image 0"),
        ([None, *["a"] * 23], "no label for image 0"),
        (np.linspace(0, 1, 24), "continuous|Unknown label type"),
        (["a", 1] * 12, r"labels such as 1 \(int\), 'a' \(str\): make them all text"),
    ],
)
def test_missing_and_mixed_labels_are_refused(labels, message):
    with pytest.raises((ValueError, TypeError), match=message):
        WideNetClassifier(**CLASSIFIER).fit(WHOLE, labels)
