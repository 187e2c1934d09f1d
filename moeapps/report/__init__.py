"""Runs and fitted models on one HTML page: scores, curves, what went wrong, and what the experts did."""

from moeapps.report.model_page import model_report, render_model
from moeapps.report.page import render, write_report
from moeapps.report.results import results_table, write_results
from moeapps.report.runs import Run, Score, find_runs

__all__ = [
    "Run",
    "Score",
    "find_runs",
    "model_report",
    "render",
    "render_model",
    "results_table",
    "write_report",
    "write_results",
]
