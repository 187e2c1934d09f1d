"""One image from a file, bytes or Pillow to an array: the only place where an image is decoded.

Training, prediction, the data modules, the command line and the server all read through :func:`read_image` or
:func:`open_image`, so an image means the same to all of them. It goes like this:

1. Only the header is read. What is no image, has too many pixels or is far too narrow is refused; nothing is decoded.
2. The pixels are decoded, and turned upright as the EXIF orientation says. Of an animation the first frame is read.
3. Images of more than 8 bits (16 and 32 bits, floating point) are scaled by their depth to floats in [0, 1], all
   others stay uint8.
4. The centre is cut out while it is scaled, so that an elongated image never grows.
"""

# Shapes: C channels, H height, W width

import importlib.util
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from moeapps.core.errors import DataError

__all__ = [
    "ENDINGS",
    "MAX_ASPECT",
    "MODES",
    "Source",
    "Transform",
    "open_image",
    "read_image",
    "readable_endings",
    "resize_centre",
]

Source = str | Path | bytes | IO[bytes] | Image.Image
"""What an image is read from: a path, the content of a file, an open file, or an image of Pillow."""

Transform = Callable[[Image.Image], Tensor]
"""From an image of Pillow to a tensor ``(C, H, W)``."""

MODES = {1: "L", 3: "RGB", 4: "RGBA"}

MAX_ASPECT = 200
"""Largest ratio of the longer side to the shorter. The largest number of pixels is ``PIL.Image.MAX_IMAGE_PIXELS``."""

# Raster formats only: Pillow would run Ghostscript on EPS, whatever the name of the file says.
_FORMATS = (
    "JPEG", "PNG", "TIFF", "WEBP", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "AVIF", "HEIF", "JXL", "QOI", "ICO", "PCX",
    "PSD", "DDS", "SGI",
)  # fmt: skip

ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".tif", ".tiff", ".webp", ".bmp", ".dib", ".gif", ".ppm",
    ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".avif", ".heic", ".heif", ".hif",
    ".jxl", ".qoi",
)  # fmt: skip
"""Endings of image files, readable or not: :func:`readable_endings` are those that this installation can decode."""

_PLUGINS = {
    ".heic": ("HEIF", "pip install pillow-heif"),
    ".heif": ("HEIF", "pip install pillow-heif"),
    ".hif": ("HEIF", "pip install pillow-heif"),
    ".jxl": ("JXL", "pip install pillow-jxl-plugin"),
    ".avif": ("AVIF", "pip install 'pillow>=11.3'"),
}
"""Endings that not every Pillow decodes: the format, and what to install."""

_MAGIC = (
    (4, (b"ftyphei", b"ftyphev", b"ftypmif1", b"ftypmsf1"), "HEIC: pip install pillow-heif"),
    (4, (b"ftypavi",), "AVIF: pip install 'pillow>=11.3'"),
    (0, (b"\xff\x0a", b"\x00\x00\x00\x0cJXL "), "JPEG XL: pip install pillow-jxl-plugin"),
    (0, (b"%PDF", b"%!PS"), "a document, not an image"),
    (0, (b"<svg", b"<?xml"), "vector graphics: convert it to PNG"),
    (0, (b"<!DOCTYPE", b"<!doctype", b"<html", b"<HTML"), "a web page, not an image"),
    (0, (b"II*\x00", b"MM\x00*"), "TIFF of a kind that Pillow cannot read: save it with 8 or 16 bits, or give arrays"),
    (0, (b"version https://git-lfs",), "a pointer of Git LFS: git lfs pull fetches the image"),
)
"""Beginnings of files that Pillow cannot identify: offset, bytes, and what it is."""

_BY_WAY_OF = {"La": "LA", "RGBa": "RGBA", "LAB": "RGB"}

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""EXIF orientation, and the operation that undoes it. ``ImageOps.exif_transpose`` fails where other EXIF is damaged."""


def read_image(
    source: Source, channels: int = 3, size: int | None = None, name: str = "", transform: Transform | None = None
) -> NDArray[Any]:
    """Read one image.

    Parameters
    ----------
    source : str, Path, bytes, IO[bytes] or PIL.Image.Image
        Path, content of a file, open file, or image of Pillow.
    channels : int, default=3
        Number of channels to convert to: 1 (grey), 3 (RGB) or 4 (RGBA).
    size : int, optional
        The shorter side is resized to this and the centre is cropped; None keeps the image as it is.
    name : str, default=""
        Name of the image in errors; the path when empty.
    transform : callable, optional
        From an image of Pillow of 8 bits to a tensor ``(C, H, W)``, in place of resizing to ``size``.

    Returns
    -------
    ndarray of shape (C, H, W)
        uint8; or float32 in [0, 1] if the image has one channel of more than 8 bits.

    Raises
    ------
    DataError
        If it is not an image, is truncated or damaged, has more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``, one side
        more than :data:`MAX_ASPECT` times the other, or numbers of unknown scale.
    """
    if transform is not None:
        return transform(open_image(source, channels, name)).numpy()
    name = name or _name(source)
    image = _decode(source, name)
    if (grey := _deep(image, name)) is not None:
        if size is not None:
            small = resize_centre(Image.fromarray(grey), size)
            grey = np.asarray(small).clip(0.0, 1.0)  # bicubic interpolation overshoots
        bands = [grey] * min(channels, 3) + [np.ones_like(grey)] * (channels == 4)
        return np.stack(bands)
    if size is not None and channels == 3 and image.mode in ("1", "L"):  # one channel is resized in place of three
        return np.stack([np.asarray(resize_centre(image.convert("L"), size))] * 3)
    image = _convert(image, channels, name)
    image = image if size is None else resize_centre(image, size)
    return np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)


def open_image(source: Source, channels: int = 3, name: str = "") -> Image.Image:
    """Read one image as an image of Pillow, of 8 bits, upright; arguments and errors are those of :func:`read_image`.

    Transforms of timm and torchvision work on these. Images of more than 8 bits are rounded to 8.
    """
    name = name or _name(source)
    image = _decode(source, name)
    if (grey := _deep(image, name)) is not None:
        _warn_of_lost_depth(grey, name)
        image = Image.fromarray((grey * 255).round().astype(np.uint8))
    return _convert(image, channels, name)


def resize_centre(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to ``size`` and cut out the centre of ``size`` x ``size`` pixels."""
    scale = size / min(image.size)
    resized = tuple(max(size, round(side * scale)) for side in image.size)
    left, top = ((side - size) // 2 for side in resized)
    return resize_part(image, (resized[0], resized[1]), (left, top), (size, size))


def resize_part(
    image: Image.Image, resized: tuple[int, int], corner: tuple[int, int], size: tuple[int, int]
) -> Image.Image:
    """The part of ``size`` at ``corner`` of the image resized to ``resized``; all are (width, height).

    An image of usual shape is resized and then cropped. Of an elongated one only the part is made: the rest, 13 GiB for
    1 x 60,000 pixels, would be thrown away. Both give the same pixels but for rounding between the two passes of the
    filter, which is why usual images do not take the second way: models fitted before would see other pixels.
    """
    if resized[0] * resized[1] <= 4 * size[0] * size[1]:
        whole = image.resize(resized, Image.Resampling.BICUBIC)
        return whole.crop((*corner, corner[0] + size[0], corner[1] + size[1]))
    across, down = (old / new for old, new in zip(image.size, resized, strict=True))
    left, top = corner[0] * across, corner[1] * down
    right, bottom = (corner[0] + size[0]) * across, (corner[1] + size[1]) * down
    box = (left, top, min(right, image.width), min(bottom, image.height))  # rounding may exceed the image
    return image.resize(size, Image.Resampling.BICUBIC, box=box)


def readable_endings() -> dict[str, str]:
    """For each of :data:`ENDINGS`: nothing (``""``) if files of it can be decoded here, or what to install."""
    formats = _formats()
    needs = {ending: "" if kind in formats else how for ending, (kind, how) in _PLUGINS.items()}
    return {ending: needs.get(ending, "") for ending in ENDINGS}


def _formats() -> list[str]:
    """Formats that Pillow, and the plugins that are installed, can decode."""
    Image.init()
    if "HEIF" not in Image.OPEN and importlib.util.find_spec("pillow_heif") is not None:
        importlib.import_module("pillow_heif").register_heif_opener()
    if "JXL" not in Image.OPEN and importlib.util.find_spec("pillow_jxl") is not None:
        importlib.import_module("pillow_jxl")  # registers itself
    return [name for name in _FORMATS if name in Image.OPEN]


def _name(source: Source) -> str:
    if isinstance(source, str | Path):
        return str(source)
    named = getattr(source, "name", None) or getattr(source, "filename", None)
    return str(named) if named else "an image"


def _decode(source: Source, name: str) -> Image.Image:
    """The first frame, decoded and upright, in its own mode."""
    if isinstance(source, str | Path) and Path(source).exists() and not Path(source).is_file():
        raise DataError(f"{name} cannot be read as an image: it is not a file")  # a pipe would never end
    try:
        if isinstance(source, Image.Image):
            return _upright(source, name)
        formats = _formats()
        if Path(name).suffix.lower() in (".tga", ".icb", ".vda", ".vst"):
            formats = [*formats, "TGA"]  # it has no signature: whatever no other format takes could be one
        file: Any = io.BytesIO(source) if isinstance(source, bytes | bytearray | memoryview) else source
        with Image.open(file, formats=formats) as image:
            _check_size(image, name)
            return _upright(image, name)
    except DataError:
        raise
    # Decoders raise whatever they come across in a damaged file: OSError, SyntaxError, ValueError, struct.error, ...
    except Exception as error:
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            text = f"cannot identify its format{_what_it_is(source)}"
        raise DataError(f"{name} cannot be read as an image: {text}") from None


def _upright(image: Image.Image, name: str) -> Image.Image:
    _check_size(image, name)
    deep_colour = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())) and len(image.getbands()) > 1
    image.load()
    extremes: Any = image.getextrema() if deep_colour else ()
    if deep_colour and max(high for _, high in extremes[:3]) < 16:
        warnings.warn(
            f"{name} has 16 bits per channel, of which Pillow reads the upper 8, and uses a small part of them: "
            "stretch it, or give arrays",
            stacklevel=2,
        )
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF: the pixels are fine
        orientation = 1
    operation = _UPRIGHT.get(orientation)
    if operation is None:
        return image
    turned = image.transpose(operation)
    turned.format, turned.tag_v2 = image.format, getattr(image, "tag_v2", {})  # type: ignore[attr-defined]
    return turned


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if min(width, height) < 1:
        raise DataError(f"{name} is {height} x {width} pixels: there is nothing in it")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise DataError(
            f"{name} is {height} x {width} = {width * height} pixels, at most {limit} are read (PIL.Image."
            "MAX_IMAGE_PIXELS): scale it down, or raise that limit"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise DataError(
            f"{name} is {height} x {width} pixels: one side is more than {MAX_ASPECT} times the other. Cut it into "
            "pieces"
        )


def _what_it_is(source: Source) -> str:
    """What a file is that is not an image, after its first bytes."""
    try:
        if isinstance(source, str | Path):
            with open(source, "rb") as file:
                head = file.read(32)
        elif isinstance(source, bytes):
            head = source[:32]
        else:
            source.seek(0)
            head = source.read(32)  # type: ignore[union-attr]
    except (OSError, AttributeError, ValueError):
        return ""
    if not head:
        return " (it is empty)"
    for offset, beginnings, meaning in _MAGIC:
        if head[offset:].lstrip(b"\xef\xbb\xbf").startswith(beginnings):
            return f" (it is {meaning})"
    return ""


def _convert(image: Image.Image, channels: int, name: str) -> Image.Image:
    """To grey, RGB or RGBA of 8 bits. Transparency is dropped for grey and RGB, as torchvision's loader does."""
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # the same colours; Pillow asks for this step
    try:
        if image.mode in _BY_WAY_OF:  # Pillow has no direct way to all others
            image = image.convert(_BY_WAY_OF[image.mode])
        return image.convert(MODES[channels])
    except ValueError as error:
        raise DataError(f"{name} cannot be read as an image: {error}. Convert it to RGB") from None


def _deep(image: Image.Image, name: str) -> NDArray[np.float32] | None:
    """An image of one channel with more than 8 bits as floats ``(H, W)`` in [0, 1]; None for all others."""
    if image.mode == "F":
        values = np.asarray(image, dtype=np.float32)
        _refuse_other_floats(values, name)
        values = values.clip(0.0, 1.0)
    elif image.mode == "I" or image.mode.startswith("I;"):
        values = _scale_integers(image, name)
    else:
        return None
    return 1 - values if _tag(image, 262, 1) == 0 else values  # TIFF: WhiteIsZero, which Pillow inverts for 8 bits only


def _refuse_other_floats(values: NDArray[np.float32], name: str) -> None:
    if not np.isfinite(values).all():
        raise DataError(f"{name} has a pixel that is NaN or infinite")
    low, high = float(values.min()), float(values.max())
    if low < -1e-4 or high > 1 + 1e-4:
        raise DataError(
            f"{name} has floating-point pixels from {low:g} to {high:g}: floats have no depth to be scaled by, so they "
            "must lie between 0 and 1. Save it as 8 or 16 bits, or give arrays"
        )


def _scale_integers(image: Image.Image, name: str) -> NDArray[np.float32]:
    bits, signed = 16, False
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # of which Pillow made 16 bits
        if image.format != "TIFF":
            raise DataError(
                f"{name} is an image of mode I, whose depth is not known: make it one of mode I;16 or L, or an array"
            )
        bits, signed = _tag(image, 258, 32), _tag(image, 339, 1) == 2
    elif image.format == "TIFF":
        bits = _tag(image, 258, 16)  # 12 bits stay 12 bits
    values = np.asarray(image).astype(np.int64)
    if image.mode == "I" and not signed:
        values &= 0xFFFFFFFF  # Pillow reads unsigned numbers as signed ones
    low, high, white = int(values.min()), int(values.max()), 2 ** (bits - signed) - 1
    if low < 0 or high > white:
        raise DataError(f"{name} has pixels from {low} to {high}, expected 0 to {white}")
    if bits == 32 and 0 < high < 2**16:  # scaled by 32 bits it would be black
        raise DataError(
            f"{name} has 32 bits per pixel, but its pixels end at {high}: save it as 8 or 16 bits, or give arrays"
        )
    return (values / white).astype(np.float32)


def _tag(image: Image.Image, number: int, default: int) -> int:
    """A tag of a TIFF file: 258 bits per sample, 262 photometric interpretation, 339 sample format."""
    if image.format != "TIFF":
        return default
    value = getattr(image, "tag_v2", {}).get(number, default)
    return int(value[0] if isinstance(value, tuple) else value)


def _warn_of_lost_depth(grey: NDArray[np.float32], name: str) -> None:
    """Say where 8 bits leave too little of an image that uses a small part of its depth."""
    levels = round(255 * float(grey.max() - grey.min())) + 1
    if levels < 16 and len(np.unique(grey[:: max(1, len(grey) // 64)])) > levels:
        warnings.warn(
            f"{name} uses a small part of its depth, of which 8 bits keep {levels} grey values: stretch it, or fit "
            "a WideNetClassifier, which keeps all of them",
            stacklevel=3,
        )
