"""MoEClassifier and MoERegressor on real and awkward tables (cases K2-K11; K1 is tests/test_sklearn_contract.py)."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_predict, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import moeapps
from moeapps import MoEClassifier, MoERegressor
from moeapps.core.errors import ConfigError, DataError, FileFormatError
from tests.core.dense import ROUTERS
from tests.processes import Command

QUICK = {"num_experts": 3, "dim": 8, "num_blocks": 1, "max_epochs": 3, "accelerator": "cpu", "random_state": 0}
BOTH = pytest.mark.parametrize("kind", [MoEClassifier, MoERegressor])


def table(n: int = 60) -> tuple[pd.DataFrame, np.ndarray]:
    """Numbers and categories with holes; the target depends on both."""
    rng = np.random.default_rng(0)
    X = pd.DataFrame(
        {
            "age": rng.normal(40, 10, n),
            "city": rng.choice(["Ulm", "Bonn", "Kiel"], n),
            "score": rng.normal(size=n),
            "member": rng.random(n) < 0.5,
        }
    )
    y = ((X["city"] == "Ulm") ^ (X["score"] > 0)).astype(int).to_numpy()
    X.loc[::7, "age"] = np.nan
    X.loc[::11, "city"] = None
    return X, y


@pytest.fixture(scope="module")
def cancer():
    X, y = load_breast_cancer(return_X_y=True)
    return train_test_split(X, y, random_state=0, stratify=y)


def quick(kind, X, y, **arguments):
    return kind(**{**QUICK, **arguments}).fit(X, y)


@pytest.mark.slow
def test_accuracy_on_breast_cancer(cancer):
    X, X_test, y, y_test = cancer
    model = MoEClassifier(num_experts=4, dim=32, max_epochs=30, random_state=0).fit(X, y)
    assert model.score(X_test, y_test) > 0.94
    assert model.predict_proba(X_test).dtype == np.float64
    np.testing.assert_allclose(np.exp(model.predict_log_proba(X_test)), model.predict_proba(X_test), atol=1e-12)


@pytest.mark.slow
def test_regression_on_diabetes_beats_the_mean():
    X, y = load_diabetes(return_X_y=True)
    scores = []
    for seed in range(3):  # one split of 442 rows says little
        parts = train_test_split(X, y, random_state=seed)
        model = MoERegressor(num_experts=4, dim=32, random_state=seed).fit(parts[0], parts[2])
        scores.append(model.score(parts[1], parts[3]))
    assert np.mean(scores) > 0.2, scores


@pytest.mark.slow
def test_several_targets_at_once():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 3))
    Y = np.stack([X[:, 0] * 100, X[:, 1] - 5, X[:, 2] ** 2], axis=1)
    model = MoERegressor(num_experts=4, dim=32, max_epochs=40, lr=0.005, random_state=0).fit(X, Y)
    assert model.predict(X).shape == (300, 3)
    assert model.score(X, Y) > 0.8
    with pytest.raises(DataError, match="y has 2 targets, the model was fitted with 3"):
        model.partial_fit(X, Y[:, :2])


def test_categories_and_missing_values_are_learned_from():
    X, y = table(400)
    model = MoEClassifier(num_experts=4, dim=32, max_epochs=10, lr=0.02, random_state=0).fit(X, y)
    assert model.score(X, y) > 0.93
    assert list(model.feature_names_in_) == ["age", "city", "score", "member"]
    strange = X.head(3).assign(city="Rome", age=np.nan)
    assert np.isfinite(model.predict_proba(strange)).all()


@pytest.mark.parametrize("router", ROUTERS)
def test_every_router_trains_predicts_saves_and_loads(router, tmp_path):
    X, y = table()
    model = quick(MoEClassifier, X, y, router=router, num_blocks=2, share_router=router == "topk", num_experts=4)
    file = tmp_path / "model.safetensors"
    model.save(file)
    np.testing.assert_array_equal(moeapps.load(file).predict_proba(X), model.predict_proba(X))
    assert {c for c in model.history_ if c.endswith(("/balance", "/z", "/entropy", "/consistency"))} or router in (
        "hash", "smoe_dropout", "soft",
    )  # fmt: skip


def test_growing_k_reaches_all_experts_at_the_end_of_training():
    X, y = table()
    model = quick(MoEClassifier, X, y, router="smoe_dropout", num_experts=4)
    assert model.model_.blocks[0].router.top_k == 4


def test_thor_pays_for_its_consistency():
    X, y = table()
    assert "train/consistency" in quick(MoEClassifier, X, y, router="thor").history_
    silent = quick(MoEClassifier, X, y, router="thor", router_args={"consistency_weight": 0.0})
    assert "train/consistency" not in silent.history_


@pytest.mark.slow
def test_early_stopping_keeps_the_best_epoch():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(300, 10)), rng.integers(0, 2, 300)  # nothing to learn: validation soon gets worse
    model = MoEClassifier(
        num_experts=4, dim=32, max_epochs=60, lr=0.01, early_stopping=True, patience=4, random_state=0
    )
    model.fit(X, y)
    losses = model.history_["val/loss"]
    assert model.n_iter_ < 60
    assert model.n_iter_ == losses.argmin() + 1 + 4


@BOTH
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_holes_in_arrays_are_refused_with_their_place(kind, bad):
    with pytest.raises(ValueError, match="row 0, column 0"):
        kind(**QUICK).fit([[bad, 1.0], [2.0, 3.0]], [0, 1])
    model = quick(kind, np.arange(20.0).reshape(10, 2), np.arange(10) % 2)
    with pytest.raises(ValueError, match="row 1, column 1"):
        model.predict([[1.0, 1.0], [2.0, bad]])


def test_one_class_is_refused_by_name():
    with pytest.raises(ValueError, match="one class"):
        MoEClassifier(**QUICK).fit(np.random.rand(50, 2), np.zeros(50))  # noqa: NPY002


@pytest.mark.parametrize(
    "labels",
    [np.array(["no", "yes"]), np.array([False, True]), np.array([3, 7]), np.array(["a", "b"], dtype=object),
     np.array([2.0, 5.0], dtype=np.float32)],
    ids=["text", "bool", "int", "object", "float"],
)  # fmt: skip
def test_labels_keep_their_kind(labels, tmp_path):
    X, y = table()
    model = quick(MoEClassifier, X, labels[y])
    assert model.classes_.dtype == labels.dtype
    assert model.predict(X).dtype == labels.dtype
    model.save(tmp_path / "m.safetensors")
    assert moeapps.load(tmp_path / "m.safetensors").classes_.dtype == labels.dtype


@pytest.mark.parametrize("labels", [["a", None], [0.5, 1.25], [0, np.nan]])
def test_impossible_labels_are_refused(labels):
    X, y = table()
    with pytest.raises(ValueError, match="no label at row|Unknown label type|NaN"):
        MoEClassifier(**QUICK).fit(X, np.array(labels, dtype=object if None in labels else float)[y])


def test_a_new_label_in_partial_fit_changes_nothing():
    X, y = table()
    model = MoEClassifier(**QUICK).partial_fit(X, y)
    before = model.predict_proba(X)
    with pytest.raises(DataError, match="label 9, which is not among the classes"):
        model.partial_fit(X, np.where(y == 1, 9, 0))
    with pytest.raises(DataError, match="differ from those of the first call"):
        model.partial_fit(X, y, classes=[0, 1, 9])
    np.testing.assert_array_equal(model.predict_proba(X), before)


def test_partial_fit_learns_from_a_stream_of_batches():
    X, y = table(600)
    model = MoEClassifier(**{**QUICK, "dim": 32, "lr": 0.01})
    for _ in range(5):
        for start in range(0, 600, 100):
            rows = slice(start, start + 100)
            model.partial_fit(X.iloc[rows], y[rows], classes=[0, 1, 2])
    assert model.score(X, y) > 0.85
    assert model.n_iter_ == 30
    assert len(model.history_) == 30
    assert model.classes_.tolist() == [0, 1, 2]
    assert "_announced" not in vars(model)


def test_partial_fit_continues_the_optimiser():
    X, y = table()
    model = MoEClassifier(**QUICK).partial_fit(X, y)
    steps = [float(s["step"]) for s in model._optimizer_state["state"].values()]
    assert set(steps) == {1.0}
    model.partial_fit(X, y)
    assert {float(s["step"]) for s in model._optimizer_state["state"].values()} == {2.0}


def test_partial_fit_refuses_an_optimiser_state_of_another_network():
    X, y = table()
    model, other = (MoEClassifier(**{**QUICK, "dim": dim}).partial_fit(X, y) for dim in (8, 16))
    model._optimizer_state = other._optimizer_state
    with pytest.raises(FileFormatError, match=r"exp_avg of model\..* has the shape"):
        model.partial_fit(X, y)


def test_a_router_that_mixes_rows_is_refused_on_a_stream():
    X, y = table()
    with pytest.raises(ConfigError, match="expert_choice.*use fit"):
        MoEClassifier(router="expert_choice", **QUICK).partial_fit(X, y)


@BOTH
def test_columns_are_compared_by_name(kind):
    X, y = table()
    model = quick(kind, X, y)
    with pytest.raises(ValueError, match="same order"):
        model.predict(X[["city", "age", "score", "member"]])
    with pytest.raises(ValueError, match="city"):
        model.predict(X.drop(columns="city"))
    with pytest.raises(ValueError, match="extra"):
        model.predict(X.assign(extra=1))
    arrays = quick(kind, np.random.rand(20, 4), y[:20])  # noqa: NPY002
    with pytest.raises(ValueError, match="5 features, but .* is expecting 4"):
        arrays.predict(np.zeros((2, 5)))


@BOTH
@pytest.mark.parametrize(("rows", "columns"), [(2, 1), (3, 5), (2, 40)])
def test_fewer_rows_than_experts(kind, rows, columns):
    X = np.random.default_rng(0).normal(size=(rows, columns))
    model = quick(kind, X, np.arange(rows) % 2, num_experts=8)
    assert model.predict(X).shape == (rows,)


@BOTH
def test_one_row(kind):
    if kind is MoEClassifier:
        with pytest.raises(ValueError, match="class"):
            quick(kind, [[1.0, 2.0]], [1])
    else:
        assert quick(kind, [[1.0, 2.0]], [5.0]).predict([[1.0, 2.0]])[0] == pytest.approx(5.0, abs=1.5)


@BOTH
def test_a_failed_fit_keeps_the_model(kind):
    X, y = table()
    model = quick(kind, X, y)
    before = model.predict(X)
    attributes = set(vars(model))
    for bad in ({"X": X.assign(age=np.inf)}, {"y": y[:-1]}, {"sample_weight": -np.ones(len(y))}):
        with pytest.raises(ValueError, match=r"row 0|inconsistent|[Nn]egative"):
            model.fit(**{"X": X, "y": y, **bad})
    model.set_params(lr=-1.0)
    with pytest.raises(ConfigError, match="lr"):
        model.fit(X, y)
    np.testing.assert_array_equal(model.predict(X), before)
    assert set(vars(model)) == attributes


@pytest.mark.parametrize(  # processes of joblib take seconds to start; pickles are tested below
    ("kind", "n_jobs"), [(MoEClassifier, 1), pytest.param(MoERegressor, 2, marks=pytest.mark.slow)]
)
def test_search_pipeline_clone_and_cross_validation(kind, n_jobs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    X, y = load_wine(return_X_y=True)
    X, y = X[:80], y[:80]
    pipeline = make_pipeline(StandardScaler(), kind(**QUICK))
    search = GridSearchCV(pipeline, {f"{kind.__name__.lower()}__num_experts": [2, 3]}, n_jobs=n_jobs, cv=2)
    search.fit(X, y)
    assert search.predict(X).shape == (80,)
    assert cross_val_predict(kind(**QUICK), X, y, cv=2).shape == (80,)
    assert clone(kind(**QUICK)).get_params() == kind(**QUICK).get_params()
    assert not list(tmp_path.iterdir())


@BOTH
@pytest.mark.parametrize(
    ("weight", "message"),
    [(lambda n: -np.ones(n), "egative"), (lambda n: np.full(n, np.nan), "NaN"), (lambda n: np.ones(n - 1), "shape"),
     (lambda n: np.zeros(n), "zero")],
    ids=["negative", "nan", "length", "zero"],
)  # fmt: skip
def test_impossible_weights_are_refused(kind, weight, message):
    X, y = table()
    with pytest.raises(ValueError, match=message):
        kind(**QUICK).fit(X, y, sample_weight=weight(len(y)))


@BOTH
def test_a_weight_of_zero_equals_leaving_the_row_out(kind):
    X, y = table(300)
    weight = (np.arange(300) % 3 > 0).astype(float)
    left_out = kind(**QUICK).fit(X[weight > 0], y[weight > 0])
    weighted = kind(**QUICK).fit(X, y, sample_weight=weight)
    np.testing.assert_array_equal(weighted._outputs(X), left_out._outputs(X))  # bit-equal, mini-batches included


def test_an_integer_weight_equals_repeated_rows():
    X, y = table(40)
    times = np.arange(40) % 3 + 1
    weighted = MoEClassifier(**QUICK).fit(X, y, sample_weight=times)
    repeated = MoEClassifier(**QUICK).fit(X.loc[X.index.repeat(times)], np.repeat(y, times))
    np.testing.assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), rtol=1e-7)


@pytest.mark.slow
def test_class_weight_moves_the_decision():
    rng = np.random.default_rng(0)
    y = (rng.random(400) < 0.1).astype(int)
    X = rng.normal(size=(400, 2)) + y[:, None]
    plain = quick(MoEClassifier, X, y, max_epochs=15, lr=0.01)
    balanced = quick(MoEClassifier, X, y, max_epochs=15, lr=0.01, class_weight="balanced")
    assert balanced.predict(X).mean() > plain.predict(X).mean() + 0.1
    with pytest.raises(ValueError, match="class_weight"):
        quick(MoEClassifier, X, y, class_weight="even")


@pytest.mark.parametrize("kind", [MoEClassifier, pytest.param(MoERegressor, marks=pytest.mark.slow)])
def test_saved_models_predict_the_same_in_another_process(kind, tmp_path):
    X, y = table()
    model = quick(kind, X, y)
    model.save(tmp_path / "model.safetensors")
    X.to_pickle(tmp_path / "X.pkl")
    np.save(tmp_path / "expected.npy", model.predict(X) if kind is MoERegressor else model.predict_proba(X))
    method = "predict" if kind is MoERegressor else "predict_proba"
    code = (
        "import sys, numpy, pandas, moeapps; folder = sys.argv[1];"
        f"got = moeapps.load(folder + '/model.safetensors').{method}(pandas.read_pickle(folder + '/X.pkl'));"
        "assert (got == numpy.load(folder + '/expected.npy')).all()"
    )
    process = Command([tmp_path], code=code)
    _, error = process.communicate(120)
    assert process.returncode == 0, error


@BOTH
def test_copies_and_pickles_predict_the_same(kind):
    X, y = table()
    model = quick(kind, X, y)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(twin.predict(X), model.predict(X))
    with pytest.raises(NotFittedError):
        kind().predict(X)


def test_expert_load_by_class_is_a_share_and_drawn_as_a_heat_map(tmp_path):
    X, y = load_wine(return_X_y=True)
    model = quick(MoEClassifier, X, y, num_experts=4, max_epochs=10, lr=0.01)
    load = model.expert_load(X, groups=y)
    assert load.shape == (3, 4)
    np.testing.assert_allclose(load.sum(axis=1), 1.0)
    figure = model.plot_expert_load(X, groups=y)
    figure.savefig(tmp_path / "load.png")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"router": "topq"}, "did you mean 'topk'|did you mean 'topp'"),
        ({"router_args": {"noise": 1}}, "has no argument 'noise'"),
        ({"num_experts": 0}, "num_experts"),
        ({"top_k": 9}, "top_k must be between 1 and num_experts=3, got 9"),
        ({"dropout": 1.0}, "dropout must be below 1"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_epochs": 0}, "max_epochs"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
        ({"dtype": "float16"}, "dtype must be one of"),
        ({"early_stopping": "maybe"}, "early_stopping must be one of"),
        ({"lr": 0}, "lr must be above 0"),
    ],
)
def test_impossible_arguments_are_refused_by_name(arguments, message):
    X, y = table()
    with pytest.raises(ConfigError, match=message):
        quick(MoEClassifier, X, y, **arguments)
