"""Concepts that return: retired trees are kept, come back, are told of, saved, and bounded in number."""

import numpy as np
import pandas as pd
import pytest

import moeapps
from moeapps.core.errors import ConfigError, FileFormatError
from moeapps.stream import DriftMoEClassifier
from moeapps.stream.compiled.archive import _least, new_archive
from moeapps.stream.compiled.engine import tree_arrays
from moeapps.stream.compiled.kinds import KINDS
from moeapps.stream.config import DriftMoEConfig
from tests.core.saved_fuzz import join, split

EVERY = 2000
TREES = {"experts": ["tree"], "n_experts": 4, "seed": 0}


@pytest.fixture(scope="module")
def returning():
    """Two concepts in turns, five times: the same clusters with other labels."""
    rng = np.random.default_rng(0)
    centres, labels = rng.random((2, 30, 8)), rng.integers(0, 4, (2, 30))
    concept, cluster = np.arange(10 * EVERY) // EVERY % 2, rng.integers(0, 30, 10 * EVERY)
    X = centres[concept, cluster] + 0.08 * rng.normal(size=(10 * EVERY, 8))
    return pd.DataFrame(X, columns=list("abcdefgh")), labels[concept, cluster]


def learned(returning, **arguments):
    """A model, and whether it was right of each instance."""
    frame, labels = returning
    model = DriftMoEClassifier(**{**TREES, **arguments})
    right = []
    for start in range(0, len(labels), EVERY):
        rows = frame[start : start + EVERY].to_dict("records")
        predictions, _ = model.test_then_train(rows, labels[start : start + EVERY])
        right.append(np.array(predictions) == labels[start : start + EVERY])
    return model, np.array(right)


@pytest.fixture(scope="module")
def with_archive(returning):
    return learned(returning)


def test_a_concept_that_returns_is_known_again(returning, with_archive):
    right = with_archive[1]
    _, without = learned(returning, archive=0)
    assert right[3:, :1000].mean() > without[3:, :1000].mean() + 0.05
    assert right.mean() > without.mean()


def test_what_came_back_is_told(with_archive):
    model, _ = with_archive
    found = model.recurrences_
    assert len(found) > 4
    assert list(found.columns) == ["instance", "expert", "retired", "accuracy", "instead_of"]
    assert (found["accuracy"] > found["instead_of"]).all()
    assert (found["retired"] <= found["instance"]).all()
    assert found["instance"].is_monotonic_increasing
    assert found["expert"].between(0, 3).all()
    turns = found["instance"] // EVERY
    assert (found["instance"] - turns * EVERY < 600).mean() > 0.8  # soon after a concept has returned


def test_the_archive_says_where_its_trees_were_right(with_archive):
    model, _ = with_archive
    archive = model.archive_
    assert 0 < len(archive) <= 8
    assert set(archive.columns) == {"expert", "retired", "accuracy", *model.classes_}
    assert archive["accuracy"].between(0.5, 1).all()
    assert archive[list(model.classes_)].stack().between(0, 1).all()


def test_the_archive_is_bounded_and_keeps_the_newest(returning):
    model, _ = learned(returning, archive=1)
    archive = model._engine.archive
    assert len(model.archive_) <= 1
    assert len(archive.retired) == 1
    assert model._engine.pool.n_trees == 2 * 4 + 1
    retired = [*model.drift_events_.query("event == 'renewed'")["instance"], *model.recurrences_["instance"]]
    assert int(archive.retired[0]) in [-1, max(retired)]  # -1: what it held has returned, for a tree not worth keeping


def test_a_full_archive_keeps_trees_of_every_concept():
    archive = new_archive(2, 5, 2)
    assert _least(archive) == 0  # free
    archive.retired[:] = 100, 10_000, 10_300, 10_600, 20_000
    archive.accuracy[:] = 0.1, 0.9, 0.7, 0.8, 0.2
    assert _least(archive) == 2  # the worst of the concept that has most trees
    archive.retired[2] = 25_000
    assert _least(archive) == 3


def test_without_an_archive_there_is_nothing_of_it(returning):
    frame, labels = returning
    model = DriftMoEClassifier(**TREES, archive=0)
    model.learn_many(frame[:200], labels[:200])
    assert not any(name.startswith("archive") for name in tree_arrays(model._engine))
    assert not hasattr(model, "archive_")
    assert model.recurrences_.empty


def test_a_stream_without_an_alarm_is_learned_as_without_an_archive(returning):
    frame, labels = returning
    one, two = DriftMoEClassifier(**TREES), DriftMoEClassifier(**TREES, archive=0)
    for model in (one, two):
        model.learn_many(frame[:1500], labels[:1500])
    assert one.drift_events_.query("event == 'renewed'").empty
    assert (one.predict_proba_many(frame[:200]) == two.predict_proba_many(frame[:200])).all(axis=None)


@pytest.mark.parametrize("drift", ["replace", "reset"])
def test_batches_loops_and_files_go_on_bit_for_bit_before_a_tree_returns(drift, returning, tmp_path):
    frame, labels = returning
    n = 3 * EVERY + 400
    one, many = (DriftMoEClassifier(**TREES, drift=drift) for _ in range(2))
    for x, y in zip(frame[:n].to_dict("records"), labels[:n].tolist(), strict=True):
        one.learn_one(x, y)
        if one.n_seen_ == 2 * EVERY + 25:  # the first concept has just returned
            break
    cut = one.n_seen_
    assert not one.archive_.empty
    one.save(tmp_path / "one")
    many.learn_many(frame[:cut], labels[:cut])
    many.save(tmp_path / "many")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "many").read_bytes()
    loaded = moeapps.load(tmp_path / "one")
    for model in (many, loaded):
        model.learn_many(frame[cut:n], labels[cut:n])
    first, second = tree_arrays(many._engine), tree_arrays(loaded._engine)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert loaded.recurrences_.equals(many.recurrences_)
    assert len(loaded.recurrences_) > 0


def test_classes_that_come_after_a_tree_was_archived_have_a_column(with_archive, returning):
    import copy

    model = copy.deepcopy(with_archive[0])
    model.learn_many(returning[0][:3], [9] * 3)
    assert 9 in model.archive_.columns
    assert (model.archive_[9] == 0).all()


SPOILED = {
    "archive.retired": 10**9, "archive.origin": 99, "archive.accuracy": 7.0, "archive.where": -1.0,
    "archive.short": 10**9, "archive.now": -5.0, "archive.share": -1.0, "archive.steady": 7.0, "archive.counters": -1,
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED)
def test_an_archive_that_no_learning_makes_is_refused(name, with_archive, tmp_path):
    path = tmp_path / "model.safetensors"
    with_archive[0].save(path)
    header, document, data = split(path.read_bytes())
    start, end = header[name]["data_offsets"]
    dtype = np.dtype({"F64": "<f8", "I64": "<i8"}[header[name]["dtype"]])
    np.frombuffer(data, dtype, (end - start) // dtype.itemsize, start)[:] = SPOILED[name]
    path.write_bytes(join(header, document, data))
    with pytest.raises(FileFormatError, match="damaged or changed: its"):
        moeapps.load(path)


def test_an_archive_needs_trees_that_drift_replaces():
    for arguments in ({"drift": None}, {"experts": ["linear"]}, {"experts": None}, {"variant": "task"}):
        with pytest.raises(ConfigError, match="archive=3 keeps trees that a drift alarm retires"):
            DriftMoEConfig(archive=3, **arguments)
    for bad in (-1, 2.5, 0.0, False, None, "all", 10**8):
        with pytest.raises(ConfigError, match=f"archive must be 'auto' or a whole number .*, got {bad!r}"):
            DriftMoEConfig(archive=bad)
    sizes = [DriftMoEConfig(**x).kind_settings.archive for x in ({}, {"n_experts": 5}, {"drift": None}, {"archive": 0})]
    assert sizes == [24, 10, 0, 0]
    assert DriftMoEConfig(experts=[kind for kind in KINDS if kind != "tree"]).kind_settings.archive == 0
