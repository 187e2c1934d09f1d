"""Holding rows back for validation."""

import numpy as np
import pytest

from moeapps.core.errors import DataError
from moeapps.core.splits import hold_out


def test_every_row_is_in_one_part():
    train, held = hold_out(50, 0.2, seed=0)
    assert len(held) == 10
    assert sorted([*train, *held]) == list(range(50))


def test_classes_keep_their_ratio():
    codes = np.array([0] * 80 + [1] * 20)
    train, held = hold_out(100, 0.1, seed=1, codes=codes)
    assert (codes[held] == 1).sum() == 2
    assert (codes[train] == 1).sum() == 18


@pytest.mark.parametrize("codes", [np.array([0] * 9 + [1]), np.arange(10) // 2], ids=["one row", "too many classes"])
def test_classes_without_enough_rows_are_split_at_random(codes):
    train, held = hold_out(10, 0.1, seed=0, codes=codes)
    assert (len(train), len(held)) == (9, 1)


def test_a_fraction_of_zero_holds_nothing_back():
    train, held = hold_out(3, 0, seed=0)
    assert list(train) == [0, 1, 2]
    assert len(held) == 0


def test_the_seed_decides():
    assert np.array_equal(hold_out(30, 0.5, 3)[0], hold_out(30, 0.5, 3)[0])
    assert not np.array_equal(hold_out(30, 0.5, 3)[0], hold_out(30, 0.5, 4)[0])


def test_one_row_is_refused():
    with pytest.raises(DataError, match="at least 2"):
        hold_out(1, 0.5, seed=0)


def test_a_row_is_always_left_to_train_on():
    train, held = hold_out(3, 0.99, seed=0)
    assert (len(train), len(held)) == (1, 2)
