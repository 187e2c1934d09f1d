"""The ten best items of 100,000 for each of 100,000 users: seconds, and peak memory of the process.

    python benchmarks/recsys_recommend.py [--users 100000] [--items 100000] [--threads 1]

Made data: 20 events per user, items drawn with probabilities of Zipf's law within the user's taste, one of 50. SASRec's
scores of all items are one matrix product; DIN and AW-MoE, which read user and item together, score 300 candidates
per user, and do so for a tenth of the users. Every item that a user had is left out, and the script checks that none
comes back. The rankers are trained for one epoch on 50,000 events: how good they are is not measured here. Every
case is a process of its own.
"""

import json
import multiprocessing
import platform
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from command_line import script_parser
from rich.console import Console
from rich.table import Table

from moeapps.recsys import AWMoERanker, implicit_feedback

TASTES, EVENTS, K = 50, 20, 10
CASES = ("sasrec", "din", "aw_moe")


def made(users: int, items: int, seed: int = 0) -> pd.DataFrame:
    """Events of users with a taste."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), EVENTS)
    size = items // TASTES
    weight = 1 / np.arange(1, size + 1)
    rank = rng.choice(size, len(user), p=weight / weight.sum())
    item = (user % TASTES) * size + rank
    return pd.DataFrame({"user_id": user, "item_id": item, "timestamp": rng.permutation(len(user))})


def measure(case: str, users: int, items: int, threads: int, found: Any) -> None:
    """Train briefly, recommend, check; the figures go to ``found``."""
    torch.set_num_threads(threads)
    frame = made(users, items)
    catalogue = pd.DataFrame({"item_id": np.arange(items)})
    start = time.perf_counter()
    few = implicit_feedback(frame.sample(50_000, random_state=0), items=catalogue, max_history=20)
    ranker = AWMoERanker(case, embedding_dim=16, max_epochs=1, random_state=0).fit(few)
    trained = time.perf_counter() - start
    asked = frame if case == "sasrec" else frame[frame["user_id"] < users // 10]
    start = time.perf_counter()
    feedback = implicit_feedback(asked, items=catalogue, max_history=20)
    prepared = time.perf_counter() - start
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    start = time.perf_counter()
    best = ranker.recommend(feedback, K)
    seconds = time.perf_counter() - start
    wrong = len(best.merge(asked[["user_id", "item_id"]]))
    found[case] = {
        "users": int(asked["user_id"].nunique()),
        "items": items,
        "scored": items if case == "sasrec" else 300,
        "fit_seconds": trained,
        "prepare_seconds": prepared,
        "seconds": seconds,
        "peak_mib_before": before,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "rows": len(best),
        "items_had": wrong,
    }


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "recsys_recommend.json")
    options = parser.parse_args()
    runs: dict[str, Any] = json.loads(options.output.read_text())["runs"] if options.output.exists() else {}
    context = multiprocessing.get_context("spawn")
    for case in options.cases:
        with context.Manager() as manager:
            found = manager.dict()
            arguments = (case, options.users, options.items, options.threads, found)
            process = context.Process(target=measure, args=arguments)
            process.start()
            process.join()
            runs |= dict(found)
        document = {"machine": platform.machine(), "torch": torch.__version__, "threads": options.threads, "runs": runs}
        options.output.write_text(json.dumps(document, indent=1) + "\n")
    table = Table("network", "users", "items", "scored of a user", "seconds", "peak MiB", "items had before")
    for case, run in runs.items():
        cells = (run["users"], run["items"], run["scored"])
        table.add_row(
            case, *(f"{cell:,}" for cell in cells), f"{run['seconds']:.0f}", str(run["peak_mib"]), str(run["items_had"])
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
