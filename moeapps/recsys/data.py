"""Batches of encoded rows: from frames, and from files that may be larger than memory."""

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from moeapps.core.checks import check_below_one, check_sizes
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.loading import ResumableLoader, make_loader
from moeapps.core.tabledata.cells import missing_texts
from moeapps.core.tabledata.encoded import EncodedTable
from moeapps.core.tabledata.kinds import Column, ColumnKind, check_column_types
from moeapps.core.tabledata.source import Table, TableSource
from moeapps.moved import warn_deprecated
from moeapps.recsys.encoder import PAD, Rows, TableEncoder
from moeapps.recsys.events import as_times
from moeapps.recsys.schema import Schema, as_schema
from moeapps.recsys.streaming import EVALUATION_ROWS, RowStream
from moeapps.recsys.targets import TargetKind, Targets

__all__ = ["RankingData"]

_COPIES = "copies"
"""Folder of the copies of text files, in that of the encoded rows."""


class RankingData(L.LightningDataModule):
    """Training, validation, test and prediction batches of a table.

    The encoded rows of a file are written to a folder and mapped into memory, so that a training takes its batches in
    random order from a table that does not fit in memory, and resumes exactly where it was stopped. ``setup("fit")``:

    1. Parse a text file, once, into a copy of its cells that the next steps read; Parquet needs no copy.
    2. Infer the schema from all rows, unless it is given.
    3. Choose the validation rows.
    4. Learn the targets' kinds and classes from all rows.
    5. Learn categories and the spread of numbers from the training rows.
    6. Encode training and validation rows, and remove the copy.

    Parameters
    ----------
    train : DataFrame or path, optional
        Frame or file to learn from.
    val : DataFrame or path, optional
        To validate on; a part of the training rows by default.
    test : DataFrame or path, optional
        To test on.
    predict : DataFrame or path, optional
        To predict; it needs no targets.
    targets : list of str, default=()
        Columns to be predicted.
    schema : Schema or list, optional
        The features: a Schema, or a list such as ``[{kind: sparse, name: city}, {kind: dense, name: age},
        {kind: sequence, name: history, shares: item_id}]``; inferred from the first rows by default.
    ignored : list of str, default=()
        Columns that are not used; of a file, all columns that a given schema does not name are ignored.
    kinds : dict, optional
        ``"binary"``, ``"regression"`` or ``"count"`` by target; inferred for the others.
    column_types : dict, optional
        What columns are, where the schema shall not be inferred: ``{zip: category}``; one of "number", "category",
        "id", "time", "list".
    missing_values : "auto" or list of str, default="auto"
        Texts that mean a missing value; "auto" takes those of ``pandas.read_csv``.
    row_id : str, optional
        Column that identifies a row: no value may be in two of train, val and test.
    keep : list of str, default=()
        Columns to copy beside the predictions.
    batch_size : int, default=1024
        Rows per step.
    validation_fraction : float, default=0.1
        Part of the training rows to validate on where there is no ``val``, in [0, 1); 0 for none.
    time : str, optional
        Column of times: numbers, dates or times. The newest rows validate then, not rows at random. It is no feature
        unless the schema says so.
    cache_dir : str, optional
        Folder with room for the encoded rows of a file and, while they are made, for a compressed copy of its cells;
        the system's temporary folder by default. They are removed when training ends.
    num_workers : int, default=0
        Number of loading processes.
    seed : int, default=0
        Seed of the order and of the validation rows.

    Attributes
    ----------
    encoder : TableEncoder
        Learned categories and numbers, after ``setup("fit")``.
    targets : Targets
        Kinds and classes of the targets, after ``setup("fit")``.

    Raises
    ------
    ConfigError
        If an argument is impossible.
    DataError
        In ``setup``, naming file, record and column, if a table cannot be learned from.
    """

    encoder: TableEncoder
    targets: Targets

    def __init__(
        self,
        train: Any = None,
        val: Any = None,
        test: Any = None,
        predict: Any = None,
        targets: Sequence[str] = (),
        schema: Any = None,
        ignored: Sequence[str] = (),
        kinds: dict[str, TargetKind] | None = None,
        column_types: dict[str, ColumnKind] | None = None,
        missing_values: Literal["auto"] | list[str] = "auto",
        row_id: str | None = None,
        keep: Sequence[str] = (),
        batch_size: int = 1024,
        validation_fraction: float = 0.1,
        cache_dir: str | None = None,
        num_workers: int = 0,
        seed: int = 0,
        time: str | None = None,
    ) -> None:
        super().__init__()
        check_sizes(batch_size=batch_size)
        check_below_one(validation_fraction=validation_fraction)
        if isinstance(targets, str):
            raise ConfigError(f"targets must be a list with the name of at least one column, got {targets!r}")
        self.parts: dict[str, Any] = {"train": train, "val": val, "test": test, "predict": predict}
        self.target_names, self.kinds = list(targets), kinds
        self.column_types = check_column_types(column_types)
        missing_texts(missing_values)
        self.missing_values = missing_values
        if schema is not None and column_types:
            raise ConfigError("column_types has no effect beside a schema, which says what the columns are: give one")
        self.schema = as_schema(schema)
        self.row_id, self.keep, self.time = row_id, list(keep), time
        self.ignored = list(ignored)
        if time is not None and time not in self.ignored:
            self.ignored.append(time)
        self.batch_size, self.validation_fraction = batch_size, validation_fraction
        self.cache_dir, self.num_workers, self.seed = cache_dir, num_workers, seed
        self._folder: Path | None = None  # removed by `_remove_folder`, at the latest with this object
        self._remove_folder: Callable[[], Any] = lambda: None
        self._train: EncodedTable | None = None
        self._val: EncodedTable | None = None

    def load(self, part: str) -> Table | None:
        """The table of a part (train, val, test, predict); a subclass that knows public data overrides this."""
        table: Table | None = self.parts[part]
        return table

    @property
    def has_validation(self) -> bool:
        """Whether there are validation rows."""
        return self._val is not None

    @property
    def watched(self) -> bool:
        """Old name of ``has_validation``."""
        warn_deprecated("watched of RankingData is now called has_validation")
        return self.has_validation

    def val_labels(self) -> Tensor | None:
        """Labels ``(N, T)`` of the validation rows, if there are any."""
        return None if self._val is None else self._val.columns[2]

    def val_groups(self, feature: str) -> NDArray[np.int64] | None:
        """Code of a sparse feature in each validation row, if there are any."""
        if self._val is None:
            return None
        place = [sparse.name for sparse in self.encoder.schema.sparse].index(feature)
        return self._val.columns[0][:, place].numpy()

    def label_counts(self, feature: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Training rows with label 1, and with label 0, of the first target, for each code of a sparse feature.

        Parameters
        ----------
        feature : str
            Its column.
        """
        assert self._train is not None
        place = [sparse.name for sparse in self.encoder.schema.sparse].index(feature)
        codes, labels = self._train.columns[0][:, place].numpy(), self._train.columns[2][:, 0].numpy()
        counts = [np.bincount(codes[labels == label], minlength=self.encoder.table_sizes[place]) for label in (1, 0)]
        return counts[0].astype(float), counts[1].astype(float)

    def counted_rows(self) -> list[tuple[Rows, Tensor | None]]:
        """Rows whose codes are those of training, and how often each of them occurs: here all rows, once."""
        assert self._train is not None
        sparse, dense, _, *sequences = self._train.columns
        return [(Rows(sparse, dense, tuple(sequences)), None)]

    def mean_history(self) -> float:
        """Entries of a training row's history on average; of the longest one where there are several sequences."""
        assert self._train is not None
        sums = [
            sum(int((part != PAD).sum()) for part in sequence.split(EVALUATION_ROWS))  # may be larger than memory
            for sequence in self._train.columns[3:]
        ]
        return max(sums, default=0) / len(self._train.columns[0])

    def setup(self, stage: str | None = None) -> None:
        """Learn categories, numbers and targets and encode the rows, for training; other stages need a trained model.

        Raises
        ------
        ConfigError
            If there is no training table or no target.
        DataError
            Naming file, record and column, if the table cannot be learned from.
        """
        if stage != "fit" or self._train is not None:
            return
        if not self.target_names:
            raise ConfigError("targets must be a list with the name of at least one column, got none")
        table = self.load("train")
        if table is None:
            raise ConfigError("train is not set: a frame, or the path of a .csv or .parquet file, is needed to learn")
        try:
            self._learn(table)
        finally:
            if self._folder is not None:
                shutil.rmtree(self._folder / _COPIES, ignore_errors=True)

    def _learn(self, table: Table) -> None:
        source, val = self._source(table), self.load("val")
        val_source = None if val is None else self._source(val)
        self._check_rows_differ({"train": source, "val": val_source})
        if self.schema is not None:
            source.with_kinds(self.schema.column_kinds())
        count = source.count_rows()
        if count == 0:
            raise DataError(f"{source.name}: there is no row to learn from")
        schema, columns = self._schema_for(source)
        inferred = {column.name: column for column in columns}
        held_out = self._held_out(source, count)
        _check_columns(source, schema)
        source.with_kinds(schema.column_kinds())
        targets = Targets(self.target_names, self.kinds, self.missing)
        if self.schema is not None:  # else they were looked at with the features
            inferred = source.named(lambda: source.infer(self.target_names, self.column_types))
        self.targets = source.named(
            lambda: targets.fit_batches(source.batches(self.target_names), inferred, source.untyped)
        )
        train = _batches(source, schema, ~held_out)
        self.encoder = source.named(lambda: TableEncoder(schema, self.missing).fit_batches(train, source.untyped))
        self.encoder.columns = [column for column in columns if column.name not in self.target_names]
        parts = {"train": ~held_out, **({"val": held_out} if held_out.any() else {})}
        encoded = self._encode(source, schema, parts)
        if val_source is not None:
            val_source.with_kinds(self.encoder.column_kinds())
            encoded |= self._encode(val_source, schema, {"val": None})
        self._train, self._val = encoded["train"], encoded.get("val")

    @property
    def missing(self) -> frozenset[str]:
        """Texts that mean a missing value."""
        return missing_texts(self.missing_values)

    def _source(self, table: Table) -> TableSource:
        """A table to learn from, a text file by way of a copy."""
        if not isinstance(table, str | os.PathLike):
            return TableSource(table, missing=self.missing)
        folder = self._cache_folder() / _COPIES
        folder.mkdir(exist_ok=True)
        copied = None
        if self.schema is not None:
            rows = [name for name in (self.row_id, self.time) if name is not None]
            copied = [*(feature.name for feature in self.schema.features), *self.target_names, *rows]
        return TableSource(
            table, 8 * EVALUATION_ROWS, missing=self.missing, copy_to=Path(tempfile.mkdtemp(dir=folder)), copied=copied
        )

    def _schema_for(self, source: TableSource) -> tuple[Schema, list[Column]]:
        """Schema with this training's targets, and what was inferred; of a file, unnamed columns are ignored."""
        if self.schema is None:
            source.require(self.target_names, "targets")
            if self.time is not None:
                source.require([self.time], "time")
            source.require(self.ignored, "ignored")
            left_out = {*self.target_names, *self.ignored}
            names = [name for name in source.columns if name not in left_out]
            found = source.named(lambda: source.infer([*names, *self.target_names], self.column_types))
            inputs = [column for name, column in found.items() if name not in self.target_names]
            ids = self._ids(source, inputs)
            ignored = [*self.ignored, *ids, *(column.name for column in inputs if column.kind == "ignored")]
            inputs = [column for column in inputs if column.name not in ignored]
            return Schema.from_columns(inputs, self.target_names, ignored), list({**found, **ids}.values())
        features = {feature.name for feature in self.schema.features}
        ignored = [*self.schema.ignored, *self.ignored]
        if source.is_file:
            ignored += [name for name in source.columns if name not in features]
        ignored = [name for name in dict.fromkeys(ignored) if name not in self.target_names]
        return Schema(self.schema.features, tuple(self.target_names), tuple(ignored)), []

    def _ids(self, source: TableSource, inputs: list[Column]) -> dict[str, Column]:
        """Columns that nothing is learned from, since nearly every row has its own value.

        An item whose history is a column is none: its embedding is learned from the histories.
        """
        types = set(self.column_types or ())
        for column in inputs:
            if column.kind == "list":
                types.add(column.name.removesuffix("_history").removesuffix("_sequence"))
        return source.named(lambda: source.find_ids(inputs, types))

    def _held_out(self, source: TableSource, rows: int) -> NDArray[np.bool_]:
        """Which rows validate. Not `core.splits.hold_out`, which would choose other rows than 0.1 for a seed."""
        held_out = np.zeros(rows, dtype=bool)
        if not self.validation_fraction or self.load("val") is not None:
            return held_out
        number = max(1, round(rows * self.validation_fraction))
        if number >= rows:
            raise DataError(f"validation_fraction leaves no row of {rows} to learn from: set it to 0")
        if self.time is None:
            held_out[np.random.default_rng(self.seed).permutation(rows)[:number]] = True
            return held_out
        source.require([self.time], "time")
        column = pd.concat([part[self.time] for part in source.batches([self.time])], ignore_index=True)
        # Stable: of rows of one time, the last ones
        held_out[np.argsort(as_times(column, self.time, source.name), kind="stable")[-number:]] = True
        return held_out

    def _check_rows_differ(self, sources: dict[str, TableSource | None]) -> None:
        if self.row_id is None:
            return
        if (test := self.load("test")) is not None:
            sources["test"] = TableSource(test, missing=self.missing)
        hashes: dict[str, NDArray[np.uint64]] = {}
        for part, source in sources.items():
            if source is not None:
                source.require([self.row_id], "row_id")
                hashes[part] = source.hashes(self.row_id)
        names = list(hashes)
        for i, first in enumerate(names):
            for second in names[i + 1 :]:
                common = len(np.intersect1d(hashes[first], hashes[second]))
                if common:
                    raise DataError(f"{common} values of row_id={self.row_id!r} are both in {first} and in {second}")

    def _encode(
        self, source: TableSource, schema: Schema, chosen: Mapping[str, NDArray[np.bool_] | None]
    ) -> dict[str, EncodedTable]:
        """Encode the chosen rows of each part into arrays of their final size, in one pass over the table.

        The arrays are on disk for a file, in memory for a frame. None chooses all rows.
        """
        counts = {name: source.count_rows() if mask is None else int(mask.sum()) for name, mask in chosen.items()}
        for name, count in counts.items():
            if count == 0:
                raise DataError(f"{source.name if source.is_file else name}: there is no row")
        arrays: dict[str, list[NDArray[Any]]] = {}
        done, start = dict.fromkeys(chosen, 0), 0
        for whole in _batches(source, schema):
            for name, mask in chosen.items():
                frame = whole if mask is None else whole[mask[start : start + len(whole)]]
                rows, labels = source.named(partial(self._encode_frame, frame))
                columns = [rows.sparse.numpy(), rows.dense.numpy(), labels, *(s.numpy() for s in rows.sequences)]
                if name not in arrays:
                    make = self._make_array(name) if source.is_file else np.empty
                    arrays[name] = [make((counts[name], *column.shape[1:]), column.dtype) for column in columns]
                for array, column in zip(arrays[name], columns, strict=True):
                    array[done[name] : done[name] + len(column)] = column
                done[name] += len(frame)
            start += len(whole)
        return {name: EncodedTable(*map(torch.from_numpy, arrays[name])) for name in arrays}

    def _encode_frame(self, frame: pd.DataFrame) -> tuple[Rows, NDArray[np.float32]]:
        return self.encoder.transform(frame), self.targets.encode(frame)

    def _cache_folder(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(dir=self.cache_dir, prefix="moeapps-"))
            self._remove_folder = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder

    def _make_array(self, name: str) -> Callable[[tuple[int, ...], Any], NDArray[Any]]:
        folder, numbers = self._cache_folder(), iter(range(1000))

        def make(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
            if 0 in shape:  # an empty file cannot be mapped
                return np.empty(shape, dtype)
            return np.memmap(folder / f"{name}-{next(numbers)}", dtype=dtype, mode="w+", shape=shape)

        return make

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled batches; an incomplete last one is dropped if there is a complete one."""
        assert self._train is not None
        return make_loader(
            self._train,
            self.batch_size,
            shuffle=True,
            seed=self.seed,
            num_workers=self.num_workers,
            drop_last=len(self._train) >= self.batch_size,
            collate_fn=_as_rows,
        )

    def val_dataloader(self) -> Any:
        """Batches in order."""
        if self._val is not None:
            return make_loader(self._val, max(self.batch_size, EVALUATION_ROWS), collate_fn=_as_rows)
        return self._stream("val", labeled=True) if self.load("val") is not None else []

    @property
    def has_test_data(self) -> bool:
        """Whether there are test rows."""
        return self.load("test") is not None

    def test_dataloader(self) -> DataLoader:
        """Batches in order, read and encoded as they are needed."""
        return self._stream("test", labeled=True)

    def predict_dataloader(self) -> DataLoader:
        """Batches in order, read and encoded as they are needed."""
        return self._stream("predict", labeled=False)

    def _stream(self, part: str, labeled: bool) -> DataLoader:
        table = self.load(part)
        if table is None:
            raise ConfigError(f"{part} is not set: a frame, or the path of a .csv or .parquet file")
        module: Any = self.trainer.lightning_module if self.trainer is not None else self
        if not hasattr(module, "encoder"):
            raise ConfigError(
                "the table's categories and numbers are not known: give the checkpoint of a trained model with "
                "--ckpt_path"
            )
        return DataLoader(
            RowStream(table, module.encoder, module.targets if labeled else None, self.keep), batch_size=None
        )

    def teardown(self, stage: str) -> None:
        """Remove the encoded rows of files."""
        if self._folder is not None:
            self._train = self._val = None
            self._remove_folder()
            self._folder = None


def _check_columns(source: TableSource, schema: Schema) -> None:
    names = pd.DataFrame(columns=pd.Index(source.columns))
    source.named(lambda: schema.check_columns(names, targets=True))


def _batches(source: TableSource, schema: Schema, chosen: NDArray[np.bool_] | None = None) -> Iterator[pd.DataFrame]:
    """The chosen rows, with all columns of a frame, or those of a file that the schema names."""
    _check_columns(source, schema)
    needed = [*(feature.name for feature in schema.features), *schema.targets]
    start = 0
    for frame in source.batches(needed if source.is_file else None):
        stop = start + len(frame)
        yield frame if chosen is None else frame[chosen[start:stop]]
        start = stop


def _as_rows(batch: Any) -> tuple[Rows, Tensor]:
    sparse, dense, labels, *sequences = batch
    return Rows(sparse, dense, tuple(sequences)), labels
