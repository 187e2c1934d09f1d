"""WideNetClassifier: layouts of images, refused input, saving, and the experts of patches."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError

import moeapps
from moeapps.core.errors import ConfigError, DataError
from moeapps.vision import WideNetClassifier
from tests.vision.conftest import CLASSIFIER


@pytest.mark.slow
@pytest.mark.parametrize("model", ["widenet", "vit_moe", "vit"])
def test_every_family_learns_digits(model):
    X, y = load_digits(return_X_y=True)
    X = X.reshape(-1, 8, 8)
    found = WideNetClassifier(model, **{**CLASSIFIER, "embed_dim": 64, "max_epochs": 25}).fit(X[:1400], y[:1400])
    assert found.score(X[1400:], y[1400:]) > 0.8  # other writers than those of training; chance is 0.1
    assert found.predict_proba(X).sum(axis=1) == pytest.approx(1)


def test_a_saved_classifier_predicts_the_same(wide, digits, tmp_path):
    wide.save(tmp_path / "w.safetensors")
    loaded = moeapps.load(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(loaded.predict_proba(digits[0]), wide.predict_proba(digits[0]))
    assert clone(wide).get_params() == wide.get_params()


def test_the_same_seed_shifts_the_same_images_and_the_history_has_the_validation(digits):
    arguments = {**CLASSIFIER, "validation_fraction": 0.2, "augment": "shift"}
    models = [WideNetClassifier(**arguments).fit(*digits) for _ in range(2)]
    np.testing.assert_array_equal(*(model.predict_proba(digits[0]) for model in models))
    assert {"val/accuracy", "train/network.shared.moe/balance"} <= set(models[0].history_)


def test_layouts_and_types_of_the_same_images_agree(digits):
    X, y = digits
    colour = np.repeat((X * 15).astype(np.uint8)[:, None], 3, axis=1)
    colour[:, 1] //= 2
    model = WideNetClassifier(**{**CLASSIFIER}).fit(colour, y)
    expected = model.predict_proba(colour)
    np.testing.assert_allclose(model.predict_proba(colour.transpose(0, 2, 3, 1)), expected, atol=1e-6)
    np.testing.assert_allclose(model.predict_proba(torch.from_numpy(colour)), expected, atol=1e-6)
    np.testing.assert_allclose(model.predict_proba(colour / np.float32(255)), expected, atol=1e-5)
    rgba = np.concatenate([colour, colour[:, :1]], axis=1)
    assert WideNetClassifier(**{**CLASSIFIER}).fit(rgba, y).spec_.shape[0] == 4


def test_a_size_that_is_no_multiple_of_the_patch_is_padded(digits):
    X, y = digits
    model = WideNetClassifier(**{**CLASSIFIER, "max_epochs": 1, "patch_size": 3}).fit(X[:, :7], y)
    assert model.predict(X[:5, :7]).shape == (5,)
    assert model.model_.network.patch_embed.img_size == (9, 9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda X: X[:0], "there is no image"),
        (lambda X: X[:, :1, :1], r"images are 1 x 1 pixels, expected at least 2 x 2"),
        (lambda X: X[0, 0], "expected images of shape"),
        (lambda X: np.stack([X] * 2, axis=1), "with 1, 3 or 4 channels"),
        (lambda X: np.where(np.arange(len(X))[:, None, None] == 7, np.nan, X), "image 7 has a pixel that is NaN"),
        (lambda X: X.astype(str), "images must be uint8 or numbers"),
    ],
)
def test_what_is_no_image_is_refused(make, message, digits, wide):
    X, y = digits
    with pytest.raises(DataError, match=message):
        WideNetClassifier(**CLASSIFIER).fit(make(X), y)
    with pytest.raises(DataError, match=message):
        wide.predict(make(X))


def test_images_unlike_those_of_training_are_refused(wide, digits):
    X, _ = digits
    with pytest.raises(DataError, match=r"images are \(C, H, W\) = \(1, 7, 8\), the model was fitted on \(1, 8, 8\)"):
        wide.predict(X[:, :7])
    with pytest.raises(DataError, match="pixels reach 4080, those of training 16"):
        wide.predict(X * 255)
    with pytest.raises(NotFittedError):
        WideNetClassifier().predict(X)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "resnet999"}, "model must be one of widenet, vit_moe, vit or a model of timm"),
        ({"embed_dim": 30}, "embed_dim=30 is not a multiple of num_heads=4"),
        ({"options": {"wings": 2}}, "options of model='widenet'"),
        ({"augment": "mixup"}, "'mixup' is no augmentation: none, shift, shift_flip, or a policy"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"patch_size": 0}, "patch_size must be"),
        ({"top_k": 9}, "top_k"),
        ({"lr": -1.0}, "lr must be"),
        ({"label_smoothing": 1.0}, "label_smoothing must be below 1"),
    ],
)
def test_impossible_arguments_are_named_and_a_failed_fit_keeps_the_model(arguments, message, digits, wide):
    with pytest.raises(ConfigError, match=message):
        WideNetClassifier(**{**CLASSIFIER, **arguments}).fit(*digits)
    before = wide.predict_proba(digits[0][:5])
    with pytest.raises(DataError, match="160 images and 3 labels"):
        wide.fit(digits[0], digits[1][:3])
    with pytest.raises(DataError, match="y has 1 class"):
        wide.fit(digits[0], np.zeros(160, dtype=int))
    np.testing.assert_array_equal(wide.predict_proba(digits[0][:5]), before)


def test_a_timm_model_by_name(digits):
    X, y = digits
    model = WideNetClassifier(
        "vit_tiny_patch16_224", options={"patch_size": 4, "depth": 1, "embed_dim": 24}, **{**CLASSIFIER}
    )
    assert model.fit(X[:64], y[:64]).predict(X[:3]).shape == (3,)


def test_experts_by_class(digits, wide, vit_moe, vit):
    for model in (wide, vit_moe):
        load = model.expert_load(digits[0], digits[1], layer=0)
        assert load.shape == (10, 4)
        assert load.sum(axis=1).to_numpy() == pytest.approx(1)
    with pytest.raises(ConfigError, match="has no experts"):
        vit.expert_load(digits[0])


def test_mixed_precision_trains(digits):
    X, y = (part[:64] for part in digits)
    model = WideNetClassifier(**{**CLASSIFIER, "precision": "bf16-mixed", "max_epochs": 4}).fit(X, y)
    assert model.history_["train/task"].iloc[-1] < model.history_["train/task"].iloc[0]
    assert model.model_.network.head.weight.dtype == torch.float32
