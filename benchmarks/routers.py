"""Thirteen routing methods on one table: accuracy, balance, certainty, experts per row, time.

    python benchmarks/routers.py [--seeds 3] [--plot docs/routing]

MoEClassifier with 8 experts, top-2 where a router has a k, one member, no dropout, no averages, 60 epochs without
early stopping, on scikit-learn's digits (1,797 rows, 64 numbers; a quarter for testing, another one for each seed).
"Experts per row" is how many experts a row of the test set uses, "largest load" the share of the busiest expert times
8 (1 is perfect balance), "entropy" that of the router's probabilities as a part of log 8; all of the last of two
blocks. Time is that of trainings of 3 epochs on one thread, divided by topk's: all take turns in one process, the
ratio is the median over 7 rounds. Accuracies that are in the results file already are not measured again.
"""

import copy
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command_line import script_parser
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from moeapps import MoEClassifier, registry
from moeapps.core.plots import new_figure
from moeapps.core.statistics import RoutingStatistics, routed_layers

EXPERTS = 8


def split(seed: int) -> list[Any]:
    digits = load_digits()
    parts: list[Any] = train_test_split(
        digits.data, digits.target, test_size=0.25, random_state=seed, stratify=digits.target
    )
    return parts


PLAIN: dict[str, Any] = {
    "ema_decay": 0.0,
    "num_members": 1,
    "numeric_embedding": "piecewise",
    "scaling": "standard",
    "dropout": 0.0,
    "hidden_dim": 128,
}
"""One member without dropout and averages: they would blur what the router does."""


def make(router: str, seed: int, epochs: int) -> MoEClassifier:
    return MoEClassifier(
        router=router, num_experts=EXPERTS, dim=64, max_epochs=epochs, early_stopping=False, random_state=seed, **PLAIN
    )


def times(routers: list[str], rounds: int = 7) -> dict[str, float]:
    """Time of a short training of each, as a part of topk's."""
    X, _, y, _ = split(0)
    seconds: dict[str, list[float]] = {router: [] for router in routers}
    for _ in range(rounds + 1):
        for router, found in seconds.items():
            start = time.perf_counter()
            make(router, 0, 3).fit(X, y)
            found.append(time.perf_counter() - start)
    base = np.array(seconds["topk"][1:])  # the first round warms up
    return {router: float(np.median(np.array(found[1:]) / base)) for router, found in seconds.items()}


def run(router: str, seed: int) -> dict[str, float]:
    X, X_test, y, y_test = split(seed)
    model = make(router, seed, 60).fit(X, y)
    network = copy.deepcopy(model.model_)
    numbers, codes = model.encoder_.transform(X_test)
    with torch.no_grad():
        network(torch.from_numpy(numbers), torch.from_numpy(codes))
    routing = list(routed_layers(network).values())[-1].last_routing
    assert routing is not None
    statistics = RoutingStatistics(EXPERTS)
    statistics.update(routing)
    found = statistics.compute()
    return {
        "accuracy": float(model.score(X_test, y_test)),
        "experts": float(routing.used().sum() / len(X_test)),
        "max_load": float(found["max_load"]),
        "entropy": float(found["entropy"]) / float(np.log(EXPERTS)),
    }


def plot(results: dict[str, list[dict[str, float]]]) -> Figure:
    names = sorted(results, key=lambda name: np.mean([run["accuracy"] for run in results[name]]))
    figure = new_figure(columns=2, width=5.0, height=4.2)
    left, right = figure.axes
    for axes, key, title in (
        (left, "accuracy", "accuracy on test rows"),
        (right, "max_load", "largest load, times number of experts (1: even)"),
    ):
        values = np.array([[run[key] for run in results[name]] for name in names])
        axes.errorbar(values.mean(axis=1), range(len(names)), xerr=values.std(axis=1), fmt="o", color="#2a7f9e")
        axes.set_yticks(range(len(names)), names if axes is left else [""] * len(names))
        axes.set_xlabel(title)
        axes.grid(alpha=0.3)
    return figure


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plot", type=Path, help="folder for the picture")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "routers.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = json.loads(options.output.read_text())["runs"] if options.output.exists() else {}
    results: dict[str, Any] = {entry.name: kept.get(entry.name, []) for entry in registry.entries("router")}
    for seed in range(options.seeds):
        for router, runs in results.items():
            if len(runs) <= seed:
                runs.append(run(router, seed))
                print(router, seed, runs[-1], flush=True)
    ratios = times(list(results))
    table = Table(title=f"digits, {options.seeds} seeds, {platform.machine()}")
    for column in ("router", "accuracy", "experts per row", "largest load", "entropy", "time / topk"):
        table.add_column(column, justify="left" if column == "router" else "right")
    for router, runs in results.items():
        score = [entry["accuracy"] for entry in runs]
        means = [float(np.mean([entry[key] for entry in runs])) for key in ("experts", "max_load", "entropy")]
        table.add_row(
            router, f"{np.mean(score):.4f} ± {np.std(score):.4f}", *(f"{value:.2f}" for value in means),
            f"{ratios[router]:.2f}",
        )  # fmt: skip
    Console(width=110).print(table)
    found = {"machine": platform.machine(), "runs": results, "time": ratios}
    options.output.write_text(json.dumps(found, indent=1) + "\n")
    if options.plot is not None:
        options.plot.mkdir(parents=True, exist_ok=True)
        plot(results).savefig(options.plot / "routers.png", dpi=110)


if __name__ == "__main__":
    main()
