"""What each part of the defaults of MoEClassifier and MoERegressor brings, on the tables that they were chosen on.

    OMP_NUM_THREADS=1 python benchmarks/tabular_ablation.py [--rows 1500] [--seeds 2] [--sets attrition,ames] [--show]

The default is fitted, then variants in which one part is taken away or changed, then gradient boosting and a random
forest at their defaults. A seed is a split of the table and the ``random_state`` of every model: at most ``--rows``
rows for training (and at most three quarters of the table), at most 3,000 others for the test. Every variant of a
table and seed gets the same rows, and differences are paired: variant minus default. The score is accuracy, or R2 in
regression; the loss is log loss, or the squared error. Probabilities below 0.001 count as 0.001 in the log loss, of
every model, because a forest gives zeros. Seconds are of the processor, in fit.

These are the tables of ``public_tables.TUNING``: what was chosen on them looks better on them than elsewhere. Left
out are columns that mix numbers and text (``grade`` of yrbss) and the text columns of leaf_id_flavia.

What is measured is kept after each fit, and a second call goes on where the first was stopped. Only tables and seeds
of which all variants are there count.
"""

import json
import platform
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from command_line import script_parser
from public_tables import TABLES, encoded, load_table
from rich.console import Console
from rich.table import Table
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.metrics import r2_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

from moeapps import MoEClassifier, MoERegressor
from moeapps.tables.defaults import BEFORE

FIRST = ("attrition", "hpc_data", "concrete", "leaf_id_flavia", "OFP", "ames", "wa_churn", "diamonds")
LAST = ("yrbss", "census-income")
"""Tables in the order of measuring: all seeds of the first ones, then all of the last."""

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "num_members=1": {"num_members": 1},
    'numeric_embedding="piecewise"': {"numeric_embedding": "piecewise"},
    'numeric_embedding="linear"': {"numeric_embedding": "linear"},
    'scaling="standard"': {"scaling": "standard"},
    "dropout=0": {"dropout": 0.0},
    "hidden_dim=128": {"hidden_dim": 128},
    "dense blocks of equal FLOPs": {"num_experts": 1, "top_k": 1, "hidden_dim": 128},  # two experts of width 64
    "num_experts=4": {"num_experts": 4},
    "ema_decay=0": {"ema_decay": 0.0},
    "ema_decay=0, patience=10": {"ema_decay": 0.0, "patience": 10},
    "patience=10": {"patience": 10},
    "label_smoothing=0.1": {"label_smoothing": 0.1},
    "all as in 0.1": {**BEFORE, "hidden_dim": None, "dropout": 0.0, "max_epochs": 100, "patience": 10},
}
"""Arguments that differ from the default's; those that a task has not are left out, see :func:`variants`."""

RIVALS = ("HistGradientBoosting", "RandomForest")
TEST_ROWS = 3_000
SMALLEST = 1e-3  # probability in the log loss


def variants(task: str) -> list[str]:
    """Names of what is fitted for a task, the default first."""
    smoothing = "label_smoothing=0.1"
    return [name for name in (*VARIANTS, *RIVALS) if task == "classification" or name != smoothing]


def make(name: str, task: str, seed: int) -> Any:
    """A model by its name in the results."""
    classes = task == "classification"
    if name == "HistGradientBoosting":
        if classes:
            return HistGradientBoostingClassifier(categorical_features="from_dtype", random_state=seed)
        return HistGradientBoostingRegressor(categorical_features="from_dtype", random_state=seed)
    if name == "RandomForest":
        forest = RandomForestClassifier if classes else RandomForestRegressor
        return make_pipeline(encoded("tree"), forest(random_state=seed))
    ours = MoEClassifier if classes else MoERegressor
    known = ours().get_params()
    return ours(random_state=seed, **{key: value for key, value in VARIANTS[name].items() if key in known})


def read(name: str) -> tuple[pd.DataFrame, np.ndarray] | None:
    """A table without the columns that the docstring names."""
    found = load_table(name)
    if found is None:
        return None
    X, y = found
    if name == "leaf_id_flavia":
        X = X.select_dtypes("number")
    return X.drop(columns="grade", errors="ignore") if name == "yrbss" else X, y


def split(y: np.ndarray, task: str, rows: int, seed: int) -> list[np.ndarray]:
    """Positions of the rows for training and for the test."""
    train = min(rows, 3 * len(y) // 4)
    test = min(TEST_ROWS, len(y) - train)
    strata = y if task == "classification" else None
    parts = train_test_split(np.arange(len(y)), train_size=train, test_size=test, random_state=seed, stratify=strata)
    return [np.asarray(part) for part in parts]


def measure(
    model: Any, X: pd.DataFrame, y: np.ndarray, task: str, train: np.ndarray, test: np.ndarray
) -> dict[str, float]:
    """Score and loss on the test rows, and processor seconds of fit."""
    start = time.process_time()
    model.fit(X.iloc[train], y[train])
    seconds = time.process_time() - start
    truth = y[test]
    if task == "regression":
        predicted = model.predict(X.iloc[test])
        score, loss = float(r2_score(truth, predicted)), float(np.mean((truth - predicted) ** 2))
    else:
        probabilities = model.predict_proba(X.iloc[test])
        position = np.searchsorted(model.classes_, truth)
        score = float(np.mean(probabilities.argmax(axis=1) == position))
        loss = float(-np.log(np.maximum(probabilities[np.arange(len(test)), position], SMALLEST)).mean())
    return {"score": score, "loss": loss, "fit": round(seconds, 3)}


def complete(runs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Tables and seeds of which every variant was measured."""
    whole = {}
    for key, run in runs.items():
        task = TABLES[key.rpartition(", ")[0]].task
        if all(name in run for name in variants(task)):
            whole[key] = run
    return whole


def differences(runs: dict[str, dict[str, Any]], name: str, what: str, task: str) -> np.ndarray:
    """Variant minus default, one entry per table and seed: points of the score, or per cent of the loss."""
    found = []
    for key, run in complete(runs).items():
        if name not in run or task != TABLES[key.rpartition(", ")[0]].task:
            continue
        ours, default = run[name][what], run["default"][what]
        found.append(100 * (ours - default) if what == "score" else 100 * (ours / default - 1))
    return np.array(found)


def with_error(values: np.ndarray, digits: int) -> str:
    """Mean and its standard error, marked where the mean is more than two standard errors away from 0."""
    if len(values) < 2:
        return ""
    mean, error = values.mean(), values.std(ddof=1) / len(values) ** 0.5
    mark = "**" if abs(mean) > 2 * error else ""
    return f"{mark}{mean:+.{digits}f} ± {error:.{digits}f}{mark}"


def cells(runs: dict[str, dict[str, Any]], name: str) -> list[str]:
    """One row of the table of the docs."""
    seconds = np.mean([run[name]["fit"] for run in complete(runs).values() if name in run])
    found = [
        with_error(differences(runs, name, what, task), 2 if what == "score" else 1)
        for task in ("classification", "regression")
        for what in ("score", "loss")
    ]
    return [*found, f"{seconds:.1f}"]


def show(document: dict[str, Any]) -> None:
    """Print the table of the docs."""
    runs = document["runs"]
    whole = complete(runs)
    if not whole:
        print("no table and seed is complete")
        return
    print(f"{len(whole)} complete: {'; '.join(whole)}")
    table = Table(title="variant minus default: mean ± standard error over tables and seeds")
    for column in ("variant", "accuracy, points", "log loss, %", "R2, points", "squared error, %", "fit, s"):
        table.add_column(column, justify="left" if column == "variant" else "right")
    for name in variants("classification"):
        row = cells(runs, name)
        table.add_row(name, *(["", "", "", "", row[-1]] if name == "default" else row))
    Console(width=130).print(table)


def main() -> None:
    """Measure, keep and print."""
    parser = script_parser(__doc__)
    parser.add_argument("--rows", type=int, default=1_500, help="for training, at most")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--sets", default=",".join((*FIRST, *LAST)))
    parser.add_argument("--show", action="store_true", help="print what was measured, measure nothing")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/tabular_ablation.json"))
    options = parser.parse_args()
    document = (
        json.loads(options.output.read_text()) if options.output.is_file() else {"rows": options.rows, "runs": {}}
    )
    if options.show:
        show(document)
        return
    if document["rows"] != options.rows:
        parser.error(f"{options.output} has results with --rows {document['rows']}: name another --output")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    MoEClassifier(max_epochs=1).fit(np.random.default_rng(0).normal(size=(300, 4)), np.arange(300) % 2)  # warm up
    sets = options.sets.split(",")
    for part in (FIRST, LAST):
        for seed in range(options.seeds):
            for name in (name for name in part if name in sets):
                run_table(name, seed, document, options.output)
    show(document)


def run_table(name: str, seed: int, document: dict[str, Any], output: Path) -> None:
    """Fit what is missing of one table and seed, and write the results after each fit."""
    loaded, task = read(name), TABLES[name].task
    if loaded is None:
        print(f"{name} is not at hand")
        return
    X, y = loaded
    as_category = X.astype(dict.fromkeys(X.select_dtypes(exclude="number"), "category"))
    train, test = split(y, task, document["rows"], seed)
    run = document["runs"].setdefault(f"{name}, {seed}", {})
    for variant in variants(task):
        if variant in run:
            continue
        table = as_category if variant == "HistGradientBoosting" else X
        run[variant] = measure(make(variant, task, seed), table, y, task, train, test)
        print(f"{name} seed {seed}, {len(train)} rows, {variant}: {run[variant]}", flush=True)
        document.update(
            machine={"device": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
            torch=torch.__version__,
            date=time.strftime("%Y-%m-%d"),
        )
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
