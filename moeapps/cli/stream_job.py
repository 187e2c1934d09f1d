"""What ``moeapps stream run`` does: options to a :class:`~moeapps.stream.run.StreamRun`, sinks, signals.

1. Make the model by name or load it, and open the source (:func:`build_model`).
2. Open the sinks of metrics, predictions and rejects; an existing file is continued only by ``--resume``.
3. Resume from the checkpoint where one is wanted; what differs from it is refused.
4. Run with a live display, or a line every ten seconds; a signal ends the run after the batch, and saves. A second
   signal ends it at once, without saving; the checkpoint stays as it is.
"""

import argparse
import json
import re
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.live import Live

from moeapps.cli.stream_display import Notes, Reporter, display
from moeapps.core.errors import ConfigError, FileFormatError
from moeapps.core.saving import load
from moeapps.registry import did_you_mean
from moeapps.stream.alarms import DriftAlarm
from moeapps.stream.checkpoint import CHECKPOINT, load_checkpoint
from moeapps.stream.classifier import DriftMoEClassifier
from moeapps.stream.estimator import StreamEstimator
from moeapps.stream.exposition import metrics_page
from moeapps.stream.handling import Counts
from moeapps.stream.hooks import AlarmHook
from moeapps.stream.io.columns import read_types
from moeapps.stream.io.events import Source
from moeapps.stream.io.kafka_config import read_kafka_config
from moeapps.stream.io.sinks import open_sink
from moeapps.stream.io.sources import CSVSource, open_source
from moeapps.stream.regressor import DriftMoERegressor
from moeapps.stream.run import StreamCheckpoint, StreamRun

__all__ = [
    "MODELS",
    "Alarms",
    "build_model",
    "kafka_settings",
    "make_job",
    "make_model",
    "open_sinks",
    "print_line",
    "run",
    "summary_of",
]

MODELS: dict[str, Callable[..., StreamEstimator]] = {
    "driftmoe": DriftMoEClassifier,
    "driftmoe-task": lambda **arguments: DriftMoEClassifier("task", **arguments),
    "paper-data": lambda **arguments: DriftMoEClassifier.paper("data", **arguments),
    "paper-task": lambda **arguments: DriftMoEClassifier.paper("task", **arguments),
    "driftmoe-regressor": DriftMoERegressor,
}
"""Models by the name that ``--model`` takes."""

AS_ARGUMENT, AS_OPTION = r"\bon_bad='(\w+)'", r"--set on_bad=\1"
"""How a remedy is written in Python, and as an option."""

IN_FOLDER = {"alarms": "alarms.ndjson", "metrics": "metrics.csv", "rejects": "rejects.ndjson"}
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
        hint = did_you_mean(name, MODELS, f"known are {', '.join(MODELS)}, or a .safetensors file")
        raise ConfigError(f"--model {name}: unknown{hint}")
    known = list(DriftMoEClassifier.paper().get_params()) if "regressor" not in name else []
    known = known or list(DriftMoERegressor().get_params())
    allowed = ["n_experts", "seed"] if name.startswith("paper") else known
    for argument in arguments:
        if argument not in allowed:
            guess = did_you_mean(argument, allowed)
            raise ConfigError(f"--set {argument}: --model {name} has no such argument{guess}")
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
        Exit status: 0, also after SIGTERM; 130 after Ctrl-C; in both cases the run was saved. 3 if there were events
        and none could be used, 4 after an alarm that ends the run.
    """
    folder = Path(options.checkpoint) if options.checkpoint else None
    if options.resume and folder is None:
        raise ConfigError("--resume needs --checkpoint, the folder to resume from")
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ConfigError(f"--checkpoint {folder} is a file, expected a folder")
    for option in ("allow_change", "replayed"):
        if getattr(options, option) and not options.resume:
            raise ConfigError(f"--{option.replace('_', '-')} has no effect without --resume")
    hook = None if options.on_drift is None else AlarmHook(options.on_drift)
    kafka = kafka_settings(options)
    model = make_model(options, folder)  # what is wrong with it is told before the source is opened
    source = open_source(
        options.source, complete=options.complete, settings=kafka, on_gap=options.on_gap, follow=options.follow
    )
    try:
        _check_names(options, getattr(source, "columns", None))
        job = make_job(options, model, source, folder)
    except Exception:
        source.close()
        raise
    alarms = Alarms(job, hook, options.drift_exit)
    job.on_drift = alarms
    try:
        with metrics_page(job, options.metrics_port, options.metrics_host):
            status = _run(job, options, kafka)
            return 4 if status == 0 and alarms.ended else status
    finally:
        job.close()
        if hook is not None:
            hook.close()


def kafka_settings(options: argparse.Namespace) -> dict[str, str]:
    """Settings of librdkafka.

    Raises
    ------
    ConfigError
        If one is wrong, or there is nothing of Kafka.
    """
    kafka = read_kafka_config(options.kafka_config)
    if kafka and not any(
        (name or "").startswith("kafka://")
        for name in (options.source, options.predictions, options.metrics, options.rejects, options.alarms)
    ):
        raise ConfigError("--kafka-config has no effect: neither source nor output is kafka://host:port/topic")
    return kafka


def make_job(options: argparse.Namespace, model: StreamEstimator, source: Source, folder: Path | None) -> StreamRun:
    """The run over a source, without its outputs.

    Parameters
    ----------
    options : argparse.Namespace
        What was asked for.
    model : StreamEstimator
        The model.
    source : Source
        Where events come from.
    folder : Path or None
        Folder of the checkpoint.

    Raises
    ------
    ConfigError, FileFormatError
        If an option is wrong.
    """
    types = read_types(options.types)
    missing = tuple(dict.fromkeys(text for texts in options.missing for text in texts.split(",")))
    return StreamRun(
        model, source, options.target, folder, options.every, options.every_seconds,
        batch=options.batch, window=options.window, id_field=options.id, id_window=options.id_window,
        pending=options.pending, limit=options.limit, types=types, missing=missing,
        settings={"model": options.model, "set": _settings(options.set)}, allow_change=options.allow_change,
        replayed=options.replayed, drop=_columns(options.drop), keep=_columns(options.keep), time_field=options.time,
        named_metrics=tuple(options.metric),
    )  # fmt: skip


class Alarms:
    """What happens at an alarm: it is told, given to the hook, and ends the run if it shall."""

    def __init__(self, job: StreamRun, hook: AlarmHook | None, ends: bool) -> None:
        self.job, self.hook, self.ends, self.ended = job, hook, ends, False

    def __call__(self, alarm: DriftAlarm) -> None:
        """Handle an alarm."""
        self.job.notes.append(
            f"drift alarm {alarm.number} at {alarm.event or f'instance {alarm.instance}'}: {alarm.metric} "
            f"{alarm.before:.4g}, now {alarm.after:.4g}"
        )
        if self.hook is not None:
            self.hook(alarm)
        if self.ends:
            self.ended = True
            self.job.stop()


def _columns(given: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for names in given for name in names.split(",") if name))


def make_model(options: argparse.Namespace, folder: Path | None) -> StreamEstimator:
    """The model that was asked for; where a checkpoint goes on, the file that it came from need not be there.

    Raises
    ------
    ConfigError, FileFormatError
        If there is no such model or argument, or the file holds something else.
    """
    settings = _settings(options.set)
    file = None if folder is None else folder / CHECKPOINT
    begun = options.resume and file is not None and file.exists()
    if begun and options.model.endswith(".safetensors") and not settings and not Path(options.model).exists():
        assert file is not None
        return load_checkpoint(file).model
    if options.model.endswith(".safetensors"):
        if options.seed is not None:
            raise ConfigError(f"--seed has no effect on {options.model}: a saved model has its seed")
        return build_model(options.model, settings)
    if options.seed is not None and "seed" in settings:
        raise ConfigError("--seed and --set seed= exclude each other")
    # without a seed two runs over one file would differ; a checkpoint that goes on has its own
    return build_model(options.model, {"seed": 0 if options.seed is None else options.seed, **settings})


def _check_names(options: argparse.Namespace, columns: list[str] | None) -> None:
    named = [("target", options.target), ("id", options.id), ("time", options.time)]
    named += [(option, name) for option in ("drop", "keep") for name in _columns(getattr(options, option))]
    for option, name in named:
        if columns is None or name is None or name in columns:
            continue
        hint = did_you_mean(name, columns, f"it has {', '.join(columns)}")
        raise ConfigError(f"--{option} {name}: {options.source} has no such column{hint}")


def _run(job: StreamRun, options: argparse.Namespace, kafka: dict[str, str]) -> int:
    begun = job.file is not None and job.file.exists()
    if begun and not options.resume:
        raise ConfigError(f"{job.file} exists: --resume continues it; name another folder for another run")
    open_sinks(job, options, kafka)
    console = Console()
    if options.resume and job.resume():
        print_line(console, f"resumed after {job.counts.events:,} events")
        if job.restarted is not None:
            print_line(console, job.restarted)
    if isinstance(job.source, CSVSource):
        print_line(console, f"columns: {job.source.kinds.describe()}")
        for note in job.source.kinds.notes():
            print_line(console, note)
    before = replace(job.counts)
    status = _with_signals(job, console, options.plain or not console.is_terminal)
    return _summary(job, console, before) or status


def open_sinks(job: StreamRun, options: argparse.Namespace, kafka: dict[str, str]) -> None:
    """Give a run its outputs: those that were named, and the others in the checkpoint's folder."""
    for name in ("alarms", "metrics", "predictions", "rejects"):
        path = getattr(options, name)
        if path is None and name in IN_FOLDER and job.checkpoint is not None:
            path = str(job.checkpoint / IN_FOLDER[name])
        if path is not None:
            setattr(job, name, _sink(path, name, not options.resume, kafka))


def summary_of(counts: Counts, values: dict[str, float], rate: float) -> str:
    """What was read, and how well it was predicted, in a line."""
    scores = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
    return (
        f"{counts.events:,} events: {counts.learned:,} learned, {counts.unlabeled:,} without a label, "
        f"{counts.repeated:,} repeated, {counts.rejected:,} rejected; {scores}; {rate:,.0f} events/s"
    )


def _summary(job: StreamRun, console: Console, before: Counts) -> int:
    """Print what happened; the exit status 3 if there were events and none could be used, else 0."""
    counts = job.counts
    values = {**job.scores.as_dict(), **job.named.as_dict()}
    print_line(console, summary_of(counts, values, job.rate))
    for reason, count in job.reasons.most_common(3):
        print_line(console, f"rejected {count:,}: {re.sub(AS_ARGUMENT, AS_OPTION, reason)}")
    if counts.rejected > before.rejected and (path := getattr(job.rejects, "path", None)) is not None:
        print_line(console, f"rejected events, and why: {path}")
    for gap in getattr(job.source, "gaps", ()):
        print_line(console, gap)
    if job.unfinished is not None:
        print_line(
            console,
            f"not read: the source ends with {job.unfinished[:60]!r} and no newline; --resume reads it when it has "
            "one, --complete says that it is whole",
        )
    if job.watch_errors.count:
        print_line(console, f"{job.watch_errors.count:,} drift alarm{'s' * (job.watch_errors.count > 1)}")
    if counts.events == before.events:
        print_line(console, "no event: the source has none" if not counts.events else "no event since")
    used = counts.learned + counts.unlabeled + counts.repeated
    if counts.rejected > before.rejected and used == before.learned + before.unlabeled + before.repeated:
        print_line(console, f"no event could be used: all {counts.rejected - before.rejected:,} were rejected")
        return 3
    if job.checkpoint is not None and job.scores.n:
        print_line(console, f"next: moeapps report {job.checkpoint}")
    return 0


def print_line(console: Console, text: str) -> None:
    """Print a line as it is."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)


def _sink(path: str, name: str, fresh: bool, kafka: dict[str, str]) -> Any:
    sink = open_sink(path, f"--{name}", kafka)
    if fresh and not path.startswith("kafka://") and Path(path).exists() and Path(path).stat().st_size:
        raise ConfigError(f"--{name} {path} exists: name another file, or remove it")
    return sink


def _with_signals(job: StreamRun, console: Console, plain: bool) -> int:
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        job.stop()
        if len(received) > 1:
            raise KeyboardInterrupt

    notes = Notes(job, lambda text: print_line(console, text))
    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        if plain:
            report = Reporter(console)

            def tell(job: StreamRun) -> None:
                notes()
                report(job)

            job.run(tell)
        else:
            with Live(display(job), console=console, refresh_per_second=4, transient=False) as live:
                last = [0.0]

                def watch(job: StreamRun) -> None:
                    notes()
                    if time.monotonic() - last[0] > 0.25:
                        last[0] = time.monotonic()
                        live.update(display(job))

                job.run(watch)
                live.update(display(job))
    finally:
        notes()
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received:
        where = f" to {job.file}, --resume continues" if job.file else ""
        print_line(console, f"stopped by {signal.Signals(received[0]).name}; saved{where}")
    return 130 if received[:1] == [signal.SIGINT] else 0
