"""``moeapps demo``: train, compare, and leave a table and pictures behind. No network, about two minutes on two cores.

Each task package contributes one *block*: a function that trains its models over several seeds and returns the rows of
the table and the pictures. A new package adds a function to :data:`BLOCKS`.
"""

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

import moeapps
from moeapps.core.errors import ConfigError
from moeapps.core.files import atomic_write

__all__ = ["BLOCKS", "Row", "run"]


@dataclass
class Row:
    """One model over all seeds."""

    task: str
    model: str
    metric: str
    scores: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    strong: list[float] = field(default_factory=list)
    parameters: int = 0

    def summary(self) -> dict[str, Any]:
        """Everything that ``results.json`` says about the model."""
        return {
            **asdict(self),
            "mean": float(np.mean(self.scores)),
            "sd": float(np.std(self.scores, ddof=1)) if len(self.scores) > 1 else 0.0,
        }


Block = Callable[[int, Callable[[str], None]], tuple[list[Row], dict[str, Figure]]]


def run(folder: str = "moeapps-demo", seeds: int = 3) -> list[Row]:
    """Train everything, print the table, write ``results.json`` and the pictures.

    Args:
        folder: Where to write; files of an earlier demo are replaced.
        seeds: How often each model is trained, with seeds 0, 1, ...

    Returns:
        The rows of the table.
    """
    if seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {seeds}")
    console = Console()
    if not console.is_terminal:
        console = Console(width=100)  # a pipe or a log has no width of its own
    start = time.perf_counter()
    rows: list[Row] = []
    figures: dict[str, Figure] = {}
    with console.status("starting") as status:
        for block in BLOCKS:
            more, pictures = block(seeds, status.update)
            rows += more
            figures.update(pictures)
    console.print(_table(rows, seeds))
    target = Path(folder)
    for name, figure in figures.items():
        with atomic_write(target / name) as file:
            figure.savefig(file, dpi=130, format="png")
    results = {
        "rows": [row.summary() for row in rows],
        "seeds": seeds,
        "seconds": time.perf_counter() - start,
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
        "versions": {
            "moeapps": moeapps.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    with atomic_write(target / "results.json") as file:
        file.write(json.dumps(results, indent=1).encode())
    written = ", ".join(["results.json", *figures])
    console.print(f"{results['seconds']:.0f} s; written to {folder}: {written}", highlight=False)
    return rows


def _table(rows: list[Row], seeds: int) -> Table:
    title = f"test scores in %, mean +- standard deviation over {seeds} seeds"
    table = Table(title=title, box=box.SIMPLE, pad_edge=False)
    for name in ("task", "model", "score", "params", "seconds", "strong"):
        table.add_column(name, justify="left" if name in ("task", "model") else "right", no_wrap=True)
    for row in rows:
        found = row.summary()
        table.add_row(
            row.task,
            row.model,
            f"{row.metric} {100 * found['mean']:.2f} +- {100 * found['sd']:.2f}",
            f"{row.parameters:,}",
            f"{np.mean(row.seconds):.1f}",
            f"{100 * np.mean(row.strong):.0f} %" if row.strong else "",
        )
    table.caption = "strong: nodes whose prediction needs the strong expert"
    return table


def graph_block(seeds: int, say: Callable[[str], None]) -> tuple[list[Row], dict[str, Figure]]:
    """Cora: MLP alone, GCN alone, Mowst in turns and Mowst* jointly, with the same sizes and patience."""
    from moeapps.core.plots import plot_training
    from moeapps.graph import GNNClassifier, Mowst, MowstClassifier, PublicGraphData, variance_dispersion
    from moeapps.graph.plan import stages_of
    from moeapps.graph.plots import plot_confidence

    graph = PublicGraphData("Cora").prepared()
    test = graph.test_mask.numpy()
    truth = graph.y.numpy()[test]
    models = {
        "MLP alone": GNNClassifier("mlp", norm=None),
        "GCN alone": GNNClassifier("gcn", norm=None),
        "Mowst, in turns": MowstClassifier(variant="mowst", norm=None),
        "Mowst*, jointly": MowstClassifier(variant="mowst_star", norm=None),
    }
    rows = [Row("Cora", name, "accuracy") for name in models]
    for seed in range(seeds):
        for row, model in zip(rows, models.values(), strict=True):
            say(f"Cora: {row.model}, seed {seed}")
            start = time.perf_counter()
            model.set_params(random_state=seed).fit(graph)
            row.seconds.append(time.perf_counter() - start)
            row.scores.append(float((model.predict(graph)[test] == truth).mean()))
            row.parameters = sum(p.numel() for p in model.model_.parameters())
            row.strong.append(
                float(model.route(graph).mean())
                if isinstance(model, MowstClassifier)
                else float(row.model != "MLP alone")
            )
    mowst = models["Mowst*, jointly"]
    assert isinstance(mowst, MowstClassifier)
    assert isinstance(mowst.model_, Mowst)
    with torch.no_grad():
        weak = mowst.model_.experts["weak"](graph.x).softmax(-1)[graph.test_mask]
    pictures = {
        "graph-training.png": plot_training(
            {name: model.history_ for name, model in models.items()},
            stages=(*stages_of(mowst.model_.names), "finished"),
        ),
        "graph-confidence.png": plot_confidence(
            variance_dispersion(weak).numpy(),
            mowst.predict_confidence(graph)[test],
            weak.argmax(-1).numpy() == truth,
            f"Mowst* on Cora's test nodes, seed {seeds - 1}",
        ),
    }
    return rows, pictures


BLOCKS: list[Block] = [graph_block]
"""What the demo runs, in this order."""
