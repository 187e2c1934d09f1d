"""``moeapps fit --engine ray``: one training by several processes of a Ray cluster, which survives the death of one.

1. Ray Train starts the workers, one core (or GPU) each, and restarts all of them when one dies.
2. Each worker runs the command line as ``torchrun`` would; Ray's strategies for Lightning join them.
3. Checkpoints are those of the run. After a restart the newest one of this training is continued.
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moeapps import plugins
from moeapps.core.checks import check_sizes
from moeapps.core.errors import ConfigError, DataError, FileFormatError, MoEAppsError
from moeapps.scale.ray_cluster import connected

__all__ = ["fit"]

FOR_GOOD = (ConfigError, DataError, FileFormatError, FileNotFoundError)
"""Errors that would come again: training is not started once more."""


def fit(arguments: Sequence[str], *, workers: int = 2, failures: int = 3) -> None:
    """Train as ``moeapps fit`` does, by several workers of a Ray cluster.

    All machines need this folder (the working directory, the runs below it and the data) at the same path, on storage
    that they share. Losses are those of Lightning's DDP with as many processes.

    Parameters
    ----------
    arguments : sequence of str
        The command line after ``moeapps fit``. ``trainer.strategy`` may be ``"ddp"`` (also by default) or ``"fsdp"``.
    workers : int, default 2
        Number of workers: one GPU each where the cluster has as many, else one core each.
    failures : int, default 3
        How often workers may die; each time training goes on from its last checkpoint.

    Raises
    ------
    ConfigError
        If the configuration is wrong, Ray is not installed, or the cluster has fewer cores than workers.
    MoEAppsError
        If workers die more often, or training fails.
    """
    check_sizes(workers=workers)
    with connected(workers, show_output=True) as (ray, alone), tempfile.TemporaryDirectory() as nowhere:
        from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
        from ray.train.torch import TorchTrainer

        here = Path.cwd()
        # Ray's own notes. Machines of a cluster need a place that they share.
        storage = Path(nowhere) if alone else here / ".ray-train"
        task = {"folder": str(here), "arguments": ["fit", *arguments], "started": time.time(), "notes": str(storage)}
        gpu = ray.cluster_resources().get("GPU", 0) >= workers
        training = TorchTrainer(
            _work,
            train_loop_config=task,
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
            run_config=RunConfig(storage_path=str(storage), failure_config=FailureConfig(max_failures=failures)),
        )
        try:
            training.fit()
        except WorkerGroupError as error:
            first = next(iter(error.worker_failures.values()))
            lines = [line for line in str(first).strip().splitlines() if line.strip()]
            raise MoEAppsError(f"training failed {failures + 1} times: {lines[-1] if lines else error}") from error
        finally:
            noted = storage / "error.txt"
            text = noted.read_text() if noted.exists() else None
            if storage != Path(nowhere):
                shutil.rmtree(storage, ignore_errors=True)
    if text is not None:
        raise ConfigError(text)


def _work(task: dict[str, Any]) -> None:
    """What each worker does."""
    from moeapps.cli.trainer import run

    os.chdir(task["folder"])  # Ray has put the worker elsewhere
    notes, arguments = Path(task["notes"]), list(task["arguments"])
    notes.mkdir(parents=True, exist_ok=True)

    def with_ray(trainer: dict[str, Any]) -> dict[str, Any]:
        (notes / "root.txt").write_text(os.path.abspath(trainer["default_root_dir"]))
        return _trainer_arguments(trainer)

    newest = _newest_checkpoint(notes / "root.txt", task["started"])
    if newest is not None:
        arguments += ["--ckpt_path", str(newest)]  # in place of the one that the first attempt began from
        print(f"note: going on from {newest}", file=sys.stderr)
    try:
        with plugins.command_folder():
            plugins.import_modules(plugins.from_environment())
            run(arguments, engine=with_ray)
    except FOR_GOOD as error:
        (notes / "error.txt").write_text(str(error))
    except SystemExit as end:  # Ray would take it for a death, and start the workers again
        if end.code:
            (notes / "error.txt").write_text(f"the command ended with status {end.code}; what it said stands above")


def _trainer_arguments(trainer: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the Trainer in a worker."""
    from ray.train.lightning import RayDDPStrategy, RayFSDPStrategy, RayLightningEnvironment

    known = {"auto": RayDDPStrategy, "ddp": RayDDPStrategy, "fsdp": RayFSDPStrategy}
    strategy = trainer.get("strategy") or "auto"
    if not isinstance(strategy, str) or strategy not in known:
        raise ConfigError(f"trainer.strategy={strategy!r} with Ray: it must be ddp or fsdp")
    environment = [*trainer.get("plugins", []), RayLightningEnvironment()]
    return {"strategy": known[strategy](), "plugins": environment, "devices": "auto", "num_nodes": 1}


def _newest_checkpoint(noted: Path, since: float) -> Path | None:
    """The newest checkpoint that this training has left below the folder of its runs; None before the first one."""
    if not noted.exists():
        return None
    found = [path for path in Path(noted.read_text()).rglob("last*.ckpt") if path.stat().st_mtime >= since]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)
