"""What the tests of a cluster share: processes that are killed, and losses of runs."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
import psutil

from tests.test_docs import ROOT


def processes(name: str) -> list[psutil.Process]:
    """Processes below this one whose command line has a name."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has ended meanwhile
            if name in " ".join(process.cmdline()):
                found.append(process)
    return found


def kill_one(name: str) -> bool:
    """Kill one of these processes; False where there is none."""
    found = processes(name)
    if found:
        os.kill(found[0].pid, signal.SIGKILL)
    return bool(found)


@contextmanager
def once_there_is(folder: Path, pattern: str, act: Callable[[], object]) -> Iterator[list[object]]:
    """While the block runs, wait for a file and then do something once; what it returned is in the list."""
    done: list[object] = []
    stop = threading.Event()

    def watch() -> None:
        while not list(folder.glob(pattern)):
            if stop.wait(0.1):
                return
        done.append(act())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join(30)


def losses(folder: Path) -> pd.Series:
    """Validation loss by epoch, of all runs in a folder; a later row of an epoch counts."""
    found = pd.concat([pd.read_csv(path) for path in sorted(folder.glob("*/version_*/metrics.csv"))])
    return found.dropna(subset=["val/loss"]).groupby("epoch")["val/loss"].last()


def losses_of_ddp(arguments: list[str], folder: Path) -> pd.Series:
    """Validation loss by epoch of two processes that Lightning starts."""
    ddp = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]
    root = folder / "ddp"
    command = [sys.executable, "-m", "moeapps", "fit", *arguments, *ddp, "--trainer.default_root_dir", str(root)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=folder)
    found = pd.read_csv(root / "version_0/metrics.csv")
    return found.dropna(subset=["val/loss"]).groupby("epoch")["val/loss"].last()
