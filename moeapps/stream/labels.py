"""Labels of a stream: not known in advance, from whatever the user has to classes 0, 1, ..."""

import enum
import math
from collections.abc import Hashable, Iterable
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moeapps.core.errors import DataError
from moeapps.core.labels import label_kind, value_from_json, value_to_json
from moeapps.core.tabledata.cells import is_missing_cell, shown
from moeapps.stream.values import savable, unwrapped

__all__ = ["LabelEncoder", "label_of", "targets_of"]

_PLAIN = (str, int, float, bool)


def targets_of(y: Any) -> list[Any]:
    """The targets of a batch, one by one, from a list, an array, or a column of pandas, polars or Arrow.

    Raises
    ------
    DataError
        If there is more than one target per row.
    """
    if isinstance(y, pd.DataFrame) or getattr(y, "ndim", 1) != 1:
        raise DataError(f"y must have one target per row, got a {type(y).__name__} of shape {getattr(y, 'shape', '?')}")
    for name in ("tolist", "to_list", "to_pylist"):  # numpy and pandas, polars, Arrow
        if hasattr(y, name):
            return list(getattr(y, name)())
    if y is None:
        raise DataError("learning requires y to be passed, but the target y is None")
    return list(y) if isinstance(y, Iterable) else list(np.asarray(y))


def label_of(label: Any) -> Hashable:
    """A label as text, int, float, bool or a tuple of these, which can be written to a file.

    Raises
    ------
    DataError
        If it is missing, or of another type.
    """
    if type(label) in _PLAIN and not isinstance(label, int | float):
        return label
    if isinstance(label, enum.Enum) and label != label.value:
        raise DataError(f"y is {label!r}: use its name or its value as the label, a file cannot hold the class")
    label = unwrapped(label)
    if is_missing_cell(label):
        raise DataError(f"y is {label!r}: a label must not be missing")
    if isinstance(label, Decimal) and label.is_finite():
        label = int(label) if label == label.to_integral_value() else float(label)
    if isinstance(label, float | np.floating) and not math.isfinite(label):
        raise DataError(f"y is {label!r}: a label must be finite")
    if not isinstance(label, Hashable):
        raise DataError(f"y is a {type(label).__name__}, which cannot be a label")
    return savable(label, "y")


def _is_unicode(label: Any) -> bool:
    try:
        return not isinstance(label, str) or label.encode() is not None
    except UnicodeEncodeError:
        return False


class LabelEncoder:
    """Labels to classes 0, 1, ... in order of appearance; all of one kind (numbers, or text, or tuples).

    Parameters
    ----------
    max_classes : int, default 1000
        Largest number of labels; one more is refused.
    """

    def __init__(self, max_classes: int = 1000) -> None:
        self.max_classes = max_classes
        self.codes: dict[Hashable, int] = {}
        self.kind: str | None = None
        self.dtype: str | None = None
        self._labels: list[Any] = []

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({"dtype": None, **state})

    @property
    def labels(self) -> list[Any]:
        """The labels, by class."""
        return self._labels

    def check(self, labels: Iterable[Any]) -> dict[Hashable, int]:
        """Refuse labels that cannot be learned, without changing anything.

        Returns
        -------
        dict
            New labels, with the index at which each stands first.

        Raises
        ------
        DataError
            If a label is missing, of another kind than the others, or one too many.
        """
        new: dict[Hashable, int] = {}
        kind = self.kind
        for index, label in enumerate(labels):
            if type(label) in _PLAIN and label in self.codes and kind == label_kind(label):
                continue
            label = label_of(label)
            kind = kind or label_kind(label)
            if kind != label_kind(label):
                seen = [*self.codes, *new][0]
                raise DataError(
                    f"y is {shown(label)} ({label_kind(label)}), but the labels so far are {kind}, such as "
                    f"{shown(seen)}"
                )
            if label not in new and label not in self.codes:
                new[label] = index
        if len(self.codes) + len(new) > self.max_classes:
            raise DataError(
                f"y has {len(self.codes) + len(new)} different labels, at most {self.max_classes} can be learned: is "
                "the target a number? Then use DriftMoERegressor"
            )
        return new

    def add(self, labels: Iterable[Hashable]) -> None:
        """Add labels that :meth:`check` found new."""
        for label in labels:
            self.kind = self.kind or label_kind(label)
            if label not in self.codes:
                self.codes[label] = len(self.codes)
                self._labels.append(label)

    def encode(self, labels: Iterable[Any]) -> NDArray[np.int64]:
        """Classes of known labels, shape (n,)."""
        codes = self.codes
        found = [codes[label if type(label) in _PLAIN else label_of(label)] for label in labels]
        return np.array(found, dtype=np.int64)

    def array(self) -> NDArray[Any]:
        """The labels by class, of the dtype that ``fit`` was given where that holds them all."""
        labels = self._labels
        kinds = {type(label) for label in labels}
        exact = (
            tuple not in kinds
            and not (str in kinds and any(label.endswith("\0") for label in labels))  # numpy cuts these off
            and not (int in kinds and any(abs(label) > 2 ** (53 if float in kinds else 63) - 1 for label in labels))
        )
        found: NDArray[Any] = np.empty(len(labels), dtype=object)
        found[:] = labels
        if exact and not (self.dtype == "object" and str in kinds):
            found = np.array(labels)
        if self.dtype not in (None, "object"):
            try:
                given = np.array(labels, dtype=self.dtype)
            except (TypeError, ValueError, OverflowError):
                return found
            if given.tolist() == labels:
                return given
        return found

    @property
    def pandas_dtype(self) -> type | None:
        """Dtype for columns of labels: None for what pandas finds, object for text that is not Unicode, and tuples."""
        plain = all(not isinstance(label, tuple) and _is_unicode(label) for label in self._labels)
        return None if plain else object

    def order(self) -> NDArray[np.intp]:
        """Classes in the order of their sorted labels."""
        try:
            return np.argsort(self.array(), kind="stable")
        except TypeError:  # tuples whose parts are of different types
            return np.array(sorted(range(len(self._labels)), key=lambda i: repr(self._labels[i])), dtype=np.intp)

    def state(self) -> list[Any]:
        """The labels as JSON values."""
        return [value_to_json(label) for label in self.codes]

    def restore(self, state: list[Any]) -> None:
        """Undo :meth:`state`."""
        self.add(value_from_json(label) for label in state)
