"""Tables: mixture-of-experts estimators for columns of numbers and categories."""

from moeapps.core.tabular.columns import ColumnEncoder
from moeapps.core.tabular.data import TableDataModule
from moeapps.core.tabular.estimator import MoEClassifier, MoERegressor
from moeapps.core.tabular.module import TabularModule
from moeapps.core.tabular.network import TabularMoE

__all__ = ["ColumnEncoder", "MoEClassifier", "MoERegressor", "TableDataModule", "TabularMoE", "TabularModule"]
