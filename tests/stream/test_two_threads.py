import threading

import numpy as np
import pandas as pd
import pytest

import moeapps
from moeapps.core.errors import ConfigError
from moeapps.stream import DriftMoEClassifier
from moeapps.stream.compiled.engine import tree_arrays
from moeapps.stream.compiled.kind_engine import KindEngine
from moeapps.stream.compiled.mixture_state import INSTANCES


def changing(n: int) -> tuple[list[dict], list[str]]:
    """Two concepts in turns (alarms, returns from the archive); later more features, categories and classes."""
    rng = np.random.default_rng(0)
    rows, labels = [], []
    for i in range(n):
        x = {"a": rng.normal(), "b": None if rng.random() < 0.1 else rng.normal(), "c": "uvwxyz"[rng.integers(3)]}
        if i > n // 6:
            x |= {"c": "uvwxyz"[rng.integers(6)], "d": rng.normal()}
        label = int(x["a"] > 0) + (2 if i > n // 5 and x["c"] in "xyz" else 0)
        if (i // 1500) % 2:
            label = (label + 1) % (4 if i > n // 5 else 2)
        rows.append(x)
        labels.append(f"l{label}")
    return rows, labels


@pytest.fixture(scope="module")
def stream():
    return changing(7500)


def learned(stream, n_jobs, step=900):
    model, predictions = DriftMoEClassifier(seed=2, n_jobs=n_jobs), []
    rows, labels = stream
    for i in range(0, len(rows), step):
        predictions += model.test_then_train(rows[i : i + step], labels[i : i + step])[0]
    return model, predictions


@pytest.fixture(scope="module")
def in_one(stream):
    return learned(stream, None)


def same(first, second) -> bool:
    left, right = tree_arrays(first._engine), tree_arrays(second._engine)
    return left.keys() == right.keys() and all(left[name].tobytes() == right[name].tobytes() for name in left)


@pytest.mark.parametrize("n_jobs", [2, 3, -1])
def test_results_do_not_depend_on_the_number_of_threads(stream, in_one, n_jobs, monkeypatch):
    calls = []
    real = KindEngine._learn_in_two_threads
    monkeypatch.setattr(KindEngine, "_learn_in_two_threads", lambda *args: (calls.append(len(args[1])), real(*args)))
    monkeypatch.setattr("moeapps.stream.compiled.kind_engine.effective_n_jobs", lambda n: 4 if n == -1 else n)
    model, predictions = learned(stream, n_jobs)
    assert sum(calls) > 6000  # rows with something unseen begin a call of their own
    assert same(model, in_one[0])
    assert predictions == in_one[1]
    events, returns = model.drift_events_, model.recurrences_
    assert (events["event"] == "renewed").sum() > 0
    assert len(returns) > 0
    pd.testing.assert_frame_equal(events, in_one[0].drift_events_)
    pd.testing.assert_frame_equal(returns, in_one[0].recurrences_)


def test_a_model_saved_in_the_middle_goes_on_in_two_threads(stream, in_one, tmp_path):
    rows, labels = stream
    model = DriftMoEClassifier(seed=2)
    model.test_then_train(rows[:3777], labels[:3777])
    model.save(tmp_path / "m.safetensors")
    resumed = moeapps.load(tmp_path / "m.safetensors").set_params(n_jobs=2)
    resumed.learn_many(pd.DataFrame(rows[3777:]).astype({"c": object}), labels[3777:])
    assert same(resumed, in_one[0])
    resumed.save(tmp_path / "n.safetensors")
    assert moeapps.load(tmp_path / "n.safetensors").get_params()["n_jobs"] == 2


@pytest.mark.parametrize(
    "arguments", [{"experts": ["tree"]}, {"experts": ["bayes", "linear"]}, {"archive": 0}, {"drift": None}], ids=str
)
def test_kinds_alone_without_archive_or_drift(stream, arguments):
    rows, labels = stream[0][:1200], stream[1][:1200]
    models = [DriftMoEClassifier(seed=0, n_experts=3, n_jobs=n_jobs, **arguments) for n_jobs in (1, 2)]
    predictions = [model.test_then_train(rows, labels)[0] for model in models]
    assert predictions[0] == predictions[1]
    assert same(*models)


def test_an_interrupt_leaves_trees_and_others_at_the_same_instance(stream, monkeypatch):
    rows, labels = stream[0][:1100], stream[1][:1100]
    model, twin = DriftMoEClassifier(seed=0, n_jobs=2), DriftMoEClassifier(seed=0)
    for one in (model, twin):
        one.learn_one(rows[0], labels[0])
        one.learn_one(rows[5], "l1")
    frame, targets = pd.DataFrame(rows[:1000])[["a", "b", "c"]], ["l0", "l1"] * 500
    for one in (model, twin):
        one.learn_many(frame[:50], targets[:50])
    real, blocks = KindEngine._run, []

    def stop(self, steps, X, *args, **kwargs):
        real(self, steps, X, *args, **kwargs)
        blocks.append(steps)
        if blocks.count(1) == 3 and threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt

    monkeypatch.setattr(KindEngine, "_run", stop)
    with pytest.raises(KeyboardInterrupt):
        model.learn_many(frame[50:], targets[50:])
    monkeypatch.undo()
    seen = model.n_seen_
    assert 52 < seen < 1002
    assert model._engine.mixture.neighbours.seen[0] == model._engine.mixture.counters[INSTANCES] == seen
    twin.learn_many(frame[50 : seen - 2], targets[50 : seen - 2])
    assert same(model, twin)


def test_another_thread_may_predict_while_a_model_learns(stream, in_one):
    rows, labels = stream
    model = DriftMoEClassifier(seed=2, n_jobs=2)
    model.test_then_train(rows[:2700], labels[:2700])
    stop, failures = threading.Event(), []

    def predict() -> None:
        while not stop.is_set():
            total = sum(model.predict_proba_one(rows[0]).values())
            if abs(total - 1.0) > 1e-9:
                failures.append(total)

    others = [threading.Thread(target=predict) for _ in range(2)]
    for other in others:
        other.start()
    for i in range(2700, len(rows), 900):
        model.test_then_train(rows[i : i + 900], labels[i : i + 900])
    stop.set()
    for other in others:
        other.join()
    assert not failures
    assert same(model, in_one[0])


@pytest.mark.parametrize("bad", [0, True, 1.5, "2"])
def test_a_number_of_threads_that_is_none_is_refused(bad):
    with pytest.raises(ConfigError, match="n_jobs must be None, a number of threads, or -1"):
        DriftMoEClassifier(n_jobs=bad).learn_one({"a": 1.0}, 0)
