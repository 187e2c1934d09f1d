"""A batch ends where a loop over its rows ends, to the last bit: many categories, late columns and classes, limits."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moeapps.stream import DriftMoEClassifier, DriftMoERegressor
from moeapps.stream.compiled.engine import tree_arrays

TINY = {"n_experts": 2, "router_hidden": (4, 4), "router_period": 3, "grace_period": 8, "seed": 3}
KINDS = {
    "several": lambda **more: DriftMoEClassifier(**{"n_experts": 2, "grace_period": 8, "seed": 3, **more}),
    "data": lambda **more: DriftMoEClassifier("data", **{**TINY, **more}),
    "task": lambda **more: DriftMoEClassifier("task", **{**TINY, **more}),
    "regressor": lambda **more: DriftMoERegressor(**{**TINY, **more}),
}


def state(model) -> dict:
    """Everything that a file would hold, in a form that can be compared."""
    arrays = {} if model._engine is None else tree_arrays(model._engine)
    return {**{name: (a.shape, a.tobytes()) for name, a in arrays.items()}, "rest": model.saved_state()}


def looped(model, rows, targets):
    """Predictions of a loop of predict_one and learn_one."""
    found: list = []
    for x, y in zip(rows, targets, strict=True):
        found.append(model.predict_one(x))
        model.learn_one(x, y)
    return found


texts = st.sampled_from([f"c{i}" for i in range(40)])
cells = {
    "city": st.one_of(st.none(), texts),
    "shop": st.one_of(st.none(), st.integers(0, 30).map(str), st.just("NA")),
    "price": st.one_of(st.none(), st.integers(-5, 5), st.floats(-10, 10, width=16)),
    "flag": st.one_of(st.none(), st.booleans()),
    "mixed": st.one_of(st.none(), texts, st.integers(0, 9), st.booleans(), st.sampled_from([1.0, 2.5])),
}
instances = st.fixed_dictionaries({}, optional=cells)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.lists(instances, min_size=1, max_size=40),
    labels=st.lists(st.integers(0, 5), min_size=40, max_size=40),
    cut=st.integers(0, 40),
    limits=st.sampled_from([{}, {"max_categories": 4}, {"max_features": 2}, {"max_categories": 1}]),
    policy=st.sampled_from(["impute", "skip"]),
)
def test_a_batch_is_a_loop_over_its_rows(kind, rows, labels, cut, limits, policy):
    labels = labels[: len(rows)]
    one, many, both = (KINDS[kind](on_bad=policy, **limits) for _ in range(3))
    frame = pd.DataFrame(rows, dtype=object, index=range(len(rows)), columns=sorted({n for x in rows for n in x}))
    expected = looped(one, rows, labels)
    by_frame: list = []
    for part in (slice(0, cut), slice(cut, None)):
        if len(frame[part]):
            by_frame += many.test_then_train_many(frame[part], labels[part])
    predictions, refused = both.test_then_train(rows, labels)
    assert state(many) == state(one)
    assert state(both) == state(one)
    learned = [i for i in range(len(rows)) if i not in refused]
    for i in learned[1:]:  # at the first one a new model has nothing to say
        assert predictions[i] == by_frame[i] == expected[i]
    assert many.predict_many(frame).tolist() == [one.predict_one(x) for x in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_many_categories_by_batch_are_those_one_by_one(kind):
    rng = np.random.default_rng(0)
    rows = [{"a": f"v{rng.integers(60)}", "b": f"w{rng.integers(i // 20 + 1)}", "c": rng.normal()} for i in range(400)]
    targets = [int(x["a"] in ("v1", "v7", "v30") or x["c"] > 1) for x in rows]
    one, many, both = (KINDS[kind](leaf_prediction="nb") if kind != "regressor" else KINDS[kind]() for _ in range(3))
    expected = looped(one, rows, targets)
    by_frame = many.test_then_train_many(pd.DataFrame(rows), targets)
    predictions, _ = both.test_then_train(rows, targets)
    assert state(many) == state(one) == state(both)
    assert predictions[1:] == by_frame[1:] == expected[1:]  # a category is new until its instance is predicted


def test_naive_bayes_divides_by_the_number_of_values_not_by_the_room_for_them():
    model = DriftMoEClassifier(
        n_experts=1, bagging=0.0, blend=0.0, use_router=False, drift=None, leaf_prediction="nb", seed=0
    )
    for value, label in [("a", 0), ("b", 0), ("c", 1), ("d", 1), ("e", 0), ("a", 1)] * 3:
        model.learn_one({"city": value}, label)
    # 9 of 18 of each class; "a" three times in each; five values (room for eight)
    zero, one = (3 + 1) / (9 + 5), (3 + 1) / (9 + 5)
    assert model.predict_proba_one({"city": "a"})[0] == pytest.approx(zero / (zero + one))
    zero, one = (3 + 1) / (9 + 5), (0 + 1) / (9 + 5)
    assert model.predict_proba_one({"city": "b"})[0] == pytest.approx(zero / (zero + one))
    for label in (0, 0, 0, 1):
        model.learn_one({"city": "c"}, label)
    zero, one = (3 + 1) / (12 + 5) * 12 / 22, (4 + 1) / (10 + 5) * 10 / 22
    assert model.predict_proba_one({"city": "c"})[0] == pytest.approx(zero / (zero + one))


def test_another_column_with_more_values_does_not_change_the_smoothing_of_this_one():
    models = [DriftMoEClassifier(n_experts=1, bagging=0.0, use_router=False, blend=0.0, seed=0) for _ in range(2)]
    for i in range(30):
        for model, other in zip(models, ("same", f"id{i}"), strict=True):
            model.learn_one({"city": "ab"[i % 2], "other": other}, int(i % 3 == 0))
    tables = [model._engine.pool.state.trees for model in models]
    assert tables[0].values[0] == tables[1].values[0] == 2


def test_a_category_beyond_max_categories_is_predicted_as_it_was_learned():
    model = DriftMoEClassifier(max_categories=3, n_experts=2, router_hidden=(4, 4), seed=0)
    for i in range(300):
        model.learn_one({"city": ["Ulm", "Bonn", "Kiel", "Rom", "Paris"][i % 5]}, int(i % 5 >= 2))
    assert [model.predict_one({"city": city}) for city in ("Ulm", "Kiel", "Rom", "Oslo")] == [0, 1, 1, 1]
    encoder = model._encoder
    assert encoder.encode({"city": "Oslo"}).unseen is None  # so it is no slower than a known one
    assert encoder.encode({"city": "Oslo"}).table.tolist() == encoder.encode_known({"city": "Kiel"}).tolist() == [[2.0]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_limit_on_features_keeps_those_that_came_first_not_those_that_stand_first(kind):
    rows = [{"early": 1.0}, {"late": 2.0, "z": "t", "early": 3.0}, {"later": 1.0, "late": 3.0}]
    frame = pd.DataFrame(rows, columns=["later", "z", "late", "early"])
    one, many, turned = (KINDS[kind](max_features=2) for _ in range(3))
    looped(one, rows, [0, 1, 0])
    many.learn_many(frame, [0, 1, 0])
    looped(turned, [dict(reversed(list(x.items()))) for x in rows], [0, 1, 0])
    assert one.router_features_ == many.router_features_ == turned.router_features_ == ["early", "late"]
    assert one.n_ignored_ == many.n_ignored_ == turned.n_ignored_ == 2
    assert state(one) == state(many) == state(turned)


@pytest.mark.parametrize("first", [float("inf"), [1], "text", 10**400])
def test_the_first_good_value_decides_the_kind_of_a_column_in_a_frame_too(first):
    rows = [{"a": first}, {"a": 2.0}, {"a": "text"}, {"a": 3}]
    one, many = (DriftMoEClassifier(on_bad="impute", **TINY) for _ in range(2))
    looped(one, rows, [0, 1, 0, 1])
    many.learn_many(pd.DataFrame(rows, dtype=object), [0, 1, 0, 1])
    assert state(one) == state(many)
    assert one.n_bad_ == many.n_bad_ == (0 if first == "text" else 2)


def test_a_frame_with_a_column_twice_is_refused():
    model = DriftMoEClassifier(**TINY)
    with pytest.raises(ValueError, match="column 'a' more than once"):
        model.learn_many(pd.DataFrame([[1.0, 2.0]], columns=["a", "a"]), [0])
    assert model.n_seen_ == 0
