"""Kill a command at random moments of its work and start it again, until it is done; then compare it with one that was
not disturbed. Used by the tests and by ``benchmarks/reliability.py``."""

import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import moeapps
from moeapps.cli.main import main
from moeapps.core.checkpoint import AtomicCheckpointIO
from tests.processes import Command

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "moeapps"]


def environment() -> dict[str, str]:
    """That of the tests, with this package."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def killed(
    command: Sequence[str],
    written: Path,
    kills: int,
    seconds: float,
    after: Callable[[], None],
    cwd: Path | None = None,
    piped: Path | None = None,
    seed: int = 0,
) -> int:
    """Run a command again and again, and kill it.

    Parameters
    ----------
    command : sequence of str
        Arguments of ``moeapps``; the same each time, so it has to continue what it finds.
    written : Path
        A file that the command writes: it is at work once it has.
    kills : int
        How often.
    seconds : float
        It is killed at most so long after it has written, at a random moment.
    after : callable
        Looks at the files after each kill.
    cwd : Path, optional
        Where to run it.
    piped : Path, optional
        A file that comes through standard input, as from ``cat``.
    seed : int, default=0
        Of the moments.

    Returns
    -------
    int
        Kills that have hit a process at work: fewer than ``kills`` where it came to its end before the last.
    """
    rng, done = random.Random(seed), 0
    while done < kills:
        before = written.stat().st_mtime_ns if written.exists() else 0
        pipe = subprocess.Popen(["cat", str(piped)], stdout=subprocess.PIPE) if piped else None
        process: Command | subprocess.Popen[bytes]
        if pipe is None:
            process = Command(command, cwd or ".")
        else:
            process = subprocess.Popen(
                [*COMMAND, *command], cwd=cwd, env=environment(), stdin=pipe.stdout, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
            assert pipe.stdout is not None
            pipe.stdout.close()  # now `cat` ends when the command does
        while process.poll() is None and (not written.exists() or written.stat().st_mtime_ns == before):
            time.sleep(0.005)
        time.sleep(rng.random() * seconds)
        process.send_signal(signal.SIGKILL)
        status = process.wait()
        if pipe is not None:
            pipe.kill()
            pipe.wait()
        if status == 0 and done:
            break
        assert status == -signal.SIGKILL, f"only {done} of {kills} kills hit a process at work: it ended with {status}"
        done += 1
        after()
    return done


def completed(command: Sequence[str], cwd: Path | None = None, piped: Path | None = None) -> None:
    """Run a command to its end: in this process, unless something comes through a pipe."""
    if piped is None:
        with contextlib.chdir(cwd or "."), contextlib.redirect_stdout(io.StringIO()):
            assert main(list(command)) == 0
        return
    pipe = subprocess.Popen(["cat", str(piped)], stdout=subprocess.PIPE)
    run = subprocess.run(
        [*COMMAND, *command], cwd=cwd, env=environment(), stdin=pipe.stdout, capture_output=True, text=True, check=False
    )
    pipe.kill()
    pipe.communicate()
    assert run.returncode == 0, run.stderr


# ---------------------------------------------------------------------- moeapps fit


def fit_killed(config: Path, kills: int, seconds: float, seed: int = 0) -> dict[str, int]:
    """Train once undisturbed and once with kills, and compare weights, optimizers and metrics.

    Parameters
    ----------
    config : Path
        Configuration of the training; its folder is where the data is.
    kills, seconds, seed : int, float, int
        See :func:`killed`.

    Returns
    -------
    dict
        Kills, steps, and how many weights, numbers of the optimizer and final metrics were compared: all are equal.
    """
    folder = config.parent

    def command(root: str) -> list[str]:
        return [
            "fit", "--config", config.name, "--seed_everything", "0", "--ckpt_path", "last",
            "--trainer.default_root_dir", root, "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
        ]  # fmt: skip

    completed(command("whole"), folder)
    last = folder / "killed/version_0/checkpoints/last.ckpt"
    check = lambda: _every_file_is_whole(folder / "killed")  # noqa: E731
    kills = killed(command("killed"), last, kills, seconds, check, folder, seed=seed)
    completed(command("killed"), folder)
    assert [path.name for path in (folder / "killed").iterdir()] == ["version_0"], "one run is one folder"
    whole, other = (AtomicCheckpointIO().load_checkpoint(folder / run / "version_0/checkpoints/last.ckpt")
                    for run in ("whole", "killed"))  # fmt: skip
    assert whole["global_step"] == other["global_step"]
    numbers = [[*content["state_dict"].values(), *_tensors(content["optimizer_states"])] for content in (whole, other)]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*numbers, strict=True))
    metrics = [_final_metrics(folder / run / "version_0/metrics.csv") for run in ("whole", "killed")]
    assert metrics[0] == metrics[1], metrics
    return {"kills": kills, "steps": whole["global_step"], "tensors": len(numbers[0]), "metrics": len(metrics[0])}


def _every_file_is_whole(folder: Path) -> None:
    """No file is half written: each can be read."""
    for path in folder.rglob("*"):
        if path.suffix == ".ckpt" and not path.name.startswith("."):
            AtomicCheckpointIO().load_checkpoint(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())


def _tensors(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _final_metrics(path: Path) -> dict[str, float]:
    """The last value of every metric of training and validation."""
    table = pd.read_csv(path).drop(columns=["epoch", "step"])
    table = table[[name for name in table if "seconds" not in name and "time" not in name]]
    return {name: float(column.dropna().iloc[-1]) for name, column in table.items() if column.notna().any()}


# ---------------------------------------------------------------------- moeapps stream run


def make_csv(path: Path, n: int) -> pd.DataFrame:
    """Events whose concept changes in the middle."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(n, 4)).round(4), columns=list("abcd"))
    frame["city"] = rng.choice(["Ulm", "Bonn", "Kiel"], n)
    frame["y"] = np.where((frame["a"] > 0) ^ (np.arange(n) > n // 2), "up", "down")
    frame.to_csv(path, index=False)
    return frame


def make_events(path: Path, n: int) -> None:
    """Events with ids, whose label comes with them, 50 events later, or never; some come twice, some are broken."""
    frame = make_csv(path.with_suffix(".all"), n)
    frame.insert(0, "id", [f"e{i:07d}" for i in range(n)])
    rng = np.random.default_rng(1)
    late, twice, broken = rng.random(n) < 0.3, rng.random(n) < 0.02, rng.random(n) < 0.01
    empty = dict.fromkeys("abcd") | {"city": None}
    events: list[dict] = []
    for i, row in enumerate(frame.to_dict("records")):
        if late[i]:
            events.append(row | {"y": None})
        else:
            events.append(row | ({"a": "broken"} if broken[i] else {}))
        if twice[i]:
            events.append(events[-1])
        if i >= 50 and late[i - 50] and not broken[i - 50]:
            events.append({"id": frame["id"][i - 50], **empty, "y": frame["y"][i - 50]})
    if path.suffix == ".csv":
        pd.DataFrame(events).to_csv(path, index=False)
    else:
        path.write_text("".join(json.dumps(event) + "\n" for event in events))


def stream_command(folder: Path, name: str, *more: str, source: str = "data.csv") -> list[str]:
    """Arguments of a run over a file of a folder, or over standard input (``-``)."""
    return [
        "stream", "run", "--source", source if source == "-" else str(folder / source), "--target", "y",
        "--set", "seed=1", "--set", "n_experts=3", "--every", "500",
        "--checkpoint", str(folder / name), "--metrics", str(folder / f"{name}.csv"),
        "--predictions", str(folder / f"{name}.ndjson"), *more,
    ]  # fmt: skip


def same_outcome(folder: Path, first: str, second: str) -> None:
    """Two runs have ended with the same trees, router, scores, counts, metrics and predictions, to the bit."""
    from moeapps.stream.compiled.engine import tree_arrays

    one, two = (moeapps.load(folder / name / "stream.safetensors") for name in (first, second))
    arrays, others = tree_arrays(one.model._engine), tree_arrays(two.model._engine)
    assert all(np.array_equal(arrays[name], others[name], equal_nan=True) for name in arrays)
    assert one.run["scores"] == two.run["scores"]
    assert one.run["counts"] == two.run["counts"]
    for ending in (".csv", ".ndjson"):
        assert (folder / f"{first}{ending}").read_bytes() == (folder / f"{second}{ending}").read_bytes()


def stream_killed(
    folder: Path, kills: int, n: int, seconds: float, source: str = "data.csv", model: Sequence[str] = (),
    piped: bool = False,
) -> dict[str, int]:  # fmt: skip
    """Run over a stream once undisturbed and once with kills, and compare.

    Parameters
    ----------
    folder : Path
        An empty folder.
    kills, seconds : int, float
        See :func:`killed`.
    n : int
        Events.
    source : {"data.csv", "events.csv", "events.ndjson"}, default="data.csv"
        "events" have late labels, repeats and broken ones.
    model : sequence of str
        Further arguments.
    piped : bool, default=False
        Whether the source comes through a pipe that sends everything again after a kill.

    Returns
    -------
    dict
        Kills, and the run's counts.
    """
    plain = source == "data.csv"
    (make_csv if plain else make_events)(folder / source, n)
    more = [*model] if plain else [*model, "--id", "id"]
    again = ["--resume", "--replayed"] if piped else ["--resume"]
    given, file = ("-", folder / source) if piped else (source, None)
    completed(stream_command(folder, "whole", *more, source=given), piped=file)
    command = stream_command(folder, "killed", *again, *more, source=given)
    target = folder / "killed/stream.safetensors"
    kills = killed(command, target, kills, seconds, lambda: moeapps.load(target) and None, piped=file)
    completed(command, piped=file)
    same_outcome(folder, "whole", "killed")
    found = moeapps.load(target)
    counts = found.run["counts"]
    assert counts["learned"] == found.model.n_seen_
    if plain:
        assert counts["learned"] == n
    else:
        assert min(counts["rejected"], counts["repeated"], counts["unlabeled"]) > 0
        rejects = [(folder / name / "rejects.ndjson").read_bytes() for name in ("whole", "killed")]
        assert rejects[0] == rejects[1]
    left = [path.name for path in (folder / "killed").iterdir() if path.name.startswith(".")]
    assert not left, left  # neither temporary files nor locks
    return {"kills": kills, **counts}
