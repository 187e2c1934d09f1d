"""What conditional prediction saves: nodes, edges and time against the GNN alone, on public graphs.

    python benchmarks/graph_cost.py --data Cora
    python benchmarks/graph_cost.py --data tolokers minesweeper --root data --backbones gcn gat

Trains Mowst* with the settings of examples/graph/mowst_<name>.yaml, predicts the whole graph at many thresholds, and
looks up the one that asks the strong expert about the fewest nodes while the test score is at most 0.2 points below
that of the full mixture ("of the mixture") or of the GNN trained alone ("of the GNN"). They are looked up on the test
nodes: they describe the curve; to choose a threshold for use, ``threshold="auto"`` takes validation nodes.
Milliseconds are medians of predictions that alternate with those of the strong expert alone, in one process: once on
the whole graph, where memory does not matter, and once in pieces around 500 nodes at a time, as on a graph that does
not fit. "error" is the largest difference of a probability between the conditional and the dense prediction, over all
thresholds.
"""

import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from command_line import script_parser
from graph_accuracy import offline_root
from rich.console import Console
from rich.table import Table

from moeapps.graph import Edges, GNNClassifier, MowstClassifier, PublicGraphData, predict_nodes
from moeapps.graph.experts import node_expert
from moeapps.graph.plots import plot_confidence_by_neighborhood, plot_cost_curve

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
TOLERANCE = 0.002


def settings_of(name: str) -> dict[str, Any]:
    """Constructor arguments of the mixture in a graph's example, and how long it may train."""
    config = yaml.safe_load((EXAMPLES / f"mowst_{name.lower()}.yaml").read_text())
    arguments: dict[str, Any] = config["model"]["init_args"]
    return {**arguments, "max_epochs": config["trainer"]["max_epochs"]}


def models_of(settings: dict[str, Any], backbone: str, seed: int) -> dict[str, GNNClassifier | MowstClassifier]:
    """Both experts alone and their mixture, with the same settings."""
    alone = {k: v for k, v in settings.items() if k in (*SHARED, "max_epochs")}
    mixture = {"norm": "batch_norm", **{k: v for k, v in settings.items() if k not in ("variant", "strong")}}
    alone = {"norm": "batch_norm", **alone}
    return {
        "MLP": GNNClassifier("mlp", random_state=seed, **alone),
        "GNN": GNNClassifier(backbone, random_state=seed, **alone),
        "Mowst*": MowstClassifier(strong=backbone, variant="mowst_star", random_state=seed, **mixture),
    }


def median_seconds(*calls: Callable[[], Any], repeats: int = 15) -> list[float]:
    """Median time of each call, all taking turns."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, noted in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            noted.append(time.perf_counter() - start)
    return [statistics.median(noted) for noted in times]


@torch.no_grad()
def measure(name: str, backbone: str, root: str | None, pictures: Path) -> dict[str, Any]:
    """Train, predict at every threshold, draw the curve."""
    settings = settings_of(name)
    graph = PublicGraphData(name, root).prepared()
    models = models_of(settings, backbone, seed=0)
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        fitted = {key: models[key].fit(graph) for key in ("MLP", "GNN", "Mowst*")}
    mowst = fitted["Mowst*"]
    assert isinstance(mowst, MowstClassifier)
    metric = settings.get("monitor", "accuracy")
    confidence = mowst.predict_confidence(graph)
    thresholds = [0.0, *np.quantile(confidence, np.linspace(0.05, 1, 20)).tolist(), 2.0]
    curve = mowst.cost_curve(graph, thresholds=thresholds)
    full, gnn = float(curve["score"].iloc[-1]), fitted["GNN"].evaluate(graph)[metric]
    chosen = {
        reference: curve[curve["score"] >= score - TOLERANCE].sort_values("strong").iloc[0]
        for reference, score in (("of the mixture", full), ("of the GNN", min(full, gnn)))
    }
    x, edges, model = graph.x, Edges(graph.edge_index, None, graph.num_nodes), mowst.model_
    error = 0.0
    for threshold in curve["threshold"]:
        found, _ = predict_nodes(model, x, edges, mode="cascade", threshold=threshold)  # type: ignore[arg-type]
        dense = model(x, edges, mode="cascade", threshold=threshold)
        error = max(error, float((found.log_probs.exp() - dense.log_probs.exp()).abs().max()))
    strong = model.experts["strong"]
    seconds: dict[str, Any] = {}
    for reference, point in chosen.items():
        for regime, size in (("whole", None), ("batches", 500)):

            def conditional(size: int | None = size, threshold: float = float(point["threshold"])) -> None:
                predict_nodes(model, x, edges, mode="cascade", threshold=threshold, batch_size=size)  # type: ignore[arg-type]

            def gnn_alone(size: int | None = size) -> None:
                node_expert(strong).on_nodes(x, edges, None, batch_size=size)

            medians = median_seconds(conditional, gnn_alone, repeats=15 if size is None else 5)
            seconds[f"{reference}, {regime}"] = {"conditional": medians[0], "GNN alone": medians[1]}
    title = f"{name}, Mowst*-{backbone.upper()}, test {'ROC-AUC' if metric == 'auc' else 'accuracy'}"
    scores = {f"{key} alone": fitted[key].evaluate(graph)[metric] for key in ("MLP", "GNN")}
    pictures.mkdir(parents=True, exist_ok=True)
    plot_cost_curve({"Mowst*": curve}, scores, title).savefig(pictures / f"cost-{name}-{backbone}.png", dpi=110)
    test = graph.test_mask.numpy()
    weak_right = (model.experts["weak"](x).argmax(1) == graph.y).numpy()  # type: ignore[operator]
    source, target = graph.edge_index
    degree = torch.bincount(target, minlength=graph.num_nodes)
    same = torch.zeros(graph.num_nodes).index_add(0, target, (graph.y[source] == graph.y[target]).float())
    plot_confidence_by_neighborhood(
        mowst.predict_confidence(graph)[test],
        weak_right[test],
        degree.numpy()[test],
        (same / degree).numpy()[test],
        f"{name}, test nodes, Mowst*-{backbone.upper()}",
    ).savefig(pictures / f"confidence-{name}-{backbone}.png", dpi=110)
    return {
        "metric": metric,
        "alone": scores,
        "full": full,
        "champion": mowst.champion_,
        "chosen": {name: {key: float(value) for key, value in point.items()} for name, point in chosen.items()},
        "seconds": seconds,
        "error": error,
        "curve": curve.to_dict("list"),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--data", nargs="+", default=["Cora"])
    parser.add_argument("--root", help="folder of the public graphs; not needed for Cora")
    parser.add_argument("--backbones", nargs="+", default=["gcn"])
    parser.add_argument("--pictures", type=Path, default=Path("docs/graph"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/graph_cost.json"))
    options = parser.parse_args()
    console = Console(width=140)
    results: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.data:
            for backbone in options.backbones:
                console.print(f"{name}, {backbone}")
                root = offline_root(options.root, Path(scratch), name)
                results[f"{name}, {backbone}"] = measure(name, backbone, root, options.pictures)
                options.output.parent.mkdir(parents=True, exist_ok=True)
                options.output.write_text(json.dumps(results, indent=1) + "\n")
    table = Table(title="the fewest nodes that lose at most 0.2 points")
    columns = ("GNN alone", "mixture", "at most 0.2 below that", "score", "nodes", "edges", "ms / GNN alone")
    for column in ("graph", *columns, "in batches", "error"):
        table.add_column(column, justify="left" if column == "graph" else "right")
    for key, run in results.items():
        for reference, point in run["chosen"].items():
            times = [run["seconds"][f"{reference}, {regime}"] for regime in ("whole", "batches")]
            table.add_row(
                key,
                f"{100 * run['alone']['GNN alone']:.2f}",
                f"{100 * run['full']:.2f} ({run['champion']})",
                reference,
                f"{100 * point['score']:.2f}",
                f"{100 * point['strong']:.0f} %",
                f"{100 * point['edges']:.0f} %",
                *(f"{1e3 * time['conditional']:.1f} / {1e3 * time['GNN alone']:.1f}" for time in times),
                f"{run['error']:.0e}",
            )
    console.print(table)


if __name__ == "__main__":
    main()
