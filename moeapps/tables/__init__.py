"""Tables: mixture-of-experts estimators for columns of numbers and categories."""

from moeapps.core.tabledata.columns import ColumnEncoder
from moeapps.tables.classifier import MoEClassifier
from moeapps.tables.data import TableDataModule
from moeapps.tables.mixture import MixtureClassifier, MixtureRegressor, TableFeatures, default_experts
from moeapps.tables.mixture.module import MixtureModule
from moeapps.tables.module import TabularModule
from moeapps.tables.network import TabularMoE
from moeapps.tables.regressor import MoERegressor
from moeapps.tables.table_data import TableData
from moeapps.tables.table_module import TableModule

__all__ = [
    "ColumnEncoder",
    "MixtureClassifier",
    "MixtureModule",
    "MixtureRegressor",
    "MoEClassifier",
    "MoERegressor",
    "TableData",
    "TableDataModule",
    "TableFeatures",
    "TableModule",
    "TabularMoE",
    "TabularModule",
    "default_experts",
]
