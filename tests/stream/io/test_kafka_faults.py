"""What goes wrong with Kafka: lost offsets, topics made anew, refused records, settings (S6); on the mock cluster."""

import json
import time
from pathlib import Path

import pytest

import moeapps
from moeapps.cli.main import main
from moeapps.core.errors import ConfigError, DataError
from moeapps.stream import DriftMoEClassifier, StreamRun, open_sink, open_source
from moeapps.stream.io.kafka import KafkaSource
from moeapps.stream.io.kafka_config import read_kafka_config

confluent_kafka = pytest.importorskip("confluent_kafka")

SMALL = ["--set", "seed=1", "--set", "n_experts=2", "--plain"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Cluster:
    """A mock cluster, which ends with :meth:`stop`."""

    def __init__(self):
        self.producer = confluent_kafka.Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "ignored:1"})
        known = self.producer.list_topics(timeout=10).brokers
        self.address = next(f"{broker.host}:{broker.port}" for broker in known.values())

    def fill(self, topic: str, n: int, start: int = 0, **more) -> None:
        for i in range(start, start + n):
            event = {"a": i % 7 - 3, "id": i, "y": "up" if i % 7 > 3 else "down", **more}
            self.producer.produce(topic, json.dumps(event).encode(), key=str(i), partition=0)
        assert self.producer.flush(20) == 0

    def stop(self) -> None:
        self.producer.flush(5)
        self.producer = None


@pytest.fixture
def cluster():
    made = Cluster()
    yield made
    if made.producer is not None:
        made.stop()


def small() -> DriftMoEClassifier:
    return DriftMoEClassifier(seed=1, n_experts=2)


def job_over(cluster, query="?partition=0&stop=end", topic="events", **arguments) -> StreamRun:
    on_gap = arguments.pop("on_gap", "error")
    source = open_source(f"kafka://{cluster.address}/{topic}{query}", on_gap=on_gap)
    return StreamRun(small(), source, "y", Path("c"), **arguments)


def finish(job: StreamRun) -> StreamRun:
    try:
        job.resume()
        job.run()
    finally:
        job.close()
    return job


def read_on(source) -> None:
    """Read until there is an error, for ten seconds at most."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        source.read(10)


def shifted(offset: int) -> None:
    """Let the checkpoint say that more has been read than there is, as after a topic was made anew."""
    found = moeapps.load("c/stream.safetensors")
    found.run["mark"]["offsets"] = {"0": offset}
    found.run["mark"]["last"] = {}
    found.save("c/stream.safetensors")


def test_a_topic_that_ends_before_the_offset_is_an_error_unless_on_gap_says_where_to_go_on(cluster, capsys):
    cluster.fill("events", 50)
    finish(job_over(cluster))
    shifted(500)
    before = Path("c/stream.safetensors").read_bytes()
    with pytest.raises(
        DataError, match="offset 500 comes next, the broker has 0 to 50: events were lost, or the topic was"
    ):
        finish(job_over(cluster))
    assert Path("c/stream.safetensors").read_bytes() == before
    latest = finish(job_over(cluster, on_gap="latest"))
    assert latest.counts.learned == 50
    shifted(500)
    earliest = finish(job_over(cluster, on_gap="earliest"))
    assert earliest.counts.learned == 100
    assert "it goes on with offset 0" in earliest.source.gaps[0]


def test_another_topic_behind_the_same_name_is_noticed_by_its_content(cluster):
    cluster.fill("events", 50)
    finish(job_over(cluster))
    found = moeapps.load("c/stream.safetensors")
    found.run["mark"]["last"]["0"][1] = "0" * 32
    found.save("c/stream.safetensors")
    cluster.fill("events", 50, start=50)
    with pytest.raises(DataError, match="offset 49 is another message than the one that was read before"):
        finish(job_over(cluster))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"topic": "other"}, "is not the source that was read before"),
        ({"query": "?stop=end"}, "the run before read partition 0"),
    ],
)
def test_another_topic_or_partition_is_refused(cluster, change, message):
    cluster.fill("events", 10)
    cluster.fill("other", 10)
    finish(job_over(cluster))
    with pytest.raises(DataError, match=message):
        finish(job_over(cluster, **change))
    finish(job_over(cluster, **change, allow_change=True))


def test_another_cluster_and_a_lost_partition_are_refused(cluster):
    cluster.fill("events", 10)
    job = finish(job_over(cluster))
    mark = moeapps.load("c/stream.safetensors").run["mark"]
    changes = {"is of another cluster": {"cluster": "x"}, "has no partition 9 any more": {"offsets": {"0": 3, "9": 3}}}
    for message, change in changes.items():
        source = open_source(f"kafka://{cluster.address}/events?partition=0")
        with pytest.raises(DataError, match=message):
            source.resume_at({**mark, **change})
        source.close()
    assert job.counts.learned == 10


def test_what_retention_removed_is_an_error_or_skipped(cluster):
    """The mock cluster keeps about 5 MB of a partition."""
    cluster.fill("events", 10)
    finish(job_over(cluster))
    for start in range(10, 100, 10):
        cluster.fill("events", 10, start, pad="x" * 100_000)
    with pytest.raises(DataError, match="offset 10 comes next, the broker has"):
        finish(job_over(cluster))
    job = finish(job_over(cluster, on_gap="earliest"))
    assert 10 < job.counts.events < 100
    assert job.source.gaps


def test_what_retention_removes_while_the_run_lags_behind_is_an_error(cluster):
    cluster.fill("events", 10)
    source = open_source(f"kafka://{cluster.address}/events?partition=0")
    for start in range(10, 100, 10):
        cluster.fill("events", 10, start, pad="x" * 100_000)
    source._next[0] = 3
    source._assign()
    with pytest.raises(DataError, match="offset 3 is not within"):
        read_on(source)
    source.close()


def test_holes_between_offsets_are_normal(cluster):
    """Compaction, markers of transactions, and aborted ones."""
    cluster.fill("events", 3)
    source = open_source(f"kafka://{cluster.address}/events?partition=0")

    class Message:
        def __init__(self, offset):
            self.at = offset

        def error(self):
            return None

        def partition(self):
            return 0

        def offset(self):
            return self.at

        def key(self):
            return None

        def timestamp(self):
            return (1, 0)

        def value(self):
            return None if self.at == 9 else b'{"a": 1}'

    found = [event for offset in (0, 5, 9, 12) for event in source._event(Message(offset))]
    assert [event.where for event in found] == [f"partition 0, offset {offset}" for offset in (0, 5, 12)]
    assert found[-1].position == {"0": 13}
    assert source._event(Message(5)) == []  # sent again
    source.close()


def test_a_tombstone_is_no_event(cluster):
    cluster.fill("events", 3)
    cluster.producer.produce("events", None, key="1", partition=0)
    cluster.fill("events", 3, 3)
    cluster.producer.produce("events", None, key="2", partition=0)
    job = finish(job_over(cluster))
    assert (job.counts.events, job.counts.rejected) == (6, 0)


def test_a_transaction_that_was_aborted_is_not_learned(cluster):
    cluster.fill("events", 3)
    producer = confluent_kafka.Producer({"bootstrap.servers": cluster.address, "transactional.id": "t"})
    producer.init_transactions(10)
    for outcome in ("commit_transaction", "abort_transaction"):
        producer.begin_transaction()
        producer.produce("events", json.dumps({"a": 1, "y": "up"}).encode(), partition=0)
        producer.flush(10)
        getattr(producer, outcome)(10)
    cluster.fill("events", 3, 3)
    job = finish(job_over(cluster))
    assert job.counts.learned >= 7  # the mock cluster does not hide what was aborted, a broker does


def test_records_that_are_not_delivered_stop_the_run_before_its_checkpoint(cluster, capsys):
    cluster.fill("events", 400)
    sink = open_sink(f"kafka://{cluster.address}/out", "--predictions", {"message.timeout.ms": "300"})
    job = job_over(cluster, predictions=sink, every=100, limit=100)
    job.run()
    assert moeapps.load("c/stream.safetensors").run["counts"]["events"] == 100
    job.limit = None

    def undelivered(topic, content, on_delivery):
        on_delivery(confluent_kafka.KafkaError(confluent_kafka.KafkaError._MSG_TIMED_OUT), None)

    class Broken:
        produce = staticmethod(undelivered)
        poll = staticmethod(lambda seconds: 0)
        flush = staticmethod(lambda seconds: 0)
        purge = staticmethod(lambda: None)

    sink._producer = Broken
    with pytest.raises(DataError, match=r"1 records were not delivered \(Local: Message timed out\)"):
        job.run()
    job.close()
    assert moeapps.load("c/stream.safetensors").run["counts"]["events"] == 100


def test_a_broker_that_goes_away_stops_a_run_that_sends(cluster, monkeypatch):
    cluster.fill("events", 5)
    sink = open_sink(f"kafka://{cluster.address}/out", "--predictions", {"message.timeout.ms": "500"})
    sink.write({"a": 1})
    sink.flush()
    cluster.stop()
    sink.write({"a": 2})
    with pytest.raises(DataError, match="not delivered|could not be delivered"):
        sink.flush()
    sink.close()


def test_a_run_to_the_end_of_a_topic_gives_up_on_a_broker_that_went_away(cluster, monkeypatch):
    monkeypatch.setattr("moeapps.stream.io.kafka.SILENCE", 1.0)
    cluster.fill("events", 5)
    source = open_source(f"kafka://{cluster.address}/events?partition=0&stop=end")
    source._end[0] = 10
    cluster.stop()
    with pytest.raises(DataError, match="no broker answers for 1 s"):
        read_on(source)
    source.close()


@pytest.mark.parametrize("name", ["TOPIC_AUTHORIZATION_FAILED", "UNKNOWN_TOPIC_OR_PART", "_AUTHENTICATION"])
def test_an_error_that_does_not_pass_ends_the_run(cluster, name):
    cluster.fill("events", 1)
    source = open_source(f"kafka://{cluster.address}/events?partition=0")
    error = confluent_kafka.KafkaError(getattr(confluent_kafka.KafkaError, name))
    with pytest.raises(DataError, match="Kafka topic 'events': "):
        source._problem(error, None)
    source._problem(confluent_kafka.KafkaError(confluent_kafka.KafkaError._ALL_BROKERS_DOWN), None)
    source.close()


def test_the_topic_that_is_read_is_never_written(cluster, capsys):
    cluster.fill("events", 5)
    address = f"kafka://{cluster.address}/events"
    given = ["stream", "run", "--source", f"{address}?stop=end", "--target", "y", *SMALL]
    assert main([*given, "--predictions", address]) == 2
    assert "--predictions events is also the source" in capsys.readouterr().err
    out = f"kafka://{cluster.address}/out"
    assert main([*given, "--predictions", out, "--rejects", out]) == 2
    assert "--rejects out is also --predictions" in capsys.readouterr().err


def test_settings_of_librdkafka_come_from_files_and_arguments():
    Path("client.properties").write_text("# a comment\n\nsecurity.protocol = SASL_SSL\nsasl.password=a=b#c\n")
    settings = read_kafka_config(["client.properties", "client.id=me", "security.protocol=PLAINTEXT"])
    assert settings == {"security.protocol": "PLAINTEXT", "sasl.password": "a=b#c", "client.id": "me"}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("bootstrap.servers=h:1", "bootstrap.servers cannot be set, the address"),
        ("auto.offset.reset=latest", "--on-gap says what to do"),
        ("bad.properties", "bad.properties, line 2: expected key=value"),
        ("=x", "expected key=value"),
    ],
)
def test_a_wrong_setting_is_named_and_no_value_is_shown(argument, message):
    Path("bad.properties").write_text("sasl.password=secret\nsecret\n")
    with pytest.raises(ConfigError, match=message) as caught:
        read_kafka_config([argument])
    assert "secret" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        read_kafka_config(["missing.properties"])


def test_settings_reach_librdkafka_and_secrets_are_not_shown(cluster, capsys, monkeypatch):
    cluster.fill("events", 20)
    given = ["stream", "run", "--source", f"kafka://{cluster.address}/events?partition=0&stop=end", "--target", "y",
             "--predictions", f"kafka://{cluster.address}/out", *SMALL]  # fmt: skip
    assert main([*given, "--kafka-config", "client.id=me", "--kafka-config", "socket.timeout.ms=5000"]) == 0
    capsys.readouterr()
    monkeypatch.setattr("moeapps.stream.io.kafka_client.WAIT", 0.5)
    for setting in ("sasl.passwort=topsecret", "security.protocol=topsecret", "socket.timeout.ms=topsecret"):
        assert main([*given, "--kafka-config", setting]) == 2
        error = capsys.readouterr().err
        assert "--kafka-config" in error
        assert setting.partition("=")[0] in error
        assert "topsecret" not in error
    # the mock cluster speaks no SASL, so the connection fails: the settings were used
    sasl = ["security.protocol=SASL_PLAINTEXT", "sasl.mechanism=PLAIN", "sasl.username=user", "sasl.password=topsecret"]
    assert main([*given, *(part for setting in sasl for part in ("--kafka-config", setting))]) == 2
    error = capsys.readouterr().err
    assert "no broker answers" in error
    assert "topsecret" not in error


def test_an_event_of_a_slow_topic_is_not_held_back(cluster):
    cluster.fill("events", 1)
    source = KafkaSource(f"kafka://{cluster.address}/events?partition=0")
    found = []
    while not found:
        found = source.read(256)
    cluster.fill("events", 1, 1)
    start = time.monotonic()
    while not (found := source.read(256)):
        pass
    assert time.monotonic() - start < 1
    source.close()
