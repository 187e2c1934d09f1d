"""Image files inside JSON: base64, or URLs that hold their own data."""

import base64
import binascii

from moeapps.core.errors import DataError

__all__ = ["MAX_IMAGES", "decode_file"]

MAX_IMAGES = 1000
"""Images that a request may have."""


def decode_file(text: str, name: str) -> bytes:
    """A file from base64, or from a URL of the form ``data:image/png;base64,...``.

    Parameters
    ----------
    text : str
        What the client sent.
    name : str
        Its place, for errors.

    Raises
    ------
    DataError
        If it is neither; other URLs are not fetched.
    """
    content = text
    if text[:5].lower() == "data:":
        head, comma, content = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise DataError(f"{name} is a data URL, but not of the form data:image/png;base64,...")
    elif "://" in text[:20]:
        raise DataError(f"{name} is a URL, which is not fetched: send the file as base64, or upload it (multipart)")
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{name} is not base64: {error}") from None
