"""Score a file of any size with a saved model: read, predict, write, batch by batch."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from moeapps.core.errors import ConfigError
from moeapps.core.labels import probability_columns
from moeapps.core.tabledata.kinds import ColumnKind
from moeapps.core.tabledata.source import TableSource
from moeapps.core.tabledata.writer import TableWriter

__all__ = ["MixtureModel", "TableModel", "label_columns", "number_columns", "predict_file", "predict_frame"]


@runtime_checkable
class TableModel(Protocol):
    """A model that predicts the rows of a table."""

    def column_kinds(self) -> Mapping[str, ColumnKind]:
        """Columns that the model reads, and what they are."""

    def predict(self, X: pd.DataFrame) -> Any:
        """Predictions of rows."""


@runtime_checkable
class MixtureModel(TableModel, Protocol):
    """A model that also says how much each of its experts counts for a row."""

    def predict_table(self, X: Any) -> pd.DataFrame:
        """Predictions, weights of the experts, and which of them were asked, as columns."""


def predict_file(
    model: TableModel,
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    keep: Sequence[str] = (),
    batch_rows: int = 65_536,
    weights: bool = False,
) -> int:
    """Predict the rows of a file of any size into another file, in memory that does not grow with it.

    A classifier gives ``prediction`` and ``probability_<class>``, a regressor ``prediction``, a ranker one column per
    target. Columns that the model does not know are not read.

    Parameters
    ----------
    model : TableModel
        A fitted model.
    source : path-like
        ``.csv``, ``.tsv``, ``.ndjson`` (these may be compressed: ``.csv.gz``) or ``.parquet`` file with the columns
        that the model knows, or a folder of such files.
    output : path-like
        ``.csv`` or ``.parquet`` file; it replaces an older one only when it is complete.
    keep : sequence of str, default ()
        Columns to copy next to the predictions, every cell as it stands in the source. Where a prediction's column has
        the name of a kept one, it is called ``prediction_<name>``.
    batch_rows : int, default 65536
        Rows that are in memory at once.
    weights : bool, default False
        Whether to write the weights of a mixture's experts too, ``weight_<expert>``, and in a cascade
        ``asked_<expert>``.

    Returns
    -------
    int
        Number of rows.

    Raises
    ------
    ConfigError
        If the model does not predict tables, or has no weights where they are asked for; the output has another ending
        or lies in the source; or ``keep`` names a column twice.
    DataError
        Naming file, row and column, if a column is missing or has a value that it cannot have.
    """
    if not isinstance(model, TableModel):
        raise ConfigError(f"a {type(model).__name__} does not predict the rows of a table")
    if weights and not isinstance(model, MixtureModel):
        raise ConfigError(
            f"a {type(model).__name__} has no weights of experts per row: MixtureClassifier and MixtureRegressor have"
        )
    kinds = model.column_kinds()
    _check_output(source, output)
    keep = list(dict.fromkeys(keep))
    # a column that is kept is read as it stands, and its numbers are made of that
    table = TableSource(
        source,
        batch_rows,
        {name: kind for name, kind in kinds.items() if name not in keep},
        model.missing_texts() if hasattr(model, "missing_texts") else None,
    )
    known = list(kinds) or [name for name in table.columns if name not in keep]
    table.require([*known, *keep])
    with TableWriter(output) as writer:
        for frame in table.batches(list(dict.fromkeys([*keep, *known]))):
            predictions = table.named(partial(predict_frame, model, frame[known], weights))
            predictions.columns = [f"prediction_{name}" if name in keep else name for name in predictions.columns]
            writer.write(pd.concat([frame[keep], predictions], axis=1))
    return writer.rows


def _check_output(source: str | os.PathLike[str], output: str | os.PathLike[str]) -> None:
    read, written = os.path.realpath(source), os.path.realpath(output)
    if read == written or (os.path.exists(output) and os.path.samefile(source, output)):
        raise ConfigError(f"{output} is the file to be predicted: name another one to write to")
    if os.path.isdir(read) and written.startswith(read + os.sep):
        raise ConfigError(f"{output} lies in {source}, the folder to be predicted: name another place to write to")


def predict_frame(model: Any, rows: Any, weights: bool = False) -> pd.DataFrame:
    """Predictions of rows as columns: what :func:`predict_file` writes for these rows.

    Parameters
    ----------
    model
        A fitted model.
    rows : DataFrame or array of shape (n, P)
        Rows.
    weights : bool, default False
        Whether to add the weights of a mixture's experts.
    """
    if weights:
        return model.predict_table(rows)
    index = rows.index if isinstance(rows, pd.DataFrame) else None
    if not hasattr(model, "predict_proba"):
        return number_columns(model.predict(rows), index)
    probabilities = model.predict_proba(rows)
    if isinstance(probabilities, pd.DataFrame):  # a ranker: a column per target
        return probabilities
    return label_columns(model.classes_, probabilities, index)


def number_columns(predictions: Any, index: Any = None) -> pd.DataFrame:
    """Predicted numbers as the column ``prediction``, or of several targets ``prediction_0``, ``prediction_1``, ...

    Parameters
    ----------
    predictions : array of shape (n,) or (n, T)
        Numbers.
    index : optional
        Index of the frame.
    """
    if np.ndim(predictions) == 1:
        return pd.DataFrame({"prediction": predictions}, index=index)
    return pd.DataFrame({f"prediction_{t}": column for t, column in enumerate(predictions.T)}, index=index)


def label_columns(classes: Any, probabilities: Any, index: Any = None) -> pd.DataFrame:
    """Class probabilities as columns ``prediction`` and ``probability_<class>``.

    Parameters
    ----------
    classes : array of shape (K,)
        Class labels.
    probabilities : array of shape (n, K)
        Class probabilities.
    index : optional
        Index of the frame.
    """
    best = classes[probabilities.argmax(axis=1)] if len(probabilities) else []
    columns = dict(zip(probability_columns(classes), probabilities.T, strict=True))
    return pd.DataFrame({"prediction": best, **columns}, index=index)
