"""Schemas and encoders: the recommendation-schema cases of the catalogue, by number."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from moeapps.core.errors import ConfigError, DataError
from moeapps.recsys import DenseFeature, Schema, SequenceFeature, SparseFeature, TableEncoder
from moeapps.recsys.encoder import FIRST, MISSING, PAD, UNKNOWN


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "user_id": [1, 2, 3, 1],
            "item_id": [10, 11, 12, 10],
            "city": ["Ulm", None, "Bonn", "NA"],
            "age": [20.0, np.nan, 40.0, 60.0],
            "member": [True, False, True, True],
            "item_id_history": [[10, 11], [], None, [12, 10, 11, 10]],
            "tags": [["a"], ["b", "c"], [], ["a"]],
            "click": [0, 1, 0, 1],
        }
    )


def test_a_schema_is_inferred(frame):
    schema = Schema.infer(frame, targets=["click"])
    assert schema.features == (
        SparseFeature("user_id"),
        SparseFeature("item_id"),
        SparseFeature("city"),
        DenseFeature("age"),
        SparseFeature("member"),
        SequenceFeature("item_id_history", shares="item_id"),
        SequenceFeature("tags"),
    )
    assert Schema.from_json(json.loads(json.dumps(schema.to_json()))) == schema


def test_rows_are_encoded(frame):
    encoder = TableEncoder(Schema.infer(frame, targets=["click"])).fit(frame)
    rows = encoder.transform(frame)
    assert rows.sparse[:, 1].tolist() == [FIRST, FIRST + 1, FIRST + 2, FIRST]
    assert rows.sparse[:, 2].tolist() == [FIRST, MISSING, FIRST + 1, MISSING]
    torch.testing.assert_close(rows.dense[:, 0], torch.tensor([-1.2247, 0.0, 0.0, 1.2247]), atol=1e-4, rtol=0)
    assert rows.dense[:, 1].tolist() == [0, 1, 0, 0]
    assert rows.sequences[0][0, -2:].tolist() == [FIRST, FIRST + 1]
    assert (rows.sequences[0][1:3] == PAD).all()
    assert encoder.table_names == ["user_id", "item_id", "city", "member", "tags"]
    assert encoder.sequence_tables == [1, 4]
    twin = TableEncoder.from_state(json.loads(json.dumps(encoder.state())))
    for mine, its in zip(rows, twin.transform(frame), strict=True):
        torch.testing.assert_close(mine, its)


def test_na_is_a_category_where_missing_values_says_so(frame):
    rows = TableEncoder(Schema.infer(frame, targets=["click"]), missing_values=[]).fit(frame).transform(frame)
    assert rows.sparse[:, 2].tolist() == [FIRST, MISSING, FIRST + 1, FIRST + 2]  # D2


@pytest.mark.parametrize("value", [99, -1, 2**40, "new", "?", 1.5])
def test_r2_an_unseen_category_is_unknown_in_every_field(frame, value):
    encoder = TableEncoder(Schema.infer(frame, targets=["click"])).fit(frame)
    for name in ("user_id", "item_id", "city"):
        rows = encoder.transform(frame.assign(**{name: pd.Series([value] * 4, dtype=object)}))
        assert (rows.sparse[:, encoder.table_names.index(name)] == UNKNOWN).all()
    rows = encoder.transform(frame.assign(item_id_history=[[value]] * 4))
    assert (rows.sequences[0][:, -1] == UNKNOWN).all()


@pytest.mark.parametrize("value", [None, np.nan, pd.NA, "NA", ""])
def test_a_missing_category_has_a_code_of_its_own(frame, value):
    encoder = TableEncoder(Schema.infer(frame, targets=["click"])).fit(frame)
    rows = encoder.transform(frame.assign(city=pd.Series([value] * 4, dtype=object)))
    assert (rows.sparse[:, 2] == MISSING).all()


def test_a_value_that_was_never_missing_in_training_is_imputed_and_told(frame):
    """The network has learned nothing about the code and the flag of what was never missing."""
    frame["height"] = [1.0, 2.0, 3.0, 6.0]
    encoder = TableEncoder(Schema.infer(frame, targets=["click"])).fit(frame)
    with pytest.warns(UserWarning, match="2 of 'item_id' by 10, 1 of 'height' by 3"):
        rows = encoder.transform(frame.assign(item_id=[None, 11, None, 12], height=[1, None, 3, 6]))
    assert rows.sparse[:, 1].tolist() == [FIRST, FIRST + 1, FIRST, FIRST + 2]
    assert rows.dense[:, 3].tolist() == [0, 0, 0, 0]  # its flag
    assert rows.dense[1, 1] == 0  # the mean


@pytest.mark.parametrize(
    "entries", [["10", "12"], [10, 12], [10.0, 12.0], np.array([10, 12]), "[10, 12]", '["10","12"]']
)
def test_histories_share_the_categories_of_candidates_whatever_their_type(frame, entries):
    encoder = TableEncoder(Schema.infer(frame, targets=["click"])).fit(frame)
    rows = encoder.transform(frame.assign(item_id_history=pd.Series([entries] * 4, dtype=object)))
    assert rows.sequences[0][:, -2:].tolist() == [[FIRST, FIRST + 2]] * 4


def test_a_history_that_shares_nothing_with_its_candidates_is_told(frame):
    frame["item_id_history"] = [["x"], ["y"], [], None]
    with pytest.warns(
        UserWarning, match="no entry of 'item_id_history', such as 'x', is a value of 'item_id', such as 10"
    ):
        TableEncoder(Schema.infer(frame, targets=["click"])).fit(frame)


def test_numbers_of_a_history_are_the_texts_of_its_candidates(frame):
    """A CSV file has "007" as text, its JSON lists have 7."""
    frame["item_id"] = ["007", "011", "012", "007"]
    frame["item_id_history"] = [[7, 11], [], None, [12, 7]]
    encoder = TableEncoder(Schema.infer(frame, targets=["click"])).fit(frame)
    assert encoder.values["item_id"] == ["007", "011", "012"]
    assert encoder.transform(frame).sequences[0][0, -2:].tolist() == [FIRST, FIRST + 1]


def test_times_are_days(frame):
    frame["seen"] = pd.to_datetime(["1970-01-02", "1970-01-03", None, "1970-01-04"])
    schema = Schema.infer(frame, targets=["click"])
    assert schema.features[-1] == DenseFeature("seen", time=True)
    encoder = TableEncoder(schema).fit(frame)
    assert encoder.mean[-1] == 2
    texts = frame.assign(seen=["1970-01-02T00:00Z", "1970-01-03", "NA", "1970-01-04"])
    torch.testing.assert_close(encoder.transform(texts).dense, encoder.transform(frame).dense)
    with pytest.raises(DataError, match="column 'seen', row 1: 'soon' is not a time"):
        encoder.transform(frame.assign(seen=["1970-01-02", "soon", None, None]))


def test_of_a_long_history_the_newest_entries_are_kept(frame):
    schema = Schema([SparseFeature("item_id"), SequenceFeature("item_id_history", "item_id", max_len=2)])
    rows = (
        TableEncoder(schema).fit(frame[["item_id", "item_id_history"]]).transform(frame[["item_id", "item_id_history"]])
    )
    assert rows.sequences[0].shape == (4, 2)
    assert rows.sequences[0][3].tolist() == [FIRST + 1, FIRST]


def test_the_order_of_columns_does_not_matter_and_others_are_named(frame):
    encoder = TableEncoder(Schema.infer(frame, targets=["click"])).fit(frame)
    for mine, its in zip(encoder.transform(frame), encoder.transform(frame[frame.columns[::-1]]), strict=True):
        torch.testing.assert_close(mine, its)
    with pytest.raises(DataError, match="lacks the column 'city'"):
        encoder.transform(frame.drop(columns="city"))
    with pytest.raises(DataError, match="unknown column 'colour'"):
        encoder.transform(frame.assign(colour="red"))


def test_hashed_categories_need_no_vocabulary_and_agree_in_every_process(frame):
    schema = Schema([SparseFeature("city", hash=16), SequenceFeature("tags", hash=8)])
    part = frame[["city", "tags"]]
    encoder = TableEncoder(schema).fit(part)
    assert encoder.table_sizes == [FIRST + 16, FIRST + 8]
    codes = encoder.transform(part.assign(city=["never", "seen", None, "before"])).sparse[:, 0]
    assert codes[2] == MISSING
    assert ((codes >= FIRST) | (codes == MISSING)).all()
    assert codes[0] == FIRST  # crc32: not Python's hash, which differs from process to process


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"age": ["young", 1, 2, 3]}, "column 'age', row 0: 'young' is not a number"),
        ({"age": [1, np.inf, 2, 3]}, "'age' is infinite at row 1"),
        ({"item_id_history": ["10", [], [], []]}, "column 'item_id_history', row 0: '10' is not a list"),
        ({"city": [["Ulm"], "Bonn", "Bonn", "Bonn"]}, "'city' holds"),
    ],
)
def test_what_a_column_cannot_hold_is_named(frame, change, message):
    encoder = TableEncoder(Schema.infer(frame, targets=["click"])).fit(frame)
    with pytest.raises(DataError, match=message):
        encoder.transform(frame.assign(**{name: pd.Series(value, dtype=object) for name, value in change.items()}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schema([]), "features is empty"),
        (lambda: Schema([SparseFeature("a"), DenseFeature("a")]), "names the column 'a' twice"),
        (lambda: Schema([SequenceFeature("s", shares="item")]), "shares 'item', which is not a SparseFeature"),
        (lambda: SequenceFeature("s", max_len=0), "max_len"),
        (lambda: SequenceFeature("s", shares="a", hash=5), "exclude each other"),
        (lambda: SparseFeature("a", hash=0), "hash must be a whole number"),
    ],
)
def test_impossible_schemas_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_infer_names_columns_that_are_not_there(frame):
    with pytest.raises(DataError, match="lacks the column 'buy', which targets names"):
        Schema.infer(frame, targets=["buy"])
    with pytest.raises(DataError, match="at least one row"):
        Schema.infer(frame[:0])


def test_old_names_of_features_warn_and_are_the_same_classes():
    import moeapps.recsys
    from moeapps.recsys import schema

    for old, new in (("Sparse", SparseFeature), ("Dense", DenseFeature), ("Sequence", SequenceFeature)):
        for module in (moeapps.recsys, schema):
            with pytest.warns(DeprecationWarning, match=f"{old} is now called {new.__name__}"):
                assert getattr(module, old) is new
            assert old not in module.__all__
    with pytest.raises(AttributeError, match="no attribute 'Spares'"):
        _ = moeapps.recsys.Spares
