"""The file of a saved model: one JSON document and the tensors, in safetensors, with a checksum of every bit.

The header of a safetensors file may carry text. Ours carries one JSON document (class, constructor arguments, fitted
state, versions) and the SHA-256 of the whole file (computed with zeros where the digest itself stands). No number of a
file is trusted before it was compared with the file's size.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

import moeapps
from moeapps import registry
from moeapps.core.card import is_training_record
from moeapps.core.errors import ConfigError, FileFormatError
from moeapps.core.files import atomic_write
from moeapps.core.saved_tensors import AnyTensor, from_safetensors, to_safetensors

__all__ = [
    "FORMAT",
    "digest_span",
    "faults_named",
    "read_document",
    "read_document_bytes",
    "write_document",
    "write_document_bytes",
]

FORMAT = 1
"""Number of the file format; a file with a larger one was written by a newer moeapps."""

_DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')
_MAX_HEADER = 100_000_000  # as safetensors
_MAX_CONTAINERS = 5_000_000
"""Largest number of lists and objects in a document: a pair of brackets is two bytes of a file and 56 of memory."""


def write_document(path: str | os.PathLike[str], document: dict[str, Any], tensors: Mapping[str, AnyTensor]) -> None:
    """Write a document and tensors, atomically; equal ones make equal files, byte for byte.

    Parameters
    ----------
    path : str or path
        Where to.
    document : dict
        JSON values.
    tensors : mapping of str to Tensor or array
        Tensors by name, of torch or of NumPy.

    Raises
    ------
    OSError
        If the disk refuses; the old file is then unchanged.
    ConfigError
        If names and texts are longer than a file may have; the old file is then unchanged.
    """
    head, data = _content(document, tensors, str(path))
    with atomic_write(path) as file:
        file.write(head)
        file.write(data)


def write_document_bytes(document: dict[str, Any], tensors: Mapping[str, AnyTensor]) -> bytes:
    """What :func:`write_document` would write to a file.

    Raises
    ------
    ConfigError
        If names and texts are longer than a file may have.
    """
    return b"".join(_content(document, tensors, "the state"))


def _content(document: dict[str, Any], tensors: Mapping[str, AnyTensor], name: str) -> tuple[bytearray, memoryview]:
    body = memoryview(to_safetensors(tensors))
    size = int.from_bytes(body[:8], "little")
    # safetensors writes the entries of the metadata in the order of a hash table, which differs from run to run
    metadata = {"moeapps": json.dumps(document, allow_nan=False), "sha256": "0" * 64}
    header = json.dumps({"__metadata__": metadata, **json.loads(bytes(body[8 : 8 + size]))}, separators=(",", ":"))
    start = header.encode()
    start += b" " * (-len(start) % 8)  # the data stay aligned
    if len(start) > _MAX_HEADER:  # which nobody could read again
        raise ConfigError(
            f"{name} would have {len(start):,} bytes of names and texts besides its arrays, at most {_MAX_HEADER:,} "
            "are possible: keep fewer categories, names, or events that wait for their label"
        )
    head = bytearray(len(start).to_bytes(8, "little") + start)
    first, last = digest_span(head)
    digest = hashlib.sha256(head)
    digest.update(body[8 + size :])
    head[first:last] = digest.hexdigest().encode()
    return head, body[8 + size :]


def read_document(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what :func:`write_document` wrote, or safetensors with the same two entries.

    Needs at most twice the size of the file in memory.

    Returns
    -------
    document : dict
        The document.
    tensors : dict
        Arrays of NumPy by name; tensors of torch if one is of a type that NumPy lacks
        (:func:`~moeapps.core.saved_tensors.as_tensors` makes one kind of them).

    Raises
    ------
    FileFormatError
        If it is damaged, incomplete, or not such a file.
    """
    size = file.stat().st_size
    with open(file, "rb") as stream:
        start = stream.read(8)
        _header_size(start, size, file)  # before the rest is read: a file may be huge
        return read_document_bytes(start + stream.read(size - 8), file)


def _header_size(start: bytes, size: int, source: Path) -> int:
    if size < 8:
        raise FileFormatError(f"{_damaged(source, size)}: it ends before its header")
    header_size = int.from_bytes(start, "little")
    if header_size > _MAX_HEADER:  # eight bytes of something else
        raise FileFormatError(f"{source} is not a model saved by moeapps, or it is damaged: it does not begin as one")
    if not 2 <= header_size <= size - 8:
        raise FileFormatError(f"{_damaged(source, size)}: its header should be {header_size} bytes long")
    return header_size


def _damaged(source: Path, size: int) -> str:
    return f"{source} ({size} bytes) is damaged or incomplete, or not a model saved by moeapps"


def read_document_bytes(content: bytes, source: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the content of a file.

    Parameters
    ----------
    content : bytes
        The content.
    source : Path
        Where it is from, for messages.

    Raises
    ------
    FileFormatError
        As :func:`read_document`.
    """
    header_size = _header_size(content[:8], len(content), source)
    damaged = _damaged(source, len(content))
    try:
        start, end = digest_span(content)
    except ValueError:
        raise FileFormatError(f"{damaged}: it has no checksum") from None
    whole = memoryview(content)
    digest = hashlib.sha256(whole[:start])
    digest.update(b"0" * 64)
    digest.update(whole[end:])
    if digest.hexdigest().encode() != whole[start:end]:
        raise FileFormatError(f"{damaged}: its SHA-256 does not match its content")
    try:
        header = _parse(content[8 : 8 + header_size].decode())
        document = _parse(header["__metadata__"]["moeapps"])
        tensors = from_safetensors(content)
    except (KeyError, TypeError, ValueError, RecursionError, MemoryError, SafetensorError) as error:
        raise FileFormatError(f"{damaged}: {error}") from None
    return _checked(document, source), tensors


def digest_span(content: bytes | bytearray) -> tuple[int, int]:
    """Where the digest stands in the content of a file.

    Raises
    ------
    ValueError
        If there is none.
    """
    header_size = int.from_bytes(content[:8], "little")
    found = _DIGEST.search(content, 8, 8 + header_size)
    if found is None:
        raise ValueError("no digest")
    return found.span(1)


def _parse(text: str) -> Any:
    """Parse JSON strictly: no duplicate keys, no NaN, no infinity.

    Raises
    ------
    ValueError
        If it is not JSON, or one of these.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a key occurs twice in its JSON")
        return result

    def finite(number: str) -> float:
        value = float(number)
        if not math.isfinite(value):  # NaN, Infinity, and 1e999
            raise ValueError(f"its JSON holds {number[:40]}")
        return value

    if text.count("[") + text.count("{") > _MAX_CONTAINERS:
        raise ValueError("its JSON has too many lists and objects")
    return json.loads(text, object_pairs_hook=unique, parse_float=finite, parse_constant=finite)


def _checked(document: Any, file: Path) -> dict[str, Any]:
    number = document.get("format") if isinstance(document, dict) else None
    if not isinstance(number, int):
        raise FileFormatError(f"{file} has no format number: not a model saved by moeapps")
    if number > FORMAT:
        versions = document.get("versions")
        version = versions.get("moeapps", "unknown") if isinstance(versions, dict) else "unknown"
        raise FileFormatError(
            f"{file} has format {number} (moeapps {version}); moeapps {moeapps.__version__} reads up to format "
            f"{FORMAT}. Upgrade moeapps to load it"
        )
    if number < 1:
        raise FileFormatError(f"{file} has format {number}, which never existed")
    kinds: dict[str, type] = {"class": str, "arguments": dict, "state": dict, "versions": dict}
    for key, kind in kinds.items():
        if not isinstance(document.get(key), kind):
            raise FileFormatError(f"{file} is not a model saved by moeapps: {key!r} is missing or malformed")
    if not is_training_record(document.get("trained_on")):
        raise FileFormatError(f"{file} is not a model saved by moeapps: 'trained_on' is malformed")
    if not registry.are_parts(document.get("parts", [])):
        raise FileFormatError(f"{file} is not a model saved by moeapps: 'parts' is malformed")
    return document


@contextmanager
def faults_named(source: Path, class_path: str) -> Iterator[None]:
    """Context in which whatever contradicts itself is an error that names the file.

    Parameters
    ----------
    source : Path
        The file.
    class_path : str
        What is being built from it.

    Raises
    ------
    FileFormatError
        For every error but ImportError: a library that is not installed is no fault of the file.
    """
    try:
        yield
    except ImportError:
        raise
    except FileFormatError as error:  # a part that was asked for its own state does not know the file
        if str(source) in str(error):
            raise
        raise FileFormatError(f"{source}: {error}") from error
    except Exception as error:  # the constructor that stumbles says how
        raise FileFormatError(f"{source} does not fit {class_path}: {type(error).__name__}: {error}") from error
