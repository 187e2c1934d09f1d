"""Public data: shapes, no leakage from the future, and what is said when a file is not there."""

import numpy as np
import pytest

from moeapps.core.errors import DataError
from moeapps.recsys import census_income, census_schema, movielens_100k, movielens_schema, time_split


def test_the_embedded_sample_is_that_of_the_file(data_folder):
    sample, whole = census_income(), census_income(data_folder / "recsys" / "census-income.test.gz")
    assert sample.shape == (8000, 42)
    assert whole.shape == (99762, 42)
    assert sample.columns.tolist() == whole.columns.tolist()
    assert whole["income"].mean() == pytest.approx(0.0620, abs=1e-4)
    assert sample["income"].mean() == pytest.approx(whole["income"].mean(), abs=0.01)
    assert "NA" in set(whole["hispanic_origin"])  # D2: a category, where "?" is a missing value
    assert whole["migration_msa"].isna().any()
    census_schema().check_columns(sample, targets=True)


def test_a_history_holds_only_what_was_earlier(data_folder):
    frame = movielens_100k(data_folder / "recsys" / "ml-100k")
    assert len(frame) == 100_000
    movielens_schema().check_columns(frame, targets=True)
    user = frame[frame["user_id"] == 13]
    for place in (0, 5, 60, 300):
        row = user.iloc[place]
        earlier = user[user["timestamp"] < row["timestamp"]]["item_id"].tolist()
        assert row["item_id_history"] == earlier[-50:]
        assert row["item_id"] not in row["item_id_history"]


def test_a_split_by_time_never_looks_ahead(data_folder):
    frame = movielens_100k(data_folder / "recsys" / "ml-100k")
    train, val, test = time_split(frame, "timestamp")
    assert len(train) + len(val) + len(test) == len(frame)
    assert train["timestamp"].max() < val["timestamp"].min()
    assert val["timestamp"].max() < test["timestamp"].min()
    with pytest.raises(DataError, match="no column 'when'"):
        time_split(frame, "when")
    with pytest.raises(DataError, match="leaves no validation row"):
        time_split(frame.assign(timestamp=np.arange(len(frame)) // 99_000), "timestamp")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="census-income.test.gz"):
        census_income(tmp_path / "x.gz")
    with pytest.raises(DataError, match="u.data does not exist"):
        movielens_100k(tmp_path)
    (tmp_path / "two.csv").write_text("1,2\n")
    with pytest.raises(DataError, match="has 2 columns, expected 42"):
        census_income(tmp_path / "two.csv")
