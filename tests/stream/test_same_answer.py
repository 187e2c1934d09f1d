"""The contract of docs/data.md for streams: the same events give the same model, whatever they come from."""

import json
import math

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import moeapps
from moeapps.cli.main import main
from moeapps.serve.schema import learn_model, predict_model
from moeapps.serve.services import StreamService
from moeapps.stream import DriftMoEClassifier

ROWS = 160
TYPES = {"id": "category", "code": "category", "digits": "category", "member": "category"}
ARGUMENTS = {"seed": 1, "n_experts": 3, "column_types": TYPES}


def made(seed: int) -> dict[str, list]:
    """A table of values that doors like to change: long ids, leading zeros, NA, bools, holes, times."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=ROWS).round(3)
    table = {
        "a": [None if hole else float(v) for v, hole in zip(a, rng.random(ROWS) < 0.1, strict=True)],
        "whole": [int(v) for v in rng.integers(-5, 60, ROWS)],
        "id": [10**18 + int(v) for v in rng.integers(0, 12, ROWS)],
        "code": [str(v) for v in rng.choice(["007", "7", "07", "NA", "1E5", "x,y"], ROWS)],
        "digits": [str(v) for v in rng.choice(["7", "19", "-1"], ROWS)],
        "member": [bool(v) for v in rng.random(ROWS) < 0.5],
        "label": [f"c{int(v > 0)}" for v in a],
    }
    if seed % 2:
        table["id"][3] = table["whole"][5] = table["member"][7] = None
    return table


def events(table) -> list[dict]:
    return [{name: values[i] for name, values in table.items()} for i in range(ROWS)]


def arrow(table) -> pa.Table:
    return pa.table(table)


def learned_by_one(table) -> DriftMoEClassifier:
    model = DriftMoEClassifier(**ARGUMENTS)
    for event in events(table):
        label = event.pop("label")
        model.learn_one(event, label)
    return model


def answers(model, table) -> list[float]:
    asked = [{name: value for name, value in event.items() if name != "label"} for event in events(table)]
    return [model.predict_proba_one(x)["c1"] for x in asked]


NULLABLE = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
FRAMES = {
    "objects": lambda t: pd.DataFrame({k: pd.Series(v, dtype=object) for k, v in t.items()}),
    "arrow": lambda t: arrow(t).to_pandas(types_mapper=pd.ArrowDtype),
    "nullable": lambda t: arrow(t).to_pandas(
        types_mapper={pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}.get
    ),
    "polars": lambda t: pl.from_arrow(arrow(t)).to_pandas(use_pyarrow_extension_array=True),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("door", FRAMES)
def test_a_frame_teaches_what_dicts_teach(door, seed):
    table, asked = made(seed), made(seed + 2)
    frame = FRAMES[door](table)
    model = DriftMoEClassifier(**ARGUMENTS)
    model.learn_many(frame.drop(columns="label"), frame["label"])
    assert answers(model, asked) == answers(learned_by_one(table), asked)
    found = model.predict_proba_many(FRAMES[door](asked).drop(columns="label"))["c1"]
    assert found.tolist() == answers(model, asked)


def written(table, folder, ending):
    path = folder / f"in.{ending}"
    if ending == "csv":
        frame = pd.DataFrame({k: pd.Series(v, dtype=object) for k, v in table.items()})
        frame.to_csv(path, index=False)
    elif ending == "parquet":
        pq.write_table(arrow(table), path)
    else:
        path.write_text("".join(json.dumps(event) + "\n" for event in events(table)))
    return str(path)


@pytest.mark.parametrize("ending", ["csv", "parquet", "ndjson", "kafka"])
def test_a_stream_run_predicts_and_learns_what_dicts_do(ending, tmp_path):
    table = made(1)
    if ending == "kafka":
        kafka = pytest.importorskip("confluent_kafka")
        producer = kafka.Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "ignored:1"})
        address = next(f"{b.host}:{b.port}" for b in producer.list_topics(timeout=10).brokers.values())
        for event in events(table):
            producer.produce("events", json.dumps(event).encode(), partition=0)
        assert producer.flush(20) == 0
        source = f"kafka://{address}/events?partition=0&stop=end"
    else:
        source = written(table, tmp_path, ending)
    command = ["stream", "run", "--source", source, "--target", "label", "--plain", "--predictions"]
    settings = [f"--set={name}={json.dumps(value)}" for name, value in ARGUMENTS.items()]
    kinds = [f"--types={name}=text" for name in ("code", "digits")] if ending == "csv" else []
    out = tmp_path / "out.ndjson"
    assert main([*command, str(out), *settings, *kinds, "--checkpoint", str(tmp_path / "run")]) == 0
    model = DriftMoEClassifier(**ARGUMENTS)
    expected = []
    for event in events(table):
        label = event.pop("label")
        expected.append(model.predict_one(event))
        model.learn_one(event, label)
    assert [json.loads(line)["prediction"] for line in out.read_text().splitlines()] == expected
    assert answers(moeapps.load(tmp_path / "run" / "stream.safetensors").model, made(3)) == answers(model, made(3))


def test_json_over_http_teaches_and_predicts_what_dicts_do():
    table, asked = made(1), made(3)
    service = StreamService(DriftMoEClassifier(**ARGUMENTS))
    rows = [{"x": {k: v for k, v in event.items() if k != "label"}, "y": event["label"]} for event in events(table)]
    body = learn_model().model_validate_json(json.dumps({"rows": rows})).model_dump(by_alias=True)
    (answer,) = service.learn([body])
    assert answer["learned"] == ROWS, vars(answer)
    rows = [{k: v for k, v in event.items() if k != "label"} for event in events(asked)]
    checked = (
        predict_model(service.describe()).model_validate_json(json.dumps({"rows": rows})).model_dump(by_alias=True)
    )
    found = [record["probability_c1"] for record in service.answer(checked)]
    assert found == answers(learned_by_one(table), asked)
    assert all(math.isfinite(value) for value in found)


@pytest.mark.parametrize("missing", ["auto", []])
def test_na_in_a_file_is_missing_or_a_category_as_the_model_has_it(missing, tmp_path):
    table = made(0)
    arguments = {**ARGUMENTS, "missing_values": missing}
    command = ["stream", "run", "--source", written(table, tmp_path, "csv"), "--target", "label", "--plain"]
    settings = [f"--set={name}={json.dumps(value)}" for name, value in arguments.items()]
    kinds = [f"--types={name}=text" for name in ("code", "digits")]
    assert main([*command, *settings, *kinds, "--checkpoint", str(tmp_path / "run")]) == 0
    found = moeapps.load(tmp_path / "run" / "stream.safetensors").model
    model = DriftMoEClassifier(**arguments)
    frame = FRAMES["objects"](table)
    model.learn_many(frame.drop(columns="label"), frame["label"])
    assert found.columns_.loc["code", "categories"] == model.columns_.loc["code", "categories"] == 5 + (missing == [])
    assert answers(found, made(2)) == answers(model, made(2))
