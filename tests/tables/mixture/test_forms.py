"""Experts get cells in the types that they were fitted on, whatever table or file the rows come from."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder

import moeapps
from moeapps import MixtureClassifier, MixtureRegressor
from moeapps.core import predict_file
from moeapps.core.errors import FileFormatError
from moeapps.serve.services import TableService
from moeapps.tables.mixture.forms import ColumnForms

NAMES = ["member", "city", "size", "kind"]


def rows(n=240):
    rng = np.random.default_rng(0)
    member, size = rng.random(n) < 0.5, rng.choice([10, 20, 30], n)
    city, kind = rng.choice(["Ulm", "Bonn", "07"], n), rng.choice(["a", "b", None], n)
    weight = rng.normal(size=n)
    frame = pd.DataFrame({"member": member, "city": city, "size": size, "kind": kind, "weight": weight})
    effect = 3.0 * member + 2.0 * (city == "Ulm") - 2.0 * (size == 20) + 2.0 * frame["kind"].isna() + 0.3 * weight
    return frame, effect.to_numpy()


def encoded(encoder, last):
    return make_pipeline(make_column_transformer((encoder, NAMES), remainder="passthrough"), last)


def experts():
    known = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    return [
        ("linear", encoded(OneHotEncoder(handle_unknown="ignore"), LogisticRegression(max_iter=500))),
        ("trees", encoded(known, HistGradientBoostingClassifier(max_iter=20, random_state=0))),
    ]


@pytest.fixture(scope="module")
def fitted():
    frame, effect = rows()
    model = MixtureClassifier(experts(), column_types={"size": "category"}, cv=3, random_state=0)
    return model.fit(frame, effect > np.median(effect)), frame


def text(value):
    return None if value is None or value != value else str(value)


FRAMES = {
    "arrow": lambda frame: pa.Table.from_pandas(frame, preserve_index=False),
    "nullable": lambda frame: frame.convert_dtypes(),
    "arrow dtypes": lambda frame: frame.convert_dtypes(dtype_backend="pyarrow"),
    "objects": lambda frame: frame.astype(object),
    "categories": lambda frame: frame.astype({"city": "category", "kind": "category"}),
    "text": lambda frame: frame.astype(object).map(text),
}


@pytest.mark.parametrize("source", FRAMES)
def test_the_same_cells_in_another_type_of_frame_are_the_same_to_the_experts(fitted, source):
    model, frame = fitted
    np.testing.assert_array_equal(model.predict_proba(FRAMES[source](frame)), model.predict_proba(frame))


@pytest.mark.parametrize("ending", ["csv", "parquet", "ndjson"])
def test_a_file_that_is_scored_by_path_is_the_frame_to_the_experts(fitted, ending, tmp_path):
    model, frame = fitted
    path = tmp_path / f"rows.{ending}"
    if ending == "csv":
        frame.to_csv(path, index=False)
    elif ending == "parquet":
        frame.to_parquet(path)
    else:
        path.write_text("\n".join(map(json.dumps, records(frame))))
    predict_file(model, path, tmp_path / "out.parquet")
    scored = pd.read_parquet(tmp_path / "out.parquet").filter(like="probability")
    np.testing.assert_array_equal(scored.to_numpy(), model.predict_proba(frame))
    assert model.score(frame, model.predict(frame)) == 1.0


def records(frame):
    return [
        {name: None if value is None or value != value else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]


def test_json_is_the_frame_to_the_experts_also_after_loading(fitted, tmp_path):
    pytest.importorskip("skops")
    model, frame = fitted
    model.save(tmp_path / "model.safetensors")
    loaded = moeapps.load(tmp_path / "model.safetensors")
    answers = TableService(loaded).answer({"rows": json.loads(json.dumps(records(frame)))})
    served = pd.DataFrame(answers).filter(like="probability").to_numpy()
    np.testing.assert_array_equal(served, model.predict_proba(frame))


def test_a_pandas_category_of_the_fit_is_one_again():
    frame, effect = rows()
    frame = frame.astype({"size": "category", "city": "category"})[["size", "city", "weight"]]
    trees = HistGradientBoostingClassifier(categorical_features="from_dtype", max_iter=20, random_state=0)
    model = MixtureClassifier([trees], cv=3, random_state=0).fit(frame, effect > np.median(effect))
    np.testing.assert_array_equal(
        model.predict_proba(frame.astype(object).map(text).astype({"weight": float})), model.predict_proba(frame)
    )


def hours(column):
    return pd.DataFrame({"hour": column.iloc[:, 0].dt.hour, "day": column.iloc[:, 0].dt.day})


def test_times_from_a_file_are_the_times_of_the_fit(tmp_path):
    frame = pd.DataFrame({"at": pd.date_range("2024-01-01", periods=200, freq="7h", tz="Europe/Berlin")})
    y = np.cos(frame["at"].dt.hour / 24 * 6.28).to_numpy()
    expert = make_pipeline(make_column_transformer((FunctionTransformer(hours), ["at"])), Ridge())
    model = MixtureRegressor([expert], cv=3, random_state=0).fit(frame, y)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    predict_file(model, tmp_path / "rows.csv", tmp_path / "out.csv")
    scored = pd.read_csv(tmp_path / "out.csv")["prediction"]
    np.testing.assert_allclose(scored, model.predict(frame), rtol=1e-9)


EVERY = {
    "bool": [True, False, True, True],
    "bool with a gap": [True, None, False, True],
    "whole": [1, 2, 3, 4],
    "nullable": pd.array([1, None, 3, 4], dtype="Int64"),
    "number": [1.5, 2.0, np.nan, 4.0],
    "text": ["a", "7", None, "b"],
    "empty text": pd.Series(["a", "7", "", "b"], dtype=object),
    "None": pd.Series(["a", None, None, "b"], dtype=object),
    "NaN": pd.Series(["a", np.nan, np.nan, "b"], dtype=object),
    "category": pd.Categorical([3, 1, 3, 2], [3, 2, 1]),
    "text category": pd.Categorical(["x", None, "y", "x"]),
    "category for empty cells": pd.Categorical(["a", "", "", "b"]),
    "time": pd.date_range("2024-01-01", periods=4, freq="h"),
    "time with a zone": pd.date_range("2024-01-01", periods=4, tz="Europe/Berlin"),
    "string": pd.array(["a", None, "b", "b"], dtype="string"),
    "arrow": pd.array(["a", None, "b", "b"], dtype=pd.ArrowDtype(pa.string())),
    "nullable bool": pd.array([True, None, False, True], dtype="boolean"),
}


@pytest.mark.parametrize("name", EVERY)
def test_cells_that_came_as_text_or_objects_have_their_type_again(name):
    frame = pd.DataFrame({name: EVERY[name]})
    forms = ColumnForms.from_json(json.loads(json.dumps(ColumnForms.of(frame).to_json())))
    assert forms.restore(frame) is frame

    def cell(value):
        if value is None or value is pd.NA or value != value or value == "":
            return None
        return value.isoformat() if isinstance(value, pd.Timestamp) else str(value)

    for source in (frame.astype(object).map(cell), frame.astype(object), frame.convert_dtypes()):
        pd.testing.assert_frame_equal(forms.restore(source), frame)


def test_lists_and_cells_of_several_types_are_left_as_they_are():
    frame = pd.DataFrame({"list": [[1], [2, 3]], "mixed": pd.Series([1, "a"], dtype=object), "none": [None, None]})
    forms = ColumnForms.of(frame)
    assert forms.restore(frame) is frame
    text = frame.assign(mixed=["1", "a"])
    assert forms.restore(text) is text


def test_rows_with_the_same_index_are_told_apart():
    frame, _ = rows(6)
    forms = ColumnForms.of(frame)
    source = frame.astype(object).map(text).set_axis([0, 0, 1, 1, 1, 0])
    pd.testing.assert_frame_equal(forms.restore(source), frame.set_axis([0, 0, 1, 1, 1, 0]))


def test_a_cell_that_cannot_have_its_type_stays_for_the_expert_or_the_gate_to_refuse():
    forms = ColumnForms.of(pd.DataFrame({"size": [10, 20, 30]}))
    restored = forms.restore(pd.DataFrame({"size": ["10", "x", None]}))["size"].tolist()
    assert restored[:2] == [10, "x"]
    assert np.isnan(restored[2])


@pytest.mark.parametrize("change", [{"kind": "other"}, {"missing": ["x"]}, {"dtype": 3}, {"categories": [["s", "a"]]}])
def test_a_file_with_malformed_types_is_refused(change):
    saved = ColumnForms.of(pd.DataFrame({"size": [10, 20, 30]})).to_json()
    with pytest.raises(FileFormatError, match="types of its columns"):
        ColumnForms.from_json([{**saved[0], **change}])


def test_a_table_of_which_no_column_can_be_read_is_refused_with_the_reason():
    table = pd.DataFrame({"a": np.arange(40.0), "b": np.arange(40.0)}).astype(pd.SparseDtype(float, 0.0))
    with pytest.warns(UserWarning, match="does not read"), pytest.raises(ValueError, match=r"'a' is sparse.*to_dense"):
        MixtureRegressor([Ridge()], cv=2).fit(table, np.arange(40.0))
