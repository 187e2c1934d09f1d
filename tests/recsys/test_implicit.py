import re

import numpy as np
import pandas as pd
import pytest

from moeapps.core.errors import ConfigError, DataError
from moeapps.recsys import add_history, implicit_feedback
from moeapps.recsys.negatives import NegativeSampler


def events(n=300, users=12, items=20, seed=0):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {"user_id": rng.integers(0, users, n), "item_id": rng.integers(0, items, n), "timestamp": rng.permutation(n)}
    )
    return frame.drop_duplicates(["user_id", "item_id"])


def test_histories_are_those_of_add_history():
    frame = events()
    feedback = implicit_feedback(frame, max_history=5)
    expected = add_history(frame, max_history=5)  # in order of time, as the feedback
    found = feedback.names_of(feedback.histories(slice(None)))
    assert found.tolist() == expected["item_id_history"].tolist()


def test_events_of_one_time_are_not_in_each_others_history():
    frame = pd.DataFrame({"user_id": [1, 1, 1, 1], "item_id": [5, 6, 7, 8], "timestamp": [0, 1, 1, 2]})
    feedback = implicit_feedback(frame)
    found = feedback.names_of(feedback.histories(slice(None))).tolist()
    assert found == [[], [5], [5], [5, 6, 7]]


def test_the_last_event_of_each_user_is_tested_and_the_one_before_validates():
    frame = events()
    train, val, test = implicit_feedback(frame).leave_last_out()
    assert len(train) + len(val) + len(test) == len(frame)
    ordered = frame.sort_values("timestamp")
    last = ordered.groupby("user_id").tail(1).set_index("user_id")["item_id"]
    found = test.joined(test.events.user, test.events.item).set_index("user_id")["item_id"]
    assert found.sort_index().to_dict() == last.sort_index().to_dict()
    # A test history has everything before, a training history nothing of the later parts
    assert (test.history_lengths() == frame["user_id"].value_counts().loc[found.index] - 1).all()


def test_short_users_are_trained_on_only():
    frame = pd.DataFrame({"user_id": list("aabbb"), "item_id": [1, 2, 1, 2, 3], "timestamp": range(5)})
    train, val, test = implicit_feedback(frame).leave_last_out()
    assert [len(part) for part in (train, val, test)] == [3, 1, 1]


def test_events_of_one_time_stay_in_one_part():
    frame = events().assign(timestamp=lambda f: f["timestamp"] // 10)
    parts = implicit_feedback(frame).time_split()
    times = [set(part.events.time.tolist()) for part in parts]
    assert all(times)
    assert not (times[0] & times[1])
    assert not (times[1] & times[2])


def test_a_part_without_events_is_refused():
    frame = pd.DataFrame({"user_id": [1, 2], "item_id": [1, 2], "timestamp": [0, 1]})
    with pytest.raises(DataError, match="users need at least three events; there is no validation event among 2"):
        implicit_feedback(frame).leave_last_out()


@pytest.mark.parametrize("sampler", ["uniform", "popularity"])
def test_no_negative_is_one_of_the_users_own(sampler):
    frame = events()
    feedback = implicit_feedback(frame, sampler=sampler)
    draws = feedback.negative_sampler(0).draw(feedback.events.user, np.arange(len(feedback)), 50)
    own = set(zip(feedback.events.user.tolist(), feedback.events.item.tolist(), strict=True))
    drawn = {
        (user, item) for user, row in zip(feedback.events.user.tolist(), draws.tolist(), strict=True) for item in row
    }
    assert not own & drawn


def test_uniform_negatives_reach_every_other_item_alike():
    sampler = NegativeSampler(np.array([0, 0, 0]), np.array([0, 3, 4]), 8)
    drawn = sampler.draw(np.zeros(2000, dtype=np.int64), np.arange(2000), 10)
    counts = np.bincount(drawn.ravel(), minlength=8)
    assert (counts[[0, 3, 4]] == 0).all()
    assert np.abs(counts[[1, 2, 5, 6, 7]] / 20_000 - 0.2).max() < 0.012  # four standard errors


def test_popular_negatives_follow_the_counts():
    users, items = np.arange(1, 101), np.repeat([0, 1], [80, 20])
    drawn = NegativeSampler(users, items, 2, "popularity").draw(np.zeros(5000, np.int64), np.arange(5000), 2)
    expected = 80**0.75 / (80**0.75 + 20**0.75)
    assert abs((drawn == 0).mean() - expected) < 0.02


def test_negatives_depend_on_seed_epoch_and_event_alone():
    sampler = NegativeSampler(np.array([0, 1]), np.array([0, 1]), 1000, seed=3)
    users, numbers = np.array([0, 1, 1]), np.array([5, 6, 7])
    whole = sampler.draw(users, numbers, 4, epoch=2)
    np.testing.assert_array_equal(sampler.draw(users[::-1], numbers[::-1], 4, epoch=2)[::-1], whole)
    assert (sampler.draw(users, numbers, 4, epoch=3) != whole).mean() > 0.9
    assert (NegativeSampler(np.array([0, 1]), np.array([0, 1]), 1000, seed=4).draw(users, numbers, 4, 2) != whole).any()


def test_a_user_who_has_everything_gets_no_negative():
    sampler = NegativeSampler(np.array([0, 0]), np.array([0, 1]), 2)
    assert (sampler.draw(np.array([0, 1]), np.array([0, 1]), 3)[0] == -1).all()


def test_rows_are_a_table_for_any_model():
    feedback = implicit_feedback(events(), negatives=2)
    rows = feedback.rows()
    assert list(rows.columns) == ["user_id", "item_id", "item_id_history", "interaction"]
    assert rows["interaction"].sum() == len(feedback)
    assert len(rows) == 3 * len(feedback)


def test_features_come_from_the_tables_of_users_and_items():
    users = pd.DataFrame({"user_id": range(12), "country": ["de", "fr"] * 6})
    items = pd.DataFrame({"item_id": range(25), "price": np.arange(25.0)})  # five items without events
    feedback = implicit_feedback(events(), users=users, items=items)
    assert len(feedback.items) == 25
    rows = feedback.rows()
    assert (rows["price"] == rows["item_id"]).all()


def test_a_file_gives_the_same_as_a_frame(tmp_path):
    frame = events()
    frame.to_csv(tmp_path / "events.csv", index=False)
    from_file, from_frame = implicit_feedback(tmp_path / "events.csv"), implicit_feedback(frame)
    pd.testing.assert_frame_equal(from_file.rows(), from_frame.rows(), check_dtype=False)


def test_ids_keep_leading_zeros_and_large_numbers(tmp_path):
    (tmp_path / "events.csv").write_text(
        "user_id,item_id,timestamp\n007,9007199254740993,1\n7,9007199254740992,2\n007,9007199254740992,10\n"
    )
    feedback = implicit_feedback(tmp_path / "events.csv")
    assert feedback.users["user_id"].tolist() == ["007", "7"]
    assert feedback.items["item_id"].tolist() == [9007199254740993, 9007199254740992]
    assert feedback.events.time.tolist() == [1, 2, 10]


def test_dates_give_the_order():
    frame = pd.DataFrame(
        {"user_id": [1, 1, 1], "item_id": [1, 2, 3], "timestamp": ["2026-03-01", "2025-12-31", "2026-02-01"]}
    )
    feedback = implicit_feedback(frame)
    assert feedback.names_of(feedback.latest(np.array([0]))).tolist() == [[2, 3, 1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item_id": [1.0, None, 3.0]}, "frame: 'item_id' is missing at row 1 .1 row in all.: drop such rows"),
        ({"timestamp": [1.0, 2.0, np.nan]}, "frame: 'timestamp' is missing or infinite at row 2"),
    ],
)
def test_a_missing_cell_is_refused_by_row(change, message):
    frame = pd.DataFrame({"user_id": [1, 1, 2], "item_id": [1, 2, 3], "timestamp": [1, 2, 3]}).assign(**change)
    with pytest.raises(DataError, match=message):
        implicit_feedback(frame)


FILES = {
    "id": ("u1,,2026-01-03", "events.csv: 'item_id' is missing at row 2 (1 row in all): drop such rows"),
    "time": ("u1,a,", "events.csv: 'timestamp' is missing or infinite at row 2"),
    "no time": ("u1,a,yesterday", "events.csv: column 'timestamp', row 2: 'yesterday' is not a time"),
}


@pytest.mark.parametrize(("row", "message"), FILES.values(), ids=FILES)
def test_a_wrong_cell_of_a_file_is_refused_by_file_and_row(tmp_path, monkeypatch, row, message):
    monkeypatch.chdir(tmp_path)
    rows = ["user_id,item_id,timestamp", "u1,a,2026-01-01", "u2,b,2026-01-02", row, "u2,c,2026-01-04"]
    (tmp_path / "events.csv").write_text("\n".join(rows))
    with pytest.raises(DataError, match=re.escape(message)):
        implicit_feedback("events.csv")


def test_a_wrong_number_among_times_that_are_numbers_is_named():
    frame = pd.DataFrame({"user_id": [1, 1, 2], "item_id": [1, 2, 3], "timestamp": ["1", "2", "late"]})
    with pytest.raises(DataError, match="the frame: column 'timestamp', row 2: 'late' is not a number"):
        implicit_feedback(frame)


def test_a_file_of_features_is_named_where_a_row_is_missing_in_it(tmp_path):
    pd.DataFrame({"item_id": range(19)}).to_csv(tmp_path / "items.csv", index=False)
    with pytest.raises(DataError, match=r"items\.csv has no row for item_id=19, which is in the frame"):
        implicit_feedback(events(), items=tmp_path / "items.csv")


def test_an_item_without_a_row_of_features_is_refused_by_name():
    with pytest.raises(DataError, match="items has no row for item_id=19"):
        implicit_feedback(events(), items=pd.DataFrame({"item_id": range(19)}))


def test_an_item_with_two_rows_is_refused():
    with pytest.raises(DataError, match="items has 3 of 'item_id' twice: one row for each"):
        implicit_feedback(events(), items=pd.DataFrame({"item_id": [*range(20), 3]}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"negatives": 0}, "negatives must be"),
        ({"sampler": "all"}, "sampler must be one of"),
        ({"item": "user_id"}, "user, item and time must be three columns"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        implicit_feedback(events(), **arguments)


def test_a_missing_column_is_refused_by_name():
    with pytest.raises(DataError, match=r"lacks the column 'time', which time names; did you mean 'timestamp'\?"):
        implicit_feedback(events(), time="time")
    with pytest.raises(DataError, match=r"'user', 'time', which user, time name \(it has 'user_id', 'item_id'"):
        implicit_feedback(events(), user="user", time="time")
    with pytest.raises(DataError, match="lacks the column 'user_id', which user names"):
        implicit_feedback(events(), users=pd.DataFrame({"client": [1]}))
