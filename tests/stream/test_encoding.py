"""The encoder returns a value and changes nothing until it is told to commit."""

import math

import numpy as np
import pandas as pd
import pytest

from moeapps.core.errors import DataError
from moeapps.stream.encoding import FeatureEncoder


def encoder(on_bad="raise", **sizes) -> FeatureEncoder:
    made = FeatureEncoder(**{"max_features": 5, "max_categories": 4, **sizes}, on_bad=on_bad)
    made.commit(made.encode({"a": 1.0, "city": "Ulm"}).unseen)
    return made


def test_encoding_changes_nothing_until_commit():
    one = encoder()
    before = one.state()
    encoded = one.encode({"a": 2, "city": "Bonn", "new": 3.0, "text": "x"})
    assert one.state() == before
    assert encoded.table.tolist() == [[2.0, 1.0, 3.0, 0.0]]
    assert encoded.unseen.order == ["new", "text"]
    assert encoded.unseen.values == {"city": {"Bonn": 1}, "text": {"x": 0}}
    assert one.commit(encoded.unseen) == ([False, True], 3)  # room for two cities and the rest
    again = one.encode({"a": 2, "city": "Bonn", "new": 3.0, "text": "x"})
    assert again.unseen is None
    assert again.table.tolist() == encoded.table.tolist()


def test_rows_of_integers_are_floats_since_the_loops_would_be_compiled_once_more():
    one = FeatureEncoder(5, 4)
    assert one.encode({"a": 1, "b": True}).table.dtype == np.float64
    assert one.encode_frame(pd.DataFrame({"a": [1], "b": [2]})).table.dtype == np.float64


def test_a_row_and_a_table_are_encoded_alike():
    rows = [{"a": 1.0, "city": "Kiel"}, {"b": 4}, {"city": "Kiel", "c": "z", "a": None}, {"city": "Ulm", "b": True}]
    one, many = encoder(), encoder()
    frame = pd.DataFrame(rows)
    encoded = many.encode_frame(frame)
    many.commit(encoded.unseen)
    for x in rows:
        found = one.encode(x)
        if found.unseen is not None:
            one.commit(found.unseen)
    assert one.state() == many.state()
    expected = np.vstack([one.encode_known(x) for x in rows])
    assert np.array_equal(encoded.table, expected, equal_nan=True)
    assert np.array_equal(many.encode_known_frame(frame), expected, equal_nan=True)


@pytest.mark.parametrize("bad", ["text", float("inf"), 1e200, [1]])
def test_what_happens_to_a_bad_value_is_the_encoders_matter(bad):
    for policy in ("raise", "skip"):
        with pytest.raises(DataError, match="feature 'a'"):
            encoder(policy).encode({"a": bad})
    for x in ({"a": bad}, pd.DataFrame({"a": [bad]}, dtype=object)):
        one = encoder("impute")
        encoded = one.encode(x) if isinstance(x, dict) else one.encode_frame(x)
        assert encoded.bad == 1
        assert math.isnan(encoded.table[0, 0])
    assert np.isnan(encoder("skip").encode_known({"a": bad})).all()
    with pytest.raises(DataError, match="feature 'a'"):
        encoder("raise").encode_known({"a": bad})


def test_names_beyond_the_cap_are_counted_and_unknown_ones_predict_as_missing():
    one = encoder(max_features=3)
    encoded = one.encode({"b": 1.0, "c": 2.0, "d": None})
    assert (encoded.unseen.order, encoded.ignored) == (["b"], 1)
    assert one.encode_known({"b": 1.0, "city": "Rom"}).tolist()[0][1] == -1.0
