"""Six targets and several scenarios: models for all of them beside one model for each.

    python benchmarks/recsys_tasks.py --data ../shared/data/recsys --seeds 5
    python benchmarks/recsys_tasks.py --sets movielens

census: the adults of census-income.test.gz (UCI), 80/10/10 at random. Six binary targets: income above 50,000 dollars,
never married, dividends, capital gains, a university degree, member of a union. The last one is known of those in
employment who were asked, 13 % of the rows. What a target is made of is no feature, nor is what tells it in other words
(household and tax status for the marriage). Scenarios: six age groups.

movielens: ml-100k, liked (rating >= 4), 80/10/10 in order of time. Scenarios: seven age groups.

Every model has the same features, embeddings, widths, batches and epochs at most; moeapps' keep the epoch with the
lowest validation loss. "single task" is a DNN for each target, "single scenario" a model of all targets for each age
group, learned from its rows alone. SharedBottom is the one model with the age group as a feature. torch-rechub's models
know no missing labels, so they learn the five other targets; they end with the last epoch.
"""

import contextlib
import io
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
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
    Schema,
    SparseFeature,
    TableEncoder,
    auc,
    census_income,
    census_schema,
    movielens_100k,
    movielens_schema,
    time_split,
)

TASKS = ["income", "never_married", "dividends", "capital_gains", "degree", "union"]
SCENARIO = "age_group"
DEGREES = ("Bachelors", "Masters", "Prof school", "Doctorate")
TOLD = ("household_detail", "household_summary", "family_under_18", "tax_filer")
"""Features that say in other words whether a person has married."""

WIDTHS: dict[str, Any] = {"expert": [64], "tower": [32]}
Scores = dict[str, np.ndarray]
Model = Callable[["Set", int], tuple[Scores, float, int]]


class Set:
    """Parts of a data set, its schema, targets and settings."""

    def __init__(
        self, name: str, parts: list[pd.DataFrame], schema: Schema, tasks: list[str], settings: dict[str, Any]
    ) -> None:
        self.name, self.schema, self.tasks, self.settings = name, schema, tasks, settings
        self.train, self.val, self.test = parts

    def scenarios(self) -> Iterator[tuple[str, np.ndarray]]:
        """Each scenario of the test part with its rows."""
        for value in sorted(self.test[SCENARIO].unique()):
            yield value, (self.test[SCENARIO] == value).to_numpy()


def six_targets(path: Path) -> tuple[pd.DataFrame, Schema]:
    frame = census_income(path)
    frame = frame[frame["age"] >= 18].reset_index(drop=True)
    frame[SCENARIO] = _age_groups(frame["age"], [18, 25, 35, 45, 55, 65])
    for name in ("dividends", "capital_gains"):
        frame[name] = (frame[name] > 0).astype(int)
    frame["degree"] = frame["education"].str.startswith(DEGREES).astype(int)
    frame["union"] = frame["union_member"].map({"Yes": 1.0, "No": 0.0})  # NaN: not asked
    left_out = ("dividends", "capital_gains", "education", "union_member", *TOLD)
    features = [f for f in census_schema().features if f.name not in left_out]
    ignored = [name for name in ("instance_weight", *left_out) if name not in TASKS]
    return frame, Schema((*features, SparseFeature(SCENARIO)), tuple(TASKS), tuple(ignored))


def _age_groups(age: pd.Series, starts: list[int]) -> pd.Series:
    labels = [f"{a}-{b - 1}" for a, b in pairwise(starts)] + [f"{starts[-1]}+"]
    return pd.cut(age, [*starts, 200], right=False, labels=labels).astype(str)


def census(data: Path, seed: int) -> Set:
    frame, schema = six_targets(data / "census-income.test.gz")
    order = np.random.default_rng(seed).permutation(len(frame))
    cuts = [len(frame) * 8 // 10, len(frame) * 9 // 10]
    parts = [frame.iloc[index].drop(columns=_unused(frame, schema)) for index in np.split(order, cuts)]
    settings = {"embedding_dim": 4, "batch_size": 512, "lr": 2e-3, "max_epochs": 5, "patience": 1}
    return Set("census", parts, schema, TASKS, settings)


def movielens(data: Path, seed: int) -> Set:
    frame = movielens_100k(data / "ml-100k")
    frame[SCENARIO] = _age_groups(frame["user_age"], [0, 18, 25, 35, 45, 50, 56])
    known = movielens_schema()
    schema = Schema((*known.features, SparseFeature(SCENARIO)), known.targets, known.ignored)
    settings = {"embedding_dim": 8, "batch_size": 1024, "lr": 1e-3, "weight_decay": 1e-2, "max_epochs": 12}
    return Set("movielens", list(time_split(frame, "timestamp")), schema, ["liked"], settings)


def _unused(frame: pd.DataFrame, schema: Schema) -> list[str]:
    known = {*(feature.name for feature in schema.features), *schema.targets}
    return [name for name in frame if name not in known]


def fit(data: Set, seed: int, model: str, tasks: list[str], rows: Any = None, **changes: Any) -> MultiTaskRanker:
    """One of our models, on all rows or those of a mask's name and value."""
    options = {**WIDTHS, **({"dropout": 0.3} if data.name == "movielens" else {}), **changes.pop("options", {})}
    schema = Schema(data.schema.features, tuple(tasks), (*data.schema.ignored, *set(data.tasks) - set(tasks)))
    ranker = MultiTaskRanker(
        model, options=options, schema=schema, accelerator="cpu", random_state=seed, **data.settings, **changes
    )
    train, val = data.train, data.val
    if rows is not None:
        train, val = (part[part[SCENARIO] == rows] for part in (train, val))
    return ranker.fit(train, tasks, validation=val)


def ours(model: str, **changes: Any) -> Model:
    def run(data: Set, seed: int) -> tuple[Scores, float, int]:
        start = time.perf_counter()
        ranker = fit(data, seed, model, data.tasks, **changes)
        seconds = time.perf_counter() - start
        return _scores(ranker, data.test), seconds, _count(ranker.model_)

    return run


def single_tasks(data: Set, seed: int) -> tuple[Scores, float, int]:
    found, start, parameters = {}, time.perf_counter(), 0
    for task in data.tasks:
        ranker = fit(data, seed, "shared_bottom", [task])
        found |= _scores(ranker, data.test)
        parameters += _count(ranker.model_)
    return found, time.perf_counter() - start, parameters


def single_scenarios(data: Set, seed: int) -> tuple[Scores, float, int]:
    found = {task: np.zeros(len(data.test)) for task in data.tasks}
    start, parameters = time.perf_counter(), 0
    for value, mask in data.scenarios():
        ranker = fit(data, seed, "shared_bottom", data.tasks, value)
        for task, scores in _scores(ranker, data.test[mask]).items():
            found[task][mask] = scores
        parameters += _count(ranker.model_)
    return found, time.perf_counter() - start, parameters


def _scores(ranker: MultiTaskRanker, frame: pd.DataFrame) -> Scores:
    return {name: column.to_numpy() for name, column in ranker.predict_proba(frame).items()}


def _count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def rechub(name: str) -> Model:
    """torch-rechub's model with its own trainer and loaders, on the targets that have all labels."""

    def run(data: Set, seed: int) -> tuple[Scores, float, int]:
        from torch_rechub.basic.features import DenseFeature
        from torch_rechub.basic.features import SparseFeature as Sparse
        from torch_rechub.models.multi_task import MMOE, PLE
        from torch_rechub.trainers import MTLTrainer
        from torch_rechub.utils.data import DataGenerator

        tasks = [task for task in data.tasks if data.train[task].notna().all()]
        encoder = TableEncoder(data.schema).fit(data.train)
        columns = []
        for frame in (data.train, data.test):
            rows = encoder.transform(frame)
            found = {f.name: rows.sparse[:, i].numpy() for i, f in enumerate(data.schema.sparse)}
            columns.append(found | {f"dense{i}": rows.dense[:, i].numpy() for i in range(rows.dense.shape[1])})
        x, x_test = columns
        sizes = dict(zip(encoder.table_names, encoder.table_sizes, strict=True))
        features = [Sparse(key, size, embed_dim=data.settings["embedding_dim"]) for key, size in sizes.items()]
        features += [DenseFeature(key) for key in x if key.startswith("dense")]
        torch.manual_seed(seed)
        kinds, mlp = ["classification"] * len(tasks), {"dims": WIDTHS["expert"]}
        towers = [{"dims": WIDTHS["tower"]}] * len(tasks)
        model = MMOE(features, kinds, 8, mlp, towers) if name == "MMoE" else PLE(features, kinds, 2, 3, 2, mlp, towers)
        start = time.perf_counter()
        few = {key: value[:2] for key, value in x.items()}
        loader, tiny, _ = DataGenerator(x, data.train[tasks].to_numpy()).generate_dataloader(
            x_val=few, y_val=np.array([[0], [1]]).repeat(len(tasks), 1), x_test=few,
            y_test=np.zeros((2, len(tasks))), batch_size=data.settings["batch_size"],
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            trainer = MTLTrainer(
                model,
                kinds,
                optimizer_params={"lr": data.settings["lr"], "weight_decay": 1e-5},
                n_epoch=data.settings["max_epochs"],
                earlystop_patience=10**6,
                model_path=folder,
            )
            trainer.fit(loader, tiny)
        seconds = time.perf_counter() - start
        model.eval()
        with torch.no_grad():
            found = model({key: torch.from_numpy(value) for key, value in x_test.items()}).numpy()
        return {task: found[:, t] for t, task in enumerate(tasks)}, seconds, _count(model)

    return run


BY_SCENARIO: dict[str, Model] = {
    "STAR": ours("star", scenario=SCENARIO),
    "PEPNet": ours("pepnet", scenario=SCENARIO),
    "HoME by scenario": ours("home", scenario=SCENARIO, groups="scenario"),
}
MODELS: dict[str, dict[str, Model]] = {
    "census": {
        "single task": single_tasks,
        "single scenario": single_scenarios,
        "SharedBottom": ours("shared_bottom"),
        "MMoE": ours("mmoe"),
        "PLE": ours("ple"),
        "AdaTT": ours("adatt"),
        "HoME": ours("home"),
        **BY_SCENARIO,
        "HoME, uncertainty": ours("home", task_weighting="uncertainty"),
        "SharedBottom, PCGrad": ours("shared_bottom", gradient_surgery="pcgrad"),
        "SharedBottom, uncertainty": ours("shared_bottom", task_weighting="uncertainty"),
        "torch-rechub MMoE": rechub("MMoE"),
        "torch-rechub PLE": rechub("PLE"),
        "HoME, PCGrad": ours("home", gradient_surgery="pcgrad"),
    },
    "movielens": {
        "single scenario": single_scenarios,
        "SharedBottom": ours("shared_bottom"),
        "MMoE": ours("mmoe"),
        "HoME": ours("home"),
        **BY_SCENARIO,
    },
}
SETS = {"census": census, "movielens": movielens}


def measure(data: Set, found: Scores) -> dict[str, Any]:
    """AUC of each task, and of each task in each scenario."""
    row: dict[str, Any] = {"auc": {}, "by_scenario": {}, "rows": {}}
    for task, scores in found.items():
        y = data.test[task].to_numpy(dtype=float)
        row["auc"][task] = auc(y, scores)
        row["by_scenario"][task] = {value: auc(y[mask], scores[mask]) for value, mask in data.scenarios()}
    row["rows"] = {value: int((data.train[SCENARIO] == value).sum()) for value, _ in data.scenarios()}
    return row


def show(name: str, runs: dict[str, Any]) -> None:
    """AUC by task; then by scenario, the mean over the tasks."""
    for by in ("auc", "by_scenario"):
        first = next(iter(next(iter(runs.values())).values()))
        keys = list(first["auc"]) if by == "auc" else list(first["rows"])
        table = Table("model", *keys, "mean", "parameters", "seconds", title=f"{name}: AUC by {by}")
        for model, seeds in runs.items():
            cells = [_cells(row, by, keys) for row in seeds.values()]
            means, spread = np.nanmean(cells, axis=0), np.std(cells, axis=0)
            parameters, seconds = next(iter(seeds.values()))["parameters"], [r["seconds"] for r in seeds.values()]
            table.add_row(
                model,
                *(f"{m:.4f} ± {s:.4f}" for m, s in zip(means, spread, strict=True)),
                f"{parameters:,}",
                f"{np.mean(seconds):.0f}",
            )
        Console(width=190).print(table)


def markdown(runs: dict[str, Any]) -> list[str]:
    """The tables in docs/benchmarks/recommendation.md: by target, and by scenario where that was measured."""

    def cell(values: Any) -> str:
        return f"{np.mean(values):.4f} ± {np.std(values):.4f}" if len(values) > 1 else f"{np.mean(values):.4f}"

    tasks = list(next(iter(next(iter(runs.values())).values()))["auc"])
    groups = list(next(iter(next(iter(runs.values())).values()))["rows"])
    by_task = [f"| model | {' | '.join(tasks).replace('_', ' ')} | parameters | seeds |"]
    by_group = [f"| model | {' | '.join(groups)} | mean | seeds |"]
    by_task.append("| --- " * (len(tasks) + 3) + "|")
    by_group.append("| --- " * (len(groups) + 3) + "|")
    for model, seeds in runs.items():
        rows = list(seeds.values())
        cells = [cell([row["auc"][task] for row in rows]) if task in rows[0]["auc"] else "" for task in tasks]
        by_task.append(f"| {model} | {' | '.join(cells)} | {rows[0]['parameters']:,} | {len(rows)} |")
        if "torch-rechub" in model:
            continue
        found = [
            [np.mean([scores[group] for scores in row["by_scenario"].values()]) for row in rows] for group in groups
        ]
        cells = [cell(values) for values in [*found, np.mean(found, axis=0)]]
        by_group.append(f"| {model} | {' | '.join(cells)} | {len(rows)} |")
    return [*by_task, "", *by_group]


def _cells(row: dict[str, Any], by: str, keys: list[str]) -> list[float]:
    if by == "auc":
        found = [row["auc"].get(key, np.nan) for key in keys]
    else:
        found = [float(np.nanmean([scores[key] for scores in row["by_scenario"].values()])) for key in keys]
    return [*found, float(np.mean(found))]


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MOEAPPS_DATA", ".")) / "recsys")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sets", default="census,movielens")
    parser.add_argument("--models", help="names of the models to run, separated by semicolons; all by default")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "recsys_tasks.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    found["runs"] = json.loads(options.output.read_text())["runs"] if options.output.exists() else {}
    for name in options.sets.split(","):
        runs = found["runs"].setdefault(name, {})
        models = options.models.split(";") if options.models else list(MODELS[name])
        for seed in range(options.seeds):
            data = SETS[name](options.data, seed)
            for model in models:
                if str(seed) in runs.get(model, {}):
                    continue
                try:
                    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                        scores, seconds, parameters = MODELS[name][model](data, seed)
                except ImportError as error:
                    print(f"{model}: left out ({error})")
                    continue
                row = {**measure(data, scores), "seconds": seconds, "parameters": parameters}
                runs.setdefault(model, {})[str(seed)] = row
                print(name, model, seed, json.dumps({k: row[k] for k in ("auc", "seconds")}), flush=True)
                options.output.parent.mkdir(exist_ok=True)
                options.output.write_text(json.dumps(found, indent=1) + "\n")
    for name, runs in found["runs"].items():
        show(name, runs)


if __name__ == "__main__":
    main()
