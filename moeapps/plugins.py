"""Code of other packages: which of it may be imported, and how.

A module outside moeapps is imported only because the user said so: with the option ``--import``, the environment
variable ``MOEAPPS_IMPORT``, the argument ``import_modules`` of :func:`moeapps.load`, a ``class_path`` that the user
wrote, or by installing a package with an entry point in the group ``moeapps.plugins``. A saved model only names the
modules that it needs; reading it never imports them.
"""

import os
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module as python_import
from importlib import metadata
from pathlib import Path
from types import ModuleType

from moeapps.core.errors import ConfigError

__all__ = [
    "GROUP",
    "TRUST",
    "VARIABLE",
    "ModuleMissing",
    "import_module",
    "import_modules",
    "is_named",
    "load_installed",
]

GROUP = "moeapps.plugins"
"""Group of the entry points. Each names a module that calls :func:`moeapps.registry.register` when it is imported."""

VARIABLE = "MOEAPPS_IMPORT"
"""Environment variable with names of modules to import, separated by commas; worker processes inherit it."""

TRUST = "MOEAPPS_TRUST"
"""Environment variable with types of other packages that files may hold (``--trust``); worker processes inherit it."""

_named: set[str] = set()
_from_folder: dict[str, str] = {}
_installed_done = False
_appended: str | None = None
_command_folder: str | None = None


class ModuleMissing(ConfigError):
    """There is no module of the name that the user wrote."""


def import_modules(names: str | Iterable[str]) -> None:
    """Import modules that the user named; what they register is known from then on.

    Parameters
    ----------
    names : str or iterable of str
        Import paths; a string may hold several, separated by commas.

    Raises
    ------
    ConfigError
        If there is no such module, or it fails while it is imported; the message says where.
    """
    for given in [names] if isinstance(names, str) else names:
        for name in filter(None, (part.strip() for part in given.split(","))):
            if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
                hint = f"; write {Path(name).stem}" if name.endswith(".py") else ""
                raise ConfigError(f"cannot import {name!r}: expected a name such as mypackage.mymodule{hint}")
            import_module(name)
            _named.add(name)


def from_environment() -> list[str]:
    """Names of modules in ``MOEAPPS_IMPORT``."""
    return [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]


def is_named(module: str) -> bool:
    """Whether the user has named this module, or a package that it belongs to, for import."""
    return any(module == name or module.startswith(f"{name}.") for name in _named)


def load_installed() -> None:
    """Import what ``MOEAPPS_IMPORT`` names, and once per process the plugins of installed packages.

    A plugin that fails is a warning: it must not keep the models that do not need it from working.
    """
    global _installed_done
    import_modules(from_environment())
    if _installed_done:
        return
    _installed_done = True  # first, because a plugin may look names up while it is imported
    for point in metadata.entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:
            package = point.dist.name if point.dist is not None else "?"
            warnings.warn(
                f"the plugin {point.name} of {package} ({point.value}) cannot be used: {describe(error)}",
                UserWarning,
                stacklevel=2,
            )


def import_module(name: str) -> ModuleType:
    """Import a module that the user named. One in the working folder counts first, as for ``python script.py``.

    Raises
    ------
    ModuleMissing
        If there is no such module.
    ConfigError
        If it fails while it is imported: with the error, its file and its line.
    """
    try:
        with _working_folder(name.partition(".")[0]):
            return python_import(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ModuleMissing(_describe_missing(name, error.name)) from error
        raise ConfigError(f"the module {name} cannot be imported: {describe(error)}") from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"the module {name} cannot be imported: {describe(error)}") from error


def hidden_file(name: str) -> Path | None:
    """File of the working folder that is not imported because a library's module of its name has been; else None."""
    top = name.partition(".")[0]
    here = Path(_command_folder or os.getcwd())
    imported = getattr(sys.modules.get(top), "__file__", None)
    for file in (here / f"{top}.py", here / top / "__init__.py"):
        if file.is_file() and (imported is None or not Path(imported).is_relative_to(here)):
            return file
    return None


@contextmanager
def command_folder() -> Iterator[None]:
    """While a command runs: the working folder is the one it was started in, wherever configurations are read."""
    global _command_folder
    before, _command_folder = _command_folder, os.getcwd()
    try:
        with _working_folder(""):
            yield
    finally:
        _command_folder = before


@contextmanager
def _working_folder(top: str) -> Iterator[None]:
    """Look in the working folder first while the module or package ``top`` of it is imported.

    Later it is searched last, so that a file of the user's never hides a library that something else imports.
    """
    global _appended
    if sys.flags.safe_path:  # python -P: the user does not want modules of the working folder
        yield
        return
    here = _command_folder or os.getcwd()
    if _appended not in (None, here):
        with suppress(ValueError):
            sys.path.remove(_appended)
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
        _appended = here
    if not top or not (Path(here, f"{top}.py").exists() or Path(here, top).is_dir()):
        yield
        return
    if _from_folder.get(top, here) != here:  # the same name in another folder, imported earlier in this process
        for loaded in [module for module in sys.modules if module == top or module.startswith(f"{top}.")]:
            del sys.modules[loaded]
    known = top in sys.modules
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(here)
        if not known or top in _from_folder:
            _from_folder[top] = here


def _describe_missing(name: str, missing: str) -> str:
    parent = sys.modules.get(missing.rpartition(".")[0])
    if parent is not None:
        where = getattr(parent, "__file__", None) or ", ".join(getattr(parent, "__path__", [])) or "built in"
        return f"there is no module {missing} ({parent.__name__} is {where})"
    return (
        f"there is no module {missing}, neither in the working folder ({_command_folder or os.getcwd()}) nor installed"
    )


def describe(error: BaseException) -> str:
    """Kind and text of an error, with the line of code that raised it."""
    if isinstance(error, SyntaxError):
        place = f" ({error.filename}, line {error.lineno})"
        return f"{type(error).__name__}: {error.msg}{place}"
    if isinstance(error, ConfigError):
        return str(error)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    # the last one that is neither of Python's import machinery nor of this file
    own = [frame for frame in frames if frame.filename != __file__ and "importlib" not in Path(frame.filename).parts]
    place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {error}{place}"
