"""The demo: a table that grows, results.json, pictures and a report, for any number of seeds and any part."""

import json
from functools import partial

import numpy as np
import pytest
from rich.console import Console
from river.datasets import Phishing
from sklearn.datasets import load_digits
from sklearn.utils import Bunch

import moeapps.demo
import moeapps.tables
from moeapps import demo
from moeapps.cli.main import main
from moeapps.core.errors import ConfigError
from moeapps.demo import blocks
from moeapps.demo.record import Recorder, Row, summarised
from moeapps.recsys import census_income
from moeapps.tables import MixtureClassifier

MEMBERS = ["logistic regression", "boosting", "random forest", "MoEClassifier", "mean of the four", "MixtureClassifier"]
TWO, SHARED = ["MLP alone", "GCN alone"], ["Shared-Bottom"]
MODELS = {
    "tables": MEMBERS * 2,
    "graph": ["MLP alone", "GCN alone", "MowstClassifier", *TWO, "Mowst*, jointly", "MowstClassifier"],
    "stream": ["Hoeffding tree", "adaptive forest (10)", "nearest neighbours", "DriftMoE, no router", "DriftMoE"] * 3,
    "recsys": [
        "boosting per target",
        *SHARED,
        "MMoE",
        "HoME",
        "boosting per target",
        "a network per group",
        *SHARED,
        "PEPNet",
        "HoME",
    ],
    "vision": ["convolutional", "ViT of equal FLOPs", "WideNet", "DiT", "Switch-DiT"],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", MODELS)
def test_a_part_prints_a_table_and_writes_results_pictures_and_a_report(
    part, short_trainings, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(blocks, "DRIFTING", 300)
    monkeypatch.setattr(blocks, "ROWS", 80)
    digits = load_digits()
    few = Bunch(images=digits.images[:250], target=digits.target[:250])
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda: few)
    people, sites = census_income()[:3000], [*Phishing()][:300]
    monkeypatch.setattr("moeapps.recsys.census_income", lambda: people)
    monkeypatch.setattr("river.datasets.Phishing", lambda: sites)
    monkeypatch.setattr(moeapps.tables, "MixtureClassifier", partial(MixtureClassifier, cv=2))
    rows = demo.run(str(tmp_path / "out"), seeds=1, part=part)
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [row.model for row in rows] == [row["model"] for row in results["rows"]] == MODELS[part]
    page = (tmp_path / "out/report.html").read_text()
    for row, found in zip(rows, results["rows"], strict=True):
        assert f"{row.shown}" in printed
        assert len(found["scores"]) == len(found["seconds"]) == 1
        assert all(0 <= score <= 1.5 for score in found["scores"])
        assert f"<h2>{row.model}, {row.task}</h2>" in page
    tasks = list(dict.fromkeys(row.task for row in rows))
    assert [line["task"] for line in results["summary"]] == tasks
    assert all(line["part"]["verdict"] in ("ahead", "mixed", "behind") for line in results["summary"])
    mixtures = [row for row in rows if row.default]
    assert mixtures
    assert all(row.views.maps or row.views.curves for row in mixtures)
    for path in (tmp_path / "out").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    if part == "graph":
        assert results["rows"][0]["parameters"] == 1433 * 64 + 64 + 64 * 7 + 7
        assert all(0 <= row.notes["strong"][0] <= 1 for row in rows)


def test_the_table_shows_what_has_finished():
    console = Console(force_terminal=True, width=100, record=True)
    baseline, ours = (
        Row("p", "task", "baseline", "accuracy", rival=True),
        Row("p", "task", "ours", "error", default=True, percent=False),
    )
    with Recorder(console, seeds=2) as recorder:
        recorder.add(baseline, ours)
        for seed, score in enumerate((0.5, 0.7)):
            with recorder.training(baseline, seed):
                pass
            recorder.score(baseline, score, 1234)
        console.print(recorder.table())
        assert "ours" not in console.export_text(clear=False).split("accuracy and ROC-AUC")[0]
        with recorder.training(ours, 0):
            pass
        recorder.score(ours, 0.25, strong=0.5)
    console.print(recorder.table())
    text = console.export_text()
    assert f"60.00 +- {100 * np.std([0.5, 0.7], ddof=1):.2f}" in text
    assert "0.2500 +- 0.0000" in text
    assert recorder.results()[1]["notes"] == {"strong": [0.5]}


def filled(model: str, scores: list[float], **roles: bool) -> Row:
    return Row("p", "task", model, "accuracy", scores=scores, seconds=[1.0] * len(scores), **roles)


def test_the_summary_compares_the_default_with_the_best_part_and_the_best_rival():
    rows = [
        filled("small", [0.5, 0.6], part=True),
        filled("large", [0.7, 0.7], part=True, rival=True),
        filled("forest", [0.8, 0.9], rival=True),
        filled("variant", [1.0, 1.0]),
        filled("ours", [0.75, 0.95], default=True),
    ]
    (line,) = summarised(rows)
    assert (line.part.model, line.part.verdict) == ("large", "ahead")
    assert line.part.mean == pytest.approx(0.15)
    assert (line.rival.model, line.rival.verdict) == ("forest", "mixed")
    assert [row.ours for row in rows] == [False, False, False, True, True]


def test_where_less_is_better_the_difference_is_turned():
    rows = [filled("rival", [0.2, 0.3], rival=True), filled("ours", [0.3, 0.4], default=True, less=True)]
    (line,) = summarised(rows)
    assert line.part is None
    assert (line.rival.mean, line.rival.verdict) == (pytest.approx(-0.1), "behind")


def test_a_task_is_summarised_once_all_its_models_are_trained():
    assert summarised([filled("rival", [0.2], rival=True), filled("ours", [0.3, 0.4], default=True)]) == []


def test_what_is_impossible_is_named_before_anything_runs(tmp_path, capsys):
    with pytest.raises(ConfigError, match="--seeds must be at least 1, got 0"):
        demo.run(str(tmp_path), seeds=0)
    with pytest.raises(ConfigError, match="part must be one of"):
        demo.run(str(tmp_path), part="nonsense")
    with pytest.raises(SystemExit):
        main(["demo", "nonsense"])
    assert "got 'nonsense'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_parts_by_their_name_of_0_1_warn():
    with pytest.warns(DeprecationWarning, match="PARTS has the names"):
        blocks = moeapps.demo.BLOCKS
    assert tuple(blocks) == moeapps.demo.PARTS
    assert all(callable(part) for part in blocks.values())
