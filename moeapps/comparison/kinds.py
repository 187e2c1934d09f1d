"""What data is, found from the data itself, and which function compares on it."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from moeapps.comparison.task import Task
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.tabledata.files import ENDINGS, file_ending
from moeapps.core.tabledata.frames import is_table
from moeapps.registry import nearest

__all__ = ["KINDS", "Kind", "find_kind"]

ALIASES = {"elec2": "electricity", "census": "census-income", "census_income": "census-income"}
"""Further names of public data sets."""


@dataclass(frozen=True)
class Kind:
    """A kind of data, and what compares on it.

    Attributes
    ----------
    name : str
        What a user is told.
    maker : str
        Path of the function that makes the task. Modules are imported late: each loads a framework of its own.
    public : str
        Path of the names of its public data sets.
    tasks : tuple of str
        Values of ``task`` that name it.
    arguments : tuple of str
        Arguments of :func:`moeapps.compare` that belong to it.
    """

    name: str
    maker: str
    public: str
    tasks: tuple[str, ...]
    arguments: tuple[str, ...]

    def make(self, data: Any, target: Any, given: dict[str, Any], limits: dict[str, Any]) -> Task:
        """The task.

        Parameters
        ----------
        data, target
            As in :func:`moeapps.compare`.
        given : dict
            Arguments, None, False or empty where the user gives none.
        limits : dict
            Arguments that have a default for every kind.

        Raises
        ------
        ConfigError
            If an argument is given that belongs to another kind.
        """
        for name, value in given.items():
            if value is None or value is False or value == [] or name in self.arguments:
                continue
            having = [kind.name for kind in _KINDS if name in kind.arguments]
            raise ConfigError(f"{name} is for {' and '.join(having)}, not for {self.name}")
        own = {name: value for name, value in given.items() if name in self.arguments and value is not None}
        own |= {name: value for name, value in limits.items() if name in self.arguments}
        task: Task = _resolved(self.maker)(data, target, **own)
        return task

    def public_names(self) -> list[str]:
        """Names of its public data sets."""
        return list(_resolved(self.public))


def _resolved(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


_COMMON = ("metric", "models", "splits", "seed")
_TABLE = Kind(
    "a table", "moeapps.comparison.tables.table_task", "moeapps.tables.table_data.PUBLIC_TABLES",
    ("classification", "regression"), (*_COMMON, "task", "groups", "time", "ignore", "max_rows"),
)  # fmt: skip
_IMAGES = Kind(
    "images", "moeapps.comparison.images.image_task", "moeapps.vision.datasets.PUBLIC",
    ("images",), (*_COMMON, "root", "image_size", "max_rows"),
)  # fmt: skip
_STREAM = Kind(
    "a stream", "moeapps.comparison.streams.stream_task", "moeapps.stream.datasets.PUBLIC_STREAMS",
    ("stream",), (*_COMMON, "ignore", "root", "max_events"),
)  # fmt: skip
_GRAPH = Kind(
    "a graph", "moeapps.comparison.graphs.graph_task", "moeapps.graph.datasets.PUBLIC_GRAPHS",
    ("graph",), (*_COMMON, "edges", "id", "edge_source", "edge_target", "edge_weight", "undirected", "missing_nodes",
     "resplit", "ignore", "root"),
)  # fmt: skip
_KINDS = (_IMAGES, _TABLE, _STREAM, _GRAPH)  # digits are images, unless task says otherwise

KINDS = tuple(task for kind in (_TABLE, _GRAPH, _STREAM, _IMAGES) for task in kind.tasks)
"""What ``task`` may be, besides "auto"."""


def find_kind(data: Any, task: str, edges: Any = None) -> tuple[Kind, Any, str]:
    """Find out what data is.

    Parameters
    ----------
    data : object
        What :func:`moeapps.compare` takes.
    task : str
        "auto", or one of :data:`KINDS`.
    edges : object, optional
        Edges, which only a graph has.

    Returns
    -------
    kind : Kind
        What it is.
    data : object
        The same, the name of a public data set spelled as its package does.
    reason : str
        By what it is known.

    Raises
    ------
    ConfigError
        If it is the name of nothing that is known, or a file of another kind.
    DataError
        If it is no data.
    """
    wanted = [kind for kind in _KINDS if task in kind.tasks] or list(_KINDS)
    if isinstance(data, str) and not os.path.exists(data):
        kind, name = _public(data, wanted)
        return kind, name, "a public data set"
    if task != "auto":
        return wanted[0], data, f"task={task}"
    if edges is not None:
        return _GRAPH, data, "it has edges"
    return _of_path(Path(data), data) if isinstance(data, str | os.PathLike) else _of_object(data)


def _public(name: str, wanted: list[Kind]) -> tuple[Kind, str]:
    folded = ALIASES.get(name.casefold(), name.casefold())
    known: dict[str, str] = {}
    for kind in wanted:
        names = {entry.casefold(): entry for entry in kind.public_names()}
        if folded in names:
            return kind, names[folded]
        known |= names
    if Path(name).suffix or os.sep in name:
        beside = sorted(os.listdir(Path(name).parent)) if Path(name).parent.is_dir() else []
        meant = nearest(Path(name).name, beside)
        hint = f"; did you mean {str(Path(name).with_name(meant))!r}?" if meant else ""
        raise ConfigError(f"there is no file {name!r}{hint}")
    guess = nearest(folded, list(known))
    hint = f"; did you mean {known[guess]!r}?" if guess else ""
    listing = ", ".join(known.values()) if not guess else ", ".join(list(known.values())[:5]) + ", ..."
    raise ConfigError(f"{name!r} is neither a file nor a public data set ({listing}){hint}")


def _of_path(path: Path, data: Any) -> tuple[Kind, Any, str]:
    if path.is_dir():
        if (path / "node_features.npy").exists():
            return _GRAPH, data, "a folder with node_features.npy"
        if any(entry.is_dir() and not entry.name.startswith(".") for entry in path.iterdir()):
            return _IMAGES, data, "a folder of folders"
        return _TABLE, data, "a folder of files"
    ending = file_ending(path)
    if ending == ".npz":
        return _GRAPH, data, "an .npz file"
    if ending in ENDINGS:
        return (
            _TABLE,
            data,
            f"a {ending} file (for a stream of events give task=stream, for the nodes of a graph its edges)",
        )
    raise ConfigError(
        f"{path}: expected {', '.join(ENDINGS)} (a table or a stream), .npz (a graph), or a folder of images per class"
    )


def _of_object(data: Any) -> tuple[Kind, Any, str]:
    if type(data).__module__.startswith("torch_geometric."):
        return _GRAPH, data, type(data).__name__
    if is_table(data):
        return _TABLE, data, type(data).__name__
    if (ndim := getattr(data, "ndim", None)) is not None:
        if ndim == 2:
            return _TABLE, data, "an array with two dimensions"
        if ndim in (3, 4):
            return _IMAGES, data, f"an array with {ndim} dimensions"
    elif isinstance(data, Iterable) and not isinstance(data, bytes | dict):
        return _STREAM, data, "an iterable of (dict, label) pairs"
    raise DataError(
        "data must be a table, a graph, images, a stream of (dict, label) pairs, a path or the name of a public data "
        f"set, got {type(data).__name__}" + (f" with {ndim} dimensions" if ndim is not None else "")
    )
