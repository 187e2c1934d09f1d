"""Scores of partitions that are added up are those of all events together."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moeapps.core.errors import ConfigError, DataError
from moeapps.stream import DriftMoEClassifier, FrameSource, NamedMetrics, StreamRun, group_scores
from moeapps.stream.named_metrics import CLASS_METRICS, NUMBER_METRICS
from moeapps.stream.scores import ClassScores, NumberScores


@pytest.fixture(scope="module")
def parts():
    """Labels, predictions and probabilities of three streams, of which one is empty."""
    rng = np.random.default_rng(0)
    found = []
    for n in (150, 0, 71):
        truth = rng.choice(["a", "b", "c"], n).tolist()
        guess = [label if rng.random() < 0.7 else "a" for label in truth]
        shares = [{"a": 0.2, "b": 0.3, "c": 0.1, label: 0.5} for label in guess]
        found.append(list(zip(truth, guess, shares, strict=True)))
    return found


def named(names, parts, window=1000, numbers=False):
    metrics = NamedMetrics(names, window, numbers)
    for part in parts:
        for entry in part:
            metrics.update(*entry)
    return metrics


def test_class_scores_add_up_to_those_of_all_events(parts):
    whole, merged = ClassScores(), ClassScores()
    repeats = 0
    for part in parts:
        one = ClassScores()
        for truth, guess, _ in part:
            whole.update(truth, guess)
            one.update(truth, guess)
        repeats += one.repeat_hits
        merged.merge(one)
    assert (merged.n, merged.hits, merged.seen, merged.predicted) == (221, whole.hits, whole.seen, whole.predicted)
    assert merged.as_dict()["kappa"] == whole.as_dict()["kappa"]
    assert merged.windowed == whole.total
    assert merged.repeat_hits == repeats


def test_errors_add_up_to_those_of_all_events():
    rng = np.random.default_rng(0)
    whole, merged = NumberScores(), NumberScores()
    for n in (40, 0, 25):
        one = NumberScores()
        for truth in rng.normal(3.0, size=n).tolist():
            whole.update(truth, truth + 0.5 * truth**2)
            one.update(truth, truth + 0.5 * truth**2)
        merged.merge(one)
    assert merged.as_dict() == pytest.approx(whole.as_dict(), rel=1e-12)


@pytest.mark.parametrize("name", [*CLASS_METRICS, *NUMBER_METRICS])
def test_named_metrics_add_up_to_those_of_all_events(name, parts):
    numbers = name in NUMBER_METRICS
    if numbers:
        parts = [[(1.0 + len(t) + i % 5, 2.0 + i % 3, None) for i, (t, *_) in enumerate(part)] for part in parts]
    given = f"{name}=b" if name in ("F1", "Jaccard", "MCC", "Precision", "ROCAUC", "Recall", "LogLoss") else name
    merged = named([given], [], numbers=numbers)
    for part in parts:
        merged.merge(named([given], [part], numbers=numbers))
    assert merged.as_dict()[given] == pytest.approx(named([given], parts, numbers=numbers).as_dict()[given], rel=1e-9)


def partition(folder: Path, number: int, n: int, **arguments) -> StreamRun:
    frame = pd.DataFrame({"a": [float(i % (5 + number)) for i in range(n)]})
    frame["y"] = np.where(frame["a"] > 2, "up", "down")
    model = DriftMoEClassifier(seed=0, n_experts=2)
    run = StreamRun(model, FrameSource(frame), "y", folder / f"partition-{number}", **arguments)
    run.run()
    return run


def test_the_folder_of_a_group_gives_the_scores_of_all_and_of_each(tmp_path):
    runs = [partition(tmp_path, number, 100 + number, named_metrics=("MacroF1",)) for number in (0, 10, 2)]
    found = group_scores(tmp_path)
    assert found.counts.learned == 312
    assert list(found.partitions) == [0, 2, 10]
    assert found.scores.hits == sum(run.scores.hits for run in runs)
    assert found.partitions[10]["scores"]["MacroF1"] == runs[1].named.as_dict()["MacroF1"]
    written = json.loads(found.write(tmp_path).read_text())
    assert written["scores"]["accuracy"] == found.scores.total
    assert all(math.isfinite(value) for value in written["scores"].values())


def test_a_folder_without_partitions_and_partitions_with_other_metrics_are_refused(tmp_path):
    with pytest.raises(DataError, match="no checkpoint of a partition"):
        group_scores(tmp_path)
    partition(tmp_path, 0, 20)
    partition(tmp_path, 1, 20, named_metrics=("MacroF1",))
    with pytest.raises(ConfigError, match="has other metrics than partition 0"):
        group_scores(tmp_path)
