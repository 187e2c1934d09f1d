"""The benchmark of a large graph runs on a small one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
def test_the_benchmark_of_a_large_graph_runs_on_a_small_one(tmp_path):
    script, out = str(ROOT / "benchmarks/graph_scale.py"), tmp_path / "out.json"
    command = [sys.executable, script, "--folder", str(tmp_path), "--small", "--epochs", "2", "2", "6"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    subprocess.run([*command, "--output", str(out)], check=True, env={**os.environ, "PYTHONPATH": path})
    found = json.loads(out.read_text())
    assert set(found["models"]) == {"MLP", "SAGE", "Mowst*"}
    assert found["edges"] == 100_000
    assert found["curve"][0]["strong"] == 0
    assert found["curve"][-1]["strong"] == 1
    assert (tmp_path / "small/edge_source.npy").exists()
