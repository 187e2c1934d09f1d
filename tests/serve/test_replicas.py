"""`moeapps serve --workers 2`: two servers behind one port, one of which may be killed."""

import contextlib
import os
import signal
import threading
import time

import httpx
import numpy as np
import psutil
import pytest

import moeapps
from moeapps.cli import serve as serving
from moeapps.cli.main import main
from moeapps.core.errors import MoEAppsError
from moeapps.core.tabledata.scoring import predict_frame
from moeapps.serve.replicas import Replicas

from . import small_work
from .conftest import ROW, Server, people


@pytest.fixture(scope="module")
def two(table):
    with Server(table, "--workers", "2") as server:
        yield server


def replicas(server: Server) -> list[int]:
    """Process ids of the servers."""
    children = psutil.Process(server.process.pid).children()
    return [child.pid for child in children if "spawn_main" in " ".join(child.cmdline())]


def test_each_worker_computes_with_the_threads_that_were_named(stream):
    with Server(stream, "--workers", "2", "--threads", "3") as server:  # workers of a stream's model import no torch
        assert len(replicas(server)) == 2
        for pid in replicas(server):
            (worker,) = [p for p in psutil.Process(pid).children() if "spawn_main" in " ".join(p.cmdline())]
            assert worker.environ()["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("cores", "workers", "threads", "expected"),
    [(8, 1, None, "7"), (8, 2, None, "3"), (2, 4, None, "1"), (8, 2, 5, "5")],
)
def test_workers_share_the_cores_less_one_for_each_server(cores, workers, threads, expected, monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: cores)
    monkeypatch.setenv("OMP_NUM_THREADS", "")  # put back after the test, also where there was none
    monkeypatch.delenv("OMP_NUM_THREADS")
    serving._share_cores(workers, threads)
    assert os.environ["OMP_NUM_THREADS"] == expected


def test_the_environment_decides_unless_threads_are_named(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    serving._share_cores(2, None)
    assert os.environ["OMP_NUM_THREADS"] == "6"
    serving._share_cores(2, 1)
    assert os.environ["OMP_NUM_THREADS"] == "1"


def wait_for(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
def test_sixteen_clients_get_no_wrong_answer_though_a_worker_is_killed(two, table):
    frame = people(100).assign(visits=lambda f: f["visits"].astype(float))
    expected = predict_frame(moeapps.load(table), frame)["probability_yes"].to_numpy()
    rows = frame.to_dict("records")
    counts = {"right": 0, "wrong": 0, "failed": 0}
    started, lock = threading.Barrier(17), threading.Lock()

    def client(seed: int) -> None:
        rng = np.random.default_rng(seed)
        started.wait()
        for _ in range(15):
            chosen = rng.integers(0, len(rows), 2)
            try:
                answer = httpx.post(
                    f"{two.http.base_url}/predict", json={"rows": [rows[i] for i in chosen]}, timeout=30
                )
                found = [record["probability_yes"] for record in answer.json()["predictions"]]
                kind = "right" if np.allclose(found, expected[chosen], atol=1e-5) else "wrong"
            except (httpx.TransportError, KeyError):
                kind = "failed"
            with lock:
                counts[kind] += 1

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    started.wait()
    wait_for(lambda: counts["right"] > 20)
    os.kill(replicas(two)[0], signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert counts["wrong"] == 0
    assert counts["failed"] <= 16  # those that the killed one had
    assert counts["right"] + counts["failed"] == 16 * 15
    wait_for(lambda: len(replicas(two)) == 2)


@pytest.mark.slow
def test_all_workers_end_with_the_command(table):
    with Server(table, "--workers", "2") as server:
        processes = psutil.Process(server.process.pid).children(recursive=True)
        assert server.stop()[0] == 0
        wait_for(lambda: not any(process.is_running() for process in processes))


@pytest.mark.slow
def test_no_worker_is_left_where_the_command_is_killed(table):
    with Server(table, "--workers", "2") as server:
        processes = psutil.Process(server.process.pid).children(recursive=True)
        server.process.kill()
        wait_for(lambda: not any(running(process) for process in processes))


def running(process: psutil.Process) -> bool:
    """Whether a process runs and is not only waited for."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def test_a_process_that_is_killed_is_started_again():
    several = Replicas(2, small_work.wait)
    assert several.wait_ready() == {"number": 1}
    thread = threading.Thread(target=lambda: os.kill(several._processes[0].pid, signal.SIGKILL))
    thread.start()
    timer = threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGTERM))
    timer.start()
    several.run()
    timer.join()
    assert several.restarts == 1
    assert [process.exitcode for process in several._processes] == [-signal.SIGTERM, -signal.SIGTERM]


def test_a_process_that_cannot_begin_says_why_and_the_others_end():
    several = Replicas(2, small_work.fail)
    with pytest.raises(MoEAppsError, match="number 0 is not ready"):
        several.wait_ready()
    assert not any(process.is_alive() for process in several._processes)


def run_for_a_second(several: Replicas, caplog) -> list[str]:
    timer = threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGTERM))
    timer.start()
    several.run()
    timer.join()
    return sorted(record.getMessage() for record in caplog.records)


def test_a_reload_that_one_worker_was_asked_for_reaches_the_others(caplog):
    several = Replicas(3, small_work.reload)
    several.wait_ready()
    told = ["worker 1: asked to reload", "worker 2: asked to reload"]
    assert run_for_a_second(several, caplog) == told, "the first one has done so already"


def test_several_workers_do_not_learn(table, tmp_path, capsys):
    assert main(["serve", str(table), "--workers", "2", "--learn", str(tmp_path / "learned.safetensors")]) == 2
    assert "--learn needs --workers 1: each worker would learn only what it is sent" in capsys.readouterr().err


def test_a_model_that_cannot_be_loaded_is_told_once(tmp_path, capsys):
    assert main(["serve", str(tmp_path / "none.safetensors"), "--workers", "2", "--port", "0"]) == 1
    assert capsys.readouterr().err.count("none.safetensors does not exist") == 1


@pytest.mark.slow
def test_one_row_is_answered_by_either(two):
    answers = [httpx.post(f"{two.http.base_url}/predict", json={"rows": [ROW]}, timeout=60) for _ in range(6)]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
