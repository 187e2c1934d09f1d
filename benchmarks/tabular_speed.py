"""Seconds of fit and predict of MoEClassifier beside those of HistGradientBoosting, on rows of two public tables.

    OMP_NUM_THREADS=1 python benchmarks/tabular_speed.py [--sets electricity] [--repeats 3] [--before] [--output FILE]

Both models have their defaults and run on one thread, in one process, one after the other: a ratio of two neighbours
means more than seconds, which depend on what else the machine does. Times are of the processor; the lowest of the
repeats counts (their wall times are in the results file). Fit takes all rows named; predict gives probabilities of the
same rows. The MoE gets the frame as it was read, boosting the frame with text as pandas categories, made before the
clock starts.

``--before`` keeps the times as those of an earlier version, run as ``PYTHONPATH=/path/to/that/version``; the results
file then has both.
"""

import json
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from command_line import script_parser
from public_tables import load_table
from rich.console import Console
from rich.table import Table
from sklearn.ensemble import HistGradientBoostingClassifier

import moeapps
from moeapps import MoEClassifier

SETS = {
    "census-income, 2,000": ("census-income", 2_000),
    "census-income, 20,000": ("census-income", 20_000),
    "census-income, 99,762": ("census-income", 99_762),
    "electricity, 45,312": ("electricity", 45_312),
}
"""Table and number of rows, drawn without repeating one."""

WHAT = ("fit", "predict")


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Processor seconds, wall seconds, and what the work gives."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return time.process_time() - cpu, time.perf_counter() - wall, result


def measure(X: pd.DataFrame, y: np.ndarray, repeats: int) -> dict[str, dict[str, Any]]:
    """Seconds of both models, ``{model: {fit: {cpu, wall}, predict: ...}}``."""
    as_category = X.astype(dict.fromkeys(X.select_dtypes(exclude="number"), "category"))
    found: dict[str, dict[str, Any]] = {}
    for _ in range(repeats):
        rivals = {
            "moe": (MoEClassifier(random_state=0), X),
            "boosting": (
                HistGradientBoostingClassifier(categorical_features="from_dtype", random_state=0),
                as_category,
            ),
        }
        for name, (model, table) in rivals.items():
            fit = timed(lambda model=model, table=table: model.fit(table, y))
            predict = timed(lambda model=model, table=table: model.predict_proba(table))
            entry = found.setdefault(name, {"fit": [], "predict": [], "epochs": int(model.n_iter_)})
            entry["fit"].append(fit[:2])
            entry["predict"].append(predict[:2])
    for entry in found.values():
        for what in WHAT:
            cpu, wall = np.array(entry[what]).T
            entry[what] = {"cpu": round(float(cpu.min()), 3), "wall": round(float(wall.min()), 3)}
    return found


def ratio(result: dict[str, dict[str, Any]], what: str) -> float:
    """How many times boosting's processor seconds the MoE takes."""
    return float(result["moe"][what]["cpu"] / max(result["boosting"][what]["cpu"], 1e-3))


def show(document: dict[str, Any]) -> None:
    """Print the table of the docs."""
    table = Table(title="processor seconds, one thread")
    for column in ("rows", "what", "MoEClassifier", "boosting", "ratio", "ratio before"):
        table.add_column(column, justify="left" if column in ("rows", "what") else "right")
    for name in SETS:
        now, before = (document.get(when, {}).get(name) for when in ("now", "before"))
        if now is None:
            continue
        for what in WHAT:
            seconds = [f"{now[model][what]['cpu']:.2f}" for model in ("moe", "boosting")]
            old = f"{ratio(before, what):.1f}" if before else ""
            table.add_row(name if what == "fit" else "", what, *seconds, f"{ratio(now, what):.1f}", old)
    Console(width=110).print(table)


def main() -> None:
    """Measure, print and keep."""
    parser = script_parser(__doc__)
    parser.add_argument("--sets", default="; ".join(SETS), help="beginnings of names; others keep their results")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--before", action="store_true", help="these are the times of an earlier version")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/tabular_speed.json"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    document = json.loads(options.output.read_text()) if options.output.is_file() else {}
    warm_X, warm_y = np.random.default_rng(0).normal(size=(300, 4)), np.arange(300) % 2
    MoEClassifier(max_epochs=1).fit(warm_X, warm_y)  # what is imported and compiled once
    HistGradientBoostingClassifier(max_iter=2).fit(warm_X, warm_y)
    for name, (source, rows) in SETS.items():
        if not any(name.startswith(part.strip()) for part in options.sets.split(";")):
            continue
        loaded = load_table(source)
        if loaded is None:
            print(f"{name}: {source} is not at hand")
            continue
        X, y = loaded
        chosen = np.random.default_rng(0).permutation(len(X))[:rows]
        result = measure(X.iloc[chosen].reset_index(drop=True), y[chosen], options.repeats)
        document.setdefault("before" if options.before else "now", {})[name] = result
        print(name, {what: round(ratio(result, what), 2) for what in WHAT}, result, flush=True)
    document.update(
        machine={"device": platform.processor() or platform.machine(), "threads": 1},
        torch=torch.__version__,
        date=time.strftime("%Y-%m-%d"),
    )
    document["version before" if options.before else "version"] = moeapps.__version__
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=1) + "\n")
    show(document)


if __name__ == "__main__":
    main()
