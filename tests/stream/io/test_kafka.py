"""Kafka, against the mock cluster that librdkafka ships: a real protocol, brokers in this process."""

import json
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import moeapps
from moeapps.cli.main import main
from moeapps.core.errors import ConfigError
from moeapps.stream import DriftMoEClassifier, StreamRun, open_sink, open_source
from moeapps.stream.compiled.engine import tree_arrays
from moeapps.stream.io.kafka import KafkaSource
from tests.processes import Command

confluent_kafka = pytest.importorskip("confluent_kafka")

ROOT = Path(__file__).parents[3]


@pytest.fixture
def broker():
    """Producer that owns a mock cluster, and the cluster's address."""
    producer = confluent_kafka.Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "ignored:1"})
    known = producer.list_topics(timeout=10).brokers
    address = next(f"{broker.host}:{broker.port}" for broker in known.values())
    yield producer, address
    producer.flush(5)


def fill(producer, topic: str, n: int, partitions: int = 1, start: int = 0) -> None:
    rng = np.random.default_rng(start)
    for i in range(start, start + n):
        x = rng.normal(size=3).round(4).tolist()
        event = {"a": x[0], "b": x[1], "c": x[2], "y": int(x[0] > 0), "id": i}
        producer.produce(topic, json.dumps(event).encode(), partition=i % partitions)
        if i % 500 == 0:
            producer.poll(0)
    assert producer.flush(20) == 0


def everything(source, n: int) -> list[dict]:
    """Fields of all events up to the end, in reads of n; a read brings nothing where none comes for half a second."""
    found = []
    while source.endless:
        found += [event.fields for event in source.read(n)]
    source.close()
    return found


def small() -> DriftMoEClassifier:
    return DriftMoEClassifier(seed=1, n_experts=3)


def test_everything_of_a_topic_is_learned_and_predictions_are_sent(broker):
    producer, address = broker
    fill(producer, "events", 600)
    producer.produce("events", b"not json")
    producer.flush(5)
    source = open_source(f"kafka://{address}/events?stop=end&group=g")
    job = StreamRun(
        small(), source, "y", predictions=open_sink(f"kafka://{address}/predictions", "--predictions"), id_field="id"
    )
    job.run()
    job.close()
    assert (job.counts.events, job.counts.learned, job.counts.rejected) == (601, 600, 1)
    sent = everything(open_source(f"kafka://{address}/predictions?stop=end"), 200)
    sent.sort(key=lambda entry: entry["id"])  # the topic has several partitions
    assert [entry["id"] for entry in sent] == list(range(600))
    assert np.mean([entry["prediction"] == entry["target"] for entry in sent[100:]]) > 0.8


def test_partitions_can_be_read_one_by_one_or_together(broker):
    producer, address = broker
    fill(producer, "two", 40, partitions=2)
    ids = {}
    for query in ("?stop=end&partition=0", "?stop=end&partition=1", "?stop=end"):
        found = everything(open_source(f"kafka://{address}/two{query}"), 7)
        ids[query] = sorted(fields["id"] for fields in found)
    assert ids["?stop=end&partition=0"] == list(range(0, 40, 2))
    assert ids["?stop=end&partition=1"] == list(range(1, 40, 2))
    assert ids["?stop=end"] == list(range(40))


def test_the_offsets_of_the_checkpoint_decide_where_it_goes_on(broker, tmp_path):
    producer, address = broker
    fill(producer, "events", 1000)
    whole = StreamRun(small(), open_source(f"kafka://{address}/events?stop=end"), "y", tmp_path / "whole")
    whole.run()
    whole.close()
    for limit in (1, 300, None):
        source = open_source(f"kafka://{address}/events?stop=end&group=g")
        job = StreamRun(small(), source, "y", tmp_path / "parts", limit=limit)
        job.resume()
        job.run()
        source.close()
    assert job.model.n_seen_ == whole.model.n_seen_ == 1000
    assert job.position["0"] == 1000
    arrays, others = tree_arrays(job.model._engine), tree_arrays(whole.model._engine)
    assert all(np.array_equal(arrays[name], others[name], equal_nan=True) for name in arrays)


def test_a_killed_consumer_learns_every_event_exactly_once(broker, tmp_path):
    producer, address = broker
    n, kills = 10_000, 1
    fill(producer, "events", n)
    source = open_source(f"kafka://{address}/events?stop=end")
    whole = StreamRun(small(), source, "y", tmp_path / "whole")
    whole.run()
    source.close()
    command = [
        sys.executable, "-m", "moeapps", "stream", "run", "--source", f"kafka://{address}/events?stop=end&group=g",
        "--target", "y", "--set", "seed=1", "--set", "n_experts=3", "--every", "400",
        "--checkpoint", str(tmp_path / "killed"), "--resume",
    ]  # fmt: skip
    generator, target = random.Random(1), tmp_path / "killed" / "stream.safetensors"
    for _ in range(kills):
        before = target.stat().st_mtime_ns if target.exists() else 0
        process = Command(command[3:])
        while process.poll() is None and (not target.exists() or target.stat().st_mtime_ns == before):
            time.sleep(0.005)
        time.sleep(generator.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert moeapps.load(target).run["counts"]["events"] < n
    assert main(command[3:]) == 0
    found = moeapps.load(target)
    assert found.run["counts"]["learned"] == found.model.n_seen_ == n
    arrays, others = tree_arrays(found.model._engine), tree_arrays(whole.model._engine)
    assert all(np.array_equal(arrays[name], others[name], equal_nan=True) for name in arrays)


def test_a_missing_topic_partition_or_broker_is_named(broker, monkeypatch):
    producer, address = broker
    fill(producer, "one", 2)
    with pytest.raises(ConfigError, match="topic 'one' has 4 partitions, from 0"):
        open_source(f"kafka://{address}/one?partition=9")
    monkeypatch.setattr("moeapps.stream.io.kafka_client.WAIT", 0.5)
    with pytest.raises(ConfigError, match="no broker answers"):
        KafkaSource("kafka://127.0.0.1:1/x", {"socket.timeout.ms": 300})


def test_without_the_extra_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(ConfigError, match=r"kafka:// needs confluent_kafka: pip install 'moeapps\[kafka\]'"):
        open_source("kafka://host:1/topic")
