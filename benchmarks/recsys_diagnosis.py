"""A made set with the three ills of multi-gate models: who shows them, and what they cost.

    python benchmarks/recsys_diagnosis.py --seeds 5

30 numbers, of which half are heavy-tailed, as counts and durations are: their largest values are ten standard
deviations away, which kills units of ReLU experts and spreads their scales (collapse). Three targets of one row: "view"
is known of every row, counts ten times and depends on the heavy-tailed numbers, so that it can take a shared expert for
itself (degradation); "like" is known of a fifth of the rows; "buy" of one row in fifty, and follows "like" and some
numbers of its own, so that its own experts hardly learn (underfitting).

MMoE and PLE are as published (ReLU, no norm). All models have the same widths, batches and epochs, at three learning
rates: the ills come with large steps. Test labels are known of all rows. Sizes and rates were chosen after a look at
hints and AUCs of one seed, the same ones for all models. The hints are those of `diagnose`, on 4,096 test rows.
"""

import json
import platform
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from command_line import script_parser
from rich.console import Console
from rich.table import Table

from moeapps.recsys import MultiTaskRanker, auc

TASKS = ["view", "like", "buy"]
KNOWN = {"view": 1.0, "like": 0.2, "buy": 0.02}
RATES = (5e-3, 2e-2, 5e-2)
TRAIN, TEST, NUMBERS = 8_000, 8_000, 30
WIDTHS: dict[str, Any] = {"expert": [64, 64], "tower": [32]}
PUBLISHED = {"activation": "relu", "norm": False}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "MMoE, as published": ("mmoe", PUBLISHED),
    "PLE, as published": ("ple", PUBLISHED),
    "HoME": ("home", {}),
}
ILLS = {
    "dead units": "(collapse)",
    "scales": "variances of",
    "degradation": "(degradation)",
    "underfitting": "underfitting)",
}
"""What a hint says, by the ill."""


def make(seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training rows, whose labels are partly unknown, and test rows."""
    rng = np.random.default_rng(seed)
    half = NUMBERS // 2
    normal = rng.normal(size=(TRAIN + TEST, half))
    hidden = rng.normal(size=(TRAIN + TEST, half))
    mix = rng.normal(size=(3, half, 8)) / half**0.5
    heavy = np.tanh(hidden @ mix[0]) @ rng.normal(size=8)
    liked = np.tanh(2 * normal @ mix[1]) @ rng.normal(size=8)
    own = np.tanh(2 * normal @ mix[2]) @ rng.normal(size=8)
    scores = {"view": 2 * heavy, "like": 1.5 * liked, "buy": liked + own}
    frame = pd.DataFrame(
        np.concatenate([normal, np.exp(2 * hidden)], axis=1), columns=[f"x{i}" for i in range(NUMBERS)]
    )
    for task, score in scores.items():
        frame[task] = (rng.random(len(frame)) < 1 / (1 + np.exp(-score))).astype(float)
    train, test = frame.iloc[:TRAIN].copy(), frame.iloc[TRAIN:]
    for task, part in KNOWN.items():
        train.loc[rng.random(TRAIN) >= part, task] = np.nan
    return train, test


def run(name: str, seed: int, epochs: int, lr: float) -> dict[str, Any]:
    model, options = MODELS[name]
    train, test = make(seed)
    ranker = MultiTaskRanker(
        model, options={**WIDTHS, **options}, task_weights={"view": 10.0}, batch_size=256, lr=lr, max_epochs=epochs,
        validation_fraction=0.0, accelerator="cpu", random_state=seed,
    )  # fmt: skip
    start = time.perf_counter()
    ranker.fit(train, TASKS, kinds=dict.fromkeys(TASKS, "binary"))
    seconds = time.perf_counter() - start
    found = ranker.predict_proba(test)
    hints = ranker.diagnose(test.head(4096)).hints()
    return {
        "auc": {task: auc(test[task], found[task]) for task in TASKS},
        "hints": {ill: sum(words in hint for hint in hints) for ill, words in ILLS.items()},
        "text": hints,
        "seconds": seconds,
    }


def show(runs: dict[str, dict[str, Any]]) -> None:
    table = Table("model", *TASKS, "mean", *(f"seeds with: {ill}" for ill in ILLS), "seconds")
    for model, seeds in runs.items():
        rows = list(seeds.values())
        areas = np.array([[row["auc"][task] for task in TASKS] for row in rows])
        areas = np.concatenate([areas, areas.mean(1, keepdims=True)], axis=1)
        error = areas.std(0, ddof=1) / len(rows) ** 0.5 if len(rows) > 1 else 0 * areas[0]
        table.add_row(
            model,
            *(f"{m:.4f} ± {e:.4f}" for m, e in zip(areas.mean(0), error, strict=True)),
            *(str(sum(row["hints"][ill] > 0 for row in rows)) for ill in ILLS),
            f"{np.mean([row['seconds'] for row in rows]):.0f}",
        )
    Console(width=170).print(table)


def markdown(runs: dict[str, dict[str, Any]]) -> list[str]:
    """The table in docs/benchmarks/recommendation.md."""
    ills = list(next(iter(next(iter(runs.values())).values()))["hints"])
    tasks = list(next(iter(next(iter(runs.values())).values()))["auc"])
    lines = [
        f"| model | {' | '.join(tasks)} | mean | {' | '.join(ills)} |",
        "| --- " * (len(tasks) + len(ills) + 2) + "|",
    ]
    for model, seeds in runs.items():
        areas = np.array([list(run["auc"].values()) for run in seeds.values()])
        areas = np.concatenate([areas, areas.mean(1, keepdims=True)], axis=1)
        error = areas.std(0, ddof=1) / len(areas) ** 0.5
        cells = [f"{mean:.4f} ± {e:.4f}" for mean, e in zip(areas.mean(0), error, strict=True)]
        warned = [str(sum(run["hints"][ill] > 0 for run in seeds.values())) for ill in ills]
        lines.append(f"| {model} | {' | '.join([*cells, *warned])} |")
    return lines


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "recsys_diagnosis.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    found["runs"] = json.loads(options.output.read_text())["runs"] if options.output.exists() else {}
    for seed in range(options.seeds):
        for model, lr in product(MODELS, RATES):
            name = f"{model}, rate {lr:g}"
            runs = found["runs"].setdefault(name, {})
            if str(seed) in runs:
                continue
            runs[str(seed)] = run(model, seed, options.epochs, lr)
            print(name, seed, json.dumps(runs[str(seed)]), flush=True)
            options.output.parent.mkdir(exist_ok=True)
            options.output.write_text(json.dumps(found, indent=1) + "\n")
    show(found["runs"])


if __name__ == "__main__":
    main()
