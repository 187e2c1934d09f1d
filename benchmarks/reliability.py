"""Saved files that were changed, processes that are killed, a server that is used badly: what comes of it.

    python benchmarks/reliability.py                      # all parts, about an hour on two processors
    python benchmarks/reliability.py --parts fit stream   # some of them
    python benchmarks/reliability.py --mutations 20 --kills 2 --seconds 20   # a short look

- fuzz: every kind of saved model and checkpoint, so many random mutations each, mostly with a right checksum (bits,
  JSON, pickle, names, shapes, kinds and values of tensors, lengths). Loading has to refuse it with an error that names
  the file, or give a model whose predictions are finite. Anything else is a failure: another error, a signal, 30
  seconds without an end, memory.
- fit: `moeapps fit` of four kinds of models, killed with SIGKILL at random moments and started again with the same
  command. Weights, optimizers and metrics have to equal those of an undisturbed run, bit for bit.
- stream: the same for `moeapps stream run`, over files and through a pipe, with late labels, repeats and broken events.
- serve: clients that learn through `moeapps serve --learn`, each until it is answered 200, while server and worker are
  killed in turns (`serve_poison.py`). The saved model has to equal one that learns the answered rows in their order.
- soak: clients that predict, and others that send nonsense, slowly, too much, or hang up (`reliability_soak.py`).

What does not hold ends the script with an error; the results say how much was tried.
"""

import argparse
import importlib.metadata
import json
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from command_line import script_parser
from rich.console import Console

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]  # the parts are those of the tests

from reliability_soak import soak  # noqa: E402
from serve_poison import kills, make_models  # noqa: E402

from tests.core.fuzz_models import CHECKPOINTS, FAMILIES, MAKE, TABLE_RUN, copy_inputs  # noqa: E402
from tests.core.saved_fuzz import campaign  # noqa: E402
from tests.kills import fit_killed, stream_killed  # noqa: E402

TRAININGS = {"tables": (TABLE_RUN, 120), "graph": (MAKE["EXAMPLES"]["graph"], 150),
             "recsys": (MAKE["EXAMPLES"]["recsys"], 120), "vision": (MAKE["EXAMPLES"]["vision"], 40)}  # fmt: skip
"""Configuration and epochs of what is killed."""

STREAMS = {"CSV file": ("data.csv", False), "events, CSV file": ("events.csv", False),
           "events, pipe of JSON lines": ("events.ndjson", True)}  # fmt: skip


def fuzz(options: argparse.Namespace) -> dict[str, Any]:
    """Every family of saved files."""
    found = {}
    for family in (*FAMILIES, *CHECKPOINTS):
        start = time.perf_counter()
        outcomes, failures, most = campaign(family, options.mutations)
        found[family] = {**outcomes, "failures": failures, "most_mib": most, "seconds": time.perf_counter() - start}
        print(f"fuzz {family}: {dict(outcomes)}, at most {most} MiB", *failures, sep="\n    ", flush=True)
    return found


def share(total: int, parts: int, number: int) -> int:
    """How many of ``total`` fall to a part."""
    return total // parts + (number < total % parts)


def fit(options: argparse.Namespace) -> dict[str, Any]:
    """Trainings, which share the kills."""
    found = {}
    for number, (name, (config, epochs)) in enumerate(TRAININGS.items()):
        with tempfile.TemporaryDirectory() as folder:
            copy_inputs(Path(folder))
            path = Path(folder, "fit.yaml")
            path.write_text(f"{config}trainer: {{max_epochs: {epochs}}}\n")
            start, count = time.perf_counter(), share(options.kills, len(TRAININGS), number)
            found[name] = fit_killed(path, count, 0.3, seed=number)
            found[name]["seconds"] = time.perf_counter() - start
        print(f"fit {name}: {found[name]}", flush=True)
    return found


def stream(options: argparse.Namespace) -> dict[str, Any]:
    """Sources, which share the kills."""
    found = {}
    for number, (name, (source, piped)) in enumerate(STREAMS.items()):
        with tempfile.TemporaryDirectory() as folder:
            start, count = time.perf_counter(), share(options.kills, len(STREAMS), number)
            events = max(10_000, count * (8_000 if source == "data.csv" else 3_000))
            found[name] = stream_killed(Path(folder), count, events, 0.15, source, piped=piped)
            found[name]["seconds"] = time.perf_counter() - start
        print(f"stream {name}: {found[name]}", flush=True)
    return found


def serve(options: argparse.Namespace) -> dict[str, Any]:
    """Server and worker in turns."""
    with tempfile.TemporaryDirectory() as name:
        folder, start = Path(name), time.perf_counter()
        rows = make_models(folder)["learn"]["rows"]
        found = kills(folder, rows, options.kills)
        found["seconds"] = time.perf_counter() - start
    print(f"serve: {found}", flush=True)
    wrong = {name: found[name] for name in ("rows_lost", "rows_learned_twice") if found[name]}
    if wrong or not found["equal_model"]:
        raise SystemExit(f"serve: {wrong or 'the model is not that of the answered rows'}")
    return found


def long_use(options: argparse.Namespace) -> dict[str, Any]:
    """The soak of a table's server."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = soak(folder, make_models(folder)["predict"], options.clients, options.seconds)
    print(f"soak: {found}", flush=True)
    return found


PARTS = {"fuzz": fuzz, "fit": fit, "stream": stream, "serve": serve, "soak": long_use}


def tables(found: dict[str, Any]) -> list[str]:
    """Markdown of the results, for docs/robustness.md."""
    lines: list[str] = []
    if "fuzz" in found:
        kinds = {"models": FAMILIES, "checkpoints of `moeapps fit`": CHECKPOINTS}
        lines += ["| changed files | tried | refused | refused in use | predicted finite | failures | most memory |",
                  "| --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
        for kind, families in kinds.items():
            total: Counter[str] = Counter()
            rows = [found["fuzz"][family] for family in families if family in found["fuzz"]]
            for row in rows:
                total.update({name: value for name, value in row.items() if isinstance(value, int)})
            tried = sum(
                total[name] for name in ("refused", "refused in use", "equal", "other", "error", "process ended")
            )
            failures, most = sum(len(row["failures"]) for row in rows), max(row["most_mib"] for row in rows)
            cells = [f"{len(rows)} kinds of {kind}", f"{tried:,}", f"{total['refused']:,}"]
            cells += [f"{total['refused in use']:,}", f"{total['equal'] + total['other']:,}", str(failures)]
            lines.append(f"| {' | '.join(cells)} | {most} MiB |")
    lines += [
        "",
        "| killed with SIGKILL | kills | work | compared with an undisturbed run |",
        "| --- | --- | --- | --- |",
    ]
    for name, row in found.get("fit", {}).items():
        lines.append(f"| `moeapps fit`, {name} | {row['kills']} | {row['steps']:,} steps | {row['tensors']} tensors, "
                     f"{row['metrics']} metrics: equal |")  # fmt: skip
    for name, row in found.get("stream", {}).items():
        lines.append(f"| `moeapps stream run`, {name} | {row['kills']} | {row['events']:,} events | {row['learned']:,} "
                     "learned, each once; model, scores, predictions: equal |")  # fmt: skip
    if "serve" in found:
        row = found["serve"]
        count = row["killed"]
        lines.append(f"| `moeapps serve --learn` | {count['server']} of the server, {count['worker']} of its worker | "
                     f"{row['acknowledged_rows']:,} rows answered 200 | {row['rows_lost']} lost, "
                     f"{row['rows_learned_twice']} learned twice; model: equal |")  # fmt: skip
    if "soak" in found:
        row = found["soak"]
        lines += ["", f"| soak, {row['clients']} clients, {row['seconds']:.0f} s | |", "| --- | --- |",
                  f"| requests answered with predictions, wrong ones | {row['requests']:,}, {row['wrong']} |",
                  f"| p50, p99 of them | {row['p50_ms']:.0f} ms, {row['p99_ms']:.0f} ms |",
                  f"| bad requests answered 4xx, 5xx | {row['bad_4xx']:,}, {row['bad_5xx']:,} |",
                  f"| bad requests cut off, by either side | {row['bad_cut']:,} |",
                  "| memory at a tenth, in the middle, at the end | "
                  f"{', '.join(f'{value:.0f} MiB' for value in row['mib'])} |",
                  f"| restarts of the worker | {row['restarts']} |"]  # fmt: skip
    return lines


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--mutations", type=int, default=200, help="of each kind of file (default: 200)")
    parser.add_argument("--kills", type=int, default=20, help="of each command (default: 20)")
    parser.add_argument("--seconds", type=float, default=600.0, help="of the soak (default: 600)")
    parser.add_argument("--clients", type=int, default=16, help="of the soak (default: 16)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "reliability.json")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    warnings.simplefilter("ignore")
    found: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}
    found["versions"] = {name: importlib.metadata.version(name) for name in ("torch", "lightning", "safetensors")}
    for part in options.parts:
        found[part] = PARTS[part](options)
        options.output.write_text(json.dumps(found, indent=1) + "\n")
    Console(width=160).print("\n".join(tables(found)), markup=False)
    if failures := [line for row in found.get("fuzz", {}).values() for line in row["failures"]]:
        raise SystemExit(f"{len(failures)} failures of fuzz, such as {failures[0]}")


if __name__ == "__main__":
    main()
