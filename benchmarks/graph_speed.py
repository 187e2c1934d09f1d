"""Our graph networks against PyG's own, and pieces of a graph against the whole, on one machine, in one process.

    python benchmarks/graph_speed.py --data Cora
    python benchmarks/graph_speed.py --data Cora tolokers amherst41 --root data

First table: milliseconds of a forward and backward pass with the same weights; PyG is used as pip installs it, without
its compiled extensions. Second table: seconds of a prediction for a random share of the nodes by cutting out a piece,
divided by those for the whole graph; where it is below 1, cutting pays (``cut_share`` in moeapps.graph.experts is
read off it).
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from graph_accuracy import offline_root
from rich.console import Console
from rich.table import Table
from torch_geometric.nn import GAT, GCN, GIN, GraphSAGE

from moeapps.graph import Edges, PublicGraphData, make_network
from moeapps.graph.experts import node_expert

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
    found: dict[str, Any] = {}
    for network, (kind, options) in PYG.items():
        sizes = {"in_channels": graph.num_features, "out_channels": 7, "hidden_channels": 64, "num_layers": 2}
        ours = make_network(network, **sizes, dropout=0.0)  # type: ignore[arg-type]
        theirs = kind(**sizes, norm="batch_norm", **options)
        theirs.load_state_dict(ours.state_dict())
        ms = median_ms(
            lambda ours=ours: node_expert(ours).run(graph.x, edges).sum().backward(),
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
                node_expert(ours).run(graph.x[cut.nodes], cut)
                return cut.edges_touched, 2 * edges.count(node_expert(ours).edge_form)

            @torch.no_grad()
            def whole(ours: Any = ours) -> None:
                node_expert(ours).run(graph.x, edges)

            touched, every = piece()
            cut_ms, whole_ms = median_ms(piece, whole, repeats=repeats)
            shares[str(share)] = {"edges": touched / every, "ratio": cut_ms / whole_ms}
        found[network] = {"ours": ms[0], "pyg": ms[1], "pieces": shares}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["Cora"])
    parser.add_argument("--root", help="folder of the public graphs; not needed for Cora")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/graph_speed.json"))
    options = parser.parse_args()
    results: dict[str, Any] = {"threads": torch.get_num_threads(), "graphs": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.data:
            root = offline_root(options.root, Path(scratch), name)
            results["graphs"][name] = measure(name, root, options.repeats)
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


if __name__ == "__main__":
    main()
