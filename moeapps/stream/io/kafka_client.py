"""Addresses of Kafka, and clients of confluent-kafka (``pip install "moeapps[kafka]"``)."""

from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from moeapps.core.errors import ConfigError
from moeapps.core.packages import needs
from moeapps.stream.io.kafka_config import without_secrets

__all__ = ["WAIT", "Topic", "addresses_of", "confluent", "make_client", "open_topic", "parse_address", "passes"]

WAIT = 10.0
"""Seconds that a broker has to answer."""


_PASSING = ("_TRANSPORT", "_ALL_BROKERS_DOWN", "_RESOLVE", "_TIMED_OUT", "_WAIT_COORD")


def confluent() -> Any:
    """The module confluent_kafka.

    Raises
    ------
    ConfigError
        If it is not installed.
    """
    with needs("kafka://", "moeapps[kafka]"):
        import confluent_kafka
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


def make_client(make: Any, settings: dict[str, Any], given: dict[str, Any], client: Any) -> Any:
    """A consumer or producer; a setting that librdkafka refuses is named, its value is not."""
    try:
        return make({**settings, **given})
    except client.KafkaException as error:
        problem = without_secrets(error.args[0].str(), given)
        raise ConfigError(f"--kafka-config: {problem}") from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--kafka-config: {without_secrets(str(error), given)}") from None


def passes(error: Any, client: Any) -> bool:
    """Whether it is an error after which the client connects again by itself."""
    passing = {getattr(client.KafkaError, name, None) for name in _PASSING}
    return error.code() in passing or (error.retriable() and not error.fatal())


def addresses_of(servers: str, topic: str) -> list[tuple[str, str, str]]:
    """What tells two topics apart."""
    return [("kafka", server.strip().lower(), topic) for server in servers.split(",")]


class Topic(NamedTuple):
    """A topic and a consumer that can read it.

    Attributes
    ----------
    client : module
        confluent_kafka.
    consumer : confluent_kafka.Consumer
        Nothing is assigned to it yet.
    name : str
        Name of the topic.
    addresses : list of tuple
        What tells it from another topic.
    cluster : str or None
        The cluster's id, where the broker says it.
    partitions : list of int
        All its partitions, in order.
    """

    client: Any
    consumer: Any
    name: str
    addresses: list[tuple[str, str, str]]
    cluster: str | None
    partitions: list[int]


def open_topic(address: str, group: str, settings: dict[str, Any], **more: Any) -> Topic:
    """Connect to the broker, and ask it for the topic of an address.

    Parameters
    ----------
    address : str
        ``kafka://host:port/topic``.
    group : str
        Name of the consumer group.
    settings : dict[str, Any]
        Settings of librdkafka that the user gave.
    **more
        Further settings, with underscores in place of dots.

    Raises
    ------
    ConfigError
        If confluent-kafka is missing, a setting is unknown, the broker does not answer, or there is no such topic.
    """
    client = confluent()
    servers, name, _ = parse_address(address)
    own = {
        "bootstrap.servers": servers,
        "group.id": group,
        "enable.auto.commit": False,
        "auto.offset.reset": "error",
        "enable.partition.eof": True,
        **{setting.replace("_", "."): value for setting, value in more.items()},
    }
    consumer = make_client(client.Consumer, own, settings, client)
    try:
        metadata = consumer.list_topics(name, timeout=WAIT)
    except client.KafkaException as error:
        consumer.close()
        raise ConfigError(
            f"{address}: no broker answers ({without_secrets(error.args[0].str(), settings)}); check the address, and "
            "security.protocol and the like of --kafka-config"
        ) from None
    known = metadata.topics[name]
    if known.error is not None or not known.partitions:
        consumer.close()
        raise ConfigError(f"{address}: there is no topic {name!r}")
    cluster = getattr(metadata, "cluster_id", None)
    return Topic(client, consumer, name, addresses_of(servers, name), cluster, sorted(known.partitions))
