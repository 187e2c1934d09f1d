"""Settings of ``moeapps fit|validate|test|predict`` from environment variables, as LightningCLI documents them.

``PL_FIT__TRAINER__MAX_EPOCHS=3`` is read by jsonargparse itself, and so is ``PL_FIT__MODEL``, which names a class. An
argument of that class, ``PL_FIT__MODEL__LR=0.1``, is not: only the rest of the command line says what the class is. So
the command line is read once to learn it, and the variable of the whole section then holds class and arguments.
"""

import inspect
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from moeapps import registry
from moeapps.cli.config_check import CLASSES, find_class
from moeapps.core.errors import ConfigError, FileFormatError
from moeapps.core.yaml_files import parse_yaml

__all__ = ["arguments_in", "sections_in_environment"]


def arguments_in(environment: Mapping[str, str], subcommand: str, known: Sequence[str]) -> dict[str, dict[str, str]]:
    """Arguments of classes among the environment variables.

    Parameters
    ----------
    environment : mapping
        Variables and their values.
    subcommand : str
        ``fit``, ``validate``, ``test`` or ``predict``.
    known : sequence of str
        Options of the subcommand, as ``trainer.max_epochs``.

    Returns
    -------
    dict
        By section (``model``) the values by variable, of those that end in the name of an argument.

    Raises
    ------
    ConfigError
        If a variable of this subcommand is none of its options: it would have no effect.
    """
    prefix = f"PL_{subcommand.upper()}__"
    names = {prefix + option.replace(".", "__").upper() for option in known}
    found: dict[str, dict[str, str]] = {}
    for variable, value in environment.items():
        if not variable.startswith(prefix) or variable in names:
            continue
        section, _, argument = variable.removeprefix(prefix).lower().partition("__")
        if section not in CLASSES or not argument:
            guess = registry.did_you_mean(variable, sorted(names))
            raise ConfigError(f"{variable}: unknown environment variable{guess}")
        found.setdefault(section, {})[variable] = value
    return found


@contextmanager
def sections_in_environment(
    arguments: dict[str, dict[str, str]], config: Mapping[str, Any], subcommand: str
) -> Iterator[None]:
    """Set the variable of each section to its class with the arguments, while the command line is read.

    Parameters
    ----------
    arguments : dict
        What :func:`arguments_in` found.
    config : mapping
        What the command line means without them: it says which class a section has.
    subcommand : str
        ``fit``, ``validate``, ``test`` or ``predict``.

    Raises
    ------
    ConfigError
        If a section has no class, or the class no such argument.
    """
    before = dict(os.environ)
    try:
        for section, values in arguments.items():
            path = (config.get(section) or {}).get("class_path")
            if path is None:
                raise ConfigError(f"{next(iter(values))}: there is no --{section} that it could be an argument of")
            whole = f"PL_{subcommand.upper()}__{section.upper()}"
            given = _init_args(path, section, values)
            os.environ[whole] = json.dumps({"class_path": path, "init_args": {**_earlier(whole, path), **given}})
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


def _init_args(path: str, section: str, values: dict[str, str]) -> dict[str, Any]:
    cls = find_class(path, section)
    parameters = inspect.signature(cls).parameters if cls is not None else {}
    by_name = {name.lower(): name for name in parameters}
    given = {}
    for variable, value in values.items():
        name = variable.lower().partition(f"__{section}__")[2].removeprefix("init_args__")
        if name not in by_name:
            hint = registry.did_you_mean(name, by_name, f"it has {', '.join(parameters)}")
            raise ConfigError(f"{variable}: {path} has no such argument{hint}")
        parameter = parameters[by_name[name]]
        text = parameter.annotation in (str, "str")
        given[parameter.name] = value if text else _value(value, variable)
    return given


def _earlier(variable: str, path: str) -> dict[str, Any]:
    """Arguments that the variable of the section has already, if it is of the same class."""
    value = _value(os.environ.get(variable, ""), variable)
    same = isinstance(value, dict) and value.get("class_path") == path
    return dict(value.get("init_args") or {}) if same else {}


def _value(text: str, variable: str) -> Any:
    try:
        return parse_yaml(text, variable)
    except FileFormatError as error:
        raise ConfigError(str(error)) from None
