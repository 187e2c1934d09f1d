"""scikit-learn's side of the stream estimators: fit, tags, names and numbers of columns."""

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.utils import Tags
from sklearn.utils.validation import check_array, validate_data

from moeapps.core.arguments import NamedArguments
from moeapps.core.errors import ConfigError
from moeapps.core.search import Distribution
from moeapps.core.tabledata.frames import as_frame, is_table
from moeapps.stream.row_encoding import OnBad
from moeapps.stream.search_space import STREAM_SEARCH
from moeapps.stream.values import savable

__all__ = ["SklearnFace", "order_of"]


def order_of(names: list[str] | None, width: int | None) -> list[Hashable] | None:
    """Names of the columns of ``fit`` by position, as a model of 0.1 had them: those of a frame, or 0, 1, ..."""
    if names is not None:
        return list(names)
    return None if width is None else list(range(width))


class SklearnFace(NamedArguments, BaseEstimator):
    """Mixed into the stream estimators, which have learned something once ``_engine`` is set."""

    _search_space: ClassVar[Mapping[str, Distribution]] = STREAM_SEARCH

    _engine: Any
    _names: list[str] | None
    _width: int | None
    _order: list[Hashable] | None
    on_bad: OnBad

    def fit(self, X: Any, y: Any, **unsupported: Any) -> Self:
        """Learn the rows once, in their order, from a fresh start.

        Parameters
        ----------
        X : DataFrame or array (n, F)
            A frame, of pandas, polars or Arrow, may have text columns; NaN means missing.
        y : array (n,)
            Targets.
        **unsupported
            Refused, as ``sample_weight`` is.

        Raises
        ------
        ConfigError
            If there are further arguments, such as ``sample_weight``, which is not supported.
        """
        self._refuse(unsupported)
        fresh = type(self)(**self.get_params(deep=False))
        fresh.partial_fit(X, y)
        self.__dict__.update(fresh.__dict__)
        return self

    def partial_fit(self, X: Any, y: Any) -> Self:
        """Learn rows on top of what was learned before."""
        raise NotImplementedError

    def _refuse(self, unsupported: Mapping[str, Any]) -> None:
        """Refuse arguments that scikit-learn's estimators often have, by name. A weight of None is no weight."""
        for name, value in unsupported.items():
            if name == "sample_weight":
                if value is None:
                    continue
                raise ConfigError(
                    f"{type(self).__name__} does not support sample_weight: a stream is learned one instance at a "
                    "time; give a row twice where it shall count twice"
                )
            raise ConfigError(f"{type(self).__name__} has no argument {name!r} for fit or partial_fit")

    @contextmanager
    def _columns_kept_on_error(self) -> Iterator[None]:
        """Undo what a failed ``partial_fit`` has noted of names and number of columns."""
        width, names, order = self._width, self._names, self._order
        try:
            yield
        except BaseException:
            self._width, self._names, self._order = width, names, order
            raise

    def __sklearn_is_fitted__(self) -> bool:
        return self._engine is not None

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        return tags

    def _need_fitted(self) -> None:
        if self._engine is None:
            raise NotFittedError(f"This {type(self).__name__} instance is not fitted yet: call fit, or learn instances")

    def _table(self, X: Any, reset: bool) -> pd.DataFrame:
        """A frame, with scikit-learn's checks of shape and names.

        A frame after an array, or an array after a frame, has its columns matched by position, and warns.
        """
        if is_table(X):
            X = as_frame(X, "X")
            validate_data(self, X, reset=reset, skip_check_array=True)
            if len(X) == 0 or X.shape[1] == 0:
                check_array(np.empty(X.shape))
            frame = X
        else:
            finite = "allow-nan" if self.on_bad == "raise" else False  # else infinity is a bad value as others
            frame = pd.DataFrame(validate_data(self, X, reset=reset, dtype=np.float64, ensure_all_finite=finite))
        if reset:
            self._order = [savable(name, "the name of a column") for name in frame.columns]
        return self._named(frame)

    def _named(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame with the names of ``fit``: by position, unless it has these names in another order."""
        if self._order is None or len(self._order) != frame.shape[1] or set(frame.columns) == set(self._order):
            return frame
        return frame.set_axis(self._order, axis=1)

    def _get_width(self) -> int:
        if self._width is None:
            raise AttributeError("n_features_in_ is there after fit or partial_fit")
        return self._width

    def _set_width(self, width: int) -> None:
        self._width = width

    def _get_names(self) -> NDArray[Any]:
        if self._names is None:
            raise AttributeError("feature_names_in_ is there after fit or partial_fit with a DataFrame")
        return np.array(self._names, dtype=object)

    def _set_names(self, names: NDArray[Any]) -> None:
        self._names = list(names)

    def _delete_names(self) -> None:
        self._names = None

    n_features_in_ = property(_get_width, _set_width, doc="Number of features of ``fit`` or ``partial_fit``.")
    feature_names_in_ = property(_get_names, _set_names, _delete_names, "Columns of ``fit``, where it had a frame.")
