"""Experts of several kinds as a user meets them: which there are, how they are mixed, kept, saved and refused."""

import json
import pickle

import numpy as np
import pandas as pd
import pytest
import torch

import moeapps
from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.stream import DriftMoEClassifier, PendingLabels, prequential
from moeapps.stream.compiled.engine import restore_arrays, tree_arrays
from moeapps.stream.compiled.kinds import KINDS
from moeapps.stream.compiled.online_gate import WAYS
from moeapps.stream.config import OF_TREES_ALONE, DriftMoEConfig
from moeapps.stream.restoring import check_engine
from tests.core.saved_fuzz import join, split

SMALL = {"n_experts": 3, "seed": 0}


def objects(n=1600, classes=30, seed=0):
    """Many classes with few instances each, under light that changes."""
    rng = np.random.default_rng(seed)
    centre, light = rng.normal(size=(classes, 12)), rng.normal(size=(2, 12))
    y = rng.integers(0, classes, n)
    t = np.arange(n)[:, None] / n
    X = centre[y] + np.c_[np.sin(9 * t), t] @ light + 0.5 * rng.normal(size=(n, 12))
    return [dict(enumerate(x)) for x in X.tolist()], y.tolist()


def accuracy(model, rows, labels):
    predictions, refused = model.test_then_train(rows, labels)
    assert not refused
    return np.mean([p == y for p, y in zip(predictions, labels, strict=True)])


def same(one, two):
    first, second = tree_arrays(one._engine), tree_arrays(two._engine)
    return all(np.array_equal(first[name], second[name]) for name in first)


# ------------------------------------------------------------------------------------------------------------ what


def test_the_default_has_all_kinds_and_says_which_expert_is_which(sea):
    rows, labels = sea
    model = DriftMoEClassifier(**SMALL)
    model.test_then_train(rows[:400], labels[:400])
    kinds = [name.split()[0] for name in model.expert_names_]
    assert {kind: kinds.count(kind) for kind in KINDS} == {
        "tree": 3, "bayes": 2, "neighbours": 3, "linear": 3, "network": 1,
    }  # fmt: skip
    assert len(model.activation_) == len(kinds) == model.expert_weights(pd.DataFrame(rows[:2])).shape[1]
    assert model.activation_.sum() == pytest.approx(400)
    weights = model.expert_weights(pd.DataFrame(rows[:9]))
    np.testing.assert_allclose(weights.sum(axis=1), 1.0)
    assert list(weights) == list(model.expert_weights(rows[0])) == model.expert_names_


@pytest.mark.parametrize(
    ("experts", "names"),
    [
        (["linear", "tree"], ["tree 0", "tree 1", "tree 2", "linear 0", "linear 1", "linear 2"]),
        (("network",), ["network 0"]),
        ({"tree": 2, "neighbours": 1}, ["tree 0", "tree 1", "neighbours 0"]),
        (None, ["tree 0", "tree 1", "tree 2"]),
    ],
)
def test_experts_are_named_by_kind_or_counted(experts, names, sea):
    model = DriftMoEClassifier(experts=experts, **SMALL)
    assert model.expert_names_ == []
    model.test_then_train(*(part[:60] for part in sea))
    assert model.expert_names_ == names
    assert hasattr(model, "gate_") == (experts is not None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"experts": "tree"}, "experts must be 'auto', None, a list of kinds"),
        ({"experts": []}, "a list of kinds .* or a dict of their counts, got \\[\\]"),
        ({"experts": ["forest"]}, "experts must be one of tree, bayes, neighbours, linear, network, got 'forest'"),
        ({"experts": ["tree", "tree"]}, "names a kind twice"),
        ({"experts": [["tree"]]}, "experts must be one of tree, .*, got \\['tree'\\]"),
        ({"experts": np.array(["tree"])}, "experts must be 'auto', None, a list of kinds"),
        ({"experts": {}}, "a dict of their counts, got {}"),
        ({"experts": {"tree": -1}}, "experts\\['tree'\\] must be a whole number of at least 1, got -1"),
        ({"experts": {"tree": 10**9}}, "experts\\['tree'\\] must be at most 10,000, got 1000000000$"),
        ({"experts": {"bayes": 0}}, "experts\\['bayes'\\] must be a whole number of at least 1"),
        ({"experts": {"bayes": 9}}, "experts\\['bayes'\\] must be at most 2, got 9"),
        ({"experts": ["tree"], "variant": "task"}, "variant='task' is for trees under the neural router"),
        ({"experts": ["tree"], "router_lr": 0.1}, "router_lr=0.1 is for trees under the neural router"),
        ({"gate": "vote"}, "gate must be one of auto, mean, accuracy, stack, context"),
        ({"gate": "vote", "experts": {"linear": 1}}, "gate must be one of auto, mean, accuracy, stack, context"),
        ({"gate": ["mean"]}, "gate must be one of .*, got \\['mean'\\]"),
        ({"gate": "stack", "experts": None}, "gate='stack' is for experts of several kinds"),
        ({"gate": "stack", "use_router": False}, "use_router=False means gate='accuracy'"),
    ],
)
def test_impossible_experts_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        DriftMoEClassifier(**{**SMALL, **arguments}).learn_one({"a": 1.0}, 0)


def test_an_argument_of_the_neural_router_brings_it_back():
    other = {
        "variant": "task", "top_k": 1, "predict_with": "top", "learn_with": "top_k", "blend": 0.0,
        "router_inputs": "raw", "router_hidden": (4, 4), "router_lr": 0.1, "router_dropout": 0.5, "router_period": 2,
        "temperature": 1.0, "expert": object(),
    }  # fmt: skip
    assert set(other) == set(OF_TREES_ALONE)
    for name, value in other.items():
        assert DriftMoEConfig(**{name: value}).kinds is None
    assert DriftMoEConfig(router_hidden=[128, 64]).kinds is not None  # as a file has the default
    assert DriftMoEClassifier.paper("data")._config().kinds is None


def test_experts_of_several_kinds_have_no_neural_router(sea):
    model = DriftMoEClassifier(**SMALL)
    model.test_then_train(*(part[:50] for part in sea))
    with pytest.raises(ConfigError, match="experts=None makes a model with one"):
        model.torch_router()


# --------------------------------------------------------------------------------------------------- what it brings


def test_many_classes_with_few_instances_are_learned_where_trees_alone_are_not():
    rows, labels = objects(classes=40, n=1200)
    several, trees = (accuracy(DriftMoEClassifier(seed=0, experts=experts), rows, labels) for experts in ("auto", None))
    assert several > 0.85
    assert several > trees + 0.1


def test_the_gate_is_no_worse_than_recent_accuracy_and_finds_the_better_way():
    rows, labels = objects(classes=40, n=1200)
    by_gate, by_accuracy = DriftMoEClassifier(seed=0), DriftMoEClassifier(use_router=False, seed=0)
    assert accuracy(by_gate, rows, labels) > accuracy(by_accuracy, rows, labels) + 0.02
    table = by_gate.gate_
    assert list(table.index) == ["mean", "accuracy", "stack", "context"]
    assert table["answered"].sum() == pytest.approx(1.0)
    assert table["loss"].idxmin() == table.index[table["answers"]][0]
    assert by_accuracy.gate_.index.tolist() == ["accuracy"]


def test_use_router_false_is_recent_accuracy(sea):
    one, two = DriftMoEClassifier(use_router=False, **SMALL), DriftMoEClassifier(gate="accuracy", **SMALL)
    for model in (one, two):
        model.test_then_train(*(part[:500] for part in sea))
    assert same(one, two)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns_numbers_categories_and_around_missing_values(kind, mixed):
    frame, labels = mixed
    model = DriftMoEClassifier(experts=[kind], **SMALL)
    rows = [{name: None if value is None or value != value else value for name, value in x.items()}
            for x in frame.to_dict("records")]  # fmt: skip
    model.test_then_train(rows, labels)
    found = model.predict_many(frame)
    common = pd.Series(labels).value_counts(normalize=True).max()
    assert (found == labels).mean() > common + 0.15
    by_city = pd.DataFrame({"a": 0.0, "city": ["Ulm", "Bonn"]})  # the category alone decides, the rest is missing
    assert model.predict_many(by_city).tolist() == ["high", "low"]
    assert not model.predict_proba_many(pd.DataFrame({"a": [None], "city": ["Oslo"]})).isna().any(axis=None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_that_comes_late_is_learned_by_every_kind(kind):
    rng = np.random.default_rng(0)
    y = np.r_[rng.integers(0, 2, 500), rng.integers(0, 3, 500)]
    X = rng.normal(size=(1000, 2)) + 4 * np.array([[0, 0], [1, 0], [0, 1]])[y]
    model = DriftMoEClassifier(experts=[kind], **SMALL)
    rows = [dict(enumerate(x)) for x in X.tolist()]
    predictions, _ = model.test_then_train(rows, y.tolist())
    late = np.flatnonzero((y == 2) & (np.arange(1000) > 700))
    assert np.mean([predictions[i] == 2 for i in late]) > 0.8
    assert set(model.predict_proba_one(rows[0])) == {0, 1, 2}


def test_memory_does_not_grow_with_the_stream():
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(9000, 4)))
    model = DriftMoEClassifier(n_experts=2, max_nodes=15, seed=0)
    sizes = []
    for start in range(0, 9000, 3000):
        part = X[start : start + 3000]
        model.learn_many(part, part[0] * part[1] + rng.normal(size=3000) > 0)
        sizes.append(model.nbytes_)
    assert sizes[0] == sizes[1] == sizes[2]


def test_tiny_huge_and_constant_features_do_no_harm():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(600, 1)) * [[1e-150, 1e148, 1.0]]
    X[:, 2] = 3.0
    labels = (X[:, 0] > 0).tolist()
    model = DriftMoEClassifier(**SMALL)
    with np.errstate(all="raise"):
        assert accuracy(model, [dict(enumerate(x)) for x in X.tolist()], labels) > 0.9
    assert np.isfinite(list(model.predict_proba_one({0: 0.0, 1: 1e149, 2: -1e149}).values())).all()
    for name, array in tree_arrays(model._engine).items():
        assert np.isfinite(array).all(), name


# ----------------------------------------------------------------------------------------------------- late labels


def test_late_labels_judge_the_experts_by_what_they_knew():
    rng = np.random.default_rng(0)
    rows = [{"t": float(t), "noise": z} for t, z in enumerate(rng.normal(size=3000).tolist())]
    labels = [int(t // 50 % 2) for t in range(3000)]  # the label of the neighbours in time, which come too late
    prompt, blind, aware = (DriftMoEClassifier(**SMALL) for _ in range(3))
    assert prequential(prompt, zip(rows, labels, strict=True)).scores["accuracy"] > 0.85
    delay = 50
    for i, (x, y) in enumerate(zip(rows, labels, strict=True)):
        rows[i] = (x, y, aware.votes_one(x))
        if i >= delay:
            x, y, votes = rows[i - delay]
            blind.learn_one(x, y)
            aware.learn_one(x, y, votes=votes)
    assert blind.gate_["loss"].min() < 0.5 < 0.65 < aware.gate_["loss"].min()


def test_votes_of_now_change_nothing(sea):
    rows, labels = sea
    with_votes, without = DriftMoEClassifier(**SMALL), DriftMoEClassifier(**SMALL)
    assert with_votes.votes_one(rows[0]) is None
    for x, y in zip(rows[:300], labels[:300], strict=True):
        votes = with_votes.votes_one(x)
        with_votes.learn_one(x, y, votes=votes)
        without.learn_one(x, y)
    assert votes.shape == (12, 2)
    np.testing.assert_allclose(votes.sum(axis=1), 1.0, rtol=1e-5)
    for x in rows[300:400]:  # votes are stored in single precision
        assert with_votes.predict_proba_one(x) == pytest.approx(without.predict_proba_one(x), abs=1e-3)


def test_votes_of_another_model_are_refused(sea):
    model = DriftMoEClassifier(**SMALL)
    model.test_then_train(*(part[:50] for part in sea))
    before = model.predict_proba_one(sea[0][0])
    for votes in (np.ones((3, 2)), np.full((12, 2), 2.0), np.full((12, 2), np.nan), np.full((12, 3), 0.1), "x"):
        with pytest.raises((DataError, ValueError), match="votes must|could not convert"):
            model.learn_one(sea[0][0], sea[1][0], votes=votes)
    assert model.predict_proba_one(sea[0][0]) == before
    with pytest.raises(DataError, match="votes are of experts of several kinds"):
        DriftMoEClassifier(experts=None, **SMALL).learn_one(sea[0][0], sea[1][0], votes=np.ones((12, 2)))


def test_waiting_labels_keep_their_votes_through_a_restart(sea):
    rows, labels = sea
    waiting = PendingLabels(DriftMoEClassifier(**SMALL), capacity=50)
    for i in range(200):
        waiting.predict(i, rows[i])
        if i >= 40:
            waiting.label(i - 40, labels[i - 40])
    again = PendingLabels(pickle.loads(pickle.dumps(waiting.model)), capacity=50)
    again.restore(json.loads(json.dumps(waiting.state())))
    for pending in (waiting, again):
        assert pending.votes(199).shape == (12, 2)
        for i in range(160, 200):
            assert pending.label(i, labels[i])
            assert pending.votes(i) is None
    assert same(waiting.model, again.model)
    assert waiting.state() == again.state()
    assert waiting.state()["votes"] == []


def test_forgotten_instances_forget_their_votes(sea):
    rows, labels = sea
    model = DriftMoEClassifier(**SMALL)
    model.test_then_train(rows[:50], labels[:50])
    waiting = PendingLabels(model, capacity=10)
    for i in range(60):
        waiting.predict(i, rows[i])
    waiting.discard(59)
    waiting.take(58)
    assert [entry[0] for entry in waiting.state()["votes"]] == list(range(50, 58))


# ---------------------------------------------------------------------------------------------------- saved models


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(400, 3)), columns=list("abc"))
    frame["city"] = rng.choice(["Ulm", "Bonn", "Kiel"], 400)
    model = DriftMoEClassifier(**SMALL)
    model.learn_many(frame, np.where(frame["a"] + (frame["city"] == "Ulm") > 0.5, "yes", "no"))
    path = tmp_path_factory.mktemp("saved") / "model.safetensors"
    model.save(path)
    return path, frame


def test_a_file_has_its_kinds_and_goes_on_bit_for_bit(saved, tmp_path):
    path, frame = saved
    model, twin = moeapps.load(path), moeapps.load(path)
    assert model.experts == "auto"
    model.learn_many(frame[::-1], ["yes", "no"] * 200)
    twin.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    twin = moeapps.load(tmp_path / "again")
    twin.learn_many(frame[::-1], ["yes", "no"] * 200)
    assert same(model, twin)


@pytest.mark.parametrize("gate", ["auto", *WAYS])
def test_a_model_of_one_label_is_saved(gate, tmp_path):
    model = DriftMoEClassifier(gate=gate, **SMALL)
    for i in range(20):
        model.learn_one({"a": i / 7, "city": "Ulm"}, "yes")
        if i in (0, 1, 2, 19):
            model.save(tmp_path / "model")
            again = moeapps.load(tmp_path / "model")
            assert same(model, again)
    for one in (model, again):
        one.learn_one({"a": 1.0}, "no")
    assert same(model, again)


def test_what_set_params_has_made_impossible_is_not_saved(saved, tmp_path):
    path, frame = saved
    model = moeapps.load(path)
    model.set_params(experts=["linear"], archive=2)
    with pytest.raises(ConfigError, match="archive=2 keeps trees that a drift alarm retires"):
        model.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    model.set_params(archive=0, gate="mean", window=7)
    model.save(tmp_path / "model")
    again = moeapps.load(tmp_path / "model")
    assert again.get_params() == model.get_params()
    assert again.expert_names_ == model.expert_names_  # those that the model began with
    assert again.predict_many(frame).tolist() == model.predict_many(frame).tolist()


SPOILED = {
    "mixture.neighbours.labels": 7, "mixture.neighbours.seen": -1, "mixture.neighbours.nearest": 600,
    "mixture.neighbours.window": 10**9, "mixture.bayes.weight": -1.0, "mixture.bayes.share": 2.0,
    "mixture.bayes.rate": 0.5, "mixture.linear.squares": 0.0, "mixture.linear.rate": 9.0, "mixture.networks.steps": -1,
    "mixture.networks.first": -1.0, "mixture.gate.state": 4, "mixture.gate.stack": -1.0, "mixture.gate.answered": 3,
    "mixture.gate.stack_squares": 0.0, "mixture.counters": 10**9, "mixture.recent": 2.0, "mixture.moments": -1.0,
    "pool.trees.kind": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED)
def test_an_array_that_no_learning_makes_is_refused(name, saved, tmp_path):
    header, document, data = split(saved[0].read_bytes())
    entry = header[name]
    start, end = entry["data_offsets"]
    dtype = np.dtype({"F64": "<f8", "I64": "<i8", "I32": "<i4"}[entry["dtype"]])
    np.frombuffer(data, dtype, (end - start) // dtype.itemsize, start)[:] = SPOILED[name]
    path = tmp_path / "spoiled.safetensors"
    path.write_bytes(join(header, document, data))
    with pytest.raises(FileFormatError, match="damaged or changed: its"):
        moeapps.load(path)


@pytest.mark.parametrize("experts", [None, ["tree"], {"tree": 3, "bayes": 1}, {"tree": 12}])
def test_other_experts_than_those_of_the_arrays_are_refused(experts, saved, tmp_path):
    header, document, data = split(saved[0].read_bytes())
    document["arguments"]["experts"] = experts
    path = tmp_path / "changed.safetensors"
    path.write_bytes(join(header, document, data))
    with pytest.raises((FileFormatError, ConfigError)):
        moeapps.load(path)


def test_arrays_of_another_shape_are_refused(saved):
    model = moeapps.load(saved[0])
    arrays = tree_arrays(model._engine)
    wrong = {**arrays, "mixture.gate.context": np.zeros((3, 3))}
    restore_arrays(model._engine, wrong)
    with pytest.raises(FileFormatError, match=r"mixture.gate.context has shape \(3, 3\)"):
        check_engine(model._engine, [False, False, False, True], [0, 0, 0, 3])


@pytest.mark.filterwarnings("ignore:.*has moved to.*:DeprecationWarning")
def test_a_file_of_0_1_has_trees_under_the_neural_router(tmp_path):
    from tests.test_saved_by_0_1 import ARCHIVE

    model = moeapps.load(ARCHIVE.extract("drift_data.safetensors", tmp_path))
    assert model.experts is None
    assert isinstance(model.torch_router(), torch.nn.Module)
    assert pickle.loads(ARCHIVE.read("drift_data.pickle")).experts is None
