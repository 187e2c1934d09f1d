"""Public data sets as frames: census-income with an embedded sample, MovieLens-100K from a local folder."""

import csv
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd

from moeapps.core.errors import DataError
from moeapps.recsys.schema import Dense, Feature, Schema, Sequence, Sparse

__all__ = ["census_income", "census_schema", "movielens_100k", "movielens_schema", "time_split"]

_COLUMNS = (
    "age", "class_worker", "industry_code", "occupation_code", "education", "wage_per_hour", "enrolled",
    "marital_status", "industry", "occupation", "race", "hispanic_origin", "sex", "union_member",
    "unemployment_reason", "employment_status", "capital_gains", "capital_losses", "dividends", "tax_filer",
    "previous_region", "previous_state", "household_detail", "household_summary", "instance_weight",
    "migration_msa", "migration_region", "migration_move", "same_house_last_year", "previous_sunbelt",
    "persons_worked_for", "family_under_18", "father_birth_country", "mother_birth_country", "birth_country",
    "citizenship", "own_business", "veteran_questionnaire", "veteran_benefits", "weeks_worked", "year", "income",
)  # fmt: skip
_NUMBERS = (
    "age",
    "wage_per_hour",
    "capital_gains",
    "capital_losses",
    "dividends",
    "persons_worked_for",
    "weeks_worked",
)


def census_income(path: str | Path | None = None) -> pd.DataFrame:
    """Census-Income (KDD), 1994 and 1995: two tasks, as in the MMoE paper.

    ``income`` is 1 above 50,000 dollars, ``never_married`` is 1 for "Never married"; the marital status itself is left
    out, since it would give the second one away. 39 features, and ``instance_weight``, which is not one.

    Args:
        path: The file ``census-income.test.gz`` or ``census-income.data.gz`` of the UCI repository (comma-separated, no
            header). The embedded sample of 8,000 rows when None.

    Raises:
        DataError: If the file is not there or does not have 42 columns.
    """
    if path is None:
        with files("moeapps.recsys").joinpath("datasets/census_income_sample.parquet").open("rb") as file:
            return pd.read_parquet(file)
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist, expected census-income.test.gz or census-income.data.gz")
    raw = pd.read_csv(path, header=None, skipinitialspace=True, keep_default_na=False, na_values=["?"], dtype=str)
    if raw.shape[1] != len(_COLUMNS):
        raise DataError(f"{path} has {raw.shape[1]} columns, expected {len(_COLUMNS)}")
    raw.columns = pd.Index(_COLUMNS)
    frame = raw.drop(columns=["marital_status", "income"])
    for name in (*_NUMBERS, "instance_weight"):
        frame[name] = pd.to_numeric(frame[name])
    frame["income"] = raw["income"].str.startswith("50000+").astype(int)
    frame["never_married"] = (raw["marital_status"] == "Never married").astype(int)
    return frame


def census_schema() -> Schema:
    """Schema of :func:`census_income`."""
    features: list[Feature] = []
    for name in _COLUMNS:
        if name not in ("marital_status", "income", "instance_weight"):
            features.append(Dense(name) if name in _NUMBERS else Sparse(name))
    return Schema(tuple(features), ("income", "never_married"), ("instance_weight",))


def movielens_100k(folder: str | Path, max_history: int = 50) -> pd.DataFrame:
    """MovieLens-100K as a ranking task: whether the user rates this film 4 or 5.

    One row per rating in time order, with the user's and the film's features and ``item_id_history``: what the same
    user rated at an earlier second, oldest first. Nothing of the row itself or of later ones is in it.

    Args:
        folder: Folder with ``u.data``, ``u.item`` and ``u.user``, as GroupLens distributes them, or with a header line.
        max_history: So many of the newest entries are kept.

    Raises:
        DataError: If a file is not there or not what it should be.
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
    for table, names in ((ratings, ratings.columns), (users, ["user_id", "user_age"]), (items, ["item_id"])):
        for name in names:
            table[name] = pd.to_numeric(table[name])
    frame = ratings.sort_values(["timestamp", "user_id", "item_id"], kind="stable", ignore_index=True)
    frame = frame.merge(users, on="user_id", how="left").merge(
        items[["item_id", "year", "genre"]], on="item_id", how="left"
    )
    histories: list[list[int]] = [[] for _ in range(len(frame))]
    for rows in frame.groupby("user_id").indices.values():
        seen = frame["item_id"].to_numpy()[rows]
        times = frame["timestamp"].to_numpy()[rows]
        for row, before in zip(rows, np.searchsorted(times, times, side="left"), strict=True):
            histories[row] = seen[max(0, before - max_history) : before].tolist()
    frame["item_id_history"] = pd.Series(histories, dtype=object)
    frame["liked"] = (frame["rating"] >= 4).astype(int)
    return frame


def movielens_schema(max_history: int = 50) -> Schema:
    """Schema of :func:`movielens_100k`."""
    features = (
        Sparse("user_id"),
        Sparse("item_id"),
        Dense("user_age"),
        Sparse("gender"),
        Sparse("occupation"),
        Dense("year"),
        Sparse("genre"),
        Sequence("item_id_history", shares="item_id", max_len=max_history),
    )
    return Schema(features, ("liked",), ("rating", "timestamp"))


def time_split(frame: pd.DataFrame, time: str, fractions: tuple[float, float] = (0.8, 0.1)) -> list[pd.DataFrame]:
    """Training, validation and test rows in order of time; rows of the same time stay together.

    Args:
        frame: Rows.
        time: Column of time stamps.
        fractions: Of the training and validation rows; the rest is for testing.

    Raises:
        DataError: If the column is not there or a part would be empty.
    """
    if time not in frame.columns:
        raise DataError(f"the frame has no column {time!r}")
    stamps = frame[time].to_numpy()
    first, second = np.quantile(stamps, [fractions[0], sum(fractions)], method="inverted_cdf")
    masks = [stamps <= first, (stamps > first) & (stamps <= second), stamps > second]
    parts = [frame[mask] for mask in masks]
    for name, part in zip(("training", "validation", "test"), parts, strict=True):
        if len(part) == 0:
            raise DataError(f"fractions={fractions} leaves no {name} row of {len(frame)}")
    return parts


def _read(path: Path, names: list[str]) -> pd.DataFrame:
    if not path.is_file():
        raise DataError(f"{path} does not exist, expected the files u.data, u.item and u.user of MovieLens-100K")
    with path.open(encoding="latin-1") as file:
        first = file.readline()
    separator = "|" if "|" in first else "\t"
    table = pd.read_csv(path, sep=separator, header=None, encoding="latin-1", dtype=str, quoting=csv.QUOTE_NONE)
    if not str(table.iloc[0, 0]).isdigit():  # a copy with a header line
        table.columns = pd.Index(table.iloc[0])
        table = table.iloc[1:].reset_index(drop=True)
    if table.shape[1] < len(names):
        raise DataError(f"{path} has {table.shape[1]} columns, expected at least {len(names)}")
    table.columns = pd.Index([*names, *(str(name) for name in table.columns[len(names) :])])
    return table
