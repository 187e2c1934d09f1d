"""A setting is declared once: in a frozen dataclass beside the network that it describes.

A network or LightningModule takes the fields of its config as keyword arguments (:func:`takes`), an estimator builds
the config from its own attributes (:func:`config_from`)::

    @dataclass(frozen=True)
    class MowstConfig:
        hidden_channels: int = 64

    class Mowst(nn.Module):
        @takes(MowstConfig)
        def __init__(self, in_channels: int, config: MowstConfig) -> None:
            ...

    Mowst(8, hidden_channels=32)                # what users, YAML files and saved models write
    Mowst.from_config(8, config=MowstConfig())  # what moeapps writes
"""

import functools
import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, ClassVar, Protocol, Self, TypeVar

__all__ = ["Configurable", "as_arguments", "config_from", "field_names", "store_arguments", "takes"]


class Dataclass(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


C = TypeVar("C", bound=Dataclass)
Init = Callable[..., None]
"""A constructor. A type checker accepts any arguments: it knows no signature made of a dataclass's fields."""


def field_names(config: type[Dataclass]) -> tuple[str, ...]:
    """Names of a config's fields, in order."""
    return tuple(field.name for field in fields(config))


def config_from(config: type[C], source: object, **changes: Any) -> C:
    """Config whose fields are the attributes of the same names of ``source``.

    Parameters
    ----------
    config : type
        Frozen dataclass.
    source : object or mapping
        An estimator, another config, or a dictionary of arguments. A field that it lacks keeps its default.
    **changes
        Fields to set to something else.

    Raises
    ------
    TypeError
        If ``changes`` names no field, or a field without default is in neither of them.
    """
    values = source if isinstance(source, Mapping) else _Attributes(source)
    return config(**{name: values[name] for name in field_names(config) if name in values} | changes)


class _Attributes(dict[str, Any]):
    def __init__(self, source: object) -> None:
        super().__init__()
        self.source = source

    def __contains__(self, name: object) -> bool:
        return hasattr(self.source, str(name))

    def __getitem__(self, name: str) -> Any:
        return getattr(self.source, name)


def as_arguments(config: Dataclass) -> dict[str, Any]:
    """Fields as keyword arguments. Unlike ``dataclasses.asdict`` it does not copy values, which may be modules."""
    return {field.name: getattr(config, field.name) for field in fields(config)}


def store_arguments(estimator: object, arguments: Mapping[str, Any]) -> None:
    """Set an estimator's constructor arguments as attributes of the same names, as scikit-learn's ``clone`` asks for.

    The only statement of an estimator's constructor: ``store_arguments(self, locals())``. Attributes that the class
    reads by name are annotated in its body.

    Parameters
    ----------
    estimator : object
        The estimator under construction.
    arguments : mapping
        ``locals()`` of its ``__init__``.
    """
    for name, value in arguments.items():
        if name not in ("self", "__class__"):
            setattr(estimator, name, value)


class Configurable:
    """Adds ``from_config`` to a class whose constructor is decorated with :func:`takes`."""

    @classmethod
    def from_config(cls, *args: Any, config: Dataclass, **kwargs: Any) -> Self:
        """Construct from a config; further arguments are the constructor's own."""
        return cls(*args, **kwargs, **as_arguments(config))


def takes(*configs: type[Dataclass], first: Sequence[str] = ()) -> Callable[[Init], Init]:
    """Let a constructor take the fields of configs as keyword arguments instead of the configs themselves.

    The decorated function has one parameter annotated with each config class. Callers, ``inspect.signature``,
    jsonargparse and scikit-learn see that class's fields in its place, with their types and defaults. Its own
    ``**rest``, if it has one, takes what no config has (arguments of a foreign base class). After the
    constructor has run, ``self.keep_arguments(arguments)`` is called where the class has it, with everything that was
    given and all defaults.

    Parameters
    ----------
    *configs : type
        Frozen dataclasses whose fields have different names and defaults.
    first : sequence of str
        Parameters that come first, in this order; the others follow as they are declared.

    Raises
    ------
    TypeError
        At decoration, if the function has no parameter for a config. By the constructor, for an unknown argument.
    """

    def decorate(init: Init) -> Init:
        own = inspect.signature(init)
        hints = typing.get_type_hints(init)
        places: dict[str, type[Dataclass]] = {
            name: hints[name] for name in own.parameters if hints.get(name) in configs
        }
        if set(places.values()) != set(configs):
            raise TypeError(f"{init.__qualname__} needs one parameter annotated with each of {configs}")
        public = _public_signature(own, hints, places, first)
        rest = next((p.name for p in own.parameters.values() if p.kind is p.VAR_KEYWORD), None)

        @functools.wraps(init)
        def construct(self: Any, *args: Any, **kwargs: Any) -> None:
            try:
                bound = public.bind(self, *args, **kwargs)
            except TypeError as error:  # as Python words it: with the name of the function
                raise TypeError(f"{init.__qualname__}() {error}") from None
            bound.apply_defaults()
            given = bound.arguments
            inner = {name: given[name] for name in own.parameters if name not in places}
            for name, config in places.items():
                inner[name] = config(**{field: given[field] for field in field_names(config)})
            others = {} if rest is None else inner.pop(rest)
            init(**inner, **others)
            if keep := getattr(self, "keep_arguments", None):
                kept = {name: value for name, value in list(given.items())[1:] if name != rest}  # all but self
                keep({**kept, **others})

        construct.__signature__ = public  # type: ignore[attr-defined]
        construct.__doc__ = _documentation(init.__doc__, configs)
        return construct

    return decorate


def _documentation(own: str | None, configs: Sequence[type[Dataclass]]) -> str:
    """Docstring with one section for the parameters of all configs: a parser of docstrings reads no second one."""
    parameters = "\n".join(entry for config in configs for entry in _described(config).values())
    return f"{inspect.cleandoc(own or 'Construct.')}\n\nParameters\n----------\n{parameters}"


def _described(config: type[Dataclass]) -> dict[str, str]:
    """What is said of each field, by its name: by the config, or by the class that it inherits it from."""
    found: dict[str, str] = {}
    for kind in reversed(config.__mro__):
        text = inspect.cleandoc(vars(kind).get("__doc__") or "")
        section = re.search(r"(?<=Parameters\n----------\n).*?(?=\n\n\w+\n---|\Z)", text, re.S)
        entries = re.split(r"\n(?=\S)", section.group()) if section else []
        found |= {entry.partition(" : ")[0]: entry for entry in entries}
    return found


def _public_signature(
    own: inspect.Signature, hints: dict[str, Any], places: dict[str, Any], first: Sequence[str]
) -> inspect.Signature:
    """``own`` with each config's parameter replaced by its fields."""
    parameters: list[inspect.Parameter] = []
    for name, parameter in own.parameters.items():
        if name not in places:
            parameters.append(parameter.replace(annotation=hints.get(name, parameter.annotation)))
            continue
        types = typing.get_type_hints(places[name])
        for field in fields(places[name]):
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            annotation = types[field.name]
            parameters.append(inspect.Parameter(field.name, parameter.kind, default=default, annotation=annotation))
    order = [parameters[0].name, *first]  # self stays in front
    parameters.sort(key=lambda parameter: order.index(parameter.name) if parameter.name in order else len(order))
    return own.replace(parameters=parameters, return_annotation=None)
