"""The saved files that are mutated (saved_fuzz.py): those of 0.1, and models and checkpoints of today, made when asked.

A family is made from seeds, so that a process that is started again mutates the same bytes.
"""

import contextlib
import functools
import io
import os
import runpy
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parents[1] / "data" / "0.1"
MAKE = runpy.run_path(str(FOLDER / "make.py"))
TABLE = ["a", "b", "c", "city"]
TINY = {"max_epochs": 1, "accelerator": "cpu", "random_state": 0}


@dataclass(frozen=True)
class Family:
    """Files of one kind.

    Parameters
    ----------
    content : callable
        Gives the bytes of a good file.
    answers : str
        Under which name ``make.py`` asks such a model for predictions.
    """

    content: Callable[[], bytes]
    answers: str


def _of_0_1(name: str) -> Family:
    return Family(lambda: zipfile.ZipFile(FOLDER / "models.zip").read(f"{name}.safetensors"), name)


def _file_of_0_1(name: str, answers: str) -> Family:
    return Family(lambda: (FOLDER / name).read_bytes(), answers)


def _saved(make: Callable[[], Any], answers: str) -> Family:
    @functools.cache
    def content() -> bytes:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make().to_bytes()

    return Family(content, answers)


def copy_inputs(folder: Path) -> None:
    """Put tables, graph and images that the configurations name into a folder."""
    for name in ("table.csv", "graph.npz", "ranking.parquet", "images.npz"):
        shutil.copy(FOLDER / name, folder)
    MAKE["write_images"](folder)


def _trained(config: str, answers: str) -> Family:
    """A checkpoint of ``moeapps fit``."""

    @functools.cache
    def content() -> bytes:
        from moeapps.cli.main import main

        with tempfile.TemporaryDirectory() as name, warnings.catch_warnings(), contextlib.chdir(name):
            warnings.simplefilter("ignore")
            copy_inputs(Path())
            Path("fit.yaml").write_text(config)
            arguments = [
                "--seed_everything=0",
                "--trainer.max_epochs=1",
                "--trainer.accelerator=cpu",
                "--trainer.enable_progress_bar=false",
            ]
            with contextlib.redirect_stdout(io.StringIO()):
                assert main(["fit", "--config", "fit.yaml", *arguments]) == 0
            return Path("moeapps-runs/version_0/checkpoints/last.ckpt").read_bytes()

    return Family(content, answers)


def _several_kinds() -> Any:
    """A model of streams with experts of several kinds, in a trial of archived trees."""
    from moeapps.stream import DriftMoEClassifier

    model = DriftMoEClassifier(n_experts=3, max_nodes=15, max_features=8, grace_period=20, seed=0)
    frame = MAKE["table"]().fillna(0.0)
    for turn in range(36):  # two concepts that take turns; sizes and order of the file are always the same
        labels = np.roll(frame["label"], turn // 6 % 2 * 40) if turn % 2 else frame["label"]
        model.learn_many(frame[TABLE], labels)
    assert len(model.archive_) > 0
    return model


def _numbers() -> Any:
    from moeapps.stream import DriftMoERegressor

    model = DriftMoERegressor(n_experts=3, max_nodes=15, max_features=8, grace_period=20, seed=0)
    frame = MAKE["table"]().fillna(0.0)
    return model.learn_many(frame[TABLE], frame["number"]) or model


def _mixture() -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    from moeapps import MixtureClassifier, MoEClassifier
    from moeapps.tables import TableFeatures

    experts = [
        ("linear", make_pipeline(TableFeatures(), LogisticRegression(max_iter=300))),
        HistGradientBoostingClassifier(max_iter=2),
        ("own.net", MoEClassifier(dim=4, num_experts=2, num_blocks=1, **TINY)),
    ]
    frame = MAKE["table"]().dropna()
    return MixtureClassifier(experts, gate="linear", cv=2, random_state=0).fit(frame[TABLE], frame["label"])


def _nodes() -> Any:
    from moeapps import MowstClassifier

    X, y, edges = MAKE["graph"]()
    return MowstClassifier(hidden_channels=4, **TINY).fit(X, y, edges)


def _links() -> Any:
    from moeapps.graph import MowstLinkPredictor

    X, _, edges = MAKE["graph"]()
    return MowstLinkPredictor(["gcn", "sage"], hidden_channels=4, **TINY).fit(X, edges)


def _graphs() -> Any:
    from moeapps.graph import MowstGraphClassifier

    return MowstGraphClassifier(["gcn"], hidden_channels=4, batch_size=8, norm=None, **TINY).fit(sets_of_graphs())


def sets_of_graphs() -> list[Any]:
    """Rings and stars."""
    import torch
    from torch_geometric.data import Data

    graphs = []
    for number in range(24):
        nodes = 5 + number % 3
        rest = np.arange(1, nodes)
        ring = (np.arange(nodes), (np.arange(nodes) + 1) % nodes)
        one, two = (np.zeros(nodes - 1, dtype=int), rest) if number % 2 else ring
        index = torch.from_numpy(np.stack([np.concatenate([one, two]), np.concatenate([two, one])]))
        x = torch.from_numpy(np.random.default_rng(number).normal(size=(nodes, 3))).float()
        graphs.append(Data(x=x, edge_index=index, y=torch.tensor([number % 2])))
    return graphs


TABLE_RUN = """
model: {class_path: moeapps.tables.TableModule, init_args: {num_experts: 2, dim: 4, num_blocks: 1}}
data: {class_path: moeapps.tables.TableData, init_args: {file: table.csv, target: label, ignore_columns: [number]}}
"""
IMAGE_RUN = """
model:
  class_path: moeapps.vision.DiffusionModule
  init_args: {options: {dim: 16, depth: 2, num_heads: 2, num_experts: 2}, timesteps: 10}
data: {class_path: moeapps.vision.PublicImageData, init_args: {name: digits, batch_size: 512}}
"""

FAMILIES: Mapping[str, Family] = {
    "tables classifier": _of_0_1("moe_classifier_topk"),
    "tables merged": _of_0_1("moe_classifier_merged"),
    "tables smoe_dropout": _of_0_1("moe_classifier_smoe_dropout"),
    "tables regressor": _of_0_1("moe_regressor_of_two"),
    "tables mixture": _saved(_mixture, "moe_classifier of today"),
    "graph Mowst": _of_0_1("mowst_medium_cascade"),
    "graph GNN": _of_0_1("gnn_gin"),
    "graph module": _of_0_1("mowst_module"),
    "graph nodes": _saved(_nodes, "mowst"),
    "graph links": _saved(_links, "links"),
    "graph sets": _saved(_graphs, "graphs"),
    "recsys multi-task": _of_0_1("ranker_home"),
    "recsys AW-MoE": _of_0_1("ranker_aw_moe"),
    "vision WideNet": _of_0_1("images_widenet"),
    "vision Switch-DiT": _of_0_1("images_switch_dit"),
    "stream data": _of_0_1("drift_data"),
    "stream task": _of_0_1("drift_task"),
    "stream regressor": _of_0_1("drift_regressor"),
    "stream paper": _of_0_1("drift_paper"),
    "stream checkpoint": _file_of_0_1("stream_begun/stream.safetensors", "drift_data"),
    "stream several": _saved(_several_kinds, "drift_data"),
    "stream numbers": _saved(_numbers, "drift_regressor"),
}
"""Models that ``save`` wrote, and the checkpoint of a stream, by name."""

CHECKPOINTS: Mapping[str, Family] = {
    "fit tables": _trained(TABLE_RUN, "moe_classifier of a run"),
    "fit graph": _trained(MAKE["EXAMPLES"]["graph"], "mowst"),
    "fit recsys": _trained(MAKE["EXAMPLES"]["recsys"], "ranker_home"),
    "fit vision": _trained(MAKE["EXAMPLES"]["vision"], "images_widenet"),
    "fit diffusion": _trained(IMAGE_RUN, "drawn digits"),
}
"""Checkpoints that ``moeapps fit`` wrote, by name."""


def original(family: str) -> bytes:
    """The good file of a family."""
    return {**FAMILIES, **CHECKPOINTS}[family].content()


def answers(family: str, model: Any) -> dict[str, np.ndarray]:
    """What a model of a family predicts; a stream model learns, too, and predicts again."""
    name = {**FAMILIES, **CHECKPOINTS}[family].answers
    model = model.model if family == "stream checkpoint" else model
    if name == "links":
        X, _, edges = MAKE["graph"]()
        found = {"proba": model.predict_proba(np.array([[0, 1], [2, 3], [4, 39]]), X, edges)}
    elif name == "graphs":
        found = {"proba": model.predict_proba(sets_of_graphs())}
    elif name == "drawn digits":
        found = {"drawn": model.sample(2, y=["1", "2"], steps=3, seed=1)}
    else:
        found = MAKE["answers"](name, model)
    found = {key: MAKE["_plain"](np.asarray(value)) for key, value in found.items()}
    if name.startswith("drift"):
        frame = MAKE["table"]().fillna(0.0)
        for _ in range(2):
            model.learn_many(frame[TABLE], frame["number" if "regressor" in name else "label"])
        found["later"] = np.asarray(model.predict_many(frame[TABLE]))
    return found


if __name__ == "__main__":
    import moeapps

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        for family in (*FAMILIES, *CHECKPOINTS):
            file = Path(name, "model")
            file.write_bytes(original(family))
            print(family, file.stat().st_size, list(answers(family, moeapps.load(file))), flush=True)
