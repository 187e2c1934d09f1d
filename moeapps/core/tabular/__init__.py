"""Tables: mixture-of-experts estimators for columns of numbers and categories."""

from moeapps.core.tabular.classifier import MoEClassifier
from moeapps.core.tabular.columns import ColumnEncoder
from moeapps.core.tabular.data import TableDataModule
from moeapps.core.tabular.module import TabularModule
from moeapps.core.tabular.network import TabularMoE
from moeapps.core.tabular.regressor import MoERegressor

__all__ = ["ColumnEncoder", "MoEClassifier", "MoERegressor", "TableDataModule", "TabularMoE", "TabularModule"]
