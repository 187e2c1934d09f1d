"""Experts alone, their mixture, Mowst* and Mowst on public graphs, at their defaults: test scores and seconds.

    python benchmarks/graph_accuracy.py                              # Cora, which is installed
    python benchmarks/graph_accuracy.py --root FOLDER --data Cora CiteSeer tolokers --seeds 5
    python benchmarks/graph_accuracy.py --table                      # the tables of what has been run, as Markdown

Nothing is set but the score that validation selects by, which is that of the graph's table: ROC-AUC for minesweeper and
tolokers, accuracy for the others. Seeds are splits where a graph has several. "alone" trains the MLP and each network
of the portfolio to the end, each by itself, as the mixture does with those that it keeps. "Mowst*" and "Mowst" have as
strong expert the one that validates best alone on that split, and the "better variant" is the one of the two that
validates better. Seconds are those of the processor. Every result is kept at once: the script can be stopped and
started again, and --data, --models and --seeds choose a part.
"""

import argparse
import json
import platform
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moeapps.graph import MowstClassifier, PublicGraphData
from moeapps.graph.measures import measure
from moeapps.graph.portfolio import PORTFOLIO

GRAPHS = ("Cora", "CiteSeer", "chameleon_filtered", "minesweeper", "tolokers", "amherst41", "johnshopkins55")
BY_AUC = ("minesweeper", "tolokers")
MODELS = ("alone", "mixture", "Mowst*", "Mowst")
Run = dict[str, Any]


def offline_root(root: str | None, scratch: Path, name: str) -> str | None:
    """A folder where PyG may write what it makes of the raw files, which stay as they are."""
    if root is None or not (Path(root) / name / "raw").is_dir():
        return root
    place = scratch / name
    place.mkdir(exist_ok=True)
    if not (place / "raw").exists():
        (place / "raw").symlink_to((Path(root) / name / "raw").resolve())
    return str(scratch)


def fit(model: MowstClassifier, graph: Any) -> float:
    """Fit; seconds of the processor."""
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(graph)
    return time.process_time() - start


def alone(graph: Any, metric: str, seed: int) -> Run:
    """Every expert trained by itself, to the end."""
    model = MowstClassifier(kept=len(PORTFOLIO), monitor=metric, random_state=seed)
    seconds = fit(model, graph)
    chosen, scores = graph.test_mask, {}
    with torch.no_grad():
        for name in model.model_.names:
            logits = model.model_.expert(name).on_nodes(graph.x, model.graph_.edges, None)
            found = measure(logits.log_softmax(-1)[chosen], graph.y[chosen], everything=True)
            scores["MLP" if name == "weak" else name] = found[metric]
    rows = {row["name"]: row for row in model.selected_}
    validated = {"MLP" if name == "weak" else name: row["score"] for name, row in rows.items()}
    best = max((name for name in rows if name != "weak"), key=lambda name: rows[name]["score"])
    spec = {key: value for key, value in rows[best].items() if key not in ("name", "epochs", "score", "kept", "weight")}
    epochs = {name: row["epochs"] for name, row in rows.items()}
    return {"scores": scores, "validated": validated, "seconds": seconds, "best": spec, "epochs": epochs}


def measure_one(name: str, graph: Any, metric: str, seed: int, runs: Run) -> Run:
    """One model on one split."""
    if name == "alone":
        return alone(graph, metric, seed)
    if name == "mixture":
        model = MowstClassifier(monitor=metric, random_state=seed)
    else:
        spec = runs["alone"]["best"]
        variant: Any = "mowst_star" if name == "Mowst*" else "mowst"
        model = MowstClassifier(strong=spec, norm=spec["norm"], variant=variant, monitor=metric, random_state=seed)
    seconds = fit(model, graph)
    found: Run = {"score": model.evaluate(graph)[metric], "seconds": seconds, "champion": model.champion_}
    found["epochs"], found["strong"] = model.n_iter_, float(model.route(graph).mean())
    val = graph.val_mask.nonzero().flatten().numpy()
    found["validated"] = model.evaluate(graph, nodes=val)[metric]
    if name == "mixture":
        found["gate"] = model.model_.fitted.name
        found["weights"] = {row["name"]: row["weight"] for row in model.selected_}
    return found


def gain(ours: list[float], other: list[float]) -> tuple[float, float]:
    """Mean difference over the same splits, and its standard error."""
    difference = np.subtract(ours, other)
    return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference)))


def scores_of(runs: dict[str, Run], graph: str, model: str) -> list[float]:
    """Test scores of a model by seed; "better variant" and "best by validation" are chosen on validation nodes."""
    found = []
    for seed in range(len([key for key in runs if key.rpartition(", ")[0] == graph])):
        run = runs[f"{graph}, {seed}"]
        if model == "better variant":
            name = max(("Mowst*", "Mowst"), key=lambda name: run[name]["validated"])
            found.append(run[name]["score"])
        elif model == "best by validation":
            best = max(run["alone"]["validated"], key=run["alone"]["validated"].get)
            found.append(run["alone"]["scores"][best])
        elif model in run:
            found.append(run[model]["score"])
        else:
            found.append(run["alone"]["scores"][model])
    return found


def experts_of(runs: dict[str, Run]) -> list[str]:
    """Names of the experts alone."""
    return list(next(iter(runs.values()))["alone"]["scores"])


def tables(runs: dict[str, Run]) -> str:
    """Two tables as Markdown: scores, and every expert alone."""
    graphs = [name for name in GRAPHS if f"{name}, 0" in runs]
    experts = experts_of(runs)
    lines = [
        "| graph | MLP | best expert alone | best by validation | Mowst | Mowst* | mixture | mixture minus best expert "
        "| seconds: mixture, all alone, Mowst* |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for graph in graphs:
        best = max(experts, key=lambda name: float(np.mean(scores_of(runs, graph, name))))
        cells = [graph]
        for model in ("MLP", best, "best by validation", "Mowst", "Mowst*", "mixture"):
            if not all(model not in ("Mowst", "Mowst*") or model in runs[f"{graph}, {s}"] for s in range(1)):
                cells.append("not run")
                continue
            scores = 100 * np.array(scores_of(runs, graph, model))
            name = f" ({best})" if model == best else ""
            cells.append(f"{scores.mean():.2f} ± {scores.std():.2f}{name}")
        difference, error = gain(scores_of(runs, graph, "mixture"), scores_of(runs, graph, best))
        cells.append(f"{100 * difference:+.2f} ± {100 * error:.2f}")
        own = [run for key, run in runs.items() if key.rpartition(", ")[0] == graph]
        seconds = [np.mean([run[m]["seconds"] for run in own if m in run]) for m in ("mixture", "alone", "Mowst*")]
        cells.append(", ".join("-" if np.isnan(value) else f"{value:.0f}" for value in seconds))
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| graph | " + " | ".join(experts) + " |", "|---|" + "---|" * len(experts)]
    for graph in graphs:
        means = [f"{100 * np.mean(scores_of(runs, graph, name)):.2f}" for name in experts]
        lines.append(f"| {graph} | " + " | ".join(means) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["Cora"], choices=GRAPHS)
    parser.add_argument("--root", help="folder of the public graphs; not needed for Cora")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--table", action="store_true", help="print the tables of the results and run nothing")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/graph_accuracy.json"))
    options = parser.parse_args()
    results: dict[str, Any] = {"runs": {}}
    if options.output.exists() and (old := json.loads(options.output.read_text())).get("version") == 2:
        results = old
    results |= {"version": 2, "processor": platform.machine(), "torch": torch.__version__}
    runs = results["runs"]
    if options.table:
        print(tables(runs))
        return
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.data:
            root, metric = offline_root(options.root, Path(scratch), name), "auc" if name in BY_AUC else "accuracy"
            for seed in range(options.seeds):
                own = runs.setdefault(f"{name}, {seed}", {})
                if all(model in own for model in options.models):
                    continue
                graph = PublicGraphData(name, root, split=0 if name in ("Cora", "CiteSeer") else seed).prepared()
                for model in options.models:
                    if model in own:
                        continue
                    own[model] = measure_one(model, graph, metric, seed, own)
                    said = own[model].get("score", own[model].get("scores"))
                    print(f"{name}, {seed}: {model} {said}, {own[model]['seconds']:.0f} s", flush=True)
                    options.output.parent.mkdir(parents=True, exist_ok=True)
                    options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
