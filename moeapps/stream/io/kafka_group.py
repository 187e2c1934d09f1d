"""Partitions of a Kafka topic that are given out by the group protocol: each is a source of its own.

1. The consumer subscribes; the protocol is cooperative, so that partitions that stay where they are go on meanwhile.
2. A partition that comes is assigned and paused. Whoever uses the group takes it when its files are free, and only then
   it is fetched, from the offset of its checkpoint (:meth:`PartitionSource.begin`).
3. Messages are polled one at a time: what is fetched before a partition goes is never handed out after it came back.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from moeapps.core.errors import ConfigError, DataError
from moeapps.stream.io.events import Event
from moeapps.stream.io.kafka_client import open_topic, parse_address, passes
from moeapps.stream.io.kafka_reader import KafkaReader, OnGap

__all__ = ["KafkaGroup", "PartitionSource", "Partitions"]

_OURS = {
    "partition.assignment.strategy": "workers of a group use cooperative-sticky",
    "group.instance.id": "workers of a group are not static members",
    "group.protocol": "workers of a group use the classic protocol",
}
"""Settings that a group has to make itself, and why."""


class Partitions(Protocol):
    """Who is told which partitions come and go, in calls of :meth:`KafkaGroup.poll` and :meth:`KafkaGroup.close`."""

    def come(self, partition: int) -> None:
        """The partition belongs to this worker from now on."""

    def go(self, partition: int) -> None:
        """It goes to another worker, which waits until this returns: save it."""

    def lost(self, partition: int) -> None:
        """It may have gone already: let it go without saving."""


class KafkaGroup:
    """A member of a consumer group, which reads one topic.

    Parameters
    ----------
    address : str
        ``kafka://host:port/topic``, with ``?stop=end`` if the partitions end where they end now.
    group : str
        Name of the group.
    settings : mapping of str to Any, optional
        Further settings of librdkafka.
    on_gap : {"error", "earliest", "latest"}, default "error"
        As in :class:`~moeapps.stream.io.kafka.KafkaSource`.
    ends : mapping of int to int, optional
        Offsets at which the partitions end, with ``?stop=end``.

    Attributes
    ----------
    known : list of int
        All partitions of the topic.

    Raises
    ------
    ConfigError
        If confluent-kafka is missing, a setting cannot be used, the broker does not answer, or there is no such topic.
    """

    def __init__(
        self,
        address: str,
        group: str,
        settings: Mapping[str, Any] | None = None,
        on_gap: OnGap = "error",
        ends: Mapping[int, int] | None = None,
    ) -> None:
        given = dict(settings or {})
        for name in given:
            if name in _OURS:
                raise ConfigError(f"--kafka-config {name}=...: it cannot be set, {_OURS[name]}")
        self._stops = "stop" in parse_address(address)[2]
        self._topic = open_topic(address, group, given, partition_assignment_strategy="cooperative-sticky")
        self._group, self._on_gap, self._ends = group, on_gap, dict(ends or {})
        self._users: Partitions | None = None
        self._assigned: set[int] = set()
        self._sources: dict[int, PartitionSource] = {}
        self._failed: BaseException | None = None
        self.known = self._topic.partitions

    def ends(self) -> dict[int, int]:
        """Offset at which each partition ends now."""
        client, consumer, name = self._topic.client, self._topic.consumer, self._topic.name
        try:
            return {
                number: consumer.get_watermark_offsets(client.TopicPartition(name, number), 10)[1]
                for number in self.known
            }
        except client.KafkaException as error:
            raise DataError(f"Kafka topic {name!r}: {error.args[0].str()}") from None

    def join(self, users: Partitions) -> None:
        """Become a member; ``users`` are told which partitions come and go."""
        self._users = users
        self._topic.consumer.subscribe(
            [self._topic.name],
            on_assign=lambda consumer, found: self._guarded(self._come, found),
            on_revoke=lambda consumer, found: self._guarded(self._go, found),
            on_lost=lambda consumer, found: self._guarded(self._lost, found),
        )

    def source(self, partition: int) -> "PartitionSource":
        """A source over a partition that has come, which is read after :meth:`PartitionSource.begin`.

        Raises
        ------
        DataError
            If the broker does not say which offsets it has.
        """
        stops = self._stops
        ends = {partition: self._ends[partition]} if stops and partition in self._ends else None
        source = PartitionSource(
            self._topic, [partition], one=True, on_gap=self._on_gap, stops=stops, ends=ends, group=self._group,
            left=lambda: self._sources.pop(partition, None),
        )  # fmt: skip
        self._sources[partition] = source
        return source

    # --- what the protocol says

    def _guarded(self, handle: Callable[[list[int]], None], found: Sequence[Any]) -> None:
        """Call a handler; what it raises is kept, since librdkafka's thread of calls is no place for it."""
        try:
            handle(sorted(entry.partition for entry in found))
        except BaseException as error:
            self._failed = self._failed or error

    def _places(self, partitions: Sequence[int], offset: int = 0) -> list[Any]:
        return [self._topic.client.TopicPartition(self._topic.name, partition, offset) for partition in partitions]

    def _come(self, partitions: list[int]) -> None:
        places = self._places(partitions)
        self._topic.consumer.incremental_assign(places)
        if places:
            self._topic.consumer.pause(places)
        self._assigned |= set(partitions)
        assert self._users is not None
        for partition in partitions:
            self._users.come(partition)

    def _go(self, partitions: list[int]) -> None:
        assert self._users is not None
        self._leave(partitions, self._users.go)

    def _lost(self, partitions: list[int]) -> None:
        assert self._users is not None
        self._leave(partitions, self._users.lost)

    def _leave(self, partitions: list[int], tell: Callable[[int], None]) -> None:
        try:
            for partition in partitions:
                tell(partition)
        finally:
            self._assigned -= set(partitions)
            self._topic.consumer.incremental_unassign(self._places(partitions))

    # --- reading

    def poll(self, n: int, wait: float = 0.5) -> int:
        """Hand up to ``n`` messages to their sources; the number of those that were handed out.

        Parameters
        ----------
        n : int
            Most messages.
        wait : float, default 0.5
            Seconds to wait for the first one; what is there already is not waited for.

        Raises
        ------
        DataError
            If the topic is gone or may not be read, or events are lost that come next.
        """
        for count in range(n):
            message = self._topic.consumer.poll(0.0 if count else wait)
            if self._failed is not None:
                failed, self._failed = self._failed, None
                raise failed
            if message is None:
                return count
            source = self._sources.get(message.partition())
            if source is not None:
                source.give(message)
            elif message.error() is not None and message.partition() < 0:
                self._problem(message.error())
        return n

    def _problem(self, error: Any) -> None:
        """An error that is of no partition: one that does not pass ends the worker."""
        if not passes(error, self._topic.client):
            raise DataError(f"Kafka topic {self._topic.name!r}: {error.str()}")

    def close(self) -> None:
        """Leave the group: the partitions go."""
        self._topic.consumer.close()
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed


class PartitionSource(KafkaReader):
    """One partition of a group: :meth:`KafkaGroup.poll` gives it its messages.

    Parameters
    ----------
    *arguments, **more
        As :class:`~moeapps.stream.io.kafka_reader.KafkaReader`.
    left : callable
        Called when the source is closed.
    """

    def __init__(self, *arguments: Any, left: Callable[[], Any], **more: Any) -> None:
        self._messages: deque[Any] = deque()
        self._begun, self._left = False, left
        super().__init__(*arguments, **more)

    @property
    def filled(self) -> bool:
        """Whether there are messages that were not read."""
        return bool(self._messages)

    def give(self, message: Any) -> None:
        """Take a message, to be read later."""
        self._messages.append(message)

    def begin(self) -> None:
        """Fetch from the position on."""
        self._begun = True
        self._assign()
        self._consumer.resume(self._place())

    def end(self) -> None:
        """Fetch no more."""
        self._messages.clear()
        self._consumer.pause(self._place())

    def _place(self) -> list[Any]:
        return [self._client.TopicPartition(self.topic, min(self._next))]

    def _assign(self) -> None:
        self._messages.clear()
        if self._begun:
            ((partition, offset),) = self._starts().items()
            self._consumer.seek(self._client.TopicPartition(self.topic, partition, offset))

    def read(self, n: int) -> list[Event]:
        """Up to ``n`` events of the messages that were given.

        Raises
        ------
        DataError
            If events are lost that come next, the topic is gone, or may not be read.
        """
        found: list[Event] = []
        while self._messages and len(found) < n:
            found.extend(self._event(self._messages.popleft()))
        return found

    def close(self) -> None:
        """Be given no more messages."""
        self._left()
