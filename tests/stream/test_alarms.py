"""Alarms: when they come, what they start, and that they never stop a run."""

import json
import logging
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moeapps.cli.main import main
from moeapps.core.errors import ConfigError
from moeapps.stream import DriftMoEClassifier, DriftMoERegressor, FrameSource, StreamRun
from moeapps.stream.alarms import DriftAlarm, ErrorWatch
from moeapps.stream.hooks import AlarmHook
from moeapps.stream.io.sinks import LinesSink

ALARM = DriftAlarm(1, 500, "line 500", None, "error rate", 0.1, 0.5, 3)


def table(n: int, drifts: tuple[int, ...], numbers: bool = False) -> pd.DataFrame:
    """Rows whose concept is inverted at each drift."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(n, 2)).round(3), columns=["a", "b"])
    sign = np.where(np.searchsorted(drifts, np.arange(n), side="right") % 2, -1, 1)
    y = sign * (2 * frame["a"] + frame["b"]) + rng.normal(0, 0.2, n)
    frame["y"] = y if numbers else np.where(y > 0, "up", "down")
    return frame


def run_over(frame: pd.DataFrame, model, **arguments) -> tuple[StreamRun, list[DriftAlarm]]:
    found: list[DriftAlarm] = []
    job = StreamRun(model, FrameSource(frame), "y", on_drift=found.append, **arguments)
    job.run()
    job.close()
    return job, found


@pytest.mark.parametrize("numbers", [False, True])
def test_an_alarm_comes_soon_after_each_drift_and_not_before(numbers):
    model = (
        DriftMoERegressor(seed=0, n_experts=2) if numbers else DriftMoEClassifier(seed=0, experts=["bayes", "linear"])
    )
    drifts = (1500, 3000)
    _, alarms = run_over(table(4000, drifts, numbers), model)
    places = [alarm.instance for alarm in alarms]
    for drift in drifts:
        assert any(drift < place <= drift + 200 for place in places), places
    assert all(any(drift < place <= drift + 500 for drift in drifts) for place in places), places
    assert all(alarm.after > alarm.before for alarm in alarms)


def test_false_alarms_of_errors_that_do_not_change_are_few():
    alarms = 0
    for seed in range(20):
        watch = ErrorWatch()
        alarms += sum(watch.update(float(x)) is not None for x in np.random.default_rng(seed).random(5000) < 0.2)
    assert alarms <= 2  # of 100,000 events


def test_falling_errors_are_no_alarm():
    watch = ErrorWatch()
    errors = np.random.default_rng(0).random(4000) < np.where(np.arange(4000) < 2000, 0.5, 0.1)
    assert not any(watch.update(float(error)) for error in errors)


def test_a_watch_that_was_restored_alarms_at_the_same_place():
    errors = [float(i >= 700 or i % 7 == 0) for i in range(1200)]
    one, two = ErrorWatch(), ErrorWatch()
    for error in errors[:500]:
        one.update(error)
    two.restore(json.loads(json.dumps(one.state())))
    places = [[i for i in range(500, 1200) if watch.update(errors[i]) is not None] for watch in (one, two)]
    assert places[0] == places[1] != []


def test_alarms_do_not_depend_on_the_batch(tmp_path):
    frame = table(2000, (1500,))
    for batch in (1, 256):
        sink = LinesSink(tmp_path / f"{batch}.ndjson")
        run_over(frame, DriftMoEClassifier(seed=0, n_experts=2), alarms=sink, batch=batch)
    first, second = ((tmp_path / f"{batch}.ndjson").read_text() for batch in (1, 256))
    assert first == second
    assert json.loads(first.splitlines()[0])["metric"] == "error rate"


def test_what_on_drift_raises_is_logged_and_the_run_goes_on(caplog):
    def broken(alarm: DriftAlarm) -> None:
        raise RuntimeError("no")

    job = StreamRun(
        DriftMoEClassifier(seed=0, experts=["bayes"]), FrameSource(table(2000, (1500,))), "y", on_drift=broken
    )
    job.run()
    assert job.counts.learned == 2000
    assert "on_drift failed at alarm 1" in caplog.text


def test_a_command_gets_the_alarm_on_standard_input_and_in_its_environment(tmp_path):
    hook = AlarmHook(f"sh -c 'cat > {tmp_path}/in; echo $MOEAPPS_ALARM_INSTANCE > {tmp_path}/env'")
    hook(ALARM)
    hook.close()
    assert json.loads((tmp_path / "in").read_text()) == ALARM.as_dict()
    assert (tmp_path / "env").read_text() == "500\n"
    assert (hook.delivered, hook.failed) == (1, 0)


@pytest.mark.parametrize(
    ("command", "seconds", "message"),
    [("sh -c 'echo broken >&2; exit 7'", 60.0, "exit status 7: broken"), ("sleep 9", 0.1, "not done after")],
)
def test_a_command_that_fails_or_hangs_is_logged(command, seconds, message, caplog):
    caplog.set_level(logging.ERROR)
    hook = AlarmHook(command, seconds)
    hook(ALARM)
    hook.close()
    assert message in caplog.text
    assert hook.failed == 1


def test_a_url_gets_the_alarm_as_json():
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.handle_request).start()
    hook = AlarmHook(f"http://127.0.0.1:{server.server_port}/alarm")
    hook(ALARM)
    hook.close()
    server.server_close()
    assert got == [ALARM.as_dict()]


def test_a_command_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="there is no command 'no-such-thing'"):
        AlarmHook("no-such-thing --now")


def test_the_command_line_writes_alarms_ends_at_one_and_serves_metrics(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table(3000, (1500,)).to_csv("data.csv", index=False)
    pages = []

    def look(run: StreamRun) -> None:
        address = next(note for note in (*run.notes, *pages) if "metrics on" in note).split(" ")[-1]
        pages.append(f"metrics on {address}")
        pages.append(urllib.request.urlopen(address, timeout=10).read().decode())

    monkeypatch.setattr("moeapps.cli.stream_job.Reporter", lambda console: look)
    monkeypatch.setattr("moeapps.cli.stream_job.Notes", lambda job, tell: lambda: None)
    given = ["stream", "run", "--source", "data.csv", "--target", "y", "--set", "n_experts=2", "--plain"]
    assert main([*given, "--checkpoint", "c", "--drift-exit", "--metrics-port", "0", "--window", "200"]) == 4
    alarms = [json.loads(line) for line in Path("c/alarms.ndjson").read_text().splitlines()]
    assert alarms[0]["number"] == 1
    assert 1500 < alarms[0]["instance"] < 1700
    assert "1 drift alarm" in capsys.readouterr().out
    page = pages[-1]
    for name in (
        'moeapps_score{metric="accuracy",over="window"}', "moeapps_drift_alarms_total", "moeapps_classes 2.0",
        "moeapps_stream_lag", "moeapps_stream_rejected 0.0", "moeapps_stream_prediction_seconds_p99",
        "moeapps_stream_checkpoint_time_seconds", "moeapps_stream_events",
    ):  # fmt: skip
        assert name in page
