"""Which files a table is: one, those of a folder, those that a pattern names; here or behind a URL."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from moeapps.core.errors import FileFormatError
from moeapps.core.files import existing_file
from moeapps.core.tabledata.urls import RemoteFile, errors_of_url, filesystem, is_url, local_path

__all__ = ["COMPRESSED", "ENDINGS", "PartPath", "file_ending", "part_paths"]

COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")
"""Endings of compressed text files; Arrow decompresses them as it reads."""

ENDINGS = (".csv", ".tsv", ".parquet", ".ndjson", ".jsonl")
"""Endings of the files that are tables."""

EXPECTED = "a .csv, .tsv, .ndjson or .parquet file (text may be compressed: .csv.gz), or a folder of them"

PartPath = Path | RemoteFile
"""A file of a table."""


def file_ending(path: str | os.PathLike[str]) -> str:
    """Ending of a file's name that says what it is, without that of its compression, in lower case."""
    name = PurePosixPath(path).name.lower()
    for ending in COMPRESSED:
        if name.endswith(ending):
            name = name.removesuffix(ending)
            inner = PurePosixPath(name).suffix
            return inner if inner != ".parquet" else ""  # Parquet compresses within itself
    return PurePosixPath(name).suffix


def part_paths(path: str | os.PathLike[str]) -> list[PartPath]:
    """The files of a table, in the order of their names.

    Parameters
    ----------
    path : str or path
        A file, a folder, or a pattern (``parts/*.csv``, ``**`` for folders below); or a URL of such.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If a file is no table, or the files of a folder or pattern are of several kinds.
    ConfigError, MoEAppsError
        As :func:`~moeapps.core.tabledata.urls.filesystem`.
    """
    if is_url(path):
        return _remote_parts(str(path))
    path = local_path(path)
    if glob.has_magic(path) and not os.path.exists(path):
        found = [Path(name) for name in sorted(glob.glob(path, recursive=True)) if os.path.isfile(name)]
        return _of_one_kind(found, path, "a pattern that matches no")
    if os.path.isdir(path):
        found = sorted(part for part in Path(path).rglob("*") if part.is_file())
        return _of_one_kind(found, path, "a folder without a", below=path)
    return [_table(existing_file(path, EXPECTED), path)]


def _remote_parts(url: str) -> list[PartPath]:
    system, path = filesystem(url)
    with errors_of_url(url):
        if glob.has_magic(path) and not system.exists(path):
            found = [RemoteFile(system, name) for name in sorted(system.glob(path)) if system.isfile(name)]
            return _of_one_kind(found, url, "a pattern that matches no")
        if system.isdir(path):
            found = [RemoteFile(system, name) for name in sorted(system.find(path))]
            return _of_one_kind(found, url, "a folder without a", below=str(RemoteFile(system, path)))
        if not system.exists(path):
            raise FileNotFoundError
    return [_table(RemoteFile(system, path), url)]


def _table(file: PartPath, path: str) -> PartPath:
    if file_ending(file) not in ENDINGS:
        raise FileFormatError(f"{path}: expected {EXPECTED}")
    return file


def _of_one_kind(found: Sequence[PartPath], path: str, nothing: str, below: str | None = None) -> list[PartPath]:
    """The tables among files; hidden ones are left out, and so are those that Spark and others note things in."""
    parts = [part for part in found if file_ending(part) in ENDINGS and not part.name.startswith((".", "_"))]
    if not parts:
        raise FileFormatError(f"{path} is {nothing} .csv, .tsv, .ndjson or .parquet file")
    endings = {file_ending(part) for part in parts}
    if len(endings) > 1:
        what = "a folder of" if below is not None else "a pattern that matches"
        raise FileFormatError(f"{path} is {what} {' and '.join(sorted(endings))} files, expected one kind")
    start = "" if below is None else below
    for part in parts:
        inner = str(part).removeprefix(start).lstrip("/")
        if "=" in PurePosixPath(inner).parent.as_posix():
            raise FileFormatError(
                f"{path}: {inner} keeps a column in the name of its folder: read it with pandas.read_parquet and give "
                "the frame"
            )
    return parts
