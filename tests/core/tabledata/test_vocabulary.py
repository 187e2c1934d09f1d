"""Categories and their codes: one for the same cell, whatever it was read from."""

import numpy as np
import pandas as pd
import pytest

from moeapps.core.errors import DataError
from moeapps.core.tabledata.vocabulary import MISSING, UNKNOWN, Vocabulary


def test_a_number_that_could_be_one_of_several_texts_is_refused_even_if_one_is_written_like_it():
    """``pandas.read_csv`` makes 1 of "01" and of "1": taking it for "1" would be wrong for the others in silence."""
    vocabulary = Vocabulary(["1", "01", "x", "00501"], name="code")
    assert vocabulary.codes(pd.Series(["1", "01", "x", None, "2"])).tolist() == [0, 1, 2, MISSING, UNKNOWN]
    assert vocabulary.codes(pd.Series([501, 2])).tolist() == [3, UNKNOWN]
    for number in (1, 1.0, np.int64(1)):
        with pytest.raises(DataError, match="column 'code' was text in training, where '1' and '01' differ"):
            vocabulary.codes(pd.Series([501, number]))


def test_numbers_are_found_however_they_are_written():
    vocabulary = Vocabulary([7, 19, 2**64 - 1])
    texts = pd.Series(["7", "19.0", "007", "1.9e1", "18446744073709551615", "18446744073709551614"])
    assert vocabulary.codes(texts).tolist() == [0, 1, 0, 1, 2, UNKNOWN]
    assert vocabulary.codes(pd.Series([7.0, np.nan])).tolist() == [0, MISSING]


def test_bools_and_the_numbers_0_and_1_stand_for_each_other_where_there_is_nothing_else():
    assert Vocabulary([True, False]).codes(pd.Series(["true", "FALSE", "1"])).tolist() == [0, 1, 0]
    assert Vocabulary([0, 1]).codes(pd.Series([True, False])).tolist() == [1, 0]
    assert Vocabulary([0, 1, 2]).codes(pd.Series([True, False])).tolist() == [UNKNOWN, UNKNOWN]
    mixed = pd.Series([1, True, None, "maybe"], dtype=object)
    assert Vocabulary([1, True, "maybe"]).codes(mixed).tolist() == [0, 1, MISSING, 2]
