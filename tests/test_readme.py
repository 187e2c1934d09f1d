"""The README is short, and its table is a choice of rows from docs/benchmarks.md. (Its code runs in test_docs.py.)"""

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

from tests.test_benchmarks_page import results, script

ROOT = Path(__file__).parent.parent
PUBLIC = script("public_tables").TABLES
GRAPHS = script("graph_accuracy")
IMAGES = script("vision_accuracy")
PAGE = (ROOT / "docs/benchmarks.md").read_text()
README = (ROOT / "README.md").read_text().replace("\xa0", " ")


def test_it_is_short():
    assert len(README.splitlines()) <= 150
    blocks = re.findall(r"```\w+\n(.*?)```", README, flags=re.DOTALL)
    assert all(len(code.strip().splitlines()) <= 12 for code in blocks)


def test_on_a_package_index_no_link_leads_to_a_file_of_the_repository():
    text = (ROOT / "README.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for rule in project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    assert re.findall(r"\]\((?!https?://)", text) == []
    assert "Compare, ten minutes from a CSV to a served model" in " ".join(text.split())


def test_the_two_set_up_commands_stand_on_lines_of_their_own():
    lines = README.splitlines()
    assert lines.count("pip install -e . && moeapps demo") == 1
    assert lines.count('pip install -e ".[test]" && pytest') == 1


def tables(task: str, model: str) -> list[float]:
    """Mean over the public tables, one per split: minus the log loss, or R2."""
    found = [splits for name, splits in results("mixtures")["tables"].items() if PUBLIC[name].task == task]
    key, sign = ("loss", -1) if task == "classification" else ("score", 1)
    return [sign * float(np.mean([splits[str(i)][model][key] for splits in found])) for i in range(5)]


def graphs(data: str, model: str) -> list[float]:
    own = "mixture" if model == "MowstClassifier" else model
    return [100 * score for score in GRAPHS.scores_of(results("graph_accuracy")["runs"], data, own)]


def streams(data: str, model: str) -> list[float]:
    """Accuracy in %, of each seed; "" stands for the mean over all streams. What is not random has one run for all."""
    runs = results("stream_accuracy")["runs"]
    names = [data] if data else list(dict.fromkeys(key.rpartition(",")[0] for key in runs))
    found = {
        name: [runs[f"{name}, {seed}"].get(model, runs[f"{name}, 0"][model]) for seed in range(3)] for name in names
    }
    return [100 * float(np.mean([found[name][seed]["accuracy"] for name in names])) for seed in range(3)]


def incomes(data: str, model: str) -> list[float]:
    return [run["auc"]["income"] for run in results("recsys_accuracy")["runs"][data][model].values()]


def images(data: str, model: str) -> list[float]:
    return [100 * run["accuracy"] for run in results("vision_accuracy")["sets"][data][model].values()]


def distances(data: str, model: str) -> list[float]:
    runs = results("vision_diffusion")["digits"]["runs"][model]
    return [-run["curve"][-1]["fid"] for run in runs.values()]  # less is better


ALONE = ("boosting", "forest", "linear", "MLP")
MOA = tuple(f"MOA {name}" for name in ("ARF(10)", "LevBag(10)", "kNN", "HAT"))
GNNS = tuple(GRAPHS.experts_of(results("graph_accuracy")["runs"]))
TOGETHER = (*ALONE, "moe", "voting", "stacking")
OTHERS = (*(f"torch-rechub {name}" for name in ("SharedBottom", "MMoE", "CGC", "PLE", "MMoE, fast", "PLE, fast")),
          "deepctr-torch MMoE", "deepctr-torch PLE")  # fmt: skip
NAMES = {"gcn_plain": "GCN", "gcn_skip_4_batch": "GCN, 4 layers, skips",
         "torch-rechub MMoE, fast": "torch-rechub MMoE", "boosting": "HistGradientBoosting",
         "moe": "MoEClassifier", "mixture": "MixtureClassifier", "stacking": "StackingClassifier"}  # fmt: skip
ROWS = [
    ("15 public tables, log loss", tables, "classification", TOGETHER, "mixture", 4),
    ("the same, without", tables, "classification", ALONE, "moe", 4),
    ("6 public tables, R2", tables, "regression", TOGETHER, "mixture", 4),
    ("Cora", graphs, "Cora", GNNS, "MowstClassifier", 2),
    ("tolokers", graphs, "tolokers", GNNS, "MowstClassifier", 2),
    ("Electricity", streams, "elec", MOA, "DriftMoE", 2),
    ("10 streams", streams, "", MOA, "DriftMoE", 2),
    ("census-income, 2 targets", incomes, "census", OTHERS, "AdaTT", 4),
    ("2,000 of MNIST", images, "mnist", tuple(IMAGES.MODELS)[1:], "WideNet", 2),
    ("digits generation", distances, "digits", ("DiT",), "Switch-DiT", 2),
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
        assert shown.replace("Regressor", "Classifier") == NAMES.get(name, name)
        assert score.strip("*") == f"{values.mean():.{digits}f} ± {values.std():.{digits}f}"
    ahead = np.mean(scores(data, ours)) > np.mean(scores(data, best))
    assert (our_score.startswith("**"), their_score.startswith("**")) == (ahead, not ahead)


def test_parameters_and_seconds_are_measured():
    models = results("vision_accuracy")["sets"]["mnist"]
    ours, theirs = (models[name]["0"]["parameters"] for name in ("WideNet", "convolutional"))
    assert f"WideNet has {ours:,} parameters, the convolutional network {theirs:,}" in " ".join(README.split())
    times = results("tabular_speed")["now"]["census-income, 99,762"]
    ratio = times["moe"]["fit"]["cpu"] / times["boosting"]["fit"]["cpu"]
    assert f"MoEClassifier takes {ratio:.0f} times boosting's" in " ".join(README.split())


def test_the_counts_of_all_defaults_are_those_of_the_table():
    (line,) = re.findall(r"^\| all \| (\d+) \| (\d+), (\d+), (\d+) \| (\d+), (\d+), (\d+) \|$", PAGE, flags=re.M)
    told = re.search(
        r"of (\d+) lines, ahead of the best part by more than one standard error on (\d+), level on (\d+), behind on "
        r"(\d+); against the rival (\d+), (\d+) and (\d+)",
        " ".join(README.split()),
    )
    assert told is not None
    assert told.groups() == line
