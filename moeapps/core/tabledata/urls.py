"""Tables behind URLs (``s3://``, ``gs://``, ``memory://``), by the fsspec plugin that the user has installed."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from moeapps.core.errors import ConfigError, MoEAppsError
from moeapps.registry import nearest

__all__ = ["RemoteFile", "errors_of_url", "filesystem", "is_url", "local_path", "removed", "uploaded"]

_URL = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+://")


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path names a file system of fsspec; that of this machine (``file://``) is not meant."""
    return _URL.match(str(path)) is not None and not str(path).startswith("file://")


def local_path(path: str | os.PathLike[str]) -> str:
    """A path of this machine without ``file://``."""
    return os.fspath(path).removeprefix("file://")


class RemoteFile:
    """A file behind a URL, for what reads a :class:`~pathlib.Path` otherwise.

    Parameters
    ----------
    system : AbstractFileSystem
        Its file system.
    path : str
        Where it is there.
    """

    def __init__(self, system: Any, path: str) -> None:
        self.system, self.path = system, path

    @property
    def name(self) -> str:
        """Last part of the path."""
        return PurePosixPath(self.path).name

    def open(self) -> BinaryIO:
        """The file, open to be read in pieces.

        Raises
        ------
        MoEAppsError
            Naming the URL, if it cannot be opened.
        """
        with errors_of_url(str(self)):
            file: BinaryIO = self.system.open(self.path, "rb")
        return file

    def __str__(self) -> str:
        return str(self.system.unstrip_protocol(self.path))

    def __fspath__(self) -> str:
        return str(self)


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises
    ------
    ConfigError
        If fsspec does not know the protocol, or its package is not installed.
    MoEAppsError
        If the file system cannot be reached.
    """
    import fsspec
    from fsspec.registry import known_implementations

    protocol = url.partition("://")[0]
    try:
        with errors_of_url(url):
            system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = known_implementations[protocol]["class"].partition(".")[0]
        install = f"pip install {package}" if package != "fsspec" else " ".join(str(error).split())
        raise ConfigError(f"{url}: {protocol}:// needs a package that is not installed: {install}") from None
    except ValueError as error:
        guess = nearest(protocol, list(known_implementations))
        raise ConfigError(
            f"{url}: {protocol}:// is no file system that fsspec knows"
            + (f"; did you mean {guess}://?" if guess else f": {error}")
        ) from None
    return system, path


@contextmanager
def errors_of_url(url: str) -> Iterator[None]:
    """Let errors of a plugin, which may be of any class, name the URL in one line."""
    try:
        yield
    except (ImportError, ValueError, MoEAppsError):
        raise
    except FileNotFoundError:
        raise FileNotFoundError(f"{url} does not exist") from None
    except Exception as error:
        text = " ".join(str(error).split())
        raise MoEAppsError(f"{url}: {type(error).__name__}: {text}") from error


@contextmanager
def uploaded(url: str) -> Iterator[BinaryIO]:
    """Open a file of this machine; when the block ends well, it is sent to a URL.

    Object stores show a file once all of it has arrived. Where sending fails, what other stores keep of it is removed.

    Parameters
    ----------
    url : str
        Where the file shall be.

    Raises
    ------
    ConfigError, MoEAppsError
        As :func:`filesystem`, or if it cannot be written.
    """
    system, path = filesystem(url)
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "file"
        with local.open("wb") as file:
            yield file
        with errors_of_url(url):
            try:
                system.makedirs(PurePosixPath(path).parent.as_posix(), exist_ok=True)
                system.put_file(str(local), path)
            except BaseException:
                with suppress(Exception):
                    system.rm_file(path)
                raise


def removed(url: str) -> None:
    """Remove a file; nothing happens where there is none."""
    system, path = filesystem(url)
    with suppress(FileNotFoundError):
        system.rm_file(path)
