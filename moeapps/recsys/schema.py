"""What the columns of a recommendation table are: categories, numbers, and sequences of behaviour."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import pandas as pd

from moeapps.core.checks import check_sizes
from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.core.saved_arguments import fits
from moeapps.core.tabledata.cells import missing_texts
from moeapps.core.tabledata.kinds import Column, ColumnKind, is_named_id
from moeapps.core.tabledata.source import TableSource, listed, require_columns
from moeapps.moved import warn_deprecated

__all__ = ["DenseFeature", "Feature", "Schema", "SequenceFeature", "SparseFeature", "as_schema"]


@dataclass(frozen=True)
class SparseFeature:
    """A column of categories (user, item, city).

    Parameters
    ----------
    name : str
        Column.
    hash : int, optional
        Number of buckets for an open vocabulary: nothing is learned, and categories share buckets by their hash. By
        default every category of the training rows is kept.
    """

    name: str
    hash: int | None = None

    def __post_init__(self) -> None:
        if self.hash is not None:
            check_sizes(hash=self.hash)


@dataclass(frozen=True)
class DenseFeature:
    """A column of numbers. They are standardised; a missing one becomes the mean, with a flag.

    Parameters
    ----------
    name : str
        Column.
    time : bool, default=False
        Whether the cells are dates or times, which are read as days since 1970-01-01 UTC.
    """

    name: str
    time: bool = False


@dataclass(frozen=True)
class SequenceFeature:
    """A column of lists, oldest entry first: what a user has looked at.

    Parameters
    ----------
    name : str
        Column.
    shares : str, optional
        Sparse column whose categories and embedding the entries share, as the items of a history share those of the
        candidate. By default the sequence has its own.
    max_len : int, default=50
        Number of newest entries that are kept, at least 1.
    hash : int, optional
        As in :class:`SparseFeature`, for a sequence that shares nothing.
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
                raise ConfigError(f"SequenceFeature {self.name!r}: hash and shares exclude each other")


Feature = SparseFeature | DenseFeature | SequenceFeature

FEATURE_TYPES: dict[str, type[Feature]] = {
    "sparse": SparseFeature,
    "dense": DenseFeature,
    "sequence": SequenceFeature,
}
"""Features by the ``kind`` that they have in YAML files and saved models."""

OLD_NAMES: dict[str, type[Feature]] = {"Sparse": SparseFeature, "Dense": DenseFeature, "Sequence": SequenceFeature}
"""Names of the features in 0.1; ``Sequence`` was also that of ``collections.abc``. To be removed in 0.4."""


def __getattr__(name: str) -> Any:
    if name not in OLD_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warn_deprecated(f"{name} is now called {OLD_NAMES[name].__name__}")
    return OLD_NAMES[name]


@dataclass(frozen=True)
class Schema:
    """The features of a table, its targets, and columns that are neither.

    Parameters
    ----------
    features : sequence of Feature
        At least one; all names differ.
    targets : sequence of str, default=()
        Columns to be predicted.
    ignored : sequence of str, default=()
        Columns that a frame may have and that are not used (ids for grouping, weights, time stamps).

    Raises
    ------
    ConfigError
        If there is no feature, a column is named twice, or a sequence shares a column that is not sparse.
    """

    features: tuple[Feature, ...]
    targets: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("features", "targets", "ignored"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.features:
            raise ConfigError("features is empty: expected at least one SparseFeature, DenseFeature or SequenceFeature")
        names = [*(feature.name for feature in self.features), *self.targets, *self.ignored]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"the schema names the column {name!r} twice")
        sparse = {feature.name for feature in self.sparse}
        for feature in self.sequences:
            if feature.shares is not None and feature.shares not in sparse:
                raise ConfigError(
                    f"SequenceFeature {feature.name!r} shares {feature.shares!r}, which is not a SparseFeature; "
                    f"known are {', '.join(sorted(sparse)) or 'none'}"
                )

    @property
    def sparse(self) -> list[SparseFeature]:
        """Categories."""
        return [feature for feature in self.features if isinstance(feature, SparseFeature)]

    @property
    def sparse_names(self) -> list[str]:
        """Columns of the categories, in the order of their embedding tables."""
        return [feature.name for feature in self.sparse]

    @property
    def dense(self) -> list[DenseFeature]:
        """Numbers."""
        return [feature for feature in self.features if isinstance(feature, DenseFeature)]

    @property
    def sequences(self) -> list[SequenceFeature]:
        """Sequences."""
        return [feature for feature in self.features if isinstance(feature, SequenceFeature)]

    @classmethod
    def infer(
        cls,
        frame: Any,
        targets: Iterable[str] = (),
        ignored: Iterable[str] = (),
        column_types: Mapping[str, ColumnKind] | None = None,
        missing_values: str | Iterable[str] = "auto",
    ) -> Self:
        """Infer a schema from all rows of a frame.

        Lists and arrays are sequences; text, bool and category columns are sparse, as are whole numbers whose column is
        called ``id``, ``..._id`` or ``...Id`` or that a float cannot hold exactly; other numbers and times are dense. A
        sequence called ``<sparse>_history`` or ``<sparse>_sequence`` shares that column's categories.

        Parameters
        ----------
        frame : DataFrame
            At least one row.
        targets : iterable of str, default=()
            Columns to be predicted.
        ignored : iterable of str, default=()
            Columns that are not used.
        column_types : dict, optional
            What columns are, where it shall not be inferred: ``{"zip": "category"}``; one of "number", "category",
            "id", "time", "list".
        missing_values : "auto" or iterable of str, default="auto"
            Texts that mean a missing value; "auto" takes those of ``pandas.read_csv``.

        Returns
        -------
        Schema
            Features in the order of the columns.

        Raises
        ------
        DataError
            If there are no rows, or the frame lacks a target or ignored column.
        """
        targets, ignored = tuple(targets), tuple(ignored)
        source = TableSource(frame, missing=missing_texts(missing_values))
        if source.count_rows() == 0:
            raise DataError("frame must be a pandas DataFrame with at least one row")
        for argument, names in (("targets", targets), ("ignored", ignored)):
            require_columns(names, source.columns, source.name, argument)
        features = [name for name in source.columns if name not in (*targets, *ignored)]
        return cls.from_columns(source.infer(features, column_types).values(), targets, ignored)

    @classmethod
    def from_columns(cls, columns: Iterable[Column], targets: Iterable[str] = (), ignored: Iterable[str] = ()) -> Self:
        """The schema of columns of which it is known what they are."""
        features: list[Feature] = []
        columns = list(columns)
        kinds = {column.name: _kind(column) for column in columns}
        for column in columns:
            name = column.name
            if kinds[name] == "sequence":
                base = name.removesuffix("_history").removesuffix("_sequence")
                features.append(SequenceFeature(name, base if kinds.get(base) == "sparse" else None))
            elif kinds[name] == "dense":
                features.append(DenseFeature(name, time=column.kind == "time"))
            else:
                features.append(SparseFeature(name))
        return cls(tuple(features), tuple(targets), tuple(ignored))

    def check_columns(self, frame: pd.DataFrame, targets: bool = False) -> None:
        """Check that a frame has all columns and no unknown one, in any order.

        Parameters
        ----------
        frame : DataFrame
            Rows; only its columns are read.
        targets : bool, default=False
            Whether the targets have to be there, too.

        Raises
        ------
        DataError
            Naming the columns that are missing or unknown.
        """
        if not isinstance(frame, pd.DataFrame):
            raise DataError(f"frame must be a pandas DataFrame, got {type(frame).__name__}")
        needed = [feature.name for feature in self.features] + (list(self.targets) if targets else [])
        require_columns(needed, frame.columns, "the frame")
        known = {*needed, *self.targets, *self.ignored}
        unknown = [name for name in frame.columns if name not in known]
        if unknown:
            raise DataError(
                f"the frame has the unknown column{'s' * (len(unknown) > 1)} {listed(unknown)}: drop them, or name "
                "them in ignored="
            )

    def column_kinds(self) -> dict[str, ColumnKind]:
        """What the columns are."""
        kinds: dict[str, ColumnKind] = {}
        for feature in self.features:
            if isinstance(feature, SequenceFeature):
                kinds[feature.name] = "list"
            elif isinstance(feature, DenseFeature):
                kinds[feature.name] = "time" if feature.time else "number"
            else:
                kinds[feature.name] = "category"
        return kinds

    def to_json(self) -> dict[str, Any]:
        """The schema as JSON values."""
        kinds = {feature: kind for kind, feature in FEATURE_TYPES.items()}
        return {
            "features": [{"kind": kinds[type(feature)], **asdict(feature)} for feature in self.features],
            "targets": list(self.targets),
            "ignored": list(self.ignored),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Undo :meth:`to_json`.

        Raises
        ------
        FileFormatError
            If a name is none.
        """
        features = []
        for entry in values["features"]:
            arguments = dict(entry)
            if not (fits(arguments["name"], str) and fits(arguments.get("shares"), str | None)):
                raise FileFormatError(f"a column cannot be called {str(arguments)[:80]}")
            features.append(FEATURE_TYPES[arguments.pop("kind")](**arguments))
        if not (fits(values["targets"], list[str | int]) and fits(values["ignored"], list[str | int])):
            raise FileFormatError(f"columns cannot be called {str([values['targets'], values['ignored']])[:80]}")
        return cls(tuple(features), tuple(values["targets"]), tuple(values["ignored"]))


def as_schema(given: Any) -> Schema | None:
    """A schema, from itself or from a list of features as YAML has them: ``{kind: sparse, name: city}``.

    Raises
    ------
    ConfigError
        If it is neither, or a feature has no such kind or argument.
    """
    if given is None or isinstance(given, Schema):
        return given
    if not isinstance(given, list | tuple):
        raise ConfigError(f"schema must be a Schema, a list of features or None, got {type(given).__name__}")
    features: list[Feature] = []
    for entry in given:
        if isinstance(entry, Feature):
            features.append(entry)
            continue
        arguments = dict(entry) if isinstance(entry, dict) else {}
        kind = arguments.pop("kind", None)
        if kind not in FEATURE_TYPES:
            raise ConfigError(f"schema: {entry!r} must have a kind, one of {', '.join(FEATURE_TYPES)}, and a name")
        try:
            features.append(FEATURE_TYPES[kind](**arguments))
        except TypeError as error:
            raise ConfigError(f"schema: {entry!r}: {error}") from None
    return Schema(tuple(features))


def _kind(column: Column) -> str:
    if column.kind == "list":
        return "sequence"
    if column.is_category:
        return "sparse"
    # A whole number is a quantity (age, price) as often as a category, so that its name decides
    named = is_named_id(column.name)
    chosen = column.why == "chosen by column_types"
    return "sparse" if column.kind == "number" and column.whole and named and not chosen else "dense"
