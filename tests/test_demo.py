"""The demo: a table that grows, results.json, pictures and a report, for any number of seeds and any part."""

import json

import numpy as np
import pytest
from rich.console import Console

import moeapps.demo
from moeapps import demo
from moeapps.cli.main import main
from moeapps.core.errors import ConfigError
from moeapps.demo import blocks
from moeapps.demo.record import Recorder, Row

MODELS = {
    "tables": ["logistic regression", "MoEClassifier"],
    "graph": ["MLP alone", "GCN alone", "Mowst, in turns", "Mowst*, jointly", "mixture of networks"],
    "stream": ["Hoeffding tree", "adaptive forest (10)", "DriftMoE"] * 2,
    "recsys": ["Shared-Bottom", "MMoE", "HoME"],
    "vision": ["ViT", "WideNet", "DiT", "Switch-DiT"],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", MODELS)
def test_a_part_prints_a_table_and_writes_results_pictures_and_a_report(
    part, short_trainings, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(blocks, "DRIFTING", 300)
    seeds = 2 if part == "tables" else 1
    rows = demo.run(str(tmp_path / "out"), seeds=seeds, part=part)
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [row.model for row in rows] == [row["model"] for row in results["rows"]] == MODELS[part]
    page = (tmp_path / "out/report.html").read_text()
    for row, found in zip(rows, results["rows"], strict=True):
        assert f"{row.shown}" in printed
        assert len(found["scores"]) == len(found["seconds"]) == seeds
        assert all(0 <= score <= 1.5 for score in found["scores"])
        assert f"<h2>{row.model}, {row.task}</h2>" in page
    mixtures = [row for row in rows if row.ours]
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
        Row("p", "task", "baseline", "accuracy", ours=False),
        Row("p", "task", "ours", "error", ours=True, percent=False),
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


def test_what_is_impossible_is_named_before_anything_runs(tmp_path, capsys):
    with pytest.raises(ConfigError, match="--seeds must be at least 1, got 0"):
        demo.run(str(tmp_path), seeds=0)
    with pytest.raises(ConfigError, match="part must be one of"):
        demo.run(str(tmp_path), part="nonsense")
    with pytest.raises(SystemExit):
        main(["demo", "nonsense"])
    assert "invalid choice: 'nonsense'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_parts_by_their_name_of_0_1_warn():
    with pytest.warns(DeprecationWarning, match="PARTS has the names"):
        blocks = moeapps.demo.BLOCKS
    assert tuple(blocks) == moeapps.demo.PARTS
    assert all(callable(part) for part in blocks.values())
