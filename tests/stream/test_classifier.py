"""DriftMoEClassifier and DriftMoERegressor as a user meets them, faults of input included."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pandas as pd
import pytest
from river import compose, datasets, evaluate, metrics, preprocessing, tree
from river.checks import yield_checks
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import moeapps
from moeapps.core.errors import ConfigError, DataError
from moeapps.stream import DriftMoEClassifier, DriftMoERegressor
from moeapps.stream.compiled.engine import tree_arrays
from tests.processes import Command

SMALL = {"n_experts": 3, "router_hidden": (8, 8)}  # trees under the neural router
VARIANTS = {
    "defaults": lambda: DriftMoEClassifier(seed=3, n_experts=3),
    "router": lambda: DriftMoEClassifier(seed=3, **SMALL),
    "task": lambda: DriftMoEClassifier("task", seed=3, **SMALL),
    "paper data": lambda: DriftMoEClassifier.paper("data", seed=3),
    "paper task": lambda: DriftMoEClassifier.paper("task", seed=3),
    "regressor": lambda: DriftMoERegressor(seed=3, **SMALL),
}


def targets_for(model, frame: pd.DataFrame, labels: np.ndarray) -> list:
    return (frame["a"] * 2 + (frame["city"] == "Ulm")).tolist() if model._numbers else labels.tolist()


def same(first, second) -> bool:
    one, two = tree_arrays(first._engine), tree_arrays(second._engine)
    return all(np.array_equal(one[name], two[name], equal_nan=True) for name in one)


def river_checks(name: str, model):
    """river's checks, and which of them are slow twins: a check is done once per data set, memory needs long ones."""
    done: set[str] = set()
    for check in yield_checks(model):
        twin = name in ("unseeded", "paper") or check.__name__ in done
        yield check, twin and check.__name__ in ("check_bounded_memory_growth", "check_shuffle_features_no_impact")
        done.add(check.__name__)


@pytest.mark.parametrize(
    ("model", "check"),
    [
        pytest.param(model, check, id=f"{name}-{check.__name__}", marks=pytest.mark.slow if slow else ())
        for name, model in (
            ("several kinds", DriftMoEClassifier(seed=1, n_experts=3)),
            ("classifier", DriftMoEClassifier(seed=1, **SMALL)),
            ("unseeded", DriftMoEClassifier(**SMALL)),
            ("task", DriftMoEClassifier("task", seed=1, **SMALL)),
            ("paper", DriftMoEClassifier.paper(seed=1)),
            ("regressor", DriftMoERegressor(seed=1, **SMALL)),
        )
        for check, slow in river_checks(name, model)
    ],
)
def test_river_check(model, check):
    check(model.clone())


def test_a_new_model_predicts_nothing():
    assert DriftMoEClassifier().predict_one({"a": 1}) is None
    assert DriftMoEClassifier().predict_proba_one({"a": 1}) == {}
    assert DriftMoERegressor().predict_one({"a": 1}) == 0.0
    frame = pd.DataFrame({"a": [1.0, 2.0]})
    assert DriftMoEClassifier().predict_many(frame).isna().all()
    assert DriftMoEClassifier().predict_proba_many(frame).shape == (2, 0)


@pytest.mark.parametrize("name", VARIANTS)
def test_learn_many_is_learn_one_in_a_loop_bit_for_bit(name, mixed):
    frame, labels = (part[:1200] for part in mixed)
    one, many = VARIANTS[name](), VARIANTS[name]()
    targets = targets_for(one, frame, labels)
    for x, y in zip(frame.to_dict("records"), targets, strict=True):
        one.learn_one(x, y)
    for start, stop in ((0, 700), (700, 701), (701, 1200)):
        many.learn_many(frame[start:stop], targets[start:stop])
    assert same(one, many)
    rows = frame[:100].to_dict("records")
    assert one.predict_many(frame[:100]).tolist() == [one.predict_one(x) for x in rows]


@pytest.mark.parametrize("name", VARIANTS)
def test_test_then_train_predicts_what_predict_one_would(name, mixed):
    frame, labels = (part[:1200] for part in mixed)
    one, many = VARIANTS[name](), VARIANTS[name]()
    targets = targets_for(one, frame, labels)
    rows = frame.to_dict("records")
    expected = []
    for x, y in zip(rows, targets, strict=True):
        expected.append(one.predict_one(x))
        one.learn_one(x, y)
    predictions, refused = many.test_then_train(rows, targets)
    assert refused == {}
    assert predictions[10:] == expected[10:]
    assert same(one, many)


@pytest.mark.parametrize(
    ("name", "cut"), [*((name, 499) for name in VARIANTS), *(("defaults", n) for n in (0, 1, 900))]
)
def test_a_model_saved_anywhere_goes_on_as_if_it_had_not_been(name, cut, mixed, tmp_path):
    frame, labels = (part[:1200] for part in mixed)
    whole = VARIANTS[name]()
    targets = targets_for(whole, frame, labels)
    whole.learn_many(frame[:cut], targets[:cut])
    whole.save(tmp_path / "m.safetensors")
    resumed = moeapps.load(tmp_path / "m.safetensors")
    assert resumed.get_params() == {**whole.get_params(), "router_hidden": list(whole.router_hidden)}
    for model in (whole, resumed):
        model.learn_many(frame[cut:], targets[cut:])
    assert same(whole, resumed)
    assert whole.predict_many(frame).tolist() == resumed.predict_many(frame).tolist()


def test_in_a_new_process(mixed, tmp_path):
    frame, labels = mixed
    model = VARIANTS["defaults"]()
    model.learn_many(frame[:1000], labels[:1000])
    model.save(tmp_path / "m.safetensors")
    frame[1000:].to_pickle(tmp_path / "rest.pkl")
    script = (
        "import sys, pandas as pd, moeapps; folder = sys.argv[1]; frame = pd.read_pickle(folder + '/rest.pkl')\n"
        "model = moeapps.load(folder + '/m.safetensors'); model.learn_many(frame, sys.argv[2].split(','))\n"
        "model.save(folder + '/after.safetensors')"
    )
    rest = ",".join(labels[1000:])
    process = Command([tmp_path, rest], code=script)
    _, error = process.communicate(120)
    assert process.returncode == 0, error
    assert "moeapps compiles its stream loops" not in error  # the machine code on disk is used
    model.learn_many(frame[1000:], labels[1000:])
    assert same(model, moeapps.load(tmp_path / "after.safetensors"))


def test_a_model_mapped_from_a_file_read_only_learns_on(mixed, tmp_path):
    frame, labels = mixed
    model = VARIANTS["defaults"]()
    model.learn_many(frame[:1000], labels[:1000])
    joblib.dump(model, tmp_path / "m.joblib")
    mapped = joblib.load(tmp_path / "m.joblib", mmap_mode="r")
    for twin in (model, mapped):
        twin.learn_many(frame[1000:], labels[1000:])
    assert same(model, mapped)


def test_a_saved_model_is_arrays_and_json_without_pickle(mixed, tmp_path, monkeypatch):
    frame, labels = mixed
    model = VARIANTS["defaults"]()
    model.learn_many(frame, labels)
    model.save(tmp_path / "m.safetensors")

    def refuse(*args, **kwargs):
        raise AssertionError("a pickle was read")

    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    twin = moeapps.load(tmp_path / "m.safetensors")
    assert np.array_equal(twin.predict_proba_many(frame), model.predict_proba_many(frame))
    model.set_params(expert=tree.HoeffdingTreeClassifier())
    with pytest.raises(ConfigError, match="cannot be saved without pickle"):
        model.save(tmp_path / "other.safetensors")


def test_a_new_label_is_learned(sea):
    rows, _ = sea
    model = DriftMoEClassifier(seed=0)
    for i in range(1000):
        model.learn_one(rows[i], i % 2)
    assert set(model.predict_proba_one(rows[0])) == {0, 1}
    assert sum(model.predict_proba_one(rows[0]).values()) == pytest.approx(1)
    model.learn_one({"0": 100.0}, 2)
    found = model.predict_proba_one(rows[0])
    assert set(found) == {0, 1, 2}
    assert sum(found.values()) == pytest.approx(1)
    for i in range(500):
        model.learn_one({0: 50.0, 1: 50.0, 2: 50.0}, 2)
        model.learn_one(rows[i], i % 2)
    assert model.predict_one({0: 50.0, 1: 50.0, 2: 50.0}) == 2


@pytest.mark.parametrize("bad", ["new", None, float("nan"), float("inf"), [1], (1, 2)])
def test_a_label_of_another_kind_is_refused_and_nothing_is_lost(bad, sea):
    rows, labels = sea
    model = DriftMoEClassifier(seed=0, **SMALL)
    for x, y in zip(rows[:200], labels, strict=False):
        model.learn_one(x, int(y))
    before = pickle.dumps(model)
    with pytest.raises(DataError, match="y is"):
        model.learn_one(rows[200], bad)
    assert pickle.dumps(model) == before
    for x, y in zip(rows[200:300], labels[200:], strict=False):
        model.learn_one(x, int(y))
        assert model.predict_one(x) in (0, 1)


BAD = [{"a": "abc"}, {"a": float("inf")}, {"a": 1e308}, {"a": {"b": 1}}, {"a": [1]}, {"c": [1, 2], "a": 1.0}]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_a_bad_value_is_refused_skipped_or_imputed(bad):
    good = {"a": 1.0, "b": "x"}
    models = {policy: DriftMoEClassifier(on_bad=policy, seed=0, **SMALL) for policy in ("raise", "skip", "impute")}
    for model in models.values():
        for i in range(30):
            model.learn_one({**good, "a": float(i)}, i % 2)
    before = pickle.dumps(models["raise"])
    with pytest.raises(DataError, match="feature '[ac]'"):
        models["raise"].learn_one(bad, 1)
    with pytest.raises(DataError, match="feature '[ac]'"):
        models["raise"].learn_many(pd.DataFrame([good, bad]), [0, 1])
    assert pickle.dumps(models["raise"]) == before
    models["skip"].learn_one(bad, 1)
    assert (models["skip"].n_skipped_, models["skip"].n_seen_) == (1, 30)
    models["skip"].learn_many(pd.DataFrame([good, bad]), [0, 1])
    assert (models["skip"].n_skipped_, models["skip"].n_seen_) == (2, 31)
    models["impute"].learn_one(bad, 1)
    assert (models["impute"].n_bad_, models["impute"].n_seen_) == (1, 31)
    for model in models.values():
        assert model.predict_one(good) in (0, 1)


def test_missing_is_no_bad_value_and_an_instance_may_be_empty():
    model = DriftMoEClassifier(seed=0, **SMALL)
    model.learn_one({}, "a")
    model.learn_one({}, "b")
    for x in ({"a": None}, {"a": float("nan")}, {"a": pd.NA}, {"a": 1.0}, {}):
        model.learn_one(x, "a")
        assert model.predict_one(x) == "a"
    with pytest.raises(DataError, match="x must be a dict"):
        model.learn_one([1, 2], "a")


def test_a_batch_may_begin_with_an_instance_without_any_feature():
    rows, labels = [{}, {"a": 1.0}, {"a": -1.0, "b": "x"}] * 20, [0, 1, 2] * 20
    one, many = DriftMoEClassifier(seed=0, **SMALL), DriftMoEClassifier(seed=0, **SMALL)
    for x, y in zip(rows, labels, strict=True):
        one.learn_one(x, y)
    many.learn_many(pd.DataFrame(rows), labels)
    assert same(one, many)
    assert many.predict_one({"a": 1.0}) == 1


def test_a_pickle_of_0_1_learns_on(mixed):
    frame, labels = mixed
    model = DriftMoEClassifier(seed=0, **SMALL)
    model.learn_many(frame[:600], labels[:600])
    state = copy.deepcopy(model.__getstate__())
    state["_encoder"] = state.pop("_features")
    for name in ("on_bad",):
        del vars(state["_encoder"])[name]
    state["_engine"].settings = state["_engine"].settings._replace(window=0.01, variant=False, learn_with=False)
    del state["_engine"].tree_config
    twin = DriftMoEClassifier.__new__(DriftMoEClassifier)
    twin.__setstate__(state)
    for learner in (model, twin):
        learner.learn_many(frame[600:], labels[600:])
    assert same(model, twin)


def test_arrays_keep_the_names_that_they_have_in_files_of_0_1(mixed):
    frame, labels = mixed
    model = DriftMoEClassifier(seed=0, **SMALL)
    model.learn_many(frame[:10], labels[:10])
    assert {"pool.trees.used", "mixture.rivals"} <= set(model.saved_tensors())


def test_features_come_and_go_in_bounded_memory():
    rng = np.random.default_rng(0)
    model = DriftMoEClassifier(seed=0, max_features=150, **SMALL)
    names = [f"f{i}" for i in range(10)]
    for i in range(600):
        x = {name: float(rng.normal()) for name in names}
        label = int(x["f0"] > 0)
        for name in rng.choice(names[1:], 3, replace=False):
            del x[name]
        if i > 300 and i % 3 == 0:
            x = {"f0": x["f0"]}
        if i == 500:
            x.update({f"new{j}": 1.0 for j in range(200)})
        model.learn_one(x, label)
    assert len(model.router_features_) == 150
    assert model.n_ignored_ == 60
    assert model.predict_one({"f0": 3.0}) == 1
    assert model.predict_one({"f0": -3.0}) == 0


def test_categories_beyond_the_cap_share_a_code():
    model = DriftMoEClassifier(seed=0, max_categories=5, **SMALL)
    for i in range(400):
        model.learn_one({"city": f"c{i % 40}"}, int(i % 40 == 0))
    assert model.predict_one({"city": "c0"}) == 1
    assert model.predict_one({"city": "c33"}) == 0
    assert model.predict_one({"city": "never seen"}) == 0
    assert model._engine.pool.state.trees.nominal.shape[2] <= 9


def test_too_many_labels_are_taken_for_numbers():
    with pytest.raises(DataError, match="DriftMoERegressor"):
        DriftMoEClassifier(seed=0).learn_many(pd.DataFrame({"a": np.arange(1500.0)}), np.arange(1500))


def test_predicting_changes_nothing_and_threads_agree(mixed):
    frame, labels = mixed
    model = DriftMoEClassifier(seed=1, **SMALL)
    model.learn_many(frame, labels)
    before = pickle.dumps(model)
    expected = model.predict_proba_many(frame[:50]).to_numpy()
    with ThreadPoolExecutor(8) as threads:
        for found in threads.map(lambda _: model.predict_proba_many(frame[:50]).to_numpy(), range(100)):
            assert np.array_equal(found, expected)
    assert pickle.dumps(model) == before


def test_it_works_in_rivers_pipelines_and_evaluation():
    model = preprocessing.StandardScaler() | DriftMoEClassifier(seed=1)
    assert isinstance(model, compose.Pipeline)
    assert evaluate.progressive_val_score(datasets.Phishing(), model, metrics.Accuracy()).get() > 0.87


def test_it_works_in_scikit_learns_pipelines_and_searches(mixed):
    frame, labels = mixed
    numbers = frame[["a", "c"]].to_numpy()
    pipeline = make_pipeline(StandardScaler(), DriftMoEClassifier(seed=0, **SMALL)).fit(numbers, labels == "high")
    assert pipeline.score(numbers, labels == "high") > 0.7
    search = GridSearchCV(DriftMoEClassifier(seed=0, **SMALL), {"bagging": [1.0, 6.0]}, cv=2)
    assert search.fit(numbers, labels).best_params_["bagging"] in (1.0, 6.0)


def test_partial_fit_refuses_what_it_was_not_told_of():
    X, y = np.random.default_rng(0).normal(size=(100, 3)), np.arange(100) % 2
    model = DriftMoEClassifier(seed=0, **SMALL).partial_fit(X, y, classes=[0, 1, 2])
    assert model.classes_.tolist() == [0, 1, 2]
    before = model.predict_proba(X)
    with pytest.raises(DataError, match=r"label 9, which is not among classes=\[0, 1, 2\]"):
        model.partial_fit(X, np.full(100, 9), classes=[0, 1, 2])
    with pytest.raises(ValueError, match="4 features"):
        model.partial_fit(np.zeros((2, 4)), [0, 1])
    assert np.array_equal(model.predict_proba(X), before)


def test_a_failed_fit_keeps_the_model(mixed):
    frame, labels = mixed
    model = DriftMoEClassifier(seed=0, **SMALL).fit(frame, labels)
    before = model.predict(frame)
    with pytest.raises(DataError, match="'abc'"):
        model.fit(frame.assign(a="abc").astype({"a": object}).assign(a=[1.0] * 1999 + ["abc"]), labels)
    assert (model.predict(frame) == before).all()


def test_any_river_classifier_can_be_the_expert(sea):
    rows, labels = sea
    compiled = DriftMoEClassifier.paper(n_experts=3, seed=0)
    flexible = DriftMoEClassifier.paper(n_experts=3, seed=0).set_params(
        expert=tree.HoeffdingTreeClassifier(grace_period=50, delta=1e-7, binary_split=True)
    )
    scores = []
    for model in (compiled, flexible):
        hits = 0
        for x, y in zip(rows[:600], labels, strict=False):
            hits += model.predict_one(x) == y
            model.learn_one(x, y)
        scores.append(hits / 600)
    assert abs(scores[0] - scores[1]) < 0.01, scores
    assert pickle.loads(pickle.dumps(flexible)).predict_one(rows[0]) == flexible.predict_one(rows[0])


def test_drift_is_noticed_and_answered():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(6000, 3))
    y = ((X[:, 0] > 0) ^ (np.arange(6000) >= 3000)).astype(int)
    rows = [dict(enumerate(row)) for row in X.tolist()]
    for drift in ("replace", "reset", None):
        model = DriftMoEClassifier(seed=0, drift=drift, blend=0.0, use_router=False, **SMALL)
        predictions, _ = model.test_then_train(rows, y.tolist())
        assert (np.array(predictions[3300:3800]) == y[3300:3800]).mean() > 0.9
        renewed = model.drift_events_[model.drift_events_["event"] == "renewed"]["instance"]
        assert (drift is None) == (len(renewed) == 0)
        if drift is not None:
            assert renewed.between(3000, 3400).any()


@pytest.mark.parametrize("name", ["paper data", pytest.param("paper task", marks=pytest.mark.slow)])
def test_the_papers_algorithm_reaches_the_released_codes_accuracy(name, elec):
    X, y = elec
    model = VARIANTS[name]()
    rows = [dict(enumerate(row)) for row in X.tolist()]
    predictions, _ = model.test_then_train(rows, y.tolist())
    accuracy = np.mean(np.array(predictions[1:]) == y[1:])
    expected = {"paper data": 0.812, "paper task": 0.674}[name]
    assert accuracy == pytest.approx(expected, abs=0.03)


def test_the_defaults_beat_leveraging_bagging_and_arf_on_electricity(elec):
    X, y = elec
    predictions, _ = DriftMoEClassifier(seed=0).test_then_train(
        [dict(enumerate(row)) for row in X.tolist()], y.tolist()
    )
    assert np.mean(np.array(predictions[1:]) == y[1:]) > 0.893  # LevBag(10) 89.3 %, ARF(10) 89.1 % of CapyMOA


def test_the_regressor_beats_the_mean_and_follows_drift():
    rng = np.random.default_rng(0)
    X = rng.uniform(-2, 2, (8000, 3))
    y = np.where(np.arange(8000) < 4000, np.sin(2 * X[:, 0]) * 3, -np.sin(2 * X[:, 0]) * 3) + rng.normal(0, 0.1, 8000)
    model = DriftMoERegressor(seed=0)
    predictions, _ = model.test_then_train([dict(enumerate(row)) for row in X.tolist()], y.tolist())
    errors = np.abs(np.array(predictions[1:], dtype=float) - y[1:])
    assert errors[3000:3999].mean() < 0.8
    assert errors[7000:].mean() < 0.9
    assert np.abs(y).mean() > 1.7
    assert len(model.drift_events_) > 0
    with pytest.raises(DataError, match="expected a finite number"):
        model.learn_one({0: 1.0}, "high")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "x"}, "variant must be one of data, task"),
        ({"n_experts": 0}, "n_experts must be a whole number of at least 1"),
        ({"bagging": -1}, "bagging must be a number of at least 0"),
        ({"bagging": 100}, "bagging must be at most 50"),
        ({"drift": "yes"}, "drift must be one of"),
        ({"router_hidden": (3,)}, "router_hidden must be two widths"),
        ({"router_hidden": 8}, "router_hidden must be two widths, got 8"),
        ({"n_experts": 10**8}, "n_experts must be at most 10,000, got 100000000"),
        ({"use_router": "no"}, "use_router must be True or False, got 'no'"),
        ({"router_dropout": 1.0}, "router_dropout must be below 1"),
        ({"temperature": 0}, "temperature must be above 0"),
        ({"seed": "a"}, "seed must be a whole number of at least 0, or None, got 'a'"),
        ({"seed": -1}, "seed must be a whole number of at least 0, or None, got -1"),
        ({"on_bad": "ignore"}, "on_bad must be one of"),
        ({"predict_with": "all"}, "predict_with must be one of"),
        ({"feature_share": 2.0}, "feature_share must be a number above 0 and at most 1"),
        ({"leaf_prediction": "best"}, "leaf_prediction must be one of"),
    ],
)
def test_impossible_arguments_are_named_at_the_first_instance(arguments, message):
    model = DriftMoEClassifier(**{"seed": 0, **arguments})
    with pytest.raises(ConfigError, match=message):
        model.learn_one({"a": 1.0}, 0)
    assert model.n_seen_ == 0


def test_copies_are_independent(sea):
    rows, labels = sea
    model = DriftMoEClassifier(seed=0, **SMALL)
    for x, y in zip(rows[:500], labels, strict=False):
        model.learn_one(x, y)
    twin = copy.deepcopy(model)
    before = model.predict_proba_one(rows[0])
    for x in rows[:200]:
        twin.learn_one(x, True)
    assert model.predict_proba_one(rows[0]) == before
    assert twin.predict_proba_one(rows[0]) != before
