"""Read YAML files of unknown origin within bounds of time and memory.

A YAML of a few hundred bytes whose aliases refer to lists of aliases has billions of values once it is walked through.
So the events of a text are counted first, which takes time in proportion to its length, and only then it is loaded.
"""

import os
import stat
from collections.abc import Iterator
from typing import Any

import yaml

from moeapps.core.errors import FileFormatError

__all__ = ["MAX_BYTES", "TagRefused", "check_file", "check_yaml", "flat", "parse_yaml", "read_text", "read_yaml"]

MAX_BYTES = 1_000_000
"""Length of the longest text that is read; configurations of runs have a few thousand bytes."""

_MAX_VALUES = 50_000
_MAX_DEPTH = 100
_TAGS = "tag:yaml.org,2002:"
_NAMES = ("str", "int", "float", "bool", "null", "seq", "map", "set", "binary", "timestamp", "omap", "pairs", "merge")
_KNOWN_TAGS = {f"{_TAGS}{name}" for name in _NAMES} | {"!", None}
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where libyaml was there


class TagRefused(FileFormatError):
    """The text has a tag, or is no YAML but begins like one that has."""


def read_text(path: str | os.PathLike[str], limit: int = MAX_BYTES) -> str:
    """Text of a small file.

    Parameters
    ----------
    path : str or path
        The file.
    limit : int, default=1000000
        Number of bytes that it may have.

    Raises
    ------
    OSError
        If it cannot be read.
    FileFormatError
        If it is longer, a device, or not text in UTF-8.
    """
    check_file(path, limit)
    with open(path, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise FileFormatError(_too_long(path, limit))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path} is not text in UTF-8 ({error})") from None


def check_file(path: str | os.PathLike[str], limit: int = MAX_BYTES) -> None:
    """Check that a path is a file of a length that can be read.

    Raises
    ------
    OSError
        If there is no such file.
    FileFormatError
        If it is a folder or a device, or longer.
    """
    found = os.stat(path)
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISFIFO(found.st_mode)):  # <(command) of a shell gives a pipe
        raise FileFormatError(f"{path} is not a file")
    if found.st_size > limit:
        raise FileFormatError(_too_long(path, limit))


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Content of a YAML file.

    Raises
    ------
    OSError
        If it cannot be read.
    FileFormatError
        If it is not YAML, or larger than what a configuration can be.
    """
    return parse_yaml(read_text(path), str(path))


def parse_yaml(text: str, name: str) -> Any:
    """Content of a YAML text, which is called ``name`` in an error.

    Raises
    ------
    FileFormatError
        If it is not YAML, or larger than what a configuration can be.
    """
    check_yaml(text, name)
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:  # a date of month 13 is a ValueError
        raise FileFormatError(f"{name}{_line(error)}: not a YAML file ({_problem(error)})") from None
    finally:
        loader.dispose()


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Values of nested dictionaries as text, with their keys joined by dots (``model.init_args.lr``)."""
    if isinstance(value, dict) and value:
        for name, part in value.items():
            yield from flat(part, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, str(value)


def check_yaml(text: str, name: str) -> None:
    """Check that a text is YAML that can be loaded and walked through in a second.

    Parameters
    ----------
    text : str
        The text.
    name : str
        What to call it in an error.

    Raises
    ------
    FileFormatError
        Naming the line: if it is not YAML, too long, nested too deep, has too many values once its aliases are
        replaced by what they refer to, refers to itself, or has tags, which would make objects of its values.
    """
    if len(text) > MAX_BYTES:
        raise FileFormatError(f"{name} has more than {MAX_BYTES:,} characters, which is too long for a configuration")
    sizes: dict[str, int] = {}  # of what an anchor stands for, without aliases
    opened: list[tuple[str | None, int]] = []  # anchors of the collections around, and the number of values before
    values = 0
    event: Any
    try:
        for event in yaml.parse(text, Loader=_Loader):
            line = event.start_mark.line + 1
            if isinstance(event, yaml.NodeEvent):
                values += 1
            if isinstance(event, yaml.AliasEvent):
                if any(anchor == event.anchor for anchor, _ in opened):
                    raise FileFormatError(f"{name}, line {line}: the alias *{event.anchor} is inside of what it means")
                values += sizes.get(str(event.anchor), 0)
            elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
                if event.tag not in _KNOWN_TAGS:
                    tag = str(event.tag).replace(_TAGS, "!!")
                    raise TagRefused(f"{name}, line {line}: the tag {tag} is not allowed, only plain values are")
                if isinstance(event, yaml.ScalarEvent):
                    sizes |= {event.anchor: 1} if event.anchor else {}
                else:
                    opened.append((event.anchor, values))
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, before = opened.pop()
                sizes |= {anchor: values - before} if anchor else {}
            if values > _MAX_VALUES:
                raise FileFormatError(f"{name}, line {line}: more than {_MAX_VALUES:,} values, aliases included")
            if len(opened) > _MAX_DEPTH:
                raise FileFormatError(f"{name}, line {line}: nested deeper than {_MAX_DEPTH} levels")
    except yaml.YAMLError as error:
        raise FileFormatError(f"{name}{_line(error)}: not a YAML file ({_problem(error)})") from None


def _too_long(path: str | os.PathLike[str], limit: int) -> str:
    return f"{path} has more than {limit:,} bytes, which is too long for a configuration"


def _line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f", line {mark.line + 1}" if mark is not None else ""


def _problem(error: Exception) -> str:
    return " ".join(str(getattr(error, "problem", None) or getattr(error, "reason", None) or error).split())
