"""Ranking metrics against scikit-learn's and against small cases by hand."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import ndcg_score, roc_auc_score

from moeapps.core.errors import DataError
from moeapps.recsys import auc, calibration, gauc, ndcg_at_k, task_table


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    y, score = rng.integers(0, 2, 400), rng.normal(size=400).round(1)  # with ties
    return y, score, rng.integers(0, 30, 400)


def test_gauc_is_the_mean_auc_of_users_weighted_by_rows(rows):
    y, score, group = rows
    found, weights = [], []
    for user in np.unique(group):
        mine = group == user
        if 0 < y[mine].sum() < mine.sum():
            found.append(roc_auc_score(y[mine], score[mine]))
            weights.append(mine.sum())
    assert gauc(y, score, group) == pytest.approx(np.average(found, weights=weights))


def test_ndcg_is_scikit_learns(rows):
    y, _, group = rows
    score = np.random.default_rng(1).normal(size=400)  # without ties, which scikit-learn averages over
    found = [
        ndcg_score([y[group == user]], [score[group == user]], k=5)
        for user in np.unique(group)
        if y[group == user].sum()
    ]
    assert ndcg_at_k(y, score, group, k=5) == pytest.approx(np.mean(found))


def test_one_class_has_no_auc(rows):
    _, score, group = rows
    assert np.isnan(auc(np.ones(400), score))
    assert np.isnan(gauc(np.zeros(400), score, group))
    assert np.isnan(ndcg_at_k(np.zeros(400), score, group))
    assert np.isnan(calibration(np.zeros(400), score))


def test_unknown_labels_are_left_out(rows):
    y, score, group = rows
    holes = y.astype(float)
    holes[::3] = np.nan
    known = ~np.isnan(holes)
    assert auc(holes, score) == auc(y[known], score[known])
    assert gauc(holes, score, group) == gauc(y[known], score[known], group[known])


def test_a_table_has_a_line_for_every_task_and_slice(rows):
    y, _, group = rows
    probability = np.clip(0.5 + 0.2 * (y - 0.5) + np.random.default_rng(2).normal(size=400) * 0.2, 0.01, 0.99)
    truth = pd.DataFrame({"click": y, "buy": np.where(np.arange(400) % 2, y, np.nan)})
    table = task_table(truth, pd.DataFrame({"click": probability, "buy": probability}), group, {"few": group < 5})
    assert table[["task", "slice"]].to_numpy().tolist() == [
        ["click", "all"], ["click", "few"], ["buy", "all"], ["buy", "few"],
    ]  # fmt: skip
    assert table.loc[2, "rows"] == 200
    assert {"auc", "gauc", "logloss", "calibration", "ndcg@10"} < set(table.columns)
    with pytest.raises(DataError, match="expected the same"):
        task_table(truth, truth[["click"]])


def test_a_score_that_is_nan_or_of_another_length_is_refused():
    with pytest.raises(DataError, match="a score is NaN"):
        auc([0, 1], [np.nan, 1])
    with pytest.raises(DataError, match="2, 3 rows"):
        auc([0, 1], [1, 2, 3])


@pytest.mark.parametrize("metric", [auc, calibration, lambda y, score: gauc(y, score, np.zeros(len(y)))])
def test_labels_that_are_neither_0_nor_1_are_refused(metric):
    with pytest.raises(DataError, match="y must be labels 0 and 1, got -1"):
        metric([1, -1, 1, -1], [0.1, 0.2, 0.3, 0.4])
    assert np.isfinite(metric([1, 0, np.nan, True], [0.1, 0.2, 0.3, 0.4]))


def test_relevance_below_0_is_refused():
    with pytest.raises(DataError, match="y must be relevance of at least 0, got -1"):
        ndcg_at_k([2, -1], [0.1, 0.2], [0, 0])


@pytest.mark.parametrize("mask", [[1.0, float("nan")], ["yes", "no"], [True, None], [0, 2]])
def test_a_slice_that_is_no_mask_is_refused(mask):
    table = pd.DataFrame({"click": [0, 1]})
    with pytest.raises(DataError, match="slices: 'new' must be a mask of True and False, got"):
        task_table(table, table * 0.5, slices={"new": mask})
    assert len(task_table(table, table * 0.5, slices={"new": [1.0, False]})) == 2
