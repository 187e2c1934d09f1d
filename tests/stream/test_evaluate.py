"""Prequential evaluation, its scores and its picture; the synthetic streams."""

import json
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch
from river import dummy, linear_model, tree
from sklearn.metrics import cohen_kappa_score

from moeapps.core.errors import ConfigError, DataError
from moeapps.stream import (
    DriftMoEClassifier,
    DriftMoERegressor,
    LateLabels,
    electricity,
    plot_prequential,
    prequential,
    synthetic_stream,
)
from moeapps.stream.compiled.kinds import KINDS
from moeapps.stream.scores import ClassScores, NumberScores


def test_scores_are_those_of_their_definitions():
    rng = np.random.default_rng(0)
    truth = rng.choice(3, 500, p=[0.6, 0.3, 0.1])
    predictions = np.where(rng.random(500) < 0.7, truth, rng.choice(3, 500))
    scores = ClassScores(window=100)
    majority, repeat = dummy.PriorClassifier(), dummy.NoChangeClassifier()
    better = [0, 0]
    for y, prediction in zip(truth.tolist(), predictions.tolist(), strict=True):
        scores.update(y, prediction)
        for place, rival in enumerate((majority, repeat)):
            better[place] += rival.predict_one({}) == y
            rival.learn_one({}, y)
    found = scores.as_dict()
    accuracy = (truth == predictions).mean()
    assert found["accuracy"] == pytest.approx(accuracy)
    assert found["kappa"] == pytest.approx(cohen_kappa_score(truth, predictions))
    assert found["kappa_m"] == pytest.approx((accuracy - better[0] / 500) / (1 - better[0] / 500), abs=0.01)
    assert found["kappa_t"] == pytest.approx((accuracy - better[1] / 500) / (1 - better[1] / 500))
    assert scores.windowed == pytest.approx((truth == predictions)[-100:].mean())
    again = ClassScores(window=100)
    again.restore(json.loads(json.dumps(scores.state())))
    assert again.as_dict() == found


def test_number_scores():
    scores = NumberScores(window=2)
    for truth, predictions in ((1.0, 1.5), (2.0, 2.0), (4.0, None), (3.0, 1.0)):
        scores.update(truth, predictions)
    assert scores.as_dict() == pytest.approx({"mae": 2.5 / 3, "rmse": np.sqrt(4.25 / 3), "r2": 1 - 4.25 / 2})
    assert scores.windowed == 1.0


def test_any_model_is_evaluated_and_windows_have_rows(sea):
    rows, labels = sea
    found = prequential(tree.HoeffdingTreeClassifier(), zip(rows, labels, strict=True), n=2500, window=500)
    assert found.n == 2500
    assert found.curve["instance"].tolist() == [500, 1000, 1500, 2000, 2500]
    assert not any(name.startswith("expert") for name in found.curve)
    ours = prequential(DriftMoEClassifier(seed=0), (pd.DataFrame(rows), labels), window=1000)
    assert ours.scores["accuracy"] > 0.85
    assert np.allclose(ours.curve.filter(like="expert").sum(axis=1), 1)
    assert [*ours.curve][5:] == [f"expert {kind} {i}" for kind, n in KINDS.items() for i in range(n or 12)]
    trees = prequential(DriftMoEClassifier(experts=None, n_experts=3, seed=0), (pd.DataFrame(rows), labels), n=1000)
    assert [*trees.curve][5:] == ["expert 0", "expert 1", "expert 2"]
    assert (ours.curve["bytes"] > 0).all()
    assert ours.instances_per_second > 0


def test_the_result_is_that_of_predict_one_and_learn_one(sea):
    rows, labels = sea
    model, hits = DriftMoEClassifier(seed=4), 0
    for x, y in zip(rows[:1500], labels, strict=False):
        hits += model.predict_one(x) == y
        model.learn_one(x, y)
    found = prequential(DriftMoEClassifier(seed=4), zip(rows, labels, strict=True), n=1500)
    assert found.scores["accuracy"] == hits / 1500


def test_with_a_delay_a_label_is_learned_that_much_later(sea):
    rows, labels = sea
    seen = []

    class Spy:
        def predict_one(self, x):
            return len(seen)

        def learn_one(self, x, y):
            seen.append((x, y))

    prequential(Spy(), zip(rows, labels, strict=True), n=100, delay=30)
    assert seen == list(zip(rows[:70], labels[:70], strict=True))
    late = prequential(DriftMoEClassifier(seed=0), zip(rows, labels, strict=True), delay=500).scores["accuracy"]
    prompt = prequential(DriftMoEClassifier(seed=0), zip(rows, labels, strict=True)).scores["accuracy"]
    assert 0.7 < late < prompt - 0.05  # nothing is known for the first 500


def test_numbers_have_errors():
    rng = np.random.default_rng(0)
    rows = [{"a": value} for value in rng.normal(size=1200).tolist()]
    stream = [(x, 3 * x["a"]) for x in rows]
    for model in (DriftMoERegressor(seed=0), linear_model.LinearRegression()):
        found = prequential(model, stream, window=400)
        assert found.scores["mae"] < 1.5
        assert len(found.curve) == 3


def test_the_picture_has_curves_experts_and_drifts(sea, tmp_path):
    rows, labels = sea
    results = {
        "one tree": prequential(tree.HoeffdingTreeClassifier(), zip(rows, labels, strict=True), n=3000, window=300),
        "DriftMoE": prequential(DriftMoEClassifier(seed=0), zip(rows, labels, strict=True), n=3000, window=300),
    }
    figure = plot_prequential(results, drifts=(1250,), title="SEA")
    assert len(figure.axes) == 2
    assert len(figure.axes[1].collections) == 21  # experts of all kinds, each kind in a color of its own
    assert len({tuple(area.get_facecolor()[0]) for area in figure.axes[1].collections}) == 5
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[-5:] == ["tree", "bayes", "neighbours", "linear", "network"]
    figure.savefig(tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("name", "features", "classes"), [("led_abrupt", 24, 10), ("sea_gradual", 3, 2), ("rbf_fast", 10, 5)]
)
def test_synthetic_streams_are_the_papers_and_repeat_themselves(name, features, classes):
    stream = synthetic_stream(name, 1500, seed=2)
    X, y = stream.arrays()
    again, labels = stream.arrays()
    assert X.shape == (1500, features)
    assert len(np.unique(y)) == classes == stream.n_classes
    assert np.array_equal(X, again)
    assert np.array_equal(y, labels)
    assert stream.drifts == {"l": (375, 750, 1125), "s": (338, 712, 1088), "r": ()}[name[0]]
    other, _ = synthetic_stream(name, 1500, seed=3).arrays()
    assert not np.array_equal(X, other)


def test_an_abrupt_drift_is_where_it_should_be():
    stream = synthetic_stream("sea_abrupt", 8000, seed=0)
    X, y = stream.arrays()
    thresholds = (8.0, 9.0, 9.5, 8.0)  # of functions 1, 2, 4, 1
    parts = np.split(np.arange(8000), stream.drifts)
    for part, threshold in zip(parts, thresholds, strict=True):
        part = part[5:-5]
        agreement = [((X[part, 0] + X[part, 1] <= t) == ~y[part].astype(bool)).mean() for t in (7.0, 8.0, 9.0, 9.5)]
        flipped = [1 - value for value in agreement]
        best = max(agreement + flipped)
        assert best > 0.87
        assert best in (
            agreement[(7.0, 8.0, 9.0, 9.5).index(threshold)],
            flipped[(7.0, 8.0, 9.0, 9.5).index(threshold)],
        )


def test_impossible_arguments_are_named():
    with pytest.raises(ConfigError, match="name must be one of led_abrupt"):
        synthetic_stream("nope")
    with pytest.raises(ConfigError, match="n must be a whole number"):
        synthetic_stream("sea_abrupt", n=0)
    with pytest.raises(ConfigError, match="delay must be a whole number"):
        prequential(DriftMoEClassifier(), [], delay=-1)
    with pytest.raises(ConfigError, match="seed must be a whole number of at least 0, got -1"):
        synthetic_stream("sea_abrupt", seed=-1)


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (5, "got int"),
        (pd.DataFrame({"a": [1]}), "got DataFrame"),
        ((pd.DataFrame({"a": [1, 2]}), [0]), "got 2 rows and 1 targets"),
        ((pd.DataFrame({"a": [1, 2]}), 7), "got 2 rows and 7"),
        ([({"a": 1}, 0), ({"a": 1}, 0, 1.0)], r"its instance 1 is \(\{'a': 1\}, 0, 1.0\)"),
    ],
)
def test_what_is_no_stream_is_refused(stream, message):
    expected = "a stream is pairs of features and target, or a DataFrame and as many targets; "
    with pytest.raises(DataError, match=expected + message):
        prequential(DriftMoEClassifier(seed=0), stream)
    with pytest.raises(DataError, match=expected + message):
        prequential(DriftMoEClassifier(seed=0), LateLabels(stream, delay=3))


def test_electricity_is_read_from_a_folder_and_its_absence_named(data_folder, tmp_path):
    frame, up = electricity(data_folder / "stream")
    assert frame.shape == (45312, 8)
    assert up.mean() == pytest.approx(0.4245, abs=0.001)  # as in river's copy
    with pytest.raises(DataError, match="elec2_data.dat does not exist"):
        electricity(tmp_path)
    (tmp_path / "elec2_data.dat").write_text("1 2 3\n")
    (tmp_path / "elec2_label.dat").write_text("1\n")
    with pytest.raises(DataError, match=r"shape \(1, 3\)"):
        electricity(tmp_path)


def test_the_progress_bar_knows_how_many_instances_come(sea, capsys):
    rows, labels = sea[0][:300], sea[1][:300]
    pairs, frame = list(zip(rows, labels, strict=True)), (pd.DataFrame(rows), labels)
    for stream, total in (
        (pairs, "300/300"),
        (frame, "300/300"),
        (LateLabels(frame, 5), "300/300"),
        (iter(pairs), "300/?"),
    ):
        prequential(DriftMoEClassifier(experts={"linear": 1}, seed=0), stream, window=100, progress=True)
        assert total in capsys.readouterr().out
    prequential(DriftMoEClassifier(experts={"linear": 1}, seed=0), pairs, n=100, progress=True)
    assert "100/100" in capsys.readouterr().out


NUMBERS = np.random.default_rng(0).normal(size=300).tolist()
LABELED = [({"a": number}, int(number > 0)) for number in NUMBERS]
FEW = {"seed": 0, "n_experts": 2}


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA])
def test_instances_that_are_skipped_have_no_part_in_the_scores(missing):
    spoiled = [
        ({"a": "text"}, y) if i % 5 == 3 else (x, missing if i % 3 == 2 else y) for i, (x, y) in enumerate(LABELED)
    ]
    good = [pair for i, pair in enumerate(LABELED) if i % 5 != 3 and i % 3 != 2]
    model = DriftMoEClassifier(on_bad="skip", **FEW)
    found = prequential(model, spoiled, window=50)
    expected = prequential(DriftMoEClassifier(**FEW), good, window=50)
    assert (found.scores, found.n, model.n_skipped_) == (expected.scores, len(good), 300 - len(good))
    pd.testing.assert_series_equal(found.curve["windowed"], expected.curve["windowed"])
    numbers = prequential(DriftMoERegressor(on_bad="skip", **FEW), spoiled)
    assert numbers.scores == prequential(DriftMoERegressor(**FEW), good).scores


def test_instances_that_are_skipped_have_no_part_in_the_scores_of_a_delay():
    spoiled = [(x, None if i % 3 == 2 else y) for i, (x, y) in enumerate(LABELED)]
    found = prequential(DriftMoEClassifier(on_bad="skip", **FEW), spoiled, delay=6)
    good = [pair for i, pair in enumerate(LABELED) if i % 3 != 2]  # of 6 instances, 4 are learned
    expected = prequential(DriftMoEClassifier(**FEW), good, delay=4)
    assert found.n == expected.n == 200
    assert found.scores["accuracy"] == pytest.approx(expected.scores["accuracy"], abs=0.02)


@pytest.mark.parametrize("delay", [0, 10])
@pytest.mark.parametrize("kind", [DriftMoEClassifier, DriftMoERegressor])
def test_a_missing_target_is_refused_wherever_it_stands(kind, delay):
    with pytest.raises(DataError, match="y is None"):
        prequential(kind(**FEW), [*LABELED, ({"a": 1.0}, None)], delay=delay)


KINDS_OF_LABELS = {
    "array": np.array, "tensor": torch.tensor, "Decimal": Decimal, "bool": bool, "float": float, "int8": np.int8,
    "float16": np.float16,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS_OF_LABELS)
def test_labels_of_any_type_are_scored_alike(kind):
    expected = prequential(DriftMoEClassifier(**FEW), LABELED).scores
    of_kind = [(x, KINDS_OF_LABELS[kind](y)) for x, y in LABELED]
    assert prequential(DriftMoEClassifier(**FEW), of_kind).scores == expected


def test_a_decimal_label_that_is_not_whole_is_the_one_that_was_learned():
    tenths = [(x, Decimal("0.1") if y else Decimal("0.7")) for x, y in LABELED]
    expected = prequential(DriftMoEClassifier(**FEW), LABELED).scores
    assert prequential(DriftMoEClassifier(**FEW), tenths).scores == expected


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.int16, np.array, torch.tensor, Decimal])
def test_sums_over_targets_are_those_of_floats(kind):
    values = [round(300 + 200 * number) for number in NUMBERS]
    scores, expected = NumberScores(), NumberScores()
    for value in values:
        scores.update(kind(value), 250.0)
        expected.update(float(value), 250.0)
    assert scores.as_dict() == expected.as_dict()
    assert all(type(value) is float for value in scores.state().values() if not isinstance(value, int | list))
