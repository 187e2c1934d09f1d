"""`moeapps stream run`: killed, stopped, fed with garbage (S7-S9), and what it says about wrong input."""

import io
import json
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import moeapps
from moeapps.cli.main import main
from moeapps.stream import DriftMoEClassifier, FrameSource, LinesSink, StreamRun
from moeapps.stream.compiled.engine import tree_arrays
from tests.kills import make_csv, make_events, same_outcome, stream_command, stream_killed
from tests.processes import Command

TREES = ["--set", "experts=null", "--set", "router_hidden=[8, 8]"]
"""The mixture of 0.1."""


def test_killed_and_resumed_it_ends_as_if_it_had_not_been(tmp_path):
    assert stream_killed(tmp_path, kills=1, n=10_000, seconds=0.1)["kills"] == 1


@pytest.mark.slow
def test_killed_among_late_labels_that_come_through_a_pipe_it_ends_as_if_it_had_not_been(tmp_path):
    assert stream_killed(tmp_path, kills=1, n=6_000, seconds=0.1, source="events.ndjson", piped=True)["kills"] == 1


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("model", "n"), [([], 150_000), (TREES, 300_000)], ids=["defaults", "trees"])
def test_killed_twenty_times(model, n, tmp_path):
    assert stream_killed(tmp_path, kills=20, n=n, seconds=0.15, model=model)["kills"] == 20


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("source", ["events.csv", "events.ndjson"])
def test_killed_twenty_times_among_late_labels_repeats_and_broken_events(source, tmp_path):
    assert stream_killed(tmp_path, kills=20, n=60_000, seconds=0.15, source=source)["kills"] == 20


@pytest.mark.parametrize("model", [[], TREES], ids=["defaults", "trees"])
@pytest.mark.parametrize("source", ["events.csv", "events.ndjson"])
def test_stopped_among_late_labels_repeats_and_broken_events_it_goes_on_as_if_it_had_not_been(source, model, tmp_path):
    make_events(tmp_path / source, 2000)
    assert main(stream_command(tmp_path, "whole", "--id", "id", *model, source=source)) == 0
    for limit in (1, 333, 334, 1500, 5000):
        more = ["--id", "id", *model, "--resume", "--limit", str(limit)]
        given = stream_command(tmp_path, "parts", *more, source=source)
        assert main([*given, "--batch", str(limit % 97 + 1)]) == 0
    same_outcome(tmp_path, "whole", "parts")
    rejects = [(tmp_path / name / "rejects.ndjson").read_bytes() for name in ("whole", "parts")]
    assert rejects[0] == rejects[1]


def test_sigterm_finishes_the_batch_saves_and_exits_with_0(tmp_path):
    make_csv(tmp_path / "data.csv", 12_000)
    process = Command(stream_command(tmp_path, "stopped"))
    while not (tmp_path / "stopped" / "stream.safetensors").exists():
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "stopped by SIGTERM; saved" in out
    found = moeapps.load(tmp_path / "stopped" / "stream.safetensors")
    assert 0 < found.run["counts"]["events"] < 12_000
    assert found.model.n_seen_ == found.run["counts"]["learned"]
    assert main(stream_command(tmp_path, "stopped", "--resume")) == 0
    assert main(stream_command(tmp_path, "whole")) == 0
    same_outcome(tmp_path, "whole", "stopped")


def run_over(frame: pd.DataFrame, tmp_path: Path, model=None, **arguments) -> StreamRun:
    model = model or DriftMoEClassifier(seed=0, n_experts=3)
    job = StreamRun(model, FrameSource(frame), "y", rejects=LinesSink(tmp_path / "rejects.ndjson"), **arguments)
    job.run()
    job.close()
    return job


def test_the_size_of_the_batches_does_not_matter(tmp_path):
    frame = make_csv(tmp_path / "data.csv", 400)
    jobs = [run_over(frame, tmp_path, batch=batch) for batch in (1, 256)]
    arrays, others = (tree_arrays(job.model._engine) for job in jobs)
    assert all(np.array_equal(arrays[name], others[name], equal_nan=True) for name in arrays)
    assert jobs[0].scores.as_dict() == jobs[1].scores.as_dict()


def test_events_that_cannot_be_learned_are_put_aside_and_the_stream_goes_on(tmp_path):
    frame = make_csv(tmp_path / "data.csv", 500).astype(object)
    frame.loc[100, "a"] = "abc"
    frame.loc[200, "y"] = 7
    frame.loc[300, "b"] = float("inf")
    job = run_over(frame, tmp_path)
    assert (job.counts.events, job.counts.learned, job.counts.rejected) == (500, 497, 3)
    assert job.model.n_seen_ == 497
    rejects = [json.loads(line) for line in (tmp_path / "rejects.ndjson").read_text().splitlines()]
    assert [reject["event"] for reject in rejects] == ["row 101", "row 201", "row 301"]
    assert "'abc'" in rejects[0]["reason"]
    assert "y is 7 (numbers), but the labels so far are text" in rejects[1]["reason"]
    assert rejects[0]["content"]["city"] in ("Ulm", "Bonn", "Kiel")


def test_an_event_that_comes_twice_is_learned_once_also_after_a_restart(tmp_path):
    frame = make_csv(tmp_path / "data.csv", 400)
    frame["id"] = np.arange(400)
    doubled = frame.loc[np.repeat(np.arange(400), 2)].reset_index(drop=True)
    first = run_over(doubled, tmp_path, id_field="id", checkpoint=tmp_path / "c", limit=401)
    assert (first.counts.learned, first.counts.repeated) == (201, 200)
    second = StreamRun(
        DriftMoEClassifier(), FrameSource(doubled), "y", id_field="id", checkpoint=tmp_path / "c"
    )  # fmt: skip
    assert second.resume()
    second.run()
    assert (second.counts.learned, second.counts.repeated) == (400, 400)
    assert second.model.n_seen_ == 400
    once = run_over(frame, tmp_path, id_field="id")
    assert second.scores.as_dict() == once.scores.as_dict()


def test_late_labels_are_learned_with_their_features_and_never_coming_ones_are_dropped(tmp_path):
    frame = make_csv(tmp_path / "data.csv", 300)
    frame["id"] = np.arange(300)
    features = frame.drop(columns="y")
    late = frame[["id", "y"]].iloc[:250]
    events = [*features.to_dict("records"), *late.to_dict("records")]

    class Records:
        endless = False

        def __init__(self):
            self.place = 0

        def read(self, n):
            from moeapps.stream import Event

            part = events[self.place : self.place + n]
            self.place += len(part)
            return [Event(self.place, dict(fields), where="x") for fields in part]

        def seek(self, position):
            self.place = position or 0

        def close(self):
            pass

    model = DriftMoEClassifier(seed=0, n_experts=3)
    job = StreamRun(model, Records(), "y", id_field="id", pending=200)
    job.run()
    assert job.counts.unlabeled == 300
    assert job.waiting.dropped == 100
    assert job.counts.learned == 150  # labels 100 to 249; the first hundred were dropped
    assert job.counts.rejected == 100
    assert len(job.waiting) == 50
    twin = DriftMoEClassifier(seed=0, n_experts=3)  # before the first label came, no expert had said anything
    for i in range(100, 250):
        twin.learn_one(features.drop(columns="id").iloc[i].to_dict(), frame["y"][i])
    assert twin.predict_proba_one({"a": 1.0}) == job.model.predict_proba_one({"a": 1.0})


def test_a_line_without_a_label_is_predicted_only(tmp_path):
    frame = make_csv(tmp_path / "data.csv", 200)
    frame.loc[150:, "y"] = None
    job = run_over(frame, tmp_path, predictions=LinesSink(tmp_path / "p.ndjson"))
    assert (job.counts.learned, job.counts.unlabeled) == (150, 50)
    predictions = [json.loads(line)["prediction"] for line in (tmp_path / "p.ndjson").read_text().splitlines()]
    assert len(predictions) == 200
    assert set(predictions[150:]) <= {"up", "down"}


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--target", "yy"], 2, "--target yy: data.csv has no such column; did you mean 'y'?"),
        (["--source", "nope.csv"], 1, "nope.csv does not exist"),
        (["--source", "x.txt"], 2, "--source x.txt: expected a .csv"),
        (["--model", "driftmo"], 2, "--model driftmo: unknown; did you mean 'driftmoe'?"),
        (
            ["--set", "n_expert=3"],
            2,
            "--set n_expert: --model driftmoe has no such argument; did you mean 'n_experts'?",
        ),
        (["--set", "n_experts=0"], 2, "n_experts must be a whole number of at least 1, got 0"),
        (["--set", "n_experts"], 2, "--set n_experts: expected name=value"),
        (["--set", "experts=forest"], 2, "experts must be 'auto', None, a list of kinds (tree, bayes,"),
        (["--set", 'experts={"tree": 0}'], 2, "experts['tree'] must be a whole number of at least 1, got 0"),
        (["--set", "gate=foo"], 2, "gate must be one of auto, mean, accuracy, stack, context, got 'foo'"),
        (["--model", "paper-data", "--set", "gate=mean"], 2, "--model paper-data has no such argument"),
        (["--resume"], 2, "--resume needs --checkpoint"),
        (["--every", "0"], 2, "every must be a whole number of at least 1, got 0"),
        (["--id", "y"], 2, "cannot be the same field"),
        (["--checkpoint", "data.csv"], 2, "--checkpoint data.csv is a file"),
        (["--metrics", "m.txt"], 2, "--metrics m.txt: expected"),
        (["--model", "data.safetensors"], 1, "data.safetensors does not exist"),
    ],
)
def test_wrong_options_are_one_line_and_leave_nothing(arguments, status, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_csv(tmp_path / "data.csv", 50)
    given = ["stream", "run", "--source", "data.csv", "--target", "y", *arguments]
    assert main(given) == status
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["data.csv"]


def test_the_command_in_process_writes_metrics_and_refuses_to_overwrite(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_csv(tmp_path / "data.csv", 2500)
    given = ["stream", "run", "--source", "data.csv", "--target", "y", "--set", "seed=0", "--checkpoint", "c",
             "--metrics", "m.csv", "--plain"]  # fmt: skip
    assert main(given) == 0
    assert "2,500 events: 2,500 learned" in capsys.readouterr().out
    metrics = pd.read_csv("m.csv")
    assert metrics["instance"].tolist() == [1000, 2000]
    assert np.allclose(metrics.filter(like="expert").sum(axis=1), 1)
    assert main(given) == 2
    assert "--resume continues it" in capsys.readouterr().err
    assert main([*given[:-5], "--checkpoint", "other", "--metrics", "m.csv"]) == 2
    assert "--metrics m.csv exists" in capsys.readouterr().err
    saved = "c/stream.safetensors"
    assert main(["stream", "run", "--source", "data.csv", "--target", "y", "--model", saved, "--plain"]) == 0
    assert "2,500 learned" in capsys.readouterr().out


def test_kinds_of_experts_are_named_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_csv(tmp_path / "data.csv", 1500)
    experts = ["--set", 'experts={"tree": 2, "linear": 1}', "--set", "gate=stack", "--set", "archive=3"]
    given = ["stream", "run", "--source", "data.csv", "--target", "y", "--checkpoint", "c", "--plain"]
    assert main([*given, *experts, "--limit", "1000"]) == 0
    assert main([*given, "--set", 'experts=["tree"]', "--resume"]) == 2
    assert "c/stream.safetensors was made with --set experts=" in capsys.readouterr().err
    assert main([*given, *experts, "--resume"]) == 0
    model = moeapps.load("c/stream.safetensors").model
    assert model.expert_names_ == ["tree 0", "tree 1", "linear 0"]
    assert model.gate_.index.tolist() == ["stack"]
    assert [*pd.read_csv("c/metrics.csv")][-3:] == ["expert tree 0", "expert tree 1", "expert linear 0"]


def test_a_damaged_checkpoint_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_csv(tmp_path / "data.csv", 100)
    given = ["stream", "run", "--source", "data.csv", "--target", "y", "--checkpoint", "c", "--plain"]
    assert main(given) == 0
    file = tmp_path / "c/stream.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert main([*given, "--resume"]) == 1
    assert "damaged or incomplete" in capsys.readouterr().err
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    ("model", "experts"),
    [({}, ["tree", "bayes", "neighbours", "linear", "network", " %: "]), ({"experts": None}, ["expert 0 to 2"])],
)
def test_the_live_display_shows_scores_experts_and_drift(model, experts, tmp_path):
    from rich.console import Console

    from moeapps.cli.stream_display import display

    job = run_over(make_csv(tmp_path / "data.csv", 4000), tmp_path, DriftMoEClassifier(seed=0, n_experts=3, **model))
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(display(job))
    text = console.export_text()
    for expected in ("4,000", "of the last 1,000", "rejected", "▲", "renewed", *experts):
        assert expected in text
