"""Which files of a folder are read, and that the others are counted aloud."""

import base64
import io
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import moeapps
from moeapps.cli.main import main
from moeapps.core.errors import DataError
from moeapps.serve.services import ImageService
from moeapps.vision import ImageFolderData, WideNetClassifier, load_images
from moeapps.vision.folders import read_images, read_tar
from moeapps.vision.listing import find_images, list_images
from tests.processes import end_loaders
from tests.vision.conftest import CLASSIFIER
from tests.vision.test_data import EXAMPLES, make_folder, picture


def names(files: list[Path]) -> list[str]:
    return [file.name for file in files]


def test_every_ending_that_can_be_read_is_read(tmp_path):
    endings = [
        "jpg",
        "JPG",
        "jpeg",
        "jpe",
        "jfif",
        "JFIF",
        "png",
        "PNG",
        "bmp",
        "gif",
        "tif",
        "TIFF",
        "webp",
        "ppm",
        "pgm",
    ]
    endings += ["jp2", "apng", "pbm"] + ["avif"] * (".avif" in Image.registered_extensions())
    kinds = {"jfif": "JPEG", "jpe": "JPEG", "apng": "PNG", "jp2": "JPEG2000"}
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i, ending in enumerate(endings):
            image = picture(i * 5).convert({"pgm": "L", "pbm": "1"}.get(ending, "RGB"))
            image.save(tmp_path / name / f"{i:02d}.{ending}", kinds.get(ending.lower()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files, codes, classes = find_images(tmp_path)
    assert names(files) == 2 * [f"{i:02d}.{ending}" for i, ending in enumerate(endings)]
    assert codes == [0] * len(endings) + [1] * len(endings)
    assert classes == ["cat", "dog"]
    assert len(read_images(files)) == len(files)


def test_what_is_left_out_is_counted_by_ending_with_what_to_install(tmp_path):
    folder = make_folder(tmp_path / "photos", 2)
    for name in (
        "a.heic",
        "b.HEIC",
        "c.heif",
        "labels.csv",
        "README",
        "._00.png",
        ".DS_Store",
        "Thumbs.db",
        "desktop.ini",
    ):
        (folder / "cat" / name).write_bytes(b"x")
    (folder / "notes.txt").write_text("x")
    (folder / "stray.png").write_bytes(b"x")
    with pytest.warns(UserWarning, match="left out") as told:
        files, codes, _ = find_images(folder)
    assert names(files) == ["00.png", "01.png"] * 2
    assert codes == [0, 0, 1, 1]
    (message,) = [str(warning.message) for warning in told]
    assert message.startswith(f"{folder}: 11 files are left out: 4 hidden or written by the system (")
    for part in (
        "._00.png", ".DS_Store", "2 .heic (pip install pillow-heif)", "1 .heif (pip install pillow-heif)", "1 .csv",
        "1 without an ending (README)", "2 beside the folders of the classes (notes.txt, stray.png)",
    ):  # fmt: skip
        assert part in message


def test_fit_goes_on_beside_files_of_macos_and_windows(tmp_path):
    folder = make_folder(tmp_path / "photos", 3)
    (folder / "cat" / "._00.png").write_bytes(b"\0\5\x16\7 not an image")
    (folder / "dog" / "Thumbs.db").write_bytes(b"x")
    (folder / "__MACOSX" / "cat").mkdir(parents=True)
    (folder / "__MACOSX" / "cat" / "00.png").write_bytes(b"x")
    (folder / "dog" / ".ipynb_checkpoints").mkdir()
    picture(0).save(folder / "dog" / ".ipynb_checkpoints" / "00-checkpoint.png")
    with pytest.warns(UserWarning, match="4 files are left out: 4 hidden or written by the system"):
        model = WideNetClassifier(**CLASSIFIER).fit(folder)
    assert model.classes_.tolist() == ["cat", "dog"]


def test_images_of_nested_folders_and_links_are_found_once(tmp_path):
    folder = make_folder(tmp_path / "photos", 2)
    elsewhere = make_folder(tmp_path / "elsewhere", 2, ("fox",))
    (folder / "cat" / "2024" / "may").mkdir(parents=True)
    picture(1).save(folder / "cat" / "2024" / "may" / "deep.png")
    (folder / "fox").symlink_to(elsewhere / "fox")
    (folder / "dog" / "more").symlink_to(elsewhere / "fox")
    files, codes, classes = find_images(folder)
    assert classes == ["cat", "dog", "fox"]
    assert names(files) == ["00.png", "01.png", "deep.png", "00.png", "01.png", "00.png", "01.png", "00.png", "01.png"]
    assert codes == [0, 0, 0, 1, 1, 1, 1, 2, 2]


def test_a_loop_of_links_ends_and_is_told(tmp_path):
    folder = make_folder(tmp_path / "photos", 2)
    (folder / "cat" / "again").symlink_to(folder / "cat")
    (folder / "cat" / "up").symlink_to(folder)
    (folder / "self").symlink_to(folder)
    (folder / "parent").symlink_to(tmp_path)
    (folder / "dog" / "gone.png").symlink_to(tmp_path / "nothing.png")
    with pytest.warns(UserWarning, match=r"5 files are left out: .*2 links to a folder above \(parent, self\)"):
        files, _, classes = find_images(folder)
    assert classes == ["cat", "dog"]
    assert names(files) == ["00.png", "01.png"] * 2
    with pytest.warns(UserWarning, match="left out"):
        assert len(list_images(folder)) == 4


def test_a_class_whose_images_cannot_be_read_says_what_it_has(tmp_path):
    folder = make_folder(tmp_path / "photos", 2)
    (folder / "fox").mkdir()
    with pytest.raises(DataError, match="fox has no image"):
        find_images(folder)
    (folder / "fox" / "a.heic").write_bytes(b"x")
    with pytest.raises(DataError, match=r"fox has no image .*; it has 1 .heic \(pip install pillow-heif\)"):
        find_images(folder)
    with pytest.raises(DataError, match="y has 1 class"):
        WideNetClassifier(**CLASSIFIER).fit(make_folder(tmp_path / "one", 3, ("cat",)))


def test_an_archive_made_by_macos_is_read_and_the_rest_counted(tmp_path):
    file = io.BytesIO()
    picture(3).save(file, "PNG")
    image = file.getvalue()
    members = [
        (f"set/{part}/{name}/{i}.png", image) for part in ("train", "test") for name in ("a", "b") for i in (0, 1)
    ]
    members += [("set/train/a/._0.png", b"x"), ("__MACOSX/set/train/a/0.png", b"x"), ("set/README.md", b"x")]
    members += [("set/train/a/x.heic", b"x"), ("top.png", image)]
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    with pytest.warns(
        UserWarning, match=r"set.tar: 5 files are left out: 2 hidden.*1 .heic \(pip install pillow-heif\)"
    ):
        parts = read_tar(tmp_path / "set.tar")
    assert sorted(parts) == ["test", "train"]
    assert all(labels == ["a", "a", "b", "b"] for _, labels in parts.values())
    with pytest.warns(UserWarning, match="left out"):
        assert load_images("cifar10", tmp_path / "set.tar")[0].images.shape == (4, 3, 12, 10)


def test_the_command_line_reads_as_the_estimator_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = make_folder(tmp_path / "photos", 3)
    exif = Image.Exif()
    exif[274] = 6
    new = tmp_path / "new"
    new.mkdir()
    picture(60).transpose(Image.Transpose.ROTATE_90).save(new / "turned.png", exif=exif)
    picture(60).save(new / "upright.JFIF", "PNG")
    (new / "._upright.png").write_bytes(b"x")
    deep = np.random.default_rng(0).integers(0, 65536, (12, 10)).astype(np.uint16)
    Image.fromarray(deep).save(new / "deep.png")
    Image.fromarray((deep / 257).round().astype(np.uint8)).save(new / "eight.png")
    config = [
        "--config", EXAMPLES / "widenet_folder.yaml", "--model.model", "widenet", "--model.options",
        "{embed_dim: 16, depth: 1, num_heads: 2, patch_size: 24}", "--data.image_size", 72, "--data.num_workers", 0,
        "--data.batch_size", 4, "--data.auto_augment", "null", "--trainer.enable_progress_bar", "false",
        "--trainer.precision", "32-true", "--trainer.accelerator", "cpu",
    ]  # fmt: skip
    assert main([str(a) for a in ["fit", *config, "--data.train", folder, "--trainer.max_epochs", 1]]) == 0
    checkpoint = next((tmp_path / "moeapps-runs").rglob("last.ckpt"))
    run = ["predict", *config, "--data.train", "null", "--ckpt_path", checkpoint, "--data.predict", new]
    with pytest.warns(
        UserWarning, match=r"new: 1 file is left out: 1 hidden or written by the system \(._upright.png\)"
    ):
        assert main([str(a) for a in [*run, "--output", tmp_path / "found.csv"]]) == 0
    found = pd.read_csv(tmp_path / "found.csv").set_index("image")["probability_cat"]
    assert found["turned.png"] == found["upright.JFIF"]
    assert found["deep.png"] == found["eight.png"]
    # the estimator of the checkpoint crops as the training did: above 64 pixels, 0.9 of the image
    arguments = ["score", str(checkpoint), "--input", str(new), "--output", str(tmp_path / "scored.csv")]
    with pytest.warns(UserWarning, match="1 file is left out"):
        assert main(arguments) == 0
    scored = pd.read_csv(tmp_path / "scored.csv").set_index("file")["probability_cat"]
    np.testing.assert_allclose(scored[found.index], found, atol=1e-6)
    model = moeapps.load(checkpoint)
    model.save(tmp_path / "model.safetensors")
    model = moeapps.load(tmp_path / "model.safetensors")
    files = [new / name for name in found.index]
    np.testing.assert_allclose(model.predict_proba(files)[:, 0], found, atol=1e-6)
    request = {"images": [base64.b64encode(file.read_bytes()).decode() for file in files]}
    (answers,) = ImageService(model).predict([request])
    np.testing.assert_allclose([answer["probability_cat"] for answer in answers], found, atol=1e-6)
    with pytest.raises(DataError, match="pixels reach .*, those of training 1"):
        model.predict_proba(np.full((1, 72, 72, 3), 200.0))


def test_folder_data_bounds_elongated_images(tmp_path):
    folder = make_folder(tmp_path / "photos", 3)
    Image.new("RGB", (4, 700)).save(folder / "cat" / "strip.png")
    data = ImageFolderData(str(folder), image_size=16, batch_size=2, num_workers=0, validation_fraction=0.3)
    data.setup("fit")
    assert all(images.shape[1:] == (3, 16, 16) for images, _ in [*data.train_dataloader(), *data.val_dataloader()])
    Image.new("RGB", (1, 700)).save(folder / "cat" / "strip.png")
    data = ImageFolderData(test=str(folder), image_size=16, batch_size=2, num_workers=0)
    data.setup("test")
    with pytest.raises(DataError, match="strip.png is 700 x 1 pixels"):
        list(data.test_dataloader())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_file_is_named_in_one_line_whichever_process_reads_it(workers, tmp_path):
    folder = make_folder(tmp_path / "photos", 6)
    (folder / "cat" / "03.png").write_bytes((folder / "cat" / "03.png").read_bytes()[:60])
    data = ImageFolderData(test=str(folder), image_size=16, batch_size=4, num_workers=workers)
    data.setup("test")
    with pytest.raises(DataError, match=r"^\S*photos/cat/03.png cannot be read as an image: [\w ]+$") as caught:
        list(data.test_dataloader())
    end_loaders(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_all_damaged_files_are_named_at_once_while_they_are_read_in_training(workers, tmp_path):
    folder = make_folder(tmp_path / "photos", 6)
    for name in ("cat/01.png", "dog/04.png"):
        (folder / name).write_text("no picture")
    data = ImageFolderData(str(folder), image_size=16, batch_size=4, num_workers=workers, validation_fraction=0.3)
    data.setup("fit")
    one = r"\S*(cat/01|dog/04)\.png"
    match = rf"^{one} cannot be read .*; neither can {one}: move them out of the folder$"
    with pytest.raises(DataError, match=match) as caught:
        [*data.train_dataloader(), *data.val_dataloader()]
    end_loaders(caught.value)


def test_all_damaged_files_are_named_at_once(tmp_path):
    folder = make_folder(tmp_path / "photos", 6)
    for name in ("01.png", "03.png"):
        (folder / "cat" / name).write_text("no picture")
    files, _, _ = find_images(folder)
    with pytest.raises(DataError, match=r"cat/01.png cannot be .*; neither can \S*cat/03.png: move them out of"):
        read_images(files)
