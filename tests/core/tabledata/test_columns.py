"""Reading tables: numbers, categories, missing and unseen values."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moeapps.core.errors import ConfigError, DataError
from moeapps.core.tabledata.columns import MISSING, UNKNOWN
from moeapps.tables import ColumnEncoder
from moeapps.tables.network import NumericEmbedding


def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "age": [20.0, 30.0, np.nan, 50.0],
            "colour": ["red", None, "blue", "red"],
            "member": [True, False, True, True],
            "size": pd.Categorical(["S", "M", "S", None]),
            "visits": pd.array([1, None, 3, 4], dtype="Int64"),
        }
    )


def fitted(table=None, **arguments) -> ColumnEncoder:
    table = frame() if table is None else table
    return ColumnEncoder().fit(table, np.ones(len(table)), **arguments)


def test_kinds_of_columns_and_their_codes():
    encoder = fitted()
    assert [encoder.names[i] for i in encoder.categorical] == ["colour", "member", "size"]
    numbers, codes = encoder.transform(frame())
    np.testing.assert_array_equal(numbers, [[20, 1], [30, np.nan], [np.nan, 3], [50, 4]])
    np.testing.assert_array_equal(codes, [[2, 2, 2], [MISSING, 3, 3], [3, 2, 2], [2, 2, MISSING]])


def test_unseen_categories_are_unknown_and_the_frame_is_left_alone():
    encoder = fitted()
    other = frame().assign(colour="green")
    before = other.copy()
    assert (encoder.transform(other)[1][:, 0] == UNKNOWN).all()
    pd.testing.assert_frame_equal(other, before)


def test_categories_are_compared_by_value_whatever_their_type_in_the_frame():
    encoder = fitted(pd.DataFrame({"code": np.array([1, 2, 1])}), categorical_features=["code"])
    for kind in ("int8", "int64", "float64", "Int64", "category", "object"):
        codes = encoder.transform(pd.DataFrame({"code": pd.Series([2, 1, 1]).astype(kind)}))[1]
        assert codes[:, 0].tolist() == [3, 2, 2]


@pytest.mark.parametrize("types", [None, {"zip": "category"}])
def test_texts_of_a_pandas_category_are_told_apart_as_they_are_written(types):
    texts = ["07", "7", "1E5", "100000", "7.0"]
    table = pd.DataFrame({"zip": pd.Categorical(texts * 10)})
    encoder = fitted(table, column_types=types)
    for same in (table, table.astype(object), table.astype(str)):
        np.testing.assert_array_equal(encoder.transform(same)[1][:5, 0], [2, 3, 4, 5, 6])


def test_a_pandas_category_of_whole_numbers_as_text_is_that_of_the_numbers():
    encoder = fitted(pd.DataFrame({"size": pd.Categorical(["10", "20"] * 10)}))
    for same in ([10, 20], [10.0, 20.0], ["10", "20"], ["10.0", "20.0"]):
        np.testing.assert_array_equal(encoder.transform(pd.DataFrame({"size": same}))[1][:, 0], [2, 3])


def test_the_state_is_json_and_comes_back():
    encoder = fitted()
    twin = ColumnEncoder.from_state(json.loads(json.dumps(encoder.state())))
    for ours, theirs in zip(encoder.transform(frame()), twin.transform(frame()), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@given(
    values=st.lists(st.integers(-5, 5), min_size=1, max_size=30),
    weight=st.integers(0, 2**20),
    bins=st.sampled_from([2, 4, 32]),
)
def test_a_weight_of_three_equals_the_row_three_times(values, weight, bins):
    column = np.array(values, dtype=float)[:, None] * 0.37
    weights = np.random.default_rng(weight).integers(1, 4, len(values))
    weighted = ColumnEncoder().fit(column, weights.astype(float), None, bins)
    repeated = ColumnEncoder().fit(np.repeat(column, weights, axis=0), np.ones(weights.sum()), None, bins)
    assert weighted.edges == repeated.edges
    np.testing.assert_allclose(weighted.mean, repeated.mean, atol=1e-12)
    np.testing.assert_allclose(weighted.scale, repeated.scale, atol=1e-12)


def test_the_embedding_is_standardised_value_missing_flag_and_place_among_the_quantiles():
    embed = NumericEmbedding(mean=[2.0], scale=[4.0], edges=[[0.0, 1.0, 3.0]])
    x = torch.tensor([[-1.0], [0.5], [2.0], [9.0], [torch.nan]], dtype=torch.float64)
    expected = [[-0.75, 0, 0, 0], [-0.375, 0, 0.5, 0], [0, 0, 1, 0.5], [1.75, 0, 1, 1], [0, 1, 0, 0]]
    torch.testing.assert_close(embed(x), torch.tensor(expected, dtype=torch.float64))
    exact = NumericEmbedding(mean=[1e9 + 0.1], scale=[1.0], edges=[[]])
    assert float(exact.float().mean) == 1e9 + 0.1  # raw numbers are compared in full precision


def test_a_column_of_mostly_one_value_still_gets_quantiles_of_the_rest():
    column = np.concatenate([np.zeros(9500), np.linspace(1, 100, 500)])[:, None]
    assert len(fitted(column).edges[0]) > 20


@pytest.mark.parametrize("wanted", [["nope"], [7], [-1], "all", [1.5]])
def test_a_wrong_column_name_is_refused_with_the_names_that_exist(wanted):
    with pytest.raises(ConfigError, match=r"categorical_features .*age, colour"):
        fitted(categorical_features=wanted)


def test_a_text_column_that_is_not_named_is_refused():
    with pytest.raises(ConfigError, match="column 'colour' is .*: add it to categorical_features"):
        fitted(categorical_features=["member", "size"])


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e39])
def test_infinite_numbers_in_a_frame_are_located(value):
    table = frame()
    table.loc[1, "age"] = value
    with pytest.raises(DataError, match="row 1, column 'age'"):
        fitted(table)


def test_a_state_that_was_loaded_is_written_in_the_same_order():
    encoder = ColumnEncoder().fit(pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]}), np.ones(2))
    text = json.dumps(encoder.state())
    assert json.dumps(ColumnEncoder.from_state(json.loads(text)).state()) == text
