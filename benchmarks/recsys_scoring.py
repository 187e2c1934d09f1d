"""Learning from and scoring files of growing size: seconds and peak memory of the process that does it.

    python benchmarks/recsys_scoring.py [--rows 200000,2000000]
    python benchmarks/recsys_scoring.py --reading after [--rows 200000]

Files are rows of the embedded census-income sample, drawn with replacement, ages jittered. `moeapps predict` scores
each with a HoME; `moeapps fit` reads, encodes and trains one epoch on each. Every command is a process of its own. The
peak counts the pages of the encoded rows that are mapped from disk, which the system may drop at any time.

`--reading NAME` measures only how long a training takes to read and encode a CSV and a Parquet file, with a schema and
without: processor seconds of one thread, the median of three, and the peak. They are kept under NAME beside others.
"""

import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from command_line import script_parser
from rich.console import Console
from rich.table import Table

from moeapps.core.tabledata.files import TableFile
from moeapps.core.tabledata.writer import TableWriter
from moeapps.recsys import MultiTaskRanker, census_income, census_schema

TASKS = ["income", "never_married"]
RUN = """
import resource, sys
from moeapps.cli.main import main
status = main(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
sys.exit(status)
"""


def write(path: Path, rows: int) -> None:
    sample, rng = census_income(), np.random.default_rng(0)
    with TableWriter(path) as writer:
        for start in range(0, rows, 50_000):
            part = sample.iloc[rng.integers(0, len(sample), min(50_000, rows - start))].reset_index(drop=True)
            writer.write(
                part.assign(row=np.arange(start, start + len(part)), age=part["age"] + rng.normal(size=len(part)))
            )


def timed(*arguments: str) -> dict[str, float]:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return {"seconds": time.perf_counter() - start, "peak_mib": float(done.stdout.rsplit("peak", 1)[1])}


READ = """
import json, resource, sys, time
import torch
from moeapps.recsys import RankingData
torch.set_num_threads(1)
start = time.process_time()
RankingData(train=sys.argv[1], targets=["income", "never_married"], schema=json.loads(sys.argv[2])).setup("fit")
print(time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def reading(rows: int) -> dict[str, dict[str, float]]:
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for ending in ("csv", "parquet"):
            source = Path(name) / f"rows.{ending}"
            write(source, rows)
            for schema in (None, census_schema().to_json()["features"]):
                runs = []
                for _ in range(3):
                    command = [sys.executable, "-c", READ, str(source), json.dumps(schema)]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    runs.append([float(value) for value in done.stdout.split()])
                seconds, peak = np.median(runs, axis=0)
                how = f"{ending}, {'schema inferred' if schema is None else 'schema given'}"
                found[how] = {"seconds": float(seconds), "peak_mib": float(peak)}
                print(how, found[how], flush=True)
    return found


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--rows", default="200000,2000000")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "recsys_scoring.json")
    parser.add_argument("--reading", metavar="NAME")
    options = parser.parse_args()
    if options.reading:
        document = json.loads(options.output.read_text()) if options.output.exists() else {}
        rows = int(options.rows.split(",")[0])
        document.setdefault("reading", {})[options.reading] = {"rows": rows, **reading(rows)}
        options.output.write_text(json.dumps(document, indent=1) + "\n")
        return
    before = json.loads(options.output.read_text()) if options.output.exists() else {}
    found: dict[str, Any] = {**before, "machine": platform.machine(), "runs": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sample = census_income()
        model = MultiTaskRanker("home", schema=census_schema(), max_epochs=3, random_state=0, accelerator="cpu")
        model.fit(sample, TASKS).save(folder / "home.safetensors")
        config = {
            "model": {"class_path": "moeapps.recsys.RankingModule", "init_args": {"model": "home"}},
            "trainer": {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
                        "default_root_dir": str(folder / "runs")},
        }  # fmt: skip
        for rows in map(int, options.rows.split(",")):
            source = folder / f"{rows}.parquet"
            write(source, rows)
            scores = folder / "scores.parquet"
            runs = {
                "predict": timed("predict", str(folder / "home.safetensors"), "--input", str(source), "--output",
                                 str(scores), "--keep", "row")
            }  # fmt: skip
            assert TableFile(scores).count_rows() == rows
            few = pd.read_parquet(source, columns=None).head(1000) if rows <= 200_000 else None
            if few is not None:
                mine = model.predict_proba(few.drop(columns="row"))[TASKS]
                np.testing.assert_allclose(pd.read_parquet(scores).head(1000)[TASKS], mine, atol=1e-6)
            features = census_schema().to_json()["features"]
            data = {"train": str(source), "targets": TASKS, "schema": features, "batch_size": 4096}
            config["data"] = {"class_path": "moeapps.recsys.RankingData", "init_args": data}
            (folder / "c.yaml").write_text(json.dumps(config))
            runs["fit, one epoch"] = timed("fit", "--config", str(folder / "c.yaml"))
            runs["file_mib"] = source.stat().st_size / 2**20
            found["runs"][str(rows)] = runs
            print(rows, json.dumps(runs), flush=True)
    table = Table("rows", "file, MiB", "score: seconds", "peak MiB", "fit: seconds", "peak MiB")
    for rows, runs in found["runs"].items():
        cells = [
            f"{runs[kind][value]:.0f}" for kind in ("predict", "fit, one epoch") for value in ("seconds", "peak_mib")
        ]
        table.add_row(f"{int(rows):,}", f"{runs['file_mib']:.0f}", *cells)
    Console(width=120).print(table)
    options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
