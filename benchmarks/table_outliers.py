"""A regression whose target has a few outliers: median error on clean rows, of MoERegressor's losses and of boosting.

    python benchmarks/table_outliers.py [--seeds 2]

Friedman's first function (scikit-learn's make_friedman1, noise 1), 1,500 rows, three quarters for training. 0.4 % of
the targets of training are moved by so many standard deviations; those of the test are clean. Prints a table and
writes JSON.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from command_line import script_parser
from sklearn.datasets import make_friedman1
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import train_test_split

from moeapps import MoERegressor

SHARE = 0.004
MOVED = (0, 20, 100, 1000)


def measure(moved: int, seed: int) -> dict[str, float]:
    """Median absolute error of each model."""
    X, y = make_friedman1(1500, noise=1.0, random_state=seed)
    X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=seed)
    rows = np.random.default_rng(seed).choice(len(y_train), round(SHARE * len(y_train)), replace=False)
    y_train = y_train.copy()
    y_train[rows] += moved * y_train.std()
    models: dict[str, Any] = {
        "auto": MoERegressor(random_state=seed),
        "squared": MoERegressor(loss="squared", random_state=seed),
        "boosting": HistGradientBoostingRegressor(random_state=seed),
    }
    return {
        name: float(np.median(np.abs(model.fit(X_train, y_train).predict(X_test) - y_test)))
        for name, model in models.items()
    }


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "table_outliers.json")
    options = parser.parse_args()
    runs = {str(moved): [measure(moved, seed) for seed in range(options.seeds)] for moved in MOVED}
    for moved, found in runs.items():
        means = {name: round(float(np.mean([run[name] for run in found])), 2) for name in found[0]}
        print(f"moved by {moved} standard deviations: {means}")
    options.output.write_text(json.dumps({"runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
