"""JSON that people read: letters of every language stand as they are, without escapes."""

import json
from typing import Any

__all__ = ["json_bytes", "json_text"]

_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}
"""Ends of lines for some readers of text, such as ``str.splitlines``: a line of NDJSON must not break there."""


def json_text(content: Any, **options: Any) -> str:
    """JSON text that UTF-8 can hold.

    Parameters
    ----------
    content : Any
        What ``json.dumps`` takes.
    **options
        Of ``json.dumps``, such as ``indent``.

    Returns
    -------
    str
        The text; in ASCII where a string has half of a surrogate pair, which no encoding can hold.

    Raises
    ------
    ValueError, TypeError
        As ``json.dumps``.
    """
    text = json.dumps(content, ensure_ascii=False, **options)
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(content, **options)
    return text.translate(_LINE_ENDS)


def json_bytes(content: Any, **options: Any) -> bytes:
    """:func:`json_text` in UTF-8."""
    return json_text(content, **options).encode()
