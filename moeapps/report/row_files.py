"""Rows of a file for the report of a model: read by what the model knows about its columns."""

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moeapps.core.errors import ConfigError, DataError
from moeapps.core.files import similar
from moeapps.core.tabledata.kinds import ColumnKind
from moeapps.core.tabledata.source import TableSource, listed
from moeapps.registry import did_you_mean
from moeapps.report.pairs import read_labeled_pairs
from moeapps.report.subjects import ROWS, refuse_without_page

__all__ = ["read_rows"]


def read_rows(
    model: Any, path: str, target: str = "", seed: int = 0, edges: str | None = None, nodes: str | None = None
) -> tuple[Any, Any]:
    """Rows and targets of a file, as :func:`~moeapps.report.model_report` takes them.

    Parameters
    ----------
    model
        A fitted model.
    path : str
        A table (.csv, .tsv, .ndjson, .parquet, or a folder of such files); for images a folder with one folder per
        class; for nodes an .npz file or a folder of a graph.
    target : str, default ""
        Column with the true values. Rankers, images and graphs have theirs.
    seed : int, default 0
        Of the rows that are drawn where there are more than 20,000: no more than those are held in memory.
    edges : str, optional
        For a model that was fitted on two tables: that of the edges, with ``path`` that of the nodes, whose labels
        stand in the column that held those of the training.
    nodes : str, optional
        For a model of links: the table of nodes, with ``path`` that of the pairs.

    Returns
    -------
    X, y
        y is None where ``X`` has the targets.

    Raises
    ------
    ConfigError
        If a target is needed and missing, or no column.
    DataError, FileFormatError, FileNotFoundError
        If the file cannot be read.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} does not exist{similar(path)}, expected the rows to report on")
    refuse_without_page(model)
    if edges is not None and getattr(model, "node_table_", None) is None:
        raise ConfigError("--edges is for a model that was fitted on a table of nodes and one of edges")
    if hasattr(model, "read_graph"):
        return read_labeled_pairs(model, path, target, nodes, edges)
    if nodes is not None:
        raise ConfigError("--nodes is for a model of links, whose --data are pairs")
    if hasattr(model, "spec_"):
        return path, None
    if hasattr(model, "_nodes_to_score"):
        if (table := getattr(model, "node_table_", None)) is not None:
            return _tables(table, path, edges, target), None
        return _graph(path), None
    if hasattr(model, "targets_"):
        classes = model.targets_.classes
        kinds: dict[str, Any] = {name: "number" for name in model.targets_.names if name not in classes}
        frame = _frame(model, path, dict(model.column_kinds()), kinds, list(model.targets_.names), seed)
        return frame, None
    if hasattr(model, "learn_many"):
        return _events(path, target)
    known = dict(model.column_kinds())
    if not target:
        columns = [name for name in TableSource(path).columns if name not in known]
        having = f": {path} has, besides the model's columns, {listed(columns)}" if columns else ""
        raise ConfigError(f"--target is missing, the column with the true values{having}")
    number: dict[str, Any] = {} if hasattr(model, "classes_") else {target: "number"}
    frame = _frame(model, path, known, number, [target], seed)
    y = frame[target]
    y = y.mask(y.isin(_missing(model))) if y.dtype == object or pd.api.types.is_string_dtype(y) else y
    return frame.drop(columns=target), y


def _events(path: str, target: str) -> tuple[pd.DataFrame, Any]:
    """The last events of a file, as ``moeapps stream run`` reads them."""
    from moeapps.stream.io.sources import open_source

    if not target:
        raise ConfigError("--target is missing: the field with the true values")
    source, events = open_source(path, complete=True), deque[dict[str, Any]](maxlen=ROWS)
    try:
        while batch := source.read(1024):
            events.extend(dict(event.fields) for event in batch if event.fields is not None)
    finally:
        source.close()
    frame = pd.DataFrame(list(events))
    if target not in frame:
        raise _no_column(target, path, [str(name) for name in frame])
    return frame.drop(columns=target), frame[target]


def _no_column(target: str, path: str, columns: list[str]) -> ConfigError:
    guess = did_you_mean(target, columns, f"it has {listed(columns)}")
    return ConfigError(f"--target {target!r} is no column of {path}{guess}")


def _missing(model: Any) -> frozenset[str]:
    return model.missing_texts() if hasattr(model, "missing_texts") else frozenset({""})


def _frame(
    model: Any, path: str, known: Mapping[str, ColumnKind], more: Mapping[str, ColumnKind], targets: Sequence[str],
    seed: int,
) -> pd.DataFrame:  # fmt: skip
    """The columns that are needed, of at most ``ROWS`` rows drawn without preference."""
    texts = model.missing_texts() if hasattr(model, "missing_texts") else None
    source = TableSource(path, kinds={**known, **more}, missing=texts)
    for name in targets:
        if name not in source.columns:
            raise _no_column(name, path, source.columns)
    if clash := [name for name in targets if name in known]:
        raise ConfigError(f"--target {clash[0]!r} is a column that the model reads: it cannot be what it predicts")
    wanted = [*known, *targets] if known else list(source.columns)
    source.require(wanted)
    rng, kept, order = np.random.default_rng(seed), pd.DataFrame(), np.zeros(0)
    for batch in source.batches(wanted):
        kept = pd.concat([kept, batch], ignore_index=True) if len(kept) else batch.reset_index(drop=True)
        order = np.concatenate([order, rng.random(len(batch))])
        if len(kept) > ROWS:  # those with the smallest random numbers: every row has the same chance
            chosen = np.sort(np.argsort(order)[:ROWS])
            kept, order = kept.iloc[chosen].reset_index(drop=True), order[chosen]
    if not len(kept):
        raise DataError(f"{path} has no rows")
    return kept


def _tables(table: Any, nodes: str, edges: str | None, target: str) -> tuple[str, str]:
    """Paths of nodes with labels, and of edges."""
    if edges is None:
        raise ConfigError("--edges is missing: the model was fitted on two tables, --data is that of the nodes")
    label, columns = table.tables.target, TableSource(nodes).columns
    if target and target != label:
        raise ConfigError(f"--target {target!r}: the model was fitted with the labels of {label!r}, which are read")
    if label not in columns:
        raise ConfigError(f"{nodes} has no column {label!r}, the labels of the training")
    return nodes, edges


def _graph(path: str) -> Any:
    from moeapps.graph.data import GraphDataModule

    return GraphDataModule(path).load()
