"""Which candidate of a mixture's gate is chosen, and what it loses beside the others, on the tuning tables.

    python benchmarks/gate_selection.py [--tables churn hpc_data] [--splits 3] [--rows 10000] [--cache folder]

Five experts of scikit-learn (LogisticRegression or Ridge, HistGradientBoosting, RandomForest, ExtraTrees, nearest
neighbours) are fitted on 70 % of a table; their out-of-fold predictions (5 folds) go to
:func:`moeapps.core.mixing.fit_mixture`, the rest of the rows is what every figure is measured on. Beside it stand the
single experts, the plain mean of all (as VotingClassifier(voting="soft")) and a logistic or linear regression on the
out-of-fold predictions (as StackingClassifier and StackingRegressor, which predict by the same folds). The losses are
log loss, and the squared error of the standardised target. The last lines have mean ranks over all tables, and on
how many splits the mixture was behind the expert that turned out best by more than one standard error.

``--every-candidate`` prints cross-fitted and test loss of each candidate, ``--cascade`` what half the cost
(``budget=0.5``) loses against asking all experts, ``--calibration`` what temperature and floor bring each expert.
Only the tables of ``TUNING`` are read: the candidates, their order and the rule of choice were set on these.
Predictions of the experts are kept in the cache folder.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from command_line import script_parser
from public_tables import TUNING, load_table
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.model_selection import KFold, StratifiedKFold, train_test_split
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from moeapps.core.mixing import Calibration, fit_calibration, fit_cascade, fit_mixture
from moeapps.core.mixing.calibration import fit_temperature, picked
from moeapps.core.mixing.inputs import MixingData
from moeapps.core.mixing.selection import DEFAULTS, CandidateFitter, cross_fitted_losses

FLOOR = 1e-15
CACHE = Path(tempfile.gettempdir()) / "moeapps-gate-selection"


def encoder():
    """Numbers standardised, texts one-hot."""
    numbers = make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler())
    texts = OneHotEncoder(handle_unknown="ignore", max_categories=20, sparse_output=False)
    return ColumnTransformer(
        [
            ("numbers", numbers, make_column_selector(dtype_include="number")),
            ("texts", texts, make_column_selector(dtype_exclude="number")),
        ]
    )


def experts(task, seed):
    """Unfitted experts by name, cheapest kind first."""
    if task == "classification":
        return {
            "linear": LogisticRegression(max_iter=1000),
            "hgb": HistGradientBoostingClassifier(random_state=seed),
            "forest": RandomForestClassifier(random_state=seed),
            "extra": ExtraTreesClassifier(random_state=seed),
            "knn": KNeighborsClassifier(15),
        }
    return {
        "linear": Ridge(),
        "hgb": HistGradientBoostingRegressor(random_state=seed),
        "forest": RandomForestRegressor(random_state=seed),
        "extra": ExtraTreesRegressor(random_state=seed),
        "knn": KNeighborsRegressor(15),
    }


def answers(expert, features, classes):
    """Predictions of one expert, ``(n, K)`` log-probabilities or ``(n, 1)`` values, and seconds per row."""
    start = time.process_time()
    if classes is None:
        out = expert.predict(features)[:, None]
    else:
        out = np.full((len(features), len(classes)), FLOOR)
        out[:, np.searchsorted(classes, expert.classes_)] = expert.predict_proba(features)
        out = np.log(np.clip(out, FLOOR, None))
    return out, (time.process_time() - start) / max(len(features), 1)


def predictions(table, split, rows, cache):
    """Out-of-fold and test predictions of all experts on one split of a table."""
    file = cache / f"{table.name}-{rows}-{split}.npz"
    if file.is_file():
        return dict(np.load(file))
    found = load_table(table)
    if found is None:
        return None
    X, y = found
    rng = np.random.default_rng(split)
    chosen = rng.permutation(len(X))[:rows]
    X, y = X.iloc[chosen], y[chosen]
    if table.task == "classification":
        names, counts = np.unique(y.astype(str), return_counts=True)
        kept = np.isin(y.astype(str), names[counts >= 10])
        X, y = X[kept], np.unique(y[kept].astype(str), return_inverse=True)[1]
    else:
        y = (y - y.mean()) / y.std()
    stratify = y if table.task == "classification" else None
    train, test = train_test_split(np.arange(len(y)), test_size=0.3, random_state=split, stratify=stratify)
    classes = np.unique(y) if table.task == "classification" else None
    folds = (StratifiedKFold if classes is not None else KFold)(5, shuffle=True, random_state=split)
    encode = encoder()
    features, test_features = encode.fit_transform(X.iloc[train]), encode.transform(X.iloc[test])
    made, out_of_fold, on_test, costs = experts(table.task, split), [], [], []
    for expert in made.values():
        oof = np.zeros((len(train), 1 if classes is None else len(classes)))
        for inside, outside in folds.split(train, None if classes is None else y[train]):
            oof[outside] = answers(expert.fit(features[inside], y[train][inside]), features[outside], classes)[0]
        last, cost = answers(expert.fit(features, y[train]), test_features, classes)
        out_of_fold.append(oof)
        on_test.append(last)
        costs.append(cost)
    kept = {
        "features": features,
        "oof": np.stack(out_of_fold, axis=1),
        "y": y[train],
        "test_features": test_features,
        "test": np.stack(on_test, axis=1),
        "test_y": y[test],
        "costs": np.array(costs),
        "names": np.array(list(made)),
    }
    cache.mkdir(parents=True, exist_ok=True)
    np.savez(file, **kept)
    return kept


def losses_of(predicted, y):
    """Loss of each row: log loss, or squared error."""
    if predicted.shape[1] > 1:
        return -np.log(np.clip(predicted[np.arange(len(y)), y.astype(int)], FLOOR, None))
    return np.square(predicted[:, 0] - y)


def stacked(kept):
    """Predictions of the regression that StackingClassifier or StackingRegressor would fit."""
    oof, test = kept["oof"], kept["test"]
    num_outputs = oof.shape[2]
    if num_outputs == 1:
        return RidgeCV().fit(oof[:, :, 0], kept["y"]).predict(test[:, :, 0])[:, None]
    first = 1 if num_outputs == 2 else 0  # as scikit-learn: one column is enough for two classes
    flat = [np.exp(p[:, :, first:]).reshape(len(p), -1) for p in (oof, test)]
    model = LogisticRegression(max_iter=1000).fit(flat[0], kept["y"])
    out = np.full((len(test), num_outputs), FLOOR)
    out[:, model.classes_.astype(int)] = model.predict_proba(flat[1])
    return out


def measure(kept):
    """Test losses of all ways to combine on one split, the name of the chosen candidate, and seconds of the fit."""
    classification = kept["oof"].shape[2] > 1
    task = "classification" if classification else "regression"
    y = kept["y"].astype(np.int64) if classification else kept["y"]
    names = [str(name) for name in kept["names"]]
    start = time.process_time()
    mixture = fit_mixture(kept["features"], kept["oof"], y, task=task, names=names)
    seconds = time.process_time() - start
    means = np.exp(kept["test"]).mean(axis=1) if classification else kept["test"].mean(axis=1)
    predicted = {
        **{
            name: np.exp(p) if classification else p for name, p in zip(names, kept["test"].swapaxes(0, 1), strict=True)
        },
        "voting": means,
        "stacking": stacked(kept),
        "mixture": mixture.mix(kept["test_features"], kept["test"]),
    }
    losses = {name: losses_of(p, kept["test_y"]) for name, p in predicted.items()}
    return losses, mixture, seconds


def every_candidate(kept):
    """Cross-fitted losses and test losses of each candidate: what the rule of choice was set on."""
    classification = kept["oof"].shape[2] > 1
    task = "classification" if classification else "regression"
    names = tuple(str(name) for name in kept["names"])
    y = kept["y"].astype(np.int64) if classification else kept["y"]
    data = MixingData.checked(kept["features"], kept["oof"], y, None, task, names)
    fitter = CandidateFitter(names, True, 0)
    eye = np.eye(len(names))
    candidates = {f"expert:{name}": eye[i] for i, name in enumerate(names)}
    candidates |= {"mean": np.full(len(names), 1 / len(names)), **DEFAULTS}
    seen, corrections = cross_fitted_losses(fitter, candidates, data)
    test = {}
    for name, mixture in fitter.fit(candidates, data).items():
        mixed = replace(mixture, **corrections[name]).mix(kept["test_features"], kept["test"])
        test[name] = losses_of(mixed, kept["test_y"])
    return dict(zip(candidates, seen.T, strict=True)), test


def behind(losses, names):
    """By how many standard errors the mixture is behind the expert with the lowest test loss."""
    best = min(names, key=lambda name: losses[name].mean())
    difference = losses["mixture"] - losses[best]
    return difference.mean() / max(difference.std() / len(difference) ** 0.5, 1e-12)


def half_the_cost(kept):
    """Test loss and score of a cascade with ``budget=0.5`` by each criterion, and of asking all, with their costs."""
    classification = kept["oof"].shape[2] > 1
    task = "classification" if classification else "regression"
    fit_on = kept["features"], kept["oof"], kept["y"].astype(np.int64) if classification else kept["y"]
    test = kept["test_features"], kept["test"], kept["test_y"].astype(np.int64) if classification else kept["test_y"]
    names = [str(name) for name in kept["names"]]
    mixture = fit_mixture(*fit_on, task=task, names=names)
    costs = np.maximum(kept["costs"], 1e-7)
    rows = {}
    for criterion in ("gain", "confidence") if classification else ("gain",):
        cascade = fit_cascade(mixture, *fit_on, costs=costs, budget=0.5, criterion=criterion)
        curve = cascade.curve(*test)
        rows[criterion] = curve[curve["threshold"] == cascade.threshold].iloc[0, 1:].tolist()
        rows["all"] = curve.iloc[-1, 1:].tolist()
    return rows


def floors(kept):
    """Test log loss of each expert: as it predicts, with a temperature, and with a temperature and a floor."""
    y, test_y = kept["y"].astype(np.int64), kept["test_y"].astype(np.int64)
    names = [str(name) for name in kept["names"]]
    data = MixingData.checked(kept["features"], kept["oof"], y, None, "classification", names)
    both = fit_calibration(data)
    alone = [fit_temperature(data.predictions[:, e], y, data.weight)[0] for e in range(len(names))]
    one = Calibration(np.array(alone), np.full(len(names), FLOOR))
    plain = Calibration(np.ones(len(names)), np.full(len(names), FLOOR))
    losses = [-picked(calibration(kept["test"]), test_y).mean(axis=0) for calibration in (plain, one, both)]
    return dict(zip(names, np.transpose(losses), strict=True))


def main() -> None:
    """Print one line per split of a table, and mean ranks."""
    parser = script_parser(__doc__)
    parser.add_argument("--tables", nargs="+", help="names; all tuning tables by default")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--rows", type=int, default=10_000, help="at most so many rows of a table")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--every-candidate", action="store_true", help="test loss of each candidate instead")
    parser.add_argument("--cascade", action="store_true", help="what half the cost loses instead")
    parser.add_argument("--calibration", action="store_true", help="test loss of calibrated experts instead")
    options = parser.parse_args()
    console, ranks, lost, ways = Console(width=160), [], [], []
    table = Table("table", "split", "best expert", "voting", "stacking", "mixture", "chosen", "behind best", "s")
    for place in TUNING:
        for split in range(options.splits):
            if options.tables and place.name not in options.tables:
                continue
            kept = predictions(place, split, options.rows, options.cache)
            if kept is None:
                continue
            names = [str(name) for name in kept["names"]]
            if options.every_candidate:
                seen, test = every_candidate(kept)
                cells = "  ".join(f"{name} {seen[name].mean():.4f}/{test[name].mean():.4f}" for name in seen)
                console.print(f"{place.name} {split}: {cells}", soft_wrap=True)
                continue
            if options.cascade:
                for way, (cost, loss, score) in half_the_cost(kept).items():
                    console.print(f"{place.name:15} {split} {way:10} cost {cost:.3f} loss {loss:.4f} score {score:.4f}")
                continue
            if options.calibration:
                for name, (plain, temperature, both) in floors(kept).items() if place.task != "regression" else ():
                    ways = f"{plain:.4f}, with a temperature {temperature:.4f}, and a floor {both:.4f}"
                    console.print(f"{place.name:15} {split} {name:7} {ways}")
                continue
            losses, mixture, seconds = measure(kept)
            means = {name: loss.mean() for name, loss in losses.items()}
            ways = list(means)
            ranks.append(rankdata(list(means.values())))
            lost.append(behind(losses, names))
            best = min(names, key=means.__getitem__)
            table.add_row(
                place.name,
                str(split),
                f"{means[best]:.4f} ({best})",
                *(f"{means[way]:.4f}" for way in ("voting", "stacking", "mixture")),
                mixture.name,
                f"{lost[-1]:+.1f} s.e.",
                f"{seconds:.1f}",
            )
    if ranks:
        console.print(table)
        for way, rank in sorted(zip(ways, np.mean(ranks, axis=0), strict=True), key=lambda pair: pair[1]):
            console.print(f"mean rank {rank:.2f}  {way}")
        console.print(
            f"behind the best expert by more than one standard error: {sum(x > 1 for x in lost)} of {len(lost)}"
        )


if __name__ == "__main__":
    main()
