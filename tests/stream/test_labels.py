"""Labels and arrays as scikit-learn's users give them: what comes back is of the type that was given."""

import datetime
import decimal
import enum
import math
import time

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
from sklearn.naive_bayes import GaussianNB

import moeapps
from moeapps.core.errors import ConfigError, DataError
from moeapps.stream import DriftMoEClassifier, DriftMoERegressor
from moeapps.stream.compiled.engine import tree_arrays
from moeapps.stream.run import StreamCheckpoint
from moeapps.stream.scores import ClassScores

SMALL = {"n_experts": 2, "seed": 0}
X = np.random.default_rng(0).normal(size=(60, 3))
BITS = (X[:, 0] > 0).astype(int)
Color = enum.Enum("Color", {"RED": "red"})
Word = enum.Enum("Word", {"RED": "red", "BLUE": "blue"}, type=str)

LABELS = {
    "object integers": BITS.astype(object), "Int64": pd.Series(BITS, dtype="Int64"), "int8": BITS.astype(np.int8),
    "uint64": BITS.astype(np.uint64) + np.uint64(2**63), "bool": BITS == 1,
    "boolean": pd.Series(BITS == 1, dtype="boolean"),
    "float": BITS * 1.0, "text": np.array(["no", "yes"])[BITS],
    "object text": np.array(["no", "yes"], dtype=object)[BITS],
    "category": pd.Series(np.array(["no", "yes"])[BITS], dtype="category"), "list": BITS.tolist(),
    "numbers as category": pd.Series(BITS + 5, dtype="category"), "list of numpy": list(np.array(["no", "yes"])[BITS]),
    "string": pd.Series(np.array(["no", "yes"])[BITS], dtype="string"), "19 digits": BITS + 1234567890123456789,
    "polars Enum": pl.Series(np.array(["no", "yes"])[BITS].tolist(), dtype=pl.Enum(["yes", "no"])),
    "polars": pl.Series(BITS), "arrow": pa.array(BITS.tolist()), "chunked": pa.chunked_array([BITS.tolist()]),
    "trailing nul": np.array(["a", "a\0"], dtype=object)[BITS],
}  # fmt: skip


def values_of(y) -> list:
    return y.to_pylist() if hasattr(y, "to_pylist") else list(y)


@pytest.mark.parametrize("y", LABELS.values(), ids=LABELS)
def test_predictions_are_labels_of_the_type_that_was_given(y, tmp_path):
    model = DriftMoEClassifier(**SMALL).fit(X, y)
    given = set(values_of(y))
    assert set(model.predict(X).tolist()) == given == set(model.classes_.tolist())
    assert {type(label) for label in model.predict(X).tolist()} <= {int, bool, float, str}
    assert all(
        type(a) is type(b)
        for a, b in zip(sorted(given), model.classes_.tolist(), strict=True)
        if type(a) in (int, str, bool)
    )
    assert np.mean([a == b for a, b in zip(model.predict(X), values_of(y), strict=True)]) > 0.8
    if isinstance(y, np.ndarray) and y.dtype.kind in "biuf":
        assert model.predict(X).dtype == y.dtype == GaussianNB().fit(X, y).predict(X).dtype
    model.save(tmp_path / "m.safetensors")
    twin = moeapps.load(tmp_path / "m.safetensors")
    assert twin.predict(X).dtype == model.predict(X).dtype
    assert twin.predict(X).tolist() == model.predict(X).tolist()
    one = DriftMoEClassifier(**SMALL)
    one.learn_many(pd.DataFrame(X), y)
    assert set(one.predict_many(pd.DataFrame(X))) == given
    assert DriftMoEClassifier(**SMALL).partial_fit(X, y, classes=y).classes_.tolist() == model.classes_.tolist()


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (np.int64(3), 3), (np.str_("a"), "a"), (np.bool_(True), True), (np.float32(0.1), float(np.float32(0.1))),
        (decimal.Decimal("7"), 7), (decimal.Decimal("7.5"), 7.5), (Word.RED, "red"), ((1, "a"), (1, "a")),
        (10**400, 10**400), (np.array(3), 3), ("\ud800", "\ud800"), ("", ""), ("NA", "NA"), (True, True),
    ],
    ids=lambda part: type(part).__name__,
)  # fmt: skip
def test_one_label_comes_back_as_pythons_own_and_is_saved(label, expected, tmp_path):
    model, scores = DriftMoEClassifier(**SMALL), ClassScores()
    model.learn_one({"a": 1.0}, label)
    model.learn_one({"a": 1.0}, label)
    scores.update(expected, model.predict_one({"a": 1.0}))
    StreamCheckpoint(model, {"scores": scores.state()}).save(tmp_path / "m.safetensors")
    checkpoint = moeapps.load(tmp_path / "m.safetensors")
    for twin in (model, checkpoint.model):
        found = twin.predict_one({"a": 1.0})
        assert (found, type(found)) == (expected, type(expected))
        assert twin.classes_.tolist() == [expected]
        frame = pd.DataFrame({"a": [1.0]})
        assert twin.predict_many(frame).tolist() == [expected]
        assert twin.predict_proba_many(frame).columns.tolist() == [expected]
    again = ClassScores()
    again.restore(checkpoint.run["scores"])
    assert (again.seen, again.as_dict()) == (scores.seen, scores.as_dict())


@pytest.mark.parametrize(
    "label",
    [
        None, pd.NA, math.nan, np.float32("nan"), pd.NaT, math.inf, b"x", [1], {"a": 1}, np.array([1]), 1j, Color.RED,
        datetime.date(2024, 1, 1), pd.Timestamp("2024"), 10**5000, (1, None), object(), decimal.Decimal("NaN"),
    ],
    ids=lambda label: type(label).__name__,
)  # fmt: skip
def test_a_label_that_could_not_be_saved_is_refused_when_it_comes(label):
    model = DriftMoEClassifier(**SMALL)
    with pytest.raises(DataError, match="y is"):
        model.learn_one({"a": 1.0}, label)
    assert model.n_seen_ == 0
    _, refused = model.test_then_train([{"a": 1.0}], [label])
    assert list(refused) == [0]


@pytest.mark.parametrize(
    "target", [None, pd.NA, math.nan, "5", 1j, 10**400, [1.0], math.inf, datetime.date(2024, 1, 1)]
)
def test_a_target_that_is_no_number_is_refused(target):
    with pytest.raises(DataError, match="expected a finite number"):
        DriftMoERegressor(**SMALL).learn_one({"a": 1.0}, target)


@pytest.mark.parametrize("target", [3, True, np.int8(3), np.float16(0.5), decimal.Decimal("0.5"), np.array(2.0)])
def test_a_target_may_be_any_number(target):
    model = DriftMoERegressor(**SMALL)
    model.learn_one({"a": 1.0}, target)
    assert model.predict_one({"a": 1.0}) == pytest.approx(float(target))


@pytest.mark.parametrize("y", [["a", 1], [True, "b"], [1, None], ["a", math.nan]], ids=str)
def test_mixed_and_missing_labels_are_refused(y):
    with pytest.raises(DataError, match="y is"):
        DriftMoEClassifier(**SMALL).fit(X[:2], y)


def test_more_than_one_target_per_row_is_refused_by_learn_many():
    with pytest.raises(DataError, match="one target per row"):
        DriftMoEClassifier(**SMALL).learn_many(pd.DataFrame(X[:2]), pd.DataFrame({"y": [0, 1]}))


@pytest.mark.parametrize("model", [DriftMoEClassifier(**SMALL), DriftMoERegressor(**SMALL)], ids=["class", "number"])
def test_sample_weight_and_sparse_matrices_are_refused_by_name(model):
    for method in (model.fit, model.partial_fit):
        with pytest.raises(ConfigError, match="does not support sample_weight"):
            method(X, BITS, sample_weight=np.ones(60))
        with pytest.raises(ConfigError, match="has no argument 'weights'"):
            method(X, BITS, weights=1)
        for matrix in (scipy.sparse.csr_matrix(X), scipy.sparse.coo_array(X)):
            with pytest.raises(TypeError, match=r"Sparse data .* dense data is required"):
                method(matrix, BITS)
    model.fit(X, BITS, sample_weight=None)


@pytest.mark.parametrize("kind", [DriftMoEClassifier, DriftMoERegressor])
def test_infinity_in_an_array_is_a_bad_value_as_in_a_frame(kind):
    bad = X.copy()
    bad[3, 1] = math.inf
    with pytest.raises(ValueError, match="infinity"):
        kind(**SMALL).fit(bad, BITS)
    imputed, skipped = kind(on_bad="impute", **SMALL).fit(bad, BITS), kind(on_bad="skip", **SMALL).fit(bad, BITS)
    assert (imputed.n_bad_, imputed.n_seen_) == (1, 60)
    assert (skipped.n_skipped_, skipped.n_seen_) == (1, 59)
    missing = np.where(np.isinf(bad), np.nan, bad)
    for model in (imputed, skipped):
        assert (model.predict(bad) == model.predict(missing)).all()
    frame = pd.DataFrame(bad)
    assert (kind(on_bad="impute", **SMALL).fit(frame, BITS).predict(frame) == imputed.predict(bad)).all()


@pytest.mark.filterwarnings("ignore:X .*feature names")
def test_a_frame_after_an_array_and_an_array_after_a_frame_are_matched_by_position(tmp_path):
    frame = pd.DataFrame(X, columns=["c", "a", "b"])
    by_array, by_frame = DriftMoEClassifier(**SMALL).fit(X, BITS), DriftMoEClassifier(**SMALL).fit(frame, BITS)
    by_frame.save(tmp_path / "m.safetensors")
    for model, other, same in (
        (by_array, frame, X),
        (by_frame, X, frame),
        (moeapps.load(tmp_path / "m.safetensors"), X, frame),
    ):
        assert (model.predict_proba(other) == model.predict_proba(same)).all()
        assert (model.predict(other) == BITS).mean() > 0.8
        model.partial_fit(other, BITS)
        assert len(model.router_features_) == 3
    numbered = DriftMoEClassifier(**SMALL).fit(pd.DataFrame(X, columns=[10, 20, 30]), BITS)
    assert (numbered.predict(X) == numbered.predict(pd.DataFrame(X, columns=[10, 20, 30]))).all()
    turned = pd.DataFrame(X, columns=[10, 20, 30])[[30, 10, 20]]
    assert (numbered.predict(turned) == numbered.predict(X)).all()


def test_columns_in_another_order_are_refused_by_predict_and_matched_by_name_by_predict_many():
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    model = DriftMoEClassifier(**SMALL).fit(frame, BITS)
    with pytest.raises(ValueError, match="same order"):
        model.predict(frame[["c", "b", "a"]])
    assert (model.predict_many(frame[["c", "b", "a"]]) == model.predict_many(frame)).all()


@pytest.mark.parametrize("kind", ["number", "text"])
def test_the_first_event_with_many_features_takes_linear_time(kind):
    seconds = {}
    for n in (250, 2500):
        x = {f"f{i}": float(i) if kind == "number" else f"v{i}" for i in range(n)}
        best = math.inf
        for _ in range(2):
            model = DriftMoEClassifier(max_features=n, **SMALL)
            start = time.process_time()
            model.learn_one(x, 0)
            model.predict_one(x)
            best = min(best, time.process_time() - start)
        seconds[n] = best
        assert len(model.router_features_) == n
    assert seconds[2500] < 40 * seconds[250]  # ten times as many; quadratic it was a hundred times as long


@pytest.mark.parametrize("kind", ["data", "task", "numbers", "several"])
def test_features_that_come_at_once_begin_as_those_that_come_one_by_one(kind):
    """The router's weights, the room, the trees: as if each feature had been added on its own, as in 0.1."""
    make = {
        "data": lambda: DriftMoEClassifier(experts=None, **SMALL),
        "task": lambda: DriftMoEClassifier("task", **SMALL),
        "numbers": lambda: DriftMoERegressor(experts=None, **SMALL),
        "several": lambda: DriftMoEClassifier(**SMALL),
    }[kind]
    at_once, one_by_one = (make()._start() for _ in range(2))
    kinds = [False, True, False, True, True, False, False]
    at_once.add_features(kinds)
    for nominal in kinds:
        one_by_one.add_features([nominal])
    assert at_once.n_features == one_by_one.n_features == 7
    if kind == "several":
        first, second = tree_arrays(at_once), tree_arrays(one_by_one)
        assert all(np.array_equal(first[name], second[name]) for name in first if name.startswith("mixture"))
    for name in ("parameters", "first", "second", "sizes") if kind != "several" else ():
        a, b = getattr(at_once.mixture.network, name), getattr(one_by_one.mixture.network, name)
        assert np.array_equal(a, b)
    for name in ("kind", "nominal", "numeric", "values", "sizes"):
        a, b = getattr(at_once.pool.state.trees, name), getattr(one_by_one.pool.state.trees, name)
        assert np.array_equal(a, b)
    assert np.array_equal(at_once.pool.state.rng, one_by_one.pool.state.rng)
