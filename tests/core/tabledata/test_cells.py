"""What a cell means, whatever it came from."""

import math
import re
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeapps.core.errors import ConfigError, DataError
from moeapps.core.tabledata.cells import (
    MISSING_VALUES,
    category_text,
    guess_kind,
    is_missing_cell,
    missing_texts,
    number_key,
    read_cell,
    shown,
    text_kind,
)


def test_the_default_missing_texts_are_those_of_pandas():
    """A file read by path and the frame that pandas makes of it must agree."""
    from pandas._libs.parsers import STR_NA_VALUES

    assert set(MISSING_VALUES) == set(STR_NA_VALUES)
    assert missing_texts() == set(MISSING_VALUES)
    assert missing_texts(["?"]) == {"?", ""}
    assert missing_texts([]) == {""}
    for wrong in ("?", [1]):
        with pytest.raises(ConfigError, match="missing_values must be 'auto' or a list of texts"):
            missing_texts(wrong)


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        ("7", "whole"), ("0", "whole"), ("-3", "whole"), ("12345678901234567890123", "whole"), ("007", "text"),
        ("1.5", "number"), ("1E5", "number"), (" 7", "number"), ("+7", "number"), ("true", "bool"),
        ("2024-01-31", "time"),
        ("2024-01-31T10:00:00.5+02:00", "time"), ("[1, 2]", "list"), ("30,5", "text"), ("A12", "text"), ("", "text"),
    ],
)  # fmt: skip
def test_one_cell_has_its_most_special_kind(cell, kind):
    assert text_kind(cell) == kind


def test_a_column_has_the_kind_that_all_of_its_cells_have():
    assert guess_kind(["1", "NA", "7"]) == "whole"
    assert guess_kind(["1", "", "2.5"]) == "number"
    assert guess_kind(["123", "A12"]) == "text"
    assert guess_kind(["12", "007"]) == "text"
    assert guess_kind(["NA"]) == "text"
    assert guess_kind(["1", "?"]) == "text"
    assert guess_kind(["1", "?"], frozenset({"?"})) == "whole"


def test_cells_are_read_exactly():
    assert read_cell("12345678901234567890", "whole") == 12345678901234567890
    assert read_cell("19.0", "whole") == 19
    assert read_cell("12345678901234567890", "number") == 12345678901234567890
    assert read_cell("1E5", "number") == 1e5
    assert read_cell("1E5", "text") == "1E5"
    assert read_cell("NA", "text") is None
    assert read_cell("TRUE", "bool") is True
    assert read_cell("1970-01-02", "time") == 86400 == read_cell("1970-01-02T02:00+02:00", "time")
    assert read_cell("[1, null]", "list") == [1, None]


@pytest.mark.parametrize(
    ("cell", "kind", "expected"),
    [
        ("30,5", "number", "a finite number"), ("38.96 years", "number", "a finite number"),
        ("1e400", "number", "a finite"),
        ("inf", "number", "a finite number"), ("1.5", "whole", "a whole number"), ("yes", "bool", "true or false"),
        ("2024-13-45", "time", "a time as ISO 8601 writes it"), ("[1", "list", "a JSON list"),
        ("1e9999999", "whole", "a wh"),
    ],
)  # fmt: skip
def test_a_cell_of_another_kind_is_refused_by_name(cell, kind, expected):
    with pytest.raises(DataError, match=re.escape(f"'{cell}' is not {expected}")):
        read_cell(cell, kind)


@given(st.integers(-(10**30), 10**30))
def test_a_whole_number_is_one_category_however_it_is_written(value):
    assert category_text(value) == str(value) == category_text(str(value)) == category_text(Decimal(value))
    assert number_key(str(value)) == number_key(f"{value}.0") == number_key(f"{value}e0")
    if abs(value) <= 2**53:
        assert category_text(float(value)) == str(value) == category_text(np.int64(value))


@given(st.text(max_size=30))
def test_no_text_makes_number_key_fail(text):
    key = number_key(text)
    assert key is None or math.isclose(float(text), key[0] * float(f"{key[1]}e{key[2]}"), rel_tol=1e-9)


def test_categories_that_cannot_be_told_apart_or_written_are_refused():
    with pytest.raises(DataError, match=r"beyond 2\*\*53"):
        category_text(1.2345678901234567e18)
    for wrong in ([1], b"a", {"a": 1}, 1j, Decimal("1e999999")):
        with pytest.raises(DataError, match="is not a category"):
            category_text(wrong)
    assert category_text(True) == "True" == category_text(np.bool_(True)) != category_text(1)
    assert category_text(1.5) == "1.5" == category_text(Decimal("1.50")) == category_text(np.float64(1.5))
    assert category_text(pd.Timestamp("2024-01-31")) == "2024-01-31T00:00:00"


@pytest.mark.parametrize(
    "value", [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT, np.datetime64("NaT", "ns"), Decimal("NaN")]
)
def test_every_missing_value_of_python_is_missing(value):
    assert is_missing_cell(value)


def test_missing_texts_are_missing_only_where_they_are_named():
    assert is_missing_cell("NA", missing_texts())
    assert not is_missing_cell("NA")
    assert not is_missing_cell("?", missing_texts())


def test_messages_stay_short_whatever_the_cell():
    for value in ("x" * 10**6, 10**5000, [0] * 10**5):
        assert len(shown(value)) < 120
    with pytest.raises(DataError, match="4,000 digits"):
        category_text(10**5000)


@pytest.mark.parametrize("cell", ["now", "today", "-1.5", "1.5", "12345", "01/02/2024"])
def test_a_time_is_only_what_iso_8601_writes_and_never_the_clock(cell):
    with pytest.raises(DataError, match="is not a time as ISO 8601 writes it"):
        read_cell(cell, "time")


def test_a_whole_number_of_thousands_of_digits_is_refused_by_its_length():
    assert read_cell("9" * 4000, "whole") == 10**4000 - 1
    for cell in ("9" * 4001, "9" * 5000, "9" * 3900 + "e200"):
        with pytest.raises(DataError, match="more than 4,000 digits"):
            read_cell(cell, "whole")
