"""Experts that are right in one half of the plane, and experts that fail."""

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin


class HalfRight(ClassifierMixin, BaseEstimator):
    """Knows the class where the first column has a sign, and says the opposite or nothing elsewhere."""

    def __init__(self, sign=1, confidence=0.9):
        self.sign = sign
        self.confidence = confidence

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, X):
        X = X.to_numpy() if isinstance(X, pd.DataFrame) else X
        truth = X[:, 1] > 0
        right = X[:, 0] * self.sign > 0
        positive = np.where(truth == right, self.confidence, 1 - self.confidence)
        return np.column_stack([1 - positive, positive])


class FromHint(HalfRight):
    """The same where a column says which half a row is in, by a value or by whether it is missing."""

    def __init__(self, value=None, sign=1):
        self.value = value
        self.sign = sign

    confidence = 0.9

    def predict_proba(self, X):
        east = X["hint"].isna() if pd.isna(self.value) else X["hint"] == self.value
        return super().predict_proba(np.column_stack([np.where(east, 1.0, -1.0), X["z"]]))


class HalfRightRegressor(RegressorMixin, BaseEstimator):
    """The same for numbers: the second column, with its sign turned in the other half."""

    def __init__(self, sign=1):
        self.sign = sign

    def fit(self, X, y):
        self.fitted_ = True
        return self

    def predict(self, X):
        X = X.to_numpy() if isinstance(X, pd.DataFrame) else X
        return np.where(X[:, 0] * self.sign > 0, X[:, 1], -X[:, 1])


class FailsIf(ClassifierMixin, BaseEstimator):
    """Raises where the given row is (or is not) among those to fit on."""

    def __init__(self, row=None, value=-99.0):
        self.row = row
        self.value = value

    def fit(self, X, y):
        rows = np.asarray(X, dtype=float)
        if self.row is None or not (rows[:, 0] == self.value).any():
            raise RuntimeError("this expert always fails" if self.row is None else "the marked row is missing")
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, X):
        return np.full((len(X), len(self.classes_)), 1 / len(self.classes_))


def plane(n=400, seed=0):
    """Two columns; the class is the sign of the second."""
    rng = np.random.default_rng(seed)
    X = pd.DataFrame({"x": rng.normal(size=n), "z": rng.normal(size=n)})
    return X, np.where(X["z"] > 0, "up", "down")
