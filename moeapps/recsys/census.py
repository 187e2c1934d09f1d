"""Census-Income (KDD): the set of the MMoE paper, of which a sample is part of the package."""

from importlib.resources import files
from pathlib import Path

import pandas as pd

from moeapps.core.errors import DataError
from moeapps.recsys.schema import DenseFeature, Feature, Schema, SparseFeature

__all__ = ["census_income", "census_schema"]

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
    out, since it determines the second one. 39 features, and ``instance_weight``, which is not one.

    Parameters
    ----------
    path : str or Path, optional
        The file ``census-income.test.gz`` or ``census-income.data.gz`` of the UCI repository (comma-separated, no
        header). The embedded sample of 8,000 rows by default.

    Raises
    ------
    DataError
        If the file is missing or does not have 42 columns.
    """
    if path is None:
        with files("moeapps.recsys").joinpath("embedded/census_income_sample.parquet").open("rb") as file:
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
            features.append(DenseFeature(name) if name in _NUMBERS else SparseFeature(name))
    return Schema(tuple(features), ("income", "never_married"), ("instance_weight",))
