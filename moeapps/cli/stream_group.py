"""What ``moeapps stream run --workers N`` does: processes that share the partitions of a Kafka topic.

1. Refuse options that do not go together, and ask the broker for the partitions.
2. Start the workers. One that dies is started again after a pause, which doubles; one that cannot go on (a wrong
   option, lost events) ends the run, since it would fail again.
3. A signal, or the end of all partitions with ``?stop=end``, ends all workers after they have saved. A second signal
   ends them at once; the checkpoints stay as they are.
4. Merge the scores of all partitions.
"""

import argparse
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from moeapps.cli.stream_job import kafka_settings, make_job, make_model, print_line, summary_of
from moeapps.cli.stream_worker import Worker
from moeapps.core.errors import ConfigError, DataError, MoEAppsError
from moeapps.stream.group_scores import group_scores, offsets_of
from moeapps.stream.io.kafka import parse_address
from moeapps.stream.io.kafka_group import KafkaGroup
from moeapps.stream.io.sinks import open_sink

__all__ = ["run"]

MOST_DEATHS = 5
"""Deaths in a row, of workers that have saved nothing, after which the run ends."""

LONGEST_PAUSE = 30.0
"""Seconds between a death and the next start, at most; the first pause is one second."""

SHOWN = 8
"""Partitions that the line of the status names."""


def run(options: argparse.Namespace) -> int:
    """Run the workers.

    Returns
    -------
    int
        Exit status: 0, also after SIGTERM; 130 after Ctrl-C; in both cases everything was saved. 3 if there were events
        and none could be used, 4 after an alarm with ``--drift-exit``.

    Raises
    ------
    ConfigError
        If an option is wrong.
    MoEAppsError
        If a worker cannot go on, or dies again and again.
    """
    _check(options)
    options.resume = True  # which partitions have a checkpoint is not for the user to know
    kafka = kafka_settings(options)
    nothing: Any = _NoSource()
    make_job(options, make_model(options, None), nothing, None)  # tells what is wrong with the other options
    group = KafkaGroup(options.source, options.group, kafka, options.on_gap)
    ends = group.ends() if "stop" in parse_address(options.source)[2] else None
    known = group.known
    group.close()
    if options.workers > len(known):
        print_line(Console(), f"{options.source} has {len(known)} partitions: {options.workers} workers are too many")
    team = Team(options, known, ends, float(kafka.get("max.poll.interval.ms", 300_000)) / 1000)
    status = team.run()
    return _summary(team, Path(options.checkpoint)) or status


class _NoSource:
    """Stands for a source where only the options are checked."""

    endless = False


def _check(options: argparse.Namespace) -> None:
    """Refuse what does not go with workers.

    Raises
    ------
    ConfigError
        Naming the option, why, and what to do.
    """
    if options.workers < 1:
        raise ConfigError(f"--workers must be at least 1, got {options.workers}")
    if not options.source.startswith("kafka://"):
        raise ConfigError(
            f"--workers: {options.source} is not kafka://host:port/topic; only Kafka gives partitions out to workers"
        )
    address = parse_address(options.source)[2]
    if "partition" in address:
        raise ConfigError(
            f"--workers: {options.source} names partition {address['partition']}, but the group gives partitions out: "
            "leave ?partition out, or --workers"
        )
    if options.group is None:
        raise ConfigError("--workers needs --group NAME: workers of one group share the partitions")
    if options.checkpoint is None:
        raise ConfigError("--workers needs --checkpoint FOLDER, on storage that all workers share")
    for option, why in {
        "limit": "each partition has events of its own; ?stop=end ends at what is there now",
        "metrics_port": "each worker would need a port of its own; run one process per partition for Prometheus",
        "complete": "it is for files",
        "follow": "it is for files",
        "replayed": "it is for pipes",
    }.items():
        if getattr(options, option):
            raise ConfigError(f"--{option.replace('_', '-')} cannot be used with --workers: {why}")
    for option in ("alarms", "metrics", "predictions", "rejects"):
        path = getattr(options, option)
        if path is None or path.startswith("kafka://"):
            continue
        open_sink(path, f"--{option}").close()
        if Path(path).name != path:
            raise ConfigError(
                f"--{option} {path}: with --workers each partition writes its own file, into its folder of the "
                f"checkpoint: give a name without a folder, such as {Path(path).name}"
            )


class Team:
    """The workers of this command.

    Parameters
    ----------
    options : argparse.Namespace
        What was asked for.
    known : list of int
        Partitions of the topic.
    ends : dict of int to int, optional
        Offsets at which they end, if the run ends there.
    silence : float
        Seconds without a word after which a worker is killed.

    Attributes
    ----------
    rate : float
        Events per second.
    """

    def __init__(
        self, options: argparse.Namespace, known: list[int], ends: dict[int, int] | None, silence: float
    ) -> None:
        self.options, self.known, self.ends, self.silence = options, known, ends, silence
        self.console = Console()
        self.folder = Path(options.checkpoint)
        self.workers: dict[int, Worker] = {}
        self.rate = 0.0
        self._due: dict[int, float] = {}  # workers to be started again, and when
        self._deaths: dict[int, int] = {}
        self._done: set[int] = set()
        self._stopping = self._alarm = False
        self._failed: MoEAppsError | None = None
        self._received: list[int] = []
        self._seen: dict[int, int] = {}
        self._events, self._since = 0, 0.0
        self._looked = 0.0

    def run(self) -> int:
        """Work until the end; the exit status.

        Raises
        ------
        MoEAppsError
            If a worker cannot go on, or dies again and again; the others have saved.
        """
        previous = {number: signal.signal(number, self._signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            for number in range(1, self.options.workers + 1):
                self._start(number)
            plain = self.options.plain or not self.console.is_terminal
            screen: Any = nullcontext() if plain else Live(Text(""), console=self.console, refresh_per_second=4)
            with screen as live:
                self._watch(_lines(self.console) if live is None else lambda line: live.update(Text(line)))
        finally:
            for worker in self.workers.values():
                worker.process.kill()
                worker.process.join()
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self._failed is not None:
            raise self._failed
        if self._received:
            print_line(self.console, f"stopped by {signal.Signals(self._received[0]).name}; saved to {self.folder}")
        if self._received[:1] == [signal.SIGINT]:
            return 130
        return 4 if self._alarm else 0

    def _signal(self, number: int, frame: FrameType | None) -> None:
        self._received.append(number)
        if len(self._received) > 1:
            raise KeyboardInterrupt

    def tell(self, text: str) -> None:
        """Print a line."""
        print_line(self.console, text)

    def _start(self, number: int) -> None:
        self.workers[number] = Worker(number, self.options, self.ends)

    def _watch(self, show: Callable[[str], None]) -> None:
        while self.workers or self._due:
            wait([worker.pipe for worker in self.workers.values()], timeout=0.25)
            for worker in list(self.workers.values()):
                self._hear(worker)
            show(self.line())
            if self._stopping or self._received or self._failed is not None or self._alarm or self._all_done():
                self._stop()
                self._due.clear()
            for number in [number for number, due in self._due.items() if due <= time.monotonic()]:
                del self._due[number]
                self._start(number)

    def _hear(self, worker: Worker) -> None:
        ended = not worker.process.is_alive()  # before the pipe is read: what it said last is in there
        notes, alarm = worker.receive()
        for note in notes:
            self.tell(note)
        self._alarm = self._alarm or alarm
        self._done |= {partition for partition, entry in worker.status.items() if entry["done"]}
        if ended:
            del self.workers[worker.number]
            self._ended(worker)
        elif time.monotonic() - worker.heard > self.silence:
            self.tell(f"worker {worker.number} has been silent for {self.silence:.0f} s and is killed")
            worker.process.kill()

    def _ended(self, worker: Worker) -> None:
        why = worker.why()
        worker.pipe.close()
        if worker.refused is not None:
            self._failed = self._failed or type(worker.refused)(f"worker {worker.number}, {worker.refused}")
            return
        if self._stopping:
            if why != "exit status 0":
                self.tell(f"worker {worker.number} died before it had saved: {why}")
            return
        deaths = 1 if worker.progress else self._deaths.get(worker.number, 0) + 1
        self._deaths[worker.number] = deaths
        if deaths >= MOST_DEATHS:
            self._failed = DataError(
                f"worker {worker.number} died {deaths} times in a row before it had saved anything: {why}"
            )
            return
        pause = min(2.0 ** (deaths - 1), LONGEST_PAUSE)
        self._due[worker.number] = time.monotonic() + pause
        self.tell(f"worker {worker.number} died ({why}); it is started again in {pause:.0f} s")

    def _stop(self) -> None:
        if not self._stopping:
            self._stopping = True
            for worker in self.workers.values():
                worker.stop()

    def _all_done(self) -> bool:
        """Whether all partitions are at their end; those of other machines by their checkpoints."""
        if self.ends is None:
            return False
        held = {partition for worker in self.workers.values() for partition in worker.status}
        open_here = set(self.known) - self._done
        if not open_here:
            return True
        if open_here & held or time.monotonic() - self._looked < 2.0:
            return False
        self._looked = time.monotonic()
        return all(offsets_of(self.folder, partition) >= self.ends[partition] for partition in open_here)

    def line(self) -> str:
        """The status: all events, and those of each partition that is here."""
        entries = {p: e for worker in self.workers.values() for p, e in sorted(worker.status.items())}
        for partition, entry in entries.items():
            before = self._seen.setdefault(partition, entry["events"])
            self._events += max(0, entry["events"] - before)
            self._seen[partition] = entry["events"]
        if self._events == 0:
            self._since = time.monotonic()
        self.rate = self._events / max(time.monotonic() - self._since, 1e-9)
        scored = sum(entry["scored"] for entry in entries.values())
        total = sum(entry["scored"] * (entry["score"] or 0.0) for entry in entries.values())
        name = "mean absolute error" if "regressor" in self.options.model else "accuracy"
        score = f", {name} {total / scored:.4f}" if scored else ""
        events = sum(entry["events"] for entry in entries.values())
        parts = []
        for worker in self.workers.values():
            held = [f"{partition}: {entry['events']:,}" for partition, entry in worker.status.items()]
            more = f", {len(held) - SHOWN} more" if len(held) > SHOWN else ""
            parts.append(f"worker {worker.number} ({', '.join(held[:SHOWN]) + more if held else 'no partition'})")
        return f"{events:,} events{score}, {self.rate:,.0f} events/s; partitions of {', '.join(parts) or 'no worker'}"


def _lines(console: Console) -> Callable[[str], None]:
    """Prints the status every ten seconds."""
    last = [time.monotonic()]

    def show(line: str) -> None:
        if time.monotonic() - last[0] >= 10:
            last[0] = time.monotonic()
            print_line(console, line)

    return show


def _summary(team: Team, folder: Path) -> int:
    """Merge the scores, and print them; the exit status 3 if there were events and none could be used, else 0."""
    try:
        merged = group_scores(folder)
    except DataError:
        team.tell("no partition was read")
        return 0
    values = {**merged.scores.as_dict(), **merged.named.as_dict()}
    for partition, entry in merged.partitions.items():
        main, score = next(iter(entry["scores"].items()))
        shown = "-" if score is None else f"{score:.4f}"
        team.tell(f"partition {partition}: {entry['counts']['events']:,} events, {main} {shown}")
    team.tell(summary_of(merged.counts, values, team.rate))
    team.tell(f"scores: {merged.write(folder)}")
    counts = merged.counts
    if counts.rejected and not counts.learned + counts.unlabeled + counts.repeated:
        team.tell(f"no event could be used: all {counts.rejected:,} were rejected")
        return 3
    return 0
