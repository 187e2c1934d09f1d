"""Say in one line what is wrong in a configuration that jsonargparse has refused.

jsonargparse reports an unknown key deep inside a class as a tree of rejected types, and a module that fails while it
is imported as a class that does not exist. :func:`explain` goes through the files (:func:`check_config`) and the
options (:func:`_check_option`) in their order: every key is looked up in the signature of the class it belongs to, and
every class is imported. It raises the first error that it is sure of; where it finds none, jsonargparse's own stands.
So nothing is refused here that jsonargparse accepts.
"""

import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moeapps import plugins, registry
from moeapps.core.errors import ConfigError, FileFormatError
from moeapps.core.yaml_files import parse_yaml, read_yaml

__all__ = ["CLASSES", "Source", "explain", "find_class"]

CLASSES = ("model", "data", "optimizer", "lr_scheduler")
"""Sections that hold a class with its arguments."""

_NO_CLASS = ("true", "false", "null", "none")
_TAKEN = ("seeds", "test", "engine", "workers", "output")
"""Options that the commands take before jsonargparse reads the others, and that no file has."""

_OTHER = (
    "trainer",
    "import",
    "seed_everything",
    "logger",
    "patience",
    "monitor",
    "ckpt_path",
    "return_predictions",
    "verbose",
    "weights_only",
    "config",
    "print_config",
)


@dataclass(frozen=True)
class Source:
    """A configuration that has been read.

    Parameters
    ----------
    text : str
        Its content.
    name : str
        File, as the user wrote it.
    folder : Path
        What paths in it are relative to.
    """

    text: str
    name: str
    folder: Path = field(default_factory=Path)


def explain(args: Sequence[str], sources: Sequence[Source], subcommand: str) -> None:
    """Raise the error that a user can act on.

    Parameters
    ----------
    args : sequence of str
        Options of the command, without the subcommand's name.
    sources : sequence of Source
        The configurations that have been read, in their order.
    subcommand : str
        ``fit``, ``validate``, ``test`` or ``predict``; a configuration may have a section of this name.

    Raises
    ------
    ConfigError
        Naming the key or option, and the nearest valid one.
    """
    classes: dict[str, str | None] = {}
    left = list(sources)
    options = list(_options(args))
    configs = [value for name, value in options if name in ("-c", "--config")]
    while len(left) > len(configs):  # from the environment: before all options
        _check_source(left.pop(0), classes, subcommand)
    for name, value in options:
        if name in ("-c", "--config"):
            if value is None:
                raise ConfigError("--config needs a file")
            if left:
                _check_source(left.pop(0), classes, subcommand)
            elif "://" not in value and (not Path(value).exists() or Path(value).is_dir()):
                raise ConfigError(f"--config {value}: there is no such file")
        elif name.startswith("--") and name not in ("--help", "--print_config") and ".help" not in name:
            _check_option(name[2:].rstrip("+"), value, classes)


def find_class(name: Any, key: str, base: type | tuple[type, ...] | None = None) -> type | None:
    """Import the class that a ``class_path`` names.

    Parameters
    ----------
    name : str
        Import path, or the short name of a registered class or of an imported subclass of ``base``.
    key : str
        Where it stands, for the error.
    base : type, optional
        Class that it has to derive from.

    Returns
    -------
    type or None
        None where only jsonargparse can tell: functions that return the class, short names of unknown base.

    Raises
    ------
    ConfigError
        If there is no such class, or its module fails while it is imported.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name):
        raise ConfigError(f"{key}: expected the import path of a class, got {name!r}")
    if "." not in name:
        registered = [entry.path for entry in registry.entries() if name in (entry.name, _last(entry.path))]
        subclasses = {cls.__name__: cls for cls in _subclasses(base)}
        if name in subclasses or base is None:
            return subclasses.get(name)
        if registered:
            return registry.resolve(registered[0])
        raise ConfigError(f"{key}: there is no class {name!r}{_guess(name, list(subclasses))}")
    try:
        found = _import(name)
    except plugins.ModuleMissing as error:
        raise ConfigError(f"{key}: there is no class {name!r}: {error}{_guess(name)}") from error
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error
    if isinstance(found, type) and base is not None and not issubclass(found, base):
        wanted = base if isinstance(base, type) else base[0]
        raise ConfigError(f"{key}: {name} is no {wanted.__name__}")
    return found if isinstance(found, type) else None


def _import(path: str) -> Any:
    """Object by its import path; it may be nested in a class."""
    module_name, _, name = path.rpartition(".")
    try:
        module: Any = plugins.import_module(module_name)
    except plugins.ModuleMissing as missing:
        try:
            module = _import(module_name) if "." in module_name else None
        except ConfigError:
            module = None
        if not isinstance(module, type):
            raise missing from None
    if hasattr(module, name):
        return getattr(module, name)
    own = [key for key, value in vars(module).items() if isinstance(value, type)]
    where = getattr(module, "__file__", None)
    near = registry.nearest(name, own)
    hint = f"; did you mean '{module_name}.{near}'?" if near else _guess(path)
    if hidden := plugins.hidden_file(module_name):
        hint = f". It hides your file {hidden}: give that another name"
    raise ConfigError(f"there is no class {path!r}{f' in {where}' if where else ''}{hint}")


def _guess(name: str, more: Iterable[str] = ()) -> str:
    """A path with a slip, or a short name with a slip. Of what is only alike nothing is said: it would mislead."""
    names = {_last(entry.path): entry.path for entry in registry.entries()}
    near = registry.nearest(name, names.values(), likeness=0.85)
    if near is None and (short := registry.nearest(_last(name), [*names, *more], likeness=0.75)):
        near = names.get(short, short)
    return f"; did you mean {near!r}?" if near else ""


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _subclasses(base: type | tuple[type, ...] | None) -> Iterator[type]:
    for cls in base if isinstance(base, tuple) else [base] if base is not None else []:
        yield cls
        yield from _subclasses(tuple(cls.__subclasses__()))


def _base(key: str) -> type | tuple[type, ...] | None:
    """Class from which those of a section, or of an argument of the Trainer, have to derive."""
    import lightning as L
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.cli import LRSchedulerTypeTuple
    from lightning.pytorch.loggers import Logger
    from torch.optim import Optimizer

    bases: dict[str, Any] = {
        "model": L.LightningModule,
        "data": L.LightningDataModule,
        "optimizer": Optimizer,
        "lr_scheduler": LRSchedulerTypeTuple,
        "trainer.callbacks": Callback,
        "trainer.logger": Logger,
    }
    return bases.get(key)


def _check_source(source: Source, classes: dict[str, str | None], subcommand: str) -> None:
    try:
        config = parse_yaml(source.text, source.name)
    except FileFormatError as error:
        raise ConfigError(str(error)) from None
    if config is None:
        raise ConfigError(f"{source.name}: it is empty, expected keys such as model, data and trainer")
    if not isinstance(config, dict):
        raise ConfigError(f"{source.name}: expected keys such as model, data and trainer, got {type(config).__name__}")
    if isinstance(config.get(subcommand), dict):  # a file for several subcommands, given before the subcommand
        config = config[subcommand]
    check_config(config, classes, source.folder)


def check_config(config: dict[str, Any], classes: dict[str, str | None], folder: Path) -> None:
    """Check the names in a configuration.

    Parameters
    ----------
    config : dict
        Content of one file.
    classes : dict
        Class of each section as far as it is known from what stands before; brought up to date.
    folder : Path
        What paths in it are relative to.

    Raises
    ------
    ConfigError
        Naming the full key and the nearest valid one.
    """
    _known(config, [*CLASSES, *_OTHER], "")
    for section in CLASSES:
        if config.get(section) is not None:
            _check_class(config[section], section, classes, folder, section)
    if config.get("trainer") is not None:
        _check_trainer(config["trainer"], folder)


def _check_trainer(trainer: Any, folder: Path) -> None:
    from lightning.pytorch import Trainer

    trainer = _content(trainer, "trainer", folder)
    if not isinstance(trainer, dict):
        raise ConfigError(f"trainer: expected arguments of the Trainer, or a file with them, got {trainer!r}")
    _known(trainer, _parameters(Trainer), "trainer.")
    for key, value in trainer.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict) and "class_path" in item:
                _check_class(item, f"trainer.{key}", {}, folder, f"trainer.{key}")


def _content(value: Any, key: str, folder: Path) -> Any:
    """What a value stands for that may be the name of a file, or YAML in a string."""
    if not isinstance(value, str):
        return value
    if (folder / value).is_file():
        try:
            return read_yaml(folder / value)
        except FileFormatError as error:
            raise ConfigError(f"{key}: {error}") from None
    if re.fullmatch(r"[\w.]+", value) and not value.endswith((".yaml", ".yml", ".json")):
        return value
    if ":" not in value:
        raise ConfigError(f"{key}: there is no file {value!r}")
    try:
        return parse_yaml(value, key)
    except FileFormatError as error:
        raise ConfigError(str(error)) from None


def _check_class(node: Any, key: str, classes: dict[str, str | None], folder: Path, section: str = "") -> None:
    """Check a ``class_path`` with its ``init_args``, and whatever is nested in them."""
    node = _content(node, key, folder)
    if isinstance(node, str):
        node = {"class_path": node}
    if not isinstance(node, dict):
        raise ConfigError(f"{key}: expected class_path and init_args, got {node!r}")
    known = ["class_path", "init_args", "dict_kwargs"]
    if "class_path" not in node:
        for name in node:
            if name not in known and (guess := registry.nearest(str(name), known)):
                raise ConfigError(f"{key}.{name}: unknown key; did you mean {guess!r}?")
        if classes.get(section) is None:
            raise ConfigError(f"{key}: class_path is missing; it says which class to use")
    path = node.get("class_path", classes.get(section))
    classes[section] = path
    _known(node, known, f"{key}.")
    cls = find_class(path, f"{key}.class_path", _base(section))
    arguments = node.get("init_args") or {}
    if not isinstance(arguments, dict):
        raise ConfigError(f"{key}.init_args: expected argument names and values, got {arguments!r}")
    if cls is not None:
        _known(arguments, _parameters(cls), f"{key}.init_args.", owner=path)
    for name, value in arguments.items():
        if isinstance(value, dict) and "class_path" in value:
            _check_class(value, f"{key}.init_args.{name}", {}, folder)


def _options(args: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Options with their values; ``--name value`` and ``--name=value`` are the same."""
    position = 0
    while position < len(args):
        name, equals, value = args[position].partition("=")
        if not name.startswith("-"):
            raise ConfigError(f"unexpected argument {args[position]!r}: options begin with --")
        following = args[position + 1] if position + 1 < len(args) and not args[position + 1].startswith("--") else None
        yield name, value if equals else following
        position += 1 if equals or following is None else 2


def _check_option(key: str, value: str | None, classes: dict[str, str | None]) -> None:
    section, _, rest = key.partition(".")
    if section not in (known := [*CLASSES, *_OTHER]) and registry.nearest(section, [*known, *_TAKEN]) in _TAKEN:
        raise ConfigError(f"--{key}: unknown key{registry.did_you_mean(section, _TAKEN)}")
    _known([section], known, "--")
    if section == "trainer":
        from lightning.pytorch import Trainer

        if rest:
            _known([rest.split(".")[0]], _parameters(Trainer), "--trainer.")
            if (base := _base(key)) and re.fullmatch(r"[\w.]+", value or "") and str(value).lower() not in _NO_CLASS:
                find_class(value, f"--{key}", base)
        elif value is not None:
            _check_trainer(value, Path())
    if section not in CLASSES:
        return
    if rest in ("", "class_path"):
        if value is not None:  # options after it belong to this class
            _check_class(value, f"--{key}", classes, Path(), section)
        return
    parts = [part for part in rest.split(".") if part != "init_args"]
    path = classes.get(section)
    if path is None:
        raise ConfigError(f"--{key}: say first which class it is an argument of, with --{section} or in a --config")
    cls = find_class(path, f"--{section}", _base(section))
    if cls is not None and parts[0] not in ("dict_kwargs", "class_path"):
        _known(parts[:1], _parameters(cls), f"--{section}.", owner=path)


def _parameters(cls: type) -> list[str] | None:
    """Names of the constructor's arguments; None when it takes any."""
    parameters = list(inspect.signature(cls).parameters.values())
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters]


def _lightning_options() -> list[str]:
    from lightning.pytorch import Trainer

    return _parameters(Trainer) or []


def _known(keys: Iterable[Any], known: list[str] | None, prefix: str, owner: str | None = None) -> None:
    if known is None:
        return
    for key in keys:
        if key not in known:
            if owner and prefix.startswith("--") and str(key) in _lightning_options():  # --model.max_epochs
                raise ConfigError(f"{prefix}{key}: {owner} has no such argument; did you mean --trainer.{key}?")
            what = f"{owner} has no such argument" if owner else "unknown key"
            hint = registry.did_you_mean(key, known, f"known are {', '.join(known)}")
            raise ConfigError(f"{prefix}{key}: {what}{hint}")
