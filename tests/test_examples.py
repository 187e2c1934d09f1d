"""The examples: every YAML is understood, those on embedded data train, every script runs on a small budget."""

import runpy
import sys
from pathlib import Path

import pytest

from moeapps.cli.main import main

EXAMPLES = Path(__file__).parent.parent / "examples"
CONFIGS = sorted(EXAMPLES.glob("*/*.yaml"))
EMBEDDED = [path for path in CONFIGS if path.name.endswith(("cora.yaml", "census.yaml", "digits.yaml"))]
# on less data: tests/tables/mixture/test_module.py, tests/graph/test_links.py and tests/graph/test_graph_sets.py;
# on all of it, among the slow tests that CI runs: the code of docs/mixture.md and docs/graph_tasks.md
SLOW = {"mixture_census", "links_cora", "ego_nets_cora"}
SCRIPTS = {
    "core/wine.py": [],
    "graph/mowst_cora.py": [],
    "graph/search.py": ["--trials", "1", "--seeds", "1", "--strong", "gcn"],
    "recsys/census.py": ["--epochs", "1"],
    "stream/drift_led.py": ["--n", "800"],
    "tables/mixture_cost.py": ["--rows", "300"],
    "tables/mixture.py": [],
    "tables/report.py": ["--rows", "200"],
    "vision/digits.py": ["--epochs", "1", "--steps", "3", "--images", "450"],
}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_is_understood(config, capsys):
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(config), "--print_config"])
    assert not end.value.code
    assert "class_path: moeapps." in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "config", [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in SLOW)) for path in EMBEDDED]
)
def test_those_on_embedded_data_train_and_are_drawn(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = ["--trainer.max_epochs=2", "--trainer.limit_train_batches=4", "--trainer.enable_progress_bar=false"]
    assert main(["fit", "--config", str(config), *short]) == 0
    assert main(["report", "moeapps-runs"]) == 0
    page = Path("moeapps-report.html").read_text()
    inside = {"mixture": "load of the experts", "widenet": "experts by class",
              "switch_dit": "weight of experts by timestep",
              "home": "mean weight of experts by gate", "mowst": "confidence, validation nodes"}  # fmt: skip
    for name, seen in inside.items():
        if config.stem.startswith(name):
            assert seen in page


def test_no_script_is_forgotten():
    assert {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.glob("*/*.py")} == set(SCRIPTS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_runs(script, short_trainings, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, *SCRIPTS[script]])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    assert capsys.readouterr().out
