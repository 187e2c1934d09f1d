"""``WideNetClassifier(name, moeify=...)``: any timm model, with experts made of its blocks."""

import numpy as np
import pytest
import timm
import torch

import moeapps
from moeapps.core import MoE
from moeapps.core.errors import ConfigError
from moeapps.vision import ImageModule, ImageSpec, WideNetClassifier, export_classifier

RNG = np.random.default_rng(0)
X, LABELS = RNG.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8), np.arange(6) % 2
SMALL = {"num_experts": 4}


def classifier(name, moeify, **options):
    return WideNetClassifier(
        name, moeify=moeify, options=options or None, max_epochs=1, batch_size=3, validation_fraction=0,
        random_state=0, accelerator="cpu",
    )  # fmt: skip


def layers(model):
    return [name for name, module in model.model_.network.named_modules() if isinstance(module, MoE)]


@pytest.fixture(scope="module")
def vit():
    return classifier("test_vit", {**SMALL, "every": 3, "init": "split"}).fit(X, LABELS)


def test_a_timm_model_trains_with_experts_and_loads(vit, tmp_path):
    assert layers(vit) == ["blocks.2.mlp", "blocks.5.mlp"]
    assert [r.name for r in vit.model_.moeify_report.replaced] == layers(vit)
    assert {"train/blocks.2.mlp/balance", "train/network.blocks.2.mlp/balance"} & set(vit.history_)
    vit.save(tmp_path / "m.safetensors")
    twin = moeapps.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(twin.predict_proba(X), vit.predict_proba(X))
    assert layers(twin) == layers(vit)
    assert twin.moeify == vit.moeify
    assert vit.expert_load(X, LABELS).shape == (2, 4)
    assert vit.patch_experts(X).shape == (6, 2, 2)
    assert vit.transform(X).shape == (6, 64)


def test_the_experts_are_made_of_the_weights_that_the_model_came_with(tmp_path):
    """As of ``options={"pretrained": True}``, whose weights are a file here."""
    torch.manual_seed(3)
    source = timm.create_model("test_vit", img_size=32, num_classes=2)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    spec = ImageSpec((3, 32, 32), ("a", "b"), (0.5,) * 3, (0.25,) * 3)
    module = ImageModule("test_vit", {"checkpoint_path": str(tmp_path / "weights.pth")}, moeify=SMALL)
    module.attach(spec)
    images = torch.from_numpy(X)
    with torch.no_grad():
        expected = source.eval()(module.prepare(images))
        torch.testing.assert_close(module.eval()(images), expected, atol=1e-5, rtol=1e-5)
    assert any(isinstance(m, MoE) for m in module.network.modules())
    module.attach_for_weights(spec)  # what loading does: no file is read, the layers are there
    assert any(isinstance(m, MoE) for m in module.network.modules())


def test_a_convolutional_network_with_linear_layers_takes_experts(tmp_path):
    model = classifier("test_convnext", SMALL).fit(X, LABELS)
    assert len(layers(model)) == 4
    model.save(tmp_path / "m.safetensors")
    twin = moeapps.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(twin.predict_proba(X), model.predict_proba(X))
    assert model.patch_experts(X, layer=0).shape[0] == 6


@pytest.mark.slow
def test_a_classifier_with_experts_exports(vit, tmp_path):
    export_classifier(vit, tmp_path / "m.onnx")
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession((tmp_path / "m.onnx").read_bytes())
    found = session.run(None, {"images": X.astype(np.float32) / 255})[0]
    np.testing.assert_allclose(found, vit.predict_proba(X), atol=1e-5)


def test_networks_without_experts_say_so_and_how_to_get_some():
    model = classifier("resnet10t", None).fit(X, LABELS)
    for ask in (lambda: model.expert_load(X, LABELS), lambda: model.patch_experts(X)):
        with pytest.raises(ConfigError, match="model='resnet10t' has no experts; moeify= makes some of Linear blocks"):
            ask()
    assert model.predict_proba(X).shape == (6, 2)
    with pytest.raises(ConfigError, match="this ResNet has no block Linear - activation - Linear.*14 Conv2d"):
        classifier("resnet10t", True).fit(X, LABELS)
    with pytest.raises(ConfigError, match="has no argument 'num_expert'; did you mean 'num_experts'"):
        classifier("test_vit", {"num_expert": 4}).fit(X, LABELS)


def test_false_none_and_true_are_what_they_say():
    spec = ImageSpec((3, 32, 32), ("a", "b"), (0.5,) * 3, (0.25,) * 3)
    for value, count in ((None, 0), (False, 0), (True, 3), ({}, 3)):
        module = ImageModule("test_vit", moeify=value)
        module.attach(spec)
        assert sum(isinstance(m, MoE) for m in module.network.modules()) == count
