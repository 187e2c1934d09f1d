"""Comparisons on tables: what is found out, what is split, and what is refused before anything is fitted."""

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import FixedThresholdClassifier, RepeatedStratifiedKFold, cross_val_score
from sklearn.naive_bayes import GaussianNB

import moeapps
from moeapps.cli.main import main
from moeapps.comparison.held_out import SplitTask, make_splits
from moeapps.comparison.tables import table_task
from moeapps.core.errors import ConfigError, DataError

QUICK = ["most frequent class", "logistic regression", "gradient boosting"]


def customers(n=120):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"age": rng.normal(40, 9, n), "city": rng.choice(["Ulm", "Bonn"], n)})
    frame["customer"] = np.arange(n) // 4
    frame["day"] = pd.date_range("2026-01-01", periods=n)[rng.permutation(n)]
    frame["churned"] = np.where(frame["age"] + 5 * rng.normal(size=n) > 40, "yes", "no")
    return frame


@pytest.fixture(scope="module")
def frame():
    return customers()


@pytest.fixture(scope="module")
def found(frame):
    return moeapps.compare(frame, "churned", ignore="day", models=QUICK, splits=6, progress=False)


def test_models_are_compared_on_the_same_rows(found):
    assert set(found.table.index) == set(QUICK)
    assert found.best_ == "logistic regression"
    assert found.table.loc["logistic regression", "AUC"] > 0.8
    assert found.table.loc["most frequent class", "AUC"] == pytest.approx(0.5)
    assert found.compared == 6
    assert found.metric == "log loss"


def test_a_file_is_compared_as_its_frame_and_the_same_seed_gives_the_same_numbers(found, frame, tmp_path):
    frame.to_parquet(tmp_path / "customers.parquet")
    read = moeapps.compare(
        tmp_path / "customers.parquet", "churned", ignore=["day"], models=QUICK, splits=6, progress=False
    )
    names = ["log loss", "AUC", "accuracy"]
    pd.testing.assert_frame_equal(read.splits[names], found.splits[names])
    assert read.data == "customers.parquet"


def test_ours_and_what_people_use_take_part(frame):
    task = table_task(frame, "churned")
    assert [one.name for one in task.candidates if one.ours] == ["MoEClassifier", "MixtureClassifier"]
    numbers = table_task(frame, "age")
    assert [one.name for one in numbers.candidates] == [
        "mean", "ridge regression", "gradient boosting", "random forest", "MoERegressor", "MixtureRegressor",
    ]  # fmt: skip
    assert [metric.name for metric in numbers.metrics] == ["R2", "MAE"]


def test_numbers_are_compared_by_r2_and_absolute_error(frame):
    found = moeapps.compare(frame, "age", ignore="day", models=["mean", "ridge regression"], splits=2, progress=False)
    assert found.kind == "regression of rows"
    assert found.table.loc["mean", "R2"] < 0.1
    assert found.table.loc["mean", "MAE"] > found.table.loc["ridge regression", "MAE"] > 0


def test_own_models_take_part_with_what_they_can_do(frame):
    numbers = frame[["age", "customer", "churned"]]
    found = moeapps.compare(
        numbers, "churned", models=["most frequent class", ("bayes", GaussianNB()), ("ridge", RidgeClassifier())],
        splits=2, progress=False,
    )  # fmt: skip
    assert found.table.loc["bayes", "log loss"] > 0
    assert found.table.loc["ridge", "accuracy"] > 0.6
    assert np.isnan(found.table.loc["ridge", "log loss"])
    assert found.best_ == "bayes"


def test_a_model_with_a_threshold_of_its_own_is_scored_by_its_own_labels(frame):
    numbers, seldom = frame[["age", "churned"]], FixedThresholdClassifier(GaussianNB(), threshold=0.95, pos_label="yes")
    models = ["most frequent class", ("bayes", GaussianNB()), ("seldom", seldom)]
    found = moeapps.compare(numbers, "churned", models=models, splits=5, progress=False)
    folds = RepeatedStratifiedKFold(n_splits=5, n_repeats=1, random_state=0)
    expected = cross_val_score(seldom, frame[["age"]], frame["churned"], cv=folds).mean()
    assert found.table.loc["seldom", "accuracy"] == pytest.approx(expected)
    assert found.table.loc["seldom", "accuracy"] < found.table.loc["bayes", "accuracy"]
    assert found.table.loc["seldom", "log loss"] == found.table.loc["bayes", "log loss"]


def test_the_metric_that_counts_is_chosen_by_its_name(frame):
    task = table_task(frame, "churned", metric="f1_macro")
    assert [metric.name for metric in task.metrics] == ["f1 macro", "log loss", "AUC", "accuracy"]
    assert table_task(frame, "churned", metric="auc").metrics[0].name == "AUC"
    with pytest.raises(ConfigError, match="did you mean 'roc_auc'"):
        table_task(frame, "churned", metric="rocauc")
    with pytest.raises(ConfigError, match="'f1' is not defined for this target"):
        table_task(frame, "churned", metric="f1")


def test_no_customer_is_on_both_sides(frame):
    task = table_task(frame, "churned", groups="customer", splits=7)
    assert "customer" not in task.X
    assert len(task.parts) == 7
    for train, test in task.parts:
        assert not set(frame["customer"][train]) & set(frame["customer"][test])


@pytest.mark.parametrize("kind", [object, "string", "category"])
def test_rows_without_a_group_are_one_group(frame, kind):
    customer = frame["customer"].map(lambda c: None if c % 5 == 0 else c if kind is object and c % 2 else str(c))
    task = table_task(frame.assign(customer=customer.astype(kind)), "churned", groups="customer")
    none = np.flatnonzero(customer.isna())
    for _, test in task.parts:
        assert np.isin(none, test).all() or not np.isin(none, test).any()


def test_rows_of_the_time_at_which_a_test_begins_are_not_learned_from(frame):
    task = table_task(frame.assign(day=frame["day"].dt.day_of_year // 13), "churned", time="day", splits=3)
    for train, test in task.parts:
        assert task.X["day"].iloc[train].max() < task.X["day"].iloc[test].min()
    with pytest.raises(DataError, match="the first 30 rows are of one time"):
        table_task(frame.assign(day=1), "churned", time="day", splits=3)


def test_models_learn_from_the_past(frame):
    task = table_task(frame, "churned", time="day", splits=3)
    for train, test in task.parts:
        assert task.X["day"].iloc[train].max() < task.X["day"].iloc[test].min()


def test_each_row_is_tested_once_in_five_splits():
    y = np.repeat([0, 1], 50)
    parts = make_splits(y, 5, 0, classes=True)
    assert sorted(np.concatenate([test for _, test in parts])) == list(range(100))
    assert {y[test].sum() for _, test in parts} == {10}


def test_a_large_table_is_sampled_and_this_is_told(frame, tmp_path):
    frame.to_csv(tmp_path / "customers.csv", index=False)
    for data in (frame, tmp_path / "customers.csv"):
        task = table_task(data, "churned", max_rows=50)
        assert len(task.X) == 50
        assert "A random sample of 50 of 120 rows (max_rows)." in task.told


def test_ids_are_not_used_and_this_is_told_in_the_words_of_a_comparison(frame):
    numbered = frame.assign(order=[f"O{i:04}" for i in range(len(frame))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task = table_task(numbered, "churned", ignore=["day"], splits=2)
    assert "Not used, since nearly every row has another value (ids?): 'order'." in task.told
    assert "order" not in task.X.columns
    assert not [line for line in table_task(frame, "churned", ignore=["day"], splits=2).told if "ids?" in line]


def test_rows_without_target_are_left_out_and_this_is_told(frame):
    gaps = frame.assign(churned=frame["churned"].where(frame.index > 9))
    task = table_task(gaps, "churned")
    assert len(task.y) == 110
    assert "10 rows without 'churned' are left out." in task.told


def test_an_array_and_its_targets_are_a_table(frame):
    task = table_task(frame[["age", "customer"]].to_numpy(), frame["churned"])
    assert list(task.X) == ["x0", "x1"]
    assert task.scoring.classes.tolist() == ["no", "yes"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target": "churn"}, DataError, "target: the table has no column 'churn'; did you mean 'churned'"),
        ({"target": "churned", "ignore": ["dya"]}, DataError, "ignore: the table has no column 'dya'"),
        ({"target": "churned", "ignore": ["churned"]}, ConfigError, "target and ignore both name"),
        ({"target": "churned", "groups": "customer", "time": "day"}, ConfigError, "groups and time are both given"),
        ({"target": "churned", "time": "city"}, DataError, "neither a number nor an ISO date"),
        ({"target": "churned", "groups": "city"}, DataError, "groups has 2 different values"),
        ({"target": None}, ConfigError, "target is missing"),
        ({"target": "churned", "models": ["boosting"]}, ConfigError, "did you mean 'gradient boosting'"),
    ],
)  # fmt: skip
def test_what_is_impossible_is_named_before_anything_is_fitted(frame, arguments, error, message):
    with pytest.raises(error, match=message):
        table_task(frame, **arguments)


def test_too_few_rows_are_refused(frame):
    with pytest.raises(DataError, match="9 rows are too few"):
        table_task(frame[:9], "churned")
    with pytest.raises(DataError, match="no class has the 5 rows"):
        table_task(frame.assign(churned=frame["customer"].astype(str)), "churned")


def test_rare_classes_are_told_and_do_not_break_scores(frame):
    rare = frame.assign(churned=frame["churned"].where(frame.index > 1, "perhaps"))
    found = moeapps.compare(rare, "churned", ignore="day", models=["logistic regression"], progress=False)
    assert any("'perhaps'" in line for line in found.told)
    assert found.splits["log loss"].notna().all()


def test_the_command_prints_the_table_and_writes_the_page(frame, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame.to_csv("customers.csv", index=False)
    models = "most frequent class, logistic regression"
    command = ["compare", "customers.csv", "--target", "churned", "--models", models, "--splits", "2"]
    assert main([*command, "--max-time", "5m", "--output", "page.html"]) == 0
    printed, progress = capsys.readouterr()
    assert "best baseline" in printed
    assert "written: page.html" in printed
    assert "split 2/2  logistic regression: log loss" in progress
    assert "logistic regression" in (tmp_path / "page.html").read_text()


def test_ctrl_c_prints_what_there_is(frame, tmp_path, capsys, monkeypatch):
    def measure(self, candidate, split):
        if candidate.name == "gradient boosting":
            raise KeyboardInterrupt
        return plain(self, candidate, split)

    plain = SplitTask.measure
    monkeypatch.setattr(SplitTask, "measure", measure)
    frame.to_csv(tmp_path / "customers.csv", index=False)
    command = ["compare", str(tmp_path / "customers.csv"), "--target", "churned", "--models", ", ".join(QUICK)]
    assert main(command) == 130
    printed = capsys.readouterr().out
    assert "best baseline" in printed
    assert "gradient boosting: not finished: interrupted" in printed


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["customers.csv"], 2, "one of 'age', 'city', 'customer', 'day', 'churned' (--target COLUMN)"),
        (["customers.csv", "--target", "churne"], 1, "did you mean 'churned'"),
        (["custmers.csv", "--target", "churned"], 2, "no file 'custmers.csv'; did you mean 'customers.csv'"),
        (["census-incme"], 2, "did you mean 'census-income'"),
        (["customers.csv", "--target", "churned", "--resplit"], 2, "resplit is for a graph"),
        (["customers.csv", "--target", "churned", "--max-time", "soon"], 2, "--max-time must be seconds"),
        (["customers.csv", "--target", "churned", "--output", "page.doc"], 2, "saved as .csv"),
        (["customers.csv", "--target", "churned", "--splits", "0"], 2, "splits must be a whole number"),
    ],
)  # fmt: skip
def test_the_command_names_what_is_wrong(frame, tmp_path, capsys, monkeypatch, options, code, message):
    monkeypatch.chdir(tmp_path)
    frame.to_csv("customers.csv", index=False)
    assert main(["compare", *options]) == code
    assert message in capsys.readouterr().err
