"""The demo: a table, results.json and pictures, for any number of seeds."""

import json

import pytest

from moeapps import demo
from moeapps.core.errors import ConfigError
from moeapps.graph import GNNClassifier, MowstClassifier


@pytest.fixture
def quick(monkeypatch):
    """Let every model train for a few epochs only."""
    for kind in (GNNClassifier, MowstClassifier):
        fit = kind.fit
        monkeypatch.setattr(
            kind, "fit", lambda self, *args, fit=fit: fit(self.set_params(max_epochs=4, patience=1), *args)
        )


def test_the_demo_prints_a_table_and_writes_results_and_pictures(quick, tmp_path, capsys):
    rows = demo.run(str(tmp_path / "out"), seeds=2)
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [row["model"] for row in results["rows"]] == [row.model for row in rows]
    assert len(rows) == 4
    for row in results["rows"]:
        assert row["model"] in printed
        assert f"{100 * row['mean']:.2f} +- {100 * row['sd']:.2f}" in printed
        assert len(row["scores"]) == len(row["seconds"]) == len(row["strong"]) == 2
        assert all(0 <= score <= 1 for score in row["scores"])
    assert results["rows"][0]["parameters"] == 1433 * 64 + 64 + 64 * 7 + 7
    for name in ("graph-training.png", "graph-confidence.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_an_impossible_number_of_seeds_is_named(tmp_path):
    with pytest.raises(ConfigError, match="--seeds must be at least 1, got 0"):
        demo.run(str(tmp_path), seeds=0)
    assert list(tmp_path.iterdir()) == []
