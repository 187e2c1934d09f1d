"""What a source may deliver, and what becomes of it before a model sees it (S4)."""

import datetime
import math
import uuid
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from moeapps.core.errors import DataError
from moeapps.stream.io.values import event_key, finite_json, is_empty, plain_fields, plain_label, plain_value, storable

DAY = datetime.date(2024, 1, 31)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.5, 1.5), (True, True), ("Ulm", "Ulm"), (np.float32(0.5), 0.5), (np.int64(7), 7), (10**30, 10**30),
        (Decimal("1.25"), 1.25), (datetime.datetime(1970, 1, 2), 86400.0), (datetime.date(1970, 1, 2), 86400.0),
        (datetime.datetime(1970, 1, 2, 2, tzinfo=datetime.timezone(datetime.timedelta(hours=2))), 86400.0),
        (pd.Timestamp("1970-01-01 00:00:01.5"), 1.5), (np.datetime64("1970-01-02"), 86400.0),
        (np.timedelta64(3, "s"), 3.0), (datetime.timedelta(minutes=1), 60.0), (datetime.time(1, 0, 1), 3601.0),
        (uuid.UUID(int=5), str(uuid.UUID(int=5))), (math.inf, math.inf),
    ],
)  # fmt: skip
def test_a_feature_becomes_a_number_or_text(value, expected):
    found = plain_value(value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    "value", [None, math.nan, np.float32("nan"), pd.NA, pd.NaT, np.datetime64("NaT", "ns"), Decimal("NaN")]
)
def test_everything_missing_is_none(value):
    assert plain_value(value) is None
    assert plain_label(value) is None
    assert event_key(value) is None
    assert is_empty({"a": value, "b": ""})


@pytest.mark.parametrize("value", [b"abc", bytearray(b"x"), 1j, object(), "\ud800", pytest.param(10**5000, id="huge")])
def test_what_cannot_be_learned_or_stored_is_refused_with_the_name_of_its_field(value):
    with pytest.raises(DataError, match="field 'a': "):
        plain_fields({"a": value})
    with pytest.raises(DataError, match="the label: "):
        plain_label(value)
    with pytest.raises(DataError, match="the id: "):
        event_key(value)


def test_labels_are_exact():
    assert plain_label(Decimal(7)) == 7
    assert type(plain_label(Decimal("7.00"))) is int
    assert plain_label(DAY) == "2024-01-31"
    assert plain_label(pd.Timestamp("2024-01-31")) == "2024-01-31T00:00:00"
    assert plain_label(12345678901234567891) == 12345678901234567891
    assert plain_label("007") == "007"
    with pytest.raises(DataError, match="the label is a list, expected text or a number"):
        plain_label([1])


def test_ids_are_equal_where_they_mean_the_same_and_never_pass_through_a_float():
    assert event_key(7) == event_key(7.0) == event_key("7") == event_key(np.int64(7)) == "7"
    assert len({event_key(key) for key in ("007", "7", "1E5", 100000, "NA", True)}) == 6
    assert event_key(2**60 + 1) == str(2**60 + 1)
    assert event_key(DAY) == "2024-01-31"
    with pytest.raises(DataError, match=r"beyond 2\*\*53 cannot be told from its neighbours"):
        event_key(float(2**60))


def test_an_event_that_waits_holds_nothing_that_json_lacks():
    assert storable({"a": 1.5, "b": "x", "c": None}, False) == {"a": 1.5, "b": "x", "c": None}
    for value in (math.inf, [1], {"x": 1}):
        with pytest.raises(DataError, match="field 'a'"):
            storable({"a": value}, False)
        assert storable({"a": value}, True) == {"a": None}


def test_json_output_has_null_for_what_is_not_finite():
    record = {"a": math.nan, "b": [math.inf, np.float64("-inf")], "c": pd.NaT, "d": DAY, "e": b"x", 1: np.int64(3)}
    assert finite_json(record) == {"a": None, "b": [None, None], "c": None, "d": "2024-01-31", "e": "b'x'", "1": 3}
