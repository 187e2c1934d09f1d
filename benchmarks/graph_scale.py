"""A made graph of the size of ogbn-products: training, prediction and conditional inference, with time and memory.

    python benchmarks/graph_scale.py --folder scratch
    python benchmarks/graph_scale.py --folder scratch --small

makes in the folder, unless it is there, a graph of 2.4 million nodes and 62 million directed edges in memory-mapped
files. Seven of ten nodes carry their class in their 100 features and have edges to nodes of any class; the others
carry little of it and have four fifths of their edges to nodes of their own class. One edge in fifty joins the two
kinds of nodes: conditional inference saves only where the nodes that need neighbours have each other as neighbours. As
in ogbn-products, 8 % of the nodes are trained on and 2 % validate.

Printed are seconds of an epoch (of ``fit``, so validation and all else included), of a prediction of all nodes in one
pass, and memory: its peak (which counts pages of memory-mapped files), and the peak of what is not file. The cost
curve has the mixture's score and seconds by the share of nodes that use the strong expert; in the same process, in
turns, the strong expert alone on the whole graph.
"""

import json
import platform
import resource
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command_line import script_parser
from graph_cost import median_seconds
from rich.console import Console
from rich.table import Table

from moeapps.graph import GNNClassifier, MowstClassifier, open_graph, predict_nodes, write_edges
from moeapps.graph.experts import node_expert

FEATURES = 100
SIZES = {"full": (2_400_000, 31_000_000, 47), "small": (4_000, 50_000, 6)}
"""Nodes, pairs of nodes that are joined both ways, classes."""
BY_FEATURES, MIXED, SAME_CLASS = 0.7, 0.02, 0.8
PIECE = 1_000_000


def make_graph(folder: Path, nodes: int, pairs: int, classes: int, seed: int = 0) -> Path:
    """Write the graph, if it is not there."""
    if (folder / "done").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    shares = (np.arange(classes) + 1.0) ** -0.8
    y = random.choice(classes, nodes, p=shares / shares.sum())
    by_features = random.random(nodes) < BY_FEATURES
    popularity = np.clip(random.pareto(2.0, nodes) + 0.5, 0, 200)
    centers = random.standard_normal((classes, FEATURES)).astype(np.float32)
    strength = np.where(by_features, 0.42, 0.1).astype(np.float32)
    x = np.lib.format.open_memmap(folder / "node_features.npy", "w+", np.float32, (nodes, FEATURES))
    for start in range(0, nodes, 100_000):
        rows = slice(start, start + 100_000)
        noise = random.standard_normal(x[rows].shape, dtype=np.float32)
        x[rows] = strength[rows, None] * centers[y[rows]] + noise
    x.flush()
    np.save(folder / "node_labels.npy", y.astype(np.int64))
    part = random.random(nodes)
    for name, mask in (("train", part < 0.08), ("val", (part >= 0.08) & (part < 0.1)), ("test", part >= 0.1)):
        np.save(folder / f"{name}_mask.npy", mask)
    write_edges(folder, lambda: pieces(y, by_features, popularity, pairs, seed + 1), nodes, undirected=True)
    (folder / "done").touch()
    return folder


def pieces(
    y: np.ndarray, by_features: np.ndarray, popularity: np.ndarray, pairs: int, seed: int
) -> Iterator[np.ndarray]:
    """Pairs of nodes, ends drawn by popularity: of the same kind (and class) or not, see the top."""
    random = np.random.default_rng(seed)
    # in the order of kind and class every choice of an end is a draw from one range of the running sum
    order = np.lexsort((y, by_features))
    until = np.concatenate([[0.0], np.cumsum(popularity[order])])
    classes = int(y.max()) + 1
    group = (by_features * classes + y)[order]
    bounds = until[np.searchsorted(group, np.arange(2 * classes + 1))]
    kinds = bounds[[0, classes, 2 * classes]]
    while pairs:
        number = min(pairs, PIECE)
        source = _draw(random, order, until, np.zeros(number), np.full(number, until[-1]))
        kind = by_features[source].astype(int)
        other = random.random(number) < MIXED
        there = np.where(other, 1 - kind, kind)
        low, high = kinds[there], kinds[there + 1]
        same = (kind == 0) & ~other & (random.random(number) < SAME_CLASS)
        cell = y[source]
        target = _draw(random, order, until, np.where(same, bounds[cell], low), np.where(same, bounds[cell + 1], high))
        target = np.where(target == source, (target + 1) % len(y), target)
        yield np.stack([source, target])
        pairs -= number


def _draw(random: Any, order: np.ndarray, until: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    place = low + (high - low) * random.random(len(low))
    found: np.ndarray = order[np.clip(np.searchsorted(until, place, side="right") - 1, 0, len(order) - 1)]
    return found


class Memory:
    """Peak of the process's anonymous memory while the block runs, looked at twice a second."""

    def __enter__(self) -> "Memory":
        self.peak, self._over = 0.0, threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._over.set()
        self._watcher.join()

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, anonymous())
            if self._over.wait(0.5):
                return


def anonymous() -> float:
    """GiB of memory that is no page of a file."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return float(sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))) / 2**20


def resident() -> float:
    """Largest GiB of resident memory so far, pages of memory-mapped files included."""
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 2**20


def timed(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What a call returns, its seconds by the clock and of the processor, and the peak of anonymous memory."""
    wall, cpu = time.perf_counter(), time.process_time()
    with Memory() as memory:
        found = call()
    return found, {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "anonymous GiB": memory.peak,
        "resident GiB so far": resident(),
    }


def log(text: str) -> None:
    """Say at once how far the run is."""
    print(text, flush=True)


def measure(
    folder: Path, settings: dict[str, Any], epochs: dict[str, int], repeats: int, output: Path
) -> dict[str, Any]:
    """Open, train, predict, and draw the cost curve; the file has after each model what is known by then."""
    graph, cost = timed(lambda: open_graph(folder))
    results: dict[str, Any] = {"nodes": graph.num_nodes, "edges": graph.edges.count("plain"), "open": cost}
    results |= {"threads": torch.get_num_threads(), "machine": platform.machine(), "settings": settings}
    log(f"opened: {cost}")
    test = graph.test_mask
    models = {
        "MLP": GNNClassifier("mlp", max_epochs=epochs["MLP"], **settings),
        "SAGE": GNNClassifier("sage", max_epochs=epochs["SAGE"], **settings),
        "Mowst*": MowstClassifier(strong="sage", max_epochs=epochs["Mowst*"], **settings),
    }
    results["models"] = {}
    for name, model in models.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            _, fit = timed(lambda model=model: model.fit(graph))  # type: ignore[misc]
        found, predict = timed(lambda model=model: model.predict(graph))  # type: ignore[misc]
        results["models"][name] = {
            "epochs": model.n_iter_,
            "fit": fit,
            "seconds an epoch": {key: fit[key] / model.n_iter_ for key in ("wall", "cpu")},
            "predict all": predict,
            "score": float((found == graph.y)[test].mean()),
        }
        log(f"{name}: {json.dumps(results['models'][name])}")
        results["resident GiB"] = resident()
        output.write_text(json.dumps(results, indent=1) + "\n")
    results |= curve_of(models["Mowst*"], graph, settings["batch_size"], repeats)  # type: ignore[arg-type]
    results["resident GiB"] = resident()
    return results


@torch.no_grad()
def curve_of(mowst: MowstClassifier, graph: Any, batch_size: int, repeats: int) -> dict[str, Any]:
    """Score and seconds of the cascade at several thresholds, beside the strong expert alone on the whole graph."""
    model: Any = mowst.model_
    confidence = mowst.predict_confidence(graph)
    quantiles = np.quantile(confidence, [0.1, 0.2, 0.3, 0.5, 0.7])
    test = torch.from_numpy(graph.test_mask)
    y = torch.from_numpy(graph.y)
    rows = []

    def alone() -> torch.Tensor:
        return node_expert(model.experts["strong"]).on_nodes(graph.x, graph.edges, None, batch_size=batch_size)

    for threshold in [0.0, *quantiles.tolist(), 2.0]:
        kept: list[Any] = []

        def conditional(threshold: float = threshold, kept: list[Any] = kept) -> None:
            kept[:] = predict_nodes(
                model, graph.x, graph.edges, mode="cascade", threshold=threshold, batch_size=batch_size
            )

        seconds, whole = median_seconds(conditional, alone, repeats=repeats)
        output, cost = kept
        right = output.log_probs.argmax(1) == y
        rows.append(
            {
                "threshold": threshold,
                "strong": cost.strong,
                "score": float(right[test].double().mean()),
                "edges": cost.edges / cost.edges_alone,
                "seconds": seconds,
                "alone": whole,
            }
        )
        log(f"threshold: {json.dumps(rows[-1])}")
    right = alone().argmax(1) == y
    return {"curve": rows, "strong alone": float(right[test].double().mean()), "champion": mowst.champion_}


def show(results: dict[str, Any], console: Console) -> None:
    """Two tables: training and prediction; the cost curve."""
    table = Table(title=f"{results['nodes']:,} nodes, {results['edges']:,} edges, {results['threads']} thread(s)")
    for column in ("", "epochs", "s an epoch", "CPU", "predict all, s", "CPU", "anonymous GiB", "test accuracy"):
        table.add_column(column, justify="right" if column else "left")
    for name, run in results["models"].items():
        epoch, predict = run["seconds an epoch"], run["predict all"]
        peak = max(run["fit"]["anonymous GiB"], predict["anonymous GiB"])
        cells = (epoch["wall"], epoch["cpu"], predict["wall"], predict["cpu"], peak)
        table.add_row(name, str(run["epochs"]), *(f"{cell:.1f}" for cell in cells), f"{100 * run['score']:.2f}")
    console.print(table)
    console.print(f"peak of resident memory, files included: {results['resident GiB']:.2f} GiB")
    table = Table(title=f"Mowst*, cascade; strong expert alone {100 * results['strong alone']:.2f} %")
    for column in ("nodes at the strong expert", "edges", "test accuracy", "s", "strong expert alone, s", "ratio"):
        table.add_column(column, justify="right")
    for row in results["curve"]:
        table.add_row(
            f"{100 * row['strong']:.0f} %",
            f"{100 * row['edges']:.0f} %",
            f"{100 * row['score']:.2f}",
            f"{row['seconds']:.1f}",
            f"{row['alone']:.1f}",
            f"{row['seconds'] / row['alone']:.2f}",
        )
    console.print(table)


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the graph is, or is made")
    parser.add_argument("--small", action="store_true", help="4,000 nodes and batches of 64")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--epochs", type=int, nargs=3, default=[4, 3, 12], help="of MLP, SAGE and Mowst*, at most")
    parser.add_argument("--repeats", type=int, default=1, help="predictions at each threshold, for the median")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/graph_scale.json"))
    options = parser.parse_args()
    console = Console(width=140)
    size = "small" if options.small else "full"
    folder = make_graph(options.folder / size, *SIZES[size])
    settings: dict[str, Any] = {
        "batch_size": min(options.batch_size, 64) if options.small else options.batch_size,
        "num_neighbors": [10, 10],
        "norm": "batch_norm",
        "patience": 1,
        "random_state": 0,
    }
    epochs = dict(zip(("MLP", "SAGE", "Mowst*"), options.epochs, strict=True))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    results = measure(folder, settings, epochs, options.repeats, options.output)
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    show(results, console)


if __name__ == "__main__":
    main()
