"""Labels of nodes: what users have to one array, its classes, and which nodes have no label."""

# N nodes, K classes

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moeapps.core.arrays import EXACT, as_array, kind_of, missing, tightened, with_gaps
from moeapps.core.errors import DataError
from moeapps.core.labels import UNKNOWN, encode
from moeapps.core.tabledata.cells import category_text
from moeapps.core.tabledata.source import listed

log = logging.getLogger(__name__)

__all__ = ["as_labels", "check_marks", "class_names", "encode_labels", "known_labels", "labeled", "like_classes"]


def as_labels(y: Any, num_nodes: int) -> np.ndarray:
    """Labels of any kind as an ``(N,)`` array: integers, whole floats, bool, text, or objects with None where missing.

    Integers stay exact, also next to a missing value.

    Raises
    ------
    DataError
        If there is not one per node, or they are infinite, not whole numbers, of several kinds, or of a kind that is
        no label (dates, bytes, ...).
    """
    labels = as_array(y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (num_nodes,):
        hint = "; of one column per class take the argmax" if labels.ndim == 2 and len(labels) == num_nodes else ""
        raise DataError(f"y must have shape ({num_nodes},), one label per node, got {labels.shape}{hint}")
    if labels.dtype == object:
        labels = _of_objects(labels)
    if labels.dtype.kind == "f":
        _check_floats(labels)
    elif labels.dtype.kind not in "biuUO":
        raise DataError(f"y has labels of type {labels.dtype}; class labels are integers, text or bool")
    return labels


def _of_objects(labels: np.ndarray) -> np.ndarray:
    none, kind = missing(labels), kind_of(labels)
    if kind == "decimal" and all(value == int(value) for value in labels[~none]):
        labels, kind = np.array([None if gap else int(v) for gap, v in zip(none, labels, strict=True)]), "integer"
    if kind in ("floating", "empty"):
        return np.where(none, np.nan, labels).astype(np.float64)
    if kind in ("text", "boolean", "integer"):
        return with_gaps(labels, none)
    if kind == "mixed":
        kinds: dict[str, tuple[int, Any]] = {}
        for node, value in enumerate(labels):
            if not none[node]:
                kinds.setdefault(type(value).__name__, (node, value))
        examples = ", ".join(f"{value!r} ({name}) at node {node}" for name, (node, value) in kinds.items())
        raise DataError(f"y mixes labels of several kinds: {examples}; make them all text or all numbers")
    first = int((~none).argmax())
    raise DataError(
        f"y has labels of kind {kind}, at node {first} {labels[first]!r}; class labels are integers, text or bool"
    )


def _check_floats(labels: np.ndarray) -> None:
    if np.isinf(labels).any():
        raise DataError(f"y is infinite at node {int(np.isinf(labels).argmax())}; NaN or -1 means unlabeled")
    known = labels[labeled(labels)]
    if not np.array_equal(known, np.floor(known)):
        raise DataError("y is continuous (not whole numbers); class labels are integers, text or bool")
    if len(known) and known.max() > EXACT:
        raise DataError(
            f"y has the float label {known.max():.0f}: beyond 2**53 floats do not hold every whole number, so "
            "labels may have become equal; give integers (pandas: dtype 'Int64') or text"
        )


def labeled(labels: np.ndarray) -> np.ndarray:
    """``(N,)`` bool: which nodes have a label (not NaN, None, NA, or a number below 0)."""
    if labels.dtype.kind == "f":
        return ~np.isnan(labels) & (labels >= 0)
    if labels.dtype.kind == "i":
        return labels >= 0
    known = ~missing(labels)
    if labels.dtype == object and kind_of(labels) == "integer":
        known[known] = labels[known] >= 0
    return known


def known_labels(labels: np.ndarray) -> np.ndarray:
    """The labels that are there, in the dtype of their kind."""
    return tightened(labels[labeled(labels)])


def class_names(labels: np.ndarray) -> np.ndarray:
    """Distinct labels of the labeled nodes, sorted."""
    return np.unique(known_labels(labels))


def encode_labels(labels: np.ndarray, classes: np.ndarray) -> Tensor:
    """Class numbers ``(N,)`` int64; -1 for unlabeled nodes and for labels that are not in ``classes``."""
    codes = np.full(labels.shape, UNKNOWN, dtype=np.int64)
    codes[labeled(labels)] = encode(known_labels(labels), classes)
    return torch.from_numpy(codes)


def like_classes(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Labels ``(n,)`` of a table as the classes that are written alike, where numbers stand beside text: "1" is 1.

    Raises
    ------
    DataError
        If a label is written as no class is.
    """
    if (labels.dtype.kind in "biuf") == (classes.dtype.kind in "biuf") and (labels.dtype == bool) == (
        classes.dtype == bool
    ):
        return labels
    known = {category_text(value): value for value in classes.tolist()}
    texts = [category_text(value) for value in labels.tolist()]
    if unknown := [text for text in texts if text not in known]:
        raise DataError(f"y has the label {unknown[0]!r}, the classes of the training are {listed(known)}")
    return np.array([known[text] for text in texts], dtype=classes.dtype)


def check_marks(labels: np.ndarray, used: np.ndarray, name: str = "y") -> None:
    """Tell a class below 0 from the mark of unlabeled nodes, as far as that can be told.

    If nodes that are to be used have a label below 0, this is logged as a warning.

    Parameters
    ----------
    labels : array of shape (N,)
        From :func:`as_labels`.
    used : bool array of shape (N,)
        Nodes in one of the masks, or all if there are no masks.
    name : str, default="y"
        What an error calls the labels.

    Raises
    ------
    DataError
        If there are several values below 0, or fewer than two classes.
    """
    below = ~labeled(labels) & ~missing(labels)
    marks = np.unique(labels[below])
    way_out = "if that is a class, encode the classes as 0, 1, ... or as text"
    if len(marks) > 1:
        raise DataError(
            f"{name} has {len(marks)} values below 0 ({', '.join(str(mark) for mark in marks[:5])}): one of them would "
            f"mean unlabeled; {way_out}, and mark unlabeled nodes by -1 alone"
        )
    classes = len(class_names(labels))
    if classes < 2:
        hint = f"; {marks[0]} (below 0) means unlabeled: {way_out}" if len(marks) else ""
        found = "1 class" if classes else "no label"
        raise DataError(f"{name} has {found}: at least two classes are needed{hint}")
    count = int((below & used).sum())
    if count:
        log.warning(
            "y is %s (below 0) at %d of the nodes to use, which means unlabeled: they count in no loss nor score; %s",
            marks[0],
            count,
            way_out,
        )
