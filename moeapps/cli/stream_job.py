"""What ``moeapps stream run`` does: options to a :class:`~moeapps.stream.run.StreamRun`, sinks, signals.

1. Make the model by name or load it, and open the source (:func:`build_model`).
2. Open the sinks of metrics, predictions and rejects; an existing file is continued only by ``--resume``.
3. Resume from the checkpoint where one is wanted.
4. Run with a live display, or a line every ten seconds; a signal ends the run after the batch, and saves.
"""

import argparse
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.live import Live

from moeapps.cli.stream_display import Reporter, display
from moeapps.core.errors import ConfigError, FileFormatError
from moeapps.core.saving import load
from moeapps.registry import nearest
from moeapps.stream.classifier import DriftMoEClassifier
from moeapps.stream.estimator import StreamEstimator
from moeapps.stream.io.sinks import open_sink
from moeapps.stream.io.sources import open_source
from moeapps.stream.regressor import DriftMoERegressor
from moeapps.stream.run import StreamCheckpoint, StreamRun

__all__ = ["MODELS", "build_model", "run"]

MODELS: dict[str, Callable[..., StreamEstimator]] = {
    "driftmoe": DriftMoEClassifier,
    "driftmoe-task": lambda **arguments: DriftMoEClassifier("task", **arguments),
    "paper-data": lambda **arguments: DriftMoEClassifier.paper("data", **arguments),
    "paper-task": lambda **arguments: DriftMoEClassifier.paper("task", **arguments),
    "driftmoe-regressor": DriftMoERegressor,
}
"""Models by the name that ``--model`` takes."""

IN_FOLDER = {"metrics": "metrics.csv", "rejects": "rejects.ndjson"}
"""Files that are written into the checkpoint's folder unless an option names another one."""


def build_model(name: str, arguments: dict[str, Any]) -> StreamEstimator:
    """Model by the name of the command line, or from a file.

    Parameters
    ----------
    name : str
        One of :data:`MODELS`, or a ``.safetensors`` file.
    arguments : dict
        Constructor arguments; empty for a file.

    Raises
    ------
    ConfigError
        If there is no such model or argument.
    FileFormatError
        If the file holds another kind of model.
    """
    if name.endswith(".safetensors"):
        if arguments:
            raise ConfigError(f"--set has no effect on {name}: a saved model has its arguments")
        loaded = load(name)
        model = loaded.model if isinstance(loaded, StreamCheckpoint) else loaded
        if not isinstance(model, StreamEstimator):
            raise FileFormatError(f"{name} holds a {type(model).__name__}, which is not a model of streams")
        return model
    if name not in MODELS:
        guess = nearest(name, list(MODELS))
        hint = f"did you mean {guess!r}?" if guess else f"known are {', '.join(MODELS)}, or a .safetensors file"
        raise ConfigError(f"--model {name}: unknown; {hint}")
    known = list(DriftMoEClassifier.paper().get_params()) if "regressor" not in name else []
    known = known or list(DriftMoERegressor().get_params())
    allowed = ["n_experts", "seed"] if name.startswith("paper") else known
    for argument in arguments:
        if argument not in allowed:
            guess = nearest(argument, allowed)
            raise ConfigError(
                f"--set {argument}: --model {name} has no such argument"
                + (f"; did you mean {guess!r}?" if guess else "")
            )
    model = MODELS[name](**arguments)
    model._config()
    return model


def _settings(pairs: list[str]) -> dict[str, Any]:
    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {pair}: expected name=value")
        try:
            settings[name] = json.loads(value)
        except ValueError:  # text needs no quotes: --set router=topk
            settings[name] = value
    return settings


def run(options: argparse.Namespace) -> int:
    """Run ``moeapps stream run``.

    Returns
    -------
    int
        Exit status: 0, also after SIGTERM; 130 after Ctrl-C. In both cases the run was saved.
    """
    folder = Path(options.checkpoint) if options.checkpoint else None
    if options.resume and folder is None:
        raise ConfigError("--resume needs --checkpoint, the folder to resume from")
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ConfigError(f"--checkpoint {folder} is a file, expected a folder")
    model = build_model(options.model, _settings(options.set))
    source = open_source(options.source)
    try:
        _check_target(options, getattr(source, "columns", None))
        job = StreamRun(
            model, source, options.target, folder, options.every, options.every_seconds, batch=options.batch,
            window=options.window, id_field=options.id, id_window=options.id_window, pending=options.pending,
            limit=options.limit,
        )  # fmt: skip
    except ConfigError:
        source.close()
        raise
    try:
        return _run(job, options)
    finally:
        job.close()


def _check_target(options: argparse.Namespace, columns: list[str] | None) -> None:
    if columns is None or options.target in columns:
        return
    guess = nearest(options.target, columns)
    hint = f"did you mean {guess!r}?" if guess else f"it has {', '.join(columns)}"
    raise ConfigError(f"--target {options.target}: {options.source} has no such column; {hint}")


def _run(job: StreamRun, options: argparse.Namespace) -> int:
    begun = job.file is not None and job.file.exists()
    if begun and not options.resume:
        raise ConfigError(f"{job.file} exists: --resume continues it; name another folder for another run")
    for name in ("metrics", "predictions", "rejects"):
        path = getattr(options, name)
        if path is None and name in IN_FOLDER and job.checkpoint is not None:
            path = str(job.checkpoint / IN_FOLDER[name])
        if path is not None:
            setattr(job, name, _sink(path, name, not begun and not options.resume))
    console = Console()
    if options.resume:
        if job.resume():
            console.print(f"resumed after {job.counts.events:,} events", highlight=False)
        else:  # killed before its first checkpoint: what it wrote will be written again
            for sink in (job.metrics, job.predictions, job.rejects):
                if sink is not None:
                    sink.resume(None)
    status = _with_signals(job, console, options.plain or not console.is_terminal)
    counts = job.counts
    scores = ", ".join(f"{name} {value:.4f}" for name, value in job.scores.as_dict().items())
    console.print(
        f"{counts.events:,} events: {counts.learned:,} learned, {counts.unlabeled:,} without a label, "
        f"{counts.repeated:,} repeated, {counts.rejected:,} rejected; {scores}; {job.rate:,.0f} events/s",
        highlight=False,
        soft_wrap=True,
    )
    return status


def _sink(path: str, name: str, fresh: bool) -> Any:
    if fresh and not path.startswith("kafka://") and Path(path).exists() and Path(path).stat().st_size:
        raise ConfigError(f"--{name} {path} exists: name another file, or remove it")
    return open_sink(path, f"--{name}")


def _with_signals(job: StreamRun, console: Console, plain: bool) -> int:
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        job.stop()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        if plain:
            job.run(Reporter(console))
        else:
            with Live(display(job), console=console, refresh_per_second=4, transient=False) as live:
                last = [0.0]

                def watch(job: StreamRun) -> None:
                    if time.monotonic() - last[0] > 0.25:
                        last[0] = time.monotonic()
                        live.update(display(job))

                job.run(watch)
                live.update(display(job))
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received:
        console.print(f"stopped by {signal.Signals(received[0]).name}; saved" + (f" to {job.file}" if job.file else ""))
    return 130 if received[:1] == [signal.SIGINT] else 0
