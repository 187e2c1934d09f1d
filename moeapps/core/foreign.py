"""Estimators inside an estimator, such as the experts of a mixture, in its one saved file.

moeapps' own ones are kept in their own saved form. Those of other packages are kept by skops (optional), which
describes an object instead of running its code; its bytes are one tensor of the file. A pipeline is kept step by step,
so that own and foreign steps can stand in one.

What may be loaded: types that skops trusts, those of :data:`~moeapps.core.skops_file.SAFE_TYPES`, whose content is
checked, registered classes of moeapps, and what the caller of :func:`moeapps.load` names as ``trusted``.
"""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline
from torch import Tensor

from moeapps import registry
from moeapps.core import skops_file
from moeapps.core.errors import ConfigError, FileFormatError
from moeapps.core.loaded_trees import check_loaded, parts_of
from moeapps.core.saved_arguments import arguments_to_json, complete_arguments, is_module
from moeapps.core.saving import NESTED, SaveMixin, loading, registered_path, restore

__all__ = ["pack_estimator", "pack_estimators", "unpack_estimator", "unpack_estimators"]

_BYTES = "skops"
_NO_CODE = ("__main__", "<lambda>", "<locals>")
"""Parts of the names of types and functions that no other process finds."""


def pack_estimator(estimator: Any, name: str = "the estimator") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An estimator, fitted or not, as JSON values and tensors.

    Parameters
    ----------
    estimator : estimator, str or None
        One of moeapps, a pipeline, any other that skops can describe, or what a pipeline's step may be besides.
    name : str, default="the estimator"
        What an error calls it.

    Returns
    -------
    document : dict
        JSON values, with ``kind``.
    tensors : dict of str to Tensor
        Tensors by name.

    Raises
    ------
    ConfigError
        If skops is needed and not installed, or the estimator holds what cannot be saved: a function of a script, an
        estimator of moeapps inside one of another package, a torch module of the user's own.

    Warns
    -----
    UserWarning
        If loading it will need ``trusted``; the message says which types.
    """
    if estimator is None or isinstance(estimator, str):
        return {"kind": "plain", "value": estimator}, {}
    if isinstance(estimator, SaveMixin):
        return _pack_own(estimator, name)
    if type(estimator) is Pipeline:
        return _pack_pipeline(estimator, name)
    return _pack_foreign(estimator, name)


def unpack_estimator(
    document: Any, tensors: dict[str, Tensor], source: Path, trusted: Iterable[str | type] = (), name: str = "estimator"
) -> Any:
    """Estimator of what :func:`pack_estimator` returned.

    Parameters
    ----------
    document : dict
        JSON values.
    tensors : dict of str to Tensor
        Its tensors.
    source : Path
        The file, for messages.
    trusted : iterable of (str or type), default=()
        Types of other packages that are trusted, besides those that the caller of :func:`moeapps.load` named.
    name : str, default="estimator"
        What an error calls it.

    Raises
    ------
    FileFormatError
        If it is damaged, or holds types that are not trusted; the message names them.
    ImportError
        If skops is needed and not installed.
    """
    kind = document.get("kind") if isinstance(document, dict) else None
    if kind == "plain" and (document.get("value") is None or isinstance(document.get("value"), str)):
        return document.get("value")
    if kind in ("own", "unfitted"):
        return _unpack_own(document, tensors, source)
    if kind == "pipeline":
        return _unpack_pipeline(document, tensors, source, trusted, name)
    if kind == "foreign" and set(tensors) == {_BYTES}:
        return _unpack_foreign(tensors[_BYTES], source, (*trusted, *loading.get().trusted), name)
    raise FileFormatError(f"{source}: {name} is malformed")


def pack_estimators(estimators: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Several estimators by name: documents for the key ``nested`` of a state, and tensors by ``nested.<name>.<part>``.

    Parameters
    ----------
    estimators : mapping of str to estimator
        By a name without dots.

    Raises
    ------
    ConfigError
        As :func:`pack_estimator`, naming the estimator.
    """
    documents: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, estimator in estimators.items():
        documents[name], parts = pack_estimator(estimator, f"expert {name.partition('-')[2] or name!r}")
        tensors |= {f"{NESTED}{name}.{part}": tensor for part, tensor in parts.items()}
    return documents, tensors


def unpack_estimators(documents: Any, tensors: dict[str, Tensor], source: Path) -> dict[str, Any]:
    """Estimators by name of what :func:`pack_estimators` returned.

    Raises
    ------
    FileFormatError, ImportError
        As :func:`unpack_estimator`; also if there are tensors of none of them.
    """
    if not isinstance(documents, dict):
        raise FileFormatError(f"{source}: its estimators are malformed")
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in documents}
    for full, tensor in tensors.items():
        if not full.startswith(NESTED):
            continue
        name, _, part = full.removeprefix(NESTED).partition(".")
        if name not in parts:
            raise FileFormatError(f"{source}: {full} belongs to no estimator of it")
        parts[name][part] = tensor
    label = "expert {!r}"
    return {
        name: unpack_estimator(documents[name], parts[name], source, name=label.format(name.partition("-")[2] or name))
        for name in documents
    }


def _pack_own(estimator: Any, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    document: dict[str, Any] = {"kind": "own", "class": registered_path(type(estimator))}
    try:
        document["arguments"] = arguments_to_json(estimator.saved_arguments())
    except NotFittedError:
        kind = type(estimator).__name__
        raise ConfigError(f"{name} is a {kind} that is not fitted, which cannot be saved inside another") from None
    modules = [argument for argument, value in document["arguments"].items() if is_module(value)]
    if modules:
        raise ConfigError(
            f"{name} has a torch module of your own as {modules[0]}, which cannot be saved inside another"
        )
    try:
        document["state"], tensors = estimator.saved_content()
    except NotFittedError:
        return {**document, "kind": "unfitted", "state": {}}, {}
    return document, tensors


def _unpack_own(document: dict[str, Any], tensors: dict[str, Tensor], source: Path) -> Any:
    for key, kind in {"class": str, "arguments": dict, "state": dict}.items():
        if not isinstance(document.get(key), kind):
            raise FileFormatError(f"{source}: {key!r} of an estimator in it is missing or malformed")
    if document["kind"] == "own":
        return restore(document, tensors, source)
    try:
        cls: Any = registry.resolve(document["class"])
    except KeyError:
        cls = None
    if not isinstance(cls, type) or not issubclass(cls, SaveMixin):
        raise FileFormatError(f"{source} holds a {document['class']!r}, which is not a registered class")
    arguments = complete_arguments(document["arguments"], {}, source)
    try:
        return cls(**getattr(cls, "_from_savable", dict)(arguments))
    except Exception as error:
        raise FileFormatError(f"{source} does not fit {document['class']}: {type(error).__name__}: {error}") from error


def _pack_pipeline(pipeline: Pipeline, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if pipeline.memory is not None:  # joblib's cache is pickles in a folder
        raise ConfigError(
            f"{name} is a pipeline with memory={pipeline.memory!r}: save it without, set_params(memory=None)"
        )
    steps: list[Any] = []
    tensors: dict[str, Tensor] = {}
    for position, (step, estimator) in enumerate(pipeline.steps):
        document, parts = pack_estimator(estimator, f"{name}, step {step!r}")
        steps.append([step, document])
        tensors |= {f"{position}.{part}": tensor for part, tensor in parts.items()}
    return {"kind": "pipeline", "steps": steps, "transform_input": pipeline.transform_input}, tensors


def _unpack_pipeline(
    document: dict[str, Any], tensors: dict[str, Tensor], source: Path, trusted: Iterable[str | type], name: str
) -> Pipeline:
    steps, inputs = document.get("steps"), document.get("transform_input")
    good = isinstance(steps, list) and all(isinstance(s, list) and len(s) == 2 and isinstance(s[0], str) for s in steps)
    names = inputs is None or (isinstance(inputs, list) and all(isinstance(entry, str) for entry in inputs))
    if not good or not names or steps is None:
        raise FileFormatError(f"{source}: {name} is a pipeline whose steps are malformed")
    parts: list[dict[str, Tensor]] = [{} for _ in steps]
    for full, tensor in tensors.items():
        position, _, part = full.partition(".")
        if not position.isdecimal() or not part or int(position) >= len(steps):
            raise FileFormatError(f"{source}: {full} belongs to no step of {name}")
        parts[int(position)][part] = tensor
    built = [
        (step, unpack_estimator(inner, parts[i], source, trusted, f"{name}, step {step!r}"))
        for i, (step, inner) in enumerate(steps)
    ]
    return Pipeline(built, transform_input=inputs)


def _pack_foreign(estimator: Any, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    kind = type(estimator).__name__
    if own := next((part for part in parts_of(estimator) if isinstance(part, SaveMixin)), None):
        raise ConfigError(
            f"{name} is a {kind} that holds a {type(own).__name__}: estimators of moeapps are saved inside a Pipeline, "
            "but not inside other estimators"
        )
    _refuse_memory(estimator, name, ConfigError)
    try:
        content = skops_file.dump(estimator)
        unknown = skops_file.untrusted_types(content)
    except (ConfigError, FileFormatError) as error:
        raise ConfigError(f"{name} ({kind}) cannot be saved: {error}") from error
    if lost := [entry for entry in unknown if any(part in entry for part in _NO_CODE)]:
        raise ConfigError(
            f"{name} ({kind}) cannot be saved: it holds {lost[0]}, which no other process finds. Put it into a module"
        )
    if unknown:
        warnings.warn(f"{name} ({kind}) will load only with moeapps.load(path, trusted={unknown})", stacklevel=2)
    return {"kind": "foreign"}, {_BYTES: torch.from_numpy(np.frombuffer(content, dtype=np.uint8).copy())}


def _unpack_foreign(tensor: Tensor, source: Path, trusted: tuple[str | type, ...], name: str) -> Any:
    if tensor.dtype != torch.uint8 or tensor.ndim != 1:
        raise FileFormatError(f"{source}: {name} is malformed")
    content = tensor.numpy().tobytes()
    try:
        unknown = set(skops_file.untrusted_types(content)) - set(map(skops_file.type_name, trusted))
        if unknown:
            wanted = sorted({*unknown, *map(skops_file.type_name, trusted)})
            raise FileFormatError(
                f"{name} holds types that are not trusted, {', '.join(sorted(unknown))}: if you know who wrote the "
                f"file, moeapps.load(path, trusted={wanted})"
            )
        estimator = skops_file.load(content, trusted)
        check_loaded(estimator)
        _refuse_memory(estimator, name, FileFormatError)
    except FileFormatError as error:
        raise FileFormatError(f"{source}: {error}") from error.__cause__
    return estimator


def _refuse_memory(estimator: Any, name: str, error: type[Exception]) -> None:
    """A cache of joblib (``memory``) holds pickles: a file must not name a folder of them."""
    for part in parts_of(estimator):
        if getattr(part, "memory", None) is not None and hasattr(part, "get_params"):
            raise error(f"{name} holds a {type(part).__name__} with memory={part.memory!r}: set it to None")
