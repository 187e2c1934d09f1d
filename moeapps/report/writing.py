"""Write a run as a folder that :func:`~moeapps.report.runs.find_runs` reads, from what a script has in memory."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from moeapps.core.files import atomic_write
from moeapps.core.views import Views
from moeapps.report.runs import METRICS, RUN, Score

__all__ = ["write_run"]


def write_run(
    folder: Path,
    name: str,
    facts: Mapping[str, str],
    scores: Sequence[Score],
    history: pd.DataFrame | None = None,
    views: Views | None = None,
) -> Path:
    """Write ``run.json``, and ``metrics.csv`` and ``views.json`` where there is something to write.

    Parameters
    ----------
    folder : Path
        The run's folder, which is made.
    name : str
        Headline of the run.
    facts : mapping of str to str
        Model, data and the like, by name.
    scores : sequence of Score
        Final metrics.
    history : DataFrame, optional
        Logged metrics over epochs or instances.
    views : Views, optional
        Maps and curves of its experts.

    Returns
    -------
    Path
        The folder.
    """
    document = {"name": name, "facts": dict(facts), "scores": [asdict(score) for score in scores]}
    with atomic_write(folder / RUN) as file:
        file.write(json.dumps(document).encode())
    if history is not None:
        with atomic_write(folder / METRICS) as file:
            history.to_csv(file, index=False)
    if views is not None:
        views.save(folder)
    return folder
