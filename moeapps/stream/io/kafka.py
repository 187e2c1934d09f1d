"""Kafka as source and sink, through confluent-kafka (``pip install "moeapps[kafka]"``).

confluent-kafka is the maintained binding of librdkafka. The alternative, quixstreams, is a framework with its own loop,
state and commits. Here the offsets are part of the model's checkpoint; what is committed to the broker for the group
only serves its dashboards.
"""

import json
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from moeapps.core.errors import ConfigError, DataError
from moeapps.stream.io.events import Event, parse_object

__all__ = ["KafkaSink", "KafkaSource", "parse_address"]

WAIT = 10.0
"""Seconds that a broker has to answer."""


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


class KafkaSource:
    """JSON objects of a topic; the position is the next offset of every partition.

    ``partition=P`` reads one partition, else all are read into one model. ``stop=end`` ends the run where the topic
    ended when it began; else it waits for more. ``group=NAME`` commits the offsets of each checkpoint under that name,
    so that the broker's tools show the lag; they are never read back.

    Parameters
    ----------
    address : str
        ``kafka://host:port/topic?partition=0``; several brokers are separated by commas.
    settings : dict[str, Any], optional
        Further settings of librdkafka (security, timeouts).

    Raises
    ------
    ConfigError
        If confluent-kafka is missing, the broker does not answer, or there is no such topic or partition.
    """

    def __init__(self, address: str, settings: dict[str, Any] | None = None) -> None:
        client = _client()
        servers, self.topic, options = parse_address(address)
        self._client = client
        self._group = options.get("group")
        self._consumer = client.Consumer(
            {
                "bootstrap.servers": servers,
                "group.id": self._group or "moeapps",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "enable.partition.eof": True,
                **(settings or {}),
            }
        )
        try:
            known = self._consumer.list_topics(self.topic, timeout=WAIT).topics[self.topic]
        except client.KafkaException as error:
            raise ConfigError(f"{address}: no broker answers ({error.args[0].str()})") from None
        if known.error is not None or not known.partitions:
            raise ConfigError(f"{address}: there is no topic {self.topic!r}")
        wanted = [int(options["partition"])] if "partition" in options else sorted(known.partitions)
        if wanted[0] not in known.partitions:
            raise ConfigError(f"{address}: topic {self.topic!r} has {len(known.partitions)} partitions, from 0")
        self._next: dict[int, int] = {}
        self._end: dict[int, int] = {}
        for partition in wanted:
            low, high = self._consumer.get_watermark_offsets(client.TopicPartition(self.topic, partition), WAIT)
            self._next[partition], self._end[partition] = low, high
        self.endless = "stop" not in options
        self.seek(None)

    def read(self, n: int) -> list[Event]:
        """Up to ``n`` events; none where none has come for half a second."""
        found: list[Event] = []
        while not found and (self.endless or self._behind()):
            messages = self._consumer.consume(n, timeout=0.5)
            for message in messages:
                found.extend(self._event(message))
            if self.endless:
                break
        return found

    def _behind(self) -> bool:
        return any(self._next[partition] < end for partition, end in self._end.items())

    def _event(self, message: Any) -> list[Event]:
        error = message.error()
        if error is not None:
            if error.code() == self._client.KafkaError._PARTITION_EOF:
                self._next[message.partition()] = max(self._next[message.partition()], message.offset())
                return []
            if error.retriable() or not error.fatal():
                return []  # the client connects again by itself
            raise DataError(f"Kafka topic {self.topic!r}: {error.str()}")
        partition, offset = message.partition(), message.offset()
        if not self.endless and offset >= self._end[partition]:
            return []
        if offset < self._next[partition]:
            return []
        self._next[partition] = offset + 1
        position = {str(number): upto for number, upto in self._next.items()}
        return [parse_object(message.value(), position, f"partition {partition}, offset {offset}")]

    def seek(self, position: Any) -> None:
        """Go on at these offsets; None for the beginning."""
        for partition, offset in (position or {}).items():
            if int(partition) in self._next:
                self._next[int(partition)] = int(offset)
        self._consumer.assign(
            [self._client.TopicPartition(self.topic, partition, offset) for partition, offset in self._next.items()]
        )

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


class KafkaSink:
    """JSON objects to a topic, at least once: after a crash, what followed the last checkpoint is sent again.

    Parameters
    ----------
    address : str
        ``kafka://host:port/topic``.
    settings : dict[str, Any], optional
        Further settings of librdkafka.
    """

    def __init__(self, address: str, settings: dict[str, Any] | None = None) -> None:
        client = _client()
        servers, self.topic, _ = parse_address(address)
        self._producer = client.Producer({"bootstrap.servers": servers, "linger.ms": 20, **(settings or {})})

    def write(self, record: dict[str, Any]) -> None:
        """Send a record."""
        content = json.dumps(record, default=str).encode()
        while True:
            try:
                self._producer.produce(self.topic, content)
                break
            except BufferError:
                self._producer.poll(0.1)
        self._producer.poll(0)

    def flush(self) -> None:
        """Wait until the broker has everything.

        Raises
        ------
        DataError
            If it does not accept all records in time.
        """
        left = self._producer.flush(WAIT)
        if left:
            raise DataError(f"Kafka topic {self.topic!r}: {left} predictions could not be delivered in {WAIT:.0f} s")

    def resume(self, size: int | None) -> None:
        """Do nothing: sent records cannot be withdrawn."""

    def close(self) -> None:
        """Send what is left."""
        self._producer.flush(WAIT)
