"""Kafka as source and sink, through confluent-kafka (``pip install "moeapps[kafka]"``).

confluent-kafka is the maintained binding of librdkafka. The alternative, quixstreams, is a framework with its own loop,
state and commits. Here the offsets are part of the model's checkpoint; what is committed to the broker for the group
only serves its dashboards.
"""

import time
from typing import Any

from moeapps.core.errors import ConfigError, DataError
from moeapps.core.json_text import json_bytes
from moeapps.stream.io.events import Event
from moeapps.stream.io.kafka_client import WAIT, addresses_of, confluent, make_client, open_topic, parse_address
from moeapps.stream.io.kafka_reader import KafkaReader, OnGap
from moeapps.stream.io.values import finite_json

__all__ = ["KafkaSink", "KafkaSource", "OnGap", "parse_address"]

SILENCE = 60.0
"""Seconds without an answer after which a run that is to stop at the end of the topic gives up."""


class KafkaSource(KafkaReader):
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

    def __init__(self, address: str, settings: dict[str, Any] | None = None, on_gap: OnGap = "error") -> None:
        _, _, options = parse_address(address)
        topic = open_topic(address, options.get("group", "moeapps"), dict(settings or {}))
        one = "partition" in options
        wanted = [int(options["partition"])] if one else topic.partitions
        if wanted[0] not in topic.partitions:
            raise ConfigError(f"{address}: topic {topic.name!r} has {len(topic.partitions)} partitions, from 0")
        super().__init__(topic, wanted, one=one, on_gap=on_gap, stops="stop" in options, group=options.get("group"))
        self._heard = time.monotonic()
        self.seek(None)

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

    def _assign(self) -> None:
        starts = [self._client.TopicPartition(self.topic, *start) for start in self._starts().items()]
        self._consumer.assign(starts)

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close()


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
        self._client = confluent()
        servers, self.topic, _ = parse_address(address)
        self.addresses = addresses_of(servers, self.topic)
        self._producer = make_client(
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
        content = json_bytes(finite_json(record), allow_nan=False)
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
