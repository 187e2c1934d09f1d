"""Which files of a folder are images; what is left out is counted aloud."""

import os
import warnings
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePath

from moeapps.core.errors import DataError
from moeapps.core.files import similar
from moeapps.vision.reading import ENDINGS, readable_endings

__all__ = ["LeftOut", "find_images", "list_images"]

_SYSTEM = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "icon\r"}
"""Names, in lower case, that Windows, macOS and network drives write beside images."""

_HIDDEN = "hidden or written by the system"


class LeftOut:
    """Files that are no images to learn from, by the reason.

    Parameters
    ----------
    source : str
        The folder or archive, for the message.
    """

    def __init__(self, source: str | Path) -> None:
        self.source = source
        self._names: dict[str, list[str]] = defaultdict(list)
        self._needs = readable_endings()

    def __len__(self) -> int:
        return sum(map(len, self._names.values()))

    def add(self, reason: str, name: str) -> None:
        """Count a file."""
        self._names[reason].append(name)

    def takes(self, path: PurePath) -> bool:
        """Whether a file is to be read, judged by its name; it is counted if not."""
        ending = path.suffix.lower()
        if is_hidden(path.name):
            self.add(_HIDDEN, path.name)
        elif self._needs.get(ending) == "":
            return True
        elif ending in self._needs:
            self.add(f"{ending} ({self._needs[ending]})", path.name)
        else:
            self.add(ending or "without an ending", path.name)
        return False

    def extend(self, other: "LeftOut") -> None:
        """Count the files that another one counted."""
        for reason, names in other._names.items():
            self._names[reason] += names

    def __str__(self) -> str:
        parts = []
        for reason, names in sorted(self._names.items(), key=lambda item: (-len(item[1]), item[0])):
            different = sorted(set(names))
            some = ", ".join(different[:3]) + (", ..." if len(different) > 3 else "")
            parts.append(f"{len(names)} {reason}" if reason.startswith(".") else f"{len(names)} {reason} ({some})")
        return ", ".join(parts)

    def warn(self) -> None:
        """Say what was left out, if anything was."""
        if self._names:
            count = len(self)
            are = "file is" if count == 1 else "files are"
            warnings.warn(f"{self.source}: {count} {are} left out: {self}", UserWarning, stacklevel=4)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden (``._1.jpg``), or written by the system (``Thumbs.db``)."""
    return name.startswith(".") or name.lower() in _SYSTEM


def list_images(folder: str | Path) -> list[Path]:
    """List the image files of a folder and its subfolders, in order. What is left out is a warning.

    Raises
    ------
    DataError
        If there is no such folder, or no image in it.
    """
    if not Path(folder).is_dir():
        raise DataError(f"{folder} is not a folder")
    left_out = LeftOut(folder)
    files = _images_below(Path(folder), (), left_out)
    _refuse_empty(folder, files, left_out)
    left_out.warn()
    return files


def find_images(folder: str | Path) -> tuple[list[Path], list[int], list[str]]:
    """List the files of a folder, the codes of their classes, and the classes (sorted names of its subfolders).

    Links to folders are followed, but not those to a folder above them. Hidden files and folders, files of the system,
    files that are not images, and images that cannot be decoded here are left out with a warning that counts them.

    Raises
    ------
    DataError
        If there is no such folder, it has no subfolders, or one of them has no image.
    """
    root = Path(folder)
    if not root.is_dir():
        wrong = "is not a folder" if os.path.exists(folder) else f"does not exist{similar(folder)}"
        raise DataError(f"{folder} {wrong}: expected one folder of images per class in it")
    left_out = LeftOut(folder)
    above = (_identity(root),)
    classes = []
    for entry in sorted(root.iterdir()):
        if not entry.is_dir():
            reason = _HIDDEN if is_hidden(entry.name) else "beside the folders of the classes"
            left_out.add(reason, entry.name)
        elif is_hidden(entry.name):
            left_out.add(_HIDDEN, entry.name)
        elif _identity(entry) in _with_parents(root):
            left_out.add("links to a folder above", entry.name)
        else:
            classes.append(entry.name)
    if not classes:
        raise DataError(f"{folder} has no folders: expected one folder of images per class in it")
    files: list[Path] = []
    codes: list[int] = []
    for code, name in enumerate(classes):
        of_class = LeftOut(root / name)
        images = _images_below(root / name, above, of_class)
        _refuse_empty(root / name, images, of_class)
        left_out.extend(of_class)
        files += images
        codes += [code] * len(images)
    left_out.warn()
    return files, codes, classes


def _images_below(folder: Path, above: Iterable[tuple[int, int]], left_out: LeftOut) -> list[Path]:
    """Image files of a folder and its subfolders, sorted; ``above`` identifies the folders that it lies in."""
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()

    def visit(place: Path, parents: tuple[tuple[int, int], ...]) -> None:
        here = _identity(place)
        if here in parents or here in seen:  # a link back up would go on without end, a second one read images twice
            left_out.add("links to a folder that is read already", place.name)
            return
        seen.add(here)
        with os.scandir(place) as entries:
            for entry in entries:
                path = place / entry.name
                if path.is_dir():
                    if is_hidden(entry.name):
                        left_out.add(_HIDDEN, entry.name)
                    else:
                        visit(path, (*parents, here))
                elif not path.is_file():
                    left_out.add("broken links or no files" if entry.is_symlink() else "not files", entry.name)
                elif left_out.takes(path):
                    found.append(path)

    visit(folder, tuple(above))
    return sorted(found)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _with_parents(root: Path) -> set[tuple[int, int]]:
    resolved = root.resolve()
    return {_identity(place) for place in (resolved, *resolved.parents)}


def _refuse_empty(folder: str | Path, files: list[Path], left_out: LeftOut) -> None:
    if not files:
        there = f"; it has {left_out}" if len(left_out) else ""
        raise DataError(f"{folder} has no image (files that end in {', '.join(ENDINGS)}){there}")
