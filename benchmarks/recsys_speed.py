"""Training speed of multi-task models, beside torch-rechub's, in one process.

    python benchmarks/recsys_speed.py [--tables 0,1,8,64] [--threads 1,2] [--rounds 5]
    python benchmarks/recsys_speed.py --profile after
    python benchmarks/recsys_speed.py --accuracy census-income.test.gz
    python benchmarks/recsys_speed.py --compile
    python benchmarks/recsys_speed.py --histories

One step is forward, loss, backward and the optimiser on 1,024 rows; batches are ready in memory, so that neither side's
loading counts. 0 tables is census-income (the embedded sample; 32 columns of categories with embeddings of 4, 14
numbers; targets beyond the two of the set are coin tosses). Otherwise the rows are made: so many columns of 100,000
equally likely categories, embeddings of 8, 14 numbers. Experts [64] with batch norm, towers [32].

moeapps trains by fused AdamW; "lazy" is `sparse_gradients` with `sparse_optimizer="adam"`. torch-rechub is run by
fused Adam; by Adam as its trainer has it; and, with made tables, with its embeddings switched to sparse gradients by
hand, SparseAdam on them and fused Adam on the rest. A ratio is to the fastest of these. The process keeps freed memory
(`moeapps.core.memory`), which serves both sides.

Candidates take turns, rounds of a few steps; the figure is the median round. One thread is measured in processor time,
since other processes share the machine; two in elapsed time. torch-rechub is left out where it is not installed.
`--profile NAME` measures where moeapps' step spends its time, and keeps that under NAME beside other profiles.
Rows and profiles of tables and threads that are not asked for stay in the results.
`--accuracy PATH` trains MMoE on four fifths of census-income in each of the ways of training embeddings, and measures
AUCs on the last fifth, 5 seeds. `--compile` measures steps of 8 tasks on census-income with and without torch.compile.
`--histories` measures the steps of models of a history, each with the padding of short histories and without it.
Histories have at most 10 or 50 entries, their lengths equally likely; at most 50, half of them at most 8; or all of
them 50; each for one row (a table) or for five (an event and four items drawn instead). "scoring" is 8,192
rows without gradients.
"""

import json
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from command_line import script_parser
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from moeapps.recsys import MultiTaskRanker, TableEncoder, census_income, census_schema, packing
from moeapps.recsys.encoder import FIRST, Rows
from moeapps.recsys.features import FeatureEmbedding
from moeapps.recsys.network import MULTI_TASK_MODELS, SEQUENCE_MODELS, MultiTaskNetwork, SequenceNetwork
from moeapps.recsys.prior import LabelPrior

BATCH, SCORED, MADE_BATCHES, CATEGORIES, NUMBERS = 1024, 8192, 20, 100_000, 14
Step = Callable[[int], None]
KINDS_OF_WORK = {
    "embedding": ("embedding", "index_select", "index_add", "scatter_add", "zeros", "zero_", "fill_"),
    "products": ("mm", "addmm", "bmm", "baddbmm"),
    "normalisation, activation": ("batch_norm", "threshold", "clamp_min", "relu", "silu"),
    "gates": ("softmax", "masked_fill", "sigmoid"),
    "optimiser": ("Optimizer", "adam", "sqrt", "addcdiv", "addcmul", "lerp", "unique", "index_copy"),
}
"""Parts of operators' names, by what they are for; the first that fits counts, other operators are copies and sums."""


class Data(NamedTuple):
    """What both sides train on."""

    sizes: list[int]
    width: int
    rows: list[Rows]
    labels: list[torch.Tensor]


def census(tasks: int) -> Data:
    frame = census_income()
    encoder = TableEncoder(census_schema()).fit(frame)
    rows = encoder.transform(frame)
    coins = np.random.default_rng(0).integers(0, 2, (len(frame), tasks)).astype(np.float32)
    coins[:, :2] = frame[["income", "never_married"]]
    starts = range(0, len(frame) - BATCH + 1, BATCH)
    labels = torch.from_numpy(coins)
    batches = [rows.at(slice(i, i + BATCH)) for i in starts]
    return Data(encoder.table_sizes, 4, batches, [labels[i : i + BATCH] for i in starts])


def made(tables: int, tasks: int) -> Data:
    draw = torch.Generator().manual_seed(0)
    rows = [
        Rows(
            torch.randint(FIRST, FIRST + CATEGORIES, (BATCH, tables), generator=draw, dtype=torch.int32),
            torch.randn(BATCH, NUMBERS, generator=draw),
        )
        for _ in range(MADE_BATCHES)
    ]
    labels = [torch.randint(0, 2, (BATCH, tasks), generator=draw).float() for _ in rows]
    return Data([FIRST + CATEGORIES] * tables, 8, rows, labels)


def training_step(network: torch.nn.Module, optimizers: list[Any], loss: Any, inputs: list[Any], data: Data) -> Step:
    def step(i: int) -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss(network(inputs[i % len(inputs)]), data.labels[i % len(inputs)]).backward()
        for optimizer in optimizers:
            optimizer.step()

    return step


def around_8(count: int, draw: torch.Generator) -> torch.Tensor:
    return (8 * (0.8 * torch.randn(count, 1, generator=draw)).exp()).round().clamp(0, 50)


LENGTHS: dict[str, Callable[[int, torch.Generator], torch.Tensor]] = {
    "up to 10": lambda count, draw: torch.randint(0, 11, (count, 1), generator=draw),
    "up to 50": lambda count, draw: torch.randint(0, 51, (count, 1), generator=draw),
    "up to 50, median 8": around_8,
    "50": lambda count, draw: torch.full((count, 1), 50),
}
"""Lengths of so many histories."""


def history_data(lengths: str, rows_each: int) -> Data:
    """Users and items, and histories of items: each of them for some neighbouring rows."""
    draw, users, items = torch.Generator().manual_seed(0), 943, 1682
    longest = 10 if lengths == "up to 10" else 50
    rows, labels, count = [], [], BATCH // rows_each
    for _ in range(5):
        entries = torch.randint(FIRST, FIRST + items, (count, longest), generator=draw)
        entries = entries * (torch.arange(longest) >= longest - LENGTHS[lengths](count, draw))  # padded in front
        user = torch.randint(FIRST, FIRST + users, (count,), generator=draw).repeat_interleave(rows_each)
        item = torch.randint(FIRST, FIRST + items, (len(user),), generator=draw)
        history = entries.repeat_interleave(rows_each, dim=0).int()
        rows.append(Rows(torch.stack([user, item], 1).int(), torch.zeros(len(user), 0), (history,)))
        labels.append(torch.randint(0, 2, (len(user), 1), generator=draw).float())
    return Data([FIRST + users, FIRST + items], 16, rows, labels)


HISTORY_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "DIN": ("din", {"dropout": 0.2}),
    "AW-MoE": ("aw_moe", {"dropout": 0.2, "gate": "softmax"}),
    "AW-MoE, gate of 8": ("aw_moe", {"dropout": 0.2, "gate": "softmax", "gate_hidden": [8]}),
    "SASRec": ("sasrec", {}),
    "DIN, SASRec encoder": ("din", {"dropout": 0.2, "history_encoder": "sasrec"}),
}
SCORING = ("DIN, scoring", "AW-MoE, scoring", "SASRec, scoring")


def of_history(name: str, data: Data) -> Step:
    torch.manual_seed(0)
    kind, settings = HISTORY_MODELS[name.removesuffix(", scoring")]
    embedding = FeatureEmbedding(data.sizes, 2, 0, [1], data.width)
    model = SEQUENCE_MODELS[kind](data.width, 2 * data.width, **settings)
    network = SequenceNetwork(embedding, model, 0, 1, LabelPrior([1], data.sizes[1:]), similarity=True)
    if name.endswith("scoring"):
        network.eval()
        rows = [data.rows[i % len(data.rows)] for i in range(SCORED // BATCH)]
        sparse, dense, history = (
            torch.cat(parts) for parts in zip(*((*r[:2], r.sequences[0]) for r in rows), strict=True)
        )
        return torch.no_grad()(lambda _: network(Rows(sparse, dense, (history,))))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    return training_step(network, [optimizer], F.binary_cross_entropy_with_logits, data.rows, data)


def with_threshold(step: Step, threshold: float) -> Step:
    """A step that leaves the padding out where at most this part of the entries is none."""

    def run(i: int) -> None:
        with patch.object(packing, "PADDED_FROM", threshold):
            step(i)

    return run


def histories(
    rounds: int, names: Sequence[str] = (*HISTORY_MODELS, *SCORING)
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Median milliseconds of a step with padding and as it is, and the ratio, by lengths and rows of a history."""
    found: dict[str, Any] = {lengths: {} for lengths in LENGTHS}
    for lengths in LENGTHS:
        for rows_each in (1, 5):
            data, steps = history_data(lengths, rows_each), {}
            for name in names:
                step = of_history(name, data)
                steps[name, "padded"] = with_threshold(step, -1.0)
                steps[name, "ours"] = with_threshold(step, packing.PADDED_FROM)
            times = {key: np.array(ms) for key, ms in measure(steps, rounds, 5, 1).items()}
            for name in dict.fromkeys(name for name, _ in steps):
                ways = {way: times[name, way] for way in ("padded", "ours")}
                cell = {way: float(np.median(ms)) for way, ms in ways.items()}
                cell["ratio"] = float(np.median(ways["padded"] / ways["ours"]))
                found[lengths].setdefault(str(rows_each), {})[name] = cell
            print(lengths, rows_each, found[lengths][str(rows_each)], flush=True)
    return found


def ours(model: str, options: dict[str, Any], data: Data, lazy: bool = False, compile_it: bool = False) -> Step:
    torch.manual_seed(0)
    width = data.rows[0].dense.shape[1]
    embedding = FeatureEmbedding(data.sizes, len(data.sizes), width, dim=data.width, sparse_gradients=lazy)
    tasks = data.labels[0].shape[1]
    network = MultiTaskNetwork(
        embedding, MULTI_TASK_MODELS[model](embedding.out_dim, tasks, expert=[64], tower=[32], **options)
    )
    kind: Any = torch.optim.AdamW
    if lazy:
        from moeapps.core.optimizers import LazyAdamW

        kind = LazyAdamW
    optimizer = kind(network.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    run: Any = torch.compile(network) if compile_it else network
    return training_step(run, [optimizer], F.binary_cross_entropy_with_logits, data.rows, data)


def rechub(model: str, experts: dict[str, int], data: Data, way: str) -> Step:
    """One of torch-rechub's models; ``way`` is "fused", "trainer" or "sparse by hand"."""
    from torch_rechub.basic.features import DenseFeature, SparseFeature
    from torch_rechub.models.multi_task import MMOE, PLE, SharedBottom

    tasks, count = data.labels[0].shape[1], data.rows[0].dense.shape[1]
    features = [SparseFeature(f"c{i}", size, embed_dim=data.width) for i, size in enumerate(data.sizes)]
    features += [DenseFeature(f"n{i}") for i in range(count)]
    inputs = [
        {f"c{i}": part.sparse[:, i] for i in range(len(data.sizes))} | {f"n{i}": part.dense[:, i] for i in range(count)}
        for part in data.rows
    ]
    torch.manual_seed(0)
    kinds, mlp, towers = ["classification"] * tasks, {"dims": [64]}, [{"dims": [32]}] * tasks
    levels, specific, shared = (experts.get(name, 0) for name in ("num_levels", "num_specific", "num_shared"))
    network = {
        "shared_bottom": lambda: SharedBottom(features, kinds, mlp, towers),
        "mmoe": lambda: MMOE(features, kinds, 8, mlp, towers),
        "ple": lambda: PLE(features, kinds, levels, specific, shared, mlp, towers),
    }[model]()
    if way == "sparse by hand":
        tables = [module for module in network.modules() if isinstance(module, torch.nn.Embedding)]
        for table in tables:
            table.sparse = True
        weights = [table.weight for table in tables]
        rest = [p for p in network.parameters() if all(p is not weight for weight in weights)]
        optimizers = [torch.optim.SparseAdam(weights, 1e-3), torch.optim.Adam(rest, 1e-3, fused=True)]
    else:
        optimizers = [torch.optim.Adam(network.parameters(), 1e-3, fused=way == "fused" or None)]
    return training_step(network, optimizers, F.binary_cross_entropy, inputs, data)


def families(tables: int, tasks: int) -> dict[str, dict[str, Callable[[], Step]]]:
    """Candidates by name, in families that are compared; torch-rechub's have its name."""
    data = made(tables, tasks) if tables else census(tasks)
    level = {"num_specific": 3 if tasks == 2 else 1, "num_shared": 2}
    ways = ["fused", "trainer", *(["sparse by hand"] if tables else [])]

    def family(name: str, model: str, options: dict[str, Any], rival: str | None, experts: dict[str, int]) -> Any:
        candidates = {name: lambda: ours(model, options, data)}
        if tables:
            candidates[f"{name}, lazy"] = lambda: ours(model, options, data, lazy=True)
        for way in ways if rival else ():
            candidates[f"torch-rechub {name}, {way}"] = lambda way=way: rechub(rival, experts, data, way)
        return candidates

    found = {
        "MMoE": family("MMoE", "mmoe", {"num_experts": 8}, "mmoe", {}),
        "PLE": family("PLE", "ple", level, "ple", {**level, "num_levels": 2}),
        "HoME": family("HoME", "home", {}, None, {}),
    }
    if not tables:
        found["SharedBottom"] = family("SharedBottom", "shared_bottom", {}, "shared_bottom", {})
        found["CGC"] = family("CGC", "cgc", level, "ple", {**level, "num_levels": 1})
        found["AdaTT"] = family("AdaTT", "adatt", {"num_specific": level["num_specific"]}, None, {})
    return found


def built(candidates: dict[str, Callable[[], Step]]) -> dict[str, Step]:
    steps = {}
    for name, build in candidates.items():
        try:
            steps[name] = build()
        except ImportError as error:
            print(f"{name}: left out ({error})")
    return steps


def measure(steps: dict[Any, Step], rounds: int, count: int, threads: int) -> dict[Any, list[float]]:
    """Milliseconds of a step, per candidate and round; one more round warms up."""
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    times: dict[Any, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            start = clock()
            for i in range(count):
                step(i)
            times[name].append((clock() - start) / count * 1e3)
    return {name: values[1:] for name, values in times.items()}


def shares(step: Step) -> dict[str, float]:
    """Milliseconds of a step by kind of work: torch's profiler divides what the clock says without it."""
    torch.set_num_threads(1)
    ms = float(np.median(measure({"": step}, 7, 10, 1)[""]))
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for i in range(10):
            step(i)
    totals = dict.fromkeys([*KINDS_OF_WORK, "copies, sums, other"], 0.0)
    for event in found.key_averages():
        fits = (kind for kind, parts in KINDS_OF_WORK.items() if any(part in event.key for part in parts))
        totals[next(fits, "copies, sums, other")] += event.self_cpu_time_total
    return {kind: ms * value / sum(totals.values()) for kind, value in totals.items()}


def profiles(tables: list[int]) -> dict[str, dict[str, float]]:
    found = {}
    for count in tables:
        for tasks in (2, 8):
            for name, candidates in families(count, tasks).items():
                if name in ("MMoE", "PLE", "HoME"):
                    found[f"{name}, {tasks} tasks, {count or 'census'}"] = shares(candidates[name]())
    return found


def accuracy(path: Path) -> dict[str, list[dict[str, float]]]:
    frame = census_income(path)
    ways: dict[str, dict[str, Any]] = {
        "AdamW": {},
        "lazy AdamW": {"sparse_gradients": True, "sparse_optimizer": "adam"},
        "Adagrad": {"sparse_gradients": True, "sparse_optimizer": "adagrad"},
    }
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(frame))
        train, held = (frame.iloc[rows] for rows in np.split(order, [len(frame) * 4 // 5]))
        for way, arguments in ways.items():
            model = MultiTaskRanker(
                "mmoe", schema=census_schema(), max_epochs=3, lr=2e-3, validation_fraction=0, random_state=seed,
                accelerator="cpu", **arguments,
            ).fit(train, ["income", "never_married"])  # fmt: skip
            found[way].append(model.evaluate(held).set_index("task")["auc"].to_dict())
            print(seed, way, found[way][-1], flush=True)
    return found


def compiled(rounds: int) -> dict[str, Any]:
    """Median milliseconds of a step with and without torch.compile, and the seconds of its first two steps."""
    data, found = census(8), {}
    for name, model, settings in (
        ("MMoE", "mmoe", {"num_experts": 8}),
        ("PLE", "ple", {"num_specific": 1, "num_shared": 2}),
    ):
        steps = {"eager": ours(model, settings, data), "compiled": ours(model, settings, data, compile_it=True)}
        start = time.perf_counter()
        steps["compiled"](0), steps["compiled"](1)
        seconds = time.perf_counter() - start
        found[name] = {"compiling, s": seconds}
        found[name] |= {way: float(np.median(ms)) for way, ms in measure(steps, rounds, 10, 1).items()}
    return found


def show_profile(name: str, found: dict[str, dict[str, float]]) -> None:
    kinds = list(next(iter(found.values())))
    table = Table(f"ms a step, {name}", *kinds, "all")
    for row, times in found.items():
        table.add_row(row, *(f"{times[kind]:.1f}" for kind in kinds), f"{sum(times.values()):.1f}")
    Console(width=140).print(table)


def speeds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians and ratios of moeapps' candidates, with all numbers of threads in one line."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        medians = {name: float(np.median(values)) for name, values in row["ms"].items()}
        rivals = {name.rsplit(", ", 1)[1]: ms for name, ms in medians.items() if name.startswith("torch-rechub")}
        for name, ms in medians.items():
            if not name.startswith("torch-rechub"):
                line = found.setdefault((row["tables"], row["tasks"], name), {})
                line[row["threads"]] = (ms, rivals)
    return [{"tables": t, "tasks": tasks, "model": model, **line} for (t, tasks, model), line in found.items()]


def markdown(document: dict[str, Any]) -> str:
    """What docs/benchmarks/recommendation.md has."""
    threads = sorted({row["threads"] for row in document["rows"]})
    heads = [f"{what}, {n} thread{'s' * (n > 1)}" for n in threads for what in ("ms", "torch-rechub", "ratio")]
    lines = [_line("tables", "tasks", "model", *heads, "its trainer, 1 thread"), _line(*["---"] * (len(heads) + 4))]
    for row in speeds(document["rows"]):
        cells = []
        for n in threads:
            if n not in row:
                cells += ["", "", ""]
                continue
            ms, rivals = row[n]
            best = min((value for way, value in rivals.items() if way != "trainer"), default=None)
            cells += [f"{ms:.1f}", "" if best is None else f"{best:.1f}", "" if best is None else f"{best / ms:.2f}"]
        trainer = row[1][1].get("trainer") if 1 in row else None
        place = (row["tables"] or "census", row["tasks"], row["model"])
        lines.append(_line(*place, *cells, "" if trainer is None else f"{trainer:.1f}"))
    profiles = document["profiles"]
    lines += ["", _line("model, tasks, tables", *next(iter(profiles["after"].values())), "all"), _line(*["---"] * 8)]
    for name, after in profiles["after"].items():
        if not name.endswith((" 1", " 8")):
            pairs = [*zip(profiles["before"][name].values(), after.values(), strict=True)]
            pairs.append((sum(profiles["before"][name].values()), sum(after.values())))
            lines.append(_line(name, *(f"{old:.1f}, {new:.1f}" for old, new in pairs)))
    lines += ["", _line("optimiser", "income", "never married"), _line(*["---"] * 3)]
    for way, runs in document["accuracy"].items():
        values = [[run[task] for run in runs] for task in ("income", "never_married")]
        lines.append(_line(way, *(f"{np.mean(v):.4f} ± {np.std(v):.4f}" for v in values)))
    lines += ["", _line("model", "compiling, s", "eager, ms", "compiled, ms"), _line(*["---"] * 4)]
    lines += [_line(name, *(f"{value:.1f}" for value in run.values())) for name, run in document["compile"].items()]
    if "histories" in document:
        lines += ["", *history_lines(document["histories"])]
    return "\n".join(lines)


def history_lines(found: dict[str, dict[str, dict[str, dict[str, float]]]]) -> list[str]:
    """Milliseconds, how many times as long they take with the padding, and the multiple of DIN's."""
    each = list(next(iter(found.values())))
    heads = [f"{what}, {n} row{'s' * (n != '1')}" for n in each for what in ("ms", "with padding", "DIN = 1")]
    lines = [_line("history", "model", *heads), _line(*["---"] * (len(heads) + 2))]
    for lengths, models in found.items():
        for name in models[each[0]]:
            cells = []
            for n in each:
                ms = models[n][name]["ours"]
                of_din = "" if name.endswith("scoring") else f"{ms / models[n]['DIN']['ours']:.1f}"
                cells += [f"{ms:.1f}", f"x {models[n][name]['ratio']:.2f}", of_din]
            lines.append(_line(lengths, name, *cells))
    return lines


def _line(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def keep_memory(tables: list[int]) -> None:
    """What a training does before it begins, for the largest network of the run."""
    try:
        from moeapps.core.memory import keep_freed_memory
    except ImportError:  # a profile of an older version
        return
    keep_freed_memory([torch.empty(max(tables) * (FIRST + CATEGORIES), 8)])


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--tables", default="0,1,8,64")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", metavar="NAME")
    parser.add_argument("--accuracy", type=Path)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--histories", action="store_true")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "recsys_speed.json")
    options = parser.parse_args()
    tables, threads = ([int(n) for n in text.split(",")] for text in (options.tables, options.threads))
    keep_memory(tables)
    torch.sparse.check_sparse_tensor_invariants.disable()
    document = json.loads(options.output.read_text()) if options.output.exists() else {}
    document |= {"machine": platform.machine(), "torch": torch.__version__}
    if options.profile:
        document.setdefault("profiles", {}).setdefault(options.profile, {}).update(profiles(tables))
        show_profile(options.profile, document["profiles"][options.profile])
    elif options.histories:
        document["histories"] = histories(options.rounds)
    elif options.compile:
        document["compile"] = compiled(options.rounds)
    elif options.accuracy:
        torch.set_num_threads(1)
        document["accuracy"] = accuracy(options.accuracy)
    else:
        rows = []
        for count in tables:
            for tasks in (2, 8):
                for candidates in families(count, tasks).values():
                    steps = built(candidates)
                    for number in threads:
                        ms = measure(steps, options.rounds, 3 if count == 64 else 10, number)
                        rows.append({"tables": count, "tasks": tasks, "threads": number, "ms": ms})
                        print(
                            count,
                            tasks,
                            number,
                            {name: round(np.median(values), 1) for name, values in ms.items()},
                            flush=True,
                        )
        others = [
            row for row in document.get("rows", []) if row["tables"] not in tables or row["threads"] not in threads
        ]
        document["rows"] = sorted([*others, *rows], key=lambda row: (row["tables"], row["tasks"], row["threads"]))
    options.output.write_text(json.dumps(document, indent=1) + "\n")
    if {"rows", "profiles", "accuracy", "compile"} <= document.keys():
        print(markdown(document))


if __name__ == "__main__":
    main()
