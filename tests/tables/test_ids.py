"""Ids, dates and ignored columns of tables."""

import warnings

import numpy as np
import pandas as pd
import pytest

import moeapps
from moeapps import MixtureClassifier, MoEClassifier
from moeapps.cli.main import main
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.tabledata.ids import is_key
from moeapps.tables import ColumnEncoder, TableData, TableFeatures

ROWS = 120


def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "customer_id": rng.permutation(ROWS) * 7 + 1000,
            "age": rng.normal(40, 9, ROWS),
            "token": [f"{number:08x}" for number in rng.integers(0, 2**31, ROWS)],
            "price": rng.integers(1_000, 90_000, ROWS),
            "city": rng.choice(["Ulm", "Bonn"], ROWS),
        }
    )


def encoded(table: pd.DataFrame, **arguments) -> ColumnEncoder:
    return ColumnEncoder().fit(table, np.ones(len(table)), **arguments)


@pytest.fixture(scope="module")
def model() -> MoEClassifier:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MoEClassifier(max_epochs=2, random_state=0, ignore_columns=["price"]).fit(frame(), frame()["age"] > 40)


def test_an_id_is_named_and_not_used():
    with pytest.warns(UserWarning, match="columns 'customer_id', 'token': a different value in nearly every row"):
        encoder = encoded(frame())
    assert encoder.unused_names() == ["customer_id", "token"]
    assert encoder.column_kinds() == {"age": "number", "price": "number", "city": "category"}
    assert "a1" not in str(encoder.categories)


def test_who_says_what_a_column_is_gets_it():
    with pytest.warns(UserWarning, match="column 'token'"):
        encoder = encoded(frame(), column_types={"customer_id": "number"})
    assert encoder.column_kinds()["customer_id"] == "number"
    kinds = encoded(frame(), column_types={"customer_id": "category", "token": "category"}).column_kinds()
    assert kinds["customer_id"] == kinds["token"] == "category"


@pytest.mark.parametrize("name", ["customer_id", "orderNo", "key", "Unnamed: 0", "row"])
def test_whole_numbers_that_differ_are_keys_by_their_name(name):
    numbers = np.random.default_rng(0).choice(10**6, 200, replace=False).astype(float)
    assert is_key(name, numbers)
    assert is_key(name, numbers, floats=True)
    assert not is_key("price", numbers)


def test_numbers_of_rows_are_keys_even_of_a_part_of_the_rows_but_years_and_floats_are_not():
    part = np.random.default_rng(0).permutation(200)[:150].astype(float)
    assert is_key("x", part)
    assert not is_key("year", part)
    assert not is_key("x", part, floats=True)
    assert not is_key("x", part[:20])
    assert not is_key("x", part * 10)
    assert not is_key("x", np.repeat(part, 2))


def test_without_another_column_an_id_is_used():
    with pytest.warns(UserWarning, match="It is used, since there is no other column"):
        encoder = encoded(frame()[["customer_id"]])
    assert encoder.column_kinds() == {"customer_id": "number"}


def test_no_column_of_the_tables_in_scikit_learn_is_taken_for_an_id():
    from sklearn import datasets

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("breast_cancer", "diabetes", "iris", "wine"):
            assert not encoded(getattr(datasets, f"load_{name}")(as_frame=True).data).unused


def test_predict_takes_frames_with_and_without_unused_columns(model):
    whole = model.predict_proba(frame())
    np.testing.assert_array_equal(model.predict_proba(frame()[["age", "city"]]), whole)
    np.testing.assert_array_equal(model.predict_proba(frame().drop(columns="token")), whole)
    with pytest.raises(ValueError, match="city"):
        model.predict(frame().drop(columns="city"))
    with pytest.raises(ValueError, match="colour"):
        model.predict(frame().assign(colour=1))


def test_the_saved_model_knows_unused_columns_and_none_of_their_values(model, tmp_path, capsys):
    model.save(tmp_path / "m.safetensors")
    loaded = moeapps.load(tmp_path / "m.safetensors")
    assert loaded.columns_["kind"].tolist() == ["id", "number", "id", "ignored", "category"]
    assert frame()["token"][0].encode() not in (tmp_path / "m.safetensors").read_bytes()
    frame().drop(columns="price").to_csv(tmp_path / "in.csv", index=False)
    arguments = [str(tmp_path / "m.safetensors"), "--input", str(tmp_path / "in.csv"), "--keep", "customer_id"]
    assert main(["score", *arguments, "--output", str(tmp_path / "out.csv")]) == 0
    found = pd.read_csv(tmp_path / "out.csv")
    assert found["customer_id"].tolist() == frame()["customer_id"].tolist()
    np.testing.assert_allclose(found["probability_True"], model.predict_proba(frame())[:, 1])


@pytest.mark.parametrize(
    ("ignore", "message"),
    [("age", r"did you mean \['age'\]"), (["prize"], "did you mean 'price'"), (range(5), "names every column")],
)
def test_a_wrong_ignore_columns_is_refused(ignore, message):
    with pytest.raises(ConfigError, match=message):
        MoEClassifier(ignore_columns=ignore).fit(frame(), frame()["age"] > 40)


def test_a_table_of_nothing_but_ids_by_name_is_refused():
    with pytest.raises(DataError, match="no column is left to learn from"):
        encoded(frame()[["token"]], column_types={"token": "id"})


def test_columns_of_an_array_are_ignored_by_position():
    array = np.random.default_rng(0).normal(size=(60, 3))
    model = MoEClassifier(max_epochs=1, ignore_columns=[1], random_state=0).fit(array, array[:, 0] > 0)
    changed = array.copy()
    changed[:, 1] = 7
    np.testing.assert_array_equal(model.predict_proba(changed), model.predict_proba(array))


def test_dates_of_text_are_times_and_an_order_that_is_open_is_told():
    dates = pd.date_range("2024-01-05 13:00", periods=ROWS, freq="37h")
    table = pd.DataFrame({"joined": dates.strftime("%Y-%m-%d %H:%M"), "left": dates.strftime("%d/%m/%Y"), "x": 1.5})
    with pytest.warns(UserWarning, match="column 'left' holds dates such as '05/01/2024'.*dayfirst=True"):
        assert encoded(table).column_kinds()["joined"] == "time"


def test_a_mixture_gives_ids_and_ignored_columns_to_no_expert(tmp_path):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    experts = [make_pipeline(TableFeatures(kind), LogisticRegression()) for kind in ("onehot", "codes")]
    mixture = MixtureClassifier(experts, cv=2, random_state=0, ignore_columns=["price"])
    with pytest.warns(UserWarning, match="'customer_id', 'token'"):
        mixture.fit(frame(), frame()["age"] > 40)
    assert mixture.columns_["kind"].tolist() == ["id", "number", "id", "ignored", "category"]
    assert mixture.unused_columns() == ["customer_id", "token", "price"]
    assert mixture.experts_[0][0].n_features_in_ == 2
    np.testing.assert_array_equal(mixture.predict_proba(frame()[["age", "city"]]), mixture.predict_proba(frame()))


@pytest.fixture(scope="module")
def orders():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"order": [f"o{i}" for i in rng.permutation(60)], "number": np.arange(60)})
    return frame.assign(a=rng.normal(size=60), b=rng.normal(size=60))


@pytest.mark.parametrize("target", ["order", "number"])
def test_classes_of_which_nearly_every_row_has_its_own_are_a_warning_of_fit(target, orders):
    model = MoEClassifier(dim=4, num_experts=2, num_blocks=1, max_epochs=1, accelerator="cpu")
    with pytest.warns(UserWarning, match="y has 60 different labels in 60 rows: an id cannot be predicted") as told:
        model.fit(orders[["a", "b"]], orders[target])
    assert len(told) == 1


def test_a_target_of_texts_that_nearly_all_differ_is_refused_before_training(orders):
    orders = orders[["order", "a"]]
    for run in (lambda: TableData(orders, "order").setup("fit"), lambda: moeapps.compare(orders, "order")):
        with pytest.raises(DataError, match="'order' has 60 different values in 60 rows: an id.* task=classification"):
            run()
    with pytest.warns(UserWarning, match="'order' has 60 different values in 60 rows: an id"):
        TableData(orders, "order", task="classification", validation_fraction=0).setup("fit")


def test_a_target_of_row_numbers_is_a_warning_and_one_of_measurements_is_not(orders):
    with pytest.warns(UserWarning, match="'number' has 60 different values in 60 rows: an id"):
        TableData(orders[["number", "a"]], "number").setup("fit")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TableData(orders[["b", "a"]], "b").setup("fit")
        TableData(orders[["a"]].assign(price=np.arange(60) ** 2), "price").setup("fit")
