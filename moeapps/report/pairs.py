"""Pairs of nodes and whether they are linked, with what a model of links makes of them."""

# n pairs, E experts

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from moeapps.core.arrays import as_array
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.tabledata.frames import as_frame, is_table
from moeapps.core.tabledata.source import TableSource, listed
from moeapps.graph.edges import Edges
from moeapps.graph.link_graph import LinkGraph, pair_columns
from moeapps.graph.links import Structure
from moeapps.registry import did_you_mean
from moeapps.report.graph_shuffles import GraphShuffles

__all__ = ["describe_pairs", "edges_among", "opened_pairs", "pair_names", "read_labeled_pairs", "shuffled_pairs"]


def read_labeled_pairs(
    model: Any, path: str, target: str, nodes: str | None, edges: str | None
) -> tuple[tuple[pd.DataFrame, str, str], pd.Series]:
    """Pairs of a file with their labels, beside the tables of their graph.

    Parameters
    ----------
    model : MowstLinkPredictor
        Fitted on two tables.
    path : str
        Table with a pair of ids in each row.
    target : str
        Column that says 1 (linked) or 0.
    nodes, edges : str or None
        The tables of nodes and edges.

    Returns
    -------
    (pairs, nodes, edges), labels

    Raises
    ------
    ConfigError
        Naming the option that is missing.
    DataError
        If the pairs have no such columns.
    """
    if model.node_table_ is None:
        raise ConfigError(
            f"a {type(model).__name__} of a graph without tables reads no files: print(model.compare(data)) scores the "
            "mixture and each expert"
        )
    for name, given in (("nodes", nodes), ("edges", edges)):
        if given is None:
            raise ConfigError(f"--{name} is missing: the model was fitted on two tables, --data are pairs of their ids")
    source = TableSource(path)
    ends = pair_columns(source, model.node_table_.tables)
    others = [name for name in source.columns if name not in ends]
    if target not in others:
        guess = did_you_mean(target, others, f"{path} has, besides the ids, {listed(others) or 'none'}")
        raise ConfigError(f"--target must name the column that says 1 (linked) or 0, got {target!r}{guess}")
    frame = pd.concat(list(source.batches([*ends, target])), ignore_index=True)
    if not len(frame):
        raise DataError(f"{path} has no row: there is no pair")
    return (frame[ends], str(nodes), str(edges)), frame[target]


def opened_pairs(pairs: Any) -> Any:
    """Pairs as a frame or an array, of which rows can be taken."""
    if isinstance(pairs, str | os.PathLike):
        return pd.concat(list(TableSource(pairs).batches()), ignore_index=True)
    return as_frame(pairs, "pairs") if is_table(pairs) else as_array(pairs)


def describe_pairs(graph: LinkGraph, pairs: Any) -> pd.DataFrame:
    """What the edges around each pair say, as columns."""
    structure = graph.structure
    found = structure(graph.pairs(pairs))
    return pd.DataFrame(found, columns=[name.replace("_", " ") for name in structure.columns])


def edges_among(graph: LinkGraph, pairs: Any) -> int:
    """How many of the pairs are edges of the graph, in either direction."""
    source, target = graph.pairs(pairs).numpy()
    return int(np.count_nonzero(np.asarray(graph.structure.matrix[source, target])))


def pair_names(graph: LinkGraph, pairs: Any) -> Sequence[str]:
    """The two ids, or numbers, of each pair."""
    source, target = map(graph.ids, graph.pairs(pairs).numpy())
    return [f"{first} - {second}" for first, second in zip(source, target, strict=True)]


def shuffled_pairs(model: Any, graph: LinkGraph, pairs: Any) -> GraphShuffles:
    """Predictions of pairs while columns of the nodes, or their connections, are shuffled over the whole graph."""
    plain = replace(graph, table=None, names=None)  # the pairs are numbers from here on
    numbers = graph.pairs(pairs).numpy().T

    def ask(x: Any, edge_index: Any) -> Any:
        shuffled = replace(plain, x=x)
        if edge_index is not graph.edges.index:
            nodes = graph.x.shape[0]
            edges = Edges(edge_index, graph.edges.weight, nodes)
            shuffled = replace(shuffled, edges=edges, structure=Structure(edge_index, nodes))
        return model.predict_proba(numbers, shuffled)

    table = model.node_table_ if graph.table is not None else None
    columns = {f"feature {f}": [f] for f in range(graph.x.shape[1])} if table is None else table.features_of_columns()
    return GraphShuffles(ask, graph.x, graph.edges.index, columns)
