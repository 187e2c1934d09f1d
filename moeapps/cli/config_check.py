"""Find a misspelled name in a configuration and say it in one line, with the nearest valid one.

jsonargparse reports an unknown key deep inside a class as a tree of rejected types. The functions here walk the
content of the YAML files (:func:`check_config`) and the dotted options of the command line (:func:`check_options`):
every key is looked up in the signature of the class it belongs to, and every class path is imported. Values are left
to jsonargparse.
"""

import inspect
import re
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from moeapps import registry
from moeapps.core.errors import ConfigError

__all__ = ["check_config", "check_options", "load_yaml", "merge"]

_SECTIONS = ("trainer", "model", "data")
_OTHER = (
    "seed_everything",
    "ckpt_path",
    "return_predictions",
    "verbose",
    "weights_only",
    "config",
    "print_config",
)


def load_yaml(text: str, path: str) -> dict[str, Any]:
    """Content of a configuration file.

    Parameters
    ----------
    text : str
        The content.
    path : str
        Name of the file, for the error.

    Raises
    ------
    ConfigError
        If it is not YAML, naming file and line, or not a mapping.
    """
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path}{line}: not a YAML file ({getattr(error, 'problem', None) or error})") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: expected keys such as model, data and trainer, got {type(loaded).__name__}")
    return loaded


def merge(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Both configurations; the second one counts where they differ."""
    both = dict(first)
    for key, value in second.items():
        mergeable = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = merge(both[key], value) if mergeable else value
    return both


def check_config(config: dict[str, Any]) -> None:
    """Check the names in a configuration.

    Parameters
    ----------
    config : dict
        The files given so far, merged.

    Raises
    ------
    ConfigError
        Naming the full key and the nearest valid one.
    """
    _known(config, [*_SECTIONS, *_OTHER], "")
    for section in ("model", "data"):
        if section in config:
            _check_class(config[section], section)
    trainer = config.get("trainer")
    if isinstance(trainer, dict):
        from lightning.pytorch import Trainer

        _known(trainer, _parameters(Trainer), "trainer.")
        for key, value in trainer.items():
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, dict) and "class_path" in item:
                    _check_class(item, f"trainer.{key}")


def check_options(args: list[str], config: dict[str, Any]) -> None:
    """Check the names of the options after ``moeapps fit`` (or validate, test, predict).

    Parameters
    ----------
    args : list of str
        The options.
    config : dict
        The configuration files, merged: they say to which class ``--model.lr`` belongs.

    Raises
    ------
    ConfigError
        Naming the option and the nearest valid one, or a configuration file that does not exist.
    """
    for name, given in _options(args):
        if name in ("-c", "--config"):
            if given is None:
                raise ConfigError("--config needs a file")
            if not Path(given).exists() or Path(given).is_dir():
                raise ConfigError(f"--config {given}: there is no such file")
        elif name.startswith("--") and name not in ("--help", "--print_config") and ".help" not in name:
            key = name[2:].rstrip("+")
            _check_option(key, given, config)
            if key in ("model", "data") and given is not None:  # options after it belong to this class
                config = {**config, key: {"class_path": given}}


def _options(args: list[str]) -> Iterator[tuple[str, str | None]]:
    """Options with their values; ``--name value`` and ``--name=value`` are the same."""
    position = 0
    while position < len(args):
        name, equals, value = args[position].partition("=")
        if not name.startswith("-"):
            raise ConfigError(f"unexpected argument {args[position]!r}: options begin with --")
        following = args[position + 1] if position + 1 < len(args) and not args[position + 1].startswith("--") else None
        yield name, value if equals else following
        position += 1 if equals or following is None else 2


def _check_option(key: str, value: str | None, config: dict[str, Any]) -> None:
    section, _, rest = key.partition(".")
    _known([section], [*_SECTIONS, *_OTHER], "--")
    if section == "trainer" and rest:
        from lightning.pytorch import Trainer

        _known([rest.split(".")[0]], _parameters(Trainer), "--trainer.")
    if section not in ("model", "data"):
        return
    if not rest:
        if value is not None:
            _check_class({"class_path": value}, f"--{section}")
        return
    node = config.get(section)
    name = next((part for part in rest.split(".") if part != "init_args"), "class_path")
    if name == "class_path" or not isinstance(node, dict | str):
        return
    path = node if isinstance(node, str) else node.get("class_path")
    if isinstance(path, str):
        _known([name], _parameters(_import(path, section)), f"--{section}.", owner=path)


def _check_class(node: Any, key: str) -> None:
    """Check a ``class_path`` with its ``init_args``, and whatever is nested in them."""
    if isinstance(node, str):
        node = {"class_path": node}
    if not isinstance(node, dict):
        raise ConfigError(f"{key}: expected class_path and init_args, got {node!r}")
    if "class_path" not in node:
        known = ["class_path", "init_args"]
        for name in node:
            if name not in known and (guess := registry.nearest(str(name), known)):
                raise ConfigError(f"{key}.{name}: unknown key; did you mean {guess!r}?")
        raise ConfigError(f"{key}: class_path is missing; it says which class to use")
    _known(node, ["class_path", "init_args", "dict_kwargs"], f"{key}.")
    path = node["class_path"]
    arguments = node.get("init_args") or {}
    if not isinstance(arguments, dict):
        raise ConfigError(f"{key}.init_args: expected argument names and values, got {arguments!r}")
    _known(arguments, _parameters(_import(path, key)), f"{key}.init_args.", owner=path)
    for name, value in arguments.items():
        if isinstance(value, dict) and "class_path" in value:
            _check_class(value, f"{key}.init_args.{name}")


def _import(path: Any, key: str) -> type:
    known = [entry.path for entry in registry.entries()]
    names = {entry.name: entry.path for entry in registry.entries()}
    if not isinstance(path, str) or not re.fullmatch(r"[A-Za-z_][\w.]*", path):
        raise ConfigError(f"{key}.class_path: expected the import path of a class, got {path!r}")
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(import_module(module), name) if module else None
    except (ImportError, AttributeError):
        cls = None
    if isinstance(cls, type):
        return cls
    # a short name, a path with a slip, or a short name with a slip
    guess = names.get(path) or registry.nearest(path, known)
    short = registry.nearest(path.rpartition(".")[2], list(names))
    guess = guess or (names[short] if short else None)
    raise ConfigError(f"{key}.class_path: there is no class {path!r}" + (f"; did you mean {guess!r}?" if guess else ""))


def _parameters(cls: type) -> list[str] | None:
    """Names of the constructor's arguments; None when it takes any."""
    parameters = list(inspect.signature(cls).parameters.values())
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters]


def _known(keys: Iterable[Any], known: list[str] | None, prefix: str, owner: str | None = None) -> None:
    if known is None:
        return
    for key in keys:
        if key not in known:
            guess = registry.nearest(str(key), known)
            hint = f"did you mean {guess!r}?" if guess else f"known are {', '.join(known)}"
            what = f"{owner} has no such argument" if owner else "unknown key"
            raise ConfigError(f"{prefix}{key}: {what}; {hint}")
