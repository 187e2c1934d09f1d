"""Runs on one HTML page: data, scores, curves, and what the experts did."""

from moeapps.report.page import render, write_report
from moeapps.report.results import results_table, write_results
from moeapps.report.runs import Run, Score, find_runs

__all__ = ["Run", "Score", "find_runs", "render", "results_table", "write_report", "write_results"]
