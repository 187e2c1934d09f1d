"""Workers that share partitions: what comes, goes, is lost, and is not written twice; Kafka is a stand-in here."""

import json
from collections import deque

import numpy as np
import pytest

import moeapps
from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.stream import DriftMoEClassifier, Event, StreamRun, group_scores, open_sink
from moeapps.stream.compiled.engine import tree_arrays
from moeapps.stream.group import GroupWorker
from moeapps.stream.ownership import OWNER, Ownership, TakenOver


class Source:
    """A partition in memory; the position is the next offset."""

    replayable = True

    def __init__(self, number, rows):
        self.number, self.rows, self.next, self.given, self.begun = number, rows, 0, deque(), False
        self.gaps = []

    @property
    def endless(self):
        return self.next < len(self.rows)

    @property
    def reached(self):
        return {str(self.number): self.next}

    @property
    def filled(self):
        return bool(self.given)

    def begin(self):
        self.begun, self.fetched = True, self.next

    def end(self):
        self.given.clear()

    def fetch(self, n):
        for offset in range(self.fetched, min(self.fetched + n, len(self.rows))):
            self.given.append(offset)
        self.fetched = min(self.fetched + n, len(self.rows))

    def read(self, n):
        found = []
        while self.given and len(found) < n:
            offset = self.given.popleft()
            self.next = offset + 1
            found.append(Event(self.reached, dict(self.rows[offset]), where=f"offset {offset}"))
        return found

    def seek(self, position):
        self.next = int((position or {}).get(str(self.number), 0))

    def close(self):
        pass


class Group:
    """Gives partitions when a test says so."""

    def __init__(self, topic):
        self.topic, self.sources = topic, {}

    def join(self, users):
        self.users = users

    def source(self, partition):
        self.sources[partition] = Source(partition, self.topic[partition])
        return self.sources[partition]

    def poll(self, n, wait):
        for source in self.sources.values():
            if source.begun:
                source.fetch(30)
        return 0

    def close(self):
        for partition in list(self.sources):
            self.users.go(partition)


@pytest.fixture(scope="module")
def topic():
    """Three partitions of 300 events, and one that is empty."""
    rng = np.random.default_rng(0)
    rows = [
        {"a": float(x), "b": float(z), "y": "up" if x > 0 else "down"}
        for x, z in rng.normal(size=(900, 2)).round(3).tolist()
    ]
    return {0: rows[:300], 1: rows[300:600], 2: rows[600:], 3: []}


def worker_of(topic, folder, every=100, target="y") -> GroupWorker:
    def make_run(source, place):
        sink = open_sink(str(place / "predictions.ndjson"), "--predictions")
        model = DriftMoEClassifier(seed=1, n_experts=2)
        return StreamRun(model, source, target, place, every=every, predictions=sink)

    worker = GroupWorker(Group(topic), folder, make_run)
    worker.begin()
    return worker


def give(worker, *partitions):
    for partition in partitions:
        worker.come(partition)


def finish(*workers, partitions=(0, 1, 2, 3)):
    for _ in range(100):
        if {partition for worker in workers for partition in worker.done} >= set(partitions):
            break
        for worker in workers:
            worker.step()
    for worker in workers:
        worker.close()


def content(folder, topic):
    """Models, scores and predictions of all partitions."""
    found = {}
    for partition in topic:
        checkpoint = moeapps.load(folder / f"partition-{partition}" / "stream.safetensors")
        predictions = folder / f"partition-{partition}" / "predictions.ndjson"
        found[partition] = (
            {} if checkpoint.model._engine is None else tree_arrays(checkpoint.model._engine),
            checkpoint.run["scores"],
            checkpoint.run["position"],
            predictions.read_bytes() if predictions.exists() else b"",
        )
    return found


def assert_equal(folder, other, topic):
    for mine, theirs in zip(content(folder, topic).values(), content(other, topic).values(), strict=True):
        assert mine[1:] == theirs[1:]
        assert all(np.array_equal(mine[0][name], theirs[0][name], equal_nan=True) for name in theirs[0])
    assert group_scores(folder).as_dict() == group_scores(other).as_dict()


@pytest.fixture(scope="module")
def whole(topic, tmp_path_factory):
    """Folder of one worker that was never disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    worker = worker_of(topic, folder)
    give(worker, 0, 1, 2, 3)
    finish(worker)
    return folder


def test_each_partition_has_a_model_of_its_own_and_is_learned_to_its_end(topic, whole):
    found = group_scores(whole)
    assert [entry["counts"]["learned"] for entry in found.partitions.values()] == [300, 300, 300, 0]
    assert found.counts.learned == found.scores.n == 900


def test_a_partition_that_goes_to_another_worker_goes_on_there(topic, whole, tmp_path):
    first, second = worker_of(topic, tmp_path), worker_of(topic, tmp_path)
    give(first, 0, 1, 2, 3)
    first.step()
    first.step()
    for partition in (1, 2):
        first.go(partition)
        give(second, partition)
    finish(first, second)
    assert_equal(tmp_path, whole, topic)


def test_a_worker_that_is_lost_without_saving_changes_nothing(topic, whole, tmp_path):
    first, second = worker_of(topic, tmp_path), worker_of(topic, tmp_path)
    give(first, 0, 1, 2, 3)
    for _ in range(6):
        first.step()
    assert all(run.counts.events > 100 for number, run in first.runs.items() if number < 3)
    for partition in list(first.runs):
        first.lost(partition)  # as its death leaves it: what it has learned since the checkpoint is gone
    give(second, 0, 1, 2, 3)
    finish(second)
    assert_equal(tmp_path, whole, topic)


def test_a_worker_waits_until_the_folder_is_free(topic, whole, tmp_path, monkeypatch):
    monkeypatch.setattr("moeapps.stream.group.PATIENCE", 0.0)
    stalled, successor = worker_of(topic, tmp_path), worker_of(topic, tmp_path)
    give(stalled, 0)
    stalled.step()
    give(successor, 0)
    successor.step()
    assert successor.runs == {}
    assert "partition 0 waits: " in successor.notes[0]
    assert "is being written by another process" in successor.notes[0]
    stalled.lost(0)
    finish(successor, partitions=(0,))
    assert successor.notes[1:] == []


def test_a_stalled_worker_never_overwrites_the_checkpoint_of_its_successor(topic, whole, tmp_path):
    stalled, successor = worker_of(topic, tmp_path), worker_of(topic, tmp_path)
    give(stalled, 0, 1, 2, 3)
    stalled.step()
    for owner in stalled._owners.values():
        owner.release()  # as a network disk takes locks from a machine that it cannot reach
    for run in stalled.runs.values():
        run._release()
    give(successor, 0, 1, 2, 3)
    successor.step()
    before = (tmp_path / "partition-0" / "stream.safetensors").exists()
    with pytest.raises(TakenOver, match="was taken over by owner 2; this is owner 1"):
        stalled.runs[0].save()
    assert (tmp_path / "partition-0" / "stream.safetensors").exists() == before
    for partition in list(stalled.runs):
        stalled.go(partition)
    assert "taken over by owner 2" in stalled.notes[0]
    finish(successor)
    for partition in (0, 1, 2):
        run = moeapps.load(tmp_path / f"partition-{partition}" / "stream.safetensors").run
        assert run["scores"] == moeapps.load(whole / f"partition-{partition}" / "stream.safetensors").run["scores"]


def test_an_error_names_the_partition_and_the_others_can_still_be_saved(topic, tmp_path):
    worker = worker_of(topic, tmp_path, every=1000)
    give(worker, 0, 1)
    worker.step()

    def read(n):
        raise DataError("events were lost")

    worker.runs[1].source.read = read
    with pytest.raises(DataError, match=r"^partition 1: events were lost"):
        worker.step()
    worker.close()
    assert group_scores(tmp_path).partitions[0]["counts"]["learned"] > 0


def test_after_a_misspelled_target_the_right_one_finds_nothing_in_its_way(topic, whole, tmp_path):
    wrong = worker_of(topic, tmp_path, every=1000, target="lable")
    give(wrong, 0, 1, 2)
    with pytest.raises(ConfigError, match="partition 0: --target lable: "):
        finish(wrong)
    wrong.close()
    right = worker_of(topic, tmp_path)
    give(right, 0, 1, 2, 3)
    finish(right)
    assert_equal(tmp_path, whole, topic)


def test_owners_have_growing_numbers_and_one_at_a_time(tmp_path):
    first, second = Ownership(tmp_path), Ownership(tmp_path)
    assert first.take() is None
    assert "is being written by another process" in second.take()
    first.check()
    first.release()
    assert second.take() is None
    assert (first.number, second.number) == (1, 2)
    second.release()
    assert json.loads((tmp_path / OWNER).read_bytes())["number"] == 2


def test_a_damaged_number_of_the_owner_is_named_and_the_lock_is_given_back(tmp_path):
    (tmp_path / OWNER).write_text("{}")
    for _ in range(2):
        with pytest.raises(FileFormatError, match=r"owner.json is damaged .* stop all workers and remove it"):
            Ownership(tmp_path).take()
