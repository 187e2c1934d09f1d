"""Reading one image: depth, modes, orientation, damage, and sizes that would fill the memory."""

import base64
import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, features

from moeapps.core.errors import DataError
from moeapps.serve.services import ImageService
from moeapps.vision import ImageSpec
from moeapps.vision.data import make_transform
from moeapps.vision.folders import read_images
from moeapps.vision.reading import MAX_ASPECT, open_image, read_image, readable_endings, resize_centre

RNG = np.random.default_rng(0)
GREY16 = RNG.integers(0, 65536, (6, 8)).astype(np.uint16)
COLOUR = Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(array: np.ndarray, colour: int = 0, depth: int = 16) -> bytes:
    """PNG of uint16 numbers; colour 0 is grey, 2 RGB, 4 grey with alpha, 6 RGBA."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = array.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(
    array: np.ndarray, *, kind: int = 1, big: bool = False, photometric: int = 1, bits: int | None = None
) -> bytes:
    """TIFF of one channel; kind 1 is unsigned, 2 signed, 3 floating point."""
    order = ">" if big else "<"
    height, width = array.shape
    content = array.astype(array.dtype.newbyteorder(order)).tobytes()
    tags = [
        (256, 3, width), (257, 3, height), (258, 3, bits or 8 * array.dtype.itemsize), (259, 3, 1),
        (262, 3, photometric), (273, 4, 8), (277, 3, 1), (278, 3, height), (279, 4, len(content)), (339, 3, kind),
    ]  # fmt: skip
    file = (b"MM\0*" if big else b"II*\0") + struct.pack(order + "I", 8 + len(content)) + content
    file += struct.pack(order + "H", len(tags))
    for number, form, value in tags:
        packed = struct.pack(order + "HH", value, 0) if form == 3 else struct.pack(order + "I", value)
        file += struct.pack(order + "HHI", number, form, 1) + packed
    return file + struct.pack(order + "I", 0)


# ------------------------------------------------------------------------------------------------------------- depth


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png(GREY16), GREY16 / 65535),
        (tiff(GREY16), GREY16 / 65535),
        (tiff(GREY16, big=True), GREY16 / 65535),
        (tiff(GREY16, photometric=0), 1 - GREY16 / 65535),
        (tiff((GREY16 // 2).astype(np.int16), kind=2), (GREY16 // 2) / 32767),
        (tiff(GREY16.astype(np.uint32) * 65537), GREY16 / 65535),
        (tiff(GREY16.astype(np.int32) * 32768, kind=2), GREY16 / 65535),
        (tiff((GREY16 / 65535).astype(np.float32), kind=3), GREY16 / 65535),
        (tiff((GREY16 / 65535).astype(np.float32), kind=3, big=True), GREY16 / 65535),
        (b"P5\n8 6\n65535\n" + GREY16.astype(">u2").tobytes(), GREY16 / 65535),
    ],
    ids=["png", "tiff", "big-endian", "white-is-zero", "int16", "uint32", "int32", "float", "float-big-endian", "pgm"],
)
def test_an_image_of_more_than_8_bits_is_scaled_by_its_depth(content, expected):
    found = read_image(content, channels=1)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], expected, atol=2e-5)
    np.testing.assert_array_equal(read_image(content, channels=3), np.repeat(found, 3, axis=0))
    assert read_image(content, channels=4)[3].min() == 1
    eight = np.asarray(open_image(content, channels=1))
    np.testing.assert_allclose(eight / 255, expected, atol=0.5 / 255 + 1e-6)  # never clipped to white
    small = read_image(content, channels=1, size=4)
    assert small.shape == (1, 4, 4)
    assert 0 <= small.min() < small.max() <= 1


def test_12_bits_are_scaled_by_12_bits():
    numbers = RNG.integers(0, 4096, (6, 8))
    packed = bytearray()
    for a, b in numbers.reshape(-1, 2).tolist():
        packed += bytes([a >> 4, ((a & 15) << 4) | (b >> 8), b & 255])
    content = tiff(np.frombuffer(bytes(packed), np.uint8).reshape(6, 12), bits=12)
    content = content.replace(struct.pack("<HHIHH", 256, 3, 1, 12, 0), struct.pack("<HHIHH", 256, 3, 1, 8, 0))
    np.testing.assert_allclose(read_image(content, channels=1)[0], numbers / 4095, atol=1e-6)


@pytest.mark.parametrize(("colour", "bands"), [(2, 3), (4, 2), (6, 4)])
def test_colour_of_16_bits_keeps_its_upper_8(colour, bands):
    numbers = RNG.integers(0, 65536, (6, 8, bands))
    found = read_image(png(numbers, colour), channels=4 if bands in (2, 4) else 3)
    expected = np.moveaxis(numbers >> 8, 2, 0)
    np.testing.assert_array_equal(found[-1], expected[-1])
    np.testing.assert_array_equal(found[0], expected[0])


def test_colour_of_16_bits_that_would_be_black_is_told():
    with pytest.warns(UserWarning, match="dark.png has 16 bits per channel, of which Pillow reads the upper 8"):
        read_image(png(RNG.integers(0, 4096, (6, 8, 3)), 2), name="dark.png")
    with pytest.warns(UserWarning, match="dark.png uses a small part of its depth, of which 8 bits keep"):
        open_image(png((GREY16 >> 6)[:, :6]), name="dark.png")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tiff((GREY16 / 257).astype(np.float32), kind=3), r"floating-point pixels from 0.* to 2.*must lie between 0"),
        (tiff(np.full((6, 8), np.nan, np.float32), kind=3), "has a pixel that is NaN or infinite"),
        (tiff((GREY16 % 4096).astype(np.uint32)), "has 32 bits per pixel, but its pixels end at 4"),
        (tiff(-(GREY16 // 2).astype(np.int16), kind=2), "has pixels from -.* expected 0 to 32767"),
        (tiff(GREY16.astype(np.float64), kind=3), "TIFF of a kind that Pillow cannot read"),
        (Image.fromarray(np.arange(48, dtype=np.int32).reshape(6, 8)), "an image of mode I, whose depth is not known"),
    ],
    ids=["floats-to-255", "nan", "32-bits-that-would-be-black", "negative", "float64", "mode-I"],
)
def test_numbers_of_unknown_scale_are_refused(content, message):
    with pytest.raises(DataError, match=f"^scan.tif.*{message}"):
        read_image(content, channels=1, name="scan.tif")


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "La", "RGBa"]
)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_mode_of_8_bits_becomes_the_channels_asked_for(mode, channels):
    by_way_of = {"La": "LA", "RGBa": "RGBA"}.get(mode)
    if mode == "LAB":
        image = Image.new("LAB", (8, 6), (200, 128, 128))
    else:
        image = COLOUR.convert(by_way_of).convert(mode) if by_way_of else COLOUR.convert(mode)
    found = read_image(image, channels)
    assert (found.dtype, found.shape) == (np.uint8, (channels, 6, 8))
    assert found.max() > 100


def test_transparency_of_a_palette_keeps_the_colours_without_a_warning(recwarn):
    palette = COLOUR.convert("P")
    content = encoded(palette, "PNG", transparency=bytes(range(256)))
    np.testing.assert_array_equal(read_image(content), read_image(palette))
    assert read_image(content, channels=4)[3].min() < 255
    assert not recwarn.list


def test_cmyk_in_jpeg_is_not_inverted():
    bright = Image.new("RGB", (16, 16), (250, 240, 20))
    found = read_image(encoded(bright.convert("CMYK"), "JPEG", quality=100))
    np.testing.assert_allclose(found.mean(axis=(1, 2)), [250, 240, 20], atol=4)


# ------------------------------------------------------------------------------------------------ formats, orientation

FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"]
FORMATS += ["JPEG2000"] * features.check("jpg_2000") + ["AVIF"] * features.check("avif")


@pytest.mark.parametrize("kind", FORMATS)
def test_the_content_decides_not_the_ending(kind, tmp_path):
    content = encoded(COLOUR, kind)
    (tmp_path / "photo.jpg").write_bytes(content)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)
    for source in (tmp_path / "photo.jpg", str(tmp_path / "photo.jpg"), content, io.BytesIO(content)):
        np.testing.assert_array_equal(read_image(source), expected)
    np.testing.assert_array_equal(read_image(Image.open(io.BytesIO(content))), expected)


TURNED = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE",
    8: "ROTATE_270",
}  # fmt: skip
"""EXIF orientation, and how the camera turned what it stored."""


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(orientation, kind):
    exif = Image.Exif()
    exif[274] = orientation
    stored = COLOUR.transpose(Image.Transpose[TURNED[orientation]]) if orientation > 1 else COLOUR
    content = encoded(stored, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    expected = np.asarray(COLOUR).transpose(2, 0, 1)
    np.testing.assert_array_equal(read_image(content), expected)
    np.testing.assert_array_equal(read_image(Image.open(io.BytesIO(content))), expected)
    np.testing.assert_array_equal(np.asarray(open_image(content)), np.asarray(COLOUR))
    np.testing.assert_array_equal(read_images([content], size=5)[0], read_image(COLOUR, size=5))


def test_a_turned_image_of_16_bits_keeps_its_depth():
    exif = Image.Exif()
    exif[274] = 6
    stored = Image.fromarray(GREY16).transpose(Image.Transpose.ROTATE_90)
    np.testing.assert_allclose(read_image(encoded(stored, "PNG", exif=exif), 1)[0], GREY16 / 65535, atol=1e-6)
    np.testing.assert_allclose(read_image(encoded(stored, "TIFF", exif=exif), 1)[0], GREY16 / 65535, atol=1e-6)


def test_damaged_exif_does_not_cost_the_pixels():
    exif = Image.Exif()
    exif[274] = 1
    content = encoded(COLOUR, "PNG", exif=exif.tobytes())
    start = content.index(b"eXIf")
    body = b"eXIf" + b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 6
    (length,) = struct.unpack(">I", content[start - 4 : start])
    damaged = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    content = content[: start - 4] + damaged + content[start + 8 + length :]
    np.testing.assert_array_equal(read_image(content), np.asarray(COLOUR).transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_read(kind):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(read_image(content)[:, 0, 0], [255, 0, 0])


# ------------------------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize("kind", FORMATS)
def test_a_truncated_file_is_an_error_that_names_it(kind):
    content = encoded(COLOUR.resize((60, 50)), kind)
    for length in (0, 10, len(content) // 2):
        with pytest.raises(DataError, match="^cut.img cannot be read as an image: "):
            read_image(content[:length], name="cut.img")


def test_random_damage_is_never_another_error():
    rng = np.random.default_rng(3)
    for kind in [*FORMATS, "ICO", "DDS", "SGI", "PCX"]:
        content = encoded(COLOUR, kind)
        for _ in range(25):
            damaged = bytearray(content)
            for place in rng.integers(0, len(content), 6):
                damaged[place] = rng.integers(256)
            try:
                assert read_image(bytes(damaged), size=4).shape == (3, 4, 4)
            except DataError as error:
                assert str(error).startswith("an image")  # noqa: PT017 - either is right


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50), "it is HEIC: pip install pillow-heif"),
        (b"\xff\x0a" + bytes(50), "it is JPEG XL"),
        (b"<!DOCTYPE html><html></html>", "it is a web page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is vector graphics"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is a document"),  # Ghostscript is not run
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a pointer of Git LFS"),
    ],
)
def test_what_is_no_image_is_said(content, message, tmp_path):
    (tmp_path / "a.jpg").write_bytes(content)
    for source in (content, io.BytesIO(content), tmp_path / "a.jpg"):
        with pytest.raises(DataError, match=f"cannot identify its format .*{message}"):
            read_image(source)


def test_a_path_that_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("pipe.png", "."):
        with pytest.raises(DataError, match="cannot be read as an image: it is not a file"):
            read_image(tmp_path / name)
    with pytest.raises(DataError, match="none.png cannot be read as an image: No such file"):
        read_image(tmp_path / "none.png")


def test_a_plugin_that_is_installed_is_used(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "moeapps.vision.reading.importlib.util.find_spec", lambda name: name if name == "pillow_heif" else None
    )
    module = type("plugin", (), {"register_heif_opener": staticmethod(lambda: calls.append(1))})
    monkeypatch.setitem(sys.modules, "pillow_heif", module)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    readable_endings()
    assert calls == [1]


# ------------------------------------------------------------------------------------------------------------- sizes


def long_png(width: int, height: int) -> bytes:
    return encoded(Image.new("L", (width, height), 128), "PNG", optimize=True)


@pytest.mark.parametrize("size", [(1, 20_000), (60_000, 1), (2, 402)])
def test_an_elongated_image_is_refused_by_its_sides(size):
    content = long_png(*size)
    for read in (read_image, open_image):
        with pytest.raises(
            DataError, match=f"strip.png is {size[1]} x {size[0]} pixels: one side is more than 200 times"
        ):
            read(content, name="strip.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("side", "message"), [(10_000, "= 100000000 pixels, at most 89478485"), (20_000, "bomb")])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(side, message):
    content = png(np.zeros((1, 1), np.uint16))
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    content = content[:12] + head + struct.pack(">I", zlib.crc32(head)) + content[33:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("decoded"))
        with pytest.raises(DataError, match=message):
            read_image(content, size=8)


def test_the_limit_of_pixels_is_pillows(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.raises(DataError, match=r"is 6 x 8 = 48 pixels, at most 40 are read \(PIL.Image.MAX_IMAGE_PIXELS\)"):
        read_image(COLOUR)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_image(COLOUR).shape == (3, 6, 8)


def test_what_is_cut_off_is_never_made():
    made = []
    original = Image.Image.resize

    def resize(image, size, *args, **kwargs):
        made.append(size[0] * size[1])
        return original(image, size, *args, **kwargs)

    strip = Image.new("RGB", (4, 4 * MAX_ASPECT), 9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", resize)
        assert read_image(strip, size=224).shape == (3, 224, 224)
        assert make_transform((3, 224, 224), False)(strip).shape == (3, 224, 224)
        assert read_image(COLOUR.resize((40, 30)), size=224).shape == (3, 224, 224)
    assert max(made) <= 4 * 224 * 224


def test_the_centre_is_that_of_resizing_first_and_cropping_afterwards():
    ramp = Image.fromarray(np.linspace(0, 255, 40 * 900).reshape(900, 40).astype(np.uint8))
    for image in (ramp, ramp.transpose(Image.Transpose.TRANSPOSE), ramp.crop((0, 0, 40, 55))):
        scale = 32 / 40
        size = tuple(max(32, round(side * scale)) for side in image.size)
        left, top = ((side - 32) // 2 for side in size)
        whole = image.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + 32, top + 32))
        np.testing.assert_allclose(np.asarray(resize_centre(image, 32), float), np.asarray(whole, float), atol=1)


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 32, 32), (4, 96, 96)])
def test_evaluation_crops_as_timm_does(shape):
    from timm.data import create_transform

    timms = create_transform(shape, interpolation="bicubic", normalize=False, crop_pct=1.0 if shape[1] <= 64 else 0.9)
    for size in ((50, 70), (120, 90), (33, 33)):
        image = Image.fromarray(RNG.integers(0, 256, (*size, 4), dtype=np.uint8))
        image = image if shape[0] == 4 else image.convert({1: "L", 3: "RGB"}[shape[0]])
        assert torch.equal(make_transform(shape, False)(image), timms(image))


class Model:
    """What the image service asks of a model."""

    spec_, image_size = ImageSpec((3, 224, 224), ("a", "b"), (0.5,) * 3, (0.5,) * 3), 224

    def predict_proba(self, X):
        raise AssertionError("the image was read")


def test_the_server_refuses_what_fit_refuses():
    text = base64.b64encode(long_png(1, 20_000)).decode()
    (answer,) = ImageService(Model()).predict([{"images": [text]}])
    assert "images.0 is 20000 x 1 pixels: one side is more than 200 times the other" in str(answer)


@pytest.mark.slow
def test_a_tiny_file_of_20000_pixels_costs_the_server_no_memory(tmp_path):
    script = """
import base64, resource, sys, time
from moeapps.serve.services import ImageService
from tests.vision.test_reading import Model
service = ImageService(Model())
text = base64.b64encode(open(sys.argv[1], "rb").read()).decode()
before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
(answer,) = service.predict([{"images": [text]}])
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) / 1024, time.perf_counter() - begun, str(answer))
"""
    (tmp_path / "bomb.png").write_bytes(long_png(1, 20_000))
    assert (tmp_path / "bomb.png").stat().st_size < 200
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "bomb.png")], capture_output=True, text=True, check=True
    )
    mebibytes, seconds, answer = run.stdout.strip().splitlines()[-1].split(" ", 2)
    assert float(mebibytes) < 20  # 5 GiB and 16 s before the size was checked
    assert float(seconds) < 5
    assert "images.0 is 20000 x 1 pixels" in answer
