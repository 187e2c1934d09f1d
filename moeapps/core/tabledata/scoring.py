"""Score a file of any size with a saved model: read, predict, write, batch by batch."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import pandas as pd

from moeapps.core.errors import ConfigError, DataError
from moeapps.core.tabledata.files import ColumnKind, TableWriter
from moeapps.core.tabledata.source import TableSource

__all__ = ["TableModel", "label_columns", "predict_file", "predict_frame"]


class TableModel(Protocol):
    """A model that predicts the rows of a table."""

    def column_kinds(self) -> Mapping[str, ColumnKind]:
        """Columns that the model reads, and what a CSV file's cells have to be read as."""

    def predict(self, X: pd.DataFrame) -> Any:
        """Predictions of rows."""


def predict_file(
    model: TableModel,
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    keep: Sequence[str] = (),
    batch_rows: int = 65_536,
) -> int:
    """Write a model's predictions of a CSV or Parquet file to another one, in memory that does not grow with it.

    A classifier gives ``prediction`` and ``probability_<class>``, a regressor ``prediction``, a ranker one column per
    target. Columns that the model does not know are not looked at.

    Args:
        model: A fitted model.
        source: ``.csv`` or ``.parquet`` file with the columns that the model knows.
        output: ``.csv`` or ``.parquet`` file; it replaces an older one only when it is complete.
        keep: Columns to copy beside the predictions.
        batch_rows: Rows that are in memory at once.

    Returns:
        Number of rows.

    Raises:
        ConfigError: If the model does not predict tables, or the output has another ending.
        DataError: Naming file, record and column, if a column is missing or cannot hold what it holds.
    """
    if not hasattr(model, "column_kinds"):
        raise ConfigError(f"a {type(model).__name__} does not predict the rows of a table")
    kinds = model.column_kinds()
    if os.path.realpath(source) == os.path.realpath(output):
        raise ConfigError(f"{output} is the file to be predicted: name another one to write to")
    table = TableSource(source, batch_rows, kinds)
    known = list(kinds) or [name for name in table.columns if name not in keep]
    table.require([*known, *keep])
    with TableWriter(output) as writer:
        for frame in table.batches(list(dict.fromkeys([*keep, *known]))):
            try:
                found = predict_frame(model, frame[known])
            except DataError as error:
                raise DataError(f"{source}, rows from {frame.index[0] if len(frame) else 0}: {error}") from None
            writer.write(pd.concat([frame[list(keep)], found], axis=1))
    return writer.rows


def predict_frame(model: Any, frame: pd.DataFrame) -> pd.DataFrame:
    """Predictions of a frame as columns: what :func:`predict_file` writes for these rows."""
    if not hasattr(model, "predict_proba"):
        return pd.DataFrame({"prediction": model.predict(frame)}, index=frame.index)
    found = model.predict_proba(frame)
    if isinstance(found, pd.DataFrame):
        return found
    return label_columns(model.classes_, found, frame.index)


def label_columns(classes: Any, probabilities: Any, index: Any = None) -> pd.DataFrame:
    """``prediction`` and ``probability_<class>`` of class probabilities ``(n, K)``."""
    best = classes[probabilities.argmax(axis=1)] if len(probabilities) else []
    columns = {f"probability_{label}": probabilities[:, k] for k, label in enumerate(classes)}
    return pd.DataFrame({"prediction": best, **columns}, index=index)
