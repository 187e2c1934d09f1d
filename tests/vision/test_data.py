"""Images from arrays, folders, archives and torchvision, and the command line over them."""

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from moeapps.cli.main import main
from moeapps.core.errors import ConfigError, DataError
from moeapps.vision import ImageFolderData, ImageSpec, PublicImageData, WideNetClassifier, load_images
from moeapps.vision.augmentation import shift_and_flip
from moeapps.vision.data import ImageArrays, make_transform
from moeapps.vision.folders import find_images, open_image, read_images
from moeapps.vision.images import as_images, channel_statistics, pad_to, to_float

EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "vision"


def picture(bright: int, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(bright)
    array = (rng.random((*size, 3)) * 100 + bright).astype(np.uint8)
    return Image.fromarray(array).convert(mode)


def make_folder(root: Path, count: int = 12, classes=("cat", "dog")) -> Path:
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture(120 * k + i % 5).save(root / name / f"{i:02d}.png")
    return root


def test_statistics_are_those_of_all_pixels():
    images = torch.randint(0, 256, (9000, 3, 4, 4), dtype=torch.uint8)
    mean, scale = channel_statistics(images)
    np.testing.assert_allclose(mean, to_float(images).mean(dim=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(scale, to_float(images).std(dim=(0, 2, 3), correction=0), rtol=1e-5)
    assert channel_statistics(torch.full((5, 1, 4, 4), 7.0))[1] == [1.0]
    spec = ImageSpec.of(images, ["a", "b"])
    assert ImageSpec.from_state(spec.state()) == spec


def test_uint8_stays_and_other_numbers_become_float32():
    assert as_images(np.zeros((2, 4, 4), np.uint8)).dtype == torch.uint8
    assert as_images(np.zeros((2, 4, 4), np.int64)).dtype == torch.float32
    assert as_images(np.zeros((2, 6, 5, 3))).shape == (2, 3, 6, 5)
    padded = pad_to(torch.ones(1, 1, 3, 4), 6, 4)
    assert padded[0, 0, :, 0].tolist() == [0, 1, 1, 1, 0, 0]


def test_shifts_and_flips_move_pixels_and_change_none():
    images = torch.rand(64, 3, 16, 16) + 0.5
    moved = shift_and_flip(images, flip=False)
    for before, after in zip(images, moved, strict=True):
        found = [
            (dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)
            if torch.equal(before[:, 4:12, 4:12], after[:, 4 + dy : 12 + dy, 4 + dx : 12 + dx])
        ]  # fmt: skip
        assert len(found) == 1
    assert (moved != images).any()
    centre = torch.zeros(200, 1, 8, 8)
    centre[:, :, :, 2] = 1  # left of the middle: a flipped one has it right of it
    sides = shift_and_flip(centre, flip=True).sum(dim=(1, 2)).argmax(1)
    assert 50 < int((sides >= 4).sum()) < 150


# ---------------------------------------------------------------------------------------------------------- folders


def test_a_folder_of_images_is_classified(tmp_path):
    folder = make_folder(tmp_path / "photos")
    model = WideNetClassifier(
        embed_dim=16, depth=2, patch_size=4, max_epochs=12, validation_fraction=0, batch_size=8, random_state=0,
        accelerator="cpu",
    ).fit(folder)  # fmt: skip
    assert model.classes_.tolist() == ["cat", "dog"]
    assert model.spec_.shape == (3, 12, 10)
    files = [folder / "dog" / "00.png", folder / "cat" / "01.png"]
    assert model.predict(files).tolist() == ["dog", "cat"]
    np.testing.assert_array_equal(model.predict_proba(files), model.predict_proba(read_images(files)))
    assert model.transform(files).shape == (2, 16)
    with pytest.raises(DataError, match="y must be None"):
        model.fit(folder, [1, 2])
    with pytest.raises(DataError, match="predict images from a list of files"):
        model.predict(folder)
    with pytest.raises(DataError, match="y is needed"):
        model.fit(np.zeros((3, 4, 4)))


def test_a_corrupt_image_is_named(tmp_path):
    folder = make_folder(tmp_path / "photos")
    bad = folder / "cat" / "03.png"
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(DataError, match=r"photos/cat/03.png cannot be read as an image"):
        WideNetClassifier().fit(folder)
    bad.write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"03.png cannot be read as an image: cannot identify"):
        open_image(bad)
    picture(0, (5, 5)).save(bad)
    with pytest.raises(DataError, match=r"03.png is 5 x 5 pixels, the first image 12 x 10: give image_size"):
        read_images(find_images(folder)[0])
    assert read_images(find_images(folder)[0], size=8).shape == (24, 3, 8, 8)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1"])
def test_every_mode_becomes_the_channels_asked_for(mode, tmp_path):
    image = picture(50).convert("P") if mode == "P" else picture(50, mode=mode)
    image.save(tmp_path / "a.png")
    for channels in (1, 3, 4):
        assert read_images([tmp_path / "a.png"], channels).shape == (1, channels, 12, 10)


def test_a_wrong_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(DataError, match="has no folders"):
        find_images(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="cat has no image"):
        find_images(tmp_path)


def test_folder_data_reads_as_needed(tmp_path):
    folder = make_folder(tmp_path / "photos")
    make_folder(tmp_path / "other", 3, ("dog",))
    data = ImageFolderData(str(folder), test=str(tmp_path / "other"), image_size=16, batch_size=5, num_workers=0)
    data.setup("fit")
    assert data.spec == ImageSpec((3, 16, 16), ("cat", "dog"), (0.5,) * 3, (0.5,) * 3, 1.0)
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (5, 3, 16, 16)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 2
    assert torch.cat([labels for _, labels in data.test_dataloader()]).tolist() == [1, 1, 1]
    for workers in (0, 2):  # the order is the same with workers
        other = ImageFolderData(str(folder), image_size=16, batch_size=5, num_workers=workers)
        other.setup("fit")
        order = [batch[1].tolist() for batch in other.train_dataloader()]
        assert order == [batch[1].tolist() for batch in data.train_dataloader()]
    make_folder(tmp_path / "wild", 2, ("fox",))
    with pytest.raises(DataError, match="classes that training lacks: fox"):
        ImageFolderData(str(folder), val=str(tmp_path / "wild"), num_workers=0).setup("fit")
    with pytest.raises(DataError, match="has one class"):
        ImageFolderData(str(tmp_path / "other"), num_workers=0).setup("fit")
    with pytest.raises(ConfigError, match="set train"):
        ImageFolderData(num_workers=0).setup("fit")
    with pytest.raises(ConfigError, match="predict must be a folder"):
        ImageFolderData(predict="nowhere").setup("predict")


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5", "augmix-m3-w3", None])
def test_policies_of_timm(policy):
    transform = make_transform((3, 16, 16), True, policy)
    data = ImageArrays(torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8), torch.arange(4), transform)
    images, labels = data.__getitems__([2, 0])
    assert images.shape == (2, 3, 16, 16)
    assert images.dtype == torch.uint8
    assert labels.tolist() == [2, 0]
    with pytest.raises(ConfigError, match="auto_augment needs uint8 images"):
        ImageArrays(torch.rand(2, 1, 8, 8), torch.arange(2), transform)


# ------------------------------------------------------------------------------------------------------ public sets


def test_digits_are_embedded_and_split_by_seed():
    train, test = load_images("digits")
    assert (len(train), len(test)) == (1437, 360)
    assert train.images.shape[1:] == (1, 8, 8)
    assert float(train.images.max()) == 1
    assert not torch.equal(load_images("digits", seed=1)[0].labels, train.labels)


def make_archive(path: Path, extra: bytes | None = None) -> Path:
    with tarfile.open(path, "w:xz") as archive:
        for part, count in (("train", 4), ("test", 2)):
            for name in ("cat", "dog"):
                for i in range(count):
                    file = io.BytesIO()
                    picture(i, (32, 32)).save(file, "JPEG")
                    content = extra if extra is not None and (part, name, i) == ("test", "dog", 1) else file.getvalue()
                    info = tarfile.TarInfo(f"{part}/{name}/{i}.jpg")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return path


def test_an_archive_is_read_without_unpacking(tmp_path):
    train, test = load_images("cifar10", make_archive(tmp_path / "set.tar.xz"))
    assert train.images.shape == (8, 3, 32, 32)
    assert train.classes == ["cat", "dog"]
    assert test.labels.tolist() == [0, 0, 1, 1]
    with tarfile.open(tmp_path / "set.tar.xz") as archive:
        archive.extractall(tmp_path / "open", filter="data")
    unpacked = load_images("cifar10", tmp_path / "open")[0]
    assert torch.equal(unpacked.images, train.images)
    assert torch.equal(unpacked.labels, train.labels)
    with pytest.raises(DataError, match=r"test/dog/1.jpg cannot be read as an image"):
        load_images("cifar10", make_archive(tmp_path / "bad.tar.xz", b"nothing"))
    (tmp_path / "cut.tar.xz").write_bytes((tmp_path / "set.tar.xz").read_bytes()[:200])
    with pytest.raises(DataError, match="cannot be read as an archive"):
        load_images("cifar10", tmp_path / "cut.tar.xz")


def test_mnist_as_torchvision_keeps_it(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", 20), ("t10k", 10)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        head = (0x803).to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in images.shape)
        labels = (0x801).to_bytes(4, "big") + count.to_bytes(4, "big") + bytes(i % 10 for i in range(count))
        for name, content in (
            (f"{part}-images-idx3-ubyte", head + images.tobytes()),
            (f"{part}-labels-idx1-ubyte", labels),
        ):
            (folder / name).write_bytes(content)
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    train, test = load_images("mnist", tmp_path)
    assert train.images.shape == (20, 1, 28, 28)
    assert train.images.dtype == torch.uint8
    assert test.labels.tolist() == list(range(10))


def test_a_set_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="name must be one of digits, cifar10"):
        load_images("imagenet")
    with pytest.raises(ConfigError, match="cifar10 is not part of the package: give its folder as path"):
        load_images("cifar10")
    with pytest.raises(ConfigError, match="mnist is not part of the package"):
        PublicImageData("mnist")
    with pytest.raises(DataError, match="Dataset not found"):
        load_images("fashion_mnist", tmp_path)


@pytest.mark.slow
def test_cifar10_has_its_60000_images(data_folder):
    train, test = load_images("cifar10", data_folder / "vision" / "cifar10-jpeg.tar.xz")
    assert train.images.shape == (50_000, 3, 32, 32)
    assert torch.bincount(test.labels).tolist() == [1000] * 10
    assert train.classes[:2] == ["airplane", "automobile"]


# -------------------------------------------------------------------------------------------------- command line


def test_a_folder_from_training_to_predictions_by_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = make_folder(tmp_path / "photos")
    config = [
        "--config", EXAMPLES / "widenet_folder.yaml", "--model.model", "widenet", "--model.options",
        "{embed_dim: 16, depth: 2, num_heads: 2}", "--data.image_size", 16, "--data.num_workers", 0,
        "--data.batch_size", 8, "--data.auto_augment", "null", "--trainer.enable_progress_bar", "false",
        "--trainer.precision", "32-true", "--trainer.accelerator", "cpu",
    ]  # fmt: skip
    run = ["fit", *config, "--data.train", folder, "--trainer.max_epochs", 8, "--model.lr", 0.003]
    assert main([str(a) for a in run]) == 0
    checkpoint = next((tmp_path / "moeapps-runs").rglob("last.ckpt"))
    (tmp_path / "new").mkdir()
    for i, bright in enumerate((0, 130, 122)):
        picture(bright).save(tmp_path / "new" / f"{i}.png")
    rest = [*config, "--data.train", "null", "--ckpt_path", checkpoint]
    run = ["predict", *rest, "--data.predict", tmp_path / "new", "--output", tmp_path / "found.csv"]
    assert main([str(a) for a in run]) == 0
    found = pd.read_csv(tmp_path / "found.csv")
    assert found["image"].tolist() == ["0.png", "1.png", "2.png"]
    assert found["prediction"].tolist() == ["cat", "dog", "dog"]
    np.testing.assert_allclose(found["probability_cat"] + found["probability_dog"], 1, atol=1e-6)
    assert main([str(a) for a in ["test", *rest, "--data.test", folder]]) == 0
    (tmp_path / "new" / "9.png").write_bytes(b"no")
    capsys.readouterr()
    run = ["predict", *rest, "--data.predict", tmp_path / "new", "--output", tmp_path / "other.csv"]
    assert main([str(a) for a in run]) == 1
    assert "9.png cannot be read as an image" in capsys.readouterr().err
    assert not (tmp_path / "other.csv").exists()


def test_the_options_of_the_network_reach_it():
    from moeapps.vision import ImageModule

    module = ImageModule("widenet", {"embed_dim": 16, "depth": 2, "num_heads": 2}, grad_checkpointing=True)
    module.attach(ImageSpec((1, 8, 8), ("a", "b"), (0.5,), (0.5,)))
    assert module.network.grad_checkpointing
    assert module(torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)).shape == (2, 2)
    with pytest.raises(DataError, match=r"images are \(1, 9, 9\), the network was built for \(1, 8, 8\)"):
        module(torch.rand(2, 1, 9, 9))
    with pytest.raises(ConfigError, match="augment must be one of auto, none, shift, shift_flip, affine"):
        ImageModule(augment="flip")
