"""What becomes of an event: late labels, repeats, corrections, values that cannot be stored (S3, S4, S10, S14)."""

import datetime
import json
import math
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from river import metrics

import moeapps
from moeapps.cli.main import main
from moeapps.core.errors import DataError
from moeapps.stream import (
    DriftMoEClassifier,
    DriftMoERegressor,
    Event,
    FrameSource,
    LateLabels,
    LinesSink,
    StreamRun,
    open_source,
)
from moeapps.stream.compiled.engine import tree_arrays
from moeapps.stream.updating import update

SMALL = ["--set", "seed=1", "--set", "n_experts=2", "--plain"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Records:
    """A source of dicts."""

    endless = False

    def __init__(self, records):
        self.records, self.place = records, 0

    def read(self, n):
        part = self.records[self.place : self.place + n]
        self.place += len(part)
        return [Event(self.place - len(part) + i + 1, dict(fields), where=str(i)) for i, fields in enumerate(part)]

    def seek(self, position):
        self.place = position or 0

    def close(self):
        pass


def run_over(records, model=None, checkpoint=Path("c"), **arguments) -> StreamRun:
    model = model or DriftMoEClassifier(seed=0, n_experts=2)
    if isinstance(records, str):
        source = open_source(records)
    else:
        source = FrameSource(records) if isinstance(records, pd.DataFrame) else Records(records)
    job = StreamRun(model, source, "y", checkpoint, rejects=LinesSink("rejects.ndjson"), **arguments)
    job.run()
    job.close()
    return job


def rejects() -> list[dict]:
    path = Path("rejects.ndjson")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(n: int = 200) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(n, 2)).round(3), columns=["a", "b"])
    frame["city"] = rng.choice(["Ulm", "Bonn"], n)
    frame["id"] = np.arange(n)
    frame["y"] = np.where(frame["a"] > 0, "up", "down")
    return frame


def same_model(one, two) -> bool:
    first, second = tree_arrays(one._engine), tree_arrays(two._engine)
    return all(np.array_equal(first[name], second[name], equal_nan=True) for name in first)


# --- S3


@pytest.mark.parametrize("kind", ["csv", "parquet", "ndjson", "ndjson-null", "ndjson-empty", "frame"])
def test_a_late_label_with_empty_features_meets_its_event(kind):
    frame = table()
    empty = frame.copy()
    empty[["a", "b"]] = np.nan
    empty["city"] = None
    events = pd.concat([frame.assign(y=None), empty], ignore_index=True)
    if kind == "frame":
        job = run_over(events, id_field="id")
        model, counts = job.model, vars(job.counts)
    else:
        name = f"events.{kind.partition('-')[0]}"
        if kind == "csv":
            events.to_csv(name, index=False)
        elif kind == "parquet":
            events.to_parquet(name)
        else:
            rows = [json.loads(line) for line in events.to_json(orient="records", lines=True).splitlines()]
            if kind == "ndjson":
                rows = [{key: value for key, value in row.items() if value is not None} for row in rows]
            if kind == "ndjson-empty":
                rows = [{**row, "city": row["city"] or ""} for row in rows]
            Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = ["stream", "run", "--source", name, "--target", "y", "--id", "id", "--checkpoint", "c", *SMALL]
        assert main(given) == 0
        found = moeapps.load("c/stream.safetensors")
        model, counts = found.model, found.run["counts"]
    assert (counts["learned"], counts["unlabeled"], counts["rejected"]) == (200, 200, 0)
    twin = DriftMoEClassifier(**model.get_params())
    for row in frame.to_dict("records"):
        twin.learn_one({name: row[name] for name in ("a", "b", "city")}, row["y"])
    assert same_model(model, twin)


def test_the_type_of_an_id_does_not_matter_and_a_float_is_not_trusted():
    events = [{"id": 7, "a": 1.0}, {"id": "7", "y": "u"}, {"id": 8.0, "a": 2.0}, {"id": 8, "y": "v"},
              {"id": "007", "y": "u"}, {"id": float(2**60), "a": 1.0}, {"id": [1], "a": 1.0}]  # fmt: skip
    job = run_over(events, id_field="id")
    assert job.counts.learned == 2
    reasons = [entry["reason"] for entry in rejects()]
    assert "a label for '007', for which no features are waiting" in reasons[0]
    assert "2**53" in reasons[1]
    assert "is not an id" in reasons[2]


def test_an_event_without_features_and_without_a_way_to_them_is_rejected():
    events = [{"id": None, "a": None, "y": "u"}, {"id": 1, "a": None}, {"id": 2, "a": math.nan, "y": None}, {}]
    job = run_over([*events, {"id": 3, "a": 1.0, "y": "u"}], id_field="id")
    assert (job.counts.learned, job.counts.rejected, len(job.waiting)) == (1, 4, 0)


def test_an_event_that_comes_again_with_its_label_is_learned_once():
    job = run_over([{"id": 1, "a": 1.0}, {"id": 1, "a": 2.0, "y": "u"}, {"id": 1, "y": "u"}], id_field="id")
    assert (job.counts.learned, job.counts.repeated, len(job.waiting)) == (1, 1, 0)


# --- S2: one reading of a cell


@pytest.mark.parametrize("seed", range(4))
def test_every_source_of_the_same_table_ends_in_the_same_model(seed):
    rng = np.random.default_rng(seed)
    n = 150
    frame = pd.DataFrame({
        "whole": rng.integers(-5, 5, n), "real": rng.normal(size=n) * 10.0 ** rng.integers(-20, 20, n),
        "flag": rng.random(n) < 0.5, "text": rng.choice(["x", "NaNa", "1a", "é, \"q\"", " y "], n),
        "zip": rng.choice(["00501", "10001", "7"], n), "late": [None] * 100 + list(rng.normal(size=n - 100)),
        "id": [str(10**18 + int(i)) for i in rng.permutation(n)],
    })  # fmt: skip
    frame["hole"] = frame["whole"].astype("Int64").mask(rng.random(n) < 0.2)
    frame["real"] = frame["real"].mask(rng.random(n) < 0.2)
    frame["y"] = rng.choice([7, 12345678901234567, 2], n)
    if seed % 2:
        frame["y"] = frame["y"].map({7: "07", 12345678901234567: "1E5", 2: "b"})
    frame.to_csv("t.csv", index=False)
    frame.to_parquet("t.parquet")
    rows = [{key: None if value is pd.NA or value != value else value for key, value in row.items()}
            for row in frame.astype(object).to_dict("records")]  # fmt: skip
    Path("t.ndjson").write_text("".join(json.dumps(row) + "\n" for row in rows))
    models = []
    for name in ("t.csv", "t.parquet", "t.ndjson"):
        given = ["stream", "run", "--source", name, "--target", "y", "--id", "id", "--checkpoint", f"{name}.c", *SMALL]
        assert main(given) == 0
        models.append(moeapps.load(f"{name}.c/stream.safetensors").model)
    job = StreamRun(DriftMoEClassifier(**models[0].get_params()), FrameSource(frame), "y", id_field="id")
    job.run()
    models.append(job.model)
    one = DriftMoEClassifier(**models[0].get_params())
    for row in rows:
        one.learn_one({key: value for key, value in row.items() if key not in ("id", "y")}, row["y"])
    for model in models:
        assert model.n_seen_ == n
        assert model._labels.labels == one._labels.labels
        assert same_model(model, one)


# --- S10


@pytest.mark.parametrize("batch", [1, 256])
def test_a_rejected_event_that_comes_again_corrected_is_learned(batch):
    good = [{"id": f"g{i}", "a": float(i), "y": "u"} for i in range(3)]
    events = [
        *good,
        {"id": "x", "a": "abc", "y": "u"}, {"id": "x", "a": 5.0, "y": "u"}, {"id": "x", "a": 5.0, "y": "u"},
        {"id": "z", "a": 5.0, "y": 7}, {"id": "z", "a": 5.0, "y": "v"},  # a label of another kind
        {"id": "p", "a": "abc"}, {"id": "p", "a": 6.0}, {"id": "p", "y": 7}, {"id": "p", "y": "v"},
        {"id": "q", "y": "v"}, {"id": "q", "a": 1.0}, {"id": "q", "y": "v"},  # the label came too early
    ]  # fmt: skip
    job = run_over(events, id_field="id", batch=batch)
    assert (job.counts.learned, job.counts.repeated, job.counts.rejected) == (3 + 4, 1, 5)
    assert [entry["content"]["id"] for entry in rejects()] == ["x", "z", "p", "p", "q"]


def test_rejects_and_ids_do_not_depend_on_the_batch():
    rng = np.random.default_rng(0)
    events = [
        {"id": int(rng.integers(60)), "a": "bad" if rng.random() < 0.2 else float(i), "y": rng.choice(["u", None, 7])}
        for i in range(400)
    ]
    found = []
    for batch in (1, 7, 256):
        Path("rejects.ndjson").unlink(missing_ok=True)
        job = run_over(events, id_field="id", batch=batch, id_window=20, pending=5, checkpoint=None)
        ignored = [{**entry, "event": None} for entry in rejects()]
        found.append((vars(job.counts), job.ids.state(), job.waiting.state(), ignored))
    assert found[0] == found[1] == found[2]


# --- S4


def test_a_checkpoint_holds_whatever_was_accepted():
    day = datetime.date(2024, 1, 31)
    values = [
        pd.Timestamp("2024-01-31"), day, Decimal("1.5"), np.float32(2.5), math.nan, pd.NaT, np.datetime64("2024-01-31"),
        b"bytes", [1, 2], {"x": 1}, math.inf, -math.inf, 10**5000, "\ud800", 1j, object(), True, np.bool_(True), 10**30,
        datetime.timedelta(hours=1), datetime.time(1),
    ]  # fmt: skip
    waiting = [{"id": f"w{i}", "a": value, "b": 1.0} for i, value in enumerate(values)]
    labels = [{"id": f"l{i}", "b": 1.0, "y": value} for i, value in enumerate([day, *values])]
    for events in (waiting, labels, [{**event, "id": f"i{i}"} for i, event in enumerate(labels)]):
        job = run_over(events, id_field="id", checkpoint=Path("c"), every=1)
        assert job.counts.rejected + job.counts.learned + job.counts.unlabeled == len(events)
        found = StreamRun(DriftMoEClassifier(), Records(events), "y", Path("c"), id_field="id")
        assert found.resume()
        assert found.waiting.state() == job.waiting.state()
        found.close()


def test_dates_decimals_and_times_are_learned_as_numbers_and_labels_are_text():
    frame = pd.DataFrame({
        "t": pd.date_range("2024-01-01", periods=60, freq="h"), "d": [Decimal(i) / 4 for i in range(60)],
        "y": [datetime.date(2024, 1, 1 + i % 3) for i in range(60)],
    })  # fmt: skip
    frame.to_parquet("data.parquet")
    given = ["stream", "run", "--source", "data.parquet", "--target", "y", "--checkpoint", "c", *SMALL]
    assert main(given) == 0
    model = moeapps.load("c/stream.safetensors").model
    assert model._features.nominal == [False, False]
    assert sorted(model.classes_) == ["2024-01-01", "2024-01-02", "2024-01-03"]
    frame.to_csv("data.csv", index=False)
    assert main([*given[:3], "data.csv", *given[4:7], "d", *SMALL]) == 0
    assert same_model(model, moeapps.load("d/stream.safetensors").model)


def test_bytes_are_refused_with_the_name_of_the_field(capsys):
    pd.DataFrame({"a": [b"x"] * 20, "b": range(20), "y": ["u", "v"] * 10}).to_parquet("data.parquet")
    given = ["stream", "run", "--source", "data.parquet", "--target", "y", "--checkpoint", "c", *SMALL]
    assert main(given) == 3
    out = capsys.readouterr().out
    assert "no event could be used: all 20 were rejected" in out
    assert "rejected 20: field 'a': it holds bytes" in out
    assert Path("c/stream.safetensors").exists()


def test_a_bad_value_names_the_option_that_takes_it_for_missing(capsys):
    lines = ['{"a": 1, "y": "u"}', '{"a": 2, "y": "v"}'] * 5 + ['{"a": "hot", "y": "u"}']
    Path("data.ndjson").write_text("\n".join(lines) + "\n")
    given = ["stream", "run", "--source", "data.ndjson", "--target", "y", "--checkpoint", "c"]
    assert main([*given, *SMALL]) == 0
    assert "; --set on_bad=impute takes bad values for missing, --set on_bad=skip leaves" in capsys.readouterr().out
    assert main([*given[:-1], "d", *SMALL, "--set", "on_bad=impute"]) == 0
    assert " 0 rejected" in capsys.readouterr().out


# --- S14


def test_a_run_in_which_everything_is_rejected_ends_with_3_and_says_why(capsys):
    Path("data.ndjson").write_text("not json\n" * 5 + '{"a": 1, "a": 2}\n')
    assert main(["stream", "run", "--source", "data.ndjson", "--target", "y", "--checkpoint", "c", *SMALL]) == 3
    out = capsys.readouterr().out
    assert "6 rejected" in out
    assert "rejected 5: not a JSON object: Expecting value" in out
    assert "rejected events, and why: c/rejects.ndjson" in out
    assert "field 'a' occurs twice" in out
    assert (
        main(["stream", "run", "--source", "data.ndjson", "--target", "y", "--checkpoint", "c", "--resume", *SMALL])
        == 0
    )
    Path("empty.ndjson").write_text("")
    assert main(["stream", "run", "--source", "empty.ndjson", "--target", "y", *SMALL]) == 0


def strict(line: str):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(line, parse_constant=refuse)


def test_json_output_is_json_whatever_came_in():
    Path("data.ndjson").write_text(
        '{"a": NaN, "b": 1, "y": 1}\n{"a": Infinity, "b": 2, "y": 2}\n{"a": 1, "b": 2, "y": Infinity}\n'
        '{"a": 1e999, "b": 1, "y": 3}\n{"a": 2, "b": 1, "y": 3.5}\n{"a": 2, "b": 1}\n'
    )
    given = ["stream", "run", "--source", "data.ndjson", "--target", "y", "--predictions", "p.ndjson", "--rejects",
             "r.ndjson", "--metrics", "m.ndjson", "--window", "1", "--model", "driftmoe-regressor", *SMALL]  # fmt: skip
    assert main(given) == 0
    lines = [strict(line) for name in "prm" for line in Path(f"{name}.ndjson").read_text().splitlines()]
    assert sum("reason" in line for line in lines) == 3
    assert sum("prediction" in line for line in lines) == 3


def test_a_prediction_that_is_not_finite_is_null():
    sink = LinesSink("p.ndjson")
    for value in (math.nan, math.inf, np.float64("nan")):
        sink.write({"prediction": value, "nested": [value]})
    sink.close()
    assert set(Path("p.ndjson").read_text().splitlines()) == {'{"prediction": null, "nested": [null]}'}


def test_types_and_missing_texts_hold_for_json_too():
    Path("data.ndjson").write_text('{"code": 123, "a": "-", "y": 1}\n{"code": "A12", "a": "2.5", "y": 2}\n' * 20)
    given = ["stream", "run", "--source", "data.ndjson", "--target", "y", "--checkpoint", "c", *SMALL]
    assert main([*given, "--types", "code=text", "a=number", "--missing", "?,-"]) == 0
    found = moeapps.load("c/stream.safetensors")
    assert found.run["counts"]["learned"] == 40
    assert found.model._features.nominal == [True, False]
    assert list(found.model._features.codes["code"]) == ["123", "A12"]


def test_a_regressor_takes_numbers_of_a_csv():
    frame = pd.DataFrame({"a": np.arange(300) / 7, "y": [*range(299), "x"]})
    frame.to_csv("data.csv", index=False)
    given = ["stream", "run", "--source", "data.csv", "--target", "y", "--checkpoint", "c", "--model",
             "driftmoe-regressor", *SMALL]  # fmt: skip
    assert main(given) == 0
    found = moeapps.load("c/stream.safetensors")
    assert isinstance(found.model, DriftMoERegressor)
    assert (found.run["counts"]["learned"], found.run["counts"]["rejected"]) == (299, 1)


@pytest.mark.parametrize("ending", ["csv", "ndjson"])
def test_a_label_of_thousands_of_digits_costs_only_its_own_event(ending, capsys):
    long = "9" * 5000
    texts = {"csv": "x,y\n1,1\n2,0\n1,LONG\n3,1\n", "ndjson": '{"x":1,"y":1}\n{"x":2,"y":0}\n{"x":1,"y":LONG}\n'}
    Path(f"data.{ending}").write_text(texts[ending].replace("LONG", long))
    given = ["stream", "run", "--source", f"data.{ending}", "--target", "y", "--checkpoint", "c", *SMALL]
    assert main(given) == 0
    assert "1 rejected" in capsys.readouterr().out
    assert Path("c/stream.safetensors").exists()


def test_the_summary_of_rejects_keeps_the_names_of_standards(capsys):
    Path("data.csv").write_bytes("x,c,y\n1,é,1\n2,é,0\n".encode("latin-1"))
    given = ["stream", "run", "--source", "data.csv", "--target", "y", "--checkpoint", "c", *SMALL]
    assert main(given) == 3
    assert "not UTF-8" in capsys.readouterr().out
    Path("times.csv").write_text("x,y\n-1.5,1\n2.5e3,0\n")
    given = [
        "stream",
        "run",
        "--source",
        "times.csv",
        "--target",
        "y",
        "--checkpoint",
        "d",
        "--types",
        "x=time",
        *SMALL,
    ]
    assert main(given) == 3
    out = " ".join(capsys.readouterr().out.split())
    assert "as ISO 8601 writes it" in out
    assert "rejected 2: " in out
    assert "since --types says so" in out


def test_infinite_ids_are_rejected_since_they_are_no_ids():
    Path("data.ndjson").write_text(
        '{"i": 1e400, "x": 1, "y": 1}\n{"i": 2e400, "x": 2, "y": 0}\n{"i": 1, "x": 2, "y": 0}\n'
    )
    given = ["stream", "run", "--source", "data.ndjson", "--target", "y", "--checkpoint", "c", "--id", "i", *SMALL]
    assert main(given) == 0
    reasons = [json.loads(line)["reason"] for line in Path("c/rejects.ndjson").read_text().splitlines()]
    assert reasons == ["the id: an infinite number is not an id"] * 2


@pytest.mark.parametrize("option", ["pending", "id-window"])
def test_a_size_that_is_impossible_is_named_as_the_option(option, capsys):
    Path("data.csv").write_text("i,x,y\n1,1,1\n")
    given = ["stream", "run", "--source", "data.csv", "--target", "y", "--id", "i", f"--{option}", "-1", *SMALL]
    assert main(given) == 2
    assert f"{option.replace('-', '_')} must be a whole number" in capsys.readouterr().err


def test_a_target_that_is_too_large_for_a_regressor_is_told_its_bound():
    with pytest.raises(DataError, match="y is 1e.300, expected a finite number below 1e.150"):
        DriftMoERegressor(seed=0).learn_one({"x": 1.0}, 1e300)


def test_a_late_label_counts_in_metrics_of_probabilities_as_it_was_predicted_also_after_a_restart():
    pairs = [(row, row.pop("y")) for row in table().drop(columns="id").to_dict("records")]
    events = list(LateLabels(pairs, delay=(5, 30), seed=2).records(id="id", target="y"))
    whole = run_over(events, checkpoint=Path("whole"), id_field="id", named_metrics=("LogLoss=up", "Accuracy"))
    twin, waiting, expected = DriftMoEClassifier(seed=0, n_experts=2), {}, metrics.LogLoss()
    for key, x, y in LateLabels(pairs, delay=(5, 30), seed=2):
        if x is not None:
            waiting[key] = (x, twin.predict_proba_one(x), twin.votes_one(x))
            continue
        x, shares, votes = waiting.pop(key)
        if shares:
            expected.update(y == "up", shares.get("up", 0.0))
        twin.learn_one(x, y, votes)
    assert whole.named.as_dict()["LogLoss=up"] == pytest.approx(expected.get())
    run_over(events, id_field="id", named_metrics=("LogLoss=up", "Accuracy"), limit=150)
    rest = StreamRun(
        DriftMoEClassifier(), Records(events), "y", Path("c"), id_field="id", named_metrics=("LogLoss=up", "Accuracy"),
        rejects=LinesSink("rejects.ndjson"),
    )  # fmt: skip
    assert rest.resume()
    assert rest.waiting.probabilities(next(iter(rest.waiting._waiting)))
    rest.run()
    rest.close()
    assert rest.named.as_dict() == whole.named.as_dict()


def test_a_late_label_of_an_event_that_is_skipped_is_rejected_and_not_scored():
    events = table(60).to_dict("records")
    late = [{"id": "bad", "a": "text", "b": 1.0, "city": "Ulm"}, {"id": "bad", "y": "up"}]
    again = [{"id": "bad", "a": 1.0, "b": 1.0, "city": "Ulm", "y": "up"}]
    model = DriftMoEClassifier(seed=0, n_experts=2, on_bad="skip")
    job = run_over([*events, *late, *again], model, id_field="id")
    assert (job.counts.learned, job.counts.rejected, job.scores.n, job.model.n_seen_) == (61, 1, 61, 61)
    assert (job.model.n_skipped_, len(job.waiting)) == (1, 0)
    assert "feature 'a': 'text' is not a number" in rejects()[0]["reason"]


@pytest.mark.parametrize(
    ("text", "missing_values", "missing", "unlabeled"),
    [
        ("", "auto", (), 30),
        ("NA", "auto", (), 30),
        ("NA", [], (), 0),
        ("-", "auto", (), 0),
        ("-", "auto", ("-",), 30),
        ("-", ["-"], (), 30),
    ],
)
def test_what_is_no_label_in_a_csv_file_is_none_in_json_and_in_a_frame(text, missing_values, missing, unlabeled):
    frame = table(90).drop(columns="id")
    frame.loc[::3, "y"] = text
    frame.to_csv("a.csv", index=False)
    Path("a.jsonl").write_text(frame.to_json(orient="records", lines=True))
    runs = [
        run_over(
            records,
            DriftMoEClassifier(seed=0, n_experts=2, missing_values=missing_values),
            Path(str(number)),
            missing=missing,
        )
        for number, records in enumerate(["a.csv", "a.jsonl", frame])
    ]
    assert [(one.counts.learned, one.counts.unlabeled) for one in runs] == [(90 - unlabeled, unlabeled)] * 3
    assert all(same_model(runs[0].model, other.model) for other in runs[1:])
    if not missing:
        model = DriftMoEClassifier(seed=0, n_experts=2, missing_values=missing_values)
        state, _ = update(None, frame, target="y", model=model)
        assert moeapps.core.saving.from_bytes(state).n_seen_ == 90 - unlabeled
