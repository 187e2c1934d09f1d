"""Trainings and searches by one worker and by two, one of which is killed: seconds, and what came out.

    python benchmarks/scale_training.py [--epochs 4] [--trials 8] [--file census-income.test.gz]

Fit: HoME on Census-Income (examples/recsys/home_census.yaml; the embedded sample, or a file of the UCI repository), by
one process, by Lightning's DDP with two, and by `--engine ray`. Each process takes batches of 256 rows, so that two of
them make half as many steps per epoch. Search: WideNet on digits (examples/vision/widenet_digits.yaml, three epochs a
trial, settings that its module publishes) by `moeapps search` with Optuna in one command, in two that share a storage,
and with Ray. "killed" kills one worker with SIGKILL as soon as there is a checkpoint. Each way is started once, with
one thread per process; seconds are those of the commands, the start of Python and of the cluster included.
"""

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import ray
import torch
from command_line import script_parser
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
RAY = ("--engine", "ray", "--workers")
DDP = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu")
STORAGE = ("--storage", "sqlite:///study.db", "--folder")
FITS: dict[str, tuple[str, ...]] = {
    "one process": (),
    "DDP, two processes": DDP,
    "Ray, 1 worker": (*RAY, "1"),
    "Ray, 2 workers": (*RAY, "2"),
    "Ray, 2 workers, one killed": (*RAY, "2"),
}
SEARCHES: dict[str, tuple[tuple[str, ...], ...]] = {
    "Optuna, one command": ((),),
    "Optuna, two commands": ((*STORAGE, "first"), (*STORAGE, "second")),
    "Ray, 1 worker": ((*RAY, "1"),),
    "Ray, 2 workers": ((*RAY, "2"),),
    "Ray, 2 workers, one killed": ((*RAY, "2"),),
}
WORKERS = ("RayTrainWorker", "ImplicitFunc")


def kill_a_worker(command: subprocess.Popen[bytes]) -> bool:
    """Kill one process of Ray that trains."""
    for process in psutil.Process(command.pid).children(recursive=True):
        with suppress(psutil.Error):  # it has ended meanwhile
            if any(name in " ".join(process.cmdline()) for name in WORKERS):
                os.kill(process.pid, signal.SIGKILL)
                return True
    return False


def run(commands: list[list[str]], folder: Path, kill: bool) -> tuple[float, int]:
    """Seconds of the commands, all started at once, and how many workers were killed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    start = time.perf_counter()
    with (folder / "log.txt").open("wb") as log:
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "moeapps", *command], cwd=folder, env=environment, stdout=log, stderr=log
            )
            for command in commands
        ]
        killed = 0
        while any(process.poll() is None for process in running):
            if kill and not killed and next(folder.rglob("last.ckpt"), None) is not None:
                killed += kill_a_worker(running[0])
            time.sleep(0.1)
    seconds = time.perf_counter() - start
    if any(process.returncode for process in running):
        raise SystemExit((folder / "log.txt").read_text()[-3000:])
    return seconds, killed


def fit(way: str, epochs: int, folder: Path, file: Path | None) -> dict[str, Any]:
    """Train in one of the ways."""
    config = str(ROOT / "examples/recsys/home_census.yaml")
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.max_epochs", str(epochs)]
    quiet += ["--data.path", str(file.resolve())] if file else []
    seconds, killed = run([["fit", "--config", config, *quiet, *FITS[way]]], folder, "killed" in way)
    logged = pd.concat([pd.read_csv(path) for path in folder.glob("moeapps-runs/version_*/metrics.csv")])
    losses = logged.dropna(subset=["val/loss"]).groupby("epoch")["val/loss"].last()
    return {"seconds": seconds, "killed": killed, "epochs": len(losses), "loss": float(losses.min())}


def search(way: str, trials: int, folder: Path, file: Path | None) -> dict[str, Any]:
    """Search in one of the ways; ``file`` is not used."""
    config = str(ROOT / "examples/vision/widenet_digits.yaml")
    base = ["search", "--config", config, "--seed", "0", "--metric", "val/loss"]
    base += ["--set", "trainer.max_epochs=3", "--set", "trainer.enable_progress_bar=false", "--trials", str(trials)]
    seconds, killed = run([[*base, *more] for more in SEARCHES[way]], folder, "killed" in way)
    tables = [pd.read_csv(path) for path in folder.glob("*/trials.csv")]
    found = max(tables, key=len)
    return {"seconds": seconds, "killed": killed, "trials": len(found), "loss": float(found["val/loss"].min())}


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--file", type=Path, help="census-income.test.gz or census-income.data.gz")
    parser.add_argument("--parts", nargs="+", choices=("fit", "search"), default=("fit", "search"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "scale_training.json")
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}
    results |= {
        "machine": platform.machine(), "torch": torch.__version__, "ray": ray.__version__, "threads": 1,
        "epochs": options.epochs, "trials": options.trials,
    }  # fmt: skip
    for part, ways, measure, size in (
        ("fit", FITS, fit, options.epochs), ("search", SEARCHES, search, options.trials),
    ):  # fmt: skip
        if part not in options.parts:
            continue
        results[part] = {}
        for way in ways:
            with tempfile.TemporaryDirectory() as folder:
                results[part][way] = measure(way, size, Path(folder), options.file)
            print(f"{part}, {way}: {json.dumps(results[part][way])}", flush=True)
        options.output.write_text(json.dumps(results, indent=1) + "\n")
    for part in options.parts:
        counted = "epochs" if part == "fit" else "trials"
        table = Table(title=part)
        for column in ("way", "seconds", "killed", counted, "best validation loss"):
            table.add_column(column, justify="left" if column == "way" else "right")
        for way, row in results[part].items():
            table.add_row(way, f"{row['seconds']:.0f}", str(row["killed"]), str(row[counted]), f"{row['loss']:.4f}")
        Console(width=100).print(table)


if __name__ == "__main__":
    main()
