import pytest

from moeapps.registry import did_you_mean, nearest


@pytest.mark.parametrize(
    ("name", "known", "meant"),
    [
        ("id", ["ID", "age"], "ID"),
        ("USER_ID", ["user_id", "item_id"], "user_id"),
        ("Id", ["id", "ID"], "id"),
        ("ridge", ["ridge regression", "mean"], "ridge regression"),
        ("zzz", ["age", "city"], None),
    ],
)
def test_the_nearest_name_is_found_in_any_case(name, known, meant):
    assert nearest(name, known) == meant


def test_a_guess_in_another_case_is_offered():
    assert did_you_mean("id", ["ID"]) == "; did you mean 'ID'?"
