"""Every figure of the benchmark pages, and of the tables in the guides, stands in the file that its script wrote."""

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
PAGE = "\n".join(
    path.read_text() for path in (ROOT / "docs/benchmarks.md", *sorted((ROOT / "docs/benchmarks").glob("*.md")))
)


def results(name: str) -> Any:
    return json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())


def guide(name: str) -> str:
    return (ROOT / f"docs/{name}.md").read_text()


def summary(values: Any, digits: int = 4, scale: float = 1.0) -> str:
    values = scale * np.asarray(values)
    return f"{values.mean():.{digits}f} ± {values.std():.{digits}f}"


def script(name: str) -> Any:
    """A benchmark as a module; it imports its neighbours by their bare names."""
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)


RUN_ALL = script("run_all")


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/results").glob("*.json")), ids=lambda path: path.stem)
def test_every_result_has_a_script(path):
    scripts = {"stream_ablation": "stream_accuracy", "stream_parts": "stream_accuracy"}
    scripts |= {"gpu": "gpu/run", "gpu_rehearsal": "gpu/run"}
    assert (ROOT / f"benchmarks/{scripts.get(path.stem, path.stem)}.py").exists()


def test_every_script_that_the_page_names_exists():
    for name in re.findall(r"benchmarks/(\w+)\.py", PAGE):
        assert (ROOT / f"benchmarks/{name}.py").exists(), name


@pytest.mark.parametrize("name", RUN_ALL.PRINTED)
def test_writing_the_tables_of_the_results_changes_no_page(name):
    pages, lines = RUN_ALL.PRINTED[name]
    found = json.loads(RUN_ALL.results_file(name).read_text())
    printed = "\n".join(lines(None if name == "demo" else script(name), found))
    missing = set(printed.splitlines())
    for page in pages:
        written, unplaced = script("page_tables").replaced(guide(page), printed)
        assert written == guide(page), "benchmarks/run_all.py --pages"
        missing &= set(unplaced)
    assert not missing


def test_demo():
    demo = json.loads((ROOT / "docs/demo/results.json").read_text())
    text = " ".join(PAGE.split())
    assert demo["machine"]["threads"] == 2
    assert f"{demo['seeds']} seeds, {demo['seconds']:.0f} seconds on two quiet processors" in text
    assert {row["package"] for row in demo["rows"]} == {"tables", "graph", "stream", "recsys", "vision"}
    assert [line["task"] for line in demo["summary"]] == list(dict.fromkeys(row["task"] for row in demo["rows"]))


def test_defaults_are_those_of_the_other_results():
    defaults, found = script("defaults"), results("defaults")
    collected = json.loads(json.dumps(defaults.collect(results, found["runs"])))
    assert found["lines"] == collected, "run benchmarks/defaults.py --page"
    assert set(found["sources"]) == set(defaults.SOURCES)


def test_tables_beside_boosting_in_speed():
    found = results("tabular_speed")
    for when in ("before", "now"):
        for name, entry in found[when].items():
            cells = []
            for what in ("fit", "predict"):
                ours, boosting = (entry[model][what]["cpu"] for model in ("moe", "boosting"))
                cells += [f"{ours:.2f}", f"{boosting:.2f}", f"{ours / max(boosting, 1e-3):.1f}"]
            row = f"| {name}, {when} | {entry['moe']['epochs']} | {' | '.join(cells)} |"
            assert row in PAGE, row
    fits = [found["now"][f"census-income, {rows}"] for rows in ("2,000", "99,762")]
    ratios = [entry["moe"]["fit"]["cpu"] / entry["boosting"]["fit"]["cpu"] for entry in fits]
    text = " ".join(PAGE.split())
    assert f"{ratios[0]:.0f} times boosting's time for 2,000 rows and {ratios[1]:.0f} times for all" in text


def test_what_each_part_of_the_tables_defaults_brings():
    found = results("tabular_ablation")
    runs = [run for run in found["runs"].values() if "RandomForest" in run]  # the last of a table and seed
    parts = {
        "classification": [run for run in runs if "label_smoothing=0.1" in run],
        "regression": [run for run in runs if "label_smoothing=0.1" not in run],
    }
    text = " ".join(PAGE.split())
    assert f"at most {found['rows']:,} rows" in text
    number = {task: len(part) for task, part in parts.items()}
    assert f"{number['classification']} of classification and {number['regression']} of regression" in text

    def cell(differences, digits):
        if len(differences) < 2:
            return ""
        mean, error = np.mean(differences), np.std(differences, ddof=1) / len(differences) ** 0.5
        text = f"{mean:+.{digits}f} ± {error:.{digits}f}"
        return f"**{text}**" if abs(mean) > 2 * error else text

    names = list(parts["classification"][0])
    assert len(names) == 16
    for name in names:
        measured = [run for run in runs if name in run]
        cells = []
        for part in parts.values():
            pairs = [(run[name], run["default"]) for run in part if name in run]
            cells.append(cell([100 * (ours["score"] - default["score"]) for ours, default in pairs], 2))
            cells.append(cell([100 * (ours["loss"] / default["loss"] - 1) for ours, default in pairs], 1))
        cells = [""] * 4 if name == "default" else cells
        seconds = np.mean([run[name]["fit"] for run in measured])
        row = re.sub(" +", " ", f"| {' | '.join([name, *cells, f'{seconds:.1f}'])} |")
        assert row in PAGE.replace("`", ""), row


def test_mixtures_of_tables():
    mixtures, found = script("mixtures"), results("mixtures")
    kept, tables = 0, 0
    for task in ("classification", "regression"):
        promises = mixtures.promises(found, task)
        kept, tables = kept + int(promises["kept"].sum()), tables + len(promises)
    text = " ".join(PAGE.split())
    assert f"kept on {kept} of {tables} tables" in text
    assert f"On {kept} of {tables} public tables it was not behind its best member" in " ".join(
        guide("mixture").split()
    )
    lost = [100 * mixtures.promises(found, task)["lost at half"].max() for task in ("classification", "regression")]
    assert f"at most {lost[0]:.2f} points of accuracy, and in regression at most {lost[1]:.2f} points of R2" in text
    assert all(len(splits) == 5 for splits in found["tables"].values())


def test_surgery():
    for name, entry in results("surgery")["models"].items():
        row = f"| {name} | {summary(entry['accuracy'])} | {entry['parameters'][0]:,} |"
        assert row in PAGE, row


def test_graph_accuracy():
    runs = results("graph_accuracy")["runs"]
    assert len({key.rpartition(", ")[0] for key in runs}) == 7
    graph_accuracy = script("graph_accuracy")
    gains = [
        graph_accuracy.gain(
            graph_accuracy.scores_of(runs, name, "mixture"),
            graph_accuracy.scores_of(runs, name, graph_accuracy.best_expert(runs, name)),
        )
        for name in graph_accuracy.GRAPHS
    ]
    ahead, behind = (sum(sign * mean > error for mean, error in gains) for sign in (1, -1))
    assert (
        f"ahead of the best expert by more than one standard error on {ahead} of 7 graphs, behind on {behind}" in PAGE
    )


def test_graph_cost():
    run = results("graph_cost")["tolokers, gcn"]
    chosen = run["chosen"]["of the GNN"]
    assert f"{100 * chosen['strong']:.0f} % of the nodes" in PAGE
    assert f"need {100 * chosen['edges']:.0f} % of the edges" in PAGE
    assert run["alone"]["GNN alone"] - chosen["score"] < 0.002
    whole, pieces = ([1000 * t for t in run["seconds"][f"of the GNN, {how}"].values()] for how in ("whole", "batches"))
    assert f"{whole[0]:.0f} ms against the GCN's {whole[1]:.0f} on the whole graph" in PAGE
    assert f"{pieces[0]:.0f} against {pieces[1]:.0f} in pieces of 500 nodes" in PAGE


def test_large_graph():
    found, page = results("graph_scale"), guide("large_graphs")
    assert (found["nodes"], found["edges"]) == (2_400_000, 62_000_000)
    for name, run in found["models"].items():
        predict = run["predict all"]
        memory = max(run["fit"]["anonymous GiB"], predict["anonymous GiB"])
        cells = [f"{run['seconds an epoch']['cpu']:.1f}", f"{predict['cpu']:.1f}", f"{memory:.1f}"]
        cells += [f"{predict['resident GiB so far']:.1f}", f"{100 * run['score']:.2f}"]
        assert f"| {name.replace('*', chr(92) + '*')} | {run['epochs']} | {' | '.join(cells)} |" in page, name
    for row in found["curve"]:
        share = f"{100 * row['strong']:.0f} % | {100 * row['edges']:.0f} % | {100 * row['score']:.2f}"
        assert f"| {share} | {row['seconds'] / row['alone']:.2f} |" in page, share
    assert f"peaks at {found['resident GiB']:.2f} GiB with files" in page


def test_graph_trainings():
    runs = results("graph_speed")["trainings"]["Cora"]
    base = np.median(runs["PyG loop"]["cpu"])
    for name, run in runs.items():
        cpu = np.median(run["cpu"])
        cells = f"{np.median(run['epochs']):.0f} | {cpu:.1f} | {cpu / base:.2f} | {100 * np.mean(run['score']):.1f}"
        assert f"| {name.replace('*', chr(92) + '*')} | {cells} |" in guide("large_graphs"), name


def test_stream_accuracy():
    stream_tables, runs = script("stream_tables"), results("stream_accuracy")["runs"]
    assert len({key.rpartition(",")[0] for key in runs}) == 10
    for rival in ("river ARF(10)", "river AMF(10)"):
        found = stream_tables.comparison(runs, stream_tables.first("DriftMoE"), rival)
        told = f"{rival} on {len(found['ahead'])} of {sum(map(len, found.values()))}"
        assert told in PAGE, (told, found)
    flights = runs["flights, 0"]
    pair = [100 * flights[name]["accuracy"] for name in ("river AMF(10)", stream_tables.first("DriftMoE"))]
    assert f"{pair[0]:.2f} against {pair[1]:.2f}" in PAGE


def test_stream_speed():
    speed = results("stream_speed")
    streams = speed["streams"]
    for candidate in next(iter(streams.values())):
        cells = " | ".join(f"{np.median(rates[candidate]):,.0f}" for rates in streams.values())
        assert f"| {candidate} | {cells} |" in PAGE, (candidate, cells)
    ratios = [
        f"{np.median(rates['DriftMoE, one by one']) / np.median(rates[rival]):.2f}"
        for rival in ("MOA LevBag(10), ARFF", "MOA ARF(10), ARFF")
        for rates in streams.values()
    ]
    assert f"has {ratios[0]} and {ratios[1]} times the rate of LevBag(10)" in PAGE
    assert f"and {ratios[2]} and {ratios[3]} times\nthat of ARF(10)" in PAGE
    gains = [
        np.median(streams[name][f"DriftMoE, {way}, two threads"]) / np.median(streams[name][f"DriftMoE, {way}"])
        for name, way in (("elec", "learn many"), ("rbf_fast", "test then train"))
    ]
    assert f"Two threads bring {gains[0]:.2f} and {gains[1]:.2f} times one thread" in PAGE
    assert f"the first 2,000 instances take {speed['first_use']['seconds']:.0f} seconds" in PAGE
    imported = speed["import"]
    told = f"{imported['cpu_seconds']:.1f} seconds of processor time and {imported['resident_mib']:.0f} MiB of memory"
    assert f"Importing DriftMoE takes {told}" in PAGE


@pytest.mark.parametrize("name", ["stream_parts", "stream_ablation"])
def test_what_each_part_of_a_stream_model_brings(name):
    runs = results(name)["runs"]
    assert len(runs) == 5
    for label in next(iter(runs.values())):
        cells = " | ".join(f"{100 * run[label]['accuracy']:.2f}" for run in runs.values())
        assert f"| {label} | {cells} |" in guide("stream"), (label, cells)


def test_what_the_guide_says_of_the_default_of_streams():
    runs = results("stream_parts")["runs"].values()
    behind = [max(entry["accuracy"] for entry in run.values()) - run["default"]["accuracy"] for run in runs]
    assert sum(gap <= 0.001 for gap in behind) == 4
    assert f"on\ndigits it is {100 * behind[-1]:.2f} better without trees" in guide("stream")
    led = results("stream_accuracy")["runs"]["led_abrupt, 0"]["DriftMoE"]
    assert f"(LED, 100,000 instances) the default ends\nwith {led['bytes'] / 2**20:.0f} MiB" in guide("stream")


def test_recovery_of_streams():
    stream_recovery, found = script("stream_recovery"), results("stream_recovery")
    for name in stream_recovery.RECURRING:
        runs = [run for key, run in found["runs"].items() if key.startswith(f"{name},")]
        cells = []
        for model in stream_recovery.MODELS:
            ours, theirs = (
                np.median(np.concatenate([run[model][who] for run in runs])) for who in (model, found["rival"])
            )
            cells.append(f"{ours:,.0f} / {theirs:,.0f}")
        assert f"| {name} | {' | '.join(cells)} |" in guide("stream"), (name, cells)


def test_workers_of_a_group():
    for what, found in results("stream_group").items():
        equal = [f"{found[name]} of {found['partitions']}" for name in ("equal models", "equal scores")]
        equal += [f"{found['equal predictions']} of {found['partitions']}"]
        seconds = f"{np.median(found['seconds']):.0f}, {max(found['seconds']):.0f}"
        cells = [what, str(found["times"]), f"{found['events']:,}", f"{found['learned']:,}", *equal, seconds]
        assert f"| {' | '.join(cells)} |" in PAGE, cells
        assert found["equal merged scores"]
        assert f"workers are killed {results('stream_group')['kill']['times']} times and added" in guide(
            "stream_production"
        )


def test_soak_of_streams():
    rows, text = results("stream_soak"), guide("stream").replace("\n", " ")
    assert rows[-1]["instance"] == 5_000_000
    middle, last = (rows[i]["resident MiB"] for i in (len(rows) // 2, -1))
    assert f"Resident memory is {middle:.0f} MiB in the middle and {last:.0f} MiB at the end" in text
    assert f"the model takes {rows[-1]['model MiB']:.1f} MiB" in text
    times, tenth = [row["microseconds"] for row in rows], len(rows) // 10
    assert f"takes {np.median(times[:tenth]):.0f} microseconds of processor time in the first tenth" in text
    assert f"first tenth and {np.median(times[-tenth:]):.0f} in the last" in text


def test_recommendation_accuracy():
    runs = results("recsys_accuracy")["runs"]["census"]
    assert len(runs) == 16
    assert all(len(seeds) == 5 for seeds in runs.values())


def test_recommendation_of_items():
    for case, run in results("recsys_recommend")["runs"].items():
        cells = [f"{run[key]:,}" for key in ("users", "items", "scored")]
        assert f"| {case} | {' | '.join(cells)} | {run['seconds']:.0f} | {run['peak_mib']} |" in PAGE, case
        assert run["items_had"] == 0


def test_recommendation_speed():
    for rows, run in results("recsys_scoring")["runs"].items():
        kinds = ("predict", "fit, one epoch")
        cells = [f"{run[kind][value]:.0f}" for kind in kinds for value in ("seconds", "peak_mib")]
        assert f"| {int(rows):,} | {' | '.join(cells)} |" in PAGE, rows
    reading = results("recsys_scoring")["reading"]
    for how in [how for how in reading["after"] if how != "rows"]:
        old, new = (reading[name][how] for name in ("before", "after"))
        cells = [
            f"{old[value]:{form}}, {new[value]:{form}}" for value, form in (("seconds", ".1f"), ("peak_mib", ".0f"))
        ]
        assert f"| {how} | {' | '.join(cells)} |" in PAGE, how


def test_diffusion():
    found = results("vision_diffusion")["digits"]
    for model, runs in found["runs"].items():
        last = [run["curve"][-1] for run in runs.values()]
        assert {point["epoch"] for point in last} == {100}
        cells = " | ".join(summary([point[name] for point in last]) for name in ("loss", "fid", "precision", "recall"))
        assert f"| {model} | {len(runs)} | {cells} | {runs['0']['parameters']:,} |" in PAGE, model
    cifar = results("vision_diffusion")["cifar"]
    for model, runs in cifar["runs"].items():
        last = runs["0"]["curve"][-1]
        cells = " | ".join(f"{last[name]:.4f}" for name in ("loss", "fid", "precision", "recall"))
        assert last["epoch"] == 10
        assert f"| {model} | 1 | {cells} | {runs['0']['parameters']:,} |" in PAGE, model
    for real in (found["real images"], cifar["real images"]):
        assert f"| real images | | | {real['fid']:.4f} | {real['precision']:.4f} | {real['recall']:.4f} | |" in PAGE


def test_experts_out_of_a_network():
    script("moeify")  # whose tables these are
    found = results("moeify")
    runs = list(found["grow"].values())
    for name, title in (("before", "before"), ("dense", "dense"), ("mixture", "copies"), ("split", "split")):
        shown = f"| {title} | {percent([run[name] for run in runs])} |"
        assert shown in PAGE, shown
    for name in ("mixture", "split"):
        shown = percent([run[name] - run["dense"] for run in runs])
        assert f"{shown} for {'copies' if name == 'mixture' else name}" in PAGE, shown
    for name in ("everything", "relevant experts", "low-rank experts", "head alone"):
        own = [run[name] for run in found["tune"].values()]
        cells = [percent([row["new"] for row in own]), percent([row["forgotten"] / 100 for row in own])]
        shown = f"| {name} | {' | '.join(cells)} | {100 * np.mean([row['share'] for row in own]):.1f} |"
        assert shown in PAGE, shown
    assert len(found["grow"]) == len(found["tune"])
    assert f"{len(runs)} seeds" in PAGE


def percent(values: list[float]) -> str:
    """Mean and standard error, in points."""
    points = 100 * np.array(values)
    return f"{points.mean():.2f} ± {points.std(ddof=1) / np.sqrt(len(points)):.2f}"


def test_image_speed():
    speed = results("vision_speed")
    for title in ("WideNet | ViT of equal FLOPs", "Switch-DiT | DiT"):
        for sizes, rows in speed[title].items():
            cells = " | ".join(f"{rows[kind]['ratio']:.2f}" for kind in rows if kind != "match")
            assert f"| {sizes} | {cells} |" in PAGE, sizes
    assert len(speed["capacity"]) >= 3
    for row in speed["capacity"]:
        assert f"| {row['factor']} | {summary(row['accuracy'])} | {row['time']:.2f} |" in PAGE, row


def test_dispatch():
    found = results("core_dispatch")
    assert len(found["rows"]) == 6
    names = ["loop", "bmm", "grouped", "auto", "st-moe-pytorch", "mixture-of-experts", "soft-moe-pytorch"]
    for row in found["rows"]:
        size = ", ".join(str(value) for value in row["size"].values())
        ratios = " | ".join(f"{row['ratio'][name]:.2f}" if name in row["ratio"] else "-" for name in names)
        limits = f"{row['roofline']['auto_times']:.2f}"
        inference = f"{row['inference_ratio']['auto']:.2f} | {row['inference_roofline']['auto_times']:.2f}"
        memory = f"{row['peak_mib']['auto']:.0f} / {row['peak_mib']['dense']:.0f}"
        line = f"| {size} | {ratios} | {limits} | {inference} | {memory} |"
        assert line in PAGE, line
    for row in found["padding"]["rows"]:
        line = (
            f"| {row['d']}, {row['h']}, {row['E']} | {' | '.join(f'{value:.2f}' for value in row['pays'].values())} |"
        )
        assert line in PAGE, line


def test_the_layer_chooses_its_backend_by_the_table_of_the_benchmark():
    from moeapps.core.backends import PADDING_PAYS, ROWS

    found = results("core_dispatch")["padding"]["rows"]
    assert {(row["d"], row["h"], row["E"]): tuple(row["pays"].values()) for row in found} == PADDING_PAYS
    assert all(tuple(map(int, row["pays"])) == ROWS for row in found)


def test_routers():
    found = results("routers")
    assert len(found["runs"]) == 13
    for router, runs in found["runs"].items():
        means = " | ".join(f"{np.mean([run[key] for run in runs]):.2f}" for key in ("experts", "max_load", "entropy"))
        cells = f"{summary([run['accuracy'] for run in runs])} | {means} | {found['time'][router]:.2f} |"
        assert re.search(rf"\| `{router}` \| [^|]+ \| {re.escape(cells)}", guide("routing")), (router, cells)


def test_serving():
    found = results("serve_load")
    for name in ("tables", "stream"):
        run = found[name]
        speed = f"{run['requests_per_second']:.0f} | {run['p50_ms']:.1f} | {run['p99_ms']:.1f}"
        rest = f"{run['wrong']} | {run['failed']} | {run['mib_before']:.0f} / {run['mib_after']:.0f}"
        assert f"| {speed} | {rest} |" in guide("serve"), (name, speed, rest)


def test_serving_by_several_workers():
    for name, run in results("serve_load")["workers"]["ways"].items():
        counts = f"{run['requests']:,} | {run['wrong']} | {run['failed']}"
        assert f"| {name} | {run['requests_per_second']:.0f} | {counts} |" in guide("scaling"), name


def test_scoring_by_several_workers():
    found = results("scale_scoring")
    assert found["rows"] == 2_000_000
    for name in ("one process", "1 worker", "2 workers", "killed"):
        run = found[name]
        same = "yes" if run["same_bytes"] else "no"
        row = f"{run['seconds']:.0f} | {run['rows_per_second']:,.0f} | {run['killed']} | {same} |"
        shown = {"killed": "2 workers, one killed"}.get(name, name)
        assert f"| {shown} | {row}" in guide("scaling"), (shown, row)


def test_the_rehearsal_of_the_gpu_acceptance():
    found = results("gpu_rehearsal")["configurations"]["result"]
    assert all(run["status"] == 0 for run in found.values())
    assert f"all {len(found)} configurations ended without an\nerror" in guide("benchmarks/gpu")


def test_trainings_and_searches_by_several_workers():
    found = results("scale_training")
    for part, counted in (("fit", "epochs"), ("search", "trials")):
        for way, run in found[part].items():
            assert run[counted] == found[counted], (part, way)
            row = f"| {way} | {run['seconds']:.0f} | {run['killed']} | {run[counted]} | {run['loss']:.4f} |"
            assert row in guide("scaling"), row


def test_the_page_of_papers_quotes_our_benchmarks():
    page = guide("papers")
    for model in ("ViT", "ViT-MoE", "WideNet"):
        runs = results("vision_accuracy")["sets"]["cifar10, 2000"][model]
        scores = summary([run["accuracy"] for run in runs.values()], 2, 100)
        assert f"{scores} | {runs['0']['parameters']:,} |" in page, model
    for model in ("DiT", "Switch-DiT"):
        runs = results("vision_diffusion")["digits"]["runs"][model]
        assert summary([run["curve"][-1]["fid"] for run in runs.values()], 2) in page
    runs = results("stream_accuracy")["runs"]
    for column in ("paper, data", "paper, task", "DriftMoE"):
        assert summary([runs[f"elec, {seed}"][column]["accuracy"] for seed in range(3)], 2, 100) in page, column


def test_gpu():
    gpu = results("gpu")
    assert f"one {gpu['machine']} with torch {gpu['torch']}, {gpu['date']}" in PAGE
    tests = gpu["tests"]["result"]
    assert f"{tests['passed']} tests marked `gpu` passed, {len(tests['failed'])} failed" in PAGE
    for r in gpu["dispatch"]["result"]:
        assert (
            f"| {r['d']:,} | {r['h']:,} | {r['experts']} | {r['dense_ms']:.2f} | {r['dense_tflops']:.0f} | "
            f"{r['moe_ms']:.2f} | {r['moe_tflops']:.0f} | {r['share_of_dense']:.2f} | "
            f"{r['compiled_share_of_dense']:.2f} | {r['moe_mib']:,.0f} | {r['dense_mib']:,.0f} |"
        ) in PAGE
    for r in gpu["models"]["result"]:
        assert (
            f"| {r['model']} | {r['batch']:,} | {r['ms']:.2f} | {r['per_second']:,.0f} | {r['times_dense']:.2f} | "
            f"{r['kernel_share']:.0%} | {r['peak_mib']:,.0f} |"
        ) in PAGE
    configurations = gpu["configurations"]["result"]
    assert all(run["status"] == 0 for run in configurations.values())
    assert f"All {len(configurations)} example configurations" in PAGE


def test_outliers():
    runs, page = results("table_outliers")["runs"], guide("tables")
    error = {moved: {name: np.mean([run[name] for run in found]) for name in found[0]} for moved, found in runs.items()}
    far, clean = error["100"], error["0"]
    assert f"the median error is {far['auto']:.2f} with it, {far['squared']:.2f}" in " ".join(page.split())
    assert f"{far['boosting']:.2f} for histogram boosting; without outliers it is {clean['auto']:.2f}" in " ".join(
        page.split()
    )
    assert clean["auto"] == clean["squared"]
