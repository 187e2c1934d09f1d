"""scikit-learn's side of the stream estimators: fit, tags, names and numbers of columns."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.utils import Tags
from sklearn.utils.validation import check_array, validate_data

__all__ = ["SklearnFace"]


class SklearnFace(BaseEstimator):
    """Mixed into the stream estimators, which have learned something once ``_engine`` is set."""

    _engine: Any
    _names: list[str] | None
    _width: int | None

    def fit(self, X: Any, y: Any) -> Self:
        """Learn the rows once, in their order, from a fresh start.

        Parameters
        ----------
        X : DataFrame or array (n, F)
            A frame may have text columns; NaN means missing.
        y : array (n,)
            Targets.
        """
        fresh = type(self)(**self.get_params(deep=False))
        fresh.partial_fit(X, y)
        self.__dict__.update(fresh.__dict__)
        return self

    def partial_fit(self, X: Any, y: Any) -> Self:
        """Learn rows on top of what was learned before."""
        raise NotImplementedError

    @contextmanager
    def _columns_kept_on_error(self) -> Iterator[None]:
        """Undo what a failed ``partial_fit`` has noted of names and number of columns."""
        width, names = self._width, self._names
        try:
            yield
        except BaseException:
            self._width, self._names = width, names
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
        """A frame, with scikit-learn's checks of shape and names."""
        if isinstance(X, pd.DataFrame):
            validate_data(self, X, reset=reset, skip_check_array=True)
            if len(X) == 0 or X.shape[1] == 0:
                check_array(np.empty(X.shape))
            return X
        array = validate_data(self, X, reset=reset, dtype=np.float64, ensure_all_finite="allow-nan")
        return pd.DataFrame(array)

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
