"""Every figure of the tables in docs/graph_tasks.md stands in the file that its script wrote."""

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs/graph_tasks.md").read_text()


@pytest.mark.parametrize("task", ["links", "graphs"])
def test_every_row_of_results_is_what_the_script_makes_of_its_file(task, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    script = importlib.import_module("graph_tasks")
    found = json.loads((ROOT / "benchmarks/results/graph_tasks.json").read_text())[task]
    assert len(found) >= 3
    assert all(len(runs) >= 3 for runs in found.values())
    assert "\n".join(script.table(task, found)) in PAGE
