"""``model.check(rows)`` of the estimators that read tables."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from moeapps.core.tabledata.drift import DataCheck, check_table
from moeapps.core.tabledata.frames import is_table
from moeapps.core.tabledata.profile import ColumnProfile
from moeapps.core.tabledata.source import TableSource

__all__ = ["CheckMixin"]


class CheckMixin:
    """Adds :meth:`check` to an estimator that knows what its columns were like in training."""

    def _profiles(self) -> Sequence[ColumnProfile]:
        """Columns in training."""
        raise NotImplementedError

    def check(self, X: Any) -> DataCheck:
        """Compare rows with those of training, column by column.

        Parameters
        ----------
        X : DataFrame, array of shape (n, P) or path
            Rows to predict, before or after they are predicted: a frame, an array, or a file or folder as
            ``moeapps score`` takes it. Targets are not compared.

        Returns
        -------
        DataCheck
            ``table`` has a row per column: missing cells, unseen categories, numbers outside the range of training, the
            population stability index beside what chance would make of it, and a verdict (ok, unknown, shift, drift,
            unreadable, absent). ``print(result)``, ``to_html(path)``, ``to_json()``.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the model is not fitted.
        DataError
            If there are no rows.
        """
        profiles = self._profiles()
        if not is_table(X) and isinstance(X, np.ndarray | list):
            array = np.asarray(X)
            X = pd.DataFrame(array, columns=[f"column {i}" for i in range(array.shape[1])])
        texts = self.missing_texts()  # type: ignore[attr-defined]
        kinds = {profile.name: profile.kind for profile in profiles}
        source = TableSource(X, kinds=kinds, missing=texts)
        return check_table(source, profiles, self.unused_columns())  # type: ignore[attr-defined]
