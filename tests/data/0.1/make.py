"""Make the files of this folder: models of moeapps 0.1, what they were asked, and what they answered.

Run once, with moeapps 0.1.0 (commit adaa0c7; Python 3.11, torch 2.14.1 on the CPU), in an empty folder with this file:
``OMP_NUM_THREADS=1 python make.py``. `tests/test_saved_by_0_1.py` uses its functions to ask today's code the same.
It is not run by a newer version: what that would make are no files of 0.1.
"""

import contextlib
import os
import pickle
import platform
import shutil
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

HERE = Path(__file__).parent
ROUTERS = (
    "topk", "noisy_topk", "topp", "expert_choice", "hash", "thor", "smoe_dropout", "null_experts", "shared", "bilevel",
    "avg_k", "autonomy", "soft",
)  # fmt: skip
NETWORKS = ("mlp", "gcn", "gcn_skip", "gcn_jk", "sage", "gat", "gatv2", "gin")
EXAMPLES = {
    "graph": "model: {class_path: moeapps.graph.MowstModule, init_args: {variant: mowst, hidden_channels: 4}}\n"
    "data: {class_path: moeapps.graph.GraphDataModule, init_args: {source: graph.npz}}\n",
    "recsys": "model:\n  class_path: moeapps.recsys.RankingModule\n"
    "  init_args:\n"
    "    {model: home, groups: {watch: [click], rest: [stars]}, embedding_dim: 2, options: {expert: [4], tower: [4]}}\n"
    "data:\n  class_path: moeapps.recsys.RankingData\n  init_args:\n"
    "    {train: ranking.parquet, predict: ranking.parquet, targets: [click, stars], ignored: [like, seconds],\n"
    "     batch_size: 20}\n",
    "vision": "model:\n  class_path: moeapps.vision.ImageModule\n"
    "  init_args: {model: widenet, options: {embed_dim: 8, depth: 2, num_heads: 2, num_experts: 2, patch_size: 4}}\n"
    "data:\n  class_path: moeapps.vision.ImageFolderData\n"
    "  init_args: {train: images, predict: images, image_size: 8, batch_size: 4, num_workers: 0}\n",
}
"""One configuration of `moeapps fit` per task package that has one, by its name."""


def table(folder=HERE):
    return pd.read_csv(folder / "table.csv")


def graph(folder=HERE):
    with np.load(folder / "graph.npz") as arrays:
        return arrays["node_features"], arrays["node_labels"], arrays["edges"].T


def ranking(folder=HERE):
    return pd.read_parquet(folder / "ranking.parquet")


def images(folder=HERE):
    with np.load(folder / "images.npz") as arrays:
        return arrays["images"], arrays["labels"]


def make_inputs(folder):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(120, 3)).round(3), columns=["a", "b", "c"])
    frame["city"] = rng.choice(["Ulm", "Bonn", "Kiel"], 120)
    frame["label"] = np.where(frame["a"] + (frame["city"] == "Ulm") > 0, "up", "down")
    frame["number"] = (frame["a"] - frame["b"]).round(3)
    frame.loc[::17, "b"] = np.nan
    frame.to_csv(folder / "table.csv", index=False)

    edges = np.unique(np.sort(rng.integers(0, 40, (90, 2)), axis=1), axis=0)
    edges = edges[edges[:, 0] != edges[:, 1]]
    labels = rng.permutation(np.arange(40) % 3)
    masks = rng.permutation(np.arange(40) % 3)
    np.savez_compressed(
        folder / "graph.npz",
        node_features=(np.eye(5)[labels] + rng.normal(size=(40, 5)) / 2).astype(np.float32),
        node_labels=labels,
        edges=edges,
        **{f"{part}_masks": (masks == k)[None] for k, part in enumerate(("train", "val", "test"))},
    )

    rows = pd.DataFrame({"user_id": rng.integers(0, 9, 80), "item_id": rng.integers(0, 9, 80)})
    rows["age"] = rng.normal(40, 9, 80).round(1)
    rows["tag"] = rng.choice(["x", "y", None], 80)
    rows["item_id_history"] = [rng.integers(0, 9, k % 4).tolist() for k in range(80)]
    rows["click"], rows["like"] = np.arange(80) % 2, rng.choice(["no", "yes"], 80)
    rows["stars"], rows["seconds"] = rng.normal(size=80).round(2), rng.integers(0, 5, 80)
    rows.to_parquet(folder / "ranking.parquet")

    pictures = rng.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    np.savez_compressed(folder / "images.npz", images=pictures, labels=np.array(["cat", "dog"] * 12))
    events = frame.drop(columns="number").fillna(0.0)
    pd.concat([events] * 4, ignore_index=True).to_csv(folder / "events.csv", index=False)


def write_images(folder):
    """The images as files, one folder per class, for `moeapps fit`."""
    from PIL import Image

    for k, (picture, label) in enumerate(zip(*images(folder), strict=True)):
        (folder / "images" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / "images" / label / f"{k:02d}.png")


def tables():
    from moeapps import MoEClassifier, MoERegressor

    frame = table()
    X, numbers = frame[["a", "b", "c", "city"]], frame[["a", "c"]].to_numpy()
    small = {"dim": 4, "num_experts": 4, "num_blocks": 1, "max_epochs": 2, "accelerator": "cpu", "random_state": 0}
    for router in ROUTERS:
        yield f"moe_classifier_{router}", MoEClassifier(router, **small).fit(X, frame["label"])
    codes = (frame["number"] > 0).astype(int) + 3 * (frame["a"] > 1)
    shared = MoEClassifier(**{**small, "num_blocks": 2}, share_router=True, dtype="float32")
    yield "moe_classifier_of_ints", shared.fit(numbers, codes)
    yield "moe_classifier_pruned", MoEClassifier(**small).fit(X, frame["label"]).prune(2, X)
    yield "moe_classifier_merged", MoEClassifier(**small).fit(X, frame["label"]).merge(2, X)
    yield "moe_regressor", MoERegressor(**small).fit(X, frame["number"])
    yield "moe_regressor_of_two", MoERegressor(**small).fit(numbers, frame[["number", "c"]].to_numpy())


def graphs():
    from moeapps import GNNClassifier, MowstClassifier
    from moeapps.graph import Mowst

    X, y, edges = graph()
    names = np.array(["red", "green", "blue"])[y]
    small = {"hidden_channels": 4, "max_epochs": 2, "accelerator": "cpu", "random_state": 0}
    for variant in ("mowst", "mowst_star"):
        yield variant, MowstClassifier(variant=variant, **small).fit(X, y, edges)
    three = MowstClassifier("gat", medium="gcn", inference="cascade", threshold="auto", budget=0.5, **small)
    yield "mowst_medium_cascade", three.fit(X, names, edges)
    yield "mowst_hyper", MowstClassifier(confidence="hyper", dispersion="entropy", norm=None, **small).fit(X, y, edges)
    for network in NETWORKS:
        yield f"gnn_{network}", GNNClassifier(network, **small).fit(X, names, edges)
    torch.manual_seed(0)
    yield "mowst_module", Mowst(5, 3, hidden_channels=4, medium="gcn", confidence="learned+x").eval()


def streams():
    from moeapps import DriftMoEClassifier, DriftMoERegressor

    frame = table().fillna(0.0)
    X = frame[["a", "b", "c", "city"]]
    small = {"n_experts": 3, "router_hidden": (8, 8), "max_nodes": 15, "max_features": 8, "grace_period": 20, "seed": 0}
    for name, model, target in (
        ("drift_data", DriftMoEClassifier(**small), "label"),
        ("drift_task", DriftMoEClassifier("task", **small), "label"),
        ("drift_paper", DriftMoEClassifier.paper(n_experts=3, seed=0), "label"),
        ("drift_regressor", DriftMoERegressor(**small), "number"),
    ):
        model.learn_many(X, frame[target])
        yield name, model


def rankers():
    from moeapps import AWMoERanker, MultiTaskRanker

    frame = ranking()
    narrow = {"expert": [4], "tower": [4]}
    small = {"embedding_dim": 2, "max_epochs": 1, "accelerator": "cpu", "random_state": 0}
    kinds = {"seconds": "count"}
    targets = ["click", "like", "stars", "seconds"]
    for network in ("shared_bottom", "mmoe", "cgc", "ple", "adatt", "home"):
        groups = {"watch": ["click", "seconds"], "rest": ["like", "stars"]} if network == "home" else None
        model = MultiTaskRanker(network, options=narrow, groups=groups, products={"like": "click"}, **small)
        yield f"ranker_{network}", model.fit(frame, targets, kinds=kinds)
    for network in ("din", "aw_moe"):
        user = {"user": "user_id"} if network == "aw_moe" else {"contrastive_weight": 0.0}
        rows = frame.drop(columns=targets[1:])
        yield f"ranker_{network}", AWMoERanker(network, **user, **small).fit(rows, "click")


def pictures():
    from moeapps.vision import SwitchDiTGenerator, WideNetClassifier

    X, y = images()
    small = {"depth": 2, "num_heads": 2, "patch_size": 4, "num_experts": 2, "max_epochs": 1, "accelerator": "cpu",
             "random_state": 0}  # fmt: skip
    for network in ("widenet", "vit_moe", "vit"):
        yield f"images_{network}", WideNetClassifier(network, embed_dim=8, **small).fit(X, y)
    for network in ("switch_dit", "dit"):
        model = SwitchDiTGenerator(network, dim=8, timesteps=10, learn_sigma=network == "dit", **small)
        yield f"images_{network}", model.fit(X, y)


def machine():
    """What must be the same for floating-point numbers to come out the same to the last bit."""
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {vendor()}"


def vendor():
    """Maker of the processor: torch's matrix library chooses its instructions by it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("vendor_id"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def answers(name, model):
    """What a model says of the inputs of this folder, as a dictionary of arrays."""
    if name == "mowst_module":
        X, _, edges = graph()
        with torch.inference_mode():
            return {"log_probs": model(torch.from_numpy(X), torch.from_numpy(edges)).log_probs.numpy()}
    if name.startswith(("mowst", "gnn")):
        X, _, edges = graph()
        return {"labels": model.predict(X, edges), "proba": model.predict_proba(X, edges)}
    if name.startswith("ranker"):
        rows = ranking().drop(columns=["click", "like", "stars", "seconds"])
        return {"predictions": model.predict(rows).to_numpy(), "proba": model.predict_proba(rows).to_numpy()}
    if name in ("images_switch_dit", "images_dit"):
        return {"drawn": model.sample(3, y=["cat", "dog", "cat"], steps=3, seed=1)}
    if name.startswith("images"):
        return {"labels": model.predict(images()[0]), "proba": model.predict_proba(images()[0])}
    frame = table()
    X = frame[["a", "b", "c", "city"]]
    if name in ("moe_classifier_of_ints", "moe_regressor_of_two"):
        X = frame[["a", "c"]].to_numpy()
    if name.startswith("drift"):
        X = X.fillna(0.0)
        found = {"predictions": model.predict_many(X).to_numpy()}
        if name != "drift_regressor":
            found["proba"] = model.predict_proba_many(X).to_numpy()
        return found
    found = {"predictions": model.predict(X)}
    return found if name.startswith("moe_regressor") else {**found, "proba": model.predict_proba(X)}


def main():
    import moeapps
    from moeapps.cli import main as command

    assert moeapps.__version__ == "0.1.0"
    make_inputs(HERE)
    said = {}
    for part in (tables, graphs, streams, rankers, pictures):
        for name, model in part():
            model.save(HERE / f"{name}.safetensors")
            pack(f"{name}.safetensors")
            said |= {f"{name}/{key}": value for key, value in answers(name, model).items()}
            if name in ("moe_classifier_topk", "drift_data"):
                (HERE / f"{name}.pickle").write_bytes(pickle.dumps(model))
                pack(f"{name}.pickle")
            if name.startswith("drift"):  # what it does when it goes on to learn
                frame = table().fillna(0.0)
                model.learn_many(frame[["a", "b", "c", "city"]], frame["number" if "regressor" in name else "label"])
                said |= {f"{name}/later/{key}": value for key, value in answers(name, model).items()}
    found = {key: _plain(value) for key, value in said.items()}
    np.savez_compressed(HERE / "answers.npz", machine=machine(), **found)

    os.chdir(HERE)
    write_images(HERE)
    for name, text in EXAMPLES.items():
        Path(f"{name}.yaml").write_text(text)
        fit(command, name, 2)
        (HERE / f"{name}.ckpt").write_bytes(Path("run/checkpoints/last.ckpt").read_bytes())
        predict(command, name, f"{name}.ckpt", f"{name}.csv")
        fit(command, name, 4, "--ckpt_path", f"{name}.ckpt")
        predict(command, name, "run/checkpoints/last.ckpt", f"{name}_later.csv")
    stream(command, "--limit", "240")
    Path("stream_begun").mkdir()
    for file in Path("stream").iterdir():
        (Path("stream_begun") / file.name).write_bytes(file.read_bytes())
    stream(command, "--resume")
    (HERE / "stream" / "stream.safetensors").unlink()
    Path("stream").rename("stream_whole")
    for folder in ("run", "images"):
        shutil.rmtree(folder)


def pack(name):
    """Move a file into ``models.zip``: the trees of a stream are mostly empty room."""
    with zipfile.ZipFile(HERE / "models.zip", "a", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.write(HERE / name, name)
    (HERE / name).unlink()


def fit(command, name, epochs, *more):
    """Train with `moeapps fit`; the checkpoint is ``run/checkpoints/last.ckpt``."""
    shutil.rmtree("run", ignore_errors=True)
    status = command([
        "fit", "--config", f"{name}.yaml", "--trainer.max_epochs", str(epochs), "--trainer.accelerator", "cpu",
        "--trainer.default_root_dir", "run", "--trainer.enable_progress_bar", "false", *more,
    ])  # fmt: skip
    assert status == 0
    Path("run/version_0").rename("run/all")
    Path("run/all/checkpoints").rename("run/checkpoints")


def predict(command, name, checkpoint, output):
    """Write the predictions of a checkpoint with `moeapps predict`."""
    status = command([
        "predict", "--config", f"{name}.yaml", "--ckpt_path", checkpoint, "--output", output,
        "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
    ])  # fmt: skip
    assert status == 0


def stream(command, *more):
    """Run a stream with its checkpoint in the folder ``stream``."""
    status = command([
        "stream", "run", "--source", "events.csv", "--target", "label", "--checkpoint", "stream", "--window", "100",
        "--predictions", "stream/predictions.ndjson", "--set", "n_experts=3", "--set", "router_hidden=[8,8]", "--set",
        "max_nodes=15", "--set", "max_features=8", "--set", "grace_period=20", "--set", "seed=0", "--plain", *more,
    ])  # fmt: skip
    assert status == 0


def _plain(array):
    return array.astype(str) if array.dtype == object else array


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(sys.stderr):
        main()
