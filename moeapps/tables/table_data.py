"""Tables for ``moeapps fit``: a file or a public table as rows, targets and weights, held in memory."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

import lightning as L
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from moeapps.core.checks import check_below_one, check_one_of, check_sizes
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.labels import UNKNOWN, class_labels, encode
from moeapps.core.loading import ResumableLoader, identity_collate, make_loader
from moeapps.core.splits import hold_out
from moeapps.core.tabledata.cells import missing_texts
from moeapps.core.tabledata.encoded import EncodedTable
from moeapps.core.tabledata.frames import missing_cells
from moeapps.core.tabledata.ids import is_key, nearly_all_differ
from moeapps.core.tabledata.kinds import UNUSED, Column, ColumnKind, check_column_types
from moeapps.core.tabledata.numbers import to_numbers
from moeapps.core.tabledata.source import Table, TableSource

__all__ = ["PUBLIC_TABLES", "TableData", "TablePart"]

MAX_WHOLE = 20
"""A target of whole numbers with at most so many different ones is a class, unless ``task`` says otherwise."""

BATCH_ROWS = 1024
"""Rows per step, of a module that does not say how many."""

EVALUATION_ROWS = 8192
"""Rows that are evaluated at once."""


def _census() -> pd.DataFrame:
    sample = files("moeapps") / "recsys" / "embedded" / "census_income_sample.parquet"  # core imports no task
    with sample.open("rb") as file:
        frame = pd.read_parquet(file).drop(columns=["never_married", "instance_weight"])
    return _categorical(frame, [str(name) for name in frame if not pd.api.types.is_numeric_dtype(frame[name])])


def _categorical(frame: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Text columns that are categories as such: boosting reads them so, and nobody asks again what they are."""
    text = [name for name in names if frame[name].dtype == object or pd.api.types.is_string_dtype(frame[name].dtype)]
    return frame.astype(dict.fromkeys(text, "category"))


def _sklearn(name: str) -> Callable[[], pd.DataFrame]:
    def load() -> pd.DataFrame:
        import sklearn.datasets

        frame: pd.DataFrame = getattr(sklearn.datasets, f"load_{name}")(as_frame=True).frame
        return frame

    return load


PUBLIC_TABLES: dict[str, tuple[Callable[[], pd.DataFrame], str]] = {
    "census-income": (_census, "income"),
    "breast-cancer": (_sklearn("breast_cancer"), "target"),
    "diabetes": (_sklearn("diabetes"), "target"),
    "digits": (_sklearn("digits"), "target"),
    "iris": (_sklearn("iris"), "target"),
    "wine": (_sklearn("wine"), "target"),
}
"""Tables by name, and their targets: a sample of 8,000 rows of Census-Income (KDD), and those in scikit-learn."""


@dataclass(frozen=True)
class TablePart:
    """Rows of a part.

    Parameters
    ----------
    frame : DataFrame of n rows
        The features.
    target : array of shape (n,), optional
        Labels or numbers; None where they are not known.
    weight : array of shape (n,)
        Weights of the rows.
    kept : DataFrame
        Columns to copy beside the predictions.
    """

    frame: pd.DataFrame
    target: NDArray[Any] | None
    weight: NDArray[np.float64]
    kept: pd.DataFrame

    def rows(self, chosen: NDArray[np.int64]) -> "TablePart":
        """Some of the rows, numbered anew."""
        target = None if self.target is None else self.target[chosen]
        frames = (frame.iloc[chosen].reset_index(drop=True) for frame in (self.frame, self.kept))
        frame, kept = frames
        return TablePart(frame, target, self.weight[chosen], kept)


class TableData(L.LightningDataModule):
    """A table with one target.

    Batches are the numbers of rows, their targets (class codes, or float64 numbers) and weights; a module encodes the
    frames of :meth:`part` once and looks its batches up. All rows are held in memory.

    Parameters
    ----------
    file : DataFrame or path, optional
        Frame, ``.csv``, ``.tsv``, ``.ndjson`` or ``.parquet`` file, or folder of such files, to learn from.
    target : str, optional
        Column to be predicted; a public table has one.
    name : str, optional
        A public table instead of a file: "census-income" (a sample of 8,000 rows), "breast-cancer", "diabetes",
        "digits", "iris", "wine".
    val : DataFrame or path, optional
        To validate on; a part of the training rows by default.
    test : DataFrame or path, optional
        To test on.
    predict : DataFrame or path, optional
        To predict; it needs no target.
    task : {"auto", "classification", "regression"}, default="auto"
        "auto" takes numbers as classes if they are whole and at most 20 different ones.
    weight : str, optional
        Column with the weights of rows.
    ignore_columns : str or list of str, default=()
        Columns that are not used. Ids are not used either (a different value in nearly every row), with a warning,
        unless ``column_types`` says what they are.
    column_types : dict, optional
        What columns are, where that shall not be inferred: ``{zip: category}``; one of "number", "category", "id",
        "time".
    missing_values : "auto" or list of str, default="auto"
        Texts that mean a missing value; "auto" takes those of ``pandas.read_csv``.
    keep : list of str, default=()
        Columns to copy beside the predictions.
    batch_size : int or "auto", default="auto"
        Rows per step; "auto" takes what the module wants for the number of rows (:class:`~moeapps.tables.TableModule`:
        what :class:`~moeapps.MoEClassifier` takes), else 1,024.
    validation_fraction : float, default=0.1
        Part of the training rows to validate on where there is no ``val``, in [0, 1); 0 for none.
    seed : int, default=0
        Seed of the order and of the validation rows.
    path : DataFrame or path, optional
        The same as ``file``.

    Attributes
    ----------
    classes : array of shape (K,) or None
        Labels of a classification, after ``setup("fit")``.
    columns : dict of str to Column
        What the columns are that are used, after ``setup("fit")``.
    unused : dict of int to Column
        Ids and ignored columns, by their positions among all columns but the target and the weight.

    Raises
    ------
    ConfigError
        If an argument is impossible.
    DataError
        In ``setup``, naming file, row and column, if a table cannot be learned from.
    """

    classes: NDArray[Any] | None
    columns: dict[str, Column]
    unused: dict[int, Column]

    def __init__(
        self,
        file: Any = None,
        target: str | None = None,
        name: str | None = None,
        val: Any = None,
        test: Any = None,
        predict: Any = None,
        task: Literal["auto", "classification", "regression"] = "auto",
        weight: str | None = None,
        ignore_columns: str | Sequence[str] = (),
        column_types: dict[str, ColumnKind] | None = None,
        missing_values: Literal["auto"] | list[str] = "auto",
        keep: Sequence[str] = (),
        batch_size: int | Literal["auto"] = "auto",
        validation_fraction: float = 0.1,
        seed: int = 0,
        path: Any = None,
    ) -> None:
        super().__init__()
        if batch_size != "auto":
            check_sizes(batch_size=batch_size)
        check_one_of("task", task, ("auto", "classification", "regression"))
        check_below_one(validation_fraction=validation_fraction)
        if file is not None and path is not None:
            raise ConfigError("file and path are both given: they mean the same, the table to learn from")
        file = path if file is None else file
        if name is not None:
            check_one_of("name", name, tuple(PUBLIC_TABLES))
            if file is not None:
                raise ConfigError("file and name are both given: a table is either your own or a public one")
            target = target or PUBLIC_TABLES[name][1]
        self.name, self.target, self.weight = name, target, weight
        self.parts: dict[str, Any] = {"train": file, "val": val, "test": test, "predict": predict}
        self.given_task, self.keep = task, list(keep)
        self.ignore_columns = [ignore_columns] if isinstance(ignore_columns, str) else list(ignore_columns)
        self.column_types, self.missing_values = check_column_types(column_types), missing_values
        self.missing = missing_texts(missing_values)
        self.batch_size, self.validation_fraction, self.seed = batch_size, validation_fraction, seed
        self._read: dict[str, TablePart] = {}

    @property
    def task(self) -> Literal["classification", "regression"]:
        """What is predicted, once the table is read."""
        return "regression" if self.classes is None else "classification"

    def load(self, part: str) -> Table | None:
        """The table of a part (train, val, test, predict), which may be a file."""
        if part == "train" and self.name is not None:
            return PUBLIC_TABLES[self.name][0]()
        table: Table | None = self.parts[part]
        return table

    def part(self, part: str) -> TablePart:
        """Rows of a part: train, val, test or predict.

        Raises
        ------
        ConfigError
            If there is no such part.
        DataError
            Naming file, row and column, if the rows cannot be read.
        """
        if part not in self._read:
            table = self.load(part)
            if table is None:
                option = "file (or name)" if part == "train" else part
                raise ConfigError(
                    f"{option} is not set: a frame, or the path of a .csv or .parquet file "
                    f"(--data.{'path' if part == 'train' else part} FILE)"
                )
            self._read[part] = self._rows(table, part)
        return self._read[part]

    @property
    def has_validation(self) -> bool:
        """Whether there are validation rows."""
        return "val" in self._read or self.load("val") is not None

    def setup(self, stage: str | None = None) -> None:
        """Read the training table, learn what its columns and its target are, and hold the validation rows back.

        Other stages need a trained model, which knows the columns.

        Raises
        ------
        ConfigError
            If there is no table or no target.
        DataError
            Naming file, row and column, if the table cannot be learned from.
        """
        if stage != "fit" or "train" in self._read:
            return
        if self.target is None:
            raise ConfigError("target is not set: the column to be predicted (--data.target COLUMN)")
        table = self.load("train")
        if table is None:
            raise ConfigError("file is not set: a frame, or the path of a .csv or .parquet file, is needed to learn")
        source = TableSource(table, missing=self.missing)
        source.require([self.target], "target")
        source.require([] if self.weight is None else [self.weight], "weight")
        source.require(self.ignore_columns, "ignore_columns")
        left_out = {self.target, self.weight, *self.ignore_columns}
        names = [name for name in source.columns if name not in left_out]
        if not names:
            raise DataError(f"{source.name} has no column to learn from besides {self.target!r}")
        wanted = [*names, self.target]
        self.columns = source.named(lambda: source.infer(wanted, self.column_types))
        kind = self.columns.pop(self.target)
        ids = source.named(lambda: source.find_ids(list(self.columns.values()), self.column_types))
        ignored = {name: Column(name, "ignored", "chosen by ignore_columns") for name in self.ignore_columns}
        every = [name for name in source.columns if name not in (self.target, self.weight)]
        known = {**self.columns, **ids, **ignored}
        self.unused = {i: known[name] for i, name in enumerate(every) if known[name].kind in UNUSED}
        self.columns = {name: known[name] for name in names if known[name].kind not in UNUSED}
        self._learn_target(source, kind)
        train = self.part("train")
        if len(train.frame) == 0:
            raise DataError(f"{source.name}: there is no row to learn from")
        if self.load("val") is None and self.validation_fraction:
            assert train.target is not None
            codes = None if self.classes is None else self.codes(train.target)
            rows, held = hold_out(len(train.frame), self.validation_fraction, self.seed, codes)
            self._read |= {"train": train.rows(np.sort(rows)), "val": train.rows(np.sort(held))}

    def _learn_target(self, source: TableSource, column: Column) -> None:
        frame: pd.DataFrame = source.named(
            lambda: pd.concat(list(source.batches([self.target or ""])), ignore_index=True)
        )
        values = source.named(lambda: self._target(frame))
        numbers = column.kind == "number"
        self.classes = None
        if self.given_task != "regression":
            labels = self._labels(values, numbers)
            classes = np.unique(labels)
            whole = not numbers or (bool((classes == np.round(classes)).all()) and len(classes) <= MAX_WHOLE)
            if self.given_task == "classification" or whole:
                if len(classes) < 2:
                    raise DataError(
                        f"{source.name}: {self.target!r} has one value, {classes.tolist()[0]!r}; there is nothing to "
                        "learn with fewer than two classes"
                    )
                self.classes = classes
        self._check_ids(source, values)
        if self.classes is None and not numbers:
            raise DataError(f"{source.name}: {self.target!r} is a {column.kind}, not numbers: task=classification")

    def _check_ids(self, source: TableSource, values: pd.Series) -> None:
        """Refuse classes that are names of the rows; warn of row numbers, which a regression could learn."""
        if self.classes is not None:
            distinct, is_id = len(self.classes), nearly_all_differ(len(self.classes), len(values))
        else:
            distinct, whole = values.nunique(), pd.api.types.is_integer_dtype(values.dtype)
            is_id = whole and is_key(str(self.target), values.to_numpy(np.float64))
        if not is_id:
            return
        told = (
            f"{source.name}: the target {self.target!r} has {distinct} different values in {len(values)} rows: an id?"
        )
        if self.classes is not None and self.given_task == "auto":
            raise DataError(f"{told} Give the column to be predicted; if it is this one, task=classification says so")
        warnings.warn(told, UserWarning, stacklevel=2)

    def _target(self, frame: pd.DataFrame) -> pd.Series:
        column = frame[self.target]
        if (gone := missing_cells(column, self.missing)).any():
            count = int(gone.sum())
            raise DataError(
                f"{self.target!r} is missing in row {int(np.argmax(gone))} ({count:,} row{'s' * (count > 1)} in all): "
                "leave such rows out"
            )
        return column

    def _labels(self, values: pd.Series, numbers: bool) -> NDArray[Any]:
        if not numbers:
            return class_labels(values.astype(str) if values.dtype == object else values, warn=False)
        array = to_numbers(values, self.missing, str(self.target))
        return array.astype(np.int64) if (array == np.round(array)).all() else array

    def codes(self, target: NDArray[Any]) -> NDArray[np.int64]:
        """Class codes of labels.

        Raises
        ------
        DataError
            If one is not among the classes.
        """
        assert self.classes is not None
        codes = encode(target, self.classes)
        if (new := target[codes == UNKNOWN]).size:
            raise DataError(
                f"{self.target!r} has the value {new.tolist()[0]!r}, which is not among {self.classes.tolist()[:10]}"
            )
        return codes

    def _known(self) -> tuple[dict[str, ColumnKind], Any]:
        """Kinds of the columns and classes: of the training rows, or of the trained module."""
        if hasattr(self, "columns"):
            return {name: column.kind for name, column in self.columns.items()}, self.classes
        module: Any = self.trainer.lightning_module if self.trainer is not None else None
        if module is None or not getattr(module, "attached", False):
            raise ConfigError("the table's columns are not known: give the checkpoint of a trained model, --ckpt_path")
        self.classes = module.classes
        return module.column_kinds(), module.classes

    def _rows(self, table: Table, part: str) -> TablePart:
        kinds, classes = self._known()
        source = TableSource(table, kinds={n: k for n, k in kinds.items() if n not in self.keep}, missing=self.missing)
        labelled = part != "predict"
        extra = [self.weight] if self.weight is not None and labelled else []
        targets = [self.target] if labelled and self.target is not None else []
        wanted = list(dict.fromkeys([*kinds, *targets, *extra, *self.keep]))
        source.require(wanted)
        frame: pd.DataFrame = source.named(lambda: pd.concat(list(source.batches(wanted)), ignore_index=True))
        target = None
        if labelled:
            values = source.named(lambda: self._target(frame))
            if classes is None:
                target = source.named(lambda: to_numbers(values, self.missing, str(self.target)))
            else:
                target = self._labels(values, classes.dtype.kind in "if")
        weight = np.ones(len(frame))
        if extra:
            weight = source.named(lambda: to_numbers(frame[self.weight], self.missing, str(self.weight)))
            if not (np.isfinite(weight) & (weight >= 0)).all():
                row = int(np.argmin(np.isfinite(weight) & (weight >= 0)))
                raise DataError(f"{source.name}: {self.weight!r} must be at least 0, got {weight[row]} in row {row}")
        categories = [name for name, kind in kinds.items() if kind == "category"]
        return TablePart(_categorical(frame[list(kinds)], categories), target, weight, frame[self.keep])

    def _batch_rows(self, n: int) -> int:
        """Rows per step where there are n."""
        if self.batch_size != "auto":
            return self.batch_size
        module: Any = self.trainer.lightning_module if self.trainer is not None else None
        return int(module.batch_rows(n)) if hasattr(module, "batch_rows") else BATCH_ROWS

    def _loader(self, name: str, shuffle: bool = False) -> ResumableLoader:
        part = self.part(name)
        columns: list[Tensor] = [torch.arange(len(part.frame))]
        if part.target is not None:
            target = part.target.astype(np.float64) if self.classes is None else self.codes(part.target)
            columns += [torch.from_numpy(target), torch.from_numpy(part.weight.copy())]
        rows_per_step = self._batch_rows(len(part.frame))
        size = rows_per_step if shuffle else max(rows_per_step, EVALUATION_ROWS)
        rows = EncodedTable(*columns)
        return make_loader(rows, size, shuffle=shuffle, seed=self.seed, collate_fn=identity_collate)

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled batches (row, target, weight)."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> Any:
        """Batches in order."""
        return self._loader("val") if self.has_validation else []

    @property
    def has_test_data(self) -> bool:
        """Whether there are test rows."""
        return self.load("test") is not None

    def test_dataloader(self) -> ResumableLoader:
        """Batches in order."""
        return self._loader("test")

    def predict_dataloader(self) -> ResumableLoader:
        """Batches in order, without targets."""
        return self._loader("predict")
