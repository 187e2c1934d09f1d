"""Positions in the partitions of a Kafka topic, and what its messages mean; who fetches them is a subclass's business.

Offsets that are missing between two messages are normal: compaction, markers of transactions and aborted transactions
leave such holes. Events are lost where the broker no longer has the offset that comes next (retention was shorter than
the pause, or the topic was made anew); that is an error unless ``on_gap`` says where to go on.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from moeapps.core.checks import check_one_of
from moeapps.core.errors import DataError
from moeapps.stream.io.events import Event, parse_object
from moeapps.stream.io.kafka_client import WAIT, Topic, passes

__all__ = ["KafkaReader", "OnGap"]

OnGap = Literal["error", "earliest", "latest"]
"""What to do where the broker no longer has the events that come next."""


class KafkaReader:
    """What the sources of Kafka share: one or all partitions of a topic.

    Parameters
    ----------
    topic : Topic
        The topic, with its consumer.
    partitions : sequence of int
        Those to read.
    one : bool
        Whether it is one partition that was named; else all are read into one model.
    on_gap : {"error", "earliest", "latest"}
        What to do if the broker no longer has the events that come next: refuse, go on with the earliest that it has,
        or with those that come from now on.
    stops : bool
        Whether the source ends where the partitions end now.
    ends : mapping of int to int, optional
        Offsets at which it ends, in place of those.
    group : str, optional
        Name under which the offsets of each checkpoint are committed.

    Raises
    ------
    ConfigError
        If ``on_gap`` is another word.
    DataError
        If the broker does not say which offsets it has.
    """

    replayable = True

    def __init__(
        self,
        topic: Topic,
        partitions: Sequence[int],
        *,
        one: bool,
        on_gap: OnGap,
        stops: bool,
        ends: Mapping[int, int] | None = None,
        group: str | None = None,
    ) -> None:
        check_one_of("on_gap", on_gap, get_args(OnGap))
        self._client, self._consumer, self.topic = topic.client, topic.consumer, topic.name
        self.addresses, self._cluster = topic.addresses, topic.cluster
        self.on_gap, self._one, self._stops, self._group = on_gap, one, stops, group
        self.gaps: list[str] = []
        """What was skipped or read again, where ``on_gap`` allows it."""
        self._next: dict[int, int] = {}
        self._end: dict[int, int] = {}
        self._prints: dict[int, tuple[int, str]] = {}  # of the last message that was read, by partition
        self._expected: dict[int, tuple[int, str]] = {}  # the same, of the checkpoint, not compared yet
        for partition in partitions:
            self._next[partition], self._end[partition] = self._watermarks(partition)
        self._end |= ends or {}
        self._first = dict(self._next)

    @property
    def endless(self) -> bool:
        """Whether more may come: always, or until the end that the topic had when the run began."""
        return not self._stops or any(self._next[partition] < end for partition, end in self._end.items())

    @property
    def reached(self) -> dict[str, int]:
        """The next offset of each partition, also behind what is no event: the position of everything that was read."""
        return {str(number): upto for number, upto in self._next.items()}

    def _watermarks(self, partition: int) -> tuple[int, int]:
        """The first offset that the broker has, and the next one that it will give."""
        try:
            return self._consumer.get_watermark_offsets(self._client.TopicPartition(self.topic, partition), WAIT)
        except self._client.KafkaException as error:
            raise DataError(f"Kafka topic {self.topic!r}, partition {partition}: {error.args[0].str()}") from None

    @property
    def lag(self) -> int:
        """Messages behind the position, as the broker told with the last ones; it is not asked."""
        lag = 0
        for partition, following in self._next.items():
            _, high = self._consumer.get_watermark_offsets(
                self._client.TopicPartition(self.topic, partition), cached=True
            )
            lag += max(0, high - following)
        return lag

    # --- reading

    def _event(self, message: Any) -> list[Event]:
        error = message.error()
        if error is not None:
            self._problem(error, message)
            return []
        partition, offset = message.partition(), message.offset()
        digest = _digest(message)
        expected = self._expected.get(partition)
        if expected is not None and offset >= expected[0]:
            del self._expected[partition]
            if offset == expected[0] and digest != expected[1]:
                self._gap(partition, f"offset {offset} is another message than the one that was read before")
                return []
        if offset < self._next[partition] or (self._stops and offset >= self._end[partition]):
            return []
        self._next[partition] = offset + 1
        self._prints[partition] = offset, digest
        if message.value() is None:
            return []
        return [parse_object(message.value(), self.reached, f"partition {partition}, offset {offset}")]

    def _problem(self, error: Any, message: Any) -> None:
        """Handle what comes in place of a message."""
        kinds = self._client.KafkaError
        if error.code() == kinds._PARTITION_EOF:
            partition, offset = message.partition(), message.offset()
            self._next[partition] = max(self._next[partition], offset)
            if self._stops:  # what is left belongs to a transaction that has not ended
                self._end[partition] = min(self._end[partition], self._next[partition])
            return
        if error.code() in (kinds._AUTO_OFFSET_RESET, kinds.OFFSET_OUT_OF_RANGE):
            low, high = self._watermarks(message.partition())
            self._gap(message.partition(), f"offset {self._next[message.partition()]} is not within {low} to {high}")
            return
        if passes(error, self._client):
            return
        raise DataError(f"Kafka topic {self.topic!r}: {error.str()}")

    def _gap(self, partition: int, problem: str) -> None:
        """Go on where ``on_gap`` says.

        Raises
        ------
        DataError
            If it says "error".
        """
        low, high = self._watermarks(partition)
        where = f"Kafka topic {self.topic!r}, partition {partition}"
        text = f"{where}: {problem}: events were lost, or the topic was made anew"
        if self.on_gap == "error":
            raise DataError(
                f"{text}; --on-gap earliest goes on with offset {low}, --on-gap latest with what comes from {high} on"
            )
        self._next[partition] = low if self.on_gap == "earliest" else high
        self._end[partition] = max(self._end[partition], high) if self._stops else high
        self._expected.pop(partition, None)
        self.gaps.append(f"{text}; it goes on with offset {self._next[partition]}")
        self._assign()

    # --- positions

    def _starts(self) -> dict[int, int]:
        """Offset of each partition to fetch from: the last message that was read comes again, to be compared."""
        return {
            partition: min(self._expected.get(partition, (offset, ""))[0], offset)
            for partition, offset in self._next.items()
        }

    def _assign(self) -> None:
        """Let the consumer fetch from :meth:`_starts` on."""
        raise NotImplementedError

    def seek(self, position: Any) -> None:
        """Go on at these offsets; None for the beginning.

        Raises
        ------
        DataError
            If the broker does not have them, and ``on_gap`` is "error".
        """
        if position is None:
            self._next = dict(self._first)
            self._expected.clear()
        for partition, offset in (position or {}).items():
            if int(partition) in self._next:
                self._next[int(partition)] = int(offset)
        if position:
            for partition, offset in list(self._next.items()):
                low, high = self._watermarks(partition)
                if not low <= offset <= high:
                    self._expected.pop(partition, None)
                    self._gap(partition, f"offset {offset} comes next, the broker has {low} to {high}")
        self._assign()

    def mark(self, position: Any) -> dict[str, Any]:
        """What a checkpoint stores, to go on after ``position`` in this topic and no other."""
        offsets = {str(partition): int(offset) for partition, offset in (position or {}).items()}
        prints = {
            str(partition): [offset, digest]
            for partition, (offset, digest) in self._prints.items()
            if offset < offsets.get(str(partition), 0)
        }
        topic = {"kind": "kafka", "topic": self.topic, "cluster": self._cluster}
        return {**topic, "partition": min(self._next) if self._one else None, "offsets": offsets, "last": prints}

    def resume_at(self, mark: dict[str, Any], replayed: bool = False) -> None:
        """Go on where :meth:`mark` was taken.

        Raises
        ------
        DataError
            If this is another topic, cluster or partition, or events that come next are lost.
        """
        if mark["kind"] != "kafka" or mark["topic"] != self.topic:
            raise DataError(f"Kafka topic {self.topic!r} is not the source that was read before")
        if mark["partition"] != (min(self._next) if self._one else None):
            raise DataError(f"Kafka topic {self.topic!r}: the run before read {_partition(mark['partition'])}")
        if None not in (mark["cluster"], self._cluster) and mark["cluster"] != self._cluster:
            raise DataError(f"Kafka topic {self.topic!r} is of another cluster than the one that was read before")
        lost = sorted(set(map(int, mark["offsets"])) - set(self._next))
        if lost:
            raise DataError(f"Kafka topic {self.topic!r} has no partition {lost[0]} any more, which was read before")
        for partition, (offset, digest) in mark["last"].items():
            low, high = self._watermarks(int(partition))
            if low <= offset < high:
                self._expected[int(partition)] = int(offset), digest
            self._prints[int(partition)] = int(offset), digest
        self.seek(mark["offsets"])

    def committed(self, position: Any) -> None:
        """Commit the offsets of the checkpoint, for the broker's tools; a failure is ignored."""
        if self._group is None or not position:
            return
        offsets = [self._client.TopicPartition(self.topic, int(p), int(o)) for p, o in position.items()]
        try:
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except self._client.KafkaException:
            return


def _digest(message: Any) -> str:
    """By what a message is known again."""
    content = repr((message.key(), message.value(), message.timestamp())).encode()
    return hashlib.sha256(content).hexdigest()[:32]


def _partition(number: int | None) -> str:
    return "all partitions" if number is None else f"partition {number}"
