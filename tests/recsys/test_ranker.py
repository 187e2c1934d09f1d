"""Rankers: fit, predict, rank, save, and what they refuse."""

import subprocess
import sys
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import moeapps
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.tabledata.vocabulary import UnseenCategories
from moeapps.recsys import (
    AWMoERanker,
    DenseFeature,
    MultiTaskRanker,
    Schema,
    SequenceFeature,
    SparseFeature,
    contrastive_loss,
)

QUICK = {"max_epochs": 5, "batch_size": 128, "lr": 1e-2, "random_state": 0, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    n = 1000
    frame = pd.DataFrame(
        {
            "user_id": rng.integers(0, 40, n),
            "item_id": rng.integers(0, 60, n),
            "age": rng.normal(40, 9, n),
            "city": rng.choice(["Ulm", "Bonn", None], n),
        }
    )
    frame["item_id_history"] = [rng.integers(0, 60, rng.integers(0, 12)).tolist() for _ in range(n)]
    likes = (frame["item_id"] % 2 == 0).to_numpy()
    frame["click"] = np.where(rng.random(n) < 0.9, likes, ~likes).astype(int)
    frame["buy"] = np.where(rng.random(n) < 0.3, np.nan, frame["click"] * (frame["age"] > 40))
    frame["stay"] = frame["age"] * 2 + rng.normal(size=n)
    frame["views"] = rng.poisson(np.where(likes, 4.0, 1.0))
    return frame


TARGETS = ["click", "buy", "stay", "views"]
KINDS = {"views": "count"}


@pytest.fixture(scope="module")
def ranker(frame):
    """A fitted ranker by name, trained once."""

    @cache
    def fit(name: str) -> MultiTaskRanker:
        groups = {"act": ["click", "buy"], "rest": ["stay", "views"]} if name == "home" else None
        quick = {**QUICK, "batch_size": 64, "max_epochs": 4}
        return MultiTaskRanker(name, groups=groups, **quick).fit(frame, TARGETS, kinds=KINDS)

    return fit


@pytest.fixture
def fitted(ranker) -> MultiTaskRanker:
    return ranker("home")


@pytest.mark.parametrize("name", ["shared_bottom", "mmoe", "ple", "adatt", "home"])
def test_every_model_learns_every_kind_of_target(name, ranker, frame, tmp_path):
    model = ranker(name)
    table = model.evaluate(frame, group=frame["user_id"])
    assert (table["auc"].dropna() > 0.75).all(), table
    assert set(table["task"][table["auc"].notna()]) == {"click", "buy"}
    assert set(table["task"][table["r2"].notna()]) == {"stay", "views"}
    assert table["mae"].notna().sum() == 2
    found = model.predict_proba(frame)
    assert np.corrcoef(found["stay"], frame["stay"])[0, 1] > 0.8
    assert found["views"].mean() == pytest.approx(frame["views"].mean(), rel=0.2)
    model.save(tmp_path / "m.safetensors")
    pd.testing.assert_frame_equal(moeapps.load(tmp_path / "m.safetensors").predict_proba(frame), found)


@pytest.mark.slow  # the fast twin loads in the same process, just above
def test_a_saved_ranker_predicts_the_same_in_another_process(fitted, frame, tmp_path):
    fitted.save(tmp_path / "m.safetensors")
    frame.to_pickle(tmp_path / "frame.pkl")
    script = (
        "import sys, pandas as pd, moeapps; folder = sys.argv[1]; frame = pd.read_pickle(folder + '/frame.pkl')\n"
        "moeapps.load(folder + '/m.safetensors').predict_proba(frame).to_pickle(folder + '/found.pkl')"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    pd.testing.assert_frame_equal(pd.read_pickle(tmp_path / "found.pkl"), fitted.predict_proba(frame), atol=1e-6)


def test_unseen_missing_and_empty_predict_and_a_missing_column_is_named(fitted, frame):
    few = frame.head(3).copy()
    few["item_id"] = [999, 1, 2]
    few["city"] = ["Berlin", None, "Ulm"]
    few["age"] = [np.nan, 30.0, 40.0]
    few.at[few.index[0], "item_id_history"] = []
    with pytest.warns(UserWarning, match="missing values in columns that had none in training .* of 'age' by"):
        found = fitted.predict_proba(few)
    assert found.notna().all().all()
    assert found.columns.tolist() == TARGETS
    with pytest.raises(DataError, match="lacks the column 'city'"):
        fitted.predict_proba(few.drop(columns="city"))
    assert len(fitted.predict_proba(few[:0])) == 0


def test_labels_of_any_two_values_come_back(frame):
    texts = frame.assign(click=np.where(frame["click"] == 1, "yes", "no"))[["item_id", "age", "click"]]
    model = MultiTaskRanker("mmoe", **QUICK).fit(texts, ["click"])
    found = model.predict(texts)["click"]
    assert (found == texts["click"]).mean() > 0.8
    with pytest.raises(DataError, match="'click' holds 'maybe'"):
        model.evaluate(texts.assign(click="maybe"))


@pytest.mark.parametrize("value", [-1, 2, 0.5])
def test_a_label_that_a_binary_target_cannot_have_is_refused_wherever_it_comes(value, fitted, frame):
    strange = frame.copy()
    strange["click"] = strange["click"].astype(float)
    strange.loc[frame.index[5], "click"] = value
    expected = (
        rf"target 'click' is binary, with the values 0 and 1 in training, and is {value:g} at row {frame.index[5]}"
    )
    with pytest.raises(DataError, match=expected):
        fitted.evaluate(strange)
    with pytest.raises(DataError, match=expected):
        MultiTaskRanker("mmoe", **QUICK).fit(frame, TARGETS, validation=strange)


def test_a_target_of_times_is_learned_and_predicted_in_days(frame):
    part = frame[["age", "city"]].assign(when=pd.Timestamp("2024-01-01") + pd.to_timedelta(frame["age"], unit="D"))
    model = MultiTaskRanker("mmoe", **{**QUICK, "max_epochs": 30}).fit(part, ["when"])
    days = (part["when"] - pd.Timestamp(0)).dt.total_seconds() / 86400
    assert np.corrcoef(model.predict(part)["when"], days)[0, 1] > 0.9


def test_the_best_items_of_a_user_come_first(fitted):
    items = pd.DataFrame({"item_id": range(60)})
    best = fitted.rank({"user_id": 3, "age": 33.0, "city": "Ulm", "item_id_history": [1, 2]}, items, n=10)
    assert len(best) == 10
    assert best["score"].is_monotonic_decreasing
    assert (best["item_id"] % 2 == 0).mean() > 0.9
    with pytest.raises(ConfigError, match="by must be one of click, buy, stay, views"):
        fitted.rank({}, items, by="like")
    with pytest.raises(DataError, match="'item_id' is a feature of the user and a column of the items"):
        fitted.rank({"item_id": 3}, items)
    with pytest.raises(ConfigError, match="user must be a dict .*, got DataFrame: give one row"):
        fitted.rank(pd.DataFrame({"user_id": [3]}), items)


def test_a_failed_fit_keeps_the_ranker(fitted, frame):
    before = fitted.predict_proba(frame.head())
    with pytest.raises(DataError):
        fitted.fit(frame.assign(click=np.nan), TARGETS)
    pd.testing.assert_frame_equal(fitted.predict_proba(frame.head()), before)


def test_one_row_is_fitted_or_refused_with_the_reason(frame):
    one = frame[["user_id", "age", "click"]][:1]
    with pytest.raises(DataError, match="batch normalisation needs batches of two rows or more"):
        MultiTaskRanker("mmoe", **{**QUICK, "validation_fraction": 0}).fit(one, ["click"])
    with pytest.raises(DataError, match="batch normalisation needs batches of two rows or more"):
        MultiTaskRanker("mmoe", **{**QUICK, "batch_size": 1}).fit(frame[["user_id", "age", "click"]], ["click"])


def test_parameters_are_cloned_and_unfitted_rankers_say_so(fitted, frame):
    assert clone(fitted).get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        MultiTaskRanker().predict_proba(frame)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "homer"}, "model must be one of shared_bottom, mmoe"),
        ({"options": {"experts": 3}}, "options of model='home'"),
        ({"groups": {"a": ["click"], "b": ["like"]}}, "'b' has 'like', which is not among click, buy"),
        ({"model": "mmoe", "groups": {"a": ["click", "buy"]}}, "groups are for model='home'"),
        ({"task_weights": {"like": 2.0}}, "task_weights: 'like'"),
        ({"positive_weight": {"click": -1.0}}, "positive_weight must be a number of at least 0"),
        ({"validation_fraction": 1.0}, "validation_fraction must be below 1"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"schema": "wide"}, "schema must be a Schema"),
        ({"lr": 0.0}, "lr must be above 0"),
    ],
)
def test_impossible_arguments_are_named(arguments, message, frame):
    part = frame[["item_id", "age", "click", "buy"]]
    with pytest.raises(ConfigError, match=message):
        MultiTaskRanker(**{**QUICK, **arguments}).fit(part, ["click", "buy"])


def test_impossible_targets_are_named(frame):
    model = MultiTaskRanker("mmoe", **QUICK)
    with pytest.raises(ConfigError, match="targets must be a list"):
        model.fit(frame, [])
    with pytest.raises(DataError, match="lacks the column 'like', which targets names"):
        model.fit(frame, ["like"])
    with pytest.raises(DataError, match="'stay' is binary and has"):
        model.fit(frame, ["stay"], kinds={"stay": "binary"})
    with pytest.raises(DataError, match="'click' has no known label"):
        model.fit(frame.assign(click=np.nan), ["click"])
    with pytest.raises(DataError, match="'views' is a count and is negative"):
        model.fit(frame.assign(views=-1), ["views"], kinds=KINDS)


@pytest.mark.parametrize("name", [pytest.param("din", marks=pytest.mark.slow), "aw_moe"])
def test_a_ranker_with_history_learns_that_users_look_at_what_they_have_looked_at(name):
    rng = np.random.default_rng(0)
    n = 1500
    history = [rng.integers(0, 30, rng.integers(1, 6)).tolist() for _ in range(n)]
    item = np.array([rng.choice(h) if rng.random() < 0.5 else rng.integers(0, 30) for h in history])
    data = pd.DataFrame({"item_id": item, "item_id_history": history})
    data["click"] = [int(i in h) for i, h in zip(item, history, strict=True)]
    weight = 0.05 if name == "aw_moe" else 0.0
    model = AWMoERanker(
        name, contrastive_weight=weight, **{**QUICK, "max_epochs": 10, "lr": 2e-2, "validation_fraction": 0.0}
    )
    model.fit(data[:1200], "click")
    assert model.evaluate(data[1200:])["auc"].item() > 0.85
    assert {"train/contrastive"} <= set(model.history_) or name == "din"


def test_a_history_must_be_there(frame):
    with pytest.raises(DataError, match="there is no history"):
        AWMoERanker(**QUICK).fit(frame[["item_id", "age", "click"]], "click")
    schema = Schema(
        [SparseFeature("item_id"), DenseFeature("age"), SequenceFeature("item_id_history", shares="item_id", max_len=4)]
    )
    part = frame[["item_id", "age", "item_id_history", "click"]]
    assert AWMoERanker(schema=schema, **{**QUICK, "max_epochs": 1}).fit(part, "click").model_.sequence == 0


def test_the_target_may_be_given_by_its_old_name(frame):
    part = frame[["item_id", "item_id_history", "click"]][:200]
    model = AWMoERanker(**{**QUICK, "max_epochs": 1})
    expected = model.fit(part, targets="click").predict_proba(part)
    with pytest.warns(DeprecationWarning, match="target= of AWMoERanker.fit is now called targets="):
        pd.testing.assert_frame_equal(model.fit(part, target="click").predict_proba(part), expected)
    pd.testing.assert_frame_equal(model.fit(part, ["click"]).predict_proba(part), expected)
    with pytest.raises(ConfigError, match="give targets only"):
        model.fit(part, "click", target="click")
    with pytest.raises(ConfigError, match="targets must be a list with the name of at least one column"):
        model.fit(part)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_probability": 1.0}, "mask_probability must be at least 0 and below 1"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"contrastive_weight": -1.0}, "contrastive_weight must be a number of at least 0"),
        ({"model": "bert"}, "model must be one of din, aw_moe"),
    ],
)
def test_impossible_arguments_of_a_ranker_with_history_are_named(arguments, message, frame):
    part = frame[["item_id", "item_id_history", "click"]]
    with pytest.raises(ConfigError, match=message):
        AWMoERanker(**{**QUICK, **arguments}).fit(part, "click")


def test_a_product_is_never_likelier_than_what_it_presupposes(frame):
    part = frame.assign(buy=frame["buy"].fillna(0.0)).drop(columns=["stay", "views"])
    model = MultiTaskRanker("mmoe", products={"buy": "click"}, **QUICK).fit(part, ["click", "buy"])
    found = model.predict_proba(part)
    assert (found["buy"] <= found["click"] + 1e-6).all()
    rows = model.encoder_.transform(part)
    with torch.no_grad():
        towers = model.model_.model(model.model_.embedding(rows)).double().sigmoid()
    np.testing.assert_allclose(found["buy"], towers.prod(dim=1), atol=1e-6)
    assert model.evaluate(part)["auc"].min() > 0.7


@pytest.mark.parametrize(
    ("products", "message"),
    [
        ({"buy": "like"}, "products: 'like', which is not among"),
        ({"buy": "click", "click": "buy"}, "'buy' presupposes itself"),
        ({"stay": "click"}, "'stay' is not a binary target"),
    ],
)
def test_impossible_products_are_named(products, message, frame):
    with pytest.raises(ConfigError, match=message):
        MultiTaskRanker("mmoe", products=products, **QUICK).fit(frame, TARGETS, kinds=KINDS)


def test_sparse_gradients_touch_only_the_rows_of_a_batch(frame):
    part = frame.drop(columns=["stay", "views", "buy"])
    model = MultiTaskRanker("mmoe", sparse_gradients=True, **{**QUICK, "lr": 0.05}).fit(part, ["click"])
    assert model.evaluate(part)["auc"].item() > 0.8
    assert model.model_.embedding.table.sparse
    model.model_(model.encoder_.transform(part.head(3))).sum().backward()
    assert model.model_.embedding.table.weight.grad.is_sparse


def test_lazy_adam_trains_sparse_tables_as_adam_trains_dense_ones(frame):
    part = frame.drop(columns=["stay", "views", "buy"])
    areas = {}
    for sparse in (False, True):
        model = MultiTaskRanker("mmoe", sparse_gradients=sparse, sparse_optimizer="adam", **QUICK).fit(part, ["click"])
        areas[sparse] = model.evaluate(part)["auc"].item()
    assert abs(areas[True] - areas[False]) < 0.01
    with pytest.raises(ConfigError, match="sparse_optimizer must be one of adagrad, adam, got 'sgd'"):
        MultiTaskRanker("mmoe", sparse_optimizer="sgd", **QUICK).fit(part, ["click"])


def test_what_an_unseen_category_means_is_learned(frame):
    part = frame[["item_id", "age", "click"]].assign(item_id=frame["item_id"] % 2)
    model = MultiTaskRanker("mmoe", unknown_rate=0.2, **{**QUICK, "max_epochs": 20}).fit(part, ["click"])
    strange = part.assign(item_id=9)
    share = part["click"].mean()
    with pytest.warns(UnseenCategories, match="column 'item_id': every value of 1000 rows, such as 9"):
        assert model.predict_proba(strange)["click"].mean() == pytest.approx(share, abs=0.1)
    with pytest.raises(ConfigError, match="unknown_rate must be at least 0 and below 1"):
        MultiTaskRanker(unknown_rate=1.0, **QUICK).fit(part, ["click"])


def test_negatives_are_other_users(frame):
    gate = torch.nn.functional.normalize(torch.randn(6, 4), dim=1)
    user = torch.tensor([0, 0, 1, 1, 2, 2])
    similarity = (gate @ gate.T / 0.1).exp()
    expected = []
    for i in range(6):
        others = [j for j in range(6) if user[j] != user[i] or j == i]
        expected.append(-(similarity[i, i] / similarity[i, others].sum()).log())
    torch.testing.assert_close(contrastive_loss(gate, gate, 0.1, user), torch.stack(expected).mean())
    part = frame[["user_id", "item_id", "item_id_history", "click"]]
    assert AWMoERanker(user="user_id", **{**QUICK, "max_epochs": 1}).fit(part, "click").n_iter_ == 1
    with pytest.raises(ConfigError, match="user must be one of the sparse columns"):
        AWMoERanker(user="age", **QUICK).fit(part, "click")
