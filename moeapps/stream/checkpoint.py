"""What a stream run keeps on disk besides its output: the checkpoint, and the names of the files that it writes."""

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from moeapps import registry
from moeapps.core.errors import ConfigError, FileFormatError
from moeapps.core.files import atomic_write
from moeapps.core.saved_arguments import arguments_to_json, check_kinds
from moeapps.core.saving import SaveMixin, load, registered_path
from moeapps.stream.estimator import StreamEstimator

__all__ = [
    "CHANGEABLE",
    "CHECKPOINT",
    "StreamCheckpoint",
    "changed_settings",
    "load_checkpoint",
    "read_output_files",
    "write_output_files",
]

CHECKPOINT = "stream.safetensors"
"""Name of the file in the checkpoint folder."""

OUTPUT_FILES = "stream.json"
"""Names of the files that the run writes. It is written before they are, so that a run that is killed before its first
checkpoint knows them again."""

CHANGEABLE = {
    "source", "window", "id", "types", "missing", "keep", "time", "metric", "set on_bad", "set max_features",
    "set max_categories",
}  # fmt: skip
"""Settings that a resumed run may change if it is told to; the others are built into what was learned."""


VOTES = "run.votes"
"""Name of the array with what the experts predicted for the events that wait for their label: too much for JSON."""


class StreamCheckpoint(SaveMixin):
    """A model and where its run stands, in one file.

    ``moeapps.load("folder/stream.safetensors").model`` is the model.

    Parameters
    ----------
    model : StreamEstimator
        The model.
    run : dict[str, Any]
        Where the run stands, as JSON values.
    """

    numpy_arrays = True

    def __init__(self, model: StreamEstimator, run: dict[str, Any]) -> None:
        self.model, self.run = model, run

    def saved_arguments(self) -> dict[str, Any]:
        """None of its own."""
        return {}

    def saved_state(self) -> dict[str, Any]:
        """Class, arguments and state of the model, and the run without its votes."""
        model = {
            "class": registered_path(type(self.model)),
            "arguments": arguments_to_json(self.model.saved_arguments()),
            "state": self.model.saved_state(),
        }
        run = self.run
        if votes := _votes(run):
            run = {**run, "waiting": {**run["waiting"], "votes": [entry[:-1] for entry in votes]}}
        return {"model": model, "run": run}

    def saved_tensors(self) -> dict[str, NDArray[Any]]:
        """Those of the model, and the votes."""
        tensors = self.model.saved_tensors()
        if votes := _votes(self.run):
            content = bytearray().join(b64decode(text) for *_, text in votes)
            tensors[VOTES] = np.frombuffer(content, dtype=np.float32)
        return tensors

    @classmethod
    def from_saved(
        cls, arguments: dict[str, Any], state: dict[str, Any], tensors: dict[str, NDArray[Any]], source: Path
    ) -> Self:
        """Build the model again."""
        saved = state["model"]
        kind = registry.resolve(saved["class"])
        if not issubclass(kind, StreamEstimator):
            raise FileFormatError(f"{source} holds a {saved['class']}, which is not a model of streams")
        check_kinds(kind, saved["arguments"], source)
        if not isinstance(state["run"], dict):
            raise FileFormatError(f"{source} does not say where its run stands")
        run = _with_votes(state["run"], tensors.pop(VOTES, None), source)
        return cls(kind.from_saved(saved["arguments"], saved["state"], tensors, source), run)


def _votes(run: Mapping[str, Any]) -> list[list[Any]]:
    """Of each event that waits with its votes: key, numbers of experts and classes, and the votes as base64."""
    votes: list[list[Any]] = run.get("waiting", {}).get("votes", [])
    return votes


def _with_votes(run: dict[str, Any], array: NDArray[Any] | None, source: Path) -> dict[str, Any]:
    """The run with its votes as :meth:`~moeapps.stream.io.delay.PendingLabels.state` has them."""
    entries = _votes(run)
    if not entries and array is None:
        return run
    sizes = [prod(entry[1:]) for entry in entries]
    if array is None or array.dtype != np.float32 or array.shape != (sum(sizes),) or min(sizes, default=0) < 0:
        raise FileFormatError(f"{source} does not have the votes of the events that wait for their label")
    parts = [array[end - size : end] for end, size in zip(accumulate(sizes), sizes, strict=True)]
    votes = [[*entry, b64encode(part.tobytes()).decode()] for entry, part in zip(entries, parts, strict=True)]
    return {**run, "waiting": {**run["waiting"], "votes": votes}}


def load_checkpoint(file: Path) -> StreamCheckpoint:
    """The checkpoint in a file.

    Raises
    ------
    FileFormatError
        If it is damaged, or something else.
    """
    found = load(file)
    if not isinstance(found, StreamCheckpoint):
        raise FileFormatError(f"{file} is not a checkpoint of a stream")
    return found


def changed_settings(
    saved: Mapping[str, Any], now: Mapping[str, Any], file: Path, allow_change: bool = False
) -> set[str]:
    """Names of the settings in which a run differs from its checkpoint.

    Parameters
    ----------
    saved, now : mapping of str to JSON value
        Settings of the checkpoint and of the run; those that one of them lacks are not compared.
    file : Path
        The checkpoint, for messages.
    allow_change : bool, default False
        Whether those of :data:`CHANGEABLE` may differ.

    Raises
    ------
    ConfigError
        Naming the setting, both values, and what can be done.
    """
    changed = set()
    for name in [name for name in saved if name in now]:
        then, given = json.loads(json.dumps(saved[name])), json.loads(json.dumps(now[name]))
        pairs = {name: (then, given)}
        if isinstance(then, dict) and isinstance(given, dict):
            pairs = {f"{name} {key}": (then.get(key), given.get(key)) for key in {**then, **given}}
        for setting, (before, after) in pairs.items():
            if before == after:
                continue
            if setting.split(" ")[0] in CHANGEABLE or setting in CHANGEABLE:
                hint = "give the same again, or --allow-change"
            else:
                hint = "give the same again, or begin another run in another folder"
                hint += f" with --model {file}" if name == "set" else ""
            if not allow_change or "--allow-change" not in hint:
                difference = f"{_shown(setting, before)}, this command has {_shown(setting, after)}"
                raise ConfigError(f"{file} was made with {difference}: {hint}")
            changed.add(setting)
    return changed


def _shown(setting: str, value: Any) -> str:
    """A setting as it is written on the command line: ``--window 500``, ``no --id``."""
    option, _, name = setting.partition(" ")
    if value is None or value == [] or value == {}:
        return f"no --{option}{' ' + name if name else ''}"
    text = value if isinstance(value, str) else json.dumps(value)
    return f"--{option} {name}={text}" if name else f"--{option} {text}"


def write_output_files(folder: Path, files: Mapping[str, str]) -> None:
    """Store the names of the files that a run is about to write, by what is written to them."""
    with atomic_write(folder / OUTPUT_FILES) as file:
        file.write(json.dumps({"files": dict(files)}, indent=1).encode() + b"\n")


def read_output_files(folder: Path) -> dict[str, str]:
    """What :func:`write_output_files` has stored; empty if there is nothing.

    Raises
    ------
    FileFormatError
        If the file holds something else.
    """
    path = folder / OUTPUT_FILES
    if not path.exists():
        return {}
    try:
        files = json.loads(path.read_bytes())["files"]
        return {str(name): str(file) for name, file in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileFormatError(f"{path} is damaged ({error}): remove it to begin anew") from None
