"""Surgery on a trained 16-expert classifier: accuracy, parameters, and time to predict, before and after.

    python benchmarks/surgery.py [--seeds 5] [--output benchmarks/results/surgery.json]

scikit-learn's digits (1,797 images of 8 x 8), a quarter of them for the test. Every operation is done on the trained
model without further training; "then one pass" adds one pass of ``partial_fit`` over the training rows.
"""

import copy
import json
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from command_line import script_parser
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from moeapps import MoEClassifier
from moeapps.core.surgery import compress_experts


def milliseconds(model: MoEClassifier, X: np.ndarray) -> float:
    """Median time to predict all rows."""
    times = []
    for _ in range(20):
        start = time.perf_counter()
        model.predict_proba(X)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def operated(model: MoEClassifier, X: np.ndarray, y: np.ndarray) -> dict[str, MoEClassifier]:
    """All variants of one trained model."""
    pruned, merged = model.prune(8, X), model.merge(4, X)
    compressed = copy.copy(model)
    compressed.model_, _ = compress_experts(model.model_, rank=16)
    return {
        "trained, 16 experts": model,
        "pruned to 8": pruned,
        "pruned to 8, then one pass": copy.deepcopy(pruned).partial_fit(X, y),
        "merged to 4": merged,
        "merged to 4, then one pass": copy.deepcopy(merged).partial_fit(X, y),
        "compressed to rank 16": compressed,
    }


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/surgery.json"))
    options = parser.parse_args()
    X, y = load_digits(return_X_y=True)
    found: dict[str, dict[str, list[float]]] = {}
    for seed in range(options.seeds):
        X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=seed, stratify=y)
        model = MoEClassifier(num_experts=16, random_state=seed).fit(X_train, y_train)
        for name, variant in operated(model, X_train, y_train).items():
            entry = found.setdefault(name, {"accuracy": [], "parameters": [], "ms": []})
            entry["accuracy"].append(variant.score(X_test, y_test))
            entry["parameters"].append(sum(p.numel() for p in variant.model_.parameters()))
            entry["ms"].append(milliseconds(variant, X_test))
    table = Table(title=f"digits, mean ± standard deviation over {options.seeds} seeds")
    for column in ("model", "accuracy", "parameters", "ms for 450 rows"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, entry in found.items():
        mean, sd = np.mean(entry["accuracy"]), np.std(entry["accuracy"])
        cells = (f"{mean:.4f} ± {sd:.4f}", f"{entry['parameters'][0]:,}", f"{np.median(entry['ms']):.1f}")
        table.add_row(name, *cells)
    Console(width=100).print(table)
    machine = {"device": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(
        json.dumps({"models": found, "seeds": options.seeds, "machine": machine}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
