"""Rounds and results: like is compared with like, whatever fails, ends early or is interrupted."""

import io
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy.stats import ttest_rel

from moeapps.comparison import Comparison, paired_difference
from moeapps.comparison.rounds import run_rounds
from moeapps.comparison.task import Candidate, Measured, Metric, Task
from moeapps.core.errors import ConfigError

LOSSES = {
    "mixture": [0.10, 0.12, 0.11, 0.09],
    "linear": [0.20, 0.23, 0.20, 0.19],
    "forest": [0.21, 0.20, 0.22, 0.21],
}


class Planned(Task):
    """Scores that are written down; a number of seconds sleeps, an exception is raised."""

    kind = "a plan"

    def __init__(self, plan, splits=4, overlap=0.0, then=None):
        candidates = [Candidate(name, lambda seed: None, ours=name == "mixture") for name in plan]
        metrics = [Metric("loss", smaller=True), Metric("accuracy")]
        super().__init__("the data", ["told"], metrics, candidates, splits, overlap, 0)
        self.plan, self.then = plan, then or {}

    def measure(self, candidate, split):
        if (step := self.then.get((candidate.name, split))) is not None:
            step()
        loss = self.plan[candidate.name][split]
        return Measured({"loss": loss, "accuracy": 1 - loss}, 0.5, 0.1, 100)


def failing():
    raise ValueError("no such thing\nsecond line")


def result_of(task, max_time=None):
    lines = []
    return Comparison(task, run_rounds(task, max_time, lines.append)), lines


def test_the_table_has_means_spreads_and_paired_differences():
    found, lines = result_of(Planned(LOSSES))
    assert list(found.table.index) == ["mixture", "linear", "forest"]
    assert (found.best_, found.baseline_, found.compared) == ("mixture", "linear", 4)
    row = found.table.loc["mixture"]
    assert row["loss"] == pytest.approx(0.105)
    assert row["loss sd"] == pytest.approx(np.std(LOSSES["mixture"], ddof=1))
    assert row["difference"] == pytest.approx(-0.1)
    assert row["verdict"] == "better"
    assert found.table.loc["linear", "verdict"] == "best baseline"
    assert found.table.loc["forest", "verdict"] == "unclear"
    assert found.table.loc["mixture", "predict seconds per 1,000"] == pytest.approx(1.0)
    assert len(lines) == 12
    assert "fold 1/4  mixture: loss 0.1000" in lines[0]


def test_without_overlap_the_test_is_the_usual_paired_one():
    ours, other = np.array(LOSSES["mixture"]), np.array(LOSSES["forest"])
    mean, error = paired_difference(ours, other, 0.0)
    assert mean / error == pytest.approx(ttest_rel(ours, other).statistic)


def test_shared_training_rows_make_the_error_larger():
    ours, other = np.array(LOSSES["mixture"]), np.array(LOSSES["forest"])
    variance = np.var(ours - other, ddof=1)
    assert paired_difference(ours, other, 0.25)[1] == pytest.approx(np.sqrt((1 / 4 + 0.25) * variance))


def test_a_model_that_fails_costs_its_own_row_only():
    found, lines = result_of(Planned(LOSSES, then={("linear", 1): failing}))
    assert found.table.loc["linear", "error"] == "ValueError: no such thing"
    assert found.table.loc["linear", "verdict"] == "failed"
    assert found.table.loc["mixture", "splits"] == 4
    assert found.baseline_ == "forest"
    assert "linear: ValueError: no such thing" in str(found)
    assert sum("linear" in line for line in lines) == 2


def test_all_models_failing_is_a_table_without_scores():
    found, _ = result_of(Planned({"mixture": [1.0]}, 1, then={("mixture", 0): failing}))
    assert found.best_ is None
    assert "failed" in str(found)
    with pytest.raises(ConfigError, match="nothing to report"):
        found.report("page.html")


def test_what_not_all_models_have_finished_is_not_compared():
    def end():
        raise KeyboardInterrupt

    found, lines = result_of(Planned(LOSSES, then={("linear", 2): end}))
    assert found.stopped == "interrupted"
    assert found.compared == 2
    assert found.table.loc["mixture", "loss"] == pytest.approx(0.11)
    assert found.splits.query("model == 'mixture'")["compared"].tolist() == [True, True, False]
    assert lines[-1] == "stopped: interrupted"


def test_ctrl_c_ends_the_comparison_and_not_the_program():
    def press():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    before = signal.getsignal(signal.SIGINT)
    start = time.perf_counter()
    found, _ = result_of(Planned(LOSSES, then={("forest", 1): press}))
    assert time.perf_counter() - start < 4
    assert (found.stopped, found.compared) == ("interrupted", 1)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_model_that_takes_too_long_is_ended_by_the_timer():
    start = time.perf_counter()
    found, _ = result_of(Planned(LOSSES, then={("forest", 0): lambda: time.sleep(30)}), max_time=0.3)
    assert time.perf_counter() - start < 5
    assert found.compared == 1
    assert found.table.loc["forest", "verdict"] == "not run"
    assert "max_time of 0.3 s is over" in found.table.loc["forest", "error"]
    assert found.table.loc["mixture", "splits"] == 1
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_round_for_which_no_time_is_left_does_not_begin():
    found, lines = result_of(Planned(LOSSES), max_time=1.0)  # each model says that it took 0.6 s
    assert found.compared == 1
    assert "one more fold takes about 2 s" in found.stopped
    assert sum("fold 2/4" in line for line in lines) == 0


def test_a_narrow_terminal_shows_fewer_spreads():
    found, _ = result_of(Planned(LOSSES))
    texts = []
    for width in (200, 100):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(found)
        texts.append(console.export_text())
    assert "0.8950 ± 0.0129" in texts[0]
    assert "0.8950 ±" not in texts[1]
    assert "0.1050 ± 0.0129*" in texts[1]


def test_two_models_can_be_compared_by_any_metric():
    found, _ = result_of(Planned(LOSSES))
    mean, _, verdict = found.difference("forest", "mixture", "accuracy")
    assert (mean, verdict) == (pytest.approx(-0.105), "worse")
    with pytest.raises(ConfigError, match="metric must be one of loss, accuracy"):
        found.difference("forest", "mixture", "f1")
    with pytest.raises(ConfigError, match="'tree' has no scores"):
        found.difference("tree", "mixture")


@pytest.mark.parametrize(
    ("ending", "content"),
    [(".csv", "loss sd"), (".md", "| 0.1050 ± 0.0129* |"), (".tex", r"$\pm$"), (".html", "<h2>mixture</h2>")],
)
def test_it_is_saved_in_several_forms(tmp_path, ending, content):
    found, _ = result_of(Planned(LOSSES))
    assert content in found.save(tmp_path / f"table{ending}").read_text()


def test_the_page_leaves_curves_of_single_experts_out(tmp_path):
    task = Planned({"mixture": [0.1, 0.2], "linear": [0.2, 0.3]}, 2)
    history = pd.DataFrame({"epoch": [0, 1], "val/accuracy": [0.5, 0.6], "val/gcn_accuracy": [0.4, 0.5]})
    plain = task.measure
    task.measure = lambda candidate, split: replace(plain(candidate, split), history=history)
    page = result_of(task)[0].save(tmp_path / "page.html").read_text()
    assert "val/accuracy" in page
    assert "val/gcn_accuracy" not in page


def test_another_ending_is_refused(tmp_path):
    found, _ = result_of(Planned(LOSSES))
    with pytest.raises(ConfigError, match=r"saved as \.csv, \.md, \.tex, \.html, got"):
        found.save(tmp_path / "table.xlsx")
