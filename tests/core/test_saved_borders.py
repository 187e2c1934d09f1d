"""What a saved file may and may not do: every promise of loading and saving that issue "Borders" named."""

import os
import resource
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import moeapps
from moeapps.core.errors import ConfigError, DataError, FileFormatError, NonFiniteError
from tests.core.fuzz_models import CHECKPOINTS, FAMILIES, MAKE, original
from tests.core.saved_fuzz import Trial, answers, join, split

pytestmark = pytest.mark.filterwarnings("ignore:.*was saved with scikit-learn.*")


def changed(family, tmp_path, document=None, tensors=None):
    """A file of a family after ``document(document)`` and ``tensors({name: array})``, with a right checksum."""
    header, content, data = split(original(family))
    if document is not None:
        document(content)
    if tensors is not None:
        dtypes = {"F64": "<f8", "F32": "<f4", "I64": "<i8", "I32": "<i4", "U8": "u1", "BOOL": "?"}
        arrays = {
            name: np.frombuffer(data, dtypes[entry["dtype"]], (b - a) // np.dtype(dtypes[entry["dtype"]]).itemsize, a)
            for name, entry in header.items()
            for a, b in [entry["data_offsets"]]
        }
        tensors(arrays)  # views of the data
    path = tmp_path / "model.safetensors"
    path.write_bytes(join(header, content, data))
    return path


# ------------------------------------------------------------------------------------ W5: compiled state


INDICES = {
    "pool.trees.children": 10**6, "pool.trees.feature": 10**6, "pool.trees.slot": 10**6, "pool.trees.leaf": 10**6,
    "pool.trees.root": 10**6, "pool.trees.owner": 10**6, "pool.trees.subset": 10**6, "pool.trees.subset_size": 10**6,
    "pool.trees.kind": 10**6, "pool.trees.free_nodes": 10**6, "pool.trees.free_slots": 10**6, "pool.trees.used": 10**9,
    "pool.trees.depth": -1, "pool.trees.nodes": 10**6, "pool.place": 10**6, "mixture.counters": 10**9,
    "mixture.windows.filled": 100, "mixture.network.sizes": 10**6,
}  # fmt: skip


@pytest.mark.parametrize("family", ["stream data", "stream task", "stream regressor", "stream checkpoint"])
@pytest.mark.parametrize("name", INDICES)
def test_an_index_of_a_stream_model_that_points_outside_is_refused(family, name, tmp_path):
    def spoil(arrays):
        arrays[name][:] = INDICES[name]

    with pytest.raises(FileFormatError, match=r"damaged or changed: its"):
        moeapps.load(changed(family, tmp_path, tensors=spoil))


def test_a_tree_with_a_circle_is_refused_and_not_followed_for_ever(tmp_path):
    def spoil(arrays):
        inner = int(np.flatnonzero(arrays["pool.trees.feature"] >= 0)[0])
        arrays["pool.trees.children"].reshape(-1, 2)[inner] = inner

    with pytest.raises(FileFormatError, match="its trees have children"):
        moeapps.load(changed("stream data", tmp_path, tensors=spoil))


@pytest.mark.slow  # the loops are compiled once more for it
def test_a_large_stream_model_is_checked_in_no_time():
    from moeapps.stream import DriftMoEClassifier
    from moeapps.stream.restoring import check_engine

    rng = np.random.default_rng(0)
    X = rng.normal(size=(3000, 30))
    model = DriftMoEClassifier(seed=0).partial_fit(X, X[:, 0] * X[:, 1] > 0)
    start = time.process_time()
    check_engine(model._engine, model._features.nominal, [0] * 30)
    assert model.nbytes_ > 1e6
    assert time.process_time() - start < 0.5


# ------------------------------------------------------------------------------------ W6: bounded by the tensors


def arguments(**values):
    def change(document):
        document["state"].get("model", document)["arguments"].update(values)

    return change


def labels(document):
    document["state"]["classes_"]["dtype"] = "<U268435456"


HUGE = {
    "blocks": ("tables classifier", arguments(num_blocks=10**6)),
    "experts": ("tables classifier", arguments(num_experts=10**7)),
    "wide": ("tables regressor", arguments(dim=10**9)),
    "embedding": ("recsys multi-task", arguments(embedding_dim=10**9)),
    "embedding of AW-MoE": ("recsys AW-MoE", arguments(embedding_dim=10**9)),
    "layers": ("graph GNN", arguments(num_layers=10**6)),
    "channels": ("graph Mowst", arguments(hidden_channels=10**9)),
    "depth": ("vision WideNet", arguments(depth=10**6)),
    "images": ("vision WideNet", lambda document: document["state"]["spec_"].update(shape=[3, 10**6, 10**6])),
    "timesteps": ("vision Switch-DiT", arguments(timesteps=10**10)),
    "labels": ("tables classifier", labels),
    "stream experts": ("stream data", arguments(n_experts=10**9)),
    "stream period": ("stream checkpoint", arguments(router_period=10**12)),
    "stream router": ("stream regressor", arguments(router_hidden=[10**9, 10**9])),
    "stream nodes": ("stream task", arguments(max_nodes=1)),
}


@pytest.mark.parametrize("case", HUGE)
def test_what_the_tensors_do_not_justify_is_refused_at_once_and_without_memory(case, tmp_path):
    family, change = HUGE[case]
    path = changed(family, tmp_path, change)
    with pytest.raises(FileFormatError):
        moeapps.load(changed(family, tmp_path, lambda document: document.pop("arguments")))  # imports are no memory
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(FileFormatError):
        moeapps.load(path)
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_pipes_and_devices_are_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    for path in (tmp_path / "pipe.safetensors", "/dev/zero"):
        with pytest.raises(FileFormatError, match="is a pipe, a socket or a device"):
            moeapps.load(path)


def test_a_header_that_is_as_long_as_it_likes_is_not_read(tmp_path):
    path = tmp_path / "model.safetensors"
    with open(path, "wb") as file:
        file.write((2**62).to_bytes(8, "little"))
        file.truncate(2**36)  # 64 GiB without a byte on disk
    with pytest.raises(FileFormatError, match="is not a model saved by moeapps, or it is damaged"):
        moeapps.load(path)


# ------------------------------------------------------------------------------------ W7: NaN


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(family, value, tmp_path):
    def spoil(arrays):
        name = next(n for n, a in arrays.items() if a.dtype.kind == "f" and a.size > 3 and "forced" not in n)
        arrays[name][1] = value

    with pytest.raises(FileFormatError, match="NaN or infinity in .*allow_non_finite=True"):
        moeapps.load(changed(family, tmp_path, tensors=spoil))


def test_weights_that_are_not_finite_load_where_that_is_asked_for(tmp_path):
    def spoil(arrays):
        arrays["head.1.bias"][0] = np.nan

    path = changed("tables classifier", tmp_path, tensors=spoil)
    model = moeapps.load(path, allow_non_finite=True)
    assert model.model_.head[1].bias.isnan().any()
    with pytest.raises(NonFiniteError):
        model.predict(MAKE["table"]()[["a", "b", "c", "city"]])


# ------------------------------------------------------------------------------------ W14: nothing else is opened


@pytest.mark.slow  # a new process imports everything; tests/vision/test_timm_models.py has the fast tests
def test_loading_opens_no_other_file_and_no_connection(tmp_path):
    files = {**FAMILIES, **CHECKPOINTS}
    for name, family in files.items():
        (tmp_path / f"{name}.safetensors").write_bytes(family.content())
    script = """
import sys, warnings, glob, moeapps, os
warnings.simplefilter("ignore")
files = sorted(glob.glob(sys.argv[1] + "/*.safetensors"))
for file in files:  # imports and compiled code are looked for once
    moeapps.load(file)
opened = []
def watch(event, args):
    if event == "open" and isinstance(args[0], str) and not args[0].startswith(("/proc", "/sys")):
        opened.append(args[0])
    elif event.startswith(("socket.", "subprocess.", "os.exec", "os.system", "urllib.")):
        opened += [event] * (event != "socket.gethostname")
sys.addaudithook(watch)
for file in files:
    opened.clear()
    moeapps.load(file)
    installed = (file, sys.prefix, sys.base_prefix, os.path.dirname(moeapps.__file__))  # code, and versions of packages
    assert [name for name in opened if not name.startswith(installed)] == [], opened
print(len(files))
"""
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == str(len(files)), run.stderr


# ------------------------------------------------------------------------------------ W17: equal files


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_saved_again_and_again_is_one_file(family, tmp_path):
    (tmp_path / "first").write_bytes(original(family))
    model = moeapps.load(tmp_path / "first")
    files = set()
    for i in range(4):  # twice as it is, then as it was loaded from its own file, and loaded from that
        model.save(tmp_path / f"{i}.safetensors")
        files.add((tmp_path / f"{i}.safetensors").read_bytes())
        model = model if i < 1 else moeapps.load(tmp_path / f"{i}.safetensors")
    assert len(files) == 1


# ------------------------------------------------------------------------------------ W18: what has diverged


def test_a_target_that_cannot_be_scaled_is_refused_and_a_tiny_one_is_learned():
    X = np.random.default_rng(0).normal(size=(60, 3))
    small = {"dim": 4, "num_experts": 2, "num_blocks": 1, "max_epochs": 30, "accelerator": "cpu", "random_state": 0}
    y = X[:, 0].copy()
    whole = moeapps.MoERegressor(**small).fit(X, y).predict(X)
    tiny = moeapps.MoERegressor(**small).fit(X, y * 1e-300).predict(X)
    np.testing.assert_allclose(tiny, whole * 1e-300, rtol=1e-3, atol=1e-303)
    y[7] = 1e300
    with pytest.raises(DataError, match=r"y holds 1e\+300 at row 7"):
        moeapps.MoERegressor(**small).fit(X, y)


def _fits(lr):
    table, (X, y, edges), frame, (pictures, names) = (
        MAKE["table"](),
        MAKE["graph"](),
        MAKE["ranking"](),
        MAKE["images"](),
    )
    every = {"lr": lr, "accelerator": "cpu", "random_state": 0, "max_epochs": 3}
    tables = {"dim": 4, "num_experts": 2, "num_blocks": 1, **every}
    narrow = {"options": {"expert": [4], "tower": [4]}, "embedding_dim": 2, **every}
    image = {"depth": 2, "num_heads": 2, "patch_size": 4, "num_experts": 2, **every}
    columns = table[["a", "b", "c", "city"]]
    clicks = frame.drop(columns=["like", "stars", "seconds"])
    graph = {"hidden_channels": 4, "norm": "batch_norm", **every}
    from moeapps.vision import SwitchDiTGenerator, WideNetClassifier

    return {
        "classifier": lambda: moeapps.MoEClassifier(**tables).fit(columns, table["label"]).predict_proba(columns),
        "regressor": lambda: moeapps.MoERegressor(**tables).fit(columns, table["number"]).predict(columns),
        "gnn": lambda: moeapps.GNNClassifier("gcn", **graph).fit(X, y, edges).predict_proba(X, edges),
        "mowst": lambda: moeapps.MowstClassifier("gcn", **graph).fit(X, y, edges).predict_proba(X, edges),
        "ranker": lambda: (
            moeapps.MultiTaskRanker("mmoe", **narrow)
            .fit(frame, ["click", "like", "stars", "seconds"], kinds={"seconds": "count"})
            .predict_proba(frame)
        ),
        "din": lambda: (
            moeapps.AWMoERanker("din", contrastive_weight=0.0, embedding_dim=2, **every)
            .fit(clicks, "click")
            .predict_proba(clicks)
        ),
        "widenet": lambda: WideNetClassifier(embed_dim=8, **image).fit(pictures, names).predict_proba(pictures),
        "dit": lambda: SwitchDiTGenerator(dim=8, timesteps=10, **image).fit(pictures / 1.0, names).sample(2, steps=2),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("lr", [1e9, 1e30])
@pytest.mark.parametrize("name", ["classifier", "regressor", "gnn", "mowst", "ranker", "din", "widenet", "dit"])
def test_a_training_that_diverged_never_passes_for_a_fitted_model(name, lr):
    try:
        predictions = _fits(lr)[name]()
    except NonFiniteError:
        return
    assert np.isfinite(np.asarray(predictions, dtype=float)).all()


@pytest.mark.slow  # the loops are compiled once more for it
def test_a_stream_whose_router_diverged_says_so():
    from moeapps.stream import DriftMoEClassifier

    X = np.random.default_rng(0).normal(size=(600, 3)) * 1e30
    model = DriftMoEClassifier.paper(seed=0)
    model.partial_fit(X, X[:, 0] > 0)  # raw features are cut off before their squares overflow
    model._engine.mixture.network.parameters[:] = np.nan
    with pytest.raises(NonFiniteError, match="the router has diverged"):
        model.partial_fit(X, X[:, 0] > 0)
    with pytest.raises(NonFiniteError):
        model.save("never")


# ------------------------------------------------------------------------------------ T13: set_params after fit


CHANGES = {
    "tables classifier": {"num_experts": 2, "lr": 1.0, "dim": 64}, "tables regressor": {"num_blocks": 3},
    "graph Mowst": {"hidden_channels": 77, "strong": "gat"}, "graph GNN": {"num_layers": 5},
    "recsys multi-task": {"embedding_dim": 64}, "recsys AW-MoE": {"embedding_dim": 64},
    "vision WideNet": {"depth": 7, "model": "vit"}, "vision Switch-DiT": {"dim": 640},
    "stream data": {"n_experts": 7, "on_bad": "skip"}, "stream task": {"router_hidden": [3, 3]},
    "stream regressor": {"max_nodes": 3, "window": 7},
}  # fmt: skip


@pytest.mark.parametrize("family", CHANGES)
def test_a_model_is_saved_as_it_was_fitted_and_keeps_what_set_params_changed_since(family, tmp_path):
    trial = Trial(family)
    path = tmp_path / "model.safetensors"
    path.write_bytes(original(family))
    model = moeapps.load(path).set_params(**CHANGES[family])
    model.save(path)
    loaded = moeapps.load(path)
    assert loaded.get_params() == model.get_params()
    assert loaded.get_params()[next(iter(CHANGES[family]))] == next(iter(CHANGES[family].values()))
    found = answers(family, loaded)
    assert all(np.array_equal(found[key], trial.answers[key]) for key in trial.answers)


def test_the_arguments_of_a_fit_are_those_of_the_last_fit(tmp_path):
    table = MAKE["table"]()
    X, y = table[["a", "b", "c", "city"]].fillna(0.0), table["label"]
    small = {"dim": 4, "num_experts": 4, "num_blocks": 1, "max_epochs": 1, "accelerator": "cpu", "random_state": 0}
    model = moeapps.MoEClassifier(**small).partial_fit(X, y)
    model.set_params(num_experts=2)
    with pytest.raises(ConfigError, match="num_experts was 4 at fit and is 2 now"):
        model.partial_fit(X, y)
    assert model.prune(3, X).get_params()["num_experts"] == 3
    model.set_params(num_experts=4, lr=0.5).partial_fit(X, y)
    model.set_params(num_experts=2).fit(X, y)
    model.save(tmp_path / "m.safetensors")
    loaded = moeapps.load(tmp_path / "m.safetensors")
    assert loaded.model_.blocks[0].num_experts == loaded.num_experts == 2
    assert torch.equal(loaded.model_.head[1].weight, model.model_.head[1].weight)


def test_an_argument_of_another_kind_is_refused(tmp_path):
    for name, value in (("lr", "fast"), ("verbose", 7), ("router", 3), ("max_epochs", [1]), ("router_args", "x")):
        with pytest.raises(FileFormatError, match=f"its argument {name} cannot be"):
            moeapps.load(changed("tables classifier", tmp_path, arguments(**{name: value})))
