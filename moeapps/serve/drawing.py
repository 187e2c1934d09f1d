"""Images that a generator is asked for: what a request costs, in which blocks it is computed, and its answer's form.

An image of a seed is computed in the same block of images whatever else the server does, so that the same request gets
the same images, to the bit, however its blocks were shared out.
"""

import base64
import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeapps.serve.limits import Limits
from moeapps.serve.refusal import Refusal

__all__ = ["BLOCK", "blocks_of", "grid", "png", "sample_content", "wants_png"]

BLOCK = 8
"""Images that are generated at once; a request is cut between blocks only."""


def blocks_of(n: int) -> int:
    """How many blocks n images are."""
    return -(-n // BLOCK)


def sample_content(body: dict[str, Any], description: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """What the worker is told to generate, from a checked body.

    Raises
    ------
    Refusal
        Naming the field, if labels are unknown or not as many as images, or if the whole is too much.
    """
    labels = _labels(body, description)
    n = body["n"] if body["n"] is not None else len(labels) if labels is not None else 1
    guidance = body.get("guidance", 1.0)
    if n > limits.sample_images:
        raise _refused("y", f"{n} labels, at most {limits.sample_images} images are generated per request")
    values = math.prod(description["shape"])
    work = n * body["steps"] * values * (1 if guidance in (0, 1) else 2)
    if work > limits.sample_work:
        twice = "" if guidance in (0, 1) else ", twice with guidance"
        raise _refused(
            "n",
            f"n={n} images of {values} values in steps={body['steps']}{twice} are {work}, at most {limits.sample_work} "
            "per request: ask for fewer images or steps",
        )
    if labels is not None and len(labels) == 1:
        labels = labels * n
    if labels is None and description["classes"] is not None:  # all classes in turn, as the model has it
        labels = [description["classes"][i % len(description["classes"])] for i in range(n)]
    options = {name: body[name] for name in ("steps", "sampler", "eta", "seed")}
    return {
        **options,
        "n": n,
        "labels": labels,
        "guidance": guidance,
        "form": body["form"],
        "seconds": limits.timeout,
        "first_block": 0,
        "blocks": blocks_of(n),
    }


def _labels(body: dict[str, Any], description: dict[str, Any]) -> list[Any] | None:
    """One label, or one per image, as the model has them."""
    given = body.get("y")
    if given is None:
        return None
    wanted = given if isinstance(given, list) else [given]
    known = description["classes"]
    for number, label in enumerate(wanted):
        if label not in known:
            place = f"y.{number}" if isinstance(given, list) else "y"
            shown = ", ".join(repr(name) for name in known[:20]) + (", ..." if len(known) > 20 else "")
            raise _refused(place, f"{str(label)[:100]!r} is no class of the model; there are {shown}")
    if body["n"] is not None and len(wanted) not in (1, body["n"]):
        raise _refused("y", f"{len(wanted)} labels for n={body['n']} images: give one label, or one per image")
    return [known[known.index(label)] for label in wanted]


def _refused(field: str, fault: str) -> Refusal:
    return Refusal(422, "invalid_request", f"{field}: {fault}", faults=[{"field": field, "fault": fault}])


def wants_png(accept: str) -> bool:
    """Whether an ``Accept`` header prefers ``image/png`` to JSON."""
    weights = {"image/png": 0.0, "application/json": 0.0}
    for part in accept.lower().split(","):
        name, *parameters = (text.strip() for text in part.split(";"))
        if name not in weights:
            continue
        weight = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        try:
            weights[name] = float(weight)
        except ValueError:
            weights[name] = 0.0
    return weights["image/png"] > weights["application/json"]


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file of pixels ``(S, S)`` or ``(S, S, C)`` with 3 or 4 channels."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def grid(files: list[str], columns: int | None) -> bytes:
    """One PNG file of many, row by row with a line of one pixel between them.

    Parameters
    ----------
    files : list of str
        PNG files of equal size as base64.
    columns : int, optional
        Images per row; about as many as rows when None.
    """
    from PIL import Image

    images = [Image.open(io.BytesIO(base64.b64decode(file))) for file in files]
    columns = min(columns or math.isqrt(len(images) - 1) + 1, len(images))
    rows = -(-len(images) // columns)
    width, height = images[0].size
    white: Any = 255 if images[0].mode == "L" else (255,) * len(images[0].getbands())
    whole = Image.new(images[0].mode, (columns * (width + 1) - 1, rows * (height + 1) - 1), white)
    for number, image in enumerate(images):
        whole.paste(image, (number % columns * (width + 1), number // columns * (height + 1)))
    return png(np.asarray(whole))
