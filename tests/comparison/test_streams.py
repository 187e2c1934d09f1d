"""Comparisons on streams: one model per learner goes through all blocks, and events are counted."""

import numpy as np
import pandas as pd
import pytest
from river.naive_bayes import GaussianNB
from river.tree import HoeffdingTreeClassifier
from sklearn.metrics import cohen_kappa_score

import moeapps
from moeapps.cli.main import main
from moeapps.comparison.streams import stream_task
from moeapps.core.errors import ConfigError, DataError
from moeapps.stream import prequential

QUICK = ["last label again", "Gaussian naive Bayes"]


def events(n=400):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 2))
    return [({"a": float(a), "b": float(b)}, "up" if a + b > 0 else "down") for a, b in x]


def frame(n=400):
    pairs = events(n)
    return pd.DataFrame([x for x, _ in pairs]).assign(label=[y for _, y in pairs])


@pytest.fixture(scope="module")
def found():
    return moeapps.compare(events(), models=QUICK, progress=False)


def test_blocks_together_give_the_prequential_scores(found):
    usual = prequential(GaussianNB(), events()).scores
    row = found.table.loc["Gaussian naive Bayes"]
    assert row["accuracy"] == pytest.approx(usual["accuracy"])
    assert row["kappa"] == pytest.approx(usual["kappa"])
    assert found.compared == 10
    assert found.splits["test rows"].unique().tolist() == [40]


def test_the_page_shows_the_score_over_time(found, tmp_path):
    page = found.save(tmp_path / "page.html").read_text()
    assert "windowed" in page
    assert f"{found.table.loc['Gaussian naive Bayes', 'kappa']:.4f}" in page
    assert "(10 blocks)" in page


def test_kappa_is_that_of_all_events_and_not_the_mean_of_the_blocks():
    task = stream_task(events(), models=["Gaussian naive Bayes"])
    for split in range(10):
        task.measure(task.candidates[0], split)
    answers = [answer for block in task._answers["Gaussian naive Bayes"] for answer in block]
    truth, predicted = zip(*[pair for pair in answers if pair[1] is not None], strict=True)
    assert task.pooled(task.candidates[0], 10)["kappa"] == pytest.approx(cohen_kappa_score(truth, predicted), abs=0.02)


def test_an_iterable_is_a_stream_of_which_no_more_is_read_than_is_used():
    def endless():
        while True:
            yield from events()

    task = stream_task(endless(), max_events=100)
    assert sum(len(block) for block in task.blocks) == 100
    assert "The first 100 events (max_events)." in task.told
    assert [one.name for one in task.candidates if one.ours] == ["DriftMoEClassifier"]


def test_a_file_gives_what_the_frame_gives(found, tmp_path):
    frame().to_csv(tmp_path / "events.csv", index=False)
    frame().to_json(tmp_path / "events.ndjson", orient="records", lines=True)
    for name in ("events.csv", "events.ndjson"):
        read = moeapps.compare(str(tmp_path / name), "label", task="stream", models=QUICK, progress=False)
        assert read.table["accuracy"].tolist() == found.table["accuracy"].tolist()


def test_numbers_are_predicted_by_regressors():
    pairs = [(x, x["a"] + 0.5) for x, _ in events()]
    found = moeapps.compare(pairs, models=["mean so far", "linear regression"], progress=False)
    assert found.kind.startswith("regression of a stream")
    assert found.best_ == "linear regression"
    assert found.table.loc["linear regression", "R2"] > 0.5


def test_own_learners_of_river_take_part():
    task = stream_task(events(), models=[("tree", HoeffdingTreeClassifier(grace_period=20))])
    assert task.candidates[-1].name == "tree"
    assert task.measure(task.candidates[-1], 0).scores["accuracy"] > 0.3
    other = stream_task(events(), models=[("list", [])])
    with pytest.raises(ConfigError, match="must have river's interface"):
        other.candidates[-1].make(0)


def test_fields_are_left_out_on_request():
    task = stream_task(events(), ignore=["a"])
    assert list(task.blocks[0][0][0]) == ["b"]
    with pytest.raises(DataError, match="ignore: the stream has no column 'c'"):
        stream_task(events(), ignore=["c"])


def test_broken_events_are_left_out_and_this_is_told(tmp_path):
    path = tmp_path / "events.ndjson"
    frame(100).to_json(path, orient="records", lines=True)
    path.write_text(path.read_text() + '{"a": 1}\nnonsense\n')
    task = stream_task(path, "label", models=QUICK)
    assert "2 events that are broken or have no 'label' are left out." in task.told


def test_a_target_that_no_event_has_is_refused(tmp_path, capsys):
    path = tmp_path / "events.csv"
    frame().to_csv(path, index=False)
    assert main(["compare", str(path), "--stream", "--target", "labl"]) == 1
    assert "did you mean 'label'" in capsys.readouterr().err


def test_another_metric_or_too_few_events_are_refused():
    with pytest.raises(ConfigError, match="metric: 'roc_auc' is not one of accuracy, kappa"):
        stream_task(events(), metric="roc_auc")
    with pytest.raises(DataError, match="has 5 events, too few for 10 blocks"):
        stream_task(events(5))
