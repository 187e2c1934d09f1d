"""`moeapps serve` beside clients that poison, and through kill -9: what honest clients see, and what is learned.

    python benchmarks/serve_poison.py [--seconds 30] [--clients 16] [--kills 20] [--label after]

- overhead: one client, one keep-alive connection, one row per request; the time of a request less the time of the model
  that /metrics tells.
- poison: honest clients that predict (a table) or learn (a stream), and one client that sends what breaks a batch, a
  parser, the memory or the metrics. An honest request that is not answered 200 with its own rows has failed.
- kills: clients that learn with an Idempotency-Key and repeat a request until it is answered 200, while server and
  worker are killed in turns. Each answer says which rows of the model it made; together they must be all rows once, and
  the model has to be the one that learns them in that order.

Results are stored under the label, so that two versions on PYTHONPATH can be compared. A version without journal and
keys cannot pass the kills: `--kills 0` leaves them out.
"""

import http.client
import json
import os
import platform
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from command_line import script_parser
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_breast_cancer

import moeapps
from moeapps import DriftMoEClassifier, MoEClassifier
from moeapps.stream import synthetic_stream
from moeapps.stream.compiled.engine import tree_arrays

JSON = {"Content-Type": "application/json"}


def make_models(folder: Path) -> dict[str, dict[str, Any]]:
    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    X["place"] = np.where(X.index % 3 == 0, "a", "b")
    table = MoEClassifier(random_state=0, max_epochs=10).fit(X, y)
    table.save(folder / "predict.safetensors")
    expected = table.predict_proba(X)[:, 1].tolist()
    stream = DriftMoEClassifier(seed=1)
    events = [
        ({str(name): value for name, value in x.items()}, bool(y)) for x, y in synthetic_stream("sea_abrupt", 4000, 1)
    ]
    for x, label in events[:1000]:
        stream.learn_one(x, label)
    stream.save(folder / "learn.safetensors")
    return {
        "predict": {"rows": X.to_dict("records"), "expected": expected},
        "learn": {"rows": [{"x": x, "y": label} for x, label in events[1000:]]},
    }


class Server:
    """A server in a process of its own, on a port that stays the same."""

    def __init__(self, model: Path, *arguments: object) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.command = [sys.executable, "-m", "moeapps", "serve", str(model), "--port", str(self.port)]
        self.command += [str(argument) for argument in arguments]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        assert "http://" in self.process.stdout.readline()

    def ask(self, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, JSON)
        answer = connection.getresponse()
        found = answer.status, answer.read()
        connection.close()
        return found

    def worker(self) -> int:
        children = psutil.Process(self.process.pid).children()
        return next(child.pid for child in children if "spawn_main" in " ".join(child.cmdline()))

    def memory(self) -> float:
        process = psutil.Process(self.process.pid)
        return sum(p.memory_info().rss for p in [process, *process.children(recursive=True)]) / 2**20

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(180)


# --- overhead


def model_seconds(server: Server) -> float:
    page = server.ask("GET", "/metrics")[1].decode()
    return float(next(line.split()[1] for line in page.splitlines() if line.startswith("moeapps_batch_seconds_sum")))


def overhead(server: Server, path: str, row: Any, requests: int = 300) -> dict[str, float]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    body = json.dumps({"rows": [row]})
    times = []
    for number in range(requests + 20):
        if number == 20:  # the first ones warm up
            before = model_seconds(server)
        start = time.perf_counter()
        connection.request("POST", path, body, JSON)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
        times.append(time.perf_counter() - start)
    model = 1000 * (model_seconds(server) - before) / requests
    times = times[20:]
    pages = []
    for _ in range(requests):
        start = time.perf_counter()
        connection.request("GET", "/health")
        connection.getresponse().read()
        pages.append(time.perf_counter() - start)
    return {
        "request_ms": 1000 * float(np.mean(times)), "median_ms": 1000 * float(np.median(times)), "model_ms": model,
        "overhead_ms": 1000 * float(np.mean(times)) - model, "health_median_ms": 1000 * float(np.median(pages)),
    }  # fmt: skip


# --- poison


def poisons(path: str, row: Any) -> list[str]:
    """Bodies that are JSON, or nearly, and that the model or the memory cannot hold."""

    def with_value(value: str) -> list[str]:
        name = "place" if path == "/predict" else "x1"
        features = row if path == "/predict" else row["x"]
        changed = json.dumps({**features, name: "@"}).replace('"@"', value)
        if path == "/predict":
            return [f'{{"rows": [{changed}]}}']
        good = json.dumps(row)
        return [
            f'{{"rows": [{{"x": {changed}, "y": true}}]}}',
            f'{{"rows": [{good}, {{"x": {changed}, "y": true}}]}}',
            f'{{"rows": [{{"x": {json.dumps(features)}, "y": {value}}}]}}',
        ]

    values = ['"\\ud800"', "1" + "0" * 400, "1e400", "1e300", "[1]", "{}", "NaN", '"' + "x" * 100_000 + '"', "1" * 5000]
    bodies = [body for value in values for body in with_value(value)]
    bodies += ["[" * 50_000, "nonsense", "", '{"rows": [' + "{}," * 9999 + "{}]}"]
    if path == "/learn":
        wide = [{"x": {f"new{i}": 1.0}, "y": True} for i in range(10_000)]
        bodies.append(json.dumps({"rows": wide}))
    return bodies


def poisoner(port: int, path: str, row: Any, stop: float, out: dict[str, int]) -> None:
    bodies = poisons(path, row)
    number = 0
    while time.time() < stop:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            while time.time() < stop:
                number += 1
                if number % 5 == 0:
                    connection.request("GET", f"/no/such/path/{number}")
                else:
                    connection.request("POST", path, bodies[number % len(bodies)], JSON)
                answer = connection.getresponse()
                content = answer.read()
                out[str(answer.status)] = out.get(str(answer.status), 0) + 1
                if answer.status == 200 and path == "/learn":  # a poison that is none: its rows are in the model
                    out["rows learned"] = out.get("rows learned", 0) + json.loads(content)["learned"]
        except (OSError, http.client.HTTPException):
            out["broken"] = out.get("broken", 0) + 1
        finally:
            connection.close()


def honest(port: int, path: str, what: dict[str, Any], seed: int, stop: float, out: list[Any]) -> None:
    rng = np.random.default_rng(seed)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=90)
    times, failed, wrong, learned = [], 0, 0, 0
    while time.time() < stop:
        chosen = rng.integers(0, len(what["rows"]), rng.integers(1, 5)).tolist()
        body = json.dumps({"rows": [what["rows"][i] for i in chosen]})
        start = time.perf_counter()
        try:
            connection.request("POST", path, body, JSON)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException):
            failed += 1
            connection.close()
            continue
        times.append(time.perf_counter() - start)
        if answer.status != 200:
            failed += 1
        elif path == "/learn":
            learned += json.loads(content)["learned"]
        else:
            found = [record["probability_1"] for record in json.loads(content)["predictions"]]
            wrong += not np.allclose(found, [what["expected"][i] for i in chosen], atol=1e-5)
    out.append((times, failed, wrong, learned))


def poison(server: Server, name: str, what: dict[str, Any], clients: int, seconds: float) -> dict[str, Any]:
    out: list[Any] = []
    statuses: dict[str, int] = {}
    path, stop, before = f"/{name}", time.time() + seconds, server.memory()
    page = len(server.ask("GET", "/metrics")[1])
    threads = [
        threading.Thread(target=honest, args=(server.port, path, what, seed, stop, out)) for seed in range(clients)
    ]
    threads.append(threading.Thread(target=poisoner, args=(server.port, path, what["rows"][0], stop, statuses)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times = np.concatenate([times for times, *_ in out])
    while server.ask("GET", "/health")[0] != 200:
        time.sleep(0.2)
    info = json.loads(server.ask("GET", "/info")[1])
    return {
        "requests": len(times), "p50_ms": 1000 * float(np.quantile(times, 0.5)),
        "p99_ms": 1000 * float(np.quantile(times, 0.99)), "failed": sum(failed for _, failed, _, _ in out),
        "wrong": sum(wrong for _, _, wrong, _ in out), "acknowledged_rows": sum(learned for *_, learned in out),
        "poison_answers": statuses, "worker_restarts": info["restarts"], "mib_before": before,
        "mib_after": server.memory(), "metrics_bytes_before": page,
        "metrics_bytes_after": len(server.ask("GET", "/metrics")[1]),
    }  # fmt: skip


# --- kills


def teacher(server: Server, rows: list[Any], seed: int, done: threading.Event, out: list[Any]) -> None:
    """Send requests, each until it is answered 200; note which rows of the model the answers name."""
    rng = random.Random(seed)
    number = tries = 0
    while not done.is_set():
        number += 1
        chosen = [rows[rng.randrange(len(rows))] for _ in range(rng.randint(1, 4))]
        body = json.dumps({"rows": chosen})
        headers = {**JSON, "Idempotency-Key": f"{seed}-{number}"}
        while True:
            tries += 1
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            try:
                connection.request("POST", "/learn", body, headers)
                answer = connection.getresponse()
                content = answer.read()
                if answer.status == 200:
                    found = json.loads(content)
                    out.append((found["total"] - found["learned"], found["total"], chosen))
                    break
            except (OSError, http.client.HTTPException):
                pass
            finally:
                connection.close()
            time.sleep(0.2)
    out.append(tries)


def kills(folder: Path, rows: list[Any], rounds: int) -> dict[str, Any]:
    rng = random.Random(0)
    target = folder / "killed.safetensors"
    server = Server(folder / "learn.safetensors", "--learn", target, "--save-every", 1.0)
    first = json.loads(server.ask("GET", "/info")[1])["learned"]
    done, out = threading.Event(), []
    threads = [threading.Thread(target=teacher, args=(server, rows, seed, done, out)) for seed in range(4)]
    for thread in threads:
        thread.start()
    killed = {"server": 0, "worker": 0}
    for number in range(rounds):
        time.sleep(rng.uniform(0.5, 3.0))
        if number % 2:
            os.kill(server.worker(), signal.SIGKILL)
            killed["worker"] += 1
            time.sleep(0.3)
            while server.ask("GET", "/health")[0] != 200:
                time.sleep(0.2)
        else:
            server.process.kill()
            server.process.wait()
            killed["server"] += 1
            server.start()
    time.sleep(2)
    done.set()
    for thread in threads:
        thread.join()
    status = server.stop()
    answered = sorted((answer for answer in out if isinstance(answer, tuple)), key=lambda answer: answer[:2])
    spans = [(start, end) for start, end, _ in answered]
    position, lost, twice = first, 0, 0
    for start, end in spans:
        lost += max(0, start - position)  # rows of the model that no answer tells of: learned, and learned again
        twice += max(0, position - start)  # rows that two answers tell of: one of them was lost
        position = max(position, end)
    model, alone = moeapps.load(target), moeapps.load(folder / "learn.safetensors")
    total = model.n_seen_
    for row in (row for *_, chosen in answered for row in chosen):
        alone.learn_one(row["x"], row["y"])
    arrays, others = tree_arrays(model._engine), tree_arrays(alone._engine)
    equal = all(np.array_equal(arrays[name], others[name], equal_nan=True) for name in others)
    return {
        "killed": killed, "acknowledged_requests": len(spans), "tries": sum(n for n in out if isinstance(n, int)),
        "acknowledged_rows": sum(end - start for start, end in spans), "rows_in_model": total - first,
        "rows_learned_twice": lost + max(0, total - position), "rows_lost": twice + max(0, position - total),
        "equal_model": equal, "exit_status": status,
    }  # fmt: skip


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--label", default="after")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "serve_poison.json")
    options = parser.parse_args()
    results: dict[str, Any] = {"machine": platform.machine(), "clients": options.clients, "seconds": options.seconds}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = make_models(folder)
        for kind, what in models.items():
            learn = ["--learn", folder / "learned.safetensors"] if kind == "learn" else []
            server = Server(folder / f"{kind}.safetensors", *learn)
            found = results[kind] = {"overhead": overhead(server, f"/{kind}", what["rows"][0])}
            learned = json.loads(server.ask("GET", "/metrics")[1] and server.ask("GET", "/info")[1]).get("learned")
            found["poison"] = poison(server, kind, what, options.clients, options.seconds)
            found["exit_status"] = server.stop()
            if kind == "learn":
                # "learned" of /info was a number of the start before; the 320 requests of `overhead` learned a row each
                base = 1000 + 320
                total = moeapps.load(folder / "learned.safetensors").n_seen_
                found["poison"].update(info_learned=learned, rows_in_model=total - base)
        if options.kills:
            results["kills"] = kills(folder, models["learn"]["rows"], options.kills)
    table = Table(
        title=f"{options.label}: {options.clients} honest clients and one that poisons, {options.seconds:.0f} s"
    )
    for column in (
        "",
        "overhead ms",
        "requests",
        "failed",
        "wrong",
        "p50 ms",
        "p99 ms",
        "restarts",
        "rows 200 / in model",
    ):
        table.add_column(column, justify="right" if column else "left")
    for kind in models:
        p = results[kind]["poison"]
        rows = f"{p['acknowledged_rows']} / {p['rows_in_model']}" if kind == "learn" else ""
        table.add_row(
            kind, f"{results[kind]['overhead']['overhead_ms']:.2f}", str(p["requests"]), str(p["failed"]),
            str(p["wrong"]), f"{p['p50_ms']:.1f}", f"{p['p99_ms']:.1f}", str(p["worker_restarts"]), rows,
        )  # fmt: skip
    Console(width=130).print(table)
    Console(width=130).print(json.dumps(results, indent=1))
    stored = json.loads(options.output.read_text()) if options.output.exists() else {}
    stored[options.label] = results
    options.output.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
