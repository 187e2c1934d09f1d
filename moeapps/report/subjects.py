"""A fitted model and rows that it has not seen, read into one form: :class:`~moeapps.report.judged.Judged`.

What kind of model it is, is decided by the attributes it has, so that a subclass in another package is read like the
class it derives from.
"""

# n rows, K classes, E experts

import copy
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moeapps.core.arrays import as_array, missing
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.labels import UNKNOWN, encode
from moeapps.core.tabledata.frames import as_frame, is_table
from moeapps.core.views import Gallery, Views
from moeapps.registry import did_you_mean
from moeapps.report.graph_shuffles import GraphShuffles
from moeapps.report.judged import Judged, Target
from moeapps.report.pairs import describe_pairs, edges_among, opened_pairs, pair_names, shuffled_pairs

__all__ = ["ROWS", "judge", "refuse_without_page"]

NODE_CELLS = 20_000_000
"""Numbers of the features of nodes, above which rules may name the number of neighbours only."""

IMAGES = 256
"""Images that are read at once."""

THUMBNAILS = 24
"""Pictures of wrong predictions, at most."""

ROWS = 20_000
"""Largest number of rows that a page describes; of more, as many drawn at random."""


def judge(model: Any, X: Any, y: Any = None, target: str = "", seed: int = 0) -> Judged:
    """Predict rows and note what is true.

    Parameters
    ----------
    model
        A fitted estimator of moeapps.
    X
        Rows as its ``predict`` takes them; for a ranker a frame with the targets as columns.
    y : array of shape (n,), optional
        True targets; those of ``X`` for rankers.
    target : str, default ""
        Name of the target, for titles.
    seed : int, default 0
        Of the rows that are drawn where there are more than 20,000.

    Raises
    ------
    ConfigError
        If this is no fitted model that predicts, or y is missing.
    DataError
        If rows and targets do not fit each other, or a label is not one that the model knows.
    """
    refuse_without_page(model)
    for reads, ability in _READERS:
        if all(hasattr(model, name) for name in ability):
            return reads(model, X, y, target, seed)
    raise ConfigError(
        f"a {type(model).__name__} makes no predictions to report on: give a fitted classifier, regressor or ranker"
    )


def refuse_without_page(model: Any) -> None:
    """Refuse models of whole graphs, whose rows are not read here.

    Raises
    ------
    ConfigError
        Naming what shows the scores instead.
    """
    if hasattr(model, "compare") and not hasattr(model, "read_graph"):
        raise ConfigError(
            f"there is no page of a {type(model).__name__} on rows: print(model.compare(data)) scores the mixture and "
            "each expert; without rows (no --data) the page has settings and training"
        )


# ---------------------------------------------------------------------- what all readers do


def _chosen(n: int, known: NDArray[np.bool_], seed: int) -> tuple[NDArray[np.int64], list[str]]:
    """Numbers of the rows to describe, and what was left out."""
    rows, notes = np.flatnonzero(known), []
    if len(rows) == 0:
        raise DataError("no row has a target: there is nothing to compare the predictions with")
    if len(rows) < n:
        notes.append(f"{n - len(rows):,} rows without a target are left out.")
    if len(rows) > ROWS:
        notes.append(f"{ROWS:,} of {len(rows):,} rows, drawn at random.")
        rows = np.sort(np.random.default_rng(seed).choice(rows, ROWS, replace=False))
    return rows, notes


def _codes(model: Any, labels: NDArray[Any], name: str) -> NDArray[np.int64]:
    """Codes of true labels among the model's classes; text such as a CSV file has is taken for what it says."""
    classes = np.asarray(model.classes_)
    try:
        codes = encode(labels, classes)
    except TypeError:
        codes = np.full(len(labels), UNKNOWN)
    if (codes == UNKNOWN).any():
        known = {_text(value): code for code, value in enumerate(classes.tolist())}
        codes = np.array([known.get(_text(value), UNKNOWN) for value in labels.tolist()], dtype=np.int64)
    unknown = codes == UNKNOWN
    if unknown.any():
        shown = ", ".join(repr(value) for value in classes.tolist()[:10])
        raise DataError(
            f"{name or 'y'} has the label {labels[unknown].tolist()[0]!r} in {int(unknown.sum()):,} rows, which the "
            f"model does not know: its classes are {shown}{', ...' if len(classes) > 10 else ''}"
        )
    return codes


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _numbers(values: NDArray[Any], name: str) -> NDArray[np.float64]:
    try:
        numbers = values.astype(np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{name or 'y'} must be numbers for a regression, got {values[:1].tolist()[0]!r}") from None
    if not np.isfinite(numbers).all():
        raise DataError(f"{name or 'y'} has numbers that are infinite")
    return numbers


def _known(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which targets are there."""
    if values.dtype.kind == "f":
        return ~np.isnan(values)
    gone = missing(values)
    if values.dtype == object or values.dtype.kind == "U":
        gone = gone | np.array([isinstance(value, str) and not value.strip() for value in values.tolist()], dtype=bool)
    known: NDArray[np.bool_] = ~gone
    return known


def _truth(y: Any, n: int, name: str) -> NDArray[Any]:
    if y is None:
        raise ConfigError("y is missing: a report compares predictions with true targets; give y, or no data at all")
    values = as_array(y)
    if len(values) != n:
        raise DataError(f"{name or 'y'} has {len(values):,} values for {n:,} rows")
    return values


def _take(X: Any, rows: NDArray[np.int64]) -> Any:
    return X.iloc[rows] if isinstance(X, pd.DataFrame) else X[rows]


def _classes(model: Any) -> list[str]:
    return [str(value) for value in np.asarray(model.classes_).tolist()]


# ---------------------------------------------------------------------- tables, streams


def _table(model: Any, X: Any, y: Any, target: str, seed: int) -> Judged:
    X = as_frame(X, "X") if is_table(X) else np.asarray(X)
    if getattr(X, "ndim", 0) != 2:
        raise DataError(f"X must be a table of rows and columns, got shape {getattr(X, 'shape', ())}")
    truth = _truth(y, len(X), target)
    complete = _known(truth) if truth.ndim == 1 else np.all([_known(column) for column in truth.T], axis=0)
    rows, notes = _chosen(len(X), complete, seed)
    X, truth = _take(X, rows), truth[rows]
    names = list(X.columns) if isinstance(X, pd.DataFrame) else None
    frame = X if isinstance(X, pd.DataFrame) else pd.DataFrame(X, columns=[f"column {i}" for i in range(X.shape[1])])

    def predict(changed: pd.DataFrame) -> list[NDArray[np.float64]]:
        return _predictions(model, changed if names is not None else changed.to_numpy(dtype=X.dtype))

    predicted = predict(frame)
    if hasattr(model, "classes_"):
        targets = [Target(target, _codes(model, truth, target), predicted[0], _classes(model))]
    else:
        columns = truth[:, None] if truth.ndim == 1 else truth
        if columns.shape[1] != len(predicted):
            raise DataError(f"y has {columns.shape[1]} targets, the model predicts {len(predicted)}")
        several = [f"{target or 'target'} {t}" for t in range(len(predicted))] if len(predicted) > 1 else [target]
        targets = [Target(name, _numbers(columns[:, t], name), predicted[t]) for t, name in enumerate(several)]
    weights, layer = _table_weights(model, X)
    opinions = {}
    if hasattr(model, "expert_predictions"):
        opinions = model.expert_predictions(X)
    row_names = [str(value) for value in frame.index] if names is not None and rows is not None else []
    ordered = hasattr(model, "learn_many")
    return Judged(
        targets, frame, weights, opinions, predict, notes=notes, names=row_names, layer=layer, ordered=ordered
    )


def _predictions(model: Any, X: Any) -> list[NDArray[np.float64]]:
    """Class probabilities, or the numbers of each target."""
    if hasattr(model, "predict_proba_many") and isinstance(
        X, pd.DataFrame
    ):  # of a stream, which knows features by name
        found = model.predict_proba_many(X)
        classes = pd.Index(model.classes_, dtype=object)  # True and False in a list would be a mask
        return [found.reindex(columns=classes).to_numpy(dtype=np.float64)]
    if hasattr(model, "predict_proba"):
        return [np.asarray(model.predict_proba(X), dtype=np.float64)]
    numbers = np.asarray(model.predict(X), dtype=np.float64)
    return [numbers] if numbers.ndim == 1 else list(numbers.T)


def _table_weights(model: Any, X: Any) -> tuple[pd.DataFrame | None, str]:
    """Weight of each expert for each row, and the layer that it is of."""
    n = len(X)
    if hasattr(model, "expert_weights"):  # a stream's
        return _named(model.expert_weights(X)), ""
    if hasattr(model, "mixture_"):
        return model.weights(X).reset_index(drop=True), ""
    if hasattr(model, "expert_load"):  # each row is a group of its own
        load = model.expert_load(X, groups=np.arange(n))
        return _named(load), "in the last block: the share of the row's assignments that an expert gets"
    return None, ""


def _named(weights: pd.DataFrame) -> pd.DataFrame:
    """Columns that are numbers become "expert 0", ..."""
    names = [f"expert {name}" if str(name).isdecimal() else str(name) for name in weights.columns]
    return weights.set_axis(names, axis=1).reset_index(drop=True)


# ---------------------------------------------------------------------- rankers, images, nodes


def _ranker(model: Any, X: Any, y: Any, target: str, seed: int) -> Judged:
    """Several targets of one table, each with its own known rows; the first one is explained."""
    frame = as_frame(X, "X") if is_table(X) else None
    if frame is None:
        raise DataError(f"X must be a table with the columns of the ranker, got {type(X).__name__}")
    targets = model.targets_
    if y is not None:
        frame = frame.assign(**_named_targets(y, targets.names, len(frame)))
    frame = _order_first(frame, targets.names, target)
    labels = targets.encode(frame)
    known = ~np.isnan(labels).any(axis=1)
    rows, notes = _chosen(len(frame), known, seed)
    frame, labels = frame.iloc[rows], labels[rows]
    features = frame[[name for name in frame if name in model.column_kinds()]]
    names = [target, *(name for name in targets.names if name != target)] if target else list(targets.names)
    places = [targets.names.index(name) for name in names]
    binary = [targets.kinds[name] == "binary" for name in names]

    def predict(changed: pd.DataFrame) -> list[NDArray[np.float64]]:
        found = model.predict_proba(changed)[names].to_numpy(dtype=np.float64)
        return [
            np.column_stack([1 - column, column]) if two else column
            for column, two in zip(found.T, binary, strict=True)
        ]

    predicted, truth = predict(features), targets.decode(labels)
    judged = []
    for t, (name, place) in enumerate(zip(names, places, strict=True)):
        if binary[t]:
            classes = [str(value) for value in targets.classes.get(name, [0, 1])]
            judged.append(Target(name, labels[:, place].astype(np.int64), predicted[t], classes))
        else:
            numbers = truth[:, place] if targets.kinds[name] != "count" else labels[:, place].astype(np.float64)
            judged.append(Target(name, numbers, predicted[t]))
    row_names, views = [str(value) for value in frame.index], Views()
    if hasattr(model, "diagnose"):
        with suppress(ConfigError):  # a network without gates
            views = model.diagnose(features).views()
    by_scenario = getattr(model, "scenario", None) is not None and any(binary)
    scenarios = [model.scenario_scores(frame).map()] if by_scenario else []
    return Judged(
        judged, features, None, {}, predict, notes=notes, names=row_names, hints=views.hints, maps=list(views.maps),
        scenarios=scenarios,
    )  # fmt: skip


def _named_targets(y: Any, names: Sequence[str], n: int) -> dict[str, Any]:
    if isinstance(y, pd.DataFrame):
        return {name: y[name].to_numpy() for name in names if name in y}
    if len(names) != 1:
        raise DataError(f"y must be a frame with the columns {', '.join(names)}, or leave it out: they may stand in X")
    return {names[0]: _truth(y, n, names[0])}


def _order_first(frame: pd.DataFrame, names: Sequence[str], target: str) -> pd.DataFrame:
    if target and target not in names:
        raise ConfigError(f"target must be one of {', '.join(names)}, got {target!r}{did_you_mean(target, names)}")
    return frame


def _images(model: Any, X: Any, y: Any, target: str, seed: int) -> Judged:
    """Images, or a folder with one folder per class."""
    source = X
    if isinstance(X, str | os.PathLike):
        from moeapps.vision.folders import find_images

        paths, codes, folders = find_images(os.fspath(X))
        X, y = list(paths), np.array(folders)[codes]
    truth = _truth(y, len(X), target)
    rows, notes = _chosen(len(X), _known(truth), seed)
    chosen = [X[int(row)] for row in rows] if isinstance(X, list) else np.asarray(X)[rows]
    parts = [model.predict_proba(chosen[i : i + IMAGES]) for i in range(0, len(rows), IMAGES)]
    judged = Target(target, _codes(model, truth[rows], target), np.concatenate(parts), _classes(model))
    weights = _image_weights(model, chosen)
    gallery = None
    if hasattr(model, "mistake_thumbnails"):
        pictures = model.mistake_thumbnails(chosen, truth[rows], n=THUMBNAILS)
        gallery = Gallery.of("Label, prediction and its probability", pictures) if pictures else None
    names = [os.path.relpath(path, source) for path in chosen] if isinstance(source, str | os.PathLike) else []
    layer = "in the last block with experts: the share of an image's patches that an expert gets"
    return Judged(
        [judged], None, weights, notes=notes, names=names or [str(row) for row in rows], gallery=gallery,
        row_name="image", layer=layer,
    )  # fmt: skip


def _image_weights(model: Any, images: Any) -> pd.DataFrame | None:
    """Share of each image's patches that an expert gets; None for a network without experts."""
    parts = []
    try:
        for start in range(0, len(images), IMAGES):
            part = images[start : start + IMAGES]
            parts.append(model.expert_load(part, groups=np.arange(len(part))))
    except ConfigError:  # no experts
        return None
    return _named(pd.concat(parts, ignore_index=True))


def _nodes(model: Any, X: Any, y: Any, target: str, seed: int) -> Judged:
    """Labeled nodes of a graph, or of a table of nodes and one of edges: those of its test mask, where it has one."""
    table, edges = X if isinstance(X, tuple) else (X, None)
    graph, truth, chosen = model._nodes_to_score(table, y, edges, None, None)
    ids, features, columns = None, getattr(model, "feature_names_in_", None), None
    tested, way = table, "a test_mask of the graph"
    if getattr(graph, "table", None) is not None:
        tested, way = graph.table.graph, "a column that says train, val or test, named by split= (--data.split),"
        ids, features = graph.table.ids, model.node_table_.feature_names()
        columns = model.node_table_.features_of_columns()
        model = copy.copy(model)
        model.node_table_ = None  # the tables have been read: from here on it is a graph
    rows, notes = _chosen(len(chosen), np.ones(len(chosen), dtype=bool), seed)
    nodes, truth = chosen[rows], np.asarray(truth)[rows]
    codes = _codes(model, truth, target)
    judged = Target(target, codes, model.predict_proba(graph, nodes=nodes), _classes(model))
    hints = [] if getattr(tested, "test_mask", None) is not None else [
        "no node is marked as one to test: all nodes with a label count, and those that the model was trained on look "
        f"better than new ones; {way} keeps nodes out of the training and for this page"
    ]  # fmt: skip
    weights, opinions = None, {}
    if hasattr(model, "expert_weights"):
        weights = _named(model.expert_weights(graph, nodes=nodes))
        opinions = model.expert_predictions(graph, nodes=nodes)
    if columns is None:
        columns = {_feature_name(features, f): [f] for f in range(graph.num_features)}
    asked = copy.copy(graph)

    def ask(x: Any, edge_index: Any) -> Any:
        asked.x, asked.edge_index = x, edge_index
        return model.predict_proba(asked, nodes=nodes)

    shuffles = GraphShuffles(ask, graph.x, getattr(graph, "edge_index", None), columns)
    return Judged(
        [judged], _node_columns(graph, nodes, features), weights, opinions, shuffles.predict, notes=notes,
        shuffled=shuffles.frame,
        names=[str(node if ids is None else ids[node]) for node in nodes], row_name="node", hints=hints,
    )  # fmt: skip


def _links(model: Any, X: Any, y: Any, target: str, seed: int) -> Judged:
    """Pairs of nodes with labels, and the graph that they are of."""
    if not isinstance(X, tuple) or len(X) not in (2, 3):
        raise DataError("X must be (pairs, nodes, edges), the pairs and the tables of their graph, or (pairs, graph)")
    pairs, graph = opened_pairs(X[0]), model.read_graph(*X[1:])
    truth = _truth(y, len(pairs), target)
    rows, notes = _chosen(len(pairs), _known(truth), seed)
    pairs = _take(pairs, rows)
    table = model.predict_table(pairs, graph)
    probability = table["probability"].to_numpy(dtype=np.float64)
    judged = Target(
        target, _codes(model, truth[rows], target), np.column_stack([1 - probability, probability]), _classes(model)
    )
    weights = table.filter(regex="^weight_").rename(columns=lambda name: name.removeprefix("weight_"))
    among, shuffles = edges_among(graph, pairs), shuffled_pairs(model, graph, pairs)
    hints = [
        f"{among:,} of the {len(rows):,} pairs are edges of the graph that is given: they pass messages, and look "
        "better than new pairs; take those that are to be scored out of the table of edges"
    ] if among else []  # fmt: skip
    return Judged(
        [judged], describe_pairs(graph, pairs), _named(weights), model.expert_predictions(pairs, graph),
        shuffles.predict, notes=notes, shuffled=shuffles.frame, names=pair_names(graph, pairs), row_name="pair",
        hints=hints,
    )  # fmt: skip


def _node_columns(graph: Any, nodes: NDArray[np.int64], names: Any) -> pd.DataFrame:
    """Number of neighbours, and the features."""
    columns: dict[str, Any] = {}
    if getattr(graph, "edge_index", None) is not None:
        degrees = np.bincount(np.asarray(graph.edge_index[1]), minlength=graph.num_nodes)
        columns["number of neighbours"] = degrees[nodes]
    if len(nodes) * graph.num_features <= NODE_CELLS:
        features = graph.x[nodes.tolist()]
        features = np.asarray(features.to_dense() if features.layout != graph.x.new_empty(0).layout else features)
        for f in range(features.shape[1]):
            columns[_feature_name(names, f)] = features[:, f]
    return pd.DataFrame(columns)


def _feature_name(names: Any, feature: int) -> str:
    return str(names[feature]) if names is not None else f"feature {feature}"


_Reader = Callable[[Any, Any, Any, str, int], Judged]

_READERS: Sequence[tuple[_Reader, tuple[str, ...]]] = [
    (_ranker, ("targets_", "predict_proba")),
    (_images, ("spec_", "predict_proba")),
    (_nodes, ("_nodes_to_score", "predict_proba")),
    (_links, ("read_graph", "predict_table")),
    (_table, ("predict",)),
]
"""Readers, and what a model must have for each; the first that fits."""
