"""Graphs: a mixture of networks beside an MLP and the usual graph networks alone."""

import copy
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from torch_geometric.data import Data

from moeapps.comparison.held_out import measured, seeded
from moeapps.comparison.reading import read_table
from moeapps.comparison.scoring import ClassPredictions, Scoring
from moeapps.comparison.task import Candidate, Measured, Task, chosen_candidates
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.tabledata.frames import as_frame, is_table
from moeapps.core.tabledata.source import listed
from moeapps.graph.data import GraphDataModule
from moeapps.graph.datasets import PUBLIC_GRAPHS, PublicGraphData, split_randomly
from moeapps.graph.gnn_classifier import GNNClassifier
from moeapps.graph.graph_tables import GraphTables
from moeapps.graph.masks import MASKS, has_splits
from moeapps.graph.mowst_classifier import MowstClassifier
from moeapps.graph.node_names import node_names
from moeapps.graph.node_table import IDS, NodeTable

__all__ = ["GraphTask", "graph_task"]

NETWORKS = {"MLP (no edges)": "mlp", "GCN": "gcn", "GraphSAGE": "sage", "GAT": "gat"}
"""Networks that are trained alone, by the name in tables."""

ROW = "number of the row"
"""Column of ids where the edges name nodes by their order."""


def graph_task(
    data: Any,
    target: Any = None,
    *,
    edges: Any = None,
    id: str | None = None,
    edge_source: str | None = None,
    edge_target: str | None = None,
    edge_weight: str | None = None,
    undirected: bool | None = None,
    missing_nodes: Literal["error", "ignore"] | None = None,
    ignore: Sequence[str] = (),
    resplit: bool = False,
    root: str | Path | None = None,
    metric: Any = None,
    models: Any = None,
    splits: int = 5,
    seed: int = 0,
) -> "GraphTask":
    """Compare on the nodes of a graph.

    Parameters
    ----------
    data : Data, path, frame, or name of a public graph
        The graph, or with ``edges`` a table of its nodes.
    target : str, optional
        Column of the nodes' table with the classes.
    edges : frame or path, optional
        One row per edge.
    id, edge_source, edge_target, edge_weight, undirected, missing_nodes
        What the columns of both tables mean, as in :class:`~moeapps.graph.graph_tables.GraphTables`. Nodes
        without ids are named by the numbers of their rows.
    ignore : sequence of str, default=()
        Columns of the nodes that models do not see.
    resplit : bool, default=False
        Whether to split at random although the graph has masks.
    root : path, optional
        Folder of a public graph.
    metric, models
        As in :func:`moeapps.compare`.
    splits : int, default=5
        Number of splits; of seeds where the graph has one split of its own.
    seed : int, default=0
        Seed of splits and models.

    Raises
    ------
    ConfigError, DataError
        If an argument is impossible, or the graph cannot be learned from.
    """
    name = data if isinstance(data, str) and data in PUBLIC_GRAPHS else "the graph"
    if edges is not None:
        tables = GraphTables(
            id, target, None, edge_source, edge_target, edge_weight, undirected is not False, missing_nodes or "error",
            tuple(ignore),
        )  # fmt: skip
        raw, name = graph_of_tables(data, edges, tables)
    elif given := [
        word
        for word, value in {
            "target": target, "id": id, "ignore": ignore, "edge_source": edge_source, "edge_target": edge_target,
            "edge_weight": edge_weight, "undirected": undirected, "missing_nodes": missing_nodes,
        }.items()
        if value not in (None, (), [])
    ]:  # fmt: skip
        raise ConfigError(f"{' and '.join(given)} belong to a table of nodes: give edges, too")
    elif name != "the graph":
        raw = PublicGraphData(name, root=None if root is None else str(root)).load()
    else:
        raw = GraphDataModule(data).load()
        name = Path(data).name if isinstance(data, str | os.PathLike) else name
    return GraphTask(raw, name, resplit, PUBLIC_GRAPHS.get(name), metric, models, splits, seed)


class GraphTask(Task):
    """Nodes of one graph with classes.

    Parameters
    ----------
    raw : Data
        The graph.
    data : str
        Its name.
    resplit, metric, models, splits, seed
        As in :func:`graph_task`.
    public : object, optional
        Entry of a public graph, which says whether its features are scaled.
    """

    kind = "classification of nodes"

    def __init__(
        self, raw: Data, data: str, resplit: bool, public: Any, metric: Any, models: Any, splits: int, seed: int
    ) -> None:
        own = [getattr(raw, name, None) for name in MASKS]
        test = own[MASKS.index("test_mask")]
        self.random = resplit or test is None
        columns = [mask.shape[1] for mask in own if mask is not None and has_splits(mask)]
        self.raw, self.columns = raw, min(columns) if columns and not self.random else 0
        if self.random:
            self.raw = copy.copy(raw)
            for name in MASKS:
                self.raw.pop(name, None)
        self.normalized = bool(public is not None and public.normalize_features)
        if self.columns:
            splits = min(splits, self.columns)
        self.split_name = "split" if self.random or self.columns else "seed"
        self.seed = seed
        self._prepared: dict[int, Data] = {}
        first = self.graph(0)
        y = first.y.numpy()
        self.classes = np.unique(y[y >= 0])
        sizes = [int(first[name].sum()) for name in MASKS]
        scoring = Scoring(["accuracy", "neg_log_loss"], metric, y[first.test_mask.numpy() & (y >= 0)], self.classes)
        self.scoring = scoring
        # splits that were chosen apart share training nodes; seeds on one split have no other data to speak of
        overlap = sizes[2] / max(sizes[0] + sizes[1], 1) if self.split_name == "split" else 0.0
        super().__init__(
            data, self._told(first, sizes, splits), scoring.metrics,
            chosen_candidates(_candidates(), models, seeded), splits, overlap, seed,
        )  # fmt: skip

    def graph(self, split: int) -> Data:
        """The graph with the masks of a split."""
        if not (self.random or self.columns):
            split = 0
        if split not in self._prepared:
            module = GraphDataModule(
                self.raw, split=split if self.columns else 0, seed=self.seed, normalize_features=self.normalized
            )
            graph = module.prepared()
            if self.random:
                split_randomly(graph, self.seed + split)
            elif "test_mask" not in graph or not bool((graph.test_mask & (graph.y >= 0)).any()):
                raise DataError("test_mask has no labeled node: there is nothing to compare on; resplit=True makes one")
            self._prepared = {split: graph}
        return self._prepared[split]

    def measure(self, candidate: Candidate, split: int) -> Measured:
        """Train on the split's training nodes, choose epochs by its validation nodes, score its test nodes."""
        graph = self.graph(split)
        model = candidate.make(self.seed + split)
        start = time.perf_counter()
        model.fit(graph)
        nodes = (graph.test_mask & (graph.y >= 0)).numpy()

        def of_test_nodes(found: ClassPredictions) -> ClassPredictions:
            probabilities = None if found.probabilities is None else found.probabilities[nodes]
            return ClassPredictions(found.labels[nodes], probabilities, found.classes_)

        result = measured(model, self.scoring, graph, graph.y.numpy()[nodes], start, of_test_nodes)
        result.predicted = int(graph.num_nodes)
        return result

    def _told(self, graph: Data, sizes: list[int], splits: int) -> list[str]:
        edges = graph.edge_index.shape[1] if graph.edge_index is not None else 0
        told = [
            f"{graph.num_nodes:,} nodes, {graph.x.shape[1]:,} features, {edges:,} edges (directed), "
            f"{len(self.classes)} classes."
        ]
        parts = f"{sizes[0]:,} nodes to train on, {sizes[1]:,} to validate on, {sizes[2]:,} to test on"
        if self.random:
            told.append(f"{splits} random splits: {parts}.")
        elif self.columns:
            told.append(f"{splits} of the graph's {self.columns} splits: {parts}.")
        else:
            told.append(
                f"The graph's own split: {parts}. Repetitions differ in the seed of the models only, so that the "
                "spread says nothing about other nodes (resplit=True does)."
            )
        return told


def graph_of_tables(nodes: Any, edges: Any, tables: GraphTables) -> tuple[Data, str]:
    """The graph that ``fit`` makes of a table of nodes and a table of edges, and what it is called.

    Raises
    ------
    ConfigError, DataError
        If a column is missing, or the tables do not fit together.
    """
    if not isinstance(tables.target, str):
        raise ConfigError("target must be the name of the nodes' column with the classes (--target COLUMN)")
    is_path = isinstance(nodes, str | os.PathLike)
    name = Path(nodes).name if is_path else "the graph"
    if tables.id is None and (numbered := _by_row(nodes, edges, tables)) is not None:
        nodes, tables = numbered, replace(tables, id=ROW)
    return NodeTable.learn(nodes, edges, tables)[1].graph, name


def _by_row(nodes: Any, edges: Any, tables: GraphTables) -> pd.DataFrame | None:
    """The nodes with the numbers of their rows as ids, where nothing else could name them.

    Raises
    ------
    ConfigError
        If the edges hold no numbers of rows, naming the column of the nodes that has what they hold.
    """
    frame = as_frame(nodes, "data") if is_table(nodes) else read_table(nodes)
    if any(str(column).lower() in IDS for column in frame) or node_names(frame) is not None:
        return None
    links = as_frame(edges, "edges") if is_table(edges) else read_table(edges)
    end = links[tables.edge_source] if tables.edge_source in links else links.iloc[:, 0]
    names = set(end.astype(str))
    if names <= set(map(str, range(len(frame)))):
        return frame.assign(**{ROW: np.arange(len(frame))})
    found = max(frame, key=lambda column: len(names & set(frame[column].astype(str))), default=None)
    shared = 0 if found is None else len(names & set(frame[found].astype(str)))
    hint = f"--id {found} names the column that has {shared:,} of the {len(names):,} ids of the edges" if shared else (
        f"name the column of the nodes with such ids, one of {listed(frame.columns)}"
    )  # fmt: skip
    raise ConfigError(f"id is missing: the edges name nodes like {str(end.iloc[0])!r}, not numbers of rows; {hint}")


def _candidates() -> list[Candidate]:
    alone = [
        Candidate(name, lambda seed, network=network: GNNClassifier(network, random_state=seed))  # type: ignore[misc]
        for name, network in NETWORKS.items()
    ]
    return [
        *alone,
        Candidate("best network (GNNClassifier)", lambda seed: GNNClassifier(random_state=seed)),
        Candidate("MowstClassifier", lambda seed: MowstClassifier(random_state=seed), ours=True),
    ]
