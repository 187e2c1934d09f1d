"""Instances per second of DriftMoE, by batches and one by one, beside river and MOA.

    python benchmarks/stream_speed.py --data FOLDER   # folder with elec2_data.dat and elec2_label.dat
    python benchmarks/stream_speed.py --first-use     # import, and compilation where nothing has been compiled

Every candidate takes its turn on the same instances in one process, three times; medians. One thread unless the name
says two. "learn_many" learns frames of 1,000 rows, "test_then_train" predicts and learns the same, "one by one" is
predict_one and learn_one for each instance. MOA's learners (where capymoa is installed) predict and learn in two loops:
"ARFF" is Java's own, over a file, and the fastest that MOA has; "NumpyStream" is fed from Python row by row. river's
run through predict_one and learn_one on the first instances only. Rates per second of processor time are kept too, for
a machine that has other work.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from command_line import script_parser
from rich.console import Console
from rich.table import Table
from stream_models import OURS, RIVER, evaluate_moa, no_capymoa, warm_up
from stream_sets import Stream, available, load

from moeapps.stream import DriftMoEClassifier

SHORT = 1500
OUR_MODELS = ("DriftMoE", "DriftMoE, use_router=False", "paper, data", "paper, task")
RIVER_MODELS = ("river HT", "river kNN", "river ARF(10)", "river AMF(10)", "river LevBag(10)")
MOA_MODELS = ("MOA HT", "MOA HAT", "MOA kNN", "MOA SAM-kNN", "MOA ARF(10)", "MOA LevBag(10)", "MOA SRP(10)")
MOA_LOOPS = {"arff": ("ARFF", MOA_MODELS), "numpy": ("NumpyStream", ("MOA HT", "MOA ARF(10)", "MOA LevBag(10)"))}

FIRST_USE = """
import time
from moeapps.stream import DriftMoEClassifier
rows = [({"a": float(i), "b": 1.0}, i % 2) for i in range(2000)]
wall, cpu = time.perf_counter(), time.process_time()
model = DriftMoEClassifier(seed=0)
for x, y in rows[:1000]:
    model.predict_one(x)
    model.learn_one(x, y)
model.test_then_train([x for x, _ in rows[1000:]], [y for _, y in rows[1000:]])
print(time.perf_counter() - wall, time.process_time() - cpu)
"""
"""Long enough for every part of the model to have been compiled."""

IMPORT = """
import time
import psutil
start = time.process_time()
from moeapps.stream import DriftMoEClassifier
print(time.process_time() - start, psutil.Process().memory_info().rss / 2**20)
"""

Rate = tuple[float, float]
"""Instances per second, and per second of processor time."""


def timed(work: Callable[[], None], n: int) -> Rate:
    """Rates of something that handles ``n`` instances."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return n / (time.perf_counter() - wall), n / (time.process_time() - cpu)


def learn_many(model: Any, X: np.ndarray, y: np.ndarray) -> Rate:
    """Learn frames of 1,000 rows."""
    frames = [(pd.DataFrame(X[i : i + 1000]), y[i : i + 1000]) for i in range(0, len(X), 1000)]

    def work() -> None:
        for frame, labels in frames:
            model.learn_many(frame, labels)

    return timed(work, len(X))


def test_then_train(model: Any, X: np.ndarray, y: np.ndarray) -> Rate:
    """Predict and learn."""
    rows, labels = [dict(enumerate(row)) for row in X.tolist()], y.tolist()

    def work() -> None:
        for i in range(0, len(rows), 1000):
            model.test_then_train(rows[i : i + 1000], labels[i : i + 1000])

    return timed(work, len(X))


def one_by_one(model: Any, X: np.ndarray, y: np.ndarray) -> Rate:
    """predict_one and learn_one."""
    rows, labels = [dict(enumerate(row)) for row in X.tolist()], y.tolist()

    def work() -> None:
        for x, label in zip(rows, labels, strict=True):
            model.predict_one(x)
            model.learn_one(x, label)

    return timed(work, len(X))


def first_use() -> dict[str, float]:
    """Seconds until a model has learned 2,000 instances in a new process that finds no machine code."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        found = subprocess.run(
            [sys.executable, "-c", FIRST_USE], env=environment, capture_output=True, text=True, check=True
        )
    wall, cpu = map(float, found.stdout.split()[-2:])
    return {"seconds": wall, "cpu_seconds": cpu}


def imports() -> dict[str, float]:
    """Processor time of importing the model in a new process, and resident memory after it; medians of five."""
    runs = [
        subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(5)
    ]
    cpu, memory = (statistics.median(map(float, column)) for column in zip(*runs, strict=True))
    return {"cpu_seconds": cpu, "resident_mib": memory}


def measure(
    streams: dict[str, Stream], repeats: int, cache: Path, save: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Rates of every candidate, ``{stream: {candidate: [rate, ...]}}`` per second and per second of processor time."""
    moa = no_capymoa() is None
    warm_up(OUR_MODELS)
    learn_many(DriftMoEClassifier(seed=0), np.zeros((10, 2)), np.zeros(10, dtype=int))
    found: dict[str, Any] = {"streams": {}, "cpu": {}}
    for name, stream in streams.items():
        rates: dict[str, list[float]] = found["streams"].setdefault(name, {})
        cpu: dict[str, list[float]] = found["cpu"].setdefault(name, {})

        def add(label: str, rate: Rate, rates: Any = rates, cpu: Any = cpu) -> None:
            rates.setdefault(label, []).append(rate[0])
            cpu.setdefault(label, []).append(rate[1])

        for _ in range(repeats):
            for model in OUR_MODELS:
                for work in (learn_many, test_then_train, one_by_one):
                    add(f"{model}, {work.__name__.replace('_', ' ')}", work(OURS[model](0), stream.X, stream.y))
            for model in RIVER_MODELS:
                add(model, one_by_one(RIVER[model].make(0), stream.X[:SHORT], stream.y[:SHORT]))
            for work in (learn_many, test_then_train):
                label = f"DriftMoE, {work.__name__.replace('_', ' ')}, two threads"
                add(label, work(DriftMoEClassifier(n_jobs=2, seed=0), stream.X, stream.y))
            for loop, (label, models) in MOA_LOOPS.items() if moa else ():
                for model in models:
                    run = evaluate_moa(model, stream, 0, cache, loop)
                    add(f"{model}, {label}", (run["per_second"], run["per_cpu_second"]))
            save(found)
    return found


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--data", "--elec", dest="data", help="folder with elec2_data.dat and elec2_label.dat")
    parser.add_argument("--n", type=int, default=20_000, help="instances")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--first-use", action="store_true", help="measure only import and first use, and add them")
    parser.add_argument("--cache", type=Path, default=Path("benchmarks/cache"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/stream_speed.json"))
    options = parser.parse_args()
    console = Console(width=140)
    kept: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}

    def save(found: dict[str, Any]) -> None:
        kept.update(found, processor=platform.machine(), python=platform.python_version())
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(kept, indent=1) + "\n")

    if options.first_use:
        save({"import": imports()})
        save({"first_use": first_use()})
        imported, used = kept["import"], kept["first_use"]
        console.print(f"import: {imported['cpu_seconds']:.1f} s of CPU, {imported['resident_mib']:.0f} MiB resident")
        console.print(f"first use: {used['seconds']:.1f} s, {used['cpu_seconds']:.1f} s of CPU")
        return
    names = ("elec", "rbf_fast")
    for name, reason in (missing := available(names, options.data)).items():
        console.print(f"{name}: absent, {reason}")
    if reason := no_capymoa():
        console.print(f"MOA: absent, {reason}")
    streams = {
        name: load(name, 0, options.n, options.data, options.cache).first(options.n)
        for name in names
        if name not in missing
    }
    found = measure(streams, options.repeats, options.cache, save)
    table = Table(title="instances per second, medians | per second of processor time")
    table.add_column("candidate")
    for name in streams:
        table.add_column(name, justify="right")
    for candidate in next(iter(found["streams"].values())):
        cells = [
            " | ".join(f"{statistics.median(found[what][name][candidate]):,.0f}" for what in ("streams", "cpu"))
            for name in streams
        ]
        table.add_row(candidate, *cells)
    console.print(table)


if __name__ == "__main__":
    main()
