"""MovieLens as a ranking task: from what a user has rated before, whether the next film is liked."""

import csv
from pathlib import Path

import pandas as pd

from moeapps.core.errors import DataError
from moeapps.recsys.histories import add_history
from moeapps.recsys.schema import DenseFeature, Schema, SequenceFeature, SparseFeature

__all__ = ["movielens_1m", "movielens_100k", "movielens_schema"]


def movielens_100k(folder: str | Path, max_history: int = 50) -> pd.DataFrame:
    """MovieLens-100K: whether the user rates this film 4 or 5.

    One row per rating in time order, with the user's and the film's features and ``item_id_history``: the films that
    the user rated at an earlier second, oldest first.

    Parameters
    ----------
    folder : str or Path
        Folder with ``u.data``, ``u.item`` and ``u.user``, as GroupLens distributes them, or with a header line.
    max_history : int, default=50
        Number of newest entries of a history.

    Raises
    ------
    DataError
        If a file is missing or has too few columns.
    """
    folder = Path(folder)
    ratings = _read(folder / "u.data", ["user_id", "item_id", "rating", "timestamp"])
    users = _read(folder / "u.user", ["user_id", "user_age", "gender", "occupation", "zip"]).drop(columns="zip")
    items = _read(folder / "u.item", ["item_id", "title", "released", "video", "url"])
    genres = items.columns[5:]
    items["year"] = pd.to_numeric(items["released"].str.extract(r"(\d{4})$")[0])
    items["genre"] = [
        "+".join(str(name) for name, value in zip(genres, row, strict=True) if int(value))
        for row in items[list(genres)].to_numpy()
    ]
    return _joined(ratings, users, items, max_history)


def movielens_1m(folder: str | Path, max_history: int = 50) -> pd.DataFrame:
    """MovieLens-1M, with the columns and errors of :func:`movielens_100k`.

    Parameters
    ----------
    folder : str or Path
        Folder with ``ratings.dat``, ``users.dat`` and ``movies.dat``.
    max_history : int, default=50
        As there.
    """
    folder = Path(folder)
    ratings = _read(folder / "ratings.dat", ["user_id", "item_id", "rating", "timestamp"])
    users = _read(folder / "users.dat", ["user_id", "gender", "user_age", "occupation", "zip"]).drop(columns="zip")
    items = _read(folder / "movies.dat", ["item_id", "title", "genre"])
    items["year"] = pd.to_numeric(items["title"].str.extract(r"\((\d{4})\)\s*$")[0])
    items["genre"] = items["genre"].str.replace("|", "+")
    return _joined(ratings, users, items, max_history)


def movielens_schema(max_history: int = 50) -> Schema:
    """Schema of :func:`movielens_100k` and :func:`movielens_1m`.

    Parameters
    ----------
    max_history : int, default=50
        Largest number of items in a history.
    """
    features = (
        SparseFeature("user_id"),
        SparseFeature("item_id"),
        DenseFeature("user_age"),
        SparseFeature("gender"),
        SparseFeature("occupation"),
        DenseFeature("year"),
        SparseFeature("genre"),
        SequenceFeature("item_id_history", shares="item_id", max_len=max_history),
    )
    return Schema(features, ("liked",), ("rating", "timestamp"))


def _joined(ratings: pd.DataFrame, users: pd.DataFrame, items: pd.DataFrame, max_history: int) -> pd.DataFrame:
    for table, names in ((ratings, ratings.columns), (users, ["user_id", "user_age"]), (items, ["item_id"])):
        for name in names:
            table[name] = pd.to_numeric(table[name])
    frame = add_history(ratings, max_history=max_history)
    frame = frame.merge(users, on="user_id", how="left")
    frame = frame.merge(items[["item_id", "year", "genre"]], on="item_id", how="left")
    frame["liked"] = (frame["rating"] >= 4).astype(int)
    return frame


def _read(path: Path, names: list[str]) -> pd.DataFrame:
    if not path.is_file():
        raise DataError(f"{path} does not exist, expected the files of MovieLens as GroupLens distributes them")
    with path.open(encoding="latin-1") as file:
        first = file.readline()
    separator = next((mark for mark in ("::", "|") if mark in first), "\t")
    # pandas' fast parser has separators of one character only
    engine = "python" if separator == "::" else "c"
    table = pd.read_csv(
        path, sep=separator, header=None, encoding="latin-1", dtype=str, quoting=csv.QUOTE_NONE, engine=engine
    )  # type: ignore[call-overload]
    # GroupLens' files have no header
    if not str(table.iloc[0, 0]).isdigit():  # a copy with a header line
        table.columns = pd.Index(table.iloc[0])
        table = table.iloc[1:].reset_index(drop=True)
    if table.shape[1] < len(names):
        raise DataError(f"{path} has {table.shape[1]} columns, expected at least {len(names)}")
    table.columns = pd.Index([*names, *(str(name) for name in table.columns[len(names) :])])
    return table
