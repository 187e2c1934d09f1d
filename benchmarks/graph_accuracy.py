"""MLP, GNN, Mowst in turns and Mowst* on public graphs: test score, seconds and activation, over seeds or splits.

    python benchmarks/graph_accuracy.py --data Cora
    python benchmarks/graph_accuracy.py --data Cora CiteSeer tolokers --root data --seeds 5 --backbones gcn sage

The settings of a graph are those of examples/graph/mowst_<name>.yaml, for the mixtures and for their experts trained
alone. Seeds are splits where a graph has several. Scores are those of the test nodes: accuracy, or ROC-AUC where the
settings select by it. "better than experts" is the better mixture's mean minus the better expert's, in standard errors
of the difference (unpaired). Results are added to the output file, graph by graph.
"""

import argparse
import json
import platform
import resource
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rich.console import Console
from rich.table import Table

from moeapps.graph import GNNClassifier, MowstClassifier, PublicGraphData

EXAMPLES = Path(__file__).parent.parent / "examples" / "graph"
SHARED = (
    "hidden_channels",
    "num_layers",
    "dropout",
    "norm",
    "lr",
    "weight_decay",
    "patience",
    "monitor",
    "class_weight",
)


def settings_of(name: str) -> dict[str, Any]:
    """Constructor arguments of the mixture in a graph's example, and how long it may train."""
    config = yaml.safe_load((EXAMPLES / f"mowst_{name.lower()}.yaml").read_text())
    arguments: dict[str, Any] = config["model"]["init_args"]
    return {**arguments, "max_epochs": config["trainer"]["max_epochs"]}


def models_of(settings: dict[str, Any], backbone: str, seed: int) -> dict[str, GNNClassifier | MowstClassifier]:
    """Both experts alone and both mixtures, with the same settings."""
    alone = {k: v for k, v in settings.items() if k in (*SHARED, "max_epochs")}
    mixture = {k: v for k, v in settings.items() if k not in ("variant", "strong")}
    return {
        "MLP": GNNClassifier("mlp", random_state=seed, **alone),
        "GNN": GNNClassifier(backbone, random_state=seed, **alone),
        "Mowst": MowstClassifier(strong=backbone, variant="mowst", random_state=seed, **mixture),
        "Mowst*": MowstClassifier(strong=backbone, variant="mowst_star", random_state=seed, **mixture),
    }


def offline_root(root: str | None, scratch: Path, name: str) -> str | None:
    """A folder where PyG may write what it makes of the raw files, which stay as they are."""
    if root is None or not (Path(root) / name / "raw").is_dir():
        return root
    place = scratch / name
    place.mkdir(exist_ok=True)
    if not (place / "raw").exists():
        (place / "raw").symlink_to((Path(root) / name / "raw").resolve())
    return str(scratch)


def measure(name: str, backbone: str, root: str | None, seeds: int, say: Any) -> dict[str, Any]:
    """Train and test everything on one graph with one strong expert."""
    settings = settings_of(name)
    metric = settings.get("monitor", "accuracy")
    found: dict[str, dict[str, list[float]]] = {}
    for seed in range(seeds):
        public = name in ("Cora", "CiteSeer", "PubMed")
        graph = PublicGraphData(name, root, split=0 if public else seed).prepared()
        for model_name, model in models_of(settings, backbone, seed).items():
            say(f"{name}, {backbone}: {model_name}, seed {seed}")
            start = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                model.fit(graph)
            entry = found.setdefault(model_name, {"score": [], "seconds": [], "epochs": [], "strong": []})
            entry["seconds"].append(time.perf_counter() - start)
            entry["score"].append(model.evaluate(graph)["auc" if metric == "auc" else "accuracy"])
            entry["epochs"].append(model.n_iter_)
            if isinstance(model, MowstClassifier):
                entry["strong"].append(float((model.predict_confidence(graph) < 0.5).mean()))
                entry.setdefault("champion", []).append(model.champion_)  # type: ignore[arg-type]
            else:
                entry["strong"].append(float(model_name == "GNN"))
    return {"metric": "ROC-AUC" if metric == "auc" else "accuracy", "settings": settings, "models": found}


def gain(models: dict[str, dict[str, list[float]]]) -> tuple[float, float]:
    """The better mixture's mean minus the better expert's, and the standard error of the difference."""
    best = {
        kind: max((models[name]["score"] for name in names), key=lambda score: float(np.mean(score)))
        for kind, names in (("mixture", ("Mowst", "Mowst*")), ("expert", ("MLP", "GNN")))
    }
    n = len(best["expert"])
    error = np.sqrt(sum(np.var(score, ddof=1) / n for score in best.values())) if n > 1 else float("nan")
    return float(np.mean(best["mixture"]) - np.mean(best["expert"])), float(error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["Cora"])
    parser.add_argument("--root", help="folder of the public graphs; not needed for Cora")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--backbones", nargs="+", help="strong experts; those of the examples when absent")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/graph_accuracy.json"))
    options = parser.parse_args()
    console = Console(width=140)
    results: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {"runs": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.data:
            root = offline_root(options.root, Path(scratch), name)
            for backbone in options.backbones or [settings_of(name).get("strong", "gcn")]:
                run = measure(name, backbone, root, options.seeds, console.print)
                run["machine"] = {
                    "device": platform.machine(),
                    "threads": torch.get_num_threads(),
                    "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                }
                results["runs"][f"{name}, {backbone}"] = run
                options.output.parent.mkdir(parents=True, exist_ok=True)
                options.output.write_text(json.dumps(results, indent=1) + "\n")
    table = Table(title="test score, mean ± standard deviation; seconds per training")
    for column in (
        "graph, strong expert",
        "MLP",
        "GNN",
        "Mowst",
        "Mowst*",
        "better than experts",
        "seconds",
        "c < 0.5",
    ):
        table.add_column(column, justify="left" if column.startswith("graph") else "right")
    for key, run in results["runs"].items():
        models = run["models"]
        scores = [f"{100 * np.mean(m['score']):.2f} ± {100 * np.std(m['score']):.2f}" for m in models.values()]
        difference, error = gain(models)
        seconds = " / ".join(f"{np.mean(m['seconds']):.0f}" for m in models.values())
        strong = f"{100 * np.mean(models['Mowst*']['strong']):.0f} %"
        table.add_row(
            f"{key} ({run['metric']})", *scores, f"{100 * difference:+.2f} ± {100 * error:.2f}", seconds, strong
        )
    console.print(table)


if __name__ == "__main__":
    main()
