"""Which features moved when an alarm came."""

import numpy as np
import pandas as pd
import pytest
from river import tree
from scipy.stats import ks_2samp

from moeapps.core.errors import ConfigError, DataError
from moeapps.stream import DriftMoEClassifier, DriftMoERegressor, LateLabels, drift_report, prequential
from moeapps.stream.drift_report import MOST_ALARMS, AlarmWindows


def events(*rows):
    return pd.DataFrame(rows, columns=["instance", "expert", "event"])


@pytest.fixture(scope="module")
def moved() -> tuple[pd.DataFrame, np.ndarray]:
    """1,000 instances; at 500 a rises, city changes, late appears, early vanishes, and the labels change."""
    rng = np.random.default_rng(0)
    later = np.arange(1000) >= 500
    frame = pd.DataFrame({"same": rng.normal(size=1000), "a": rng.normal(size=1000) + 2 * later})
    frame["down"] = rng.normal(size=1000) - 1 * later
    frame["city"] = np.where(rng.random(1000) < np.where(later, 0.8, 0.2), "Ulm", "Bonn")
    frame["village"] = rng.choice(["x", "y", "z"], 1000)
    frame["late"] = np.where(later, rng.normal(size=1000), np.nan)
    frame["early"] = np.where(later, np.nan, rng.normal(size=1000))
    return frame, np.where(rng.random(1000) < np.where(later, 0.9, 0.4), "yes", "no")


def test_what_moved_is_named_with_its_direction_and_what_did_not_is_not(moved):
    frame, labels = moved
    report = drift_report(events((500, 2, "warning"), (500, 2, "renewed")), frame, labels, window=200)
    assert report.loc[report["feature"].isna(), "kind"].tolist() == ["target"]
    assert report["statistic"].is_monotonic_decreasing
    found = report.fillna({"feature": "target"}).set_index("feature")
    assert found["moved"].to_dict() == {
        "same": False, "a": True, "down": True, "city": True, "village": False, "late": True, "early": True,
        "target": True,
    }  # fmt: skip
    directions = found["direction"].to_dict()
    assert (directions["a"], directions["down"]) == ("up", "down")
    assert directions["city"] in ("more 'Ulm'", "fewer 'Bonn'")
    assert (directions["late"], directions["early"]) == ("appeared", "vanished")
    assert directions["target"] in ("more 'yes'", "fewer 'no'")
    assert (found["alarm"] == 500).all()
    assert (found["experts"] == 1).all()
    assert found.loc["late", ["missing_before", "missing_after"]].tolist() == [1.0, 0.0]
    before, after = frame["a"][300:500], frame["a"][500:700]
    assert found.loc["a", "statistic"] == ks_2samp(before, after).statistic
    assert found.loc["a", ["before", "after"]].tolist() == [before.median(), after.median()]
    share = (frame["city"][300:500] == "Ulm").mean(), (frame["city"][500:700] == "Ulm").mean()
    assert found.loc["city", "statistic"] == pytest.approx(share[1] - share[0])


def test_the_window_before_ends_at_the_warning(moved):
    frame, _ = moved
    alone = events((600, 2, "renewed"))
    warned = events((480, 2, "warning"), (490, 3, "warning"), (600, 2, "renewed"))
    before = {
        name: drift_report(found, frame, window=150).set_index("feature")["before"]
        for name, found in (("alone", alone), ("warned", warned))
    }
    assert before["alone"]["a"] == frame["a"][300:450].median()  # a window earlier
    assert before["warned"]["a"] == frame["a"][330:480].median()


def test_alarms_within_a_window_are_one_and_those_without_instances_are_left_out(moved):
    frame, _ = moved
    found = drift_report(
        events((5, 1, "renewed"), (500, 2, "renewed"), (560, 4, "renewed"), (599, 4, "renewed"), (650, 2, "renewed"),
               (995, 3, "renewed")),
        frame, window=100,
    )  # fmt: skip
    assert found.groupby("alarm")["experts"].first().to_dict() == {500: 2, 650: 1}
    assert drift_report(events(), frame).empty
    assert list(drift_report(events(), frame)) == list(found)


def test_dicts_are_compared_as_frames_are_and_a_feature_may_be_absent():
    rows = [{"a": float(i)} if i < 300 else {"a": float(i), "b": 1.0} for i in range(600)]
    found = drift_report(events((300, 0, "renewed")), rows, window=100).set_index("feature")
    assert found.loc["b", "direction"] == "appeared"
    again = drift_report(events((300, 0, "renewed")), pd.DataFrame(rows), window=100).set_index("feature")
    pd.testing.assert_frame_equal(found, again)


def test_prequential_reports_the_feature_that_moved():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(4000, 3))
    X[2000:, 1] += 3
    y = (X[:, 0] + X[:, 1] * np.where(np.arange(4000) < 2000, 1, -1) > 0).astype(int)
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    model = DriftMoEClassifier(seed=0)
    found = prequential(model, (frame, y), drift_window=150)
    report = found.drift_report
    first = report[report["alarm"] == report.loc[report["alarm"] >= 2000, "alarm"].min()].set_index("feature")
    assert 2000 <= first["alarm"].iloc[0] < 2400
    assert first.loc["b", "moved"]
    assert first.loc["b", "direction"] == "up"
    assert first.loc["b", "statistic"] > 0.8
    assert not first.loc[["a", "c"], "moved"].any()
    # the same from the finished model and its stream
    pd.testing.assert_frame_equal(report, drift_report(model.drift_events_, frame, y.tolist(), window=150))
    # a model that has learned before, and late labels
    again = DriftMoEClassifier(seed=0)
    prequential(again, (frame[:1000], y[:1000]), window=100)
    rest = prequential(
        again, LateLabels(zip(frame[1000:].to_dict("records"), y[1000:].tolist(), strict=True), 0), drift_window=150
    )
    pd.testing.assert_frame_equal(rest.drift_report, report[report["alarm"] > 1170].reset_index(drop=True))


def test_other_models_and_numbers():
    rng = np.random.default_rng(0)
    a = rng.normal(size=3000)
    rows = [{"a": value} for value in a.tolist()]
    y = np.where(np.arange(3000) < 1500, 3 * a, 20 - 3 * a) + 0.1 * rng.normal(size=3000)
    found = prequential(DriftMoERegressor(seed=0), zip(rows, y.tolist(), strict=True)).drift_report
    target = found[(found["alarm"] >= 1500) & (found["kind"] == "target")].iloc[0]
    assert target["moved"]
    assert target["direction"] == "up"
    assert prequential(tree.HoeffdingTreeRegressor(), zip(rows, y.tolist(), strict=True)).drift_report.empty


def test_memory_is_bounded():
    windows = AlarmWindows(20)
    total = 0
    for _ in range(300):
        learned = [({"a": float(i)}, 0) for i in range(50)]
        total += 50
        windows.update(learned, events((total - 1, 0, "renewed")))
    assert len(windows.alarms) == MOST_ALARMS
    assert len(windows._rows) == 3 * 20 + 256
    assert windows.report()["alarm"].nunique() == MOST_ALARMS


def test_impossible_arguments_are_refused(moved):
    frame, labels = moved
    with pytest.raises(DataError, match="events has no column 'event'"):
        drift_report(pd.DataFrame({"instance": [1], "expert": [2]}), frame)
    with pytest.raises(DataError, match="rows has 1000 instances, targets has 3"):
        drift_report(events(), frame, labels[:3])
    with pytest.raises(ConfigError, match="drift_window must be a whole number"):
        prequential(DriftMoEClassifier(), [], drift_window=0)
