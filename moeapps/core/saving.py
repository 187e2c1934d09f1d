"""``model.save(path)`` and ``moeapps.load(path)``: one safetensors file, no pickle, checked to the last bit.

The header of a safetensors file may carry text. Ours carries one JSON document (class, constructor arguments, fitted
state, versions) and the SHA-256 of the whole file (computed with zeros where the digest itself stands). So a model
is one file that is either the old one or the new one, and any flipped bit is noticed.
"""

import hashlib
import importlib.metadata
import json
import math
import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

import moeapps
from moeapps import plugins, registry
from moeapps.core.errors import ConfigError, FileFormatError
from moeapps.core.files import atomic_write, existing_file
from moeapps.core.state_dict import check_state_dict

__all__ = ["FORMAT", "Savable", "SavableModule", "arguments_to_json", "load", "registered_path"]

FORMAT = 1
"""Number of the file format; a file with a larger one was written by a newer moeapps."""

_DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')
_PLAIN = (str, int, float, bool, type(None))
_MODULE = "$module"
_MAX_HEADER = 100_000_000


class Savable(Protocol):
    """What an object offers so that it can be saved and loaded."""

    def saved_arguments(self) -> dict[str, Any]:
        """Constructor arguments."""

    def saved_state(self) -> dict[str, Any]:
        """What was learned besides tensors, as JSON values."""

    def saved_tensors(self) -> dict[str, Tensor]:
        """What was learned, as tensors."""

    @classmethod
    def from_saved(
        cls, arguments: dict[str, Any], state: dict[str, Any], tensors: dict[str, Tensor], source: Path
    ) -> Self:
        """Build the object again."""


class SaveMixin:
    """Adds ``save`` to a class that fulfils :class:`Savable`."""

    def save(self: Savable, path: str | os.PathLike[str]) -> None:
        """Save to one safetensors file that :func:`moeapps.load` reads.

        Parameters
        ----------
        path : str or path
            Where to; an existing file is replaced only once the new one is safely on disk.

        Raises
        ------
        OSError
            If the disk refuses; the old file is then unchanged.
        ConfigError
            If the class is not registered, or an argument cannot be written as JSON.
        """
        class_path = registered_path(type(self))
        document = {
            "format": FORMAT,
            "class": class_path,
            "arguments": arguments_to_json(self.saved_arguments()),
            "state": self.saved_state(),
            "versions": {
                "moeapps": moeapps.__version__,
                "torch": importlib.metadata.version("torch"),
                "scikit-learn": importlib.metadata.version("scikit-learn"),
            },
        }
        if parts := registry.foreign_parts(document):  # routers and classes of other packages
            document["parts"] = parts
        # a copy of each: a parameter that two layers share is written under both names
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.saved_tensors().items()}
        metadata = {"moeapps": json.dumps(document, allow_nan=False), "sha256": "0" * 64}
        content = bytearray(save_safetensors(tensors, metadata))
        start, end = _digest_span(content)
        content[start:end] = hashlib.sha256(content).hexdigest().encode()
        with atomic_write(path) as file:
            file.write(content)


class SavableModule(SaveMixin, nn.Module):
    """A torch module that can be saved: its constructor stores its arguments in ``self.arguments``.

    One that is decorated with :func:`~moeapps.core.config.takes` need not do it itself.
    """

    arguments: dict[str, Any]

    def keep_arguments(self, arguments: dict[str, Any]) -> None:
        """Called with all constructor arguments once the constructor has run."""
        self.arguments = arguments

    def saved_arguments(self) -> dict[str, Any]:
        """Constructor arguments."""
        return self.arguments

    def saved_state(self) -> dict[str, Any]:
        """Nothing besides tensors."""
        return {}

    def saved_tensors(self) -> dict[str, Tensor]:
        """The state dict."""
        return self.state_dict()

    @classmethod
    def from_saved(
        cls, arguments: dict[str, Any], state: dict[str, Any], tensors: dict[str, Tensor], source: Path
    ) -> Self:
        """Construct, compare names and shapes, load, and switch to evaluation."""
        model = cls(**arguments)
        check_state_dict(model, tensors, source)
        model.load_state_dict(tensors)
        return model.eval()


def load(path: str | os.PathLike[str], *, import_modules: str | Iterable[str] = (), **modules: nn.Module) -> Any:
    """Load a model or estimator that ``save`` wrote. No code from the file is run and nothing is unpickled.

    Parameters
    ----------
    path : str or path
        The file.
    import_modules : str or iterable of str, default=()
        Modules to import first, where routers or classes of your own are defined that the model needs. The file names
        them, but they are never imported on its account.
    **modules
        Modules of your own that were constructor arguments (``strong=MyGNN(...)``): the file has their weights but not
        their code.

    Returns
    -------
    object
        The object, ready to predict.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If it is damaged, incomplete, of a newer format, of an unregistered class, or does not fit.
    ConfigError
        If a module to import does not exist or fails.

    Examples
    --------
    >>> import tempfile, torch
    >>> from moeapps.graph import Mowst
    >>> path = tempfile.mkdtemp() + "/model.safetensors"
    >>> Mowst(in_channels=4, out_channels=2).save(path)
    >>> type(load(path)).__name__
    'Mowst'
    """
    file = existing_file(path, "a model saved by moeapps")
    document, tensors = _read(file)
    plugins.import_modules(import_modules)
    if (missing := registry.admit(document.get("parts", []))) is not None:
        raise FileFormatError(f"{file} needs {missing}")
    class_path = document["class"]
    try:
        cls = registry.resolve(class_path)
    except KeyError:
        raise FileFormatError(
            f"{file} holds a {class_path!r}, which is not a registered class. It would be of "
            f"{registry.describe_import(class_path.rpartition('.')[0])}"
        ) from None
    if not isinstance(cls, type) or not issubclass(cls, SaveMixin):
        raise FileFormatError(f"{file} holds a {class_path!r}, which cannot be loaded from a file")
    arguments = _complete(document["arguments"], modules, file)
    _warn_of_versions(document["versions"], file)
    try:
        return cls.from_saved(arguments, document["state"], tensors, file)  # type: ignore[attr-defined]
    except FileFormatError:
        raise
    except (TypeError, ValueError, KeyError) as error:
        raise FileFormatError(f"{file} does not fit {class_path}: {error}") from error


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    content = bytearray(file.read_bytes())
    size = len(content)
    damaged = f"{file} ({size} bytes) is damaged or incomplete, or not a model saved by moeapps"
    header_size = int.from_bytes(content[:8], "little") if size >= 8 else 0
    if not 2 <= header_size <= min(_MAX_HEADER, size - 8):
        raise FileFormatError(f"{damaged}: its header should be {header_size} bytes long")
    try:
        start, end = _digest_span(content)
    except ValueError:
        raise FileFormatError(f"{damaged}: it has no checksum") from None
    expected = bytes(content[start:end])
    content[start:end] = b"0" * 64
    if hashlib.sha256(content).hexdigest().encode() != expected:
        raise FileFormatError(f"{damaged}: its SHA-256 does not match its content")
    try:
        header = _parse(bytes(content[8 : 8 + header_size]).decode())
        document = _parse(header["__metadata__"]["moeapps"])
        tensors = load_safetensors(bytes(content))
    except (KeyError, TypeError, ValueError, RecursionError, SafetensorError) as error:
        raise FileFormatError(f"{damaged}: {error}") from None
    return _checked(document, file), tensors


def _checked(document: Any, file: Path) -> dict[str, Any]:
    number = document.get("format") if isinstance(document, dict) else None
    if not isinstance(number, int):
        raise FileFormatError(f"{file} has no format number: not a model saved by moeapps")
    if number > FORMAT:
        version = document.get("versions", {}).get("moeapps", "unknown")
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
    if not registry.are_parts(document.get("parts", [])):
        raise FileFormatError(f"{file} is not a model saved by moeapps: 'parts' is malformed")
    return document


def _parse(text: str) -> Any:
    """Parse JSON strictly: no duplicate keys, no NaN."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a key occurs twice in its JSON")
        return result

    def refuse(constant: str) -> Any:
        raise ValueError(f"its JSON holds {constant}")

    return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)


def _digest_span(content: bytearray) -> tuple[int, int]:
    header_size = int.from_bytes(content[:8], "little")
    found = _DIGEST.search(content, 8, 8 + header_size)
    if found is None:
        raise ValueError("no digest")
    return found.span(1)


def registered_path(cls: type) -> str:
    """Import path under which a class is registered.

    Raises
    ------
    ConfigError
        If it is not registered; the message says how to register it.
    """
    for entry in registry.entries():
        if entry.path.rpartition(".")[2] == cls.__name__ and registry.resolve(entry.path) is cls:
            return entry.path
    raise ConfigError(
        f"{cls.__module__}.{cls.__qualname__} is not registered, so moeapps.load could not find it again; "
        f'call moeapps.registry.register("model", "{cls.__module__}.{cls.__qualname__}", "...") first'
    )


def arguments_to_json(arguments: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments as JSON values.

    Raises
    ------
    ConfigError
        Naming the argument that has none.
    """
    return {name: _to_json(name, value) for name, value in arguments.items()}


def _to_json(name: str, value: Any) -> Any:
    if isinstance(value, nn.Module):
        return {_MODULE: type(value).__name__}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"argument {name}={value!r} cannot be saved: it is not a finite number")
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, list | tuple):
        return [_to_json(name, item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _to_json(name, item) for key, item in value.items()}
    raise ConfigError(
        f"argument {name} is a {type(value).__name__}, which a saved model cannot hold: use numbers, text, lists, "
        "dictionaries or a torch module"
    )


def _complete(arguments: dict[str, Any], modules: dict[str, nn.Module], file: Path) -> dict[str, Any]:
    wanted = {name: value[_MODULE] for name, value in arguments.items() if isinstance(value, dict) and _MODULE in value}
    for name, kind in wanted.items():
        if name not in modules:
            raise FileFormatError(
                f"{file} has the weights of a {kind} of your own as {name}: give the module, "
                f"moeapps.load(path, {name}={kind}(...))"
            )
    for name in modules:
        if name not in wanted:
            raise ConfigError(f"{file} needs no module {name!r}" + (f", only {', '.join(wanted)}" if wanted else ""))
    return {**arguments, **modules}


def _warn_of_versions(versions: dict[str, Any], file: Path) -> None:
    for package in ("scikit-learn",):
        now, then = importlib.metadata.version(package), versions.get(package)
        if then is not None and then != now:
            warnings.warn(f"{file} was saved with {package} {then}; {now} is installed", UserWarning, stacklevel=3)
