"""Large public sets as Parquet files with histories, split by time, without a Python object per row."""

# Shapes: N events, C events that count in histories

import gzip
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.json as arrow_json
import pyarrow.parquet as pq
from numpy.typing import NDArray

from moeapps.core.checks import check_sizes
from moeapps.core.errors import DataError
from moeapps.core.tabledata.source import require_columns
from moeapps.recsys.schema import DenseFeature, Schema, SequenceFeature, SparseFeature

__all__ = ["amazon_events", "amazon_schema", "convert_amazon_reviews", "convert_movielens", "movielens_large_schema"]

PARTS = ("train", "val", "test")
_ROWS = 200_000
"""Rows of a Parquet file that are in memory at once."""

_EDITIONS = {
    "reviewerID": ("reviewerID", "asin", "overall", "unixReviewTime"),
    "user_id": ("user_id", "parent_asin", "rating", "timestamp"),
}
"""Amazon's names of user, item, stars and time, by the name of the user: editions of 2014 and 2018, and of 2023."""

_EVENT = ("user_id", "item_id", "rating", "timestamp")
_AMAZON = "expected a file of reviews from https://amazon-reviews-2023.github.io or https://nijianmo.github.io/amazon"


def convert_movielens(folder: str | Path, output: str | Path, max_history: int = 50) -> dict[str, int]:
    """Write MovieLens 20M, 25M or 32M (GroupLens) as ``train.parquet``, ``val.parquet`` and ``test.parquet``.

    The first 80% of the ratings in order of time, the next 10%, the rest; ratings of the same second stay together.
    Columns: ``user_id``, ``item_id``, ``rating``, ``timestamp``, ``year`` and ``genre`` of the film, the history
    ``item_id_history`` as in :func:`~moeapps.recsys.add_history`, and ``liked`` (4 stars or more). The ratings are in
    memory as arrays of numbers; histories are made as they are written.

    Parameters
    ----------
    folder : str or Path
        Folder with ``ratings.csv`` and ``movies.csv``.
    output : str or Path
        Folder to write to; it is made.
    max_history : int, default=50
        Number of newest entries of a history.

    Returns
    -------
    dict of str to int
        Rows of each part.

    Raises
    ------
    DataError
        If a file is missing, lacks a column, or holds something else.
    """
    folder = Path(folder)
    types = {"userId": pa.int32(), "movieId": pa.int32(), "rating": pa.float32(), "timestamp": pa.int64()}
    ratings = _read_csv(folder / "ratings.csv", types)
    movies = _read_csv(folder / "movies.csv", {"movieId": pa.int32(), "title": pa.string(), "genres": pa.string()})
    films = movies.to_pandas().drop_duplicates("movieId").set_index("movieId")
    year = pd.to_numeric(films["title"].str.extract(r"\((\d{4})\)\s*$")[0]).to_numpy(dtype=np.float32)
    genre = pa.array(films["genres"].str.replace("|", "+"))
    events = dict(zip(_EVENT, (ratings.column(name).to_numpy() for name in types), strict=True))

    def of_films(item: NDArray[Any]) -> dict[str, pa.Array]:
        place = films.index.get_indexer(pd.Index(item))
        known = pa.array(place, mask=place < 0)
        return {"year": pa.array(year).take(known), "genre": genre.take(known)}

    return _write(events, Path(output), max_history, of_films)


def movielens_large_schema(max_history: int = 50) -> Schema:
    """Schema of what :func:`convert_movielens` writes.

    Parameters
    ----------
    max_history : int, default=50
        Largest number of items in a history.
    """
    features = (
        SparseFeature("user_id"),
        SparseFeature("item_id"),
        DenseFeature("year"),
        SparseFeature("genre"),
        SequenceFeature("item_id_history", shares="item_id", max_len=max_history),
    )
    return Schema(features, ("liked",), ("rating", "timestamp"))


def convert_amazon_reviews(path: str | Path, output: str | Path, max_history: int = 50) -> dict[str, int]:
    """Write a category of Amazon's reviews as ``train.parquet``, ``val.parquet`` and ``test.parquet``.

    Columns, parts, arguments and errors are those of :func:`convert_movielens`, without ``year`` and ``genre``.

    Parameters
    ----------
    path : str or Path
        A file as :func:`amazon_events` reads it.
    output : str or Path
        Folder to write to; it is made.
    max_history : int, default=50
        Number of newest entries of a history.
    """
    return _write(amazon_events(path), Path(output), max_history)


def amazon_schema(max_history: int = 50) -> Schema:
    """Schema of what :func:`convert_amazon_reviews` writes, and of :func:`~moeapps.recsys.amazon_reviews`.

    Parameters
    ----------
    max_history : int, default=50
        Largest number of items in a history.
    """
    features = (
        SparseFeature("user_id"),
        SparseFeature("item_id"),
        SequenceFeature("item_id_history", shares="item_id", max_len=max_history),
    )
    return Schema(features, ("liked",), ("rating", "timestamp"))


def amazon_events(path: str | Path) -> dict[str, Any]:
    """User, item, stars and time of every review of a file.

    Parameters
    ----------
    path : str or Path
        JSON lines (``reviews_<category>_5.json.gz`` of 2014, ``<category>_5.json.gz`` of 2018, ``<category>.jsonl.gz``
        of 2023), or a table of ratings: ``ratings_<category>.csv`` of 2014 and ``<category>.csv`` of 2018 without a
        header, ``<category>.csv`` or ``.csv.gz`` of 2023 with one.

    Returns
    -------
    dict of str to array
        ``user_id`` and ``item_id`` (categoricals), ``rating`` and ``timestamp`` (seconds, of 2023 milliseconds).

    Raises
    ------
    DataError
        If the file is missing or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist, {_AMAZON}")
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            first = file.readline().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged, or not what its ending says: {error}") from None
    table = _amazon_lines(path, first) if first.startswith("{") else _amazon_ratings(path, first)
    ids = {name: table.column(name).dictionary_encode().combine_chunks().to_pandas() for name in _EVENT[:2]}
    numbers = {name: table.column(name).to_numpy() for name in _EVENT[2:]}
    for name, column in {**ids, **numbers}.items():
        if pd.isna(column).any():
            line = int(pd.isna(column).argmax()) + (2 if "parent_asin" in first.split(",") else 1)
            raise DataError(f"{path}, line {line}: not a review ({name} is missing)")
    return {**ids, **numbers}


def _amazon_lines(path: Path, first: str) -> pa.Table:
    try:
        names = next(names for user, names in _EDITIONS.items() if user in json.loads(first))
    except (ValueError, StopIteration) as error:
        raise DataError(f"{path}, line 1: not a review ({error or 'fields are missing'})") from None
    types = (pa.string(), pa.string(), pa.float32(), pa.int64())
    options = arrow_json.ParseOptions(
        explicit_schema=pa.schema(list(zip(names, types, strict=True))), unexpected_field_behavior="ignore"
    )
    try:
        with pa.input_stream(str(path), compression="detect") as stream:
            table = arrow_json.read_json(stream, arrow_json.ReadOptions(block_size=2**24), options)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not lines of reviews ({error})") from None
    return table.select(list(names)).rename_columns(list(_EVENT))


def _amazon_ratings(path: Path, first: str) -> pa.Table:
    cells = first.split(",")
    types = dict(zip(_EVENT, (pa.string(), pa.string(), pa.float32(), pa.int64()), strict=True))
    if "parent_asin" in cells:
        names = _EDITIONS["user_id"]
        table = _read_csv(path, dict(zip(names, types.values(), strict=True)))
        return table.select(list(names)).rename_columns(list(_EVENT))
    # Without a header: of 2018 item first, of 2014 user first. An item's number has ten characters, a user's has more.
    if len(cells) != 4 or (len(cells[0]) == 10) == (len(cells[1]) == 10):
        raise DataError(f"{path}: {first[:80]!r} is neither a header of 2023 nor a rating of 2014 or 2018; {_AMAZON}")
    order = ["item_id", "user_id"] if len(cells[0]) == 10 else ["user_id", "item_id"]
    return _read_csv(path, types, [*order, "rating", "timestamp"])


def _read_csv(path: Path, types: Mapping[str, pa.DataType], names: list[str] | None = None) -> pa.Table:
    """Columns of a CSV file by name; ``names`` are those of a file without a header."""
    if not path.is_file():
        raise DataError(f"{path} does not exist, expected the files as they are published")
    try:
        if names is None:
            with arrow_csv.open_csv(path) as head:
                present = head.schema.names
            require_columns(types, present, str(path))
        return arrow_csv.read_csv(
            path,
            arrow_csv.ReadOptions(column_names=names),
            convert_options=arrow_csv.ConvertOptions(include_columns=list(types), column_types=dict(types)),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        raise DataError(f"{path}: {error}") from None


def _write(events: dict[str, Any], output: Path, max_history: int, of_items: Any = None) -> dict[str, int]:
    check_sizes(max_history=max_history)
    codes = {name: _codes(events[name]) for name in _EVENT[:2]}
    (user, users), (item, items) = codes["user_id"], codes["item_id"]
    time, rating = np.asarray(events["timestamp"]), np.asarray(events["rating"])
    if len(time) == 0:
        raise DataError("there is no event")
    order, starts, stops, pool = history_ranges(user, item, time, max_history)
    sorted_time = time[order]
    # inverted_cdf gives times that are there, which keeps rows of one time together
    cuts = np.quantile(sorted_time, [0.8, 0.9], method="inverted_cdf")
    bounds = [0, *np.searchsorted(sorted_time, cuts, side="right").tolist(), len(order)]
    rows = dict(zip(PARTS, np.diff(bounds).tolist(), strict=True))
    for name, number in rows.items():
        if number == 0:
            raise DataError(f"a split by time leaves no {name} row of {len(order)}")
    output.mkdir(parents=True, exist_ok=True)
    for part, (begin, end) in zip(PARTS, pairwise(bounds), strict=True):
        writer: pq.ParquetWriter | None = None
        # Under another name until it is whole: a file of the final name is taken to be finished
        temporary = output / f"{part}.parquet.part"
        for first in range(begin, end, _ROWS):
            here = slice(first, min(first + _ROWS, end))
            chosen = order[here]
            table = pa.table(
                {
                    "user_id": _names(user[chosen], users),
                    "item_id": _names(item[chosen], items),
                    "rating": pa.array(rating[chosen]),
                    "timestamp": pa.array(sorted_time[here]),
                    **({} if of_items is None else of_items(item[chosen])),
                    "item_id_history": _lists(pool, starts[here], stops[here], items),
                    "liked": pa.array((rating[chosen] >= 4).astype(np.int8)),
                }
            )
            writer = writer or pq.ParquetWriter(temporary, table.schema, compression="zstd")
            writer.write_table(table)
        assert writer is not None
        writer.close()
        temporary.replace(output / f"{part}.parquet")
    return rows


def _codes(ids: Any) -> tuple[NDArray[Any], pa.Array | None]:
    """Numbers of a column of ids, and what they stand for; None where they stand for themselves."""
    if isinstance(getattr(ids, "dtype", None), pd.CategoricalDtype):
        column = pd.Series(ids)
        return column.cat.codes.to_numpy(), pa.array(column.cat.categories)
    return np.asarray(ids), None


def _names(codes: NDArray[Any], names: pa.Array | None) -> pa.Array:
    return pa.array(codes) if names is None else names.take(pa.array(codes))


def history_ranges(
    user: NDArray[Any], item: NDArray[Any], time: NDArray[Any], max_history: int
) -> tuple[NDArray[np.intp], NDArray[np.int64], NDArray[np.int64], NDArray[Any]]:
    """Where each event's history is in the list of all users' events, for all events at once.

    Parameters
    ----------
    user, item, time : array of shape (N,)
        Numbers of users and items, and times.
    max_history : int
        Number of newest entries of a history.

    Returns
    -------
    order : array of shape (N,)
        Events in order of time, then user, then item.
    starts, stops : array of shape (N,)
        For each of them the range of ``pool`` that is its history: what its user did at earlier times.
    pool : array of shape (N,)
        Items by user, then time.
    """
    order = np.lexsort((item, user, time))
    by_user = np.argsort(user[order], kind="stable")
    sorted_user, sorted_time = user[order][by_user], time[order][by_user]
    place = np.arange(len(order))
    new_user = np.append(True, sorted_user[1:] != sorted_user[:-1])
    new_time = new_user | np.append(True, sorted_time[1:] != sorted_time[:-1])
    # First place of a user, and of a user's events of the same time
    first = np.maximum.accumulate(np.where(new_user, place, 0))
    earlier = np.maximum.accumulate(np.where(new_time, place, 0))
    starts, stops = np.empty_like(place), np.empty_like(place)
    starts[by_user], stops[by_user] = np.maximum(first, earlier - max_history), earlier
    return order, starts, stops, item[order][by_user]


def _lists(
    pool: NDArray[Any], starts: NDArray[np.int64], stops: NDArray[np.int64], names: pa.Array | None
) -> pa.ListArray:
    lengths = stops - starts
    offsets = np.append(0, np.cumsum(lengths))
    inside = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), _names(pool[inside], names))
