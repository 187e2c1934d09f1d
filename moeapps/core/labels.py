"""Class labels: from whatever the user has to codes 0 .. K-1, back again, and into a saved file."""

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from moeapps.core.arrays import as_array, kind_of, missing, plain, tightened
from moeapps.core.errors import DataError

__all__ = [
    "UNKNOWN",
    "beside_kept",
    "class_labels",
    "classes_and_codes",
    "classes_from_json",
    "encode",
    "label_kind",
    "labels_from_json",
    "labels_to_json",
    "plain",
    "probability_columns",
    "value_from_json",
    "value_to_json",
]

FEW = 20
"""Labels that may all differ without a warning."""

UNKNOWN = -1
"""Code of a label that is not among the classes."""


def class_labels(y: Any, what: str = "row", warn: bool = True) -> NDArray[Any]:
    """Class labels of any kind as one array that holds them exactly.

    Parameters
    ----------
    y : array-like of shape (n,)
        List, NumPy array, tensor, or column of pandas (also nullable and Arrow types), polars or pyarrow.
    what : str, default="row"
        What has a label, for errors.
    warn : bool, default=True
        Whether to warn where more than half of the labels differ: an id, or numbers, rather than classes.

    Returns
    -------
    array of shape (n,)
        Integers, bools, text, or floats, in the dtype of their kind.

    Raises
    ------
    DataError
        If a label is missing, labels are of several kinds, or of a kind that is no label (dates, bytes, lists, ...).
    ValueError
        If numbers are not whole, as scikit-learn's classifiers do.
    """
    if isinstance(y, pd.DataFrame) or getattr(y, "ndim", 1) == 2:
        y = column_or_1d(y, warn=True)
    labels = as_array(y)
    if labels.ndim != 1:
        raise DataError(f"y must have one label per {what}, got shape {labels.shape}")
    gone = missing(labels)
    if gone.any():
        first = int(gone.argmax())
        raise DataError(f"y has no label for {what} {first} ({int(gone.sum())} in all): Input y contains NaN")
    kind = kind_of(labels)
    if labels.dtype == object and kind == "decimal" and all(value == int(value) for value in labels):
        labels, kind = tightened(np.array([int(value) for value in labels], dtype=object)), "integer"
    if kind == "mixed" or (labels.dtype == object and kind not in ("text", "integer", "boolean", "floating", "empty")):
        examples = {type(value).__name__: value for value in labels[::-1].tolist()}
        shown = ", ".join(f"{value!r} ({name})" for name, value in examples.items())
        raise DataError(f"y has labels such as {shown}: make them all text, all whole numbers or all bools")
    if labels.dtype.kind in "SVmMc":
        raise DataError(
            f"y has labels of type {labels.dtype}, such as {labels[0]!r}: Support for labels represented as bytes is "
            "not supported, nor are dates; make them text, whole numbers or bools"
        )
    with warnings.catch_warnings():  # our own warning below says what to do
        warnings.filterwarnings("ignore", message="The number of unique classes is greater than 50%")
        check_classification_targets(labels)
    if warn and len(labels) >= FEW and 2 * (distinct := len(np.unique(labels))) > len(labels):
        told = f"y has {distinct} different labels in {len(labels)} {what}s"
        warnings.warn(
            f"{told}: an id cannot be predicted, and numbers are predicted by a regressor", UserWarning, stacklevel=3
        )
    return labels


def encode(labels: NDArray[Any], classes: NDArray[Any]) -> NDArray[np.int64]:
    """Codes of labels: their indices in ``classes``, :data:`UNKNOWN` where they are not among them.

    Parameters
    ----------
    labels : array of shape (n,)
        Labels, none missing.
    classes : array of shape (K,)
        Known labels, sorted and distinct.
    """
    if not len(classes):
        return np.full(labels.shape, UNKNOWN, dtype=np.int64)
    try:
        codes = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
    except TypeError:  # labels of another type than the classes have no order among them, but may be equal to one
        known = {label: code for code, label in enumerate(classes.tolist())}
        return np.array([known.get(label, UNKNOWN) for label in labels.tolist()], dtype=np.int64)
    return np.where(classes[codes] == labels, codes, UNKNOWN).astype(np.int64)


def classes_and_codes(labels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Distinct labels, sorted, and the code of each label."""
    classes, codes = np.unique(labels, return_inverse=True)
    return classes, codes.astype(np.int64)


def probability_columns(classes: Iterable[Any]) -> list[str]:
    """Column names of class probabilities, ``probability_<class>``, in every file and answer that moeapps writes."""
    return [f"probability_{label}" for label in classes]


def beside_kept(kept: Mapping[str, Any], predictions: Mapping[str, Any]) -> dict[str, Any]:
    """Columns that were kept, then predictions; one of the name of a kept column is called ``prediction_<name>``."""
    return {**kept, **{f"prediction_{name}" if name in kept else name: value for name, value in predictions.items()}}


def labels_to_json(labels: NDArray[Any]) -> dict[str, Any]:
    """Write class labels as JSON values together with their dtype, so that they come back the same."""
    return {
        "dtype": "object" if labels.dtype == object else labels.dtype.str,
        "values": [plain(label) for label in labels.tolist()],
    }


def labels_from_json(saved: dict[str, Any]) -> NDArray[Any]:
    """Undo :func:`labels_to_json`.

    Raises
    ------
    ValueError
        If the dtype is not one of labels (bool, integer, float, text, object), or they are no distinct values of it.
    """
    kind, values = str(saved["dtype"]), saved["values"]
    found = re.fullmatch(r"object|[<>|=]?([biufU])(\d{1,9})", kind)
    if found is None:
        raise ValueError(f"unknown label dtype {kind!r}")
    letter = found.group(1)
    if not isinstance(values, list) or not all(type(value) in _TYPES_OF_DTYPE[letter] for value in values):
        raise ValueError(f"labels of dtype {kind!r} cannot be {str(values)[:60]}")
    if letter == "U" and int(found.group(2)) * len(values) > 4 * sum(map(len, values)) + 1_000_000:
        raise ValueError(f"labels of dtype {kind!r} would need far more memory than their text")
    labels = np.array(values, dtype=kind)
    if len(set(labels.tolist())) != len(values):
        raise ValueError("labels must be distinct")
    return labels


def classes_from_json(saved: dict[str, Any]) -> NDArray[Any]:
    """:func:`labels_from_json` for classes, which :func:`encode` needs sorted.

    Raises
    ------
    ValueError
        If they are not.
    """
    classes = labels_from_json(saved)
    if classes.dtype != object and (classes[1:] <= classes[:-1]).any():
        raise ValueError("classes must be sorted")
    return classes


_TYPES_OF_DTYPE: dict[str | None, tuple[type, ...]] = {
    "b": (bool,), "i": (int,), "u": (int,), "f": (int, float), "U": (str,), None: (str, int, float, bool),
}  # fmt: skip


# Labels that come one by one (streams) have no common dtype: each is written with a tag of its type.

_TAGS: dict[str, type] = {"s": str, "i": int, "f": float, "b": bool}


def label_kind(label: Any) -> str:
    """Kind of a label, for messages: "numbers", "text" or "of type ..."; labels of one model have one kind."""
    if isinstance(label, bool | int | float | np.number | np.bool_):
        return "numbers"
    return "text" if isinstance(label, str) else f"of type {type(label).__name__}"


def value_to_json(value: Any) -> list[Any]:
    """Write a single label, name or category as JSON values, so that it comes back with the same type.

    Raises
    ------
    DataError
        If it is neither text, a number, a bool nor a tuple of these.
    """
    value = plain(value)
    for tag, kind in _TAGS.items():
        if type(value) is kind:
            return [tag, value]
    if isinstance(value, tuple):
        return ["t", [value_to_json(part) for part in value]]
    raise DataError(f"{value!r} ({type(value).__name__}) cannot be written to a file: use text, numbers or bools")


def value_from_json(pair: Any) -> Any:
    """Undo :func:`value_to_json`.

    Raises
    ------
    ValueError
        If it is not what that wrote.
    """
    tag, value = pair
    if tag == "t":
        return tuple(value_from_json(part) for part in value)
    if type(value) is not _TAGS[tag]:
        raise ValueError(f"{str(value)[:60]!r} is no {_TAGS[tag].__name__}")
    return value
