"""MoE estimators against scikit-learn's on scikit-learn's embedded sets and, where it is at hand, census-income.

    python benchmarks/tabular.py [--seeds 5] [--sets wine,diabetes] [--output benchmarks/results/tabular.json]

Every model gets the same random split (10 % test for census-income, 25 % elsewhere) and columns it can read: one-hot
codes and standardised numbers for linear model and MLP, ordinal codes for the forest, category columns for gradient
boosting, the raw frame for the MoE. Settings are the defaults, except where ``models`` says otherwise. Scores are mean
and standard deviation over seeds; seconds are the mean of fit and of predicting the test rows, in one process.

census-income is the file of the same name in the folder that MOEAPPS_DATA names (99,762 rows); without it, it is left
out.
"""

import argparse
import json
import os
import platform
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from sklearn import datasets
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import accuracy_score, r2_score, roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from moeapps import MoEClassifier, MoERegressor

CENSUS = "census-income"
SETS = ("iris", "wine", "breast_cancer", "digits", "diabetes", CENSUS)
NOMINAL = (2, 3, 36, 38, 40)  # columns of census-income whose numbers are codes


def load(name: str) -> tuple[pd.DataFrame, np.ndarray] | None:
    """One data set as a frame and its target; None where the file is not at hand."""
    if name != CENSUS:
        X, y = getattr(datasets, f"load_{name}")(return_X_y=True, as_frame=True)
        return X.astype(float), y.to_numpy()
    file = Path(os.environ.get("MOEAPPS_DATA", "")) / "recsys" / "census-income.test.gz"
    if not file.is_file():
        return None
    table = pd.read_csv(file, header=None, keep_default_na=False, skipinitialspace=True)
    y = (table[41].str.strip() != "- 50000.").to_numpy().astype(int)
    X = table.drop(columns=[24, 41]).replace("?", np.nan)  # column 24 is the sampling weight
    X[list(NOMINAL)] = X[list(NOMINAL)].astype(str)
    return X.rename(columns=str), y


def encoded(kind: str) -> Any:
    """Columns as a rival reads them: "linear" or "tree"."""
    text, numbers = make_column_selector(dtype_exclude="number"), make_column_selector(dtype_include="number")
    if kind == "linear":
        one_hot = OneHotEncoder(handle_unknown="ignore", min_frequency=20)
        return make_column_transformer((one_hot, text), (make_pipeline(SimpleImputer(), StandardScaler()), numbers))
    ordinal = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2)
    return make_column_transformer((ordinal, text), remainder="passthrough")


def models(regression: bool, seed: int, large: bool) -> dict[str, Any]:
    """All models by name. On the large set the MoE gets a smaller step and the dropout that its categories ask for."""
    moe: dict[str, Any] = {"dropout": 0.1, "lr": 1e-3, "max_epochs": 20, "patience": 4} if large else {}
    if regression:
        return {
            "MoE": MoERegressor(random_state=seed, **moe),
            "HistGradientBoosting": HistGradientBoostingRegressor(random_state=seed),
            "RandomForest": make_pipeline(encoded("tree"), RandomForestRegressor(random_state=seed, n_jobs=2)),
            "MLP": make_pipeline(encoded("linear"), MLPRegressor(random_state=seed, max_iter=500)),
            "linear": make_pipeline(encoded("linear"), RidgeCV()),
        }
    return {
        "MoE": MoEClassifier(random_state=seed, **moe),
        "HistGradientBoosting": HistGradientBoostingClassifier(categorical_features="from_dtype", random_state=seed),
        "RandomForest": make_pipeline(encoded("tree"), RandomForestClassifier(random_state=seed, n_jobs=2)),
        "MLP": make_pipeline(encoded("linear"), MLPClassifier(random_state=seed, early_stopping=large)),
        "linear": make_pipeline(encoded("linear"), LogisticRegression(max_iter=1000)),
    }


def score(model: Any, X: pd.DataFrame, y: np.ndarray, metric: str) -> float:
    if metric == "ROC-AUC":
        return float(roc_auc_score(y, model.predict_proba(X)[:, 1]))
    return float((r2_score if metric == "R2" else accuracy_score)(y, model.predict(X)))


def measure(name: str, seeds: int) -> dict[str, Any] | None:
    found = load(name)
    if found is None:
        return None
    X, y = found
    as_category = X.astype(dict.fromkeys(X.select_dtypes(exclude="number"), "category"))
    regression, large = name == "diabetes", name == CENSUS
    metric = "R2" if regression else "ROC-AUC" if large else "accuracy"
    results: dict[str, dict[str, list[float]]] = {}
    for seed in range(seeds):
        train, test = train_test_split(
            np.arange(len(X)), test_size=0.1 if large else 0.25, random_state=seed, stratify=None if regression else y
        )
        for model_name, model in models(regression, seed, large).items():
            table = as_category if model_name == "HistGradientBoosting" else X
            start = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(table.iloc[train], y[train])
            fitted = time.perf_counter()
            value = score(model, table.iloc[test], y[test], metric)
            entry = results.setdefault(model_name, {"score": [], "fit": [], "predict": []})
            entry["score"].append(value)
            entry["fit"].append(fitted - start)
            entry["predict"].append(time.perf_counter() - fitted)
            print(f"{name} seed {seed} {model_name}: {metric} {value:.4f}, fit {fitted - start:.1f} s", flush=True)
    return {"rows": len(X), "columns": X.shape[1], "metric": metric, "models": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sets", default=",".join(SETS), help="comma-separated; the others keep their last results")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/tabular.json"))
    options = parser.parse_args()
    results = {name: found for name in options.sets.split(",") if (found := measure(name, options.seeds)) is not None}
    names = list(models(False, 0, False))
    table = Table(title=f"score (fit s, predict s), mean ± standard deviation over {options.seeds} seeds")
    table.add_column("set")
    for name in names:
        table.add_column(name, justify="right")
    for name, result in results.items():
        cells = []
        for model_name in names:
            entry = {key: np.array(values) for key, values in result["models"][model_name].items()}
            cells.append(
                f"{entry['score'].mean():.4f} ± {entry['score'].std():.4f}\n"
                f"({entry['fit'].mean():.2f}, {entry['predict'].mean():.3f})"
            )
        table.add_row(f"{name}\n{result['rows']} x {result['columns']}, {result['metric']}", *cells)
    Console(width=140).print(table)
    known = json.loads(options.output.read_text())["sets"] if options.output.is_file() else {}
    document = {
        "sets": {name: found for name in SETS if (found := results.get(name, known.get(name))) is not None},
        "seeds": options.seeds,
        "machine": {"device": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
