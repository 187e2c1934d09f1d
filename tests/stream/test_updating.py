"""A model as a function from state to state, for Flink and Spark."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

import moeapps
from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.core.saved_file import read_document_bytes, write_document_bytes
from moeapps.core.saving import from_bytes
from moeapps.stream import DriftMoEClassifier, DriftMoERegressor, FrameSource, StreamRun, update


def small(**arguments) -> DriftMoEClassifier:
    return DriftMoEClassifier(seed=1, **{"n_experts": 2, **arguments})


@pytest.fixture(scope="module")
def rows():
    """400 rows with a number, a category and missing cells; every 50th has no label."""
    return [
        {
            "a": float(i % 7) if i % 11 else None,
            "city": ("Ulm", "Bonn")[i % 2],
            "y": None if i % 50 == 49 else ("up" if i % 7 > 3 else "down"),
        }
        for i in range(400)
    ]


@pytest.fixture(scope="module")
def whole(rows):
    """State and predictions after one call."""
    return update(None, rows, target="y", model=small())


def test_calls_over_pieces_give_the_state_and_the_predictions_of_one_call(rows, whole):
    state, predictions = None, []
    for begin, end in ((0, 1), (1, 2), (2, 150), (150, 150), (150, 400)):
        state, found = update(state, rows[begin:end], target="y", model=small())
        predictions += found
    assert predictions == whole[1]
    assert state == whole[0]


def test_the_predictions_are_those_of_a_stream_run(rows, whole):
    written = []

    class List:
        size = 0

        def write(self, record):
            written.append(record["prediction"])

        def flush(self):
            return None

        def close(self):
            pass

    run = StreamRun(small(), FrameSource(pd.DataFrame(rows)), "y", predictions=List())
    run.run()
    assert written == whole[1]
    assert run.model.n_seen_ == from_bytes(whole[0]).n_seen_ == 392


def test_a_frame_is_learned_as_its_rows_are(rows, whole):
    assert update(None, pd.DataFrame(rows), target="y", model=small()) == whole


def test_a_regressor_is_updated_as_well():
    rows = [{"a": float(i % 9), "y": float(i % 9) / 2} for i in range(60)]
    state, _ = update(None, rows[:30], target="y", model=DriftMoERegressor(seed=0, n_experts=2))
    assert len(update(state, rows[30:], target="y")[1]) == 30


def test_the_state_of_before_and_the_model_stay_as_they_were(rows, whole):
    model = small()
    state, _ = update(None, rows[:200], target="y", model=model)
    before = bytes(state)
    update(state, rows[200:], target="y", model=model)
    assert state == before
    assert model.n_seen_ == 0


def test_a_saved_model_and_a_checkpoint_are_states(rows, whole, tmp_path):
    run = StreamRun(small(), FrameSource(pd.DataFrame(rows[:200])), "y", tmp_path)
    run.run()
    moeapps.load(tmp_path / "stream.safetensors").model.save(tmp_path / "model.safetensors")
    for name in ("stream", "model"):
        state = (tmp_path / f"{name}.safetensors").read_bytes()
        assert update(state, rows[200:], target="y")[1] == whole[1][200:]


def test_a_row_that_cannot_be_used_is_named_or_skipped(rows):
    bad = [*rows[:60], {"a": [1], "city": "Ulm", "y": "up"}]
    with pytest.raises(DataError, match=r"^row 60: .*'a'"):
        update(None, bad, target="y", model=small())
    _, predictions = update(None, bad, target="y", model=small(on_bad="skip"))
    assert len(predictions) == 61
    assert predictions[60] is None
    with pytest.raises(DataError, match="row 0: it has no features"):
        update(None, [{"y": "up"}], target="y")


def test_a_damaged_state_and_one_of_a_newer_version_are_refused(rows, whole):
    flipped = bytearray(whole[0])
    flipped[-3] ^= 1
    with pytest.raises(FileFormatError, match="the state .* is damaged"):
        update(bytes(flipped), rows, target="y")
    document, tensors = read_document_bytes(whole[0], "it")
    newer = write_document_bytes({**json.loads(json.dumps(document)), "format": 2}, tensors)
    with pytest.raises(FileFormatError, match="the state has format 2 .* Upgrade moeapps"):
        update(newer, rows, target="y")
    with pytest.raises(FileFormatError, match="damaged or incomplete"):
        update(b"", rows, target="y")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": small(n_experts=3)}, "the state is of a model with n_experts=2, model has 3"),
        ({"model": DriftMoERegressor()}, "the state holds a DriftMoEClassifier, model is a DriftMoERegressor"),
        ({"model": "driftmoe"}, "model must be a stream model such as"),
        ({"state": "text"}, "state must be bytes that update returned, or None, got str"),
    ],
)
def test_a_state_of_another_model_is_refused(rows, whole, change, message):
    arguments = {"state": whole[0], "model": None, **change}
    with pytest.raises(ConfigError, match=message):
        update(rows=rows, target="y", **arguments)


def test_what_is_no_stream_model_is_refused(rows):
    from moeapps.graph import Mowst

    with pytest.raises(FileFormatError, match="the state holds a Mowst, which is not a model of streams"):
        update(Mowst(in_channels=4, out_channels=2).to_bytes(), rows, target="y")


class GroupState:
    """Stands for pyspark.sql.streaming.state.GroupState."""

    def __init__(self):
        self.row = None

    @property
    def exists(self):
        return self.row is not None

    @property
    def get(self):
        return self.row

    def update(self, row):
        assert isinstance(row, tuple)
        self.row = tuple(bytearray(value) for value in row)


def test_the_recipe_for_spark_learns_the_frames_of_a_key_as_one_call_does(rows):
    page = (Path(__file__).parents[2] / "docs" / "stream_production.md").read_text()
    (recipe,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def learn(" in block)
    names = {"update": update, "DriftMoEClassifier": DriftMoEClassifier}
    exec(recipe.replace('"label"', '"y"'), names)
    frame, state = pd.DataFrame(rows), GroupState()
    parts = [
        part for i in (0, 200) for part in names["learn"](("Ann",), [frame[i : i + 50], frame[i + 50 : i + 200]], state)
    ]
    _, predictions = update(None, frame, target="y", model=DriftMoEClassifier(seed=0))
    found = pd.concat(parts)["prediction"]
    assert [None if pd.isna(value) else value for value in found] == predictions
