"""Cells at the border of the rankers: cases T1, T4, T8 to T11, T14 and T15 of docs/data.md, by what is promised."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import moeapps
from moeapps.core import predict_file
from moeapps.core.errors import ConfigError, DataError
from moeapps.recsys import AWMoERanker, DenseFeature, MultiTaskRanker, Schema, SequenceFeature, SparseFeature

ROWS = 600
LISTS = pa.list_(pa.uint64())
QUICK = {"max_epochs": 2, "batch_size": 128, "random_state": 0}


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    user = rng.integers(0, 40, ROWS)
    frame = pd.DataFrame({"user_id": 1_234_567_890_123_456_700 + user, "age": rng.normal(40, 10, ROWS).round(2)})
    frame["item_id"] = rng.choice([7, 70, 700, 7000], ROWS)
    frame["code"] = rng.choice(["1E5", "007", "7", "100000"], ROWS)
    frame["member"] = rng.random(ROWS) < 0.5
    frame["item_id_history"] = [rng.choice([7, 70, 700, 7000], rng.integers(0, 4)).tolist() for _ in range(ROWS)]
    frame["click"] = (user % 2 == 0).astype(int)
    return frame


def written(frame, folder, ending):
    path = folder / f"table.{ending}"
    if ending == "csv":
        frame.to_csv(path, index=False)
    elif ending == "parquet":
        frame.to_parquet(path)
    else:
        path.write_text(frame.to_json(orient="records", lines=True))
    return path


@pytest.mark.parametrize("ending", ["csv", "parquet", "ndjson"])
def test_ids_of_19_digits_are_600_ids_not_3_however_they_come(frame, ending, tmp_path):
    """As floats, 40 users were 1; "1E5" was 100000; the column was taken for numbers."""
    path = written(frame, tmp_path, ending)
    learned = MultiTaskRanker("mmoe", **QUICK).fit(path, ["click"])
    assert len(learned.encoder_.values["user_id"]) == 40
    assert sorted(learned.encoder_.values["code"]) == ["007", "100000", "1E5", "7"]
    from_frame = MultiTaskRanker("mmoe", **QUICK).fit(frame, ["click"])
    assert learned.encoder_.schema == from_frame.encoder_.schema
    pd.testing.assert_frame_equal(learned.predict_proba(frame), from_frame.predict_proba(frame))
    predict_file(learned, path, tmp_path / "out.csv", ["user_id", "code", "click"])
    found = pd.read_csv(tmp_path / "out.csv", dtype=str)
    assert found["user_id"].tolist() == frame["user_id"].astype(str).tolist()
    assert found["code"].tolist() == frame["code"].tolist()
    assert found.columns.tolist() == ["user_id", "code", "click", "probability_click"]
    np.testing.assert_array_equal(found["probability_click"].astype(float), learned.predict_proba(frame)["click"])


def test_a_model_fitted_on_a_file_predicts_the_frame_that_pandas_makes_of_it(frame, tmp_path):
    """Bools and leading zeros were all unknown: an AUC of 1.0 became 0.54, without a word."""
    part = frame.assign(zip=np.where(frame["click"] == 1, "00501", "02139"))[["zip", "member", "age", "click"]]
    path = written(part, tmp_path, "csv")
    model = MultiTaskRanker("mmoe", **{**QUICK, "max_epochs": 30, "lr": 0.01}).fit(path, ["click"])
    read = pd.read_csv(path)
    assert read["zip"].dtype == np.int64
    pd.testing.assert_frame_equal(model.predict_proba(read), model.predict_proba(part))
    assert model.evaluate(read)["auc"].iloc[0] > 0.99
    assert model.columns_["kind"].to_dict() == {"zip": "category", "member": "category", "age": "number"}


def test_one_empty_id_leaves_the_column_a_category_from_a_frame_and_from_a_file(frame, tmp_path):
    small = frame[["item_id", "age", "click"]].copy()
    small["item_id"] = small["item_id"].astype(float).where(small.index != 3)
    schemas = [Schema.infer(small, ["click"])]
    for ending in ("csv", "parquet", "ndjson"):
        path = written(small, tmp_path, ending)
        schemas.append(MultiTaskRanker("mmoe", **{**QUICK, "max_epochs": 1}).fit(path, ["click"]).encoder_.schema)
    assert all(schema.features == (SparseFeature("item_id"), DenseFeature("age")) for schema in schemas)


def test_ids_of_64_bits_beside_missing_ones_are_exact_in_parquet_also_in_lists(tmp_path):
    ids = [2**63 + i for i in range(20)]
    table = pa.table(
        {
            "item": pa.array([*ids, None] * 5, pa.uint64()),
            "seen": pa.array(
                [[i, None] if n % 3 else None for n, i in enumerate([*ids, 1] * 5)], pa.list_(pa.uint64())
            ),
            "click": [0, 1, 1] * 35,
        }
    )
    pq.write_table(table, tmp_path / "table.parquet")
    schema = Schema([SparseFeature("item"), SequenceFeature("seen", shares="item")])
    for source in (tmp_path / "table.parquet", table):
        model = MultiTaskRanker("mmoe", schema=schema, **QUICK).fit(source, ["click"])
        assert model.encoder_.values["item"] == [*ids, 1]
        rows = model.encoder_.transform(model_frame(table))
        assert (rows.sequences[0][1, -2:].tolist()) == [int(rows.sparse[1, 0]), 2]  # the item, a missing entry


def model_frame(table: pa.Table) -> pd.DataFrame:
    return table.drop_columns(["click"]).to_pandas(types_mapper=pd.ArrowDtype)


def test_lists_that_are_missing_at_the_beginning_of_a_file_are_a_sequence(frame, tmp_path):
    part = frame[["item_id", "item_id_history", "click"]].copy()
    part.loc[:299, "item_id_history"] = None
    for ending in ("csv", "parquet", "ndjson"):
        path = written(part, tmp_path, ending)
        model = AWMoERanker(**QUICK).fit(path, "click")
        assert model.encoder_.schema.sequences == [SequenceFeature("item_id_history", shares="item_id")]
        assert len(model.predict(part)) == ROWS


def test_both_rankers_take_their_targets_alike(frame):
    part = frame[["item_id", "item_id_history", "click"]]
    for model in (AWMoERanker(**QUICK), MultiTaskRanker("mmoe", **QUICK)):
        for targets in ("click", ["click"]):
            assert model.fit(part, targets=targets).targets_.names == ["click"]
    with pytest.warns(DeprecationWarning, match="target= of AWMoERanker.fit is now called targets="):
        AWMoERanker(**QUICK).fit(part, target="click")


def test_kinds_are_chosen_and_shown_and_saved_in_one_way(frame, tmp_path):
    part = frame[["item_id", "age", "code", "click"]]
    path = written(part, tmp_path, "csv")
    for source in (part, path):
        model = MultiTaskRanker("mmoe", column_types={"age": "category", "item_id": "number"}, **QUICK)
        model.fit(source, ["click"]).save(tmp_path / "m.safetensors")
        assert model.columns_["kind"].tolist() == ["number", "category", "category"]
        pd.testing.assert_frame_equal(moeapps.load(tmp_path / "m.safetensors").columns_, model.columns_)
    with pytest.raises(ConfigError, match="column_types has no effect beside a schema"):
        MultiTaskRanker(column_types={"age": "number"}, schema=model.encoder_.schema, **QUICK).fit(part, ["click"])
    with pytest.raises(ConfigError, match="column_types: there is no column 'Age'"):
        MultiTaskRanker(column_types={"Age": "number"}, **QUICK).fit(part, ["click"])


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_cell_that_is_no_number_costs_an_error_not_the_accuracy(frame, ending, tmp_path):
    part = frame[["item_id", "age", "click"]]
    model = MultiTaskRanker("mmoe", **QUICK).fit(part, ["click"])
    wrong = part.astype({"age": str})
    wrong.loc[400, "age"] = "38,96"
    with pytest.raises(DataError, match="'38,96' is not a number"):
        model.predict(wrong)
    with pytest.raises(DataError, match=r"table.*(record 402|row 400).*'38,96' is not a number"):
        predict_file(model, written(wrong, tmp_path, ending), tmp_path / "out.csv")


@pytest.mark.parametrize("truths", [["True", "False"], ["true", "FALSE", ""], ["yes", "no", ""], ["1.0", "0", ""]])
def test_a_target_of_true_and_false_is_read_alike_from_file_and_frame(truths, frame, tmp_path):
    """A CSV file with True and False as labels was refused: 'False' is not a number."""
    labelled = frame.assign(click=np.random.default_rng(1).choice(truths, ROWS))
    path = written(labelled, tmp_path, "csv")
    learned = AWMoERanker(**QUICK).fit(path, ["click"], validation=path)
    from_frame = AWMoERanker(**QUICK).fit(labelled, ["click"], validation=labelled)
    pd.testing.assert_frame_equal(learned.history_.filter(like="loss"), from_frame.history_.filter(like="loss"))
    assert learned.evaluate(labelled).equals(from_frame.evaluate(labelled))
    with pytest.raises(DataError, match="'perhaps' at row 0"):
        learned.evaluate(labelled.assign(click="perhaps"))


def test_two_dates_as_a_target_are_numbers_of_days(frame):
    learned = MultiTaskRanker("mmoe", **QUICK).fit(
        frame.assign(click=np.where(frame["click"], "2020-01-01", "2021-01-01")), ["click"]
    )
    assert learned.targets_.kinds == {"click": "regression"}
    assert learned.predict(frame)["click"].between(17_000, 20_000).all()


def test_columns_tell_that_ids_are_categories(frame):
    learned = MultiTaskRanker("mmoe", **QUICK).fit(frame.assign(user_id=frame["user_id"] % 100), ["click"])
    assert learned.columns_["kind"].to_dict() == learned.column_kinds()


def test_a_ranker_whose_first_category_is_the_most_frequent_can_be_loaded(frame, tmp_path):
    common = frame.assign(city=["Ulm"] * (ROWS - 1) + ["Bonn"])
    learned = MultiTaskRanker("mmoe", **QUICK).fit(common, ["click"])
    learned.save(tmp_path / "ranker.safetensors")
    hole = common.head(1).assign(city=None)
    with pytest.warns(UserWarning, match="'city' by 'Ulm'"):
        found = moeapps.load(tmp_path / "ranker.safetensors").predict_proba(hole)
    pd.testing.assert_frame_equal(found, learned.predict_proba(common.head(1)))
