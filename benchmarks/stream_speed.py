"""Instances per second of DriftMoE, by batches and one by one, beside river and MOA.

    python benchmarks/stream_speed.py --elec FOLDER  # folder with elec2_data.dat and elec2_label.dat

Every candidate takes its turn on the same instances in one process, three times; medians. "learn_many" learns frames of
1,000 rows, "test_then_train" predicts and learns the same, "one by one" is predict_one and learn_one for each instance.
MOA's learners (where capymoa is installed) run in CapyMOA's own loop, river's through predict_one and learn_one on the
first instances only.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from river import ensemble, forest, tree
from stream_accuracy import evaluate_capymoa, warm_up

from moeapps.stream import DriftMoEClassifier, electricity, synthetic_stream

REPEATS = 3
SHORT = 1500
OURS: dict[str, Callable[[], Any]] = {
    "DriftMoE": lambda: DriftMoEClassifier(seed=0),
    "paper, data": lambda: DriftMoEClassifier.paper("data", seed=0),
    "paper, task": lambda: DriftMoEClassifier.paper("task", seed=0),
}
RIVER: dict[str, Callable[[], Any]] = {
    "river HT": lambda: tree.HoeffdingTreeClassifier(grace_period=50, delta=1e-7),
    "river ARF(10)": lambda: forest.ARFClassifier(n_models=10, seed=0),
    "river LevBag(10)": lambda: ensemble.LeveragingBaggingClassifier(tree.HoeffdingTreeClassifier(), 10, seed=0),
}


def learn_many(model: Any, X: np.ndarray, y: np.ndarray) -> float:
    """Seconds per instance, in frames of 1,000 rows."""
    frames = [(pd.DataFrame(X[i : i + 1000]), y[i : i + 1000]) for i in range(0, len(X), 1000)]
    start = time.perf_counter()
    for frame, labels in frames:
        model.learn_many(frame, labels)
    return (time.perf_counter() - start) / len(X)


def test_then_train(model: Any, X: np.ndarray, y: np.ndarray) -> float:
    """Seconds per instance, predicted and learned."""
    rows, labels = [dict(enumerate(row)) for row in X.tolist()], y.tolist()
    start = time.perf_counter()
    for i in range(0, len(rows), 1000):
        model.test_then_train(rows[i : i + 1000], labels[i : i + 1000])
    return (time.perf_counter() - start) / len(X)


def one_by_one(model: Any, X: np.ndarray, y: np.ndarray) -> float:
    """Seconds per instance, predict_one and learn_one."""
    rows, labels = [dict(enumerate(row)) for row in X.tolist()], y.tolist()
    start = time.perf_counter()
    for x, label in zip(rows, labels, strict=True):
        model.predict_one(x)
        model.learn_one(x, label)
    return (time.perf_counter() - start) / len(X)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elec", help="folder with elec2_data.dat and elec2_label.dat")
    parser.add_argument("--n", type=int, default=20_000, help="instances")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/stream_speed.json"))
    options = parser.parse_args()
    streams = {"rbf_fast": synthetic_stream("rbf_fast", options.n, 0).arrays()}
    if options.elec:
        frame, up = electricity(options.elec)
        streams = {"elec": (frame.to_numpy()[: options.n], up.to_numpy()[: options.n]), **streams}
    moa = []
    try:
        import capymoa  # noqa: F401

        moa = ["MOA HT", "MOA ARF(10)", "MOA LevBag(10)"]
    except ImportError:
        pass
    warm_up()
    learn_many(DriftMoEClassifier(seed=0), np.zeros((10, 2)), np.zeros(10, dtype=int))
    found: dict[str, dict[str, list[float]]] = {}
    for name, (X, y) in streams.items():
        rates: dict[str, list[float]] = {}
        for _ in range(REPEATS):
            for model, make in OURS.items():
                for run in (learn_many, test_then_train, one_by_one):
                    label = f"{model}, {run.__name__.replace('_', ' ')}"
                    rates.setdefault(label, []).append(1 / run(make(), X, y))
            for model, make in RIVER.items():
                rates.setdefault(model, []).append(1 / one_by_one(make(), X[:SHORT], y[:SHORT]))
            for model in moa:
                rates.setdefault(model, []).append(evaluate_capymoa(model, (X, y))["per_second"])
        found[name] = rates
        options.output.parent.mkdir(parents=True, exist_ok=True)
        result = {"processor": platform.machine(), "python": platform.python_version(), "streams": found}
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    table = Table(title="instances per second, median of three")
    table.add_column("candidate")
    for name in found:
        table.add_column(name, justify="right")
    for candidate in next(iter(found.values())):
        table.add_row(candidate, *(f"{statistics.median(rates[candidate]):,.0f}" for rates in found.values()))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
