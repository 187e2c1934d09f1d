"""Class labels as codes."""

import numpy as np
import pytest

from moeapps.core.labels import UNKNOWN, classes_and_codes, encode


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
