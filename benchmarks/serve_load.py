"""`moeapps serve` on loopback: 16 clients at once for a minute, every answer compared, memory watched.

    python benchmarks/serve_load.py [--seconds 60] [--clients 16]
    python benchmarks/serve_load.py --workers [--seconds 20] [--rounds 1]

A MoEClassifier of scikit-learn's breast cancer data (30 numbers) is served; each client keeps one connection and sends
requests of 1 to 4 rows, one after the other. "tables" only predicts. "stream" is a DriftMoEClassifier of the SEA stream
where one client in four learns. Clients run in a process of their own; server, worker and clients share the machine.
Memory is the resident set of server and worker, after a tenth of the time and at the end.

`--workers` serves the tables with one worker, with two, and with two of which one is killed after a third of the
time, in turns, and adds the sums of all rounds to the results; no number of threads is given. A request that gets no
answer is counted as failed, and its client connects again.
"""

import http.client
import json
import multiprocessing
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from command_line import script_parser
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_breast_cancer

from moeapps import DriftMoEClassifier, MoEClassifier
from moeapps.stream import synthetic_stream


def make_models(folder: Path) -> dict[str, dict[str, Any]]:
    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    table = MoEClassifier(random_state=0).fit(X, y)
    table.save(folder / "tables.safetensors")
    stream = DriftMoEClassifier(seed=1)
    events = [
        ({str(name): value for name, value in x.items()}, bool(y)) for x, y in synthetic_stream("sea_abrupt", 4000, 1)
    ]
    for x, label in events[:2000]:
        stream.learn_one(x, label)
    stream.save(folder / "stream.safetensors")
    return {
        "tables": {"rows": X.to_dict("records"), "expected": table.predict_proba(X)[:, 1].tolist()},
        "stream": {"rows": [x for x, _ in events[2000:]], "labels": [label for _, label in events[2000:]]},
    }


def client(address: tuple[str, int], what: dict[str, Any], seed: int, stop: float, out: list[Any]) -> None:
    rng = np.random.default_rng(seed)
    connection = http.client.HTTPConnection(*address, timeout=30)
    times, wrong, failed = [], 0, 0
    learns = "labels" in what and seed % 4 == 0
    while time.time() < stop:
        chosen = rng.integers(0, len(what["rows"]), rng.integers(1, 5)).tolist()
        rows = [what["rows"][i] for i in chosen]
        if learns:
            rows = [{"x": row, "y": what["labels"][i]} for row, i in zip(rows, chosen, strict=True)]
        body = json.dumps({"rows": rows})
        start = time.perf_counter()
        try:
            connection.request("POST", "/learn" if learns else "/predict", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException):
            failed += 1
            connection.close()  # the next request opens it again
            continue
        times.append(time.perf_counter() - start)
        if answer.status != 200:
            failed += 1
        elif "expected" in what:
            found = [record["probability_1"] for record in json.loads(content)["predictions"]]
            wrong += not np.allclose(found, [what["expected"][i] for i in chosen], atol=1e-5)
        elif not learns:
            wrong += any(record["prediction"] not in (True, False) for record in json.loads(content)["predictions"])
    out.append((times, wrong, failed))


def clients(address: tuple[str, int], what: dict[str, Any], count: int, seconds: float, pipe: Any) -> None:
    out: list[Any] = []
    stop = time.time() + seconds
    threads = [threading.Thread(target=client, args=(address, what, seed, stop, out)) for seed in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pipe.send(out)


def memory(process: psutil.Process) -> float:
    return sum(p.memory_info().rss for p in [process, *process.children(recursive=True)]) / 2**20


def measure(
    name: str, what: dict[str, Any], folder: Path, count: int, seconds: float, workers: int = 1, kill: bool = False
) -> dict[str, Any]:
    learn = ["--learn", str(folder / "learned.safetensors")] if name == "stream" else []
    command = [sys.executable, "-m", "moeapps", "serve", str(folder / f"{name}.safetensors"), "--port", "0", *learn]
    command += ["--workers", str(workers)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    found = re.search(r"http://(\S+):(\d+)", server.stdout.readline())
    assert found
    process = psutil.Process(server.pid)
    ours, theirs = multiprocessing.Pipe()
    address = (found[1], int(found[2]))
    load = multiprocessing.Process(target=clients, args=(address, what, count, seconds, theirs))
    load.start()
    time.sleep(seconds / 10)
    before = memory(process)
    if kill:
        time.sleep(seconds / 3 - seconds / 10)
        next(child for child in process.children() if "spawn_main" in " ".join(child.cmdline())).kill()
    out = ours.recv()
    load.join()
    after = memory(process)
    server.terminate()
    status = server.wait(60)
    times = np.concatenate([times for times, _, _ in out])
    return {
        "requests": len(times), "requests_per_second": len(times) / seconds,
        "p50_ms": 1000 * float(np.quantile(times, 0.5)), "p99_ms": 1000 * float(np.quantile(times, 0.99)),
        "wrong": int(sum(w for _, w, _ in out)), "failed": int(sum(f for _, _, f in out)),
        "mib_before": before, "mib_after": after, "exit_status": status,
    }  # fmt: skip


def compare_workers(folder: Path, what: dict[str, Any], count: int, seconds: float, rounds: int) -> dict[str, Any]:
    ways = {"1": (1, False), "2": (2, False), "2, one killed": (2, True)}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (workers, kill) in ways.items():
            found[name].append(measure("tables", what, folder, count, seconds, workers, kill))
    return {
        "clients": count, "seconds": seconds, "rounds": rounds,
        "ways": {
            name: {
                "requests_per_second": max(run["requests_per_second"] for run in runs),
                **{key: sum(run[key] for run in runs) for key in ("requests", "wrong", "failed")},
            }
            for name, runs in found.items()
        },
    }  # fmt: skip


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--workers", action="store_true", help="compare numbers of workers")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "serve_load.json")
    options = parser.parse_args()
    kept: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}
    if options.workers:
        with tempfile.TemporaryDirectory() as name:
            what = make_models(Path(name))["tables"]
            found = compare_workers(Path(name), what, options.clients, options.seconds, options.rounds)
        print(json.dumps(found, indent=1))
        options.output.write_text(json.dumps({**kept, "workers": found}, indent=1) + "\n")
        return
    table = Table(title=f"{options.clients} clients, {options.seconds:.0f} s, {platform.machine()}")
    for column in ("model", "requests/s", "p50 ms", "p99 ms", "wrong", "failed", "MiB early / late"):
        table.add_column(column, justify="right" if column != "model" else "left")
    results: dict[str, Any] = {"machine": platform.machine(), "clients": options.clients, "seconds": options.seconds}
    results["torch"] = torch.__version__
    with tempfile.TemporaryDirectory() as folder:
        for name, what in make_models(Path(folder)).items():
            found = results[name] = measure(name, what, Path(folder), options.clients, options.seconds)
            table.add_row(
                name, f"{found['requests_per_second']:.0f}", f"{found['p50_ms']:.1f}", f"{found['p99_ms']:.1f}",
                str(found["wrong"]), str(found["failed"]), f"{found['mib_before']:.0f} / {found['mib_after']:.0f}",
            )  # fmt: skip
    Console(width=110).print(table)
    if "workers" in kept:
        results["workers"] = kept["workers"]
    options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
