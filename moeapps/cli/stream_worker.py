"""A worker process of ``moeapps stream run --workers N``, and the command's end of the pipe to it, which carries JSON.

The worker tells twice a second what it has, and what it has noticed. It ends when it is told to, and when the command
is gone: then the pipe is closed. In both cases it saves first.
"""

import argparse
import json
import multiprocessing
import os
import signal
import time
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from moeapps.core.errors import ConfigError, MoEAppsError
from moeapps.core.warnings import silence_warnings

__all__ = ["Worker"]

PRELOAD = ("moeapps.cli.stream_job", "moeapps.stream.group", "confluent_kafka")
"""What a worker needs to have imported."""

TELLS = 0.5
"""Seconds between two messages."""


class Worker:
    """A worker process.

    Parameters
    ----------
    number : int
        Its number, from 1.
    options : argparse.Namespace
        Those of the command.
    ends : dict of int to int, optional
        Offsets at which the partitions end.

    Attributes
    ----------
    status : dict[int, dict[str, Any]]
        Counts and scores by partition, as they were told last.
    heard : float
        When it told something last, by the monotonic clock.
    progress : bool
        Whether it has saved something that it had learned.
    cause : str
        Why it died, as far as it could say so.
    """

    def __init__(self, number: int, options: argparse.Namespace, ends: dict[int, int] | None) -> None:
        self.number, self.progress, self.cause = number, False, ""
        self.status: dict[int, dict[str, Any]] = {}
        self.refused: MoEAppsError | None = None
        self.heard = time.monotonic()
        # a process that has imported everything makes the workers: one that died is back at once
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOAD))
        self.pipe, child = context.Pipe()
        given = {name: value for name, value in vars(options).items() if name != "command"}
        self.process: ForkServerProcess = context.Process(target=_work, args=(child, given, ends), daemon=True)
        # a service manager sends SIGTERM to all processes; the maker of the workers has to stay until they have saved
        resource_tracker.ensure_running()  # it would unblock the signal
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.process.start()
        child.close()  # only the worker has it now: when it dies, the pipe says so

    def receive(self) -> tuple[list[str], bool]:
        """Take what was told: notes for the user, and whether an alarm shall end the run."""
        notes: list[str] = []
        alarm = False
        try:
            while self.pipe.poll(0):
                told = json.loads(self.pipe.recv_bytes())
                self.heard = time.monotonic()
                self.status = {int(partition): entry for partition, entry in told.get("status", {}).items()}
                self.progress = self.progress or told.get("progress", False)
                notes += told.get("notes", [])
                alarm = alarm or told.get("alarm", False)
                if "failed" in told:
                    kind = ConfigError if told["kind"] == "ConfigError" else MoEAppsError
                    self.refused = kind(told["failed"])
                self.cause = told.get("died", self.cause)
        except (EOFError, OSError):
            pass
        return notes, alarm

    def stop(self) -> None:
        """Ask it to save and end."""
        try:
            self.pipe.send_bytes(b"stop")
        except OSError:
            return

    def why(self) -> str:
        """Why it ended."""
        self.process.join()
        code = self.process.exitcode or 0
        if code < 0:
            return f"{signal.Signals(-code).name}"
        return self.cause or f"exit status {code}"


def _work(pipe: Connection, given: dict[str, Any], ends: dict[int, int] | None) -> None:
    """What the process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the command tells what to do
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    silence_warnings()
    try:
        _learn(pipe, argparse.Namespace(**given), ends)
    except MoEAppsError as error:
        _tell(pipe, {"failed": str(error), "kind": type(error).__name__})
        os._exit(1)  # threads of clients may wait for a broker that is gone
    except BrokenPipeError:
        os._exit(1)
    except BaseException as error:
        _tell(pipe, {"died": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"})
        os._exit(1)


def _tell(pipe: Connection, message: dict[str, Any]) -> None:
    try:
        pipe.send_bytes(json.dumps(message).encode())
    except OSError:
        return


def _learn(pipe: Connection, options: argparse.Namespace, ends: dict[int, int] | None) -> None:
    from moeapps.cli.stream_job import Alarms, kafka_settings, make_job, make_model, open_sinks
    from moeapps.stream.group import GroupWorker
    from moeapps.stream.hooks import AlarmHook
    from moeapps.stream.io.kafka_group import KafkaGroup, PartitionSource
    from moeapps.stream.run import StreamRun

    kafka = kafka_settings(options)
    hook = None if options.on_drift is None else AlarmHook(options.on_drift)
    alarms: list[Alarms] = []

    def make_run(source: PartitionSource, folder: Path) -> StreamRun:
        own = argparse.Namespace(**{**vars(options), **_outputs(options, folder)})
        job = make_job(own, make_model(own, folder), source, folder)
        open_sinks(job, own, kafka)
        job.on_drift = Alarms(job, hook, options.drift_exit)
        alarms.append(job.on_drift)
        return job

    worker = GroupWorker(
        KafkaGroup(options.source, options.group, kafka, options.on_gap, ends),
        Path(options.checkpoint),
        make_run,
        options.batch,
    )
    try:
        worker.begin()
        told = 0.0
        while not _asked_to_stop(pipe):
            worker.step()
            ended = any(alarm.ended for alarm in alarms)
            if ended or time.monotonic() - told >= TELLS:
                told = time.monotonic()
                pipe.send_bytes(json.dumps({**_status(worker), "alarm": ended}).encode())
        last = _status(worker)
        worker.close()
        _tell(pipe, {**last, "notes": [*last["notes"], *worker.notes]})
    except BaseException:
        with suppress(Exception):  # the first error says what is wrong
            worker.close()
        raise
    finally:
        if hook is not None:
            hook.close()


def _asked_to_stop(pipe: Connection) -> bool:
    try:
        return pipe.poll(0) and bool(pipe.recv_bytes())
    except (EOFError, OSError):  # the command is gone
        return True


def _status(worker: Any) -> dict[str, Any]:
    """What is told: numbers of each partition, and what was noticed since."""
    notes, worker.notes = list(worker.notes), []
    for partition, run in worker.runs.items():
        for more in (run.notes, run.source.gaps):
            notes += [note if note.startswith("Kafka topic") else f"partition {partition}: {note}" for note in more]
            more.clear()
    saved = any(run.saved_at is not None for run in worker.runs.values())
    return {"status": worker.status(), "notes": notes, "progress": saved}


def _outputs(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Output files of a partition: they are in its folder."""
    named = {}
    for name in ("alarms", "metrics", "predictions", "rejects"):
        path = getattr(options, name)
        if path is not None and not path.startswith("kafka://"):
            named[name] = str(folder / path)
    return named
