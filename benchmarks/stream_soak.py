"""Memory and processor time per instance over millions of instances, and a picture of both.

    python benchmarks/stream_soak.py --n 5000000

The stream has 8 features and a linear concept that turns once in 1.2 million instances, so that trees keep being
replaced.
"""

import json
import time
from pathlib import Path

import numpy as np
import psutil
from command_line import script_parser
from rich.console import Console

from moeapps.core.plots import new_figure
from moeapps.stream import DriftMoEClassifier

BLOCK = 50_000


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--n", type=int, default=5_000_000)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/stream_soak.json"))
    parser.add_argument("--picture", type=Path, default=Path("docs/stream/soak.png"))
    options = parser.parse_args()
    model, process, rng = DriftMoEClassifier(seed=0), psutil.Process(), np.random.default_rng(0)
    rows = []
    for start in range(0, options.n, BLOCK):
        seconds, hits = 0.0, 0
        for first in range(start, start + BLOCK, 1000):
            X = rng.normal(size=(1000, 8))
            angle = 2 * np.pi * (first + np.arange(1000)) / 1_200_000
            y = (np.cos(angle) * X[:, 0] + np.sin(angle) * X[:, 1] > 0).astype(int).tolist()
            instances = [dict(enumerate(row)) for row in X.tolist()]
            begin = time.process_time()
            predictions, _ = model.test_then_train(instances, y)
            seconds += time.process_time() - begin
            hits += sum(guess == truth for guess, truth in zip(predictions, y, strict=True))
        rows.append(
            {
                "instance": start + BLOCK,
                "resident MiB": process.memory_info().rss / 2**20,
                "model MiB": model.nbytes_ / 2**20,
                "microseconds": 1e6 * seconds / BLOCK,
                "accuracy": hits / BLOCK,
            }
        )
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(rows, indent=1) + "\n")
    table = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    half, tenth = len(rows) // 2, max(len(rows) // 10, 1)
    Console().print(
        f"{options.n:,} instances: resident memory {table['resident MiB'][half]:.0f} MiB in the middle, "
        f"{table['resident MiB'][-1]:.0f} MiB at the end, of which the model {table['model MiB'][-1]:.1f}; "
        f"{np.median(table['microseconds'][:tenth]):.0f} microseconds of processor time per instance in the first "
        f"tenth, {np.median(table['microseconds'][-tenth:]):.0f} in the last; accuracy "
        f"{table['accuracy'].mean():.4f}; {len(model.drift_events_):,} events kept"
    )
    figure = new_figure(columns=2, width=5.0)
    for axes, names, unit in (
        (figure.axes[0], ("resident MiB", "model MiB"), "MiB"),
        (figure.axes[1], ("microseconds",), "microseconds of processor time per instance"),
    ):
        for name in names:
            axes.plot(table["instance"] / 1e6, table[name], label=name)
        axes.set(xlabel="million instances", ylabel=unit, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.picture, dpi=110)


if __name__ == "__main__":
    main()
