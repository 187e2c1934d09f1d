"""Constructor arguments in a saved file: as JSON values, of the kinds that the constructor takes."""

import inspect
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moeapps.core.errors import ConfigError, FileFormatError
from moeapps.core.torch_types import is_torch_module

if TYPE_CHECKING:
    from torch import nn

__all__ = ["arguments_to_json", "check_fields", "check_kinds", "complete_arguments", "fits", "is_module"]

_PLAIN = (str, int, float, bool, type(None))
_MODULE = "$module"


def arguments_to_json(arguments: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments as JSON values.

    Raises
    ------
    ConfigError
        Naming the argument that has none.
    """
    return {name: _to_json(name, value) for name, value in arguments.items()}


def _to_json(name: str, value: Any) -> Any:
    if is_torch_module(value):
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


def is_module(value: Any) -> bool:
    """Whether a JSON value of :func:`arguments_to_json` stands for a torch module."""
    return isinstance(value, dict) and _MODULE in value


def complete_arguments(arguments: dict[str, Any], modules: "dict[str, nn.Module]", file: Path) -> dict[str, Any]:
    """Put the caller's torch modules in the places of those that a file only names.

    Raises
    ------
    FileFormatError
        If one is missing; the message says how to give it.
    ConfigError
        If one was given that the file does not name.
    """
    wanted = {name: value[_MODULE] for name, value in arguments.items() if is_module(value)}
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


def fits(value: Any, annotation: Any) -> bool:
    """Whether a JSON value can be one of an annotation; a list stands for a tuple, too.

    Parameters
    ----------
    value : object
        JSON value.
    annotation : object
        A type, or what :mod:`typing` makes of types. What is neither a plain type, a union, a literal, a list nor a
        dictionary of those fits everything.
    """
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is typing.Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if annotation is None or annotation is type(None):
        return value is None
    if annotation in (int, float):  # a bool is no number here, though it is one in Python
        return isinstance(value, int if annotation is int else int | float) and not isinstance(value, bool)
    container = annotation if origin is None else origin
    if container in (list, tuple, Sequence):
        inner = parts[0] if parts else Any
        return isinstance(value, list) and all(fits(part, inner) for part in value)
    if container in (dict, Mapping):
        inner = parts[1] if parts else Any
        return isinstance(value, dict) and all(fits(part, inner) for part in value.values())
    return isinstance(value, annotation) if annotation in (str, bool) else True


def check_fields(owner: Any, values: Mapping[str, Any], names: Iterable[str] | None = None) -> None:
    """Refuse values that are not of the kinds that a class declares for its attributes of these names.

    Parameters
    ----------
    owner : type or object
        The class, with annotated attributes.
    values : mapping
        JSON values by name.
    names : iterable of str, optional
        Values that have to be there; all annotated ones when None.

    Raises
    ------
    FileFormatError
        Naming the value that is missing or malformed.
    """
    cls = owner if isinstance(owner, type) else type(owner)
    kinds = {name: kind for base in reversed(cls.__mro__) for name, kind in inspect.get_annotations(base).items()}
    for name in kinds if names is None else names:
        if name not in values:
            raise FileFormatError(f"{cls.__name__} lacks {name!r}")
        if not fits(values[name], kinds.get(name, Any)):
            raise FileFormatError(f"{name} of {cls.__name__} cannot be {str(values[name])[:60]!r}")


_KINDS: dict[Any, tuple[type, ...]] = {
    int: (int, float),
    float: (int, float),
    bool: (bool,),
    str: (str,),
    type(None): (type(None),),
}


def _kinds_of(annotation: Any) -> tuple[type, ...] | None:
    """JSON types of the values of an annotation; None for any."""
    if annotation is None:
        return (type(None),)
    if annotation in _KINDS:
        return _KINDS[annotation]
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        parts = [_kinds_of(part) for part in typing.get_args(annotation)]
        return None if None in parts else tuple(kind for part in parts for kind in part or ())
    if origin is typing.Literal:
        return tuple(type(value) for value in typing.get_args(annotation))
    container = annotation if origin is None else origin
    if isinstance(container, type) and issubclass(container, Mapping):
        return (dict,)
    if container in (list, tuple, Sequence):
        return (list,)
    return None


def check_kinds(cls: type, arguments: Mapping[str, Any], source: Path) -> None:
    """Refuse arguments of a kind that the constructor's annotations exclude: text for a number, a list for a text.

    Raises
    ------
    FileFormatError
        Naming the argument.
    """
    for name, parameter in inspect.signature(cls).parameters.items():
        if name not in arguments or parameter.annotation is parameter.empty or isinstance(parameter.annotation, str):
            continue
        kinds, value = _kinds_of(parameter.annotation), arguments[name]
        if kinds is not None and not isinstance(value, kinds):
            raise FileFormatError(f"{source}: its argument {name} cannot be {str(value)[:60]!r}")
