"""Class-balanced quality of generated images: equal samples on both sides, and what real images get."""

import numpy as np
import pytest

from moeapps.core.errors import DataError
from moeapps.vision.quality import class_quality, frechet_distance


def clouds(n, shift=0.0, seed=0, d=4, classes=3):
    """Features of classes around different centres, ``n`` of each, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), n)
    return rng.normal(size=(len(labels), d)) + 4 * labels[:, None] + shift, labels


def test_equal_distributions_get_what_other_real_images_get():
    real, labels = clouds(200)
    drawn, other = class_quality(real, labels, *clouds(100, seed=1))
    assert drawn.per_class == other.per_class == 100
    assert drawn.fid == pytest.approx(other.fid, abs=0.3)
    assert drawn.precision == pytest.approx(other.precision, abs=0.05)
    assert set(drawn.by_class) == {0, 1, 2}
    far, _ = class_quality(real, labels, *clouds(100, shift=2.0, seed=1))
    assert far.fid > 10 > 10 * other.fid
    assert min(far.by_class.values()) > 10


def test_one_bad_class_shows_by_itself():
    real, labels = clouds(200)
    drawn, drawn_labels = clouds(100, seed=1)
    drawn[drawn_labels == 1] += 3
    found, other = class_quality(real, labels, drawn, drawn_labels)
    assert found.by_class[1] > 20 * max(found.by_class[0], found.by_class[2])
    assert max(other.by_class.values()) < 1


def test_the_number_of_images_of_a_class_does_not_matter():
    """Ten times as many generated images of one class move the distance of all, but not the balanced one."""
    real, labels = clouds(100)
    drawn, drawn_labels = clouds(50, seed=1)
    more, more_labels = clouds(500, seed=2)
    rows = more_labels == 0
    many, many_labels = np.concatenate([drawn, more[rows]]), np.concatenate([drawn_labels, more_labels[rows]])
    balanced, _ = class_quality(real, labels, drawn, drawn_labels)
    skewed, _ = class_quality(real, labels, many, many_labels)
    assert skewed.per_class == 50
    assert skewed.fid == pytest.approx(balanced.fid, abs=0.3)
    assert frechet_distance(real, many) > 10 * frechet_distance(real, drawn)


def test_the_bias_of_small_samples_is_on_both_sides():
    """Of one distribution: the distance is not 0, grows as samples shrink, and the baseline grows with it."""
    found = {}
    for count in (20, 160):
        real, labels = clouds(2 * count, d=10)
        found[count] = class_quality(real, labels, *clouds(count, seed=3, d=10))
    assert found[20][0].fid > 3 * found[160][0].fid
    for drawn, other in found.values():
        assert drawn.fid == pytest.approx(other.fid, rel=0.5)


def test_a_class_by_itself_needs_more_images_than_features():
    real, labels = clouds(40, d=20)
    found, other = class_quality(real, labels, *clouds(20, d=20, seed=1))
    assert found.by_class == other.by_class == {}
    found, _ = class_quality(*clouds(42, d=20), *clouds(21, d=20, seed=1))
    assert len(found.by_class) == 3


def test_labels_may_be_names_and_the_seed_decides():
    real, labels = clouds(30)
    names = np.array(["a", "b", "c"])
    drawn, drawn_labels = clouds(30, seed=1)
    once, again, other = (
        class_quality(real, names[labels], drawn, list(names[drawn_labels]), seed=seed)[0] for seed in (0, 0, 1)
    )
    assert once == again
    assert once != other
    assert set(once.by_class) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drawn_labels": np.zeros(90, dtype=int)}, "the same classes; only one of them has 1, 2"),
        ({"real_labels": np.zeros(5)}, r"real_labels must be one per row of real, \(90,\), got \(5,\)"),
        ({"drawn": np.zeros((90, 7))}, "expected features"),
        ({"drawn": np.full((90, 4), np.nan)}, "drawn has a feature that is NaN"),
    ],
)
def test_what_does_not_fit_together_is_named(change, message):
    (real, real_labels), (drawn, drawn_labels) = clouds(30), clouds(30, seed=1)
    arguments = {"real": real, "real_labels": real_labels, "drawn": drawn, "drawn_labels": drawn_labels, **change}
    with pytest.raises(DataError, match=message):
        class_quality(**arguments)
    with pytest.raises(DataError, match="at least four real and two generated"):
        class_quality(*clouds(3), *clouds(30))
