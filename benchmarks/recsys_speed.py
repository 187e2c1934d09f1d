"""Training speed of multi-task models, beside torch-rechub's, in one process.

    python benchmarks/recsys_speed.py [--threads 1] [--rounds 7]

One step is forward, loss, backward and Adam on 1,024 rows of census-income (the embedded sample; 32 columns of
categories with embeddings of 4, 14 numbers), experts [64] with batch norm, towers [32]; batches are ready in memory, so
that neither side's loading counts. Targets beyond the two of the set are coin tosses. Candidates take turns, rounds of
20 steps; the figure is the median round. torch-rechub is left out where it is not installed.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from moeapps.recsys import TableEncoder, census_income, census_schema
from moeapps.recsys.encoder import Rows
from moeapps.recsys.network import RankingConfig, build_network
from moeapps.recsys.targets import Targets

BATCH, STEPS, EMBEDDING = 1024, 20, 4
Step = Callable[[int], None]


def batches(tasks: int) -> tuple[TableEncoder, list[Rows], list[torch.Tensor]]:
    frame = census_income()
    encoder = TableEncoder(census_schema()).fit(frame)
    rows = encoder.transform(frame)
    coins = np.random.default_rng(0).integers(0, 2, (len(frame), tasks)).astype(np.float32)
    coins[:, :2] = frame[["income", "never_married"]]
    starts = range(0, len(frame) - BATCH + 1, BATCH)
    labels = torch.from_numpy(coins)
    return encoder, [rows.at(slice(i, i + BATCH)) for i in starts], [labels[i : i + BATCH] for i in starts]


def training_step(network: torch.nn.Module, loss: Any, inputs: list[Any], labels: list[torch.Tensor]) -> Step:
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)

    def step(i: int) -> None:
        optimizer.zero_grad()
        loss(network(inputs[i % len(inputs)]), labels[i % len(inputs)]).backward()
        optimizer.step()

    return step


def ours(model: str, options: dict[str, Any], tasks: int) -> Step:
    encoder, rows, labels = batches(tasks)
    torch.manual_seed(0)
    targets = Targets([f"task {t}" for t in range(tasks)])
    targets.kinds = dict.fromkeys(targets.names, "binary")
    sizes = {"expert": [64], "tower": [32], **options}
    network = build_network(encoder, targets, RankingConfig(model, sizes, embedding_dim=EMBEDDING))
    return training_step(network, F.binary_cross_entropy_with_logits, rows, labels)


def rechub(model: str, tasks: int, specific: int, shared: int, levels: int = 1) -> Step:
    from torch_rechub.basic.features import DenseFeature, SparseFeature
    from torch_rechub.models.multi_task import MMOE, PLE, SharedBottom

    encoder, rows, labels = batches(tasks)
    names, count = encoder.table_names, rows[0].dense.shape[1]
    sizes = zip(names, encoder.table_sizes, strict=True)
    features = [SparseFeature(name, size, embed_dim=EMBEDDING) for name, size in sizes]
    features += [DenseFeature(f"dense{i}") for i in range(count)]
    inputs = [
        {name: part.sparse[:, i] for i, name in enumerate(names)}
        | {f"dense{i}": part.dense[:, i] for i in range(count)}
        for part in rows
    ]
    torch.manual_seed(0)
    kinds, mlp, towers = ["classification"] * tasks, {"dims": [64]}, [{"dims": [32]}] * tasks
    network = {
        "shared_bottom": lambda: SharedBottom(features, kinds, mlp, towers),
        "mmoe": lambda: MMOE(features, kinds, 8, mlp, towers),
        "ple": lambda: PLE(features, kinds, levels, specific, shared, mlp, towers),
    }[model]()
    return training_step(network, F.binary_cross_entropy, inputs, labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "recsys_speed.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found: dict[str, dict[str, list[float]]] = {}
    for tasks, specific, shared in ((2, 3, 2), (8, 1, 2)):
        experts = {"num_specific": specific, "num_shared": shared}
        candidates: dict[str, Step] = {
            "SharedBottom": ours("shared_bottom", {}, tasks),
            "MMoE": ours("mmoe", {"num_experts": 8}, tasks),
            "CGC": ours("cgc", experts, tasks),
            "PLE": ours("ple", experts, tasks),
            "AdaTT": ours("adatt", {"num_specific": specific}, tasks),
            "HoME": ours("home", {}, tasks),
        }
        try:
            candidates |= {
                "torch-rechub SharedBottom": rechub("shared_bottom", tasks, specific, shared),
                "torch-rechub MMoE": rechub("mmoe", tasks, specific, shared),
                "torch-rechub CGC": rechub("ple", tasks, specific, shared),
                "torch-rechub PLE": rechub("ple", tasks, specific, shared, levels=2),
            }
        except ImportError as error:
            print(f"torch-rechub: left out ({error})")
        rates: dict[str, list[float]] = {name: [] for name in candidates}
        for _ in range(options.rounds + 1):
            for name, step in candidates.items():
                start = time.perf_counter()
                for i in range(STEPS):
                    step(i)
                rates[name].append(STEPS * BATCH / (time.perf_counter() - start))
        found[f"8 experts x {tasks} tasks"] = {name: values[1:] for name, values in rates.items()}  # the first warms up
    table = Table("examples per second", *found)
    for name in next(iter(found.values())):
        table.add_row(name, *(f"{np.median(rates[name]):,.0f}" for rates in found.values()))
    Console(width=120).print(table)
    document = {"machine": platform.machine(), "torch": torch.__version__, "threads": options.threads, "rates": found}
    options.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
