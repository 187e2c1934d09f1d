"""Reading and encoding a table that is scored, without the network: seconds for a CSV and a Parquet file.

    python benchmarks/table_reading.py [--rows 2000000] [--output FILE]

The rows are those of the embedded census-income sample, drawn with replacement; the encoder is that of a HoME ranker.
To compare two versions of moeapps, put each in turn on PYTHONPATH, with the same --folder for the files.
"""

import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from command_line import script_parser

import moeapps
from moeapps.core import predict_file
from moeapps.recsys import MultiTaskRanker, census_income, census_schema

TASKS = ["income", "never_married"]


class Reader:
    """A ranker's encoder as a model: its prediction is the first number of a row."""

    def __init__(self, ranker: Any) -> None:
        self.ranker = ranker

    def column_kinds(self) -> Any:
        return self.ranker.column_kinds()

    def predict(self, X: pd.DataFrame) -> np.ndarray:
        return self.ranker.encoder_.transform(X).dense[:, 0].numpy()


def write(folder: Path, rows: int) -> None:
    sample = census_income()
    if not (folder / "home.safetensors").exists():
        model = MultiTaskRanker("home", schema=census_schema(), max_epochs=1, random_state=0, accelerator="cpu")
        model.fit(sample, TASKS).save(folder / "home.safetensors")
    if not (folder / "t.parquet").exists():
        rng = np.random.default_rng(0)
        frame = sample.iloc[rng.integers(0, len(sample), rows)].reset_index(drop=True).assign(row=np.arange(rows))
        frame["age"] = frame["age"] + rng.normal(size=rows)
        frame.to_parquet(folder / "t.parquet")
        frame.to_csv(folder / "t.csv", index=False)


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--folder", type=Path, help="where the files are, or are made (default: a temporary folder)")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        write(folder, options.rows)
        reader = Reader(moeapps.load(folder / "home.safetensors"))
        found: dict[str, Any] = {"moeapps": str(Path(moeapps.__file__).parent.parent.name), "rows": options.rows}
        for ending in ("csv", "parquet"):
            start = time.perf_counter()
            assert (
                predict_file(reader, folder / f"t.{ending}", Path(temporary) / "out.parquet", ["row"]) == options.rows
            )
            found[ending] = round(time.perf_counter() - start, 2)
        found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(found))
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
