"""What the README shows runs, and what it claims stands in the files that its commands wrote."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from moeapps.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.filterwarnings("ignore")
def test_the_python_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table, graph = blocks("python")
    for code in (table, graph):
        assert len(code.strip().splitlines()) <= 12
        exec(compile(code, "README.md", "exec"), {})
        assert float(capsys.readouterr().out.split()[0]) > 0.8


def test_the_yaml_block_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = blocks("yaml")
    assert len(text) == 1
    assert len(text[0].strip().splitlines()) <= 12
    Path("mowst.yaml").write_text(text[0])
    short = ["--trainer.max_epochs", "4", "--trainer.enable_progress_bar", "false"]
    assert main(["fit", "--config", "mowst.yaml", *short]) == 0
    assert Path("moeapps-runs/version_0/checkpoints/last.ckpt").exists()


def test_the_two_set_up_commands_stand_on_lines_of_their_own():
    lines = README.splitlines()
    assert lines.count("pip install -e . && moeapps demo") == 1
    assert lines.count('pip install -e ".[test]" && pytest') == 1


def test_the_table_is_what_the_demo_wrote():
    results = json.loads((ROOT / "docs/demo/results.json").read_text())
    for row in results["rows"]:
        cells = f"| {row['model']} | {100 * row['mean']:.2f} ± {100 * row['sd']:.2f} % | {row['parameters']:,} |"
        assert cells in README, cells


def test_the_dispatch_table_is_what_the_benchmark_wrote():
    results = json.loads((ROOT / "benchmarks/results/core_dispatch.json").read_text())
    assert len(results["rows"]) == 6
    for row in results["rows"]:
        size = ", ".join(str(value) for value in row["size"].values())
        ratios = " | ".join(f"{value:.2f}" for value in row["ratio"].values())
        memory = f"{row['peak_mib']['auto']:.0f} / {row['peak_mib']['dense']:.0f}"
        assert f"| {size} | {ratios} | {memory} |" in README, (size, ratios, memory)


def test_the_table_of_tables_is_what_the_benchmark_wrote():
    results = json.loads((ROOT / "benchmarks/results/tabular.json").read_text())
    for name, found in results["sets"].items():
        scores = [np.array(entry["score"]) for entry in found["models"].values()]
        cells = " | ".join(f"{score.mean():.4f} ± {score.std():.4f}" for score in scores)
        assert f"| {name}, {found['metric']} | {cells} |" in README, (name, cells)


def test_the_surgery_table_is_what_the_benchmark_wrote():
    results = json.loads((ROOT / "benchmarks/results/surgery.json").read_text())
    for name, entry in results["models"].items():
        accuracy = np.array(entry["accuracy"])
        row = f"| {name} | {accuracy.mean():.4f} ± {accuracy.std():.4f} | {entry['parameters'][0]:,} |"
        assert row in README, row


def test_the_graph_table_is_what_the_benchmark_wrote():
    runs = json.loads((ROOT / "benchmarks/results/graph_accuracy.json").read_text())["runs"]
    assert len(runs) >= 7
    for key, run in runs.items():
        scores = [100 * np.array(model["score"]) for model in run["models"].values()]
        cells = " | ".join(f"{score.mean():.2f} ± {score.std():.2f}" for score in scores)
        assert f"| {key}, {run['metric']} | {cells} |" in README, (key, cells)


def test_every_link_to_a_file_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
