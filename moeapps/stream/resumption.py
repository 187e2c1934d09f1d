"""How a stream run is stopped and goes on: its checkpoint, the position in its source, and its output files."""

import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from moeapps.core.errors import ConfigError, DataError
from moeapps.core.files import locked
from moeapps.core.tabledata.cells import CellKind, missing_texts
from moeapps.stream.alarms import ErrorWatch
from moeapps.stream.checkpoint import (
    CHECKPOINT,
    OUTPUT_FILES,
    StreamCheckpoint,
    changed_settings,
    load_checkpoint,
    read_output_files,
    write_output_files,
)
from moeapps.stream.estimator import StreamEstimator
from moeapps.stream.handling import Counts, token_of
from moeapps.stream.io.delay import PendingLabels, RecentIds
from moeapps.stream.io.events import Source
from moeapps.stream.io.sinks import Sink, check_distinct
from moeapps.stream.io.values import event_key
from moeapps.stream.named_metrics import NamedMetrics
from moeapps.stream.scores import ClassScores, NumberScores

__all__ = ["Resumption"]


class Resumption:
    """Mixed into :class:`~moeapps.stream.run.StreamRun`."""

    model: StreamEstimator
    source: Source
    target: str
    checkpoint: Path | None
    alarms: Sink | None
    metrics: Sink | None
    predictions: Sink | None
    rejects: Sink | None
    window: int
    id_field: str | None
    drop: tuple[str, ...]
    keep: tuple[str, ...]
    time_field: str | None
    named_metrics: tuple[str, ...]
    types: dict[str, CellKind]
    missing: tuple[str, ...]
    settings: dict[str, Any]
    allow_change: bool
    replayed: bool
    counts: Counts
    scores: ClassScores | NumberScores
    named: NamedMetrics
    watch_errors: ErrorWatch
    still_owned: Callable[[], None]
    saved_at: float | None
    waiting: PendingLabels
    ids: RecentIds
    position: Any
    restarted: str | None
    _time: Any
    _activation: list[float]
    _ready: bool
    _registered: bool
    _locks: ExitStack

    @property
    def file(self) -> Path | None:
        """The checkpoint's file."""
        return None if self.checkpoint is None else self.checkpoint / CHECKPOINT

    # --- beginning, saving, resuming

    def _declare(self) -> None:
        """Tell the source what is known of its columns, if it decides their kinds."""
        declare = getattr(self.source, "declare", None)
        self._retyped = {} if declare is not None else self.types
        self._missing = frozenset() if declare is not None else frozenset(self.missing)
        self._no_labels = missing_texts(self.model.missing_values or ()) | self._missing
        if declare is not None:
            declare(
                self.target, self.id_field, types=self._types_of_columns(), missing=self.missing,
                known=_known(self.model, self.target), numbers=self.model._numbers,
                impute=self.model.on_bad == "impute",
                missing_values=self.model.missing_values or (),
            )  # fmt: skip

    def _types_of_columns(self) -> dict[str, CellKind]:
        """Those that were given; a column that is dropped is text, so that no cell of it is a mistake."""
        return {**dict.fromkeys((name for name in self.drop if name != self.time_field), "text"), **self.types}

    def _settings(self) -> dict[str, Any]:
        own: dict[str, Any] = {"target": self.target, "window": self.window, "id": self.id_field}
        own |= {
            "drop": list(self.drop),
            "metric": list(self.named_metrics),
            "keep": list(self.keep),
            "time": self.time_field,
        }
        return {**own, "types": self.types, "missing": sorted(self.missing), **self.settings}

    def _prepare(self) -> None:
        """Refuse files that are used twice, and take the right to write the others."""
        if self._ready:
            return
        others = {"the checkpoint": self.file} if self.file is not None else {}
        if self.checkpoint is not None:
            others["the list of output files"] = self.checkpoint / OUTPUT_FILES
        check_distinct(self.source, self._sinks(), {name: path for name, path in others.items() if path is not None})
        if self.file is not None:
            self._locks.enter_context(locked(self.file))
        for sink in self._file_sinks().values():
            self._locks.enter_context(locked(sink.real_path))
        self._ready = True

    def resume(self) -> bool:
        """Take over model, position and scores from the checkpoint; False if there is none yet.

        Nothing is changed on disk before everything has been checked. Only files that this run has written, as the
        checkpoint says, are cut back.

        Raises
        ------
        FileFormatError
            If the checkpoint is damaged.
        ConfigError
            If the run was made with other settings, another process is at work in the folder, or an output file is not
            of this run.
        DataError
            If the source or an output file is not the one of the checkpoint.
        """
        if self.file is None or self.checkpoint is None:
            return False
        self._prepare()
        begun = read_output_files(self.checkpoint)
        known = {name: {"path": path, "size": 0, "end": None} for name, path in begun.items()}
        if not self.file.exists():
            self._cut_back(known)
            return False
        found = load_checkpoint(self.file)
        run = found.run
        saved = run.get("settings") or {"target": run["target"], "window": run["window"]}
        if found.model._numbers != self.model._numbers:
            raise ConfigError(
                f"{self.file} holds a {type(found.model).__name__}, not a {type(self.model).__name__}: give the same "
                "model"
            )
        changed = changed_settings(saved, self._settings(), self.file, self.allow_change)
        model, self.model = self.model, found.model
        try:
            self._declare()
            position = self._find(run)
            if "files" in run:
                known |= run["files"]
            else:  # of 0.1, which did not store the names
                for name, size in run["sizes"].items():
                    sink = self._file_sinks().get(name)
                    if sink is not None and size is not None:
                        known[name] = {"path": sink.real_path, "size": size, "end": None}
            self._cut_back(known)
        except BaseException:
            self.model = model
            raise
        if changed & {"set on_bad", "set max_features", "set max_categories"}:
            now = self.settings["set"]
            names = [name.removeprefix("set ") for name in changed if name.startswith("set ")]
            self.model.set_params(**{name: now.get(name, type(model)().get_params()[name]) for name in names})
        self.waiting.model = found.model
        self.counts = Counts(**run["counts"])
        self.scores.restore(run["scores"])
        if "id" not in changed:
            self._restore_ids(run)
        self._activation = run["activation"]
        self._time = run.get("time")
        self.named.restore(run.get("named", {}))
        if "errors" in run:  # 0.1 and 0.2 had no alarms
            self.watch_errors.restore(run["errors"])
        self.position = position
        return True

    def _find(self, run: dict[str, Any]) -> Any:
        """Go on in the source where the run stood; the position, None if the source is read from its beginning."""
        resume_at = getattr(self.source, "resume_at", None)
        live = not getattr(self.source, "replayable", True)
        if run.get("mark") is None or resume_at is None:
            if not live or self.replayed:
                self.source.seek(run["position"])
        else:
            try:
                resume_at(run["mark"], replayed=self.replayed)
            except DataError as error:
                if not self.allow_change:
                    hint = "--allow-change reads it from its beginning"
                    raise DataError(f"{error}; name the source that was read before, or {hint}") from None
                self.source.seek(None)
                self.restarted = f"{error}: it is read from its beginning"
                return None
        if live and not self.replayed:
            self.restarted = (
                "the pipe goes on with what comes, nothing is skipped; --replayed skips what was read before"
            )
        position = run["position"]
        if isinstance(position, dict) and "at" in position and not hasattr(self.source, "follows"):
            return position["at"]  # the run before followed the file
        return position

    def _restore_ids(self, run: dict[str, Any]) -> None:
        waiting = dict(run["waiting"])
        ids = list(run["ids"])
        if "mark" not in run:  # of 0.1: the keys had their type, and the tokens another form
            waiting["waiting"] = [[event_key(key), *entry] for key, *entry in waiting["waiting"]]
            parts = [re.fullmatch(r"(.*) (True|False) (True|False)", token, re.DOTALL) for token in ids]
            ids = [token_of(part[1], part[2] == "True") for part in parts if part is not None]
            ids = list(dict.fromkeys(ids))
        self.waiting.restore(waiting)
        self.ids.restore(ids)

    def _cut_back(self, known: dict[str, dict[str, Any]]) -> None:
        """Cut the output files back to what a checkpoint knows of them; refuse all others that have a content."""
        by_path = {mark["path"]: mark for mark in known.values()}
        cut: list[tuple[Any, int]] = []
        for name, sink in self._file_sinks().items():
            mark = by_path.get(sink.real_path)
            if mark is None:
                if sink.size:
                    raise ConfigError(
                        f"--{name} {sink.path} exists and was not written by this run: name another file, or remove it"
                    )
                continue
            try:
                sink.check(mark)
            except DataError:
                if not self.allow_change or sink.size:
                    raise
                continue  # a new file in place of the one that is gone
            cut.append((sink, int(mark["size"])))
        for sink, size in cut:
            sink.resume(size)
        self._register()

    def _register(self) -> None:
        """Store the names of the output files, before the first record is written."""
        if self.checkpoint is not None and self._file_sinks():
            write_output_files(self.checkpoint, {name: sink.real_path for name, sink in self._file_sinks().items()})
        self._registered = True

    def save(self) -> None:
        """Write the checkpoint, after everything that was written elsewhere is safe."""
        self.still_owned()
        sizes = {name: sink.flush() for name, sink in self._sinks().items()}
        if self.file is None:
            return
        mark = getattr(self.source, "mark", None)
        run = {
            "target": self.target,
            "window": self.window,
            "position": self.position,
            "mark": None if mark is None else mark(self.position),
            "settings": self._settings(),
            "counts": vars(self.counts),
            "scores": self.scores.state(),
            "waiting": self.waiting.state(),
            "ids": self.ids.state(),
            "activation": self._activation,
            "time": self._time,
            "named": self.named.state(),
            "errors": self.watch_errors.state(),
            "sizes": sizes,
            "files": {name: sink.mark() for name, sink in self._file_sinks().items()},
        }
        self.still_owned()  # writing the files may have taken long
        StreamCheckpoint(self.model, run).save(self.file)
        self.saved_at = time.time()
        committed = getattr(self.source, "committed", None)
        if committed is not None:
            committed(self.position)

    def _sinks(self) -> dict[str, Sink]:
        named = {
            "alarms": self.alarms,
            "metrics": self.metrics,
            "predictions": self.predictions,
            "rejects": self.rejects,
        }
        return {name: sink for name, sink in named.items() if sink is not None}

    def _file_sinks(self) -> dict[str, Any]:
        return {name: sink for name, sink in self._sinks().items() if hasattr(sink, "real_path")}


def _known(model: StreamEstimator, target: str) -> dict[str, CellKind]:
    """Kinds of the columns that a model has learned."""
    encoder = model._features
    known: dict[str, CellKind] = {
        name: "text" if nominal else "number"
        for name, nominal in zip(encoder.columns, encoder.nominal, strict=True)
        if isinstance(name, str)
    }
    labels = getattr(model, "_labels", None)
    if labels is not None and labels.labels:
        known[target] = "text" if isinstance(labels.labels[0], str) else "whole"
    return known
