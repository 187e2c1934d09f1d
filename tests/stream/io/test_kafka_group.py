"""Workers of a group at the mock cluster that librdkafka ships, which coordinates groups as a broker does."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import moeapps
from moeapps.core.errors import DataError
from moeapps.stream import DriftMoEClassifier, StreamRun, group_scores
from moeapps.stream.compiled.engine import tree_arrays
from moeapps.stream.group import GroupWorker
from moeapps.stream.io.kafka import KafkaSource
from moeapps.stream.io.kafka_group import KafkaGroup

confluent_kafka = pytest.importorskip("confluent_kafka")

ROOT = Path(__file__).parents[3]
SETTINGS = {"session.timeout.ms": 4000, "heartbeat.interval.ms": 200}
N, PARTITIONS = 2400, 4


@pytest.fixture(scope="module")
def cluster():
    """Address of a topic of four partitions, with as many events in each; and the producer."""
    producer = confluent_kafka.Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "ignored:1"})
    broker = next(iter(producer.list_topics(timeout=10).brokers.values()))
    rng = np.random.default_rng(0)
    for i in range(N):
        a, b = rng.normal(size=2).round(4).tolist()
        producer.produce("events", json.dumps({"a": a, "b": b, "y": int(a > 0)}).encode(), partition=i % PARTITIONS)
    assert producer.flush(20) == 0
    return f"kafka://{broker.host}:{broker.port}/events", producer


def run_of(source, folder) -> StreamRun:
    return StreamRun(DriftMoEClassifier(seed=1, n_experts=2), source, "y", folder, every=150, batch=32)


def worker_of(address, group, folder) -> GroupWorker:
    worker = GroupWorker(KafkaGroup(f"{address}?stop=end", group, SETTINGS), folder, run_of, batch=32)
    worker.begin()
    return worker


def step(*workers, until, seconds=60.0):
    """Rounds of these workers in turns, until something is so."""
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        for worker in workers:
            worker.step()


def die(worker):
    """End as after SIGKILL: nothing is saved."""
    worker.go = worker.lost
    worker.close()


@pytest.fixture(scope="module")
def alone(cluster, tmp_path_factory):
    """Folder of one run per partition that was never disturbed."""
    folder = tmp_path_factory.mktemp("alone")
    for partition in range(PARTITIONS):
        source = KafkaSource(f"{cluster[0]}?partition={partition}&stop=end")
        run = run_of(source, folder / f"partition-{partition}")
        run.run()
        run.close()
    return folder


def assert_equal(folder, alone):
    for partition in range(PARTITIONS):
        mine, theirs = (
            moeapps.load(place / f"partition-{partition}" / "stream.safetensors") for place in (folder, alone)
        )
        assert mine.run["position"] == theirs.run["position"] == {str(partition): N // PARTITIONS}
        assert mine.run["scores"] == theirs.run["scores"]
        arrays, others = tree_arrays(mine.model._engine), tree_arrays(theirs.model._engine)
        assert all(np.array_equal(arrays[name], others[name], equal_nan=True) for name in others)
    assert group_scores(folder).as_dict() == group_scores(alone).as_dict()
    assert group_scores(folder).counts.learned == N


def test_after_the_death_of_a_worker_its_successor_learns_every_event_exactly_once(cluster, alone, tmp_path):
    first = worker_of(cluster[0], "death", tmp_path)
    step(first, until=lambda: any(150 < run.counts.events < 590 for run in first.runs.values()))
    die(first)
    second = worker_of(cluster[0], "death", tmp_path)
    step(second, until=lambda: len(second.done) == PARTITIONS)
    second.close()
    assert_equal(tmp_path, alone)


@pytest.mark.slow
def test_a_worker_that_is_added_takes_partitions_with_their_models(cluster, alone, tmp_path):
    first = worker_of(cluster[0], "addition", tmp_path)
    step(first, until=lambda: any(100 < run.counts.events < 590 for run in first.runs.values()))
    second = worker_of(cluster[0], "addition", tmp_path)
    for worker in (first, second):
        worker.batch = 1  # so that there is something left when the group has given partitions out
    step(first, second, until=lambda: len(second.runs) == PARTITIONS // 2)
    assert set(first.runs) | set(second.runs) == set(range(PARTITIONS))
    for worker in (first, second):
        worker.batch = 32
    step(first, second, until=lambda: len(first.done | second.done) == PARTITIONS)
    first.close()
    second.close()
    assert_equal(tmp_path, alone)


def test_events_that_are_lost_end_the_worker_and_name_the_partition(cluster, tmp_path):
    address, _ = cluster
    source = KafkaSource(f"{address}?partition=2&stop=end")
    run = run_of(source, tmp_path / "partition-2")
    run.run()
    run.close()
    found = moeapps.load(tmp_path / "partition-2" / "stream.safetensors")
    found.run["mark"]["offsets"], found.run["mark"]["last"] = {"2": 9999}, {}
    found.save(tmp_path / "partition-2" / "stream.safetensors")
    worker = worker_of(address, "lost", tmp_path)
    with pytest.raises(DataError, match="partition 2: Kafka topic 'events', partition 2: offset 9999 comes next"):
        step(worker, until=lambda: False)
    worker.close()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["kill", "addition"])
def test_processes_that_are_killed_and_added_change_nothing(what, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    sys.modules.pop("stream_group", None)
    import stream_group

    found = stream_group.measure(what, 1, 200.0)
    assert found["learned"] == found["events"]
    assert found["equal merged scores"]
    for name in ("equal models", "equal scores", "equal predictions"):
        assert found[name] == PARTITIONS
