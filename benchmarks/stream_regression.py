"""DriftMoERegressor at its defaults beside its own parts and river's models, on streams of numbers that drift.

    python benchmarks/stream_regression.py --data FOLDER   # measure what is missing; FOLDER has elec2_data.dat
    python benchmarks/stream_regression.py --table         # the tables of what has been measured

Each model predicts every instance before it learns it; the score is the mean absolute error of all instances but the
first. Friedman's function is river's FriedmanDrift with drifts in a part of the space (lea), in all of it at once (gra)
and slowly (gsg), at other places and with other seeds than those that settings were chosen on. TrumpApproval and
ChickWeights are river's; demand is the electricity demand of New South Wales (Elec2) by date, day, period, prices and
the neighbour's demand. Models run one after the other in one process with one thread, in turns over the seeds.
"""

import argparse
import json
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from command_line import script_parser

RESULTS = Path(__file__).parent / "results"
FRIEDMAN = ("lea", "gra", "gsg")
DEMAND = ("date", "day", "period", "nswprice", "nswdemand", "vicprice", "vicdemand", "transfer")
KINDS = ("tree", "mean", "neighbours", "linear", "quadratic", "network")
Instance = tuple[dict[str, Any], float]


def friedman(kind: str, seed: int, n: int) -> list[Instance]:
    """Friedman's function with drift."""
    from river.datasets.synth import FriedmanDrift

    position = (n // 4, n // 2, 3 * n // 4) if kind == "lea" else (n // 3, 2 * n // 3)
    return list(islice(FriedmanDrift(kind, position, n // 5, seed), n))


def demand(folder: Path, n: int) -> list[Instance]:
    """Electricity demand by everything else."""
    table = np.loadtxt(folder / "elec2_data.dat", max_rows=n)
    rows = [dict(zip(DEMAND, row, strict=True)) for row in table.tolist()]
    return [({name: value for name, value in row.items() if name != "nswdemand"}, row["nswdemand"]) for row in rows]


def streams(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[int], list[Instance]]]]:
    """Streams by name: from a seed to the instances."""
    from river import datasets

    for kind in FRIEDMAN:
        yield f"Friedman, {kind}", partial(friedman, kind, n=options.n)
    yield "TrumpApproval", lambda seed: list(islice(datasets.TrumpApproval(), options.n))
    yield "ChickWeights", lambda seed: list(islice(datasets.ChickWeights(), options.n))
    if options.data is not None:
        yield "demand", lambda seed: demand(options.data, options.n)


def models() -> dict[str, Callable[[int], Any]]:
    """The default, its parts, and river's."""
    from river import forest, linear_model, neighbors, preprocessing, rules, tree

    from moeapps.stream import DriftMoERegressor

    def alone(kind: str, seed: int) -> Any:
        return DriftMoERegressor(experts=[kind], seed=seed)

    def scaled(model: Any) -> Any:
        return preprocessing.TargetStandardScaler(preprocessing.StandardScaler() | model)

    return {
        "DriftMoE": lambda seed: DriftMoERegressor(seed=seed),
        "DriftMoE, use_router=False": lambda seed: DriftMoERegressor(use_router=False, seed=seed),
        **{f"DriftMoE, {kind} alone": partial(alone, kind) for kind in KINDS},
        "DriftMoE of 0.1": lambda seed: DriftMoERegressor(experts=None, seed=seed),
        "river ARF(10)": lambda seed: forest.ARFRegressor(n_models=10, seed=seed),
        "river AMF(10)": lambda seed: forest.AMFRegressor(n_estimators=10, seed=seed),
        "river HAT": lambda seed: tree.HoeffdingAdaptiveTreeRegressor(seed=seed),
        "river AMRules": lambda seed: rules.AMRules(),
        "river linear": lambda seed: scaled(linear_model.LinearRegression()),
        "river kNN": lambda seed: scaled(neighbors.KNNRegressor(5, neighbors.LazySearch(1000))),
    }


def evaluate(model: Any, instances: list[Instance]) -> dict[str, float]:
    """Mean absolute error of predictions before learning, and the time that both took."""
    errors, start = [], time.process_time()
    for x, y in instances:
        errors.append(abs((model.predict_one(x) or 0.0) - y))  # a forest says None before it has learned
        model.learn_one(x, y)
    return {"mae": float(np.mean(errors[1:])), "seconds": time.process_time() - start, "n": len(instances)}


def run(options: argparse.Namespace, runs: dict[str, Any], keep: Callable[[], None]) -> None:
    """Measure what is missing."""
    warm = friedman("lea", 99, 400)
    for label, make in models().items():
        if label.startswith("DriftMoE") and (options.models is None or label in options.models):
            evaluate(make(0), warm)  # compiles its loops
    for seed in range(options.seeds):
        for name, load in streams(options):
            found, instances = runs.setdefault(f"{name}, {seed}", {}), None
            for label, make in models().items():
                if label in found or (options.models is not None and label not in options.models):
                    continue
                instances = instances or load(seed)
                found[label] = evaluate(make(seed), instances)
                print(f"{name}, {seed}: {label} {found[label]['mae']:.4f} {found[label]['seconds']:.1f} s", flush=True)
                keep()


def shown(scores: list[float], digits: int) -> str:
    """Mean ± standard deviation over the seeds, where there are several."""
    if np.mean(scores) > 1e4:
        return f"{np.mean(scores):.1e}"
    text = f"{np.mean(scores):.{digits}f}"
    return text if len(scores) == 1 else f"{text} ± {np.std(scores):.{digits}f}"


def tables(runs: dict[str, Any]) -> Iterator[str]:
    """Errors by stream and model, and rows per second on Friedman's function, as Markdown."""
    names = list(dict.fromkeys(key.rpartition(", ")[0] for key in runs))
    yield f"| mean absolute error | {' | '.join(names)} | rows per second, Friedman |"
    yield f"| --- |{' --- |' * (len(names) + 1)}"
    groups = [[run for key, run in runs.items() if key.rpartition(", ")[0] == name] for name in names]
    for label in dict.fromkeys(label for run in runs.values() for label in run):
        cells = []
        for group in groups:
            scores = [run[label]["mae"] for run in group if label in run]
            least = min(np.mean([run[other]["mae"] for run in group if other in run]) for other in group[0])
            text = shown(scores, 4 if least < 0.1 else 3)
            cells.append(f"**{text}**" if np.mean(scores) == least else text)
        rates = [
            run[label]["n"] / run[label]["seconds"]
            for key, run in runs.items()
            if key.startswith("Friedman") and label in run
        ]
        yield f"| {label} | {' | '.join(cells)} | {np.median(rates):,.0f} |"


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--data", type=Path, help="folder of elec2_data.dat; without it that stream is left out")
    parser.add_argument("--n", type=int, default=5_000, help="largest number of instances of a stream")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--models", nargs="+", help="some models only")
    parser.add_argument("--table", action="store_true", help="only print the tables")
    parser.add_argument("--output", type=Path, default=RESULTS / "stream_regression.json")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    found = json.loads(options.output.read_text()) if options.output.exists() else {}
    runs = found.setdefault("runs", {})
    found["machine"] = {"device": platform.machine(), "threads": 1, "python": platform.python_version()}

    def keep() -> None:
        options.output.write_text(json.dumps(found, indent=1) + "\n")

    if not options.table:
        run(options, runs, keep)
    print("\n".join(tables(runs)))


if __name__ == "__main__":
    main()
