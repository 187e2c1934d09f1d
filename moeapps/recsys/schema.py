"""What the columns of a recommendation table are: categories, numbers, and sequences of behaviour."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import pandas as pd

from moeapps.core.checks import check_sizes
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.tabledata.files import ColumnKind

__all__ = ["Dense", "Feature", "Schema", "Sequence", "Sparse", "as_schema"]


@dataclass(frozen=True)
class Sparse:
    """A column of categories (user, item, city).

    Args:
        name: Column.
        hash: Number of buckets for an open vocabulary: nothing is learned, values share buckets by their hash. None
            keeps every category that training has.
    """

    name: str
    hash: int | None = None

    def __post_init__(self) -> None:
        if self.hash is not None:
            check_sizes(hash=self.hash)


@dataclass(frozen=True)
class Dense:
    """A column of numbers; they are standardised, and a missing one is the mean with a flag."""

    name: str


@dataclass(frozen=True)
class Sequence:
    """A column of lists, oldest first: what a user has looked at.

    Args:
        name: Column.
        shares: Sparse column whose categories and embedding the entries share (items of the history and the candidate).
        max_len: So many of the newest entries are kept.
        hash: As in :class:`Sparse`, where nothing is shared.
    """

    name: str
    shares: str | None = None
    max_len: int = 50
    hash: int | None = None

    def __post_init__(self) -> None:
        check_sizes(max_len=self.max_len)
        if self.hash is not None:
            check_sizes(hash=self.hash)
            if self.shares is not None:
                raise ConfigError(f"Sequence {self.name!r}: hash and shares exclude each other")


Feature = Sparse | Dense | Sequence
_KINDS: dict[str, type[Sparse] | type[Dense] | type[Sequence]] = {
    "sparse": Sparse,
    "dense": Dense,
    "sequence": Sequence,
}


@dataclass(frozen=True)
class Schema:
    """The features of a table, its targets, and columns that are there for other reasons.

    Args:
        features: The features; names must differ.
        targets: Columns to be predicted.
        ignored: Columns that may be in a frame and are not looked at (ids for grouping, weights, time stamps).

    Raises:
        ConfigError: If there is no feature, a name stands twice, or a sequence shares what is not a sparse feature.
    """

    features: tuple[Feature, ...]
    targets: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("features", "targets", "ignored"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.features:
            raise ConfigError("features is empty, expected at least one of Sparse, Dense, Sequence")
        names = [*(feature.name for feature in self.features), *self.targets, *self.ignored]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"column {name!r} stands twice in the schema")
        sparse = {feature.name for feature in self.sparse}
        for feature in self.sequences:
            if feature.shares is not None and feature.shares not in sparse:
                raise ConfigError(
                    f"Sequence {feature.name!r} shares {feature.shares!r}, which is not a Sparse feature; "
                    f"known are {', '.join(sorted(sparse)) or 'none'}"
                )

    @property
    def sparse(self) -> list[Sparse]:
        """Categories."""
        return [feature for feature in self.features if isinstance(feature, Sparse)]

    @property
    def dense(self) -> list[Dense]:
        """Numbers."""
        return [feature for feature in self.features if isinstance(feature, Dense)]

    @property
    def sequences(self) -> list[Sequence]:
        """Sequences."""
        return [feature for feature in self.features if isinstance(feature, Sequence)]

    @classmethod
    def infer(cls, frame: pd.DataFrame, targets: Iterable[str] = (), ignored: Iterable[str] = ()) -> Self:
        """Guess a schema from a frame.

        Lists and arrays are sequences; text, bool and category columns are sparse, as are whole numbers whose column is
        called ``id``, ``..._id`` or ``...Id``; other numbers are dense. A sequence called ``<sparse>_history`` or
        ``<sparse>_sequence`` shares that column's categories.

        Args:
            frame: Rows.
            targets: Columns to be predicted.
            ignored: Columns not to look at.

        Raises:
            DataError: If there are no rows, or a target or ignored column is not there.
        """
        targets, ignored = tuple(targets), tuple(ignored)
        if not isinstance(frame, pd.DataFrame) or len(frame) == 0:
            raise DataError("frame must be a pandas DataFrame with at least one row")
        for kind, names in (("targets", targets), ("ignored", ignored)):
            for name in names:
                if name not in frame.columns:
                    raise DataError(f"{kind}: the frame has no column {name!r}; it has {_names(frame.columns)}")
        features: list[Feature] = []
        columns = [name for name in frame.columns if name not in (*targets, *ignored)]
        kinds = {name: _kind(str(name), frame[name]) for name in columns}
        for name in columns:
            if kinds[name] == "sequence":
                base = str(name).removesuffix("_history").removesuffix("_sequence")
                features.append(Sequence(str(name), base if kinds.get(base) == "sparse" else None))
            else:
                features.append(Sparse(str(name)) if kinds[name] == "sparse" else Dense(str(name)))
        return cls(tuple(features), targets, ignored)

    def check_columns(self, frame: pd.DataFrame, targets: bool = False) -> None:
        """Refuse a frame that lacks a column or has one that nobody knows; the order does not matter.

        Raises:
            DataError: Naming the columns.
        """
        if not isinstance(frame, pd.DataFrame):
            raise DataError(f"frame must be a pandas DataFrame, got {type(frame).__name__}")
        wanted = [feature.name for feature in self.features] + (list(self.targets) if targets else [])
        missing = [name for name in wanted if name not in frame.columns]
        if missing:
            raise DataError(f"the frame lacks the column{'s' * (len(missing) > 1)} {_names(missing)}")
        known = {*wanted, *self.targets, *self.ignored}
        extra = [name for name in frame.columns if name not in known]
        if extra:
            raise DataError(
                f"the frame has the unknown column{'s' * (len(extra) > 1)} {_names(extra)}: drop them, or name them in "
                "ignored="
            )

    def column_kinds(self) -> dict[str, ColumnKind]:
        """What the columns of a CSV file hold, as far as a schema says so."""
        kinds: dict[str, ColumnKind] = {dense.name: "number" for dense in self.dense}
        return {**kinds, **{sequence.name: "list" for sequence in self.sequences}}

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        names = {kind: name for name, kind in _KINDS.items()}
        return {
            "features": [{"kind": names[type(feature)], **asdict(feature)} for feature in self.features],
            "targets": list(self.targets),
            "ignored": list(self.ignored),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Undo :meth:`to_json`."""
        features = []
        for entry in values["features"]:
            arguments = dict(entry)
            features.append(_KINDS[arguments.pop("kind")](**arguments))
        return cls(tuple(features), tuple(values["targets"]), tuple(values["ignored"]))


def as_schema(given: Any) -> Schema | None:
    """A schema as it is, or from a list of features as YAML has them: ``{kind: sparse, name: city}``.

    Raises:
        ConfigError: If it is neither, or a feature has no such kind or argument.
    """
    if given is None or isinstance(given, Schema):
        return given
    if not isinstance(given, list | tuple):
        raise ConfigError(f"schema must be a Schema, a list of features or None, got {type(given).__name__}")
    features: list[Feature] = []
    for entry in given:
        if isinstance(entry, Sparse | Dense | Sequence):
            features.append(entry)
            continue
        arguments = dict(entry) if isinstance(entry, dict) else {}
        kind = arguments.pop("kind", None)
        if kind not in _KINDS:
            raise ConfigError(f"schema: {entry!r} must have a kind, one of {', '.join(_KINDS)}, and a name")
        try:
            features.append(_KINDS[kind](**arguments))
        except TypeError as error:
            raise ConfigError(f"schema: {entry!r}: {error}") from None
    return Schema(tuple(features))


def _kind(name: str, column: pd.Series) -> str:
    if column.dtype == object:
        known = column[column.map(lambda value: isinstance(value, list | tuple | np.ndarray))]
        if len(known):
            return "sequence"
    if pd.api.types.is_bool_dtype(column) or not pd.api.types.is_numeric_dtype(column):
        return "sparse"
    whole = pd.api.types.is_integer_dtype(column)
    return "sparse" if whole and (name == "id" or name.endswith(("_id", "Id"))) else "dense"


def _names(names: Iterable[Any]) -> str:
    listed = [repr(str(name)) for name in names]
    return ", ".join(listed[:10]) + (f" and {len(listed) - 10} more" if len(listed) > 10 else "")
