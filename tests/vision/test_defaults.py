"""What "auto" means for images, time limits, and arguments that cannot be."""

import numpy as np
import pytest

import moeapps
from moeapps.core.errors import ConfigError
from moeapps.vision import WideNetClassifier
from moeapps.vision.defaults import automatic, patch_side

SMALL = {"embed_dim": 16, "depth": 1, "num_heads": 2, "random_state": 0, "accelerator": "cpu"}


def test_more_images_mean_larger_batches_fewer_epochs_and_a_part_to_validate_on():
    rows = [automatic(n, 3) for n in (100, 2_000, 8_000, 50_000)]
    for name, order in (("batch_size", 1), ("max_epochs", -1), ("validation_fraction", 1)):
        values = [order * row[name] for row in rows]
        assert values == sorted(values), name
        assert values[0] < values[-1], name
    assert automatic(1, 1) == automatic(100, 1)
    assert automatic(5_000, 1)["max_epochs"] < automatic(5_000, 3)["max_epochs"]


@pytest.mark.parametrize(
    ("side", "stem", "patch"),
    [
        (8, "conv", 2),
        (16, "conv", 4),
        (28, "conv", 8),
        (32, "conv", 8),
        (64, "conv", 8),
        (128, "conv", 16),
        (224, "conv", 16),
        (40, "patch", 5),
        (28, "patch", 4),
    ],
)
def test_a_patch_is_about_an_eighth_of_the_side_or_a_quarter_of_small_ones_behind_convolutions(side, stem, patch):
    assert patch_side(side, 2 * side, stem) == patch


def test_what_auto_became_is_told_and_saved(digits, tmp_path):
    model = WideNetClassifier(**SMALL, max_epochs=1).fit(*digits)
    assert (model.auto_, model.n_iter_) == (automatic(len(digits[0]), 1), 1)
    model.save(tmp_path / "m.safetensors")
    loaded = moeapps.load(tmp_path / "m.safetensors")
    assert (loaded.auto_, loaded.get_params()) == (model.auto_, model.get_params())
    np.testing.assert_array_equal(loaded.predict_proba(digits[0]), model.predict_proba(digits[0]))


def test_training_ends_in_time_with_its_schedule(digits):
    model = WideNetClassifier(**SMALL, max_epochs=100_000, max_time=1.5).fit(*digits)
    assert 1 <= model.n_iter_ < 1_000
    assert model.predict(digits[0][:3]).shape == (3,)


def test_averaged_weights_are_other_than_the_last(digits):
    last, averaged = (
        WideNetClassifier(**SMALL, max_epochs=2, ema_decay=decay).fit(*digits).predict_proba(digits[0])
        for decay in (0.0, 0.9)
    )
    assert not np.allclose(last, averaged)


@pytest.mark.parametrize("model", ["widenet", "vit_moe", "vit"])
def test_blocks_begin_with_little_and_learn_how_much_they_add(digits, model, tmp_path):
    found = WideNetClassifier(model, **SMALL, max_epochs=2).fit(*digits)
    scales = [value for name, value in found.model_.network.named_parameters() if name.endswith(".gamma")]
    assert [scale.shape for scale in scales] == [(16,), (16,)]  # of attention and of the experts or the MLP
    assert all(0 < (scale - 0.01).abs().max() < 0.1 for scale in scales)
    found.save(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(moeapps.load(tmp_path / "m.safetensors").predict(digits[0]), found.predict(digits[0]))
    plain = WideNetClassifier(model, **SMALL, max_epochs=1, init_values=None).fit(*digits)
    assert not [name for name, _ in plain.model_.network.named_parameters() if name.endswith(".gamma")]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"max_time": 0}, "max_time must be None or seconds above 0, got 0"),
        ({"max_time": "1h"}, "max_time must be None or seconds above 0, got '1h'"),
        ({"max_epochs": 0}, "max_epochs must be 'auto' or a whole number of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size"),
        ({"validation_fraction": 1.0}, "validation_fraction must be below 1, got 1.0"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"stem": "cnn"}, "stem must be one of patch, conv, got 'cnn'"),
        ({"global_pool": "max"}, "global_pool must be one of avg, token, got 'max'"),
        ({"init_values": 0}, "init_values must be a number above 0 and at most 1, got 0"),
        ({"augment": "rotate"}, "no augmentation"),
    ],
)
def test_impossible_arguments_are_refused_by_name(argument, message, digits):
    X = (digits[0] * 15).astype(np.uint8)
    with pytest.raises(ConfigError, match=message):
        WideNetClassifier(**{**SMALL, **argument}).fit(X, digits[1])
