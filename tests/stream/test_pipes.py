"""A slow pipe: every line is an event at once, and a signal ends the run within a second (S5)."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import moeapps
from moeapps.cli.main import main

SMALL = ["--id", "id", "--set", "seed=1", "--set", "n_experts=2", "--plain"]
LINE = '{"a": 1.5, "id": "%s", "y": "u"}\n'


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # compiled before the clock runs
    Path("warm.ndjson").write_text("".join(LINE % i for i in range(5)))
    assert main(["stream", "run", "--source", "warm.ndjson", "--target", "y", *SMALL]) == 0


def predictions() -> list[str]:
    path = Path("p.ndjson")
    return [json.loads(line)["id"] for line in path.read_text().splitlines()] if path.exists() else []


def send_and_signal(descriptor: int, number: int, times: dict) -> None:
    """Send lines one by one, each once the one before is predicted, then wait, then send a signal."""
    for name in ("one", "two", "three"):
        start = time.monotonic()
        os.write(descriptor, (LINE % name).encode())
        while name not in predictions() and time.monotonic() - start < 5:
            time.sleep(0.01)
        times[name] = time.monotonic() - start
    os.write(descriptor, b'{"a": 1.5, "id": "ha')  # half a line
    time.sleep(0.3)  # the run waits for more
    times["signal"] = time.monotonic()
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
@pytest.mark.parametrize("kind", ["stdin", "fifo"])
def test_a_slow_pipe_is_answered_at_once_and_a_signal_ends_the_run(kind, number, status, monkeypatch, capsys):
    times: dict[str, float] = {}
    if kind == "stdin":
        read, write = os.pipe()
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=os.fdopen(read, "rb")))
        source = "-"
    else:
        os.mkfifo("events.ndjson")
        write = os.open("events.ndjson", os.O_RDWR)
        source = "events.ndjson"
    sender = threading.Thread(target=send_and_signal, args=(write, number, times))
    sender.start()
    given = ["stream", "run", "--source", source, "--target", "y", "--checkpoint", "c", "--predictions", "p.ndjson"]
    assert main([*given, *SMALL]) == status
    assert time.monotonic() - times["signal"] < 4  # a second where no other process is at work
    sender.join()
    os.close(write)
    assert max(times["two"], times["three"]) < 4  # the first one compiles what is left
    assert f"stopped by {signal.Signals(number).name}; saved" in capsys.readouterr().out
    assert moeapps.load("c/stream.safetensors").run["counts"]["learned"] == 3


def test_standard_input_that_is_closed_or_empty_ends_the_run(monkeypatch, capsys):
    given = ["stream", "run", "--source", "-", "--target", "y", *SMALL]
    monkeypatch.setattr(sys, "stdin", None)
    assert main(given) == 2
    assert "standard input is closed" in capsys.readouterr().err
    with open("/dev/null", "rb") as nothing:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=nothing))
        assert main(given) == 0


def test_the_last_line_of_a_pipe_needs_no_newline(monkeypatch):
    read, write = os.pipe()
    os.write(write, (LINE % 1 + LINE % 2).encode().rstrip())
    os.close(write)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=os.fdopen(read, "rb")))
    assert main(["stream", "run", "--source", "-", "--target", "y", "--predictions", "p.ndjson", *SMALL]) == 0
    assert predictions() == ["1", "2"]


@pytest.mark.slow
def test_a_process_at_a_pipe_answers_and_stops():
    process = subprocess.Popen(
        [sys.executable, "-m", "moeapps", "stream", "run", "--source", "-", "--target", "y", "--checkpoint", "c",
         "--predictions", "p.ndjson", *SMALL],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(moeapps.__file__).parents[1])},
    )  # fmt: skip
    for name in ("one", "two"):
        process.stdin.write((LINE % name).encode())
        process.stdin.flush()
        while name not in predictions():
            time.sleep(0.01)
            assert process.poll() is None
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0
    assert time.monotonic() - start < 3  # the end of the interpreter takes its time
    process.stdin.close()
    process.stdout.close()
