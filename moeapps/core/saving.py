"""``model.save(path)`` and ``moeapps.load(path)``: one safetensors file, no pickle, checked to the last bit.

A file holds one JSON document and the tensors (:mod:`moeapps.core.saved_file`). So a model is one file that is either
the old one or the new one, and any flipped bit is noticed.

A checksum does not say who wrote a file: whoever changes it can compute a new one. So :func:`load` opens no other file,
uses no network, and trusts no number of a file before it was compared with the file's size or with the tensors that are
really there (:mod:`moeapps.core.rebuilding`).
"""

import importlib.metadata
import os
import warnings
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import moeapps
from moeapps import plugins, registry
from moeapps.core.card import model_card
from moeapps.core.errors import ConfigError, FileFormatError
from moeapps.core.files import is_checkpoint, ordinary_file
from moeapps.core.older import DEFAULTS, arguments_of_0_1
from moeapps.core.saved_arguments import arguments_to_json, check_kinds, complete_arguments
from moeapps.core.saved_file import (
    FORMAT,
    faults_named,
    read_document,
    read_document_bytes,
    write_document,
    write_document_bytes,
)
from moeapps.core.saved_tensors import AnyTensor, as_arrays, as_tensors, non_finite_names

if TYPE_CHECKING:
    from torch import nn

    from moeapps.core.savable_module import SavableModule as SavableModule

__all__ = [
    "FORMAT",
    "NESTED",
    "Loading",
    "Savable",
    "SavableModule",
    "arguments_to_json",
    "card_of_file",
    "from_bytes",
    "load",
    "loading",
    "registered_path",
    "restore",
]

NESTED = "nested."
"""Tensors whose names begin so belong to estimators inside an estimator, which check them themselves."""


@dataclass(frozen=True)
class Loading:
    """What the caller of :func:`load` allows.

    Parameters
    ----------
    trusted : tuple of (str or type), default=()
        Types of other packages that the file may hold.
    allow_non_finite : bool, default=False
        Whether weights may be NaN or infinite.
    """

    trusted: tuple[str | type, ...] = ()
    allow_non_finite: bool = False


loading: ContextVar[Loading] = ContextVar("loading", default=Loading())  # noqa: B039 (it is frozen)
"""What the call of :func:`load` that is running allows, for the estimators inside an estimator."""


class Savable(Protocol):
    """What an object offers so that it can be saved and loaded."""

    def saved_arguments(self) -> dict[str, Any]:
        """Constructor arguments."""

    def saved_state(self) -> dict[str, Any]:
        """What was learned besides tensors, as JSON values."""

    def saved_tensors(self) -> Mapping[str, AnyTensor]:
        """What was learned, as tensors of torch, or as arrays of NumPy (:attr:`SaveMixin.numpy_arrays`)."""

    @classmethod
    def from_saved(
        cls, arguments: dict[str, Any], state: dict[str, Any], tensors: dict[str, Any], source: Path
    ) -> Self:
        """Build the object again."""


class SaveMixin:
    """Adds ``save`` to a class that fulfils :class:`Savable`."""

    non_finite_tensors: ClassVar[tuple[str, ...]] = ()
    """Tensors that may hold NaN or infinity, by the last part of their names."""

    numpy_arrays: ClassVar[bool] = False
    """Whether what was learned is arrays of NumPy, for a class that does without torch; tensors of torch otherwise."""

    _training_record: dict[str, Any] | None = None
    """Day, rows and validation scores of the training, for :meth:`card`; None where they are not known."""

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
        document, tensors = self._document()  # type: ignore[attr-defined]
        write_document(path, document, tensors)

    def to_bytes(self: Savable) -> bytes:
        """What :meth:`save` would write to a file, for a state store or a database; :func:`from_bytes` reads it.

        Raises
        ------
        ConfigError
            As :meth:`save`.
        """
        return write_document_bytes(*self._document())  # type: ignore[attr-defined]

    def card(self: Savable, scores: Mapping[str, float] | None = None, name: str = "") -> str:
        """Model card: what the model is, what it was trained on, its settings and scores.

        Parameters
        ----------
        scores : mapping of str to float, optional
            Scores to show, by metric, such as those of test data. Validation's are shown, too, where they are known.
        name : str, default=""
            Headline; the name of the class when empty.

        Returns
        -------
        str
            Markdown with the YAML header of the Hugging Face hub; what the licence is, is left to you. It has names of
            columns and classes, and no rows of the data.

        Raises
        ------
        ConfigError
            As :meth:`save`, or if a score is not a number.
        """
        document, tensors = self._document()  # type: ignore[attr-defined]
        return model_card(document, tensors, scores, name)

    def _document(self: Savable) -> tuple[dict[str, Any], Mapping[str, AnyTensor]]:
        """What a file holds: everything as JSON values, and tensors."""
        class_path = registered_path(type(self))
        arguments = arguments_to_json(self.saved_arguments())
        state, tensors = self.saved_content()  # type: ignore[attr-defined]
        document = {
            "format": FORMAT,
            "defaults": DEFAULTS,
            "class": class_path,
            "arguments": arguments,
            "state": state,
            "versions": {
                "moeapps": moeapps.__version__,
                "torch": importlib.metadata.version("torch"),
                "scikit-learn": importlib.metadata.version("scikit-learn"),
            },
        }
        if parts := registry.foreign_parts(document):  # routers and classes of other packages
            document["parts"] = parts
        if self._training_record is not None:  # type: ignore[attr-defined]
            document["trained_on"] = self._training_record  # type: ignore[attr-defined]
        return document, tensors

    def saved_content(self: Savable) -> tuple[dict[str, Any], Mapping[str, AnyTensor]]:
        """State and tensors; a class that makes both at once overrides this."""
        return self.saved_state(), self.saved_tensors()


def load(
    path: str | os.PathLike[str],
    *,
    import_modules: str | Iterable[str] = (),
    trusted: Iterable[str | type] = (),
    allow_non_finite: bool = False,
    **modules: "nn.Module",
) -> Any:
    """Load a model or estimator that ``save`` wrote. No code from the file is run and nothing is unpickled.

    Parameters
    ----------
    path : str or path
        The file; or a checkpoint of ``moeapps fit``, which becomes the estimator of its module: one that predicts the
        same. It needs neither the data nor the configuration of the training.
    import_modules : str or iterable of str, default=()
        Modules to import first, where routers or classes of your own are defined that the model needs. The file names
        them, but they are never imported on its account.
    trusted : iterable of (str or type), default=()
        Types of other packages that a mixture's experts may hold, besides those that are safe: the error that refuses
        a file names them. Name them only if you know who wrote the file, since loading them may run code of theirs.
    allow_non_finite : bool, default=False
        Whether to load weights that are NaN or infinite, to look at them. Such a model predicts nothing of use.
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
        If it is damaged, incomplete, of a newer format, of an unregistered class, or does not fit: its arguments ask
        for another network than its tensors are of, its state contradicts itself, or a weight is NaN or infinite.
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
    file = ordinary_file(path, "a model saved by moeapps")
    plugins.import_modules(import_modules)
    token = loading.set(Loading(_checked_types(trusted), allow_non_finite))
    try:
        if is_checkpoint(file):
            from moeapps.core.trained import estimator_of  # of torch and Lightning

            return estimator_of(file, modules, allow_non_finite)
        return _load_saved(file, modules)
    finally:
        loading.reset(token)


def from_bytes(content: bytes, source: str = "the state") -> Any:
    """Load what :meth:`SaveMixin.to_bytes` gave, as :func:`load` loads a file.

    Parameters
    ----------
    content : bytes
        The bytes.
    source : str, default="the state"
        Where they are from, for messages.

    Raises
    ------
    FileFormatError
        As :func:`load`.
    """
    return _restored(*read_document_bytes(content, Path(source)), Path(source), {})


def _load_saved(file: Path, modules: "Mapping[str, nn.Module]") -> Any:
    return _restored(*read_document(file), file, modules)


def _restored(document: dict[str, Any], tensors: dict[str, Any], file: Path, modules: "Mapping[str, nn.Module]") -> Any:
    if (missing := registry.admit(document.get("parts", []))) is not None:
        raise FileFormatError(f"{file} needs {missing}")
    _warn_of_versions(document["versions"], file)
    if "defaults" not in document:
        document["arguments"] = arguments_of_0_1(document["arguments"])
    model = restore(document, tensors, file, modules)
    if isinstance(model, SaveMixin):
        model._training_record = document.get("trained_on")
    return model


def card_of_file(path: str | os.PathLike[str], scores: Mapping[str, float] | None = None, name: str = "") -> str:
    """Model card of a saved model, as :meth:`SaveMixin.card`; nothing is built and no code of others is imported.

    Raises
    ------
    FileNotFoundError, FileFormatError
        If there is no such file, or it is damaged or no saved model.
    ConfigError
        If a score is not a number.
    """
    file = ordinary_file(path, "a model saved by moeapps")
    if is_checkpoint(file):
        raise FileFormatError(f"{file} is the checkpoint of a training: make a model of it first, with moeapps export")
    return model_card(*read_document(file), scores, name)


def restore(
    document: Mapping[str, Any],
    tensors: Mapping[str, AnyTensor],
    source: Path,
    modules: "Mapping[str, nn.Module] | None" = None,
) -> Any:
    """Build the object of a document: of a file, or of an estimator inside one.

    Parameters
    ----------
    document : mapping
        With ``class``, ``arguments`` and ``state``.
    tensors : mapping of str to Tensor or array
        Its tensors.
    source : Path
        The file, for messages.
    modules : mapping of str to Module, optional
        The caller's modules that were constructor arguments.

    Raises
    ------
    FileFormatError
        As :func:`load`.
    """
    class_path = document["class"]
    try:
        cls = registry.resolve(class_path)
    except KeyError:
        raise FileFormatError(
            f"{source} holds a {class_path!r}, which is not a registered class. It would be of "
            f"{registry.describe_import(class_path.rpartition('.')[0])}"
        ) from None
    if not isinstance(cls, type) or not issubclass(cls, SaveMixin):
        raise FileFormatError(f"{source} holds a {class_path!r}, which cannot be loaded from a file")
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(NESTED)}
    if not loading.get().allow_non_finite and (names := non_finite_names(own, cls.non_finite_tensors)):
        raise FileFormatError(
            f"{source} holds NaN or infinity in {', '.join(names[:3])}: its training has diverged, or it was changed. "
            "moeapps.load(path, allow_non_finite=True) loads it all the same"
        )
    arguments = complete_arguments(document["arguments"], dict(modules or {}), source)
    check_kinds(cls, document["arguments"], source)
    with faults_named(source, class_path):
        given = as_arrays(tensors) if cls.numpy_arrays else as_tensors(tensors)
        return cls.from_saved(arguments, document["state"], given, source)  # type: ignore[attr-defined]


def _checked_types(trusted: Iterable[str | type]) -> tuple[str | type, ...]:
    types = (trusted,) if isinstance(trusted, str | type) else tuple(trusted)
    types += tuple(name for name in os.environ.get(plugins.TRUST, "").split(",") if name)
    for entry in types:
        if not isinstance(entry, str | type):
            raise ConfigError(f"trusted must hold types or their full names, got {entry!r}")
    return types


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


def _warn_of_versions(versions: dict[str, Any], file: Path) -> None:
    for package in ("scikit-learn",):
        now, then = importlib.metadata.version(package), versions.get(package)
        if then is not None and then != now:
            warnings.warn(f"{file} was saved with {package} {then}; {now} is installed", UserWarning, stacklevel=3)


def __getattr__(name: str) -> Any:
    if name == "SavableModule":  # a module of torch, which this file does not import
        from moeapps.core.savable_module import SavableModule

        return SavableModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
