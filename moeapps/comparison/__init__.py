"""Compare models of moeapps with those that people use, on one's own data: :func:`moeapps.compare`."""

from moeapps.comparison.compare import compare
from moeapps.comparison.result import Comparison, paired_difference

__all__ = ["Comparison", "compare", "paired_difference"]
