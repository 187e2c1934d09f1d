"""Tables of results: what is joined, named, tested and written."""

import math

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import ttest_rel

from moeapps.cli.main import main
from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.core.run_result import Evaluation, RunResult
from moeapps.report import results_table, write_results

SCORES = {0.1: [0.80, 0.82, 0.81, 0.83], 0.01: [0.86, 0.87, 0.88, 0.88], 0.001: [0.80, 0.82]}


@pytest.fixture
def runs(tmp_path):
    """Three configurations that differ in lr, with four, four and two seeds."""
    for lr, values in SCORES.items():
        for seed, value in enumerate(values):
            folder = tmp_path / "runs" / f"lr{lr}" / f"seed_{seed}"
            folder.mkdir(parents=True)
            config = {"seed_everything": seed, "model": {"class_path": "a.Net", "init_args": {"lr": lr, "a_b": 1}}}
            (folder / "config.yaml").write_text(yaml.safe_dump(config))
            pd.DataFrame({"epoch": [0, 1], "val/loss": [1.0, 0.5]}).to_csv(folder / "metrics.csv", index=False)
            result = RunResult(True, "checkpoints/last.ckpt")
            result.add(Evaluation("test", result.checkpoint, {"test/accuracy": value, "test/loss": 1 - value}))
            result.save(folder)
    return tmp_path / "runs"


def of(table, configuration, metric="test/accuracy"):
    (row,) = table[(table["configuration"] == configuration) & (table["metric"] == metric)].to_dict("records")
    return row


def test_a_row_has_mean_and_sd_over_the_seeds_of_a_configuration_named_by_what_differs(runs):
    table = results_table(runs)
    assert list(dict.fromkeys(table["configuration"])) == ["lr=0.001", "lr=0.01", "lr=0.1"]
    row = of(table, "lr=0.01")
    assert (row["n"], row["best"]) == (4, True)
    assert row["mean"] == pytest.approx(np.mean(SCORES[0.01]))
    assert row["sd"] == pytest.approx(np.std(SCORES[0.01], ddof=1))


def test_scores_of_the_test_data_are_shown_where_there_are_some_and_others_when_asked(runs):
    assert set(results_table(runs)["metric"]) == {"test/accuracy", "test/loss"}
    assert set(results_table(runs, metrics="val/loss")["mean"]) == {0.5}


def test_the_best_of_a_loss_is_the_smallest(runs):
    assert of(results_table(runs), "lr=0.01", "test/loss")["best"]
    assert not of(results_table(runs), "lr=0.1", "test/loss")["best"]


def test_the_paired_test_is_scipys_over_common_seeds_with_holms_correction(runs):
    table = results_table(runs, baseline="lr=0.1")
    row = of(table, "lr=0.01")
    p = ttest_rel(SCORES[0.01], SCORES[0.1]).pvalue
    assert row["pairs"] == 4
    assert row["p"] == pytest.approx(p)
    assert row["p_holm"] == pytest.approx(p), "the only comparison with enough seeds"
    assert row["difference"] == pytest.approx(np.mean(SCORES[0.01]) - np.mean(SCORES[0.1]))


def test_fewer_than_three_common_seeds_give_no_p(runs):
    row = of(results_table(runs, baseline="lr=0.1"), "lr=0.001")
    assert (row["pairs"], row["difference"]) == (2, 0)
    assert math.isnan(row["p"])
    assert math.isnan(row["p_holm"])


def test_holm_multiplies_the_smallest_p_by_the_number_of_comparisons_and_keeps_the_order(runs):
    for seed, value in ((2, 0.84), (3, 0.85)):  # now the third has four seeds, too
        folder = runs / "lr0.001" / f"seed_{seed}"
        folder.mkdir()
        config = (
            (runs / "lr0.001/seed_0/config.yaml").read_text().replace("seed_everything: 0", f"seed_everything: {seed}")
        )
        (folder / "config.yaml").write_text(config)
        (folder / "metrics.csv").write_text("epoch,val/loss\n0,1\n")
        RunResult(True, "a", [Evaluation("test", "a", {"test/accuracy": value})]).save(folder)
    table = results_table(runs, baseline="lr=0.1", metrics="test/accuracy")
    first, second = of(table, "lr=0.01"), of(table, "lr=0.001")
    assert first["p_holm"] == pytest.approx(2 * first["p"])
    assert second["p_holm"] == pytest.approx(max(second["p"], 2 * first["p"]))


def test_scores_on_other_data_are_not_mixed_with_the_runs_own(runs):
    folder = runs / "lr0.1/seed_0"
    result = RunResult.load(folder)
    result.add(Evaluation("test", result.checkpoint, {"test/accuracy": 0.1}, {"data.init_args.name": "Other"}))
    result.save(folder)
    assert of(results_table(runs), "lr=0.1")["mean"] == pytest.approx(np.mean(SCORES[0.1]))
    assert of(results_table(runs), "lr=0.1", "test/accuracy (name=Other)")["mean"] == 0.1


def test_csv_markdown_and_latex_show_the_best_in_bold_and_escape_names(runs, tmp_path):
    table = results_table(runs, baseline="lr=0.1")
    assert len(pd.read_csv(write_results(table, tmp_path / "a.csv"))) == 6
    markdown = write_results(table, tmp_path / "a.md").read_text()
    assert "| lr=0.01 | **0.8725 ± 0.0096** \\* | **0.1275 ± 0.0096** \\* | 4 |" in markdown
    assert "differs from lr=0.1 (paired t-test" in markdown
    table["configuration"] = table["configuration"].str.replace("lr", "my_rate %")
    latex = write_results(table, tmp_path / "a.tex").read_text()
    assert r"my\_rate \%=0.01 & \textbf{0.8725 $\pm$ 0.0096}$^*$" in latex


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--table", "a.xls"], "--table must be a .csv, .md, .tex file, got 'a.xls'"),
        (["--table", "a.csv", "--metric", "test/acuracy"], "did you mean 'test/accuracy'?"),
        (["--table", "a.csv", "--baseline", "lr=0.02"], "did you mean 'lr=0.01'?"),
        (["--baseline", "lr=0.1"], "name its file with --table FILE"),
    ],
)
def test_wrong_options_of_the_table_are_named_and_nothing_is_written(
    runs, tmp_path, monkeypatch, capsys, options, message
):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(runs), *options]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_runs_without_scores_are_refused(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,lr\n0,1\n")
    with pytest.raises(DataError, match="no scores yet"):
        results_table(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"evaluations": [{}]}', '{"evaluations": [], "finished": 3}'])
def test_a_damaged_result_is_refused(runs, text):
    (runs / "lr0.1/seed_0/result.json").write_text(text)
    with pytest.raises(FileFormatError, match="is damaged"):
        results_table(runs)


def test_nan_scores_survive_and_do_not_count(tmp_path):
    RunResult(True, "a", [Evaluation("test", "a", {"test/auc": math.nan})]).save(tmp_path)
    assert math.isnan(RunResult.load(tmp_path).evaluations[0].scores["test/auc"])


def test_an_unknown_ending_is_refused(runs, tmp_path):
    with pytest.raises(ConfigError, match="file, got"):
        write_results(results_table(runs), tmp_path / "a.txt")
