"""Folders of image files wherever an image classifier takes images: score, predictions by file, mistakes, command."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from moeapps.cli.main import main
from moeapps.core.errors import DataError
from moeapps.vision import WideNetClassifier
from tests.vision.conftest import CLASSIFIER


def write_images(folder: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    """Grey images of 0 to 16 as PNG files, one folder per class."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype(np.uint8)).save(folder / str(label) / f"{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def folder(digits, tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("digits"), digits[0][:60], digits[1][:60])


@pytest.fixture(scope="module")
def fitted(folder) -> WideNetClassifier:
    return WideNetClassifier(**CLASSIFIER).fit(folder)


def test_a_folder_is_scored_as_its_files_are(fitted, folder):
    files = sorted(folder.glob("*/*.png"))
    expected = fitted.score(files, [file.parent.name for file in files])
    assert fitted.score(folder) == fitted.score(str(folder)) == expected


def test_labels_that_are_numbers_are_matched_with_names_of_folders(digits, folder):
    images = (digits[0][:60, None] * 15).astype(np.uint8).repeat(3, axis=1)
    model = WideNetClassifier(**CLASSIFIER).fit(images, digits[1][:60])
    assert model.score(folder) == pytest.approx(model.score(images, digits[1][:60]))


def test_predictions_of_a_folder_have_its_files(fitted, folder):
    frame = fitted.predict_files(folder)
    files = sorted(folder.glob("*/*.png"))
    assert frame["file"].tolist() == [file.relative_to(folder).as_posix() for file in files]
    assert frame["prediction"].tolist() == fitted.predict(files).tolist()
    np.testing.assert_array_equal(frame.filter(like="probability_").to_numpy(), fitted.predict_proba(files))


def test_predictions_of_files_have_them_as_given(fitted, folder):
    files = sorted(folder.glob("*/*.png"))[:2]
    assert fitted.predict_files(files)["file"].tolist() == [str(file) for file in files]
    assert len(fitted.predict_files(files[0])) == 1


def test_mistakes_are_the_wrong_ones_most_certain_first(fitted, folder):
    mistakes = fitted.mistakes(folder)
    files = sorted(folder.glob("*/*.png"))
    wrong = [file for file, label in zip(files, fitted.predict(files), strict=True) if file.parent.name != label]
    assert set(mistakes["image"]) == {file.relative_to(folder).as_posix() for file in wrong}
    assert mistakes["probability"].is_monotonic_decreasing
    assert fitted.mistakes(folder, n=2)["image"].tolist() == mistakes["image"][:2].tolist()


def test_mistakes_among_arrays_have_their_positions(wide, digits):
    images, labels = digits
    wrong = np.flatnonzero(wide.predict(images) != labels)
    assert sorted(wide.mistakes(images, labels)["image"]) == wrong.tolist()


def test_thumbnails_of_mistakes_are_the_images(fitted, folder):
    found, mistakes = fitted.mistake_thumbnails(folder, n=3, side=16), fitted.mistakes(folder, n=3)
    assert [caption.split(",")[0] for caption, _ in found] == mistakes["label"].tolist()
    for (_, png), name in zip(found, mistakes["image"], strict=True):
        shown = Image.open(io.BytesIO(png))
        original = Image.open(folder / name).convert("RGB").resize((16, 16), Image.Resampling.NEAREST)
        np.testing.assert_array_equal(np.asarray(shown), np.asarray(original))


def test_thumbnails_of_arrays_have_the_range_of_training(wide, digits):
    images, labels = digits
    caption, png = wide.mistake_thumbnails(images, labels, n=1)[0]
    shown = np.asarray(Image.open(io.BytesIO(png)))
    assert (shown.shape, shown.max() > 200, "predicted" in caption) == ((64, 64), True, True)


def test_a_model_without_mistakes_has_no_thumbnails(wide, digits):
    images = digits[0][:20]
    assert wide.mistake_thumbnails(images, wide.predict(images)) == []


def test_load_of_experts_of_a_folder_is_by_class(fitted, folder):
    load = fitted.expert_load(folder)
    assert load.index.tolist() == fitted.classes_.tolist()


def test_a_folder_of_no_class_is_named(fitted, folder, tmp_path):
    other = write_images(tmp_path, np.zeros((2, 8, 8)), np.array(["3", "thre"]))
    with pytest.raises(DataError, match="'thre' is the name of no class"):
        fitted.score(other)


@pytest.mark.parametrize("call", ["score", "mistakes"])
def test_labels_beside_a_folder_are_refused(fitted, folder, call):
    with pytest.raises(DataError, match="y must be None"):
        getattr(fitted, call)(folder, ["3"] * 60)


@pytest.mark.parametrize("call", ["score", "mistakes"])
def test_images_without_labels_are_refused(wide, digits, call):
    with pytest.raises(DataError, match="y is needed"):
        getattr(wide, call)(digits[0])


def test_a_file_that_is_not_there_is_named(fitted):
    with pytest.raises(DataError, match=r"nowhere\.png does not exist"):
        fitted.predict_files(["nowhere.png"])


@pytest.fixture(scope="module")
def saved(fitted, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "digits.safetensors"
    fitted.save(path)
    return path


def test_the_command_predicts_a_folder(fitted, saved, folder, tmp_path, capsys):
    output = tmp_path / "predictions.csv"
    assert main(["score", str(saved), "--input", str(folder), "--output", str(output)]) == 0
    written, expected = pd.read_csv(output), fitted.predict_files(folder)
    assert written["file"].tolist() == expected["file"].tolist()
    assert written["prediction"].astype(str).tolist() == expected["prediction"].tolist()
    assert "60 images" in capsys.readouterr().out


def test_a_file_that_is_no_image_is_named_and_nothing_is_written(saved, folder, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "broken.png").write_bytes(b"not a picture")
    output = tmp_path / "predictions.csv"
    assert main(["score", str(saved), "--input", str(tmp_path / "images"), "--output", str(output)]) == 1
    assert "broken.png" in capsys.readouterr().err
    assert not output.exists()


def test_columns_cannot_be_kept_of_images(saved, folder, capsys):
    assert main(["score", str(saved), "--input", str(folder), "--output", "x.csv", "--keep", "id"]) == 2
    assert "--keep is for tables" in capsys.readouterr().err
