"""Score a file of any size with a saved model: read, predict, write, batch by batch."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from moeapps.core.errors import ConfigError
from moeapps.core.labels import probability_columns
from moeapps.core.tabledata.kinds import ColumnKind
from moeapps.core.tabledata.parts import part_paths
from moeapps.core.tabledata.source import TableSource, errors_named
from moeapps.core.tabledata.urls import is_url, local_path
from moeapps.core.tabledata.writer import table_writer

__all__ = [
    "FileScoring",
    "MixtureModel",
    "TableModel",
    "check_output",
    "instead",
    "label_columns",
    "number_columns",
    "predict_file",
    "predict_frame",
]


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
    progress: Callable[[int], None] = lambda rows: None,
) -> int:
    """Predict the rows of a file of any size into another file, in memory that does not grow with it.

    A classifier gives ``prediction`` and ``probability_<class>``, a regressor ``prediction``, a ranker
    ``probability_<target>`` of binary targets and the others' predictions by their names. Columns that the model does
    not know are not read.

    Parameters
    ----------
    model : TableModel
        A fitted model.
    source : path-like
        ``.csv``, ``.tsv``, ``.ndjson`` (these may be compressed: ``.csv.gz``) or ``.parquet`` file with the columns
        that the model knows, a folder of such files or a pattern (``parts/*.csv``); or a URL of these, by the user's
        own plugin of fsspec.
    output : path-like
        ``.csv`` or ``.parquet`` file, which replaces an older one only when it is complete; or a folder for Parquet
        files, whose name ends with a slash. Either may be a URL.
    keep : sequence of str, default=()
        Columns to copy next to the predictions, every cell as it stands in the source. Where a prediction's column has
        the name of a kept one, it is called ``prediction_<name>``.
    batch_rows : int, default=65536
        Rows that are in memory at once.
    weights : bool, default=False
        Whether to write the weights of a mixture's experts too, ``weight_<expert>``, and in a cascade
        ``asked_<expert>``.
    progress : callable, optional
        Called with the number of rows written so far, after each batch.

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
    scoring = FileScoring(model, source, keep, batch_rows, weights)
    check_output(source, output)
    with table_writer(output) as writer:
        for frame in scoring.batches():
            writer.write(scoring.predict(model, frame))
            progress(writer.rows)
    return writer.rows


class FileScoring:
    """What :func:`predict_file` reads, and what it writes for it, batch by batch.

    An instance can be sent to other processes, which have the model, but not the file.

    Parameters
    ----------
    model, source, keep, batch_rows, weights
        As for :func:`predict_file`, with the same errors.

    Attributes
    ----------
    keep : list of str
        Columns that are copied.
    known : list of str
        Columns that the model reads.
    """

    def __init__(
        self,
        model: TableModel,
        source: str | os.PathLike[str],
        keep: Sequence[str] = (),
        batch_rows: int = 65_536,
        weights: bool = False,
    ) -> None:
        if not isinstance(model, TableModel):
            raise ConfigError(f"a {type(model).__name__} does not predict the rows of a table{instead(model)}")
        if weights and not isinstance(model, MixtureModel):
            raise ConfigError(
                f"a {type(model).__name__} has no weights of experts per row: MixtureClassifier and MixtureRegressor "
                "have"
            )
        kinds = model.column_kinds()
        self.keep, self.weights = list(dict.fromkeys(keep)), weights
        # a column that is kept is read as it stands, and its numbers are made of that
        table = TableSource(
            source,
            batch_rows,
            {name: kind for name, kind in kinds.items() if name not in self.keep},
            model.missing_texts() if hasattr(model, "missing_texts") else None,
        )
        self.known = list(kinds) or [name for name in table.columns if name not in self.keep]
        table.require(self.keep, "keep")
        table.require(self.known)
        self.name = table.name
        self._table: TableSource | None = table

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_table": None}

    def batches(self) -> Iterator[pd.DataFrame]:
        """The rows, with the columns that are needed."""
        assert self._table is not None
        yield from self._table.batches(list(dict.fromkeys([*self.keep, *self.known])))

    def predict(self, model: TableModel, frame: pd.DataFrame) -> pd.DataFrame:
        """Kept columns and predictions of a batch; the error of a cell names the file."""
        with errors_named(self.name):
            predictions = predict_frame(model, frame[self.known], self.weights)
        predictions.columns = [f"prediction_{name}" if name in self.keep else name for name in predictions.columns]
        return pd.concat([frame[self.keep], predictions], axis=1)


def check_output(source: str | os.PathLike[str], output: str | os.PathLike[str]) -> None:
    """Refuse to write over what is read.

    Raises
    ------
    ConfigError
        If the output is the source, or lies in it.
    """
    if is_url(source) != is_url(output):
        return
    if is_url(source):
        read, written = str(source).rstrip("/"), str(output).rstrip("/")
    else:
        read, written = os.path.realpath(local_path(source)), os.path.realpath(local_path(output))
    parts = [str(part) for part in part_paths(source)]
    same = not is_url(output) and os.path.exists(written) and any(os.path.samefile(part, written) for part in parts)
    if written == read or written in parts or same:
        raise ConfigError(f"{output} is the file to be predicted: name another one to write to")
    if written.startswith(read + "/"):
        raise ConfigError(f"{output} lies in {source}, the folder to be predicted: name another place to write to")


def instead(model: Any) -> str:
    """What a model that takes no rows is for, as the end of a message; empty where there is nothing to say."""
    if hasattr(model, "predict_table"):  # of links and of whole graphs
        return ": use it in Python, moeapps.load(path).predict_table(...)"
    return ": moeapps serve MODEL generates images" if hasattr(model, "sample") else ""


def predict_frame(model: Any, rows: Any, weights: bool = False) -> pd.DataFrame:
    """Predictions of rows as columns: what :func:`predict_file` writes for these rows.

    Parameters
    ----------
    model
        A fitted model.
    rows : DataFrame or array of shape (n, P)
        Rows.
    weights : bool, default=False
        Whether to add the weights of a mixture's experts.
    """
    if weights:
        return model.predict_table(rows)
    index = rows.index if isinstance(rows, pd.DataFrame) else None
    if not hasattr(model, "predict_proba"):
        return number_columns(model.predict(rows), index)
    probabilities = model.predict_proba(rows)
    if isinstance(probabilities, pd.DataFrame):  # a ranker: a column per target
        return probabilities.rename(columns=model.output_columns() if hasattr(model, "output_columns") else {})
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
