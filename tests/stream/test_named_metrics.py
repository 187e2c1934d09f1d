"""river's metrics by name: their values, windows and states."""

import json

import numpy as np
import pytest
from river import metrics
from sklearn.metrics import f1_score

from moeapps.core.errors import ConfigError
from moeapps.stream.named_metrics import CLASS_METRICS, NUMBER_METRICS, NamedMetrics

BINARY = {"F1", "Jaccard", "LogLoss", "MCC", "Precision", "ROCAUC", "Recall"}


def instances(n: int, numbers: bool) -> list[tuple]:
    rng = np.random.default_rng(0)
    if numbers:
        return [(float(y), float(y + rng.random()), None) for y in rng.random(n)]
    found = []
    for _ in range(n):
        shares = dict(zip(("up", "down", "flat"), rng.dirichlet([1, 1, 1]).tolist(), strict=True))
        found.append((str(rng.choice(["up", "down", "flat"])), max(shares, key=shares.__getitem__), shares))
    return found


def of_river(name: str, rows: list[tuple]) -> float:
    metric = getattr(metrics, name)()
    for truth, prediction, shares in rows:
        if shares is not None and not metric.requires_labels:
            prediction = shares["up"] if name in BINARY else shares
        elif name in BINARY:
            prediction = prediction == "up"
        metric.update(truth == "up" if name in BINARY else truth, prediction)
    return metric.get()


@pytest.mark.parametrize("name", [*CLASS_METRICS, *NUMBER_METRICS])
def test_a_metric_is_rivers_and_its_state_goes_through_json(name):
    rows = instances(60, name in NUMBER_METRICS)
    asked = f"{name}=up" if name in BINARY else name
    found, again = (NamedMetrics([asked], 20, name in NUMBER_METRICS) for _ in range(2))
    for row in rows[:30]:
        found.update(*row)
    again.restore(json.loads(json.dumps(found.state())))
    for row in rows[30:]:
        found.update(*row)
        again.update(*row)
    assert found.as_dict()[asked] == pytest.approx(of_river(name, rows))
    assert found.windowed()[asked] == pytest.approx(of_river(name, rows[-20:]))
    assert (again.as_dict(), again.windowed()) == (found.as_dict(), found.windowed())


@pytest.mark.parametrize(
    ("names", "numbers", "message"),
    [
        (["Acuracy"], False, "unknown; did you mean 'Accuracy'"),
        (["rocauc"], False, "did you mean 'ROCAUC'"),
        (["MAE"], False, "--metric MAE: a classifier has Accuracy"),
        (["F1"], True, "--metric F1: a regressor has MAE"),
        (["Accuracy=up"], False, "Accuracy has no positive label"),
        (["F1", "F1"], False, "given twice"),
    ],
)
def test_a_metric_that_cannot_be_is_refused_with_what_would_work(names, numbers, message):
    with pytest.raises(ConfigError, match=message):
        NamedMetrics(names, 10, numbers)


def test_without_a_name_1_and_true_are_positive_and_no_prediction_is_ignored():
    found = NamedMetrics(["Precision"], 10)
    for truth, prediction in [(1, 1), (0, 1), (1, None), (True, True)]:
        found.update(truth, prediction)
    assert found.as_dict()["Precision"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(("kind", "named"), [(float, "1"), (int, "1.0"), (bool, "true"), (bool, "True"), (str, "1")])
def test_the_positive_label_is_found_whatever_the_type_of_the_labels(kind, named):
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 2, 200), rng.integers(0, 2, 200)
    share = rng.random(200)
    found = NamedMetrics([f"F1={named}", f"ROCAUC={named}"], window=50)
    expected = NamedMetrics(["F1", "ROCAUC"], window=50)
    for y, p, s in zip(truth.tolist(), predicted.tolist(), share.tolist(), strict=True):
        found.update(kind(y), kind(p), {kind(0): 1 - s, kind(1): s})
        expected.update(y, p, {0: 1 - s, 1: s})
    assert list(found.as_dict().values()) == list(expected.as_dict().values())
    assert found.as_dict()[f"F1={named}"] == pytest.approx(f1_score(truth, predicted))


def test_1_and_1_0_are_one_label_of_a_stream_of_json():
    found = NamedMetrics(["F1=1"], window=10)
    for truth, prediction in [(1, 1.0), (1.0, 1), (0, 0.0), (0.0, 1)]:
        found.update(truth, prediction)
    assert found.as_dict()["F1=1"] == pytest.approx(0.8)


def test_texts_are_compared_as_they_are_written():
    found = NamedMetrics(["F1=7"], window=10)
    for truth, prediction in [("7", "7"), ("07", "7"), ("7.0", "07")]:
        found.update(truth, prediction)
    assert found.as_dict()["F1=7"] == pytest.approx(2 / 3)
