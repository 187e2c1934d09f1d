"""Public data: shapes, no leakage from the future, and what is said when a file is not there."""

import gzip
import json
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moeapps.core.errors import ConfigError, DataError
from moeapps.recsys import (
    PublicRankingData,
    add_history,
    amazon_reviews,
    amazon_schema,
    census_income,
    census_schema,
    convert_ali_ccp,
    convert_movielens,
    kuairand,
    kuairand_schema,
    leave_last_out,
    movielens_1m,
    movielens_100k,
    movielens_schema,
    time_split,
)


@cache
def ratings(data_folder: Path) -> pd.DataFrame:
    return movielens_100k(data_folder / "recsys" / "ml-100k")


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
    frame = ratings(data_folder)
    assert len(frame) == 100_000
    movielens_schema().check_columns(frame, targets=True)
    user = frame[frame["user_id"] == 13]
    for place in (0, 5, 60, 300):
        row = user.iloc[place]
        earlier = user[user["timestamp"] < row["timestamp"]]["item_id"].tolist()
        assert row["item_id_history"] == earlier[-50:]
        assert row["item_id"] not in row["item_id_history"]


def test_a_split_by_time_never_looks_ahead(data_folder):
    frame = ratings(data_folder)
    train, val, test = time_split(frame, "timestamp")
    assert len(train) + len(val) + len(test) == len(frame)
    assert train["timestamp"].max() < val["timestamp"].min()
    assert val["timestamp"].max() < test["timestamp"].min()
    with pytest.raises(DataError, match="lacks the column 'when'"):
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


def test_the_last_row_of_each_user_is_left_out(data_folder):
    frame = ratings(data_folder)
    train, val, test = leave_last_out(frame, "user_id", "timestamp")
    assert len(train) + len(val) + len(test) == len(frame)
    assert len(test) == len(val) == frame["user_id"].nunique()
    last = frame.groupby("user_id")["timestamp"].max()
    assert (test.set_index("user_id")["timestamp"] == last.loc[test["user_id"]]).all()
    joined = test.set_index("user_id")["timestamp"]
    assert (val.set_index("user_id")["timestamp"] <= joined.loc[val["user_id"]].to_numpy()).all()
    short = frame[frame["user_id"] == 1].head(2)
    with pytest.raises(DataError, match="leave_last_out leaves no validation row"):
        leave_last_out(short, "user_id", "timestamp")


def test_a_history_may_remember_only_some_rows():
    frame = pd.DataFrame({"u": [1, 1, 1, 2, 1], "i": [5, 6, 7, 8, 9], "t": [1, 2, 2, 3, 4], "click": [1, 0, 1, 1, 0]})
    found = add_history(frame, "u", "i", "t")
    assert found["i_history"].tolist() == [[], [5], [5], [], [5, 6, 7]]
    found = add_history(frame, "u", "i", "t", max_history=1, where="click")
    assert found["i_history"].tolist() == [[], [5], [5], [], [7]]
    with pytest.raises(DataError, match="lacks the column 'when'"):
        add_history(frame, "u", "i", "when")


TIMES = {
    "text": lambda t: t.astype(str),
    "dates": lambda t: pd.to_datetime(t, unit="D").dt.strftime("%Y-%m-%d"),
    "nanoseconds": lambda t: t + 2**60,
    "with a zone": lambda t: pd.to_datetime(t, unit="D").dt.tz_localize("Europe/Berlin"),
    "nullable": lambda t: t.astype("Int64"),
}


@pytest.mark.parametrize("kind", TIMES)
def test_histories_and_splits_have_the_order_of_time_whatever_its_type(kind):
    frame = pd.DataFrame({"u": [1] * 12, "i": range(12), "t": [9, 10, 8, 11, 3, 100, 20, 2, 1, 4, 5, 6]})
    other = frame.assign(t=TIMES[kind](frame["t"]))
    expected, found = (add_history(table, "u", "i", "t") for table in (frame, other))
    assert found["i"].tolist() == expected["i"].tolist() == frame.sort_values("t")["i"].tolist()
    assert found["i_history"].tolist() == expected["i_history"].tolist()
    for split in (lambda f: time_split(f, "t", (0.5, 0.25)), lambda f: leave_last_out(f, "u", "t")):
        assert [part.index.tolist() for part in split(other)] == [part.index.tolist() for part in split(frame)]


@pytest.mark.parametrize("hole", [None, float("nan"), pd.NA, pd.NaT])
def test_a_missing_time_is_refused_by_row(hole):
    frame = pd.DataFrame({"u": [1] * 4, "i": range(4), "t": pd.Series([3, 2, hole, 1], dtype=object)})
    for use in (
        lambda f: add_history(f, "u", "i", "t"),
        lambda f: time_split(f, "t"),
        lambda f: leave_last_out(f, "u", "t"),
    ):
        with pytest.raises(DataError, match="'t' is missing or infinite at row 2"):
            use(frame)


@pytest.mark.parametrize("clicks", [["1", "0", None, "1"], pd.array([True, False, pd.NA, True]), [1.0, 0, np.nan, 1]])
def test_what_a_history_remembers_is_the_same_of_every_type(clicks):
    frame = pd.DataFrame({"u": [1] * 4, "i": range(4), "t": range(4), "click": clicks})
    assert add_history(frame, "u", "i", "t", where="click")["i_history"].tolist() == [[], [0], [0], [0]]


def test_movielens_1m_is_read(tmp_path):
    (tmp_path / "ratings.dat").write_text("1::10::5::100\n2::10::3::90\n1::20::2::200\n")
    (tmp_path / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n")
    (tmp_path / "movies.dat").write_bytes(
        "10::Amélie (2001)::Comedy|Romance\n20::Heat (1995)::Crime\n".encode("latin-1")
    )
    frame = movielens_1m(tmp_path)
    movielens_schema().check_columns(frame, targets=True)
    assert frame["item_id_history"].tolist() == [[], [], [10]]
    assert frame["genre"].tolist() == ["Comedy+Romance", "Comedy+Romance", "Crime"]
    assert frame["year"].tolist() == [2001, 2001, 1995]
    assert frame["liked"].tolist() == [0, 1, 0]
    data = PublicRankingData("ml-1m", str(tmp_path))
    with pytest.raises(DataError, match="leaves no"):
        data.load("train")


def test_kuairand_is_read_with_clicks_as_history(tmp_path):
    tasks = "is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view"
    (tmp_path / "log_standard_4_08_to_4_21_pure.csv").write_text(
        f"user_id,video_id,date,hourmin,time_ms,{tasks},tab\n"
        "0,7,20220408,1400,1000,1,0,0,0,0,0,1,1\n0,8,20220408,1500,2000,0,0,0,0,0,0,0,1\n"
    )
    (tmp_path / "log_standard_4_22_to_5_08_pure.csv").write_text(
        f"user_id,video_id,date,hourmin,time_ms,{tasks},tab\n0,9,20220422,100,3000,0,1,0,0,0,0,0,2\n"
    )
    ranges = ",".join(f"{name}_user_num_range" for name in ("follow", "fans", "friend"))
    onehot = ",".join(f"onehot_feat{i}" for i in range(18))
    (tmp_path / "user_features_pure.csv").write_text(
        f"user_id,user_active_degree,{ranges},register_days_range,{onehot}\n0,full_active,a,b,c,d,{'1,' * 17}1\n"
    )
    (tmp_path / "video_features_basic_pure.csv").write_text(
        "video_id,author_id,video_type,upload_type,video_duration,music_type,tag\n"
        + "".join(f"{i},3,NORMAL,Web,1000,9,4\n" for i in (7, 8, 9))
    )
    frame = kuairand(tmp_path)
    kuairand_schema().check_columns(frame, targets=True)
    assert frame["video_id_history"].tolist() == [[], [7], [7]]
    assert frame["hour"].tolist() == [14, 15, 1]
    (tmp_path / "user_features_pure.csv").write_text("user_id\n0\n")
    with pytest.raises(DataError, match=r"user_features_pure.csv lacks the columns 'user_active_degree'"):
        kuairand(tmp_path)
    with pytest.raises(DataError, match="expected the folder data of KuaiRand-Pure"):
        kuairand(tmp_path / "nowhere")


def test_amazon_reviews_of_both_forms_are_read(tmp_path):
    old = [{"reviewerID": "A", "asin": f"B{i}", "overall": float(i), "unixReviewTime": i} for i in range(1, 6)]
    with gzip.open(tmp_path / "reviews_X_5.json.gz", "wt") as file:
        file.write("\n".join(json.dumps(row) for row in old))
    frame = amazon_reviews(tmp_path / "reviews_X_5.json.gz", max_history=2)
    assert frame["item_id_history"].tolist()[-1] == ["B3", "B4"]
    assert frame["liked"].tolist() == [0, 0, 0, 1, 1]
    new = {"user_id": "A", "parent_asin": "B", "rating": 5.0, "timestamp": 3}
    (tmp_path / "X.jsonl").write_text(json.dumps(new) + '\n{"user_id": "A"}\n')
    with pytest.raises(DataError, match=r"X.jsonl, line 2: not a review"):
        amazon_reviews(tmp_path / "X.jsonl")


@pytest.mark.parametrize("limit", [None, 2])
def test_ali_ccp_becomes_a_table(limit, tmp_path):
    def features(**values):
        return "\x01".join(f"{field[1:]}\x02{value}\x031.0" for field, value in values.items())

    (tmp_path / "common_features_train.csv").write_text(f"u1,2,{features(f101='9', f122='4')}\n")
    lines = [f"{i},{i % 2},0,u1,2,{features(f205=str(10 + i), f301='1', f999='7')}" for i in range(3)]
    (tmp_path / "sample_skeleton_train.csv").write_text("\n".join(lines) + "\n")
    rows = convert_ali_ccp(tmp_path, tmp_path / "ali.parquet", limit=limit)
    found = pd.read_parquet(tmp_path / "ali.parquet")
    assert len(found) == rows == (limit or 3)
    assert found["click"].tolist() == [0, 1, 0][:rows]
    assert found["field_101"].tolist() == ["9"] * rows
    assert found["field_205"].tolist() == ["10", "11", "12"][:rows]
    (tmp_path / "common_features_train.csv").write_text("u1,2\n")
    with pytest.raises(DataError, match=r"common_features_train.csv, line 1: 2 cells, expected 3"):
        convert_ali_ccp(tmp_path, tmp_path / "ali.parquet")
    with pytest.raises(DataError, match=r"common_features_test.csv does not exist"):
        convert_ali_ccp(tmp_path, tmp_path / "ali.parquet", "test")


def test_what_is_not_there_is_downloaded_checked_and_unpacked_when_asked(tmp_path, monkeypatch):
    asked = []

    def download(url, root, md5):
        asked.append((url, md5))
        folder = Path(root) / "ml-100k"
        folder.mkdir()
        (folder / "u.data").write_text("".join(f"1\t{i}\t{i % 5 + 1}\t{i}\n" for i in range(1, 21)))
        (folder / "u.user").write_text("1|24|M|technician|85711\n")
        (folder / "u.item").write_text("".join(f"{i}|Film|01-Jan-1995||url|1|0\n" for i in range(1, 21)))

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", download)
    data = PublicRankingData("ml-100k", str(tmp_path), download=True)
    data.prepare_data()
    assert len(data.load("train")) == 16
    assert asked == [("https://files.grouplens.org/datasets/movielens/ml-100k.zip", "0e33842e24a9c977be4e0107933c0723")]
    data.prepare_data()
    PublicRankingData("ml-100k", str(tmp_path / "nothing")).prepare_data()
    assert len(asked) == 1


def large_movielens(folder, users=9, films=12, seed=0):
    """Files in the form of MovieLens 20M and 32M."""
    rng = np.random.default_rng(seed)
    rows = [(u, f, rng.integers(1, 11) / 2, rng.integers(0, 60)) for u in range(1, users) for f in range(1, films)]
    lines = [",".join(map(str, row)) for row in rng.permutation(np.array(rows, dtype=object)).tolist()]
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + "\n".join(lines) + "\n")
    titles = [f'{f},"Film, The ({1990 + f})",Comedy|Crime' for f in range(1, films - 1)]
    (folder / "movies.csv").write_text(
        "movieId,title,genres\n" + "\n".join([*titles, f"{films - 1},Serial,War"]) + "\n"
    )
    return pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])


def test_large_movielens_becomes_parts_with_the_histories_of_its_frame(tmp_path):
    frame = add_history(large_movielens(tmp_path), max_history=4)
    parts = dict(zip(["train", "val", "test"], time_split(frame, "timestamp"), strict=True))
    rows = convert_movielens(tmp_path, tmp_path / "out", max_history=4)
    for name, expected in parts.items():
        found = pd.read_parquet(tmp_path / "out" / f"{name}.parquet")
        assert rows[name] == len(found) == len(expected)
        for column in ("user_id", "item_id", "rating", "timestamp"):
            assert found[column].tolist() == expected[column].tolist()
        assert [list(entries) for entries in found["item_id_history"]] == expected["item_id_history"].tolist()
        assert found["liked"].tolist() == (expected["rating"] >= 4).tolist()
    every = pd.concat(pd.read_parquet(tmp_path / "out" / f"{name}.parquet") for name in parts)
    film = every.drop_duplicates("item_id").set_index("item_id")
    assert (film.loc[3, "year"], film.loc[3, "genre"]) == (1993, "Comedy+Crime")
    assert np.isnan(film.loc[11, "year"])


@pytest.mark.parametrize("name", ["ml-20m", "ml-32m"])
def test_large_movielens_is_known_by_name_and_written_once(name, tmp_path, monkeypatch):
    (tmp_path / name).mkdir()
    large_movielens(tmp_path / name)
    data = PublicRankingData(name, str(tmp_path), batch_size=16)
    data.setup("fit")
    path = Path(data.load("train"))
    written = path.stat().st_mtime_ns
    assert path == tmp_path / name / "moeapps" / "train.parquet"
    assert len(data._train) == len(pd.read_parquet(path))
    assert data.encoder.table_sizes[1] > 3
    data.teardown("fit")
    assert Path(PublicRankingData(name, str(tmp_path)).load("test")).name == "test.parquet"
    assert path.stat().st_mtime_ns == written


def test_wrong_files_of_large_movielens_are_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"ratings.csv does not exist"):
        convert_movielens(tmp_path, tmp_path / "out")
    large_movielens(tmp_path)
    (tmp_path / "movies.csv").write_text("movieId,name\n1,x\n")
    with pytest.raises(DataError, match=r"movies.csv lacks the columns 'title', 'genres'"):
        convert_movielens(tmp_path, tmp_path / "out")
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,abc,5,1\n")
    with pytest.raises(DataError, match=r"ratings.csv: .*abc"):
        convert_movielens(tmp_path, tmp_path / "out")
    assert not list(tmp_path.glob("out/*.parquet"))


REVIEWS = [("AUSERNUMBER01", f"B00000000{i}", float(i), i) for i in range(1, 6)]


def ratings_csv(order, header=""):
    return header + "".join(",".join(str(row[i]) for i in order) + "\n" for row in REVIEWS)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Video_Games.csv", ratings_csv((0, 1, 2, 3), "user_id,parent_asin,rating,timestamp\n")),  # 2023
        ("Video_Games.csv", ratings_csv((1, 0, 2, 3))),  # 2018
        ("ratings_Video_Games.csv", ratings_csv((0, 1, 2, 3))),  # 2014
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_amazon_ratings_of_all_editions_are_read(name, text, compressed, tmp_path):
    path = tmp_path / (f"{name}.gz" if compressed else name)
    path.write_bytes(gzip.compress(text.encode()) if compressed else text.encode())
    frame = amazon_reviews(path, max_history=2)
    assert frame["user_id"].unique().tolist() == ["AUSERNUMBER01"]
    assert frame["item_id_history"].tolist()[-1] == ["B000000003", "B000000004"]
    amazon_schema().check_columns(frame, targets=True)


def test_amazon_reviews_become_parts_and_are_known_by_name(tmp_path):
    rng = np.random.default_rng(0)
    lines = [
        {"user_id": f"U{rng.integers(5)}", "parent_asin": f"I{i}", "rating": 4.0, "timestamp": i, "text": "fine"}
        for i in range(50)
    ]
    path = tmp_path / "X.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    data = PublicRankingData("amazon-reviews", str(path))
    train = pd.read_parquet(data.load("train"))
    expected = amazon_reviews(path).head(40)
    assert train["user_id"].tolist() == expected["user_id"].tolist()
    assert [list(entries) for entries in train["item_id_history"]] == expected["item_id_history"].tolist()
    with pytest.raises(ConfigError, match="amazon-reviews is not part of the package: give its file as path"):
        PublicRankingData("amazon-reviews")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "neither a header of 2023 nor a rating of 2014 or 2018"),
        ('{"title": "x"}\n', "line 1: not a review"),
        ("user_id,parent_asin,rating,timestamp\nA,B,x,3\n", "x.csv: .*'x'"),
        ("user_id,parent_asin,rating\nA,B,3\n", "x.csv lacks the column 'timestamp'"),
        ("user_id,parent_asin,rating,timestamp\nA,B,,3\n", "line 2: not a review \\(rating is missing"),
    ],
)
def test_what_is_no_file_of_amazon_reviews_is_refused(text, message, tmp_path):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        amazon_reviews(tmp_path / "x.csv")
