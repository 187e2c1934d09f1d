"""Two million rows scored by one process and by the workers of Ray, one of which is killed: the same bytes, seconds.

    python benchmarks/scale_scoring.py [--rows 2000000] [--file census-income.test.gz]

Rows are drawn with replacement from Census-Income (the embedded sample, or a file of the UCI repository) and written
once as Parquet, with an id and the columns that the model reads. The model is a MoEClassifier of `income` with its
defaults but two epochs. Each way is started `--repeats` times, in turn; seconds are the shortest, and begin with a
cluster that runs and a model that is on disk. "killed" kills one of two workers after a quarter of the rows.
"""

import hashlib
import json
import os
import platform
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from command_line import script_parser
from rich.console import Console
from rich.table import Table

import moeapps
from moeapps import MoEClassifier
from moeapps.core.tabledata.scoring import predict_file
from moeapps.recsys import census_income
from moeapps.scale import score

BATCH = 65_536


def make_table(rows: int, source: Path | None, folder: Path) -> Path:
    """The table, and the model beside it."""
    frame = census_income(source)
    features = frame.drop(columns=["income", "never_married", "instance_weight"])
    model = MoEClassifier(max_epochs=2, random_state=0).fit(features[:8000], frame["income"][:8000])
    model.save(folder / "model.safetensors")
    rng = np.random.default_rng(0)
    path = folder / "rows.parquet"
    writer = None
    for start in range(0, rows, BATCH):
        part = features.iloc[rng.integers(0, len(features), min(BATCH, rows - start))].copy()
        part.insert(0, "id", [f"{start + i:012d}" for i in range(len(part))])
        table = pa.Table.from_pandas(part, preserve_index=False)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table.cast(writer.schema))
    assert writer is not None
    writer.close()
    return path


def kill_a_worker() -> bool:
    for process in psutil.Process().children(recursive=True):
        if "Scorer" in " ".join(process.cmdline()):
            os.kill(process.pid, signal.SIGKILL)
            return True
    return False


def run(way: str, table: Path, output: Path) -> dict[str, Any]:
    """Score in one of the ways."""
    model, killed = table.parent / "model.safetensors", []
    total = pq.ParquetFile(table).metadata.num_rows

    def progress(rows: int) -> None:
        if way == "killed" and not any(killed) and rows > total / 4:
            killed.append(kill_a_worker())

    start = time.perf_counter()
    if way == "one process":
        count = predict_file(moeapps.load(model), table, output, ["id"], BATCH)
    else:
        workers = 1 if way == "1 worker" else 2
        count = score(model, table, output, keep=["id"], workers=workers, batch_rows=BATCH, progress=progress)
    seconds = time.perf_counter() - start
    assert count == total
    return {"seconds": seconds, "killed": sum(killed), "sha256": hashlib.sha256(output.read_bytes()).hexdigest()}


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--file", type=Path, help="census-income.test.gz or census-income.data.gz")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "scale_scoring.json")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as a worker has
    ways = ("one process", "1 worker", "2 workers", "killed")
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        table = make_table(options.rows, options.file, Path(folder))
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        for _ in range(options.repeats):
            for way in ways:
                found[way].append(run(way, table, Path(folder) / "scores.csv"))
                print(f"{way}: {found[way][-1]['seconds']:.1f} s", flush=True)
        ray.shutdown()
    reference = found["one process"][0]["sha256"]
    results: dict[str, Any] = {
        "machine": platform.machine(), "torch": torch.__version__, "ray": ray.__version__, "threads": 1,
        "rows": options.rows, "repeats": options.repeats,
    }  # fmt: skip
    shown = Table(title=f"{options.rows:,} rows, the shortest of {options.repeats}")
    for column in ("way", "seconds", "rows/s", "killed", "same bytes"):
        shown.add_column(column, justify="right" if column != "way" else "left")
    for way, runs in found.items():
        seconds = min(one["seconds"] for one in runs)
        same = all(one["sha256"] == reference for one in runs)
        results[way] = {
            "seconds": seconds, "rows_per_second": options.rows / seconds,
            "killed": sum(one["killed"] for one in runs), "same_bytes": same,
        }  # fmt: skip
        shown.add_row(way, f"{seconds:.1f}", f"{options.rows / seconds:,.0f}", str(results[way]["killed"]), str(same))
    Console(width=100).print(shown)
    options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
