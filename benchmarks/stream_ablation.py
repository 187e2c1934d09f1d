"""What each kind of expert and each way of mixing brings to DriftMoEClassifier.

    python benchmarks/stream_ablation.py --elec FOLDER      # folder with elec2_data.dat and elec2_label.dat

Prequential accuracy of the default, of the default without one kind, with one kind alone, with one way of mixing alone
(use_router=False is the recent accuracy), and of trees under the neural router (experts=None), on Electricity, four
synthetic streams, scikit-learn's digits in an order of looks that change slowly, and 40 objects under drifting light.
Results are kept after every row, so that the script can be stopped and started again; seconds are CPU seconds of
predicting and learning by test_then_train.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

from moeapps.stream import DriftMoEClassifier, electricity, synthetic_stream
from moeapps.stream.compiled.kinds import KINDS

Stream = tuple[np.ndarray, np.ndarray]
SYNTHETIC = ("rbf_fast", "rbf_moderate", "led_abrupt", "sea_abrupt")

ROWS: dict[str, dict[str, Any]] = {
    "default": {},
    **{f"without {kind}": {"experts": [other for other in KINDS if other != kind]} for kind in KINDS},
    **{f"{kind} alone": {"experts": [kind]} for kind in KINDS},
    "mean of all": {"gate": "mean"},
    "recent accuracy (use_router=False)": {"use_router": False},
    "stack": {"gate": "stack"},
    "context gate": {"gate": "context"},
    "trees under the neural router (experts=None)": {"experts": None},
    "trees by recent accuracy, 0.1's rival": {"experts": None, "use_router": False},
}


def digits(seed: int) -> Stream:
    """scikit-learn's digits, sorted by a random projection with noise: their looks change slowly."""
    data, rng = load_digits(), np.random.default_rng(seed)
    X, y = data.data, data.target
    order = np.argsort(X @ rng.normal(size=64) / 60 + 1.5 * rng.normal(size=len(X)) + 0.1 * y)
    return X[order], y[order]


def objects(seed: int, n: int = 4000, classes: int = 40, features: int = 21) -> Stream:
    """Objects that are each seen ten times under the same light, which drifts; the order is shuffled within 200."""
    rng = np.random.default_rng(seed)
    centre, light = rng.normal(size=(classes, features)), rng.normal(size=(3, features))
    X, y = [], []
    while len(y) < n:
        c, view = rng.integers(classes), 0.35 * rng.normal(size=features)
        for _ in range(10):
            t = len(y) / n
            now = np.array([np.sin(6.28 * t * 3), np.cos(6.28 * t * 2), 2 * t])
            X.append(centre[c] * (1 + 0.3 * now[0]) + 0.8 * now @ light + view + 0.45 * rng.normal(size=features))
            y.append(c)
    order = np.concatenate([start + rng.permutation(min(200, n - start)) for start in range(0, n, 200)])
    return np.array(X)[order], np.array(y)[order]


def streams(elec: str | None, n: int) -> dict[str, Callable[[int], Stream]]:
    """Streams by name, made when they are needed."""

    def synthetic(name: str) -> Callable[[int], Stream]:
        return lambda seed: synthetic_stream(name, n, seed).arrays()  # type: ignore[arg-type]

    found: dict[str, Callable[[int], Stream]] = {name: synthetic(name) for name in SYNTHETIC}
    found |= {"digits": digits, "objects": objects}
    if elec is not None:
        frame, up = electricity(elec)
        found = {"elec": lambda seed: (frame.to_numpy(), up.to_numpy()), **found}
    return found


def evaluate(model: DriftMoEClassifier, stream: Stream) -> dict[str, float]:
    """Accuracy, and CPU seconds of predicting and learning."""
    X, y = stream
    hits, seconds = 0, 0.0
    for start in range(0, len(y), 5000):
        rows = [dict(enumerate(x)) for x in X[start : start + 5000].tolist()]
        labels = y[start : start + 5000].tolist()
        began = time.process_time()
        predictions, _ = model.test_then_train(rows, labels)
        seconds += time.process_time() - began
        hits += sum(p == label for p, label in zip(predictions, labels, strict=True))
    return {"accuracy": hits / len(y), "n": len(y), "seconds": seconds, "bytes": model.nbytes_}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elec", help="folder with elec2_data.dat and elec2_label.dat")
    parser.add_argument("--n", type=int, default=100_000, help="instances of a synthetic stream")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/stream_kinds.json"))
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}
    results["machine"] = {"processor": platform.machine(), "python": platform.python_version()}
    runs: dict[str, Any] = results.setdefault("runs", {})
    console = Console(width=160)
    for arguments in ROWS.values():  # compile, so that no time is counted for it
        DriftMoEClassifier(**arguments, seed=0).test_then_train([{0: 0.0}, {0: 1.0}], [0, 1])
    for seed in range(options.seeds):
        for name, make in streams(options.elec, options.n).items():
            stream = make(seed)
            found = runs.setdefault(f"{name}, {seed}", {})
            for label, arguments in ROWS.items():
                if label in found:
                    continue
                found[label] = evaluate(DriftMoEClassifier(**arguments, seed=seed), stream)
                console.print(f"{name:14} {label:46} {100 * found[label]['accuracy']:.2f} %")
                options.output.parent.mkdir(parents=True, exist_ok=True)
                options.output.write_text(json.dumps(results, indent=1) + "\n")
    console.print(table(runs))


def table(runs: dict[str, Any]) -> Table:
    """Mean accuracy in % over the seeds of each stream."""
    names = list(dict.fromkeys(key.rpartition(",")[0] for key in runs))
    shown = Table(title="prequential accuracy in %")
    shown.add_column("")
    for name in names:
        shown.add_column(name, justify="right")
    for label in ROWS:
        cells = []
        for name in names:
            found = [run[label] for key, run in runs.items() if key.startswith(f"{name},") and label in run]
            cells.append(f"{100 * np.mean([entry['accuracy'] for entry in found]):.2f}" if found else "")
        shown.add_row(label, *cells)
    return shown


if __name__ == "__main__":
    main()
