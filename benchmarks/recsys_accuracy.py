"""Our rankers against each other and against the packages that a user would pick instead.

    python benchmarks/recsys_accuracy.py [--data FOLDER] [--seeds 5] [--picture docs/recsys]

The folder (MOEAPPS_DATA/recsys unless it is given) has census-income.test.gz. Every model sees the same
rows in the same process with the same sizes; seconds are those of training. Results are kept after every training, so
that the script can be stopped and started again. torch-rechub and deepctr-torch are run where they are installed.

census: 99,762 rows, 80/10/10 at random, two tasks; embeddings of 4, experts [64] with batch norm, towers [32], batches
of 1,024, five epochs, no model is selected by a score. Ours: AdamW, cosine from 2e-3 to 2e-4 (1.1e-3 in the mean); the
others: their own trainers, Adam, 1e-3 (and 2e-3: "fast"), same encoded columns.

--picture draws the diagnosis of an MMoE without batch norm beside HoME's, on census.
"""

import contextlib
import io
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from command_line import script_parser
from rich.console import Console
from rich.table import Table

from moeapps.recsys import (
    MultiTaskRanker,
    TableEncoder,
    auc,
    census_income,
    census_schema,
)

TASKS = ["income", "never_married"]
EPOCHS, BATCH, EMBEDDING, RATE = 5, 1024, 4, 2e-3
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "SharedBottom": ("shared_bottom", {}),
    "MMoE": ("mmoe", {"num_experts": 8}),
    "CGC": ("cgc", {"num_specific": 3, "num_shared": 2}),
    "PLE": ("ple", {"num_specific": 3, "num_shared": 2, "num_levels": 2}),
    "AdaTT": ("adatt", {"num_specific": 3}),
    "HoME": ("home", {}),
    "MMoE, norm=False": ("mmoe", {"num_experts": 8, "norm": False}),
    "PLE, norm=False": ("ple", {"num_specific": 3, "num_shared": 2, "num_levels": 2, "norm": False}),
}
Scores = tuple[np.ndarray, float, int]


def ours(name: str, train: pd.DataFrame, test: pd.DataFrame, seed: int) -> Scores:
    """Predictions ``(n, T)``, seconds of training, parameters."""
    kind, options = MODELS[name]
    model = MultiTaskRanker(
        kind,
        options={"expert": [64], "tower": [32], **options},
        schema=census_schema(),
        embedding_dim=EMBEDDING,
        batch_size=BATCH,
        lr=RATE,
        max_epochs=EPOCHS,
        unknown_rate=0.0,
        validation_fraction=0.0,
        random_state=seed,
        accelerator="cpu",
    )
    start = time.perf_counter()
    model.fit(train, TASKS)
    seconds = time.perf_counter() - start
    return model.predict_proba(test).to_numpy(), seconds, _count(model.model_)


def _count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _columns(train: pd.DataFrame, test: pd.DataFrame) -> tuple[TableEncoder, list[dict[str, np.ndarray]]]:
    """The columns as our encoder makes them, by name."""
    schema = census_schema()
    encoder = TableEncoder(schema).fit(train)
    found = []
    for frame in (train, test):
        rows = encoder.transform(frame)
        columns = {feature.name: rows.sparse[:, i].numpy() for i, feature in enumerate(schema.sparse)}
        columns |= {f"dense{i}": rows.dense[:, i].numpy() for i in range(rows.dense.shape[1])}
        found.append(columns)
    return encoder, found


def rechub(name: str, rate: float) -> Callable[[pd.DataFrame, pd.DataFrame, int], Scores]:
    """torch-rechub's model with its own trainer and loaders."""

    def run(train: pd.DataFrame, test: pd.DataFrame, seed: int) -> Scores:
        from torch_rechub.basic.features import DenseFeature, SparseFeature
        from torch_rechub.models.multi_task import MMOE, PLE, SharedBottom
        from torch_rechub.trainers import MTLTrainer
        from torch_rechub.utils.data import DataGenerator

        encoder, (x, x_test) = _columns(train, test)
        sizes = dict(zip(encoder.table_names, encoder.table_sizes, strict=True))
        features = [SparseFeature(key, size, embed_dim=EMBEDDING) for key, size in sizes.items()]
        features += [DenseFeature(key) for key in x if key.startswith("dense")]
        torch.manual_seed(seed)
        kinds, mlp, towers = ["classification"] * 2, {"dims": [64]}, [{"dims": [32]}] * 2
        model = {
            "SharedBottom": lambda: SharedBottom(features, kinds, mlp, towers),
            "MMoE": lambda: MMOE(features, kinds, 8, mlp, towers),
            "CGC": lambda: PLE(features, kinds, 1, 3, 2, mlp, towers),
            "PLE": lambda: PLE(features, kinds, 2, 3, 2, mlp, towers),
        }[name]()
        start = time.perf_counter()
        labels = train[TASKS].to_numpy()
        loader, few, _ = DataGenerator(x, labels).generate_dataloader(
            x_val={key: value[:2] for key, value in x.items()},
            y_val=np.array([[0, 1], [1, 0]]),
            x_test=x_test,
            y_test=test[TASKS].to_numpy(),
            batch_size=BATCH,
        )
        with tempfile.TemporaryDirectory() as folder:
            trainer = MTLTrainer(
                model,
                kinds,
                optimizer_params={"lr": rate, "weight_decay": 1e-5},
                n_epoch=EPOCHS,
                earlystop_patience=10**6,
                model_path=folder,
            )
            trainer.fit(loader, few)  # two rows to validate on: nothing is selected by them
        seconds = time.perf_counter() - start
        model.eval()
        with torch.no_grad():
            found = model({key: torch.from_numpy(value) for key, value in x_test.items()})
        return found.numpy(), seconds, _count(model)

    return run


def deepctr(name: str) -> Callable[[pd.DataFrame, pd.DataFrame, int], Scores]:
    """deepctr-torch's model with its own training loop."""

    def run(train: pd.DataFrame, test: pd.DataFrame, seed: int) -> Scores:
        from deepctr_torch.inputs import DenseFeat, SparseFeat
        from deepctr_torch.models import MMOE, PLE

        encoder, (x, x_test) = _columns(train, test)
        sizes = dict(zip(encoder.table_names, encoder.table_sizes, strict=True))
        columns = [SparseFeat(key, size, embedding_dim=EMBEDDING) for key, size in sizes.items()]
        columns += [DenseFeat(key, 1) for key in x if key.startswith("dense")]
        common: dict[str, Any] = {
            "expert_dnn_hidden_units": (64,),
            "gate_dnn_hidden_units": (),
            "tower_dnn_hidden_units": (32,),
            "dnn_use_bn": True,
            "task_names": TASKS,
            "seed": seed,
        }
        if name == "MMoE":
            model = MMOE(columns, num_experts=8, **common)
        else:
            model = PLE(columns, shared_expert_num=2, specific_expert_num=3, num_levels=2, **common)
        model.compile(torch.optim.Adam(model.parameters(), 1e-3), loss=["binary_crossentropy"] * 2)
        start = time.perf_counter()
        model.fit(x, train[TASKS].to_numpy(), batch_size=BATCH, epochs=EPOCHS, verbose=0)
        seconds = time.perf_counter() - start
        return model.predict(x_test, 8192), seconds, _count(model)

    return run


def census(data: Path, seeds: int, save: Callable[[str, int, Any], None], done: Callable[[str, int], bool]) -> None:
    candidates: dict[str, Callable[[pd.DataFrame, pd.DataFrame, int], Scores]] = {
        name: (lambda train, test, seed, name=name: ours(name, train, test, seed)) for name in MODELS
    }
    candidates |= {f"torch-rechub {name}": rechub(name, 1e-3) for name in ("SharedBottom", "MMoE", "CGC", "PLE")}
    candidates |= {f"torch-rechub {name}, fast": rechub(name, 2e-3) for name in ("MMoE", "PLE")}
    candidates |= {f"deepctr-torch {name}": deepctr(name) for name in ("MMoE", "PLE")}
    frame = census_income(data / "census-income.test.gz")
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(frame))
        cut = [len(frame) * 8 // 10, len(frame) * 9 // 10]
        train, test = frame.iloc[order[: cut[0]]], frame.iloc[order[cut[1] :]]
        for name, run in candidates.items():
            if done(name, seed):
                continue
            try:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    found, seconds, parameters = run(train, test, seed)
            except ImportError as error:
                print(f"{name}: left out ({error})")
                continue
            areas = {task: auc(test[task], found[:, t]) for t, task in enumerate(TASKS)}
            save(name, seed, {"auc": areas, "seconds": seconds, "parameters": parameters})


def draw(data: Path, folder: Path) -> None:
    """An MMoE with ReLU as it was published, and HoME, trained alike."""
    frame = census_income(data / "census-income.test.gz")
    order = np.random.default_rng(0).permutation(len(frame))
    train, test = frame.iloc[order[: len(frame) * 8 // 10]], frame.iloc[order[len(frame) * 9 // 10 :]]
    for name, kind, options in (
        ("mmoe", "mmoe", {"num_experts": 8, "expert": [64, 64], "norm": False}),
        ("home", "home", {"expert": [64, 64]}),
    ):
        model = MultiTaskRanker(
            kind,
            options=options,
            schema=census_schema(),
            embedding_dim=EMBEDDING,
            batch_size=256,
            lr=5e-3,
            max_epochs=EPOCHS,
            validation_fraction=0.0,
            random_state=0,
            accelerator="cpu",
        )
        found = model.fit(train, TASKS).diagnose(test.head(4096))
        title = {"mmoe": "MMoE, ReLU", "home": "HoME, normalised Swish"}[name]
        folder.mkdir(parents=True, exist_ok=True)
        found.plot(f"{title}, census-income").savefig(folder / f"diagnosis-{name}.png", dpi=90)
        print(title, *(found.hints() or ["experts and gates look healthy"]), sep="\n  ")


def show(runs: dict[str, dict[str, Any]]) -> None:
    table = Table("model", "parameters", "seconds", *TASKS)
    for model, entries in runs.items():
        rows = list(entries.values())
        cells = [[row["auc"][task] for row in rows] for task in TASKS]
        table.add_row(
            model,
            f"{rows[0]['parameters']:,}",
            f"{np.mean([row['seconds'] for row in rows]):.0f}",
            *(f"{np.mean(cell):.4f} ± {np.std(cell):.4f}" for cell in cells),
        )
    Console(width=150).print(table)


def markdown(runs: dict[str, dict[str, Any]]) -> list[str]:
    """The table in docs/benchmarks/recommendation.md."""
    lines = [
        "| model | income above 50,000 | never married | parameters | seconds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for model, entries in runs.items():
        rows = list(entries.values())
        areas = [[row["auc"][task] for row in rows] for task in TASKS]
        cells = [f"{np.mean(area):.4f} ± {np.std(area):.4f}" for area in areas]
        seconds = np.mean([row["seconds"] for row in rows])
        lines.append(f"| {model} | {' | '.join(cells)} | {rows[0]['parameters']:,} | {seconds:.0f} |")
    return lines


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MOEAPPS_DATA", ".")) / "recsys")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "recsys_accuracy.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.picture:
        draw(options.data, options.picture)
        return
    found: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    found["runs"] = json.loads(options.output.read_text())["runs"] if options.output.exists() else {}
    runs = found["runs"].setdefault("census", {})

    def save(model: str, seed: int, row: Any) -> None:
        runs.setdefault(model, {})[str(seed)] = row
        print(model, seed, json.dumps(row), flush=True)
        options.output.parent.mkdir(exist_ok=True)
        options.output.write_text(json.dumps(found, indent=1) + "\n")

    census(options.data, options.seeds, save, lambda model, seed: str(seed) in runs.get(model, {}))
    show(runs)


if __name__ == "__main__":
    main()
