"""Find what is wrong with a configuration before jsonargparse does, and say it in one line.

jsonargparse reports an unknown key deep inside a class as a tree of rejected types. This module walks the YAML file and
the dotted overrides first: every key is looked up in the signature of the class it belongs to, every class path is
imported, and the nearest valid name is suggested. What it lets through is still checked by jsonargparse.
"""

import inspect
import re
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from moeapps import registry
from moeapps.core.errors import ConfigError

__all__ = ["check_arguments"]

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


def check_arguments(args: list[str]) -> dict[str, Any]:
    """Check the arguments after ``moeapps fit`` (or validate, test, predict).

    Returns:
        The configuration files merged, and the options of the command line over them, by top-level key.

    Raises:
        ConfigError: Naming the full key and the nearest valid one.
    """
    config: dict[str, Any] = {}
    overrides: list[tuple[str, str | None]] = []
    position = 0
    while position < len(args):
        name, equals, value = args[position].partition("=")
        if not name.startswith("-"):
            raise ConfigError(f"unexpected argument {args[position]!r}: options begin with --")
        following = args[position + 1] if position + 1 < len(args) and not args[position + 1].startswith("--") else None
        given = value if equals else following
        position += 1 if equals or following is None else 2
        if name in ("-c", "--config"):
            config = _merge(config, _read(given))
        elif name.startswith("--") and name not in ("--help", "--print_config") and ".help" not in name:
            overrides.append((name[2:].rstrip("+"), given))
    _check_mapping(config)
    for key, given in overrides:
        _check_override(key, given, config)
    return {**config, **dict(overrides)}


def _read(path: str | None) -> dict[str, Any]:
    if path is None:
        raise ConfigError("--config needs a file")
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"--config {path}: there is no such file")
    try:
        loaded = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where is not None else ""
        raise ConfigError(f"{path}{line}: not a YAML file ({getattr(error, 'problem', None) or error})") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: expected keys such as model, data and trainer, got {type(loaded).__name__}")
    return loaded


def _merge(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    both = dict(first)
    for key, value in second.items():
        mergeable = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = _merge(both[key], value) if mergeable else value
    return both


def _check_mapping(config: dict[str, Any]) -> None:
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


def _check_override(key: str, value: str | None, config: dict[str, Any]) -> None:
    section, _, rest = key.partition(".")
    _known([section], [*_SECTIONS, *_OTHER], "--")
    if section == "trainer" and rest:
        from lightning.pytorch import Trainer

        _known([rest.split(".")[0]], _parameters(Trainer), "--trainer.")
        return
    if section not in ("model", "data"):
        return
    node: Any = config.get(section)
    if not rest:
        if value is not None:
            config[section] = {"class_path": value}
            _check_class(config[section], f"--{section}")
        return
    parts = [part for part in rest.split(".") if part != "init_args"]
    if parts[0] == "class_path" or not isinstance(node, dict | str):
        return
    path = node if isinstance(node, str) else node.get("class_path")
    if isinstance(path, str):
        _known([parts[0]], _parameters(_import(path, section)), f"--{section}.", owner=path)


def _check_class(node: Any, key: str) -> None:
    """Check a ``class_path`` with its ``init_args``, and whatever is nested in them."""
    if isinstance(node, str):
        node = {"class_path": node}
    if not isinstance(node, dict):
        raise ConfigError(f"{key}: expected class_path and init_args, got {node!r}")
    if "class_path" not in node:
        known = ["class_path", "init_args"]
        for name in node:
            if guess := registry.nearest(str(name), known):
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
        found = getattr(import_module(module), name) if module else None
    except (ImportError, AttributeError):
        found = None
    if isinstance(found, type):
        return found
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
