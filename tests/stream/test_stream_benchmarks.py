"""The parts of the stream benchmarks that decide what their figures mean."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks"))
import stream_accuracy
import stream_models
import stream_recovery
import stream_sets
import stream_tables

ROOT = Path(__file__).parent.parent.parent


def options(tmp_path, **changes):
    defaults = {
        "data": None, "streams": ["digits", "sea_recurring"], "models": ["river HT"], "n": 600, "limit": 80, "seeds": 2,
        "ablation": False, "list": False, "table": False, "cache": tmp_path,
    }  # fmt: skip
    return Namespace(**{**defaults, **changes})


def measure(tmp_path, monkeypatch, **changes):
    """Run a small part; returns what was printed."""
    monkeypatch.setattr(stream_accuracy, "warm_up", lambda *models: None)
    results = stream_accuracy.Results(tmp_path / "out.json")
    console = Console(width=200, record=True, quiet=False)
    stream_accuracy.run(options(tmp_path, **changes), "stream_accuracy", results, console)
    return console.export_text()


def test_every_result_is_kept_and_what_is_there_is_not_run_again(tmp_path, monkeypatch):
    assert measure(tmp_path, monkeypatch, seeds=1).count(" river HT ") == 2
    assert measure(tmp_path, monkeypatch, seeds=1) == ""
    # the second seed
    printed = measure(tmp_path, monkeypatch)
    assert "digits, 1" in printed
    assert "digits, 0" not in printed
    kept = json.loads((tmp_path / "out.json").read_text())
    assert set(kept["runs"]) == {"digits, 0", "digits, 1", "sea_recurring, 0", "sea_recurring, 1"}
    assert kept["runs"]["digits, 0"]["river HT"]["n"] == 80
    assert 0 < kept["runs"]["digits, 0"]["river HT"]["accuracy"] <= 1


def test_figures_of_an_earlier_version_are_not_mixed_with_new_ones(tmp_path):
    (tmp_path / "old.json").write_text(json.dumps({"machine": {}, "runs": {"elec, 0": {"MOA ARF(10)": {}}}}))
    with pytest.raises(SystemExit, match="earlier version"):
        stream_accuracy.Results(tmp_path / "old.json")


def test_without_capymoa_moa_is_marked_absent_and_the_rest_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(stream_accuracy, "no_capymoa", lambda: "pip install capymoa")
    printed = measure(tmp_path, monkeypatch, models=["river HT", "MOA"], streams=["digits", "elec"], seeds=1)
    assert "MOA              absent: pip install capymoa" in printed
    assert "elec             absent: give its folder with --data" in printed
    assert "digits, 0" in printed
    runs = {"digits, 0": {"DriftMoE": {"accuracy": 0.9, "per_second": 1.0}}}
    console = Console(width=100, record=True)
    console.print(stream_tables.table(runs))
    assert "absent" in next(line for line in console.export_text().splitlines() if "MOA SAM-kNN" in line)


def test_ahead_and_behind_mean_more_than_one_standard_error():
    def runs(ours, theirs):
        return {
            f"elec, {seed}": {"DriftMoE": {"accuracy": mine}, "MOA ARF(10)": {"accuracy": other}}
            for seed, (mine, other) in enumerate(zip(ours, theirs, strict=True))
        }

    (line,) = stream_tables.comparisons(runs([0.9, 0.91, 0.92], [0.88, 0.88, 0.88]))
    assert line.startswith("DriftMoE and MOA ARF(10): ahead on 1 (elec +3.00)")
    (line,) = stream_tables.comparisons(runs([0.9, 0.91, 0.92], [0.93, 0.90, 0.91]))
    assert "within one s.e. on 1 (elec -0.33)" in line
    ours = {0: 90.0, 1: 91.0, 2: 92.0}
    assert stream_tables.difference(ours, {0: 90.0}, fixed=True) == (1.0, pytest.approx(1 / np.sqrt(3)))
    assert stream_tables.difference(ours, {0: 89.0}) == (1.0, 0.0)  # other instances with another seed


def test_rows_of_the_page_are_made_from_the_results():
    found = {f"elec, {seed}": {"DriftMoE": {"accuracy": 0.9}, "MOA kNN": {"accuracy": 0.95}} for seed in range(2)}
    rows = list(stream_tables.pages(found))
    assert rows[2] == "| elec | 90.00 ± 0.00 |  |  |  |  |  |  | 95.00 ± 0.00 |  |"
    assert "| MOA kNN | 0 | 0 | 1: elec -5.00 |" in rows


def test_sizes_of_ensembles_are_equal_where_their_labels_say_so():
    for label, rival in stream_models.MOA.items():
        if label.endswith(")"):
            assert int(label.rpartition("(")[2][:-1]) in rival.arguments.values(), label
    assert stream_models.OURS["DriftMoE(10)"](0).n_experts == 10
    assert stream_models.OURS["DriftMoE"](0).n_experts == 12
    for label in ("river ARF(12)", "river SRP(10)"):
        assert stream_models.RIVER[label].make(0).n_models == int(label[-3:-1])


def test_a_file_for_moa_has_the_same_numbers(tmp_path):
    rng = np.random.default_rng(0)
    stream = stream_sets.Stream("small", rng.normal(size=(20, 3)), rng.integers(0, 4, 20))
    path = stream_models.arff(stream, 0, tmp_path)
    from scipy.io import arff

    rows, meta = arff.loadarff(path)
    assert np.array_equal(np.array([[row[f"f{i}"] for i in range(3)] for row in rows]), stream.X)
    assert [int(row["class"]) for row in rows] == stream.y.tolist()
    assert meta["class"][1] == ("0", "1", "2", "3")


def test_classes_of_the_digits_come_and_go():
    _, y = stream_sets.digits(0)
    assert len(y) == 1797
    early, late = set(y[:300].tolist()), set(y[-300:].tolist())
    assert len(early | late) > len(early) > 2
    assert not early & late
    assert not np.array_equal(y, stream_sets.digits(1)[1])


def test_a_recovery_is_counted_from_the_return_of_the_concept():
    n, every = 4000, 1000
    stream = stream_sets.Stream("x", np.zeros((n, 1)), np.zeros(n, int), (1000, 2000, 3000), (0, 1, 0, 1))
    assert stream_recovery.turns(stream) == [(2000, 3000, 0, 1000), (3000, 4000, 1000, 2000)]
    place = np.arange(n) % every
    quick, slow, never = place >= 100, place >= 600, (np.arange(n) < 2000)
    found = stream_recovery.recoveries({"a": quick, "b": slow}, stream, ("a", "b"))
    # b was right on 80 % of the second half of the turn before, so 79 % of 250 are the level of both: 198 hits
    assert found == {"a": [298, 298], "b": [798, 798]}
    assert stream_recovery.recoveries({"a": quick, "b": never}, stream, ("a", "b"))["b"] == [1000, 1000]


def test_a_shorter_stream_keeps_its_drifts():
    stream = stream_sets.Stream("x", np.zeros((40, 1)), np.zeros(40, int), (10, 20, 30), (0, 1, 0, 1))
    assert stream.first(25).drifts == (10, 20)
    assert stream.first(25).concepts == (0, 1, 0)
    assert stream.first(None).drifts == stream.drifts
