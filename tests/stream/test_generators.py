"""Streams whose concepts return, noise in labels, and labels that arrive late."""

import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from river.datasets import synth

from moeapps.core.errors import ConfigError, DataError
from moeapps.stream import (
    DriftMoEClassifier,
    LateLabels,
    LinesSource,
    StreamRun,
    prequential,
    recurring_stream,
    synthetic_stream,
    with_label_noise,
)


@pytest.mark.parametrize(("name", "features", "classes"), [("sea", 3, 2), ("rbf", 10, 5), ("agrawal", 9, 2)])
def test_a_recurring_stream_repeats_itself_and_has_its_concepts_in_turns(name, features, classes):
    stream = recurring_stream(name, 3500, every=500, concepts=3, seed=2)
    X, y = stream.arrays()
    assert X.shape == (3500, features)
    assert len(np.unique(y)) == classes == stream.n_classes
    assert stream.drifts == (500, 1000, 1500, 2000, 2500, 3000)
    assert stream.concepts == (0, 1, 2, 0, 1, 2, 0)
    again, labels = stream.arrays()
    assert np.array_equal(X, again)
    assert np.array_equal(y, labels)
    assert not np.array_equal(X, recurring_stream(name, 3500, every=500, seed=3).arrays()[0])


def test_a_concept_that_returns_is_the_same_concept_and_a_new_sample():
    stream = recurring_stream("sea", 8000, every=2000, concepts=2, seed=0)
    X, y = stream.arrays()
    total = X[:, 0] + X[:, 1]
    for visit, threshold in enumerate((7.0, 9.5, 7.0, 9.5)):
        part = slice(2000 * visit, 2000 * (visit + 1))
        agreement = {t: max(m := ((total[part] > t) == y[part]).mean(), 1 - m) for t in (7.0, 8.0, 9.0, 9.5)}
        assert max(agreement, key=agreement.__getitem__) == threshold
        assert agreement[threshold] == pytest.approx(0.9, abs=0.02)  # 10 % noise
    assert not np.array_equal(X[:2000], X[4000:6000])
    # it goes on where the generator stopped
    concept = [list(x.values()) for x, _ in synth.SEA(variant=2, noise=0.1, seed=0).take(4000)]
    assert np.array_equal(np.concatenate([X[:2000], X[4000:6000]]), concept)


def test_a_wide_drift_mixes_both_concepts_around_its_position():
    X, _ = recurring_stream("rbf", 4000, every=1000, concepts=2, width=800, seed=1).arrays()
    first, second = ({tuple(row) for row in part} for part in _visits(1000, 800))
    whose = np.array([0 if tuple(row) in first else 1 if tuple(row) in second else -1 for row in X])
    assert (whose >= 0).all()
    share = [whose[i : i + 100].mean() for i in (0, 950, 1900, 2000, 2900)]
    assert share[0] < 0.05
    assert 0.3 < share[1] < 0.7
    assert 0.2 < share[2] < 0.8
    assert 0.2 < share[3] < 0.8


def _visits(every, width):
    """The samples of both concepts of RBF, seed 1."""
    for i in range(2):
        source = synth.RandomRBF(seed_model=1000 + i, seed_sample=2 + i, n_classes=5, n_features=10, n_centroids=50)
        yield [list(x.values()) for x, _ in source.take(4 * every)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "led"}, "name must be one of sea, rbf, agrawal"),
        ({"concepts": 1}, "concepts must be between 2 and 4 for 'sea', got 1"),
        ({"concepts": 5}, "concepts must be between 2 and 4"),
        ({"every": 0}, "every must be a whole number of at least 1"),
        ({"width": 10_001}, "width must be a whole number between 0 and every=10000, got 10001"),
        ({"seed": "x"}, "seed must be a whole number of at least 0, got 'x'"),
    ],
)
def test_impossible_recurring_streams_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        recurring_stream(**{"name": "sea", **arguments})


def test_noise_changes_the_share_of_labels_that_was_asked_for_and_nothing_else():
    clean = recurring_stream("rbf", 4000, every=1000, seed=1)
    noisy = with_label_noise(clean, 0.25, seed=3)
    pairs = list(zip(clean, noisy, strict=True))
    assert all(x == other for (x, _), (other, _) in pairs)
    changed = [(y, other) for (_, y), (_, other) in pairs if y != other]
    assert len(changed) / 4000 == pytest.approx(0.25, abs=0.03)
    wrong = Counter(other for _, other in changed)
    assert set(wrong) == set(range(5))
    assert [y for _, (_, y) in pairs] == [y for _, y in noisy]  # the same each time
    assert (noisy.n, noisy.drifts, noisy.concepts) == (clean.n, clean.drifts, clean.concepts)
    assert all(type(y) is bool for _, y in with_label_noise(synthetic_stream("sea_abrupt", 50), 0.5)) is (
        type(next(iter(synthetic_stream("sea_abrupt", 1)))[1]) is bool
    )


def test_noise_in_frames_and_in_pairs():
    frame, labels = pd.DataFrame({"a": range(500)}), pd.Series(["no", "yes"] * 250, name="paid", index=range(5, 505))
    same, noisy = with_label_noise((frame, labels), 0.3, seed=1)
    assert same is frame
    assert noisy.name == "paid"
    assert noisy.index.equals(labels.index)
    assert 100 < (noisy != labels).sum() < 200
    assert labels.tolist() == ["no", "yes"] * 250
    pairs = [({"a": 1}, "no")] * 100
    assert {y for _, y in with_label_noise(pairs, 0.9, labels=["no", "yes", "late"])} == {"no", "yes", "late"}
    assert [y for _, y in with_label_noise(pairs, 0.0, labels=["no", "yes"])] == ["no"] * 100


def test_impossible_noise_is_refused():
    stream = synthetic_stream("sea_abrupt", 10)
    with pytest.raises(ConfigError, match="share must be below 1, got 1"):
        with_label_noise(stream, 1)
    with pytest.raises(ConfigError, match="seed must be a whole number of at least 0, got None"):
        with_label_noise(stream, 0.1, seed=None)
    with pytest.raises(ConfigError, match="labels must be given"):
        with_label_noise([({}, 1)], 0.1)
    with pytest.raises(ConfigError, match="at least two different ones"):
        with_label_noise([({}, 1)], 0.1, labels=[1])
    with pytest.raises(DataError, match=r"y is 2, expected one of labels=\[0, 1\]"):
        list(with_label_noise([({}, 2)], 0.1, labels=[0, 1]))


def test_every_label_arrives_after_its_delay():
    pairs = [({"a": i}, i % 3) for i in range(300)]
    now, delays, answers = -1, {}, {}
    for key, x, y in LateLabels(pairs, (5, 40), never=0.2, seed=1):
        if x is not None:
            now += 1
            assert (key, x) == (now, pairs[now][0])
        else:
            delays[key], answers[key] = now - key, y
    assert all(answers[key] == pairs[key][1] for key in answers)
    assert len(answers) / 300 == pytest.approx(0.8, abs=0.08)
    inside = [late for key, late in delays.items() if key < 260]  # the last ones come when the stream is at its end
    assert min(inside) == 5
    assert max(inside) == 40
    assert len(set(inside)) > 30


def test_a_constant_delay_is_that_of_prequential(sea):
    rows, labels = sea
    pairs = list(zip(rows[:1500], labels, strict=False))
    model, other = DriftMoEClassifier(seed=0), DriftMoEClassifier(seed=0)
    late = prequential(model, LateLabels(pairs, 200), window=500)
    fixed = prequential(other, pairs, window=500, delay=200)
    assert late.n == 1500
    assert late.scores == fixed.scores
    assert len(late.curve) == 3
    # at the end LateLabels delivers what is still out
    assert (model.n_seen_, other.n_seen_) == (1500, 1300)
    assert prequential(DriftMoEClassifier(seed=0), LateLabels(pairs, 50, never=0.5), n=1000).n < 600


def test_a_frame_and_its_labels_are_a_stream_with_late_labels(sea):
    frame, labels = pd.DataFrame(sea[0][:300]), pd.Series(sea[1][:300])
    pairs = list(zip(frame.to_dict("records"), labels.tolist(), strict=True))
    assert list(LateLabels((frame, labels), (3, 9), seed=1)) == list(LateLabels(pairs, (3, 9), seed=1))
    late = prequential(DriftMoEClassifier(seed=0), LateLabels(with_label_noise((frame, labels), 0.1), 20))
    assert late.n == 300


def test_late_labels_are_events_of_a_stream_run(sea, tmp_path):
    rows, labels = sea
    pairs = list(zip(rows[:600], labels, strict=False))
    late = LateLabels(pairs, (10, 90), never=0.1, seed=4)
    file = tmp_path / "late.ndjson"
    file.write_text("".join(json.dumps({str(k): v for k, v in record.items()}) + "\n" for record in late.records()))
    run = StreamRun(DriftMoEClassifier(seed=0), LinesSource(file), "target", id_field="id")
    run.run()
    expected = prequential(DriftMoEClassifier(seed=0), late)
    assert run.counts.learned == expected.n == sum(x is None for _, x, _ in late)
    assert run.counts.rejected == 0
    assert run.scores.as_dict() == expected.scores


def test_impossible_delays_are_refused():
    for delay in (-1, (5, 3), (1.5, 2), True, 1.5, "5", None, (1, 2, 3)):
        with pytest.raises(ConfigError, match="delay must be a whole number"):
            LateLabels([], delay)
    with pytest.raises(ConfigError, match="never must be below 1"):
        LateLabels([], 3, never=1)
    with pytest.raises(ConfigError, match="id='a' is the name of a feature"):
        list(LateLabels([({"a": 1}, 0)], 0).records(id="a"))
    with pytest.raises(ConfigError, match="delay must be 0 for a stream of LateLabels"):
        prequential(DriftMoEClassifier(), LateLabels([], 3), delay=2)
