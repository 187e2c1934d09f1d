"""Our graph networks and trainings against PyG's own, and pieces of a graph against the whole, in one process.

    python benchmarks/graph_speed.py --data Cora
    python benchmarks/graph_speed.py --data Cora tolokers amherst41 --root data

First table: milliseconds of a forward and backward pass with the same weights; PyG is used as pip installs it,
without its compiled extensions. Ours take the features as training does: without the zeros where they are mostly
zeros. Second table: seconds of a prediction for a random share of the nodes by cutting out a piece, divided by those
for the whole graph; where it is below 1, cutting pays (``cut_share`` in moeapps.graph.experts is read off it). Third
table: whole trainings beside 200 epochs of a plain loop over PyG's GCN with the same sizes and Adam, once validating
after each epoch, once not at all. "Mowst*" has a GCN as strong expert and a norm that is named, all else by default;
the default is a portfolio of networks. Seconds are of the processor and by the clock, medians over trainings with
different seeds, which take turns; ratios are to the plain loop that validates.
"""

import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from command_line import script_parser
from graph_accuracy import offline_root
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F
from torch_geometric.nn import GAT, GCN, GIN, GraphSAGE

from moeapps.graph import Edges, GNNClassifier, MowstClassifier, PublicGraphData, make_network
from moeapps.graph.experts import node_expert
from moeapps.graph.sparse_features import sparse_where_it_pays

PYG: dict[str, tuple[Any, dict[str, Any]]] = {
    "gcn": (GCN, {}),
    "sage": (GraphSAGE, {}),
    "gat": (GAT, {"act": "elu"}),
    "gin": (GIN, {}),
}
SHARES = (0.01, 0.05, 0.1, 0.2, 0.4)


def median_ms(*calls: Callable[[], Any], repeats: int) -> list[float]:
    """Median milliseconds of each call, all taking turns after one round of warming up."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(repeats + 1):
        for call, noted in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if turn:
                noted.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(noted) for noted in times]


def measure(name: str, root: str | None, repeats: int) -> dict[str, Any]:
    """All networks on one graph."""
    graph = PublicGraphData(name, root).prepared()
    edges = Edges(graph.edge_index, None, graph.num_nodes)
    x = sparse_where_it_pays(graph.x)
    found: dict[str, Any] = {}
    for network, (kind, options) in PYG.items():
        sizes = {"in_channels": graph.num_features, "out_channels": 7, "hidden_channels": 64, "num_layers": 2}
        ours = make_network(network, **sizes, dropout=0.0)  # type: ignore[arg-type]
        theirs = kind(**sizes, norm="batch_norm", **options)
        theirs.load_state_dict(ours.state_dict())
        ms = median_ms(
            lambda ours=ours: node_expert(ours).run(x, edges).sum().backward(),
            lambda theirs=theirs: theirs(graph.x, graph.edge_index).sum().backward(),
            repeats=repeats,
        )
        ours.eval()
        shares = {}
        for share in SHARES:
            nodes = torch.randperm(graph.num_nodes)[: max(1, round(share * graph.num_nodes))]

            @torch.no_grad()
            def piece(nodes: torch.Tensor = nodes, ours: Any = ours) -> tuple[int, int]:
                cut = edges.neighborhood(nodes, [-1, -1], node_expert(ours).edge_form)
                assert cut is not None
                node_expert(ours).run(x[cut.nodes], cut)
                return cut.edges_touched, 2 * edges.count(node_expert(ours).edge_form)

            @torch.no_grad()
            def whole(ours: Any = ours) -> None:
                node_expert(ours).run(x, edges)

            touched, every = piece()
            cut_ms, whole_ms = median_ms(piece, whole, repeats=repeats)
            shares[str(share)] = {"edges": touched / every, "ratio": cut_ms / whole_ms}
        found[network] = {"ours": ms[0], "pyg": ms[1], "pieces": shares}
    return found


def plain_loop(graph: Any, seed: int, validates: bool, epochs: int) -> float:
    """PyG's GCN in a loop as its examples have it; test accuracy of the epoch that validates best, or of the last."""
    torch.manual_seed(seed)
    classes = int(graph.y.max()) + 1
    model = GCN(graph.num_features, 64, 2, out_channels=classes, dropout=0.5)
    adam = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
    best, score = -1.0, 0.0
    for epoch in range(epochs):
        model.train()
        adam.zero_grad()
        out = model(graph.x, graph.edge_index)
        F.cross_entropy(out[graph.train_mask], graph.y[graph.train_mask]).backward()
        adam.step()
        if validates or epoch + 1 == epochs:
            model.eval()
            with torch.no_grad():
                right = model(graph.x, graph.edge_index).argmax(1) == graph.y
            if (found := float(right[graph.val_mask].float().mean())) > best:
                best, score = found, float(right[graph.test_mask].float().mean())
    return score


def trainings(name: str, root: str | None, seeds: int, epochs: int = 200) -> dict[str, Any]:
    """Seconds and test accuracy of trainings at default settings, and of the plain loop."""
    graph = PublicGraphData(name, root).prepared()

    def ours(kind: Any, **settings: Any) -> Callable[[int], tuple[float, int]]:
        def train(seed: int) -> tuple[float, int]:
            model = kind(random_state=seed, **settings).fit(graph)
            return model.score(graph), model.n_iter_

        return train

    runs: dict[str, Callable[[int], tuple[float, int]]] = {
        "PyG loop": lambda seed: (plain_loop(graph, seed, True, epochs), epochs),
        "PyG loop, not validated": lambda seed: (plain_loop(graph, seed, False, epochs), epochs),
        "GNNClassifier, as many epochs": ours(
            GNNClassifier, network="gcn", norm=None, max_epochs=epochs, patience=epochs
        ),
        "GNNClassifier": ours(GNNClassifier, network="gcn", norm=None),
        "Mowst*": ours(MowstClassifier, strong="gcn", norm=None),
        "Mowst*, batch norm": ours(MowstClassifier, strong="gcn", norm="batch_norm"),
        "MowstClassifier, default": ours(MowstClassifier),
    }
    ours(GNNClassifier, network="gcn", norm=None, max_epochs=2)(0)  # imports
    found: dict[str, dict[str, list[float]]] = {}
    for seed in range(seeds):
        for label, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            score, ran = run(seed)
            noted = {
                "cpu": time.process_time() - cpu,
                "wall": time.perf_counter() - wall,
                "score": score,
                "epochs": float(ran),
            }
            for key, value in noted.items():
                found.setdefault(label, {}).setdefault(key, []).append(value)
    return found


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--data", nargs="+", default=["Cora"])
    parser.add_argument("--root", help="folder of the public graphs; not needed for Cora")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each kind, on the first graph")
    parser.add_argument("--parts", nargs="+", choices=("networks", "trainings"), default=["networks", "trainings"])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/graph_speed.json"))
    options = parser.parse_args()
    old = json.loads(options.output.read_text()) if options.output.exists() else {"graphs": {}, "trainings": {}}
    results: dict[str, Any] = {"trainings": {}, **old, "threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for name in options.data:
            root = offline_root(options.root, Path(scratch), name)
            if "networks" in options.parts:
                results["graphs"][name] = measure(name, root, options.repeats)
            if "trainings" in options.parts and name == options.data[0]:
                results["trainings"][name] = trainings(name, root, options.seeds)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    console = Console(width=120)
    table = Table(title="forward and backward, ms")
    for column in ("graph", "network", "moeapps", "PyG", "PyG / moeapps"):
        table.add_column(column, justify="left" if column in ("graph", "network") else "right")
    pieces = Table(title="time of a piece / time of the whole graph (share of the edges it touches)")
    for column in ("graph", "network", *(f"{100 * share:.0f} % of nodes" for share in SHARES)):
        pieces.add_column(column, justify="left" if column in ("graph", "network") else "right")
    for name, networks in results["graphs"].items():
        for network, found in networks.items():
            ratio = found["pyg"] / found["ours"]
            table.add_row(name, network, f"{found['ours']:.1f}", f"{found['pyg']:.1f}", f"{ratio:.1f}")
            cells = (f"{piece['ratio']:.2f} ({100 * piece['edges']:.0f} %)" for piece in found["pieces"].values())
            pieces.add_row(name, network, *cells)
    console.print(table)
    console.print(pieces)
    table = Table(title="trainings")
    for column in ("graph", "training", "epochs", "CPU s", "s", "CPU / PyG loop", "s / PyG loop", "test accuracy"):
        table.add_column(column, justify="left" if column in ("graph", "training") else "right")
    for name, runs in results["trainings"].items():
        base = runs["PyG loop"]
        for label, run in runs.items():
            middle = {key: statistics.median(values) for key, values in run.items()}
            ratios = (middle[key] / statistics.median(base[key]) for key in ("cpu", "wall"))
            score = f"{100 * statistics.mean(run['score']):.1f}"
            seconds = (f"{middle['cpu']:.1f}", f"{middle['wall']:.1f}")
            table.add_row(name, label, f"{middle['epochs']:.0f}", *seconds, *(f"{r:.2f}" for r in ratios), score)
    console.print(table)


if __name__ == "__main__":
    main()
