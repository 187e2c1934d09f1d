"""A worker of a consumer group: one :class:`~moeapps.stream.run.StreamRun` per partition that the group has given it.

1. A partition that comes waits until its folder is free (:mod:`moeapps.stream.ownership`). Then its model is loaded,
   and the partition is read from the position of that checkpoint.
2. Each round hands the messages that are there to the runs, which learn them and save when they are due.
3. A partition that goes to another worker is saved first. One that Kafka has given up is let go without saving: what
   was learned since its last checkpoint is learned again by its next owner.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moeapps.core.errors import MoEAppsError
from moeapps.stream.io.kafka_group import KafkaGroup, PartitionSource
from moeapps.stream.ownership import Ownership, TakenOver
from moeapps.stream.run import StreamRun

__all__ = ["GroupWorker", "partition_folder"]

WAIT = 0.2
"""Seconds to wait for a message."""

PATIENCE = 10.0
"""Seconds after which a worker says that a partition's folder is not free."""


def partition_folder(folder: Path, partition: int) -> Path:
    """Folder of a partition's checkpoint and files in the folder of the group."""
    return folder / f"partition-{partition}"


class GroupWorker:
    """Learns the partitions that a group gives it.

    Parameters
    ----------
    group : KafkaGroup
        The group, which was not joined yet.
    folder : Path
        Folder with a folder for each partition, which all workers share.
    make_run : callable
        Makes the run of a partition, from its source and its folder.
    batch : int, default 256
        Messages of a partition in a round, on average.

    Attributes
    ----------
    runs : dict[int, StreamRun]
        Runs by partition.
    done : set of int
        Partitions of ``runs`` that have reached their end, and are saved.
    notes : list of str
        What was noticed and does not stop the worker.
    """

    def __init__(
        self,
        group: KafkaGroup,
        folder: Path,
        make_run: Callable[[PartitionSource, Path], StreamRun],
        batch: int = 256,
    ) -> None:
        self.group, self.folder, self.make_run, self.batch = group, folder, make_run, batch
        self.runs: dict[int, StreamRun] = {}
        self.done: set[int] = set()
        self.notes: list[str] = []
        self._owners: dict[int, Ownership] = {}
        self._waiting: dict[int, float] = {}  # partitions that have come and are not taken, and since when

    def begin(self) -> None:
        """Join the group."""
        self.group.join(self)

    def step(self) -> None:
        """Do a round.

        Raises
        ------
        MoEAppsError
            What ends the worker, naming the partition; what was learned before is saved by :meth:`close`.
        """
        for partition in list(self._waiting):
            self._take(partition)
        self.group.poll(self.batch * max(1, len(self.runs)), WAIT)
        for partition in list(self.runs):
            try:
                self._work(partition)
            except TakenOver as error:
                self.notes.append(f"partition {partition}: {error}")
                self.lost(partition)
                self.come(partition)
            except MoEAppsError as error:
                raise type(error)(f"partition {partition}: {error}") from error

    def _work(self, partition: int) -> None:
        run = self.runs[partition]
        source: Any = run.source
        while source.filled and run.step():
            pass
        if not source.endless and partition not in self.done:
            run.position = source.reached
            run.finish()
            source.end()
            self.done.add(partition)
        run.save_if_due()

    # --- partitions that come and go

    def come(self, partition: int) -> None:
        """Take the partition as soon as its folder is free."""
        self._waiting[partition] = time.monotonic()

    def _take(self, partition: int) -> None:
        folder = partition_folder(self.folder, partition)
        owner = Ownership(folder)
        if (busy := owner.take()) is not None:
            if time.monotonic() - self._waiting[partition] > PATIENCE:
                self._waiting[partition] = time.monotonic()
                self.notes.append(f"partition {partition} waits: {busy}")
            return
        try:
            source = self.group.source(partition)
            try:
                run = self.make_run(source, folder)
            except BaseException:
                source.close()
                raise
        except BaseException:
            owner.release()
            raise
        del self._waiting[partition]
        self._owners[partition], self.runs[partition] = owner, run
        run.still_owned = owner.check
        try:
            run.resume()
            run.begin()
            source.begin()
        except MoEAppsError as error:
            self.lost(partition)
            raise type(error)(f"partition {partition}: {error}") from error

    def go(self, partition: int) -> None:
        """Save the partition, and let it go."""
        try:
            if partition in self.runs:
                self.runs[partition].leave()
        except TakenOver as error:
            self.notes.append(f"partition {partition}: {error}")
        finally:
            self.lost(partition)

    def lost(self, partition: int) -> None:
        """Let the partition go as it is; its next owner goes on from its last checkpoint."""
        self._waiting.pop(partition, None)
        self.done.discard(partition)
        run, owner = self.runs.pop(partition, None), self._owners.pop(partition, None)
        try:
            if run is not None:
                run.close()
        finally:
            if owner is not None:
                owner.release()

    def close(self) -> None:
        """Save all partitions, and leave the group."""
        try:
            self.group.close()
        finally:
            for partition in list(self.runs):
                self.go(partition)

    def status(self) -> dict[int, dict[str, Any]]:
        """Counts and scores of each partition, as JSON values."""
        return {
            partition: {
                **vars(run.counts),
                "scored": run.scores.n,
                "score": run.scores.total if run.scores.n else None,
                "alarms": run.watch_errors.count,
                "done": partition in self.done,
                "position": run.position,
            }
            for partition, run in sorted(self.runs.items())
        }
