"""What the README claims stands in the files that its commands wrote. (That its code runs is in test_docs.py.)"""

import json
import re
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_blocks_are_short():
    assert len(blocks("python")) == 5
    assert len(blocks("yaml")) == 1
    for code in (*blocks("python"), *blocks("yaml")):
        assert len(code.strip().splitlines()) <= 12


def test_the_two_set_up_commands_stand_on_lines_of_their_own():
    lines = README.splitlines()
    assert lines.count("pip install -e . && moeapps demo") == 1
    assert lines.count('pip install -e ".[test]" && pytest') == 1


def test_the_table_is_what_the_demo_wrote():
    results = json.loads((ROOT / "docs/demo/results.json").read_text())
    assert len(results["rows"]) == 19
    assert f"{results['seeds']} seeds" in README
    assert f"{results['seconds']:.0f} seconds in all" in README
    for row in results["rows"]:
        name = row["model"].replace("*", "\\*")
        model = f"**{name}**" if row["ours"] else name
        scale, digits = (100, 2) if row["percent"] else (1, 4)
        score = f"{scale * row['mean']:.{digits}f} ± {scale * row['sd']:.{digits}f}"
        parameters = f" {row['parameters']:,} " if row["parameters"] else " "
        cells = f"| {row['task']} | {model} | {row['metric']} | {score} |{parameters}| {np.mean(row['seconds']):.1f} |"
        assert cells in README, cells


def test_the_speed_of_serving_is_what_the_benchmark_wrote():
    found = json.loads((ROOT / "benchmarks/results/serve_load.json").read_text())
    assert found["tables"]["wrong"] == found["stream"]["wrong"] == 0
    assert f"{found['tables']['requests_per_second']:.0f} answers of a table's model" in README
    assert f"{found['stream']['requests_per_second']:.0f} of a stream's" in README


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


def test_the_stream_table_is_what_the_benchmark_wrote():
    runs = json.loads((ROOT / "benchmarks/results/stream_accuracy.json").read_text())["runs"]
    columns = ("DriftMoE", "DriftMoE, task", "paper, data", "paper, task", "MOA ARF(10)", "MOA LevBag(10)")
    for name in ("elec", "rbf_fast", "rbf_moderate", "led_abrupt", "sea_abrupt"):
        seeds = [runs[f"{name}, {seed}"] for seed in range(3)]
        scores = [100 * np.array([run[column]["accuracy"] for run in seeds]) for column in columns]
        cells = " | ".join(f"{score.mean():.2f} ± {score.std():.2f}" for score in scores)
        assert f"| {name} | {cells} |" in README, (name, cells)


def test_the_table_of_speeds_is_what_the_benchmark_wrote():
    streams = json.loads((ROOT / "benchmarks/results/stream_speed.json").read_text())["streams"]
    for candidate in next(iter(streams.values())):
        cells = " | ".join(f"{np.median(rates[candidate]):,.0f}" for rates in streams.values())
        assert f"| {candidate} | {cells} |" in README, (candidate, cells)


def test_the_ablation_in_the_guide_is_what_the_benchmark_wrote():
    guide = (ROOT / "docs/stream.md").read_text()
    runs = json.loads((ROOT / "benchmarks/results/stream_ablation.json").read_text())["runs"]
    assert len(runs) >= 5
    for label in next(iter(runs.values())):
        cells = " | ".join(f"{100 * run[label]['accuracy']:.2f}" for run in runs.values())
        assert f"| {label} | {cells} |" in guide, (label, cells)


def test_the_tables_of_recommendation_are_what_the_benchmarks_wrote():
    runs = json.loads((ROOT / "benchmarks/results/recsys_accuracy.json").read_text())["runs"]
    assert len(runs["census"]) == 16

    def summary(values: list[float]) -> str:
        return f"{np.mean(values):.4f} ± {np.std(values):.4f}"

    for model, seeds in runs["census"].items():
        assert len(seeds) == 5
        rows = list(seeds.values())
        cells = [summary([row["auc"][task] for row in rows]) for task in ("income", "never_married")]
        parameters, seconds = rows[0]["parameters"], np.mean([row["seconds"] for row in rows])
        assert f"| {model} | {' | '.join(cells)} | {parameters:,} | {seconds:.0f} |" in README, model
    for model, seeds in runs["movielens"].items():
        assert len(seeds) == 5
        cells = [
            summary([row[part][metric] for row in seeds.values()])
            for part in ("all", "short")
            for metric in ("auc", "gauc", "ndcg@10")
        ]
        assert f"| {model} | {' | '.join(cells)} |" in README, model
    rates = json.loads((ROOT / "benchmarks/results/recsys_speed.json").read_text())["rates"]
    for model in next(iter(rates.values())):
        cells = [f"{np.median(found[model]):,.0f}" for found in rates.values()]
        assert f"| {model} | {' | '.join(cells)} |" in README, model
    for rows, run in json.loads((ROOT / "benchmarks/results/recsys_scoring.json").read_text())["runs"].items():
        cells = [
            f"{run[kind][value]:.0f}" for kind in ("predict", "fit, one epoch") for value in ("seconds", "peak_mib")
        ]
        assert f"| {int(rows):,} | {' | '.join(cells)} |" in README, rows


def test_the_tables_of_images_are_what_the_benchmarks_wrote():
    def summary(values: list[float]) -> str:
        return f"{np.mean(values):.4f} ± {np.std(values):.4f}"

    sets = json.loads((ROOT / "benchmarks/results/vision_accuracy.json").read_text())["sets"]
    for name, models in sets.items():
        for model, runs in models.items():
            scores = summary([run["accuracy"] for run in runs.values()])
            row = f"| {name} | {model} | {scores} | {len(runs)} | {runs['0']['parameters']:,} |"
            assert row in README, row
    found = json.loads((ROOT / "benchmarks/results/vision_diffusion.json").read_text())
    for model, runs in found["runs"].items():
        assert len(runs) == 3
        last = [run["curve"][-1] for run in runs.values()]
        cells = " | ".join(summary([point[name] for point in last]) for name in ("loss", "fid", "precision", "recall"))
        assert f"| {model} | {cells} | {runs['0']['parameters']:,} |" in README, model
    real = found["test images"]
    assert f"| test images | | {real['fid']:.4f} | {real['precision']:.4f} | {real['recall']:.4f} | |" in README
    speed = json.loads((ROOT / "benchmarks/results/vision_speed.json").read_text())
    for title in ("WideNet | ViT of equal FLOPs", "Switch-DiT | DiT"):
        for sizes, rows in speed[title].items():
            cells = " | ".join(f"{rows[kind]['ratio']:.2f}" for kind in rows if kind != "match")
            assert f"| {sizes} | {cells} |" in README, sizes
    assert len(speed["capacity"]) >= 3
    for row in speed["capacity"]:
        assert f"| {row['factor']} | {summary(row['accuracy'])} | {row['time']:.2f} |" in README, row


def test_the_table_of_routers_is_what_the_benchmark_wrote():
    guide = (ROOT / "docs/routing.md").read_text()
    found = json.loads((ROOT / "benchmarks/results/routers.json").read_text())
    assert len(found["runs"]) == 13
    for router, runs in found["runs"].items():
        score = [run["accuracy"] for run in runs]
        means = " | ".join(f"{np.mean([run[key] for run in runs]):.2f}" for key in ("experts", "max_load", "entropy"))
        cells = f"{np.mean(score):.4f} ± {np.std(score):.4f} | {means} | {found['time'][router]:.2f} |"
        assert re.search(rf"\| `{router}` \| [^|]+ \| {re.escape(cells)}", guide), (router, cells)


def test_the_table_of_serving_is_what_the_benchmark_wrote():
    guide = (ROOT / "docs/serve.md").read_text()
    found = json.loads((ROOT / "benchmarks/results/serve_load.json").read_text())
    for name in ("tables", "stream"):
        run = found[name]
        speed = f"{run['requests_per_second']:.0f} | {run['p50_ms']:.1f} | {run['p99_ms']:.1f}"
        rest = f"{run['wrong']} | {run['failed']} | {run['mib_before']:.0f} / {run['mib_after']:.0f}"
        assert f"| {speed} | {rest} |" in guide, (name, speed, rest)


def test_the_page_of_papers_quotes_our_benchmarks():
    page = (ROOT / "docs/papers.md").read_text()
    sets = json.loads((ROOT / "benchmarks/results/vision_accuracy.json").read_text())["sets"]
    for model, runs in sets["cifar10"].items():
        score = [run["accuracy"] for run in runs.values()]
        assert f"{np.mean(score):.4f} ± {np.std(score):.4f} | {runs['0']['parameters']:,} |" in page, model
    for runs in json.loads((ROOT / "benchmarks/results/vision_diffusion.json").read_text())["runs"].values():
        last = [run["curve"][-1]["fid"] for run in runs.values()]
        assert f"{np.mean(last):.4f} ± {np.std(last):.4f}" in page
    runs = json.loads((ROOT / "benchmarks/results/stream_accuracy.json").read_text())["runs"]
    for column in ("paper, data", "paper, task", "DriftMoE"):
        score = [100 * runs[f"elec, {seed}"][column]["accuracy"] for seed in range(3)]
        assert f"{np.mean(score):.2f} ± {np.std(score):.2f}" in page, column
