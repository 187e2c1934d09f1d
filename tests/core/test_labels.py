"""Class labels as codes."""

import datetime
import json
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from moeapps.core.labels import (
    UNKNOWN,
    beside_kept,
    class_labels,
    classes_and_codes,
    encode,
    labels_from_json,
    labels_to_json,
)


@pytest.mark.parametrize(
    "labels", [np.array([3, 1, 3]), np.array(["b", "a", "b"]), np.array([True, False, True]), np.array([0.5, -1, 0.5])]
)
def test_codes_are_places_among_the_sorted_classes(labels):
    classes, codes = classes_and_codes(labels)
    assert codes.tolist() == [1, 0, 1]
    assert np.array_equal(classes[codes], labels)
    assert encode(labels, classes).tolist() == [1, 0, 1]


def test_labels_outside_the_classes_are_unknown():
    classes = np.array([2, 4])
    assert encode(np.array([1, 2, 3, 4, 5]), classes).tolist() == [UNKNOWN, 0, UNKNOWN, 1, UNKNOWN]


def test_without_classes_every_label_is_unknown():
    assert encode(np.array(["a"]), np.array([], dtype=str)).tolist() == [UNKNOWN]


@pytest.mark.parametrize(
    ("labels", "classes", "codes"),
    [
        (np.array(["a", 3], dtype=object), np.array(["a", "b"], dtype=object), [0, UNKNOWN]),
        (np.array(["1", "2"]), np.array([1, 2]), [UNKNOWN, UNKNOWN]),
    ],
)
def test_labels_of_another_type_than_the_classes_are_unknown(labels, classes, codes):
    assert encode(labels, classes).tolist() == codes


B = np.array([True, False, True, False])
TEXTS = np.where(B, "p", "n")


@pytest.mark.parametrize(
    ("y", "classes"),
    [
        (pd.array(B.astype(int), dtype="Int64"), [0, 1]),
        (pd.array([2**64 - 1, 2**64 - 2] * 2, dtype="UInt64"), [2**64 - 2, 2**64 - 1]),
        (pd.array(B, dtype="boolean"), [False, True]),
        (pd.array(TEXTS, dtype="string"), ["n", "p"]),
        (pd.Categorical(TEXTS), ["n", "p"]),
        (pd.Series(pd.Categorical(B.astype(int))), [0, 1]),
        (pd.Series(B.astype(int), dtype=object), [0, 1]),
        (pd.Series(B, dtype=object), [False, True]),
        (pd.Series(B.astype(int), dtype="int64[pyarrow]"), [0, 1]),
        (pd.DataFrame({"y": B}), [False, True]),
        (pl.Series("y", B), [False, True]),
        (pl.Series("y", TEXTS.tolist()), ["n", "p"]),
        (pa.array(B.tolist()), [False, True]),
        (pa.array(TEXTS.tolist()), ["n", "p"]),
        (torch.from_numpy(B), [False, True]),
        ([10**18, 10**18 + 1], [10**18, 10**18 + 1]),
        ([Decimal(1), Decimal(2)], [1, 2]),
        (np.where(B, 1.0, -1.0), [-1.0, 1.0]),
        (np.where(B, "NA", "None"), ["NA", "None"]),
    ],
)
@pytest.mark.filterwarnings("ignore:A column-vector y")
def test_labels_of_every_library_keep_their_values_and_their_type(y, classes):
    found, codes = classes_and_codes(class_labels(y))
    assert found.tolist() == classes
    assert [type(value) for value in found.tolist()] == [type(value) for value in classes]
    assert found[codes].tolist() == class_labels(y).tolist()
    assert labels_from_json(json.loads(json.dumps(labels_to_json(found)))).tolist() == classes


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (pd.array([None, True], dtype="boolean"), r"no label for row 0 \(1 in all\)"),
        (["a", None, float("nan")], r"no label for row 1 \(2 in all\)"),
        (["a", 1], r"labels such as 1 \(int\), 'a' \(str\): make them all text"),
        ([datetime.date(2024, 1, 1)] * 2, "labels such as datetime.date"),
        (pd.to_datetime(["2024-01-01", "2024-01-02"]), "type datetime64"),
        ([b"a", b"b"], "bytes"),
        ([0.5, 1.5], "Unknown label type: continuous"),
    ],
)
def test_what_is_no_label_is_refused_and_shown(y, message):
    with pytest.raises(ValueError, match=message):
        class_labels(y)


def test_a_prediction_of_the_name_of_a_kept_column_gets_another_one():
    found = beside_kept({"id": [7], "prediction": ["no"]}, {"prediction": ["yes"], "probability_yes": [0.9]})
    assert found == {"id": [7], "prediction": ["no"], "prediction_prediction": ["yes"], "probability_yes": [0.9]}
