"""Images and fitted models that the tests of vision share; no test changes them."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from moeapps.vision import SwitchDiTGenerator, WideNetClassifier

CLASSIFIER = {
    "embed_dim": 16, "depth": 2, "patch_size": 3, "num_heads": 4, "max_epochs": 1, "lr": 3e-3,
    "validation_fraction": 0.0, "random_state": 0, "accelerator": "cpu",
}  # fmt: skip
"""Arguments of a classifier that trains in a second; images of 8 x 8 pixels are padded to 9 x 9."""

GENERATOR = {
    "dim": 16, "depth": 2, "num_heads": 2, "timesteps": 50, "max_epochs": 1, "random_state": 0, "accelerator": "cpu",
    "batch_size": 32,
}  # fmt: skip
"""Arguments of a generator that trains in a second."""


@pytest.fixture(scope="session")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images ``(160, 8, 8)`` of 0 to 16, and their labels."""
    loaded = load_digits()
    return loaded.images[:160], loaded.target[:160]


@pytest.fixture(scope="session")
def wide(digits) -> WideNetClassifier:
    return WideNetClassifier(**CLASSIFIER).fit(*digits)


@pytest.fixture(scope="session")
def vit_moe(digits) -> WideNetClassifier:
    return WideNetClassifier("vit_moe", **CLASSIFIER).fit(*digits)


@pytest.fixture(scope="session")
def vit(digits) -> WideNetClassifier:
    return WideNetClassifier("vit", **CLASSIFIER).fit(*digits)


@pytest.fixture(scope="session")
def generator(digits) -> SwitchDiTGenerator:
    return SwitchDiTGenerator(**GENERATOR).fit(*digits)
