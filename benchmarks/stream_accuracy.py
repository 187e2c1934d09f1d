"""Prequential accuracy of DriftMoE beside the ensembles that a user would pick instead.

    python benchmarks/stream_accuracy.py --elec FOLDER            # folder with elec2_data.dat and elec2_label.dat
    python benchmarks/stream_accuracy.py --ablation --elec FOLDER  # what each addition to the paper's algorithm brings

Electricity (all 45,312 rows) and four synthetic streams of 100,000 instances (moeapps.stream.synthetic_stream, river's
generators), three seeds each for the models of this package and the strongest rivals, one for the others. Every
learner sees the same instances in the same process; seconds are those of predicting and learning. river's forests are
run on the first 10,000 instances only (SRP on 5,000), since they take minutes for the rest; where capymoa is installed
(pip install capymoa, needs Java), MOA's are run on everything. Results are kept after every learner, so that the script
can be stopped and started again.
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
from river import ensemble, forest, tree

from moeapps.stream import DriftMoEClassifier, electricity, prequential, synthetic_stream

Stream = tuple[np.ndarray, np.ndarray]
SYNTHETIC = ("rbf_fast", "rbf_moderate", "led_abrupt", "sea_abrupt")
PREFIX = 10_000

OURS: dict[str, Callable[[int], Any]] = {
    "DriftMoE": lambda seed: DriftMoEClassifier(seed=seed),
    "DriftMoE, task": lambda seed: DriftMoEClassifier("task", seed=seed),
    "paper, data": lambda seed: DriftMoEClassifier.paper("data", seed=seed),
    "paper, task": lambda seed: DriftMoEClassifier.paper("task", seed=seed),
}
RIVER: dict[str, tuple[Callable[[int], Any], int | None]] = {
    "river HT": (lambda seed: tree.HoeffdingTreeClassifier(grace_period=50, delta=1e-7), None),
    "river HAT": (lambda seed: tree.HoeffdingAdaptiveTreeClassifier(seed=seed), PREFIX),
    "river ARF(10)": (lambda seed: forest.ARFClassifier(n_models=10, seed=seed), PREFIX),
    "river LevBag(10)": (
        lambda seed: ensemble.LeveragingBaggingClassifier(tree.HoeffdingTreeClassifier(), n_models=10, seed=seed),
        PREFIX,
    ),
    "river SRP(10)": (lambda seed: ensemble.SRPClassifier(n_models=10, seed=seed), PREFIX // 2),
}
CAPYMOA = {
    "MOA HT": ("HoeffdingTree", {"grace_period": 50, "confidence": 1e-7}),
    "MOA ARF(10)": ("AdaptiveRandomForestClassifier", {"ensemble_size": 10}),
    "MOA LevBag(10)": ("LeveragingBagging", {"ensemble_size": 10}),
    "MOA SRP(10)": ("StreamingRandomPatches", {"ensemble_size": 10}),
}
EVERY_SEED = ("MOA ARF(10)", "MOA LevBag(10)")
"""Rivals that are run on every seed; the others on seed 0 only."""

PAPER: dict[str, Any] = DriftMoEClassifier.paper("data").get_params()
ABLATION: list[tuple[str, dict[str, Any]]] = [
    ("paper, data", {}),
    ("+ trees split at delta 0.01", {"delta": 0.01}),
    ("+ all experts learn", {"learn_with": "all"}),
    ("+ online bagging, rate 6", {"bagging": 6.0, "grace_period": 100}),
    ("+ all experts predict", {"predict_with": "mixture"}),
    ("+ background trees", {"drift": "replace"}),
    ("+ enriched router input", {"router_inputs": "enriched"}),
    (
        "+ smaller, quicker router",
        {"router_hidden": (128, 64), "router_lr": 3e-3, "router_period": 8, "router_dropout": 0.0},
    ),
    ("+ the router's class probabilities", {"blend": 30.0}),
]
WITHOUT: dict[str, dict[str, Any]] = {
    "defaults": {},
    "without background trees": {"drift": None},
    "reset instead of background trees": {"drift": "reset"},
    "without bagging": {"bagging": 0.0, "grace_period": 50},
    "recent accuracy instead of the router": {"use_router": False},
    "without the router's class probabilities": {"blend": 0.0},
    "raw router input": {"router_inputs": "raw"},
    "70 % of the features per leaf": {"feature_share": 0.7},
    "majority leaves": {"leaf_prediction": "mc"},
}


def streams(elec: str | None, n: int, seeds: int, cache: Path) -> dict[str, Callable[[], Stream]]:
    """Streams by name, made when they are needed and kept in ``cache``."""
    found: dict[str, Callable[[], Stream]] = {}
    if elec is not None:
        frame, up = electricity(elec)
        for seed in range(seeds):  # the same instances, models with another seed
            found[f"elec, {seed}"] = lambda: (frame.to_numpy(), up.to_numpy())

    def make(name: str, seed: int) -> Stream:
        file = cache / f"{name}_{n}_{seed}.npz"
        if not file.exists():
            cache.mkdir(parents=True, exist_ok=True)
            X, y = synthetic_stream(name, n, seed).arrays()  # type: ignore[arg-type]
            np.savez(file, X=X, y=y)
        with np.load(file) as kept:
            return kept["X"], kept["y"]

    for seed in range(seeds):
        for name in SYNTHETIC:
            found[f"{name}, {seed}"] = lambda name=name, seed=seed: make(name, seed)  # type: ignore[misc]
    return found


def evaluate(model: Any, stream: Stream, n: int | None = None) -> dict[str, Any]:
    """Scores, instances per second and memory of a model of ours or river's."""
    X, y = stream
    rows = [dict(enumerate(row)) for row in X[:n].tolist()]
    found = prequential(model, zip(rows, y[:n].tolist(), strict=True))
    size = getattr(model, "nbytes_", None) or model._raw_memory_usage
    return {**found.scores, "n": found.n, "per_second": found.instances_per_second, "bytes": size}


def evaluate_capymoa(name: str, stream: Stream, seed: int = 0) -> dict[str, Any]:
    """The same by CapyMOA's own loop."""
    import capymoa.classifier
    from capymoa.evaluation import prequential_evaluation
    from capymoa.stream import NumpyStream

    kind, arguments = CAPYMOA[name]
    source = NumpyStream(*stream)
    learner = getattr(capymoa.classifier, kind)(schema=source.get_schema(), random_seed=1 + seed, **arguments)
    start = time.perf_counter()
    found = prequential_evaluation(source, learner).cumulative
    seconds = time.perf_counter() - start
    return {
        "accuracy": found.accuracy() / 100,
        "kappa": found.kappa() / 100,
        "kappa_m": found.kappa_m() / 100,
        "kappa_t": found.kappa_t() / 100,
        "n": len(stream[1]),
        "per_second": len(stream[1]) / seconds,
    }


def warm_up() -> None:
    """Compile, so that no time is counted for it."""
    rows = [({0: float(i), 1: 1.0}, i % 2) for i in range(300)]
    for make in OURS.values():
        prequential(make(0), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elec", help="folder with elec2_data.dat and elec2_label.dat")
    parser.add_argument("--n", type=int, default=100_000, help="instances of a synthetic stream")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--cache", type=Path, default=Path("benchmarks/cache"))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    name = "stream_ablation" if options.ablation else "stream_accuracy"
    output = options.output or Path(f"benchmarks/results/{name}.json")
    results: dict[str, Any] = json.loads(output.read_text()) if output.exists() else {}
    results["machine"] = {"processor": platform.machine(), "python": platform.python_version()}
    runs: dict[str, Any] = results.setdefault("runs", {})
    try:
        import capymoa  # noqa: F401

        moa = list(CAPYMOA)
    except ImportError:
        moa = []
    warm_up()
    console = Console(width=160)

    def keep(stream: str, learner: str, measure: Callable[..., dict[str, Any]], *arguments: Any) -> None:
        if learner in runs.setdefault(stream, {}):
            return
        found = runs[stream][learner] = measure(*arguments)
        console.print(f"{stream:16} {learner:40} {100 * found['accuracy']:.2f} % {found['per_second']:,.0f}/s")
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(results, indent=1) + "\n")

    for key, make in streams(options.elec, options.n, options.seeds, options.cache).items():
        seed, data = int(key.rpartition(" ")[2]), make()
        if options.ablation:
            chosen = {**PAPER, "seed": seed}
            for label, change in ABLATION:
                chosen = {**chosen, **change}
                keep(key, label, evaluate, DriftMoEClassifier(**chosen), data)
            for label, change in WITHOUT.items():
                keep(key, label, evaluate, DriftMoEClassifier(**change, seed=seed), data)
            continue
        for label, ours in OURS.items():
            keep(key, label, evaluate, ours(seed), data)
        for label in moa:
            if seed == 0 or label in EVERY_SEED:
                keep(key, label, evaluate_capymoa, label, data, seed)
        if seed > 0:
            continue
        for label, (rival, n) in RIVER.items():
            keep(key, label, evaluate, rival(seed), data, n)
        for label in ("DriftMoE", "DriftMoE, task"):
            keep(key, f"{label}, first {PREFIX:,}", evaluate, OURS[label](seed), data, PREFIX)
    console.print(table(runs))


def table(runs: dict[str, Any]) -> Table:
    """Mean accuracy and speed over the seeds of each stream."""
    names = list(dict.fromkeys(key.rpartition(",")[0] for key in runs))
    learners = list(dict.fromkeys(learner for run in runs.values() for learner in run))
    shown = Table(title="prequential accuracy in %, mean +- sd over seeds | instances/s")
    shown.add_column("learner")
    for name in names:
        shown.add_column(name, justify="right")
    for learner in learners:
        cells = []
        for name in names:
            found = [run[learner] for key, run in runs.items() if key.startswith(f"{name},") and learner in run]
            if not found:
                cells.append("")
                continue
            scores = 100 * np.array([entry["accuracy"] for entry in found])
            speed = np.mean([entry["per_second"] for entry in found])
            cells.append(f"{scores.mean():.2f} +- {scores.std():.2f} | {speed:,.0f}")
        shown.add_row(learner, *cells)
    return shown


if __name__ == "__main__":
    main()
