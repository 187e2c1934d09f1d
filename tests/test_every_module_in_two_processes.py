"""Every module of `moeapps fit` under DistributedDataParallel: two gloo processes against one with the joint batch."""

import os
import socket
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier
from torch_geometric.data import Data

from moeapps import registry
from moeapps.core.callbacks import StepSeeding
from moeapps.core.errors import ConfigError
from moeapps.core.loading import EpochSampler
from moeapps.graph import (
    GNNModule,
    GraphDataModule,
    GraphExpertsModule,
    GraphSetData,
    LinkData,
    LinkModule,
    MowstModule,
)
from moeapps.recsys import RankingData, RankingModule
from moeapps.tables import MixtureModule, TableData, TableModule
from moeapps.vision import DiffusionModule, ImageModule, PublicImageData
from tests.processes import run_two

BATCH = 16  # rows of a step, of both processes together


class Case(NamedTuple):
    """A module and its data, for batches of so many rows."""

    module: Callable[[], L.LightningModule]
    data: Callable[[int], L.LightningDataModule]
    drawn: bool = False  # whether a step draws something at random, so that two processes draw something else than one


def table(rows: int = 151) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=rows), "b": rng.choice(["x", "y", "z"], rows)})
    frame["class"] = np.where(frame["a"] + rng.normal(size=rows) / 2 > 0, "yes", "no")
    frame["bought"] = (rng.random(rows) < 0.4).astype(int)
    frame["liked"] = (rng.random(rows) < 0.3).astype(int)
    return frame


def graph(nodes: int = 90, seed: int = 0) -> Data:
    draw = torch.Generator().manual_seed(seed)
    x, index = torch.randn(nodes, 6, generator=draw), torch.randint(nodes, (2, 3 * nodes), generator=draw)
    index = torch.cat([index, index.flip(0)], dim=1).unique(dim=1)
    masks = {"train_mask": torch.arange(nodes) < 48, "val_mask": torch.arange(nodes) >= 63}
    return Data(x=x, edge_index=index[:, index[0] != index[1]], y=(x[:, 0] > 0).long(), **masks)


def graphs() -> list[Data]:
    made = [graph(8, seed) for seed in range(40)]
    return [Data(x=one.x, edge_index=one.edge_index, y=one.y[:1]) for one in made]


PLAIN: dict[str, Any] = {"dropout": 0.0, "norm": None, "hidden_channels": 8}
IMAGES: dict[str, Any] = {"embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 2.0}
TABLE: dict[str, Any] = {
    "dim": 8,
    "hidden_dim": 8,
    "num_experts": 4,
    "num_members": 1,
    "dropout": 0.0,
    "ema_decay": 0.0,
}
CASES = {
    "moeapps.tables.TableModule": Case(
        lambda: TableModule(**TABLE, router="shared"),
        lambda rows: TableData(
            table(), "class", ignore_columns=["bought", "liked"], batch_size=rows, validation_fraction=0.2
        ),
    ),
    "moeapps.graph.MowstModule": Case(
        lambda: MowstModule("mowst_star", "gcn", patience=2, **PLAIN),
        lambda rows: GraphDataModule(graph(), batch_size=rows, num_neighbors=[-1, -1]),
    ),
    "moeapps.graph.GNNModule": Case(
        lambda: GNNModule("gcn", **PLAIN),
        lambda rows: GraphDataModule(graph(), batch_size=rows, num_neighbors=[-1, -1]),
    ),
    "moeapps.graph.GraphExpertsModule": Case(
        lambda: GraphExpertsModule(["gin"], patience=1, **PLAIN),
        lambda rows: GraphSetData(graphs(), batch_size=rows, test_fraction=0.0),
    ),
    "moeapps.graph.LinkModule": Case(
        lambda: LinkModule(["gcn"], patience=1, **PLAIN), lambda rows: LinkData(graph(), batch_size=rows), drawn=True
    ),
    "moeapps.tables.MixtureModule": Case(
        lambda: MixtureModule({"line": LogisticRegression(), "tree": DecisionTreeClassifier(max_depth=3)}, cv=3),
        lambda rows: TableData(
            table(), "class", ignore_columns=["b", "bought", "liked"], batch_size=rows, validation_fraction=0.2
        ),
    ),
    "moeapps.recsys.RankingModule": Case(
        lambda: RankingModule("mmoe", {"norm": False}, embedding_dim=4, unknown_rate=0.0),
        lambda rows: RankingData(table(), targets=["bought", "liked"], batch_size=rows, validation_fraction=0.2),
    ),
    "moeapps.vision.ImageModule": Case(
        lambda: ImageModule("widenet", {**IMAGES, "num_experts": 4, "router": "topp"}),
        lambda rows: PublicImageData("digits", batch_size=rows, validation_fraction=33 / 1437),
    ),
    "moeapps.vision.DiffusionModule": Case(
        lambda: DiffusionModule("switch_dit", "tiny", {"patch_size": 4, "depth": 1}, ema_decay=0.0),
        lambda rows: PublicImageData("digits", batch_size=rows),
        drawn=True,
    ),
    "several graph networks": Case(
        lambda: MowstModule("mixture", ["gcn", "sage"], patience=2, **{**PLAIN, "norm": "batch_norm"}),
        lambda rows: GraphDataModule(graph(), batch_size=rows),
        drawn=True,  # neighbours; and a batch norm has the statistics of a process's own rows
    ),
    "HoME, with batch norms": Case(
        lambda: RankingModule("home", embedding_dim=4),
        lambda rows: RankingData(table(), targets=["bought", "liked"], batch_size=rows, validation_fraction=0.2),
        drawn=True,
    ),
}
QUICK = list(CASES)[:2]


class Watch(L.Callback):
    """Scores before training, which all have the same weights, and gradients of the first step."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}
        self.scores: dict[str, float] = {}

    def on_validation_end(self, trainer, pl_module) -> None:
        if trainer.sanity_checking:
            self.scores = {name: float(value) for name, value in trainer.callback_metrics.items()}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if not self.gradients:
            self.gradients = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}


def train(case: Case, folder: str, processes: int, **options: Any) -> dict[str, Any]:
    L.seed_everything(0, verbose=False)
    module, watch = case.module(), Watch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(
            accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto", logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=-1,
            callbacks=[watch, StepSeeding(0)], default_root_dir=folder, **options,
        )  # fmt: skip
        trainer.fit(module, datamodule=case.data(BATCH // processes))
    buffers = {n: b for n, b in module.named_buffers() if b.dtype.is_floating_point}
    return {
        "gradients": watch.gradients,
        "scores": watch.scores,
        "losses": {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith("train/")},
        "weights": {n: p.detach().clone() for n, p in [*module.named_parameters(), *buffers.items()]},
    }


def worker(rank: int, folder: str, port: int, names: list[str]) -> None:
    os.environ |= {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                   "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "GROUP_RANK": "0"}  # fmt: skip
    torch.set_num_threads(1)
    found = {name: train(CASES[name], folder, 2, max_epochs=2, limit_train_batches=3) for name in names}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Callable[[str], list[dict[str, Any]]]:
    """What both processes found; those of the quick cases are not started for the others."""

    @cache
    def run(quick: bool) -> list[dict[str, Any]]:
        folder = tmp_path_factory.mktemp("two")
        names = [name for name in CASES if (name in QUICK) == quick]
        run_two(worker, (str(folder), free_port(), names))
        return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]

    return lambda name: [process[name] for process in run(name in QUICK)]


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Callable[[str], dict[str, Any]]:
    """What one process finds in one step with the joint batch."""
    folder = tmp_path_factory.mktemp("one")
    return cache(lambda name: train(CASES[name], str(folder), 1, max_epochs=1, limit_train_batches=1))


def names(*, drawn: bool) -> list[Any]:
    chosen = [name for name, case in CASES.items() if drawn or not case.drawn]
    return [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in chosen]


def test_every_module_is_tried():
    assert {trained.module for trained in registry.TRAINED} <= set(CASES)


@pytest.mark.parametrize("name", names(drawn=True))
def test_both_processes_end_with_the_same_weights_and_balancing_biases(two, name):
    first, second = two(name)
    assert first["weights"].keys() == second["weights"].keys()
    for key, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][key]), key


@pytest.mark.parametrize("name", names(drawn=False))
def test_the_gradient_of_a_step_is_that_of_the_joint_batch(two, one, name):
    expected = one(name)["gradients"]
    for process in two(name):
        assert process["gradients"].keys() == expected.keys()
        for key, gradient in expected.items():
            largest = float(gradient.abs().max().clamp(min=1e-6))
            actual = process["gradients"][key] / largest
            torch.testing.assert_close(actual, gradient / largest, atol=1e-4, rtol=0, msg=key)


@pytest.mark.parametrize("name", names(drawn=True))
def test_validation_scores_are_those_of_the_whole_validation_set(two, one, name):
    if name == "moeapps.vision.DiffusionModule":
        pytest.skip("noise is drawn by batch, and two processes have other batches than one")
    expected = {key: value for key, value in one(name)["scores"].items() if key.startswith("val/")}
    assert expected
    for process in two(name):
        for key, value in expected.items():
            assert process["scores"][key] == pytest.approx(value, abs=1e-5, nan_ok=True), key


@pytest.mark.parametrize(("rows", "processes"), [(7, 2), (8, 2), (1, 4), (3, 8), (33, 2)])
def test_rows_that_are_dealt_out_twice_are_known(monkeypatch, rows, processes):
    monkeypatch.setattr("moeapps.core.loading.world_size", lambda: processes)
    own: list[int] = []
    for rank in range(processes):
        monkeypatch.setattr("moeapps.core.loading.rank", lambda rank=rank: rank)
        sampler = EpochSampler(rows, shuffle=False)
        dealt = list(sampler)
        assert len(dealt) == len(sampler)
        own += dealt[: len(dealt) - sampler.repeated]
    assert sorted(own) == list(range(rows))


def test_a_whole_graph_is_not_trained_by_several_processes(monkeypatch, tmp_path):
    monkeypatch.setattr("moeapps.graph.module.world_size", lambda: 2)
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
                        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path)  # fmt: skip
    with pytest.raises(ConfigError, match=r"trainer\.devices=2: .* data\.batch_size=512"):
        trainer.fit(MowstModule(), datamodule=GraphDataModule(graph()))
