"""Events and sources: the types that files, standard input and Kafka share."""

import json
import math
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Event", "Source", "parse_object"]


@dataclass(slots=True)
class Event:
    """One event.

    Attributes
    ----------
    position : JSON value
        Position of the source after this event.
    fields : dict[str, Any] or None
        Its fields by name; None where the event could not be read.
    error : str, optional
        Why it could not.
    raw : str, optional
        The text that could not be read, for the rejects file.
    where : str, default ''
        Place of the event, for messages ("line 17").
    """

    position: Any
    fields: dict[str, Any] | None
    error: str | None = None
    raw: str | None = None
    where: str = ""


class Source(Protocol):
    """What a stream run needs of a source.

    Sources of this package also have ``mark(position)``, the JSON value that a checkpoint stores to know the source
    again, and ``resume_at(mark)``, which refuses another source.
    """

    @property
    def endless(self) -> bool:
        """Whether more events may come after none has. It may change: a pipe ends."""

    def read(self, n: int) -> list[Event]:
        """Up to ``n`` events; an empty list at the end, or where none has come for a moment."""

    def seek(self, position: Any) -> None:
        """Go on after this position."""

    def close(self) -> None:
        """Close files and connections."""


def parse_object(content: bytes | None, position: Any, where: str) -> Event:
    """Event from the JSON object in ``content``. NaN, which JSON does not have but many write, is missing."""
    try:
        text = (content or b"").removeprefix(b"\xef\xbb\xbf").decode()
        fields = _DECODER.decode(text)
        # where the number of names is not plain to see, names that occur twice are looked for
        if not isinstance(fields, dict) or text.count('":') != len(fields):
            fields = _CAREFUL.decode(text)
        if not isinstance(fields, dict):
            raise ValueError(f"expected a JSON object, got {type(fields).__name__}")
    except (ValueError, RecursionError) as error:
        raw = (content or b"").decode("utf-8", errors="replace").rstrip("\n")[:2000]
        return Event(position, None, f"not a JSON object: {error}", raw, where)
    return Event(position, fields, where=where)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return found


_CONSTANTS = {"NaN": None, "Infinity": math.inf, "-Infinity": -math.inf}
_DECODER = json.JSONDecoder(parse_constant=_CONSTANTS.__getitem__)
_CAREFUL = json.JSONDecoder(parse_constant=_CONSTANTS.__getitem__, object_pairs_hook=_unique)
