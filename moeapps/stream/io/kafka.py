"""Kafka as source and sink, through confluent-kafka (``pip install "moeapps[kafka]"``).

confluent-kafka is the maintained binding of librdkafka. The alternative, quixstreams, is a framework with its own loop,
state and commits. Here the offsets are part of the model's checkpoint; what is committed to the broker for the group
only serves its dashboards.

Offsets that are missing between two messages are normal: compaction, markers of transactions and aborted transactions
leave such holes. Events are lost where the broker no longer has the offset that comes next (retention was shorter than
the pause, or the topic was made anew); that is an error unless ``on_gap`` says where to go on.
"""

import hashlib
import json
import time
from typing import Any, Literal, get_args
from urllib.parse import parse_qsl, urlsplit

from moeapps.core.errors import ConfigError, DataError
from moeapps.stream.io.events import Event, parse_object
from moeapps.stream.io.kafka_config import without_secrets
from moeapps.stream.io.values import finite_json

__all__ = ["KafkaSink", "KafkaSource", "OnGap", "parse_address"]

OnGap = Literal["error", "earliest", "latest"]
"""What to do where the broker no longer has the events that come next."""

WAIT = 10.0
"""Seconds that a broker has to answer."""

SILENCE = 60.0
"""Seconds without an answer after which a run that is to stop at the end of the topic gives up."""

_PASSING = ("_TRANSPORT", "_ALL_BROKERS_DOWN", "_RESOLVE", "_TIMED_OUT", "_WAIT_COORD")
"""Errors after which the client connects again by itself."""


def _client() -> Any:
    try:
        import confluent_kafka
    except ImportError:
        raise ConfigError('kafka:// needs confluent-kafka: pip install "moeapps[kafka]"') from None
    return confluent_kafka


def parse_address(address: str) -> tuple[str, str, dict[str, str]]:
    """Broker, topic and options of ``kafka://host:port/topic?partition=0&stop=end``.

    Raises
    ------
    ConfigError
        If a part is missing or an option unknown.
    """
    parts = urlsplit(address)
    topic = parts.path.strip("/")
    options = dict(parse_qsl(parts.query))
    if parts.scheme != "kafka" or not parts.netloc or not topic or "/" in topic:
        raise ConfigError(f"{address}: expected kafka://host:port/topic")
    unknown = set(options) - {"partition", "group", "stop"}
    if unknown:
        raise ConfigError(f"{address}: unknown option {sorted(unknown)[0]!r}; known are partition, group, stop")
    if not options.get("partition", "0").isdigit():
        raise ConfigError(f"{address}: partition must be a number, got {options['partition']!r}")
    if options.get("stop", "end") != "end":
        raise ConfigError(f"{address}: stop can only be 'end', got {options['stop']!r}")
    return parts.netloc, topic, options


def _made(make: Any, settings: dict[str, Any], given: dict[str, Any], client: Any) -> Any:
    """A consumer or producer; a setting that librdkafka refuses is named, its value is not."""
    try:
        return make({**settings, **given})
    except client.KafkaException as error:
        problem = without_secrets(error.args[0].str(), given)
        raise ConfigError(f"--kafka-config: {problem}") from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--kafka-config: {without_secrets(str(error), given)}") from None


def _addresses(servers: str, topic: str) -> list[tuple[str, str, str]]:
    """What tells two topics apart."""
    return [("kafka", server.strip().lower(), topic) for server in servers.split(",")]


class KafkaSource:
    """JSON objects of a topic; the position is the next offset of every partition.

    ``partition=P`` reads one partition, else all are read into one model. ``stop=end`` ends the run where the topic
    ended when it began; else it waits for more. ``group=NAME`` commits the offsets of each checkpoint under that name,
    so that the broker's tools show the lag; they are never read back. A message without a value, which deletes its key
    from a compacted topic, is no event.

    Parameters
    ----------
    address : str
        ``kafka://host:port/topic?partition=0``; several brokers are separated by commas.
    settings : dict[str, Any], optional
        Further settings of librdkafka (security, timeouts).
    on_gap : {"error", "earliest", "latest"}, default "error"
        What to do if the broker no longer has the events that come next: refuse, go on with the earliest that it has,
        or with those that come from now on.

    Raises
    ------
    ConfigError
        If confluent-kafka is missing, a setting is unknown, the broker does not answer, or there is no such topic or
        partition.
    """

    replayable = True

    def __init__(self, address: str, settings: dict[str, Any] | None = None, on_gap: OnGap = "error") -> None:
        client = _client()
        servers, self.topic, options = parse_address(address)
        if on_gap not in get_args(OnGap):
            raise ConfigError(f"on_gap must be one of {', '.join(get_args(OnGap))}, got {on_gap!r}")
        self._client, self.on_gap = client, on_gap
        self.addresses = _addresses(servers, self.topic)
        self.gaps: list[str] = []
        """What was skipped or read again, where ``on_gap`` allows it."""
        self._group = options.get("group")
        given = dict(settings or {})
        self._consumer = _made(
            client.Consumer,
            {
                "bootstrap.servers": servers,
                "group.id": self._group or "moeapps",
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "enable.partition.eof": True,
            },
            given,
            client,
        )
        try:
            metadata = self._consumer.list_topics(self.topic, timeout=WAIT)
            known = metadata.topics[self.topic]
            self._cluster = getattr(metadata, "cluster_id", None)
        except client.KafkaException as error:
            raise ConfigError(
                f"{address}: no broker answers ({without_secrets(error.args[0].str(), given)}); check the address, and "
                "security.protocol and the like of --kafka-config"
            ) from None
        if known.error is not None or not known.partitions:
            raise ConfigError(f"{address}: there is no topic {self.topic!r}")
        self._one = "partition" in options
        wanted = [int(options["partition"])] if self._one else sorted(known.partitions)
        if wanted[0] not in known.partitions:
            raise ConfigError(f"{address}: topic {self.topic!r} has {len(known.partitions)} partitions, from 0")
        self._next: dict[int, int] = {}
        self._end: dict[int, int] = {}
        self._prints: dict[int, tuple[int, str]] = {}  # of the last message that was read, by partition
        self._expected: dict[int, tuple[int, str]] = {}  # the same, of the checkpoint, not compared yet
        for partition in wanted:
            self._next[partition], self._end[partition] = self._watermarks(partition)
        self._first = dict(self._next)
        self._stops = "stop" in options
        self._heard = time.monotonic()
        self.seek(None)

    @property
    def endless(self) -> bool:
        """Whether more may come: always, or until the end that the topic had when the run began."""
        return not self._stops or any(self._next[partition] < end for partition, end in self._end.items())

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

    def read(self, n: int) -> list[Event]:
        """Up to ``n`` events; none where none has come for half a second.

        Raises
        ------
        DataError
            If events are lost that come next, the topic is gone, or may not be read.
        """
        if not self.endless:
            return []
        # the first one is waited for, and then only what is there already is taken: an event is not held back
        messages = self._consumer.consume(1, timeout=0.5)
        if messages and n > 1:
            messages += self._consumer.consume(n - 1, timeout=0.0)
        found: list[Event] = []
        for message in messages:
            found.extend(self._event(message))
        if messages:
            self._heard = time.monotonic()
        elif self._stops and time.monotonic() - self._heard > SILENCE:
            raise DataError(f"Kafka topic {self.topic!r}: no broker answers for {SILENCE:.0f} s")
        return found

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
        position = {str(number): upto for number, upto in self._next.items()}
        return [parse_object(message.value(), position, f"partition {partition}, offset {offset}")]

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
        passing = {getattr(kinds, name, None) for name in _PASSING}
        if error.code() in passing or (error.retriable() and not error.fatal()):
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

    def _assign(self) -> None:
        starts = {}
        for partition, offset in self._next.items():
            before = self._expected.get(partition, (offset, ""))[0]
            starts[partition] = min(before, offset)
        self._consumer.assign(
            [self._client.TopicPartition(self.topic, partition, offset) for partition, offset in starts.items()]
        )

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

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close()


def _digest(message: Any) -> str:
    """By what a message is known again."""
    content = repr((message.key(), message.value(), message.timestamp())).encode()
    return hashlib.sha256(content).hexdigest()[:32]


def _partition(number: int | None) -> str:
    return "all partitions" if number is None else f"partition {number}"


class KafkaSink:
    """JSON objects to a topic, at least once: after a crash, what followed the last checkpoint is sent again.

    A record that the broker refuses ends the run before its next checkpoint.

    Parameters
    ----------
    address : str
        ``kafka://host:port/topic``.
    settings : dict[str, Any], optional
        Further settings of librdkafka.
    """

    def __init__(self, address: str, settings: dict[str, Any] | None = None) -> None:
        self._client = _client()
        servers, self.topic, _ = parse_address(address)
        self.addresses = _addresses(servers, self.topic)
        self._producer = _made(
            self._client.Producer, {"bootstrap.servers": servers, "linger.ms": 20}, dict(settings or {}), self._client
        )
        self._failed: str | None = None
        self._lost = 0

    def write(self, record: dict[str, Any]) -> None:
        """Send a record.

        Raises
        ------
        DataError
            If this one cannot be sent, or one before it was not delivered.
        """
        content = json.dumps(finite_json(record), allow_nan=False).encode()
        end = time.monotonic() + WAIT
        while True:
            try:
                self._producer.produce(self.topic, content, on_delivery=self._delivered)
                break
            except BufferError:
                self._producer.poll(0.1)
                self._check()
                if time.monotonic() > end:
                    raise DataError(
                        f"Kafka topic {self.topic!r}: the broker takes no records for {WAIT:.0f} s"
                    ) from None
            except self._client.KafkaException as error:
                raise DataError(f"Kafka topic {self.topic!r}: {error.args[0].str()}") from None
        self._producer.poll(0)
        self._check()

    def _delivered(self, error: Any, message: Any) -> None:
        if error is not None:
            self._failed = self._failed or error.str()
            self._lost += 1

    def _check(self) -> None:
        if self._failed is not None:
            raise DataError(
                f"Kafka topic {self.topic!r}: {self._lost} records were not delivered ({self._failed}); the checkpoint "
                "stays before them, --resume sends them again"
            )

    def flush(self) -> None:
        """Wait until the broker has everything.

        Raises
        ------
        DataError
            If it does not accept all records in time.
        """
        left = self._producer.flush(WAIT)
        self._check()
        if left:
            raise DataError(f"Kafka topic {self.topic!r}: {left} records could not be delivered in {WAIT:.0f} s")

    def resume(self, size: int | None) -> None:
        """Do nothing: sent records cannot be withdrawn."""

    def close(self) -> None:
        """Send what is left, unless the broker has failed."""
        if self._failed is not None:
            self._producer.purge()
        self._producer.flush(1.0)
