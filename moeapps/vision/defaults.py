"""What the arguments of the image classifier are where nobody says: "auto" by the images, and in files of 0.1."""

import math
from typing import Any

from moeapps.core.checks import check_below_one, check_sizes
from moeapps.core.errors import ConfigError

__all__ = ["BEFORE", "automatic", "check_automatic", "patch_side"]

BEFORE: dict[str, Any] = {
    "stem": "patch", "global_pool": "token", "init_values": None, "ema_decay": 0.0, "max_time": None,
}  # fmt: skip
"""What arguments that 0.1 did not have are in what it saved."""

HELD_OUT = 5_000
"""From so many images on a tenth is held out: of fewer, each counts more than knowing the best epoch."""


def patch_side(height: int, width: int, stem: str) -> int:
    """Side of a patch for images of a size, 2 to 16 pixels.

    About an eighth of the shorter side. The convolutional stem sees inside a patch, so that there it may be a quarter,
    up to 8 pixels; it is a power of two, which is a product of strides of 2.
    """
    side = min(height, width)
    eighth = max(2.0, min(16.0, side / 8))
    return 2 ** round(math.log2(max(eighth, min(8.0, side / 4)))) if stem == "conv" else round(eighth)


def automatic(n: int, channels: int) -> dict[str, int | float]:
    """What "auto" means for n images.

    Few images are trained on for more epochs, since an epoch of them is few steps, many for fewer; photographs take
    longer to learn than digits.
    """
    fewer, more = math.sqrt(FEW / max(1, min(n, FEW))), math.sqrt(MANY / max(n, MANY))
    return {
        "batch_size": 32 if n < 1_000 else 64 if n < 20_000 else 128,
        "max_epochs": max(10, round((COLOUR_EPOCHS if channels >= 3 else GREY_EPOCHS) * min(fewer, 4.0) * more)),
        "validation_fraction": 0.0 if n < HELD_OUT else 0.1,
    }


GREY_EPOCHS, COLOUR_EPOCHS = 25, 40
"""Epochs for images of one channel and for colour images, of which there are as many as this:"""

FEW, MANY = 2_000, 10_000
"""Below and above, epochs change with the inverse root of the number of images."""


def check_automatic(batch_size: Any, max_epochs: Any, validation_fraction: Any, max_time: Any) -> None:
    """Refuse what is neither "auto" nor possible, naming the argument."""
    if batch_size != "auto":
        check_sizes(batch_size=batch_size)
    if max_epochs != "auto" and (isinstance(max_epochs, bool) or not isinstance(max_epochs, int) or max_epochs < 1):
        raise ConfigError(f"max_epochs must be 'auto' or a whole number of at least 1, got {max_epochs!r}")
    if validation_fraction != "auto":
        check_below_one(validation_fraction=validation_fraction)
    seconds = isinstance(max_time, int | float) and not isinstance(max_time, bool) and max_time > 0
    if max_time is not None and not seconds:
        raise ConfigError(f"max_time must be None or seconds above 0, got {max_time!r}")
