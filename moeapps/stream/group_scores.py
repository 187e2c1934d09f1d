"""Scores of all partitions of a group as one: what their checkpoints have counted, added up."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.core.files import atomic_write
from moeapps.core.saved_file import read_document
from moeapps.stream.checkpoint import CHECKPOINT
from moeapps.stream.handling import Counts
from moeapps.stream.named_metrics import NamedMetrics
from moeapps.stream.scores import ClassScores, NumberScores

__all__ = ["SCORES", "GroupScores", "group_scores", "offsets_of"]

SCORES = "scores.json"
"""Name of the file with the merged scores in the folder of a group."""

_PARTITION = re.compile(r"partition-(\d+)")


@dataclass
class GroupScores:
    """Scores of a group.

    Attributes
    ----------
    counts : Counts
        Events by outcome.
    scores : ClassScores or NumberScores
        Scores of all events.
    named : NamedMetrics
        Further metrics of all events.
    partitions : dict[int, dict[str, Any]]
        Counts, scores and position of each partition, as JSON values.
    """

    counts: Counts
    scores: ClassScores | NumberScores
    named: NamedMetrics
    partitions: dict[int, dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON values; a score that is not a number is None."""
        return {
            "scores": _finite({**self.scores.as_dict(), **self.named.as_dict()}),
            "counts": vars(self.counts),
            "partitions": {str(number): entry for number, entry in self.partitions.items()},
        }

    def write(self, folder: Path) -> Path:
        """Write ``scores.json``; the file's path."""
        with atomic_write(folder / SCORES) as file:
            file.write(json.dumps(self.as_dict(), indent=1, allow_nan=False).encode() + b"\n")
        return folder / SCORES


def group_scores(folder: str | Path) -> GroupScores:
    """Merge the scores of the partitions in the folder of ``moeapps stream run --workers``.

    Counts, accuracy, kappa, confusion matrices and sums of errors are those of all events together. Kappa-M and kappa-T
    compare with earlier labels of the same partition.

    Parameters
    ----------
    folder : str or Path
        The folder that ``--checkpoint`` names, with ``partition-0`` and so on in it.

    Returns
    -------
    GroupScores
        The scores, and those of each partition.

    Raises
    ------
    DataError
        If no partition has a checkpoint.
    FileFormatError
        If a checkpoint is damaged.
    ConfigError
        If partitions were run with different models or metrics.
    """
    merged: GroupScores | None = None
    for number, file in _checkpoints(Path(folder)).items():
        run = _run_of(file)
        numbers = "absolute" in run["scores"]
        scores: Any = NumberScores(run["window"]) if numbers else ClassScores(run["window"])
        scores.restore(run["scores"])
        named = NamedMetrics(list(run.get("named", {})), run["window"], numbers)
        named.restore(run.get("named", {}))
        counts = Counts(**run["counts"])
        entry = {
            "scores": _finite({**scores.as_dict(), **named.as_dict()}),
            "counts": dict(run["counts"]),
            "position": run["position"],
        }
        if merged is None:
            merged = GroupScores(counts, scores, named, {number: entry})
            continue
        if type(scores) is not type(merged.scores) or list(named.as_dict()) != list(merged.named.as_dict()):
            first = next(iter(merged.partitions))
            raise ConfigError(f"{file} has other metrics than partition {first}: their scores cannot be added up")
        total: Any = merged.scores  # of the same class
        total.merge(scores)
        merged.named.merge(named)
        merged.counts = Counts(**{name: value + getattr(counts, name) for name, value in vars(merged.counts).items()})
        merged.partitions[number] = entry
    if merged is None:
        raise DataError(f"{folder} has no checkpoint of a partition, expected folders such as partition-0 in it")
    return merged


def offsets_of(folder: Path, partition: int) -> int:
    """The offset that comes next in a partition, as its checkpoint has it; 0 without one."""
    file = _checkpoints(folder).get(partition)
    return 0 if file is None else int((_run_of(file)["position"] or {}).get(str(partition), 0))


def _checkpoints(folder: Path) -> dict[int, Path]:
    """Checkpoints by partition, in their order."""
    found = {}
    for file in folder.glob(f"partition-*/{CHECKPOINT}"):
        if (match := _PARTITION.fullmatch(file.parent.name)) is not None:
            found[int(match[1])] = file
    return dict(sorted(found.items()))


def _run_of(file: Path) -> dict[str, Any]:
    document, _ = read_document(file)
    try:
        run = document["state"]["run"]
        return {**run, "window": int(run["window"])}
    except (KeyError, TypeError, ValueError):
        raise FileFormatError(f"{file} is not a checkpoint of a stream") from None


def _finite(scores: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in scores.items()}
