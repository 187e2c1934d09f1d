"""Experts alone, their mixture, Mowst* and Mowst on public graphs, at their defaults: test scores and seconds.

    python benchmarks/graph_accuracy.py                              # Cora, which is installed
    python benchmarks/graph_accuracy.py --root FOLDER --data Cora CiteSeer tolokers --seeds 5
    python benchmarks/graph_accuracy.py --table                      # the tables of what has been run, as Markdown

Nothing is set but the score that validation selects by, which is that of the graph's table: ROC-AUC for minesweeper and
tolokers, accuracy for the others. Seeds are splits where a graph has several. "alone" trains the MLP and each network
of the portfolio to the end, each by itself, as the mixture does with those that it keeps. "Mowst*" and "Mowst" have as
strong expert the one that validates best alone on that split. Seconds are those of the processor. Every result is
kept at once: the script can be stopped and started again, and --data, --models and --seeds choose a part.
"""

import json
import platform
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command_line import script_parser
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from moeapps.graph import GNNClassifier, MowstClassifier, PublicGraphData
from moeapps.graph.measures import measure
from moeapps.graph.portfolio import PORTFOLIO

GRAPHS = ("Cora", "CiteSeer", "chameleon_filtered", "minesweeper", "tolokers", "amherst41", "johnshopkins55")
BY_AUC = ("minesweeper", "tolokers")
MODELS = ("alone", "mixture", "Mowst*", "Mowst", "labels")
LABELS = ("mean of experts", "stacked on validation nodes", "trained on half of them")
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


def fit(model: MowstClassifier | GNNClassifier, graph: Any) -> float:
    """Fit; seconds of the processor."""
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(graph)
    return time.process_time() - start


def experts_alone(graph: Any, metric: str, seed: int) -> tuple[MowstClassifier, dict[str, torch.Tensor], float]:
    """Every expert trained by itself, to the end: the model, log-probabilities of all nodes by expert, seconds."""
    model = MowstClassifier(kept=len(PORTFOLIO), monitor=metric, random_state=seed)
    seconds = fit(model, graph)
    with torch.no_grad():
        logits = {
            name: model.model_.expert(name).on_nodes(graph.x, model.graph_.edges, None) for name in model.model_.names
        }
    return model, {name: values.log_softmax(-1) for name, values in logits.items()}, seconds


def score(log_probs: torch.Tensor, graph: Any, metric: str) -> float:
    """Test score of log-probabilities ``(N, K)`` of all nodes."""
    return measure(log_probs[graph.test_mask], graph.y[graph.test_mask], everything=True)[metric]


def alone(graph: Any, metric: str, seed: int) -> Run:
    """Every expert trained by itself, to the end."""
    model, found, seconds = experts_alone(graph, metric, seed)
    scores = {"MLP" if name == "weak" else name: score(values, graph, metric) for name, values in found.items()}
    rows = {row["name"]: row for row in model.selected_}
    validated = {"MLP" if name == "weak" else name: row["score"] for name, row in rows.items()}
    best = max((name for name in rows if name != "weak"), key=lambda name: rows[name]["score"])
    spec = {key: value for key, value in rows[best].items() if key not in ("name", "epochs", "score", "kept", "weight")}
    epochs = {name: row["epochs"] for name, row in rows.items()}
    return {"scores": scores, "validated": validated, "seconds": seconds, "best": spec, "epochs": epochs}


def with_labels(graph: Any, metric: str, seed: int, best: Run) -> Run:
    """Baselines that use labels of validation nodes; ``best`` is the expert that validates best alone."""
    _, found, seconds = experts_alone(graph, metric, seed)
    stacked = torch.stack(list(found.values()))
    scores = {LABELS[0]: score(stacked.logsumexp(0), graph, metric)}
    features = stacked.transpose(0, 1).flatten(1).numpy()
    chosen = graph.val_mask.numpy()
    regression = make_pipeline(StandardScaler(), LogisticRegressionCV(max_iter=2000, scoring="neg_log_loss"))
    regression.fit(features[chosen], graph.y.numpy()[chosen])
    log_probs = torch.full_like(stacked[0], -50.0)
    log_probs[:, regression.classes_] = torch.from_numpy(regression.predict_log_proba(features)).float()
    scores[LABELS[1]] = score(log_probs, graph, metric)
    half = graph.clone()
    val = graph.val_mask.nonzero().flatten()
    joining, staying = train_test_split(val, test_size=0.5, random_state=seed, stratify=graph.y[val])
    half.train_mask = graph.train_mask.clone().index_fill(0, joining, True)
    half.val_mask = torch.zeros_like(graph.val_mask).index_fill(0, staying, True)
    expert = GNNClassifier(best, norm=best["norm"], monitor=metric, random_state=seed)
    seconds += fit(expert, half)
    scores[LABELS[2]] = expert.evaluate(half)[metric]
    return {"scores": scores, "seconds": seconds}


def measure_one(name: str, graph: Any, metric: str, seed: int, runs: Run) -> Run:
    """One model on one split."""
    if name == "alone":
        return alone(graph, metric, seed)
    if name == "labels":
        return with_labels(graph, metric, seed, runs["alone"]["best"])
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


def complete(runs: dict[str, Run], graph: str) -> list[Run]:
    """Results by seed, those with every expert alone and the mixture."""
    found = [run for key, run in runs.items() if key.rpartition(", ")[0] == graph]
    return [run for run in found if {"alone", "mixture"} <= set(run)]


def scores_of(runs: dict[str, Run], graph: str, model: str) -> list[float]:
    """Test scores of a model by seed, of fewer seeds where it has not been run on all.

    "best by validation" is the expert alone that validates best.
    """
    found = []
    for run in complete(runs, graph):
        if model == "best by validation":
            validated = run["alone"]["validated"]
            found.append(run["alone"]["scores"][max(validated, key=validated.get)])
        elif model in LABELS:
            found += [run["labels"]["scores"][model]] if "labels" in run else []
        elif model in run:
            found.append(run[model]["score"])
        elif model in run["alone"]["scores"]:
            found.append(run["alone"]["scores"][model])
    return found


def experts_of(runs: dict[str, Run]) -> list[str]:
    """Names of the experts alone."""
    return list(next(run["alone"]["scores"] for run in runs.values() if "alone" in run))


def best_expert(runs: dict[str, Run], graph: str) -> str:
    """The expert alone with the best mean test score, which nobody knows beforehand."""
    return max(experts_of(runs), key=lambda name: float(np.mean(scores_of(runs, graph, name))))


def cell(scores: list[float], seeds: int) -> str:
    """Mean and standard deviation in %, and the number of seeds where it is another."""
    if not scores:
        return "not run"
    fewer = f" ({len(scores)} of {seeds})" if len(scores) < seeds else ""
    return f"{100 * np.mean(scores):.2f} ± {100 * np.std(scores):.2f}{fewer}"


def tables(runs: dict[str, Run]) -> str:
    """Three tables as Markdown: scores, baselines with the labels of validation nodes, and every expert alone."""
    graphs = [name for name in GRAPHS if complete(runs, name)]
    experts = experts_of(runs)
    columns = ("MLP", "best expert alone", "best by validation", "Mowst*", "Mowst", "mixture")
    lines = [
        f"| graph, seeds | {' | '.join(columns)} | mixture minus best expert | s: mixture, all alone |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for graph in graphs:
        own, best = complete(runs, graph), best_expert(runs, graph)
        cells = [f"{graph}, {len(own)}"]
        for column in columns:
            shown = cell(scores_of(runs, graph, best if column == "best expert alone" else column), len(own))
            cells.append(f"{best} {shown}" if column == "best expert alone" else shown)
        difference, error = gain(scores_of(runs, graph, "mixture"), scores_of(runs, graph, best))
        cells.append(f"{100 * difference:+.2f} ± {100 * error:.2f}")
        cells.append(
            ", ".join(f"{np.mean([run[name]['seconds'] for run in own]):.0f}" for name in ("mixture", "alone"))
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"| graph | {' | '.join(LABELS)} | mixture |", "|---" * (len(LABELS) + 2) + "|"]
    for graph in graphs:
        seeds = len(complete(runs, graph))
        cells = [cell(scores_of(runs, graph, name), seeds) for name in (*LABELS, "mixture")]
        lines.append(f"| {graph} | {' | '.join(cells)} |")
    lines += ["", f"| graph | {' | '.join(experts)} |", "|---" * (len(experts) + 1) + "|"]
    for graph in graphs:
        means = [f"{100 * np.mean(scores_of(runs, graph, name)):.2f}" for name in experts]
        lines.append(f"| {graph} | {' | '.join(means)} |")
    return "\n".join(lines)


def main() -> None:
    parser = script_parser(__doc__)
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
