"""``moeapps stream run --workers``: what is refused, and what the command does when workers die; processes stand in."""

import argparse
import json
import signal
from multiprocessing import Pipe

import pytest

from moeapps.cli import stream_group
from moeapps.cli.main import main
from moeapps.core.errors import ConfigError, DataError
from moeapps.stream.io.kafka_group import KafkaGroup

ADDRESS = "kafka://127.0.0.1:1/topic"


def given(*more, source=ADDRESS, group=("--group", "g"), folder=("--checkpoint", "folder")):
    return ["stream", "run", "--source", source, "--target", "y", "--workers", "2", *group, *folder, *more]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            given(source="events.csv", group=()),
            "events.csv is not kafka://host:port/topic; only Kafka gives partitions",
        ),
        (given(source=f"{ADDRESS}?partition=1"), "names partition 1, but the group gives partitions out"),
        (given(group=()), "--workers needs --group NAME"),
        (given(folder=()), "--workers needs --checkpoint FOLDER, on storage that all workers share"),
        (given(source=f"{ADDRESS}?group=h"), "--group g: the address has ?group=h; name one of them"),
        (given("--limit", "5"), "--limit cannot be used with --workers: each partition has events of its own"),
        (given("--metrics-port", "9101"), "--metrics-port cannot be used with --workers"),
        (given("--follow"), "--follow cannot be used with --workers: it is for files"),
        (given("--predictions", "out/p.csv"), "give a name without a folder, such as p.csv"),
        (given("--predictions", "p.txt"), "--predictions p.txt: expected a .csv, .ndjson"),
        (given("--model", "driftmo"), "did you mean 'driftmoe'?"),
        (given("--set", "n_expert=2"), "did you mean 'n_experts'?"),
        (given("--drop", "y"), "--drop y: it is the target, no feature"),
        (given("--workers", "0"), "--workers must be at least 1, got 0"),
        (given("--kafka-config", "group.instance.id=a"), "group.instance.id=...: it cannot be set"),
    ],
)
def test_options_that_do_not_go_with_workers_are_refused(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_group_without_kafka_is_refused(capsys):
    assert main(["stream", "run", "--source", "a.csv", "--target", "y", "--group", "g"]) == 2
    assert "--group has no effect: a.csv is not kafka://host:port/topic" in capsys.readouterr().err


def test_a_broker_that_does_not_answer_is_named(monkeypatch):
    pytest.importorskip("confluent_kafka")
    monkeypatch.setattr("moeapps.stream.io.kafka_client.WAIT", 0.3)
    with pytest.raises(ConfigError, match="no broker answers"):
        KafkaGroup(ADDRESS, "g", {"socket.timeout.ms": 300})


class Process:
    def __init__(self):
        self.alive, self.killed = True, False

    def is_alive(self):
        return self.alive

    def kill(self):
        self.alive, self.killed = False, True

    def join(self):
        pass


class Worker:
    """A worker that does what ``life`` says, once per round of the command."""

    lives: list
    made: list

    def __init__(self, number, options, ends):
        self.number, self.status, self.progress, self.refused, self.heard = number, {}, False, None, float("inf")
        self.pipe, self._other = Pipe()
        self.process, self.stopped = Process(), False
        self._life = Worker.lives.pop(0) if Worker.lives else []
        Worker.made.append(self)

    def receive(self):
        for change in self._life[:1]:
            for name, value in change.items():
                setattr(self, name, value)
            self.process.alive = change.get("alive", True)
        self._life = self._life[1:]
        return [], False

    def stop(self):
        self.stopped, self.process.alive, self.reason = True, False, "exit status 0"

    def why(self):
        return getattr(self, "reason", "SIGKILL")


@pytest.fixture
def team(monkeypatch, tmp_path):
    """Makes a command whose workers have these lives."""
    monkeypatch.setattr(stream_group, "Worker", Worker)
    monkeypatch.setattr(stream_group, "wait", lambda pipes, timeout: None)
    monkeypatch.setattr(stream_group, "LONGEST_PAUSE", 0.0)

    def make(*lives, workers=1, ends=None):
        Worker.lives, Worker.made = list(lives), []
        options = argparse.Namespace(workers=workers, checkpoint=str(tmp_path), plain=True, model="driftmoe")
        return stream_group.Team(options, [0, 1], ends, 300.0)

    return make


def entry(events=10, done=False):
    return {"events": events, "scored": events, "score": 0.5, "done": done}


DEATH = [{"alive": False}]


def test_a_worker_that_dies_is_started_again(team, capsys):
    made = team(DEATH, [{"status": {0: entry(done=True), 1: entry(done=True)}}], ends={0: 10, 1: 10})
    assert made.run() == 0
    assert [worker.number for worker in Worker.made] == [1, 1]
    assert Worker.made[1].stopped
    assert "worker 1 died (SIGKILL); it is started again in 0 s" in capsys.readouterr().out


def test_a_worker_that_dies_again_and_again_ends_the_run(team):
    made = team(*[DEATH] * 9)
    with pytest.raises(DataError, match="worker 1 died 5 times in a row before it had saved anything: SIGKILL"):
        made.run()
    assert len(Worker.made) == 5


def test_deaths_after_something_was_saved_do_not_add_up(team):
    saved = [{"progress": True}, *DEATH]
    made = team(*[saved] * 9, [{"status": {0: entry(done=True), 1: entry(done=True)}}], ends={0: 1, 1: 1})
    assert made.run() == 0
    assert len(Worker.made) == 10


def test_an_error_that_would_come_again_ends_the_run_after_the_others_have_saved(team):
    refused = [{"refused": ConfigError("partition 0: --target lable: no such field"), "alive": False}]
    made = team(refused, [], workers=2)
    with pytest.raises(ConfigError, match="worker 1, partition 0: --target lable"):
        made.run()
    assert Worker.made[1].stopped


def test_partitions_of_another_machine_end_by_their_checkpoints(team, monkeypatch):
    offsets = {1: iter([3, 8])}
    monkeypatch.setattr(stream_group, "offsets_of", lambda folder, partition: next(offsets[partition]))
    made = team([{"status": {0: entry(done=True)}}], ends={0: 5, 1: 8})
    looked = iter(range(0, 1000, 5))
    monkeypatch.setattr(stream_group.time, "monotonic", lambda: float(next(looked)))
    assert made.run() == 0


def test_a_signal_ends_all_workers_after_they_have_saved(team, capsys):
    made = team([], [], workers=2)
    monkey = iter([None, None, signal.SIGTERM])
    made_line = made.line

    def line():
        if next(monkey, None) is not None:
            signal.raise_signal(signal.SIGTERM)
        return made_line()

    made.line = line
    assert made.run() == 0
    assert all(worker.stopped for worker in Worker.made)
    assert "stopped by SIGTERM; saved to" in capsys.readouterr().out


def test_the_status_is_one_line_of_all_partitions(team):
    made = team([], [], workers=2)
    for number in (1, 2):
        made._start(number)
    made.workers[1].status = {number: entry(1000 * number) for number in range(10)}
    line = made.line()
    assert line.startswith("45,000 events, accuracy 0.5000, ")
    assert "worker 1 (0: 0, 1: 1,000," in line
    assert "7: 7,000, 2 more), worker 2 (no partition)" in line
    assert json.dumps(line).count("\\n") == 0
