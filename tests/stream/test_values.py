"""One value: missing, number, category, or bad, the same one by one, in a frame, and after saving."""

import datetime
import decimal
import enum
import math
import uuid

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import moeapps
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.tabledata.cells import MISSING_VALUES
from moeapps.stream import DriftMoEClassifier, DriftMoERegressor
from moeapps.stream.run import StreamCheckpoint

SMALL = {"n_experts": 2, "seed": 0}
Color = enum.Enum("Color", {"RED": "red", "ONE": 1})
Word = enum.Enum("Word", {"RED": "red"}, type=str)
NOON, ZONE = datetime.datetime(2024, 1, 1, 12), datetime.timezone(datetime.timedelta(hours=2))
Decimal = decimal.Decimal

MISSING = {
    "None": None, "NaN": math.nan, "float16": np.float16("nan"), "float32": np.float32("nan"), "NA": pd.NA,
    "longdouble": np.longdouble("nan"), "NaT": pd.NaT, "datetime64": np.datetime64("NaT", "ns"),
    "timedelta64": np.timedelta64("NaT", "ns"), "Decimal": Decimal("NaN"), "sNaN": Decimal("sNaN"), "empty": "",
    "text NA": "NA", "text nan": "nan", "text null": "null", "np.str_": np.str_("N/A"),
}  # fmt: skip
NUMBERS = {
    "int": (3, 3.0), "bool": (True, 1.0), "np.bool_": (np.bool_(True), 1.0), "int64": (np.int64(3), 3.0),
    "float16": (np.float16(0.1), 0.0999755859375), "Decimal": (Decimal("0.1"), 0.1), "0-d": (np.array(3), 3.0),
    "datetime": (NOON, 1704110400.0), "zone": (NOON.replace(tzinfo=ZONE), 1704103200.0),
    "Timestamp": (pd.Timestamp("2024-01-01 12:00", tz="UTC"), 1704110400.0), "enum": (Color.ONE, 1.0),
    "datetime64": (np.datetime64("2024-01-01T12:00:00.25", "ns"), 1704110400.25),
    "1969": (datetime.date(1969, 12, 31), -86400.0),
    "date": (datetime.date(2024, 1, 1), 1704067200.0), "time": (datetime.time(1, 2, 3), 3723.0),
    "timedelta": (datetime.timedelta(1, 0, 5), 86400.000005),
    "19 digits": (1234567890123456789, float(1234567890123456789)),
    "far": (datetime.datetime.max, 253402300799.999999),
}  # fmt: skip
CATEGORIES = {
    "text": ("x", "x"), "np.str_": (np.str_("x"), "x"), "7": (7, "7"), "7.0": (7.0, "7"), "text 7": ("7", "7"),
    "int64": (np.int64(7), "7"), "float32": (np.float32(7), "7"), "text 7.0": ("7.0", "7.0"), "007": ("007", "007"),
    "1E5": ("1E5", "1E5"), "True": (True, "True"), "np.bool_": (np.bool_(True), "True"), "text True": ("True", "True"),
    "1": (1, "1"), "19 digits": (1234567890123456789, "1234567890123456789"),
    "uint64": (np.uint64(2**64 - 1), str(2**64 - 1)),
    "400 digits": (10**400, "1" + "0" * 400), "Decimal": (Decimal("1.50"), "1.5"), "surrogate": ("\ud800", "\ud800"),
    "tuple": ((1, "a"), ("1", "a")), "word": (Word.RED, "red"), "enum": (Color.RED, "red"), "nul": ("a\0", "a\0"),
    "date": (datetime.date(2024, 1, 1), "2024-01-01"), "uuid": (uuid.UUID(int=5), str(uuid.UUID(int=5))),
}  # fmt: skip
BAD = {
    "bytes": b"x", "bytearray": bytearray(b"x"), "list": [1], "dict": {"a": 1}, "set": {1}, "frozenset": frozenset([1]),
    "object": object(), "complex": 1j, "array": np.array([1.0]), "inf": math.inf, "float16 inf": np.float16("inf"),
    "5000 digits": 10**5000, "Decimal": Decimal("1E+99999"), "Period": pd.Period("2024"), "type": dict,
    "deep": (((((((((1,),),),),),),),),),
}  # fmt: skip


def cell(value) -> pd.Series:
    column = np.empty(1, dtype=object)
    column[0] = value
    return pd.Series(column, dtype=object)


def learned(value, how, kind=None, **settings):
    """A model that has met a value, after two instances; ``kind`` is that of the feature before."""
    model = DriftMoEClassifier(**{**SMALL, **settings})
    first = {None: {}, "number": {"a": 1.0}, "category": {"a": "Ulm"}}[kind]
    model.learn_one({**first, "z": 1.0}, 0)
    model.learn_one({**first, "z": 2.0}, 1)
    if how == "one":
        model.learn_one({"a": value, "z": 2.0}, 1)
    elif how == "many":
        model.learn_many(pd.DataFrame({"a": cell(value), "z": [2.0]}), [1])
    return model


def same_after_saving(model, tmp_path, x):
    model.save(tmp_path / "m.safetensors")
    StreamCheckpoint(model, {}).save(tmp_path / "c.safetensors")
    for twin in (moeapps.load(tmp_path / "m.safetensors"), moeapps.load(tmp_path / "c.safetensors").model):
        assert twin.predict_proba_one(x) == model.predict_proba_one(x)
        assert twin.saved_state() == model.saved_state()
        pd.testing.assert_frame_equal(twin.columns_, model.columns_)


@pytest.mark.parametrize("how", ["one", "many"])
@pytest.mark.parametrize("value", MISSING.values(), ids=MISSING)
def test_missing_is_missing_in_a_dict_and_in_a_frame(value, how, tmp_path):
    assert learned(value, how).router_features_ == ["z"]
    for kind in ("number", "category"):
        model = learned(value, how, kind)
        assert model.columns_.loc["a", ["missing", "bad"]].tolist() == [1, 0]
        assert model.columns_.loc["a", "categories"] == (kind == "category")
        same_after_saving(model, tmp_path, {"a": value, "z": 1.0})
    for declared in ("number", "category"):
        assert learned(value, how, column_types={"a": declared}).router_features_ == ["z"]


@pytest.mark.parametrize("how", ["one", "many"])
@pytest.mark.parametrize(("value", "number"), NUMBERS.values(), ids=NUMBERS)
def test_a_number_is_the_same_number_in_a_dict_and_in_a_frame(value, number, how, tmp_path):
    model = learned(value, how)
    assert model.columns_.loc["a", "kind"] == "number"
    assert model._engine.mixture.moments[model.router_features_.index("a"), 1] == number
    assert model._encoder.encode_known({"a": value})[0, 1] == number
    same_after_saving(model, tmp_path, {"a": value, "z": 1.0})


@pytest.mark.parametrize("how", ["one", "many"])
@pytest.mark.parametrize(("value", "key"), CATEGORIES.values(), ids=CATEGORIES)
def test_a_category_is_the_same_category_in_a_dict_in_a_frame_and_in_a_file(value, key, how, tmp_path):
    for model in (learned(value, how, "category"), learned(value, how, column_types={"a": "category"})):
        assert list(model._features.codes["a"])[-1] == key
        code = len(model._features.codes["a"]) - 1
        assert model._encoder.encode_known({"a": value})[0, model.router_features_.index("a")] == code
        assert model._encoder.encode_known({"a": key})[0, model.router_features_.index("a")] == code
        same_after_saving(model, tmp_path, {"a": value, "z": 1.0})


@pytest.mark.parametrize("how", ["one", "many"])
@pytest.mark.parametrize("kind", [None, "number", "category"])
@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_what_can_be_neither_learned_nor_saved_is_refused_by_name(value, kind, how):
    with pytest.raises(DataError, match="feature 'a'"):
        learned(value, how, kind)
    model = learned(value, how, kind, on_bad="impute")
    assert (model.n_bad_, model.n_seen_) == (1, 3)
    assert learned(value, how, kind, on_bad="skip").n_skipped_ == 1


def test_equal_numbers_are_one_category_and_other_texts_are_others():
    model = DriftMoEClassifier(column_types={"zip": "category"}, **SMALL)
    for value in (7, 7.0, "7", np.int8(7), "07", "7.0", True, "True", 1, "1", 1.0):
        model.learn_one({"zip": value}, 0)
    assert list(model._features.codes["zip"]) == ["7", "07", "7.0", "True", "1"]


def test_ids_of_nineteen_digits_stay_apart_and_floats_beyond_two_to_the_53_are_refused():
    model = DriftMoEClassifier(column_types={"id": "category"}, max_categories=1000, **SMALL)
    ids = [1234567890123456000 + i for i in range(300)]
    model.learn_many(pd.DataFrame({"id": ids}), [0, 1] * 150)
    assert model.columns_.loc["id", "categories"] == 300
    with pytest.raises(DataError, match="feature 'id': 1.2e\\+18 is a float"):
        model.learn_one({"id": 1.2e18}, 0)


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pd.Series([1, 2, None], dtype="Int64"), "number"),
        (pd.Series([1, 2, None]), "number"),
        (pd.Series([True, None, False], dtype="boolean"), "number"),
        (pd.Series([1.5, None, 3], dtype="Float32"), "number"),
        (pd.Series([1.5, None, 3], dtype="double[pyarrow]"), "number"),
        (pd.Series([2**63 - 1, None, 3], dtype="int64[pyarrow]"), "number"),
        (pd.Series([0.0, 1.0, 0.0], dtype=pd.SparseDtype("float", 0.0)), "number"),
        (pd.Series([NOON, None, NOON]), "number"),
        (pd.Series([NOON, None, NOON]).dt.tz_localize("Europe/Berlin"), "number"),
        (pd.Series([NOON, None, NOON], dtype="timestamp[us][pyarrow]"), "number"),
        (pd.Series([datetime.timedelta(1), None, datetime.timedelta(2)]), "number"),
        (pd.Series([Decimal("0.1"), None, Decimal("3")]), "number"),
        (pd.Series(["a", None, "NA"], dtype="string"), "category"),
        (pd.Series(["a", None, "b"], dtype="category"), "category"),
        (pd.Series([1, None, 2], dtype="category"), "number"),
        (pd.Series(["a", None, "b"], dtype="string[pyarrow]"), "category"),
    ],
    ids=lambda part: str(part.dtype) if isinstance(part, pd.Series) else part,
)
def test_a_column_of_any_dtype_is_learned_as_its_records(column, kind):
    frame = pd.DataFrame({"a": column, "z": [1.0, 2.0, 3.0]})
    one, many = DriftMoEClassifier(**SMALL), DriftMoEClassifier(**SMALL)
    for x, y in zip(frame.to_dict("records"), [0, 1, 0], strict=True):
        one.learn_one(x, y)
    many.learn_many(frame, [0, 1, 0])
    assert one.saved_state() == many.saved_state()
    assert all((a == b).all() for a, b in zip(one.saved_tensors().values(), many.saved_tensors().values(), strict=True))
    assert many.columns_.loc["a", "kind"] == kind


def test_frames_of_polars_and_arrow_are_learned_as_pandas_frames():
    frame = pd.DataFrame({"a": [1.0, 2.0, 4.0], "city": ["Ulm", "Bonn", "Ulm"]})
    models = []
    for table in (frame, pl.from_pandas(frame), pa.Table.from_pandas(frame)):
        models.append(DriftMoEClassifier(**SMALL))
        models[-1].learn_many(table, [0, 1, 0])
        models.append(DriftMoEClassifier(**SMALL).fit(table, [0, 1, 0]))
        assert models[-1].predict(table).tolist() == models[1].predict(frame).tolist()
    x = {"a": 1.0, "city": "Ulm"}
    for later in models[2::2]:
        assert later.predict_proba_one(x) == models[0].predict_proba_one(x)
    for later in models[3::2]:
        assert later.predict_proba_one(x) == models[1].predict_proba_one(x)


def test_texts_that_mean_missing_can_be_set_and_are_stored(tmp_path):
    assert "NA" in MISSING_VALUES
    for given, categories in (("auto", ["Ulm"]), (["-"], ["NA", "Ulm"]), ([], ["NA", "-", "Ulm"])):
        model = DriftMoEClassifier(missing_values=given, **SMALL)
        for value in ("NA", "-", "Ulm"):
            model.learn_one({"city": value} if given != "auto" or value != "-" else {}, 0)
        assert list(model._features.codes["city"]) == categories
        model.save(tmp_path / "m.safetensors")
        twin = moeapps.load(tmp_path / "m.safetensors")
        assert twin.get_params()["missing_values"] == given
        twin.learn_one({"city": "NA"}, 0)
        assert list(twin._features.codes["city"]) == categories
    for bad in ("NA", [1]):
        with pytest.raises(ConfigError, match="missing_values must be 'auto' or a list of texts"):
            DriftMoEClassifier(missing_values=bad).learn_one({"a": 1.0}, 0)


def test_column_types_decide_in_place_of_the_first_value_and_are_stored(tmp_path):
    types = {"zip": "category", "price": "number", 3: "category"}
    model = DriftMoERegressor(column_types=types, **{**SMALL})
    model.learn_one({"zip": 501, "price": "12.5", 3: 1}, 1.0)
    model.learn_one({"zip": "00501", "price": 3, 3: 2}, 2.0)
    assert model.columns_["kind"].to_dict() == {3: "category", "price": "number", "zip": "category"}
    assert model.columns_.loc["zip", "why"] == "column_types"
    assert list(model._features.codes["zip"]) == ["501", "00501"]
    assert model._engine.mixture.moments[model.router_features_.index("price"), 1] == (12.5 + 3) / 2
    for bad in ("1,5", "12 EUR", "1_000", "inf"):
        with pytest.raises(DataError, match="feature 'price'"):
            model.learn_one({"price": bad}, 1.0)
    model.save(tmp_path / "m.safetensors")
    twin = moeapps.load(tmp_path / "m.safetensors")
    assert twin.get_params()["column_types"] == types
    assert twin.predict_one({"zip": 501, "price": "7"}) == model.predict_one({"zip": "501", "price": 7.0})
    with pytest.raises(ConfigError, match="'zip' was learned as a category"):
        twin.set_params(column_types={"zip": "number"}).learn_one({"zip": 1}, 1.0)
    for bad in ({"zip": "text"}, ["zip"], {b"zip": "number"}):
        with pytest.raises(ConfigError, match="column_types"):
            DriftMoEClassifier(column_types=bad).learn_one({"a": 1.0}, 0)


def test_text_is_no_number_where_no_one_asked_for_it():
    model = DriftMoEClassifier(**SMALL)
    model.learn_one({"price": 1.0}, 0)
    with pytest.raises(DataError, match=r"feature 'price': '2.5' is not a number"):
        model.learn_one({"price": "2.5"}, 1)
    with pytest.raises(DataError, match=r"feature 'price', row 1: '2.5' is not a number"):
        model.learn_many(pd.DataFrame({"price": [2.0, "2.5"]}, dtype=object), [0, 1])


def test_columns_say_what_was_decided_and_why():
    model = DriftMoEClassifier(on_bad="impute", **SMALL)
    assert model.columns_.empty
    rows = [{"n": 1.5, "c": "Ulm"}, {"n": "bad", "c": "NA"}, {"c": "Bonn", "t": NOON}, {"n": None}]
    for x in rows:
        model.learn_one(x, 0)
    table = model.columns_
    assert table.columns.tolist() == ["kind", "why", "categories", "missing", "bad"]
    assert table["kind"].to_dict() == {"c": "category", "n": "number", "t": "number"}
    assert table["categories"].to_dict() == {"c": 2, "n": 0, "t": 0}
    assert table["missing"].to_dict() == {"c": 2, "n": 3, "t": 3}
    assert table["bad"].to_dict() == {"c": 0, "n": 1, "t": 0}
    assert table.loc["c", "why"] == "first value 'Ulm' (str)"


@pytest.mark.parametrize(
    "name",
    [b"x", None, math.nan, pd.Timestamp("2024"), frozenset(), ("a", None), 10**5000],
    ids=lambda name: type(name).__name__,
)
def test_a_name_that_no_file_could_hold_is_refused_when_it_comes(name):
    model = DriftMoEClassifier(**SMALL)
    with pytest.raises(DataError, match="the name of a feature is"):
        model.learn_one({"a": 1.0, name: 2.0}, 0)
    assert model.n_seen_ == 0


def test_names_of_numpy_and_tuples_are_saved(tmp_path):
    model = DriftMoEClassifier(**SMALL)
    x = {np.str_("a"): 1.0, np.int64(5): 2.0, ("new", "york"): 1, 2.5: "t", True: 3}
    model.learn_one(x, 0)
    same_after_saving(model, tmp_path, x)
    assert {type(name) for name in model.router_features_} == {str, int, tuple, float, bool}


def test_a_long_text_is_known_by_its_digest(tmp_path):
    model = DriftMoEClassifier(**SMALL)
    for text in ("y" * 100_000, "y" * 100_001, "y" * 100_000):
        model.learn_one({"comment": text}, 0)
    assert model.columns_.loc["comment", "categories"] == 2
    assert max(map(len, model._features.codes["comment"])) < 200
    same_after_saving(model, tmp_path, {"comment": "y" * 100_000})
