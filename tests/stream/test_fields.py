"""Which fields a run sees: dropped, kept and misspelled ones, times, and the seed without which runs would differ."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import moeapps
from moeapps.cli.main import main
from moeapps.core.errors import ConfigError
from moeapps.stream import DriftMoEClassifier, FrameSource, StreamRun, run_stream
from moeapps.stream.field_check import FieldCheck

SMALL = ["--set", 'experts={"bayes": 1, "linear": 1}', "--plain"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(n: int, name: str = "d.csv") -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=n).round(3), "customer": [f"c{i}" for i in range(n)]})
    frame["when"] = pd.date_range("2026-01-01", periods=n, freq="min").strftime("%Y-%m-%dT%H:%M:%S")
    frame["state"] = np.where(frame["a"] > 0, "up", "down")
    if name.endswith(".csv"):
        frame.to_csv(name, index=False)
    else:
        frame.to_json(name, orient="records", lines=True)
    return frame


def stream(*more: str, source: str = "d.csv", target: str = "state") -> int:
    return main(["stream", "run", "--source", source, "--target", target, *SMALL, *more])


@pytest.mark.parametrize("source", ["d.csv", "d.ndjson"])
def test_dropped_fields_are_no_features_and_kept_ones_stand_beside_the_predictions(source):
    frame = write(60, source)
    out = ["--checkpoint", "c", "--predictions", "p.ndjson", "--window", "30"]
    assert stream("--drop", "customer,when", "--keep", "customer", "--time", "when", *out, source=source) == 0
    assert moeapps.load("c/stream.safetensors").model.router_features_ == ["a"]
    records = [json.loads(line) for line in Path("p.ndjson").read_text().splitlines()]
    assert [record["customer"] for record in records] == frame["customer"].tolist()
    times = pd.to_datetime(pd.read_csv("c/metrics.csv")["time"], utc=True)
    assert times.dt.strftime("%H:%M").tolist() == ["00:29", "00:59"]


def test_a_cell_of_a_dropped_column_is_never_a_mistake():
    Path("d.csv").write_text("a,note,y\n" + "1,5,u\n2,7,v\n" * 600 + "1,text,u\n")
    assert stream("--drop", "note", "--checkpoint", "c", target="y") == 0
    assert moeapps.load("c/stream.safetensors").run["counts"]["rejected"] == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--drop", "custmer"], "--drop custmer: d.csv has no such column; did you mean 'customer'?"),
        (["--keep", "a,whn"], "--keep whn: d.csv has no such column; did you mean 'when'?"),
        (["--time", "wehn"], "--time wehn: d.csv has no such column; did you mean 'when'?"),
        (["--drop", "state"], "--drop state: it is the target, no feature"),
        (["--seed", "1", "--set", "seed=2"], "--seed and --set seed= exclude each other"),
        (["--metric", "F11"], "--metric F11: unknown; did you mean 'F1'?"),
        (["--metrics-port", "70000"], "--metrics-port must be 0 to 65535, got 70000"),
        (["--on-drift", "no-such-thing"], "there is no command 'no-such-thing'"),
        (["--follow", "--complete"], "--follow and --complete exclude each other"),
    ],
)
def test_an_option_that_cannot_be_is_one_line(more, message, capsys):
    write(50)
    assert stream(*more) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["d.csv"]


def test_a_misspelled_target_is_refused_and_leaves_nothing_in_the_way(capsys):
    write(300, "d.ndjson")
    out = ["--predictions", "p.csv", "--checkpoint", "c"]
    assert stream(*out, source="d.ndjson", target="stat") == 2
    assert (
        "--target stat: none of the first 200 events has this field; did you mean 'state'?" in capsys.readouterr().err
    )
    assert not Path("p.csv").exists()
    assert stream(*out, source="d.ndjson") == 0


def test_a_misspelled_target_of_a_short_stream_is_refused_at_its_end(capsys):
    write(20, "d.ndjson")
    assert stream(source="d.ndjson", target="stat") == 2
    assert "none of the first 20 events has this field; did you mean 'state'?" in capsys.readouterr().err


def test_a_misspelled_field_is_refused_where_the_source_has_no_header(capsys):
    write(20, "d.ndjson")
    assert stream("--drop", "custmer", source="d.ndjson") == 2
    assert (
        "--drop custmer: none of the first 20 events has this field; did you mean 'customer'?"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("target", "needed", "late", "outcome"),
    [
        ("stat", True, False, "refused"),  # nothing can ever be learned
        ("zzz", True, False, "refused"),
        ("stat", False, False, "refused"),  # a trained model predicts, but the name looks like a mistake
        ("zzz", False, False, "told"),
        ("stat", False, True, "told"),  # labels come late, by id
        ("state", True, False, "fine"),
    ],
)
def test_which_absent_target_is_refused(target, needed, late, outcome):
    check = FieldCheck({"target": (target,)}, needed, late)
    check.see({"a": 1, "state": "up"})
    if outcome == "refused":
        with pytest.raises(ConfigError, match=f"--target {target}"):
            check.finish()
    else:
        assert bool(check.finish()) == (outcome == "told")


def test_a_trained_model_predicts_a_stream_without_labels():
    model = DriftMoEClassifier(seed=0, experts=["bayes"])
    model.learn_one({"a": 1.0}, "up")
    job = StreamRun(model, FrameSource(pd.DataFrame({"a": [1.0] * 300})), "zzz")
    job.run()
    assert job.counts.unlabeled == 300
    assert job.notes == ["--target zzz: none of the first 200 events has this field"]


def test_two_runs_give_the_same_predictions_and_another_seed_others():
    write(400)
    given = ["stream", "run", "--source", "d.csv", "--target", "state", "--set", "n_experts=2", "--plain"]
    for name, more in (("one", []), ("two", []), ("three", ["--seed", "3"])):
        assert main([*given, "--checkpoint", name, *more]) == 0
    models = [moeapps.load(f"{name}/stream.safetensors").model for name in ("one", "two", "three")]
    weights = [model.expert_weights({"a": 0.5}).to_numpy().tolist() for model in models]
    assert weights[0] == weights[1] != weights[2]
    assert [model.get_params()["seed"] for model in models] == [0, 0, 3]


def test_metrics_by_name_go_on_after_a_pause_as_without_one():
    write(400)
    options = ["--metric", "MacroF1", "--metric", "ROCAUC=up", "--window", "100", "--seed", "1"]
    assert stream("--checkpoint", "one", *options) == 0
    assert stream("--checkpoint", "two", "--limit", "250", *options) == 0
    assert stream("--checkpoint", "two", "--resume", *options) == 0
    first, second = (Path(name, "metrics.csv").read_text() for name in ("one", "two"))
    assert first == second
    table = pd.read_csv("one/metrics.csv")
    assert table["ROCAUC=up windowed"].iloc[-1] > 0.8
    assert "MacroF1 total" in table


def test_run_stream_is_the_command_in_python(tmp_path):
    frame = write(300)
    alarms = []
    model = DriftMoEClassifier(seed=0, experts=["bayes"])
    run = run_stream(model, "d.csv", "state", drop=("customer", "when"), predictions="p.csv", on_drift=alarms.append)
    assert (run.counts.learned, run.model is model, alarms) == (300, True, [])
    assert len(pd.read_csv("p.csv")) == 300
    again = run_stream(DriftMoEClassifier(seed=0, experts=["bayes"]), frame[["a", "state"]], "state")
    assert again.scores.state() == run.scores.state()
