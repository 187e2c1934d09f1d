"""The README is short, and its table is a choice of rows from docs/benchmarks.md. (Its code runs in test_docs.py.)"""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.test_benchmarks_page import results

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text().replace("\xa0", " ")


def test_it_is_short():
    assert len(README.splitlines()) <= 150
    blocks = re.findall(r"```\w+\n(.*?)```", README, flags=re.DOTALL)
    assert all(len(code.strip().splitlines()) <= 12 for code in blocks)


def test_the_two_set_up_commands_stand_on_lines_of_their_own():
    lines = README.splitlines()
    assert lines.count("pip install -e . && moeapps demo") == 1
    assert lines.count('pip install -e ".[test]" && pytest') == 1


def tables(data: str, model: str) -> list[float]:
    return results("tabular")["sets"][data]["models"][model]["score"]


def graphs(data: str, model: str) -> list[float]:
    return [100 * score for score in results("graph_accuracy")["runs"][f"{data}, gcn"]["models"][model]["score"]]


def streams(data: str, model: str) -> list[float]:
    runs = results("stream_accuracy")["runs"]
    return [100 * runs[f"{data}, {seed}"][model]["accuracy"] for seed in range(3)]


def incomes(data: str, model: str) -> list[float]:
    return [run["auc"]["income"] for run in results("recsys_accuracy")["runs"][data][model].values()]


def images(data: str, model: str) -> list[float]:
    return [run["accuracy"] for run in results("vision_accuracy")["sets"][data][model].values()]


def distances(data: str, model: str) -> list[float]:
    return [-run["curve"][-1]["fid"] for run in results("vision_diffusion")["runs"][model].values()]  # less is better


TABULAR = ("HistGradientBoosting", "RandomForest", "MLP", "linear")
OTHERS = (*(f"torch-rechub {name}" for name in ("SharedBottom", "MMoE", "CGC", "PLE", "MMoE, fast", "PLE, fast")),
          "deepctr-torch MMoE", "deepctr-torch PLE")  # fmt: skip
NAMES = {"GNN": "GCN", "MoE": "MoEClassifier", "torch-rechub MMoE, fast": "torch-rechub MMoE"}
ROWS = [
    ("census-income, ROC-AUC |", tables, "census-income", TABULAR, "MoE", 4),
    ("digits, accuracy |", tables, "digits", TABULAR, "MoE", 4),
    ("Cora", graphs, "Cora", ("MLP", "GNN"), "Mowst", 2),
    ("tolokers", graphs, "tolokers", ("MLP", "GNN"), "Mowst*", 2),
    ("Electricity", streams, "elec", ("MOA ARF(10)", "MOA LevBag(10)"), "DriftMoE", 2),
    ("LED", streams, "led_abrupt", ("MOA ARF(10)", "MOA LevBag(10)"), "DriftMoE", 2),
    ("census-income, 2 targets", incomes, "census", OTHERS, "AdaTT", 4),
    ("CIFAR-10", images, "cifar10", ("ViT",), "WideNet", 4),
    ("digits generation", distances, "digits", ("DiT",), "Switch-DiT", 4),
]


@pytest.mark.parametrize(
    ("start", "scores", "data", "baselines", "ours", "digits"), ROWS, ids=lambda value: str(value)[:20]
)
def test_a_row_of_the_table_compares_with_the_best_baseline(start, scores, data, baselines, ours, digits):
    (line,) = [line for line in README.splitlines() if line.startswith(f"| {start}")]
    _, their_name, their_score, our_name, our_score = (cell.strip() for cell in line.strip("|").split("|"))
    best = max(baselines, key=lambda name: np.mean(scores(data, name)))
    for name, shown, score in ((best, their_name, their_score), (ours, our_name, our_score)):
        values = np.abs(scores(data, name))
        assert shown == NAMES.get(name, name)
        assert score.strip("*") == f"{values.mean():.{digits}f} ± {values.std():.{digits}f}"
    ahead = np.mean(scores(data, ours)) > np.mean(scores(data, best))
    assert (our_score.startswith("**"), their_score.startswith("**")) == (ahead, not ahead)


def test_parameters_and_seconds_are_measured():
    models = results("vision_accuracy")["sets"]["cifar10"]
    ours, theirs = (models[name]["0"]["parameters"] for name in ("WideNet", "ViT"))
    assert f"WideNet has {ours:,} parameters, ViT {theirs:,}" in README
    models = results("tabular")["sets"]["census-income"]["models"]
    ours, theirs = (np.mean(models[name]["fit"]) for name in ("MoE", "HistGradientBoosting"))
    assert f"{ours:.0f} seconds to fit where\nboosting takes {theirs:.0f}" in README
