"""From a frame to codes and numbers, the same way in training and prediction."""

# Shapes: N rows, S sparse columns, D dense columns, L entries of a sequence

import warnings
import zlib
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from moeapps.core.errors import DataError, FileFormatError
from moeapps.core.saved_arguments import check_fields
from moeapps.core.tabledata.cells import MISSING_VALUES, category_text
from moeapps.core.tabledata.frames import is_arrow_type
from moeapps.core.tabledata.kinds import Column, ColumnKind, columns_frame
from moeapps.core.tabledata.numbers import list_column, to_days, to_numbers
from moeapps.core.tabledata.profile import ColumnProfile
from moeapps.core.tabledata.vocabulary import MISSING as NO_VALUE
from moeapps.core.tabledata.vocabulary import (
    Vocabulary,
    count_values,
    distinct_cells,
    distinct_values,
    settle_values,
    warn_of_imputed,
    warn_of_unseen,
)
from moeapps.recsys.lists import flatten_arrow
from moeapps.recsys.moments import column_moments, merge_moments
from moeapps.recsys.profiles import category_profiles, number_profiles, unknown_profiles
from moeapps.recsys.schema import DenseFeature, Schema, SequenceFeature

__all__ = ["FIRST", "MISSING", "PAD", "UNKNOWN", "Rows", "TableEncoder"]

PAD, UNKNOWN, MISSING, FIRST = range(4)
"""Codes: padding of a sequence, a category not seen in training, a missing value, the first category."""

_LONGEST = 100_000
"""Largest ``max_len`` that is taken from a file."""

CLIP = 10.0
"""Number of standard deviations to which standardised numbers are clipped, so that no outlier dominates a batch."""


class Rows(NamedTuple):
    """Encoded rows, as tensors.

    Parameters
    ----------
    sparse : Tensor of shape (N, S)
        Codes, int32.
    dense : Tensor of shape (N, 2 D)
        Standardised numbers, then flags of the missing ones.
    sequences : tuple of Tensor of shape (N, L)
        Codes of each sequence, newest entry last, padded in front.
    """

    sparse: Tensor
    dense: Tensor
    sequences: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        """Number of rows."""
        return self.sparse.shape[0]

    def at(self, index: Any) -> "Rows":
        """The rows of an index, slice or mask."""
        return Rows(self.sparse[index], self.dense[index], tuple(part[index] for part in self.sequences))


class TableEncoder:
    """Learns the categories and the spread of the numbers.

    A category that training has not seen has the code UNKNOWN, a missing one the code MISSING. Of a long sequence the
    newest entries are kept; a missing sequence is empty. In a column that had no missing value in training, a missing
    value becomes the mean or the most frequent category, with a warning, since nothing was learned about it.

    Parameters
    ----------
    schema : Schema
        The features.
    missing_values : iterable of str, optional
        Texts that mean a missing value; those of ``pandas.read_csv`` by default.

    Attributes
    ----------
    values : dict
        Categories by the name of the column that owns them; value i has the code i + FIRST.
    mean : list of float
        Mean of each dense column.
    scale : list of float
        Its standard deviation, 1 for a constant.
    columns : list of Column
        What each column is, and why, where that was inferred.
    fill : dict
        Code of the most frequent category, by sparse column that had no missing value.
    complete : list of str
        Dense columns that had no missing value.
    new_rates : dict
        By sparse column, the part of rows to come that is expected to have an unseen category.
    profiles : list of ColumnProfile
        How sparse and dense columns were distributed; none in files of older versions.
    """

    missing_values: list[str]
    values: dict[str, list[Any]]
    mean: list[float]
    scale: list[float]
    columns: list[Column]
    fill: dict[str, int]
    complete: list[str]
    new_rates: dict[str, float]
    profiles: list[ColumnProfile]

    def __init__(self, schema: Schema, missing_values: Iterable[str] | None = None) -> None:
        self.schema = schema
        self.missing_values = sorted(MISSING_VALUES if missing_values is None else missing_values)
        self.values = {}
        self.mean = []
        self.scale = []
        self.columns = []
        self.fill = {}
        self.complete = []
        self.new_rates = {}
        self.profiles = []
        self._vocabularies: dict[str, Vocabulary] = {}  # made when first needed
        self._warned: set[str] = set()

    @property
    def missing(self) -> frozenset[str]:
        """Texts that mean a missing value."""
        return frozenset(self.missing_values)

    def fit(self, frame: pd.DataFrame) -> Self:
        """Learn from rows.

        Raises
        ------
        DataError
            If a column is missing or unknown or holds values of another kind, or there are no rows.
        """
        return self.fit_batches([frame])

    def fit_batches(self, frames: Iterable[pd.DataFrame], untyped: bool = False) -> Self:
        """Learn from rows that come in batches, as those of a file do; the same as from all of them at once.

        1. Collect each table's categories in order of appearance; a sequence adds to the table that it shares.
        2. Merge the batches' means and sums of squares.
        3. A column that is constant up to rounding gets the scale 1.

        Parameters
        ----------
        frames : iterable of DataFrame
            Batches.
        untyped : bool, default=False
            Whether the source has only text, as a CSV file.

        Raises
        ------
        DataError
            As in :meth:`fit`.
        """
        seen: dict[str, Counter[Any]] = {name: Counter() for name in self.table_names if self._buckets(name) is None}
        in_sequence: dict[str, dict[Any, None]] = {sequence.name: {} for sequence in self.schema.sequences}
        empty: set[str] = set()
        count = mean = squares = np.zeros(len(self.schema.dense))
        spread: list[ColumnProfile] | None = None
        rows = 0
        for frame in frames:
            self.schema.check_columns(frame)
            rows += len(frame)
            for sparse in self.schema.sparse:
                if sparse.hash is None and self._count(frame[sparse.name], sparse.name, seen[sparse.name]):
                    empty.add(sparse.name)
            for sequence in self.schema.sequences:
                owner = self._owner(sequence)
                if owner in seen:
                    flat, _ = self._flatten(frame[sequence.name], sequence)
                    entries = distinct_values(flat, self.missing, sequence.name)
                    in_sequence[sequence.name].update(dict.fromkeys(entries))
                    for value in entries:
                        seen[owner].setdefault(value, 0)
            numbers = self._numbers(frame)
            empty.update(
                f.name
                for f, gone in zip(self.schema.dense, np.asarray(np.isnan(numbers).any(axis=0)), strict=True)
                if gone
            )
            spread = number_profiles(self.schema, numbers, spread)
            count, mean, squares = merge_moments((count, mean, squares), column_moments(numbers))
        if rows == 0:
            raise DataError("the frame has no rows")
        self._check_shared(seen, in_sequence)
        self.values = {name: settle_values(list(counts), untyped, name) for name, counts in seen.items()}
        self._vocabularies = {}
        self._learn_missing(seen, empty)
        self.profiles = [*category_profiles(seen, self.values, self.schema, rows), *(spread or [])]
        self.mean = mean.tolist()
        # Rounding leaves a constant column a tiny spread, which must not blow up its noise
        with np.errstate(all="ignore"):
            scale = np.sqrt(squares / np.maximum(count, 1))
        self.scale = np.where(scale > 1e-12 * np.maximum(np.abs(mean), 1e-300), scale, 1.0).tolist()
        return self

    def _count(self, column: pd.Series, name: str, counts: Counter[Any]) -> bool:
        """Add the categories of a column; whether any cell is missing."""
        found, any_missing = count_values(column, self.missing, name)
        for value, number in found.items():
            counts[value] += number
        return any_missing

    def _learn_missing(self, seen: dict[str, Counter[Any]], empty: set[str]) -> None:
        self.complete = [feature.name for feature in self.schema.dense if feature.name not in empty]
        self.fill, self.new_rates = {}, {}
        for feature in self.schema.sparse:
            counts = seen.get(feature.name, Counter())
            total = sum(counts.values())
            if not total:
                continue
            self.new_rates[feature.name] = sum(number == 1 for number in counts.values()) / total
            most = self._vocabulary(feature.name).code(counts.most_common(1)[0][0])
            if feature.name not in empty and most >= 0:
                self.fill[feature.name] = most

    def profile(self) -> list[ColumnProfile]:
        """What sparse and dense columns were like in training; of an older file, what it says of them."""
        return self.profiles or unknown_profiles(self.schema, self.values)

    def _check_shared(self, seen: dict[str, Counter[Any]], in_sequence: dict[str, dict[Any, None]]) -> None:
        """Warn of a history that has nothing in common with the candidates whose categories it is said to share."""
        for sequence in self.schema.sequences:
            entries = in_sequence[sequence.name]
            if sequence.shares is None or not entries or sequence.shares not in seen:
                continue
            candidates = [value for value, number in seen[sequence.shares].items() if number]
            own = Vocabulary(candidates, self.missing, sequence.shares)
            if all(own.code(value) < 0 for value in entries):
                warnings.warn(
                    f"no entry of {sequence.name!r}, such as {next(iter(entries))!r}, is a value of "
                    f"{sequence.shares!r}, such as {next(iter(seen[sequence.shares]))!r}: the history tells nothing "
                    "about the candidates",
                    UserWarning,
                    stacklevel=2,
                )

    def transform(self, frame: pd.DataFrame) -> Rows:
        """Encode rows; the order of the columns does not matter.

        Raises
        ------
        DataError
            If a column is missing or unknown, or a cell is not what its column was in training, naming row and cell.
        """
        self.schema.check_columns(frame)
        n = len(frame)
        filled: list[str] = []
        sparse = np.zeros((n, len(self.schema.sparse)), dtype=np.int32)
        for s, feature in enumerate(self.schema.sparse):
            sparse[:, s] = self._sparse(feature.name, frame[feature.name], filled)
        numbers = self._numbers(frame)
        missing = np.isnan(numbers)
        # A missing number becomes the mean, and its flag says so
        scaled = np.where(missing, 0.0, (numbers - np.array(self.mean)) / np.array(self.scale))
        for d, dense in enumerate(self.schema.dense):
            if dense.name in self.complete and missing[:, d].any():
                filled.append(f"{int(missing[:, d].sum())} of {dense.name!r} by {self.mean[d]:.6g}")
                missing[:, d] = False  # nothing was learned about its flag
        self._tell_filled(filled)
        dense_part = np.concatenate([np.clip(scaled, -CLIP, CLIP), missing], axis=1)
        return Rows(
            torch.from_numpy(sparse),
            torch.from_numpy(dense_part.astype(np.float32)),
            tuple(torch.from_numpy(self._sequence(frame[s.name], s)) for s in self.schema.sequences),
        )

    def _sparse(self, name: str, column: pd.Series, filled: list[str]) -> NDArray[np.int32]:
        if self._buckets(name) is not None:
            return self._hashed(name, column)
        vocabulary = self._vocabulary(name)
        codes = vocabulary.codes(column)
        watched = name in self.new_rates and name not in self._warned
        if watched and warn_of_unseen(vocabulary, column, codes, self.new_rates[name], stacklevel=4):
            self._warned.add(name)
        gone = codes == NO_VALUE
        fill = self.fill.get(name)
        if fill is not None and gone.any():
            filled.append(f"{int(gone.sum())} of {name!r} by {vocabulary.values[fill]!r}")
        replaced = MISSING if fill is None else fill + FIRST
        return np.where(gone, replaced, np.where(codes < 0, UNKNOWN, codes + FIRST)).astype(np.int32)

    def _tell_filled(self, filled: list[str]) -> None:
        if filled and "filled" not in self._warned:
            self._warned.add("filled")
            warn_of_imputed(filled, "mean", stacklevel=4)

    def _vocabulary(self, owner: str) -> Vocabulary:
        if owner not in self._vocabularies:
            self._vocabularies[owner] = Vocabulary(self.values[owner], self.missing, owner)
        return self._vocabularies[owner]

    @property
    def table_sizes(self) -> list[int]:
        """Number of codes of each sparse column's table, then of the tables that sequences have to themselves."""
        return [FIRST + self._number(name) for name in self.table_names]

    @property
    def table_names(self) -> list[str]:
        """Columns that own a table."""
        own = [sequence.name for sequence in self.schema.sequences if sequence.shares is None]
        return [*(feature.name for feature in self.schema.sparse), *own]

    @property
    def sequence_tables(self) -> list[int]:
        """For each sequence, the number of the table of its entries."""
        return [self.table_names.index(self._owner(sequence)) for sequence in self.schema.sequences]

    def column_kinds(self) -> dict[str, ColumnKind]:
        """What the columns are."""
        return self.schema.column_kinds()

    def summary(self) -> pd.DataFrame:
        """What each column is, why, how many categories it has and how many cells were missing in training."""
        known = {column.name: column for column in self.columns}
        columns = []
        for name, kind in self.column_kinds().items():
            column = known.get(name, Column(name, kind, "the schema says so"))
            if kind == "category" and not column.is_category:  # what the model does counts
                column = replace(column, kind="category", why=f"{column.why}, and the name is that of an id")
            columns.append(column)
        columns += [column for column in self.columns if column.kind == "id" and column.name in self.schema.ignored]
        return columns_frame(columns, {name: len(values) for name, values in self.values.items()})

    def state(self) -> dict[str, Any]:
        """The learned values as JSON values."""
        return {
            "schema": self.schema.to_json(),
            "values": self.values,
            "mean": self.mean,
            "scale": self.scale,
            "missing_values": self.missing_values,
            "columns": [column.to_json() for column in self.columns],
            "fill": self.fill,
            "complete": self.complete,
            "new_rates": self.new_rates,
            "profiles": [profile.to_json() for profile in self.profiles],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Undo :meth:`state`; what 0.1 did not save is as 0.1 had it.

        Raises
        ------
        FileFormatError
            If the state contradicts itself.
        """
        fields = {
            "missing_values": sorted(MISSING_VALUES),
            "fill": {},
            "complete": [],
            "new_rates": {},
            **state,
            "columns": [Column.from_json(column) for column in state.get("columns", [])],
            "profiles": [
                ColumnProfile.from_json(entry, state["values"].get(entry.get("name"), ()))
                for entry in state.get("profiles", [])
            ],
        }
        check_fields(cls, fields)
        encoder = cls(Schema.from_json(state["schema"]))
        vars(encoder).update({name: fields[name] for name in cls.__annotations__})
        encoder._check()
        return encoder

    def _check(self) -> None:
        """Refuse what :meth:`fit` cannot have learned."""
        learned = {name for name in self.table_names if self._buckets(name) is None}
        good = (
            set(self.values) == learned
            and len(self.mean) == len(self.scale) == len(self.schema.dense)
            and all(scale > 0 for scale in self.scale)
            and all(isinstance(value, str | int | float) for values in self.values.values() for value in values)
            and all(len(set(values)) == len(values) for values in self.values.values())
            and set(self.complete) <= {feature.name for feature in self.schema.dense}
            and all(name in learned and 0 <= code < len(self.values[name]) for name, code in self.fill.items())
        )
        if not good:
            raise FileFormatError("its columns contradict each other")
        longest = max((sequence.max_len for sequence in self.schema.sequences), default=0)
        if longest > _LONGEST:  # rows are padded to it, and no weight depends on it
            raise FileFormatError(f"max_len={longest} of its sequences is more than {_LONGEST}")

    def part(self, names: Collection[str]) -> "TableEncoder":
        """An encoder of some of the features, with the same codes and numbers.

        A sequence that shares the categories of another column needs that column, too.

        Parameters
        ----------
        names : collection of str
            The features.
        """
        features = [feature for feature in self.schema.features if feature.name in names]
        part = type(self)(Schema(tuple(features)), self.missing_values)
        dense = [d for d, feature in enumerate(self.schema.dense) if feature.name in names]
        part.values = {name: values for name, values in self.values.items() if name in part.table_names}
        part.mean, part.scale = [self.mean[d] for d in dense], [self.scale[d] for d in dense]
        part.complete = [name for name in self.complete if name in names]
        part.fill = {name: code for name, code in self.fill.items() if name in names}
        part.new_rates = {name: rate for name, rate in self.new_rates.items() if name in names}
        return part

    def encode_sequence(self, column: pd.Series, name: str) -> Tensor:
        """Codes ``(N, L)`` of a column of lists, as the sequence of that name has them."""
        return torch.from_numpy(self._sequence(column, next(s for s in self.schema.sequences if s.name == name)))

    def same_as(self, other: "TableEncoder") -> bool:
        """Whether another encoder gives the same codes and numbers; a category is the same as text and as number."""
        texts = [{name: list(map(category_text, v)) for name, v in each.values.items()} for each in (self, other)]
        mine, its = ((each.schema.features, each.mean, each.scale) for each in (self, other))
        return texts[0] == texts[1] and mine == its

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickle, also one of 0.1."""
        if "missing_values" not in state:
            state = vars(type(self).from_state({**state, "schema": state["schema"].to_json()}))
        vars(self).update({"profiles": [], **state})

    def _owner(self, sequence: SequenceFeature) -> str:
        return sequence.name if sequence.shares is None else sequence.shares

    def _buckets(self, owner: str) -> int | None:
        return next(f.hash for f in self.schema.features if f.name == owner and not isinstance(f, DenseFeature))

    def _number(self, owner: str) -> int:
        buckets = self._buckets(owner)
        return len(self.values[owner]) if buckets is None else buckets

    def _codes(self, owner: str, column: pd.Series) -> NDArray[np.int32]:
        if self._buckets(owner) is not None:
            return self._hashed(owner, column)
        codes = self._vocabulary(owner).codes(column)
        return np.where(codes == NO_VALUE, MISSING, np.where(codes < 0, UNKNOWN, codes + FIRST)).astype(np.int32)

    def _hashed(self, owner: str, column: pd.Series) -> NDArray[np.int32]:
        buckets = self._buckets(owner)
        assert buckets is not None
        index, values = distinct_cells(column, str(column.name))
        # Not Python's hash, which differs from process to process
        codes = [
            MISSING if value in self.missing else FIRST + zlib.crc32(category_text(value).encode()) % buckets
            for value in values
        ]
        return np.array([*codes, MISSING], dtype=np.int32)[index]  # a missing value has the index -1

    def _sequence(self, column: pd.Series, sequence: SequenceFeature) -> NDArray[np.int32]:
        flat, lengths = self._flatten(column, sequence)
        codes = self._codes(self._owner(sequence), flat)
        out = np.full((len(column), sequence.max_len), PAD, dtype=np.int32)
        row = np.repeat(np.arange(len(column)), lengths)
        position = np.arange(len(codes)) - np.repeat(np.cumsum(lengths) - lengths, lengths)  # within its sequence
        out[row, sequence.max_len - np.repeat(lengths, lengths) + position] = codes
        return out

    def _flatten(self, column: pd.Series, sequence: SequenceFeature) -> tuple[pd.Series, NDArray[np.int64]]:
        """The newest entries of all rows one after the other, and the number that each row has."""
        if is_arrow_type(column.dtype, pa.types.is_list, pa.types.is_large_list):
            return flatten_arrow(column, sequence)
        kept: list[Any] = []
        lengths = np.zeros(len(column), dtype=np.int64)
        for row, value in enumerate(list_column(column, self.missing, sequence.name)):
            if value is not None:
                newest = value[-sequence.max_len :]
                kept += newest
                lengths[row] = len(newest)
        return pd.Series(kept, dtype=object, name=sequence.name), lengths

    def _numbers(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        numbers = np.zeros((len(frame), len(self.schema.dense)))
        for d, feature in enumerate(self.schema.dense):
            read = to_days if feature.time else to_numbers
            numbers[:, d] = read(frame[feature.name], self.missing, feature.name)
            if np.isinf(numbers[:, d]).any():
                row = frame.index[int(np.isinf(numbers[:, d]).argmax())]
                raise DataError(f"column {feature.name!r} is infinite at row {row}: use a missing value, or clip")
        return numbers
