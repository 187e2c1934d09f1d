"""Labels that come twice, late, or never (S8, S9)."""

import json

import pytest

from moeapps.core.errors import ConfigError, DataError
from moeapps.stream import DriftMoEClassifier, PendingLabels, RecentIds


def test_an_id_is_new_once():
    ids = RecentIds(3)
    assert [ids.add(key) for key in ("a", "a", "b", "c")] == [True, False, True, True]
    restored = RecentIds(3)
    restored.restore(json.loads(json.dumps(ids.state())))
    assert not restored.add("a")
    assert restored.add("d")  # a, the oldest, is forgotten
    assert restored.add("a")


def test_a_late_label_meets_its_own_features():
    learned = []

    class Spy:
        def predict_one(self, x):
            return "guess"

        def learn_one(self, x, y):
            if y == "bad":
                raise DataError("refused")
            learned.append((x, y))

    waiting = PendingLabels(Spy(), capacity=100)
    rows = {i: {"v": float(i)} for i in range(10_000)}
    for key, x in rows.items():
        assert waiting.predict(key, x) == "guess"
        x["v"] = -1.0  # the caller goes on using its dict
    assert len(waiting) == 100
    assert waiting.dropped == 9900
    assert not waiting.label(5, "late")
    assert waiting.unknown == 1
    with pytest.raises(DataError):
        waiting.label(9950, "bad")
    assert waiting.label(9950, "y")
    assert learned == [({"v": 9950.0}, "y")]
    again = PendingLabels(Spy(), capacity=100)
    again.restore(json.loads(json.dumps(waiting.state())))
    assert (len(again), again.dropped, again.unknown) == (99, 9900, 1)
    assert again.take(9999) == ({"v": 9999.0}, "guess")


def test_it_works_with_a_model_of_ours():
    waiting = PendingLabels(DriftMoEClassifier(seed=0), capacity=5)
    for i in range(50):
        waiting.predict(i, {"a": float(i % 2)})
        waiting.label(i, i % 2)
    assert waiting.predict("last", {"a": 1.0}) == 1


def test_an_impossible_capacity_is_named():
    with pytest.raises(ConfigError, match="capacity must be a whole number of at least 1"):
        PendingLabels(None, capacity=0)


def test_what_experts_predicted_is_kept_in_bounded_memory(monkeypatch):
    model = DriftMoEClassifier(experts={"linear": 2, "tree": 1}, seed=0)
    for y in ("no", "yes"):
        model.learn_one({"a": 1.0}, y)
    monkeypatch.setattr("moeapps.stream.io.delay.VOTES_BYTES", 5 * model.votes_one({"a": 1.0}).nbytes)
    waiting = PendingLabels(model, capacity=100)
    for i in range(20):
        waiting.predict(i, {"a": float(i)})
    waiting.discard(19)
    waiting.take(18)
    waiting.predict(17, {"a": 0.0})  # again
    again = PendingLabels(model, capacity=100)
    again.restore(json.loads(json.dumps(waiting.state())))
    for pending in (waiting, again):
        assert [i for i in range(20) if pending.votes(i) is not None] == [15, 16, 17]
        for i in range(20, 23):
            pending.predict(i, {"a": float(i)})
        assert [i for i in range(23) if pending.votes(i) is not None] == [16, 17, 20, 21, 22]
    assert waiting.label(0, "no")  # as if its label had come with it
