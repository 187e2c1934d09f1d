"""``moeapps score --engine ray``: a table's batches go to workers on many machines, and come back in their order."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import moeapps
from moeapps.core.checks import check_sizes
from moeapps.core.tabledata.scoring import FileScoring, check_output
from moeapps.core.tabledata.writer import table_writer
from moeapps.scale.ray_cluster import connected, errors_of_workers

__all__ = ["score"]

RESTARTS = 10
"""How often a worker that died is started again; its batches are predicted once more."""

AHEAD = 2
"""Batches that are read ahead for each worker: memory does not grow with the file."""


class Scorer:
    """A worker, which loads the model with its first batch."""

    def __init__(self) -> None:
        self.model: Any = None

    def predict(self, given: tuple[Any, FileScoring], frame: pd.DataFrame) -> pd.DataFrame:
        """What is written for a batch.

        Parameters
        ----------
        given : (ObjectRef, FileScoring)
            Reference to the content of the model's file, so that the machine of a worker needs no copy of it; and what
            is read and written.
        frame : DataFrame
            The batch.
        """
        content, scoring = given
        if self.model is None:
            import ray

            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.safetensors"
                path.write_bytes(ray.get(content))
                self.model = moeapps.load(path)
        return scoring.predict(self.model, frame)


def score(
    model: str | os.PathLike[str],
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    keep: Sequence[str] = (),
    weights: bool = False,
    workers: int = 2,
    batch_rows: int = 65_536,
    progress: Callable[[int], None] = lambda rows: None,
) -> int:
    """Predict the rows of a file of any size with several workers of a Ray cluster.

    The file is read here, once, and written here, in its order: what is written is what
    :func:`~moeapps.core.tabledata.scoring.predict_file` writes. Workers need neither the file nor the model's, but
    moeapps of the same version. A worker that dies is started again, and its batches are predicted once more.

    Parameters
    ----------
    model : path
        File that ``model.save`` wrote.
    source, output, keep, weights, batch_rows
        As for :func:`~moeapps.core.tabledata.scoring.predict_file`.
    workers : int, default 2
        Number of workers, one core each. They are those of the cluster that this process is connected to, of the one
        at ``RAY_ADDRESS``, or of this machine.
    progress : callable, optional
        Called with the number of rows written so far, after each batch.

    Returns
    -------
    int
        Number of rows.

    Raises
    ------
    ConfigError
        As ``predict_file``; or if Ray is not installed or the cluster has fewer cores than workers.
    DataError
        Naming file, row and column, if a column is missing or has a value that it cannot have.
    MoEAppsError
        If workers die again and again.
    """
    check_sizes(workers=workers, batch_rows=batch_rows)
    scoring = FileScoring(moeapps.load(model), source, keep, batch_rows, weights)
    check_output(source, output)
    content = Path(model).read_bytes()
    with connected(workers) as (ray, _), table_writer(output) as writer:
        given = (ray.put(content), scoring)
        make = ray.remote(max_restarts=RESTARTS, max_task_retries=RESTARTS, num_cpus=1)(Scorer)
        pool = ray.util.ActorPool([make.remote() for _ in range(workers)])
        with errors_of_workers():
            for frame in _in_order(pool, given, scoring.batches(), AHEAD * workers):
                writer.write(frame)
                progress(writer.rows)
    return writer.rows


def _in_order(pool: Any, given: Any, batches: Iterator[pd.DataFrame], ahead: int) -> Iterator[pd.DataFrame]:
    """Predictions of batches, in their order; only a few batches are read ahead of those that are written."""
    waiting = 0
    for batch in batches:
        pool.submit(lambda scorer, frame: scorer.predict.remote(given, frame), batch)
        waiting += 1
        if waiting > ahead:
            yield pool.get_next()
            waiting -= 1
    for _ in range(waiting):
        yield pool.get_next()
