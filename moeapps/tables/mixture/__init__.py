"""Mixtures of any estimators: a gate over fitted experts.

- :mod:`~moeapps.tables.mixture.experts`: names, checks and parameters of the experts
- :mod:`~moeapps.tables.mixture.portfolio`: experts where the user names none
- :mod:`~moeapps.tables.mixture.features`: columns of any table as numbers
- :mod:`~moeapps.tables.mixture.answers`: what experts predict, as the gate reads it
- :mod:`~moeapps.tables.mixture.folds`: out-of-fold predictions
- :mod:`~moeapps.tables.mixture.costs`: seconds per row
- :mod:`~moeapps.tables.mixture.estimator`: fit and predict
- :mod:`~moeapps.tables.mixture.inspection`: weights, load, importance, cost curve
- :mod:`~moeapps.tables.mixture.regions`: where each expert leads, as rules
"""

from moeapps.tables.mixture.classifier import MixtureClassifier
from moeapps.tables.mixture.features import TableFeatures
from moeapps.tables.mixture.portfolio import default_experts
from moeapps.tables.mixture.regressor import MixtureRegressor

__all__ = ["MixtureClassifier", "MixtureRegressor", "TableFeatures", "default_experts"]
