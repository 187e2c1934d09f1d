"""Run parts of the demo and write what they leave: results, pictures, a folder per run, the report."""

import json
import platform
import re
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

import moeapps
from moeapps.core.checks import check_one_of
from moeapps.core.errors import ConfigError
from moeapps.core.files import atomic_write
from moeapps.demo import PARTS, blocks
from moeapps.demo.record import Recorder, Row, summarised
from moeapps.report.page import write_report
from moeapps.report.runs import Score
from moeapps.report.writing import write_run

__all__ = ["run_parts"]


def run_parts(folder: str, seeds: int, parts: Sequence[str]) -> list[Row]:
    """Do what :func:`moeapps.demo.run` says, for these parts."""
    if seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {seeds}")
    for part in parts:
        check_one_of("part", part, PARTS)
    console = Console()
    if not console.is_terminal:
        console = Console(width=110)  # a pipe or a log has no width of its own
    with Recorder(console, seeds) as recorder:
        for part in parts:
            getattr(blocks, part)(recorder)
    console.print(recorder.summary())
    console.print(recorder.table())
    target = Path(folder)
    _write(recorder, target)
    report = write_report(
        [str(_folder(target, row)) for row in recorder.rows], str(target / "report.html"), "moeapps demo"
    )
    pictures = ", ".join(["results.json", *recorder.pictures])
    console.print(f"{recorder.seconds:.0f} s; {folder}: {pictures}", highlight=False)
    console.print(f"report: {report}", highlight=False)
    return recorder.rows


def _folder(target: Path, row: Row) -> Path:
    words = re.sub(r"[^a-z0-9]+", "-", f"{row.task} {row.model}".lower()).strip("-")
    return target / row.package / words


def _write(recorder: Recorder, target: Path) -> None:
    for name, figure in recorder.pictures.items():
        with atomic_write(target / name) as file:
            figure.savefig(file, dpi=130, format="png")
    for row in recorder.rows:
        folder = _folder(target, row)
        score = Score(f"{row.task}: {row.metric}", row.scores, smaller=row.less)
        facts = {"data": row.task, "model": row.model, "seeds": str(len(row.scores))}
        if row.parameters:
            facts["parameters"] = f"{row.parameters:,}"
        facts["seconds per training"] = f"{sum(row.seconds) / len(row.seconds):.1f}"
        write_run(folder, f"{row.model}, {row.task}", facts, [score], row.history, row.views)
    results = {
        "summary": [line.as_json() for line in summarised(recorder.rows)],
        "rows": recorder.results(),
        "seeds": recorder.seeds,
        "seconds": recorder.seconds,
        "processor_seconds": time.process_time(),
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
        "versions": {
            "moeapps": moeapps.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    with atomic_write(target / "results.json") as file:
        file.write(json.dumps(results, indent=1).encode())
