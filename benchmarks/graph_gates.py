"""Ways to combine networks that were trained alone on a graph, on tuning splits: what the default of graphs was set on.

    python benchmarks/graph_gates.py --root FOLDER [--data Cora amherst41] [--splits 2] [--cache FOLDER]

The networks of the portfolio and the MLP are trained alone; the five that validate best, and the MLP, are what the
default of :class:`~moeapps.graph.MowstClassifier` would keep. Their predictions of the validation nodes go to
:func:`moeapps.core.mixing.fit_mixture` with several gates, with and without biases per class. Printed are log loss
and accuracy on the test nodes, and which candidate ``"auto"`` takes. No split is one of ``graph_accuracy.py``: splits
with further seeds, the last five of chameleon_filtered, and random ones of Cora and CiteSeer in the sizes of their
public split (20 nodes of each class, 500, 1000). Predictions are kept in the cache folder.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command_line import script_parser
from graph_accuracy import BY_AUC, GRAPHS, experts_alone, offline_root
from torch_geometric.transforms import RandomNodeSplit

from moeapps.core.mixing import fit_mixture
from moeapps.graph import PublicGraphData
from moeapps.graph.mixture import MARGIN

CACHE = Path(tempfile.gettempdir()) / "moeapps-graph-gates"
FIRST_SEED = {"chameleon_filtered": 5}
"""First tuning split; 100 for graphs whose splits are drawn."""

WAYS = {
    "mean": ("mean", False),
    "constant": ("constant", False),
    "auto": ("auto", False),
    "mean, biases": ("mean", True),
    "constant, biases": ("constant", True),
    "stacked": ("stacked", True),
    "auto, biases": ("auto", True),
}
"""Gate, and whether there may be a bias per class; the last one is the default of graphs."""


def tuning_graph(name: str, seed: int, root: str | None) -> Any:
    """A graph with masks that no table of the documentation uses."""
    drawn = name in ("Cora", "CiteSeer")
    graph = PublicGraphData(name, root, split=0 if drawn else seed).prepared()
    if not drawn:
        return graph
    torch.manual_seed(seed)
    return RandomNodeSplit("random", num_train_per_class=20, num_val=500, num_test=1000)(graph)


def predictions(name: str, seed: int, root: str | None, cache: Path) -> dict[str, Any]:
    """Log-probabilities of all networks at validation and test nodes, and their validation scores."""
    file = cache / f"{name}_{seed}.npz"
    if file.is_file():
        return dict(np.load(file))
    with tempfile.TemporaryDirectory() as scratch:
        graph = tuning_graph(name, seed, offline_root(root, Path(scratch), name))
        model, found, _ = experts_alone(graph, "auc" if name in BY_AUC else "accuracy", seed)
    scores = {row["name"]: row["score"] for row in model.selected_}
    kept: dict[str, Any] = {"names": np.array(list(found)), "scores": np.array([scores[key] for key in found])}
    log_probs = torch.stack(list(found.values()), dim=1).double().numpy()
    for part in ("val", "test"):
        mask = graph[f"{part}_mask"].numpy()
        kept |= {part: log_probs[mask], f"{part}_y": graph.y.numpy()[mask]}
    cache.mkdir(parents=True, exist_ok=True)
    np.savez(file, **kept)
    return kept


def as_kept_by_default(found: dict[str, Any], kept: int = 5) -> tuple[list[str], list[int]]:
    """Names and numbers of the MLP and the graph networks that validate best."""
    names = [str(name) for name in found["names"]]
    by_score = [i for i in np.argsort(-found["scores"], kind="stable") if names[i] != "weak"]
    numbers = sorted([names.index("weak"), *by_score[:kept]])
    return [names[i] for i in numbers], numbers


def measure(found: dict[str, Any]) -> dict[str, tuple[float, float, str]]:
    """Test log loss, test accuracy, and the chosen candidate of each way."""
    names, numbers = as_kept_by_default(found)
    val, test = found["val"][:, numbers], found["test"][:, numbers]
    none, nodes = np.zeros((len(val), 0)), np.arange(len(test))
    results = {}
    for way, (gate, class_bias) in WAYS.items():
        fitted = fit_mixture(none, val, found["val_y"], names=names, gate=gate, class_bias=class_bias, margin=MARGIN)
        mixed = fitted.mix(np.zeros((len(test), 0)), test)
        loss = float(-np.log(mixed[nodes, found["test_y"]]).mean())
        biased = " with biases" if fitted.line is not None and fitted.name != "stacked" else ""
        results[way] = loss, float((mixed.argmax(axis=1) == found["test_y"]).mean()), fitted.name + biased
    return results


def main() -> None:
    """Print one line per split, and means per graph."""
    parser = script_parser(__doc__)
    parser.add_argument("--data", nargs="+", default=["Cora"], choices=GRAPHS)
    parser.add_argument("--root", help="folder of the public graphs; not needed for Cora")
    parser.add_argument("--splits", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=CACHE)
    options = parser.parse_args()
    print(f"| test log loss, accuracy in % | {' | '.join(WAYS)} | auto took | with biases |")
    print("|---" * (len(WAYS) + 3) + "|")
    for name in options.data:
        first, runs = FIRST_SEED.get(name, 100), []
        for seed in range(first, first + options.splits):
            runs.append(measure(predictions(name, seed, options.root, options.cache)))
            cells = [f"{loss:.4f}, {100 * accuracy:.1f}" for loss, accuracy, _ in runs[-1].values()]
            chosen = [runs[-1][way][2] for way in ("auto", "auto, biases")]
            print(f"| {name}, {seed} | {' | '.join([*cells, *chosen])} |", flush=True)
        means = [np.mean([run[way][:2] for run in runs], axis=0) for way in WAYS]
        print(f"| {name}, mean | {' | '.join(f'{loss:.4f}, {100 * acc:.1f}' for loss, acc in means)} | | |", flush=True)


if __name__ == "__main__":
    main()
