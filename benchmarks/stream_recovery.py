"""How soon the accuracy is back when a concept returns: DriftMoE beside an adaptive random forest.

    python benchmarks/stream_recovery.py                    # measures, then writes docs/stream/recovery.png
    python benchmarks/stream_recovery.py --table            # only the table and the picture of what was measured

Three streams of 100,000 instances whose three concepts take turns of 10,000 (moeapps.stream.recurring_stream), three
seeds. The rival is MOA's forest of 12 trees in Java's own loop (pip install capymoa), or river's where CapyMOA is
absent. Every stream and seed is kept at once, so the script can be stopped and started again.

A recovery is the number of instances after a concept's return until the accuracy of the last 250 instances has reached
the level; the level is the lower one of the two models' accuracies in the second half of this concept's last turn, less
one point, so both have to reach the same. A turn in which it is not reached counts with its 10,000 instances.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from command_line import script_parser
from rich.console import Console
from rich.table import Table
from stream_models import MOA, OURS, RIVER, evaluate_moa, no_capymoa
from stream_sets import RECURRING, Stream, load

from moeapps.core.plots import new_figure

WINDOW = 250
MARGIN = 0.01
EVERY, SHOWN = 50, 5000
"""Instances between two points of a curve, and how many of a turn the picture shows."""

MODELS = ("DriftMoE", "DriftMoE, use_router=False")


def hits_of(model: Any, stream: Stream) -> np.ndarray:
    """Whether each instance was predicted correctly before it was learned, of a model of ours or river's."""
    hits = np.zeros(len(stream.y), dtype=bool)
    pairs = list(stream.pairs())
    if hasattr(model, "test_then_train"):
        predictions, _ = model.test_then_train([x for x, _ in pairs], [y for _, y in pairs])
        return np.array([prediction == y for prediction, (_, y) in zip(predictions, pairs, strict=True)])
    for i, (x, y) in enumerate(pairs):
        hits[i] = model.predict_one(x) == y
        model.learn_one(x, y)
    return hits


def turns(stream: Stream) -> list[tuple[int, int, int, int]]:
    """Returns of concepts: begin and end of the turn, and of the same concept's turn before."""
    bounds = [0, *stream.drifts, len(stream.y)]
    last: dict[int, tuple[int, int]] = {}
    found = []
    for concept, begin, end in zip(stream.concepts, bounds[:-1], bounds[1:], strict=True):
        if concept in last:
            found.append((begin, end, *last[concept]))
        last[concept] = begin, end
    return found


def recoveries(hits: dict[str, np.ndarray], stream: Stream, pair: tuple[str, str]) -> dict[str, list[int]]:
    """Instances until each of the two models has reached the common level, by return."""
    found: dict[str, list[int]] = {name: [] for name in pair}
    for begin, end, earlier, until in turns(stream):
        half = (earlier + until) // 2
        level = min(hits[name][half:until].mean() for name in pair) - MARGIN
        for name in pair:
            recent = windowed(hits[name][begin:end])
            reached = np.flatnonzero(recent >= level)
            found[name].append(WINDOW + int(reached[0]) if len(reached) else end - begin)
    return found


def windowed(hits: np.ndarray) -> np.ndarray:
    """Accuracy of the last WINDOW instances, from the first full window on."""
    total = np.concatenate([[0], np.cumsum(hits)])
    return (total[WINDOW:] - total[:-WINDOW]) / WINDOW


def measure(name: str, seed: int, n: int, every: int, cache: Path, rival: str) -> dict[str, Any]:
    """Accuracies, recoveries and curves of all models on one stream."""
    stream = load(name, seed, n, None, cache, every)
    hits = {model: hits_of(OURS[model](seed), stream) for model in MODELS}
    if rival in MOA:
        hits[rival] = evaluate_moa(rival, stream, seed, cache, hits=True)["hits"]
    else:
        hits[rival] = hits_of(RIVER[rival].make(seed), stream)
    found: dict[str, Any] = {"accuracy": {model: float(right.mean()) for model, right in hits.items()}}
    for model in MODELS:
        found[model] = recoveries(hits, stream, (model, rival))
    found["curves"] = {
        model: np.mean([windowed(right[begin:end])[::EVERY] for begin, end, *_ in full(stream)], axis=0)
        .round(4)
        .tolist()
        for model, right in hits.items()
    }
    return found


def full(stream: Stream) -> list[tuple[int, int, int, int]]:
    """Returns whose turn is as long as the others."""
    found = turns(stream)
    longest = max(end - begin for begin, end, *_ in found)
    return [turn for turn in found if turn[1] - turn[0] == longest]


def table(runs: dict[str, Any], rival: str) -> Table:
    """Median recovery of ours and of the rival, over returns and seeds."""
    shown = Table(title=f"instances until the accuracy is back, median over returns and seeds: ours / {rival}")
    shown.add_column("stream")
    for model in MODELS:
        shown.add_column(model, justify="right")
    shown.add_column("accuracy in %: " + ", ".join((*MODELS, rival)), justify="right")
    for name in RECURRING:
        found = [run for key, run in runs.items() if key.startswith(f"{name},")]
        cells = []
        for model in MODELS:
            ours, theirs = (np.median(np.concatenate([run[model][who] for run in found])) for who in (model, rival))
            cells.append(f"{ours:,.0f} / {theirs:,.0f} ({ours / theirs:.2f})")
        means = (np.mean([100 * run["accuracy"][model] for run in found]) for model in (*MODELS, rival))
        shown.add_row(name, *cells, ", ".join(f"{mean:.2f}" for mean in means))
    return shown


def draw(runs: dict[str, Any], rival: str, path: Path) -> None:
    """Accuracy after a concept has returned, mean over returns and seeds, and the median recoveries."""
    figure = new_figure(width=10.0, height=3.4)
    figure.clear()
    panels = figure.subplots(1, len(RECURRING), squeeze=False)[0]
    for panel, name in zip(panels, RECURRING, strict=True):
        found = [run for key, run in runs.items() if key.startswith(f"{name},")]
        for model, color in ((MODELS[0], "C0"), (rival, "C3")):
            curve = np.mean([run["curves"][model] for run in found], axis=0)
            places = WINDOW + EVERY * np.arange(len(curve))
            panel.plot(places[places <= SHOWN], curve[places <= SHOWN], color=color, label=model)
            median = np.median(np.concatenate([run[MODELS[0]][model] for run in found]))
            panel.axvline(median, color=color, linestyle="--", linewidth=0.9)
        panel.set(title=name.replace("_", " "), xlabel="instances since the return")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(f"accuracy of the last {WINDOW}")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--n", type=int, default=100_000, help="instances of a stream")
    parser.add_argument("--every", type=int, default=10_000, help="instances of a turn")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rival", default="MOA ARF(12)" if no_capymoa() is None else "river ARF(12)")
    parser.add_argument("--table", action="store_true", help="only show what has been measured")
    parser.add_argument("--cache", type=Path, default=Path("benchmarks/cache"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/stream_recovery.json"))
    parser.add_argument("--picture", type=Path, default=Path("docs/stream/recovery.png"))
    options = parser.parse_args()
    if options.rival not in {*MOA, *RIVER}:
        parser.error(f"--rival must be one of {', '.join((*MOA, *RIVER))}, got {options.rival!r}")
    if options.n < 4 * options.every or options.every < 2 * WINDOW:
        parser.error(f"--every must be at least {2 * WINDOW}, and --n four turns, so that a concept returns")
    results: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}
    if results.get("rival", options.rival) != options.rival:
        if not options.table:
            parser.error(f"{options.output} has the rival {results['rival']!r}: name it, or another --output")
        options.rival = results["rival"]
    results["rival"] = options.rival
    runs = results.setdefault("runs", {})

    for seed in range(0 if options.table else options.seeds):
        for name in RECURRING:
            if (key := f"{name}, {seed}") in runs:
                continue
            runs[key] = measure(name, seed, options.n, options.every, options.cache, options.rival)
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(results, indent=1) + "\n")
    Console(width=160).print(table(runs, options.rival))
    draw(runs, options.rival, options.picture)


if __name__ == "__main__":
    main()
