"""Columns of any table as numbers, for estimators and gates that read nothing else."""

# n rows, P numbers of the encoder, C categories, F features

import warnings
from collections.abc import Mapping
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from moeapps.core.checks import check_one_of, check_sizes
from moeapps.core.errors import DataError
from moeapps.core.tabledata.columns import FIRST, ColumnEncoder
from moeapps.core.tabledata.frames import as_frame, is_table
from moeapps.core.tabledata.kinds import ColumnKind
from moeapps.core.tabledata.onehot import category_name, frequent_categories, number_names, one_hot, one_hot_names

__all__ = ["TableFeatures"]


class TableFeatures(TransformerMixin, BaseEstimator):
    """A table as numbers, by the rules of :class:`~moeapps.core.tabledata.columns.ColumnEncoder`.

    So that estimators of scikit-learn read what moeapps reads: text, dates, missing values, categories that training
    has not seen. Columns are told apart once, in ``fit``.

    Parameters
    ----------
    kind : {"onehot", "codes", "categories", "clipped"}, default="onehot"
        "onehot": standardised numbers with a flag for missing ones, and a column per category, for linear models.
        "codes": numbers with NaN where missing, and the codes of categories, for trees.
        "categories": the same as a DataFrame with category columns, which HistGradientBoosting takes as such.
        "clipped": as "onehot", with numbers clipped smoothly to three standard deviations, for gates and linear
        classifiers, which one extreme value would lead astray.
    max_categories : int, default=64
        Most frequent categories per column that are told apart; the others are one. ("codes" tells all apart.)
    skip_unreadable : bool, default=False
        Whether to leave a column out, with a warning, that cannot be read (lists, texts among numbers). Otherwise it
        is an error that names it.
    column_types : dict, optional
        What columns are, where it shall not be inferred: ``{"zip": "category"}``. Columns that are not here and have a
        different value in nearly every row are ids, and make no feature.

    Attributes
    ----------
    encoder_ : ColumnEncoder
        What was learned about the columns.
    columns_ : list of int
        Positions of the columns that are read.
    kept_ : list of list of int
        For each category column the codes that are told apart.
    """

    def __init__(
        self,
        kind: Literal["onehot", "codes", "categories", "clipped"] = "onehot",
        max_categories: int = 64,
        skip_unreadable: bool = False,
        column_types: Mapping[str, ColumnKind] | None = None,
    ) -> None:
        self.kind = kind
        self.max_categories = max_categories
        self.skip_unreadable = skip_unreadable
        self.column_types = column_types

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Learn the columns of a frame or an array.

        Raises
        ------
        DataError
            Naming the column that cannot be read.
        """
        check_one_of("kind", self.kind, ("onehot", "codes", "categories", "clipped"))
        check_sizes(max_categories=self.max_categories)
        table = self._table(X)
        weight = np.ones(len(table)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        self.n_features_in_ = table.shape[1]
        self.columns_ = list(range(table.shape[1]))
        try:
            self.encoder_ = self._encoder(table, weight)
        except DataError:
            if not self.skip_unreadable:
                raise
            self.columns_ = self._readable(table, weight)
            if not self.columns_:
                raise
            self.encoder_ = self._encoder(self.chosen(table), weight)
        codes = self.encoder_.transform(self.chosen(table))[1]
        self.kept_ = frequent_categories(self.encoder_, codes, weight, self.max_categories)
        return self

    def _encoder(self, table: Any, weight: NDArray[np.float64]) -> ColumnEncoder:
        types = self.column_types or {}
        if isinstance(table, pd.DataFrame):  # some of the columns, where others cannot be read
            types = {name: kind for name, kind in types.items() if name in table.columns}
        return ColumnEncoder().fit(table, weight, column_types=types)

    def _readable(self, table: Any, weight: NDArray[np.float64]) -> list[int]:
        good = []
        for position in range(table.shape[1]):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    self._encoder(_columns(table, [position]), weight)
                good.append(position)
            except DataError as error:
                warnings.warn(f"the gate does not read a column: {error}", UserWarning, stacklevel=4)
        return good

    def left_out(self) -> list[int]:
        """Positions of the columns that could not be read."""
        return sorted(set(range(self.n_features_in_)) - set(self.columns_))

    def chosen(self, table: Any) -> Any:
        """The columns that are read."""
        return table if len(self.columns_) == table.shape[1] else _columns(table, self.columns_)

    @staticmethod
    def _table(X: Any) -> Any:
        return as_frame(X, "X") if is_table(X) else np.asarray(X, dtype=np.float64)

    def transform(self, X: Any) -> Any:
        """Numbers of rows: an array ``(n, F)``, or a DataFrame for "categories".

        Raises
        ------
        DataError
            Naming column, row and cell, if a cell is not what the column was in training.
        """
        check_is_fitted(self, "encoder_")
        table = self._table(X)
        if table.shape[1] != self.n_features_in_:
            raise DataError(f"X has {table.shape[1]} columns, but TableFeatures was fitted on {self.n_features_in_}")
        numbers, codes = self.encoder_.transform(self.chosen(table))
        if self.kind == "codes":
            return np.column_stack([numbers, codes.astype(np.float64)])
        if self.kind == "categories":
            return self._with_categories(numbers, codes)
        return one_hot(self.encoder_, self.kept_, numbers, codes, clipped=self.kind == "clipped")

    def _with_categories(self, numbers: NDArray[np.float64], codes: NDArray[np.int64]) -> pd.DataFrame:
        columns: dict[str, Any] = {f"n{i}": column for i, column in enumerate(numbers.T)}
        for i, kept in enumerate(self.kept_):
            places = np.full(len(self.encoder_.categories[i]) + FIRST, -1)  # -1: rare or unknown, which pandas holds
            places[kept] = np.arange(len(kept))  # as missing
            columns[f"c{i}"] = pd.Categorical.from_codes(places[codes[:, i]], categories=pd.Index(np.arange(len(kept))))
        return pd.DataFrame(columns)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:
        """Names of the features: a column's, ``age is missing``, ``city=Ulm``, ``joined hour_sin``."""
        check_is_fitted(self, "encoder_")
        encoder = self.encoder_
        if self.kind in ("codes", "categories"):
            return np.array([*number_names(encoder), *(encoder.names[i] for i in encoder.categorical)], dtype=object)
        return np.array(one_hot_names(encoder, self.kept_), dtype=object)

    def category(self, position: int, code: int) -> str:
        """Text of a category's code, in the categorical column of this position."""
        return category_name(self.encoder_, position, code)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """The encoder as JSON values: what a file of skops holds without trusting the encoder's parts."""
        state = dict(super().__getstate__())
        if "encoder_" in state:
            state["encoder_"] = self.encoder_.state()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Undo :meth:`__getstate__`."""
        state = dict(state)
        state.setdefault("column_types", None)
        if isinstance(state.get("encoder_"), dict):
            state["encoder_"] = ColumnEncoder.from_state(state["encoder_"])
        super().__setstate__(state)


def _columns(table: Any, positions: list[int]) -> Any:
    return table.iloc[:, positions] if isinstance(table, pd.DataFrame) else table[:, positions]
