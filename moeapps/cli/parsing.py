"""How ``moeapps fit|validate|test|predict`` read YAML files and options, around jsonargparse's parser.

- YAML is loaded within bounds, and the classes that it names are imported (:func:`load_value`).
- What has been read is remembered (:class:`RecordingParser`), so that the cause of an error can be looked for in it.
- An error becomes one line (:func:`own_error`, :func:`readable_error`).
"""

import inspect
import os
import re
import sysconfig
import traceback
from collections.abc import Iterator
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, get_args

from jsonargparse import Namespace, get_loader
from lightning.pytorch.cli import LightningArgumentParser
from yaml import YAMLError

import moeapps
from moeapps import plugins, registry
from moeapps.cli.config_check import Source
from moeapps.core.errors import ConfigError, FileFormatError, MoEAppsError
from moeapps.core.yaml_files import TagRefused, check_file, check_yaml, parse_yaml

__all__ = ["RecordingParser", "import_classes", "load_value", "own_error", "readable_error", "whole_numbers_first"]


def whole_numbers_first(function: Any) -> None:
    """Let ``int`` come before ``float`` in the types of a function's arguments.

    ``--trainer.limit_test_batches 1`` is one batch, and 1.0 are all of them. Lightning writes ``Optional[Union[int,
    float]]``, but Python gives it the union that anybody in the process wrote before it, in whatever order.
    """
    annotations = getattr(inspect.unwrap(function), "__annotations__", {})
    for name, annotation in annotations.items():
        kinds = get_args(annotation)
        if int in kinds and float in kinds and kinds.index(float) < kinds.index(int):
            others = (kind for kind in kinds if kind not in (int, float))
            annotations[name] = reduce(or_, others, int | float)


class RecordingParser(LightningArgumentParser):
    """Parser that remembers the configurations it has read, so that an error can be looked for in them.

    Attributes
    ----------
    sources : list of Source
        The configurations, in their order.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sources: list[Source] = []

    def add_class_arguments(self, theclass: Any, *args: Any, **kwargs: Any) -> Any:
        """Add the arguments of a class, of whose types ``int`` is tried before ``float``."""
        whole_numbers_first(theclass.__init__)
        return super().add_class_arguments(theclass, *args, **kwargs)

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Read a file, if it is one that can be a configuration."""
        try:
            if os.path.exists(path):
                check_file(path)
            return super().parse_path(path, *args, **kwargs)
        except FileFormatError as error:
            raise ConfigError(str(error)) from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not a YAML file ({error})") from None

    def parse_string(self, content: str, path: Any = "", *args: Any, **kwargs: Any) -> Namespace:
        """Import the modules that the configuration names under ``import``, then let jsonargparse read it."""
        self.sources.append(Source(content, str(path or "the configuration"), Path.cwd()))
        try:
            found = parse_yaml(content, str(path))
        except FileFormatError as error:
            raise ConfigError(str(error)) from None
        sections = [found, *found.values()] if isinstance(found, dict) else []
        for section in sections:
            if isinstance(section, dict) and section.get("import"):
                plugins.import_modules(section["import"])
        return super().parse_string(content, path, *args, **kwargs)


def load_value(text: str) -> Any:
    """Load YAML for jsonargparse: within bounds, and with the classes imported that it names."""
    try:
        check_yaml(text, "the configuration")
    except TagRefused as error:
        raise YAMLError(str(error)) from None  # for jsonargparse to judge: a value such as !a may be text
    except FileFormatError as error:
        if isinstance(error.__context__, YAMLError):  # so may *.png
            raise error.__context__ from None
        raise ConfigError(str(error)) from None
    value = _load_yaml(text)
    import_classes(value)
    return value


_load_yaml = get_loader("yaml")


def import_classes(value: Any) -> None:
    """Import the modules of the classes that a configuration names.

    jsonargparse finds a class by its short name only where it has been imported: those of the registry are. And a
    module of the working folder counts before an installed one of the same name. What fails is left to jsonargparse.
    """
    if isinstance(value, list):
        for part in value:
            import_classes(part)
    elif isinstance(value, dict):
        for key, part in value.items():
            if key == "class_path" and isinstance(part, str) and "." in part:
                try:
                    plugins.import_module(part.rpartition(".")[0])
                except ConfigError as error:
                    if isinstance(error.__cause__, SystemExit):  # it would end the command as if it were --help
                        raise
            import_classes(part)
    elif isinstance(value, str) and "." not in value:
        for entry in registry.entries():
            if entry.kind != "router" and entry.path.rpartition(".")[2] == value:
                registry.resolve(entry.path)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def own_error(error: BaseException) -> MoEAppsError | None:
    """The error of ours in a chain of jsonargparse's."""
    return next((part for part in _chain(error) if isinstance(part, MoEAppsError)), None)


def readable_error(error: BaseException) -> ConfigError:
    """One line made of the keys along a chain of jsonargparse's errors, and of the cause at its end."""
    if match := re.search(r"arguments are required: \w+\.(model|data)", str(error)):
        key = match.group(1)
        return ConfigError(f"{key} is missing: say which class it is, with --{key} CLASS or in a --config file")
    *_, cause = chain = list(_chain(error))
    keys = [match.group(1) for part in chain if (match := re.match(r'Parser key "([^"]+)"', str(part)))]
    told = plugins.describe(cause) if _is_of_the_user(cause) else str(cause)
    text = " ".join(re.sub(r"<class '([^']+)'>", r"\1", told).replace("typing.", "").split())
    return ConfigError(": ".join([".".join(dict.fromkeys(keys)), text]) if keys else text)


def _is_of_the_user(error: BaseException) -> bool:
    """Whether code outside installed packages raised it: then it matters where."""
    frames = traceback.extract_tb(error.__traceback__)
    installed = (str(Path(moeapps.__file__).parent), sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"))
    return isinstance(error, SyntaxError) or bool(frames and not frames[-1].filename.startswith((*installed, "<")))
